"""SidecarMiddleware: who shares answers, streams and ids with whom, and what makes two requests the same."""

import asyncio
from collections import Counter

import pytest
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from tests.plugin.rig import STREAM, Feed, eventually, said, soon

POST = ["POST"]
ALICE, BOB = {"authorization": "Bearer alice"}, {"authorization": "Bearer bob"}


class Counts:
    """An endpoint that answers with the number of its run."""

    def __init__(self, make=lambda number: JSONResponse({"run": number})):
        self.runs = 0
        self.make = make

    def at(self, path="/chat"):
        return Route(path, self.endpoint, methods=["GET", "POST"])

    async def endpoint(self, request):
        self.runs += 1
        return self.make(self.runs)


async def both(served, first, second):
    """The two requests, one after the other; whether the second was answered by the first's run."""
    target, body, headers = "/chat", b'{"q": 1}', {}
    one = await served.ask(**{"target": target, "body": body, "headers": headers} | first)
    two = await served.ask(**{"target": target, "body": body, "headers": headers} | second)
    assert one.status == two.status == 200
    hit = (two.cache or "").startswith("slipstream; hit")
    assert hit == (one.body == two.body)
    return hit


SAME = [
    ({}, {}),
    ({"body": b'{"q":1,"r":2}'}, {"body": b'{ "r": 2, "q": 1 }'}),
    ({"body": b"no json \xff"}, {"body": b"no json \xff"}),
    ({"body": b"", "method": "GET"}, {"body": b"", "method": "GET"}),
    ({}, {"headers": {"user-agent": "x", "x-custom": "y", "x-request-id": "7", "accept-encoding": "gzip"}}),
    ({}, {"headers": {"accept": "application/json"}}),
    ({"headers": {"origin": "http://a"}}, {"headers": {"origin": "http://a"}}),
]
OTHERS = [
    ({}, {"body": b'{"q": 2}'}),
    ({}, {"target": "/chat?a=1"}),
    ({"target": "/chat?a=1&b=2"}, {"target": "/chat?b=2&a=1"}),
    ({}, {"target": "/chat/x"}),
    ({"body": b"no json"}, {"body": b"no  json"}),
    ({"body": b""}, {"body": b"", "method": "GET"}),
    ({}, {"headers": {"origin": "http://a"}}),
    ({"headers": {"origin": "http://a"}}, {"headers": {"origin": "http://b"}}),
    ({}, {"headers": STREAM}),
    ({}, {"headers": {"slipstream-namespace": "a"}}),
    ({"headers": {"slipstream-namespace": "a"}}, {"headers": {"slipstream-namespace": "b"}}),
    ({}, {"headers": {"cache-control": "no-cache"}}),
    ({}, {"headers": {"cache-control": "no-store"}}),
    ({"headers": {"cache-control": "no-store"}}, {}),
    ({}, {"headers": {"range": "bytes=0-1"}}),
    ({"headers": {"range": "bytes=0-1"}}, {"headers": {"range": "bytes=0-1"}}),
    ({}, {"headers": {"if-none-match": '"x"'}}),
    ({}, {"headers": ALICE}),
    ({"headers": ALICE}, {"headers": ALICE}),
    ({"headers": {"cookie": "a=1"}}, {"headers": {"cookie": "a=1"}}),
    ({"headers": {"x-api-key": "1"}}, {"headers": {"x-api-key": "1"}}),
    ({"target": "/chat?api_key=1"}, {"target": "/chat?api_key=1"}),
]


@pytest.mark.parametrize(("first", "second"), SAME)
async def test_the_same(serve, first, second):
    counts = Counts()
    served = await serve([counts.at("/chat"), counts.at("/chat/x")])
    assert await both(served, first, second)
    assert counts.runs == 1


async def test_not_the_same(serve):
    """Each pair in a namespace of its own, so that they are strangers to each other."""
    counts = Counts()
    served = await serve([counts.at("/chat"), counts.at("/chat/x")])
    for number, (first, second) in enumerate(OTHERS):
        pair = []
        for one in (first, second):
            headers = {"slipstream-namespace": ""} | one.get("headers", {})
            headers["slipstream-namespace"] += f"-{number}"
            pair.append({**one, "headers": headers})
        assert not await both(served, *pair), (first, second)
    assert counts.runs == 2 * len(OTHERS)


@pytest.mark.parametrize(
    ("headers", "credential", "said"),
    [
        (ALICE, None, "slipstream; fwd=bypass"),
        ({"cookie": "a=1"}, None, "slipstream; fwd=bypass"),
        ({}, None, "slipstream; fwd=miss; stored"),
        (ALICE, "authorization", "slipstream; fwd=miss; stored"),
        ({"range": "bytes=0-"}, "authorization", "slipstream; fwd=bypass"),
        ({"cache-control": "no-cache"}, None, "slipstream; fwd=bypass; stored"),
        ({"cache-control": "no-store"}, None, "slipstream; fwd=bypass"),
    ],
)
async def test_what_is_said_of_the_cache(serve, headers, credential, said):
    served = await serve([Counts().at()], credential=credential)
    assert (await served.ask(headers=headers)).cache == said


async def test_only_if_cached(serve):
    counts = Counts()
    served = await serve([counts.at()])
    only = {"cache-control": "only-if-cached"}
    nothing = await served.ask(headers=only)
    assert nothing.status == 504 and counts.runs == 0
    await served.ask()
    assert (await served.ask(headers=only)).body == b'{"run":1}'


def by_user(scope):
    return dict(scope["headers"]).get(b"x-user")


def as_text(scope):
    user = dict(scope["headers"]).get(b"x-user")
    return user.decode() if user is not None else None


@pytest.mark.parametrize(
    ("credential", "tenants"),
    [
        ("authorization", [ALICE, BOB, {}, {"authorization": "bearer alice"}]),
        ("X-User", [{"x-user": "a"}, {"x-user": "b"}, {}]),
        (by_user, [{"x-user": "a"}, {"x-user": "b"}, {}]),
        (as_text, [{"x-user": "a"}, {"x-user": "b"}, {}]),
    ],
)
async def test_tenants_never_share_answers(serve, credential, tenants):
    counts = Counts()
    served = await serve([counts.at()], credential=credential)
    first = [(await served.ask(headers=tenant)).body for tenant in tenants]
    assert len({*first}) == len(tenants) == counts.runs
    # What else they bring makes no difference to those who have a name.
    brought = [tenant | {"cookie": "x=1"} if tenant else tenant for tenant in tenants]
    again = [(await served.ask(headers=headers)).body for headers in brought]
    assert again == first
    await eventually(lambda: len(served.lines.requests) == 2 * len(tenants))
    named = [line["tenant"] for line in served.lines.requests]
    assert Counter(named) == Counter([*{*named}] * 2) and len({*named}) == len(tenants)
    assert not any(word in b"".join(served.lines.raw) for word in (b"alice", b"bob"))


@pytest.mark.parametrize("named", [7, ["a"], object()])
async def test_a_credential_that_is_none(serve, named):
    counts = Counts()
    served = await serve([counts.at()], credential=lambda scope: named)
    assert (await served.ask()).status == 500
    assert counts.runs == 0 and [type(error) for error in served.raised] == [TypeError]


async def test_a_credential_that_raises_lets_nobody_in(serve):
    def fails(scope):
        raise KeyError("user")

    counts = Counts()
    served = await serve([counts.at()], credential=fails)
    assert (await served.ask()).status == 500
    assert counts.runs == 0 and [type(error) for error in served.raised] == [KeyError]


@pytest.mark.parametrize("credential", [None, "authorization"])
async def test_tenants_never_share_streams_nor_ids(serve, credential):
    feed = Feed()
    served = await serve([feed.at()], credential=credential)
    alice = await (await served.post(headers=ALICE | STREAM)).head()
    bob = await (await served.post(headers=BOB | STREAM)).head()
    assert len(feed.runs) == 2 and alice.stream_id != bob.stream_id
    target = f"/_slipstream/streams/{alice.stream_id}"
    last = {"last-event-id": f"{alice.stream_id}:0"}
    for other in (BOB, {}):
        found = await served.get(target, other)
        assert found.status == 404
        made_up = await served.get(target[:-1] + ("a" if target[-1] != "a" else "b"), other)
        assert (made_up.status, made_up.body) == (404, found.body)
        assert (await served.ask(target, b"", other, "DELETE")).status == 404
        assert (await served.ask(headers=other | last)).status == 404
    assert len(feed.runs) == 2
    feed.say(said(1), run=0)
    await alice.until(b":0\n\n")
    feed.end(0)
    feed.end(1)
    assert (await alice.rest()).end == (await bob.rest()).end == "whole"
    assert (await served.get(target, ALICE)).body == said(1)
    assert (await served.get(target, BOB)).status == 404


async def test_identical_requests_share_one_run(serve):
    feed = Feed()
    served = await serve([feed.at()])
    clients = [await served.post() for _ in range(100)]
    for client in clients:
        await client.head()
    feed.say(said(1))
    for client in clients:
        await client.until(said(1))
    late = await (await served.post()).head()
    await late.until(said(1))
    feed.say(said(2))
    feed.end()
    for client in [*clients, late]:
        await client.rest()
        assert (client.body, client.end) == (said(1) + said(2), "whole")
    kinds = sorted(client.cache for client in [*clients, late])
    assert kinds == ["slipstream; fwd=miss; collapsed"] * 100 + ["slipstream; fwd=miss; stored"]
    assert len(feed.runs) == 1
    await eventually(lambda: len(served.lines.requests) == 101)
    assert sorted(line["cache"] for line in served.lines.requests) == ["collapsed"] * 100 + ["miss"]


async def test_identical_requests_that_wait_for_a_head(serve):
    gate, runs = asyncio.Event(), []

    async def endpoint(request):
        runs.append(1)
        await gate.wait()
        return JSONResponse({"a": 1}, headers={"set-cookie": "session=mine"})

    served = await serve([Route("/chat", endpoint, methods=POST)])
    clients = [await served.post() for _ in range(100)]
    await served.active(100)
    gate.set()
    for client in clients:
        await client.answer()
        assert (client.status, client.body) == (200, b'{"a":1}')
    assert len(runs) == 1
    assert len([client for client in clients if "set-cookie" in client.headers]) == 1


async def test_a_cookie_is_for_one(serve):
    counts = Counts(lambda number: JSONResponse({}, headers={"set-cookie": "a=1", "x-mine": "1"}))
    served = await serve([counts.at()])
    first, second = await served.ask(), await served.ask()
    assert first.headers["set-cookie"] == "a=1"
    assert "set-cookie" not in second.headers and second.headers["x-mine"] == "1" and counts.runs == 1


@pytest.mark.parametrize("live", [True, False])
async def test_nor_does_one_who_joined_get_it_by_coming_back(serve, live):
    feed = Feed(headers={"set-cookie": "session=first"})
    served = await serve([feed.at()])
    first, second = await (await served.post()).head(), await (await served.post()).head()
    assert first.headers["set-cookie"] == "session=first" and "set-cookie" not in second.headers
    feed.say(said(1))
    if not live:
        feed.end()
        await first.rest()
    back = await (await served.send("GET", f"/_slipstream/streams/{second.stream_id}")).head()
    assert back.status == 200 and "set-cookie" not in back.headers
    if live:
        feed.end()


async def test_what_is_stored_survives(serve):
    counts = Counts()
    served = await serve([counts.at()])
    first = await served.ask()
    await soon(served.lines.request())
    await served.stop()
    again = await (await serve([counts.at()])).ask()
    assert again.body == first.body and again.cache.startswith("slipstream; hit") and counts.runs == 1


async def test_without_a_cache(serve):
    counts, feed = Counts(), Feed()
    served = await serve([counts.at(), feed.at("/stream")], cache="off")
    assert [(await served.ask()).body for _ in range(2)] == [b'{"run":1}', b'{"run":2}']
    clients = [await (await served.post("/stream")).head() for _ in range(2)]
    assert len(feed.runs) == 2 and not any(client.cache for client in clients)


async def test_a_mixed_up_stream_is_read_by_all_who_joined(serve):
    """An answer that is neither JSON nor events is shared while it runs, and only then."""
    gate, runs = asyncio.Event(), []

    async def pieces():
        yield b"one "
        await gate.wait()
        yield b"two"

    async def endpoint(request):
        runs.append(1)
        return StreamingResponse(pieces(), media_type="text/plain")

    served = await serve([Route("/chat", endpoint, methods=POST)])
    clients = [await (await served.post()).head() for _ in range(2)]
    gate.set()
    for client in clients:
        assert (await client.rest()).body == b"one two"
    assert len(runs) == 1 and not any(
        (client.cache or "").startswith("slipstream; hit") for client in clients
    )
