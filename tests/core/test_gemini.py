"""sidecar.core.dialects.gemini: streams by path, SSE by query, complete by finish reason."""

import pytest

from sidecar.core.dialects import Facts
from sidecar.core.types import Intent
from tests.core.asking import dialect_of, read, whole

STREAM = "/v1beta/models/gemini-2.5-flash:streamGenerateContent"
GEMINI = dialect_of(STREAM)


def chunk(*parts, finish=None, **more):
    candidate = {"content": {"parts": list(parts), "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], "modelVersion": "gemini-2.5-flash", "responseId": "r", **more}


PARTS = [
    ([{"text": "Hi"}], "content"),
    ([{"text": ""}], None),
    ([{"text": "Hm", "thought": True}], "reasoning"),
    ([{"functionCall": {"name": "weather", "args": {"city": "Oslo"}}}], "tool"),
    ([{"functionCall": {"name": "f", "args": {}}, "thoughtSignature": "Cg=="}], "tool"),
    ([{"executableCode": {"language": "PYTHON", "code": "1"}}], "tool"),
    ([{"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1"}}], "tool"),
    ([{"inlineData": {"mimeType": "image/png", "data": "iVBO"}}], "content"),
    ([{"text": ""}, {"text": "Hi"}], "content"),
    ([{"text": "", "thoughtSignature": "Cg=="}], None),
    ([], None),
]


@pytest.mark.parametrize(("parts", "kind"), PARTS)
def test_what_ends_the_wait(parts, kind):
    assert read(GEMINI, chunk(*parts)) == ([kind], {"model": "gemini-2.5-flash"})


def test_a_whole_stream():
    usage = {
        "promptTokenCount": 9,
        "totalTokenCount": 9,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 9}],
    }
    last = {
        **usage,
        "candidatesTokenCount": 20,
        "thoughtsTokenCount": 30,
        "cachedContentTokenCount": 4,
        "totalTokenCount": 59,
    }
    kinds, facts = read(
        GEMINI,
        chunk({"text": "Hm", "thought": True}, usageMetadata=usage),
        chunk({"text": "Hi"}, usageMetadata={**usage, "candidatesTokenCount": 3}),
        chunk({"text": "!"}, finish="STOP", usageMetadata=last),
    )
    assert kinds == ["reasoning", "content", "content"]
    assert facts == {
        "model": "gemini-2.5-flash",
        "input_tokens": 9,
        "output_tokens": 50,  # thoughts are output too
        "cached_input_tokens": 4,
        "reasoning_tokens": 30,
        "finish": "STOP",
        "terminal": True,
    }


def test_thoughts_alone_are_output():
    usage = {"promptTokenCount": 9, "thoughtsTokenCount": 90, "totalTokenCount": 99}
    _, facts = read(GEMINI, chunk(finish="MAX_TOKENS", usageMetadata=usage))
    assert (facts["output_tokens"], facts["reasoning_tokens"]) == (90, 90)


@pytest.mark.parametrize(
    ("events", "ended"),
    [
        ([chunk({"text": "Hi"})], False),
        ([chunk({"text": "Hi"}), chunk(finish="SAFETY")], True),
        ([chunk(finish="STOP"), chunk()], True),
        # What is over stays over, even when another candidate begins.
        ([chunk(finish="STOP"), {"candidates": [{"index": 1}]}], True),
        ([{"promptFeedback": {"blockReason": "OTHER"}}, chunk({"text": "Hi"})], True),
        ([{"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "modelVersion": "m"}], True),
        ([{"promptFeedback": {}}], False),
        ([], False),
    ],
)
def test_complete_with_a_finish_reason(events, ended):
    _, facts = read(GEMINI, *events)
    assert facts.get("terminal", False) is ended
    assert GEMINI.ended(Facts(**facts)) is ended


def test_an_error_inside_the_stream_by_its_name_only():
    error = {"error": {"code": 503, "message": "secret prompt", "status": "UNAVAILABLE"}}
    assert read(GEMINI, error) == ([None], {"error": "503"})


def test_answers_that_are_no_stream():
    body = chunk(
        {"text": "Hi"}, finish="STOP", usageMetadata={"promptTokenCount": 1, "candidatesTokenCount": 2}
    )
    assert whole(GEMINI, body) == {
        "model": "gemini-2.5-flash",
        "finish": "STOP",
        "input_tokens": 1,
        "output_tokens": 2,
    }


@pytest.mark.parametrize(
    ("path", "intent"),
    [
        (STREAM, Intent("gemini-2.5-flash", stream=True)),
        ("/v1/models/gemini:generateContent", Intent("gemini", stream=False)),
        (
            "/v1/projects/p/locations/l/publishers/google/models/g:streamGenerateContent",
            Intent("g", stream=True),
        ),
        ("/v1beta/models/:generateContent", Intent(None, stream=False)),
    ],
)
def test_intent_is_in_the_path(path, intent):
    assert GEMINI.intent(path, {"model": "other", "stream": True}) == intent


@pytest.mark.parametrize(
    ("query", "framing"),
    [
        ("alt=sse", "sse"),
        ("key=k&alt=sse", "sse"),
        ("alt=sse&key=k", "sse"),
        ("", "array"),
        ("alt=json", "array"),
        ("salt=sse", "array"),
    ],
)
def test_framing_is_in_the_query(query, framing):
    assert GEMINI.framing_of(query) == framing
