"""SidecarMiddleware: bodies of requests, in chunks, long, late and broken off."""

import asyncio

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from tests.plugin.rig import Feed, eventually, said, soon
from tests.plugin.test_middleware_leaving import Raw

POST = ["POST"]


async def test_a_body_is_broken_off(serve):
    runs = []

    async def endpoint(request):
        runs.append(1)
        return JSONResponse({})

    served = await serve([Route("/chat", endpoint, methods=POST)])
    client = await served.send("POST", "/chat", b"half", more=True)
    await served.active(1)
    client.close()
    line = await soon(served.lines.request())
    assert line["outcome"] == "cancelled" and not runs
    await served.idle()
    assert not served.raised


async def test_a_long_body_is_broken_off(serve):
    began, how = asyncio.Event(), []

    async def endpoint(request):
        began.set()
        try:
            async for _ in request.stream():
                pass
        except ClientDisconnect:
            how.append("disconnect")
            raise
        return JSONResponse({})

    served = await serve([Route("/chat", endpoint, methods=POST)], config={"limits": {"body": 8}})
    client = await served.send("POST", "/chat", b"x" * 100, more=True)
    await soon(began.wait())
    client.close()
    await soon(served.lines.request())
    await served.idle()
    assert how == ["disconnect"]


async def test_an_app_that_goes_on_after_a_broken_body_is_cancelled(serve):
    began, closed = asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send):
        while (await receive())["type"] != "http.disconnect":
            began.set()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await asyncio.Event().wait()
        finally:
            closed.set()

    served = await serve([Route("/chat", Raw(app), methods=POST)], config={"limits": {"body": 8}})
    client = await served.send("POST", "/chat", b"x" * 100, more=True)
    await soon(began.wait())
    client.close()
    await soon(closed.wait(), 3)


async def test_an_app_that_reads_half_of_a_long_body_hears_of_its_client(serve):
    """It answers without having read all that was sent."""
    feed_began, closed = asyncio.Event(), asyncio.Event()

    async def pieces():
        try:
            yield said(1)
            feed_began.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def app(scope, receive, send):
        await receive()
        await StreamingResponse(pieces(), media_type="text/event-stream")(scope, receive, send)

    served = await serve([Route("/chat", Raw(app), methods=POST)], config={"limits": {"body": 8}})
    client = await served.send("POST", "/chat", b"x" * 100, more=True)
    client.upload(b"y" * 100, last=True)
    await client.head()
    await soon(feed_began.wait())
    client.close()
    await soon(closed.wait(), 3)


async def test_a_long_body_goes_past(serve):
    got = []

    async def endpoint(request):
        async for part in request.stream():
            got.append(part)
        return JSONResponse({"bytes": sum(map(len, got))})

    served = await serve([Route("/chat", endpoint, methods=POST)], config={"limits": {"body": 10}})
    client = await served.send("POST", "/chat", b"x" * 100, more=True)
    await eventually(lambda: got)  # before the rest is there
    client.upload(b"y" * 200_000, last=True)
    await client.answer()
    assert client.body == b'{"bytes":200100}' and b"".join(got) == b"x" * 100 + b"y" * 200_000
    assert client.cache == "slipstream; fwd=bypass"


async def test_a_body_in_chunks(serve):
    bodies = []

    async def endpoint(request):
        bodies.append(await request.body())
        return JSONResponse({"a": 1})

    served = await serve([Route("/chat", endpoint, methods=POST)])
    client = await served.send("POST", "/chat", b'{"q"', more=True)
    client.upload(b":1}", last=True)
    await client.answer()
    again = await served.ask(body=b'{"q":1}')
    assert again.body == client.body and again.cache.startswith("slipstream; hit") and bodies == [b'{"q":1}']


async def test_a_body_that_does_not_come(serve):
    served = await serve([Feed().at()], config={"timeouts": {"client": 0.05}})
    client = await served.send("POST", "/chat", b"half", more=True)
    await client.answer()
    assert client.status == 408
    assert (await soon(served.lines.request()))["error"] == "request_timeout"
