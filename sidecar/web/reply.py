"""Writing a response to the client: heads as they are, bodies framed for the client's HTTP version.

Bytes go to the transport directly. aiohttp's own response classes would add `Server`, `Date` and
`Content-Type`, and recase names; nothing of that may reach the client.
"""

import asyncio
import socket
import struct
from collections.abc import Iterable

from sidecar.core.headers import render
from sidecar.serving.shell import ClientGoneError
from sidecar.web.incoming import Incoming

_RESET = struct.pack("ii", 1, 0)
_LOOK = 0.02
_END = b"0\r\n\r\n"


class Reply:
    """The response to one request; see `serving.shell.Reply`."""

    __slots__ = (
        "_chunked",
        "_raw",
        "_timeout",
        "_to_close",
        "bodiless",
        "head",
        "keep_alive",
        "sent",
        "started",
    )

    def __init__(self, raw: Incoming, timeout: float) -> None:
        """`timeout`: seconds a client may take to make room for more."""
        self._raw = raw
        self._timeout = timeout
        self._chunked = False
        self._to_close = False
        self.keep_alive: bool = raw.keep_alive
        """Whether the connection may carry another request."""
        self.bodiless = raw.method == "HEAD"
        self.started = False
        self.sent = 0
        """Bytes of body sent, framing not counted."""
        self.head = b""
        """As it was sent."""

    @property
    def request_bytes(self) -> bytes:
        """The request as it came, if it came in one piece and alone; else nothing."""
        return self._raw.whole

    @property
    def insertable(self) -> bool:
        """Whether the body's length is open, so that frames of our own may be added."""
        return self._chunked or self._to_close

    def start(
        self,
        status: int,
        reason: bytes,
        fields: Iterable[tuple[bytes, bytes]],
        *,
        sized: bool,
        body: bytes = b"",
        last: bool = False,
    ) -> None:
        """Write the head, and what is already there of the body, in one go.

        `sized`: the fields hold a Content-Length that the body will have. `last`: this is all of the body.
        Raises ValueError when a field would break out of its line; nothing has been written then.
        """
        http10 = self._raw.http10
        self.keep_alive = self.keep_alive and not self._raw.trailed
        extra = []
        if status in (204, 304):
            self.bodiless = True
        elif not sized and not self.bodiless:
            if http10:
                self._to_close, self.keep_alive = True, False
            else:
                self._chunked = True
                extra.append((b"Transfer-Encoding", b"chunked"))
        if not self.keep_alive:
            extra.append((b"Connection", b"close"))
        elif http10:
            extra.append((b"Connection", b"keep-alive"))
        self.head = head = render(b"HTTP/1.1 %d %b" % (status, reason), [*fields, *extra])
        self.started = True
        parts = [head]
        if body and not self.bodiless:
            self.sent += len(body)
            parts += [b"%x\r\n" % len(body), body, b"\r\n"] if self._chunked else [body]
        if last and self._chunked:
            self._chunked = False
            parts.append(_END)
        if len(body) < 65536:
            self._transport.write(b"".join(parts))
        else:
            self._transport.writelines(parts)

    def write(self, data: bytes) -> None:
        """Write some of the body. Never waits; see `drained`."""
        if self.bodiless:
            return
        self.sent += len(data)
        if not self._chunked:
            self._transport.write(data)
        elif len(data) < 65536:
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._transport.writelines([b"%x\r\n" % len(data), data, b"\r\n"])

    @property
    def behind(self) -> bool:
        """Whether the client is slow and `drained` would wait."""
        return self._raw.protocol.writing_paused

    async def drained(self) -> None:
        """Wait until the client has taken enough. Raises ClientGoneError."""
        if self._raw.protocol.writing_paused:
            try:
                async with asyncio.timeout(self._timeout):
                    await self._raw.writer.drain()
            except TimeoutError:
                self.cut(reset=True)
                raise ClientGoneError("the client stopped reading") from None

    async def flush(self) -> None:
        """All of it is with the transport already."""

    def finish(self) -> None:
        """The body is whole. A client that has hung up on its last byte, as many SDKs do on a terminal
        marker, has all of it: that is no reason to raise."""
        transport = self._raw.transport
        if transport is None or transport.is_closing():
            return
        if self._chunked:
            transport.write(_END)
        if not self.keep_alive and transport.get_write_buffer_size():
            # aiohttp closes after this, but would wait for ever for a client that reads no more.
            asyncio.get_running_loop().call_later(self._timeout, transport.abort)

    def cut(self, *, reset: bool = False) -> None:
        """End the connection so that no client can take the body for whole.

        What was written is still delivered; a missing last chunk or a short length does the telling.
        Where the end of the connection is the end of the body (HTTP/1.0), only a reset can tell, and it
        may cost a slow client the last bytes. `reset`: at once, for a client that takes nothing any more.
        """
        self.keep_alive = False
        transport = self._raw.transport
        if transport is None:
            return
        if reset or self._to_close:
            connected = transport.get_extra_info("socket")
            if connected is not None:
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        if reset:
            transport.abort()
        elif self._to_close and transport.get_extra_info("ssl_object") is not None:
            # Closing it would say in TLS's own words that nothing is missing. aiohttp would close it, too.
            self._raw.protocol.transport = None
            abort_within(transport, self._timeout)
        else:
            close_within(transport, self._timeout)

    def cut_to_close(self) -> None:
        """The same of a body that ends with the connection, and was written past this object."""
        self._to_close = True
        self.cut()

    @property
    def _transport(self) -> asyncio.Transport:
        transport = self._raw.transport
        # A transport that is closing takes bytes and drops them: that must not pass for an answer.
        if transport is None or transport.is_closing():
            raise ClientGoneError("the client closed the connection")
        return transport


def close_within(transport: asyncio.Transport, timeout: float) -> None:
    """Close once what was written is delivered; a client that takes nothing gets `timeout` seconds.

    A transport that is only closed waits for ever for a peer that acknowledges and never reads.
    """
    if transport.is_closing():
        return
    waiting = transport.get_write_buffer_size() > 0
    transport.close()
    if waiting:
        asyncio.get_running_loop().call_later(timeout, transport.abort)


def abort_within(transport: asyncio.Transport, timeout: float) -> None:
    """Abort a TLS connection once what was written has gone to the kernel; a client that takes nothing gets
    `timeout` seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout

    def look() -> None:
        if transport.get_write_buffer_size() and loop.time() < end and not transport.is_closing():
            loop.call_later(_LOOK, look)
        else:
            transport.abort()

    # What is not in that buffer any more is written by the loop before it looks at its clock again.
    loop.call_later(_LOOK, look)


class Sent:
    """What a handler returns to aiohttp: everything has been written already."""

    __slots__ = ("keep_alive",)

    def __init__(self, *, keep_alive: bool) -> None:
        self.keep_alive = keep_alive

    async def prepare(self, request: Incoming) -> None:
        """Nothing is left to prepare."""

    async def write_eof(self) -> None:
        """Nothing is left to write."""
