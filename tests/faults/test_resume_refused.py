"""Clients that come back to what is not theirs, not there or not any more: told so, and the upstream never asked."""

import asyncio

import orjson
import pytest

from sidecar.core.ids import mint
from tests.faults.comeback import (
    AGENT,
    IDS,
    KEY,
    SOURCE,
    STREAMS,
    WAYS,
    again,
    back,
    begin,
    ended,
    left,
    look,
    passed,
    returning,
    stamped,
)
from tests.faults.wire import (
    ANTHROPIC,
    CHAT,
    GEMINI,
    OLLAMA,
    OTHER,
)

pytestmark = pytest.mark.both_shells

BOTH = pytest.mark.parametrize("way", WAYS)
OTHER_KEY = (b"Authorization", b"Bearer sk-somebody-else")
NEVER = "s" + "A" * 32


def unlike(name):
    """Ids that look more or less like that one, and are none."""
    last = "B" if name[-1] == "A" else "A"
    return {
        "never made": NEVER,
        "made elsewhere": mint(b"t" * 32, b"", "s"),
        "last character": name[:-1] + last,
        "first character": "s" + ("B" if name[1] == "A" else "A") + name[2:],
        "job": "j" + name[1:],
        "no kind": name[1:],
        "other kind": "x" + name[1:],
        "upper case": name.upper(),
        "short": name[:-1],
        "long": name + "A",
        "padded": name + "=",
        "alphabet": "s" + "!" * 32,
        "dots": "..",
        "dot": ".",
        "percent": name[:-1] + f"%{ord(name[-1]):x}",
        "percent s": "%73" + name[1:],
        "encoded slash": name + "%2f",
        "nul": name + "%00",
        "number": name + ":0",
        "one": "s",
        "very long": "s" * 9000,
    }


# 33: not theirs.


async def test_unknown_foreign_and_malformed_ids_look_the_same(rig):
    """33: whatever is wrong with an id, GET and DELETE answer the same 404, and the stream goes on."""
    stream = await begin(rig, CHAT, IDS, KEY)
    await passed(stream, CHAT.events[0])
    shown = set()
    for target in unlike(stream.name).values():
        for method in ("GET", "DELETE"):
            shown.add(look(await again(rig, method, STREAMS + target, KEY)))
            shown.add(look(await again(rig, method, STREAMS + target, KEY, *SOURCE)))
            shown.add(look(await again(rig, method, STREAMS + target + "?after=1", KEY)))
    for fields in (
        [],
        [OTHER_KEY],
        [(b"Authorization", KEY[1] + b"x")],
        [(b"X-Api-Key", KEY[1])],
        [KEY, (b"Cookie", b"a=b")],
    ):
        for method in ("GET", "DELETE"):
            shown.add(look(await again(rig, method, STREAMS + stream.name, *fields)))
            given = (b"Last-Event-ID", stream.name.encode() + b":0")
            shown.add(look(await again(rig, method, STREAMS + stream.name, *fields, given, *SOURCE)))
    for method in ("GET", "DELETE"):
        shown.add(look(await again(rig, method, f"{STREAMS}{stream.name}?key=sk-other", KEY)))
    assert len(shown) == 1
    ((status, _, _, headers, body, end),) = shown
    assert (status, end) == (404, "whole")
    assert {name.lower() for name, _ in headers} == {b"content-type", b"content-length", b"slipstream-error"}
    assert stream.name.encode() not in body
    await ended(stream.call, *CHAT.events[1:])
    assert await stream.answer.rest() == stamped(CHAT.events, stream.name)
    assert len(rig.provider.requests) == 1


@pytest.mark.parametrize("given", [[], [KEY]], ids=["no-credential", "credential"])
async def test_stream_of_nobody_and_stream_of_somebody_are_two_worlds(rig, given):
    """33: no credential is a credential of its own -> neither sees the other's."""
    stream = await begin(rig, CHAT, IDS, *given)
    await passed(stream, CHAT.events[0])
    other = [KEY] if not given else []
    for way in WAYS:
        client, answer = await back(rig, CHAT, way, stream.name, 0, *other)
        await answer.rest()
        assert (answer.status, answer.end) == (404, "whole")
        client.close()
    await ended(stream.call, *CHAT.events[1:])
    await stream.answer.rest()
    assert rig.uncalled()
    client, answer = await back(rig, CHAT, "stream", stream.name, 0, *given)
    assert await answer.rest() == stamped(CHAT.events[1:], stream.name, 1)


@pytest.mark.parametrize("form", [CHAT, ANTHROPIC, OTHER, AGENT, GEMINI, OLLAMA], ids=str)
async def test_ids_of_events_that_are_not_there_look_the_same_on_the_request_again(rig, form):
    """33: an unknown, foreign or changed id, or a number beyond what exists, with the same request -> one 404, no call."""
    stream = await begin(rig, form, IDS, KEY)
    await passed(stream, form.events[0])
    made = unlike(stream.name)
    names = [
        made[name] for name in ("never made", "made elsewhere", "last character", "first character", "job")
    ]
    values = [f"{name}:0" for name in names]
    values += [f"{stream.name}:{number}" for number in (1, 5, 10**11, 10**12 - 1)]
    shown = set()
    for value in values:
        fields = [IDS, KEY, (b"Last-Event-ID", value.encode())]
        shown.add(look(await again(rig, form.method, form.target, *fields, body=form.body)))
    fields = [IDS, (b"Last-Event-ID", stream.name.encode() + b":0")]
    shown.add(look(await again(rig, form.method, form.target, *fields, body=form.body)))
    shown.add(look(await again(rig, form.method, form.target, *fields, OTHER_KEY, body=form.body)))
    assert len(shown) == 1
    assert next(iter(shown))[0] == 404
    await ended(stream.call, *form.events[1:])
    await stream.answer.rest()
    assert rig.uncalled()
    assert len(rig.provider.requests) == 1


NO_EVENT = [
    b"{}:1",
    b"{}:-1",
    b"{}:-0",
    b"{}:+0",
    b"{}:00",
    b"{}:0x0",
    b"{}:0 ,",
    b"{}:",
    b"{}",
    b"{}:0:0",
    b"{}:999999999999",
    b"{}:9999999999999999999999999999",
    b"{}:1e0",
    b"{}:\xd9\xa0",
    b"x{}:0",
    b"{}:0, {}:0",
    b"17",
    NEVER.encode() + b":0",
    b"\xff",
    b"*",
]


@pytest.mark.parametrize("form", [CHAT, ANTHROPIC, GEMINI, OLLAMA], ids=str)
async def test_id_that_is_no_event_of_any_stream_is_404_where_a_model_is_called(rig, form):
    """33: no upstream of a model gave it -> 404 in the SDK's shape; the upstream saw no call."""
    stream = await begin(rig, form, IDS)
    await passed(stream, form.events[0])
    for value in NO_EVENT:
        given = value.replace(b"{}", stream.name.encode())
        answer = await again(rig, "POST", form.target, (b"Last-Event-ID", given), body=form.body)
        assert (answer.status, answer.header("slipstream-error")) == (404, b"not_found"), value
        assert orjson.loads(answer.body)["error"]
    await ended(stream.call, *form.events[1:])
    await stream.answer.rest()
    assert rig.uncalled()


async def test_id_that_is_no_event_of_this_stream_is_404_at_its_address(rig):
    """33: beyond what exists, negative, huge, of another stream -> 404, and the next who asks well is served."""
    first = await begin(rig, CHAT, IDS)
    await ended(first.call, CHAT.whole)
    await first.answer.rest()
    stream = await begin(rig, CHAT, IDS)
    await passed(stream, CHAT.events[0])
    shown = set()
    for value in [*NO_EVENT, first.name.encode() + b":0"]:
        given = value.replace(b"{}", stream.name.encode())
        answer = await again(rig, "GET", STREAMS + stream.name, (b"Last-Event-ID", given))
        assert (answer.status, answer.header("slipstream-error"), answer.end) == (
            404,
            b"not_found",
            "whole",
        ), value
        shown.add(tuple(name for name, _ in answer.headers))
    assert len(shown) == 1
    _, answer = await back(rig, CHAT, "stream", stream.name, 0)
    await ended(stream.call, *CHAT.events[1:])
    assert await answer.rest() == stamped(CHAT.events[1:], stream.name, 1)


@pytest.mark.parametrize(
    "changed",
    [
        {"body": CHAT.body.replace(b'"m"', b'"n"')},
        {"body": b"{}"},
        {"target": "/v1/completions"},
        {"target": CHAT.target + "?a=b"},
        {"target": "/agent"},
        {"method": "PUT"},
        {"body": b"x" * (33 << 20)},
    ],
    ids=["model", "empty", "path", "query", "non-model", "method", "too-large"],
)
async def test_id_on_another_request_than_the_one_that_gave_it_is_404(rig, changed):
    """33: the id is right, the request is not the same -> 404, and the upstream saw no call."""
    stream = await begin(rig, CHAT, IDS)
    await passed(stream, CHAT.events[0])
    rig.script("/v1/completions")
    rig.script("/agent")
    client = await rig.connect()
    sending = asyncio.ensure_future(
        client.send(returning(CHAT._replace(**changed), "again", stream.name, 0, IDS))
    )
    answer = await client.answer()
    await answer.rest()
    assert (answer.status, answer.header("slipstream-error"), answer.end) == (404, b"not_found", "whole")
    client.reset()
    await asyncio.wait([sending])
    assert sending.exception() is None or isinstance(sending.exception(), ConnectionError)
    await ended(stream.call, *CHAT.events[1:])
    await stream.answer.rest()
    assert rig.uncalled()
    assert len(rig.provider.requests) == 1


async def test_refused_return_leaves_the_connection_in_step(rig):
    """33: refused before its body was read -> what is pipelined behind is served."""
    stream = await begin(rig, CHAT, IDS)
    await ended(stream.call, CHAT.whole)
    await stream.answer.rest()
    client = await rig.connect()
    await client.send(
        returning(CHAT, "again", NEVER, 0)
        + returning(CHAT, "stream", NEVER, 0)
        + returning(CHAT, "again", stream.name, 9)
        + returning(CHAT, "stream", stream.name, 1)
        + returning(CHAT, "again", stream.name, 2)
    )
    for method in ("POST", "GET", "POST"):
        answer = await client.answer(method)
        await answer.rest()
        assert (answer.status, answer.end) == (404, "whole")
    for had in (2, 3):
        answer = await client.answer()
        assert await answer.rest() == stamped(CHAT.events[had:], stream.name, had)
    assert rig.uncalled()


# 35: impossible.


@pytest.mark.parametrize("value", [b"a\rb", b"a\0b", b"a\r\n b", b"\0", b"a\r"], ids=repr)
@BOTH
@pytest.mark.proxy_only("what is no HTTP is for the server to refuse")
async def test_last_event_id_with_a_line_end_or_nul_is_400(rig, value, way):
    """35: CR, a folded line, NUL -> 400, closed, no call."""
    rig.script(CHAT.target)
    client = await rig.connect()
    sent = returning(CHAT, way, NEVER, 0).replace(NEVER.encode() + b":0", value)
    await client.send(sent)
    answer = await client.answer()
    await answer.rest()
    assert (answer.status, answer.header("slipstream-error")) == (400, b"bad_request")
    assert await client.closed() == b""
    assert rig.provider.accepted == 0


@BOTH
@pytest.mark.proxy_only("what is no HTTP is for the server to refuse")
async def test_last_event_id_of_10_mb_is_400(rig, way):
    """35: 10 MB -> 400, no call, no memory."""
    client = await rig.connect()
    sent = returning(CHAT, way, NEVER, 0).replace(NEVER.encode() + b":0", b"s" * 10_000_000)
    sending = asyncio.ensure_future(client.send(sent))
    answer = await client.answer()
    await answer.rest()
    client.reset()
    await asyncio.wait([sending])
    assert sending.exception() is None or isinstance(sending.exception(), ConnectionError)
    assert (answer.status, answer.header("slipstream-error")) == (400, b"bad_request")
    assert rig.provider.accepted == 0


@pytest.mark.parametrize(
    "after",
    [
        "abc",
        "-1",
        "2",
        "1000000",
        "9" * 40,
        "",
        "+1",
        "1.0",
        "0x1",
        "%C2%B2",
        "1e0",
        "1&after=x",
        "%00",
        "1,1",
        "NaN",
    ],
)
async def test_count_that_is_none_or_beyond_what_exists_is_400_and_says_what_is_possible(rig, after):
    """?after=what is no count -> 400, which names it and the most there is; the stream goes on."""
    stream = await begin(rig, CHAT)
    await passed(stream, CHAT.events[0])
    answer = await again(rig, "GET", f"{STREAMS}{stream.name}?after={after}")
    assert (answer.status, answer.header("slipstream-error"), answer.end) == (400, b"bad_request", "whole")
    problem = orjson.loads(answer.body)
    assert problem["status"] == 400
    assert "after" in problem["detail"]
    assert "1" in problem["detail"]
    await ended(stream.call, *CHAT.events[1:])
    assert (await stream.answer.rest(), stream.answer.end) == (CHAT.whole, "whole")


# What is left of it in the log.


async def test_every_request_leaves_one_line_and_no_line_the_credential(rig):
    """49: streams, returns, refusals, stops -> a line each, with the stream's id, and never what proves who asks."""
    secret = b"sk-planted-credential"
    target = CHAT.target + "?key=" + secret.decode()
    form = CHAT._replace(target=target)
    asked = 0
    stream = await begin(rig, form, IDS, KEY)
    await passed(stream, CHAT.events[0])
    await left(rig, stream)
    query = "?key=" + secret.decode()
    client = await rig.connect()
    given = [KEY, IDS, (b"Last-Event-ID", stream.name.encode() + b":0")]
    answer = await client.ask("GET", STREAMS + stream.name + query, fields=given)
    await ended(stream.call, *CHAT.events[1:])
    assert await answer.rest() == stamped(CHAT.events[1:], stream.name, 1)
    asked += 2
    for method, path, fields, status in [
        ("GET", stream.name + query, [KEY], 200),
        ("GET", stream.name + query, [*SOURCE, KEY, (b"Last-Event-ID", stream.name.encode() + b":3")], 204),
        ("GET", NEVER + query, [KEY], 404),
        ("GET", stream.name, [KEY], 404),
        ("GET", stream.name + query + "&after=9", [KEY], 400),
        ("DELETE", stream.name + query, [KEY], 204),
        ("DELETE", stream.name + query, [KEY], 410),
        ("GET", stream.name + query, [KEY], 410),
        ("PUT", stream.name + query, [KEY], 405),
        ("GET", secret.decode(), [KEY], 404),
    ]:
        assert (await again(rig, method, STREAMS + path, *fields)).status == status
        asked += 1
    lines = [await rig.line(number) for number in range(asked)]
    assert len(rig.sidecar.lines.requests) == asked
    assert len({line["request_id"] for line in lines}) == asked
    own = [line for line in lines if line["status"] in (200, 204) or line["path"] == CHAT.target]
    assert {line["stream_id"] for line in own} == {stream.name}
    assert [(line["status"], line["outcome"], line["resumed_from"]) for line in lines] == [
        (200, "cancelled", None),
        (200, "complete", 1),
        (200, "complete", 0),
        (204, "complete", 4),
        (404, "refused", None),
        (404, "refused", None),
        (400, "refused", None),
        (204, "complete", None),
        (410, "refused", None),
        (410, "refused", None),
        (405, "refused", None),
        (404, "refused", None),
    ]
    assert {line["tenant"] for line in lines[:5]} == {lines[0]["tenant"]}
    assert lines[0]["tenant"]
    for raw in rig.sidecar.lines.raw[:-1]:
        assert secret not in raw
        assert b"sk-planted" not in raw
