"""What there is at each path of the admin port, but for the feed."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import unquote

from structlog.typing import FilteringBoundLogger

from sidecar.core.types import Request
from sidecar.core.waterfall import pieces
from sidecar.serving.board import Board
from sidecar.stores.base import StoreError
from sidecar.web.admin import files, query
from sidecar.web.admin.answer import ASKED_AGAIN, Answer, ProblemError, as_json, not_allowed
from sidecar.web.admin.entries import Entries

_RECENT = 200
_ERRORS = 50
_REQUEST = "/requests/"

Handler = Callable[[Request], Awaitable[Answer]]


class Paths:
    """One process's."""

    def __init__(self, board: Board, entries: Entries, log: FilteringBoundLogger) -> None:
        self._board = board
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
        body, kind = await asyncio.to_thread(self._board.metrics(accept))
        return Answer(200, kind.encode(), body)

    async def _stats(self, _request: Request) -> Answer:
        prepared = self._board.prepare()
        return await asyncio.to_thread(lambda: as_json(prepared()))

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
        try:
            removed = await self._entries.purge(wanted)
        except StoreError as error:
            raise _unavailable(error) from None
        self._log.info("cache_purged", removed=removed, all=wanted is None)
        return as_json({"removed": removed})


def _unavailable(error: StoreError) -> ProblemError:
    return ProblemError(503, "store_failed", "The stored answers cannot be reached", str(error))
