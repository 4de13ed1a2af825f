"""sidecar.core.dialects.responses: OpenAI's typed events."""

import pytest

from tests.core.asking import dialect_of, read, whole

RESPONSES = dialect_of("/v1/responses")
ITEM = {"item_id": "item_1", "output_index": 0, "sequence_number": 4}
USAGE = {
    "input_tokens": 36,
    "input_tokens_details": {"cached_tokens": 30},
    "output_tokens": 87,
    "output_tokens_details": {"reasoning_tokens": 64},
    "total_tokens": 123,
}
COUNTS = {"input_tokens": 36, "output_tokens": 87, "cached_input_tokens": 30, "reasoning_tokens": 64}


def response(status, **more):
    return {
        "id": "resp_1",
        "object": "response",
        "model": "gpt-5",
        "status": status,
        "output": [],
        "usage": None,
        **more,
    }


EVENTS = [
    ({"type": "response.output_text.delta", "content_index": 0, "delta": "Hi", "logprobs": []}, "content"),
    ({"type": "response.refusal.delta", "delta": "I"}, "content"),
    ({"type": "response.audio.delta", "delta": "UklG"}, "content"),
    ({"type": "response.image_generation_call.partial_image", "partial_image_b64": "iVBO"}, "content"),
    ({"type": "response.reasoning_text.delta", "delta": "Hm"}, "reasoning"),
    ({"type": "response.reasoning_summary_text.delta", "summary_index": 0, "delta": "Hm"}, "reasoning"),
    ({"type": "response.function_call_arguments.delta", "delta": '{"c'}, "tool"),
    ({"type": "response.custom_tool_call_input.delta", "delta": "x"}, "tool"),
    ({"type": "response.mcp_call_arguments.delta", "delta": "{"}, "tool"),
    ({"type": "response.code_interpreter_call_code.delta", "delta": "p"}, "tool"),
    ({"type": "response.output_item.added", "item": {"type": "message", "status": "in_progress"}}, None),
    ({"type": "response.content_part.added", "part": {"type": "output_text", "text": ""}}, None),
    ({"type": "response.output_text.done", "text": "Hi"}, None),
    ({"type": "response.output_text.annotation.added", "annotation": {}}, None),
    ({"type": "response.web_search_call.searching"}, None),
    ({"type": "keepalive"}, None),
    ({"type": "response.something.of.tomorrow", "response": "?"}, None),
]


@pytest.mark.parametrize(
    ("event", "kind"), EVENTS, ids=lambda value: value["type"] if isinstance(value, dict) else str(value)
)
def test_what_ends_the_wait(event, kind):
    assert read(RESPONSES, {**ITEM, **event}) == ([kind], {})


@pytest.mark.parametrize("status", ["completed", "incomplete"])
def test_a_whole_stream(status):
    kinds, facts = read(
        RESPONSES,
        {"type": "response.created", "response": response("in_progress"), "sequence_number": 0},
        {"type": "response.in_progress", "response": response("in_progress"), "sequence_number": 1},
        {**ITEM, **EVENTS[0][0]},
        {"type": f"response.{status}", "response": response(status, usage=USAGE), "sequence_number": 9},
    )
    assert kinds == [None, None, "content", None]
    assert facts == {"model": "gpt-5", "finish": status, "terminal": True, **COUNTS}


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ({"type": "error", "code": "ERR", "message": "secret prompt", "param": None}, "error"),
        ({"type": "error", "error": {"type": "server_error", "message": "secret prompt"}}, "server_error"),
        (
            {
                "type": "response.failed",
                "response": response("failed", error={"code": "server_error", "message": "x"}),
            },
            "server_error",
        ),
        ({"type": "response.cancelled", "response": response("cancelled", error=None)}, "error"),
    ],
)
def test_an_error_inside_the_stream_by_its_name_only(event, error):
    kinds, facts = read(RESPONSES, event)
    assert (kinds, facts["error"], facts.get("terminal", False)) == ([None], error, False)


def test_a_done_of_a_compatible_server_is_no_terminal_marker():
    assert read(RESPONSES, b"[DONE]") == ([None], {})


@pytest.mark.parametrize(
    ("body", "facts"),
    [
        (response("completed", usage=USAGE), {"model": "gpt-5", "finish": "completed", **COUNTS}),
        (
            response("queued", usage={"input_tokens": 1, "output_tokens": 0, "output_tokens_details": None}),
            {"model": "gpt-5", "finish": "queued", "input_tokens": 1, "output_tokens": 0},
        ),
    ],
)
def test_answers_that_are_no_stream(body, facts):
    assert whole(RESPONSES, body) == facts
