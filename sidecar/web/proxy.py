"""The proxy port: requests from aiohttp's server to the front, and its answers back."""

import asyncio
import time
from typing import cast

from sidecar.config import Config
from sidecar.core.errors import RefusedError, outcome_of, status_of
from sidecar.core.headers import render
from sidecar.core.latency import NOTHING, Trace, record
from sidecar.serving.errors import error_parts, reason
from sidecar.serving.front import Front, Line, Take
from sidecar.serving.visit import Visit, heard
from sidecar.web import tunnel
from sidecar.web.again import Again
from sidecar.web.incoming import Incoming
from sidecar.web.reply import Reply, Sent
from sidecar.web.server import Protocol

_NO_DESCRIPTOR = "no file descriptor is free; raise LimitNOFILE"


class Proxy:
    """Serves what comes. One per process."""

    def __init__(self, config: Config, front: Front, again: Again, take: Take) -> None:
        """`take` gets the latency lines of connections that brought no request."""
        self._config = config
        self._front = front
        self._again = again
        self._take = take
        front.written = self._remember

    def again(self, protocol: Protocol, data: bytes) -> bool:
        """Answer a request that has come before in the same bytes; returns whether that could be done."""
        limits, front = self._config.limits, self._front
        if front.ending or front.active >= limits.requests or data.find(b"\r\n\r\n") > limits.headers:
            return False
        return self._again.serve(protocol, data)

    async def handle(self, raw: Incoming) -> Sent:
        """Serve one request to its end."""
        reply = Reply(raw, self._config.timeouts.client)
        try:
            await self._front.handle(Visit(raw.method, reply), raw)
        finally:
            tunnel.forget(raw.protocol)
        raw.protocol.answered = reply.keep_alive
        return Sent(keep_alive=reply.keep_alive)

    async def handle_handed(self, raw: Incoming) -> Sent:
        """The same of one that another worker has handed over."""
        raw.handed = True
        return await self.handle(raw)

    def refuse(self, raw: Incoming, error: RefusedError) -> Sent:
        """Answer a request that could not be read."""
        visit = Visit(raw.method, Reply(raw, self._config.timeouts.client))
        visit.reply.keep_alive = False
        self._front.refuse(visit, error.fault)
        self._front.account(visit)
        return Sent(keep_alive=False)

    def reject(self, transport: asyncio.Transport, error: RefusedError) -> None:
        """Answer a connection that has not brought a whole request head."""
        transport.write(self.rejection(error))

    def rejection(self, error: RefusedError) -> bytes:
        """The whole answer for such a connection; its line is written now."""
        body, fields = error_parts(error.fault)
        status = status_of(error.fault)
        start = b"HTTP/1.1 %d %b" % (status, reason(error.fault))
        trace = Trace.begin("")
        trace.outcome, trace.error, trace.status = (
            outcome_of(error.fault),
            error.fault.kind,
            status,
        )
        self._take(record(trace, heard(None, len(body)), time.perf_counter()), NOTHING)
        return render(start, [*fields, (b"Connection", b"close")]) + body

    def refusal(self) -> bytes:
        """The same for one for which there is no descriptor."""
        return self.rejection(RefusedError("overloaded", _NO_DESCRIPTOR))

    def _remember(self, visit: Visit, line: Line) -> None:
        self._again.remember(visit, cast("Reply", visit.reply), line)
