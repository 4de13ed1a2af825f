"""Client connections of the load generator: as little code per event as counting allows.

They trust the peers to speak HTTP/1.1 well, look at nothing they need not, and say when they got what
they did not expect.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar, cast

import httptools

from benchmarks.timer import Pace

HOST = "127.0.0.1"
LAST_CHUNK = b"0\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_OK = b"HTTP/1.1 200"


class LoadError(Exception):
    """The peer did not do what the job needs to measure anything."""


class Connection(asyncio.Protocol):
    """A keep-alive connection, one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.busy = False
        self.broken: str | None = None
        self.done: Callable[[Connection], None] = lambda _: None
        """Called when an answer is over, broken or not."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy:
            self.over(f"the connection was lost in mid-answer ({exc})")

    def send(self, request: bytes) -> None:
        self.busy = True
        self.transport.write(request)

    def over(self, broken: str | None = None) -> None:
        self.busy = False
        self.broken = broken
        self.done(self)


class Whole(Connection):
    """For answers with a length."""

    def __init__(self) -> None:
        super().__init__()
        self.expected: re.Pattern[bytes] | None = None
        """What must be in every head."""
        self.sample: list[float] | None = None
        """Takes the seconds from the request to the first byte."""
        self._sent = 0.0
        self._got = b""
        self._due = 0

    def send(self, request: bytes) -> None:
        self._sent = time.perf_counter()
        super().send(request)

    def data_received(self, data: bytes) -> None:
        if self.sample is not None and not self._got:
            self.sample.append(time.perf_counter() - self._sent)
        got = self._got = self._got + data if self._got else data
        if not self._due:
            head = got.find(b"\r\n\r\n")
            if head < 0:
                return
            length = _LENGTH.search(got, 0, head + 2)
            if length is None or not got.startswith(_OK):
                self.over(f"unexpected answer: {got[:120]!r}")
                return
            if self.expected is not None and not self.expected.search(got, 0, head + 2):
                self.over(f"expected {self.expected.pattern!r}: {got[:head]!r}")
                return
            self._due = head + 4 + int(length[1])
        if len(got) >= self._due:
            self._got, self._due = b"", 0
            self.over()


class Tally:
    """Events that came in on all streams."""

    def __init__(self) -> None:
        self.events = 0


class Stream(Connection):
    """For event streams in chunks: counts events, times the first one."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally
        self._sent = 0.0
        self.events = 0
        self.head = b""
        """All that came up to the end of the first event."""
        self.sample: list[float] | None = None
        """Takes the seconds from the request to the first event."""
        self._tail = b""

    def send(self, request: bytes) -> None:
        self.events, self.head = 0, b""
        self._sent = time.perf_counter()
        super().send(request)

    def data_received(self, data: bytes) -> None:
        events = data.count(b"\n\n")
        if not self.events:
            self.head += data
            if events and self.sample is not None:
                self.sample.append(time.perf_counter() - self._sent)
            if data[:5] == b"HTTP/" and not data.startswith(_OK):
                self.over(f"unexpected answer: {data[:120]!r}")
                return
        self.events += events
        self._tally.events += events
        if len(data) < len(LAST_CHUNK):
            data = self._tail + data
        self._tail = data[-len(LAST_CHUNK) :]
        if self._tail == LAST_CHUNK:
            self.over()


class Parsed(Connection):
    """Reads answers as HTTP, to the byte: dearer, for where it is not the load that is measured."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: dict[bytes, bytes] = {}
        """Of the head; names in small letters."""
        self.status = 0
        self.events = 0
        self.size = 0
        """Bytes of body."""
        self.body: list[bytes] | None = None
        """Takes the body."""
        self.ended = 0.0
        """When the last byte came."""
        self._last = b""
        self._parser = httptools.HttpResponseParser(self)

    def __repr__(self) -> str:
        return f"{self.status}, {self.events} events, {self.fields}"

    def send(self, request: bytes) -> None:
        self.fields, self.status, self.events, self.size, self._last = {}, 0, 0, 0, b""
        super().send(request)

    async def fetch(self, request: bytes) -> None:
        """Send it, and wait for the end of the answer. Raises LoadError."""
        self.send(request)
        await self.end()

    async def end(self) -> None:
        """Wait for the end of the answer. Raises LoadError."""
        over = asyncio.Event()
        self.done = lambda _: over.set()
        if self.busy:
            await over.wait()
        if self.broken:
            raise LoadError(self.broken)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.over(f"not HTTP: {error}")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self.events += data.count(b"\n\n") + (self._last == b"\n" == data[:1])
        self._last = data[-1:]
        self.size += len(data)
        if self.body is not None:
            self.body.append(data)

    def on_message_complete(self) -> None:
        self.ended = time.perf_counter()
        self.over()


async def parsed(port: int) -> Parsed:
    """A new connection."""
    _, made = await asyncio.get_running_loop().create_connection(Parsed, HOST, port)
    return made


_Some = TypeVar("_Some", Stream, Parsed)


@asynccontextmanager
async def dropped(connections: list[_Some]) -> AsyncIterator[list[_Some]]:
    """Streams end with the block, finished or not."""
    try:
        yield connections
    finally:
        for connection in connections:
            connection.busy = False
            connection.transport.abort()


async def ramped(
    port: int, requests: list[bytes], spacing: float, tally: Tally, connections: list[Stream]
) -> None:
    """Open the streams one after the other, each on its own connection, and wait for every first event."""
    loop = asyncio.get_running_loop()
    with Pace(spacing) as pace:
        for request in requests:
            await pace.tick()
            _, stream = await loop.create_connection(lambda: Stream(tally), HOST, port)
            connections.append(stream)
            stream.send(request)
        while not all(stream.events for stream in connections):
            check(connections)
            await pace.tick()


def check(connections: list[_Some]) -> None:
    """Raises LoadError unless all of them are in the middle of an answer."""
    for stream in connections:
        if not stream.busy:
            raise LoadError(stream.broken or f"a stream ended before its time: {stream!r}")
