"""Latency lines, calls and jobs of every kind, and what a scrape says of them."""

from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from sidecar.core.gaps import Gaps
from sidecar.core.latency import Heard, Labels, Trace, record
from sidecar.telemetry.counting import Call
from sidecar.telemetry.metrics import Exposition, Metrics

PLACES = {"a": ("api.a.test", 443), "b": ("127.0.0.1", 8080)}
CALLED = Labels("a", "openai", "chat", "m", stream=True)
TEXT, OPEN = "text/plain; version=0.0.4", "application/openmetrics-text; version=1.0.0"
Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def gaps(*seconds: float) -> Gaps:
    made = Gaps()
    for gap in seconds:
        made.add(gap)
    return made


BLANK = record(Trace("r", "POST", "/v1/chat/completions", 100.0, labels=Labels()), Heard(), 100.001)


def line(**changes: Any) -> dict[str, Any]:
    """A whole stream that an upstream answered; with other fields, or phases by their names."""
    made = {
        **BLANK,
        "upstream": "a",
        "provider": "openai",
        "operation": "chat",
        "model": "m",
        "response_model": "m-1",
        "stream": True,
        "status": 200,
        "cache": "miss",
        "ttfb_ms": 90.0,
        "ttft_ms": 100.0,
        "ttft_kind": "content",
        "total_ms": 1000.0,
        "overhead_ms": 0.5,
        "input_tokens": 10,
        "output_tokens": 40,
        "tokens_per_second": 44.0,
        "feature": "chat",
    }
    phases = {**made["phases"], "read_ms": 0.1, "connect_ms": 5.0, "upstream_ms": 80.0}
    for name in list(changes):
        if name in phases:
            phases[name] = changes.pop(name)
    unknown = changes.keys() - made.keys()
    assert not unknown, unknown
    return {**made, **changes, "phases": phases}


def call(**changes: Any) -> Call:
    """A call to an upstream that streamed the whole answer; with other fields, or labels by their names."""
    labels = {name: changes.pop(name) for name in list(changes) if name in CALLED.__struct_fields__}
    made: dict[str, Any] = {
        "labels": replace(CALLED, **labels),
        "total": 1.0,
        "first": 0.1,
        "response_model": "m-1",
        "input_tokens": 10,
        "output_tokens": 40,
    }
    return Call(**made | changes)


def job(**changes: Any) -> dict[str, Any]:
    """The line of a job that is over."""
    made = {
        "job_id": "j1",
        "status": "complete",
        "tenant": None,
        "path": "/v1/chat/completions",
        "model": "m",
        "queued_ms": 100.0,
        "total_ms": 1100.0,
        "events": None,
        "input_tokens": 10,
        "output_tokens": 40,
        "feature": "batch",
        "error": None,
    }
    assert changes.keys() <= made.keys()
    return made | changes


def families(metrics: Metrics, accept: str = TEXT) -> dict[str, Metric]:
    """What is told of these, through the parser of its format."""
    return parsed(Exposition(metrics).prepare(accept), accept)


def parsed(render: Callable[[], tuple[bytes, str]], accept: str = TEXT) -> dict[str, Metric]:
    """A scrape, by the names that samples have."""
    body, kind = render()
    assert kind.startswith(accept.partition(";")[0])
    parse = openmetrics.text_string_to_metric_families if accept == OPEN else text_string_to_metric_families
    found = {}
    for family in parse(body.decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        assert name not in found
        found[name] = family
    return found


def samples(found: Mapping[str, Metric]) -> Series:
    """All values of ours but buckets: by sample and labels that are not empty."""
    return {
        (sample.name, tuple(sorted((k, v) for k, v in sample.labels.items() if v))): sample.value
        for family in found.values()
        for sample in family.samples
        if sample.name.startswith(("slipstream_", "gen_ai_")) and not sample.name.endswith("_bucket")
    }


def moved(before: Series, after: Series) -> dict[str, Any]:
    """What changed, by how much: name -> amount, or (labels, amount) where there are labels. A list where a name
    has several. Sums of histograms are left out."""
    made: dict[str, Any] = {}
    for (name, labels), value in after.items():
        by = value - before.get((name, labels), 0.0)
        if by and not name.endswith("_sum"):
            told = (dict(labels), by) if labels else by
            if name not in made:
                made[name] = told
            else:
                made[name] = [*(made[name] if isinstance(made[name], list) else [made[name]]), told]
    return made
