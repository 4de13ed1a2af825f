"""SidecarMiddleware: apps that raise, before their head, in it, and after it."""

import asyncio

import orjson
import pytest
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.plugin.rig import STREAM, Feed, eventually, said, soon

SECRET = "hunter2"
POST = ["POST"]


def hidden(served, *clients):
    """The exception's own text is nowhere."""
    for client in clients:
        assert SECRET.encode() not in client.body
        assert SECRET not in str(client.headers)
    assert SECRET.encode() not in b"".join(served.lines.raw)


async def test_in_mid_stream(serve):
    feed = Feed()
    served = await serve([feed.at("/chat")])
    for number in range(2):  # nothing was stored
        client = await (await served.post(headers=STREAM)).head()
        feed.say(said(1))
        await client.until(b":0\n\n")
        feed.say(LookupError(SECRET))
        await client.rest()
        assert client.status == 200 and client.end == "cut"
        last = client.body.split(b"\n\n")[-2]
        assert last.startswith(b"event: error\ndata: {")
        assert (
            orjson.loads(last.split(b"data: ")[1].split(b"\n")[0])["title"]
            == "The app did not finish its answer"
        )
        assert len(feed.runs) == number + 1
        line = await soon(served.lines.request(number))
        assert (line["outcome"], line["error"], line["status"]) == ("truncated", "app_failed", 200)
        hidden(served, client)
    await served.idle()
    assert [type(error) for error in served.raised] == [LookupError, LookupError]
    assert str(served.raised[0]) == SECRET


async def test_in_mid_stream_of_a_known_format(serve):
    feed = Feed()
    served = await serve([feed.at("/v1/chat/completions")])
    body = b'{"model":"m","stream":true,"messages":[]}'
    client = await (await served.post("/v1/chat/completions", body)).head()
    feed.say(b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n', LookupError(SECRET))
    await client.rest()
    assert client.end == "cut"
    last = client.body.split(b"\n\n")[-2]
    assert last.startswith(b'data: {"error":{')
    line = await soon(served.lines.request())
    assert (line["outcome"], line["model"]) == ("truncated", "m")
    hidden(served, client)


async def test_a_known_path_without_a_model_is_the_apps_own(serve):
    feed = Feed()
    served = await serve([feed.at("/v1/chat/completions")])
    client = await (await served.post("/v1/chat/completions", b'{"text":"x"}')).head()
    feed.say(said(1), LookupError(SECRET))
    await client.rest()
    assert b"event: error\n" in client.body and client.end == "cut"


async def test_the_official_sdk_raises(serve):
    import openai

    feed = Feed()
    served = await serve([feed.at("/v1/chat/completions")])
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="k", max_retries=0) as sdk:
        stream = await sdk.chat.completions.create(model="m", messages=[], stream=True)
        feed.say(b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n', LookupError(SECRET))
        with pytest.raises(openai.APIError) as raised:
            async for _ in stream:
                pass
        assert "did not finish" in str(raised.value) and SECRET not in str(raised.value)
        await stream.close()


@pytest.mark.parametrize("accept", [{}, STREAM])
async def test_before_the_head(serve, accept):
    async def fails(request):
        raise LookupError(SECRET)

    served = await serve([Route("/chat", fails, methods=POST)])
    client = await served.ask(headers=accept)
    assert (client.status, client.body, client.end) == (500, b"Internal Server Error", "whole")
    line = await soon(served.lines.request())
    assert (line["status"], line["outcome"], line["error"]) == (500, "upstream_error", "app_failed")
    assert [str(error) for error in served.raised] == [f"{SECRET}"]
    hidden(served, client)


async def test_the_apps_own_handler_answers(serve):
    async def fails(request):
        raise LookupError(SECRET)

    async def handler(request, error):
        return JSONResponse({"mine": type(error).__name__}, 503, {"x-mine": "1"})

    served = await serve([Route("/chat", fails, methods=POST)], handlers={Exception: handler})
    client = await served.ask()
    assert (client.status, client.body) == (503, b'{"mine":"LookupError"}')
    assert client.headers["x-mine"] == "1"


async def test_an_http_exception_is_an_answer(serve):
    runs = []

    async def fails(request):
        runs.append(1)
        raise HTTPException(418, "short and stout")

    served = await serve([Route("/chat", fails, methods=POST)])
    for number in range(2):
        client = await served.ask()
        assert (client.status, client.body, client.end) == (418, b"short and stout", "whole")
        line = await soon(served.lines.request(number))
        assert (line["status"], line["outcome"]) == (418, "upstream_error")
    assert len(runs) == 2 and not served.raised


async def test_an_answer_of_declared_length_that_breaks_off(serve):
    async def pieces():
        yield b'{"a":'
        raise LookupError(SECRET)

    async def endpoint(request):
        return StreamingResponse(pieces(), media_type="application/json", headers={"content-length": "7"})

    served = await serve([Route("/chat", endpoint, methods=POST)])
    client = await served.ask()
    assert (client.body, client.end) == (b'{"a":', "cut")
    assert (await soon(served.lines.request()))["outcome"] == "truncated"


async def test_an_app_that_returns_too_early(serve):
    async def endpoint(scope, receive, send):
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"text/event-stream")],
            }
        )
        await send({"type": "http.response.body", "body": said(1), "more_body": True})

    served = await serve([Route("/chat", _Raw(endpoint), methods=POST)])
    client = await served.ask()
    assert client.end == "cut" and b"event: error\n" in client.body
    assert (await soon(served.lines.request()))["outcome"] == "truncated"


async def test_an_app_that_returns_without_an_answer(serve):
    async def endpoint(scope, receive, send):
        pass

    served = await serve([Route("/chat", _Raw(endpoint), methods=POST)])
    client = await served.ask()
    assert client.status == 500 and client.end == "whole"


async def test_its_own_error_event_is_not_stored(serve):
    runs = []

    async def pieces():
        yield said(1)
        yield b'event: error\ndata: {"why":"mine"}\n\n'

    async def endpoint(request):
        runs.append(1)
        return StreamingResponse(pieces(), media_type="text/event-stream")

    served = await serve([Route("/chat", endpoint, methods=POST)])
    for number in range(2):
        client = await served.ask()
        assert client.end == "whole" and client.body == said(1) + b'event: error\ndata: {"why":"mine"}\n\n'
        assert (await soon(served.lines.request(number)))["outcome"] == "upstream_error"
    assert len(runs) == 2 and not served.raised


async def test_those_who_joined_are_told_too(serve):
    feed = Feed()
    served = await serve([feed.at("/chat")])
    clients = [await (await served.post()).head() for _ in range(3)]
    feed.say(said(1))
    for client in clients:
        await client.until(said(1))
    feed.say(LookupError(SECRET))
    for client in clients:
        await client.rest()
        assert client.end == "cut" and b"event: error\n" in client.body
    assert len(feed.runs) == 1
    await served.idle()
    assert len([error for error in served.raised if isinstance(error, LookupError)]) == 1
    hidden(served, *clients)


async def test_one_that_waits_for_a_failing_run_gets_its_own(serve):
    runs, gate = [], asyncio.Event()

    async def endpoint(request):
        runs.append(1)
        if len(runs) == 1:
            await gate.wait()
            raise LookupError(SECRET)
        return JSONResponse({"run": len(runs)})

    served = await serve([Route("/chat", endpoint, methods=POST)])
    first, second = await served.post(), await served.post()
    await served.active(2)
    gate.set()
    await first.answer()
    await second.answer()
    assert (first.status, second.status, second.body) == (500, 200, b'{"run":2}')
    assert len(runs) == 2


async def test_all_that_wait_hear_of_a_run_that_always_fails(serve):
    runs, gate = [], asyncio.Event()

    async def endpoint(request):
        runs.append(1)
        await gate.wait()
        raise LookupError(SECRET)

    served = await serve([Route("/chat", endpoint, methods=POST)])
    clients = [await served.post() for _ in range(5)]
    await served.active(5)
    gate.set()
    for client in clients:
        await client.answer()
        assert (client.status, client.end) == (500, "whole")
    hidden(served, *clients)


async def test_a_background_task_that_fails(serve):
    runs = []

    def after():
        raise LookupError(SECRET)

    async def endpoint(request):
        runs.append(1)
        return JSONResponse({"a": 1}, background=BackgroundTask(after))

    served = await serve([Route("/chat", endpoint, methods=POST)])
    client = await served.ask()
    assert (client.status, client.body, client.end) == (200, b'{"a":1}', "whole")
    await served.idle()
    assert [str(error) for error in served.raised] == [SECRET]
    assert (await soon(served.lines.request()))["outcome"] == "complete"
    assert (await served.ask()).body == client.body  # stored or not: it fails at once


@pytest.mark.parametrize("how", ["json", "stream"])
async def test_the_background_runs_once_and_after_the_answer(serve, how):
    gate, ran = asyncio.Event(), []

    async def after():
        await gate.wait()
        ran.append(1)

    async def pieces():
        yield said(1)

    async def endpoint(request):
        task = BackgroundTask(after)
        if how == "json":
            return JSONResponse([1], background=task)
        return StreamingResponse(pieces(), media_type="text/event-stream", background=task)

    served = await serve([Route("/chat", endpoint, methods=POST)])
    client = await served.ask()
    assert client.end == "whole" and not ran
    again = await served.ask()  # stored, though the background still runs
    assert again.cache.startswith("slipstream; hit") and again.body == client.body
    assert served.recorder.requests == 1
    gate.set()
    await served.idle()
    assert ran == [1] and not served.raised


async def test_the_background_runs_when_the_client_leaves_with_the_last_byte(serve):
    gate, ran = asyncio.Event(), asyncio.Event()

    async def after():
        await gate.wait()
        ran.set()

    async def endpoint(request):
        return Response(b"{}", media_type="application/json", background=BackgroundTask(after))

    served = await serve([Route("/chat", endpoint, methods=POST)])
    client = await served.ask()
    client.close()
    await eventually(lambda: not served.server.server_state.connections)
    gate.set()
    await soon(ran.wait())


async def test_plain_text_that_breaks_off(serve):
    async def pieces():
        yield b"half"
        raise LookupError(SECRET)

    async def endpoint(request):
        return StreamingResponse(pieces(), media_type="text/plain")

    served = await serve([Route("/chat", endpoint, methods=POST), Route("/ok", _ok, methods=POST)])
    client = await served.ask()
    assert (client.body, client.end) == (b"half", "cut")
    assert (await served.ask("/ok")).body == b"ok"


async def _ok(request):
    return PlainTextResponse("ok")


class _Raw:
    """An ASGI app as an endpoint."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        await self.app(scope, receive, send)
