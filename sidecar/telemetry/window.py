"""Figures of the last 1, 5 and 60 minutes, in bounded memory.

Time is cut into slots of ten seconds. What happens is added to the current one; when a slot is over, it is
added to the running sum of each window and packed, and what has left a window is taken off again. So adding
costs a few dictionary entries, and reading costs no more than what is read. A window covers its minutes at
most, and up to ten seconds less.
"""

import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

SLOT = 10.0
SPANS = {"1m": 6, "5m": 30, "60m": 360}
"""Windows, and how many slots they have, the current one included."""
_LONGEST = "60m"
MOST = 256
"""Series that are told apart."""
OTHER = "other"

Key = tuple[str | None, ...]
Cells = dict[int, int]
"""What was counted: any number of cells, each of which only adds up."""
Packed = tuple["array[int]", "array[int]", "array[int]", "array[int]"]
"""The same of a slot that is over: cells, and what was counted there; once more, of large counts."""
_SMALL = 1 << 8
_STEPS = 8
"""Of what is due, with each thing that is added; and more when nothing happens."""


class Reading(NamedTuple):
    """What a window holds."""

    seconds: float
    """That it covers."""
    series: dict[Key, Cells]


class Window:
    """Sums by series over the last minutes."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        most: int = MOST,
        overflow: Callable[[Key], Key] = lambda key: (OTHER,) * len(key),
    ) -> None:
        """`overflow`: which one stands for a series that comes when there are `most`."""
        self._clock = clock
        self._most = most
        self._overflow = overflow
        self._began = clock()
        self._slot = self._began
        self._current: dict[Key, Cells] = {}
        self._closed: list[dict[Key, Packed]] = []
        self._due: deque[Callable[[], None]] = deque()
        self._running: dict[str, dict[Key, Cells]] = {name: {} for name in SPANS}

    def add(self, key: Key, cells: Iterable[tuple[int, int]]) -> None:
        """Count something of a series. `cells`: numbers of cells below 65536, and what to add there."""
        self._roll()
        self._work(_STEPS)
        series = self._current.get(key)
        if series is None:
            series = self._begin(key)
        for cell, count in cells:
            if count:  # a cell of nothing would be taken off twice
                series[cell] = series.get(cell, 0) + count

    def beat(self) -> None:
        """To be called now and then, for when nothing is added."""
        self._roll()
        self._work(_STEPS * 8)

    def read(self, name: str) -> Reading:
        """All series of a window. The caller owns what it gets."""
        self._roll()
        self._work_off()
        now = self._clock()
        series = {key: dict(cells) for key, cells in self._running[name].items()}
        for key, cells in self._current.items():
            merge(series.setdefault(key, {}), cells)
        covered = (SPANS[name] - 1) * SLOT + now - self._slot
        return Reading(max(min(covered, now - self._began), 0.001), series)

    def keep(self, which: Callable[[Key], bool], most: int) -> None:
        """Forget all other series. There is room for `most` from now on."""
        self._work_off()
        slots: list[dict[Key, Any]] = [self._current, *self._closed, *self._running.values()]
        for series in slots:
            for key in [key for key in series if not which(key)]:
                del series[key]
        self._most = most

    def _room(self, key: Key) -> bool:
        """Whether a series can be told apart."""
        known = self._running[_LONGEST]
        return key in known or len(known.keys() | self._current.keys()) < self._most

    def _begin(self, key: Key) -> Cells:
        if not self._room(key):
            self._work_off()
            if not self._room(key):
                key = self._overflow(key)
        return self._current.setdefault(key, {})

    def _roll(self) -> None:
        now = self._clock()
        while now >= self._slot + SLOT:
            if now - self._slot > SLOT * (SPANS[_LONGEST] + 1):
                # Nothing of what is here is within an hour.
                self._current, self._closed = {}, []
                self._due.clear()
                self._running = {name: {} for name in SPANS}
                self._slot = now - (now - self._slot) % SLOT
                return
            self._close()
            self._slot += SLOT

    def _close(self) -> None:
        """The current slot is over. What is to be done with it is done bit by bit."""
        current, self._current = self._current, {}
        packed: dict[Key, Packed] = {}
        self._closed.append(packed)
        self._due.extend(
            [partial(self._enter, key, cells, packed) for key, cells in current.items() if cells]
        )
        for name, slots in SPANS.items():
            if len(self._closed) >= slots:
                gone, running = self._closed[-slots], self._running[name]
                self._due.append(partial(self._leave, gone, running))
        if len(self._closed) >= SPANS[_LONGEST]:
            del self._closed[0]

    def _work(self, steps: int) -> None:
        """Do some of what is due. Each step is about one series: together they would hold up the loop."""
        for _ in range(min(steps, len(self._due))):
            self._due.popleft()()

    def _work_off(self) -> None:
        """Do all that is due."""
        while self._due:
            self._work(len(self._due))

    def _enter(self, key: Key, cells: Cells, packed: dict[Key, Packed]) -> None:
        """A series of a slot that is over counts for all windows from now on."""
        # Counts that a provider lied about may not fit: they cost this series, and not every one.
        packed[key] = _packed(cells)
        for running in self._running.values():
            merge(running.setdefault(key, {}), cells)

    def _leave(self, slot: dict[Key, Packed], running: dict[Key, Cells]) -> None:
        """A slot leaves a window."""
        # In front of what is due later: the next slot may leave only after this one.
        self._due.extendleft([partial(_take_off, running, key, packed) for key, packed in slot.items()])


def add_up(readings: Iterable[Reading]) -> Reading:
    """The same window of several processes, as one; they stay as they are."""
    seconds = 0.001
    series: dict[Key, Cells] = {}
    for reading in readings:
        seconds = max(seconds, reading.seconds)
        for key, cells in reading.series.items():
            merge(series.setdefault(key, {}), cells)
    return Reading(seconds, series)


def merge(into: Cells, more: Mapping[int, int]) -> None:
    """Add one series to another."""
    for cell, count in more.items():
        into[cell] = into.get(cell, 0) + count


def _packed(cells: Cells) -> Packed:
    """There is an hour of them, and most counts take one byte."""
    small = {cell: count for cell, count in cells.items() if count < _SMALL}
    large = {cell: count for cell, count in cells.items() if count >= _SMALL}
    return (
        *(array("H", small), array("B", small.values())),
        *(array("H", large), array("Q", large.values())),
    )


def _take_off(running: dict[Key, Cells], key: Key, packed: Packed) -> None:
    series = running[key]
    small, counts, large, more = packed
    for cell, count in zip((*small, *large), (*counts, *more), strict=True):
        left = series[cell] - count
        if left:
            series[cell] = left
        else:
            del series[cell]
    if not series:
        del running[key]
