"""SidecarMiddleware: when its engine starts and stops, what it is configured with, and what requests leave behind."""

import asyncio
import contextlib

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient

from sidecar.core.values import ConfigError
from sidecar_starlette import SidecarMiddleware
from tests.plugin.rig import STREAM, Feed, eventually, said, soon

POST = ["POST"]


# ---- start and end


async def test_it_starts_with_the_app_and_drains_before_it(serve, lines):
    steps = []

    @contextlib.asynccontextmanager
    async def lifespan(app):
        steps.append("up")
        yield {"word": "state"}
        steps.append([line["event"] for line in lines.all])
        steps.append(lines.closed)

    async def endpoint(request):
        return JSONResponse({"word": request.state.word})

    served = await serve([Route("/chat", endpoint, methods=POST)], lifespan=lifespan)
    assert steps == ["up"] and served.assembly is not None
    assert (await served.ask()).body == b'{"word":"state"}'
    await soon(lines.request())
    await served.stop()
    assert steps == ["up", ["request", "draining"], 1]


async def test_streams_may_end_while_it_drains(serve):
    feed = Feed()
    served = await serve([feed.at()])
    client = await (await served.post()).head()
    feed.say(said(1))
    await client.until(said(1))
    stopping = asyncio.create_task(served.assembly.drain(10))
    await eventually(lambda: served.assembly.front.draining)
    late = await served.ask(body=b"[1]")
    assert late.status == 503 and late.headers["retry-after"] == "1"
    assert (await served.get("/_slipstream/healthz")).status == 503
    feed.end()
    await client.rest()
    assert (client.body, client.end) == (said(1), "whole")
    assert await stopping


async def test_what_does_not_end_is_ended(serve):
    feed = Feed()
    served = await serve([feed.at()], config={"shutdown": {"grace": 0.01}})
    client = await (await served.post()).head()
    feed.say(said(1))
    await client.until(said(1))
    await served.assembly.drain(0.01)
    await client.rest()
    assert client.end == "cut" and b"event: error\n" in client.body
    await soon(feed.runs[0].closed.wait(), 1.5)
    await served.idle()
    assert not served.raised


async def test_without_a_lifespan_the_first_request_starts_it(serve):
    feed = Feed()
    served = await serve([feed.at()], on={"lifespan": "off"})
    await served.get("/_slipstream/healthz")
    assert served.assembly is not None
    clients = [await served.post(body=b"[%d]" % number) for number in range(5)]
    for client in clients:
        await client.head()
    for number in range(5):
        feed.end(number)


async def test_requests_at_once_start_it_once(serve, monkeypatch):
    from sidecar_starlette import runtime

    made, real = [], runtime._Running.start

    async def start(self):
        made.append(self)
        await real(self)

    monkeypatch.setattr(runtime._Running, "start", start)
    served = await serve([Route("/chat", _json, methods=POST)], on={"lifespan": "off"})
    clients = [await served.post(body=b"[%d]" % number) for number in range(20)]
    for client in clients:
        assert (await client.answer()).status == 200
    assert len(made) == 1


async def test_the_apps_own_start_fails(lines, tmp_path):
    @contextlib.asynccontextmanager
    async def lifespan(app):
        raise LookupError("mine")
        yield

    app = Starlette(lifespan=lifespan, middleware=[Middleware(SidecarMiddleware, data_dir=tmp_path)])
    sent = []

    async def receive():
        return {"type": "lifespan.startup"}

    async def send(message):
        sent.append(message)

    with pytest.raises(LookupError, match="mine"):
        await app({"type": "lifespan", "app": app, "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]


async def test_a_data_folder_that_cannot_be_used(lines, tmp_path):
    (tmp_path / "file").write_text("x")
    app = SidecarMiddleware(_nothing, data_dir=tmp_path / "file")
    sent = []

    async def receive():
        return {"type": "lifespan.startup"}

    async def send(message):
        sent.append(message)

    with pytest.raises(ConfigError):
        await app({"type": "lifespan", "asgi": {}}, receive, send)
    assert sent[0]["type"] == "lifespan.startup.failed" and "file" in sent[0]["message"]
    assert "\n" not in sent[0]["message"]


async def _nothing(scope, receive, send):
    await receive()


def test_a_loop_that_closes_stops_it(lines, tmp_path):
    """No lifespan: what is on disk is closed with the loop, and can be opened by the next one."""
    app = SidecarMiddleware(Starlette(routes=[Route("/chat", _json, methods=POST)]), data_dir=tmp_path)
    seen = []

    async def once():
        seen.append(await _call(app))
        assert app.runtime.here is not None

    for _ in range(3):
        asyncio.run(once())
    assert [(status, body) for status, _, body in seen] == [(200, b"[1]")] * 3
    assert [headers[b"cache-status"].split(b";")[1] for _, headers, _ in seen] == [
        b" fwd=miss",
        b" hit",
        b" hit",
    ]
    assert lines.closed == 3 and not [line for line in lines.all if line["event"] in {"no_jobs", "fault"}]


async def _json(request):
    return JSONResponse([1])


async def _call(app):
    """A plain ASGI call, for what a server does not show."""
    asked, sent = [{"type": "http.request", "body": b"{}", "more_body": False}], []

    async def receive():
        return asked.pop() if asked else await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/chat",
    }
    await app({**scope, "query_string": b"", "headers": [(b"host", b"h")]}, receive, send)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), body


# ---- TestClient


def app_of(tmp_path, *routes):
    return Starlette(routes=list(routes), middleware=[Middleware(SidecarMiddleware, data_dir=tmp_path)])


def stream(request):
    return StreamingResponse(iter([said(1), said(2)]), media_type="text/event-stream")


async def fails(request):
    raise LookupError("mine")


async def socket(websocket):
    await websocket.accept()
    await websocket.send_text(websocket.headers["x-word"])
    await websocket.close()


@pytest.mark.parametrize("within", [True, False])
def test_the_test_client(lines, tmp_path, within):
    runs = []

    async def json(request):
        runs.append(1)
        return JSONResponse({"body": (await request.body()).decode()})

    routes = [
        Route("/stream", stream, methods=POST),
        Route("/chat", json, methods=POST),
        Route("/fails", fails),
    ]
    app = app_of(tmp_path, *routes, WebSocketRoute("/ws", socket))
    client = TestClient(app)
    with client if within else contextlib.nullcontext():
        for _ in range(2):
            assert client.post("/chat", content="x").json() == {"body": "x"}
            assert client.post("/stream", headers=STREAM).text.count("data: ") == 2
        assert runs == [1]
        with client.stream("POST", "/stream") as answer:
            assert list(answer.iter_lines()) == ["data: 1", "", "data: 2", ""]
            name = answer.headers["slipstream-stream-id"]
        assert client.get(f"/_slipstream/streams/{name}").status_code == (200 if within else 410)
        with pytest.raises(LookupError, match="mine"):
            client.get("/fails")
        assert TestClient(app, raise_server_exceptions=False).get("/fails").status_code == 500
        with client.websocket_connect("/ws", headers={"x-word": "w"}) as connection:
            assert connection.receive_text() == "w"
    assert not lines.faults


# ---- configuration


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"config": {"keepalive": {"intervall": 1}}}, "keepalive.intervall"),
        ({"config": {"keepaliv": {}}}, "keepaliv"),
        ({"config": {"keepalive": {"interval": "soon"}}}, "keepalive.interval"),
        ({"config": {"disconnect": {"default": "never"}}}, "disconnect.default"),
        ({"config": "/nowhere/slipstream.toml"}, "/nowhere/slipstream.toml"),
        ({"cache": "always"}, "cache"),
        ({"paths": "chat"}, "chat"),
        ({"paths": ["/chat", 7]}, "7"),
        ({"credential": "Authorization: Bearer"}, "credential"),
        ({"credential": ""}, "credential"),
        ({"prompt": "messages..content"}, "messages..content"),
        ({"prompt": ""}, "prompt"),
    ],
)
def test_a_configuration_that_is_none(keys, said):
    with pytest.raises(ConfigError) as raised:
        SidecarMiddleware(_nothing, **keys)
    assert said in str(raised.value) and "\n" not in str(raised.value)


async def test_a_configuration_file(serve, tmp_path):
    file = tmp_path / "slipstream.toml"
    file.write_text("[keepalive]\ninterval = '20ms'\n[cache]\nmode = 'off'\n")
    feed = Feed()
    for given in (file, str(file), {"keepalive": {"interval": "20ms"}, "cache": {"mode": "off"}}):
        served = await serve([feed.at()], config=given)
        client = await (await served.post()).head()
        await client.until(b": keepalive\n")
        assert client.cache is None
        feed.end()
        await served.stop()


async def test_what_is_given_goes_before_the_configuration(serve, tmp_path):
    config = {"cache": {"mode": "off"}, "server": {"data_dir": str(tmp_path / "nowhere")}}
    served = await serve([Route("/chat", _json, methods=POST)], config=config, cache="exact")
    assert (await served.ask()).cache == "slipstream; fwd=miss; stored"
    assert not (tmp_path / "nowhere").exists()


async def test_a_mounted_app_of_its_own(serve, lines, tmp_path):
    """Two engines in one process, each with its folder."""
    parts = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        parts.append(Mount(f"/{name}", app_of(tmp_path / name, Route("/chat", _json, methods=POST))))
    served = await serve(app=Starlette(routes=parts))
    for name in ("a", "b"):
        assert (await served.ask(f"/{name}/chat")).cache == "slipstream; fwd=miss; stored"
    assert not [line for line in lines.all if line["event"] == "no_jobs"]
