"""SidecarMiddleware: background jobs, and answers to the same question in other words."""

import asyncio

import orjson
import pytest
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.plugin.rig import STREAM, Feed, eventually, said, soon
from tests.plugin.test_middleware_leaving import WORD, Says

POST = ["POST"]
LATER = {"prefer": "respond-async"}
ALICE, BOB = {"authorization": "Bearer alice"}, {"authorization": "Bearer bob"}
ASKED = "How can I change the email address of my account?"
AGAIN = "How do I change my account's email address?"


async def submit(served, target="/chat", body=b"{}", headers=()):
    job = await served.ask(target, body, {**LATER, **dict(headers)})
    assert job.status == 202, job.body
    assert orjson.loads(job.body)["status"] in {"queued", "running", "complete", "done", "completed"}
    return job.headers["location"]


async def ended(served, place, headers=()):
    """What its status says once it is over."""

    async def over():
        while (found := orjson.loads((await served.get(place, headers)).body))["status"] in {
            "queued",
            "running",
        }:
            pass
        return found

    return await soon(over())


# ---- jobs


@pytest.mark.parametrize("body", [b'{"a": 1}\n', b"\x00\xff" * 1000, b"data: 1\n\n", b""])
async def test_the_result_is_the_answer_byte_for_byte(serve, body):
    runs = []

    async def endpoint(request):
        runs.append((await request.body(), request.headers.get("prefer"), request.query_params["q"]))
        kind = "text/event-stream" if body.startswith(b"data") else "application/x-mine"
        return Response(body, 200, {"x-mine": "1"}, kind)

    served = await serve([Route("/chat", endpoint, methods=POST)])
    place = await submit(served, "/chat?q=1", b"[1]")
    assert place.startswith("/_slipstream/jobs/j")
    await ended(served, place)
    for _ in range(2):
        result = await served.get(f"{place}/result")
        assert (result.status, result.body, result.headers["x-mine"], result.end) == (200, body, "1", "whole")
    assert runs == [(b"[1]", None, "1")]


async def test_a_job_runs_without_its_client_and_in_its_context(serve):
    gate, seen = asyncio.Event(), []

    async def endpoint(request):
        await gate.wait()
        seen.append((WORD.get(), request.headers["x-word"], request.client.host, request.app is not None))
        return JSONResponse({})

    served = await serve([Route("/chat", endpoint, methods=POST)], outer=[Middleware(Says)])
    place = await submit(served, headers={"x-word": "hello"})
    await served.idle()
    gate.set()
    await ended(served, place)
    assert seen == [("hello", "hello", "127.0.0.1", True)]


async def test_a_job_can_be_followed(serve):
    feed = Feed()
    served = await serve([feed.at()])
    place = await submit(served)
    await soon(feed.began.wait())
    name = place.rpartition("/")[2]
    client = await served.send("GET", f"/_slipstream/streams/{name}", b"", STREAM)
    feed.say(said(0))
    await (await client.head()).until(b":0\n\n")
    feed.end()
    assert (await client.rest()).body == b"data: 0\nid: %b:0\n\n" % name.encode()
    await ended(served, place)
    assert (await served.get(f"{place}/result")).body == said(0)


@pytest.mark.parametrize("begun", [True, False])
async def test_a_job_is_cancelled(serve, begun):
    feed, other = Feed(), Feed()
    served = await serve([feed.at(), other.at("/other")], config={"jobs": {"concurrency": 1}})
    first = None if begun else await submit(served, "/other")
    place = await submit(served)
    if begun:
        await soon(feed.began.wait())
    assert (await served.ask(place, b"", {}, "DELETE")).status == 200
    assert (await ended(served, place))["status"] == "cancelled"
    if begun:
        await soon(feed.runs[0].closed.wait(), 1.5)
        assert feed.runs[0].how in {"cancelled", "closed"}
    else:
        other.end()
        await ended(served, first)
        assert not feed.runs
    result = await served.get(f"{place}/result")
    assert (result.status, result.end) == ((200, "cut") if begun else (410, "whole"))


async def test_a_job_that_fails(serve):
    async def endpoint(request):
        raise LookupError("hunter2")

    served = await serve([Route("/chat", endpoint, methods=POST)], heard=["hunter2"])
    place = await submit(served)
    found = await ended(served, place)
    assert found["status"] == "failed" and "hunter2" not in str(found)
    assert (await served.get(f"{place}/result")).status == 500
    assert not served.raised and b"hunter2" not in b"".join(served.lines.raw)


async def test_the_background_of_a_job(serve):
    ran = []

    async def endpoint(request):
        return JSONResponse({}, background=BackgroundTask(ran.append, 1))

    served = await serve([Route("/chat", endpoint, methods=POST)])
    place = await submit(served)
    assert (await ended(served, place))["status"] not in {"failed", "cancelled"}
    await eventually(lambda: ran)
    assert ran == [1]


async def test_jobs_are_for_their_tenant(serve):
    served = await serve([Feed().at()], credential="authorization")
    place = await submit(served, headers=ALICE)
    for other in (BOB, {}):
        assert (await served.get(place, other)).status == 404
        assert (await served.get(f"{place}/result", other)).status == 404
        assert (await served.ask(place, b"", other, "DELETE")).status == 404
    assert (await served.get(place, ALICE)).status == 200
    assert (await served.ask(place, b"", ALICE, "DELETE")).status == 200


async def test_a_queued_job_survives(serve):
    feed, seen = Feed(), []

    async def endpoint(request):
        seen.append((await request.body(), request.url.path, request.headers["x-word"]))
        return JSONResponse({"a": 1})

    routes = [Route("/chat", endpoint, methods=POST), feed.at("/other")]
    served = await serve(routes, config={"jobs": {"concurrency": 1}, "shutdown": {"grace": 0}})
    await submit(served, "/other")
    await soon(feed.began.wait())
    place = await submit(served, "/chat", b"[1]", {"x-word": "x"})
    await served.stop()
    assert not seen
    again = await serve(routes)
    await ended(again, place)
    assert (await again.get(f"{place}/result")).body == b'{"a":1}'
    assert seen == [(b"[1]", "/chat", "x")]


async def test_a_job_that_is_waited_for(serve):
    async def endpoint(request):
        return JSONResponse({"a": 1})

    served = await serve([Route("/chat", endpoint, methods=POST)])
    client = await served.ask(headers={"prefer": "respond-async, wait=30"})
    assert (client.status, client.body) == (200, b'{"a":1}')


async def test_a_job_has_a_body_of_bounded_length(serve):
    served = await serve([Feed().at()], config={"limits": {"body": 10}})
    client = await served.ask(body=b"x" * 11, headers=LATER)
    assert client.status == 413


# ---- other words


def question(text, **fields):
    return orjson.dumps({"message": text, "messages": [{"role": "user", "content": text}], **fields})


def of_body(body):
    return orjson.loads(body)["message"]


class Semantic:
    """An app that answers questions, and one to ask it with."""

    def __init__(self, served, runs):
        self.served, self.runs = served, runs

    async def known(self, body, headers=()):
        counts = self.served.assembly.cache.counts
        before, log = counts["stored"], self.vectors
        client = await self.served.ask(body=body, headers=headers)
        await eventually(lambda: counts["stored"] > before and self.vectors > log, lambda: counts)
        return client

    @property
    def vectors(self):
        return self.served.assembly.cache._store.stats().vectors

    async def ask(self, body, headers=()):
        client = await self.served.ask(body=body, headers=headers)
        return "detail=semantic:0.9" in (client.cache or ""), client


@pytest.fixture
async def semantic(serve, with_model, tmp_path):
    async def start(prompt, **keys):
        runs = []

        async def endpoint(request):
            runs.append(1)
            return JSONResponse({"run": len(runs)})

        config = {"semantic": {"deadline": 30}}
        served = await serve(
            [Route("/chat", endpoint, methods=POST)],
            **{"prompt": prompt, "cache": "semantic", "data_dir": with_model(tmp_path), "config": config}
            | keys,
        )
        await served.get("/_slipstream/healthz")
        semantics = served.assembly.semantics
        await semantics.started(30)
        await eventually(lambda: semantics.cache.ready, lambda: served.lines.all)
        return Semantic(served, runs)

    return start


@pytest.mark.parametrize("prompt", ["messages.-1.content", of_body])
async def test_the_same_question_in_other_words(semantic, prompt):
    """Its other place in the body is not part of the question: it has to be the same."""
    app = await semantic(prompt, credential="authorization")

    def asks(text, **fields):
        if prompt is of_body:
            return orjson.dumps({"message": text, **fields})
        return orjson.dumps({"messages": [{"role": "user", "content": text}], **fields})

    first = await app.known(asks(ASKED, top=1), ALICE)
    found, client = await app.ask(asks(AGAIN, top=1), ALICE)
    assert found and client.body == first.body and client.cache.startswith("slipstream; hit")
    line = await soon(app.served.lines.request(1))
    assert (line["cache"], line["similarity"] >= 0.92) == ("hit", True)
    assert {"embed_ms", "search_ms"} <= {*line["phases"]}
    for body, headers in [
        (asks(AGAIN, top=2), ALICE),
        (asks(AGAIN), ALICE),
        (asks(AGAIN, top=1), BOB),
        (asks(AGAIN, top=1), {}),
        (asks("What is the capital of Portugal?", top=1), ALICE),
        (asks(AGAIN, top=1), ALICE | {"slipstream-namespace": "x"}),
        (asks(AGAIN, top=1), ALICE | {"cache-control": "no-cache"}),
    ]:
        before = len(app.runs)
        found, client = await app.ask(body, headers)
        assert not found and len(app.runs) == before + 1, (body, headers)
    assert not any(text.encode() in b"".join(app.served.lines.raw) for text in (ASKED, AGAIN))


async def test_a_plain_path(semantic):
    app = await semantic("message")
    first = await app.known(orjson.dumps({"message": ASKED}))
    found, client = await app.ask(orjson.dumps({"message": AGAIN}))
    assert found and client.body == first.body
    # Nothing there that could be compared: identical requests only.
    for body in (b"{}", b"[1]", b"no json", b"", orjson.dumps({"message": 7}), orjson.dumps({"message": ""})):
        before = len(app.runs)
        assert not (await app.ask(body))[0] and len(app.runs) == before + 1
    # Who brings a credential that nobody said how to tell apart shares nothing.
    assert not (await app.ask(orjson.dumps({"message": AGAIN}), ALICE))[0]


async def test_a_prompt_that_raises(semantic):
    """The cache can only help."""

    def prompt(body):
        raise KeyError("message")

    app = await semantic(prompt)
    client = await app.served.ask(body=question(ASKED))
    assert (client.status, client.body) == (200, b'{"run":1}')
    again = await app.served.ask(body=question(ASKED))
    assert again.cache.startswith("slipstream; hit")


async def test_without_a_prompt_apps_ask_nothing(semantic):
    app = await semantic(None)
    await app.served.ask(body=question(ASKED))
    assert not (await app.ask(question(AGAIN)))[0] and len(app.runs) == 2
