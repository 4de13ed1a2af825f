"""Sockets that a service manager passes on: which are taken, and that a restart refuses nobody."""

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from sidecar.cli.activation import inherited, placed
from sidecar.config import Config
from sidecar.core.values import ConfigError
from sidecar.tables import Server
from sidecar.web.leave import leave
from tests.cli.conftest import UPSTREAM
from tests.cli.manager import activated, passing
from tests.faults.test_process import Process
from tests.faults.wire import LAST, Client, chunk, head, request

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there is no such thing")

SERVE = [sys.executable, "-m", "sidecar", "serve", "--admin-port", "0", "--log-format", "json"]


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as made:
        yield made


@contextlib.contextmanager
def passed(*sockets):
    """What a process finds to which those were passed on, from some descriptor on; they stay ours."""
    numbers = [os.dup(each.fileno()) for each in sockets]
    # A row of its own, high above what is in use.
    first = 600
    for at, number in enumerate(numbers):
        os.dup2(number, first + at)
        os.close(number)
    try:
        yield (
            first,
            {"LISTEN_FDS": str(len(sockets)), "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "a:b"},
        )
    finally:
        for at in range(len(sockets)):
            with contextlib.suppress(OSError):
                os.close(first + at)


def test_sockets_are_taken_once_and_for_this_process_only(listener):
    with passed(listener) as (first, variables):
        (found,) = inherited(variables, first)
        with found:
            assert found.getsockname() == listener.getsockname()
            assert (found.fileno(), found.get_inheritable()) == (first, False)
            assert variables == {}
            assert inherited(variables, first) == []


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "x", "LISTEN_PID": str(os.getpid())},
        {"LISTEN_FDS": "0", "LISTEN_PID": str(os.getpid())},
    ],
)
def test_what_is_for_nobody_or_another_process_is_left_alone(variables):
    assert inherited(variables) == []
    assert variables == {}


def not_listening():
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM)


def datagrams():
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def unix():
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.bind("")  # a name of the kernel's choice
    made.listen()
    return made


@pytest.mark.parametrize(
    ("make", "said"),
    [(not_listening, "Accept=no"), (datagrams, "Accept=no"), (unix, "such as 127.0.0.1:8400")],
)
def test_what_cannot_be_served_is_named(make, said):
    with make() as made, passed(made) as (first, variables), pytest.raises(ConfigError) as error:
        inherited(variables, first)
    assert said in str(error.value)
    assert f"descriptor {first}" in str(error.value)


def test_a_descriptor_that_is_no_socket_is_named():
    with Path(os.devnull).open() as file, pytest.raises(ConfigError, match="is no socket"):
        inherited({"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}, file.fileno())


def test_the_configuration_has_the_address_that_is_most_open(listener):
    host, port = listener.getsockname()
    assert placed(Config(), []) == Config()
    server = placed(Config(), [listener]).server
    assert (server.host, server.port) == (host, port)
    with socket.create_server(("0.0.0.0", 0)) as public:
        server = placed(Config(server=Server(allow_public=True)), [listener, public]).server
        assert (server.host, server.port) == public.getsockname()
        # As if the configuration had said so.
        with pytest.raises(ConfigError, match=r"LISTEN_FDS: server.host = '0.0.0.0': .*allow_public"):
            placed(Config(), [listener, public])


# A real process.


def get(port, path="/_slipstream/healthz"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def serving_line(running):
    while (line := json.loads(running.stderr.readline()))["event"] != "serving":
        pass
    return line


@pytest.mark.usefixtures("clean")
def test_the_passed_sockets_are_served_and_no_other(listener):
    """Both of them; and the configured port is nobody's."""
    with socket.create_server(("127.0.0.1", 0)) as second, socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [each.getsockname()[1] for each in (listener, second)]
        configured = ["--port", str(taken.getsockname()[1])]
        with activated([listener, second], [*SERVE, "--upstream", UPSTREAM, *configured]) as running:
            assert serving_line(running)["url"] == f"http://127.0.0.1:{ports[0]}"
            assert [get(port) for port in ports] == [200, 200]
            running.send_signal(signal.SIGTERM)
            running.communicate()
            assert running.returncode == 0


def room_of(listening):
    """Connections that may wait on a listening socket: `tcpi_sacked` of TCP_INFO."""
    return struct.unpack_from("I", listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64), 28)[0]


@pytest.mark.usefixtures("clean")
@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel")
def test_as_many_may_wait_as_the_manager_has_said(listener):
    before = room_of(listener)
    if before <= 1024:
        pytest.skip("net.core.somaxconn is too low here")
    with activated([listener], [*SERVE, "--upstream", UPSTREAM]) as running:
        port = int(serving_line(running)["url"].rpartition(":")[2])
        assert (get(port), room_of(listener)) == (200, before)
        running.send_signal(signal.SIGTERM)
        running.communicate()


@pytest.mark.usefixtures("clean")
@pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="there is no systemd-socket-activate"
)
def test_as_systemd_itself_does_it(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    starter = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", *SERVE, "--upstream", UPSTREAM]
    # The service starts with the first connection, which waits for it.
    with subprocess.Popen(starter, stderr=subprocess.PIPE, text=True) as running:
        try:
            while "Listening on" not in running.stderr.readline():
                pass
            assert get(port) == 200
            running.send_signal(signal.SIGTERM)
            running.communicate()
            assert running.returncode == 0
        finally:
            running.kill()


@pytest.mark.usefixtures("clean")
def test_a_socket_that_cannot_be_served_is_one_line_and_exit_2():
    with unix() as made, activated([made], [*SERVE, "--upstream", UPSTREAM]) as running:
        out, err = running.communicate()
    assert (running.returncode, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("slipstream: LISTEN_FDS: descriptor 3 is no TCP socket")


@contextlib.asynccontextmanager
async def started(listener, upstream):
    """A service whose manager holds that socket, once it serves."""
    with passing([listener], [*SERVE, "--upstream", upstream]) as (argv, kept):
        pipe = asyncio.subprocess.PIPE
        process = Process(await asyncio.create_subprocess_exec(*argv, stderr=pipe, pass_fds=kept))
    try:
        process.port = int((await process.event("serving"))["url"].rpartition(":")[2])
        yield process
    finally:
        if process.process.returncode is None:
            process.process.kill()
        await process.exited()
        process.process._transport.close()


async def stopped(process):
    process.signal()
    assert await process.exited(60) == 0
    assert (await process.event("stopped"))["unfinished"] is False


ASK = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
ALONE = (b"Connection", b"close"), (b"Cache-Control", b"no-store")


async def served(client):
    """It asks, and gets its answer, however long a process takes to start."""
    await client.send(request("POST", "/v1/chat/completions", ASK, ALONE))
    await answered(client)


async def answered(client):
    answer = await client.reader.read()
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    assert orjson.loads(answer.partition(b"\r\n\r\n")[2])["object"] == "chat.completion"


@pytest.mark.usefixtures("clean")
async def test_a_restart_refuses_nobody(listener, provider):
    """Clients connect and ask all the time, one connection for each request. All of them get their answer,
    whichever process it comes from."""
    port, asked, over = listener.getsockname()[1], 0, False
    turn = asyncio.Event()

    async def ask():
        nonlocal asked
        while not over:
            client = await Client.open(port)
            await served(client)
            client.close()
            asked += 1
            turn.set()

    async def more(count):
        goal = asked + count
        while asked < goal:
            turn.clear()
            await asyncio.wait({asyncio.ensure_future(turn.wait()), *asking}, return_when="FIRST_COMPLETED")
            assert not any(task.done() for task in asking), [
                task.exception() for task in asking if task.done()
            ]

    asking = []
    for number in range(3):
        async with started(listener, provider.url) as process:
            asking = asking or [asyncio.create_task(ask()) for _ in range(8)]
            await more(50)
            if number == 2:
                over = True
                await asyncio.gather(*asking)
            await stopped(process)


async def test_what_has_come_when_the_rest_is_left_is_served(provider, start_sidecar, monkeypatch):
    """However little has been done with it by then."""
    monkeypatch.setattr("sidecar.web.leave._LOOK", 0)
    sidecar = await start_sidecar(provider.url)
    service, front = sidecar.service, sidecar.service.assembly.front
    clients = [await Client.open(sidecar.port) for _ in range(3)]
    # All of them have been taken, and one of them has asked.
    assert (await clients[2].whole("GET", "/_slipstream/healthz")).status == 200

    async def left():
        await leave(service._listeners, service._server, front, 30)
        front.drain()

    leaving = asyncio.create_task(left())
    await asyncio.sleep(0)  # that has begun
    assert front.leaving
    for client in clients[:2]:
        answer = await client.whole("POST", "/v1/chat/completions", ASK)
        assert (answer.status, answer.end) == (200, "whole")
        assert answer.header("connection") == b"close"
        assert await client.closed() == b""
    assert await clients[2].closed() == b""
    await leaving
    for client in clients:
        client.close()


@pytest.mark.usefixtures("clean")
async def test_what_is_under_way_ends_where_it_began_and_the_new_waits(listener, provider):
    """A stream that runs, a client that has connected and asks later, one that keeps its connection, and one
    that comes while nobody serves."""
    going, begun = asyncio.Event(), asyncio.Event()

    async def stream(connection, _received):
        await connection.send(head() + chunk(b"data: one\n\n"))
        begun.set()
        await going.wait()
        await connection.send(chunk(b"data: two\n\n") + LAST)

    provider.on("/stream", stream)
    port = listener.getsockname()[1]
    clients = []

    async def connected():
        clients.append(await Client.open(port))
        return clients[-1]

    async with started(listener, provider.url) as process:
        kept = await connected()
        assert (await kept.whole("GET", "/_slipstream/healthz")).status == 200
        reading = await connected()
        await reading.send(request("GET", "/stream"))
        await begun.wait()
        answer = await reading.answer()
        late = await connected()
        # Connections are taken in the order in which they come: that one is.
        assert (await (await connected()).whole("GET", "/_slipstream/healthz")).status == 200
        process.signal()
        await process.event("draining")
        await served(late)
        await kept.closed()
        waiting = await connected()
        await waiting.send(request("POST", "/v1/chat/completions", ASK, ALONE))
        going.set()
        await answer.rest()
        assert (bytes(answer.body), answer.end) == (b"data: one\n\ndata: two\n\n", "whole")
        assert await process.exited(60) == 0
    async with started(listener, provider.url) as process:
        await answered(waiting)
        await stopped(process)
    for client in clients:
        client.close()
