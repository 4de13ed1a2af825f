"""sidecar.core.dialects.openai: chat completions, legacy completions and embeddings."""

import pytest

from sidecar.core.types import Intent
from tests.core.asking import dialect_of, read, whole

CHAT = dialect_of("/v1/chat/completions")
COMPLETIONS = dialect_of("/v1/completions")
EMBEDDINGS = dialect_of("/v1/embeddings")


def chunk(delta=None, finish=None, **more):
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "gpt-4o-2024-08-06",
        "system_fingerprint": "fp_1",
        "choices": [{"index": 0, "delta": delta or {}, "logprobs": None, "finish_reason": finish}],
        "obfuscation": "aB3x",
        **more,
    }


CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}

DELTAS = [
    ({"role": "assistant", "content": "", "refusal": None}, None),
    ({"role": "assistant", "content": None}, None),
    ({"content": "Hello"}, "content"),
    ({"content": " "}, "content"),
    ({"refusal": "I cannot"}, "content"),
    ({"audio": {"id": "audio_1", "transcript": "He"}}, "content"),
    ({"role": "assistant", "tool_calls": [CALL]}, "tool"),
    ({"tool_calls": [{"index": 0, "function": {"arguments": '{"ci'}}]}, "tool"),
    ({"function_call": {"name": "f", "arguments": ""}}, "tool"),
    ({"reasoning_content": "Hmm"}, "reasoning"),
    ({"content": None, "reasoning": "Hmm"}, "reasoning"),
    ({"content": "", "thinking": "Hmm"}, "reasoning"),
    ({"content": "", "reasoning_content": ""}, None),
    ({}, None),
]


@pytest.mark.parametrize(("delta", "kind"), DELTAS)
def test_what_ends_the_wait(delta, kind):
    assert read(CHAT, chunk(delta)) == ([kind], {"model": "gpt-4o-2024-08-06"})


def test_a_whole_stream():
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 12,
        "total_tokens": 21,
        "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 5, "audio_tokens": 0},
    }
    filtered = {
        "id": "",
        "object": "",
        "model": "",
        "choices": [],
        "prompt_filter_results": [],
    }  # Azure's first
    kinds, facts = read(
        CHAT,
        filtered,
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "Hi"}, usage=None),
        chunk({}, "stop"),
        chunk(choices=[], usage=usage),
        b"[DONE]",
    )
    assert kinds == [None, None, "content", None, None, None]
    assert facts == {
        "model": "gpt-4o-2024-08-06",
        "input_tokens": 9,
        "output_tokens": 12,
        "cached_input_tokens": 4,
        "reasoning_tokens": 5,
        "finish": "stop",
        "terminal": True,
    }


def test_any_of_several_choices():
    several = [{"index": 0, "delta": {}}, {"index": 1, "delta": {"content": "x"}, "finish_reason": "length"}]
    kinds, facts = read(CHAT, chunk(choices=several))
    assert (kinds, facts["finish"]) == (["content"], "length")


@pytest.mark.parametrize(
    ("error", "name"),
    [
        ({"message": "secret prompt", "type": "server_error", "param": None, "code": None}, "server_error"),
        ({"message": "secret prompt", "type": None, "code": "rate_limit_exceeded"}, "rate_limit_exceeded"),
        ({"message": "secret prompt", "code": 429}, "429"),
        ("secret prompt", "error"),
        ({"message": "secret prompt"}, "error"),
        ({"type": "x" * 1000}, "x" * 64),
    ],
)
@pytest.mark.parametrize("dialect", [CHAT, COMPLETIONS])
def test_an_error_inside_the_stream_by_its_name_only(dialect, error, name):
    assert read(dialect, {"error": error}) == ([None], {"error": name})


def test_completions():
    made = {"id": "cmpl-1", "object": "text_completion", "model": "instruct"}
    texts = (
        [{"text": "", "index": 0, "finish_reason": None}],
        [{"text": "Hi", "index": 0, "finish_reason": "stop"}],
    )
    assert read(COMPLETIONS, *[{**made, "choices": choices} for choices in texts], b"[DONE]") == (
        [None, "content", None],
        {"model": "instruct", "finish": "stop", "terminal": True},
    )


@pytest.mark.parametrize(
    ("dialect", "body", "facts"),
    [
        (
            CHAT,
            {
                "model": "gpt-4o",
                "choices": [
                    {"message": {"role": "assistant", "content": "Hi"}, "finish_reason": "tool_calls"}
                ],
                "usage": {"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": None},
            },
            {"model": "gpt-4o", "finish": "tool_calls", "input_tokens": 1, "output_tokens": 2},
        ),
        (COMPLETIONS, {"choices": [{"text": "x", "finish_reason": "length"}]}, {"finish": "length"}),
        (
            EMBEDDINGS,
            {
                "object": "list",
                "data": [],
                "model": "embed",
                "usage": {"prompt_tokens": 8, "total_tokens": 8},
            },
            {"model": "embed", "input_tokens": 8},
        ),
    ],
)
def test_answers_that_are_no_stream(dialect, body, facts):
    assert whole(dialect, body) == facts


@pytest.mark.parametrize("dialect", [CHAT, COMPLETIONS, EMBEDDINGS])
@pytest.mark.parametrize(
    ("body", "intent"),
    [
        ({"model": "m", "stream": True}, Intent("m", stream=True)),
        ({"model": "m"}, Intent("m", stream=False)),
        ({"model": 5, "stream": "true"}, Intent(None, stream=False)),
        ({"stream": 1}, Intent(None, stream=False)),
    ],
)
def test_intent(dialect, body, intent):
    assert dialect.intent("/any", body) == intent
