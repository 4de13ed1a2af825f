"""SidecarMiddleware: apps that do not keep to ASGI, servers and middleware that give up, and other rare company."""

import asyncio
import gc
import random

import pytest
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.plugin.rig import STREAM, Feed, eventually, said, soon
from tests.plugin.test_middleware_leaving import FINISH, Raw

POST = ["POST"]
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}


class GivesUp:
    """Middleware that cancels what takes too long, as `asyncio.timeout` does, when the test says so."""

    def __init__(self, app, when):
        self.app, self.when = app, when

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        work = asyncio.ensure_future(self.app(scope, receive, send))
        over = asyncio.ensure_future(self.when.wait())
        await asyncio.wait({work, over}, return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait({work})
            if work.cancelled():
                await Response("too slow", 504)(scope, receive, send)
                return
        await work


async def test_middleware_that_gives_up_before_the_head(serve):
    feed, when = Feed(hold=True), asyncio.Event()
    served = await serve([feed.at()], outer=[Middleware(GivesUp, when=when)])
    client = await served.post()
    await soon(feed.began.wait())
    when.set()
    await client.answer()
    assert (client.status, client.body) == (504, b"too slow")
    await soon(feed.runs[0].closed.wait(), 1.5)
    assert (await soon(served.lines.request()))["outcome"] == "cancelled"


async def test_middleware_that_gives_up_on_a_run_that_may_finish(serve):
    feed, when = Feed(hold=True), asyncio.Event()
    served = await serve([feed.at()], outer=[Middleware(GivesUp, when=when)])
    client = await served.post(headers=FINISH)
    await soon(feed.began.wait())
    when.set()
    await client.answer()
    feed.go.set()
    await eventually(lambda: feed.runs[0].queue._getters)
    feed.say(said(1))
    feed.end()
    await soon(feed.runs[0].closed.wait())
    await eventually(lambda: not len(served.assembly.hub))
    assert feed.runs[0].how == "ended" and len(feed.runs) == 1


async def test_what_a_run_raises_that_its_request_has_given_up_on(serve):
    """There is no server to raise it to: the loop is told."""
    feed, when = Feed(hold=True), asyncio.Event()
    served = await serve([feed.at()], outer=[Middleware(GivesUp, when=when)], heard=["lost"])
    client = await served.post(headers=FINISH)
    await soon(feed.began.wait())
    when.set()
    await client.answer()
    feed.go.set()
    await eventually(lambda: feed.runs[0].queue._getters)
    feed.say(LookupError("lost"))
    await soon(feed.runs[0].closed.wait())
    await eventually(lambda: not len(served.assembly.hub))
    assert not served.raised


async def test_a_start_that_comes_twice(serve):
    async def app(scope, receive, send):
        await send(START)
        await send(START)
        await send({"type": "http.response.body", "body": said(1)})

    served = await serve([Route("/chat", Raw(app), methods=POST)])
    client = await served.ask()
    assert client.status == 200
    assert (await served.get("/_slipstream/healthz")).status == 200


async def test_a_body_before_its_start(serve):
    async def app(scope, receive, send):
        await send({"type": "http.response.body", "body": b"x", "more_body": False})

    served = await serve([Route("/chat", Raw(app), methods=POST)])
    client = await served.ask()
    assert (client.status, client.end) == (500, "whole")
    assert len(served.raised) == 1


async def test_a_head_that_breaks_out(serve):
    async def app(scope, receive, send):
        await send({**START, "headers": [(b"x-mine", b"a\r\nx-injected: 1")]})
        await send({"type": "http.response.body", "body": b""})

    served = await serve([Route("/chat", Raw(app), methods=POST)])
    client = await served.ask()
    assert client.status >= 500 and "x-injected" not in client.headers


async def test_more_after_the_end(serve):
    async def app(scope, receive, send):
        await send(START)
        await send({"type": "http.response.body", "body": said(1)})
        await send({"type": "http.response.body", "body": said(2)})

    served = await serve([Route("/chat", Raw(app), methods=POST)])
    for _ in range(2):
        client = await served.ask()
        assert (client.body, client.end) == (said(1), "whole")


async def test_an_app_that_sends_from_several_tasks(serve):
    async def app(scope, receive, send):
        await send(START)
        one = {"type": "http.response.body", "body": said(1), "more_body": True}
        await asyncio.gather(*(send(one) for _ in range(50)))
        await send({"type": "http.response.body"})

    served = await serve([Route("/chat", Raw(app), methods=POST)])
    assert (await served.ask()).body == said(1) * 50


async def test_an_app_that_is_cancelled_from_within(serve):
    """By what it waited for: a failure like others, not the client's leaving."""

    async def pieces():
        yield said(1)
        other = asyncio.ensure_future(asyncio.Event().wait())
        other.cancel()
        await other

    async def endpoint(request):
        return StreamingResponse(pieces(), media_type="text/event-stream")

    served = await serve([Route("/chat", endpoint, methods=POST)])
    for _ in range(2):
        client = await served.ask()
        assert client.end == "cut"
        assert not (client.cache or "").startswith("slipstream; hit")


async def test_an_app_that_ignores_its_client(serve):
    """It swallows the cancellation once, and goes on: nobody hears it, and nothing is stored."""
    steps = []

    async def app(scope, receive, send):
        await send(START)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            steps.append("swallowed")
        await send({"type": "http.response.body", "body": said(1)})
        steps.append("sent")

    served = await serve([Route("/chat", Raw(app), methods=POST)])
    client = await (await served.post()).head()
    client.close()
    await served.idle()
    assert steps == ["swallowed", "sent"] and not served.raised
    again = await (await served.post()).head()
    assert again.cache == "slipstream; fwd=miss; stored"


async def test_a_get_is_streamed_and_come_back_to(serve):
    """As an EventSource does: to the same address, with the last id that it has."""
    feed = Feed()
    served = await serve([feed.at()])
    client = await (await served.send("GET", "/chat?q=1", b"", STREAM)).head()
    feed.say(said(0))
    await client.until(b":0\n\n")
    client.close()
    await eventually(lambda: served.assembly.hub.left)
    back = await served.send("GET", "/chat?q=1", b"", STREAM | {"last-event-id": f"{client.stream_id}:0"})
    await back.head()
    feed.say(said(1))
    feed.end()
    await back.rest()
    assert back.body == b"data: 1\nid: %b:1\n\n" % client.stream_id.encode() and len(feed.runs) == 1


async def test_a_client_that_leaves_with_the_last_byte(serve):
    feed = Feed()
    served = await serve([feed.at()])
    client = await (await served.post()).head()
    feed.say(said(1))
    feed.end()
    await client.until(said(1))
    client.close()
    await served.idle()
    assert (await served.ask()).body == said(1) and len(feed.runs) == 1 and not served.raised


async def test_a_long_answer_with_a_paused_app(serve):
    """The app waits in `send` while its readers are behind, and is cancelled there."""
    sent = []

    async def pieces():
        while True:
            yield b"data: " + b"x" * 65536 + b"\n\n"
            sent.append(1)

    async def endpoint(request):
        return StreamingResponse(pieces(), media_type="text/event-stream")

    served = await serve([Route("/chat", endpoint, methods=POST)])
    client = await (await served.post()).head()
    run = next(iter(served.assembly.hub._live))
    await eventually(lambda: run.recording.backlog > 512 * 1024)
    before = len(sent)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(sent) == before
    client.close()
    await served.idle()
    assert not served.raised


@pytest.mark.parametrize("seed", range(3))
async def test_many_at_random(serve, seed):
    """Requests of a few kinds, some of which leave: each that stays gets the whole answer to its own question."""
    choose = random.Random(seed)

    async def pieces(number):
        for part in range(5):
            await asyncio.sleep(choose.random() / 200)
            yield b"data: %d.%d\n\n" % (number, part)

    async def endpoint(request):
        number = int(await request.body())
        if number % 5 == 4:
            await asyncio.sleep(choose.random() / 100)
            return JSONResponse([number])
        return StreamingResponse(pieces(number), media_type="text/event-stream")

    served = await serve([Route("/chat", endpoint, methods=POST)], credential="x-user")

    async def one():
        number, user = choose.randrange(10), choose.choice("ab")
        client = await served.post(body=b"%d" % number, headers={"x-user": user})
        if choose.random() < 0.3:
            await asyncio.sleep(choose.random() / 100)
            client.close()
            return
        await client.answer()
        whole = b"[%d]" % number
        if number % 5 != 4:
            whole = b"".join(b"data: %d.%d\n\n" % (number, part) for part in range(5))
        assert (client.status, client.body, client.end) == (200, whole, "whole"), client.cache

    await asyncio.gather(*(one() for _ in range(150)))
    await served.idle()
    await eventually(lambda: len(served.lines.requests) == 150)
    assert not served.raised and not served.assembly.hub._live
    gc.collect()
