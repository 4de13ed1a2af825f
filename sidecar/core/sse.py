"""Where events end in a `text/event-stream`, told from bytes as they come.

The framer finds boundaries and hands out copies of whole events. It never changes, holds back or
orders the bytes themselves: forwarding does not wait for it. Lines end in LF, CR or CRLF and in
nothing else (WHATWG HTML, 9.2.5: `splitlines()` also splits on U+2028 and U+0085 and is wrong here).

Invariants: the concatenation of fed chunks split in any other way gives the same frames; `at_boundary`
is true only where bytes may be inserted without landing inside an event or between CR and LF.
"""

import re
from typing import NamedTuple, Protocol

_BLANK_LINE = re.compile(rb"((?>\r\n|\n|\r))(?>\r\n|\n|\r)")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"

EVENT_LIMIT = 1 << 20
"""Bytes of one event that are kept for parsing; a longer event is only bounded, not read."""


class Frame(NamedTuple):
    """One event. Offsets count from the first byte of the body."""

    block: bytes | None
    """The event with its line ends and without the stream's BOM; None when it is too long to keep."""
    fields_end: int
    """Where the blank line that ends the event begins: a further field would go here."""
    end: int
    """Just past the event."""


class Framer(Protocol):
    """What the formats' framers have in common."""

    overflowed: bool
    """An event was too long to be read."""

    @property
    def at_boundary(self) -> bool:
        """Whether everything fed so far is whole events."""

    @property
    def newline(self) -> bytes:
        """The line end the upstream uses."""

    @property
    def closing(self) -> bytes:
        """The bytes that close off the unfinished event."""

    def feed(self, chunk: bytes) -> list[Frame]:
        """Take the next bytes; return the events that they completed."""

    def close(self) -> list[Frame]:
        """At the end of the body: what only the end could settle."""


class SSEFramer:
    """Incremental framer for server-sent events."""

    __slots__ = (
        "_base",
        "_buffer",
        "_dropping",
        "_has_cr",
        "_limit",
        "_scan",
        "newline",
        "overflowed",
    )

    def __init__(self, limit: int = EVENT_LIMIT) -> None:
        self._buffer = bytearray()
        """The unfinished event; only its last bytes while one is being dropped."""
        self._base = 0
        self._scan = 0
        self._limit = limit
        self._dropping = False
        self._has_cr = False
        self.newline = b"\n"
        self.overflowed = False

    @property
    def at_boundary(self) -> bool:
        return not self._buffer

    @property
    def closing(self) -> bytes:
        if not self._buffer:
            return b""
        return self.newline if self._buffer[-1] in b"\r\n" else self.newline * 2

    @property
    def begun(self) -> bytes | None:
        """The unfinished event, when the blank line that ends it has begun: a CR after a line end is that
        line, or the first half of it."""
        held = self._buffer if self._base or self._buffer[:3] != _BOM else self._buffer[3:]
        ended = len(held) > 1 and held[-1] == 13 and held[-2] in b"\r\n" and not self._dropping
        return bytes(held) if ended else None

    def feed(self, chunk: bytes) -> list[Frame]:
        if not self._has_cr and b"\r" not in chunk:
            size = len(chunk)
            whole = size > 2 and chunk.find(b"\n\n") == size - 2 and chunk[0] != 10
            if whole and not self._buffer and size <= self._limit and self._base:
                # What nearly always comes: one whole event. No need to look for more.
                self._base += size
                return [Frame(chunk, self._base - 1, self._base)]
        elif not self._has_cr:
            self._has_cr = True
            self.newline = b"\r\n" if b"\r\n" in chunk or chunk.endswith(b"\r") else b"\r"
        data: bytes | bytearray = chunk
        if self._buffer:
            self._buffer += chunk
            data = self._buffer
        return self._frames(data, final=False)

    def close(self) -> list[Frame]:
        """A CR as the very last byte is a whole line end after all."""
        return self._frames(self._buffer, final=True) if self._buffer[-1:] == b"\r" else []

    def _frames(self, data: bytes | bytearray, *, final: bool) -> list[Frame]:
        frames: list[Frame] = []
        size = len(data)
        start, scan = 0, self._scan
        while start < size:
            if not self._dropping and scan <= start:
                start = self._skip_blank(data, start, final=final)
                scan = start
            fields_end, end = self._blank_line(data, scan, final=final)
            if not end:
                break
            block = None
            if self._dropping or end - start > self._limit:
                self.overflowed = True
            else:
                block = bytes(data[start:end])
                if block[:3] == _BOM and self._base + start == 0:
                    block = block[3:]
            frames.append(Frame(block, self._base + fields_end, self._base + end))
            self._dropping = False
            start = scan = end
        self._keep(data, start, size)
        return frames

    def _skip_blank(self, data: bytes | bytearray, at: int, *, final: bool) -> int:
        """Blank lines between events belong to no event; CR as last byte may be half of a CRLF."""
        size = len(data)
        while at < size:
            byte = data[at]
            if byte == 10:
                at += 1
            elif byte == 13 and (final or at + 1 < size):
                at += 2 if data[at + 1 : at + 2] == b"\n" else 1
            else:
                break
        return at

    def _blank_line(self, data: bytes | bytearray, scan: int, *, final: bool) -> tuple[int, int]:
        """(start, end) of the next blank line, or (0, 0) while there is none for certain."""
        if not self._has_cr:
            at = data.find(b"\n\n", scan)
            return (at + 1, at + 2) if at >= 0 else (0, 0)
        found = _BLANK_LINE.search(data, scan)
        if found is None:
            return 0, 0
        if not final and found.end() == len(data) and data[-1] == 13:
            return 0, 0
        return found.end(1), found.end()

    def _keep(self, data: bytes | bytearray, start: int, size: int) -> None:
        """Remember the unfinished event, or only where it might be about to end."""
        if size - start > self._limit:
            self._dropping = self.overflowed = True
        if self._dropping:
            start = max(start, size - 3)
        if data is self._buffer:
            del self._buffer[:start]
        else:
            self._buffer += data[start:]
        self._base += start
        # A blank line is at most four bytes, so it may have begun in the last three. A lone CR at
        # the start of an event is left for `_skip_blank`.
        self._scan = max(0, size - start - 3)


def data_of(block: bytes) -> bytes | None:
    """The event's data: its `data` fields joined with LF, or None when it has none.

    An event without data is never dispatched (WHATWG HTML, 9.2.6), so it does not count as one.
    """
    if b"\r" not in block:
        # As nearly all are: one line of data, perhaps with a name in front.
        lines = block.count(b"\n")
        if lines == 2 and block[:6] == b"data: ":
            return block[6:-2]
        if lines == 3 and block[:6] == b"event:":
            start = block.find(b"\n") + 1
            if block[start : start + 6] == b"data: ":
                return block[start + 6 : -2]
    values = []
    for line in _LINE_END.split(block):
        if line[:5] == b"data:":
            values.append(line[6:] if line[5:6] == b" " else line[5:])
        elif line == b"data":
            values.append(b"")
    return b"\n".join(values) if values else None


def name_of(block: bytes) -> bytes:
    """The event's name: its last `event` field, or nothing."""
    if b"event" not in block:
        return b""
    if block[:7] == b"event: " and b"\r" not in block and b"\nevent" not in block:
        return block[7 : block.find(b"\n")]
    name = b""
    for line in _LINE_END.split(block):
        if line[:6] == b"event:":
            name = line[7:] if line[6:7] == b" " else line[6:]
    return name


def has_id(block: bytes) -> bool:
    """Whether the event has an `id` field."""
    if block[:2] != b"id" and b"\nid" not in block and b"\rid" not in block:
        return False
    return any(line[:3] == b"id:" or line == b"id" for line in _LINE_END.split(block))
