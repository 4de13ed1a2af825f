"""The Grafana dashboard and the alert rules name what there is, in expressions that can have a result."""

import itertools
import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, ProcessCollector

from sidecar.core.errors import KINDS
from sidecar.core.types import Outcome
from sidecar.telemetry.budgets import KINDS as BUDGETS
from sidecar.telemetry.families import BY_NAME, FAMILIES
from sidecar.telemetry.window import SPANS
from tests.telemetry.promql_rig import Metric, Reading

FOLDER = Path(__file__).resolve().parents[2] / "monitoring"
NOT_SHOWN: dict[str, str] = {}
"""Families that the dashboard may leave out, and why."""
VALUES = {
    "outcome": frozenset(Outcome),
    "cache": frozenset({"hit", "miss", "bypass", "collapsed", "off"}),
    "result": frozenset({"hit", "miss", "bypass", "collapsed", "off"}),
    "window": frozenset(SPANS),
    "budget": frozenset(BUDGETS),
    "gen_ai_token_type": frozenset({"input", "output"}),
}
"""Labels whose values are a closed list."""
FAULTS = frozenset(KINDS) | {str(status) for status in range(400, 600)}
ITS_OWN = {
    "slipstream_refused_total": {"kind": frozenset(KINDS)},
    "slipstream_upstream_errors_total": {"error_type": FAULTS},
    "slipstream_semantic_checked_total": {"verdict": frozenset({"right", "wrong", "unknown"})},
    "slipstream_resumes_total": {},
}
"""Where a label has other values, or any."""
REFERENCE = re.compile(r"\{\{\s*\$?(?:labels\.)?([A-Za-z_]\w*)")


def known() -> dict[str, Metric]:
    """All that a scrape finds: ours, the process's, and what Prometheus itself says of a target."""
    found = {"up": Metric("gauge")}
    for family in FAMILIES:
        values = {label: VALUES[label] for label in family.labels if label in VALUES}
        values = ITS_OWN.get(family.name, values)
        found[family.name] = Metric(family.kind, frozenset(family.labels), values)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    for family in registry.collect():
        suffix = "_total" if family.type == "counter" else ""
        found[family.name + suffix] = Metric(family.type)
    return found


METRICS = known()
DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text(encoding="utf-8"))
PANELS = DASHBOARD["panels"]
RULES = yaml.safe_load((FOLDER / "prometheus-rules.yml").read_text(encoding="utf-8"))
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
TARGETS = [(panel, target) for panel in PANELS for target in panel.get("targets", [])]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}


def complaints(expression: str, *texts: str) -> list[str]:
    """What is wrong with an expression, and with the texts that mention its result's labels."""
    reading = Reading(expression, METRICS)
    there = reading.labels or frozenset()
    mentioned = {label for text in texts for label in REFERENCE.findall(text)} - {"value"}
    return reading.complaints + [f"{{{{{label}}}}}: not in the result" for label in sorted(mentioned - there)]


@pytest.mark.parametrize(("panel", "target"), TARGETS, ids=lambda one: one.get("title") or one["refId"])
def test_a_panel_asks_for_what_there_is(panel, target):
    assert complaints(target["expr"], target["legendFormat"]) == []


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_asks_for_what_there_is(alert):
    assert complaints(alert["expr"], *alert["annotations"].values(), *alert["labels"].values()) == []
    assert "$" not in re.sub(r"\{\{.*?\}\}", "", alert["expr"]), "Prometheus has no variables"


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("sum(rate(slipstream_requets_total[5m]))", "slipstream_requets_total: no such metric"),
        (
            'sum(rate(slipstream_requests_total{feature="chat"}[5m]))',
            "slipstream_requests_total: no label feature",
        ),
        ("sum by (phase) (rate(slipstream_requests_total[5m]))", "by (phase): no such label there"),
        (
            'rate(slipstream_requests_total{outcome=~"truncated|timed_out"}[5m])',
            "slipstream_requests_total: outcome is never timed_out",
        ),
        ("rate(slipstream_active_requests[5m])", "slipstream_active_requests: a gauge inside rate"),
        ("sum(slipstream_requests_total)", "slipstream_requests_total: a counter outside rate and increase"),
        (
            "changes(slipstream_requests_total[5m])",
            "slipstream_requests_total: a counter outside rate and increase",
        ),
        ("process_cpu_seconds_total", "process_cpu_seconds_total: a counter outside rate and increase"),
        (
            "slipstream_overhead_seconds_sum",
            "slipstream_overhead_seconds_sum: a counter outside rate and increase",
        ),
        (
            "rate(slipstream_overhead_seconds[5m])",
            "slipstream_overhead_seconds: a histogram needs _bucket, _sum or _count",
        ),
        ("slipstream_active_requests_bucket", "slipstream_active_requests_bucket: no such metric"),
        (
            "histogram_quantile(0.9, sum by (upstream) (rate(slipstream_overhead_seconds_bucket[5m])))",
            "a quantile without le",
        ),
        (
            "sum by (upstream) (rate(slipstream_stalls_total[5m])) / sum(rate(slipstream_requests_total[5m]))",
            "the sides of / never match: upstream",
        ),
        (
            'slipstream_budget_burn_rate{window="5m"} and on (feature, widow) slipstream_budget_burn_rate',
            "on (widow): no such label there",
        ),
        ("slipstream_ready and slipstream_info", "the sides of and never match: version"),
        (
            "slipstream_active_requests[5m]",
            "slipstream_active_requests: a range belongs inside a function, and only there",
        ),
        (
            "rate(slipstream_faults_total)",
            "slipstream_faults_total: a range belongs inside a function, and only there",
        ),
        ("irate(slipstream_faults_total[5m])", "irate: unknown function"),
        ("sum(slipstream_ready", "expected ')', not ''"),
        ("slipstream_ready) > 0", "cannot read on at ')'"),
        ("slipstream_ready > ", "expected an expression, not ''"),
        ("slipstream_ready ? 1", "cannot read '? 1'"),
        ("{{upstream}} slipstream_ready", "expected an expression, not '{'"),
    ],
)
def test_a_mistake_is_found(expression, complaint):
    assert complaint in complaints(expression)


def test_a_label_that_the_result_lacks_is_found():
    expression = "sum by (upstream) (rate(slipstream_requests_total[5m]))"
    assert complaints(expression, "{{upstream}}", "{{ $labels.upstream }}: {{ $value | humanize }}") == []
    assert complaints(expression, "{{model}}") == ["{{model}}: not in the result"]
    assert complaints(expression, "{{ $labels.model }}") == ["{{model}}: not in the result"]


@pytest.mark.parametrize(
    ("expression", "labels"),
    [
        ("slipstream_ready", {"job", "instance"}),
        ("sum(slipstream_ready) or vector(0)", set()),
        ("sum by (job) (rate(slipstream_stalls_total[5m])) / 2 > 0.1", {"job"}),
        ("slipstream_jobs / on (job, instance) slipstream_ready", {"job", "instance"}),
        ("slipstream_jobs / on (job, instance) group_left () slipstream_ready", {"job", "instance", "state"}),
        (
            "slipstream_jobs * on (job, instance) group_left (version) slipstream_info",
            {"job", "instance", "state", "version"},
        ),
        ("slipstream_jobs and on (job, instance) slipstream_ready == 1", {"job", "instance", "state"}),
        ("absent(slipstream_ready) unless on () up == 0", set()),
        ("time() - process_start_time_seconds", {"job", "instance"}),
        (
            "histogram_quantile(0.9, sum by (le, job) (rate(slipstream_overhead_seconds_bucket[5m])))",
            {"job"},
        ),
    ],
)
def test_the_labels_of_a_result_are_worked_out(expression, labels):
    reading = Reading(expression, METRICS)
    assert (reading.complaints, reading.labels) == ([], labels)


def used(expressions: list[str]) -> set[str]:
    """The families that are named in some of these."""
    names = set().union(*[Reading(expression, METRICS).used for expression in expressions])
    return names | {re.sub(r"_(?:bucket|sum|count)$", "", name) for name in names}


def test_the_dashboard_shows_every_family():
    missing = set(BY_NAME) - used([target["expr"] for _, target in TARGETS])
    assert missing == set(NOT_SHOWN)


def test_shares_of_upstream_errors_are_shares_of_calls():
    """Requests are the wrong whole: jobs call as well, and a stale answer makes a hit of a failed call."""
    part = "slipstream_upstream_errors_total"
    asked = [(alert["alert"], alert["expr"]) for alert in ALERTS]
    asked += [(panel["title"], target["expr"]) for panel, target in TARGETS]
    shares = {name: used([text]) for name, text in asked if part in text and "/" in text}
    assert set(shares) == {
        "SlipstreamUpstreamErrors",
        "SlipstreamUpstreamFailing",
        "Upstream error share",
        "Upstream error share by upstream",
    }
    assert all(names == {part, "slipstream_upstream_calls_total"} for names in shares.values())


def test_panels_are_complete_and_lie_side_by_side():
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)
    taken = set()
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24, panel["title"]
        cells = set(
            itertools.product(
                range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
            )
        )
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"] and panel["targets"], panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            references = [target["refId"] for target in panel["targets"]]
            assert len(set(references)) == len(references), panel["title"]
    heights = {panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in PANELS}
    assert len(taken) == 24 * max(heights), "there are holes"


def test_the_data_source_is_the_readers_choice():
    assert VARIABLES["datasource"]["type"] == "datasource"
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    asked = [*[panel for panel in PANELS if panel["type"] != "row"], *[target for _, target in TARGETS]]
    asked += [variable for variable in VARIABLES.values() if variable["type"] == "query"]
    asked += [one for one in DASHBOARD["annotations"]["list"] if "expr" in one]
    assert all(one["datasource"] == chosen for one in asked)
    assert DASHBOARD["id"] is None


def test_variables_are_filled_from_what_there_is_and_all_are_used():
    texts = json.dumps([target["expr"] for _, target in TARGETS])
    queries = [variable for variable in VARIABLES.values() if variable["type"] == "query"]
    filled = [variable["query"]["query"] for variable in queries]
    assert filled == [variable["definition"] for variable in queries]
    for query in filled:
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
        assert found is not None, query
        reading = Reading(f"sum by ({found[2]}) (rate({found[1]}[5m]))", METRICS)
        gauge = Reading(f"sum by ({found[2]}) ({found[1]})", METRICS)
        assert [] in (reading.complaints, gauge.complaints), query
    assert {"upstream", "model"} <= set(VARIABLES)
    named = set(re.findall(r"\$(\w+)", texts + json.dumps(filled))) - {"__rate_interval", "__range"}
    assert named == set(VARIABLES) - {"datasource"}


def test_annotations_ask_for_what_there_is():
    marked = [one for one in DASHBOARD["annotations"]["list"] if "expr" in one]
    assert marked
    for one in marked:
        assert complaints(one["expr"], one["textFormat"]) == []


def test_an_alert_says_how_bad_how_long_and_what_to_do():
    assert len({alert["alert"] for alert in ALERTS}) == len(ALERTS)
    for alert in ALERTS:
        assert alert["labels"]["severity"] in {"critical", "warning"}
        assert re.fullmatch(r"\d+[smh]", alert["for"])
        assert alert["annotations"]["summary"] and len(alert["annotations"]["description"]) > 80


def test_the_rules_own_test_has_series_that_there_are_and_every_alert():
    text = (FOLDER / "prometheus-rules.test.yml").read_text(encoding="utf-8")
    assert [alert["alert"] for alert in ALERTS if alert["alert"] not in text] == []
    written = [one["series"] for test in yaml.safe_load(text)["tests"] for one in test["input_series"]]
    assert written
    for one in written:
        name = one.partition("{")[0]
        counter = f"{name}: a counter outside rate and increase"
        assert [said for said in complaints(one) if said != counter] == []


def test_the_readme_knows_every_alert():
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(Slipstream\w+)` \|", readme, re.MULTILINE) == [
        alert["alert"] for alert in ALERTS
    ]
    assert all((FOLDER / name).exists() for name in re.findall(r"\]\(([\w.-]+)\)", readme))
