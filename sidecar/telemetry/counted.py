"""What was counted, as it is: copied in a moment, sent from one process to another, and added up.

Where several processes serve one port, each counts what it did, and whoever is asked for figures adds that
up. What comes of counts (a text for Prometheus, a rate, a percentile) is made of the sums, by the same code
as for one process.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from sidecar.telemetry.families import BY_NAME
from sidecar.telemetry.window import OTHER

Labels = tuple[str, ...]
Values = Iterable[tuple[str, Labels, float]]
"""Metric, labels, value: of gauges, and of counters that are kept elsewhere."""

COUNTER_SERIES = 1000
"""Of one counter; what comes later is counted as `other` in every label."""
HISTOGRAM_SERIES = 200
"""The same of a histogram, each of which is a dozen lines of a scrape."""
_PER_UNIT = 1 << 20


class Histogram(msgspec.Struct, array_like=True):
    """Buckets as `scale` has them, or numbers of the metric's own bounds, and the sum in its unit."""

    cells: dict[int, int]
    sum: float = 0.0


class Counted(msgspec.Struct, array_like=True):
    """By metric and labels."""

    counters: dict[str, dict[Labels, float]] = {}
    histograms: dict[str, dict[Labels, Histogram]] = {}
    gauges: dict[str, dict[Labels, float]] = {}

    def put(self, values: Values) -> None:
        """Take what is kept elsewhere, in the place of what is here."""
        for name, labels, value in values:
            family = BY_NAME.get(name)
            kind = self.counters if family is not None and family.kind == "counter" else self.gauges
            kind.setdefault(name, {})[labels] = value


class Room:
    """Which series are told apart when those of several processes are added up.

    Who came first, for as long as this lives: one that moved to `other` later would be a counter that goes
    down.
    """

    def __init__(self) -> None:
        self._known: dict[str, dict[Labels, None]] = {}

    def place(self, name: str, labels: Labels, most: int) -> Labels:
        """Its labels, or those for all that came too late."""
        known = self._known.setdefault(name, {})
        found = within(known, labels, most)
        known[found] = None
        return found


def add_up(parts: Iterable[Counted], room: Room) -> Counted:
    """All of them as one; they stay as they are."""
    total = Counted()
    for part in parts:
        for name, series in part.counters.items():
            _add(total.counters.setdefault(name, {}), name, series, room)
        for name, histograms in part.histograms.items():
            into = total.histograms.setdefault(name, {})
            for labels, found in histograms.items():
                placed = room.place(name, labels, HISTOGRAM_SERIES)
                histogram = into.get(placed)
                if histogram is None:
                    histogram = into[placed] = Histogram({})
                for cell, count in found.cells.items():
                    histogram.cells[cell] = histogram.cells.get(cell, 0) + count
                histogram.sum += exact(found.sum)
        for name, gauges in part.gauges.items():
            _gauge(total.gauges.setdefault(name, {}), name, gauges)
    return total


def exact(value: float) -> float:
    """A sum, cut off below a millionth: what is made of such is exact, in whatever order they are added.
    Else a counter could go down by the last bit, which whoever scrapes it takes for a restart."""
    return math.floor(value * _PER_UNIT) / _PER_UNIT if math.isfinite(value) else value


def within(series: Mapping[Labels, Any], labels: Labels, most: int) -> Labels:
    """The labels, unless there are too many series already."""
    if labels in series or len(series) < most:
        return labels
    return tuple([OTHER] * len(labels))


def _add(into: dict[Labels, float], name: str, series: Mapping[Labels, float], room: Room) -> None:
    for labels, value in series.items():
        placed = room.place(name, labels, COUNTER_SERIES)
        into[placed] = into.get(placed, 0) + exact(value)


def _gauge(into: dict[Labels, float], name: str, series: Mapping[Labels, float]) -> None:
    family = BY_NAME.get(name)
    highest = family is not None and family.across == "max"
    for labels, value in series.items():
        before = into.get(labels)
        if before is None:
            into[labels] = value
        else:
            into[labels] = max(before, value) if highest else before + value
