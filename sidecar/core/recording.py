"""A response as an append-only log of bytes.

One writer (the pump) commits a head, appends chunks and finishes once. Any number of readers hold an
offset each. The recording knows neither tasks nor sockets: whoever waits registers something with a
`wake()`, and is woken after every change.

Memory: while `retained` is true every byte stays, so that a reader may still start at offset 0. Past
`limit` bytes, or when retention was never asked for, bytes are dropped once all readers are past them;
a reader that is too far behind the others is then told that it is lost, so that it cannot keep them.
What is retained can be packed, block by block, where all readers are past it: streams of small events
repeat themselves, and take a fifth of the room or less.
"""

import zlib
from array import array
from bisect import bisect_right
from typing import Protocol

import msgspec

from sidecar.core.types import End, Head

LAG = 8 << 20
"""Bytes that a reader may be behind the fastest one where the recording no longer keeps everything."""

SLICE = 1 << 20
"""Bytes that a reader gets at once: what is done with them must not hold up other streams."""

BLOCK = 16 << 10
"""Bytes that are packed at once: a quarter of a millisecond's work."""


class Sleeper(Protocol):
    """Somebody who waits."""

    def wake(self) -> None:
        """Something changed; cheap, synchronous, may be called when nobody waits."""


class Waker(Sleeper, Protocol):
    """A reader, as the recording sees it."""

    offset: int
    lost: bool
    """It was too slow: the bytes at its offset are gone."""


class Rest(msgspec.Struct, frozen=True, gc=False):
    """A recording that is over, as a value."""

    head: Head | None
    end: End | None
    events: bytes
    packed: tuple[bytes, ...]
    rest: bytes
    base: int
    size: int
    limit: int


class Recording:
    """Head, body and end of one answer, growing."""

    __slots__ = (
        "_base",
        "_bytes",
        "_limit",
        "_low",
        "_packed",
        "_room",
        "_wakers",
        "end",
        "events",
        "head",
        "size",
    )

    def __init__(self, *, limit: int) -> None:
        """`limit`: bytes kept from the start on; 0 for a body that is only passing through."""
        self.head: Head | None = None
        self.end: End | None = None
        self.size = 0
        self.events = array("Q")
        """The offset just past each event, where the format has events."""
        self._packed: tuple[bytes, ...] = ()
        """The first bytes, `BLOCK` of them in each; empty once they are dropped."""
        self._bytes: bytearray | bytes = bytearray()
        """Of a recording that grows, a bytearray."""
        self._base = 0
        """The offset of the first byte that is not packed, or dropped."""
        self._limit = limit
        self._wakers: list[Waker] = []
        self._room: Sleeper | None = None
        self._low = 0

    @classmethod
    def sealed(cls, head: Head, body: bytes, events: "array[int]", end: End) -> "Recording":
        """One that is over, as it was kept elsewhere. The bytes are not copied: many may hold them."""
        made = cls(limit=max(len(body), 1))
        made.head, made.end, made.events = head, end, events
        made._bytes, made.size = body, len(body)
        return made

    @classmethod
    def resumed(cls, rest: Rest) -> "Recording":
        """One that was laid to rest. Its bytes are not copied."""
        made = cls(limit=rest.limit)
        made.head, made.end, made.size = rest.head, rest.end, rest.size
        made.events.frombytes(rest.events)
        made._packed, made._bytes, made._base = rest.packed, rest.rest, rest.base
        return made

    def rest(self) -> Rest:
        """What it takes to read it later on, once it is over. Whoever reads it now shares the bytes."""
        self._bytes = rest = bytes(self._bytes)
        return Rest(
            head=self.head,
            end=self.end,
            events=self.events.tobytes(),
            packed=self._packed,
            rest=rest,
            base=self._base,
            size=self.size,
            limit=self._limit,
        )

    @property
    def retained(self) -> bool:
        """Whether the recording still holds its first byte, and will go on holding it."""
        return 0 < self._limit >= self.size and (self._base == 0 or bool(self._packed))

    @property
    def _whole(self) -> bool:
        return self._base == 0 or bool(self._packed)

    @property
    def readers(self) -> int:
        """How many read it now."""
        return len(self._wakers)

    @property
    def backlog(self) -> int:
        """Bytes that even the fastest reader has yet to take: what the writer should wait for."""
        wakers = self._wakers
        if not wakers:
            return 0
        if len(wakers) == 1:
            return self.size - wakers[0].offset
        return self.size - max(waker.offset for waker in self._wakers)

    def keep(self, limit: int) -> None:
        """Retain up to `limit` bytes from now on; 0 gives up what only a later reader could want."""
        self._limit = limit
        if self.size > limit:
            self._trim()

    def commit(self, head: Head) -> None:
        """The point of no return: from here on the client may have seen bytes."""
        self.head = head
        self._wake()

    def append(self, chunk: bytes) -> None:
        self._bytes += chunk
        self.size += len(chunk)
        self._wake()
        if self.size > self._limit:
            self._trim()

    def finish(self, end: End) -> None:
        """Seal it. Only the first call counts."""
        if self.end is None:
            self.end = end
            self._wake()

    def attach(self, waker: Waker) -> None:
        """Raises ValueError when the bytes at the reader's offset are gone."""
        if waker.offset < self._base and not self._packed:
            raise ValueError("the recording no longer holds that offset")
        self._wakers.append(waker)

    def detach(self, waker: Waker) -> None:
        if waker in self._wakers:
            self._wakers.remove(waker)
        self._advanced(trim=True)

    def after(self, count: int) -> int:
        """The offset just past the first `count` events. Raises IndexError when there were fewer."""
        return self.events[count - 1] if count else 0

    def take(self, waker: Waker) -> bytes:
        """The bytes past the reader's offset, joined; moves the offset. All of them, or where there are more
        than `SLICE`, those up to the end of an event before that, if there is one."""
        offset = waker.offset
        end = self.size if self.size - offset <= SLICE else self._slice(offset)
        start = offset - self._base
        if start < 0:
            data = self._unpacked(offset, end)
        else:
            with memoryview(self._bytes) as view:
                data = bytes(view[start : end - self._base])
        waker.offset = end
        # With many readers `append` does it for all of them, unless one has left others far behind: each
        # looking at all others would cost too much.
        self._advanced(trim=len(self._wakers) == 1 or end - self._base > LAG)
        return data

    def whole(self) -> bytes | None:
        """The body from its first byte, or None when it is no longer held."""
        return self._unpacked(0, self.size) if self._whole else None

    def pack(self) -> int:
        """Take less room, if there is a block that all readers are past; returns the bytes that saved."""
        if len(self._bytes) < 2 * BLOCK or not self.retained or isinstance(self._bytes, bytes):
            return 0
        end = self._base + BLOCK
        if any(waker.offset < end for waker in self._wakers):
            return 0
        with memoryview(self._bytes) as view:
            packed = zlib.compress(view[:BLOCK], 1)
        self._packed += (packed,)
        del self._bytes[:BLOCK]
        self._base = end
        return BLOCK - len(packed)

    def when_room(self, waker: Sleeper, low: int) -> None:
        """Wake the writer once the backlog is at most `low`."""
        self._room, self._low = waker, low

    def _advanced(self, *, trim: bool) -> None:
        if trim and self.size > self._limit:
            self._trim()
        if self._room is not None and self.backlog <= self._low:
            room, self._room = self._room, None
            room.wake()

    def _trim(self) -> None:
        if len(self._wakers) > 1:
            self._lose(max([waker.offset for waker in self._wakers]) - LAG)
        passed = min([waker.offset for waker in self._wakers], default=self.size) - self._base
        if passed > 0 and isinstance(self._bytes, bytearray):
            self._packed = ()
            del self._bytes[:passed]
            self._base += passed
            del self.events[:]

    def _slice(self, offset: int) -> int:
        """Where to stop, for somebody who has more before them than they should get at once."""
        events = self.events
        at = bisect_right(events, offset + SLICE)
        return events[at - 1] if at and events[at - 1] > offset else offset + SLICE

    def _unpacked(self, offset: int, end: int) -> bytes:
        """The bytes from `offset` to `end`, packed or not."""
        first = min(offset // BLOCK, len(self._packed))
        blocks = self._packed[first : -(-end // BLOCK)]
        parts = [zlib.decompress(block) for block in blocks]
        if end > self._base:
            parts.append(bytes(self._bytes[: end - self._base]))
        start = first * BLOCK if blocks else self._base
        return b"".join(parts)[offset - start : end - start]

    def _lose(self, least: int) -> None:
        """Let go of the readers that are not as far as `least`."""
        lost = [waker for waker in self._wakers if waker.offset < least]
        if lost:
            # A new list: the old one may be what `_wake` goes through.
            self._wakers = [waker for waker in self._wakers if waker.offset >= least]
        for waker in lost:
            waker.lost = True
            waker.wake()

    def _wake(self) -> None:
        for waker in self._wakers:
            waker.wake()
