"""Framers for the two formats that stream without being event streams: NDJSON and a JSON array."""

import re

from sidecar.core.sse import EVENT_LIMIT, Frame

_MARK = re.compile(rb'["\[{}\]]')
_IN_STRING = re.compile(rb'(?:[^"\\]|\\.)*+', re.DOTALL)


class LineFramer:
    """Newline-delimited JSON: an event is a line."""

    __slots__ = (
        "_base",
        "_buffer",
        "_dropping",
        "_limit",
        "_scan",
        "newline",
        "overflowed",
    )

    def __init__(self, limit: int = EVENT_LIMIT) -> None:
        self._buffer = bytearray()
        self._base = 0
        self._scan = 0
        self._limit = limit
        self._dropping = False
        self.newline = b"\n"
        self.overflowed = False

    @property
    def at_boundary(self) -> bool:
        return not self._buffer and not self._dropping

    @property
    def closing(self) -> bytes:
        return b"" if self.at_boundary else b"\n"

    def feed(self, chunk: bytes) -> list[Frame]:
        data: bytes | bytearray = chunk
        if self._buffer:
            self._buffer += chunk
            data = self._buffer
        frames = []
        start = 0
        while (at := data.find(b"\n", max(start, self._scan))) >= 0:
            block = None
            if self._dropping or at + 1 - start > self._limit:
                self.overflowed = True
            else:
                block = bytes(data[start : at + 1])
            frames.append(Frame(block, self._base + at, self._base + at + 1))
            self._dropping = False
            start, self._scan = at + 1, 0
        if len(data) - start > self._limit:
            self._dropping = self.overflowed = True
        if self._dropping:
            start = len(data)
        if data is self._buffer:
            del self._buffer[:start]
        else:
            self._buffer += data[start:]
        self._base += start
        self._scan = len(self._buffer)
        return frames

    def close(self) -> list[Frame]:
        """The last line needs no newline."""
        end = self._base + len(self._buffer)
        if self._dropping:
            return [Frame(None, end, end)]
        return [Frame(bytes(self._buffer), end, end)] if self._buffer.strip() else []


class ArrayFramer:
    """A JSON array that arrives piece by piece (Gemini without `alt=sse`): an event is an element.

    Nothing is ever inserted into such a body, so there is no boundary to speak of.
    """

    __slots__ = (
        "_base",
        "_buffer",
        "_depth",
        "_dropping",
        "_in_string",
        "_limit",
        "_scan",
        "_start",
        "newline",
        "overflowed",
    )

    def __init__(self, limit: int = EVENT_LIMIT) -> None:
        self._buffer = bytearray()
        self._base = 0
        self._scan = 0
        self._start = -1
        """Where the element being read begins in the buffer; -1 between elements."""
        self._depth = 0
        self._in_string = False
        self._dropping = False
        """The element being read is too long to keep."""
        self._limit = limit
        self.newline = b"\n"
        self.overflowed = False

    @property
    def at_boundary(self) -> bool:
        return False

    @property
    def closed(self) -> bool:
        """Whether the bracket has come that ends it."""
        return self._depth == 0

    @property
    def closing(self) -> bytes:
        return b""

    def feed(self, chunk: bytes) -> list[Frame]:
        self._buffer += chunk
        frames: list[Frame] = []
        while self._step(frames):
            pass
        self._forget()
        return frames

    def close(self) -> list[Frame]:
        return []

    def _step(self, frames: list[Frame]) -> bool:
        """Read up to the next mark that matters; False when the buffer has no more."""
        buffer = self._buffer
        if self._in_string:
            inside = _IN_STRING.match(buffer, self._scan)
            self._scan = inside.end() if inside else len(buffer)
            if buffer[self._scan : self._scan + 1] != b'"':
                return False
            self._in_string = False
            self._scan += 1
            return True
        found = _MARK.search(buffer, self._scan)
        if found is None:
            self._scan = len(buffer)
            return False
        self._scan = found.end()
        mark = buffer[found.start()]
        if mark == 34:
            self._in_string = True
        elif mark in b"[{":
            if self._depth == 1:
                self._start = found.start()
            self._depth += 1
        else:
            self._depth -= 1
            if self._depth == 1 and self._start >= 0:
                frames.append(self._element())
        return True

    def _element(self) -> Frame:
        end = self._base + self._scan
        block = None
        if self._dropping or self._scan - self._start > self._limit:
            self.overflowed = True
        else:
            block = bytes(self._buffer[self._start : self._scan])
        self._start = -1
        self._dropping = False
        return Frame(block, end, end)

    def _forget(self) -> None:
        """Keep the element being read, unless it is too long, and what a string ends with."""
        if self._start >= 0 and len(self._buffer) - self._start > self._limit:
            self._dropping = self.overflowed = True
        drop = self._scan if self._start < 0 or self._dropping else self._start
        del self._buffer[:drop]
        self._base += drop
        self._scan -= drop
        self._start = min(self._start, 0)
