"""core.fingerprint.question: what is compared with other questions, and what has to be identical for that."""

import copy
import json
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.canonical import LARGEST
from sidecar.core.dialects import recognise
from sidecar.core.fingerprint import question
from tests.core.test_keys import asked

CHAT = "/v1/chat/completions"
SCOPE = b"c" * 32
TEXT = "How do I reset my password?"


def found(body, path=CHAT, *, headers=(), scope=SCOPE, upstream="default", ignored=()):
    request = asked(*headers, target=path.encode())
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return question(scope, upstream, request, raw, recognise("POST", request.path), ignored)


def user(content, **more):
    return {"role": "user", "content": content, **more}


def part(text, kind="text", **more):
    return {"type": kind, "text": text, **more}


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "42"}
GEMINI = "/v1beta/models/m:generateContent"

TEXTS = {
    "chat": (CHAT, {"messages": [user(TEXT)]}),
    "chat parts": (CHAT, {"messages": [user([part("context"), part(TEXT)])]}),
    "completions": ("/v1/completions", {"prompt": TEXT}),
    "responses": ("/v1/responses", {"input": TEXT}),
    "responses items": ("/v1/responses", {"input": [user(TEXT)]}),
    "responses parts": ("/v1/responses", {"input": [user([part(TEXT, "input_text")], type="message")]}),
    "anthropic": ("/v1/messages", {"messages": [user(TEXT)]}),
    "anthropic parts": (
        "/v1/messages",
        {"messages": [user([part("a"), part(TEXT, cache_control={"type": "ephemeral"})])]},
    ),
    "gemini": (GEMINI, {"contents": [{"role": "user", "parts": [{"text": TEXT}]}]}),
    "gemini without role": (GEMINI, {"contents": [{"parts": [{"text": "a"}, {"text": TEXT}]}]}),
    "ollama chat": ("/api/chat", {"messages": [user(TEXT)]}),
    "ollama generate": ("/api/generate", {"prompt": TEXT}),
    "after other turns": (
        CHAT,
        {"messages": [user([IMAGE]), {"role": "assistant", "content": "a cat"}, user(TEXT)]},
    ),
}

NONE = {
    "no messages": (CHAT, {"messages": []}),
    "no list": (CHAT, {"messages": {"0": user(TEXT)}}),
    "last is the model's": (CHAT, {"messages": [user(TEXT), {"role": "assistant", "content": "Well"}]}),
    "last is a tool's": (
        CHAT,
        {"messages": [user(TEXT), {"role": "tool", "tool_call_id": "t", "content": "4"}]},
    ),
    "last is the system's": (CHAT, {"messages": [{"role": "system", "content": TEXT}]}),
    "an image": (CHAT, {"messages": [user([part(TEXT), IMAGE])]}),
    "an image first": (CHAT, {"messages": [user([IMAGE, part(TEXT)])]}),
    "no parts": (CHAT, {"messages": [user([])]}),
    "no content": (CHAT, {"messages": [{"role": "user"}]}),
    "a tool's result": ("/v1/messages", {"messages": [user([RESULT, part(TEXT)])]}),
    "a document": (
        "/v1/messages",
        {"messages": [user([{"type": "document", "source": {}}, part(TEXT)])]},
    ),
    "several prompts": ("/v1/completions", {"prompt": [TEXT]}),
    "tokens": ("/v1/completions", {"prompt": [1, 2]}),
    "a prompt of several lines": ("/v1/completions", {"prompt": f"You are kind.\n{TEXT}"}),
    "a raw prompt": ("/api/generate", {"prompt": TEXT, "raw": True}),
    "a call's output": ("/v1/responses", {"input": [user(TEXT, type="function_call_output")]}),
    "a responses image": (
        "/v1/responses",
        {"input": [user([part(TEXT, "input_text"), {"type": "input_image", "image_url": "x"}])]},
    ),
    "gemini's image": (
        GEMINI,
        {"contents": [{"parts": [{"text": TEXT}, {"inlineData": {"mimeType": "image/png", "data": ""}}]}]},
    ),
    "gemini's part with more": (GEMINI, {"contents": [{"parts": [{"text": TEXT, "fileData": {}}]}]}),
    "gemini's model": (GEMINI, {"contents": [{"role": "model", "parts": [{"text": TEXT}]}]}),
    "ollama's images": ("/api/chat", {"messages": [user(TEXT, images=["AA=="])]}),
    "ollama's generated images": ("/api/generate", {"prompt": TEXT, "images": ["AA=="]}),
    "embeddings": ("/v1/embeddings", {"input": TEXT}),
    "no json": (CHAT, b"{"),
    "no object": (CHAT, b"[]"),
    "twice the same key": (CHAT, b'{"messages":[],"messages":[{"role":"user","content":"a"}]}'),
    "too large": (CHAT, {"messages": [user(TEXT)], "user": "x" * LARGEST}),
}


@pytest.mark.parametrize(("path", "body"), TEXTS.values(), ids=TEXTS)
def test_the_question_is_the_last_text_of_the_user(path, body):
    one = found(body, path)
    assert one is not None
    assert one.text == TEXT
    other = found(json.dumps(body).replace(TEXT, "Something else").encode(), path)
    assert other is not None
    assert (other.scope, other.text) == (one.scope, "Something else")


@pytest.mark.parametrize(("path", "body"), NONE.values(), ids=NONE)
def test_what_is_not_plain_text_is_not_compared(path, body):
    assert found(body, path) is None


FULL = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "You are kind."},
        user("Hello"),
        {"role": "assistant", "content": "Hi", "tool_calls": []},
        user([part("From the manual: ..."), part(TEXT)]),
    ],
    "temperature": 0,
    "max_tokens": 5,
    "stream": True,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "response_format": {"type": "json_object"},
    "seed": 1,
}


def changed(*path, to):
    body = copy.deepcopy(FULL)
    member = body
    for step in path[:-1]:
        member = member[step]
    member[path[-1]] = to
    return body


DIFFERENT = {
    "nothing": FULL,
    "model": changed("model", to="n"),
    "system prompt": changed("messages", 0, "content", to="You are strict."),
    "an earlier question": changed("messages", 1, "content", to="Hallo"),
    "an earlier answer": changed("messages", 2, "content", to="Hey"),
    "an earlier part": changed("messages", 3, "content", 0, "text", to="From the blog: ..."),
    "temperature": changed("temperature", to=1),
    "temperature as a float": changed("temperature", to=0.0),
    "length": changed("max_tokens", to=6),
    "stream": changed("stream", to=False),
    "tools": changed("tools", 0, "function", "name", to="g"),
    "format": changed("response_format", "type", to="text"),
    "seed": changed("seed", to=2),
    "something new": {**FULL, "service_tier": "flex"},
    "content as a string": changed("messages", 3, "content", to=TEXT),
    "one part": changed("messages", 3, "content", to=[part(TEXT)]),
    "who said it": changed("messages", 3, "name", to="Ann"),
}


def test_everything_else_counts():
    scopes = {name: found(body).scope for name, body in DIFFERENT.items()}
    headers = {
        "credential": {"scope": b"d" * 32},
        "upstream": {"upstream": "other"},
        "namespace": {"headers": ((b"Slipstream-Namespace", b"n"),)},
        "another header": {"headers": ((b"X-Tier", b"gold"),)},
        "path": {"path": "/openai" + CHAT},
        "query": {"path": CHAT + "?api-version=2"},
        "what is ignored": {"ignored": ("user",)},
    }
    scopes |= {name: found(FULL, **how).scope for name, how in headers.items()}
    for one, other in combinations(scopes, 2):
        assert scopes[one] != scopes[other], (one, other)


def test_what_makes_no_difference_makes_none():
    scope = found(FULL).scope
    assert found(json.dumps(FULL, indent=3, sort_keys=True).encode()).scope == scope
    assert found(FULL, headers=((b"User-Agent", b"a"), (b"Slipstream-Similarity", b"0.99"))).scope == scope
    with_user = found({**FULL, "user": "1"}, ignored=("user",))
    assert with_user.scope == found({**FULL, "user": "2"}, ignored=("user",)).scope


def test_large_integers_do_not_matter():
    assert found(b'{"seed":%d,"messages":[{"role":"user","content":"a"}]}' % 2**80).text == "a"


@given(st.text(), st.text())
def test_any_two_texts_share_a_scope(one, other):
    first, second = (found({"messages": [user(text)]}) for text in (one, other))
    if first is not None and second is not None:
        assert first.scope == second.scope
        assert (first.text, second.text) == (one, other)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "user", "parts"]), inner)
        ),
        max_leaves=20,
    )
)
@pytest.mark.parametrize("path", sorted({path for path, _ in TEXTS.values()}))
def test_surprising_shapes_are_no_question(path, value):
    for name in ("messages", "input", "contents", "prompt"):
        made = found({name: value}, path)
        assert made is None or isinstance(made.text, str)
