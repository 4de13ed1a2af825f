"""SidecarMiddleware: streams as clients see them, and how they come back to one."""

import asyncio
import re
import socket

import pytest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.plugin.rig import STREAM, Feed, eventually, said, soon

POST = ["POST"]
ID = re.compile(r"s[0-9A-Za-z_-]{10,}")
KEPT = b": keepalive\n"


def with_ids(name, *numbers):
    return b"".join(b"data: %d\nid: %b:%d\n\n" % (n, name.encode(), n) for n in numbers)


async def test_the_head_is_there_before_anything_else(serve):
    feed = Feed(status_code=200, headers={"x-mine": "1"})
    served = await serve([feed.at()])
    client = await (await served.post()).head()
    assert client.status == 200 and feed.runs[0].queue.empty()
    assert client.headers["content-type"].startswith("text/event-stream")
    assert client.headers["x-mine"] == "1"
    assert client.headers["x-accel-buffering"] == "no" and client.headers["cache-control"] == "no-cache"
    assert client.cache == "slipstream; fwd=miss; stored" and ID.fullmatch(client.stream_id)
    timing = dict(part.strip().split(";dur=") for part in client.headers["server-timing"].split(","))
    assert {*timing} == {"read", "lookup", "connect", "upstream"} and all(
        float(ms) >= 0 for ms in timing.values()
    )
    feed.end()
    assert (await client.rest()).end == "whole"


async def test_what_the_app_says_in_its_head_goes_first(serve):
    feed = Feed(headers={"cache-control": "private", "x-accel-buffering": "yes"})
    served = await serve([feed.at()])
    client = await (await served.post()).head()
    assert client.headers["cache-control"] == "private" and client.headers["x-accel-buffering"] == "yes"


async def test_each_chunk_before_the_next_is_asked_for(serve):
    asked, got = [], asyncio.Event()

    async def pieces():
        for number in range(5):
            asked.append(number)
            yield b"data: "
            yield b"%d\n\n" % number
            await got.wait()
            got.clear()

    async def endpoint(request):
        return StreamingResponse(pieces(), media_type="text/event-stream")

    served = await serve([Route("/chat", endpoint, methods=POST)])
    client = await (await served.post()).head()
    for number in range(5):
        await client.until(said(number))
        assert asked == list(range(number + 1))
        got.set()
    assert (await client.rest()).body == b"".join(map(said, range(5)))


async def test_ids_are_for_those_who_take_them(serve):
    feed = Feed()
    served = await serve([feed.at()])
    client = await (await served.post(headers=STREAM)).head()
    feed.say(said(0), b": a comment\n\n", b"event: x\nid: mine\ndata: 1\n\n", said(2))
    feed.end()
    await client.rest()
    name = client.stream_id
    assert client.body == with_ids(name, 0) + b": a comment\n\nevent: x\nid: mine\ndata: 1\n\n" + said(2)


async def test_keepalives_only_between_events(serve):
    feed = Feed()
    served = await serve([feed.at()], config={"keepalive": {"interval": 0.02}})
    client = await (await served.post()).head()
    await client.until(KEPT * 2)
    feed.say(said(1), b"data: half")
    await client.until(b"data: half")
    assert client.body.endswith(said(1) + b"data: half")
    feed.say(b" and half\n\n")
    await client.until(KEPT)
    feed.end()
    await client.rest()
    assert client.body.replace(KEPT, b"") == said(1) + b"data: half and half\n\n"
    line = await soon(served.lines.request())
    assert line["keepalives"] == client.body.count(KEPT) and line["events"] == 2
    again = await served.ask()
    assert again.body == said(1) + b"data: half and half\n\n"


async def test_no_keepalive_in_half_an_event(serve):
    feed = Feed()
    served = await serve([feed.at(), feed.at("/other")], config={"keepalive": {"interval": 0.01}})
    half, other = await (await served.post()).head(), await (await served.post("/other")).head()
    feed.say(b"data: half", run=0)
    await half.until(b"data: half")
    before = len(half.body)
    await other.until(KEPT * 5)  # five times as long
    feed.end(0)
    await half.rest()
    assert half.body[before:] == b""


async def test_no_keepalive_in_other_answers(serve):
    feed, other = Feed(kind="application/json"), Feed()
    served = await serve([feed.at(), other.at("/other")], config={"keepalive": {"interval": 0.01}})
    client = await (await served.post()).head()
    assert "slipstream-stream-id" not in client.headers and "x-accel-buffering" not in client.headers
    await (await (await served.post("/other")).head()).until(KEPT * 5)
    feed.say(b'{"a":1}')
    feed.end()
    assert (await client.rest()).body == b'{"a":1}'


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("way", ["after", "last-event-id", "post", "both"])
async def test_coming_back(serve, way, live):
    feed = Feed()
    served = await serve([feed.at()])
    client = await (await served.post(headers=STREAM | {"slipstream-disconnect": "finish"})).head()
    name = client.stream_id
    feed.say(said(0), said(1))
    await client.until(b":1\n\n")
    client.close()
    await eventually(lambda: served.assembly.hub.left)
    if not live:
        feed.say(said(2))
        feed.end()
        await served.idle()
    target, last = f"/_slipstream/streams/{name}", {"last-event-id": f"{name}:0"}
    if way == "post":
        back = await served.post(headers=STREAM | last)
    else:
        headers = STREAM | last if way in ("last-event-id", "both") else STREAM
        query = {"after": "?after=1", "both": "?after=0"}.get(way, "")
        back = await served.send("GET", target + query, b"", headers)
    await back.head()
    assert back.status == 200 and back.stream_id == name
    if live:
        await back.until(with_ids(name, 1))
        feed.say(said(2))
        feed.end()
    await back.rest()
    assert (back.body, back.end) == (with_ids(name, 1, 2), "whole")
    assert len(feed.runs) == 1
    await eventually(lambda: any(line["resumed_from"] == 1 for line in served.lines.requests))


async def test_coming_back_to_nothing(serve):
    feed = Feed()
    served = await serve([feed.at()])
    client = await (await served.post(headers=STREAM)).head()
    feed.say(said(0))
    await client.until(b":0\n\n")
    name = client.stream_id
    changed = name[:-1] + ("a" if name[-1] != "a" else "b")
    for other in (changed, "s", "x" * 500, name + "x", "s%00", "jobs", name.upper()):
        assert (await served.get(f"/_slipstream/streams/{other}")).status == 404, other
    for last in (f"{changed}:0", f"{name}:99"):
        assert (await served.ask(headers=STREAM | {"last-event-id": last})).status == 404
    target = f"/_slipstream/streams/{name}"
    assert (await served.get(target, {"last-event-id": f"{changed}:0"})).status == 404
    for query in ("?after=x", "?after=-1", "?after=2"):
        assert (await served.get(target + query)).status == 400
    assert (await served.ask(target, b"", {}, "POST")).status == 405
    # Another question cannot be continued with this one's answer.
    assert (await served.ask("/chat", b"[7]", STREAM | {"last-event-id": f"{name}:0"})).status == 404
    feed.end()


async def test_a_stopped_stream_is_gone(serve):
    feed = Feed()
    served = await serve([feed.at()])
    client = await (await served.post(headers=STREAM)).head()
    feed.say(said(0))
    await client.until(b":0\n\n")
    target = f"/_slipstream/streams/{client.stream_id}"
    assert (await served.ask(target, b"", {}, "DELETE")).status == 204
    await client.rest()
    assert client.end == "cut" and b"event: error\n" in client.body
    await soon(feed.runs[0].closed.wait(), 1.5)
    assert (await served.get(target)).status == 410
    assert (await served.ask(headers=STREAM | {"last-event-id": f"{client.stream_id}:0"})).status == 410
    await served.idle()
    assert not served.raised


async def test_a_stream_that_is_kept_no_longer_is_gone(serve):
    feed = Feed()
    served = await serve([feed.at()], config={"resume": {"keep": 0.01}, "cache": {"ttl": 0}})
    client = await (await served.post(headers=STREAM)).head()
    feed.end()
    await client.rest()
    target = f"/_slipstream/streams/{client.stream_id}"

    async def status():
        while (found := (await served.get(target)).status) == 200:
            pass
        return found

    assert await soon(status()) == 410


async def test_a_hit_can_be_come_back_to(serve):
    feed = Feed()
    served = await serve([feed.at()])
    first = await (await served.post(headers=STREAM)).head()
    feed.say(said(0), said(1))
    feed.end()
    await first.rest()
    hit = await served.ask(headers=STREAM)
    assert hit.cache.startswith("slipstream; hit") and hit.body == with_ids(hit.stream_id, 0, 1)
    back = await served.ask(headers=STREAM | {"last-event-id": f"{hit.stream_id}:0"})
    assert back.body == with_ids(hit.stream_id, 1) and len(feed.runs) == 1
    assert int(hit.headers["age"]) >= 0


async def test_an_event_source_is_told_to_stay_away(serve):
    feed = Feed()
    served = await serve([feed.at()])
    client = await (await served.post(headers=STREAM)).head()
    feed.say(said(0))
    feed.end()
    await client.rest()
    last = {"last-event-id": f"{client.stream_id}:0", "cache-control": "no-cache"}
    back = await served.get(f"/_slipstream/streams/{client.stream_id}", STREAM | last)
    assert (back.status, back.body) == (204, b"")


@pytest.mark.parametrize("size", [10, 5_000_000])
async def test_a_stream_without_a_done_is_whole(serve, size):
    feed = Feed()
    served = await serve([feed.at("/v1/chat/completions")])
    body = b'{"model":"m","stream":true,"messages":[]}'
    client = await (await served.post("/v1/chat/completions", body)).head()
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b"x" * size)
    feed.say(chunk)
    feed.end()
    await client.rest()
    assert (client.body, client.end) == (chunk, "whole")
    line = await soon(served.lines.request())
    assert (line["outcome"], line["error"], line["model"]) == ("complete", None, "m")


async def test_a_slow_reader_is_dropped_and_disturbs_nobody(serve):
    go, size = asyncio.Event(), 1 << 16
    event = b"data: " + b"x" * size + b"\n\n"

    async def pieces():
        for _ in range(200):
            yield event
            await asyncio.sleep(0)
        await go.wait()
        yield event

    async def endpoint(request):
        return StreamingResponse(pieces(), media_type="text/event-stream")

    served = await serve([Route("/chat", endpoint, methods=POST)], config={"timeouts": {"client": 0.1}})
    slow = await asyncio.open_connection("127.0.0.1", served.port, limit=1)
    slow[1].get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow[1].write(b"POST /chat HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n{}")
    await served.active(1)
    quick = await served.post()
    reading = asyncio.create_task(quick.answer())
    line = await soon(served.lines.request())
    assert line["outcome"] == "cancelled"
    await eventually(lambda: len(quick.body) == len(event) * 200)
    go.set()
    await reading
    assert quick.cache == "slipstream; fwd=miss; collapsed"
    assert (quick.body, quick.end) == (event * 201, "whole")
    slow[1].close()


async def test_an_empty_answer(serve):
    async def endpoint(request):
        return Response(b"", media_type="text/event-stream")

    served = await serve([Route("/chat", endpoint, methods=POST)])
    for _ in range(2):
        client = await served.ask()
        assert (client.status, client.body, client.end) == (200, b"", "whole")
