"""sidecar.telemetry.meter: what becomes of each line, and alarms as the log tells them."""

import copy
from types import SimpleNamespace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.latency import NOTHING, Aside
from sidecar.core.types import Outcome
from sidecar.tables import Budget, Config, Metrics
from sidecar.telemetry.counting import error_type
from sidecar.telemetry.log import make_logger
from sidecar.telemetry.meter import ERRORS, RECENT, Meter
from tests.telemetry.lines_rig import OPEN, PLACES, TEXT, call, families, gaps, job, line, samples
from tests.telemetry.test_window import Clock

BUDGETS = {"chat": Budget(500, 5000), "batch": Budget(None, 600.0)}
OVER, WITHIN = {"ttft_ms": 900.0}, {"ttft_ms": 100.0}


class Sink:
    def __init__(self):
        self.lines = []

    def write(self, data):
        told = orjson.loads(data)
        del told["timestamp"]
        self.lines.append(told)


class Rig:
    """A meter, and what came of it."""

    def __init__(self, write=None, **changes):
        self.clock, self.sink, self.written, self.faults = Clock(), Sink(), [], []
        config = Config(budgets=changes.pop("budgets", BUDGETS), **changes)
        log = make_logger(self.sink, "json", "info")
        write = write or (lambda made: self.written.append(copy.deepcopy(made)))
        self.meter = Meter(config, write, log, self.faults.append, PLACES, self.clock)

    def take(self, number=1, aside=NOTHING, **changes):
        for _ in range(number):
            self.meter.take(line(**changes), aside)
        assert not self.faults

    def said(self):
        self.meter.watch()
        found, self.sink.lines[:] = list(self.sink.lines), []
        return found


def test_a_line_is_written_with_its_budget_and_kept():
    rig = Rig()
    rig.take(ttft_ms=612.3, upstream_ms=600.0, ttfb_ms=610.0)
    (written,) = rig.written
    assert written["budget_exceeded"] == {
        "budget": "chat",
        "ttft_ms": 112.3,
        "total_ms": None,
        "phase": "upstream",
    }
    assert list(rig.meter.recent) == [written]
    assert rig.meter.taken == 1
    assert rig.meter.prepare("1m", series=False)()["total"]["requests"] == 1
    rig.take()
    assert rig.written[1]["budget_exceeded"] is None


def test_budgets_are_counted():
    rig = Rig()
    rig.take(3)
    rig.take(2, ttft_ms=900.0, total_ms=6000.0)
    rig.take(feature="search")
    rig.take(outcome="cancelled", ttft_ms=None)  # at 1000 ms: too late for a first token, not for the end
    found = {
        tuple(value for _, value in labels): count
        for (name, labels), count in samples(families(rig.meter.metrics)).items()
        if name == "slipstream_budget_requests_total"
    }
    assert found == {
        ("ttft_ms", "chat", "within"): 3,
        ("ttft_ms", "chat", "over"): 3,
        ("total_ms", "chat", "within"): 3,
        ("total_ms", "chat", "over"): 2,
    }
    told = {(one["feature"], one["budget"]): one for one in rig.meter.budget_rates()}
    assert list(told) == [("chat", "ttft_ms"), ("chat", "total_ms"), ("batch", "total_ms")]
    first = told["chat", "ttft_ms"]
    assert (first["target_ms"], first["alert"]) == (500, False)
    assert list(first["windows"]) == ["1m", "5m", "60m"]
    for rates in first["windows"].values():
        assert (rates["requests"], rates["over"], rates["burn"]) == (6, 3, 10.0)
        assert rates["p95_ms"] == pytest.approx(1000.0, rel=0.01)
    nothing = {"requests": 0, "over": 0, "burn": None, "p95_ms": None}
    assert told["batch", "total_ms"]["windows"] == dict.fromkeys(["1m", "5m", "60m"], nothing)


def test_an_alarm_in_the_log_and_its_end():
    rig = Rig()
    rig.take(9, **OVER)
    assert rig.said() == []
    rig.take(**OVER)
    (burning,) = rig.said()
    p95 = burning.pop("p95_ms")
    assert burning == {
        "level": "warning",
        "event": "budget_burning",
        "feature": "chat",
        "budget": "ttft_ms",
        "target_ms": 500.0,
        "burn": 20.0,
        "requests": 10,
    }
    assert p95 == pytest.approx(900.0, rel=0.01)
    assert rig.said() == []
    assert [one["alert"] for one in rig.meter.budget_rates()] == [True, False, False]
    rig.clock.now += 60.0
    rig.take(40, **WITHIN)
    assert rig.said() == []  # 10 of 50 within five minutes
    rig.clock.now += 240.0
    rig.take(5, **WITHIN)
    (recovered,) = rig.said()
    assert (recovered.pop("p95_ms"), recovered) == (
        pytest.approx(100.0, rel=0.01),
        {
            "level": "info",
            "event": "budget_recovered",
            "feature": "chat",
            "budget": "ttft_ms",
            "target_ms": 500.0,
            "burn": 0.0,
            "requests": 45,
        },
    )
    assert rig.said() == []
    assert not any(one["alert"] for one in rig.meter.budget_rates())


def test_jobs_are_held_against_the_budget_of_their_feature():
    rig = Rig()
    rig.meter.take_job(job(total_ms=1100.0))
    rig.meter.take_job(job(total_ms=500.0))
    rig.meter.take_job(job(status="failed", error="upstream_closed", total_ms=500.0))
    rig.meter.take_job(job(status="failed", error="upstream_closed", total_ms=700.0))
    rig.meter.take_job(job(status="cancelled", error="stopped", total_ms=None))
    rig.meter.take_job(job(feature="chat", total_ms=6000.0))
    rig.meter.take_job(job(feature="unheard"))
    assert not rig.faults
    told = {(one["feature"], one["budget"]): one["windows"]["5m"] for one in rig.meter.budget_rates()}
    assert [(one["requests"], one["over"]) for one in told.values()] == [(0, 0), (1, 1), (3, 2)]
    assert rig.meter.prepare("5m", series=False)()["total"]["requests"] == 0


def test_what_is_remembered_is_bounded():
    rig = Rig()
    for number in range(RECENT + 50):
        rig.take(request_id=f"r{number}", outcome="refused" if number % 2 else "complete")
    assert [made["request_id"] for made in rig.meter.recent] == [f"r{n}" for n in range(RECENT + 49, 49, -1)]
    errors = list(rig.meter.errors)
    assert len(errors) == ERRORS
    assert errors[0]["request_id"] == f"r{RECENT + 49}"
    assert rig.meter.taken == RECENT + 50


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize("status", [None, 200, 404])
def test_what_ended_badly_is_an_error_and_what_was_given_up_is_not(outcome, status):
    rig = Rig()
    rig.take(outcome=outcome.value, status=status)
    bad = outcome is not Outcome.CANCELLED and (outcome is not Outcome.COMPLETE or status == 404)
    assert (
        bool([*rig.meter.errors])
        == bad
        == (error_type(line(outcome=outcome.value, status=status)) is not None)
    )


def test_what_hits_saved():
    rig = Rig()
    hit = {"cache": "hit", "cache_kind": "exact", "total_ms": 5.0}
    for _ in range(2):
        rig.take(aside=Aside(saved=2.0), **hit)
    rig.take(aside=Aside(saved=0.001), **(hit | {"input_tokens": None, "output_tokens": None}))
    rig.take(**(hit | {"cache_kind": "stale"}))
    rig.take()
    assert rig.meter.saved == {
        "saved_seconds": pytest.approx(3.99),
        "saved_input_tokens": 20,
        "saved_output_tokens": 80,
    }
    total = rig.meter.prepare("1m", series=False)()["total"]
    assert (total["saved_seconds"], total["saved_tokens"]) == (3.99, 100)


def test_with_metrics_off_there_are_only_lines():
    rig = Rig(metrics=Metrics(enabled=False))
    rig.take(20, **OVER)
    rig.meter.take_job(job())
    rig.meter.take_call(lambda: pytest.fail("nobody wants to know"))
    assert not rig.faults
    assert len(rig.written) == 20
    assert {made["budget_exceeded"]["ttft_ms"] for made in rig.written} == {400.0}
    assert rig.said() == []
    assert (rig.meter.taken, list(rig.meter.recent), list(rig.meter.errors)) == (0, [], [])
    assert rig.meter.prepare("60m", series=True)()["series"] == []
    assert not any(samples(families(rig.meter.metrics)).values())
    assert not any(one["windows"]["5m"]["requests"] for one in rig.meter.budget_rates())


def test_spans_are_told_when_a_request_began(monkeypatch):
    monkeypatch.setattr("sidecar.telemetry.meter.time", SimpleNamespace(time=lambda: 1000.0))
    rig, told = Rig(), []
    rig.meter.span = lambda made, began, parent: told.append((made["request_id"], began, parent))
    rig.take(aside=Aside(parent=b"00-x"), request_id="r7", total_ms=5000.0)
    rig.take(request_id="r8", total_ms=2000.0)
    assert told == [("r7", 995.0, b"00-x"), ("r8", 998.0, None)]


def test_a_mistake_of_ours_is_told_and_not_raised():
    broken = OSError("the pipe is gone")

    def write(_line):
        raise broken

    rig = Rig(write)
    rig.meter.take(line(), NOTHING)
    rig.meter.take({}, NOTHING)
    rig.meter.take_job({})
    assert rig.faults[0] is broken
    assert [type(fault) for fault in rig.faults[1:]] == [KeyError, KeyError]
    assert rig.meter.taken == 0


CALLS = "slipstream_upstream_calls_total"


def test_calls_are_counted_when_somebody_looks():
    rig = Rig()
    for made in (call(), call(error="503"), None, call(upstream="b")):
        rig.meter.take_call(lambda made=made: made)
    found = samples(families(rig.meter.metrics))
    assert {labels: n for (name, labels), n in found.items() if name == CALLS} == {
        (("upstream", "a"),): 2,
        (("upstream", "b"),): 1,
    }
    assert samples(families(rig.meter.metrics)) == found
    assert not rig.faults
    assert (rig.written, rig.meter.taken) == ([], 0)


def test_a_call_that_cannot_be_counted_costs_no_other():
    rig, broken = Rig(), ValueError("no such call")

    def make():
        raise broken

    rig.meter.take_call(make)
    assert rig.faults == [broken]
    rig.meter.take_call(call)
    rig.meter.take_call(lambda: "no call")
    rig.meter.take_call(call)
    rig.meter.take(line())
    assert samples(families(rig.meter.metrics))[CALLS, (("upstream", "a"),)] == 2
    assert rig.meter.taken == 1
    assert [type(fault) for fault in rig.faults] == [ValueError, AttributeError]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 5.0, 10.0, 60.0, 300.0, 3600.0, 3620.0]),
            st.sampled_from([0.0, 0.001, 2.0]),
            st.sampled_from([None, 0, 7]),
        ),
        max_size=40,
    )
)
def test_taking_and_looking_never_fail_whatever_the_time(steps):
    """What a hit saved may be nothing, and nothing may be told of its tokens."""
    rig = Rig()
    for advance, saved, tokens in steps:
        rig.clock.now += advance
        rig.take(
            aside=Aside(saved=saved), cache="hit", cache_kind="exact", total_ms=5.0, output_tokens=tokens
        )
        rig.meter.watch()
        for window in ("1m", "5m", "60m"):
            assert rig.meter.prepare(window, series=True)()["total"]["requests"] >= 1
    assert rig.meter.taken == len(steps)


# FAULTS 49.

PLANTED = "planted"


@pytest.mark.parametrize("accept", [TEXT, OPEN])
def test_no_prompt_credential_or_query_is_in_a_metric(accept):
    """49: whatever stands in the fields of a line that are no labels."""
    rig = Rig()
    secret = dict.fromkeys(["request_id", "trace_id", "stream_id", "tenant", "guard"], PLANTED)
    for outcome in Outcome:
        rig.take(
            outcome=outcome.value,
            aside=Aside(saved=1.0, parent=PLANTED.encode(), gaps=gaps(0.1)),
            path=f"/v1/{PLANTED}",
            **secret,
        )
    rig.meter.take_job(job(job_id=PLANTED, tenant=PLANTED, path=PLANTED))
    rig.meter.take_call(call)
    found = families(rig.meter.metrics, accept)
    told = [
        value for family in found.values() for sample in family.samples for value in sample.labels.values()
    ]
    assert "api.a.test" in told
    assert not [value for value in told if PLANTED in value]
    assert PLANTED not in str([rig.meter.prepare("5m", series=True)(), rig.meter.budget_rates()])


def test_names_that_clients_make_up_push_out_nobody():
    """In the figures of the last hour, too."""
    rig = Rig()
    for number in range(500):
        refused = {"status": 404, "outcome": "complete", "response_model": None}
        rig.meter.take(line(model=f"made-up-{number}", feature=f"made-up-{number}", **refused))
    rig.meter.take(line(model="real", feature="chat", upstream="openai", cache="miss"))
    told = rig.meter.prepare("60m", series=False)()
    assert told["model"]["real"]["requests"] == told["feature"]["chat"]["requests"] == 1
    assert told["total"]["requests"] == 501
    assert len(told["model"]) <= 52
