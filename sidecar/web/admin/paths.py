"""What there is at each path of the admin port, but for the feed."""

from collections.abc import Callable, Mapping
from urllib.parse import unquote

from sidecar.core.types import Request
from sidecar.core.waterfall import pieces
from sidecar.telemetry.metrics import form
from sidecar.telemetry.window import SPANS
from sidecar.web.admin import files
from sidecar.web.admin.answer import ASKED_AGAIN, Answer, ProblemError, as_json, not_allowed
from sidecar.web.admin.overview import ACTIVE, COUNTERS, LINES, Overview
from sidecar.web.admin.shared import Shared
from sidecar.web.admin.stored import Cache, Handler

_RECENT = 200
_ERRORS = 50
_REQUEST = "/requests/"


class Paths:
    """One process's."""

    def __init__(self, board: Overview, cache: Cache, shared: Shared) -> None:
        self._board = board
        self._shared = shared
        self._files = files.load()
        self._fixed: dict[str, Mapping[str, Handler]] = {
            "/metrics": {"GET": self._metrics},
            "/stats": {"GET": self._stats},
            "/requests": {"GET": self._requests},
            "/cache": cache.handlers,
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
        await self._board.refresh(COUNTERS)
        body, kind = await self._shared.get(("metrics", chosen), lambda: self._board.metrics(accept))
        return Answer(200, kind.encode(), body)

    async def _stats(self, _request: Request) -> Answer:
        await self._board.refresh(*SPANS)
        return await self._shared.get(("stats",), self._figures)

    def _figures(self) -> Callable[[], Answer]:
        prepared = self._board.prepare()
        return lambda: as_json(prepared())

    async def _requests(self, _request: Request) -> Answer:
        board = self._board
        await board.refresh(ACTIVE, LINES)
        active, recent, errors = board.active(_RECENT), board.recent(_RECENT), board.errors(_ERRORS)
        return as_json({"active": active, "recent": recent, "errors": errors})

    async def _request(self, request: Request) -> Answer:
        await self._board.refresh(LINES)
        line = self._board.find(unquote(request.path.removeprefix(_REQUEST)))
        if line is None:
            raise ProblemError(404, "not_found", "No such request", "only those that ended lately are kept")
        parts = [{"name": piece.name, "start_ms": piece.start_ms, "ms": piece.ms} for piece in pieces(line)]
        return as_json({"line": line, "pieces": parts})

    async def _health(self, _request: Request) -> Answer:
        await self._board.refresh()
        proxy = self._board.ready()["proxy"]
        if proxy.ready:
            return as_json({"status": "ok"})
        return as_json({"status": "not ready", "why": proxy.why}, 503)

    async def _readiness(self, _request: Request) -> Answer:
        await self._board.refresh()
        checks = self._board.ready()
        ready = checks["proxy"].ready
        told = {name: {"ready": check.ready, "why": check.why} for name, check in checks.items()}
        return as_json({"ready": ready, "checks": told}, 200 if ready else 503)
