"""sidecar.core.answer: what is learnt of an answer as its bytes go by, and that it never gets in the way."""

import gzip
import json
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.core.types import Fault
from tests.core.asking import SSE, answer_to, head, told
from tests.core.oracle import typed

MiB = 1 << 20
CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
GEMINI = "/v1beta/models/g:streamGenerateContent?alt=sse"
ARRAY = "/v1beta/models/g:streamGenerateContent"
OLLAMA = "/api/chat"
ANY = "/feed"
JSON = b"application/json"
NDJSON = b"application/x-ndjson"


def sse(*events, end=b"\n"):
    made = b""
    for event in events:
        data = event if isinstance(event, bytes) else json.dumps(event).encode()
        name = event.get("type") if isinstance(event, dict) else None
        made += (b"event: " + name.encode() + end if name else b"") + b"data: " + data + end + end
    return made


def closed(answer, now):
    """Whether a clean end leaves it whole."""
    answer.close(now)
    return answer.whole


def chat(delta, finish=None):
    return {"model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def gemini(text, finish=None):
    return {
        "candidates": [{"content": {"parts": [{"text": text}]}, "finishReason": finish}],
        "modelVersion": "m",
    }


def claude(text):
    return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}


def llama(content, *, done=False):
    return {
        "model": "m",
        "message": {"content": content},
        "done": done,
        "done_reason": "stop" if done else None,
    }


def lines(*values):
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


# A whole answer of each format: target, content type, body, and how many events of it are what people wait for.
STREAMS = {
    "openai.chat": (
        CHAT,
        SSE,
        sse(chat({"role": "assistant"}), chat({"content": "你"}), chat({"content": "!"}), b"[DONE]"),
        2,
    ),
    "openai.responses": (
        RESPONSES,
        SSE,
        sse(
            {"type": "response.created", "response": {"model": "m", "status": "in_progress"}},
            {"type": "response.output_text.delta", "delta": "Hi"},
            {"type": "response.completed", "response": {"model": "m", "status": "completed"}},
        ),
        1,
    ),
    "anthropic.messages": (
        MESSAGES,
        SSE,
        sse(
            {"type": "message_start", "message": {"model": "m"}},
            {"type": "ping"},
            claude("a"),
            claude("b"),
            {"type": "message_stop"},
        ),
        2,
    ),
    "gemini.generate_content": (GEMINI, SSE, sse(gemini("Hi"), gemini("!", "STOP"), end=b"\r\n"), 2),
    "array": (
        ARRAY,
        JSON,
        b"["
        + json.dumps(gemini("Hi]")).encode()
        + b"\n,\r\n"
        + json.dumps(gemini("", "STOP")).encode()
        + b"\n]\n",
        1,
    ),
    "ollama.chat": (OLLAMA, NDJSON, lines(llama("Hi"), llama(""), llama("!"), llama("", done=True)), 2),
    "sse": (ANY, SSE, b": hello\n\nid: 1\ndata: x\n\nevent: e\ndata: y\n\n", 2),
}
NAMES = pytest.mark.parametrize("name", STREAMS)


def feed(answer, *pieces):
    """Feed pieces a second apart; the offsets at which events ended."""
    return [end for now, piece in enumerate(pieces) for end in answer.feed(piece, float(now))]


BEGINNINGS = [
    # target, asks for a stream, status, content type, encoding -> streaming, dialect, keepalive
    (CHAT, True, 200, SSE, b"", True, "openai.chat", b": keepalive\n"),
    (CHAT, False, 200, SSE, b"", True, "openai.chat", b": keepalive\n"),
    (CHAT, True, 200, b"Text/Event-Stream ; charset=utf-8", b"", True, "openai.chat", b": keepalive\n"),
    (CHAT, True, 200, JSON, b"", False, "openai.chat", None),
    (CHAT, True, 429, SSE, b"", False, "openai.chat", None),
    (CHAT, True, 429, JSON, b"", False, "openai.chat", None),
    (GEMINI, True, 200, SSE, b"", True, "gemini.generate_content", b"\n"),
    (ARRAY, True, 200, JSON, b"", True, "gemini.generate_content", b"\n"),
    (ARRAY, True, 503, JSON, b"", False, "gemini.generate_content", None),
    (OLLAMA, True, 200, NDJSON, b"", True, "ollama.chat", b" "),
    (OLLAMA, False, 200, JSON, b"", False, "ollama.chat", None),
    (OLLAMA, True, 200, SSE, b"", True, "sse", b": keepalive\n"),
    (ANY, True, 200, SSE, b"", True, "sse", b": keepalive\n"),
    (ANY, True, 200, b"text/html", b"", False, None, None),
    (ANY, True, 200, b"", b"", False, None, None),
    (CHAT, True, 200, SSE, b"identity", True, "openai.chat", b": keepalive\n"),
    (CHAT, True, 200, SSE, b"Identity", True, "openai.chat", b": keepalive\n"),
]


@pytest.mark.parametrize(
    ("target", "stream", "status", "kind", "encoding", "streaming", "dialect", "keepalive"), BEGINNINGS
)
def test_the_head_says_how_to_read_the_body(
    target, stream, status, kind, encoding, streaming, dialect, keepalive
):
    fields = [(b"Content-Encoding", encoding)] if encoding else []
    answer = answer_to(target, {"stream": stream}, head(status, *fields, kind=kind))
    assert (answer.streaming, answer.identity) == (streaming, True)
    assert (answer.dialect and answer.dialect.name) == dialect
    assert answer.keepalive == keepalive
    assert (
        answer.at_boundary == answer.framed == answer.events_are_separate == (streaming and target != ARRAY)
    )


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"GZIP"])
def test_nothing_may_be_inserted_into_a_compressed_stream(encoding):
    answer = answer_to(CHAT, None, head(200, (b"Content-Encoding", encoding)))
    assert (answer.streaming, answer.identity, answer.at_boundary) == (True, False, False)


@NAMES
def test_every_split_teaches_the_same(name):
    target, kind, body, waited_for = STREAMS[name]
    expected = None
    for pieces in (
        [body],
        [body[at : at + 1] for at in range(len(body))],
        *[[body[:c], body[c:]] for c in range(len(body))],
    ):
        answer = answer_to(target, None, head(kind=kind))
        ends = feed(answer, *pieces)
        whole = closed(answer, 0.0)
        learnt = (
            ends,
            whole,
            told(answer.facts),
            answer.events,
            answer.deltas,
            answer.first_kind,
            answer.unreadable,
        )
        expected = expected or learnt
        assert learnt == expected
    assert whole
    assert not answer.unreadable
    assert answer.deltas == waited_for
    assert answer.first_kind == ("event" if name == "sse" else "content")
    answer = answer_to(target, None, head(kind=kind))
    feed(
        answer,
        *[body[:end] if not at else body[expected[0][at - 1] : end] for at, end in enumerate(expected[0])],
    )
    assert len(answer.gaps._kept) == waited_for - 1


@NAMES
def test_only_a_whole_answer_is_whole(name):
    target, kind, body, _ = STREAMS[name]
    answer = answer_to(target, None, head(kind=kind))
    *first, _last = feed(answer, body)
    for end in [0, *first]:
        answer = answer_to(target, None, head(kind=kind))
        feed(answer, body[:end])
        assert closed(answer, 0.0) == (name == "sse"), end


@NAMES
def test_keepalives_at_every_boundary_change_no_event(name):
    target, kind, body, _ = STREAMS[name]
    answer, kept_alive = answer_to(target, None, head(kind=kind)), b""
    count = 0
    for at in range(len(body)):
        if answer.at_boundary:
            kept_alive += answer.keepalive
            count += 1
        feed(answer, body[at : at + 1])
        kept_alive += body[at : at + 1]
    if kind == SSE:
        assert [event for event in typed(kept_alive) if event[0] != "ping"] == [
            e for e in typed(body) if e[0] != "ping"
        ]
    else:
        assert (json.loads if name == "array" else lines_of)(kept_alive) == (
            json.loads if name == "array" else lines_of
        )(body)
    assert count == (0 if name == "array" else {"sse": 3}.get(name, answer.events))


def lines_of(body):
    return [json.loads(line) for line in body.splitlines()]


@NAMES
def test_after_any_cut_the_error_frame_is_an_event_of_its_own(name):
    target, kind, body, _ = STREAMS[name]
    fault = Fault("upstream_closed", "x")
    for cut in range(len(body)):
        answer = answer_to(target, None, head(kind=kind))
        feed(answer, body[:cut])
        frame = answer.dialect.error_frame(fault, 502)
        sent = body[:cut] + answer.closing + frame
        if kind == SSE:
            assert typed(sent)[-1] == typed(frame)[0]
            assert typed(sent)[: len(typed(body[:cut]))] == typed(body[:cut])
        elif kind == NDJSON:
            assert sent.split(b"\n")[-2] == frame.strip()
        else:
            assert answer.closing == b""


@pytest.mark.parametrize(
    "name",
    ["openai.chat", "openai.responses", "anthropic.messages", "gemini.generate_content", "ollama.chat"],
)
def test_nothing_is_inserted_after_the_end(name):
    target, kind, body, _ = STREAMS[name]
    answer = answer_to(target, None, head(kind=kind))
    feed(answer, body)
    assert (answer.over, answer.at_boundary, answer.closing) == (True, False, b"")


@pytest.mark.parametrize(
    ("target", "kind", "error"),
    [
        (CHAT, SSE, sse({"error": {"type": "server_error", "message": "x"}})),
        (RESPONSES, SSE, sse({"type": "error", "code": "x"})),
        (MESSAGES, SSE, sse({"type": "error", "error": {"type": "overloaded_error"}})),
        (GEMINI, SSE, sse({"error": {"code": 503}})),
        (OLLAMA, NDJSON, b'{"error":"x"}\n'),
    ],
)
def test_nor_after_the_providers_own_error(target, kind, error):
    answer = answer_to(target, None, head(kind=kind))
    feed(answer, error)
    assert (answer.over, answer.at_boundary, answer.first_kind) == (True, False, None)
    assert answer.facts.error is not None


def test_the_clock_starts_at_the_first_delta_and_gaps_are_between_deltas():
    answer = answer_to(CHAT)
    events = [
        chat({"role": "assistant"}),
        chat({"content": "a"}),
        chat({}),
        chat({"content": "b"}),
        chat({}, "stop"),
        b"[DONE]",
    ]
    for now, event in zip([1.0, 2.0, 3.5, 4.0, 9.0, 10.0], events, strict=True):
        answer.feed(sse(event), now)
    assert (answer.first_at, answer.first_kind, answer.last_at) == (2.0, "content", 4.0)
    assert (answer.events, answer.deltas) == (6, 2)
    assert (list(answer.gaps._kept), answer.gaps.longest) == ([2.0], 2.0)


def test_comments_pings_and_blank_lines_are_no_events():
    answer = answer_to(CHAT)
    assert feed(answer, b"\n\n: OPENROUTER PROCESSING\n\nid: 1\n\nretry: 5\n\n") == []
    assert (answer.events, answer.first_kind, answer.unreadable) == (0, None, False)
    answer = answer_to(OLLAMA, None, head(kind=NDJSON))
    feed(answer, b"\n \n" + lines(llama("x")))
    assert (answer.events, answer.first_kind, answer.unreadable) == (1, "content", False)


@pytest.mark.parametrize(
    ("target", "kind", "event"),
    [
        (CHAT, SSE, b"data: {half\n\n"),
        (CHAT, SSE, b'data: {"a":"\xff"}\n\n'),
        (CHAT, SSE, b"data: []\n\n"),
        (CHAT, SSE, b'data: {"choices":5}\n\n'),
        (MESSAGES, SSE, b"data: {}\n\n"),
        (RESPONSES, SSE, b'data: {"type":{}}\n\n'),
        (GEMINI, SSE, b"data: " + b"[" * 100_000 + b"\n\n"),
        (OLLAMA, NDJSON, b"nonsense\n"),
    ],
)
def test_what_cannot_be_read_is_known_to_be(target, kind, event):
    answer = answer_to(target, None, head(kind=kind))
    assert feed(answer, event) == [len(event)]
    assert (answer.unreadable, answer.events, answer.first_kind) == (True, 1, None)


def long_last(name):
    """The same answers, their last event too long to be read; pictures come like this."""
    picture = "x" * 2 * MiB
    return {
        "openai.responses": sse(
            {
                "type": "response.completed",
                "response": {"status": "completed", "output": [{"result": picture}]},
            }
        ),
        "gemini.generate_content": sse({**gemini("", "STOP"), "picture": picture}),
        "array": b"[" + json.dumps({**gemini("", "STOP"), "picture": picture}).encode() + b"]",
        "ollama.chat": lines({**llama("", done=True), "context": [1] * MiB}),
    }[name]


@pytest.mark.parametrize("name", ["openai.responses", "gemini.generate_content", "array", "ollama.chat"])
@pytest.mark.parametrize("size", [64 * 1024, 4 * MiB])
def test_an_answer_whose_last_event_is_too_long_to_read_is_not_called_cut(name, size):
    target, kind, _, _ = STREAMS[name]
    body = long_last(name)
    answer = answer_to(target, None, head(kind=kind))
    ends = feed(answer, *[body[at : at + size] for at in range(0, len(body), size)])
    assert closed(answer, 0.0)
    assert answer.events == 1
    assert ends == [len(body) - (name == "array")]


@pytest.mark.parametrize("after", [b": bye\n\n", b"retry: 5\n\n", sse(b"[DONE]"), b": half"])
def test_nor_is_it_when_something_without_meaning_comes_after(after):
    answer = answer_to(RESPONSES)
    feed(answer, long_last("openai.responses"), after)
    assert closed(answer, 0.0)


def test_a_long_event_does_not_hide_a_cut_after_it():
    answer = answer_to(CHAT)
    feed(answer, b"data: " + b"x" * MiB, b"x\n\n", sse(chat({"content": "Hi"})))
    assert (answer.unreadable, closed(answer, 0.0)) == (True, False)


@pytest.mark.parametrize("target", [CHAT, RESPONSES, MESSAGES, GEMINI, ANY])
def test_an_unterminated_last_event_is_none(target):
    answer = answer_to(target)
    feed(answer, b"data: [DONE]")
    assert closed(answer, 0.0) == (target == ANY)
    assert answer.events == 0


def test_a_cr_as_the_very_last_byte_ends_the_last_event():
    answer = answer_to(CHAT)
    feed(answer, sse(chat({"content": "x"}), b"[DONE]", end=b"\r"))
    assert closed(answer, 0.0)
    assert answer.events == 2


def test_embeddings_as_an_event_stream_are_not_cut():
    answer = answer_to("/v1/embeddings")
    feed(answer, sse({"data": []}))
    assert closed(answer, 0.0)


@pytest.mark.parametrize("wbits", [31, 15])
def test_a_compressed_stream_is_read_event_by_event(wbits):
    answer = answer_to(CHAT, None, head(200, (b"Content-Encoding", b"gzip" if wbits == 31 else b"deflate")))
    deflate = zlib.compressobj(wbits=wbits)
    for now, event in enumerate([chat({"role": "assistant"}), chat({"content": "x"}), b"[DONE]"]):
        piece = deflate.compress(sse(event)) + deflate.flush(zlib.Z_SYNC_FLUSH)
        assert answer.feed(piece, float(now)) == []  # offsets in the plain text are none in the body
        assert answer.events == now + 1
    assert (answer.first_at, answer.first_kind, answer.deltas) == (1.0, "content", 1)
    assert answer.readable
    assert closed(answer, 3.0)


@pytest.mark.parametrize(("encoding", "body"), [(b"br", b"\x0b\x02\x80"), (b"gzip", b"not gzip")])
def test_what_cannot_be_unpacked_is_not_called_cut(encoding, body):
    answer = answer_to(CHAT, None, head(200, (b"Content-Encoding", encoding)))
    feed(answer, body)
    assert not answer.readable
    assert closed(answer, 0.0)


WHOLE = {"model": "m", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
LEARNT = {"model": "m", "input_tokens": 1, "output_tokens": 2}


@pytest.mark.parametrize(
    ("target", "encoding", "body", "facts", "unreadable"),
    [
        (CHAT, b"", json.dumps(WHOLE).encode(), LEARNT, False),
        (CHAT, b"gzip", gzip.compress(json.dumps(WHOLE).encode()), LEARNT, False),
        (CHAT, b"br", b"\x0b\x02", {}, False),
        (CHAT, b"", b"", {}, False),
        (CHAT, b"", b"[]", {}, True),  # no answer of this format
        (CHAT, b"", b"{half", {}, True),
        (CHAT, b"", json.dumps({**WHOLE, "error": None}).encode(), LEARNT, False),
        (CHAT, b"", b'{"choices": 5}', {}, True),
        (CHAT, b"", b"[" * 100_000, {}, True),
        (ANY, b"", json.dumps(WHOLE).encode(), {}, False),
    ],
)
def test_answers_that_are_no_stream(target, encoding, body, facts, unreadable):
    fields = [(b"Content-Encoding", encoding)] if encoding else []
    answer = answer_to(target, {"stream": False}, head(200, *fields, kind=JSON))
    assert feed(answer, body) == []
    assert closed(answer, 0.0)
    answer.read_whole(body)
    assert (told(answer.facts), answer.unreadable, answer.deltas) == (facts, unreadable, 0)


@pytest.mark.parametrize(
    ("target", "body", "error"),
    [
        (CHAT, {"error": {"type": "server_error", "message": "secret"}}, "server_error"),
        (MESSAGES, {"type": "error", "error": {"type": "overloaded_error"}}, "overloaded_error"),
        (GEMINI, {"error": {"code": 503, "message": "secret"}}, "503"),
        (OLLAMA, {"error": "secret"}, "error"),
    ],
)
def test_an_error_with_status_200_is_one_by_its_name_only(target, body, error):
    answer = answer_to(target, {"stream": False}, head(kind=b"text/plain"))
    answer.streaming = False
    answer.read_whole(json.dumps(body).encode())
    assert answer.facts.error == error


KEYS = st.sampled_from(
    [
        "choices",
        "delta",
        "text",
        "content",
        "error",
        "type",
        "usage",
        "message",
        "model",
        "response",
        "candidates",
        "parts",
        "finishReason",
        "code",
        "status",
        "usageMetadata",
        "promptFeedback",
        "blockReason",
        "done",
        "thinking",
        "tool_calls",
        "prompt_tokens_details",
        "input_tokens_details",
        "completion_tokens_details",
        "output_tokens_details",
        "stop_reason",
        "finish_reason",
        "functionCall",
        "inlineData",
    ]
)
NAMES_OF_EVENTS = st.sampled_from(
    [
        "content_block_delta",
        "message_start",
        "message_delta",
        "message_stop",
        "error",
        "response.completed",
        "response.failed",
        "response.output_text.delta",
        "text_delta",
    ]
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(1 << 64, 1 << 70),
    st.floats(),
    st.text(max_size=3),
    NAMES_OF_EVENTS,
)
SURPRISES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8
)
EVENT = st.one_of(
    SURPRISES.map(lambda value: json.dumps(value).encode()),
    st.builds(
        lambda name, rest: json.dumps({**rest, "type": name}).encode(),
        NAMES_OF_EVENTS,
        st.dictionaries(KEYS, SURPRISES, max_size=3),
    ),
    st.builds(
        lambda rest: json.dumps({"choices": [rest], "candidates": [rest], **rest}).encode(),
        st.dictionaries(KEYS, SURPRISES, max_size=3),
    ),
    st.binary(max_size=12),
)


@NAMES
@given(events=st.lists(EVENT, min_size=1, max_size=3))
@example(events=[b'{"error":{"type":' + b"9" * 5000 + b"}}"])
@example(events=[b'{"type":"response.failed","response":null}', b'{"type":["x"]}'])
def test_no_shape_of_an_event_makes_it_raise(name, events):
    target, kind, _, _ = STREAMS[name]
    answer = answer_to(target, None, head(kind=kind))
    for event in events:
        answer.feed(b"data: " + event + b"\n\n" if kind == SSE else event + b"\n", 1.0)
    assert closed(answer, 2.0) in (True, False)
    assert answer.keepalive in (None, answer.dialect.keepalive, b"\r", b"\r\n")
    for event in events:
        answer = answer_to(target, {"stream": False}, head(kind=b"text/plain"))
        answer.streaming = False
        answer.read_whole(event)
