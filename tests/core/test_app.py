"""An app's own format, and what of its requests counts."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.answer import Answer
from sidecar.core.dialects import APP, by_name, recognise
from sidecar.core.fingerprint import keys
from sidecar.core.folding import fold
from sidecar.core.policy import end_of_body
from sidecar.core.sse import name_of
from sidecar.core.types import Head, Intent, Outcome, Request

SSE = (b"content-type", b"text/event-stream; charset=utf-8")


def read(body, field=SSE):
    """The reading of an answer that came in these bytes."""
    answer = Answer(Request("POST", b"/chat", "/chat", "", (), {}), APP, Intent())
    answer.begin(Head(200, b"", (field,), dict([field])))
    answer.feed(body, 1.0)
    answer.close(1.0)
    return answer


def event(name, data=b"{}"):
    return b"event: " + name + b"\ndata: " + data + b"\n\n"


def test_it_is_known_by_its_name_and_never_by_a_path():
    assert by_name("app") is APP
    assert by_name("no such") is None
    assert recognise("POST", "/chat") is None


@pytest.mark.parametrize("name", [b"status", b"meta", b"done", b"ping", b"citation"])
def test_events_without_content_end_nobody_s_waiting(name):
    answer = read(event(name) + event(b"token", b'{"text":"a"}'))
    assert (answer.events, answer.deltas, answer.first_kind) == (2, 1, "event")


def test_its_own_error_event_is_its_last_word():
    answer = read(event(b"token") + event(b"error", b'{"error":"x"}'))
    assert answer.facts.error == "error"
    assert not answer.at_boundary  # nothing may follow
    end = end_of_body(whole=answer.whole, declared_error=answer.facts.error, status=200)
    assert end.outcome is Outcome.UPSTREAM_ERROR


@pytest.mark.parametrize("body", [b'{"a":1}', b"[1,2]", b'"text"', b" 7"])
def test_any_json_is_an_answer(body):
    answer = read(body, (b"content-type", b"application/json"))
    answer.read_whole(body)
    assert not answer.unreadable


@pytest.mark.parametrize("body", [b"<html>", b'{"a":', b"[1,"])
def test_what_is_no_json_cannot_be_read(body):
    answer = read(body, (b"content-type", b"text/html"))
    answer.read_whole(body)
    assert answer.unreadable


def key(body):
    return keys(b"s" * 32, "app", Request("POST", b"/chat", "/chat", "", (), {}), body, APP, stream=False)


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_bodies_that_are_no_json_count_byte_for_byte(one, other):
    assert key(one) is not None
    if one != other:
        assert key(b"\x00" + one) != key(b"\x00" + other)
    assert key(one).alias is None


def test_json_counts_in_any_order():
    assert key(b'{"a":1,"b":2}') == key(b'{ "b": 2, "a": 1 }') != key(b'{"a":1,"b":3}')


@given(st.sampled_from([b"\n", b"\r", b"\r\n"]), st.sampled_from([b"event: x", b"event:x"]))
def test_an_event_s_name(newline, field):
    assert name_of(newline.join([b"data: event", field, b"id: 1", b"", b""])) == b"x"
    assert name_of(newline.join([b"data: event: y", b": event: z", b"", b""])) == b""
    assert name_of(newline.join([b"event: y", field, b"data: 1", b"", b""])) == b"x"


def test_a_stream_folds_to_what_people_read():
    tokens = [event(b"token", orjson.dumps({"text": text})) for text in ("Hel", "lo ", "you")]
    body = event(b"status", b'{"message":"searching"}') + b"".join(tokens) + event(b"done")
    assert orjson.loads(fold("app", body)) == {"text": "Hello you"}
    assert APP.said({"id": "x", "answer": {"text": "a", "n": 1}, "more": ["b"]}) == (["a", "b"], [])
