"""sidecar.core.folding.refreshed: another id and another time in the same bytes."""

import re

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.folding import refreshed
from sidecar.scripted import Script

from .test_folding import FORMS, PATHS, TEXTS, made

NOW = 1_800_000_000.9
OWN = {
    "openai.chat": (b"chatcmpl-scripted", b"chatcmpl-[a-z0-9]{8}"),
    "openai.completions": (b"cmpl-scripted", b"cmpl-[a-z0-9]{8}"),
    "anthropic.messages": (b"msg_scripted", b"msg_[a-z0-9]{8}"),
    "gemini.generate_content": (b"scripted", b"[a-z0-9]{8}"),
}


@given(
    form=st.sampled_from(FORMS),
    stream=st.booleans(),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    text=TEXTS
    | st.sampled_from(['"id":"chatcmpl-scripted","created":1700000000', '"chatcmpl-scripted', '"id"']),
    tool=st.booleans(),
    known=st.booleans(),
)
def test_nothing_else_changes(form, stream, newline, text, tool, known):
    name, query = form
    body = made(name, Script(text=text, newline=newline, tool=tool), stream=stream, query=query)
    old, pattern = OWN.get(name, (b"-", b"-"))
    made_new = refreshed(name, body, old.decode() if known and name in OWN else None, NOW)
    assert len(made_new) == len(body)
    if name in OWN:
        key = b"responseId" if name.startswith("gemini") else b"id"
        new = re.search(rb'(?<!\\)"%b": ?"(%b)"' % (key, pattern), made_new)[1]
        assert new != old
        body = body.replace(b'"%b":"%b"' % (key, old), b'"%b":"%b"' % (key, new))
        body = body.replace(b'"%b": "%b"' % (key, old), b'"%b": "%b"' % (key, new))
    if name in ("openai.chat", "openai.completions"):
        body = re.sub(rb'(?<!\\)"created":1700000000', b'"created":1800000000', body)
    if name.startswith("ollama"):
        body = body.replace(b'"created_at":"2023-11-14T22:13:20Z"', b'"created_at":"2027-01-15T08:00:00Z"')
    assert made_new == body


@pytest.mark.parametrize(
    ("ident", "pattern"),
    [
        ("chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT", "chatcmpl-[A-Za-z0-9]{29}"),
        ("msg_01XFDUDYJgAACzvnptvVoYEL", "msg_01[A-Za-z0-9]{22}"),
        ("msg_bdrk_01XFDUDYJgAACzvnptvVoYEL", "msg_bdrk_01[A-Za-z0-9]{22}"),
        (
            "930c60df-bf64-41c9-a88e-3ec75f81e00e",
            "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        ),
        ("gen-1741234567-abcdef", "gen-[a-z0-9]{10}-[a-z0-9]{6}"),
        ("chatcmpl-123456789", "chatcmpl-[0-9]{9}"),
    ],
)
def test_ids_keep_their_form(ident, pattern):
    body = orjson.dumps({"id": ident, "created": 1_700_000_000})
    new = orjson.loads(refreshed("openai.chat", body, None, NOW))
    assert re.fullmatch(pattern, new["id"], re.ASCII)
    assert new["id"] != ident
    assert new["created"] == 1_800_000_000


@pytest.mark.parametrize(
    "ident", ["chatcmpl-123", "", "x" * 7, "chatcmpl-a_b_c_d_e", "sch\u00f6n-nummer-eins", 'a"bcdefghij']
)
def test_ids_that_stay(ident):
    body = orjson.dumps({"id": ident})
    assert refreshed("openai.chat", body, None, NOW) == refreshed("openai.chat", body, ident, NOW) == body


@pytest.mark.parametrize(
    ("name", "body"),
    [
        (
            "openai.responses",
            {"id": "resp_0123456789abcdef", "created_at": 1_700_000_000, "created": 1_700_000_000},
        ),
        ("openai.chat", {"created": 17, "meta": {"created": 1_700_000_000}}),
        ("openai.chat", {"created": 1_700_000_000, "meta": {"created": 1_700_000_001}}),
        ("openai.chat", {"created": 1_700_000_000.5}),
        ("openai.chat", {"meta": {"id": "chatcmpl-abcdefgh"}}),
        ("openai.chat", {"id": "chatcmpl-abcdefgh", 'my"id': "chatcmpl-abcdefgh"}),
        ("openai.chat", {"created": 1_700_000_000, 'my"created': 1_700_000_000}),
        (
            "anthropic.messages",
            {"content": [{"input": {"id": "msg_abcdefghijkl", "created": 1_700_000_000}}]},
        ),
        ("ollama.chat", {"message": {"tool_calls": [{"created_at": "2024-01-01T00:00:00Z"}]}}),
        ("ollama.chat", {"model": "m", "created_at": "2024-13-41T00:00:00Z"}),
        ("ollama.chat", {"model": "m", "created_at": "yesterday"}),
        ("openai.embeddings", {"id": "emb-abcdefgh", "created": 1_700_000_000}),
        ("sse", {"id": "x-abcdefgh"}),
    ],
)
def test_what_is_not_the_answers_own_stays(name, body):
    for raw in (orjson.dumps(body), orjson.dumps(body, option=orjson.OPT_INDENT_2)):
        assert refreshed(name, raw, None, NOW) == raw


def test_azures_first_event_has_neither():
    first = b'data: {"choices":[],"created":0,"id":"","model":"","object":""}\n\n'
    then = b'data: {"choices":[],"created":1700000000,"id":"chatcmpl-abcdefgh"}\n\n'
    new = refreshed("openai.chat", first + then, None, NOW)
    assert new.startswith(first)
    assert b'"created":1800000000' in new
    assert b"chatcmpl-abcdefgh" not in new


def test_times_keep_their_order_fraction_and_zone():
    times = ["2024-05-01T23:59:58.123456789Z", "2024-05-01T23:59:59.9Z", "2024-05-02T02:00:01.000001+02:00"]
    body = b"".join(b'{"model":"a \\"b","created_at":"%b","message":{}}\n' % time.encode() for time in times)
    new = refreshed("ollama.chat", body, None, NOW)
    assert [orjson.loads(line)["created_at"] for line in new.splitlines()] == [
        "2027-01-15T07:59:57.123456789Z",
        "2027-01-15T07:59:58.9Z",
        "2027-01-15T10:00:00.000001+02:00",
    ]


def test_two_are_two():
    body = made("openai.chat", Script(), stream=True)
    assert refreshed("openai.chat", body, None, NOW) != refreshed("openai.chat", body, None, NOW)
    assert set(PATHS) - set(OWN) == {"openai.responses", "ollama.chat", "ollama.generate"}
