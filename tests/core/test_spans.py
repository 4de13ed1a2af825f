"""Phases that the code behind a request times itself."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.latency import Trace, record, server_timing
from sidecar.core.spans import MOST, OWN, Spans, span_name
from sidecar.core.types import Timings
from sidecar.serving.visit import heard

TOKEN = frozenset(string.ascii_letters + string.digits + "_.-")


@given(st.text())
def test_every_name_can_stand_in_a_header(name):
    made = span_name(name)
    assert made
    assert set(made) <= TOKEN
    assert made not in OWN
    assert span_name(made) == made


@pytest.mark.parametrize("name", sorted(OWN))
def test_a_phase_of_the_sidecar_s_own_keeps_its_name(name):
    assert span_name(name) == f"app_{name}"


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 50), st.integers(1, 50)), min_size=1, max_size=12
    )
)
def test_a_name_takes_as_long_as_any_of_its_spans_is_open(drawn):
    spans = Spans()
    seconds: dict[str, set[int]] = {}
    for name, begun, lasted in drawn:
        spans.begin(name, begun + 1.0).ended = begun + lasted + 1.0
        seconds.setdefault(name, set()).update(range(begun, begun + lasted))
    assert spans.seconds(1e6) == {name: len(each) for name, each in seconds.items()} == spans.over()


def test_what_is_open_has_lasted_until_now_and_is_not_over():
    spans = Spans()
    spans.begin("a", 1.0).ended = 2.0
    open_ = spans.begin("a", 1.5)
    spans.begin("b", 2.0).ended = 4.0
    assert spans.seconds(5.0) == {"a": 4.0, "b": 2.0}
    assert spans.over() == {"b": 2.0}
    open_.ended = 3.0
    assert spans.over() == {"a": 2.0, "b": 2.0}


def test_a_loop_of_spans_is_bounded():
    spans = Spans()
    for number in range(MOST + 5):
        spans.begin(str(number), 1.0).ended = 2.0
    assert len(spans.over()) == MOST


def test_they_are_in_the_line_and_in_server_timing():
    trace = Trace.begin("POST")
    begun = trace.started
    trace.timings = Timings(begun, begun, begun, begun + 0.2)
    trace.spans = Spans()
    trace.spans.begin("retrieval", begun).ended = begun + 0.125
    trace.spans.begin(span_name("search"), begun)
    assert b", retrieval;dur=125.000" in server_timing(trace)
    assert b"app_search" not in server_timing(trace)
    phases = record(trace, heard(None, 0), begun + 0.5)["phases"]
    assert phases["retrieval_ms"] == 125.0
    assert phases["app_search_ms"] == 500.0
    assert phases["search_ms"] is None
