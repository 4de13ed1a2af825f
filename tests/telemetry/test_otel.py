"""Export to a real OTLP receiver: what arrives, what does not, and what becomes of failures."""

import asyncio
import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from sidecar.core.values import ConfigError
from sidecar.core.waterfall import pieces
from sidecar.telemetry.families import FAMILIES
from sidecar.telemetry.otel import make, wanted
from tests.telemetry.collector import PATIENCE, Collector, attributes

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01".encode()
BEGUN = 1_790_000_000.25


def line(**changed: Any) -> dict[str, Any]:
    return {
        "request_id": "ab12cd3400000001",
        "trace_id": None,
        "stream_id": "s1",
        "tenant": "1f0c5e9a2b7d4c63",
        "method": "POST",
        "path": "/v1/chat/completions",
        "upstream": "openai",
        "provider": "openai",
        "operation": "chat",
        "model": "gpt-5-mini",
        "response_model": "gpt-5-mini-2026",
        "stream": True,
        "status": 200,
        "outcome": "complete",
        "cache": "miss",
        "cache_kind": None,
        "similarity": None,
        "guard": None,
        "ttfb_ms": 300.1,
        "ttft_ms": 412.3,
        "ttft_kind": "content",
        "tpot_ms": 18.1,
        "itl_p50_ms": 18.0,
        "itl_p99_ms": 41.0,
        "itl_max_ms": 95.0,
        "total_ms": 2310.0,
        "overhead_ms": 0.4,
        "phases": {
            "read_ms": 0.05,
            "lookup_ms": 0.2,
            "embed_ms": None,
            "search_ms": None,
            "connect_ms": 12.0,
            "upstream_ms": 287.0,
            "store_ms": 1.2,
        },
        "tokens_per_second": 203.4,
        "input_tokens": 1204,
        "output_tokens": 386,
        "cached_input_tokens": 1000,
        "reasoning_tokens": None,
        "events": 390,
        "bytes": 80000,
        "keepalives": 0,
        "resumed_from": None,
        "retries": 0,
        "feature": "chat",
        "budget_exceeded": None,
        "error": None,
        **changed,
    }


HIT = {
    "cache": "hit",
    "cache_kind": "exact",
    "ttfb_ms": 0.4,
    "ttft_ms": 0.5,
    "total_ms": 0.9,
    "overhead_ms": 0.3,
    "phases": {"read_ms": 0.05, "lookup_ms": 0.2, "connect_ms": None, "upstream_ms": None, "store_ms": None},
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's; nobody waits for five seconds."""
    for name in os.environ:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Any]]:
    """Starts an export; all end with the test."""
    made = []

    def start(
        url: str | None,
        collect: Callable[[], list[Metric]] = list,
        tell: Callable[[str | None], None] = lambda _: None,
        interval: float = 3600.0,
    ) -> Any:
        made.append(make(url, "1.2.3", collect, tell, interval, {"openai": ("api.openai.com", 443)}))
        return made[-1]

    yield start
    for otel in made:
        otel.close(0)


class Heard:
    """What an export told of failures, in order."""

    def __init__(self) -> None:
        self.all: list[str | None] = []
        self._changed = asyncio.Event()

    def take(self, failure: str | None) -> None:
        self.all.append(failure)
        self._changed.set()

    async def wait(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while len(self.all) < count:
                self._changed.clear()
                await self._changed.wait()


async def one(
    otel: Any, collector: Collector, told: dict[str, Any], parent: bytes | None = None
) -> list[Span]:
    """The spans of one request, its own first."""
    before = len(collector.spans)
    otel.span(told, BEGUN, parent)
    await asyncio.to_thread(collector.wait, lambda: len(collector.spans) > before)
    found = collector.spans[before:]
    (whole,) = [span for span in found if span.kind != Span.SPAN_KIND_INTERNAL]
    return [whole, *[span for span in found if span is not whole]]


# -- spans


async def test_a_request_is_a_span_below_its_callers(collector: Collector, start: Callable[..., Any]) -> None:
    told = line()
    whole, *parts = await one(start(collector.url), collector, told, PARENT)

    assert whole.name == "chat gpt-5-mini"
    assert whole.kind == Span.SPAN_KIND_CLIENT
    assert whole.trace_id.hex() == TRACE
    assert whole.parent_span_id.hex() == "00f067aa0ba902b7"
    assert whole.span_id not in (b"", bytes(8), whole.parent_span_id)
    assert whole.start_time_unix_nano == int(BEGUN * 1e9)
    assert whole.end_time_unix_nano == int(BEGUN * 1e9) + 2_310_000_000
    assert whole.status.code == Status.STATUS_CODE_UNSET
    assert attributes(whole) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5-mini",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "gpt-5-mini-2026",
        "gen_ai.response.time_to_first_chunk": 0.4123,
        "gen_ai.usage.input_tokens": 1204,
        "gen_ai.usage.output_tokens": 386,
        "gen_ai.usage.cache_read.input_tokens": 1000,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.path": "/v1/chat/completions",
        "server.address": "api.openai.com",
        "server.port": 443,
        "slipstream.request_id": "ab12cd3400000001",
        "slipstream.stream_id": "s1",
        "slipstream.tenant": "1f0c5e9a2b7d4c63",
        "slipstream.upstream": "openai",
        "slipstream.feature": "chat",
        "slipstream.outcome": "complete",
        "slipstream.cache": "miss",
        "slipstream.overhead_ms": 0.4,
        "slipstream.itl_p99_ms": 41.0,
        "slipstream.itl_max_ms": 95.0,
        "slipstream.tokens_per_second": 203.4,
        "slipstream.retries": 0,
        "slipstream.phase.store_ms": 1.2,
    }
    (first,) = whole.events
    assert first.name == "first_token"
    assert first.time_unix_nano == int(BEGUN * 1e9) + 412_300_000
    assert attributes(first) == {"slipstream.kind": "content"}

    expected = [piece for piece in pieces(told) if piece.ms >= 0.1]
    assert [part.name for part in parts] == [piece.name for piece in expected]
    assert {"lookup", "connect", "upstream", "first_token", "stream"} <= {part.name for part in parts}
    assert "read" not in {part.name for part in parts}
    for part, piece in zip(parts, expected, strict=True):
        assert (part.trace_id, part.parent_span_id) == (whole.trace_id, whole.span_id)
        assert part.start_time_unix_nano - whole.start_time_unix_nano == int(piece.start_ms * 1e6)
        assert part.end_time_unix_nano - whole.start_time_unix_nano == int((piece.start_ms + piece.ms) * 1e6)
        assert part.end_time_unix_nano <= whole.end_time_unix_nano
    assert len({span.span_id for span in (whole, *parts)}) == len(parts) + 1


async def test_the_resource_says_who_sends(
    collector: Collector, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    await one(start(collector.url), collector, line())
    resource = attributes(collector.traces[0].resource_spans[0].resource)
    assert (resource["service.name"], resource["service.version"]) == ("slipstream", "1.2.3")
    scope = collector.traces[0].resource_spans[0].scope_spans[0].scope
    assert (scope.name, scope.version) == ("slipstream", "1.2.3")

    monkeypatch.setenv("OTEL_SERVICE_NAME", "gateway")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.version=9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=k1")
    await one(start(collector.url), collector, line())
    other = attributes(collector.traces[-1].resource_spans[0].resource)
    assert (other["service.name"], other["service.version"]) == ("gateway", "9")
    assert other["deployment.environment.name"] == "test"
    assert collector.headers[-1]["x-api-key"] == "k1"
    assert "x-api-key" not in collector.headers[0]
    assert other["service.instance.id"] != resource["service.instance.id"]


async def test_a_request_without_a_caller_begins_a_trace(
    collector: Collector, start: Callable[..., Any]
) -> None:
    otel = start(collector.url)
    for broken in (
        None,
        b"",
        b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-" + b"0" * 16 + b"-00",
        b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
        PARENT + b"-more",
        PARENT.upper(),
    ):
        whole, *_ = await one(otel, collector, line(), broken)
        assert whole.parent_span_id == b""
        assert whole.trace_id.hex() != TRACE
        assert any(whole.trace_id)
    assert len({span.trace_id for span in collector.spans}) == 7


async def test_what_the_caller_does_not_sample_is_not_sent(
    collector: Collector, start: Callable[..., Any]
) -> None:
    otel = start(collector.url)
    otel.span(line(request_id="not"), BEGUN, PARENT[:-2] + b"00")
    otel.span(line(request_id="nor"), BEGUN, b"cc" + PARENT[2:-2] + b"02-what-is-to-come")
    whole, *_ = await one(otel, collector, line(request_id="sent"), PARENT[:-2] + b"03")
    assert attributes(whole)["slipstream.request_id"] == "sent"
    otel.close()
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert sum(span.kind == Span.SPAN_KIND_CLIENT for span in collector.spans) == 1
    assert otel.dropped == 0


async def test_the_environments_sampler_decides_on_traces_that_begin_here(
    collector: Collector, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    otel = start(collector.url)
    otel.span(line(request_id="begins"), BEGUN, None)
    whole, *_ = await one(otel, collector, line(request_id="belongs"), PARENT)
    assert attributes(whole)["slipstream.request_id"] == "belongs"


async def test_a_hit_is_the_sidecars_own_and_uses_no_tokens(
    collector: Collector, start: Callable[..., Any]
) -> None:
    whole, *parts = await one(start(collector.url), collector, line(**HIT))
    told = attributes(whole)
    assert (whole.name, whole.kind) == ("chat gpt-5-mini", Span.SPAN_KIND_SERVER)
    assert (told["slipstream.cache"], told["slipstream.cache_kind"]) == ("hit", "exact")
    assert (told["slipstream.input_tokens"], told["slipstream.output_tokens"]) == (1204, 386)
    assert not [key for key in told if key.startswith(("gen_ai.usage", "server.", "gen_ai.response.time"))]
    assert [part.name for part in parts] == ["lookup", "sidecar", "first_token", "stream"]


NO_MODEL = {"operation": None, "model": None, "provider": None, "response_model": None, "stream": False}


@pytest.mark.parametrize(
    ("changed", "name", "method"),
    [
        ({"method": "GET", "path": "/v1/files/f-123"}, "GET openai", "GET"),
        ({"method": "BREW", "path": "/v1/files"}, "HTTP openai", "_OTHER"),
        ({"method": "POST", "upstream": None, "path": "/x"}, "POST", "POST"),
    ],
)
async def test_what_calls_no_model_has_a_name_of_few(
    collector: Collector,
    start: Callable[..., Any],
    changed: dict[str, Any],
    name: str,
    method: str,
) -> None:
    whole, *_ = await one(start(collector.url), collector, line(**{**NO_MODEL, **changed}))
    assert whole.name == name
    told = attributes(whole)
    assert told["http.request.method"] == method
    assert not {"gen_ai.operation.name", "gen_ai.request.model", "gen_ai.request.stream"} & set(told)


@pytest.mark.parametrize(
    ("changed", "kind", "failed"),
    [
        ({"status": 404}, "404", True),
        ({"status": 502, "outcome": "upstream_error", "error": "upstream_refused"}, "upstream_refused", True),
        ({"outcome": "truncated", "error": "upstream_truncated"}, "upstream_truncated", True),
        ({"outcome": "cancelled"}, None, False),
        ({**HIT, "status": 413, "outcome": "refused", "error": "too_large"}, "too_large", False),
        ({**HIT, "status": 503, "outcome": "refused", "error": "draining"}, "draining", True),
    ],
)
async def test_errors(
    collector: Collector,
    start: Callable[..., Any],
    changed: dict[str, Any],
    kind: str | None,
    failed: bool,
) -> None:
    whole, *_ = await one(start(collector.url), collector, line(**changed))
    assert attributes(whole).get("error.type") == kind
    assert whole.status.code == (Status.STATUS_CODE_ERROR if failed else Status.STATUS_CODE_UNSET)
    assert whole.status.message == ""


async def test_an_apps_own_phases_and_a_missed_budget_are_told(
    collector: Collector, start: Callable[..., Any]
) -> None:
    over = {"budget": "chat", "ttft_ms": 112.3, "total_ms": None, "phase": "upstream"}
    phases = {**line()["phases"], "retrieve_ms": 31.5}
    whole, *parts = await one(start(collector.url), collector, line(phases=phases, budget_exceeded=over))
    told = attributes(whole)
    assert told["slipstream.phase.retrieve_ms"] == 31.5
    assert (told["slipstream.budget_exceeded"], told["slipstream.budget_phase"]) == ("chat", "upstream")
    assert "retrieve" not in {part.name for part in parts}


async def test_odd_lines_cost_nobody_else_their_spans(
    collector: Collector, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")  # one batch, sent at the end
    otel = start(collector.url)
    otel.span(line(request_id="a", model="m\udcff\u20ac", output_tokens=10**30), BEGUN, None)
    otel.span(line(request_id="b", total_ms=None), BEGUN, None)
    otel.span(line(request_id="c", path="/" + "x" * 9000), BEGUN, None)
    otel.close(PATIENCE)
    found = {attributes(span).get("slipstream.request_id"): span for span in collector.spans}
    assert set(found) == {"a", "c", None}
    assert found["a"].name == "chat m?\u20ac"
    assert "gen_ai.usage.output_tokens" not in attributes(found["a"])
    assert len(attributes(found["c"])["url.path"]) == 512
    assert (otel.dropped, len(collector.traces)) == (1, 1)


# -- metrics


def everything() -> CollectorRegistry:
    """A value or two in each of our families, counted by prometheus-client itself."""
    registry = CollectorRegistry()
    for number, family in enumerate(FAMILIES, 1):
        given = {"server_port": "8443", "error_type": ""}
        values = [given.get(label, f"{label}-{number}") for label in family.labels]
        if family.kind == "counter":
            counter = Counter(family.name, family.help, family.labels, registry=registry)
            (counter.labels(*values) if values else counter).inc(number + 0.5)
        elif family.kind == "gauge":
            gauge = Gauge(family.name, family.help, family.labels, registry=registry)
            (gauge.labels(*values) if values else gauge).set(number / 4)
        else:
            histogram = Histogram(
                family.name, family.help, family.labels, registry=registry, buckets=family.bounds
            )
            for series in (values, [f"{value}0" for value in values]):
                child = histogram.labels(*series) if values else histogram
                for value in (0, family.bounds[0], family.bounds[3] * 1.01, family.bounds[-1], math.pi * 1e9):
                    child.observe(value)
    return registry


def stem(name: str) -> str:
    return name.removesuffix("_total").removesuffix("_seconds").removesuffix("_ratio")


def otel_name(name: str) -> str:
    (family,) = [family for family in FAMILIES if family.name == name]
    return family.otel or "slipstream." + stem(name).removeprefix("slipstream_")


def otel_labels(labels: dict[str, str]) -> dict[str, Any]:
    """As the conventions spell them."""
    dotted = {
        "gen_ai_operation_name": "gen_ai.operation.name",
        "gen_ai_provider_name": "gen_ai.provider.name",
        "gen_ai_request_model": "gen_ai.request.model",
        "gen_ai_response_model": "gen_ai.response.model",
        "gen_ai_token_type": "gen_ai.token.type",
        "server_address": "server.address",
        "server_port": "server.port",
        "error_type": "error.type",
    }
    return {
        dotted.get(label, label): int(value) if label == "server_port" else value
        for label, value in labels.items()
        if value and label != "le"
    }


async def test_every_metric_arrives_as_prometheus_has_it(
    collector: Collector, start: Callable[..., Any]
) -> None:
    registry = everything()
    start(collector.url, lambda: list(registry.collect()), interval=0.05)
    await asyncio.to_thread(collector.wait, lambda: len(collector.metrics) > 0)
    arrived = collector.points

    assert set(arrived) == {otel_name(family.name) for family in FAMILIES}
    shown = {
        family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())
    }
    for family in FAMILIES:
        metric = arrived[otel_name(family.name)]
        assert metric.description == family.help
        samples = shown[family.name.removesuffix("_total")].samples
        data = getattr(metric, {"counter": "sum", "gauge": "gauge", "histogram": "histogram"}[family.kind])
        assert all(point.time_unix_nano > 0 for point in data.data_points)
        if family.kind != "gauge":
            assert data.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
            assert all(0 < point.start_time_unix_nano <= point.time_unix_nano for point in data.data_points)
        if family.kind == "histogram":
            assert len(data.data_points) == (2 if family.labels else 1)
            for point in data.data_points:
                check_histogram(point, samples, family.name)
        else:
            (sample,) = [sample for sample in samples if not sample.name.endswith("_created")]
            (point,) = data.data_points
            assert (point.as_double, attributes(point)) == (sample.value, otel_labels(sample.labels))
        if family.kind == "counter":
            assert metric.sum.is_monotonic


def check_histogram(point: Any, samples: list[Any], name: str) -> None:
    mine = [sample for sample in samples if otel_labels(sample.labels) == attributes(point)]
    below = [sample for sample in mine if sample.name == f"{name}_bucket"]
    assert [repr(float(sample.labels["le"])) for sample in below[:-1]] == list(
        map(repr, point.explicit_bounds)
    )
    assert below[-1].labels["le"] == "+Inf"
    assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
    counted = 0
    for sample, count in zip(below, point.bucket_counts, strict=True):
        counted += count
        assert counted == sample.value
    assert point.count == 5 * (1 if attributes(point) else 2)
    (total,) = [sample.value for sample in mine if sample.name == f"{name}_sum"]
    assert point.sum == total
    assert not point.HasField("min")
    assert not point.HasField("max")


async def test_units_and_names_give_prometheus_back_its_own(
    collector: Collector, start: Callable[..., Any]
) -> None:
    """What a collector does with them on the way to Prometheus: unit and `_total` are put behind the name."""
    registry = everything()
    otel = start(collector.url, lambda: list(registry.collect()))
    otel.close(PATIENCE)
    back = set()
    for metric in collector.points.values():
        kind = metric.WhichOneof("data")
        name = metric.name.replace(".", "_")
        name += {"s": "_seconds", "1": "_ratio" if kind == "gauge" else ""}.get(metric.unit, "")
        back.add(name + ("_total" if kind == "sum" else ""))
    assert back == {
        f"{family.otel.replace('.', '_')}{'_seconds' * family.name.endswith('_seconds')}"
        if family.otel
        else family.name
        for family in FAMILIES
    }
    assert collector.points["gen_ai.client.token.usage"].unit == "{token}"


async def test_what_is_not_a_number_is_not_sent(collector: Collector, start: Callable[..., Any]) -> None:
    registry = CollectorRegistry()
    Gauge("slipstream_semantic_false_hit_ratio", "Share.", registry=registry).set(math.nan)
    Gauge("slipstream_ready", "Ready.", registry=registry).set(1)
    Counter("slipstream_resumes", "None yet.", ["result"], registry=registry)
    start(collector.url, lambda: list(registry.collect())).close(PATIENCE)
    assert list(collector.points) == ["slipstream.ready"]


async def test_metrics_are_read_on_the_event_loop_and_sent_again_and_at_the_end(
    collector: Collector, start: Callable[..., Any]
) -> None:
    registry = CollectorRegistry()
    counter = Counter("slipstream_keepalives", "Signs of life.", registry=registry)
    threads = set()

    def collect() -> list[Metric]:
        threads.add(threading.current_thread())
        counter.inc()
        return list(registry.collect())

    otel = start(collector.url, collect, interval=0.02)
    await asyncio.to_thread(collector.wait, lambda: len(collector.metrics) > 2)
    otel.close(PATIENCE)
    values = [
        request.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points[0].as_double
        for request in collector.metrics
    ]
    assert values == sorted(set(values))
    (last,) = collector.points["slipstream.keepalives"].sum.data_points
    read = next(sample.value for metric in registry.collect() for sample in metric.samples)
    assert last.as_double == read
    assert threads == {threading.main_thread()}
    assert otel._timer.cancelled()


async def test_values_that_waited_too_long_give_way_to_newer_ones(
    collector: Collector, start: Callable[..., Any]
) -> None:
    registry = CollectorRegistry()
    counter = Counter("slipstream_keepalives", "Signs of life.", registry=registry)
    fifth = asyncio.Event()
    reads = 0

    def collect() -> list[Metric]:
        nonlocal reads
        counter.inc()
        reads += 1
        if reads == 5 and collector.paths:
            fifth.set()
        elif not collector.paths:
            reads = 0  # the first is not on its way yet
        return list(registry.collect())

    collector.status["/v1/metrics"] = None
    start(collector.url, collect, interval=0.01)
    await asyncio.wait_for(fifth.wait(), PATIENCE)
    least = counter._value.get()
    collector.status.clear()
    collector.release()
    await asyncio.to_thread(collector.wait, lambda: len(collector.metrics) > 0)
    (point,) = collector.metrics[0].resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points
    assert point.as_double >= least


# -- failures


async def test_a_collector_that_refuses_and_recovers_is_told_of_once_each(
    collector: Collector, start: Callable[..., Any]
) -> None:
    heard = Heard()
    collector.status["/v1/traces"] = 401
    otel = start(f"{collector.url}/", tell=heard.take)
    for count in range(1, 4):
        otel.span(line(), BEGUN, None)
        await asyncio.to_thread(collector.wait, lambda count=count: len(collector.paths) >= count)
    await heard.wait(1)
    collector.status.clear()
    await one(otel, collector, line())
    await heard.wait(2)
    assert heard.all == ["spans: HTTP 401", None]
    assert otel.dropped == 3


async def test_a_collector_that_is_away_is_found_when_it_comes(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody else gets the port, and nobody listens
        heard = Heard()
        otel = start(f"http://127.0.0.1:{taken.getsockname()[1]}", tell=heard.take)
        otel.span(line(), BEGUN, None)
        await heard.wait(1)
        assert heard.all == ["spans: ConnectionError"]
        taken.listen()
        otel.span(line(), BEGUN, None)
        answered = asyncio.to_thread(answer, taken)
        await asyncio.wait_for(answered, PATIENCE)
        await heard.wait(2)
    assert heard.all == ["spans: ConnectionError", None]
    assert otel.dropped == 1


def test_the_sdk_writes_nothing_to_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own: pytest's handlers would hide it."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "no header at all")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        out = run(
            "import asyncio\n"
            "from sidecar.telemetry.otel import make\n"
            "async def main():\n"
            "    heard = asyncio.Queue()\n"
            f"    otel = make('http://127.0.0.1:{taken.getsockname()[1]}', '1', list, heard.put_nowait)\n"
            f"    otel.span({line()!r}, {BEGUN}, None)\n"
            f"    print(await asyncio.wait_for(heard.get(), {PATIENCE}))\n"
            "    otel.close(0)\n"
            "asyncio.run(main())\n"
        )
    assert out == "spans: ConnectionError\n"


def answer(listening: socket.socket) -> None:
    """Takes one request, however it comes in."""
    listening.settimeout(PATIENCE)
    while True:
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(PATIENCE)
            said = b""
            while b"\r\n\r\n" not in said or len(said.partition(b"\r\n\r\n")[2]) < length(said):
                more = connection.recv(65536)
                if not more:
                    break
                said += more
            else:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return


def length(said: bytes) -> int:
    fields = said.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")
    return int(next(field for field in fields if field.startswith(b"content-length:")).partition(b":")[2])


async def test_spans_and_metrics_fail_and_recover_apart(
    collector: Collector, start: Callable[..., Any]
) -> None:
    """A backend for traces only refuses metrics for good, and that must not sound like a new failure each time."""
    heard = Heard()
    collector.status["/v1/metrics"] = 404
    registry = everything()
    otel = start(collector.url, lambda: list(registry.collect()), tell=heard.take, interval=0.02)
    await asyncio.to_thread(collector.wait, lambda: collector.paths.count("/v1/metrics") > 2)
    await one(otel, collector, line())
    collector.status["/v1/traces"] = 500
    otel.span(line(), BEGUN, None)
    await heard.wait(2)
    collector.status["/v1/traces"] = 200
    await one(otel, collector, line())
    collector.status.clear()
    await asyncio.to_thread(collector.wait, lambda: len(collector.metrics) > 1)
    await heard.wait(3)
    assert heard.all == ["metrics: HTTP 404", "spans: HTTP 500", None]


async def test_the_queue_is_bounded_and_what_it_lost_is_counted(
    collector: Collector, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
    collector.status["/v1/traces"] = None
    otel = start(collector.url)
    otel.span(line(request_id="first"), BEGUN, None)
    await asyncio.to_thread(collector.wait, lambda: len(collector.paths) == 1)
    for number in range(250):
        otel.span(line(request_id=f"{number}"), BEGUN, None)
    collector.status.clear()
    collector.release()
    otel.close(PATIENCE)
    sent = [attributes(span).get("slipstream.request_id") for span in collector.spans]
    assert [name for name in sent if name] == [f"{number}" for number in range(150, 250)]
    assert otel.dropped == 150


@pytest.mark.timeout(25)  # the queue itself would wait for 30 s, and so would the exporter for its tries
@pytest.mark.parametrize("status", [None, 503])
async def test_the_end_waits_no_longer_than_it_may(
    collector: Collector, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, status: int | None
) -> None:
    """Neither for an answer nor for the next of its tries."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    before = set(threading.enumerate())
    collector.status.update({"/v1/traces": status, "/v1/metrics": status})
    registry = everything()
    otel = start(collector.url, lambda: list(registry.collect()))
    otel.span(line(), BEGUN, None)
    await asyncio.to_thread(collector.wait, lambda: len(collector.paths) == 1)
    otel.close(0.1)
    otel.span(line(), BEGUN, None)  # comes too late
    otel.close()
    assert not collector.traces
    ours = [thread for thread in set(threading.enumerate()) - before if "tel" in thread.name]
    assert ours or status == 503
    collector.release()
    for thread in ours:
        await asyncio.to_thread(thread.join)


@pytest.mark.parametrize(("size", "batches"), [("", 8), ("100", 5)])
async def test_nothing_is_lost_at_the_end_and_batches_are_small(
    collector: Collector,
    start: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    size: str,
    batches: int,
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    if size:
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", size)
    registry = everything()
    otel = start(collector.url, lambda: list(registry.collect()))
    for number in range(500):
        otel.span(line(request_id=f"{number}"), BEGUN, None)
    otel.close(PATIENCE)
    sent = [attributes(span).get("slipstream.request_id") for span in collector.spans]
    assert sorted(int(name) for name in sent if name) == list(range(500))
    assert len(collector.traces) == batches
    assert len(collector.metrics) == 1
    assert otel.dropped == 0


# -- turning it on


@pytest.mark.parametrize(
    ("endpoint", "environ", "on"),
    [
        (None, {}, False),
        ("http://127.0.0.1:4318", {}, True),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        (None, {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:4318/v1/metrics"}, True),
        (None, {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://127.0.0.1:4318/v1/logs"}, False),
        (None, {"OTEL_SERVICE_NAME": "x"}, False),
        ("http://127.0.0.1:4318", {"OTEL_SDK_DISABLED": "True"}, False),
        ("http://127.0.0.1:4318", {"OTEL_SDK_DISABLED": "false"}, True),
        ("http://127.0.0.1:4318", {"OTEL_METRICS_EXPORTER": "none"}, True),
        (
            "http://127.0.0.1:4318",
            {"OTEL_METRICS_EXPORTER": "none", "OTEL_TRACES_EXPORTER": "none"},
            False,
        ),
    ],
)
def test_wanted(endpoint: str | None, environ: dict[str, str], on: bool) -> None:
    assert wanted(endpoint, environ) is on


async def test_the_environment_alone_turns_it_on(
    collector: Collector, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = everything()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"{collector.url}/base/")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{collector.url}/elsewhere")
    otel = start(None, lambda: list(registry.collect()))
    otel.span(line(), BEGUN, None)
    otel.close(PATIENCE)
    assert sorted(collector.paths) == ["/base/v1/traces", "/elsewhere"]

    collector.paths.clear()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    otel = start(collector.url, lambda: list(registry.collect()))  # goes before the environment's
    otel.span(line(), BEGUN, None)
    otel.close(PATIENCE)
    assert collector.paths == ["/v1/metrics"]


@pytest.mark.parametrize(
    ("endpoint", "environ", "said"),
    [
        ("127.0.0.1:4318", {}, "otel.endpoint: expected a URL"),
        ("http://127.0.0.1:4318/v1/traces", {}, "otel.endpoint: expected the collector's address without"),
        ("http://u:p4ss@127.0.0.1:4318", {}, "otel.endpoint: a URL with user name or password"),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector"}, "OTEL_EXPORTER_OTLP_ENDPOINT: expected a URL"),
        (
            None,
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL = 'grpc': only http/protobuf is spoken here; set otel.endpoint",
        ),
        ("http://127.0.0.1:4318", {"OTEL_BSP_MAX_QUEUE_SIZE": "7"}, "OTEL_*: max_export_batch_size must be"),
    ],
)
async def test_what_cannot_be_is_said_in_one_line(
    endpoint: str | None, environ: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        make(endpoint, "1", list, lambda _: None)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
    assert "p4ss" not in str(caught.value)


async def test_the_configurations_own_endpoint_is_not_the_environments_protocols_business(
    collector: Collector, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    await one(start(collector.url), collector, line())


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_nothing_is_imported_while_it_is_off() -> None:
    out = run(
        "import sys, os\n"
        "from sidecar.telemetry.otel import make, wanted\n"
        "import sidecar.cli.serve, sidecar.web.service\n"
        "assert not wanted(None, {})\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('opentelemetry', 'requests')])\n"
    )
    assert out == "[]\n"


@pytest.mark.parametrize("missing", ["opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry"])
def test_without_the_extra_it_says_how_to_get_it(missing: str) -> None:
    out = run(
        "import sys, asyncio\n"
        "class Without:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {missing!r}: raise ModuleNotFoundError('No module named ' + name, name=name)\n"
        "sys.meta_path.insert(0, Without())\n"
        "from sidecar.telemetry.otel import make\n"
        "from sidecar.core.values import ConfigError\n"
        "async def main():\n"
        "    try: make('http://127.0.0.1:4318', '1', list, print)\n"
        "    except ConfigError as error: print(error)\n"
        "asyncio.run(main())\n"
    )
    assert out == (
        "otel.endpoint: what exports is not installed; install it with pip install 'slipstream-llm[otel]'\n"
    )
