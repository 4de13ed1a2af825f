"""SidecarMiddleware in other frameworks and under other servers than Starlette and uvicorn."""

import asyncio

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse as FastStreaming
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from sidecar_starlette import SidecarMiddleware
from tests.plugin.rig import STREAM, Feed, Served, eventually, said, soon
from tests.plugin.test_middleware_beside import chunk_by_chunk, json

POST = ["POST"]

# ---- other frameworks and servers


async def test_in_fastapi(serve, tmp_path):
    app, feed, runs = FastAPI(), Feed(), []
    app.add_middleware(SidecarMiddleware, data_dir=tmp_path)

    @app.middleware("http")
    async def outside(request, call_next):
        response = await call_next(request)
        response.headers["x-outside"] = "1"
        return response

    @app.post("/items/{item}")
    async def item(item: int, body: dict):
        runs.append(item)
        return {"item": item, **body}

    @app.post("/chat")
    async def chat(body: dict):
        run = feed.endpoint(_Body())
        return FastStreaming((await run).body_iterator, media_type="text/event-stream")

    served = await serve(app=app)
    kind = {"content-type": "application/json"}
    for _ in range(2):
        client = await served.ask("/items/7", b'{"a":1}', kind)
        assert client.body == b'{"item":7,"a":1}' and client.headers["x-outside"] == "1"
    assert client.cache.startswith("slipstream; hit") and runs == [7]
    assert (await served.ask("/items/x", b"{}", kind)).status == 422
    assert (await served.get("/openapi.json")).status == 200
    await chunk_by_chunk(served, feed, headers=STREAM | kind)


class _Body:
    async def body(self):
        return b""


@pytest.fixture
async def hypercorn(lines):
    """`await hypercorn(app)`: as `serve`, with that server."""
    from hypercorn.asyncio import serve as run
    from hypercorn.config import Config

    over, tasks, running = asyncio.Event(), [], []

    async def start(app):
        served = Served(app, lines)
        config = Config()
        config.graceful_timeout, config.errorlog, config.accesslog = 1, None, None
        running.append(served)
        served.listener.listen()
        config.bind = [f"fd://{served.listener.detach()}"]  # which closes it
        tasks.append(asyncio.create_task(run(served.recorder, config, shutdown_trigger=over.wait)))
        return served

    yield start
    for client in [client for served in running for client in served.clients]:
        client.close()
    over.set()
    await soon(asyncio.gather(*tasks))


async def test_under_hypercorn(hypercorn, tmp_path):
    feed = Feed()
    stack = [Middleware(SidecarMiddleware, data_dir=tmp_path)]
    app = Starlette(routes=[feed.at(), Route("/json", json, methods=POST)], middleware=stack)
    served = await hypercorn(app)
    client = await chunk_by_chunk(served, feed)
    assert (await served.get(f"/_slipstream/streams/{client.stream_id}")).status == 200
    assert (await served.ask("/json")).body == (again := await served.ask("/json")).body
    assert again.cache.startswith("slipstream; hit")
    for body in (b"[1]", b"[2]"):
        client = await (await served.post(body=body)).head()
        feed.say(said(1))
        await client.until(said(1))
        if body == b"[1]":
            feed.say(LookupError("x"))
            await client.rest()
            assert client.end == "cut" and b"event: error\n" in client.body
        else:
            client.close()
            await soon(feed.runs[-1].closed.wait(), 2)
    await eventually(lambda: not served.recorder.requests)
    assert [type(error) for error in served.raised] == [LookupError]


async def test_over_http_2(hypercorn, tmp_path):
    """No Host field, and header fields in lower case."""
    import httpx

    feed = Feed()
    stack = [Middleware(SidecarMiddleware, data_dir=tmp_path)]
    served = await hypercorn(Starlette(routes=[feed.at()], middleware=stack))
    async with (
        httpx.AsyncClient(http1=False, http2=True, trust_env=False) as http,
        http.stream("POST", f"{served.url}/chat") as answer,
    ):
        feed.say(said(1))
        feed.end()
        assert await answer.aread() == said(1) and answer.http_version == "HTTP/2"


async def test_plain_text_is_not_touched(serve):
    async def endpoint(request):
        return PlainTextResponse("hello", headers={"x-mine": "1"})

    async def pieces():
        yield b"a"

    async def ndjson(request):
        return StreamingResponse(pieces(), media_type="application/x-ndjson")

    served = await serve([Route("/chat", endpoint, methods=POST), Route("/nd", ndjson, methods=POST)])
    client = await served.ask()
    assert (client.body, client.headers["x-mine"], client.headers["content-length"]) == (b"hello", "1", "5")
    assert (await served.ask("/nd")).body == b"a"
