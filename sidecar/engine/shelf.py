"""The streams that clients may come back to: those that run, and for a while those that have ended.

All of them together stay within a budget of bytes. What has to go goes at once and whole, the streams
that ended first before those that still run, and is gone for good: nobody gets half of an answer. From a
quarter of the budget on, what nobody is reading just now is packed. While memory is short the streams that
have ended get less room than that; those that run do not notice.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import msgspec

from sidecar.core.recording import Recording

_FIXED = 4096
"""What a stream is counted as taking beside its bytes: the head, what is known of it, and Python."""
_TIGHT = 4
_BLOCKS = 8
"""What is packed of a stream that has ended: not more than the event loop can spare the time for."""


class Kept(Protocol):
    """A call, as the shelf sees it."""

    recording: Recording
    shelf: "Shelf | None"
    charged: int
    """Bytes it counts for here."""

    @property
    def held(self) -> bool:
        """Whether somebody needs all of it, whatever it takes."""


class _Ended(msgspec.Struct, frozen=True, gc=False):
    """One that is over. Where it is a value, so is this: see `engine.rest`."""

    kept: object
    charged: int
    until: float
    """The time at which it goes."""


class Shelf:
    """Calls by id."""

    def __init__(self, keep: float, memory: int) -> None:
        """`keep`: seconds after the end; `memory`: bytes."""
        self._keep = keep
        self._memory = memory
        self._room = memory
        """What those that have ended must leave; never more than the budget."""
        self._loop = asyncio.get_running_loop()
        self._running: dict[str, Kept] = {}
        self._ended: OrderedDict[str, _Ended] = OrderedDict()
        """In the order in which they go, because all are kept equally long. A plain dict finds its first item
        the later the more were taken out before it."""
        self._timer: asyncio.TimerHandle | None = None
        self.used = 0
        self.brief = False
        """Memory is short: what begins is not kept."""
        self.evicted: Callable[[Kept], None] = lambda _kept: None
        """Told of running calls that had to go."""
        self.lay: Callable[[Kept], object] = lambda kept: kept
        """Makes of a call that has ended what is kept of it."""

    def __len__(self) -> int:
        return len(self._running) + len(self._ended)

    def put(self, name: str, kept: Kept) -> None:
        """From now on a client may come back to it."""
        self._running[name] = kept
        kept.shelf = self
        self.charge(kept, _FIXED + kept.recording.size)

    def get(self, name: str) -> object | None:
        """The call of that id, if all of it is still there; of one that has ended, what `lay` has made."""
        ended = self._ended.get(name)
        return self._running.get(name) if ended is None else ended.kept

    def charge(self, kept: Kept, count: int) -> None:
        """Its recording has grown by `count` bytes. What somebody holds has its bounds elsewhere."""
        if kept.held:
            return
        if (self.used + count) * _TIGHT > self._room:
            count -= kept.recording.pack()
        kept.charged += count
        self.used += count
        if self.used > self._room:
            self._make_room()

    def end(self, name: str, kept: Kept) -> None:
        """It is over: its time runs from now."""
        if name not in self._running:
            return
        del self._running[name]
        if self.used * _TIGHT > self._room:
            for _ in range(_BLOCKS):
                self.charge(kept, 0)
        left = kept if kept.held else self.lay(kept)  # a job's goes from here as soon as it is on disk
        self._ended[name] = _Ended(left, kept.charged, self._loop.time() + self._keep)
        kept.charged, kept.shelf = 0, None
        if self._timer is None:
            self._timer = self._loop.call_later(self._keep, self._sweep)
        if self.used > self._room:
            self._make_room()

    def drop(self, name: str) -> None:
        """Nobody can come back to it any more."""
        if name in self._ended:
            self.used -= self._ended.pop(name).charged
        elif name in self._running:
            kept = self._running.pop(name)
            self.used -= kept.charged
            kept.charged, kept.shelf = 0, None

    def resize(self, room: int) -> None:
        """From now on streams that have ended go until all together take no more than so many bytes, or none
        of them is left. The budget is the most that counts."""
        self._room = min(room, self._memory)
        self._make_room()

    def evict(self) -> None:
        """Keep nothing of those that run; a job's is left, which counts for nothing here."""
        for name in [name for name, kept in self._running.items() if not kept.held]:
            self._evict(name)

    def close(self) -> None:
        """Forget everything."""
        if self._timer is not None:
            self._timer.cancel()
        for name in [*self._ended, *self._running]:
            self.drop(name)

    def _make_room(self) -> None:
        while self._ended and self.used > self._room:
            self.drop(next(iter(self._ended)))
        while self.used > self._memory:
            oldest = next((name for name, kept in self._running.items() if not kept.held), None)
            if oldest is None:
                return
            self._evict(oldest)

    def _evict(self, name: str) -> None:
        kept = self._running[name]
        self.drop(name)
        kept.recording.keep(0)
        self.evicted(kept)

    def _sweep(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._ended:
            name, ended = next(iter(self._ended.items()))
            if ended.until > now:
                self._timer = self._loop.call_later(ended.until - now, self._sweep)
                return
            self.drop(name)
