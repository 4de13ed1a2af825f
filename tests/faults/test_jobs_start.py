"""Background jobs when a sidecar starts: what it finds, what it may use, what has expired, and what is on disk."""

import asyncio
import contextlib
import socket
import sys

import pytest

from tests.faults.jobs import (
    ASYNC,
    JOBS,
    ONE,
    STREAMS,
    ask,
    cancel,
    ended,
    name_of,
    refused,
    result,
    status,
    stop,
    stream,
    submitted,
    whole,
)
from tests.faults.jobs_process import ALONE, healthy, kill, process_of, terminate
from tests.faults.test_process import serving
from tests.faults.wire import CHAT, GUARD, Client, request
from tests.stores.rig import files_with

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


# The start.


async def test_full_disk_at_the_start_does_not_keep_the_sidecar_from_starting(rig, run, tmp_path):
    """What an earlier process left cannot be noted: jobs may be unavailable, everything else works."""
    code = (
        "import sidecar.stores.jobs as jobs\n"
        "def fail(*values): raise jobs.StoreError('jobs.sqlite3: the disk is full (SQLITE_FULL)')\n"
        "jobs.JobStore.interrupt = fail\n"
        "from sidecar.cli.main import main\n"
        "main()"
    )
    flags = ["serve", "--port", "0", "--log-format", "json", "--upstream", rig.provider.url]
    async with process_of("-c", code, *flags, folder=tmp_path) as process:
        client = await Client.open(int((await process.event("serving"))["url"].rpartition(":")[2]))
        sending = asyncio.ensure_future(client.whole("POST", CHAT.target, CHAT.body))
        await stream(await rig.call())
        assert bytes((await sending).body) == CHAT.whole
        client.close()


async def test_submit_while_the_sidecar_starts(rig, run, tmp_path):
    """Before what an earlier process left has been looked at: nothing is taken in yet, or it is sent once, and whole."""
    code = (
        "import sys, time, pathlib\n"
        "import sidecar.stores.jobs as jobs\n"
        "folder = pathlib.Path(sys.argv.pop(1))\n"
        "real = jobs.JobStore.interrupt\n"
        "def wait(*values):\n"
        "    (folder / 'reached').touch()\n"
        "    while not (folder / 'go').exists(): time.sleep(0.005)\n"
        "    return real(*values)\n"
        "jobs.JobStore.interrupt = wait\n"
        "from sidecar.cli.main import main\n"
        "main()"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    signs = tmp_path / "signs"
    signs.mkdir()
    flags = [str(signs), "serve", "--port", str(port), "--log-format", "json", "--upstream", rig.provider.url]
    async with process_of("-c", code, *flags, folder=tmp_path / "data") as process:
        async with asyncio.timeout(GUARD):
            while not (signs / "reached").exists():  # noqa: ASYNC110 - another process says so
                await asyncio.sleep(0.005)
        early = None
        with contextlib.suppress(OSError):
            early = await Client.open(port)
        if early is not None:
            await early.send(request("POST", CHAT.target, CHAT.body, [ASYNC]))
            await healthy(port)
        (signs / "go").touch()
        await process.event("serving")
        client = await Client.open(port)
        if early is not None:
            answer = await whole(await early.answer())
            assert answer.status in (202, 503)
            if answer.status == 202:
                name = name_of(answer)
                await stream(await rig.call())
                done = await ended(client, name)
                assert (done["status"], done["error"]) == ("complete", None)
                assert bytes((await result(client, name)).body) == CHAT.whole
            early.close()
        name = await submitted(client)
        await stream(await rig.call())
        assert (await ended(client, name))["status"] == "complete"
        assert rig.uncalled()
        assert not [line for line in process.lines if line["event"] == "fault"]
        client.close()


@pytest.mark.parametrize("what", ["folder", "in-use"])
async def test_without_a_folder_of_its_own_there_are_no_jobs(rig, run, tmp_path, clients, what):
    """The folder cannot be used, or another sidecar uses it: a warning, 503 with the reason, and all else works."""
    async with contextlib.AsyncExitStack() as stack:
        if what == "in-use":
            first, its_client = await stack.enter_async_context(run())
            other, client = await stack.enter_async_context(run())
        else:
            (tmp_path / "file").touch()
            flags = [
                "-m",
                "sidecar",
                "serve",
                "--port",
                "0",
                "--log-format",
                "json",
                "--upstream",
                rig.provider.url,
            ]
            (tmp_path / "data").mkdir()
            (tmp_path / "data" / "jobs.lock").mkdir()
            other = await stack.enter_async_context(process_of(*flags, folder=tmp_path / "data"))
            clients.append(await Client.open(int((await other.event("serving"))["url"].rpartition(":")[2])))
            client = clients[-1]
        warning = await other.event("no_jobs")
        assert (warning["level"], bool(warning["reason"]), bool(warning["folder"])) == ("warning", True, True)
        if what == "in-use":
            assert "in use" in warning["reason"]
        answer = await whole(await ask(client))
        assert (answer.status, answer.header("slipstream-error"), answer.end) == (
            503,
            b"jobs_unavailable",
            "whole",
        )
        assert b"server.data_dir" in answer.body
        assert answer.header("retry-after") is not None
        sending = asyncio.ensure_future(client.whole("POST", CHAT.target, CHAT.body))
        await stream(await rig.call())
        assert bytes((await sending).body) == CHAT.whole
        if what == "in-use":
            # The first one has lost nothing, and its ids are known to the other, which has no jobs.
            name = await submitted(its_client)
            await stream(await rig.call())
            assert (await ended(its_client, name))["status"] == "complete"
            refused(await client.whole("GET", JOBS + name), 503, "jobs_unavailable")
            assert not [line for line in first.lines if line["event"] == "no_jobs"]


async def test_damaged_store_is_set_aside(rig, run, tmp_path):
    async with run() as (process, client):
        name = await submitted(client)
        await stream(await rig.call())
        await ended(client, name)
        await kill(process)
    for left in tmp_path.glob("jobs.sqlite3*"):
        left.unlink()
    (tmp_path / "jobs.sqlite3").write_bytes(b"no database at all" * 1000)
    async with run() as (process, client):
        warning = await process.event("jobs_set_aside")
        assert warning["level"] == "warning"
        refused(await client.whole("GET", JOBS + name), 410, "gone")
        name = await submitted(client)
        await stream(await rig.call())
        assert (await ended(client, name))["status"] == "complete"


# What is kept, and for how long.


async def test_results_are_kept_for_so_long(rig, tmp_path):
    """`jobs.keep`: over -> 410 from status, result and stream, and nothing of it is in the files. What is queued stays."""
    await rig.start(folder=tmp_path, jobs__concurrency=1)
    rig.script(CHAT.target)
    client = await rig.connect()
    planted = CHAT._replace(
        events=[*CHAT.events[:3], b'data: {"planted":"planted-answer"}\n\n', CHAT.events[3]]
    )
    names = [await submitted(client) for _ in range(4)]
    await stream(await rig.call(), planted)
    await ended(client, names[0])
    call = await rig.call()
    await cancel(client, names[1])
    await call.closed()
    blocker = await rig.call()
    assert files_with(tmp_path, b"planted-answer")
    await stop(rig.sidecar)
    await blocker.closed()
    await rig.start(folder=tmp_path, jobs__concurrency=1)
    client = await rig.connect()
    assert [(await status(client, name))["status"] for name in names] == [
        "complete",
        "cancelled",
        "failed",
        "running",
    ]
    blocker = await rig.call()
    await stop(rig.sidecar)
    await blocker.closed()
    await rig.start(folder=tmp_path, jobs__keep="1ms")
    client = await rig.connect()
    for name in names:
        for path in (JOBS + name, f"{JOBS}{name}/result", STREAMS + name):
            refused(await client.whole("GET", path), 410, "gone")
        refused(await client.whole("DELETE", JOBS + name), 410, "gone")
        refused(await client.whole("GET", JOBS + name, fields=[ONE]), 404, "not_found")
    assert not files_with(tmp_path, b"planted-answer")


async def test_what_is_queued_does_not_expire(rig, tmp_path):
    await rig.start(folder=tmp_path, jobs__concurrency=1)
    rig.script(CHAT.target)
    client = await rig.connect()
    names = [await submitted(client) for _ in range(2)]
    call = await rig.call()
    await stop(rig.sidecar)
    await call.closed()
    await rig.start(folder=tmp_path, jobs__keep="1ms")
    client = await rig.connect()
    call = await rig.call()
    refused(await client.whole("GET", JOBS + names[0]), 410, "gone")
    assert (await status(client, names[1]))["status"] == "running"
    await stream(call)
    assert (await ended(client, names[1]))["status"] == "complete"


async def test_key_and_prompt_are_in_no_line_and_no_file_of_the_real_process(rig, run, tmp_path):
    """Over a kill, a restart and a whole life, at the most talkative level."""
    key = (b"Authorization", b"Bearer sk-planted-key")
    form = CHAT._replace(
        target=CHAT.target + "?q=planted-query", body=b'{"model":"m","stream":true,"x":"planted-prompt"}'
    )
    secrets = (b"sk-planted-key", b"planted-query", b"planted-prompt")
    raw = b""
    async with run(SLIPSTREAM_LOG__LEVEL="debug", **ALONE) as (process, client):
        first = await submitted(client, form, key)
        call = await rig.call()
        second = await submitted(client, form, key)
        assert all(files_with(tmp_path, secret) for secret in secrets)
        await kill(process)
        await call.closed()
        raw += process.raw
    async with run(SLIPSTREAM_LOG__LEVEL="debug", **ALONE) as (process, client):
        call = await rig.call()
        assert [files_with(tmp_path, secret) for secret in secrets] == [[]] * 3
        await stream(call)
        await ended(client, second, key)
        for name in (first, second):
            await result(client, name, key)
        await terminate(process)
        raw += process.raw
    assert [files_with(tmp_path, secret) for secret in secrets] == [[]] * 3
    assert b"planted" not in raw
    assert tmp_path.stat().st_mode & 0o077 == 0
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
