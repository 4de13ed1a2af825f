"""Metrics: families as Prometheus has them, in the form and by the names of OpenTelemetry, and the thread
that sends them.

Names lose the unit and `_total`, which OpenTelemetry keeps beside them. A collector that hands them on to
Prometheus puts both back, so that dashboards find them whichever way they came.
"""

import math
import threading
import time
from collections.abc import Iterable, Mapping

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.export import Metric as Converted
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.core import Metric
from prometheus_client.samples import Sample

from sidecar.telemetry.families import BY_NAME
from sidecar.telemetry.otel.wire import InSteps, Reports, Session, Told, in_steps

_UNITS = {"_seconds": "s", "_ratio": "1", "_bytes": "By"}
_DOTTED = {"error_type": "error.type", "server_address": "server.address", "server_port": "server.port"}
_CUMULATIVE = AggregationTemporality.CUMULATIVE

Labels = Mapping[str, str]


def convert(families: Iterable[Metric], started: int, now: int) -> list[Converted]:
    """Those that have values. Times: unix nanoseconds, of the counts' beginning and of these values."""
    made: list[Converted] = []
    for family in families:
        name, unit = name_of(family)
        data = _data(family, started, now)
        if data is not None and data.data_points:
            made.append(Converted(name, family.documentation, unit, data))
    return made


def name_of(family: Metric) -> tuple[str, str]:
    """Name and unit of a family."""
    known = BY_NAME.get(family.name)
    stem = family.name.removeprefix("slipstream_")
    prefix = "slipstream." if stem != family.name else ""
    unit = "{token}" if "token" in stem.rpartition("_")[2] or stem.endswith("token_usage") else ""
    for suffix, symbol in _UNITS.items():
        if stem.endswith(suffix):
            stem, unit = stem.removesuffix(suffix), symbol
    return known.otel if known is not None and known.otel else prefix + stem, unit


def _data(family: Metric, started: int, now: int) -> Gauge | Histogram | Sum | None:
    if family.type == "gauge":
        values = [sample for sample in family.samples if not math.isnan(sample.value)]
        return Gauge([NumberDataPoint(_attributes(one.labels), started, now, one.value) for one in values])
    if family.type == "counter":
        values = [sample for sample in family.samples if sample.name.endswith("_total")]
        points = [NumberDataPoint(_attributes(one.labels), started, now, one.value) for one in values]
        return Sum(points, _CUMULATIVE, is_monotonic=True)
    if family.type == "histogram":
        return Histogram(_histograms(family.samples, started, now), _CUMULATIVE)
    return None


class _Parts:
    """What several samples say of one histogram."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.below: dict[float, int] = {}
        self.sum = 0.0

    def point(self, started: int, now: int) -> HistogramDataPoint:
        bounds = sorted(self.below)
        cumulative = [self.below[bound] for bound in bounds]
        counts = [here - below for here, below in zip(cumulative, [0, *cumulative[:-1]], strict=True)]
        return HistogramDataPoint(
            _attributes(self.labels),
            started,
            now,
            count=cumulative[-1],
            sum=self.sum,
            bucket_counts=counts,
            explicit_bounds=bounds[:-1],
            min=None,  # type: ignore[arg-type] # the format has them optional, and nobody knows them here
            max=None,  # type: ignore[arg-type]
        )


def _histograms(samples: Iterable[Sample], started: int, now: int) -> list[HistogramDataPoint]:
    found: dict[tuple[tuple[str, str], ...], _Parts] = {}
    for sample in in_steps(samples):
        labels = {label: value for label, value in sample.labels.items() if label != "le"}
        parts = found.setdefault(tuple(labels.items()), _Parts(labels))
        if sample.name.endswith("_bucket"):
            parts.below[float(sample.labels["le"])] = int(sample.value)
        elif sample.name.endswith("_sum"):
            parts.sum = sample.value
    return [parts.point(started, now) for parts in found.values() if parts.below]


def _attributes(labels: Labels) -> dict[str, str | int]:
    """An empty label is none, to Prometheus; here it would say that there was an error of type ""."""
    found: dict[str, str | int] = {}
    for label, value in labels.items():
        if value:
            key = f"gen_ai.{label[7:].replace('_', '.')}" if label.startswith("gen_ai_") else label
            key = _DOTTED.get(label, key)
            found[key] = int(value) if label == "server_port" and value.isdecimal() else value
    return found


class MetricSender:
    """Sends the latest values from a thread of its own."""

    def __init__(
        self,
        exporter: MetricExporter,
        session: Session,
        resource: Resource,
        scope: InstrumentationScope,
        tell: Told,
    ) -> None:
        self._exporter = exporter
        self._session = session
        self._resource = resource
        self._scope = scope
        self._reports = Reports(tell)
        self._started = time.time_ns()
        self._latest: tuple[list[Metric], int] | None = None
        self._finished = False
        self._given = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="slipstream-otel", daemon=True)
        self.thread.start()

    def give(self, families: list[Metric], *, last: bool = False) -> None:
        """These are the values now. Those that are still waiting to be sent are out of date."""
        with self._given:
            self._latest = families, time.time_ns()
            self._finished = last
            self._given.notify()

    def shutdown(self) -> None:
        """Give up what is not sent yet."""
        self._exporter.shutdown()

    def _run(self) -> None:
        while True:
            with self._given:
                while self._latest is None and not self._finished:
                    self._given.wait()
                latest, self._latest = self._latest, None
            if latest is None:
                return
            self._reports.take(self._send(*latest))

    def _send(self, families: list[Metric], now: int) -> str | None:
        """Why it failed, if it did."""
        self._session.failure = None
        try:
            made = InSteps(convert(families, self._started, now))
            scope = ScopeMetrics(self._scope, made, "")
            data = MetricsData([ResourceMetrics(self._resource, [scope], "")])
            result = self._exporter.export(data)
        except Exception as error:  # noqa: BLE001 - reason: the thread goes on, and it is told
            return type(error).__name__
        if result is MetricExportResult.SUCCESS:
            return None
        return self._session.failure or "not to be encoded"
