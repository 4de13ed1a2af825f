"""Counters and histograms of the process's life, and their exposition for Prometheus.

What happens on every request is a few dictionary entries; the forms that prometheus-client has are made when
somebody asks. Labels that others choose are capped: half of the room is for names of which something came.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from sidecar.telemetry.counted import (
    COUNTER_SERIES,
    HISTOGRAM_SERIES,
    Counted,
    Histogram,
    Labels,
    Values,
    within,
)
from sidecar.telemetry.families import BY_NAME, FAMILIES, Family
from sidecar.telemetry.process import OwnProcess, Process
from sidecar.telemetry.scale import Cells, bucket, cumulative
from sidecar.telemetry.window import OTHER

NAMES = 50
"""Models that are told apart."""

_FORMS = ("text/plain; ", "application/openmetrics-text; version=1.0.0; ")

Encoder = Callable[[Collector], bytes]
Gauges = Callable[[], Values]
"""What is read when it is asked for: metric, labels, value. Counters, too, where they are kept elsewhere."""


class Names:
    """Names that others choose, as many as there may be."""

    def __init__(self, most: int = NAMES, known: Iterable[str] = ()) -> None:
        """`known`: those that always have room."""
        self._known: set[str] = set(known)
        self._most = most + len(self._known)

    def know(self, names: Iterable[str]) -> None:
        """There is always room for these, too."""
        more = set(names) - self._known
        self._known |= more
        self._most += len(more)

    def get(self, name: str | None, *, good: bool) -> str:
        """The name as a label. `good`: something came of it; made-up ones get half of the room."""
        if name is None:
            return ""
        if name in self._known:
            return name
        if len(self._known) >= (self._most if good else self._most // 2):
            return OTHER
        self._known.add(name)
        return name


class Metrics(Collector):
    """The counts of one process."""

    def __init__(self) -> None:
        self._counters: dict[str, dict[Labels, float]] = {
            family.name: {} for family in FAMILIES if family.kind == "counter"
        }
        self._histograms: dict[str, dict[Labels, Histogram]] = {
            family.name: {} for family in FAMILIES if family.kind == "histogram"
        }
        self._sources: list[Gauges] = []
        self.names = Names()
        """Of models."""
        self.answering = Names()
        """Of models as the answers call them."""

    def read_from(self, source: Gauges) -> None:
        """Ask this one, too, when somebody wants to know."""
        self._sources.append(source)

    def count(self, name: str, labels: Labels = (), by: float = 1) -> None:
        """Add to a counter."""
        series = self._counters[name]
        labels = within(series, labels, COUNTER_SERIES)
        series[labels] = series.get(labels, 0) + by

    def observe(self, name: str, labels: Labels, milliseconds: float) -> None:
        """Add one value to a histogram of seconds."""
        found = self._histograms[name].get(labels) or self._histogram(name, labels)
        counts, at = found.cells, bucket(milliseconds)
        counts[at] = counts.get(at, 0) + 1
        found.sum += milliseconds / 1000

    def observe_count(self, name: str, labels: Labels, value: int) -> None:
        """Add one value to a histogram of something that is no time."""
        at = bisect_left(BY_NAME[name].bounds, value)
        self.observe_cells(name, labels, ((at, 1),), value)

    def observe_cells(
        self, name: str, labels: Labels, cells: Iterable[tuple[int, int]], total: float
    ) -> None:
        """Add many: buckets as `scale` has them, with counts, and the sum of all in the metric's unit. Of
        what is no time, the numbers of its own bounds."""
        found = self._histograms[name].get(labels) or self._histogram(name, labels)
        counts = found.cells
        for at, count in cells:
            counts[at] = counts.get(at, 0) + count
        found.sum += total

    def _histogram(self, name: str, labels: Labels) -> Histogram:
        """A new one, or the one for all that come too late."""
        series = self._histograms[name]
        return series.setdefault(within(series, labels, HISTOGRAM_SERIES), Histogram({}))

    def collect(self) -> Iterator[Metric]:
        """All families, those without a series as well. On the event loop."""
        return iter(self.snapshot())

    def snapshot(self) -> list[Metric]:
        """The same."""
        return self.prepare()()

    def prepare(self) -> Callable[[], list[Metric]]:
        """The same in two steps: on the event loop counts are copied, and what is returned, which takes
        longer by far, may run in a thread."""
        counted = self.take()
        return lambda: families(counted)

    def take(self, *, but: Gauges | None = None) -> Counted:
        """What there is now. The caller owns what it gets. `but`: one that is not asked."""
        # First: whoever is asked may count what has come since.
        read = [value for source in self._sources if source != but for value in source()]
        counters = {name: series.copy() for name, series in self._counters.items()}
        histograms = {
            name: {labels: Histogram(found.cells.copy(), found.sum) for labels, found in series.items()}
            for name, series in self._histograms.items()
        }
        counted = Counted(counters, histograms)
        counted.put(read)
        return counted


class Exposition:
    """The text that a scrape gets."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._process = OwnProcess()

    def prepare(self, accept: str) -> Callable[[], tuple[bytes, str]]:
        """On the event loop: what is told is what was counted until now. The rest may run in a thread; it
        returns the text and its type. `accept`: the request's field."""
        counted = self._metrics.take()
        return lambda: render(counted, self._process, (), accept)


def render(
    counted: Counted, process: OwnProcess, others: Sequence[Process], accept: str
) -> tuple[bytes, str]:
    """The text of what was counted, in the form that is asked for, and its type. `others`: processes whose
    figures belong to it, too."""
    encode, kind = form(accept)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Given([*families(counted), *process.families(others)]))
    return encode(registry), kind


def families(counted: Counted) -> list[Metric]:
    """All of them, those without a series as well."""
    made: list[Metric] = []
    for family in FAMILIES:
        if family.kind == "histogram":
            made.append(_histogram(family, counted.histograms.get(family.name, {})))
        elif family.kind == "gauge":
            made.append(_gauge(family, counted.gauges.get(family.name, {})))
        else:
            made.append(_counter(family, counted.counters.get(family.name, {})))
    return made


def form(accept: str) -> tuple[Encoder, str]:
    """What writes the form that is asked for, and its type. There are ten at most: which version it is, or
    what else is asked for, is not the client's to make up."""
    try:
        encode, kind = choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is no number
        return choose_encoder("")
    return (encode, kind) if kind.startswith(_FORMS) else choose_encoder("")


class _Given(Collector):
    """Families that are there already."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _histogram(family: Family, series: Mapping[Labels, Histogram]) -> Metric:
    made = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    edges = [_edge(edge) for edge in family.bounds]
    for labels, found in series.items():
        counts = [float(count) for count in _cumulative(family, found.cells)]
        every = float(sum(found.cells.values()))
        made.add_metric(labels, [*zip(edges, counts, strict=True), ("+Inf", every)], found.sum)
    return made


def _gauge(family: Family, series: Mapping[Labels, float]) -> Metric:
    made = GaugeMetricFamily(family.name, family.help, labels=family.labels)
    for labels, value in series.items():
        made.add_metric(labels, value)
    return made


def _counter(family: Family, series: Mapping[Labels, float]) -> Metric:
    made = CounterMetricFamily(family.name, family.help, labels=family.labels)
    if not series and not family.labels:
        series = {(): 0}
    for labels, value in series.items():
        made.add_metric(labels, value)
    return made


def _cumulative(family: Family, cells: Cells) -> list[int]:
    if family.name.endswith("_seconds"):
        return cumulative(cells, [edge * 1000 for edge in family.bounds])
    return list(accumulate([cells.get(at, 0) for at in range(len(family.bounds))]))


def _edge(value: float) -> str:
    return repr(float(value))
