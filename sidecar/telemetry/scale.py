"""A scale of geometric buckets, on which durations and rates are counted to 1 % in bounded memory.

Each bucket is 2^(1/35), two percent, wider than the one before it. So what is read off is within 1 % of what
was put in, and every 35th boundary is a doubling: histograms whose bounds are doublings of 10 ms are exact
sums of buckets. The counts are a plain `dict`, bucket -> count: they add, subtract and merge.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

PER_DOUBLING = 35
_DOUBLINGS = 14
UNIT = 10.0 / 2**_DOUBLINGS
"""The upper bound of bucket 0, in milliseconds (or whatever is counted); what is smaller cannot be told from
0. Below a microsecond, the clocks' worth."""
LAST = 4095
"""The last bucket; also takes what lies beyond it, a number with 32 digits."""

_GROWTH = 2 ** (1 / PER_DOUBLING)
_MIDDLE = 2 / (1 + _GROWTH)
_OFFSET = -math.log2(UNIT) * PER_DOUBLING
_SLACK = 1e-9
"""Bounds belong to the bucket below; rounding must not lift them over."""

Cells = Mapping[int, int]
"""Bucket -> count."""


def bucket(value: float) -> int:
    """The bucket of a value, 0 to 4095."""
    if value <= UNIT:
        return 0
    return min(math.ceil(math.log2(value) * PER_DOUBLING + _OFFSET - _SLACK), LAST)


def tally(values: Iterable[float], weight: int = 1, factor: float = 1.0) -> dict[int, int]:
    """Counts of many values, each times `factor` and standing for `weight`."""
    counts: dict[int, int] = {}
    get, log2, ceil, least = counts.get, math.log2, math.ceil, UNIT / factor
    offset = _OFFSET - _SLACK + math.log2(factor) * PER_DOUBLING
    for value in values:
        at = ceil(log2(value) * PER_DOUBLING + offset) if value > least else 0
        counts[at] = get(at, 0) + weight
    return counts


def bound(at: int) -> float:
    """The largest value of a bucket."""
    return float(UNIT * _GROWTH**at)


def middle(at: int) -> float:
    """What stands for a bucket: no value in it is further away than 1 %."""
    return bound(at) * _MIDDLE if at else 0.0


def quantiles(cells: Cells, shares: Sequence[float]) -> list[float | None]:
    """Nearest-rank quantiles, within 1 %; None where nothing was counted. `shares`: ascending, 0 to 1."""
    total = sum(cells.values())
    if not total:
        return [None] * len(shares)
    found: list[float | None] = []
    below, buckets = 0, iter(sorted(cells))
    at = next(buckets)
    for share in shares:
        rank = max(math.ceil(share * total - _SLACK), 1)
        while below + cells[at] < rank:
            below += cells[at]
            at = next(buckets)
        found.append(middle(at))
    return found


def doublings(first: int, last: int) -> list[float]:
    """Bounds of a histogram: 10 ms doubled `first` to `last` times, in milliseconds; less than none
    halves."""
    return [10.0 * 2.0**power for power in range(first, last + 1)]


def cumulative(cells: Cells, bounds: Sequence[float]) -> list[int]:
    """How many lie at or below each bound. `bounds`: ascending, from `doublings`."""
    edges = [bucket(edge) for edge in bounds]
    counts = [0] * (len(edges) + 1)
    place = 0
    for at in sorted(cells):
        while place < len(edges) and at > edges[place]:
            place += 1
        counts[place] += cells[at]
    for place in range(1, len(edges)):
        counts[place] += counts[place - 1]
    return counts[: len(edges)]
