"""Whether memory is short, and what follows: first nothing new is kept, then no new requests are taken.

What runs goes on in any case. The decision is a function of numbers; the watch reads them, says so in the log
once for each change, and has memory given back that nobody needs.
"""

import asyncio
import ctypes
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from typing import Any

from structlog.typing import FilteringBoundLogger

_SHARE = 0.8
"""Of what this machine or container has; beyond that the kernel may kill."""
_CRITICAL = 1.1
_BACK = 0.95
_PERIOD = 1.0
"""Seconds between two looks; a quarter of that where the mark is near."""
_NEAR = 0.75
_TRIM = 10.0
"""Seconds between two times that memory is given back to the kernel while it is short."""
_QUIET = 10.0
"""Seconds after which descriptors are taken to be free again: they come and go."""


class Level(IntEnum):
    """How short memory is."""

    NORMAL = 0
    HIGH = 1
    """Nothing new is kept."""
    CRITICAL = 2
    """New requests are refused."""


class Watermark:
    """Decides. Each level is left only well below where it was entered, so that nothing flaps."""

    def __init__(self, mark: int) -> None:
        """`mark`: bytes."""
        self.mark = mark
        self.level = Level.NORMAL

    def see(self, used: int) -> bool:
        """`used`: bytes at this moment. Returns whether that changes the level."""
        before, mark = self.level, self.mark
        if used > mark * _CRITICAL:
            self.level = Level.CRITICAL
        elif used < mark * _BACK:
            self.level = Level.NORMAL
        elif used <= mark:
            # Between: what was refused is taken again, and what was kept is kept.
            self.level = min(before, Level.HIGH)
        else:
            self.level = max(before, Level.HIGH)
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


class Watch:
    """Looks at memory and descriptors, on the running loop. From `start` to `stop`."""

    def __init__(
        self,
        watermark: Watermark | None,
        read: Callable[[], int | None],
        relieve: Callable[[Level], None],
        log: FilteringBoundLogger,
        *,
        descriptor_free: Callable[[], bool] = lambda: True,
        trim: Callable[[], None] | None = None,
    ) -> None:
        """`read`: bytes in use. `relieve` is told of each new level. `trim` gives unused memory back to the
        kernel, in a thread. None may raise. Without a watermark only descriptors are looked at."""
        self.watermark = watermark
        self._read = read
        self._relieve = relieve
        self._log = log
        self._descriptor_free = descriptor_free
        self._trim = trim if trim is not None else _trimmer()
        self._loop = asyncio.get_running_loop()
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
        if found.see(used):
            said = {"used": used, "limit": found.mark}
            if found.level is Level.NORMAL:
                self._log.info("memory_normal", **said)
            elif found.level is Level.HIGH:
                self._log.warning("memory_high", effect="nothing new is kept; jobs are refused", **said)
            else:
                self._log.warning("memory_critical", effect="new requests are refused", **said)
            self._relieve(found.level)
        if found.level is not Level.NORMAL:
            self._give_back()
        return _PERIOD if used < found.mark * _NEAR else _PERIOD / 4

    def no_descriptor(self) -> None:
        """Somebody needed one, and there was none."""
        if self._missed is None:
            self._log.warning("descriptors_exhausted", effect="new connections get 503; raise LimitNOFILE")
        self._missed = self._loop.time()

    def _look_at_descriptors(self) -> None:
        if not self._descriptor_free():
            self.no_descriptor()
        elif self._missed is not None and self._loop.time() - self._missed >= _QUIET:
            self._missed = None
            self._log.info("descriptors_free")

    def _give_back(self) -> None:
        now = self._loop.time()
        if self._trim is None or (self._trimmed and now - self._trimmed < _TRIM):
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
