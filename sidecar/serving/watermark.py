"""Whether memory is short, and what follows: first nothing new is kept, then no new requests are taken.

What runs goes on in any case. The decision is a function of numbers; the watch reads them, says so in the log
once for each change, and has memory given back that nobody needs.
"""

import asyncio
import ctypes
import math
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from typing import Any, Protocol

from structlog.typing import FilteringBoundLogger

_SHARE = 0.8
"""Of what this machine or container has; beyond that the kernel may kill."""
_CRITICAL = 1.1
_BACK = 0.95
_PERIOD = 1.0
"""Seconds between two looks; a quarter of that where the mark is near."""
_NEAR = 0.75
_HOLD = 30.0
"""Seconds that memory must not have been short before anything new is kept again."""
_REFUSE = 2.0
"""The same before new requests are taken again: those who wait for that come back soon."""
SETTLE = 10.0
"""Seconds between two times that memory is given back to the kernel while it is short."""
_IDLE = 5.0
"""Seconds without a request after which what is still in use is taken to be the program's own."""
_QUIET = 10.0
"""Seconds after which descriptors are taken to be free again: they come and go."""
_MIB = 1 << 20

NO_ROOM = "the program alone takes most of it; set limits.memory to have it watched all the same"


class Level(IntEnum):
    """How short memory is."""

    NORMAL = 0
    HIGH = 1
    """Nothing new is kept."""
    CRITICAL = 2
    """New requests are refused."""


class Watermark:
    """Decides. Each level is left only well below where it was entered, and some time after memory was last
    above that, so that nothing flaps."""

    def __init__(self, mark: int) -> None:
        """`mark`: bytes."""
        self.mark = mark
        self.level = Level.NORMAL
        self._above = -math.inf
        """When it was above the mark last."""
        self._far = -math.inf
        """When it was so far above it that requests are refused."""

    def see(self, used: int, now: float) -> bool:
        """`used`: bytes at the moment `now`, in seconds. Returns whether that changes the level."""
        before, mark = self.level, self.mark
        if used > mark:
            self._above = now
        if used > mark * _CRITICAL:
            self._far = now
            self.level = Level.CRITICAL
        elif used > mark:
            self.level = max(before, Level.HIGH)
        elif before is Level.CRITICAL and now - self._far < _REFUSE:
            pass
        elif used < mark * _BACK and now - self._above >= _HOLD:
            self.level = Level.NORMAL
        else:
            # What was refused is taken again, and what was kept is kept.
            self.level = min(before, Level.HIGH)
        return self.level is not before


def mark_of(configured: int, allowed: int | None, workers: int, used: int) -> int:
    """The mark in bytes; 0: there is none. `configured`: `limits.memory`, 0 for automatic; `allowed`: bytes
    for all workers together; `used`: what this process takes before it has served anything.

    A mark that nobody chose refuses nobody from the start: where there is so little that the program alone
    comes near it, the kernel decides."""
    if configured:
        return configured
    mark = int((allowed or 0) * _SHARE) // max(workers, 1)
    return mark if used < mark * _NEAR else 0


class Gives(Protocol):
    """Gives up what can be spared."""

    def __call__(self, level: Level, used: int, mark: int, now: float) -> None:
        """Told at each look. In bytes and seconds."""

    def stop(self) -> None:
        """Nobody looks any more."""

    @property
    def kept(self) -> int:
        """Bytes that could still be given up."""

    @property
    def idle(self) -> bool:
        """Whether nothing is being served."""


class Watch:
    """Looks at memory and descriptors, on the running loop. From `start` to `stop`.

    A mark that nobody chose must not refuse everybody for ever: where the program alone turns out to take
    that much, once all of it is loaded or later, nobody looks any more, and the kernel decides."""

    def __init__(
        self,
        watermark: Watermark | None,
        read: Callable[[], int | None],
        relieve: Gives,
        log: FilteringBoundLogger,
        *,
        automatic: bool = False,
        loaded: Callable[[], bool] = lambda: True,
        descriptor_free: Callable[[], bool] = lambda: True,
        trim: Callable[[], None] | None = None,
    ) -> None:
        """`read`: bytes in use. `automatic`: nobody chose the mark. `loaded`: whether all of the program is
        there. `trim` gives unused memory back to the kernel, in a thread. None may raise. Without a watermark
        only descriptors are looked at."""
        self.watermark = watermark
        self._read = read
        self._relieve = relieve
        self._log = log
        self._automatic = automatic
        self._loaded = loaded
        self._judged: bool | None = None
        """Whether all of the program was there when it was judged how much that is; None: it never was."""
        self._idle_since: float | None = None
        """Since when memory is short though nothing is being served."""
        self._low = False
        self._descriptor_free = descriptor_free
        self._trim = trim if trim is not None else _trimmer()
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        self._timer: asyncio.TimerHandle | None = None
        self._trimming: asyncio.Future[Any] | None = None
        self._trimmed = 0.0
        self._missed: float | None = None
        """When a descriptor was missing last, by the loop's clock."""
        self.used: int | None = None

    @property
    def level(self) -> Level:
        """As of the latest look."""
        return self.watermark.level if self.watermark is not None else Level.NORMAL

    @property
    def share(self) -> float:
        """What was in use at the latest look, as a share of the mark; 0 where nobody knows."""
        if self.watermark is None or self.used is None:
            return 0.0
        return round(self.used / self.watermark.mark, 4)

    def start(self) -> None:
        """Begin."""
        period = _PERIOD
        try:
            period = self.look()
        finally:  # whatever happens, it is looked at again
            self._timer = self._loop.call_later(period, self.start)

    def stop(self) -> None:
        """No more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def look(self) -> float:
        """Look now; returns in how many seconds to look again."""
        self._look_at_descriptors()
        found, used = self.watermark, self._read()
        self.used = used
        if found is None or used is None:
            return _PERIOD
        now = self._clock()
        self._judge(found, used)
        if self.watermark is None:
            return _PERIOD
        if found.see(used, now):
            said = {"used": used, "limit": found.mark}
            if found.level is Level.NORMAL:
                self._log.info("memory_normal", **said)
            elif found.level is Level.HIGH:
                self._log.warning("memory_high", effect="nothing new is kept; jobs are refused", **said)
            else:
                self._log.warning("memory_critical", effect="new requests are refused", **said)
        self._relieve(found.level, used, found.mark, now)
        if found.level is not Level.NORMAL:
            self._see_whether_stuck(found, used, now)
            self._give_back()
        return _PERIOD if used < found.mark * _NEAR else _PERIOD / 4

    def no_descriptor(self) -> None:
        """Somebody needed one, and there was none."""
        if self._missed is None:
            self._log.warning("descriptors_exhausted", effect="new connections get 503; raise LimitNOFILE")
        self._missed = self._clock()

    def _judge(self, found: Watermark, used: int) -> None:
        """How much the program takes by itself: at the first look, and when all of it is loaded."""
        loaded = self._loaded()
        if self._judged is not None and self._judged >= loaded:
            return
        self._judged = loaded
        if not self._relieve.idle:
            return  # nobody can tell then
        used -= self._relieve.kept
        if self._automatic:
            if used >= found.mark * _NEAR:
                self._unwatch(found, used)
        elif used >= found.mark * _BACK and not self._low:
            self._low = True
            reason = (
                f"limits.memory is {found.mark / _MIB:.1f} MiB, and the program takes {used / _MIB:.1f} MiB "
                "by itself: nothing is kept, and from a tenth above it on every request gets 503; raise it"
            )
            self._log.warning("memory_limit_too_low", used=used, limit=found.mark, reason=reason)

    def _see_whether_stuck(self, found: Watermark, used: int, now: float) -> None:
        """Nothing is served and nothing can be given up, and still it is too much."""
        if not self._automatic or used < found.mark * _BACK or not self._relieve.idle or self._relieve.kept:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since, self._trimmed = now, 0.0  # what was freed last is to be given back first
        elif now - self._idle_since >= _IDLE and (self._trimming is None or self._trimming.done()):
            self._unwatch(found, used)

    def _unwatch(self, found: Watermark, used: int) -> None:
        self._log.warning("memory_unwatched", used=used, limit=found.mark, reason=NO_ROOM)
        self.watermark = None
        self._relieve.stop()

    def _look_at_descriptors(self) -> None:
        if not self._descriptor_free():
            self.no_descriptor()
        elif self._missed is not None and self._clock() - self._missed >= _QUIET:
            self._missed = None
            self._log.info("descriptors_free")

    def _give_back(self) -> None:
        now = self._clock()
        if self._trim is None or (self._trimmed and now - self._trimmed < SETTLE):
            return
        if self._trimming is None or self._trimming.done():
            self._trimmed = now
            with suppress(RuntimeError):  # no thread to be had
                self._trimming = self._loop.run_in_executor(None, self._trim)


def _trimmer() -> Callable[[], None] | None:
    """glibc keeps what is freed: in its pools between what is still used, often most of it."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None  # another C library

    def give() -> None:
        trim(ctypes.c_size_t(0))

    return give
