"""sidecar.core.dialects.ollama: NDJSON, streaming unless told otherwise."""

import pytest

from sidecar.core.types import Intent
from tests.core.asking import dialect_of, read, whole

CHAT = dialect_of("/api/chat")
GENERATE = dialect_of("/api/generate")
EMBED = dialect_of("/api/embed")
LINE = {"model": "llama3.2", "created_at": "2026-01-01T00:00:00Z", "done": False}
LAST = {
    **LINE,
    "done": True,
    "done_reason": "stop",
    "total_duration": 5,
    "prompt_eval_count": 26,
    "prompt_eval_duration": 2,
    "eval_count": 290,
}
FACTS = {"model": "llama3.2", "finish": "stop", "input_tokens": 26, "output_tokens": 290}


@pytest.mark.parametrize(
    ("dialect", "fields", "kind"),
    [
        (CHAT, {"message": {"role": "assistant", "content": "Hi"}}, "content"),
        (CHAT, {"message": {"role": "assistant", "content": ""}}, None),
        (CHAT, {"message": {"role": "assistant", "content": "", "thinking": "Hm"}}, "reasoning"),
        (
            CHAT,
            {"message": {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}},
            "tool",
        ),
        (CHAT, {}, None),
        (GENERATE, {"response": "Hi"}, "content"),
        (GENERATE, {"response": ""}, None),
        (GENERATE, {"response": "", "thinking": "Hm"}, "reasoning"),
    ],
)
def test_what_ends_the_wait(dialect, fields, kind):
    assert read(dialect, {**LINE, **fields}) == ([kind], {"model": "llama3.2"})


@pytest.mark.parametrize(
    ("dialect", "fields"),
    [(CHAT, {"message": {"role": "assistant", "content": ""}}), (GENERATE, {"response": "", "context": [1]})],
)
def test_the_last_line(dialect, fields):
    assert read(dialect, {**LAST, **fields}) == ([None], {**FACTS, "terminal": True})
    assert whole(dialect, {**LAST, **fields}) == FACTS


@pytest.mark.parametrize("dialect", [CHAT, GENERATE])
def test_what_is_over_stays_over(dialect):
    assert read(dialect, LAST, LINE) == ([None, None], {**FACTS, "terminal": True})


@pytest.mark.parametrize("done", ["true", 1, None])
def test_nothing_else_is_the_last_line(done):
    assert read(GENERATE, {**LAST, "done": done}) == ([None], {"model": "llama3.2"})


@pytest.mark.parametrize("count", [-1, 1 << 32, 1 << 53, 1 << 70, True, 1.0, "5", None])
def test_a_count_that_cannot_be_is_none(count):
    _, facts = read(CHAT, {**LAST, "eval_count": count})
    assert facts == {k: v for k, v in FACTS.items() if k != "output_tokens"} | {"terminal": True}


@pytest.mark.parametrize("count", [0, (1 << 32) - 1])
def test_any_other_count_is_kept(count):
    assert read(CHAT, {**LAST, "eval_count": count})[1]["output_tokens"] == count


def test_an_error_inside_the_stream_by_its_name_only():
    assert read(CHAT, {"error": "secret prompt"}) == ([None], {"error": "error"})


@pytest.mark.parametrize("dialect", [CHAT, GENERATE])
@pytest.mark.parametrize(
    ("body", "stream"),
    [({}, True), ({"stream": True}, True), ({"stream": False}, False), ({"stream": None}, True)],
)
def test_it_streams_unless_told_otherwise(dialect, body, stream):
    assert dialect.intent("/api/chat", {"model": "m", **body}) == Intent("m", stream=stream)
    assert dialect.framing_of("alt=sse") == "ndjson"


def test_embeddings_never_stream():
    assert EMBED.intent("/api/embed", {"model": "m", "input": "x"}) == Intent("m", stream=False)
    assert EMBED.framing_of("") is None
    body = {"model": "all-minilm", "embeddings": [[0.1]], "prompt_eval_count": 8}
    assert whole(EMBED, body) == {"model": "all-minilm", "input_tokens": 8}
