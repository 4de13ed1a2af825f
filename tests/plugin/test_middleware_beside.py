"""SidecarMiddleware in company: where it is mounted, what stands around it and inside, which server runs it."""

import gzip

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from sidecar_starlette import SidecarMiddleware
from tests.plugin.rig import STREAM, Feed, said, soon

POST = ["POST"]
GZIP = {"accept-encoding": "gzip"}


async def json(request):
    return JSONResponse({"text": "x" * 2000, "path": request.url.path, "root": request.scope["root_path"]})


async def chunk_by_chunk(served, feed, target="/chat", headers=STREAM):
    """Each chunk is there before the next one is produced."""
    client = await (await served.post(target, headers=headers)).head()
    assert "content-encoding" not in client.headers, client.headers
    assert client.headers["x-accel-buffering"] == "no"
    name = client.stream_id.encode()
    for number in range(3):
        feed.say(said(number))
        await client.until(b"data: %d\nid: %b:%d\n\n" % (number, name, number))
    feed.end()
    assert (await client.rest()).end == "whole"
    return client


# ---- where it is


def mounted(tmp_path, feed, **keys):
    stack = [Middleware(SidecarMiddleware, data_dir=tmp_path, **keys)]
    inner = Starlette(routes=[feed.at(), Route("/json", json, methods=POST)], middleware=stack)
    return Starlette(routes=[Mount("/api/v1", inner), Route("/chat", json, methods=POST)])


@pytest.mark.parametrize("root", ["", "/behind"])
async def test_mounted(serve, tmp_path, root):
    feed = Feed()
    app = mounted(tmp_path, feed, paths=["/chat", "/json"])
    served = await serve(app=app, on={"root_path": root, "lifespan": "off"})
    client = await chunk_by_chunk(served, feed, "/api/v1/chat")
    again = await served.get(f"/api/v1/_slipstream/streams/{client.stream_id}?after=2", STREAM)
    assert again.body.startswith(b"data: 2\n")
    assert (await served.get("/api/v1/_slipstream/healthz")).body == b'{"status":"ok"}\n'
    assert (await served.get("/_slipstream/healthz")).status == 404
    assert (await served.ask("/chat")).cache is None
    answer = await served.ask("/api/v1/json")
    assert answer.cache == "slipstream; fwd=miss; stored"
    assert b'"path":"%b/api/v1/json","root":"%b/api/v1"' % (root.encode(), root.encode()) in answer.body
    job = await served.ask("/api/v1/json", b"[1]", {"prefer": "respond-async"})
    place = job.headers["location"]
    assert place.startswith(f"{root}/api/v1/_slipstream/jobs/j")
    result = place.removeprefix(root) + "/result"

    async def done():
        while (found := await served.get(result)).status == 409:
            pass
        return found

    assert (await soon(done())).body == answer.body


async def test_two_places_share_no_answers(serve, tmp_path):
    """One app, mounted twice: where it is may matter for what it says."""
    inner = Starlette(
        routes=[Route("/json", json, methods=POST)],
        middleware=[Middleware(SidecarMiddleware, data_dir=tmp_path)],
    )
    served = await serve(
        app=Starlette(routes=[Mount("/a", inner), Mount("/b", inner)]), on={"lifespan": "off"}
    )
    first, second = await served.ask("/a/json"), await served.ask("/b/json")
    assert b'"path":"/a/json"' in first.body and b'"path":"/b/json"' in second.body


@pytest.mark.parametrize(
    ("paths", "taken", "not_taken"),
    [
        (None, ["/", "/chat", "/a/b"], []),
        ("/chat", ["/chat", "/chat/", "/chat/x", "/chat?a=1"], ["/", "/chats", "/a/chat"]),
        (["/a/", "/chat"], ["/a/b", "/a", "/a/", "/chat"], ["/ab", "/b"]),
        (lambda scope: scope["path"] == "/only", ["/only"], ["/only/", "/"]),
        ([], [], ["/", "/chat"]),
        ("/", ["/", "/chat"], []),
    ],
)
async def test_paths(serve, paths, taken, not_taken):
    async def endpoint(request):
        return JSONResponse({})

    served = await serve([Route("/{path:path}", endpoint, methods=["GET", "POST", "PUT"])], paths=paths)
    for target in taken + not_taken:
        for method in ("GET", "POST"):
            assert bool((await served.ask(target, b"", {}, method)).cache) == (target in taken), target
        assert (await served.ask(target, b"", {}, "PUT")).cache is None
    assert (await served.get("/_slipstream/healthz")).body == b'{"status":"ok"}\n'
    assert (await served.get("/_slipstream/nothing")).status == 404


async def test_other_methods_go_straight_to_the_app(serve):
    seen = []

    async def endpoint(request):
        seen.append(request.headers.get("accept-encoding"))
        return JSONResponse({"method": request.method})

    methods = ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"]
    served = await serve([Route("/chat", endpoint, methods=methods)])
    for method in methods[1:]:
        client = await served.ask("/chat", b"", GZIP, method)
        assert client.status == 200 and client.cache is None and "slipstream-stream-id" not in client.headers
    assert seen == ["gzip"] * 5


# ---- what stands around it, and inside


@pytest.mark.parametrize("place", ["outer", "inner"])
async def test_beside_gzip(serve, place):
    feed = Feed()
    stack = {place: [Middleware(GZipMiddleware, minimum_size=10)]}
    served = await serve([feed.at(), Route("/json", json, methods=POST)], **stack)
    await chunk_by_chunk(served, feed, headers=STREAM | GZIP)
    first = await served.ask("/json", headers=GZIP)
    again = await served.ask("/json", headers=GZIP)
    plain = await served.ask("/json", headers={"accept-encoding": "identity"})
    assert again.cache.startswith("slipstream; hit") and plain.cache.startswith("slipstream; hit")
    assert "content-encoding" not in plain.headers
    for client in (first, again):
        body = (
            gzip.decompress(client.body) if client.headers.get("content-encoding") == "gzip" else client.body
        )
        assert body == plain.body
        assert (client.headers.get("content-encoding") == "gzip") == (place == "outer")


async def test_beside_cors(serve):
    runs = []

    async def endpoint(request):
        runs.append(1)
        return JSONResponse({})

    for place in ("outer", "inner"):
        runs.clear()
        stack = {
            place: [Middleware(CORSMiddleware, allow_origins=["http://a", "http://b"], allow_methods=["*"])]
        }
        served = await serve([Route("/chat", endpoint, methods=POST)], cache="exact", **stack)
        target = f"/chat?{place}"
        for origin in ("http://a", "http://b", "http://a"):
            client = await served.ask(target, headers={"origin": origin})
            assert client.headers["access-control-allow-origin"] == origin
        assert client.cache.startswith("slipstream; hit") and len(runs) == 2
        asking = {"origin": "http://a", "access-control-request-method": "POST"}
        assert (await served.ask("/chat", b"", asking, "OPTIONS")).status == 200
        await served.stop()


@pytest.mark.parametrize("place", ["outer", "inner"])
async def test_beside_sessions(serve, place):
    from starlette.middleware.sessions import SessionMiddleware

    feed = Feed()

    async def endpoint(request):
        request.session["seen"] = request.session.get("seen", 0) + 1
        return await feed.endpoint(request)

    stack = {place: [Middleware(SessionMiddleware, secret_key="k")]}
    served = await serve([Route("/chat", endpoint, methods=POST)], **stack)
    cookies = []
    for _ in range(2):
        headers = {"cookie": cookies[-1].partition(";")[0]} if cookies else {}
        client = await (await served.post(headers=headers)).head()
        feed.say(said(1))
        await client.until(said(1))
        feed.end()
        assert (await client.rest()).end == "whole"
        cookies.append(client.headers["set-cookie"])
    assert len(feed.runs) == 2 and client.cache == "slipstream; fwd=bypass"


@pytest.mark.parametrize("place", ["outer", "inner"])
async def test_beside_a_base_http_middleware(serve, place):
    feed, seen = Feed(), []

    async def dispatch(request, call_next):
        response = await call_next(request)
        seen.append((request.scope["endpoint"].__name__, request.state.word))
        response.headers["x-mine"] = "1"
        return response

    async def endpoint(request):
        request.state.word = "set by the endpoint"
        return await feed.endpoint(request)

    stack = {place: [Middleware(BaseHTTPMiddleware, dispatch=dispatch)]}
    served = await serve([Route("/chat", endpoint, methods=POST)], **stack)
    client = await chunk_by_chunk(served, feed)
    assert client.headers["x-mine"] == "1" and seen == [("endpoint", "set by the endpoint")]
    left = await (await served.post(body=b"[1]")).head()
    left.close()
    await soon(feed.runs[-1].closed.wait(), 2)
    await served.idle()
    assert not served.raised


async def test_a_broken_stream_inside_of_a_base_http_middleware(serve):
    """That middleware completes whatever it is given, also without us: the error event is what is left."""
    feed = Feed()
    served = await serve([feed.at()], outer=[Middleware(BaseHTTPMiddleware, dispatch=passes)])
    clients = [await (await served.post()).head() for _ in range(2)]  # the second one joins
    feed.say(said(1), LookupError("x"))
    for client in clients:
        await client.rest()
        assert b"event: error\n" in client.body
    await served.idle()
    assert [type(error) for error in served.raised] == [LookupError]
    assert (await (await served.post()).head()).cache == "slipstream; fwd=miss; stored"


async def test_a_broken_stream_around_a_base_http_middleware_is_not_stored(serve):
    feed = Feed()
    served = await serve([feed.at()], inner=[Middleware(BaseHTTPMiddleware, dispatch=passes)])
    client = await (await served.post()).head()
    feed.say(said(1), LookupError("x"))
    await client.rest()
    await served.idle()
    again = await (await served.post()).head()
    assert again.cache == "slipstream; fwd=miss; stored"


async def passes(request, call_next):
    return await call_next(request)
