"""Background jobs that are waited for (`wait=N`), and how many, how large, how much at once."""

import asyncio
import socket
from collections import Counter
from itertools import pairwise

import pytest

from tests.faults.conftest import eventually
from tests.faults.jobs import (
    JOBS,
    Disk,
    ask,
    cancel,
    ended,
    job_lines,
    name_of,
    numbered,
    one_at_a_time,
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
    LAST,
    chunk,
    head,
    request,
)
from tests.stores.rig import files_with

pytestmark = pytest.mark.both_shells

LEAVE = pytest.mark.parametrize("how", ["fin", "rst"])


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


# wait=N.


async def test_answer_in_time_is_the_upstreams(rig, client):
    """`wait`: it ends in time -> the upstream's response, as if nobody had asked for a job."""
    rig.script(CHAT.target)
    sending = asyncio.ensure_future(ask(client, CHAT, prefer=b"respond-async, wait=10"))
    call = await rig.call()
    assert call.received.header("prefer") is None
    await call.send(head(CHAT.kind, b"X-Request-Id: up-1"), chunk(CHAT.whole), LAST)
    call.done()
    answer = await whole(await sending)
    assert (answer.status, bytes(answer.body), answer.end) == (200, CHAT.whole, "whole")
    assert (answer.header("x-request-id"), answer.header("location")) == (b"up-1", None)
    line = await rig.line()
    assert (line["status"], line["outcome"], line["method"], line["model"]) == (200, "complete", "POST", "m")
    (job,) = job_lines(rig)
    assert (job["status"], job["job_id"]) == ("complete", line["stream_id"])


@pytest.mark.parametrize("stage", ["before-head", "mid-stream"])
async def test_answer_that_takes_longer_is_a_job(rig, client, stage):
    """Not over after N seconds -> 202, and the call goes on to its end."""
    rig.script(CHAT.target)
    sending = asyncio.ensure_future(ask(client, CHAT, prefer=b'respond-async, wait="1"'))
    call = await rig.call()
    if stage == "mid-stream":
        await call.send(head(CHAT.kind), chunk(CHAT.events[0]))
    name = name_of(await whole(await sending))
    if stage == "before-head":
        await call.send(head(CHAT.kind), chunk(CHAT.events[0]))
    await call.send(chunk(b"".join(CHAT.events[1:])), LAST)
    call.done()
    assert (await ended(client, name))["status"] == "complete"
    assert bytes((await result(client, name)).body) == CHAT.whole
    assert (await rig.line())["status"] == 202


@pytest.mark.parametrize("kind", ["refused", "429", "error", "cut"])
async def test_failure_in_time_is_the_one_of_an_ordinary_request(rig, tmp_path, kind):
    """`wait`: the call fails in time -> what the client of an ordinary request would have got."""
    if kind == "refused":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            await rig.start(f"http://127.0.0.1:{free.getsockname()[1]}", folder=tmp_path)
    else:
        await rig.start(folder=tmp_path)
    rig.script(CHAT.target)
    got = []
    for fields in ([], [(b"Prefer", b"respond-async, wait=10")]):
        client = await rig.connect()
        sending = asyncio.ensure_future(client.ask(CHAT.method, CHAT.target, CHAT.body, fields))
        if kind != "refused":
            call = await rig.call()
            if kind == "429":
                await call.send(
                    plain(b'{"error":{"message":"slow"}}', b"Retry-After: 7", status=b"429 Too Many")
                )
                call.done()
            elif kind == "error":
                await call.send(
                    head(CHAT.kind), chunk(CHAT.events[0] + b'data: {"error":{"type":"x"}}\n\n'), LAST
                )
                call.done()
            else:
                await call.send(head(CHAT.kind), chunk(CHAT.events[0]))
                call.close()
        answer = await whole(await sending)
        kept = [
            field
            for field in answer.headers
            if field[0].lower() not in (b"server-timing", b"slipstream-stream-id", b"cache-status")
        ]
        got.append((answer.status, answer.reason, sorted(kept), bytes(answer.body), answer.end))
    assert got[0] == got[1]


async def test_job_cancelled_while_its_client_waits(rig, client):
    rig.script(CHAT.target)
    sending = asyncio.ensure_future(ask(client, CHAT, prefer=b"respond-async, wait=10"))
    call = await rig.call()
    other = await rig.connect()
    (name,) = rig.sidecar.service.assembly.jobs._jobs
    await cancel(other, name)
    answer = await whole(await sending)
    assert (answer.status, answer.header("slipstream-error"), answer.end) == (410, b"stopped", "whole")
    await call.closed()


@LEAVE
@pytest.mark.parametrize("stage", ["queued", "before-head", "mid-stream"])
async def test_client_that_leaves_while_it_waits_leaves_no_orphan(rig, tmp_path, how, stage):
    """Nobody was told the id, so nobody could ever ask for the answer: the job is cancelled."""
    client = await one_at_a_time(rig, tmp_path)
    if stage == "queued":
        blocking = await submitted(client)
        blocker = await rig.call()
    waiting = await rig.connect()
    await waiting.send(request("POST", CHAT.target, CHAT.body, [(b"Prefer", b"respond-async, wait=60")]))
    jobs = rig.sidecar.service.assembly.jobs._jobs
    if stage == "queued":
        await eventually(lambda: len(jobs) == 2, lambda: jobs)
    else:
        call = await rig.call()
    if stage == "mid-stream":
        await call.send(head(CHAT.kind), chunk(CHAT.events[0]))
        (job,) = jobs.values()
        await eventually(lambda: job.live.recording.size, lambda: job)
    waiting.leave(how)
    if stage == "queued":
        await eventually(lambda: len(jobs) == 1, lambda: jobs)
        await stream(blocker)
        await ended(client, blocking)
        assert rig.uncalled()
    else:
        await call.closed(within=1)
    await eventually(lambda: not jobs, lambda: jobs)
    assert Counter(line["status"] for line in job_lines(rig))["cancelled"] == 1


@pytest.mark.parametrize("prefer", [b"respond-async", b"respond-async, wait=5"])
async def test_what_is_refused_is_refused_before_anything_is_begun(rig, client, prefer):
    """A field that makes no sense -> 400, whether the client waits or not; no job, no call."""
    rig.script(CHAT.target)
    answer = await whole(await ask(client, CHAT, (b"Slipstream-Disconnect", b"nonsense"), prefer=prefer))
    assert (answer.status, answer.header("slipstream-error")) == (400, b"bad_request")
    await works(rig)
    assert rig.uncalled()
    assert not job_lines(rig)


# Limits.


async def test_one_at_a_time_in_order(rig, tmp_path):
    """`jobs.concurrency` 1: the next one begins when the one before has ended, however it ended."""
    client = await one_at_a_time(rig, tmp_path)
    names = [await submitted(client, numbered(number)) for number in range(4)]
    for number, name in enumerate(names):
        call = await rig.call()
        assert call.received.body == numbered(number).body
        states = [(await status(client, each))["status"] for each in names[number:]]
        assert states == ["running", *["queued"] * (3 - number)]
        assert rig.uncalled()
        if number == 1:
            call.reset()
        elif number == 2:
            await cancel(client, name)
        else:
            await stream(call)
    done = [(await ended(client, name)) for name in names]
    assert [each["status"] for each in done] == ["complete", "failed", "cancelled", "complete"]
    assert all(before["ended_at"] <= after["started_at"] for before, after in pairwise(done))


async def test_two_at_a_time(rig, tmp_path):
    await rig.start(folder=tmp_path, jobs__concurrency=2)
    client = await rig.connect()
    rig.script(CHAT.target)
    names = [await submitted(client, numbered(number)) for number in range(3)]
    calls = [await rig.call(), await rig.call()]
    assert (await status(client, names[2]))["status"] == "queued"
    assert rig.uncalled()
    await stream(calls[1])
    calls[1] = await rig.call()
    assert calls[1].received.body == numbered(2).body
    for call in calls:
        await stream(call)
    for name in names:
        assert (await ended(client, name))["status"] == "complete"


async def test_full_queue_is_503_and_nothing_of_the_job_is_kept(rig, tmp_path):
    """`jobs.queue` 2, one running: the fourth is refused with Retry-After, and is on no disk; there is room again when
    one has left the queue."""
    client = await one_at_a_time(rig, tmp_path, jobs__queue=2)
    names = [await submitted(client, numbered(number)) for number in range(3)]
    call = await rig.call()
    answer = await whole(await ask(client, numbered(3)))
    assert (answer.status, answer.header("slipstream-error"), answer.end) == (503, b"overloaded", "whole")
    assert int(answer.header("retry-after")) > 0
    kept = [bool(files_with(tmp_path, b"planted-%d-prompt" % number)) for number in range(4)]
    assert kept == [False, True, True, False]
    await cancel(client, names[1])
    names[1] = await submitted(client, numbered(1))
    await stream(call)
    for _ in range(2):
        await stream(await rig.call())
    for name in names:
        assert (await ended(client, name))["status"] == "complete"
    assert rig.uncalled()
    assert len(job_lines(rig)) == 4


async def test_queue_is_bounded_also_for_those_who_come_at_once(rig, tmp_path, disk):
    """Many submit while the disk is slow: no more are taken than there is room for."""
    client = await one_at_a_time(rig, tmp_path, jobs__queue=3)
    blocking = await submitted(client)
    blocker = await rig.call()
    reached, gate = disk.hold("add")
    crowd = [await rig.connect() for _ in range(20)]
    asks = [asyncio.ensure_future(ask(each)) for each in crowd]
    await reached.wait()
    await eventually(lambda: sum(each.done() for each in asks) >= 17, lambda: asks)
    gate.set()
    answers = [await whole(each) for each in await asyncio.gather(*asks)]
    assert Counter(answer.status for answer in answers) == {202: 3, 503: 17}
    await stream(blocker)
    for _ in range(3):
        await stream(await rig.call())
    for name in [blocking, *[name_of(answer) for answer in answers if answer.status == 202]]:
        assert (await ended(client, name))["status"] == "complete"
    assert rig.uncalled()


async def test_a_hundred_at_once(rig, client):
    """Each has an id of its own, is called once, and has its own answer."""
    calls = Counter()

    async def answering(connection, received):
        calls[received.body] += 1
        await connection.send(plain(b'{"echo":' + received.body + b"}"))

    rig.provider.on(CHAT.target, answering)
    crowd = [await rig.connect() for _ in range(100)]
    answers = await asyncio.gather(*(ask(each, numbered(number)) for number, each in enumerate(crowd)))
    names = [name_of(await whole(answer)) for answer in answers]
    assert len(set(names)) == 100
    for number, (name, each) in enumerate(zip(names, crowd, strict=True)):
        assert (await ended(each, name))["status"] == "complete"
        assert bytes((await result(each, name)).body) == b'{"echo":' + numbered(number).body + b"}"
    assert set(calls.values()) == {1}
    assert len(calls) == len(job_lines(rig)) == 100


@pytest.mark.parametrize("framing", ["sized", "chunked"])
async def test_body_over_the_limit_is_413_and_nothing_is_kept(rig, tmp_path, framing):
    """`limits.body`: a job's body must be there as a whole. The limit itself is allowed."""
    await rig.start(folder=tmp_path, limits__body=100_000)
    rig.script("/up")
    for size in (100_000, 100_001, 3_000_000):
        client = await rig.connect()
        body = b"planted-prompt".ljust(size, b"x")
        start = b"POST /up HTTP/1.1\r\nHost: h\r\nPrefer: respond-async\r\n"
        if framing == "sized":
            await client.send(start + b"Content-Length: %d\r\n\r\n" % size + body)
        else:
            await client.send(start + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(body) + LAST)
        answer = await whole(await client.answer())
        if size == 100_000:
            name = name_of(answer)
            call = await rig.call()
            assert call.received.body == body
            await call.send(plain())
            call.done()
            await ended(client, name)
        else:
            refused(answer, 413, "body_too_large")
            assert rig.uncalled()
        assert not files_with(tmp_path, b"planted-prompt")
    assert len(job_lines(rig)) == 1


async def test_client_that_does_not_read_a_result_is_dropped(rig, tmp_path):
    """As with any answer (25): after `timeouts.client`, and its line does not say that it has it."""
    await rig.start(folder=tmp_path, timeouts__client=0.2)
    client = await rig.connect()
    rig.script("/file")
    name = await submitted(client, CHAT._replace(target="/file"))
    call = await rig.call()
    await call.send(head(b"application/octet-stream", framing=b"Content-Length: %d" % (32 << 20)))
    for _ in range(32):
        await call.send(bytes(1 << 20))
    call.done()
    await ended(client, name)
    deaf = await rig.connect()
    deaf.writer.transport.pause_reading()
    await deaf.send(request("GET", f"{JOBS}{name}/result"))
    lines = rig.sidecar.lines
    await eventually(
        lambda: [line for line in lines.requests if line["path"].endswith("/result")], lambda: len(lines.all)
    )
    assert lines.requests[-1]["outcome"] == "cancelled"
    deaf.writer.transport.resume_reading()
    assert len(await deaf.closed()) < 32 << 20
