"""What can be said of the pairs, and of the records: curves, a suggestion, the guards' part, and groups."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from sidecar.cli.tune_read import Filter, Found, Record, below
from sidecar.core.semantic.curve import (
    THRESHOLDS,
    WHICH,
    Judged,
    Of,
    Point,
    Rate,
    Refusal,
    Suggestion,
    curve,
    rate,
    suggest,
)
from sidecar.tables import Config

Kind = Literal["pairs", "shadow", "verify"]
By = Literal["upstream", "path", "namespace"]
OF: dict[Kind, Of] = {"pairs": "pairs", "shadow": "requests", "verify": "requests"}
BYS: tuple[By, ...] = ("upstream", "path", "namespace")
_KINDS: tuple[Kind, ...] = ("shadow", "verify")


class Counts(msgspec.Struct, frozen=True):
    """What a sample is made of."""

    every: int
    right: int
    wrong: int
    unknown: int
    """Of which nobody knows; no candidate is not among them."""
    alone: int
    """Requests without any candidate."""
    different: int
    """Without those that were seen before."""


class Refused(msgspec.Struct, frozen=True):
    """What one guard kept from being hits at the configured threshold."""

    guard: str
    right: int
    wrong: int
    unknown: int


class Sample(msgspec.Struct, frozen=True):
    """All of one kind."""

    kind: Kind
    counts: Counts
    configured: float
    points: list[Point]
    """Where there is data at all."""
    result: Suggestion | Refusal
    guards: list[Refused]
    groups: "dict[By, list[Group]]" = {}
    """Of each way to split it that makes more than one, the largest first."""

    def rate(self, point: Point) -> Rate:
        """The one by which a threshold is chosen."""
        return rate(point, WHICH[OF[self.kind]])

    def at(self, threshold: float) -> Point | None:
        """The point of a threshold; None where nothing is known of it."""
        return next((point for point in self.points if point.threshold == threshold), None)


class Group(msgspec.Struct, frozen=True):
    """The records of one upstream, path or namespace."""

    name: str | None
    sample: Sample


def of_pairs(judged: list[Judged], config: Config, want: float) -> Sample:
    """What labelled pairs say."""
    return _sample("pairs", judged, config.semantic.threshold, want)


def of_records(found: Found, config: Config, wanted: Filter, agree: float, want: float) -> list[Sample]:
    """What the records say: those of requests that were only watched, and those of hits that were checked."""
    made = []
    for kind in _KINDS:
        judged = {
            record: _judged(record, times, config, agree)
            for record, times in found.records.items()
            if record.kind == kind
        }
        if judged:
            sample = _sample(kind, [*judged.values()], threshold(config, wanted), want)
            split = {by: _groups(kind, by, judged, config, want) for by in BYS}
            groups = {by: rows for by, rows in split.items() if len(rows) > 1}
            made.append(msgspec.structs.replace(sample, groups=groups))
    return made


def _judged(record: Record, times: int, config: Config, agree: float) -> Judged:
    return Judged(
        record.similarity,
        record.right(agree) if record.similarity is not None else None,
        None if record.guard in config.semantic.skip_guards else record.guard,
        times,
        # A hit that was checked is one because of the threshold of its time.
        record.threshold if record.kind == "verify" else 0.0,
    )


def _groups(kind: Kind, by: By, judged: Mapping[Record, Judged], config: Config, want: float) -> list[Group]:
    parts: dict[str | None, list[Judged]] = {}
    for record, one in judged.items():
        parts.setdefault(getattr(record, by), []).append(one)
    rows = [
        Group(name, _sample(kind, part, threshold(config, Filter(**{by: name})), want))
        for name, part in parts.items()
    ]
    return sorted(rows, key=lambda row: -row.sample.counts.every)


def threshold(config: Config, wanted: Filter) -> float:
    """The one that is configured for what the filter takes. Namespaces go before paths, and those before
    upstreams."""
    semantic = config.semantic
    if wanted.namespace is not None and wanted.namespace in semantic.namespaces:
        return semantic.namespaces[wanted.namespace]
    path = wanted.path or ""
    prefix = max((prefix for prefix in semantic.paths if below(path, prefix)), key=len, default=None)
    if prefix is not None:
        return semantic.paths[prefix]
    own = next((entry.threshold for entry in config.upstreams if entry.name == wanted.upstream), None)
    return semantic.threshold if own is None else own


def _sample(kind: Kind, judged: list[Judged], configured: float, want: float) -> Sample:
    points = [
        point
        for point in curve(judged, {*THRESHOLDS, configured}, OF[kind])
        if point.hit_rate.total or point.false_hit_rate.total
    ]
    result = suggest(points, want, WHICH[OF[kind]])
    return Sample(kind, _counts(judged), configured, points, result, _refused(judged, configured))


def _counts(judged: Iterable[Judged]) -> Counts:
    every = right = wrong = unknown = alone = different = 0
    for one in judged:
        every += one.times
        different += 1
        if one.same is None and one.similarity is None:
            alone += one.times
        elif one.same is None:
            unknown += one.times
        elif one.same:
            right += one.times
        else:
            wrong += one.times
    return Counts(every, right, wrong, unknown, alone, different)


def _refused(judged: Iterable[Judged], configured: float) -> list[Refused]:
    counts: dict[str, Counter[bool | None]] = {}
    for one in judged:
        if one.objection is not None and one.similarity is not None and one.similarity >= configured:
            counts.setdefault(one.objection, Counter())[one.same] += one.times
    made = [Refused(guard, of[True], of[False], of[None]) for guard, of in counts.items()]
    return sorted(made, key=lambda refused: (-refused.right - refused.wrong - refused.unknown, refused.guard))
