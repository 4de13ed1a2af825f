"""The admin port's server: who asks, whether they may, and the answer on the wire.

It is the same HTTP server as the proxy's, with a listener and limits of its own. Nothing of its requests is
logged.
"""

import asyncio
import errno
from collections.abc import Callable
from contextlib import suppress

from structlog.typing import FilteringBoundLogger

from sidecar.config import Config
from sidecar.core.errors import RefusedError
from sidecar.core.headers import render
from sidecar.core.types import Request
from sidecar.serving import intake
from sidecar.serving.board import Board
from sidecar.serving.shell import ClientGoneError
from sidecar.web.admin import feed, guard, query
from sidecar.web.admin.answer import NEVER_KEPT, SAFE, Answer, ProblemError, not_allowed, problem_of
from sidecar.web.admin.entries import Entries
from sidecar.web.admin.paths import Paths
from sidecar.web.admin.shared import Shared
from sidecar.web.incoming import Incoming
from sidecar.web.reply import Reply, Sent
from sidecar.web.server import Server

_MOST = 64
"""Connections at once."""
KEEP_ALIVE = 5.0
"""Seconds an idle connection is kept: there are few, and `/healthz` needs one."""
_LOOKING = ("GET", "HEAD")
_STRANGE = (401, 403, 404)
"""Whoever gets one of these has no business here: no place is kept for it."""


class Admin:
    """One process's admin port."""

    def __init__(
        self,
        config: Config,
        board: Board,
        entries: Entries,
        log: FilteringBoundLogger,
        on_fault: Callable[[BaseException], None],
    ) -> None:
        """`entries` is closed with it. `on_fault` is told of mistakes of our own."""
        self._config = config
        self._entries = entries
        self._log = log
        self._shared = Shared(on_fault)
        self._paths = Paths(board, entries, self._shared, log)
        self._feed = feed.Feed(board, self._shared)
        self._rules = guard.rules(config, ())
        self._listener: asyncio.Server | None = None
        self._server = Server(
            self._handle,
            refuse=self._refuse,
            reject=_reject,
            again=lambda _protocol, _data: False,
            on_fault=on_fault,
            timeouts=config.timeouts,
            limits=config.limits,
            most=_MOST,
            keep_alive=KEEP_ALIVE,
        )
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

    async def _listen(self, host: str, port: int) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(self._server, host, port, start_serving=False)

    async def stop(self) -> None:
        """Close at once, whoever is being told something."""
        self._feed.stop()
        if self._listener is not None:
            self._listener.close()
            transports = [protocol.transport for protocol in self._server.connections]
            await self._server.shutdown(0.1)
            for transport in transports:
                # It would wait for a client that reads no more.
                if transport is not None and transport.get_write_buffer_size():
                    transport.abort()
            await self._listener.wait_closed()
        self._shared.close()
        self._entries.close()

    async def _handle(self, raw: Incoming) -> Sent:
        reply = Reply(raw, self._config.timeouts.client)
        request = raw.head()
        if raw.body_exists or b"upgrade" in request.fields:
            reply.keep_alive = False  # what nobody reads must not be taken for the next request
        try:
            try:
                await self._serve(request, reply)
            except RefusedError as error:
                reply.keep_alive = False
                await _answer(reply, problem_of(error).answer)
            except ProblemError as problem:
                reply.keep_alive = reply.keep_alive and problem.answer.status not in _STRANGE
                await _answer(reply, problem.answer)
        except (ClientGoneError, ConnectionError):
            reply.cut()
        except Exception:  # reason: the server says in the log that it is ours; it must not look like an end
            if reply.started:
                reply.cut()
            raise
        return Sent(keep_alive=reply.keep_alive)

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
        await _answer(reply, await handler(request))

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

    def _refuse(self, raw: Incoming, error: RefusedError) -> Sent:
        """Answer a request that could not be read, or that we have failed to serve."""
        reply = Reply(raw, self._config.timeouts.client)
        reply.keep_alive = False
        with suppress(ClientGoneError):
            _send(reply, problem_of(error).answer)
            reply.finish()
        return Sent(keep_alive=False)


async def _answer(reply: Reply, answer: Answer) -> None:
    """Send it, and take no further request before the client has taken most of it. Raises ClientGoneError."""
    _send(reply, answer)
    await reply.drained()
    reply.finish()


def _send(reply: Reply, answer: Answer) -> None:
    reply.start(answer.status, answer.phrase, answer.fields, sized=True, body=answer.body)


def _reject(transport: asyncio.Transport, error: RefusedError) -> None:
    """Answer a connection that has not brought a whole request head."""
    answer = problem_of(error).answer
    start = b"HTTP/1.1 %d %b" % (answer.status, answer.phrase)
    transport.write(render(start, (*answer.fields, (b"Connection", b"close"))) + answer.body)
