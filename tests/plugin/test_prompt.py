"""Where a request has its question, and README's example as it stands there."""

import re
from pathlib import Path
from types import SimpleNamespace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from sidecar.core.canonical import without_text
from sidecar.core.values import ConfigError
from sidecar_starlette.prompt import Prompt

ROOT = Path(__file__).resolve().parents[2]
WORDS = st.text("abc ", min_size=1, max_size=4)
JSON = st.recursive(
    WORDS | st.integers(-9, 9) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


def parted(prompt, value):
    """The question, and the rest of the body; None where it has none."""
    body = orjson.dumps(value)
    where = prompt.where(body)
    return without_text(body, (), where) if where is not None else None


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("message", {"message": "a"}, "a"),
        ("messages.-1.content", {"messages": [{"content": "a"}, {"content": "b"}]}, "b"),
        ("messages.0.content", {"messages": [{"content": "a"}, {"content": "b"}]}, "a"),
        ("a.b", {"a": {"b": "c"}}, "c"),
    ],
)
def test_a_path(path, value, text):
    assert parted(Prompt(path), value)[0] == text


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("message", {}),
        ("message", {"message": ""}),
        ("message", {"message": 1}),
        ("message", {"message": ["a"]}),
        ("messages.1", {"messages": ["a"]}),
        ("messages.-2", {"messages": ["a"]}),
        ("messages.x", {"messages": ["a"]}),
        ("messages.--1", {"messages": ["a"]}),
        ("a.b", {"a": "b"}),
        ("message", ["message"]),
    ],
)
def test_a_path_that_leads_nowhere(path, value):
    assert parted(Prompt(path), value) is None


@pytest.mark.parametrize("path", ["", ".", "a.", ".a", "a..b"])
def test_a_path_that_is_none(path):
    with pytest.raises(ConfigError, match=r"prompt = .*expected a path"):
        Prompt(path)


@given(st.dictionaries(WORDS, JSON, max_size=3), WORDS, WORDS)
def test_what_is_left_tells_two_bodies_apart_in_all_but_the_question(value, one, other):
    """A callable names the text: whatever else differs must be seen in the rest."""
    whole = {**value, "q": one}
    text, rest = parted(Prompt(lambda body: orjson.loads(body)["q"]), whole)
    assert text == one
    assert parted(Prompt("q"), whole) is not None
    changed = parted(Prompt(lambda body: orjson.loads(body)["q"]), {**whole, "more": other})
    assert changed[1] != rest or whole.get("more") == other


@pytest.mark.parametrize("said", [None, "", 7, "not in the body"])
def test_a_callable_that_names_none(said):
    assert parted(Prompt(lambda _body: said), {"message": "a"}) is None


def test_the_last_such_text_is_the_question():
    value = {"turns": [{"text": "yes"}, {"text": "really?"}, {"text": "yes"}], "k": 1}
    assert orjson.loads(parted(Prompt(lambda _body: "yes"), value)[1])["turns"] == [
        {"text": "yes"},
        {"text": "really?"},
        {"text": ""},
    ]


def test_a_body_that_is_too_deep():
    body = b'{"a":' * 500 + b'"x"' + b"}" * 500
    where = Prompt(lambda _body: "x").where(body)
    assert without_text(body, (), where) is None


def test_the_example_in_readme(tmp_path, monkeypatch):
    monkeypatch.setenv("SLIPSTREAM_SERVER__DATA_DIR", str(tmp_path))
    (code,) = re.findall(
        r"<!-- starlette example -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )

    async def search(_question):
        return SimpleNamespace(title="T")

    async def ask_the_model(question, _found):
        for piece in ("You said: ", question):
            yield piece

    there = {"search": search, "ask_the_model": ask_the_model}
    exec(code, there)
    with TestClient(there["app"]) as client:
        said = client.post("/chat", json={"message": "hi"}, headers={"Accept": "text/event-stream"})
        again = client.post("/chat", json={"message": "hi"}, headers={"Accept": "text/event-stream"})
    assert [line for line in said.text.split("\n") if line[:5] in ("event", "data:")] == [
        "event: status",
        'data: {"message":"searching","done":0,"total":1}',
        "event: citation",
        'data: {"title":"T"}',
        "event: token",
        'data: {"text":"You said: "}',
        "event: token",
        'data: {"text":"hi"}',
        "event: done",
        "data: {}",
    ]
    assert "fwd=miss; stored" in said.headers["cache-status"]
    assert "hit; " in again.headers["cache-status"]
    assert again.text.count("event: ") == said.text.count("event: ")
