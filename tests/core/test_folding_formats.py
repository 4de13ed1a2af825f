"""sidecar.core.folding, format by format: what adds up, and what is a miss because nobody says how it does."""

from typing import Any

import orjson
import pytest

from sidecar.core.folding import fold, unfold

CHAT, LEGACY, RESPONSES = "openai.chat", "openai.completions", "openai.responses"
ANTHROPIC, GEMINI, OLLAMA, GENERATE = (
    "anthropic.messages",
    "gemini.generate_content",
    "ollama.chat",
    "ollama.generate",
)
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
HEAD = {"id": "chatcmpl-1", "created": 1, "model": "m"}


def folded(name: str, stream: bytes, query: str = "") -> Any:
    made = fold(name, stream, query)
    return None if made is None else orjson.loads(made)


def sse(*values: Any, named: bool = False, end: bytes = b"") -> bytes:
    blocks = [
        (b"event: %b\n" % value["type"].encode() if named else b"") + b"data: %b\n\n" % orjson.dumps(value)
        for value in values
    ]
    return b"".join(blocks) + end


# OpenAI chat completions


def piece(delta: Any, finish: Any = None, index: int = 0, **more: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish, **more}


def chat(*pieces: Any, usage: Any = USAGE, head: Any = HEAD) -> bytes:
    base = {**head, "object": "chat.completion.chunk"}
    chunks = [{**base, "choices": [one]} for one in pieces]
    last = [{**base, "choices": [], "usage": usage}] if usage else []
    return sse(*chunks, *last, end=b"data: [DONE]\n\n")


def said(*deltas: Any, finish: str = "stop", head: Any = HEAD, **more: Any) -> Any:
    """The message that deltas amount to."""
    made = folded(CHAT, chat(*[piece(delta) for delta in deltas], piece({}, finish), head=head, **more))
    return made and made["choices"][0]["message"]


ROLE = {"role": "assistant", "content": ""}
NONE = {"role": "assistant", "content": None}
GENUINE = {**HEAD, "service_tier": "default", "system_fingerprint": None}


def call(index: int, arguments: Any = "", **more: Any) -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": more.pop("name")} if "name" in more else {})}
    return {"tool_calls": [{"index": index, **more, "function": function}]}


def named(index: int, name: str = "f") -> dict[str, Any]:
    return call(index, name=name, id=f"call_{index}", type="function")


def tool(index: int, arguments: str, name: str = "f") -> dict[str, Any]:
    return {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        ([ROLE, {"content": "a"}, {"content": "b"}], {"content": "ab"}),
        ([{**ROLE, "content": "a"}, {"role": "assistant", "content": "b"}], {"content": "ab"}),
        ([ROLE], {"content": ""}),
        ([{**ROLE, "refusal": None}, {"content": "a"}], {"content": "a", "refusal": None}),
        ([{**NONE, "refusal": None}, {"refusal": "No"}, {"refusal": "."}], {"content": None, "refusal": "No."}),
        (
            [NONE, named(0), call(0, '{"a"'), named(1, "g"), call(0, ":1}"), call(1, "{}")],
            {"content": None, "tool_calls": [tool(0, '{"a":1}'), tool(1, "{}", "g")]},
        ),
        ([{**ROLE, "content": "Hm"}, named(0), call(0, "{}")], {"content": "Hm", "tool_calls": [tool(0, "{}")]}),
        ([{"role": "assistant"}, {"function_call": {"name": "f", "arguments": ""}}, {"function_call": {"arguments": "{}"}}], {"content": None, "function_call": {"name": "f", "arguments": "{}"}}),
        ([{**NONE, "reasoning_content": "x"}, {"content": None, "reasoning_content": "y"}, {"content": "a", "reasoning_content": None}], {"content": "a", "reasoning_content": "xy"}),
        ([ROLE, {"reasoning": "x"}, {"content": "a"}], {"content": "a", "reasoning": "x"}),
        ([ROLE, {"thinking": "x"}, {"content": "a"}], {"content": "a", "thinking": "x"}),
    ],
)  # fmt: skip
def test_chat_messages(deltas: Any, message: Any) -> None:
    assert said(*deltas) == {"role": "assistant", **message}


@pytest.mark.parametrize(
    "deltas",
    [
        [NONE],  # no content, and nothing instead
        [{"role": "assistant"}],
        [{"content": "a"}],  # no role
        [{"role": "user", "content": "a"}],
        [ROLE, {"content": ["a"]}],
        [ROLE, named(0), call(0, "{}")],  # an empty text or none?
        [ROLE, {"refusal": "No"}],
        [ROLE, {"content": "a", "tool_calls": []}],
        [ROLE, {"content": "a", "tool_calls": None}],
        [NONE, call(0, "{}")],  # no name
        [NONE, named(0), call(0, "{}", name="f")],  # again, or the rest of it?
        [NONE, named(0), call(0, "{}", id="call_9")],
        [NONE, named(1)],
        [NONE, call(0, "", name="f", id="c", type="custom")],
        [NONE, call(0, "", name="f", id="c")],
        [NONE, named(0), call(0, None), call(0, 5)],
        [ROLE, {"content": "a", "reasoning_content": None}],  # null or left out?
        [ROLE, {"content": "a", "audio": {"id": "audio_1"}}],
        [ROLE, {"content": "a", "annotations": []}],
        [ROLE, {"content": "a", "reasoning_details": []}],
    ],
)
def test_chat_messages_that_are_a_miss(deltas: Any) -> None:
    assert said(*deltas) is None


def test_only_openai_itself_has_annotations() -> None:
    deltas = [{**ROLE, "refusal": None}, {"content": "a"}]
    plain = {"role": "assistant", "content": "a", "refusal": None}
    assert said(*deltas) == plain
    assert said(*deltas, head=GENUINE) == {**plain, "annotations": []}
    assert said(ROLE, {"content": "a"}, head=GENUINE) == {"role": "assistant", "content": "a"}


def test_several_choices_with_logprobs() -> None:
    token = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
    pieces = []
    for index in (1, 0):
        pieces += [
            piece(ROLE, index=index, logprobs=None),
            piece({"content": "a"}, index=index, logprobs={"content": [token], "refusal": None}),
            piece({"content": "a"}, index=index, logprobs={"content": [token], "refusal": None}),
        ]
    pieces += [piece({}, "length", index, logprobs=None) for index in (0, 1)]
    choice = {"message": {"role": "assistant", "content": "aa"}, "finish_reason": "length", "logprobs": {"content": [token, token], "refusal": None}}  # fmt: skip
    whole = {**HEAD, "object": "chat.completion", "choices": [{"index": 0, **choice}, {"index": 1, **choice}], "usage": USAGE}  # fmt: skip
    assert folded(CHAT, chat(*pieces)) == whole
    ask = {"stream_options": {"include_usage": True}}
    assert folded(CHAT, unfold(CHAT, orjson.dumps(whole), ask, "") or b"") == whole


ANSWER = [piece(ROLE), piece({"content": "a"}), piece({}, "stop")]


def test_what_ends_a_chat_stream() -> None:
    assert folded(CHAT, chat(*ANSWER)) is not None
    assert folded(CHAT, b": hello\n\n" + chat(*ANSWER)) == folded(CHAT, chat(*ANSWER))
    again = [*ANSWER, piece({"content": "b"})]
    assert folded(CHAT, chat(*again)) is None
    assert folded(CHAT, chat(*ANSWER[:2])) is None
    assert folded(CHAT, chat(*ANSWER, usage=None)) is None
    assert folded(CHAT, chat(*ANSWER)[: -len(b"data: [DONE]\n\n")]) is None
    assert folded(CHAT, chat(*ANSWER) + b"data: {}\n\n") is None
    assert folded(CHAT, chat(*ANSWER) + b"event: end\ndata: x\n\n") is None
    assert folded(CHAT, chat(*ANSWER).replace(b"data: [", b"event: done\ndata: [")) is None
    assert folded(CHAT, chat(*ANSWER).replace(b"data: [", b"what: done\ndata: [")) is None


@pytest.mark.parametrize(
    "odd",
    [
        {**HEAD, "id": "chatcmpl-2"},
        {**HEAD, "created": 2},
        {**HEAD, "system_fingerprint": "fp"},
        {**HEAD, "error": {"message": "no"}},
        {**HEAD, "x_groq": {"id": "req"}},
        {**HEAD, "usage": USAGE},  # counted as it goes
        {"id": "", "created": 0, "model": "", "prompt_filter_results": []},
    ],
)
def test_chunks_that_do_not_agree(odd: Any) -> None:
    first = sse({**odd, "object": "chat.completion.chunk", "choices": []})
    assert folded(CHAT, first + chat(*ANSWER)) is None


def test_choices_that_are_no_list() -> None:
    assert folded(CHAT, chat(*ANSWER, piece({"content": "a"}, index=2))) is None
    assert folded(CHAT, chat()) is None
    assert folded(CHAT, chat(*ANSWER).replace(b"chat.completion.chunk", b"chat.completion")) is None
    odd = {"content": [{}], "refusal": None, "more": None}
    assert folded(CHAT, chat(*ANSWER[:2], piece({}, "stop", logprobs=odd))) is None


@pytest.mark.parametrize("odd", [{"id": 5}, {"model": None}, {"created": "now"}])
def test_heads_of_other_types(odd: Any) -> None:
    assert folded(CHAT, chat(*ANSWER, head={**HEAD, **odd})) is None
    assert unfold(CHAT, orjson.dumps({**WHOLE, **odd}), {}, "") is None


WHOLE: dict[str, Any] = {
    **HEAD,
    "object": "chat.completion",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "a", "refusal": None, "annotations": []},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": USAGE,
    "service_tier": "default",
}


def test_a_chat_stream_as_asked_for() -> None:
    plain = unfold(CHAT, orjson.dumps(WHOLE), {"stream": True}, "") or b""
    assert b"usage" not in plain
    assert plain.endswith(b"data: [DONE]\n\n")
    assert plain.count(b"data: ") == 4
    for ask in ({"stream_options": None}, {"stream_options": {"include_usage": False}}):
        assert unfold(CHAT, orjson.dumps(WHOLE), ask, "") == plain
    options = {"include_usage": True, "include_obfuscation": False}
    full = unfold(CHAT, orjson.dumps(WHOLE), {"stream_options": options}, "") or b""
    assert full.count(b'"usage":null') == 3
    assert full.count(b"data: ") == 5
    assert folded(CHAT, full) == WHOLE
    for ask in ({"stream_options": {"continuous_usage_stats": True}}, {"stream_options": 5}):
        assert unfold(CHAT, orjson.dumps(WHOLE), ask, "") is None


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "a", "annotations": [{"type": "url_citation"}]},
        {"role": "assistant", "content": "a", "audio": None},
        {"role": "assistant", "content": "a", "tool_calls": []},
        {"role": "assistant", "content": "", "tool_calls": [tool(0, "{}")]},
        {"role": "assistant", "content": None},
        {"role": "assistant"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "custom", "custom": {}}]},
        {"role": "assistant", "content": "a", "reasoning_content": None},
        {"role": "assistant", "content": None, "tool_calls": [{"index": 0, **tool(0, "{}")}]},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "a", "more": None},
    ],
)
def test_whole_messages_that_are_a_miss(message: Any) -> None:
    choice = {**WHOLE["choices"][0], "message": message}
    assert unfold(CHAT, orjson.dumps({**WHOLE, "choices": [choice]}), {}, "") is None


@pytest.mark.parametrize(
    "odd",
    [
        {"choices": []},
        {"prompt_filter_results": []},
        {"choices": [{**WHOLE["choices"][0], "index": 1}]},
        {"choices": [{**WHOLE["choices"][0], "stop_reason": None}]},
        {"choices": [{**WHOLE["choices"][0], "logprobs": {"content": None, "refusal": [{}]}}]},
        {"choices": [{**WHOLE["choices"][0], "logprobs": {"content": [{}], "more": None}}]},
        {"usage": None},
        {"object": "chat.completion.chunk"},
    ],
)
def test_whole_chats_that_are_a_miss(odd: Any) -> None:
    ask = {"stream_options": {"include_usage": True}}
    assert unfold(CHAT, orjson.dumps({**WHOLE, **odd}), ask, "") is None


# OpenAI legacy completions and Responses


def test_completions() -> None:
    base = {**HEAD, "object": "text_completion"}
    texts = [(0, "a", None), (1, "x", None), (0, "b", "stop"), (1, "", "length")]
    chunks = [
        {**base, "choices": [{"text": text, "index": i, "finish_reason": end}]} for i, text, end in texts
    ]
    last = {**base, "choices": [], "usage": USAGE}
    whole = folded(LEGACY, sse(*chunks, last, end=b"data: [DONE]\n\n"))
    assert [choice["text"] for choice in whole["choices"]] == ["ab", "x"]
    assert [choice["finish_reason"] for choice in whole["choices"]] == ["stop", "length"]
    chunks[0]["choices"][0]["logprobs"] = {"tokens": ["a"], "text_offset": [0]}
    assert folded(LEGACY, sse(*chunks, last, end=b"data: [DONE]\n\n")) is None
    first, second = whole["choices"]
    assert unfold(LEGACY, orjson.dumps(whole), {}, "") is not None
    for choices in (
        [{**first, "logprobs": {"tokens": ["ab"]}}, second],
        [second, first],
        [],
        [{**first, "more": 1}],
    ):
        assert unfold(LEGACY, orjson.dumps({**whole, "choices": choices}), {}, "") is None
    assert unfold(LEGACY, orjson.dumps({**whole, "more": 1}), {}, "") is None


def responses(*before: Any, end: str = "completed", **more: Any) -> bytes:
    response = b'{ "object": "response","status":"%b", "output":[{"type":"message","id":"msg_1"}], "n": 1e2}'
    last = b'event: response.%b\ndata: {"type":"response.%b","response": %b }\n\n'
    return sse(*before, named=True) + last % (end.encode(), end.encode(), response % end.encode())


ITEM = {"type": "response.output_item.done", "output_index": 0, "item": {"type": "message", "id": "msg_1"}}


def test_responses_byte_for_byte() -> None:
    whole = (
        b'{ "object": "response","status":"incomplete", "output":[{"type":"message","id":"msg_1"}], "n": 1e2}'
    )
    assert fold(RESPONSES, responses(ITEM, end="incomplete")) == whole
    assert fold(RESPONSES, responses(ITEM, end="incomplete") + b"data: [DONE]\n\n") == whole
    assert unfold(RESPONSES, whole, {}, "") is None


@pytest.mark.parametrize(
    "stream",
    [
        responses(),  # an item that no event brought
        responses(ITEM, {**ITEM, "output_index": 1}),  # an item that the last event does not have
        responses({**ITEM, "item": {"type": "message", "id": "msg_2"}}),
        responses({**ITEM, "output_index": 1}),
        responses(ITEM, end="failed"),
        responses(ITEM, end="cancelled"),
        responses({"type": "error", "message": "no"}, ITEM),
        responses(ITEM) + sse(ITEM, named=True),
        responses(ITEM, end="completed") * 2,
    ],
)
def test_responses_that_are_a_miss(stream: bytes) -> None:
    assert fold(RESPONSES, stream) is None


# Anthropic


def message(*blocks: Any, usage: Any = None, ended: Any = None, start: Any = None, **more: Any) -> bytes:
    """`blocks`: (start, delta, delta, ...)."""
    steps: list[Any] = [
        {
            "type": "message_start",
            "message": {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "m",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {"input_tokens": 5, "output_tokens": 1, "service_tier": "standard"},
                **(start or {}),
            },
        }
    ]
    for index, (first, *deltas) in enumerate(blocks):
        steps.append({"type": "content_block_start", "index": index, "content_block": first})
        steps += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        steps += [{"type": "ping"}, {"type": "content_block_stop", "index": index}]
    delta = ended or {"stop_reason": "end_turn", "stop_sequence": None}
    steps += [{"type": "message_delta", "delta": delta, "usage": usage or {"output_tokens": 9}, **more}]
    return sse(*steps, {"type": "message_stop"}, named=True)


TEXT = {"type": "text", "text": ""}
CITE = {"type": "char_location", "cited_text": "c", "document_index": 0}
THINKING = {"type": "thinking", "thinking": "", "signature": ""}
SIGNED = {"type": "signature_delta", "signature": "s"}
USE = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}
FOUND = {"type": "web_search_tool_result", "tool_use_id": "s", "content": [{"type": "x", "new": 1}]}


def text_delta(text: str) -> dict[str, str]:
    return {"type": "text_delta", "text": text}


def json_delta(text: str) -> dict[str, str]:
    return {"type": "input_json_delta", "partial_json": text}


BLOCKS = [
    ([TEXT, text_delta("a"), text_delta("b")], {**TEXT, "text": "ab"}),
    ([TEXT], TEXT),
    ([{**TEXT, "citations": None}, text_delta("a")], {**TEXT, "text": "a", "citations": None}),
    (
        [{**TEXT, "citations": []}, text_delta("a"), *[{"type": "citations_delta", "citation": CITE}] * 2],
        {**TEXT, "text": "a", "citations": [CITE, CITE]},
    ),
    (
        [
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "x"},
            {"type": "signature_delta", "signature": "s"},
        ],
        {"type": "thinking", "thinking": "x", "signature": "s"},
    ),
    ([{"type": "redacted_thinking", "data": "xyz"}], {"type": "redacted_thinking", "data": "xyz"}),
    ([USE, json_delta("")], USE),
    ([USE], USE),
    ([USE, json_delta(""), json_delta('{"a": [1'), json_delta(", 2.5]}")], {**USE, "input": {"a": [1, 2.5]}}),
    ([{**USE, "type": "server_tool_use"}, json_delta('{"query":"q"}')], {**USE, "type": "server_tool_use", "input": {"query": "q"}}),
    ([FOUND], FOUND),
]  # fmt: skip


@pytest.mark.parametrize(("block", "whole"), BLOCKS)
def test_anthropic_blocks(block: Any, whole: Any) -> None:
    made = folded(ANTHROPIC, message(block, [TEXT, text_delta("end")]))
    assert made["content"] == [whole, {**TEXT, "text": "end"}]
    stream = unfold(ANTHROPIC, orjson.dumps(made), {}, "")
    assert folded(ANTHROPIC, stream or b"") == made


@pytest.mark.parametrize(
    "block",
    [
        [{**TEXT, "text": "a"}, text_delta("b")],
        [{**TEXT, "citations": []}, text_delta("a")],  # an empty list or none?
        [{**TEXT, "citations": [CITE]}, {"type": "citations_delta", "citation": CITE}],
        [{**TEXT, "more": 1}, text_delta("a")],
        [{**THINKING, "thinking": "x"}, SIGNED],
        [{**THINKING, "signature": "s"}, SIGNED],
        [{**THINKING, "more": 1}, SIGNED],
        [THINKING, SIGNED, SIGNED],
        [THINKING, SIGNED, text_delta("a")],
        [USE, text_delta("a")],
        [{**USE, "input": None}],
        [TEXT, json_delta("{}")],
        [TEXT, {"type": "new_delta", "text": "a"}],
        [TEXT, {**text_delta("a"), "more": 1}],
        [{"type": "thinking", "thinking": "", "signature": ""}, {"type": "thinking_delta", "thinking": "x"}],
        [USE, json_delta('{"a": ')],  # cut short by max_tokens
        [USE, json_delta("[]")],
        [{**USE, "input": {"a": 1}}, json_delta("{}")],
        [{**USE, "more": 1}],
        [{"type": "compaction", "content": None}],
        [FOUND, json_delta("{}")],
    ],
)
def test_anthropic_blocks_that_are_a_miss(block: Any) -> None:
    assert folded(ANTHROPIC, message(block)) is None


def test_anthropic_usage_and_ending() -> None:
    searched = {"server_tool_use": {"web_search_requests": 1}}
    made = folded(ANTHROPIC, message([TEXT], usage={"input_tokens": 7, "output_tokens": 9, **searched}))
    assert made["usage"] == {"input_tokens": 7, "output_tokens": 9, "service_tier": "standard", **searched}
    ended = {
        "stop_reason": "stop_sequence",
        "stop_sequence": "END",
        "container": {"id": "c"},
        "stop_details": None,
    }
    made = folded(ANTHROPIC, message([TEXT], ended=ended))
    assert ended.items() <= made.items()
    assert folded(ANTHROPIC, unfold(ANTHROPIC, orjson.dumps(made), {}, "") or b"") == made


@pytest.mark.parametrize(
    "stream",
    [
        message([TEXT], context_management={"applied_edits": []}),
        message([TEXT], ended={"stop_reason": None, "stop_sequence": None}),
        message([TEXT], ended={"stop_reason": "end_turn", "more": 1}),
        message([TEXT], usage={"output_tokens": 9, "iterations": []}),
        message([TEXT], usage={"output_tokens": 9, "input_tokens": None}),
        message([TEXT], usage={"input_tokens": 9}),
        message([TEXT], start={"content": [TEXT]}),
        message([TEXT], start={"diagnostics": {}}),
        message([TEXT], start={"role": "user"}),
        message([TEXT], start={"type": "completion"}),
        message([TEXT], start={"stop_reason": "end_turn"}),
        message([TEXT], start={"usage": {"input_tokens": 1, "output_tokens": 1, "iterations": []}}),
        message([TEXT]).replace(b"message_start", b"message_begin"),
        message([TEXT]).replace(b"message_delta", b"message_end"),
        message([TEXT, text_delta("a")]).replace(b'_delta","index":0', b'_delta","index":1'),
        message([TEXT], start={"more": 1}),
        message(
            [TEXT],
            start={"usage": {"input_tokens": 1, "output_tokens": 1, "cache_creation": {"a": 1}, "cache_creation_input_tokens": 1}},
            usage={"output_tokens": 9, "cache_creation_input_tokens": 2},
        ),
        message([TEXT]) * 2,
        message([TEXT]) + sse({"type": "ping", "more": 1}, named=True),
        message([TEXT]).replace(b"event: message_stop", b"event: message_end"),
        message([TEXT]).replace(b"event: message_stop\n", b""),
        message([TEXT]).replace(b'"index":0', b'"index":1'),
        sse({"type": "error", "error": {"type": "overloaded_error"}}, named=True),
    ],
)  # fmt: skip
def test_anthropic_messages_that_are_a_miss(stream: bytes) -> None:
    assert folded(ANTHROPIC, stream) is None


def test_whole_messages_of_anthropic_that_are_a_miss() -> None:
    whole = folded(ANTHROPIC, message([TEXT, text_delta("a")]))
    assert unfold(ANTHROPIC, orjson.dumps(whole), {}, "") is not None
    odd_text = {**TEXT, "text": "a", "more": 1}
    usage = {**whole["usage"], "iterations": []}
    for odd in (
        {"content": []},
        {"content": [odd_text]},
        {"content": [{"type": "compaction", "content": None}]},
        {"content": [{**THINKING, "signature": None}]},
        {"stop_reason": None},
        {"usage": usage},
        {"context_management": None},
        {"role": "user"},
    ):
        assert unfold(ANTHROPIC, orjson.dumps({**whole, **odd}), {}, "") is None


def test_anthropic_pairs_events_with_their_block() -> None:
    start = {"type": "content_block_start", "index": 0, "content_block": TEXT}
    stop = {"type": "content_block_stop", "index": 0}
    ends = sse({"type": "message_delta"}, named=True)
    head, tail = message().split(ends[: len(b"event: message_delta")])
    tail = b"event: message_delta" + tail
    for steps in (
        [start],
        [start, start, stop, stop],
        [stop],
        [start, stop, stop],
        [start, stop, start, stop],
    ):
        assert folded(ANTHROPIC, head + sse(*steps, named=True) + tail) is None
    assert folded(ANTHROPIC, head + sse(start, stop, named=True) + tail) is not None


# Gemini


def gemini(*candidates: Any, usage: Any = None, **more: Any) -> bytes:
    usages = usage or [{"promptTokenCount": 1, "totalTokenCount": n} for n in range(len(candidates))]
    chunks = [
        {
            "candidates": one if isinstance(one, list) else [one],
            "usageMetadata": counts,
            "modelVersion": "m",
            **more,
        }
        for one, counts in zip(candidates, usages, strict=True)
    ]
    return orjson.dumps(chunks)


def parts(*found: Any, finish: str = "", **more: Any) -> dict[str, Any]:
    return {
        "content": {"parts": list(found), "role": "model"},
        **({"finishReason": finish} if finish else {}),
        **more,
    }


CALL = {"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": "abc"}


@pytest.mark.parametrize(
    ("chunks", "whole"),
    [
        (
            [parts({"text": "x", "thought": True}), parts({"text": "a"}), parts({"text": "b"}, CALL, CALL, {"text": "c"}), parts({"text": "d"}, finish="STOP", safetyRatings=[1])],
            parts({"text": "x", "thought": True}, {"text": "ab"}, CALL, CALL, {"text": "cd"}, finish="STOP", safetyRatings=[1]),
        ),
        ([parts({"text": "a"}, index=0), parts({"text": ""}, index=0, finish="STOP")], parts({"text": "a"}, index=0, finish="STOP")),
        ([parts({"text": "a"}), {"finishReason": "SAFETY"}], parts({"text": "a"}, finish="SAFETY")),
        ([parts({"text": "a"}), parts({"text": "b"}, finish="STOP", groundingMetadata={"webSearchQueries": ["q"]})], parts({"text": "ab"}, finish="STOP", groundingMetadata={"webSearchQueries": ["q"]})),
    ],
)  # fmt: skip
def test_gemini_candidates(chunks: Any, whole: Any) -> None:
    made = folded(GEMINI, gemini(*chunks, responseId="r"))
    assert made["candidates"] == [whole]
    usage = {"promptTokenCount": 1, "totalTokenCount": len(chunks) - 1}
    assert {**made, "candidates": []} == {
        "candidates": [],
        "usageMetadata": usage,
        "modelVersion": "m",
        "responseId": "r",
    }


def test_gemini_with_several_candidates() -> None:
    chunks = [[parts({"text": "a"}, index=0)], [parts({"text": "x"}, index=1, finish="STOP")], [parts({"text": "b"}, index=0, finish="STOP")]]  # fmt: skip
    made = folded(GEMINI, gemini(*chunks))
    assert made["candidates"] == [parts({"text": "ab"}, index=0, finish="STOP"), chunks[1][0]]
    assert folded(GEMINI, gemini(*chunks[:2])) is None


END = parts({"text": "b"}, finish="STOP")


@pytest.mark.parametrize(
    "stream",
    [
        gemini(parts({"text": "a"}), parts({"text": "b"})),
        gemini(END, END),
        gemini(parts({"text": "a"}), {**END, "groundingMetadata": {"groundingSupports": []}}),
        gemini(parts({"text": "a"}), {**END, "citationMetadata": {}}),
        gemini(parts({"text": "a"}), {**END, "avgLogprobs": -0.1}),
        gemini(parts({"text": "a"}, safetyRatings=[1]), {**END, "safetyRatings": [2]}),
        gemini(parts({"text": "a"}), parts({"text": "", "thoughtSignature": "abc"}, finish="STOP")),
        gemini(parts(CALL), parts({"text": ""}, finish="STOP")),
        gemini(parts({"functionCall": {"name": "f", "partialArgs": []}}), END),
        gemini(parts({"inlineData": {"mimeType": "audio/pcm", "data": "AA=="}}), END),
        gemini(parts({"text": "a"}), END, usage=[{"cachedContentTokenCount": 1}, {"promptTokenCount": 1}]),
        gemini(parts({"text": "a"}), END, promptFeedback={}),
        gemini({"content": {"parts": [], "role": "model", "more": 1}}, END),
        gemini({"content": {"parts": [], "role": "user"}}, END),
        gemini([], []),
        b'[{"error":{},"candidates":[{"finishReason":"STOP"}]}]',
        gemini(parts({"text": "a"}), END)[:-1] + b",{}]",
        gemini(END)[:-1] + b',{"error":{"code":503}}]',
        b'[{"error":{"code":503}}]',
        b"[]",
    ],
)
def test_gemini_answers_that_are_a_miss(stream: bytes) -> None:
    assert folded(GEMINI, stream) is None


def test_a_gemini_stream_of_one_is_the_answer() -> None:
    odd = parts({"text": "a", "new": 1.0}, {"inlineData": {}}, finish="STOP", avgLogprobs=-0.1, new=[])
    one = gemini(odd, new={})
    assert fold(GEMINI, b"data: %b\n\n" % one[1:-1], "alt=sse") == one[1:-1]
    assert fold(GEMINI, b"event: x\ndata: %b\n\n" % one[1:-1], "alt=sse") is None
    assert fold(GEMINI, one) == one[1:-1]
    blocked = b'{"promptFeedback": {\n"blockReason": "SAFETY"}, "n": 1e2}\n'
    assert (
        unfold(GEMINI, blocked, {}, "alt=sse")
        == b'data: {"promptFeedback":{"blockReason":"SAFETY"},"n":1e2}\r\n\r\n'
    )
    assert unfold(GEMINI, blocked, {}, "key=x") == b'[{"promptFeedback":{"blockReason":"SAFETY"},"n":1e2}]'
    for query in ("alt=proto", "alt=media", "alt=sse&alt=json"):
        assert unfold(GEMINI, blocked, {}, query) is fold(GEMINI, one, query) is None
    for whole in (b'{"error":{"code":503}}', b'{"candidates":[{"content":{}}]}', b'{"candidates":[]}'):
        assert unfold(GEMINI, whole, {}, "") is None


# Ollama


def lines(*values: Any) -> bytes:
    return b"".join(orjson.dumps({"model": "m", "created_at": "t", **value}) + b"\n" for value in values)


def says(content: str = "", **more: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": content, **more}, "done": False}


LAST = {**says(), "done": True, "done_reason": "stop", "eval_count": 3}


def test_ollama() -> None:
    calls = [{"function": {"name": name, "arguments": {"created_at": "x"}}} for name in "fgh"]
    stream = lines(
        says(thinking="x"), says("a"), says("b", tool_calls=calls[:2]), says(tool_calls=calls[2:]), LAST
    )
    made = folded(OLLAMA, stream)
    assert made["message"] == {"role": "assistant", "content": "ab", "thinking": "x", "tool_calls": calls}
    assert {**made, "message": {}} == {"model": "m", "created_at": "t", **LAST, "message": {}}
    again = unfold(OLLAMA, orjson.dumps(made), {}, "") or b""
    assert folded(OLLAMA, again) == made
    assert orjson.loads(again.splitlines()[-1])["message"]["content"] == ""
    texts = [{"response": "", "thinking": "x", "done": False}, {"response": "a", "done": False}]
    made = folded(GENERATE, lines(*texts, {"response": "b", "done": True, "context": [1, 2]}))
    assert made == {
        "model": "m",
        "created_at": "t",
        "response": "ab",
        "thinking": "x",
        "done": True,
        "context": [1, 2],
    }
    assert folded(GENERATE, unfold(GENERATE, orjson.dumps(made), {}, "") or b"") == made


@pytest.mark.parametrize(
    "stream",
    [
        lines(says("a")),
        lines(says("a"), LAST, LAST),
        lines(says("a"), {"error": "no"}, LAST),
        lines(says("a"), {**LAST, "logprobs": []}),
        lines({**says("a"), "logprobs": []}, LAST),
        lines({**says("a"), "model": "n"}, LAST),
        lines(says("a", images=[]), LAST),
        lines(says("a", thinking=""), LAST),
        lines(says("a", tool_calls=[]), LAST),
        lines({"message": {"role": "assistant"}, "done": False}, LAST),
        lines(says("a"), LAST) + b"\n",
        lines(says("a"), LAST)[:-1],
        lines(says("a"), LAST)[:-1] + b" ",
    ],
)
def test_ollama_streams_that_are_a_miss(stream: bytes) -> None:
    assert folded(OLLAMA, stream) is None
    assert unfold(OLLAMA, stream, {}, "") is None


@pytest.mark.parametrize(
    "odd", [{"images": []}, {"role": "user"}, {"thinking": ""}, {"tool_calls": []}, {"content": 5}]
)
def test_whole_messages_of_ollama_that_are_a_miss(odd: Any) -> None:
    whole = {"model": "m", "created_at": "t", **LAST}
    assert unfold(OLLAMA, orjson.dumps(whole), {}, "") is not None
    said = {"role": "assistant", "content": "a", **odd}
    assert unfold(OLLAMA, orjson.dumps({**whole, "message": said}), {}, "") is None
    assert unfold(OLLAMA, orjson.dumps({**whole, "done": False}), {}, "") is None


@pytest.mark.parametrize("name", ["openai.embeddings", "ollama.embed", "sse", ""])
def test_formats_without_two_forms(name: str) -> None:
    assert fold(name, b"{}") is unfold(name, b"{}", {}, "") is None
