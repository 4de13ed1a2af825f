"""`slipstream serve --workers`: the supervisor and real worker processes, one of which may fall at any time."""

import asyncio
import hashlib
import os
import signal
import socket
import sys
from contextlib import asynccontextmanager

import orjson
import psutil
import pytest

from sidecar.core.ids import worker_of
from tests.faults.comeback import IDS, STREAMS
from tests.faults.jobs import ASYNC, JOBS, PLAIN, name_of
from tests.faults.test_process import OK, Process, opened, serving
from tests.faults.test_semantic_process import AGAIN, ASKED, PATIENT, Upstream, ask_all
from tests.faults.wire import CHAT, GUARD, LAST, Client, chunk, head, request

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers share a port, as POSIX has it")

TRIES = 24
"""Connections among which are some to each worker: the kernel deals them out."""


@pytest.fixture
async def clients():
    """Closed after the test."""
    found = []
    yield found
    for client in found:
        client.close()


@asynccontextmanager
async def workers(tmp_path, upstream, *flags, count=2, **variables):
    async with serving(tmp_path, upstream, "--workers", str(count), *flags, **variables) as process:
        yield process


async def started(process: Process, worker: int, times: int = 0) -> int:
    """The process id of a worker that has been begun so many times before."""
    async with asyncio.timeout(3 * GUARD):
        number = 0
        while True:
            line = await process.event("worker_started", number)
            number += 1
            if line["worker"] == worker:
                if not times:
                    return line["worker_pid"]
                times -= 1


async def stream(rig, clients, process):
    """A stream whose first event has come; its id, its call, its answer. No two are the same request."""
    rig.script(CHAT.target)
    client = await opened(clients, process)
    body = CHAT.body.replace(b"{", b'{"user":"%d",' % len(clients), 1)
    await client.send(request("POST", CHAT.target, body, [IDS]))
    call = await rig.call()
    await call.send(head(CHAT.kind), chunk(CHAT.events[0]))
    answer = await client.answer()
    await answer.until_has(b":0\n")
    return (answer.header("slipstream-stream-id") or b"").decode(), call, answer


async def ask(process, method, target, *fields, body=None):
    client = await Client.open(process.port)
    try:
        return await client.whole(method, target, body, fields)
    finally:
        client.close()


async def test_streams_and_jobs_are_those_of_any_worker(rig, clients, tmp_path):
    async with workers(tmp_path, rig.provider.url) as process:
        name, call, answer = await stream(rig, clients, process)
        await call.send(chunk(b"".join(CHAT.events[1:])), LAST)
        call.done()
        await answer.rest()
        shown = {bytes((await ask(process, "GET", STREAMS + name)).body) for _ in range(TRIES)}
        assert shown == {CHAT.whole}
        names = set()
        for _ in range(TRIES):
            taken = await ask(process, "POST", CHAT.target, ASYNC, body=PLAIN)
            names.add(name_of(taken))
            call = await rig.call()
            await call.send(head(b"application/json", framing=b"Content-Length: 2"), b"{}")
            call.done()
        assert len(names) == TRIES
        for job in names:
            async with asyncio.timeout(GUARD):
                while (await ask(process, "GET", f"{JOBS}{job}/result")).status == 409:
                    pass
        process.signal()
        assert await process.exited() == 0
        # Whoever was asked: each request has its one line.
        lines = [line for line in process.lines if line["event"] == "request"]
        assert len([line for line in lines if line["method"] == "POST"]) == 1 + TRIES


async def test_a_worker_that_is_killed_is_begun_again_and_the_other_does_not_notice(rig, clients, tmp_path):
    async with workers(tmp_path, rig.provider.url) as process:
        name, call, answer = await stream(rig, clients, process)
        other = 1 - worker_of(name)
        os.kill(await started(process, other), signal.SIGKILL)
        ended = await process.event("worker_ended")
        assert (ended["worker"], ended["status"], ended["level"]) == (other, -signal.SIGKILL, "error")
        await call.send(chunk(b"".join(CHAT.events[1:])), LAST)
        call.done()
        await answer.rest()
        assert answer.end == "whole"
        await started(process, other, 1)
        for _ in range(TRIES):
            assert (await ask(process, "GET", STREAMS + name)).status == 200
        process.signal()
        assert await process.exited() == 0


async def test_a_stream_of_a_worker_that_was_killed_is_gone_and_can_be_asked_for_again(
    rig, clients, tmp_path
):
    async with workers(tmp_path, rig.provider.url) as process:
        name, call, answer = await stream(rig, clients, process)
        os.kill(await started(process, worker_of(name)), signal.SIGKILL)
        await answer.rest()
        assert answer.end in ("cut", "reset")
        await started(process, worker_of(name), 1)
        for _ in range(TRIES):
            assert (await ask(process, "GET", STREAMS + name)).status == 410
        call.close()


async def test_a_worker_whose_loop_hangs_is_begun_again(rig, clients, tmp_path):
    async with workers(tmp_path, rig.provider.url, WATCHDOG_USEC="4000000") as process:
        pid = await started(process, 1)
        os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(3 * GUARD):
            hangs = await process.event("worker_hangs")
            assert hangs["worker"] == 1
            await started(process, 1, 1)
        assert not psutil.pid_exists(pid)


async def test_drain_reaches_all_of_them(rig, clients, tmp_path):
    """47, with several: not ready at once, streams end, exit status 0."""
    async with workers(tmp_path, rig.provider.url) as process:
        streams = [await stream(rig, clients, process) for _ in range(4)]
        process.signal()
        for number in (0, 1):
            await drained(process, number)
        for _ in range(TRIES):
            assert (await ask(process, "GET", "/_slipstream/healthz")).status == 503
        for _, call, answer in streams:
            await call.send(chunk(b"".join(CHAT.events[1:])), LAST)
            call.done()
            await answer.rest()
            assert answer.end == "whole"
        assert await process.exited() == 0
        assert not (await process.event("stopped", 2))["unfinished"]


async def drained(process, worker):
    number = 0
    while (await process.event("draining", number)).get("worker") != worker:
        number += 1


async def test_stragglers_get_the_error_frame(rig, clients, tmp_path):
    async with workers(tmp_path, rig.provider.url, SLIPSTREAM_SHUTDOWN__GRACE="200ms") as process:
        streams = [await stream(rig, clients, process) for _ in range(4)]
        process.signal()
        for _, call, answer in streams:
            await answer.rest()
            assert (answer.end, b"error" in answer.body) == ("cut", True)
            call.close()
        assert await process.exited() == 0
        told = [await process.event("stopped", number) for number in range(3)]
        assert any(line["unfinished"] for line in told[:2])
        assert told[2]["unfinished"]  # the supervisor's, which is the last one


async def test_a_second_signal_ends_all_at_once(rig, clients, tmp_path):
    async with workers(tmp_path, rig.provider.url) as process:
        pids = [await started(process, number) for number in (0, 1)]
        _, call, answer = await stream(rig, clients, process)
        process.signal()
        await drained(process, 0)
        process.signal()
        assert await process.exited() == 1
        await answer.rest()
        assert answer.end in ("cut", "reset")
        assert not any(psutil.pid_exists(pid) for pid in pids)
        call.close()


async def test_a_service_manager_that_signals_all_of_them_is_no_second_signal(rig, clients, tmp_path):
    """KillMode=control-group."""
    async with workers(tmp_path, rig.provider.url) as process:
        pids = [await started(process, number) for number in (0, 1)]
        _, call, answer = await stream(rig, clients, process)
        for pid in (process.pid, *pids):
            os.kill(pid, signal.SIGTERM)
        await drained(process, 0)
        await drained(process, 1)
        await call.send(chunk(b"".join(CHAT.events[1:])), LAST)
        call.done()
        await answer.rest()
        assert answer.end == "whole"
        assert await process.exited() == 0


async def test_workers_without_their_supervisor_stop(rig, clients, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    async with workers(tmp_path, rig.provider.url, RUNTIME_DIRECTORY=str(run)) as process:
        pids = [await started(process, number) for number in (0, 1)]
        assert list(run.iterdir())
        os.kill(process.pid, signal.SIGKILL)
        await asyncio.to_thread(
            psutil.wait_procs, [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], GUARD
        )
        assert not any(running(pid) for pid in pids)
        assert not list(run.iterdir())  # nothing is left of them


def running(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def test_reload_reaches_all_of_them_and_a_bad_one_none(rig, clients, tmp_path):
    file = tmp_path / "slipstream.toml"
    file.write_text("[keepalive]\ninterval = 60\n")
    async with workers(tmp_path, rig.provider.url, "--config", str(file)) as process:
        file.write_text("[keepalive]\ninterval = 0.1\n")
        process.signal(signal.SIGHUP)
        told = [await process.event("reloaded", number) for number in range(3)]
        assert sorted(line.get("worker", -1) for line in told) == [-1, 0, 1]
        assert all(line["changed"] == ["keepalive.interval"] for line in told)
        for _ in range(4):
            _, call, answer = await stream(rig, clients, process)
            await answer.until_has(b": keepalive\n")
            call.close()
        file.write_text("[keepalive]\ninterval = 'often'\n")
        process.signal(signal.SIGHUP)
        failed = await process.event("reload_failed")
        assert "keepalive.interval" in failed["reason"]
        # A worker that is begun now has what the others have, not what is in the file.
        os.kill(await started(process, 1), signal.SIGKILL)
        await started(process, 1, 1)
        process.signal()
        assert await process.exited() == 0
        assert len([line for line in process.lines if line["event"] == "reload_failed"]) == 1


async def test_a_worker_begun_again_is_as_open_as_the_others(rig, tmp_path):
    """What needs a restart of all is not in force because one was begun again."""
    file = tmp_path / "clients.toml"
    digest = hashlib.sha256(b"token").hexdigest()
    file.write_text(f'[[clients]]\nname = "app"\ntoken_sha256 = "{digest}"\n[cache]\nttl = 60\n')
    async with workers(tmp_path, rig.provider.url, "--config", str(file)) as process:
        file.write_text("[cache]\nttl = 70\n")
        process.signal(signal.SIGHUP)
        told = [await process.event("reloaded", number) for number in range(3)]
        assert all((line["changed"], line["restart"]) == (["cache.ttl"], ["clients"]) for line in told)
        # Read, and left alone, as what it names is not there.
        file.write_text('[tls]\ncertificate = "nowhere.pem"\nkey = "nowhere.pem"\n')
        process.signal(signal.SIGHUP)
        await process.event("reload_failed")
        os.kill(await started(process, 1), signal.SIGKILL)
        await process.event("worker_ended")
        process.signal(signal.SIGHUP)  # while it starts
        await started(process, 1, 1)
        for _ in range(TRIES):
            assert (await ask(process, "GET", "/x")).status == 401
        assert len([line for line in process.lines if line["event"] == "worker_ended"]) == 1


async def test_what_a_worker_served_when_it_fell_counts_for_nobody_any_more(rig, clients, tmp_path):
    """At once, and not only when another one has taken its place."""
    file = tmp_path / "clients.toml"
    digest = hashlib.sha256(b"token").hexdigest()
    file.write_text(f'[[clients]]\nname = "app"\ntoken_sha256 = "{digest}"\nrequests = 1\n')
    token = (b"Proxy-Authorization", b"Bearer token")
    async with workers(tmp_path, rig.provider.url, "--config", str(file)) as process:
        # Once it has ended it stays away for seconds.
        for times in range(3):
            os.kill(await started(process, 0, times), signal.SIGKILL)
            await process.event("worker_ended", times)
        pid = await started(process, 0, 3)
        while True:
            rig.script(CHAT.target)
            client = await opened(clients, process)
            await client.send(request("POST", CHAT.target, CHAT.body, [IDS, token]))
            call = await rig.call()
            await call.send(head(CHAT.kind), chunk(CHAT.events[0]))
            answer = await client.answer()
            await answer.until_has(b":0\n")
            if worker_of((answer.header("slipstream-stream-id") or b"").decode()) == 0:
                break
            await call.send(LAST)
            call.done()
            await answer.rest()
        rig.provider.on("/x", lambda connection, _: connection.send(OK))
        assert (await ask(process, "GET", "/x", token)).status == 429
        os.kill(pid, signal.SIGKILL)
        assert (await process.event("worker_ended", 3))["again_in_s"] > 1
        assert (await ask(process, "GET", "/x", token)).status == 200


async def test_told_to_stop_while_some_are_starting(rig, clients, tmp_path):
    """Who is served already is served to the end."""
    made = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "serve", "--upstream", rig.provider.url, "--workers", "3"),
        *("--port", "0", "--admin-port", "0", "--log-format", "json"),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "SLIPSTREAM_SERVER__DATA_DIR": str(tmp_path)},
    )
    process = Process(made)
    pid = await started(process, 0)
    listening = [each for each in psutil.Process(pid).net_connections("tcp") if each.status == "LISTEN"]
    process.port = listening[0].laddr.port
    _, call, answer = await stream(rig, clients, process)
    process.signal()
    await drained(process, 0)
    await call.send(chunk(b"".join(CHAT.events[1:])), LAST)
    call.done()
    await answer.rest()
    assert answer.end == "whole"
    assert await process.exited() == 0
    made._transport.close()


async def test_an_answer_that_one_has_stored_is_the_others_too(rig, clients, tmp_path):
    async with workers(tmp_path, rig.provider.url) as process:
        rig.script("/v1/chat/completions")
        client = await opened(clients, process)
        await client.send(request("POST", CHAT.target, CHAT.body))
        call = await rig.call()
        await call.send(head(CHAT.kind), chunk(CHAT.whole), LAST)
        call.done()
        await (await client.answer()).rest()
        await process.event("request")  # it is stored by then
        for _ in range(TRIES):
            answer = await ask(process, "POST", CHAT.target, body=CHAT.body)
            assert b"hit" in (answer.header("cache-status") or b""), answer.headers
        assert rig.uncalled()


async def test_figures_are_those_of_all(rig, clients, tmp_path):
    flags = ("--admin-port", "0")
    async with workers(tmp_path, rig.provider.url, *flags, SLIPSTREAM_CACHE__MODE="off") as process:
        admin = int((await process.event("serving"))["admin"].rpartition(":")[2])
        rig.script("/x")
        for _ in range(TRIES):
            client = await opened(clients, process)
            await client.send(request("GET", "/x"))
            call = await rig.call()
            await call.send(head(b"text/plain", framing=b"Content-Length: 2"), b"ok")
            call.done()
            await (await client.answer()).rest()
        told = [await process.event("request", number) for number in range(TRIES)]
        assert len({line["request_id"][:8] for line in told}) == 2  # some were served by each
        stats = await until_told(admin, TRIES)
        assert stats["windows"]["1m"]["total"]["total_ms"]["count"] == TRIES
        seen = orjson.loads((await look(admin, "/requests")).body)["recent"]
        assert {line["request_id"] for line in seen} == {line["request_id"] for line in told}
        one = await look(admin, f"/requests/{told[0]['request_id']}")
        assert orjson.loads(one.body)["line"]["request_id"] == told[0]["request_id"]
        assert await counted(admin) == TRIES
        os.kill(await started(process, 1), signal.SIGKILL)
        await started(process, 1, 1)
        assert await counted(admin) == TRIES  # of those that it was asked for
        ready = await look(admin, "/readyz")
        assert ready.status == 200, bytes(ready.body)


async def look(port, path):
    client = await Client.open(port)
    try:
        await client.send(request("GET", path, host=b"127.0.0.1:%d" % port))
        answer = await client.answer()
        await answer.rest()
    finally:
        client.close()
    return answer


async def until_told(port, count):
    """Once so many requests are in the figures of the last minute."""
    async with asyncio.timeout(GUARD):
        while True:
            said = orjson.loads((await look(port, "/stats")).body)
            if said["windows"]["1m"]["total"]["requests"] == count:
                return said


async def counted(port):
    """Requests, as Prometheus is told of them."""
    text = (await look(port, "/metrics")).body.decode()
    found = [line for line in text.splitlines() if line.startswith("slipstream_requests_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in found)


async def test_limits_of_a_client_are_those_of_all_workers(rig, clients, tmp_path):
    file = tmp_path / "clients.toml"
    digest = hashlib.sha256(b"token-of-the-app").hexdigest()
    file.write_text(f'[[clients]]\nname = "app"\ntoken_sha256 = "{digest}"\nrequests = 4\n')
    async with workers(tmp_path, rig.provider.url, "--config", str(file)) as process:
        rig.script("/x")
        token = (b"Authorization", b"Bearer token-of-the-app")
        calls, refused = [], 0
        for _ in range(TRIES):
            client = await opened(clients, process)
            await client.send(request("GET", "/x", None, [token]))
            if len(calls) < 4:
                calls.append(await rig.call())
                continue
            answer = await client.answer()
            refused += answer.status == 429
            await answer.rest()
        assert refused == TRIES - 4
        for call in calls:
            await call.send(head(b"text/plain", framing=b"Content-Length: 2"), b"ok")
            call.done()


async def test_sockets_of_a_service_manager_are_shared_by_all(rig, clients, tmp_path):
    """A client that connects while there is nobody waits for the next one."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        port = listening.getsockname()[1]
        code = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ.update(LISTEN_FDS='1', "
            "LISTEN_PID=str(os.getpid())); os.set_inheritable(3, True); "
            "os.execv(sys.executable, [sys.executable, '-m', 'sidecar', 'serve', *sys.argv[2:]])"
        )
        waiting = await Client.open(port)
        clients.append(waiting)
        await waiting.send(request("GET", "/_slipstream/healthz"))
        for _ in range(2):
            made = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", code, str(listening.fileno()), "--upstream", rig.provider.url),
                *("--workers", "2", "--admin-port", "0", "--log-format", "json"),
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(listening.fileno(),),
                env={**os.environ, "SLIPSTREAM_SERVER__DATA_DIR": str(tmp_path)},
            )
            process = Process(made)
            process.port = int((await process.event("serving"))["url"].rpartition(":")[2])
            assert process.port == port
            assert (await waiting.answer()).status == 200
            for _ in range(TRIES):
                assert (await ask(process, "GET", "/_slipstream/healthz")).status == 200
            process.signal()
            await drained(process, 0)
            await drained(process, 1)
            waiting = await Client.open(port)
            clients.append(waiting)
            await waiting.send(request("GET", "/_slipstream/healthz"))
            assert await process.exited() == 0
            made._transport.close()


async def test_a_port_that_is_taken_is_one_line(rig, tmp_path):
    async with workers(tmp_path, rig.provider.url) as process:
        second = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "sidecar", "serve", "--upstream", rig.provider.url, "--workers", "2"),
            *("--port", str(process.port), "--admin-port", "0", "--log-format", "json"),
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "SLIPSTREAM_SERVER__DATA_DIR": str(tmp_path / "other")},
        )
        _, said = await second.communicate()
        assert second.returncode == 2
        (line,) = said.decode().splitlines()
        assert f"server.port = {process.port}: in use" in line
        second._transport.close()


async def test_a_question_that_one_has_heard_is_known_to_all_at_once(rig, clients, tmp_path, with_model):
    flags = ("--cache", "semantic")
    Upstream(rig.provider)
    async with workers(with_model(tmp_path), rig.provider.url, *flags, **PATIENT) as process:
        (first,) = await ask_all(process, ASKED, [2])
        assert first.header("cache-status") == b"slipstream; fwd=miss; stored"
        await process.event("request")  # it is stored by then
        for _ in range(TRIES):
            (again,) = await ask_all(process, AGAIN, [2])  # on a connection of its own
            assert b"semantic" in (again.header("cache-status") or b""), again.headers
            assert again.body == first.body
        told = [await process.event("request", number) for number in range(1 + TRIES)]
        assert len({line["request_id"][:8] for line in told}) == 2  # some by each
