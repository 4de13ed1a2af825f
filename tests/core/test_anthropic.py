"""sidecar.core.dialects.anthropic: Messages."""

import pytest

from sidecar.core.types import Intent
from tests.core.asking import dialect_of, read, whole

MESSAGES = dialect_of("/v1/messages")


def start(**usage):
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [],
        "stop_reason": None,
    }
    return {"type": "message_start", "message": {**message, "usage": usage}}


def stop(**usage):
    return {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": usage,
    }


def delta(kind, **fields):
    return {"type": "content_block_delta", "index": 0, "delta": {"type": kind, **fields}}


EVENTS = [
    (delta("text_delta", text="Hi"), "content"),
    (delta("text_delta", text=""), None),
    (delta("thinking_delta", thinking="Hm"), "reasoning"),
    (delta("thinking_delta", thinking=""), None),
    (delta("input_json_delta", partial_json='{"c'), "tool"),
    (delta("input_json_delta", partial_json=""), None),
    (delta("signature_delta", signature="EqQB"), None),
    (delta("citations_delta", citation={"type": "char_location", "cited_text": "x"}), None),
    (delta("delta_of_tomorrow", text="x"), None),
    ({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}, None),
    (
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}},
        },
        None,
    ),
    ({"type": "content_block_stop", "index": 0}, None),
    ({"type": "ping"}, None),
    ({"type": "event_of_tomorrow"}, None),
]


@pytest.mark.parametrize(("event", "kind"), EVENTS)
def test_what_ends_the_wait(event, kind):
    assert read(MESSAGES, event) == ([kind], {})


@pytest.mark.parametrize(
    ("first", "last", "counts"),
    [
        # `input_tokens` leaves out what a cache had or took: all three are input.
        (
            {
                "input_tokens": 10,
                "cache_creation_input_tokens": 5,
                "cache_read_input_tokens": 85,
                "output_tokens": 1,
            },
            {"output_tokens": 42},
            (100, 42, 85),
        ),
        # Cumulative counts replace earlier ones.
        (
            {"input_tokens": 10, "output_tokens": 1},
            {
                "input_tokens": 20,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 30,
                "output_tokens": 42,
            },
            (50, 42, 30),
        ),
        # A count that is left out, or null, is the one given before.
        (
            {
                "input_tokens": 10,
                "cache_creation_input_tokens": 5,
                "cache_read_input_tokens": 85,
                "output_tokens": 1,
            },
            {"input_tokens": 10, "cache_read_input_tokens": None, "output_tokens": 42},
            (100, 42, 85),
        ),
        ({"input_tokens": 10, "output_tokens": 7}, {}, (10, 7, None)),
    ],
)
def test_usage_of_a_stream(first, last, counts):
    kinds, facts = read(
        MESSAGES, start(**first), delta("text_delta", text="Hi"), stop(**last), {"type": "message_stop"}
    )
    assert kinds == [None, "content", None, None]
    assert (facts["input_tokens"], facts["output_tokens"], facts.get("cached_input_tokens")) == counts
    assert (facts["model"], facts["finish"], facts["terminal"]) == ("claude", "end_turn", True)


@pytest.mark.parametrize(
    ("event", "name"),
    [
        (
            {"type": "error", "error": {"type": "overloaded_error", "message": "secret prompt"}},
            "overloaded_error",
        ),
        ({"type": "error"}, "error"),
    ],
)
def test_an_error_inside_the_stream_by_its_name_only(event, name):
    assert read(MESSAGES, event) == ([None], {"error": name})


def test_answers_that_are_no_stream():
    usage = {
        "input_tokens": 1,
        "cache_read_input_tokens": 2,
        "cache_creation_input_tokens": 3,
        "output_tokens": 4,
    }
    assert whole(
        MESSAGES, {"model": "claude", "stop_reason": "max_tokens", "content": [], "usage": usage}
    ) == {
        "model": "claude",
        "finish": "max_tokens",
        "input_tokens": 6,
        "output_tokens": 4,
        "cached_input_tokens": 2,
    }


def test_intent():
    assert MESSAGES.intent("/v1/messages", {"model": "claude", "stream": True}) == Intent(
        "claude", stream=True
    )
    assert MESSAGES.intent("/v1/messages", {"model": "claude"}) == Intent("claude", stream=False)
