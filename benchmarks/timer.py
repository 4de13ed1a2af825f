"""Time finer than a millisecond: an even pace, and an event loop whose timers are exact.

uvloop's timers fire on whole milliseconds of the system's clock, in every process on the same ones. Two
hundred streams paced by them would come in a thousand bursts a second, which no provider's streams do; a
proxy would handle a burst at a fraction of the cost, and nginx most of all.
"""

import asyncio
import ctypes
import heapq
import os
import time
from collections.abc import Callable
from contextvars import Context
from itertools import count
from types import TracebackType
from typing import Self, TypeVarTuple

import uvloop

_Args = TypeVarTuple("_Args")
_libc = ctypes.CDLL(None, use_errno=True)
_settime = _libc.timerfd_settime
_MONOTONIC = 1
_ABSOLUTE = 1


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Time), ("first", _Time))


class KernelTimer:
    """A timer that is a file descriptor, readable once it has fired (timerfd_create(2))."""

    def __init__(self) -> None:
        self.descriptor: int = _libc.timerfd_create(_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), "no timer")
        setting = _Setting()
        self._interval, self._first = setting.interval, setting.first
        self._pointer = ctypes.byref(setting)

    def set(self, first: float, interval: float = 0.0) -> None:
        """Fire at `first`, by `time.monotonic`, and every `interval` seconds after that; at 0, never."""
        self._interval.seconds, self._interval.nanoseconds = _split(interval)
        self._first.seconds, self._first.nanoseconds = _split(first)
        if _settime(self.descriptor, _ABSOLUTE, self._pointer, None):
            raise OSError(ctypes.get_errno(), "cannot set the timer")

    def fired(self) -> int:
        """How often, since the last time this was asked."""
        return int.from_bytes(os.read(self.descriptor, 8), "little")

    def close(self) -> None:
        os.close(self.descriptor)


def _split(seconds: float) -> tuple[int, int]:
    whole = int(seconds)
    return whole, int((seconds - whole) * 1e9)


class Pace:
    """Ticks every `interval` seconds."""

    def __init__(self, interval: float) -> None:
        self._interval = interval

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._due = 0
        self._waiter: asyncio.Future[None] | None = None
        self._timer = KernelTimer()
        self._timer.set(time.monotonic() + self._interval, self._interval)
        self._loop.add_reader(self._timer.descriptor, self._ticked)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.remove_reader(self._timer.descriptor)
        self._timer.close()

    async def tick(self) -> None:
        """Wait for the next tick. Those that came while nobody waited are made up for."""
        if not self._due:
            self._waiter = self._loop.create_future()
            await self._waiter
        self._due -= 1

    def _ticked(self) -> None:
        self._due += self._timer.fired()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class ExactLoop(uvloop.Loop):
    """uvloop with timers and a clock of nanoseconds."""

    def __init__(self) -> None:
        super().__init__()
        self._timer = KernelTimer()
        self._heap: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._number = count()
        self.add_reader(self._timer.descriptor, self._fire)

    def time(self) -> float:
        return time.monotonic()

    def call_later(
        self,
        delay: float,
        callback: Callable[[*_Args], object],
        *args: *_Args,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(time.monotonic() + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Args], object],
        *args: *_Args,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        entry = (when, next(self._number), handle)
        heapq.heappush(self._heap, entry)
        if self._heap[0] is entry:
            self._timer.set(when)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Left in the heap until it is due."""

    def _fire(self) -> None:
        now = time.monotonic()
        while self._heap and self._heap[0][0] <= now:
            _, _, handle = heapq.heappop(self._heap)
            if not handle.cancelled():
                handle._run()  # noqa: SLF001 - what a loop does with its handles
        self._timer.set(self._heap[0][0] if self._heap else 0.0)
