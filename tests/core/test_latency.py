"""sidecar.core.latency: the latency line, its percentiles, and whose trace a request belongs to."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.core.gaps import Gaps
from sidecar.core.latency import Heard, Labels, Trace, record, server_timing, trace_id
from sidecar.core.types import Outcome, Timings

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"

NO_PHASES = dict.fromkeys(
    ["read_ms", "lookup_ms", "embed_ms", "search_ms", "connect_ms", "upstream_ms", "store_ms"]
)


def gaps(*values):
    made = Gaps()
    for value in values:
        made.add(value)
    return made


def trace(**changes):
    return Trace(
        **{
            "request_id": "r",
            "method": "POST",
            "path": "/v1/chat/completions",
            "started": 100.0,
            **changes,
        }
    )


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=300))
@example([float(number) for number in range(100)])
def test_percentiles_are_nearest_rank(values):
    made, ordered = gaps(*values), sorted(values)
    exact = [ordered[math.ceil(share * len(values)) - 1] for share in (0.5, 0.99)]
    assert made.percentiles(0.5, 0.99) == pytest.approx(exact, rel=1e-6, abs=1e-30)
    assert made.longest == max(values)


def test_no_gaps_no_percentiles():
    assert Gaps().percentiles(0.5, 0.99) == [None, None]


@pytest.mark.parametrize("count", [8192, 8193, 20_000, 100_000])
def test_many_gaps_are_thinned_evenly(count):
    made = gaps(*range(count))
    made.add(1e9)
    assert made.longest == 1e9
    assert len(made._kept) <= 8192 + 1
    assert made.percentiles(0.5, 0.99) == pytest.approx([count * 0.5, count * 0.99], rel=2e-3)


FULL = {
    "request_id": "r",
    "trace_id": TRACE,
    "stream_id": "s1",
    "tenant": "t",
    "method": "POST",
    "path": "/v1/chat/completions",
    "upstream": "openai",
    "provider": "openai",
    "operation": "chat",
    "model": "gpt",
    "response_model": "gpt-2026",
    "stream": True,
    "status": 200,
    "outcome": "truncated",
    "close_code": None,
    "cache": "off",
    "cache_kind": None,
    "similarity": None,
    "guard": None,
    "ttfb_ms": 500.0,
    "ttft_ms": 700.0,
    "ttft_kind": "reasoning",
    "tpot_ms": 100.0,
    "itl_p50_ms": 100.0,
    "itl_p99_ms": 400.0,
    "itl_max_ms": 400.0,
    "total_ms": 2000.0,
    # (10 ms to the call + 5 ms to its being written) + 20 ms after the head + 3 ms for the slowest chunk
    "overhead_ms": 38.0,
    "phases": {
        "read_ms": 50.0,
        "lookup_ms": None,
        "embed_ms": None,
        "search_ms": None,
        "connect_ms": 25.0,
        "upstream_ms": 390.0,
        "store_ms": None,
    },
    "tokens_per_second": 11.0,
    "input_tokens": 7,
    "output_tokens": 12,
    "cached_input_tokens": 3,
    "reasoning_tokens": 2,
    "events": 5,
    "bytes": 999,
    "keepalives": 4,
    "resumed_from": None,
    "retries": 1,
    "feature": "search",
    "budget_exceeded": None,
    "error": "upstream_closed",
}


def test_every_field_of_a_full_line():
    given_ = trace(
        trace_id=TRACE,
        tenant="t",
        feature="search",
        labels=Labels("openai", "openai", "chat", "gpt", stream=True),
        stream_id="s1",
        status=200,
        waited=0.05,
        timings=Timings(started=100.06, connected=100.085, sent=100.09, head=100.48, retries=1),
        head_at=100.5,
        delay=0.003,
        keepalives=4,
        outcome=Outcome.TRUNCATED,
        error="upstream_closed",
    )
    heard = Heard(
        response_model="gpt-2026",
        input_tokens=7,
        output_tokens=12,
        cached_input_tokens=3,
        reasoning_tokens=2,
        events=5,
        deltas=4,
        bytes=999,
        first_at=100.7,
        first_kind="reasoning",
        last_at=101.7,
        gaps=gaps(0.1, 0.1, 0.4),
    )
    line = record(given_, heard, 102.0)
    # 12 tokens in a second are 11 steps between the first and the last.
    expected = FULL | {"tpot_ms": 1000 / 11}
    assert list(line) == list(expected)
    assert line.pop("phases") == pytest.approx(expected.pop("phases"))
    assert line == {k: pytest.approx(v, abs=1e-3) if isinstance(v, float) else v for k, v in expected.items()}
    assert server_timing(given_) == b"read;dur=50.000, connect;dur=25.000, upstream;dur=390.000"
    assert server_timing(trace(waited=0.05)) == b"read;dur=50.000"


def test_a_request_that_was_refused_has_no_times_but_its_own():
    line = record(trace(outcome=Outcome.REFUSED), Heard(), 100.001)
    told = {name: value for name, value in line.items() if value is not None}
    assert told == {
        "request_id": "r",
        "method": "POST",
        "path": "/v1/chat/completions",
        "stream": False,
        "outcome": "refused",
        "cache": "off",
        "total_ms": 1.0,
        "phases": {**NO_PHASES, "read_ms": 0.0},
        "events": 0,
        "bytes": 0,
        "keepalives": 0,
        "retries": 0,
    }


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        # What came with the head waited for the head to be written.
        ({"first_at": 100.2, "first_kind": "content", "last_at": 100.2}, {"ttft_ms": 500.0, "tpot_ms": None}),
        # Without usage, deltas stand for tokens, and no rate is claimed.
        (
            {"first_at": 101, "first_kind": "content", "last_at": 102, "events": 9, "deltas": 5},
            {"ttft_ms": 1000.0, "tpot_ms": 250.0, "tokens_per_second": None},
        ),
        # With it, they do not; the first token only marks the beginning.
        (
            {"first_at": 101, "first_kind": "tool", "last_at": 102, "output_tokens": 9, "deltas": 2},
            {"tpot_ms": 125.0, "tokens_per_second": 8.0},
        ),
        ({"output_tokens": 9}, {"ttft_ms": None, "tpot_ms": None, "tokens_per_second": None}),
        # A single delta has no duration, whatever the provider counted in it.
        (
            {"first_at": 101, "first_kind": "tool", "last_at": 101, "output_tokens": 9, "deltas": 1},
            {"ttft_ms": 1000.0, "tpot_ms": None, "tokens_per_second": None},
        ),
        # Nor have two that came together.
        (
            {"first_at": 101, "first_kind": "tool", "last_at": 101, "output_tokens": 9, "deltas": 2},
            {"tpot_ms": None, "tokens_per_second": None},
        ),
        (
            {"first_at": 101, "first_kind": "tool", "last_at": 102, "output_tokens": 1, "deltas": 2},
            {"tpot_ms": None, "tokens_per_second": None},
        ),
        (
            {"first_at": 101, "first_kind": "tool", "last_at": 102, "output_tokens": 0, "deltas": 2},
            {"tpot_ms": None, "tokens_per_second": None},
        ),
    ],
)
def test_times_of_tokens(heard, expected):
    line = record(trace(head_at=100.5), Heard(**heard), 103.0)
    assert {name: line[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("timings", "connect", "upstream", "overhead"),
    [
        (None, None, None, None),
        (Timings(), None, None, None),
        # A phase that was not over when the request ended has lasted until then.
        (Timings(started=100.25), 750.0, None, None),
        (Timings(started=100.25, connected=100.5), 250.0, None, None),
        (Timings(started=100.25, connected=100.5, sent=100.625), 250.0, 375.0, 375.0),
        (Timings(started=100.25, connected=100.5, sent=100.625, head=100.75), 250.0, 125.0, 375.0),
    ],
)
def test_phases_say_how_far_the_call_got(timings, connect, upstream, overhead):
    given_ = trace(timings=timings)
    line = record(given_, Heard(), 101.0)
    assert line["phases"] == {**NO_PHASES, "read_ms": 0.0, "connect_ms": connect, "upstream_ms": upstream}
    assert line["overhead_ms"] == overhead
    if timings is None or not timings.head:
        assert server_timing(given_) == b"read;dur=0.000"


@pytest.mark.parametrize(
    ("changes", "overhead"),
    [
        ({"timings": None}, None),
        ({"head_at": 0.0}, 15.0),  # the upstream's head never went out
        ({"waited": 0.01}, 25.0),  # waiting for the client's body is not ours
        ({"waited": 5.0}, 20.0),  # clocks read in an odd order never give less than nothing
        ({"delay": 0.1}, 135.0),
    ],
)
def test_overhead_is_what_the_sidecar_added(changes, overhead):
    timings = Timings(started=100.01, connected=100.1, sent=100.105, head=100.48)
    line = record(trace(**{"timings": timings, "head_at": 100.5, **changes}), Heard(), 101.0)
    assert line["overhead_ms"] == (overhead if overhead is None else pytest.approx(overhead, abs=1e-3))


def test_a_trace_begins_now_with_an_id_of_its_own():
    first, second = Trace.begin("GET"), Trace.begin("GET")
    assert (first.method, first.outcome, first.error) == ("GET", Outcome.COMPLETE, None)
    assert len(first.request_id) == 16
    assert first.request_id != second.request_id
    assert first.started <= second.started


@pytest.mark.parametrize(
    ("traceparent", "expected"),
    [
        (PARENT, TRACE),
        (f"00-{TRACE}-00f067aa0ba902b7-00", TRACE),
        (f"cc-{TRACE}-00f067aa0ba902b7-01-what-the-future-will-be", TRACE),
        (None, None),
        ("", None),
        (TRACE, None),
        (PARENT.upper(), None),
        (PARENT.replace(TRACE, "0" * 32), None),
        (PARENT.replace(TRACE, TRACE[:-1]), None),
        (PARENT.replace(TRACE, TRACE[:-1] + "x"), None),
        (PARENT.replace(TRACE, TRACE[:-1] + "\u00b2"), None),
        ("ff" + PARENT[2:], None),
        (f"zz-{TRACE}-00f067aa0ba902b7-01", None),
        (f"00-{TRACE}-0000000000000000-01", None),
        (f"00-{TRACE}-00f067aa0ba902bz-01", None),
        (f"00-{TRACE}-00f067aa0ba902b7-0", None),
        (f"00-{TRACE}-00f067aa0ba902b7-zz", None),
        (f"00-{TRACE}-00f067aa0ba902b7-01-more", None),  # W3C Trace Context, 3.2.2: version 00 ends here
    ],
)
def test_trace_id_of_a_valid_traceparent_only(traceparent, expected):
    given_ = None if traceparent is None else traceparent.encode("latin-1")
    assert trace_id(given_) == expected
