"""What the dialects note of an answer for the one question whether it may be stored."""

import json

import pytest

from sidecar.core.caching import Terms, unkept
from sidecar.core.headers import index
from sidecar.core.types import End, Head, Outcome
from tests.core.asking import answer_to

TERMS = Terms(3600.0, 0.0, 1 << 20, None, frozenset(), tools=True)
NO_TOOLS = Terms(3600.0, 0.0, 1 << 20, None, frozenset(), tools=False)
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
GEMINI, OLLAMA, EMBED = "/v1beta/models/g:generateContent", "/api/chat", "/v1/embeddings"
CALL = {"tool_calls": [{"function": {"name": "f"}}]}


def judged(path: str, body, terms: Terms = TERMS) -> str | None:
    """Why a whole answer is not kept."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = ((b"Content-Type", b"application/json"),)
    head = Head(200, b"OK", fields, index(fields))
    answer = answer_to(path, {"stream": False}, head)
    answer.read_whole(raw)
    return unkept(head, End(Outcome.COMPLETE), answer, raw, terms, clean=True)


def streamed(path: str, *events, terms: Terms = TERMS, clean: bool = True) -> str | None:
    """Why a stream is not kept."""
    raw = b"".join(b"data: %b\n\n" % (e if isinstance(e, bytes) else json.dumps(e).encode()) for e in events)
    answer = answer_to(path)
    answer.feed(raw, 1.0)
    fields = ((b"Content-Type", b"text/event-stream"),)
    head = Head(200, b"OK", fields, index(fields))
    return unkept(head, End(Outcome.COMPLETE), answer, raw, terms, clean=clean)


def choice(finish: str | None = "stop", number: int = 0, **message):
    return {"index": number, "message": {"content": "a", **message}, "finish_reason": finish}


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        (CHAT, {"choices": [choice()]}, None),
        (CHAT, {"choices": [choice("length")]}, "finish"),
        (CHAT, {"choices": [choice(), choice("content_filter", 1)]}, "finish"),
        (CHAT, {"choices": [choice(), choice(None, 1)]}, "incomplete"),
        (CHAT, {"choices": [choice(refusal="no")]}, "refusal"),
        (CHAT, {"choices": []}, "incomplete"),
        (CHAT, {"detail": "overloaded"}, "unreadable"),
        (CHAT, {"error": {"message": "no"}}, "error"),
        (CHAT, b'{"choices":[', "unreadable"),
        (CHAT, b'{"choices":[{"message":{"content":"\xff"},"finish_reason":"stop"}]}', "unreadable"),
        (MESSAGES, {"content": [{"type": "text"}], "stop_reason": "end_turn"}, None),
        (MESSAGES, {"content": [{"type": "text"}], "stop_reason": "max_tokens"}, "finish"),
        (MESSAGES, {"stop_reason": "end_turn"}, "incomplete"),
        (RESPONSES, {"status": "completed", "output": []}, None),
        (RESPONSES, {"status": "incomplete", "output": []}, "finish"),
        (RESPONSES, {"status": "queued", "output": []}, "incomplete"),
        (
            RESPONSES,
            {"status": "completed", "output": [{"type": "message", "content": [{"type": "refusal"}]}]},
            "refusal",
        ),
        (GEMINI, {"candidates": [{"finishReason": "STOP"}]}, None),
        (GEMINI, {"candidates": [{"finishReason": "SAFETY"}]}, "finish"),
        (GEMINI, {"promptFeedback": {"blockReason": "OTHER"}}, "finish"),
        (GEMINI, {"candidates": [{}]}, "incomplete"),
        (OLLAMA, {"done": True, "done_reason": "stop", "message": {}}, None),
        (OLLAMA, {"done": True, "message": {}}, None),
        (OLLAMA, {"done": True, "done_reason": "load", "message": {}}, "finish"),
        (OLLAMA, {"done": False, "message": {}}, "incomplete"),
        (EMBED, {"data": [{"embedding": [0.5]}]}, None),
        (EMBED, {"detail": "x"}, "incomplete"),
    ],
)
def test_whole_answers(path, body, reason):
    assert judged(path, body) == reason


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"choices": [choice("tool_calls", **CALL)]}),
        (MESSAGES, {"content": [{"type": "tool_use"}], "stop_reason": "tool_use"}),
        (RESPONSES, {"status": "completed", "output": [{"type": "function_call"}]}),
        (
            GEMINI,
            {"candidates": [{"content": {"parts": [{"functionCall": {}}]}, "finishReason": "STOP"}]},
        ),
        (OLLAMA, {"done": True, "message": CALL}),
    ],
)
def test_tool_calls_are_stored_unless_they_are_not_wanted(path, body):
    assert judged(path, body) is None
    assert judged(path, body, NO_TOOLS) == "tools"


def delta(number: int = 0, finish: str | None = None, **message):
    return {"choices": [{"index": number, "delta": message, "finish_reason": finish}]}


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([delta(content="a"), delta(finish="stop"), b"[DONE]"], None),
        # Nobody has to say why; but who says it for one choice has to say it for all.
        ([delta(content="a"), b"[DONE]"], None),
        ([delta(content="a"), delta(1, content="b"), delta(finish="stop"), b"[DONE]"], "incomplete"),
        ([delta(content="a"), delta(finish="length"), b"[DONE]"], "finish"),
        ([delta(content="a"), delta(finish="stop")], "incomplete"),
        ([delta(refusal="no"), delta(finish="stop"), b"[DONE]"], "refusal"),
        (
            [{"choices": [*delta(content="a")["choices"], *delta(1, refusal="no")["choices"]]}, b"[DONE]"],
            "refusal",
        ),
        ([{"error": {"message": "no"}}], "error"),
        ([b"{", b"[DONE]"], "unreadable"),
    ],
)
def test_streams(events, reason):
    assert streamed(CHAT, *events) == reason


def test_streamed_tool_calls():
    chat = [delta(**CALL), delta(finish="tool_calls"), b"[DONE]"]
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use"}}
    stop = {"type": "message_delta", "delta": {"stop_reason": "tool_use"}}
    for path, events in ((CHAT, chat), (MESSAGES, [start, stop, {"type": "message_stop"}])):
        assert streamed(path, *events) is None
        assert streamed(path, *events, terms=NO_TOOLS) == "tools"


def test_a_format_without_an_end_marker_has_to_end_cleanly():
    """Who hangs up on OpenAI's [DONE] had all of it; on Gemini's first finish reason, perhaps not."""
    path = "/v1beta/models/g:streamGenerateContent?alt=sse"
    event = {"candidates": [{"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP"}]}
    assert streamed(path, event) is None
    assert streamed(path, event, clean=False) == "incomplete"
    assert streamed(CHAT, delta(content="a", finish="stop"), b"[DONE]", clean=False) is None
