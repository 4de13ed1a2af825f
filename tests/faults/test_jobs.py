"""A background job's life: taken in, asked about, fetched; and the lines it leaves."""

import asyncio
import gzip
import time

import pytest

from tests.faults.jobs import (
    ANSWER,
    JOBS,
    ONE,
    PLAIN,
    STREAMS,
    Disk,
    ask,
    ended,
    job_lines,
    name_of,
    pieces,
    plain,
    refused,
    result,
    status,
    stream,
    submitted,
    whole,
    works,
)
from tests.faults.wire import (
    CHAT,
    FORMATS,
    LAST,
    chunk,
    head,
)

pytestmark = pytest.mark.both_shells

WHOLE = {
    "chat": ("/v1/chat/completions", PLAIN),
    "completions": ("/v1/completions", b'{"model":"m","prompt":"hi"}'),
    "responses": ("/v1/responses", b'{"model":"m","input":"hi"}'),
    "anthropic": ("/v1/messages", PLAIN),
    "gemini": ("/v1beta/models/g:generateContent", b'{"contents":[]}'),
    "ollama": ("/api/chat", b'{"model":"m","stream":false,"messages":[]}'),
    "embeddings": ("/v1/embeddings", b'{"model":"m","input":"hi"}'),
    "not-json": ("/v1/chat/completions", b"\xff{"),
    "other": ("/anything/else", b"\x00\x01"),
}
FIELDS = (b"X-Request-Id: up-1", b"x-ratelimit-remaining: 7", b"Set-Cookie: a=1", b"Set-Cookie: b=2")


@pytest.fixture
async def disk(rig, monkeypatch):
    made = Disk(monkeypatch)
    yield made
    made.release()


@pytest.fixture
async def client(rig, tmp_path):
    """A client of a sidecar that keeps jobs."""
    await rig.start(folder=tmp_path)
    return await rig.connect()


def upstreams_fields(answer):
    """What the upstream's head said, whoever says it now."""
    ours = {b"server-timing", b"transfer-encoding", b"x-accel-buffering", b"cache-control"}
    return [field for field in answer.headers if field[0].lower() not in ours]


# Taken in, and handed out again.


@pytest.mark.parametrize("form", FORMATS, ids=str)
async def test_stream_of_every_dialect_comes_back_byte_for_byte(rig, client, form):
    """202, then the status tells the end, and the result is the upstream's: status, fields and bytes."""
    rig.script(form.target)
    answer = await ask(client, form)
    call = await rig.call()
    assert (call.received.method, call.received.body) == (form.method, form.body or b"")
    assert call.received.target == form.target
    name = name_of(await whole(answer))
    await call.send(head(form.kind, *FIELDS), *map(chunk, form.events), LAST)
    call.done()
    done = await ended(client, name)
    assert (done["status"], done["error"], done["progress"]["bytes"]) == ("complete", None, len(form.whole))
    assert done["progress"]["events"] == len(pieces(form)) - 1
    got = await result(client, name)
    assert (got.status, got.reason, got.end) == (200, b"OK", "whole")
    assert (bytes(got.body), upstreams_fields(got)) == (
        form.whole,
        got.spelt([(b"Content-Type", form.kind), *(tuple(field.split(b": ")) for field in FIELDS)]),
    )
    assert [len(rig.provider.requests), rig.uncalled()] == [1, True]


@pytest.mark.parametrize("kind", WHOLE)
async def test_whole_answer_of_every_dialect_comes_back_byte_for_byte(rig, client, kind):
    target, body = WHOLE[kind]
    rig.script(target)
    form = CHAT._replace(target=target, body=body)
    name = await submitted(client, form)
    call = await rig.call()
    assert (call.received.target, call.received.body) == (target, body)
    await call.send(plain(ANSWER, *FIELDS))
    call.done()
    assert (await ended(client, name))["status"] == "complete"
    for _ in range(2):
        got = await result(client, name)
        assert (got.status, bytes(got.body), got.end) == (200, ANSWER, "whole")
        assert got.header("content-length") == b"%d" % len(ANSWER)
        assert got.all("set-cookie") == [b"a=1", b"b=2"]


@pytest.mark.parametrize(
    ("sent", "got"),
    [
        (b"HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n", (204, b"No Content", b"")),
        (b"HTTP/1.1 201 Made\r\nLocation: /x\r\nContent-Length: 2\r\n\r\nok", (201, b"Made", b"ok")),
        (
            b"HTTP/1.1 302 Found\r\nLocation: https://x.test/\r\nContent-Length: 0\r\n\r\n",
            (302, b"Found", b""),
        ),
        (b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nto the end", (200, b"OK", b"to the end")),
        (b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", (200, b"", b"")),
    ],
    ids=["204", "201", "redirect", "http10", "no-reason"],
)
async def test_odd_answers_come_back_as_they_were(rig, client, sent, got):
    rig.script("/odd")
    name = await submitted(client, CHAT._replace(target="/odd"))
    call = await rig.call()
    await call.send(sent)
    call.close()
    assert (await ended(client, name))["status"] == "complete"
    answer = await result(client, name)
    code, reason, body = got
    assert (answer.status, answer.reason) == (code, answer.phrased(reason))
    assert (bytes(answer.body), answer.end) == (body, "whole")
    assert (await status(client, name))["status"] == "complete"  # the connection is in step


async def test_head_request_is_no_job(rig, client):
    """What comes of it could not be fetched with GET, whose answers have bodies: it is an ordinary request."""
    rig.script("/file")
    await client.send(b"HEAD /file HTTP/1.1\r\nHost: h\r\nPrefer: respond-async\r\n\r\n")
    call = await rig.call()
    assert call.received.method == "HEAD"
    await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nETag: x\r\n\r\n")
    call.done()
    answer = await client.answer("HEAD")
    assert (answer.status, answer.header("etag"), answer.header("location")) == (200, b"x", None)


async def test_request_goes_upstream_as_it_came_but_for_the_preference(rig, client):
    """Order, case and repetition of the fields are kept, as the upstream of an ordinary request would see them."""
    rig.script("/a")
    fields = [
        (b"X-One", b"1"),
        ONE,
        (b"x-one", b"2"),
        (b"Accept-Encoding", b"gzip"),
        (b"Slipstream-Feature", b"f"),
    ]
    form = CHAT._replace(target="/a?b=%20c&key=k")
    await client.ask(
        form.method, form.target, form.body, [*fields, (b"Prefer", b"return=minimal, respond-async")]
    )
    job = await rig.call()
    other = await rig.connect()
    await other.send(
        b"POST /a?b=%20c&key=k HTTP/1.1\r\nHost: sidecar.test\r\nContent-Type: application/json\r\n"
    )
    await other.send(
        b"Content-Length: %d\r\nX-One: 1\r\nAuthorization: Bearer one\r\nx-one: 2\r\n" % len(form.body)
    )
    await other.send(b"Accept-Encoding: gzip\r\n\r\n" + form.body)
    ordinary = await rig.call()
    seen = [(call.received.method, call.received.target, call.received.headers) for call in (job, ordinary)]
    assert seen[0] == seen[1]
    assert job.received.body == ordinary.received.body == form.body
    for call in (job, ordinary):
        await call.send(plain())
        call.done()


@pytest.mark.parametrize(
    "prefer", [b"wait=5", b"return=minimal", b"handling=lenient, wait=100", b"respond-asynchronous"]
)
async def test_preference_without_respond_async_is_an_ordinary_request(rig, client, prefer):
    """It is forwarded, and nothing is kept of it."""
    rig.script(CHAT.target)
    await client.send(b"POST %b HTTP/1.1\r\nHost: h\r\n" % CHAT.target.encode())
    await client.send(b"Content-Length: %d\r\nPrefer: %b\r\n\r\n%b" % (len(PLAIN), prefer, PLAIN))
    call = await rig.call()
    assert call.received.header("prefer") == prefer
    await call.send(plain())
    call.done()
    answer = await whole(await client.answer())
    assert (answer.status, bytes(answer.body), answer.header("location")) == (200, ANSWER, None)


@pytest.mark.parametrize(
    "prefer",
    [
        b"RESPOND-ASYNC",
        b"return=minimal,respond-async",
        b"respond-async, wait=0",
        b"respond-async , wait=soon",
        b"respond-async;foo=bar",
        b"respond-async, wait=99999999999x",
        b"respond-async, wait=1.5",
        b"respond-async, wait=",
    ],
)
async def test_preference_in_any_spelling_is_met(rig, client, prefer):
    """RFC 7240: names in any case, among others, with parameters; what is no number of seconds is no wait."""
    rig.script(CHAT.target)
    answer = await whole(await ask(client, CHAT, prefer=prefer))
    name = name_of(answer)
    call = await rig.call()
    assert call.received.header("prefer") is None
    await stream(call)
    await ended(client, name)


async def test_preference_on_two_lines_is_met(rig, client):
    rig.script(CHAT.target)
    answer = await client.whole(
        "POST", CHAT.target, CHAT.body, [(b"Prefer", b"respond-async"), (b"Prefer", b"wait=0")]
    )
    name = name_of(answer)
    call = await rig.call()
    assert call.received.header("prefer") is None
    await stream(call)
    await ended(client, name)


@pytest.mark.parametrize("size", [0, 1, 100_000])
async def test_chunked_and_empty_bodies(rig, client, size):
    """The upstream gets the body, of a declared length."""
    rig.script("/up")
    body = b"x" * size
    await client.send(
        b"POST /up HTTP/1.1\r\nHost: h\r\nPrefer: respond-async\r\nTransfer-Encoding: chunked\r\n"
    )
    await client.send(b"Expect: 100-continue\r\n\r\n")
    assert (await client.answer()).status == 100
    await client.send((chunk(body) if body else b"") + LAST)
    name = name_of(await whole(await client.answer()))
    call = await rig.call()
    assert (call.received.body, call.received.header("content-length")) == (body, b"%d" % size)
    await call.send(plain())
    call.done()
    await ended(client, name)


async def test_job_is_on_disk_before_the_202(rig, client, disk):
    """While the disk works nobody is told anything; then, and only then, the 202 comes."""
    rig.script(CHAT.target)
    reached, gate = disk.hold("add")
    await client.send(b"POST %b HTTP/1.1\r\nHost: h\r\nPrefer: respond-async\r\n" % CHAT.target.encode())
    await client.send(b"Content-Length: %d\r\n\r\n%b" % (len(CHAT.body), CHAT.body))
    await reached.wait()
    early = asyncio.ensure_future(client.answer())
    await works(rig)
    assert not early.done()
    assert rig.uncalled()
    gate.set()
    name = name_of(await whole(await early))
    await stream(await rig.call())
    await ended(client, name)


# The status document.


async def test_status_over_a_whole_life(rig, tmp_path):
    """Queued, running before and after its head, complete: what is said when, in the same shape."""
    await rig.start(folder=tmp_path, jobs__concurrency=1)
    client = await rig.connect()
    rig.script(CHAT.target)
    before = time.time()
    first, name = await submitted(client, CHAT, ONE), await submitted(client, CHAT, ONE)
    blocker = await rig.call()
    queued = await status(client, name, ONE)
    assert before <= queued["created_at"] <= time.time()
    nothing = {
        "input_tokens": None,
        "output_tokens": None,
        "cached_input_tokens": None,
        "reasoning_tokens": None,
    }
    assert queued == {
        "id": name,
        "status": "queued",
        "model": "m",
        "path": CHAT.target,
        "created_at": queued["created_at"],
        "started_at": None,
        "ended_at": None,
        "progress": {"events": 0, "output_tokens": 0, "bytes": 0},
        "timings": {"queued_ms": None, "ttft_ms": None, "total_ms": None},
        "usage": nothing,
        "error": None,
        "webhook": None,
        "result": f"{JOBS}{name}/result",
        "stream": f"{STREAMS}{name}",
    }
    await stream(blocker)
    await ended(client, first, ONE)
    call = await rig.call()
    running = await status(client, name, ONE)
    assert queued["created_at"] <= running["started_at"] <= time.time()
    assert running["timings"]["queued_ms"] == pytest.approx(
        (running["started_at"] - running["created_at"]) * 1000, abs=1
    )
    changed = {"status", "started_at", "timings"}
    assert {key: running[key] for key in running.keys() - changed} == {
        key: queued[key] for key in queued.keys() - changed
    }
    assert (running["status"], running["timings"]["ttft_ms"]) == ("running", None)
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":9}}\n\n'
    await call.send(head(CHAT.kind))
    seen = []
    for event in [*CHAT.events[:-1], usage]:
        await call.send(chunk(event))
        count = len(seen) + 1
        while (latest := await status(client, name, ONE))["progress"]["events"] < count:
            assert latest["status"] == "running"
        seen.append(latest["progress"])
    sizes = [len(b"".join([*CHAT.events[:-1], usage][: count + 1])) for count in range(4)]
    # Until the provider says how many tokens it wrote, each event that brings some counts as one.
    assert seen == [
        {"events": number + 1, "output_tokens": tokens, "bytes": size}
        for number, (tokens, size) in enumerate(zip((1, 2, 3, 9), sizes, strict=True))
    ]
    assert (latest["timings"]["ttft_ms"] > 0, latest["usage"]["input_tokens"]) == (True, 5)
    await call.send(chunk(CHAT.events[-1]), LAST)
    call.done()
    done = await ended(client, name, ONE)
    assert done["ended_at"] >= done["started_at"] == running["started_at"]
    assert done["timings"]["ttft_ms"] == latest["timings"]["ttft_ms"]
    assert done["timings"]["total_ms"] == pytest.approx((done["ended_at"] - done["created_at"]) * 1000, abs=1)
    assert done["usage"] == {**nothing, "input_tokens": 5, "output_tokens": 9}
    assert done["progress"] == {"events": 5, "output_tokens": 9, "bytes": sizes[-1] + len(CHAT.events[-1])}
    assert done.keys() == queued.keys()
    assert done == await status(client, name, ONE)


async def test_usage_of_a_whole_answer(rig, client):
    rig.script(CHAT.target)
    name = await submitted(client, CHAT._replace(body=PLAIN))
    call = await rig.call()
    await call.send(plain())
    call.done()
    done = await ended(client, name)
    assert (done["usage"]["input_tokens"], done["usage"]["output_tokens"]) == (3, 7)
    assert done["progress"] == {"events": 0, "output_tokens": 7, "bytes": len(ANSWER)}


@pytest.mark.parametrize("coding", ["identity", "gzip"])
async def test_asking_about_a_half_answer_costs_nothing_of_the_whole_one(rig, client, coding):
    """Status of a job whose JSON answer is half here -> in the end its usage is known as if nobody had asked."""
    rig.script(CHAT.target)
    sent = gzip.compress(ANSWER) if coding == "gzip" else ANSWER
    fields = [b"Content-Encoding: gzip"] if coding == "gzip" else []
    name = await submitted(client, CHAT._replace(body=PLAIN), (b"Accept-Encoding", b"gzip"))
    call = await rig.call()
    message = plain(sent, *fields)
    await call.send(message[:-40])
    while (await status(client, name))["progress"]["bytes"] != len(sent) - 40:
        pass
    for _ in range(3):
        await status(client, name)
    await call.send(message[-40:])
    call.done()
    done = await ended(client, name)
    assert bytes((await result(client, name)).body) == sent
    assert (done["usage"]["input_tokens"], done["usage"]["output_tokens"]) == (3, 7)
    (line,) = job_lines(rig)
    assert line["output_tokens"] == 7


async def test_nothing_is_said_to_be_over_before_it_is_on_disk(rig, client, disk):
    """The end has come and is being written: still running, its result 409; what is called complete can be fetched,
    and would survive."""
    rig.script(CHAT.target)
    reached, gate = disk.hold("finish")
    name = await submitted(client, CHAT)
    await stream(await rig.call())
    await reached.wait()
    try:
        document = await status(client, name)
        refused(await result(client, name), 409, "job_unfinished")
        assert document["status"] == "running"
    finally:
        gate.set()
    await ended(client, name)
    assert bytes((await result(client, name)).body) == CHAT.whole


# The lines.


async def test_one_line_per_job_and_one_per_request(rig, client):
    """A job's line says what became of it and what it cost; requests about it have lines of their own."""
    rig.script(CHAT.target)
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":9}}\n\n'
    name = await submitted(client, CHAT, ONE, (b"Slipstream-Feature", b"f"))
    call = await rig.call()
    await call.send(head(CHAT.kind), chunk(b"".join([*CHAT.events[:-1], usage, CHAT.events[-1]])), LAST)
    call.done()
    asks = 2
    while (await status(client, name, ONE))["status"] == "running":
        asks += 1
    await result(client, name, ONE)
    lines = [await rig.line(number) for number in range(asks + 1)]
    (job,) = job_lines(rig)
    assert {key: job[key] for key in ("job_id", "status", "path", "model", "events", "error")} == {
        "job_id": name,
        "status": "complete",
        "path": CHAT.target,
        "model": "m",
        "events": 5,
        "error": None,
    }
    assert (job["input_tokens"], job["output_tokens"], job["tenant"]) == (5, 9, lines[0]["tenant"])
    assert job["total_ms"] >= job["queued_ms"] >= 0
    assert [(line["method"], line["status"], line["outcome"]) for line in lines] == [
        ("POST", 202, "complete"),
        *[("GET", 200, "complete")] * asks,
    ]
    assert {line["stream_id"] for line in lines} == {name}
    assert [line["bytes"] for line in lines[-1:]] == [len(CHAT.whole + usage)]
    for line in lines:
        times = [line["ttfb_ms"], line["total_ms"], line["overhead_ms"], *line["phases"].values()]
        assert all(0 <= spent < 60_000 for spent in times if spent is not None)
    assert len(rig.sidecar.lines.requests) == asks + 1
