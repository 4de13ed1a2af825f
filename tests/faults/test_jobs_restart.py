"""Background jobs across restarts: the real process, killed or stopped where it matters, and started again."""

import asyncio
import contextlib
import signal
import sys

import pytest

from tests.faults.jobs import (
    JOBS,
    ONE,
    STREAMS,
    TAKES_IDS,
    ask,
    cancel,
    ended,
    name_of,
    refused,
    result,
    status,
    stream,
    submitted,
    until,
    whole,
)
from tests.faults.jobs_process import ALONE, asked, healthy, kill, process_of, terminate
from tests.faults.test_process import serving
from tests.faults.wire import CHAT, GEMINI, LAST, OLLAMA, Client, chunk, head

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the job store needs a POSIX system")


@pytest.fixture
async def clients():
    """Closed after the test."""
    opened = []
    yield opened
    for client in opened:
        client.close()


@pytest.fixture
def run(rig, tmp_path, clients):
    """`async with run() as (process, client)`: the sidecar on the test's folder."""

    @contextlib.asynccontextmanager
    async def running(*flags, **variables):
        async with serving(tmp_path, rig.provider.url, *flags, **variables) as process:
            clients.append(await Client.open(process.port))
            yield process, clients[-1]
            assert not [line for line in process.lines if line["event"] == "fault"]

    rig.script(CHAT.target)
    return running


# kill -9.


@pytest.mark.parametrize("form", [CHAT, GEMINI, OLLAMA], ids=str)
async def test_queued_job_runs_after_a_kill_exactly_once(rig, run, form):
    """Killed while it waits: it is sent later as it would have been sent then, credential and query included, once."""
    rig.script(form.target)
    fields = [ONE, (b"X-Mark", b"1"), (b"Accept-Encoding", b"identity")]
    async with run(**ALONE) as (process, client):
        await submitted(client)
        blocker = await rig.call()
        queued = await submitted(client, form, *fields)
        before = await status(client, queued, *fields)
        assert before["status"] == "queued"
        await kill(process)
        await blocker.closed()
    async with run(**ALONE) as (process, client):
        call = await rig.call()
        assert (call.received.method, call.received.target) == (form.method, form.target)
        assert call.received.body == form.body
        sent = [field for field in call.received.headers if field[0] != b"Host"]
        assert sent == [
            (b"Content-Type", b"application/json"),
            (b"Content-Length", b"%d" % len(form.body)),
            *fields,
        ]
        running = await until(client, queued, "running", fields=fields)
        assert (running["created_at"], running["model"], running["path"]) == (
            before["created_at"],
            before["model"],
            before["path"],
        )
        await stream(call, form)
        assert (await ended(client, queued, *fields))["status"] == "complete"
        got = await result(client, queued, *fields)
        assert (bytes(got.body), got.end) == (form.whole, "whole")
        refused(await result(client, queued), 404, "not_found")
        await kill(process)
    async with run() as (process, client):
        got = await result(client, queued, *fields)
        assert (bytes(got.body), got.end) == (form.whole, "whole")
        assert rig.uncalled()
    assert asked(rig, form.target.partition("?")[0]) == (2 if form is CHAT else 1)


@pytest.mark.parametrize("stage", ["before-head", "mid-stream"])
async def test_running_job_has_failed_after_a_kill(rig, run, stage):
    """Its call had begun: nobody knows what became of it, so it is said so, and not sent again."""
    async with run() as (process, client):
        name = await submitted(client)
        call = await rig.call()
        if stage == "mid-stream":
            await call.send(head(CHAT.kind), chunk(CHAT.events[0]))
            while not (await status(client, name))["progress"]["events"]:
                pass
        await kill(process)
        await call.closed()
    for _ in range(2):
        async with run() as (process, client):
            done = await status(client, name)
            assert (done["status"], done["error"]["kind"]) == ("failed", "interrupted")
            assert "not sent again" in done["error"]["detail"]
            assert done["started_at"] <= done["ended_at"]
            said = refused(await result(client, name), 502, "interrupted")
            assert "not sent again" in said
            assert (await client.whole("GET", STREAMS + name)).status in (410, 502)
            assert (await cancel(client, name))["status"] == "failed"
            assert rig.uncalled()
            told = [line for line in process.lines if line["event"] == "job"]
            await terminate(process)
        # The line comes once, from the process that found it.
        assert [(line["job_id"], line["status"], line["error"]) for line in told] == (
            [(name, "failed", "interrupted")] if _ == 0 else []
        )
    assert asked(rig) == 1


async def test_killed_at_any_moment_it_is_never_sent_twice(rig, run):
    """Killed right after the 202, between being taken up and being called, or later: complete after one call, or failed
    after at most one."""
    rig.provider.on(CHAT.target, lambda connection, received: connection.send(whole_stream()))
    for turn in range(6):
        before = asked(rig)
        async with run() as (process, client):
            answer = await ask(client)
            for _ in range(turn * 2):
                await asyncio.sleep(0)
            process.signal(signal.SIGKILL)
            name = name_of(await whole(answer))
            await process.exited()
        async with run() as (process, client):
            done = await ended(client, name)
            calls = asked(rig) - before
            if done["status"] == "complete":
                assert calls == 1
                assert bytes((await result(client, name)).body) == CHAT.whole
            else:
                assert (done["status"], done["error"]["kind"], calls in (0, 1)) == (
                    "failed",
                    "interrupted",
                    True,
                )


def whole_stream():
    return head(CHAT.kind) + chunk(CHAT.whole) + LAST


async def test_result_survives_a_kill(rig, run):
    """What was called complete is on disk: status, result and stream are the same, byte for byte."""
    async with run() as (process, client):
        name = await submitted(client)
        call = await rig.call()
        await call.send(head(CHAT.kind, b"X-A: b"), *map(chunk, CHAT.events), LAST)
        call.done()
        before = await ended(client, name)
        await kill(process)
    async with run() as (process, client):
        assert await status(client, name) == before
        got = await result(client, name)
        assert (got.status, got.header("x-a"), bytes(got.body), got.end) == (200, b"b", CHAT.whole, "whole")
        more = await client.whole("GET", f"{STREAMS}{name}?after=2")
        assert (bytes(more.body), more.end) == (b"".join(CHAT.events[2:]), "whole")
        fields = [TAKES_IDS, (b"Last-Event-ID", f"{name}:1".encode())]
        more = await client.whole("GET", STREAMS + name, fields=fields)
        assert more.body.count(b"id: " + name.encode()) == len(CHAT.events) - 2
        assert more.body.count(b"data: ") == len(CHAT.events) - 2
        refused(await client.whole("GET", JOBS + name, fields=[ONE]), 404, "not_found")
        assert rig.uncalled()


@pytest.mark.parametrize("kind", ["failed", "cut", "cancelled", "cancelled-queued"])
async def test_other_ends_survive_a_kill(rig, run, clients, kind):
    """The status stays what it was, a half result stays half, and nothing is sent again."""
    async with run(**ALONE) as (process, client):
        name = await submitted(client)
        call = await rig.call()
        if kind == "cancelled-queued":
            name = await submitted(client)
        if kind == "failed":
            await call.send(b"HTTP/1.1 429 Slow\r\nRetry-After: 3\r\nContent-Length: 2\r\n\r\n{}")
            call.done()
        else:
            await call.send(head(CHAT.kind), chunk(CHAT.events[0] + CHAT.events[1][:9]))
        if kind == "cut":
            call.close()
        elif kind == "cancelled":
            while not (await status(client, name))["progress"]["events"]:
                pass
        if kind.startswith("cancelled"):
            await cancel(client, name)
        before = await ended(client, name)
        assert before["status"] == ("cancelled" if kind.startswith("cancelled") else "failed")
        clients.append(await Client.open(process.port))
        old = await result(clients[-1], name)
        await kill(process)
        await call.closed() if kind == "cancelled-queued" else None
    async with run(**ALONE) as (process, client):
        assert await status(client, name) == before
        got = await result(client, name)
        assert (got.status, bytes(got.body), got.end) == (old.status, bytes(old.body), old.end)
        if kind in ("cut", "cancelled"):
            assert got.end == "cut"
            assert got.body.startswith(CHAT.events[0] + CHAT.events[1][:9])
        await healthy(process.port)
        assert rig.uncalled()


async def test_order_of_the_queue_survives(rig, run):
    bodies = [b'{"model":"m","n":%d}' % number for number in range(4)]
    async with run(**ALONE) as (process, client):
        names = [await submitted(client, CHAT._replace(body=body)) for body in bodies]
        blocker = await rig.call()
        await kill(process)
        await blocker.closed()
    async with run(**ALONE) as (process, client):
        for number in range(1, 4):
            call = await rig.call()
            assert call.received.body == bodies[number]
            assert [(await status(client, name))["status"] for name in names[number:]] == [
                "running",
                *["queued"] * (3 - number),
            ]
            if number == 1:
                # A queue that is there from before counts, and one of it can be cancelled and followed.
                late = await submitted(client, CHAT._replace(body=b"{}"))
                await cancel(client, late)
            await stream(call)
        assert [(await ended(client, name))["status"] for name in names] == ["failed", *["complete"] * 3]
        assert rig.uncalled()


async def test_restart_with_another_configuration(rig, run, tmp_path):
    """An order whose path no upstream takes any more has failed, with the reason."""
    async with run(**ALONE) as (process, client):
        await submitted(client)
        blocker = await rig.call()
        name = await submitted(client, CHAT._replace(target="/odd/path"))
        await kill(process)
        await blocker.closed()
    config = tmp_path / "other.toml"
    config.write_text(f'[[upstreams]]\nname = "one"\nurl = "{rig.provider.url}"\npaths = ["/v1"]\n')
    process = None
    async with process_of(
        "-m",
        "sidecar",
        "serve",
        "--port",
        "0",
        "--log-format",
        "json",
        "--config",
        str(config),
        folder=tmp_path,
    ) as process:
        await process.event("serving")
        client = await Client.open(int((await process.event("serving"))["url"].rpartition(":")[2]))
        done = await ended(client, name)
        assert (done["status"], done["error"]["kind"]) == ("failed", "no_upstream")
        client.close()
    assert rig.uncalled()


# SIGTERM.


async def test_sigterm_lets_running_jobs_end(rig, run):
    """It drains: their calls go on to their ends within the grace; what is queued stays queued, though there is room for
    it meanwhile, and runs later."""
    async with run(SLIPSTREAM_JOBS__CONCURRENCY="2") as (process, client):
        names = [await submitted(client) for _ in range(3)]
        calls = [await rig.call(), await rig.call()]
        for call in calls:
            await call.send(head(CHAT.kind), chunk(CHAT.events[0]))
        process.signal()
        await process.event("draining")
        refused_now = await whole(await ask(client))
        assert (refused_now.status, refused_now.header("slipstream-error")) == (503, b"draining")
        for number, call in enumerate(calls):
            await call.send(chunk(b"".join(CHAT.events[1:])), LAST)
            call.done()
            await process.event("job", number)
            assert rig.uncalled()
        assert await process.exited() == 0
        ends = {line["job_id"]: line["status"] for line in process.lines if line["event"] == "job"}
        assert ends == dict.fromkeys(names[:2], "complete")
        assert rig.uncalled()
    async with run(**ALONE) as (process, client):
        await stream(await rig.call())
        assert (await ended(client, names[2]))["status"] == "complete"
        for name in names:
            assert bytes((await result(client, name)).body) == CHAT.whole
    assert asked(rig) == 3


@pytest.mark.parametrize("stage", ["before-head", "mid-stream"])
async def test_sigterm_ends_a_running_job_at_the_deadline(rig, run, stage):
    """Longer than `shutdown.grace`: the upstream's connection is closed, the job has failed with the reason, and what is
    there of the answer never looks whole."""
    async with run(SLIPSTREAM_SHUTDOWN__GRACE="0.1") as (process, client):
        name = await submitted(client)
        call = await rig.call()
        if stage == "mid-stream":
            await call.send(head(CHAT.kind), chunk(CHAT.events[0]))
            while not (await status(client, name))["progress"]["events"]:
                pass
        await terminate(process)
        await call.closed()
        (line,) = [line for line in process.lines if line["event"] == "job"]
        assert (line["job_id"], line["status"]) == (name, "failed")
    async with run() as (process, client):
        done = await status(client, name)
        assert done["status"] == "failed"
        assert "stopped" in done["error"]["detail"]
        got = await result(client, name)
        if stage == "mid-stream":
            assert (got.status, got.end, got.body.startswith(CHAT.events[0] + CHAT.lost)) == (
                200,
                "cut",
                True,
            )
        else:
            # Not as if *this* process were stopping: a client would ask again for ever.
            assert (got.status, got.end) == (502, "whole")
        assert rig.uncalled()


async def test_second_sigterm_leaves_the_folder_as_a_kill_does(rig, run):
    async with run(**ALONE) as (process, client):
        names = [await submitted(client) for _ in range(2)]
        call = await rig.call()
        process.signal()
        await process.event("draining")
        process.signal()
        assert await process.exited(within=3) != 0
        await call.closed()
    async with run() as (process, client):
        assert (await status(client, names[0]))["error"]["kind"] == "interrupted"
        await stream(await rig.call())
        assert (await ended(client, names[1]))["status"] == "complete"
