"""SidecarMiddleware: what becomes of an app's work when its client leaves."""

import asyncio
import threading
from contextvars import ContextVar

import pytest
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from tests.plugin.rig import STREAM, Feed, eventually, said, soon

POST = ["POST"]
FINISH = {"slipstream-disconnect": "finish"}
WORD = ContextVar("word", default="nobody said it")


class Says:
    """Middleware that sets a context variable."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        headers = dict(scope.get("headers", ()))
        WORD.set(headers.get(b"x-word", b"").decode())
        await self.app(scope, receive, send)


async def test_a_generator_is_cancelled(serve):
    feed = Feed()
    served = await serve([feed.at()])
    client = await (await served.post()).head()
    feed.say(said(1))
    await client.until(said(1))
    client.close()
    await soon(feed.runs[0].closed.wait(), 1.5)
    assert feed.runs[0].how in {"cancelled", "closed"}
    line = await soon(served.lines.request())
    assert (line["outcome"], line["error"]) == ("cancelled", None)
    await served.idle()
    assert not served.raised
    again = await (await served.post()).head()  # nothing of it is left
    assert again.cache.startswith("slipstream; fwd=miss") and len(feed.runs) == 2


async def test_an_endpoint_that_waits_before_its_head_is_cancelled(serve):
    feed = Feed(hold=True)
    served = await serve([feed.at()])
    client = await served.post()
    await soon(feed.began.wait())
    client.close()
    await soon(feed.runs[0].closed.wait(), 1.5)
    assert feed.runs[0].how == "cancelled before its head"
    assert (await soon(served.lines.request()))["outcome"] == "cancelled"
    await served.idle()
    assert not served.raised


async def test_a_sync_generator_ends_with_its_step(serve):
    go, inside, closed, steps = threading.Event(), asyncio.Event(), threading.Event(), []
    loop = asyncio.get_running_loop()

    def pieces():
        try:
            yield said(1)
            loop.call_soon_threadsafe(inside.set)
            go.wait(20)
            steps.append("a step")
            yield said(2)
            steps.append("never reached")
        finally:
            closed.set()

    async def endpoint(request):
        return StreamingResponse(pieces(), media_type="text/event-stream")

    served = await serve([Route("/chat", endpoint, methods=POST)])
    client = await (await served.post()).head()
    await soon(inside.wait())
    client.close()
    line = await soon(served.lines.request())  # it waits for no thread
    assert line["outcome"] == "cancelled"
    go.set()
    await served.idle()
    assert steps == ["a step"] and not served.raised


async def test_the_app_is_told_before_it_is_cancelled(serve):
    heard = []

    async def app(scope, receive, send):
        heard.append((await receive())["type"])
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"text/event-stream")],
            }
        )
        heard.append((await receive())["type"])
        await send({"type": "http.response.body", "body": said(1), "more_body": True})  # to nobody

    served = await serve([Route("/chat", Raw(app), methods=POST)])
    client = await (await served.post()).head()
    client.close()
    await eventually(lambda: len(heard) == 2)
    assert heard == ["http.request", "http.disconnect"]
    await served.idle()
    assert not served.raised


async def test_an_app_that_does_not_listen_is_cancelled(serve):
    how = []

    async def app(scope, receive, send):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            how.append("cancelled")
            raise

    served = await serve([Route("/chat", Raw(app), methods=POST)])
    client = await served.post()
    await served.active(1)
    client.close()
    async with asyncio.timeout(1.5):
        await served.idle()
    assert how == ["cancelled"]


async def test_what_is_raised_while_it_is_cancelled_reaches_the_server(serve):
    async def app(scope, receive, send):
        try:
            await asyncio.Event().wait()
        finally:
            raise LookupError("in its clean-up")

    served = await serve([Route("/chat", Raw(app), methods=POST)])
    client = await served.post()
    await served.active(1)
    client.close()
    await served.idle()
    assert [str(error) for error in served.raised] == ["in its clean-up"]


async def test_after_its_answer_an_app_hears_that_it_is_over(serve):
    """ASGI: `http.disconnect` is what `receive` gives once a response has been sent."""
    heard = []

    async def app(scope, receive, send):
        heard.append((await receive())["type"])
        await JSONResponse({})(scope, receive, send)
        heard.append((await receive())["type"])

    served = await serve([Route("/chat", Raw(app), methods=POST)])
    assert (await served.ask()).body == b"{}"
    await served.idle()
    assert heard == ["http.request", "http.disconnect"]


@pytest.mark.parametrize("how", ["header", "config", "path"])
async def test_it_may_finish_and_is_stored(serve, how):
    feed = Feed()
    config = {
        "config": {"disconnect": {"default": "finish"}},
        "path": {"disconnect": {"paths": {"/chat": "finish"}}},
    }
    served = await serve([feed.at()], config=config.get(how, config["config"] if how == "config" else None))
    client = await (await served.post(headers=FINISH if how == "header" else {})).head()
    feed.say(said(1))
    await client.until(said(1))
    client.close()
    await eventually(lambda: served.assembly.hub.left)
    assert not await feed.runs[0].request.is_disconnected()
    feed.say(said(2))
    feed.end()
    line = await soon(served.lines.request())
    assert line["outcome"] == "cancelled"
    await served.idle()
    assert feed.runs[0].how == "ended" and not served.raised
    again = await served.ask()
    assert again.body == said(1) + said(2) and again.cache.startswith("slipstream; hit")
    assert len(feed.runs) == 1


async def test_it_may_finish_before_its_head(serve):
    gate, began, runs = asyncio.Event(), asyncio.Event(), []

    async def endpoint(request):
        runs.append(1)
        began.set()
        await gate.wait()
        assert not await request.is_disconnected()
        return JSONResponse({"a": 1})

    served = await serve([Route("/chat", endpoint, methods=POST)])
    client = await served.post(headers=FINISH)
    await began.wait()
    client.close()
    await eventually(lambda: served.assembly.hub.left)
    gate.set()
    await served.idle()
    assert (await served.ask()).cache.startswith("slipstream; hit") and runs == [1] and not served.raised


async def test_what_a_finishing_run_raises_reaches_the_server(serve):
    feed = Feed()
    served = await serve([feed.at()])
    client = await (await served.post(headers=FINISH)).head()
    client.close()
    await eventually(lambda: served.assembly.hub.left)
    feed.say(LookupError("late"))
    await served.idle()
    assert [str(error) for error in served.raised] == ["late"]


async def test_grace_is_for_those_who_come_back(serve):
    feed = Feed()
    served = await serve([feed.at()])
    client = await (await served.post(headers={**STREAM, "slipstream-disconnect": "grace=30"})).head()
    feed.say(said(1))
    await client.until(b":0\n\n")
    client.close()
    await eventually(lambda: served.assembly.hub.left)
    back = await served.send("GET", f"/_slipstream/streams/{client.stream_id}?after=1", b"", STREAM)
    await back.head()
    feed.say(said(2))
    feed.end()
    await back.rest()
    assert back.body == b"data: 2\nid: %b:1\n\n" % client.stream_id.encode() and back.end == "whole"


async def test_grace_that_passes(serve):
    feed = Feed()
    served = await serve([feed.at()])
    client = await (await served.post(headers={"slipstream-disconnect": "grace=50ms"})).head()
    client.close()
    await soon(feed.runs[0].closed.wait(), 2)
    assert (await served.get(f"/_slipstream/streams/{client.stream_id}")).status == 410


async def test_one_that_comes_back_and_leaves_again_is_noticed(serve):
    feed = Feed()
    served = await serve([feed.at()])
    client = await (await served.post(headers=FINISH | STREAM)).head()
    back = await served.send("GET", f"/_slipstream/streams/{client.stream_id}", b"", STREAM)
    await back.head()
    client.close()
    back.close()
    await eventually(lambda: served.assembly.hub.left)
    feed.end()
    await served.idle()


@pytest.mark.parametrize("leaves", ["first", "second"])
async def test_as_long_as_one_reads_it_goes_on(serve, leaves):
    feed = Feed()
    served = await serve([feed.at()])
    pair = {name: await (await served.post()).head() for name in ("first", "second")}
    left = pair.pop(leaves)
    left.close()
    await soon(served.lines.request())
    ((_, stays),) = pair.items()
    feed.say(said(1))
    feed.end()
    await stays.rest()
    assert (stays.body, stays.end) == (said(1), "whole")
    await served.idle()
    assert not served.raised and len(feed.runs) == 1


async def test_context_variables_of_outer_middleware(serve):
    from starlette.middleware import Middleware

    gate, seen = asyncio.Event(), []

    def in_thread():
        seen.append(WORD.get())

    async def pieces():
        seen.append(WORD.get())
        yield said(1)
        await gate.wait()
        seen.append(WORD.get())
        await asyncio.to_thread(in_thread)
        yield said(2)

    async def endpoint(request):
        seen.append(WORD.get())
        return StreamingResponse(pieces(), media_type="text/event-stream")

    served = await serve([Route("/chat", endpoint, methods=POST)], outer=[Middleware(Says)])
    client = await (await served.post(headers=FINISH | {"x-word": "hello"})).head()
    await client.until(said(1))
    client.close()
    await eventually(lambda: served.assembly.hub.left)
    gate.set()
    await served.idle()
    assert seen == ["hello"] * 4


class Raw:
    """An ASGI app as an endpoint."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        await self.app(scope, receive, send)
