"""What a worker process tells its supervisor, which speaks for all workers: on a Unix socket in a folder that
nobody else can enter.

It has the same stored answers at `/cache` as an admin port, and at `/snapshot` what there is to add up with
the other workers' (`serving.snapshot`).
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from sidecar.config import Config
from sidecar.core.types import Request
from sidecar.serving import intake
from sidecar.serving.board import Board
from sidecar.serving.snapshot import Wanted, encode
from sidecar.web.admin import query
from sidecar.web.admin.answer import Answer, ProblemError, not_allowed
from sidecar.web.admin.answering import Answering, send
from sidecar.web.admin.entries import Entries
from sidecar.web.admin.shared import Shared
from sidecar.web.admin.stored import Stored
from sidecar.web.reply import Reply

SNAPSHOT, CACHE = "/snapshot", "/cache"
_MOST = 32
"""Connections at once: there is one supervisor, with a few requests."""
_LOOKING = ("GET", "HEAD")


class Private:
    """One worker's."""

    def __init__(
        self,
        config: Config,
        board: Board,
        entries: Entries,
        log: FilteringBoundLogger,
        on_fault: Callable[[BaseException], None],
    ) -> None:
        """`entries` is closed with it. `on_fault` is told of mistakes of our own."""
        self._board = board
        self._stored = Stored(entries, log)
        self._shared = Shared(on_fault)
        self._limit = config.limits.headers
        self._answering = Answering(config, self._serve, on_fault, _MOST)
        self._listener: asyncio.Server | None = None
        self._path: Path | None = None

    async def start(self, path: Path) -> None:
        """Listen there, also if an earlier process has left its socket. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_unix_server(self._answering.server, path)
        self._path = path

    async def stop(self) -> None:
        """Close at once."""
        if self._listener is not None:
            await self._answering.stop(self._listener)
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()
        self._shared.close()
        self._stored.close()

    async def _serve(self, request: Request, reply: Reply) -> None:
        intake.check(request, self._limit)
        await send(reply, await self._answer(request))

    async def _answer(self, request: Request) -> Answer:
        method = "GET" if request.method == "HEAD" else request.method
        if request.path == SNAPSHOT:
            if method != "GET":
                raise not_allowed(*_LOOKING)
            return await self._snapshot(query.snapshot(request.query))
        if request.path != CACHE:
            raise ProblemError(404, "not_found", "Nothing here", "this port has nothing at this path")
        handler = self._stored.handlers.get(method)
        if handler is None:
            raise not_allowed(*_LOOKING, "DELETE")
        return await handler(request)

    async def _snapshot(self, wanted: Wanted) -> Answer:
        def prepare() -> Callable[[], Answer]:
            more = self._board.snapshot(wanted)
            return lambda: Answer(200, b"application/vnd.msgpack", encode(more()))

        # Not remembered: the supervisor does that, and asks for what is new.
        return await asyncio.shield(self._shared.ask((wanted.query,), prepare, remembered=False))
