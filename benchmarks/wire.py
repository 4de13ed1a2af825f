"""Client connections of the load generator: as little code per event as counting allows.

They trust the peers to speak HTTP/1.1 well, look at nothing they need not, and say when they got what
they did not expect.
"""

import asyncio
import re
import time
from collections.abc import Callable
from typing import cast

LAST_CHUNK = b"0\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_OK = b"HTTP/1.1 200"


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
        self._got = b""
        self._due = 0

    def data_received(self, data: bytes) -> None:
        got = self._got = self._got + data if self._got else data
        if not self._due:
            head = got.find(b"\r\n\r\n")
            if head < 0:
                return
            length = _LENGTH.search(got, 0, head + 2)
            if length is None or not got.startswith(_OK):
                self.over(f"unexpected answer: {got[:120]!r}")
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
        self.sample: list[float] | None = None
        """Takes the seconds from the request to the first event."""
        self._tail = b""

    def send(self, request: bytes) -> None:
        self.events = 0
        self._sent = time.perf_counter()
        super().send(request)

    def data_received(self, data: bytes) -> None:
        events = data.count(b"\n\n")
        if not self.events:
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
