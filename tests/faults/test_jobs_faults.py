"""Background jobs when the disk fails, clients leave, several want to stop one, and the sidecar is stopped."""

import asyncio
import gc
import threading
from base64 import b64encode
from collections import Counter
from secrets import token_bytes

import pytest

from tests.faults.conftest import eventually
from tests.faults.jobs import (
    ASYNC,
    JOBS,
    STREAMS,
    TAKES_IDS,
    Disk,
    ask,
    cancel,
    ended,
    job_lines,
    name_of,
    one_at_a_time,
    plain,
    refused,
    result,
    status,
    stop,
    stream,
    submitted,
    whole,
    works,
)
from tests.faults.wire import (
    CHAT,
    GUARD,
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


# The disk.


async def test_full_disk_on_submit_is_503(rig, client, tmp_path, disk):
    """Nobody is told 202, nothing is called; ordinary requests work; so do jobs when there is room again."""
    rig.script(CHAT.target)
    disk.fail("add", 2)
    for _ in range(2):
        answer = await whole(await ask(client))
        assert (answer.status, answer.header("slipstream-error"), answer.end) == (
            503,
            b"jobs_unavailable",
            "whole",
        )
        assert int(answer.header("retry-after")) > 0
        assert b"full" in answer.body
    assert rig.uncalled()
    sending = asyncio.ensure_future(client.whole("POST", CHAT.target, CHAT.body))
    await stream(await rig.call())
    assert bytes((await sending).body) == CHAT.whole
    name = await submitted(client)
    await stream(await rig.call())
    assert (await ended(client, name))["status"] == "complete"


async def test_full_disk_on_finish_leaves_the_result_in_memory(rig, client, disk):
    """The answer was paid for: it can be fetched as long as the process lives, and the status says that it is not kept."""
    rig.script(CHAT.target)
    disk.fail("finish")
    name = await submitted(client)
    await stream(await rig.call())
    done = await ended(client, name)
    assert (done["status"], done["error"]["kind"]) == ("complete", "jobs_unavailable")
    for _ in range(2):
        got = await result(client, name)
        assert (got.status, bytes(got.body), got.end) == (200, CHAT.whole, "whole")
    follower = await client.whole("GET", f"{STREAMS}{name}?after=1")
    assert bytes(follower.body) == b"".join(CHAT.events[1:])
    assert (await cancel(client, name))["status"] == "complete"
    assert len(job_lines(rig)) == 1


async def test_full_disk_on_begin_fails_the_job_without_a_call(rig, client, disk):
    """What would stay on disk as queued must not be sent."""
    rig.script(CHAT.target)
    disk.fail("begin", 1)
    name = await submitted(client)
    done = await ended(client, name)
    assert (done["status"], done["error"]["kind"]) == ("failed", "jobs_unavailable")
    refused(await result(client, name), 503, "jobs_unavailable")
    assert rig.uncalled()
    other = await submitted(client)
    await stream(await rig.call())
    assert (await ended(client, other))["status"] == "complete"


async def test_what_was_said_to_be_over_does_not_run_later(rig, tmp_path, disk):
    """The disk was full when the job was to begin, so that it still says queued. The client was told that it is over:
    once the disk works again, and after a restart, it is."""
    client = await one_at_a_time(rig, tmp_path)
    disk.fail("begin", 1)
    disk.fail("finish", 1)
    name = await submitted(client)
    assert (await ended(client, name))["status"] == "failed"
    other = await submitted(client)
    await stream(await rig.call())
    await ended(client, other)
    await stop(rig.sidecar)
    client = await one_at_a_time(rig, tmp_path)
    assert (await status(client, name))["status"] == "failed"
    other = await submitted(client)
    call = await rig.call()
    await stream(call)
    await ended(client, other)
    assert rig.uncalled()


async def test_queued_job_that_the_disk_will_not_forget_is_not_said_to_be_cancelled(rig, tmp_path, disk):
    """It would run after a restart: DELETE says so, and it runs when its turn comes."""
    client = await one_at_a_time(rig, tmp_path)
    blocking, name = await submitted(client), await submitted(client)
    blocker = await rig.call()
    disk.fail("finish", 1)
    answer = await client.whole("DELETE", JOBS + name)
    assert (answer.status, answer.header("slipstream-error")) == (503, b"jobs_unavailable")
    assert (await status(client, name))["status"] == "queued"
    await stream(blocker)
    await ended(client, blocking)
    await stream(await rig.call())
    assert (await ended(client, name))["status"] == "complete"


# Clients that leave.


@LEAVE
async def test_client_that_leaves_before_its_body_is_whole_leaves_no_job(rig, client, tmp_path, how):
    rig.script(CHAT.target)
    leaving = await rig.connect()
    await leaving.send(
        request("POST", CHAT.target, b'{"planted-prompt":', [ASYNC]).replace(b"Length: 18", b"Length: 99")
    )
    await works(rig)
    leaving.leave(how)
    assert (await rig.line())["outcome"] in ("cancelled", "refused")
    await works(rig)
    assert rig.uncalled()
    assert not job_lines(rig)
    assert not files_with(tmp_path, b"planted-prompt")


@LEAVE
@pytest.mark.parametrize("concurrency", [0, 1])
async def test_client_that_leaves_before_the_202_leaves_no_orphan(rig, tmp_path, disk, how, concurrency):
    """Gone while its job was being put on disk: nobody knows the id, so it is cancelled and never called."""
    client = await one_at_a_time(rig, tmp_path)
    if concurrency == 0:
        blocking = await submitted(client)
        blocker = await rig.call()
    reached, gate = disk.hold("add")
    leaving = await rig.connect()
    await leaving.send(request("POST", CHAT.target, CHAT.body, [ASYNC]))
    await reached.wait()
    leaving.leave(how)
    assert (await rig.line(1 if concurrency == 0 else 0))["outcome"] == "cancelled"
    gate.set()
    await eventually(lambda: job_lines(rig), rig.sidecar.lines.all.copy)
    assert [line["status"] for line in job_lines(rig)] == ["cancelled"]
    if concurrency == 0:
        await stream(blocker)
        await ended(client, blocking)
    assert rig.uncalled()
    assert not rig.sidecar.service.assembly.jobs._jobs


async def test_client_that_leaves_at_any_moment(rig, client):
    """Gone after so many turns of the event loop: whatever was begun comes to an end, with a line each."""

    async def answering(connection, received):
        await connection.send(plain())

    rig.provider.on(CHAT.target, answering)
    rounds = 40
    for turns in range(rounds):
        leaving = await rig.connect()
        leaving.writer.write(request("POST", CHAT.target, CHAT.body, [(b"Prefer", b"respond-async, wait=9")]))
        for _ in range(turns):
            await asyncio.sleep(0)
        leaving.leave("rst" if turns % 2 else "fin")
    jobs = rig.sidecar.service.assembly.jobs
    await eventually(
        lambda: not rig.sidecar.service.assembly.front.active and not jobs._jobs, lambda: jobs._jobs
    )
    assert jobs.running == 0
    assert not jobs.queue
    assert len(job_lines(rig)) <= rounds
    ids = [line["job_id"] for line in job_lines(rig)]
    assert len(set(ids)) == len(ids)
    name = await submitted(client)
    assert (await ended(client, name))["status"] == "complete"


# DELETE against everything else.


async def test_delete_while_the_call_is_about_to_begin(rig, client, disk):
    """It is being taken off the disk: the upstream never hears of it."""
    rig.script(CHAT.target)
    reached, gate = disk.hold("begin")
    name = await submitted(client)
    await reached.wait()
    deleting = [asyncio.ensure_future(cancel(await rig.connect(), name)) for _ in range(2)]
    await works(rig)
    gate.set()
    assert [(await each)["status"] for each in deleting] == ["cancelled"] * 2
    assert rig.uncalled()
    assert [line["status"] for line in job_lines(rig)] == ["cancelled"]
    refused(await result(client, name), 410, "stopped")


async def test_delete_while_the_end_is_written(rig, client, disk):
    """The answer is whole: it stays whole, whoever wanted to stop it."""
    rig.script(CHAT.target)
    reached, gate = disk.hold("finish")
    name = await submitted(client)
    await stream(await rig.call())
    await reached.wait()
    deleting = [asyncio.ensure_future(cancel(await rig.connect(), name)) for _ in range(2)]
    await works(rig)
    gate.set()
    assert [(await each)["status"] for each in deleting] == ["complete"] * 2
    assert bytes((await result(client, name)).body) == CHAT.whole
    assert [line["status"] for line in job_lines(rig)] == ["complete"]


@LEAVE
async def test_delete_whose_client_leaves_is_done_all_the_same(rig, tmp_path, disk, how):
    """Of a queued and of a running job, while the disk is slow."""
    client = await one_at_a_time(rig, tmp_path)
    names = [await submitted(client) for _ in range(2)]
    call = await rig.call()
    reached, gate = disk.hold("finish")
    for name in reversed(names):
        leaving = await rig.connect()
        await leaving.send(request("DELETE", JOBS + name))
        await works(rig)
        leaving.leave(how)
    await reached.wait()
    gate.set()
    await call.closed()
    assert [(await ended(client, name))["status"] for name in names] == ["cancelled"] * 2
    assert len(job_lines(rig)) == 2
    assert rig.uncalled()


async def test_two_deletes_at_once(rig, tmp_path):
    client = await one_at_a_time(rig, tmp_path)
    names = [await submitted(client) for _ in range(2)]
    call = await rig.call()
    for name in reversed(names):
        both = [await rig.connect() for _ in range(2)]
        answers = await asyncio.gather(*(cancel(each, name) for each in both))
        assert [answer["status"] for answer in answers] == ["cancelled"] * 2
    await call.closed()
    assert Counter(line["job_id"] for line in job_lines(rig)) == dict.fromkeys(names, 1)


# What is kept where.


async def test_key_and_prompt_are_on_disk_only_while_it_waits(rig, tmp_path):
    """Planted in the body, the headers and the query: in no file once the call has begun or was cancelled, at no time in
    a line; the folder and its files are their owner's alone."""
    folder = tmp_path / "data"
    client = await one_at_a_time(rig, folder)
    key, prompt, query = b"sk-planted-key", b"planted-prompt", b"planted-query"
    rig.script("/v1beta/models/g:streamGenerateContent")
    form = CHAT._replace(
        target="/v1beta/models/g:streamGenerateContent?alt=sse&extra=planted-query",
        body=b'{"contents":["planted-prompt"]}',
    )
    fields = [(b"X-Goog-Api-Key", key)]
    names = [await submitted(client, form, *fields) for _ in range(3)]
    call = await rig.call()
    assert [bool(files_with(folder, secret)) for secret in (key, prompt, query)] == [True] * 3
    await cancel(client, names[1], *fields)
    await call.send(head(b"text/event-stream"), chunk(b'data: {"candidates":[]}\n\n'))
    call.close()
    await ended(client, names[0], *fields)
    call = await rig.call()
    assert (call.received.header("x-goog-api-key"), call.received.query) == (
        key,
        "alt=sse&extra=planted-query",
    )
    assert prompt in call.received.body
    assert [files_with(folder, secret) for secret in (key, prompt, query)] == [[]] * 3
    await cancel(client, names[2], *fields)
    for name in names:
        asking = await rig.connect()  # a cut answer ends its connection
        await status(asking, name, *fields)
        await result(asking, name, *fields)
    assert [files_with(folder, secret) for secret in (key, prompt, query)] == [[]] * 3
    assert b"planted" not in b"".join(rig.sidecar.lines.raw)
    assert folder.stat().st_mode & 0o777 == 0o700
    modes = {(path.is_dir(), path.stat().st_mode & 0o777) for path in folder.rglob("*")}
    assert modes == {(False, 0o600), (True, 0o700)}


async def test_without_a_folder_there_are_no_jobs(rig, sidecar):
    """503 that says why; everything else works."""
    rig.sidecars.append(sidecar)
    client = await rig.connect()
    rig.script(CHAT.target)
    for prefer in (b"respond-async", b"respond-async, wait=5"):
        answer = await whole(await ask(client, prefer=prefer))
        assert (answer.status, answer.header("slipstream-error")) == (503, b"jobs_unavailable")
        assert b"data_dir" in answer.body
        assert answer.header("retry-after") is not None
    assert rig.uncalled()
    sending = asyncio.ensure_future(client.whole("POST", CHAT.target, CHAT.body))
    await stream(await rig.call())
    assert bytes((await sending).body) == CHAT.whole


# Being stopped.


async def test_stop_tells_those_who_wait_for_a_queued_job(rig, tmp_path):
    """It stays queued. A follower is told that the sidecar stops; a client that would rather wait is told where to
    find it."""
    client = await one_at_a_time(rig, tmp_path)
    names = [await submitted(client) for _ in range(2)]
    call = await rig.call()
    follower, waiting = await rig.connect(), await rig.connect()
    await follower.send(request("GET", STREAMS + names[1]))
    await waiting.send(request("POST", CHAT.target, CHAT.body, [(b"Prefer", b"respond-async, wait=60")]))
    jobs = rig.sidecar.service.assembly.jobs._jobs
    await eventually(lambda: len(jobs) == 3, lambda: jobs)
    await works(rig)
    await stop(rig.sidecar, 0.1)
    await call.closed()
    told = await whole(await follower.answer())
    assert (told.status, told.header("slipstream-error")) == (503, b"draining")
    names.append(name_of(await whole(await waiting.answer())))
    client = await one_at_a_time(rig, tmp_path)
    assert (await status(client, names[0]))["status"] == "failed"
    for name in names[1:]:
        await stream(await rig.call())
        assert (await ended(client, name))["status"] == "complete"


async def test_stop_leaves_no_thread(rig, tmp_path):
    client = await one_at_a_time(rig, tmp_path)
    names = [await submitted(client) for _ in range(2)]
    call = await rig.call()
    assert job_threads()
    await stop(rig.sidecar)
    await call.closed()
    await eventually(lambda: not job_threads(), job_threads)
    assert names


def job_threads():
    """Those of the store; the timer that watches over this test has its name, too."""
    running = (thread for thread in threading.enumerate() if not isinstance(thread, threading.Timer))
    return [thread for thread in running if "jobs" in thread.name]


async def test_job_that_was_taken_up_but_not_begun_stays_queued(rig, tmp_path, disk):
    """Stopped in the moment in which its turn had come: no call was made, so it can still be made."""
    client = await one_at_a_time(rig, tmp_path)
    blocking = await submitted(client)
    blocker = await rig.call()
    name = await submitted(client)
    reached, gate = disk.hold("finish")
    await stream(blocker)
    await reached.wait()
    stopping = asyncio.ensure_future(stop(rig.sidecar, GUARD))
    gate.set()
    await stopping
    client = await one_at_a_time(rig, tmp_path)
    assert (await status(client, blocking))["status"] == "complete"
    await stream(await rig.call())
    assert (await ended(client, name))["status"] == "complete"


# Memory, and mistakes of our own.


async def test_ended_jobs_take_no_room_of_streams(rig, tmp_path):
    """They are on disk: what `resume.memory` keeps for clients that come back is for those who have nothing else."""
    await rig.start(folder=tmp_path, resume__memory=100_000)
    client = await rig.connect()
    rig.script(CHAT.target)
    sending = asyncio.ensure_future(client.whole("POST", CHAT.target, CHAT.body, [TAKES_IDS]))
    await stream(await rig.call())
    name = ((await sending).header("slipstream-stream-id") or b"").decode()
    for _ in range(3):
        job = await submitted(client)
        call = await rig.call()
        await call.send(
            head(CHAT.kind), chunk(b": " + b64encode(token_bytes(60_000)) + b"\n\n" + CHAT.whole), LAST
        )
        call.done()
        await ended(client, job)
    assert len(rig.sidecar.service.assembly.hub._shelf) == 1
    got = await client.whole("GET", STREAMS + name)
    assert (got.status, got.end) == (200, "whole")


async def test_mistake_of_our_own_ends_the_job(rig, client):
    """What nobody thought of, between disk and upstream: it is logged, the job has failed, and neither DELETE nor stopping
    waits for ever."""

    def surprised(*values):
        raise ZeroDivisionError

    jobs = rig.sidecar.service.assembly.jobs
    jobs._prepare = surprised
    name = await submitted(client)
    try:
        done = await ended(client, name)
        assert (done["status"], done["error"]["kind"]) == ("failed", "internal")
        assert (await cancel(client, name))["status"] == "failed"
        assert [line["kind"] for line in rig.sidecar.lines.faults] == ["ZeroDivisionError"]
        async with asyncio.timeout(GUARD):
            await stop(rig.sidecar)
    finally:
        for job in jobs._jobs.values():
            job.done.set()
        rig.sidecar.lines.all.clear()


async def test_a_job_leaves_no_cycle(rig, client):
    """What it held, up to `LIMIT`, is free when it is over, not when the collector comes round."""

    async def answering(connection, received):
        await connection.send(plain())

    rig.provider.on(CHAT.target, answering)

    async def once():
        name = await submitted(client)
        await ended(client, name)
        await result(client, name)
        await client.whole("GET", STREAMS + name)

    for _ in range(3):
        await once()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(5):
            await once()
        gc.collect()
        left = Counter(type(found).__name__ for found in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    ours = {
        "Answer",
        "Call",
        "Exchange",
        "Incoming",
        "Job",
        "JobRecord",
        "Live",
        "Order",
        "Recording",
        "Reply",
        "Render",
        "Result",
    }
    assert not ours & set(left), left
