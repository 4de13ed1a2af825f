"""SidecarMiddleware: `progress` and SidecarResponse in an app's own code."""

import asyncio

import orjson
import pytest
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from sidecar_starlette import SidecarResponse, progress, span
from tests.plugin.rig import STREAM, Feed, eventually, said, soon

POST = ["POST"]


def at(endpoint, path="/chat"):
    return Route(path, endpoint, methods=POST)


# ---- progress


def status(message):
    return b'event: status\ndata: {"message":"%b"}\n\n' % message.encode()


async def test_progress_before_and_between(serve):
    async def pieces():
        await progress("first")
        yield said(1)
        await progress("second", done=1, total=2)
        yield said(2)
        await progress("third")

    async def endpoint(request):
        await progress("earliest")
        return StreamingResponse(pieces(), media_type="text/event-stream")

    served = await serve([at(endpoint)])
    client = await served.ask()
    second = b'event: status\ndata: {"message":"second","done":1,"total":2}\n\n'
    assert client.body == (
        status("earliest") + status("first") + said(1) + second + said(2) + status("third")
    ), client.body
    line = await soon(served.lines.request())
    assert (line["events"], line["outcome"]) == (6, "complete")
    assert (await served.ask()).body == client.body


async def test_progress_begins_the_stream(serve):
    gate = asyncio.Event()

    async def pieces():
        yield said(1)

    async def endpoint(request):
        await progress("wait")
        await gate.wait()
        return StreamingResponse(pieces(), media_type="text/event-stream")

    served = await serve([at(endpoint)])
    client = await (await served.post(headers=STREAM)).head()
    assert client.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert client.headers["cache-control"] == "no-cache" and client.headers["x-accel-buffering"] == "no"
    name = client.stream_id.encode()
    first = status("wait")[:-1] + b"id: %b:0\n\n" % name
    await client.until(first)
    gate.set()
    await client.rest()
    assert client.body == first + b"data: 1\nid: %b:1\n\n" % name
    back = await served.get(f"/_slipstream/streams/{client.stream_id}?after=1", STREAM)
    assert back.body == b"data: 1\nid: %b:1\n\n" % name


async def test_without_accept_it_waits_for_the_head(serve):
    gate, begun = asyncio.Event(), asyncio.Event()

    async def endpoint(request):
        await progress("wait")
        begun.set()
        await gate.wait()
        return JSONResponse({"a": 1})

    served = await serve([at(endpoint)])
    client = await served.post()
    await begun.wait()
    gate.set()
    await client.answer()
    assert client.body == b'{"a":1}' and client.headers["content-type"] == "application/json"


@pytest.mark.parametrize("code", [200, 404, 500])
async def test_an_answer_that_is_no_stream_after_progress(serve, code):
    runs = []

    async def endpoint(request):
        runs.append(1)
        await progress("wait")
        return JSONResponse({"secret": 1}, code)

    served = await serve([at(endpoint)])
    for _ in range(2):
        client = await served.ask(headers=STREAM)
        assert client.end == "whole" and client.body.startswith(b"event: status\n")
        last = client.body.split(b"\n\n")[-2]
        if code == 200:
            assert last.startswith(b'data: {"secret":1}\nid: ')
        else:
            assert last.startswith(b"event: error\ndata: {") and b"secret" not in last
    assert len(runs) == (1 if code == 200 else 2)


async def test_a_failure_after_progress(serve):
    async def endpoint(request):
        await progress("wait")
        raise LookupError("hunter2")

    served = await serve([at(endpoint)])
    client = await served.ask(headers=STREAM)
    assert client.status == 200 and client.end == "cut"
    assert b"event: error\n" in client.body and b"hunter2" not in client.body
    assert (await soon(served.lines.request()))["outcome"] == "truncated"
    await served.idle()
    assert [str(error) for error in served.raised] == ["hunter2"]


async def test_progress_is_never_inside_an_event(serve):
    """From tasks of its own, while the app sends halves of events."""
    told, go = asyncio.Event(), asyncio.Event()

    async def tell():
        for number in range(20):
            await progress(str(number))
        told.set()

    async def pieces():
        yield b"data: ha"
        task = asyncio.create_task(tell())
        await told.wait()
        yield b"lf\n"
        await go.wait()
        yield b"\ndata: 2\r\n\r\n"
        await task

    async def endpoint(request):
        return StreamingResponse(pieces(), media_type="text/event-stream")

    served = await serve([at(endpoint)])
    client = await (await served.post()).head()
    await client.until(b"data: half\n")
    assert client.body == b"data: half\n"
    go.set()
    await client.rest()
    assert client.body.startswith(b"data: half\n\n")
    events = client.body.replace(b"\r\n", b"\n").split(b"\n\n")
    assert [event for event in events if event.startswith(b"data")] == [b"data: half", b"data: 2"]
    assert [event + b"\n\n" for event in events if event.startswith(b"event")] == [
        status(str(number)) for number in range(20)
    ]


@pytest.mark.parametrize("kind", ["openai", "json", "ndjson"])
async def test_where_progress_is_not_written(serve, kind):
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
    path = "/v1/chat/completions" if kind == "openai" else "/chat"
    media = {"openai": "text/event-stream", "json": "application/json", "ndjson": "application/x-ndjson"}[
        kind
    ]
    whole = chunk if kind == "openai" else b'{"a":1}\n'

    async def pieces():
        await progress("a")
        yield whole
        await progress("b")

    async def endpoint(request):
        await progress("c")
        return StreamingResponse(pieces(), media_type=media)

    served = await serve([at(endpoint, path)])
    client = await served.ask(path, b'{"model":"m","stream":true}')
    assert client.body == whole


async def test_progress_after_the_end_does_nothing(serve):
    tasks, over = [], asyncio.Event()

    async def late():
        await over.wait()
        await progress("late")
        with span("late"):
            pass

    async def endpoint(request):
        tasks.append(asyncio.create_task(late()))
        return JSONResponse({})

    served = await serve([at(endpoint)])
    await served.ask()
    over.set()
    await soon(tasks[0])


async def test_progress_when_the_client_has_left(serve):
    feed, told = Feed(), []

    async def endpoint(request):
        response = await feed.endpoint(request)
        inner = response.body_iterator

        async def pieces():
            try:
                async for piece in inner:
                    yield piece
            finally:
                await progress("nobody")
                told.append(1)

        response.body_iterator = pieces()
        return response

    served = await serve([at(endpoint)])
    client = await (await served.post()).head()
    client.close()
    await eventually(lambda: told)
    await served.idle()
    assert not served.raised


# ---- SidecarResponse


async def test_a_sidecar_response(serve):
    async def pieces():
        await progress("reading")
        yield "Hello"
        yield "sources", [1]

    async def endpoint(request):
        return SidecarResponse(pieces(), meta={"model": "m"})

    served = await serve([at(endpoint)])
    client = await served.ask(headers=STREAM)
    name = client.stream_id
    events = [
        dict(line.split(": ", 1) for line in part.split("\n"))
        for part in client.body.decode().split("\n\n")[:-1]
    ]
    assert [(one["event"], orjson.loads(one["data"])) for one in events] == [
        ("meta", {"model": "m"}),
        ("status", {"message": "reading"}),
        ("token", {"text": "Hello"}),
        ("sources", [1]),
        ("done", {}),
    ]
    assert [one["id"] for one in events] == [f"{name}:{number}" for number in range(5)]
    hit = await served.ask(headers=STREAM)
    assert hit.cache.startswith("slipstream; hit") and len(hit.body) == len(client.body)


async def test_a_sidecar_response_that_fails(serve):
    async def pieces():
        yield "Hello"
        raise LookupError("hunter2")

    async def endpoint(request):
        return SidecarResponse(pieces())

    served = await serve([at(endpoint)])
    for number in range(2):
        client = await served.ask()
        assert client.body.count(b"event: error\n") == 1 and b"hunter2" not in client.body
        line = await soon(served.lines.request(number))
        assert line["outcome"] in {"truncated", "upstream_error"}
        assert not (client.cache or "").startswith("slipstream; hit")
    await served.idle()
    assert [str(error) for error in served.raised] == ["hunter2"] * 2


async def test_a_sidecar_response_whose_client_leaves(serve):
    closed, waiting = asyncio.Event(), asyncio.Event()

    async def pieces():
        try:
            yield "Hello"
            waiting.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def endpoint(request):
        return SidecarResponse(pieces())

    served = await serve([at(endpoint)])
    client = await (await served.post()).head()
    await waiting.wait()
    client.close()
    await soon(closed.wait(), 2)
    await served.idle()
    assert not served.raised
