"""FAULTS 46 and what is beside it: no descriptors left, more connections than there is room for, and every refusal
with a time to come back."""

import asyncio
import contextlib
import errno
import os
import resource
import socket
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme

from sidecar.config import Limits, Timeouts
from sidecar.core.errors import UpstreamError
from sidecar.engine.source import Origin
from sidecar.upstream import client as sidecar_client
from sidecar.web.listen import Listener
from tests.admin.conftest import Port
from tests.faults.conftest import eventually
from tests.faults.test_process import Process, opened, serving, streaming
from tests.faults.wire import CHAT, GUARD, LAST, Client, ClosedError, chunk, head, request

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sets another process's limits")

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BIG = b'{"choices":[{"index":0,"finish_reason":"stop","message":{"content":"%b"}}]}' % (b"x" * 100_000)
ASKED = b'{"model":"m","messages":[{"role":"user","content":"%d"}]}'


@pytest.fixture
async def clients() -> AsyncIterator[list[Client]]:
    """Closed after the test."""
    made: list[Client] = []
    yield made
    for client in made:
        client.close()


@pytest.fixture(params=["uvloop", "asyncio"])
def loop_of(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Variables with which a sidecar runs on that event loop."""
    if request.param == "uvloop":
        return {}
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "uvloop.py").write_text("raise ImportError('none here')\n")
    return {"PYTHONPATH": str(tmp_path / "without")}


def used(process: Process) -> set[int]:
    """The numbers of its descriptors."""
    return {int(number) for number in os.listdir(f"/proc/{process.pid}/fd")}  # noqa: PTH208


async def fill(process: Process, clients: list[Client]) -> None:
    """Until the process can open nothing: idle clients take what is free below what it has."""
    limit(process, max(used(process)) + 1)
    while len(used(process)) <= max(used(process)):
        client = await opened(clients, process)
        with contextlib.suppress(ClosedError):
            await client.whole("GET", "/_slipstream/healthz")  # it has been let in, or not


def limit(process: Process, most: int) -> None:
    sidecar = psutil.Process(process.pid)
    sidecar.rlimit(psutil.RLIMIT_NOFILE, (most, sidecar.rlimit(psutil.RLIMIT_NOFILE)[1]))


def cpu(process: Process) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return times.user + times.system


async def seen(process: Process, data: bytes = b"") -> bytes:
    """What a new client is told before the sidecar closes."""
    client = await Client.open(process.port)
    try:
        if data:
            with contextlib.suppress(ConnectionError):
                await client.send(data)
        return await client.closed()
    finally:
        client.close()


async def test_out_of_descriptors_new_clients_get_503_and_what_runs_goes_on(
    rig,
    clients,
    tmp_path,
    loop_of,
):
    """46: not one descriptor is free -> whoever connects is told 503 and when to come back, whether it has sent its
    request yet or not; a stream that runs is not touched; the log has one line, not one for each; and everybody is
    served again once there are descriptors."""
    rig.provider.on("/works", lambda connection, received: connection.send(OK))
    async with serving(tmp_path, rig.provider.url, **loop_of) as process:
        call, answer = await streaming(rig, clients, process)
        await fill(process, clients)
        before = cpu(process)
        asking = request("GET", "/works")
        told = await asyncio.gather(*(seen(process, asking if number % 2 else b"") for number in range(300)))
        for one in told:
            start, _, body = one.partition(b"\r\n\r\n")
            assert start.startswith(b"HTTP/1.1 503 Service Unavailable\r\n"), one
            assert b"\r\nSlipstream-Error: overloaded\r\n" in start + b"\r\n"
            assert b"\r\nRetry-After: 1\r\n" in start + b"\r\n"
            assert b"\r\nConnection: close" in start
            assert b"LimitNOFILE" in body
        # Plain asyncio would have tried 300,000 times by now.
        assert cpu(process) - before < 5
        await call.send(chunk(b"".join(CHAT.events[1:])), LAST)
        call.done()
        assert (await answer.rest(), answer.end) == (CHAT.whole, "whole")
        limit(process, 1024)
        client = await opened(clients, process)
        assert (await client.whole("GET", "/works")).status == 200
        process.signal()
        assert await process.exited() == 0
        events = Counter(line["event"] for line in process.lines)
        assert events["descriptors_exhausted"] == 1
        assert events["fault"] == 0
        refused = [line for line in process.lines if line.get("error") == "overloaded"]
        assert len(refused) == 300
        assert b"Traceback" not in process.raw
        assert b"out of system resource" not in process.raw


async def test_out_of_descriptors_the_data_folder_works_on(rig, clients, tmp_path):
    """46: nothing can be opened -> answers are stored and found on disk, and jobs are taken and done: what they need is
    open all the time."""

    async def answer(connection, received):
        framing = b"Content-Length: %d" % len(BIG)
        await connection.send(head(b"application/json", framing=framing) + BIG)

    rig.provider.on(CHAT.target, answer)
    async with serving(tmp_path, rig.provider.url, SLIPSTREAM_CACHE__MEMORY="1") as process:
        client = await opened(clients, process)
        assert (await client.whole("POST", CHAT.target, ASKED % 0)).status == 200
        assert (await process.event("request"))["cache"] == "miss"  # it is on disk, and its thread is there
        await fill(process, clients)
        for number in range(1, 6):
            # The upstream's connection is there, and is used again.
            answered = await client.whole("POST", CHAT.target, ASKED % number)
            assert (answered.status, bytes(answered.body)) == (200, BIG)
            await process.event("request", number)
        for number in range(6):
            answered = await client.whole("POST", CHAT.target, ASKED % number)
            assert (answered.status, bytes(answered.body)) == (200, BIG)
            assert (await process.event("request", 6 + number))["cache"] == "hit"
        job = await client.whole("POST", CHAT.target, ASKED % 9, [(b"Prefer", b"respond-async")])
        assert job.status == 202
        assert (await process.event("job"))["status"] == "complete"
        result = await client.whole("GET", f"{job.header('location').decode()}/result")
        assert (result.status, bytes(result.body)) == (200, BIG)
        process.signal()
        assert await process.exited() == 0
        assert not [line for line in process.lines if line["event"] in ("fault", "cache_failing")]


async def test_idle_connections_make_room_for_the_one_that_is_needed(rig, tmp_path, monkeypatch):
    """46: the last descriptors are idle connections to one upstream, and another one is asked -> it is asked. Where
    there are none to give up, the answer is a 503."""
    rig.provider.on("/works", lambda connection, received: connection.send(OK))
    file = tmp_path / "two.toml"
    file.write_text(
        f'[[upstreams]]\nname = "a"\nurl = "{rig.provider.url}"\npaths = ["/works"]\n'
        f'[[upstreams]]\nname = "b"\nurl = "{rig.provider.url}"\npaths = ["/b"]\nstrip = true\n'.replace(
            "127.0.0.1", "localhost", 1
        )
    )
    sidecar = await rig.start(None, file=file)
    upstream = sidecar.service.assembly.client
    client, other = await rig.connect(), await rig.connect()
    assert (await client.whole("GET", "/works")).status == 200
    connect, free = sidecar_client.start_connection, 1

    async def scarce(*given, **more):
        if sum(map(len, upstream._idle.values())) + free > 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return await connect(*given, **more)

    monkeypatch.setattr(sidecar_client, "start_connection", scarce)
    assert (await other.whole("GET", "/b/works")).status == 200
    assert rig.provider.connections == 1
    free = 2
    upstream._drop_idle()
    answer = await other.whole("GET", "/b/works")
    assert (answer.status, answer.header("slipstream-error")) == (503, b"overloaded")
    assert answer.header("retry-after") == b"1"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_whoever_is_refused_for_want_of_a_descriptor_makes_room(rig, clients, tmp_path, loop_of, host):
    """46: clients that keep their connections hold every descriptor, and none is left for an upstream, nor to look up
    its name -> whoever is told so loses its connection, and the next one is served: it recovers by itself."""
    rig.provider.on("/works", lambda connection, received: connection.send(OK))
    async with serving(tmp_path, rig.provider.url.replace("127.0.0.1", host), **loop_of) as process:
        refused, next_one = await opened(clients, process), await opened(clients, process)
        for client in (refused, next_one):
            assert (await client.whole("GET", "/_slipstream/healthz")).status == 200
        await fill(process, clients)
        full = len(used(process))
        answer = await refused.whole("GET", "/works")
        told_to_come_back(answer)
        assert answer.header("slipstream-error") == b"overloaded"
        assert b"LimitNOFILE" in bytes(answer.body)
        assert answer.header("connection") == b"close"
        assert await refused.closed() == b""
        await eventually(lambda: len(used(process)) < full, lambda: "descriptors")
        assert (await next_one.whole("GET", "/works")).status == 200


async def test_idle_connections_make_room_for_a_name_to_be_looked_up(rig, clients, tmp_path, loop_of):
    """46: the last descriptors are idle connections, and the upstream has a name -> looking that up is the first thing
    to lack one, and they are given up for it."""
    rig.provider.on("/works", lambda connection, received: connection.send(OK))
    named = rig.provider.url.replace("127.0.0.1", "localhost")
    file = tmp_path / "two.toml"
    file.write_text(
        f'[[upstreams]]\nname = "a"\nurl = "{rig.provider.url}"\npaths = ["/works"]\n'
        f'[[upstreams]]\nname = "b"\nurl = "{named}"\npaths = ["/b"]\nstrip = true\n'
    )
    async with serving(tmp_path, "", "--config", str(file), **loop_of) as process:
        client = await opened(clients, process)
        assert (await client.whole("GET", "/works")).status == 200
        await fill(process, clients)
        assert (await client.whole("GET", "/b/works")).status == 200


async def test_only_a_few_idle_connections_are_given_up_at_once(rig):
    """46: those that were not used for longest; the others go on saving handshakes."""
    rig.provider.on("/works", lambda connection, received: connection.send(OK))
    sidecar = await rig.start()
    upstream = sidecar.service.assembly.client
    rig.script("/held")
    asking = [await rig.connect() for _ in range(12)]
    for client in asking:
        await client.send(request("GET", "/held"))
        call = await rig.call()
        rig.held = [*getattr(rig, "held", []), call]
    for call in rig.held:
        await call.send(OK)
        call.done()
    for client in asking:
        assert (await client.answer()).status == 200
    (idle,) = upstream._idle.values()
    await eventually(lambda: len(idle) == 12, lambda: len(idle))
    latest = sorted(idle, key=lambda one: one.idle_since)[8:]
    upstream._drop_idle()
    assert list(idle) == latest
    assert (await asking[0].whole("GET", "/works")).status == 200


@contextlib.contextmanager
def nothing_free():
    """This process can open nothing."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_certificates_that_could_not_be_read_are_read_again(tmp_path, monkeypatch):
    """46: the first call by TLS finds no descriptor -> it is refused as that, and not for good: later ones trust whom
    they are to trust. OpenSSL says nothing of a file that it could not open."""
    file = tmp_path / "trusted.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    client = sidecar_client.Client(Timeouts(), Limits())
    with nothing_free(), pytest.raises(UpstreamError) as refused:
        await client._dial(Origin("https", "127.0.0.1", 1))
    assert refused.value.fault.kind == "overloaded"
    assert client._context().cert_store_stats()["x509"] == 1
    assert client._context() is client._context()
    client.close()


async def test_more_clients_than_descriptors_with_everything_on(rig, clients, tmp_path):
    """46: as many streams as a low limit lets in, with jobs, a disk cache and an admin port -> all of these still
    work: what is kept back for them is enough."""
    held = []

    async def hold(connection, received):
        held.append(received)
        await connection.send(head() + chunk(CHAT.events[0]))
        await received.closed.wait()

    rig.provider.on(CHAT.target, hold)
    rig.provider.on("/v1/embeddings", lambda connection, received: connection.send(OK))
    async with serving(tmp_path, rig.provider.url, "--admin-port", "0", descriptors=256) as process:
        admin = int((await process.event("serving"))["admin"].rpartition(":")[2])
        # Those within the limit stream; all others are refused as they connect.
        streams, refused = [], 0
        for _ in range(80):
            client = await opened(clients, process)
            await client.send(
                request("POST", CHAT.target, CHAT.body, [(b"Cache-Control", b"no-store, no-cache")])
            )
            answer = await client.answer()
            if answer.status == 200:
                await answer.until(len(CHAT.events[0]))
                streams.append((client, answer))
            else:
                assert (answer.status, answer.header("retry-after")) == (503, b"1")
                refused += 1
        assert len(streams) == 64 and refused == 16
        # One client makes way for one that submits jobs: each of them has a connection of its own upstream.
        streams.pop()[0].close()
        await eventually(lambda: psutil.Process(process.pid).num_fds() < 256, lambda: "descriptors")
        submitting = await until_in(clients, process)
        for number in range(16):
            body = b'{"model":"m","input":"%d"}' % number
            job = await submitting.whole("POST", "/v1/embeddings", body, [(b"Prefer", b"respond-async")])
            assert job.status == 202
        for number in range(16):
            assert (await process.event("job", number))["status"] == "complete"
        for path in ("/readyz", "/metrics", "/stats"):
            looking = await Client.open(admin)
            clients.append(looking)
            await looking.send(request("GET", path, host=b"127.0.0.1"))
            found = await looking.answer()
            assert found.status == 200, path
        for client, _ in streams:
            client.close()
        await eventually(lambda: all(received.closed.is_set() for received in held), lambda: "upstream calls")
        process.signal()
        assert await process.exited() == 0
        events = Counter(line["event"] for line in process.lines)
        assert events["descriptors_exhausted"] == events["fault"] == events["cache_failing"] == 0


async def until_in(clients, process):
    """A connection that is served: the place of one that was closed is free in a moment."""
    async with asyncio.timeout(GUARD):
        while True:
            client = await opened(clients, process)
            with contextlib.suppress(ClosedError):
                if (await client.whole("GET", "/_slipstream/healthz")).status == 200:
                    return client


# Whoever is refused is told when to come back.


async def overloaded(rig, *, most: int, **keys):
    """A sidecar that is full with as many streams."""
    await rig.start(limits__requests=most, **keys)
    rig.script(CHAT.target)
    for number in range(most):
        client = await rig.connect()
        await client.send(request("POST", CHAT.target, ASKED % number))
        await rig.call()


async def draining(rig) -> asyncio.Task[bool]:
    assembly = rig.sidecar.service.assembly
    task = asyncio.ensure_future(assembly.drain(GUARD))
    await eventually(lambda: assembly.front.draining, lambda: "it serves on")
    return task


def told_to_come_back(answer, status=503):
    assert answer.status == status
    later = answer.header("retry-after")
    assert later is not None
    assert 1 <= int(later) <= 5


async def test_who_is_refused_for_too_many_requests_may_come_back(rig):
    await overloaded(rig, most=2)
    client = await rig.connect()
    for _ in range(2):
        answer = await client.whole("POST", CHAT.target, CHAT.body)
        told_to_come_back(answer)
        assert answer.header("slipstream-error") == b"overloaded"
    assert (await client.whole("GET", "/_slipstream/healthz")).status == 200


async def test_who_is_refused_for_too_many_connections_may_come_back(rig):
    await rig.start(limits__connections=2)
    clients = [await rig.connect() for _ in range(2)]
    for client in clients:
        assert (await client.whole("GET", "/_slipstream/healthz")).status == 200
    third = await rig.connect()
    told_to_come_back(await third.answer())


async def test_who_is_refused_while_it_drains_may_come_back(rig):
    await overloaded(rig, most=5, admin=True)
    port = Port(rig, rig.sidecar)
    client, health = await rig.connect(), await rig.connect()
    await client.whole("GET", "/_slipstream/healthz")
    task = await draining(rig)
    told_to_come_back(await client.whole("POST", CHAT.target, CHAT.body))
    told_to_come_back(await health.whole("GET", "/_slipstream/healthz"))
    for path in ("/healthz", "/readyz"):
        told_to_come_back(await port.ask(path))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_whose_job_is_refused_may_come_back(rig, tmp_path):
    rig.script(CHAT.target)
    await rig.start(folder=tmp_path, jobs__concurrency=1, jobs__queue=1)
    client = await rig.connect()
    later = [(b"Prefer", b"respond-async")]
    assert (await client.whole("POST", CHAT.target, ASKED % 0, later)).status == 202
    call = await rig.call()
    assert (await client.whole("POST", CHAT.target, ASKED % 1, later)).status == 202
    full = await client.whole("POST", CHAT.target, ASKED % 2, later)
    told_to_come_back(full)
    assert full.header("slipstream-error") == b"overloaded"
    await call.send(OK)
    call.done()
    following = await rig.call()
    await following.send(OK)
    following.done()


async def test_who_is_refused_for_jobs_that_cannot_be_had_may_come_back(rig):
    await rig.start()
    client = await rig.connect()
    answer = await client.whole("POST", CHAT.target, CHAT.body, [(b"Prefer", b"respond-async")])
    told_to_come_back(answer)
    assert answer.header("slipstream-error") == b"jobs_unavailable"


async def test_who_finds_the_admin_port_full_may_come_back(rig, monkeypatch):
    monkeypatch.setattr("sidecar.web.admin.server._MOST", 2)
    await rig.start(admin=True)
    port = Port(rig, rig.sidecar)
    for _ in range(2):
        client = await port.open()
        await client.send(request("GET", "/readyz", host=port.host))
        await client.answer()
    third = await port.open()
    told_to_come_back(await third.answer())


# The listener by itself.


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


class Listening:
    """A listener of its own, and sockets in place of the kernel's that fail as they are told."""

    def __init__(self, listener: Listener, port: int, exhausted: list[int]) -> None:
        self.listener, self.port, self.exhausted = listener, port, exhausted


@pytest.fixture
async def listening():
    """`await listening(...)`: see `Listener`."""
    made: list[Listener] = []

    async def start(**more: Any) -> Listening:
        exhausted: list[int] = []
        server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0, start_serving=False)
        given = {"refusal": lambda: b"no room", "exhausted": lambda: exhausted.append(1), **more}
        made.append(Listener(server, Echo, **given))
        await made[-1].start_serving()
        return Listening(made[-1], server.sockets[0].getsockname()[1], exhausted)

    yield start
    for one in made:
        one.close()
        await one.wait_closed()


async def echoed(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"hello")
        return await reader.read(100)
    finally:
        writer.close()


async def test_small_writes_of_those_it_takes_are_not_held_back(listening):
    found = []

    class Looking(Echo):
        def connection_made(self, transport):
            sock = transport.get_extra_info("socket")
            found.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            super().connection_made(transport)

    running = await listening()
    running.listener._factory = Looking
    assert await echoed(running.port) == b"hello"
    assert found == [1]


async def test_a_mistake_of_our_own_in_taking_one_is_told_of(listening):
    """Nobody reads the task that takes a connection."""
    faults = []

    def broken():
        raise ValueError("a mistake")

    running = await listening(on_fault=faults.append)
    running.listener._factory = broken
    assert await echoed(running.port) == b""
    assert [str(fault) for fault in faults] == ["a mistake"]
    assert not running.listener.opening


async def test_what_has_been_taken_when_it_closes_is_served(listening):
    """A connection that was accepted in the moment before -> it is not lost: nobody else has it."""
    running = await listening()
    listener = running.listener
    client = socket.create_connection(("127.0.0.1", running.port))
    with client:
        client.setblocking(False)
        listener._ready(listener._sockets[0])
        listener.close()
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, b"hello")
        async with asyncio.timeout(GUARD):
            assert await loop.sock_recv(client, 100) == b"hello"
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", running.port)).close()


class Failing:
    """A listening socket on which `accept` fails."""

    def __init__(self, real: socket.socket, *errors: int) -> None:
        self.real = real
        self.errors = list(errors)
        self.tries = 0

    def accept(self):
        self.tries += 1
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return self.real.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


async def test_a_connection_that_is_gone_before_it_is_taken_costs_nobody_else_anything(listening):
    running = await listening()
    (real,) = running.listener._sockets
    failing = Failing(real, errno.ECONNABORTED, errno.EPROTO)
    asyncio.get_running_loop().add_reader(real.fileno(), running.listener._ready, failing)
    assert await echoed(running.port) == b"hello"
    assert failing.tries >= 3
    assert not running.exhausted


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENOMEM])
async def test_a_kernel_without_memory_is_asked_again_in_a_while(listening, monkeypatch, number):
    """Not at once, over and over: the loop has other things to do."""
    monkeypatch.setattr("sidecar.web.listen._PAUSE", 0.01)
    running = await listening()
    (real,) = running.listener._sockets
    failing = Failing(real, number)
    running.listener._ready(failing)
    assert failing.tries == 1
    assert running.listener._paused
    assert await echoed(running.port) == b"hello"


async def test_when_the_reserve_is_gone_too_it_waits(listening, monkeypatch):
    """Another thread was quicker with the descriptor that was given up -> it pauses, and goes on by itself."""
    monkeypatch.setattr("sidecar.web.listen._PAUSE", 0.01)
    running = await listening()
    (real,) = running.listener._sockets
    failing = Failing(real, errno.EMFILE, errno.EMFILE)
    running.listener._ready(failing)
    assert failing.tries == 2
    assert running.exhausted == [1]
    assert running.listener._paused
    assert await echoed(running.port) == b"hello"


def test_where_the_loop_tells_of_no_readiness_it_is_asked_for_each_connection(monkeypatch):
    """As on Windows; connections that fail as they are taken are not the end of it."""
    monkeypatch.setattr("sidecar.web.listen._WAITS", True)
    monkeypatch.setattr("sidecar.web.listen._PAUSE", 0.01)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0, start_serving=False)
        listener = Listener(server, Echo, refusal=lambda: b"")
        accept, failures = loop.sock_accept, [errno.ECONNABORTED]

        async def failing(sock):
            if failures:
                raise OSError(failures.pop(), "")
            return await accept(sock)

        monkeypatch.setattr(loop, "sock_accept", failing)
        await listener.start_serving()
        port = server.sockets[0].getsockname()[1]
        assert await asyncio.gather(*(echoed(port) for _ in range(5))) == [b"hello"] * 5
        assert not failures
        listener.close()
        await listener.wait_closed()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        with pytest.raises(OSError):
            await echoed(port)

    asyncio.run(run())


@pytest.mark.parametrize("bound", ["_OPENING", "room"])
async def test_tls_handshakes_that_never_end_keep_nobody_out(listening, monkeypatch, bound):
    """Clients that connect and say nothing where TLS is spoken -> the oldest make room for who comes."""
    monkeypatch.setattr("sidecar.web.listen._ALWAYS", 3 if bound == "room" else 1)
    monkeypatch.setattr("sidecar.web.listen._OPENING", 3 if bound == "_OPENING" else 1000)
    authority, crowded = trustme.CA(), []
    server, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(trusting)
    running = await listening(
        tls=lambda: server,
        room=lambda: 0 if bound == "room" else 1000,
        failed=lambda error: crowded.append(type(error).__name__),
        handshake=GUARD,
    )
    listener, silent = running.listener, []
    for number in range(5):
        silent.append(await asyncio.open_connection("127.0.0.1", running.port))
        expected = (min(number + 1, 3), max(number - 2, 0))
        await eventually(
            lambda expected=expected: (len(listener._opening), len(crowded)) == expected,
            lambda: (len(listener._opening), crowded),
        )
    async with asyncio.timeout(GUARD):
        for reader, _ in silent[:2]:
            assert await reader.read() == b""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", running.port, ssl=trusting, server_hostname="localhost"
        )
        writer.write(b"hello")
        assert await reader.read(100) == b"hello"
    writer.close()
    assert crowded == ["CrowdedOutError"] * 3
    assert len(listener._opening) == 2
    for _, one in silent:
        one.close()
    await eventually(lambda: not listener._opening, lambda: len(listener._opening))


async def test_a_burst_without_tls_loses_nobody(listening, monkeypatch):
    """There are no handshakes, and what is being opened is so for a moment."""
    monkeypatch.setattr("sidecar.web.listen._ALWAYS", 1)
    running = await listening(room=lambda: 0)
    assert await asyncio.gather(*(echoed(running.port) for _ in range(50))) == [b"hello"] * 50
