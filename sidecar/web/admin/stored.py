"""`/cache`: what is stored, and purging it."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import msgspec
from structlog.typing import FilteringBoundLogger

from sidecar.core.types import Request
from sidecar.stores.base import StoreError
from sidecar.stores.listing import Filter
from sidecar.web.admin import query
from sidecar.web.admin.answer import Answer, ProblemError, as_json
from sidecar.web.admin.entries import BusyError, Entries

_SAID = frozenset({"tenant", "model", "path"})
"""Filters whose values the log repeats."""

Handler = Callable[[Request], Awaitable[Answer]]


class Cache(Protocol):
    """What answers at `/cache`."""

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """By method. They raise ProblemError."""

    def close(self) -> None:
        """It is not asked any more."""


class Stored:
    """The answers that this process, and whoever shares its data folder, has stored."""

    def __init__(self, entries: Entries, log: FilteringBoundLogger) -> None:
        """`entries` is closed with it."""
        self._entries = entries
        self._log = log
        self.handlers: Mapping[str, Handler] = {"GET": self._list, "DELETE": self._purge}

    def close(self) -> None:
        """See `Cache`."""
        self._entries.close()

    async def _list(self, request: Request) -> Answer:
        wanted, limit = query.listed(request.query)
        try:
            return as_json(await self._entries.listing(wanted, limit))
        except StoreError as error:
            raise unavailable(error) from None

    async def _purge(self, request: Request) -> Answer:
        wanted = query.purged(request.query)
        if self._entries.off:
            detail = "cache.mode is off; what is on disk goes with `slipstream cache purge`"
            raise ProblemError(409, "cache_off", "No answers are stored", detail)
        told = _told(wanted)

        def ended(removed: int | None, error: BaseException | None) -> None:
            if error is None:
                self._log.info("cache_purged", removed=removed, **told)
            else:
                reason = str(error) if isinstance(error, StoreError) else type(error).__name__
                self._log.warning("cache_purge_failed", reason=reason, **told)

        self._log.info("cache_purging", **told)
        try:
            return as_json({"removed": await self._entries.purge(wanted, ended)})
        except StoreError as error:
            if isinstance(error, BusyError):
                ended(None, error)
            raise unavailable(error) from None


def unavailable(error: Exception) -> ProblemError:
    """The store, or who has it, cannot be asked now."""
    later = ((b"Retry-After", b"1"),) if isinstance(error, BusyError) else ()
    return ProblemError(503, "store_failed", "The stored answers cannot be reached", str(error), *later)


def _told(wanted: Filter | None) -> dict[str, object]:
    """What the log says of a purge: the names of its filters, and the values of some."""
    if wanted is None:
        return {"all": True}
    given = {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not None}
    values = {name: value for name, value in given.items() if name in _SAID}
    return {"all": False, "filters": sorted(given), **values}
