"""The admin port: where it listens, who asks, whether they may, and what they are told."""

import asyncio
import errno
from collections.abc import Callable

from structlog.typing import FilteringBoundLogger

from sidecar.config import Config
from sidecar.core.types import Request
from sidecar.serving import intake
from sidecar.web.admin import feed, guard, query
from sidecar.web.admin.answer import NEVER_KEPT, SAFE, ProblemError, not_allowed
from sidecar.web.admin.answering import Answering, send
from sidecar.web.admin.overview import Overview
from sidecar.web.admin.paths import Paths
from sidecar.web.admin.shared import Shared
from sidecar.web.admin.stored import Cache
from sidecar.web.listen import Listener
from sidecar.web.reply import Reply

_MOST = 64
"""Connections at once."""
_LOOKING = ("GET", "HEAD")


class Admin:
    """An admin port: of one process, or of a supervisor that shows all of its workers."""

    def __init__(
        self,
        config: Config,
        board: Overview,
        cache: Cache,
        log: FilteringBoundLogger,
        on_fault: Callable[[BaseException], None],
    ) -> None:
        """`cache` is closed with it. `on_fault` is told of mistakes of our own."""
        self._config = config
        self._cache = cache
        self._log = log
        self._shared = Shared(on_fault)
        self._paths = Paths(board, cache, self._shared)
        self._feed = feed.Feed(board, self._shared)
        self._rules = guard.rules(config, ())
        self._listener: Listener | None = None
        self._answering = Answering(config, self._serve, on_fault, _MOST)
        self._server = self._answering.server
        self.url = ""
        """Where it listens; known once started."""

    async def start(self, *, moves: bool) -> None:
        """Listen. `moves`: on a free port, if the configured one is taken. Raises OSError when the address
        cannot be had."""
        host, port = self._config.admin.host, self._config.admin.port
        try:
            listener = await self._listen(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not moves:
                raise
            listener = await self._listen(host, 0)
        addresses = [socket.getsockname()[:2] for socket in listener.sockets]
        address, got = addresses[0]
        if port not in (0, got):
            self._log.warning("admin_port_taken", port=port, instead=got)
        self._rules = guard.rules(self._config, [name for name, _ in addresses])
        self.url = f"http://[{address}]:{got}" if ":" in address else f"http://{address}:{got}"
        self._listener = listener
        await listener.start_serving()

    async def _listen(self, host: str, port: int) -> Listener:
        listen = asyncio.get_running_loop().create_server
        return self._answering.listener(await listen(self._server, host, port, start_serving=False))

    async def stop(self) -> None:
        """Close at once, whoever is being told something."""
        self._feed.stop()
        if self._listener is not None:
            await self._answering.stop(self._listener)
        self._shared.close()
        self._cache.close()

    async def _serve(self, request: Request, reply: Reply) -> None:
        """Raises ProblemError, RefusedError, ClientGoneError."""
        guard.admit(self._rules, request)
        intake.check(request, self._config.limits.headers)
        if request.path == "/events":
            await self._tell(request, reply)
            return
        handler = self._paths.handler(request)
        if request.method not in _LOOKING:
            guard.permit(self._rules, request)
        # Probes ask on a new connection each time: what they leave behind would only take places.
        reply.keep_alive = reply.keep_alive and request.path != guard.OPEN
        await send(reply, await handler(request))

    async def _tell(self, request: Request, reply: Reply) -> None:
        if request.method not in _LOOKING:
            raise not_allowed(*_LOOKING)
        window = query.window(request.query)
        if self._feed.full:
            retry = (b"Retry-After", b"5")
            detail = f"{feed.MOST} listen already"
            raise ProblemError(503, "overloaded", "Too many listeners", detail, retry)
        kind = (b"Content-Type", b"text/event-stream")
        reply.start(200, b"OK", (kind, *NEVER_KEPT, *SAFE), sized=False)
        if not reply.bodiless:
            await self._feed.tell(reply, window)
