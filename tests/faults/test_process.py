"""The process: many streams, no descriptors left, being told to stop, and a configuration that makes no sense."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import psutil
import pytest

from tests.faults.wire import CHAT, FRAMED, GUARD, LAST, OTHER, Client, ClosedError, chunk, head

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and descriptor limits are POSIX")

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Process:
    """`slipstream serve` as a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.pid = process.pid
        self.port = 0
        self.lines: list[dict] = []
        self.raw = b""
        self._changed = asyncio.Event()
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.raw += line
            with contextlib.suppress(ValueError):
                self.lines.append(orjson.loads(line))
            self._changed.set()

    async def event(self, name: str, number: int = 0) -> dict:
        """The log line of that name, as the number says."""
        async with asyncio.timeout(GUARD):
            while len(found := [line for line in self.lines if line.get("event") == name]) <= number:
                self._changed.clear()
                await self._changed.wait()
        return found[number]

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    async def exited(self, within: float = GUARD) -> int:
        async with asyncio.timeout(within):
            code = await self.process.wait()
            await self._reading
        return code


@contextlib.asynccontextmanager
async def serving(
    tmp_path: Path, upstream: str, *flags: str, descriptors: int = 0, **variables: str
) -> AsyncIterator[Process]:
    """A sidecar process; `upstream`: where everything goes, if not empty; `descriptors`: its limit. It is killed if the
    test leaves it running."""
    command = [
        sys.executable,
        "-m",
        "sidecar",
        "serve",
        *(["--upstream", upstream] if upstream else []),
        "--port",
        "0",
        "--log-format",
        "json",
        *flags,
    ]
    if descriptors:
        command = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *command]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SLIPSTREAM_")}
    process = Process(
        await asyncio.create_subprocess_exec(
            *command,
            stderr=asyncio.subprocess.PIPE,
            stdin=asyncio.subprocess.DEVNULL,
            env={**kept, **variables, "SLIPSTREAM_SERVER__DATA_DIR": str(tmp_path)},
        )
    )
    try:
        process.port = int((await process.event("serving"))["url"].rpartition(":")[2])
        yield process
    finally:
        if process.process.returncode is None:
            process.process.kill()
        await process.exited()
        process.process._transport.close()


@pytest.fixture
async def clients() -> AsyncIterator[list[Client]]:
    """Closed after the test."""
    opened: list[Client] = []
    yield opened
    for client in opened:
        client.close()


async def opened(clients: list[Client], process: Process) -> Client:
    clients.append(await Client.open(process.port))
    return clients[-1]


async def healthz(clients, process):
    client = await opened(clients, process)
    answer = await client.whole("GET", "/_slipstream/healthz")
    return answer.status


async def streaming(rig, clients, process, form=CHAT):
    """A stream whose first event has arrived."""
    rig.script(form.target)
    client = await opened(clients, process)
    await client.send(form.sent)
    call = await rig.call()
    await call.send(head(form.kind), chunk(form.events[0]))
    answer = await client.answer()
    await answer.until(len(form.events[0]))
    return call, answer


# 45


async def test_idle_streams_are_kept_alive_in_flat_memory(rig, clients, tmp_path):
    """45: 500 streams that say nothing -> each gets its keepalives, round after round, and memory does not grow."""
    count = 500
    async with serving(
        tmp_path, rig.provider.url, SLIPSTREAM_KEEPALIVE__INTERVAL="0.25", SLIPSTREAM_CACHE__MODE="off"
    ) as process:
        sidecar = psutil.Process(process.pid)
        empty = sidecar.memory_info().rss
        streams = [await streaming(rig, clients, process) for _ in range(count)]

        async def rounds(number):
            async with asyncio.timeout(20):
                await asyncio.gather(*(answer.until_has(CHAT.keepalive, number) for _, answer in streams))
            return sidecar.memory_info().rss

        early = await rounds(2)
        late = await rounds(8)
        assert early - empty < count * 100_000
        assert late - early < 4 << 20
        for call, answer in streams:
            await call.send(chunk(b"".join(CHAT.events[1:])), LAST)
            call.done()
            body = await answer.rest()
            assert body.replace(CHAT.keepalive, b"") == CHAT.whole
            # On time: nobody was kept alive much more often than anybody else.
            assert body.count(CHAT.keepalive) <= 16
        process.signal()
        assert await process.exited() == 0
        assert len([line for line in process.lines if line["event"] == "request"]) == count


# 46


async def test_descriptor_limit_is_503_and_it_recovers(rig, clients, tmp_path):
    """46: more clients at once than there are descriptors -> those who are in are served, the others get 503 and are
    closed; when they have left, everybody is served again; the process never dies."""
    rig.provider.on("/works", lambda connection, received: connection.send(OK))
    async with serving(tmp_path, rig.provider.url, descriptors=128) as process:
        crowd = await asyncio.gather(*(opened(clients, process) for _ in range(200)))

        async def ask(client):
            try:
                answer = await client.whole("GET", "/works")
            except (ClosedError, ConnectionError, RuntimeError):
                return 0
            return answer.status

        async with asyncio.timeout(20):
            statuses = await asyncio.gather(*(ask(client) for client in crowd))
        assert statuses.count(200) >= 20
        assert statuses.count(503) + statuses.count(0) >= 100
        assert set(statuses) <= {0, 200, 503}
        assert 503 in statuses
        for client in crowd:
            client.close()
        async with asyncio.timeout(20):
            while True:
                late = await opened(clients, process)
                if await ask(late) == 200:
                    break
                late.close()
        held = psutil.Process(process.pid).num_fds()
        assert held < 128
        process.signal()
        assert await process.exited() == 0
        assert not [line for line in process.lines if line["event"] == "fault"]


@pytest.mark.skipif(sys.platform != "linux", reason="sets another process's limit")
async def test_no_descriptor_for_the_upstream_is_503(rig, clients, tmp_path):
    """46: a descriptor limit that leaves clients but no upstream connection -> 503, and service when one is free."""
    rig.script("/held")
    rig.provider.on("/works", lambda connection, received: connection.send(OK))
    async with serving(tmp_path, rig.provider.url) as process:
        sidecar = psutil.Process(process.pid)
        client, other = await opened(clients, process), await opened(clients, process)
        assert await healthz(clients, process) == 200
        # Everything that is open stays open; nothing can be opened.
        used = {int(number) for number in os.listdir(f"/proc/{process.pid}/fd")}  # noqa: PTH208
        full = min(set(range(len(used) + 1)) - used)
        sidecar.rlimit(psutil.RLIMIT_NOFILE, (full, sidecar.rlimit(psutil.RLIMIT_NOFILE)[1]))
        answer = await client.whole("GET", "/works")
        assert (answer.status, answer.header("slipstream-error")) == (503, b"overloaded")
        assert await client.closed() == b""
        sidecar.rlimit(psutil.RLIMIT_NOFILE, (1024, sidecar.rlimit(psutil.RLIMIT_NOFILE)[1]))
        for again in (other, await opened(clients, process)):
            answer = await again.whole("GET", "/works")
            assert (answer.status, bytes(answer.body)) == (200, b"ok")


# 47


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_sigterm_drains(rig, clients, tmp_path, number):
    """47: SIGTERM with a stream open -> not ready at once, new requests get 503, the stream goes on to its own end,
    then exit 0."""
    async with serving(tmp_path, rig.provider.url) as process:
        call, answer = await streaming(rig, clients, process)
        idle = await opened(clients, process)
        assert await healthz(clients, process) == 200
        process.signal(number)
        await process.event("draining")
        assert await healthz(clients, process) == 503
        new = await idle.whole("POST", CHAT.target, CHAT.body)
        assert (new.status, new.header("slipstream-error")) == (503, b"draining")
        assert await idle.closed() == b""
        await call.send(chunk(b"".join(CHAT.events[1:])), LAST)
        call.done()
        assert (await answer.rest(), answer.end) == (CHAT.whole, "whole")
        assert await process.exited() == 0
        assert (await process.event("request", 1))["outcome"] == "complete"
        with pytest.raises(OSError):
            await Client.open(process.port)


async def test_sigterm_without_requests_exits_at_once(rig, clients, tmp_path):
    """47: only idle connections -> nothing to drain, they are closed, exit 0 long before the deadline."""
    rig.provider.on("/works", lambda connection, received: connection.send(OK))
    async with serving(tmp_path, rig.provider.url) as process:
        idle = await opened(clients, process)
        await idle.whole("GET", "/works")
        process.signal()
        assert await process.exited(within=3) == 0
        assert await idle.closed() == b""


@pytest.mark.parametrize("stage", ["before-head", "mid-stream", "mid-event"])
@pytest.mark.parametrize("form", [*FRAMED[:1], *FRAMED[3:]], ids=str)
async def test_stragglers_get_the_error_frame_at_the_deadline(rig, clients, tmp_path, form, stage):
    """47: still streaming at `shutdown.grace` -> error frame, aborted, the upstream closed, exit 0. One that had no
    head yet gets a 503."""
    async with serving(tmp_path, rig.provider.url, SLIPSTREAM_SHUTDOWN__GRACE="0.1") as process:
        if stage == "before-head":
            rig.script(form.target)
            client = await opened(clients, process)
            await client.send(form.sent)
            call = await rig.call()
            process.signal()
            answer = await client.answer()
            await answer.rest()
            assert (answer.status, answer.header("slipstream-error"), answer.end) == (
                503,
                b"draining",
                "whole",
            )
        else:
            call, answer = await streaming(rig, clients, process, form)
            sent = form.events[0]
            if stage == "mid-event":
                sent += form.events[1][:12]
                await call.send(chunk(form.events[1][:12]))
                await answer.until(len(sent))
            process.signal()
            body = await answer.rest()
            assert body.startswith(sent)
            after = body[len(sent) :]
            assert after.lstrip(b"\r\n").startswith(form.lost)
            assert (after == after.lstrip(b"\r\n")) == (stage == "mid-stream")
            assert answer.end == "cut"
        await call.closed()
        assert await process.exited() == 0
        assert not [line for line in process.lines if line["event"] == "fault"]


async def test_second_sigterm_exits_at_once(rig, clients, tmp_path):
    """47: a second signal while it drains -> the process is gone, though the stream was not."""
    async with serving(tmp_path, rig.provider.url) as process:
        call, answer = await streaming(rig, clients, process)
        process.signal()
        await process.event("draining")
        process.signal()
        assert await process.exited(within=3) != 0
        await answer.rest()
        assert answer.end in ("cut", "reset")
        await call.closed()


@pytest.mark.parametrize("how", ["silent", "half-head", "half-body", "deaf"])
async def test_client_that_stalls_does_not_hold_the_shutdown_up(rig, clients, tmp_path, how):
    """47: a client that sends nothing, half a request, or reads nothing -> shutdown ends at its deadline all the same."""
    async with serving(tmp_path, rig.provider.url, SLIPSTREAM_SHUTDOWN__GRACE="0.1") as process:
        client = await opened(clients, process)
        if how == "half-head":
            await client.send(b"GET / HT")
        elif how == "half-body":
            await client.send(CHAT.sent[:-5])
        elif how == "deaf":
            rig.script(OTHER.target)
            client.writer.transport.pause_reading()
            await client.send(OTHER.sent)
            call = await rig.call()
            await call.send(head(OTHER.kind))
            while call.connection.writable:
                call.connection.write(chunk(OTHER.events[0] * 5000))
                for _ in range(10):
                    await asyncio.sleep(0)
        assert await healthz(clients, process) == 200
        process.signal()
        assert await process.exited(within=8) == 0


# 48


BAD = {
    "unknown-key": ("[server]\nprot = 1\n", {}, [], ["server.prot", "server.port"]),
    "unknown-table": ("[servers]\nport = 1\n", {}, [], ["servers", "server"]),
    "type": ('[admin]\nport = "http"\n', {}, [], ["admin.port", "http"]),
    "range": ("[admin]\nport = 70000\n", {}, [], ["admin.port", "70000"]),
    "duration": ('[timeouts]\nhead = "soon"\n', {}, [], ["timeouts.head", "soon"]),
    "negative": ("[timeouts]\nhead = -1\n", {}, [], ["timeouts.head", "-1"]),
    "size": ('[limits]\nbody = "much"\n', {}, [], ["limits.body", "much"]),
    "toml": ("[server\n", {}, [], ["TOML"]),
    "not-utf8": (b"\xff\xfe", {}, [], ["TOML"]),
    "variable": ("", {"SLIPSTREAM_SERVER__PROT": "1"}, [], ["SLIPSTREAM_SERVER__PROT"]),
    "variable-value": ("", {"SLIPSTREAM_ADMIN__PORT": "x"}, [], ["admin.port", "SLIPSTREAM_ADMIN__PORT"]),
    "url": ("", {}, ["--upstream", "api.openai.com"], ["upstream", "api.openai.com"]),
    "password": ("", {}, ["--upstream", "https://user:hunter2@api.test"], ["upstream"]),
    "password-in-file": (
        '[[upstreams]]\nname = "a"\nurl = "https://user:hunter2@api.test"\n',
        {},
        [],
        ["upstreams"],
    ),
    "query-key": ("", {}, ["--upstream", "https://api.test/?key=hunter2"], ["upstream"]),
    "password-bad-port": ("", {}, ["--upstream", "https://user:hunter2@api.test:x"], ["upstream"]),
    "flag-value": ("", {}, ["--port", "many"], ["port"]),
    "flag": ("", {}, ["--prot", "1"], ["--prot"]),
    "no-file": (None, {}, [], ["cannot be read"]),
}


async def refusal(*flags, **variables):
    """Start a sidecar that should refuse to; return its exit status and what it printed."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SLIPSTREAM_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sidecar",
        "serve",
        "--log-format",
        "json",
        *flags,
        env={**kept, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.DEVNULL,
    )
    ending = asyncio.ensure_future(process.communicate())
    await asyncio.wait([ending], timeout=GUARD)
    if not ending.done():
        process.kill()
    out, err = await ending
    process._transport.close()
    return process.returncode, out, err


@pytest.mark.parametrize(("file", "variables", "flags", "named"), BAD.values(), ids=BAD)
async def test_bad_configuration_is_one_line_and_exit_2(tmp_path, file, variables, flags, named):
    """48: a bad file, variable or flag -> exit 2, one line that names key and value, and never a secret."""
    path = tmp_path / "slipstream.toml"
    variables = {"SLIPSTREAM_SERVER__DATA_DIR": str(tmp_path), **variables}
    if file is not None:
        path.write_bytes(file if isinstance(file, bytes) else file.encode())
    code, out, err = await refusal("--port", "0", "--config", str(path), *flags, **variables)
    assert (code, out) == (2, b""), err
    text = err.decode()
    assert "hunter2" not in text
    assert "Traceback" not in text
    for part in named:
        assert part in text
    # click explains its own errors in a line of usage and a hint before the error.
    assert text.count("\n") == 1 or (flags and flags[0] in ("--port", "--prot")), text


async def test_port_that_is_taken_is_one_line_and_exit_2(rig, tmp_path):
    """48: somebody else listens there -> exit 2 and one line that names the port."""
    code, _, err = await refusal(
        "--upstream",
        rig.provider.url,
        "--port",
        str(rig.provider.port),
        SLIPSTREAM_SERVER__DATA_DIR=str(tmp_path),
    )
    assert code == 2
    assert str(rig.provider.port) in err.decode()
    assert err.count(b"\n") == 1


async def test_what_is_asked_and_answered_is_in_no_log_line(rig, clients, tmp_path):
    """48, and what 49 asks of this much: key, prompt, answer and query -> in no line the process writes."""
    secrets = [b"sk-hunter2", b"PROMPTED", b"amber birch", b"QUERIED", b"COOKIED"]
    async with serving(tmp_path, rig.provider.url) as process:
        client = await opened(clients, process)
        body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"PROMPTED"}]}'
        fields = [(b"Authorization", b"Bearer sk-hunter2"), (b"Cookie", b"COOKIED=1")]
        for target in (f"{CHAT.target}?key=QUERIED", "/v1/unknown?QUERIED"):
            answer = await client.whole("POST", target, body, fields)
        await client.send(
            b"POST http://user:QUERIED@h/ HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer sk-hunter2\r\nContent-Length: 1\r\n\r\n"
        )
        answer = await client.answer()
        assert b"QUERIED" not in await answer.rest()
        await process.event("request", 2)
        process.signal()
        assert await process.exited() == 0
        for secret in secrets:
            assert secret not in process.raw
