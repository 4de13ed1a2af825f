"""Answers that are not paid for twice: a miss and what is stored, a hit and its bytes, in every format."""

import asyncio

import orjson
import pytest

from sidecar.scripted import Script
from tests.faults.cache import (
    FORM,
    FORMS,
    KEY,
    MISS,
    PLAIN,
    SPOKEN,
    STREAMED,
    STREAMS,
    TOOLS,
    UNSTORED,
    ask,
    asked,
    begun,
    clocked,
    counts,
    filled,
    hits,
    is_hit,
    misses,
    patched,
    said,
    settled,
    spoken,
    streamed,
    told,
)
from tests.faults.comeback import IDS, back, bare, numbers
from tests.faults.comeback import STREAMS as STREAM_URL
from tests.faults.wire import CHAT, GUARD, Answer, chunk, head, request

pytestmark = pytest.mark.both_shells

SCRIPTS = {
    "text": Script(),
    "reasoning": Script(reasoning=4),
    "tools": Script(tool=True),
    "crlf": Script(newline="\r\n"),
    "bytewise": Script(split=1, tokens=3),
    "closed": Script(framing="close"),
    "sized": Script(framing="length"),
}


@pytest.mark.parametrize("kind", SCRIPTS)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.asgi_every(3)
async def test_a_miss_is_stored_and_a_hit_has_its_bytes(rig, tmp_path, form, kind):
    """38: text, reasoning, tool calls, usage, in any framing -> the bytes of the first answer, from memory, from
    the disk and from the fast way."""
    await rig.start(cache__ttl=3600, folder=tmp_path)
    rig.provider.script = SCRIPTS[kind]
    form = patched(form, **TOOLS) if kind == "tools" and "prompt" not in form.body else form
    first = await filled(rig, form, KEY)
    assert first.body
    again = await hits(rig, form, first, KEY)
    kept = [field for field in first.headers if field[0].lower() not in CHANGED]
    assert [field for field in again.headers if field[0].lower() not in CHANGED] == kept
    rig.sidecar.service.assembly.cache._hot.clear()
    from_disk = await hits(rig, form, first, KEY)
    assert [field for field in from_disk.headers if field[0].lower() not in CHANGED] == kept
    client = await rig.connect()
    sent = request("POST", form.target, form.sent, [KEY])
    for _ in range(3):
        await client.send(sent)
        answer = await client.answer("POST")
        await answer.rest()
        assert is_hit(answer)
        assert answer.body == first.body
        assert [field for field in answer.headers if field[0].lower() not in CHANGED] == kept
    assert asked(rig) == 1
    found = rig.sidecar.service.assembly.cache.counts
    assert (found["hit_memory"], found["hit_disk"], found["stored"]) == (4, 1, 1)


CHANGED = {
    b"cache-status",
    b"age",
    b"server-timing",
    b"slipstream-stream-id",
    b"transfer-encoding",
    b"connection",
}


@pytest.mark.parametrize("form", FORMS, ids=str)
async def test_lines_of_a_miss_and_a_hit(rig, tmp_path, form):
    """The line says hit and kind, the phases, the tokens of the stored answer, and no secret."""
    await rig.start(cache__ttl=3600, folder=tmp_path)
    await hits(rig, form, await filled(rig, form, KEY), KEY)
    client = await rig.connect()
    for _ in range(2):
        await client.whole("POST", form.target, form.sent, [KEY])
    miss, *rest = [await rig.line(number) for number in range(4)]
    assert (miss["cache"], miss["cache_kind"]) == ("miss", None)
    assert miss["phases"]["store_ms"] is not None
    assert miss["phases"]["lookup_ms"] is not None
    for line in rest:
        assert (line["cache"], line["cache_kind"], line["outcome"]) == ("hit", "exact", "complete")
        phases = line["phases"]
        assert phases["lookup_ms"] is not None
        assert (phases["connect_ms"], phases["upstream_ms"], phases["store_ms"]) == (None, None, None)
        same = ("model", "response_model", "input_tokens", "output_tokens", "cached_input_tokens")
        same += ("reasoning_tokens", "events", "bytes", "stream", "provider", "operation", "upstream")
        same += ("ttft_kind", "tenant", "path", "method", "status")
        assert {name: line[name] for name in same} == {name: miss[name] for name in same}
        assert (line["ttft_ms"] is None) == (miss["ttft_ms"] is None)
        assert line["ttfb_ms"] is not None
        assert line["overhead_ms"] is not None
    assert len({line["request_id"] for line in rest}) == 3
    assert b"planted" not in b"".join(rig.sidecar.lines.raw)


@pytest.mark.parametrize("form", [PLAIN, STREAMED, FORM["gemini-array"]], ids=str)
@pytest.mark.proxy_only("uvicorn writes head and body apart")
async def test_a_hit_is_one_write(rig, form):
    """A hit: head and body together, the end of the body, too."""
    await rig.start(cache__ttl=3600)
    first = await filled(rig, form, KEY)
    for _ in range(2):
        client = await rig.connect()
        await client.send(request("POST", form.target, form.sent, [KEY]))
        async with asyncio.timeout(GUARD):
            data = await client.reader.read(1 << 20)
        start, _, body = data.partition(b"\r\n\r\n")
        assert b"; hit; " in start
        if b"\r\nTransfer-Encoding: chunked" in start:
            assert body == b"%x\r\n%b\r\n0\r\n\r\n" % (len(first.body), first.body)
        else:
            assert body == first.body


async def test_a_hit_says_nothing_that_belonged_to_another_request(rig):
    """Set-Cookie and the upstream's Age are the first request's; hop-by-hop fields end; the rest is kept."""
    await rig.start(cache__ttl=3600)
    fields = [b"Set-Cookie: planted=1", b"set-cookie: b=2", b"Age: 7", b"X-Request-Id: r", b"X-Twice: 1"]
    fields += [b"X-Twice: 2", b"Connection: x-hop", b"X-Hop: 1", b'Cache-Status: cdn; hit; detail="a, b"']
    client, call = await begun(rig, PLAIN)
    await told(call, said(), *fields)
    first = await client.answer("POST")
    await first.rest()
    assert len(first.all("set-cookie")) == 2
    await settled(rig, 1)
    for _ in range(2):
        answer = await client.whole("POST", PLAIN.target, PLAIN.sent)
        assert answer.body == first.body
        assert answer.all("set-cookie") == []
        assert answer.all("x-hop") == []
        assert (answer.all("x-twice"), answer.header("x-request-id")) == ([b"1", b"2"], b"r")
        assert answer.header("age") in (b"0", b"7")  # its own age, with or without the upstream's
        theirs, ours = answer.all("cache-status")
        assert theirs == b'cdn; hit; detail="a, b"'
        assert ours.startswith(b"slipstream; hit; ttl=")


async def test_a_hit_tells_its_age_and_what_is_left(rig):
    """RFC 9111, 5.1, and RFC 9211: whole seconds, by the sidecar's clock, on the fast way, too."""
    await rig.start(cache__ttl=3600)
    clock = clocked(rig.sidecar)
    first = await filled(rig, PLAIN)
    client = await rig.connect()
    for age, moved in enumerate([0.0, 1.5, 1.0, 1.0]):
        clock.now += moved
        answer = await client.whole("POST", PLAIN.target, PLAIN.sent)
        assert answer.body == first.body
        assert answer.header("age") == b"%d" % age
        left = 3600 - [0, 1.5, 2.5, 3.5][age]
        assert answer.header("cache-status") == b"slipstream; hit; ttl=%d; detail=exact" % left


# How a client asks.


async def test_the_same_in_other_words_is_a_hit(rig):
    """37: key order, whitespace, escapes and the spelling of numbers do not count; nor does the framing."""
    await rig.start(cache__ttl=3600)
    form = PLAIN._replace(body={"model": "m", "n": 100, "messages": [], "top_p": 0.5})
    first = await filled(rig, form)
    for body in (
        b'{"messages":[],"top_p":0.5,"n":100,"model":"m"}',
        b' {\n "top_p" : 5e-1, "model":"\\u006d",\t"messages":[ ],"n":100}\r\n',
    ):
        await hits(rig, form, first, body=body)
    client = await rig.connect()
    chunked = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(form.sent), form.sent)
    start = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    for _ in range(3):
        await client.send(start + chunked)
        answer = await client.answer("POST")
        await answer.rest()
        assert is_hit(answer)
        assert answer.body == first.body


async def test_pipelined_hits_come_in_order(rig):
    """Several requests in one piece are several requests."""
    await rig.start(cache__ttl=3600)
    one, other = patched(PLAIN, user="1"), patched(STREAMED, user="2")
    firsts = {form.name: (await filled(rig, form)).body for form in (one, other)}
    client = await rig.connect()
    order = [one, one, other, one, other, other, one]
    for count in (1, 2, len(order)):
        await client.send(b"".join(request("POST", form.target, form.sent) for form in order[:count]))
        for form in order[:count]:
            answer = await client.answer("POST")
            assert await answer.rest() == firsts[form.name]
    assert asked(rig) == 2


async def test_bytes_inside_a_body_are_no_request(rig):
    """A body that holds the bytes of a request that is known: it is a body."""
    await rig.start(cache__ttl=3600)
    first = await filled(rig, PLAIN)
    sent = request("POST", PLAIN.target, PLAIN.sent)
    client = await rig.connect()
    for _ in range(2):
        await client.send(sent)
        assert await (await client.answer("POST")).rest() == first.body
    before = asked(rig)
    start = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
    await client.send(start % len(sent))
    await rig.provider.wait_for(before + 1)
    await client.send(sent)
    answer = await client.answer("POST")
    assert await answer.rest() == sent
    assert not answer.all("cache-status")


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
async def test_a_client_of_the_old_protocol_or_that_closes(rig, version):
    """HTTP/1.0 and `Connection: close`: framed as each can read it, and the connection ends."""
    await rig.start(cache__ttl=3600)
    first = await filled(rig, STREAMED)
    sent = request("POST", STREAMED.target, STREAMED.sent, [(b"Connection", b"close")])
    for _ in range(2):
        client = await rig.connect()
        await client.send(sent.replace(b"HTTP/1.1", version, 1))
        answer = await client.answer("POST")
        assert await answer.rest() == first.body
        assert b"; hit; " in answer.header("cache-status")
        assert answer.end == "whole"
        assert await client.closed() == b""


# Coming back to a hit.


@pytest.mark.parametrize("way", ["stream", "again"])
@pytest.mark.parametrize("name", ["chat-stream", "responses-stream", "anthropic-stream"])
async def test_a_client_comes_back_to_a_hit(rig, way, name):
    """31: a hit has ids for those who can use them, and is resumed at every event, without a gap, from its own
    caller only."""
    await rig.start(cache__ttl=3600)
    form = FORM[name]
    first = await filled(rig, form, KEY)
    answer = await ask(rig, form, KEY, IDS)
    assert is_hit(answer)
    assert bare(answer.body) == first.body
    stream = answer.header("slipstream-stream-id").decode()
    events = numbers(answer.body)
    assert events == list(range(len(events)))
    assert len(events) > 3
    shown = as_format(form)
    for number in (0, 1, len(events) - 2):
        _, rest = await back(rig, shown, way, stream, number, KEY, IDS, (b"Cache-Control", b"no-cache"))
        assert rest.status == 200
        await rest.rest()
        assert rest.end == "whole"
        assert numbers(rest.body) == events[number + 1 :]
        assert first.body.endswith(bare(rest.body))
        foreign, refused = await back(rig, shown, way, stream, number, IDS)
        await refused.rest()
        assert refused.status == 404
        foreign.close()
    assert asked(rig) == 1
    line = await rig.line(1)
    assert (line["stream_id"], line["cache"]) == (stream, "hit")


def as_format(form):
    """As the tests of coming back know it."""
    return SPOKEN._replace(target=form.target, body=form.sent)


async def test_a_hit_without_ids_still_names_its_stream(rig):
    """A client that counts comes back with `after`; Gemini's and Ollama's, too."""
    for form in STREAMS:
        await rig.start(cache__ttl=3600)
        first = await filled(rig, form, KEY)
        answer = await hits(rig, form, first, KEY)
        stream = answer.header("slipstream-stream-id").decode()
        assert stream != first.header("slipstream-stream-id").decode()
        client = await rig.connect()
        rest = await client.whole("GET", f"{STREAM_URL}{stream}?after=2", None, [KEY])
        assert rest.status == 200
        assert first.body.endswith(rest.body)
        assert 0 < len(rest.body) < len(first.body)


# Replays.


async def test_a_paced_replay_has_the_same_bytes_one_by_one(rig):
    """`cache.replay = "paced"`: event by event, and never from the fast way; what is no stream comes at once."""
    await rig.start(cache__ttl=3600, cache__replay="paced", keepalive__interval=0)
    rig.provider.script = Script(tokens=6, interval=0.002)
    first = await filled(rig, STREAMED)
    client = await rig.connect()
    for _ in range(3):
        await client.send(request("POST", STREAMED.target, STREAMED.sent))
        answer = await client.answer("POST")
        pieces = []
        while data := await answer.more():
            pieces.append(data)
        assert b"".join(pieces) == first.body
        assert is_hit(answer)
        assert len(pieces) > 3
    plain = patched(PLAIN, user="another")
    await hits(rig, plain, await filled(rig, plain))
    lines = [await rig.line(number) for number in range(4)]
    assert [line["cache"] for line in lines] == ["miss", "hit", "hit", "hit"]
    assert {line["output_tokens"] for line in lines} == {lines[0]["output_tokens"]}


async def test_a_client_leaves_a_paced_replay(rig):
    """23: nothing is left of it."""
    await rig.start(cache__ttl=3600, cache__replay="paced")
    rig.provider.script = Script(tokens=3, interval=0.3)
    await filled(rig, STREAMED)
    client = await rig.connect()
    await client.send(request("POST", STREAMED.target, STREAMED.sent))
    answer = await client.answer("POST")
    await answer.more()
    assert len(rig.sidecar.service.assembly.hub) == 1
    client.reset()
    await settled(rig, 1)
    assert (await rig.line(1))["outcome"] == "cancelled"
    assert asked(rig) == 1


@pytest.mark.parametrize("form", [PLAIN, STREAMED], ids=str)
async def test_fresh_ids(rig, form):
    """`cache.fresh_ids`: each hit has an id and a time of its own, the same length, and else the same bytes."""
    await rig.start(cache__ttl=3600, cache__fresh_ids=True)
    first = await filled(rig, form)
    client = await rig.connect()
    seen = [identity(first)]
    for _ in range(4):
        answer = await client.whole("POST", form.target, form.sent)
        assert is_hit(answer)
        assert len(answer.body) == len(first.body)
        seen.append(identity(answer))
        old, new = (b'"%b"' % ident.encode() for ident in (seen[0][0], seen[-1][0]))
        made = answer.body.replace(new, old).replace(b"%d" % seen[-1][1], b"%d" % seen[0][1])
        assert made == first.body
    assert len({ident for ident, _ in seen}) == 5
    assert all(created > seen[0][1] for _, created in seen[1:])
    assert asked(rig) == 1


def identity(answer: Answer) -> tuple[str, int]:
    text = bytes(answer.body)
    data = text.partition(b"data: ")[2].partition(b"\n")[0] if text.startswith(b"data: ") else text
    value = orjson.loads(data)
    return value["id"], value["created"]


# Across modes.

BOTH = ["chat", "anthropic", "ollama-chat", "ollama-generate", "gemini", "completions"]
TWINS = {"gemini": "gemini-sse"}


@pytest.mark.parametrize("tier", ["memory", "disk"])
@pytest.mark.parametrize("first", ["stream", "whole"])
@pytest.mark.parametrize("name", BOTH)
async def test_across_modes(rig, tmp_path, name, first, tier):
    """A stored stream answers the same request without `stream`, and the other way round; both are hits, and
    so is each again."""
    await rig.start(cache__ttl=3600, folder=tmp_path)
    whole, stream = FORM[name], FORM[TWINS.get(name, f"{name}-stream")]
    one, other = (stream, whole) if first == "stream" else (whole, stream)
    await filled(rig, one, KEY)
    if tier == "disk":
        rig.sidecar.service.assembly.cache._hot.clear()
    made = await ask(rig, other, KEY)
    assert is_hit(made), made.headers
    if other.stream:
        assert made.header("content-length") is None
        assert made.header("slipstream-stream-id")
    else:
        assert orjson.loads(bytes(made.body))
        assert made.header("content-length") == b"%d" % len(made.body)
        assert made.header("content-type") == b"application/json"
        assert made.header("slipstream-stream-id") is None
    await hits(rig, other, made, KEY)
    assert not is_hit(await ask(rig, other))  # another scope
    lines = [await rig.line(number) for number in range(2)]
    same = ("input_tokens", "output_tokens", "response_model", "model")
    assert {at: lines[0][at] for at in same} == {at: lines[1][at] for at in same}
    assert [line["stream"] for line in lines] == [one.stream, other.stream]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (patched(STREAMED, stream_options={}), PLAIN),
        (FORM["responses"], FORM["responses-stream"]),
    ],
    ids=["a stream without usage", "responses"],
)
async def test_across_modes_where_it_is_not_exact(rig, one, other):
    """What cannot be told exactly is a miss, and is stored for itself."""
    await rig.start(cache__ttl=3600)
    first = await filled(rig, one)
    second = await misses(rig, other)
    assert second.header("cache-status") == MISS
    await settled(rig, 2)
    await hits(rig, one, first)
    await hits(rig, other, second)
    assert counts(rig) == {}


# Whose call it was.


@pytest.mark.parametrize("form", [PLAIN, STREAMED], ids=str)
async def test_the_answer_of_a_job_is_stored(rig, tmp_path, form):
    """A job's answer is found by the same request, and a request for a job makes a job all the same."""
    await rig.start(cache__ttl=3600, folder=tmp_path)
    client = await rig.connect()
    asynchronous = (b"Prefer", b"respond-async, wait=10")
    first = await client.whole("POST", form.target, form.sent, [KEY, asynchronous])
    assert first.status == 200
    await settled(rig, 1)
    again = await hits(rig, form, first, KEY)
    assert again.header("content-type") == first.header("content-type")
    second = await client.whole("POST", form.target, form.sent, [KEY, (b"Prefer", b"respond-async")])
    assert second.status == 202
    await rig.provider.wait_for(2)
    await settled(rig, 2)


async def test_what_a_call_that_went_on_alone_brought_is_stored(rig):
    """24: the client has left, the call went on to its end -> the next one need not pay again."""
    await rig.start(cache__ttl=3600, disconnect__default="finish")
    client, call = await begun(rig, STREAMED, KEY)
    client.reset()
    await streamed(call, *spoken())
    await settled(rig, 1)
    answer = await ask(rig, STREAMED, KEY)
    assert is_hit(answer)
    assert answer.body == b"".join(spoken())
    assert rig.uncalled()


async def test_a_client_that_hangs_up_on_the_end_marker(rig):
    """Many SDKs do, before the end of the body: all of it is there, and stored."""
    await rig.start(cache__ttl=3600)
    client, call = await begun(rig, STREAMED, KEY)
    await call.send(head(CHAT.kind), *map(chunk, spoken()))
    answer = await client.answer("POST")
    await answer.until_has(b"[DONE]")
    client.close()
    await call.closed()
    await settled(rig, 1)
    assert (await ask(rig, STREAMED, KEY)).body == b"".join(spoken())


async def test_no_stored_is_said_of_what_cannot_be(rig):
    """`stored` is not said where the head already tells that it will not be."""
    await rig.start(cache__ttl=3600)
    client, call = await begun(rig, PLAIN)
    await told(call, b"{}", status=b"500 No")
    answer = await client.answer("POST")
    await answer.rest()
    assert answer.header("cache-status") == UNSTORED
    await settled(rig, 0)
    assert counts(rig) == {"not_stored_status": 1}
