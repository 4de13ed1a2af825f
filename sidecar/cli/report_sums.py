"""What `slipstream report` keeps of the lines that it has read: counts, however many there were.

Durations are counted on `telemetry.scale`. Whatever a log can have any number of (models, features, kinds of
error, moments) has a bound here.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import cast

import msgspec

from sidecar.cli.report_lines import Exceeded, Line
from sidecar.cli.report_slots import Slots
from sidecar.cli.report_worst import NAME, Worst, cut, kept_of
from sidecar.core.waterfall import SPANS, Piece, pieces
from sidecar.telemetry.scale import bucket

METRICS = (
    "total_ms",
    "ttft_ms",
    "ttfb_ms",
    "overhead_ms",
    "tokens_per_second",
    "itl_p50_ms",
    "itl_p99_ms",
    "itl_max_ms",
)
COUNTS = ("requests", "failed", "cancelled", "timeouts", "asked", "hits")
_FIRST_NOT_OVER_TIME = "ttfb_ms"
"""Of the metrics, those before this one are counted over time, too."""
SHIFT = 12
AT = {name: at << SHIFT for at, name in enumerate((*METRICS, *COUNTS))}
"""Where in a group's cells a metric begins, or a count is."""
OTHER = "other"
"""What comes after the first `_NAMES` names."""
_NAMES = 100
_KINDS = 200
_SERIES = 500
_ROUNDING = 0.001
"""Milliseconds: pieces are told in these."""
_SPANS = 30
_WEBSOCKET = 101
"""The status of requests that lasted as long as their ends liked: that is no latency."""

Cells = dict[int, int]


def _bounded(name: str, known: Collection[str | None], most: int) -> str:
    """The name under which it is counted: a short one, and `OTHER` where there are enough."""
    name = name[:NAME]
    return name if name in known or len(known) < most else OTHER


class Group:
    """Requests that have something in common."""

    __slots__ = ("cells", "input_tokens", "output_tokens")

    def __init__(self) -> None:
        self.cells: Cells = {}
        self.input_tokens = 0
        self.output_tokens = 0

    def add(self, cells: Iterable[int]) -> None:
        counts = self.cells
        for at in cells:
            counts[at] = counts.get(at, 0) + 1

    def merge(self, other: "Group") -> None:
        counts = self.cells
        for at, number in other.cells.items():
            counts[at] = counts.get(at, 0) + number
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens

    def count(self, name: str) -> int:
        return self.cells.get(AT[name], 0)

    def metric(self, name: str) -> Cells:
        base = AT[name]
        return {at - base: number for at, number in self.cells.items() if at >> SHIFT == base >> SHIFT}


class Named:
    """Groups by name."""

    def __init__(self) -> None:
        self.groups: dict[str | None, Group] = {}

    def of(self, name: str | None) -> Group:
        group = self.groups.get(name)
        if group is None:
            name = name and _bounded(name, self.groups, _NAMES)
            group = self.groups.setdefault(name, Group())
        return group


class Bad(msgspec.Struct):
    """Requests that failed in one way."""

    requests: int = 0
    first: float = 0.0
    last: float = 0.0


class Over(msgspec.Struct):
    """Requests over one budget."""

    requests: int = 0
    ttft: int = 0
    total: int = 0
    ttft_worst: float = 0.0
    total_worst: float = 0.0
    phases: Counter[str] = msgspec.field(default_factory=Counter)

    def add(self, by: Exceeded) -> None:
        self.requests += 1
        ttft, total = by.get("ttft_ms"), by.get("total_ms")
        if ttft is not None:
            self.ttft += 1
            self.ttft_worst = max(self.ttft_worst, ttft)
        if total is not None:
            self.total += 1
            self.total_worst = max(self.total_worst, total)
        self.phases[_bounded(by.get("phase") or "-", self.phases, _SPANS)] += 1


class Phases:
    """How long each phase took, by how long the whole took: so that the slow can be told from the rest."""

    def __init__(self) -> None:
        self.requests: Cells = {}
        self.took: dict[int, dict[str, float]] = {}
        """Bucket -> milliseconds by name. A span's name begins with a space: it is inside of a phase."""
        self._spans: set[str] = set()

    def add(self, at: int, found: Iterable[Piece], until: float, phases: Mapping[str, float | None]) -> None:
        """`until`: no piece that begins there or later counts."""
        self.requests[at] = self.requests.get(at, 0) + 1
        took = self.took.get(at)
        if took is None:
            took = self.took[at] = {}
        for piece in found:
            if piece.start_ms < until - _ROUNDING:
                took[piece.name] = took.get(piece.name, 0.0) + piece.ms
        if len(phases) > len(SPANS):
            for name, ms in phases.items():
                if name not in SPANS and ms is not None:
                    name = self._span(name)  # noqa: PLW2901 - the name it is counted under
                    took[name] = took.get(name, 0.0) + ms

    def _span(self, name: str) -> str:
        name = _bounded(name.removesuffix("_ms"), self._spans, _SPANS)
        self._spans.add(name)
        return f" {name}"


class Sums:
    """All that is kept."""

    def __init__(self, worst: int) -> None:
        self.total = Group()
        self.by: dict[str, Named] = {name: Named() for name in ("model", "feature", "upstream", "cache")}
        self.outcomes: Counter[str] = Counter()
        self.errors: dict[tuple[str, str | None, str | None, int | None], Bad] = {}
        self.over: dict[str, Over] = {}
        self.slots = Slots()
        self.to_end, self.to_first = Phases(), Phases()
        self.slowest, self.latest = Worst(worst), Worst(worst)
        self._series: dict[tuple[str | None, ...], Group] = {}
        self.since: float | None = None
        self.until: float | None = None
        self.retries = self.resumed = 0

    def add(self, line: Line) -> None:
        """Take one request."""
        at = line["timestamp"].timestamp()
        if self.since is None or self.until is None:
            self.since = self.until = at
        elif at < self.since:
            self.since = at
        elif at > self.until:
            self.until = at
        cells = [AT["requests"], *self._cells_of_outcome(line["outcome"])]
        get = cast("Callable[[str], float | None]", line.get)
        for name in METRICS:
            if name == _FIRST_NOT_OVER_TIME:
                self.slots.add(at, cells)
            value = get(name)
            if value is not None and (name != "total_ms" or line.get("status") != _WEBSOCKET):
                cells.append(AT[name] + bucket(value))
        cache, kind = line.get("cache"), line.get("cache_kind")
        if cache in ("hit", "miss", "collapsed"):
            cells.append(AT["asked"])
            if cache == "hit" and kind != "stale":
                cells.append(AT["hits"])
        key = (line.get("model"), line.get("feature"), line.get("upstream"), cache, kind)
        group = self._series.get(key)
        if group is None:
            if len(self._series) >= _SERIES:
                self.merge()
            group = self._series[key] = Group()
        group.add(cells)
        group.input_tokens += line.get("input_tokens") or 0
        group.output_tokens += line.get("output_tokens") or 0
        self._add_rest(line, at)

    def merge(self) -> None:
        """Bring what was added to where it belongs. Counting each request once, and each series five times,
        takes half the time."""
        for (model, feature, upstream, cache, kind), group in self._series.items():
            result = f"{cache} {kind}" if kind is not None else cache
            self.total.merge(group)
            for name, value in zip(self.by, (model, feature, upstream, result), strict=True):
                self.by[name].of(value).merge(group)
        self._series.clear()

    def _cells_of_outcome(self, outcome: str) -> Sequence[int]:
        self.outcomes[_bounded(outcome, self.outcomes, _SPANS)] += 1
        if outcome == "complete":
            return ()
        if outcome == "cancelled":
            return (AT["cancelled"],)
        return (AT["failed"], AT["timeouts"]) if outcome == "timeout" else (AT["failed"],)

    def _add_rest(self, line: Line, at: float) -> None:
        total, first, outcome = line["total_ms"], line.get("ttft_ms"), line["outcome"]
        if outcome not in ("complete", "cancelled"):
            self._add_error((outcome, line.get("error"), line.get("upstream"), line.get("status")), at)
        over = line.get("budget_exceeded")
        if over is not None:
            self.over.setdefault(_bounded(over["budget"], self.over, _NAMES), Over()).add(over)
        self.retries += line.get("retries") or 0
        again = line.get("resumed_from") is not None
        self.resumed += again
        phases = line.get("phases") or {}
        found: list[Piece] | None = None
        if line.get("status") == _WEBSOCKET:
            return
        # What comes out of the cache would only be the fast half, whatever the others wait for.
        if not again and (line.get("cache") != "hit" or line.get("cache_kind") == "stale"):
            found = pieces(line)
            self.to_end.add(bucket(total), found, total, phases)
            if first is not None:
                self.to_first.add(bucket(first), found, first, phases)
        for worst, figure in ((self.slowest, total), (self.latest, first)):
            if figure is not None and worst.takes(figure):
                worst.add(figure, kept_of(line, at, pieces(line) if found is None else found, phases))

    def _add_error(self, key: tuple[str, str | None, str | None, int | None], at: float) -> None:
        if key not in self.errors:
            outcome, error, upstream, status = key
            key = (outcome[:NAME], cut(error), cut(upstream), status)
            if key not in self.errors and len(self.errors) >= _KINDS:
                key = (OTHER, None, None, None)
        bad = self.errors.setdefault(key, Bad(first=at, last=at))
        bad.requests += 1
        bad.first, bad.last = min(bad.first, at), max(bad.last, at)
