"""SidecarMiddleware: what looks like the same request, or the same app, and is not."""

import asyncio
import sys
from types import SimpleNamespace

import pytest
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Host, Mount, Route, Router

from sidecar.core.values import ConfigError
from sidecar_starlette import SidecarMiddleware, progress
from sidecar_starlette.name import name_of
from sidecar_starlette.runtime import settings
from tests.plugin.rig import STREAM, Feed, eventually, said

BOTH = ["GET", "POST"]
NAMED = {"authorization": "Bearer x"}


async def told(request):
    """All that an app may look at."""
    fields = {name: value for name, value in request.headers.items() if name != "content-length"}
    return JSONResponse({"path": request.url.path, "query": str(request.query_params), **fields})


@pytest.mark.parametrize("name", ["key", "api_key", "api-key", "access_token"])
async def test_what_is_a_credential_elsewhere_counts_in_a_query(serve, name):
    served = await serve([Route("/chat", told)], credential="authorization")
    answers = [(await served.get(f"/chat?{name}={value}", NAMED)).body for value in "ab"]
    assert answers[0] != answers[1]


@pytest.mark.parametrize(
    "sure", [{"x-stainless-retry-count": "1"}, {"idempotency-key": "k"}], ids=["retry", "operation"]
)
@pytest.mark.parametrize("who", ["x-forwarded-user", "cookie", "x-auth-request-email"])
async def test_no_retry_finds_another_s_stream(serve, who, sure):
    feed = Feed()
    served = await serve([feed.at()])
    alice = await served.post(headers={who: "alice", **sure})
    await alice.head()
    bob = await served.post(headers={who: "bob", **sure})
    await eventually(lambda: len(feed.runs) == 2)
    for run, name in enumerate((b"data: alice\n\n", b"data: bob\n\n")):
        feed.say(name, run=run)
        feed.end(run=run)
    assert (await alice.rest()).body == b"data: alice\n\n"
    assert (await bob.answer()).body == b"data: bob\n\n"


class SignedIn(AuthenticationBackend):
    async def authenticate(self, conn):
        return AuthCredentials(), SimpleUser(conn.headers["x-who"])


async def test_a_user_in_the_scope_shares_with_nobody(serve):
    feed = Feed()
    served = await serve([feed.at()], outer=[Middleware(AuthenticationMiddleware, backend=SignedIn())])
    streams = [await served.post(headers={"x-who": who}) for who in ("alice", "bob")]
    await eventually(lambda: len(feed.runs) == 2)
    for run in (0, 1):
        feed.end(run=run)
    for stream in streams:
        assert "bypass" in (await stream.answer()).cache
    other = {"x-who": "bob"}
    stream = f"/_slipstream/streams/{streams[0].stream_id}"
    assert (await served.get(stream, other)).status == 404
    assert (await served.get(stream, {"x-who": "alice"})).status == 200


async def test_whoever_brings_no_name_where_one_is_wanted_shares_with_nobody(serve):
    served = await serve([Route("/chat", told, methods=BOTH)], credential="authorization")
    bodies = [(await served.ask(headers={"cookie": f"s={who}"})).body for who in ("alice", "bob", "alice")]
    assert b"alice" in bodies[0]
    assert b"bob" in bodies[1]


async def test_hosts_are_apart(serve):
    inner = [Host(f"{name}.test", Router([Route("/chat", told)])) for name in "ab"]
    served = await serve(inner)
    for name in "ab":
        answer = await served.get("/chat", {"host": f"{name}.test"})
        assert f"{name}.test".encode() in answer.body


@pytest.mark.parametrize("type_", ["application/json", "application/x-www-form-urlencoded"])
async def test_what_a_body_is_counts(serve, type_):
    served = await serve([Route("/chat", told, methods=BOTH)])
    await served.ask(headers={"content-type": "text/plain"})
    assert type_.encode() in (await served.ask(headers={"content-type": type_})).body


def varying(name):
    async def endpoint(request):
        value = request.headers.get(name, "")
        return JSONResponse({"value": value}, headers={"Vary": f"Accept-Encoding, {name}"})

    return Route("/chat", endpoint, methods=BOTH)


@pytest.mark.parametrize("name", ["Cookie", "Accept-Language", "Accept", "*"])
async def test_an_answer_that_depends_on_more_is_not_stored(serve, name):
    served = await serve([varying(name)], credential="x-tenant")
    for value in ("a", "b"):
        answer = await served.ask(
            headers={"x-tenant": "t", name: value} if name != "*" else {"x-tenant": "t"}
        )
        assert answer.body == b'{"value":"%b"}' % (value.encode() if name != "*" else b"")
        assert "hit" not in answer.cache and "stored" not in answer.cache


@pytest.mark.parametrize("name", ["x-tenant", "Origin", "Accept-Encoding"])
async def test_one_that_depends_on_what_counts_is(serve, name):
    served = await serve([varying(name)], credential="x-tenant")
    for _ in range(2):
        answer = await served.ask(headers={"x-tenant": "t"} | {name.lower(): "t"})
    assert "hit" in answer.cache


@pytest.mark.parametrize("field", [{"Vary": "Accept-Language"}, {"Cache-Control": "no-store"}])
@pytest.mark.parametrize("when", ["before its head", "after it"])
async def test_a_stream_that_is_for_one_is_not_joined(serve, field, when):
    feed = Feed(hold=True, headers=field)
    served = await serve([feed.at()])
    first = await served.post(headers={"accept-language": "en"})
    await feed.began.wait()
    if when == "after it":
        feed.go.set()
        await first.head()
    second = await served.post(headers={"accept-language": "de"})
    await served.active(2)
    feed.go.set()
    await eventually(lambda: len(feed.runs) == 2)
    for run in (0, 1):
        feed.say(said(run), run=run)
        feed.end(run=run)
    assert (await first.answer() if when != "after it" else await first.rest()).body == said(0)
    assert (await second.answer()).body == said(1)


async def test_a_head_that_comes_after_progress_may_still_forbid_storing(serve):
    runs = []

    async def endpoint(request):
        runs.append(1)
        await progress("searching")

        async def pieces():
            yield b"data: %d\n\n" % len(runs)

        return StreamingResponse(
            pieces(), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    served = await serve([Route("/chat", endpoint, methods=BOTH)])
    for number in (1, 2):
        assert b"data: %d" % number in (await served.ask(headers=STREAM)).body


async def test_an_answer_that_is_too_long_for_an_event_is_an_error(serve):
    async def endpoint(request):
        await progress("searching")

        async def pieces():
            for _ in range(200):
                yield b"x" * (1 << 20)

        return StreamingResponse(pieces(), media_type="text/plain")

    served = await serve([Route("/chat", endpoint, methods=BOTH)])
    answer = await served.ask(headers=STREAM)
    assert b"event: error" in answer.body
    assert len(answer.body) < 1000


# Where requests go.


@pytest.mark.parametrize("target", ["/_slipstream%2Fsecret", "/%5Fslipstream/secret"])
async def test_paths_of_our_own_never_reach_the_app(serve, target):
    reached = []

    async def endpoint(request):
        reached.append(request.url.path)
        return JSONResponse({})

    served = await serve([Route("/{path:path}", endpoint, methods=["PUT", *BOTH])], paths=["/chat"])
    for method in ("PUT", "GET"):
        assert (await served.ask(target, method=method)).status == 404
    assert not reached


async def test_rules_by_path_go_by_what_a_path_means(serve):
    rules = {"cache": {"paths": {"/private": {"ttl": 0}}}}
    served = await serve([Route("/private", told)], config=rules)
    for target in ("/private", "/priv%61te", "/private"):
        answer = await served.get(target)
        assert answer.status == 200
        assert "hit" not in answer.cache


class Rewriting:
    """Puts the site in front of the path, and forgets `raw_path`."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            site = dict(scope["headers"])[b"x-site"].decode()
            scope = {**scope, "path": f"/{site}{scope['path']}"}
        await self.app(scope, receive, send)


async def test_a_path_that_was_rewritten(serve):
    served = await serve([Route("/{site}/chat", told)], outer=[Middleware(Rewriting)])
    for site in "ab":
        assert f'"path":"/{site}/chat"'.encode() in (await served.get("/chat", {"x-site": site})).body


# Which app.


def app_of(*routes):
    return Starlette(routes=list(routes))


async def other(request):
    return JSONResponse({})


def test_apps_have_names_that_stay():
    one, same = (app_of(Route("/chat", told), Mount("/a", routes=[Route("/b", other)])) for _ in "12")
    assert name_of(one, ["/chat"], None) == name_of(same, ["/chat"], None)
    others = [
        name_of(app_of(Route("/chat", other), Mount("/a", routes=[Route("/b", other)])), ["/chat"], None),
        name_of(app_of(Route("/chat", told), Mount("/a", routes=[Route("/b", told)])), ["/chat"], None),
        name_of(app_of(Route("/chats", told), Mount("/a", routes=[Route("/b", other)])), ["/chat"], None),
        name_of(one, ["/other"], None),
        name_of(one, ["/chat"], "message"),
        name_of(SimpleNamespace()),
    ]
    assert len({*others, name_of(one, ["/chat"], None)}) == len(others) + 1


async def test_two_apps_on_one_folder_have_answers_of_their_own(serve, tmp_path):
    async def first(request):
        return JSONResponse({"app": 1})

    async def second(request):
        return JSONResponse({"app": 2})

    for number, endpoint in enumerate((first, second, first, second)):
        served = await serve([Route("/chat", endpoint, methods=BOTH)], cache="exact", config={})
        answer = await served.ask()
        assert answer.body == b'{"app":%d}' % (number % 2 + 1)
        await served.idle()
        await eventually(lambda: not served.assembly.cache._writes._size)  # noqa: B023
        await served.stop()


def test_a_folder_that_nobody_named_is_the_app_s_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    found = set()
    for argv, name in ((["a"], "x"), (["a", "b"], "x"), (["a"], "y")):
        monkeypatch.setattr(sys, "argv", argv)
        given = settings(None, cache=None, data_dir=None, apart=name)
        assert given.folder.is_relative_to(tmp_path / "slipstream" / "apps")
        assert given.models == tmp_path / "slipstream"
        found.add(given.folder)
    assert len(found) == 3
    assert settings(None, cache=None, data_dir=tmp_path, apart="x").folder == tmp_path


def test_sharing_across_tenants_is_refused():
    with pytest.raises(ConfigError, match=r"cache\.share: in an app"):
        SidecarMiddleware(told, config={"cache": {"share": "upstream"}})


# Who hears of what.


async def test_a_server_that_gives_a_request_up_hears_of_its_app_through_the_loop(serve):
    """What the app raises after its request's task was cancelled is not lost."""
    go, reached = asyncio.Event(), asyncio.Event()
    tasks = []

    class Outer:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            if scope["type"] == "http":
                tasks.append(asyncio.current_task())
            await self.app(scope, receive, send)

    async def endpoint(request):
        reached.set()
        await go.wait()
        raise LookupError("nobody waits")

    finish = {"disconnect": {"default": "finish"}}
    served = await serve(
        [Route("/chat", endpoint, methods=BOTH)],
        outer=[Middleware(Outer)],
        config=finish,
        heard=["nobody waits"],
    )
    await served.post()
    await reached.wait()
    tasks[0].cancel()
    await asyncio.wait(tasks)
    go.set()
    await eventually(lambda: not len(served.assembly.hub))


async def test_something_that_the_app_waits_for_is_cancelled(serve):
    """That is a failure of the app's, and no end of its request."""

    async def endpoint(request):
        inner = asyncio.ensure_future(asyncio.Event().wait())
        asyncio.get_running_loop().call_soon(inner.cancel)
        await inner

    served = await serve([Route("/chat", endpoint, methods=BOTH)])
    answer = await served.ask()
    assert (answer.status, answer.end) == (500, "whole")


async def test_the_line_of_a_request_that_joined_has_no_phases_of_the_other(serve):
    feed = Feed()
    served = await serve([feed.at()])
    first = await served.post()
    await first.head()
    second = await served.post()
    await second.head()
    assert "collapsed" in second.cache
    feed.end()
    await first.rest()
    await second.rest()
    await eventually(lambda: len(served.lines.requests) == 2)
    joined = next(line for line in served.lines.requests if line["cache"] == "collapsed")
    assert [name for name, took in joined["phases"].items() if took is not None] == ["read_ms"]


async def test_whoever_leaves_early_is_no_mistake_of_middleware_s(serve):
    feed = Feed(hold=True)

    async def around(request, call_next):
        return await call_next(request)

    served = await serve([feed.at()], outer=[Middleware(BaseHTTPMiddleware, dispatch=around)])
    client = await served.post()
    await feed.began.wait()
    client.close()
    await served.idle()
    assert not served.raised
