"""One connection: bytes to requests, one answer at a time, and raw control over what goes out.

Owns the transport and the order of answers. What an answer is, is its work's business.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from typing import Protocol, cast

import httptools

from sidecar.scripted.received import Received
from sidecar.scripted.render import Ending
from sidecar.scripted.work import Work

REFUSED = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
FLUSH_POLL = 0.001


class Owner(Protocol):
    """What a connection tells the provider."""

    active: int

    def opened(self, connection: Connection) -> None: ...
    def lost(self, connection: Connection) -> None: ...
    def arrived(self, received: Received) -> Work: ...
    def changed(self) -> None: ...


class Connection(asyncio.Protocol):
    def __init__(self, owner: Owner, number: int, loop: asyncio.AbstractEventLoop) -> None:
        self.number = number
        self.loop = loop
        self.tasks: set[asyncio.Task[None]] = set()
        self.writable = True
        self._owner = owner
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[tuple[Received, Work]] = deque()
        self._writing = False  # the first of the queue is being answered
        self._answered = False  # it was, but its body is still coming
        self._ours = False  # we close, not the peer
        self._gone = asyncio.Event()
        self._drained: asyncio.Future[None] | None = None
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []

    # Raw control, for handlers.

    async def send(self, data: bytes) -> None:
        """Write, and wait for room for more. Raises ConnectionResetError when the connection is gone."""
        self.write(data)
        if not self.writable and not self._transport.is_closing():
            if self._drained is None:
                self._drained = self.loop.create_future()
            await asyncio.shield(self._drained)
        if self._transport.is_closing():
            raise ConnectionResetError("the connection is gone")

    def reset(self) -> None:
        """RST, after what was written has left."""
        self._stop(hard=True)

    def close(self) -> None:
        """FIN, after what was written has left."""
        self._stop(hard=False)

    async def wait_closed(self) -> None:
        """Until the connection is gone, whoever closed it."""
        await self._gone.wait()

    def pause_reading(self) -> None:
        if not self._transport.is_closing() and self._transport.is_reading():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._transport.is_closing() and not self._transport.is_reading():
            self._transport.resume_reading()

    # For works.

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def manners(self, received: Received, *, close: bool) -> Ending:
        return "close" if close or not received.persistent else "keep"

    def end(self, ending: Ending) -> None:
        """The work is over; nothing of the answer follows."""
        if not self._writing or ending == "hang":
            return
        if ending in ("keep", "close"):
            self._queue[0][0].finished.set()
        self._idle()
        if ending == "keep":
            self._answered = True
            self._next()
        else:
            self._stop(hard=ending == "reset")

    def abort(self) -> None:
        """Gone at once, without a word."""
        self._ours = True
        self._transport.abort()

    def _stop(self, *, hard: bool) -> None:
        self._ours = True
        if self._gone.is_set():
            return
        if not hard:
            self._idle()
            self._transport.close()
        elif self._transport.get_write_buffer_size():
            # An abort would throw away bytes that the peer has to see before the RST.
            self.loop.call_later(FLUSH_POLL, lambda: self._stop(hard=True))
        else:
            self._idle()
            sock: socket.socket = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    def _idle(self) -> None:
        if self._writing:
            self._writing = False
            self._owner.active -= 1
            self._owner.changed()

    def _next(self) -> None:
        received = self._queue[0][0]
        if received.complete:
            self._answered = False
            self._queue.popleft()
            if self._queue:
                self.loop.call_soon(self._begin)

    def _begin(self) -> None:
        if self._ours or self._writing or self._answered or not self._queue:
            return
        received, work = self._queue[0]
        if not (work.early or received.complete):
            return
        self._writing = True
        self._owner.active += 1
        self._owner.changed()
        work.start(self, received)
        if work.early and received.size:  # pipelined: it came while another was being answered
            work.data(received.body)
        if work.early and received.complete:
            work.end()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        self._owner.opened(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._parser = httptools.HttpRequestParser(self)
        except httptools.HttpParserError:
            self._transport.write(REFUSED)
            self._stop(hard=False)

    def eof_received(self) -> None:
        # Clients of this kind never half-close: one that sends FIN has left.
        self._left()
        self._transport.abort()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._left()
        self._gone.set()
        self.resume_writing()
        self._owner.lost(self)

    def _left(self) -> None:
        for received, work in self._queue:
            work.lost()
            if not self._ours and not received.finished.is_set():
                received.closed.set()
        self._idle()
        self._ours = True

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None
        if self._writing:
            self._queue[0][1].resume()

    # httptools

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers = []

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        method, target = parser.get_method().decode(), self._target.decode("latin-1")
        received = Received(method, target, self._headers, parser.get_http_version(), self.number)
        received.persistent = parser.should_keep_alive()
        work = self._owner.arrived(received)
        received.keep = work.keep
        self._queue.append((received, work))
        if (received.header("expect") or b"").lower() == b"100-continue":
            self.write(CONTINUE)
        if len(self._queue) == 1 and work.early:
            self._begin()

    def on_body(self, chunk: bytes) -> None:
        if not self._queue:
            return
        received, work = self._queue[-1]
        received.append(chunk)
        if work.early and self._writing and len(self._queue) == 1:
            work.data(chunk)

    def on_message_complete(self) -> None:
        if not self._queue:
            return
        received, work = self._queue[-1]
        received.arrived.set()
        if len(self._queue) > 1:
            return
        if work.early:
            if self._writing:
                work.end()
            if self._answered:
                self._next()
        else:
            self._begin()
