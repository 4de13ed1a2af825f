"""What there is at each path of the admin port, but for the feed."""

from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import unquote

import msgspec
from structlog.typing import FilteringBoundLogger

from sidecar.core.types import Request
from sidecar.core.waterfall import pieces
from sidecar.serving.board import Board
from sidecar.stores.base import StoreError
from sidecar.stores.listing import Filter
from sidecar.telemetry.metrics import form
from sidecar.web.admin import files, query
from sidecar.web.admin.answer import ASKED_AGAIN, Answer, ProblemError, as_json, not_allowed
from sidecar.web.admin.entries import BusyError, Entries
from sidecar.web.admin.shared import Shared

_RECENT = 200
_ERRORS = 50
_REQUEST = "/requests/"
_SAID = frozenset({"tenant", "model", "path"})
"""Filters whose values the log repeats."""

Handler = Callable[[Request], Awaitable[Answer]]


class Paths:
    """One process's."""

    def __init__(self, board: Board, entries: Entries, shared: Shared, log: FilteringBoundLogger) -> None:
        self._board = board
        self._shared = shared
        self._entries = entries
        self._log = log
        self._files = files.load()
        self._fixed: dict[str, Mapping[str, Handler]] = {
            "/metrics": {"GET": self._metrics},
            "/stats": {"GET": self._stats},
            "/requests": {"GET": self._requests},
            "/cache": {"GET": self._list, "DELETE": self._purge},
            "/healthz": {"GET": self._health},
            "/readyz": {"GET": self._readiness},
            **{path: {"GET": self._file} for path in self._files},
        }

    def handler(self, request: Request) -> Handler:
        """What answers a request: for HEAD what answers GET. Raises ProblemError."""
        by_method = self._fixed.get(request.path)
        if by_method is None and request.path.startswith(_REQUEST):
            by_method = {"GET": self._request}
        if by_method is None:
            raise ProblemError(404, "not_found", "Nothing here", "this port has nothing at this path")
        found = by_method.get("GET" if request.method == "HEAD" else request.method)
        if found is None:
            raise not_allowed("GET", "HEAD", *[method for method in by_method if method != "GET"])
        return found

    async def _file(self, request: Request) -> Answer:
        file = self._files[request.path]
        return Answer(200, file.kind, file.body, ASKED_AGAIN)

    async def _metrics(self, request: Request) -> Answer:
        accept = request.fields.get(b"accept", b"").decode("latin-1")
        _, chosen = form(accept)  # few there are; of what clients write, no end
        body, kind = await self._shared.get(("metrics", chosen), lambda: self._board.metrics(accept))
        return Answer(200, kind.encode(), body)

    async def _stats(self, _request: Request) -> Answer:
        return await self._shared.get(("stats",), self._figures)

    def _figures(self) -> Callable[[], Answer]:
        prepared = self._board.prepare()
        return lambda: as_json(prepared())

    async def _requests(self, _request: Request) -> Answer:
        board = self._board
        active, recent, errors = board.active(_RECENT), board.recent(_RECENT), board.errors(_ERRORS)
        return as_json({"active": active, "recent": recent, "errors": errors})

    async def _request(self, request: Request) -> Answer:
        line = self._board.find(unquote(request.path.removeprefix(_REQUEST)))
        if line is None:
            raise ProblemError(404, "not_found", "No such request", "only those that ended lately are kept")
        parts = [{"name": piece.name, "start_ms": piece.start_ms, "ms": piece.ms} for piece in pieces(line)]
        return as_json({"line": line, "pieces": parts})

    async def _health(self, _request: Request) -> Answer:
        proxy = self._board.ready()["proxy"]
        if proxy.ready:
            return as_json({"status": "ok"})
        return as_json({"status": "not ready", "why": proxy.why}, 503)

    async def _readiness(self, _request: Request) -> Answer:
        checks = self._board.ready()
        ready = checks["proxy"].ready
        told = {name: {"ready": check.ready, "why": check.why} for name, check in checks.items()}
        return as_json({"ready": ready, "checks": told}, 200 if ready else 503)

    async def _list(self, request: Request) -> Answer:
        wanted, limit = query.listed(request.query)
        try:
            return as_json(await self._entries.listing(wanted, limit))
        except StoreError as error:
            raise _unavailable(error) from None

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
            raise _unavailable(error) from None


def _unavailable(error: StoreError) -> ProblemError:
    later = ((b"Retry-After", b"1"),) if isinstance(error, BusyError) else ()
    return ProblemError(503, "store_failed", "The stored answers cannot be reached", str(error), *later)


def _told(wanted: Filter | None) -> dict[str, object]:
    """What the log says of a purge: the names of its filters, and the values of some."""
    if wanted is None:
        return {"all": True}
    given = {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not None}
    values = {name: value for name, value in given.items() if name in _SAID}
    return {"all": False, "filters": sorted(given), **values}
