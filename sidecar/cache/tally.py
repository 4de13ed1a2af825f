"""What the cache counts, and writing it down now and then, so that it outlives the process."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping

from sidecar.cache.worker import Worker

_PAUSE = 10.0
"""Seconds between two times that what was counted is written down."""

Note = Callable[[Mapping[str, int]], None]
"""Writes down what was counted since it was called last; it blocks, and may raise OSError."""


class Tally:
    """Counters by name: what was found where, what was stored, and why not."""

    def __init__(self, note: Note | None) -> None:
        self.counts: Counter[str] = Counter()
        self._note = note
        self._noted: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def start(self, worker: Worker) -> None:
        """From now on, have that thread write down what was counted."""
        if self._note is not None:
            self._timer = asyncio.get_running_loop().call_later(_PAUSE, self._again, worker)

    def stop(self) -> None:
        """No more, but for a last `write`."""
        if self._timer is not None:
            self._timer.cancel()

    def write(self) -> None:
        """In the thread: write down what is new."""
        now = Counter(self.counts)
        if self._note is not None and (more := now - self._noted):
            try:
                self._note(more)
            except OSError:
                return  # it is added with what comes next
            self._noted = now

    def _again(self, worker: Worker) -> None:
        if self.counts != self._noted:
            worker.do(self.write, lambda _result, _error: None)
        self.start(worker)
