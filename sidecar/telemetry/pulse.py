"""How late the event loop's timers are, and what is to be done once a second."""

import asyncio
import time
from collections.abc import Callable

PERIOD = 0.25
"""Seconds between two looks."""
_EACH = 4


class Pulse:
    """Beats on the running loop, from `start` to `stop`."""

    def __init__(self, late: Callable[[float], None], second: Callable[[], None]) -> None:
        """`late` is told by how many seconds each timer was late, `second` is called about once a second.
        Neither may raise."""
        self._late = late
        self._second = second
        self._timer: asyncio.TimerHandle | None = None
        self._beats = 0
        self._due = 0.0

    def start(self) -> None:
        """Begin."""
        self._due = time.perf_counter() + PERIOD
        self._timer = asyncio.get_running_loop().call_later(PERIOD, self._beat)

    def stop(self) -> None:
        """No more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        self._late(max(time.perf_counter() - self._due, 0.0))
        self._beats += 1
        if self._beats % _EACH == 0:
            self._second()
        self.start()
