"""The client side: aiohttp's low-level server, made stricter where a proxy has to be.

What aiohttp leaves open and is closed here: a clock on request heads (408), a bound on all headers
together (431), a cap on connections (503), and error answers in the product's own form. What a handler
gets past this module is one well-framed request.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.http_parser import RawRequestMessage

from sidecar.config import Limits, Timeouts
from sidecar.core.errors import RefusedError
from sidecar.web.incoming import Incoming
from sidecar.web.reply import Sent, close_within

KEEP_ALIVE = 75.0
"""Seconds an idle client connection is kept."""
FIELDS = 256
LINGERING = 32
"""Refused connections that may wait for their client to read why."""
LINGER = 2.0
"""Seconds for which bytes that nobody reads are still taken, so that an answer is not lost to a reset."""

_LONG_ID = re.compile(rb"(?i)\nlast-event-id:[^\r\n]{1024}")

Handler = Callable[[Incoming], Awaitable[Sent]]
Refuse = Callable[[Incoming, RefusedError], Sent]


class Protocol(web.RequestHandler):
    """One client connection."""

    __slots__ = (
        "_aligned",
        "_between",
        "_body_bytes",
        "_counted",
        "_header_timer",
        "_long_id",
        "_partial",
        "_rejected",
        "_seen",
        "_server",
        "answered",
        "incoming",
        "tail",
        "whole",
    )

    def __init__(self, server: "Server", **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self._server = server
        self._seen = self._body_bytes = 0
        self._partial = b""
        """What came of a head that is not complete."""
        self._aligned = False
        """All that came so far is whole requests, and the latest one came in one piece."""
        self.whole = b""
        """That piece, until anything else comes."""
        self._long_id = False
        """The head that was too large was so for its `Last-Event-ID`."""
        self._header_timer: asyncio.TimerHandle | None = None
        self._rejected = False
        self._counted = False
        """Whether it takes one of the places that `limits.connections` gives."""
        self._between = 0
        """Bytes since the latest bytes of a body that were none."""
        self.tail = b""
        """The last seven bytes that came: as many as show the end of a chunked body."""
        self.incoming: Incoming | None = None
        """The request being served, or the latest one."""
        self.answered = False
        """Its answer is written, and another one may come on this connection."""

    @property
    def client_timeout(self) -> float:
        """Seconds that a client may take for the next part of a body."""
        return self._server.timeouts.client

    @property
    def ended_plainly(self) -> bool:
        """Whether the latest that came is the end of a chunked body without trailers, and nothing after."""
        return self.tail == b"\r\n0\r\n\r\n" and not self._messages

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self._server.serving < self._server.most:
            self._server.serving += 1
            self._counted = True
        else:
            self._reject("overloaded", f"{self._server.most} connections are open")
            return
        # A connection that opens and says nothing is as slow as one that drips.
        self._header_timer = self._loop.call_later(self._server.timeouts.client, self._too_slow)

    def data_received(self, data: bytes) -> None:
        if self._rejected:
            return
        if self._upgraded:
            super().data_received(data)  # nothing behind a request to leave HTTP is one; see `web.tunnel`
            return
        waits = self._waiter is not None and not self._waiter.done()
        # aiohttp's task may have a step to go after the answer is out.
        waits = waits or (self.answered and not self._messages)
        if waits and self._aligned and self._server.again(self, data):
            self._next_keepalive_close_time = self._loop.time() + self.keepalive_timeout
            return
        self.answered = False
        self.tail = data[-7:] if len(data) >= 7 else (self.tail + data)[-7:]
        in_body, before = self._in_body, self._partial
        super().data_received(data)
        aligned, self._aligned, self.whole = self._aligned or not self._seen, False, b""
        if self._request_count != self._seen:
            if aligned and self._request_count == self._seen + 1 and not before and self._is_one(data):
                self._aligned = True
                # Else it waits behind another one, which must not be taken for it.
                self.whole = data if waits or not self._seen else b""
            self._seen = self._request_count
            self._heads_done()
            if not isinstance(self._messages[-1][0], RawRequestMessage):
                self._long_id = self._long_id or _LONG_ID.search(before + data) is not None
                self._break_bodies()
        elif in_body:
            self._count_body(len(data))
        elif data:
            self._count_head(data)

    def _is_one(self, data: bytes) -> bool:
        """Whether these bytes are the request that they brought, from its first to its last one."""
        message, body = self._messages[-1]
        if not isinstance(message, RawRequestMessage) or message.chunked or not body.is_eof():
            return False
        return data.find(b"\r\n\r\n") + 4 + getattr(body, "total_bytes", 0) == len(data)

    @property
    def _in_body(self) -> bool:
        """Whether what comes next belongs to a body."""
        if self._messages:
            return not self._messages[-1][1].is_eof()
        return self.incoming is not None and not self.incoming.content.is_eof()

    def _count_body(self, came: int) -> None:
        """Bound what is no body in it: the parser keeps extensions and trailers of a chunked one."""
        most = self._server.limits.headers
        body_bytes = self.incoming.content.total_bytes if self.incoming is not None else 0
        self._between += came
        if body_bytes != self._body_bytes:
            self._body_bytes, self._between = body_bytes, 0
        elif self._between > most and self.transport is not None and not self._messages:
            self._break_bodies()
            self.transport.close()

    def _count_head(self, data: bytes) -> None:
        """These bytes are part of a head that is not complete."""
        self._partial += data
        if self._header_timer is None:
            self._header_timer = self._loop.call_later(self._server.timeouts.client, self._too_slow)
        if len(self._partial) > self._server.limits.headers:
            self._long_id = self._long_id or _LONG_ID.search(self._partial) is not None
            error = self._too_large()
            self._reject(error.fault.kind, error.fault.detail)

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's
        """aiohttp calls this for every body read, and then parses nothing again; most of the time nothing
        was paused."""
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)

    def force_close(self) -> None:
        if self.transport is not None:
            close_within(self.transport, self._server.timeouts.client)
        super().force_close()

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """aiohttp would write a traceback past the log, for bodies that broke off as well."""
        error = kwargs.get("exc_info")
        if isinstance(error, BaseException) and not isinstance(error, web.RequestPayloadError):
            self._server.on_fault(error)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._heads_done()
        if self._counted:
            self._counted = False
            self._server.serving -= 1
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Render what aiohttp found wrong with a request, or what a handler did not catch."""
        if isinstance(exc, LineTooLong) or (message and "Too many headers" in message):
            error = self._too_large()
        elif isinstance(exc, HttpProcessingError) or status == 400:
            error = RefusedError("bad_request", "not valid HTTP/1.1")
        else:
            error = RefusedError("internal", "see the log of the sidecar")
            if exc is not None:
                self._server.on_fault(exc)
        return cast("web.StreamResponse", self._server.refuse(cast("Incoming", request), error))

    def _too_large(self) -> RefusedError:
        if self._long_id:
            return RefusedError("bad_request", "Last-Event-ID: longer than any event's id")
        return RefusedError("headers_too_large", f"they exceed {self._server.limits.headers} bytes")

    def _break_bodies(self) -> None:
        """What came is not valid HTTP: a body that is still being read will never be whole.

        aiohttp queues the error behind the request and leaves its reader waiting.
        """
        bodies = [payload for _, payload in self._messages]
        if self.incoming is not None:
            bodies.append(self.incoming.content)
        for body in bodies:
            if not body.is_eof():
                body.set_exception(web.RequestPayloadError("the body is not valid HTTP"))

    def _heads_done(self) -> None:
        self._partial = b""
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_slow(self) -> None:
        self._header_timer = None
        if self._partial or not self._request_count:
            self._reject("request_timeout", f"the headers were not complete within {self.client_timeout:g} s")

    def _reject(self, kind: str, detail: str) -> None:
        """Answer while no handler runs: there is no request to speak of."""
        self._heads_done()
        if (transport := self.transport) is None:
            return
        if self.incoming is not None and self._waiter is None:
            self.close()  # an answer is on its way; nothing more is read, and it ends with the connection
            return
        self._rejected = True
        self._server.reject(transport, RefusedError(kind, detail))
        if transport.can_write_eof() and len(self._server.connections) < self._server.most + LINGERING:
            # Closing with bytes still coming is a reset, which can take the answer back. What comes is
            # dropped until the client closes too, but not for long.
            transport.write_eof()
            self._loop.call_later(LINGER, transport.abort)
        else:
            transport.close()


class Server(web.Server):
    """Makes a `Protocol` per connection and counts them."""

    def __init__(
        self,
        handler: Handler,
        *,
        refuse: Refuse,
        reject: Callable[[asyncio.Transport, RefusedError], None],
        again: "Callable[[Protocol, bytes], bool]",
        on_fault: Callable[[BaseException], None],
        timeouts: Timeouts,
        limits: Limits,
        most: int,
        keep_alive: float = KEEP_ALIVE,
        fields: int = FIELDS,
    ) -> None:
        """`refuse` answers a request, `reject` a connection; `again` answers one at once that came before, if
        it can. `most`: connections at once; `keep_alive`: seconds for an idle one; `fields`: in a head."""
        super().__init__(
            cast("Any", handler),
            request_factory=cast("Any", Incoming),
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=keep_alive,
            max_line_size=limits.headers,
            max_field_size=limits.headers,
            max_headers=fields,
            lingering_time=LINGER,
        )
        self.refuse = refuse
        self.reject = reject
        self.again = again
        self.on_fault = on_fault
        self.timeouts = timeouts
        self.limits = limits
        self.most = most
        self.serving = 0
        """Connections that were not refused."""

    def __call__(self) -> Protocol:
        return Protocol(self, loop=self._loop, **self._kwargs)
