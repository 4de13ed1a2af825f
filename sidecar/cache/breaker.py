"""Leaving alone what fails."""

import time
from collections.abc import Callable

_LONGEST = 60.0
"""Seconds between two tries of what keeps failing."""


class Breaker:
    """Leaves a failing store alone: for a second, then for longer and longer, up to a minute."""

    def __init__(self, told: Callable[[str | None], None]) -> None:
        """`told`: hears why it fails when that begins, and None when it is over."""
        self._told = told
        self._wait = 0.0
        self._until = 0.0

    @property
    def open(self) -> bool:
        return time.monotonic() < self._until

    def failed(self, reason: str) -> None:
        if self.open:
            return  # of several that were under way, the first one counts
        if not self._wait:
            self._told(reason)
        self._wait = min(self._wait * 2 or 1.0, _LONGEST)
        self._until = time.monotonic() + self._wait

    def worked(self) -> None:
        if self._wait:
            self._told(None)
        self._wait = self._until = 0.0
