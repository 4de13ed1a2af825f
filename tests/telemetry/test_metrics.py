"""sidecar.telemetry.metrics: what a scrape gets, read with prometheus_client's own parsers."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from sidecar.telemetry import metrics as metrics_module
from sidecar.telemetry.families import BY_NAME, FAMILIES
from sidecar.telemetry.metrics import NAMES, Exposition, Metrics, Names, form
from sidecar.telemetry.scale import tally
from sidecar.telemetry.window import OTHER
from tests.telemetry.lines_rig import OPEN, TEXT, families, samples

BOTH = pytest.mark.parametrize("accept", [TEXT, OPEN])
HISTOGRAMS = [family for family in FAMILIES if family.kind == "histogram"]
SUFFIXES = {
    "counter": {"_total"},
    "gauge": {""},
    "histogram": {"_bucket", "_count", "_sum"},
}


def full():
    """One series of each."""
    metrics, gauges = Metrics(), []
    for number, family in enumerate(FAMILIES, 1):
        labels = tuple([f"{label}-{number}" for label in family.labels])
        if family.kind == "counter":
            metrics.count(family.name, labels, number)
        elif family.kind == "gauge":
            gauges.append((family.name, labels, float(number)))
        elif family.name.endswith("_seconds"):
            metrics.observe(family.name, labels, 1000.0 * number)
        else:
            metrics.observe_count(family.name, labels, number)
    metrics.read_from(lambda: gauges)
    return metrics


@BOTH
@pytest.mark.parametrize("make", [Metrics, full])
def test_every_family_is_told_with_its_type_and_help(make, accept):
    found = families(make(), accept)
    ours = [name for name in found if name.startswith(("slipstream_", "gen_ai_"))]
    assert ours == [family.name for family in FAMILIES]
    for family in FAMILIES:
        told = found[family.name]
        assert (told.type, told.documentation) == (family.kind, family.help)
    assert found["process_cpu_seconds_total"].samples[0].value >= 0


@BOTH
def test_every_family_has_its_labels_and_value(accept):
    found = families(full(), accept)
    for number, family in enumerate(FAMILIES, 1):
        told = found[family.name].samples
        expected = {label: f"{label}-{number}" for label in family.labels}
        assert {sample.name.removeprefix(family.name.removesuffix("_total")) for sample in told} == SUFFIXES[
            family.kind
        ]
        for sample in told:
            assert {name: value for name, value in sample.labels.items() if name != "le"} == expected
        value = next(sample for sample in told if sample.name.endswith(("_sum", "_total", family.name)))
        assert value.value == pytest.approx(number)


@BOTH
def test_before_any_traffic_counters_without_labels_are_zero_and_nothing_else_is_there(accept):
    """An alert on a counter that appears with its first event would miss that event."""
    expected = {
        (family.name, ()): 0.0 for family in FAMILIES if family.kind == "counter" and not family.labels
    }
    assert samples(families(Metrics(), accept)) == expected


@BOTH
@pytest.mark.parametrize("name", [family.name for family in HISTOGRAMS])
@settings(max_examples=30)
@given(
    values=st.lists(st.floats(0, 1e7) | st.sampled_from([1.25, 10.0, 20.0, 1024.0]), min_size=1, max_size=40)
)
@example(values=[10.0])
def test_histograms_are_exact_and_in_order(name, accept, values):
    family, metrics = BY_NAME[name], Metrics()
    labels = tuple(["x"] * len(family.labels))
    seconds = name.endswith("_seconds")
    values = values if seconds else [int(value) for value in values]
    for value in values:
        (metrics.observe if seconds else metrics.observe_count)(name, labels, value)
    in_unit = [value / 1000 for value in values] if seconds else values
    told = families(metrics, accept)[name].samples
    buckets = {float(sample.labels["le"]): sample.value for sample in told if sample.name == name + "_bucket"}
    assert list(buckets) == [*family.bounds, math.inf]
    assert list(buckets.values()) == sorted(buckets.values())
    assert buckets == {edge: sum(value <= edge for value in in_unit) for edge in buckets}
    (count,) = [sample.value for sample in told if sample.name == name + "_count"]
    (total,) = [sample.value for sample in told if sample.name == name + "_sum"]
    assert buckets[math.inf] == count == len(values)
    assert total == pytest.approx(math.fsum(in_unit), rel=1e-9, abs=1e-12)


def test_many_values_at_once_are_as_many_one_by_one():
    name, labels = "gen_ai_client_time_per_output_chunk_seconds", tuple("abcdef")
    one, other = Metrics(), Metrics()
    values = [0.5, 3.0, 10.0, 10.1, 9000.0, 1e6]
    for value in values:
        for _ in range(4):
            one.observe(name, labels, value)
    other.observe_cells(name, labels, tally(values, 4).items(), sum(values) * 4 / 1000)
    assert families(one)[name].samples == [
        sample._replace(value=pytest.approx(sample.value)) for sample in families(other)[name].samples
    ]


HARD = [
    'quo"te',
    "back\\slash",
    "new\nline",
    "\\n",
    '\\"',
    "\r",
    "tab\t",
    "",
    " ",
    "{}",
    'a="b",c="d"',
    "# EOF",
    "你好 🌊",
    "\u2028",
]


@BOTH
@pytest.mark.parametrize("value", HARD, ids=ascii)
def test_hard_label_values_survive(value, accept):
    metrics = Metrics()
    metrics.count("slipstream_upstream_errors_total", (value, "502"), 3)
    metrics.observe("slipstream_overhead_seconds", (value, "hit"), 5.0)
    found = families(metrics, accept)
    (counted,) = found["slipstream_upstream_errors_total"].samples
    assert (counted.labels, counted.value) == ({"upstream": value, "error_type": "502"}, 3)
    assert {sample.labels["upstream"] for sample in found["slipstream_overhead_seconds"].samples} == {value}


def test_the_51st_model_is_other():
    names = Names()
    assert [names.get(f"m{number}", good=True) for number in range(NAMES)] == [f"m{n}" for n in range(50)]
    assert names.get("m50", good=True) == OTHER
    assert names.get("m49", good=False) == "m49"
    assert names.get(None, good=True) == ""


def test_names_of_nothing_good_take_half_of_the_room():
    names = Names(4)
    made_up = [f"made-up-{number}" for number in range(1000)]
    assert [names.get(name, good=False) for name in made_up] == made_up[:2] + [OTHER] * 998
    assert names.get("real", good=True) == "real"
    assert names.get("real", good=False) == "real"
    assert (names.get("second", good=True), names.get("third", good=True)) == ("second", OTHER)
    assert (names.get(None, good=False), names.get("", good=False)) == ("", OTHER)


@pytest.mark.parametrize(("kind", "most"), [("counter", 1000), ("histogram", 200)])
def test_one_series_too_many_is_other_and_the_counts_are_whole(kind, most):
    metrics = Metrics()
    for number in range(1500):
        for _ in range(2):
            if kind == "counter":
                metrics.count("slipstream_upstream_errors_total", (f"u{number}", "502"))
            else:
                metrics.observe("slipstream_overhead_seconds", (f"u{number}", "hit"), 1.0)
    name = "slipstream_upstream_errors_total" if kind == "counter" else "slipstream_overhead_seconds"
    rest = "_total" if kind == "counter" else "_count"
    told = [sample for sample in families(metrics)[name].samples if sample.name.endswith(rest)]
    assert len(told) == most + 1
    assert sum(sample.value for sample in told) == 3000
    by_name = {sample.labels["upstream"]: sample for sample in told}
    assert by_name[OTHER].value == (1500 - most) * 2
    assert set(by_name[OTHER].labels.values()) == {OTHER}
    assert by_name[f"u{most - 1}"].value == 2


def test_a_scrape_tells_what_was_counted_when_it_was_asked_for():
    metrics = Metrics()
    read = []

    def source():
        read.append(1)
        yield "slipstream_active_requests", (), float(len(read))
        yield "slipstream_faults_total", (), 7

    metrics.read_from(source)
    metrics.count("slipstream_keepalives_total", (), 2)
    metrics.observe("slipstream_event_loop_lag_seconds", (), 1.0)
    render = Exposition(metrics).prepare(TEXT)
    metrics.count("slipstream_keepalives_total", (), 5)
    metrics.observe("slipstream_event_loop_lag_seconds", (), 1.0)
    body, kind = render()
    assert kind.startswith("text/plain")
    told = {
        sample.name: sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    assert told["slipstream_keepalives_total"] == 2
    assert told["slipstream_event_loop_lag_seconds_count"] == 1
    assert told["slipstream_active_requests"] == 1
    assert told["slipstream_faults_total"] == 7
    assert len(read) == 1


def test_on_the_event_loop_counts_are_copied_and_nothing_is_made_of_them(monkeypatch):
    made = []

    def kept(kind):
        return lambda *arguments, **more: made.append(kind) or kind(*arguments, **more)

    for kind in (CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily):
        monkeypatch.setattr(metrics_module, kind.__name__, kept(kind))
    prepared = full().prepare()
    assert made == []
    assert [family.type for family in prepared()] == [family.kind for family in FAMILIES]
    assert len(made) == len(FAMILIES)


def test_all_at_once_is_what_the_two_steps_make():
    metrics = full()
    assert metrics.snapshot() == metrics.prepare()() == list(metrics.collect())


def test_there_are_few_forms_whatever_is_asked_for():
    """Each may be kept for a while."""
    names = ["text/plain", "application/openmetrics-text", "*/*", "text/html", ""]
    versions = ["0.0.1", "0.0.4", *[f"{major}.{minor}.0" for major in range(1, 30) for minor in range(5)]]
    versions += ["x", "1.x", "", "-1", "1..0", "9" * 5000]
    escapings = ["underscores", "allow-utf-8", "dots", "values", "x"]
    kinds = {
        form(f"{name};version={version};escaping={escaping}")[1]
        for name in names
        for version in versions
        for escaping in escapings
    }
    assert form("")[1] in kinds and form(OPEN)[1] in kinds
    assert len(kinds) <= 10


def test_a_counter_may_be_kept_elsewhere_and_here():
    metrics = Metrics()
    metrics.count("slipstream_store_failures_total", ("store",), 2)
    metrics.read_from(lambda: [("slipstream_store_failures_total", ("lookup",), 3)])
    found = samples(families(metrics))
    assert found["slipstream_store_failures_total", (("operation", "store"),)] == 2
    assert found["slipstream_store_failures_total", (("operation", "lookup"),)] == 3
