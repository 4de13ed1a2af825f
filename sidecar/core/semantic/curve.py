"""How often semantic hits come, and how often they are wrong, by similarity threshold. Pure.

Works on pairs of questions of which it is known whether the same answer serves both. They come in two ways,
and what can be said of them is not the same. *Labelled pairs* were put together by somebody, true and false
ones in a mixture that no traffic has: it is the rates within the true and within the false ones that mean
something. *Requests* come as they come, each with the nearest stored question or with none: there, it is
the share of requests that hit, and the share of hits that is false.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Literal

import msgspec

Z = 1.96
"""Standard deviations on either side that hold 95 % of a normal distribution."""
THRESHOLDS = tuple(hundredths / 100 for hundredths in range(80, 100))
"""Where the curve is looked at, unless told otherwise."""
LEAST = 30
"""Pairs that a suggestion rests on at the least, however high a rate is wanted."""

Of = Literal["pairs", "requests"]
Which = Literal["false_hit_rate", "share_of_hits_false"]
WHICH: dict[Of, Which] = {"pairs": "false_hit_rate", "requests": "share_of_hits_false"}
"""The rate that a threshold is chosen by."""


class Judged(msgspec.Struct, frozen=True):
    """A question, the one that it may be taken for, and whether that would be right."""

    similarity: float | None
    """Their cosine; None where there is no other question. What is no number is never a hit."""
    same: bool | None
    """Whether one answer serves both; None where nobody knows."""
    objection: str | None = None
    """The guard that is against it: no hit, however similar."""
    times: int = 1
    """How often exactly this was seen. Rates count each time; their intervals know that it is one thing."""
    floor: float = 0.0
    """It is only known of because it was at least so similar, and says nothing of lower thresholds."""


class Rate(msgspec.Struct, frozen=True):
    """A share of what was counted, and where it lies with 95 % confidence."""

    count: int
    total: int
    different: float
    """So many things that were each seen once would be as certain as the total is."""
    low: float
    high: float

    @property
    def share(self) -> float | None:
        """None where there was nothing to count."""
        return self.count / self.total if self.total else None


class Point(msgspec.Struct, frozen=True):
    """What comes of one threshold."""

    threshold: float
    hit_rate: Rate
    """Of pairs: the true pairs that hit, of all true pairs. Of requests: those that hit, of all."""
    false_hit_rate: Rate
    """The false pairs that hit, of all false pairs. Of requests, those that nobody would take for the same
    make it look small."""
    share_of_hits_false: Rate
    """The false hits, of all hits of which it is known. Of pairs, it follows from how many were put in."""
    within: bool
    """There is data on both sides of the threshold."""


class Suggestion(msgspec.Struct, frozen=True):
    """A threshold, and what speaks for it."""

    point: Point
    rate: Rate
    """By which it was chosen: its upper end is not above what is wanted."""


class Refusal(msgspec.Struct, frozen=True):
    """There is no threshold to suggest."""

    reason: Literal["too_few", "too_false", "no_hits"]
    """Not enough data to show that a rate is so small; too many false hits at every threshold; it is so small
    only where nothing hits, or where there is no data."""
    needed: int
    """How many there have to be at the least, not one of them false."""
    nearest: Point | None = None
    """Where the rate comes nearest to what is wanted."""


def wilson(count: int, total: int, different: float | None = None) -> tuple[float, float]:
    """Where the true share lies with 95 % confidence, when `count` of `total` were seen (Wilson, 1927). It
    holds for small shares too, and where not one was seen. `different`: as in `Rate`, if not the total."""
    if total <= 0:
        return 0.0, 1.0
    share, size = count / total, different or total
    square = Z * Z / size
    centre, spread = share + square / 2, Z * math.sqrt(share * (1 - share) / size + square / (4 * size))
    low, high = (centre - spread) / (1 + square), (centre + spread) / (1 + square)
    # At both ends that is exact on paper, but not in floating point.
    return max(min(low, share), 0.0) if count else 0.0, min(max(high, share), 1.0) if share < 1 else 1.0


def needed(wanted: float) -> int:
    """How many there have to be, not one of them false, to show that a rate is at most `wanted`."""
    return max(LEAST, math.ceil(Z * Z * (1 - wanted) / wanted))


class _Count:
    """How many there are at each threshold, kept as steps up and down."""

    def __init__(self, thresholds: int) -> None:
        self.steps = [0] * (thresholds + 1)
        self.squares = [0] * (thresholds + 1)

    def add(self, times: int, start: int, end: int) -> None:
        """From threshold number `start` to before `end`."""
        if start < end:
            self.steps[start] += times
            self.steps[end] -= times
            self.squares[start] += times * times
            self.squares[end] -= times * times

    def of(self, total: "_Count") -> list[Rate]:
        """The share of another, at each threshold."""
        columns = (accumulate(numbers[:-1]) for numbers in (self.steps, total.steps, total.squares))
        return [_rate(*numbers) for numbers in zip(*columns, strict=True)]


def _rate(count: int, total: int, squares: int) -> Rate:
    # Kish's effective sample size: what was seen ten times is not ten observations.
    different = total * total / squares if squares else 0.0
    return Rate(count, total, different, *wilson(count, total, different))


def curve(
    judged: Iterable[Judged], thresholds: Iterable[float] = THRESHOLDS, of: Of = "pairs"
) -> list[Point]:
    """One point for each threshold, in ascending order."""
    grid = sorted(set(thresholds))
    every = len(grid)
    asked, hits, true, true_hits, false, false_hits, known_hits = (_Count(every) for _ in range(7))
    lowest, highest = math.inf, -math.inf
    for one in judged:
        start, end = bisect_left(grid, one.floor), 0
        if one.similarity is not None and math.isfinite(one.similarity):
            lowest, highest = min(lowest, one.floor or one.similarity), max(highest, one.similarity)
            end = bisect_right(grid, one.similarity) if one.objection is None else 0
        asked.add(one.times, start, every)
        hits.add(one.times, start, end)
        if one.same is not None:
            known_hits.add(one.times, start, end)
            (true if one.same else false).add(one.times, start, every)
            (true_hits if one.same else false_hits).add(one.times, start, end)
    columns = (
        hits.of(asked) if of == "requests" else true_hits.of(true),
        false_hits.of(false),
        false_hits.of(known_hits),
    )
    return [
        Point(threshold, hit, false_hit, false_among_hits, within=lowest <= threshold <= highest)
        for threshold, hit, false_hit, false_among_hits in zip(grid, *columns, strict=True)
    ]


def rate(point: Point, which: Which) -> Rate:
    """The one that a threshold is chosen by."""
    return point.false_hit_rate if which == "false_hit_rate" else point.share_of_hits_false


def suggest(points: Sequence[Point], wanted: float, which: Which = "false_hit_rate") -> Suggestion | Refusal:
    """The lowest threshold at which the rate is at most `wanted`, which is more than 0, by the upper end of
    its interval. None is suggested at which nothing hits, or that is beyond what there is data of."""
    least = needed(wanted)
    enough = [point for point in points if rate(point, which).total >= LEAST]
    good = [point for point in enough if rate(point, which).high <= wanted]
    for point in good:
        if point.within and point.hit_rate.count:
            return Suggestion(point, rate(point, which))
    if not enough:
        return Refusal("too_few", least)
    nearest = min(enough, key=lambda point: rate(point, which).high)
    if good:
        return Refusal("no_hits", least, nearest)
    # Where more of the same might yet show it, it is for want of data.
    rates = [rate(point, which) for point in enough if point.hit_rate.count]
    most = max(one.different for one in rates) if rates else 0
    scarce = most < least or any(one.count <= wanted * one.total for one in rates)
    return Refusal("too_few" if scarce else "too_false", least, nearest)
