"""Requests to the admin port, and to a worker's private one: read by the proxy's own HTTP server, with limits
of their own, and answered. Nothing of them is logged.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from sidecar.config import Config
from sidecar.core.errors import RefusedError
from sidecar.core.headers import render
from sidecar.core.types import Request
from sidecar.serving.shell import ClientGoneError
from sidecar.web.admin.answer import Answer, ProblemError, problem_of
from sidecar.web.incoming import Incoming
from sidecar.web.listen import Listener
from sidecar.web.reply import Reply, Sent
from sidecar.web.server import Server

KEEP_ALIVE = 5.0
"""Seconds an idle connection is kept: there are few, and `/healthz` needs one."""
_STRANGE = (401, 403, 404)
"""Whoever gets one of these has no business here: no place is kept for it."""

Serve = Callable[[Request, Reply], Awaitable[None]]
"""Raises ProblemError, RefusedError, ClientGoneError."""


class Answering:
    """One listener's server, and what it does with requests."""

    def __init__(
        self, config: Config, serve: Serve, on_fault: Callable[[BaseException], None], most: int
    ) -> None:
        """`most`: connections at once."""
        self._timeout = config.timeouts.client
        self._serve = serve
        self._on_fault = on_fault
        self.server = Server(
            self._handle,
            refuse=self._refuse,
            reject=_reject,
            again=lambda _protocol, _data: False,
            on_fault=on_fault,
            timeouts=config.timeouts,
            limits=config.limits,
            most=most,
            keep_alive=KEEP_ALIVE,
        )

    def listener(self, bound: asyncio.Server) -> Listener:
        """What takes its connections in; see `Listener`."""
        full = RefusedError("overloaded", "no file descriptor is free; raise LimitNOFILE")
        return Listener(bound, self.server, refusal=lambda: _rejection(full), on_fault=self._on_fault)

    async def stop(self, listener: asyncio.Server | Listener) -> None:
        """Close at once, whoever is being told something."""
        listener.close()
        transports = [protocol.transport for protocol in self.server.connections]
        await self.server.shutdown(0.1)
        for transport in transports:
            # It would wait for a client that reads no more.
            if transport is not None and transport.get_write_buffer_size():
                transport.abort()
        await listener.wait_closed()

    async def _handle(self, raw: Incoming) -> Sent:
        reply = Reply(raw, self._timeout)
        request = raw.head()
        if raw.body_exists or b"upgrade" in request.fields:
            reply.keep_alive = False  # what nobody reads must not be taken for the next request
        try:
            try:
                await self._serve(request, reply)
            except RefusedError as error:
                reply.keep_alive = False
                await send(reply, problem_of(error).answer)
            except ProblemError as problem:
                reply.keep_alive = reply.keep_alive and problem.answer.status not in _STRANGE
                await send(reply, problem.answer)
        except (ClientGoneError, ConnectionError):
            reply.cut()
        except Exception:  # reason: the server says in the log that it is ours; it must not look like an end
            if reply.started:
                reply.cut()
            raise
        return Sent(keep_alive=reply.keep_alive)

    def _refuse(self, raw: Incoming, error: RefusedError) -> Sent:
        """Answer a request that could not be read, or that we have failed to serve."""
        reply = Reply(raw, self._timeout)
        reply.keep_alive = False
        with suppress(ClientGoneError):
            _write(reply, problem_of(error).answer)
            reply.finish()
        return Sent(keep_alive=False)


async def send(reply: Reply, answer: Answer) -> None:
    """Send it, and take no further request before the client has taken most of it. Raises ClientGoneError."""
    _write(reply, answer)
    await reply.drained()
    reply.finish()


def _write(reply: Reply, answer: Answer) -> None:
    reply.start(answer.status, answer.phrase, answer.fields, sized=True, body=answer.body)


def _reject(transport: asyncio.Transport, error: RefusedError) -> None:
    """Answer a connection that has not brought a whole request head."""
    transport.write(_rejection(error))


def _rejection(error: RefusedError) -> bytes:
    answer = problem_of(error).answer
    start = b"HTTP/1.1 %d %b" % (answer.status, answer.phrase)
    return render(start, (*answer.fields, (b"Connection", b"close"))) + answer.body
