"""sidecar.cli.notify: what a service manager hears, over a real socket, of a real process."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import closing
from pathlib import Path

import pytest

from sidecar.cli.notify import Nobody, Notify, keep_posted
from tests.cli.conftest import UPSTREAM, process
from tests.cli.manager import Manager, listening

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there are no Unix sockets")


@pytest.fixture
def manager(tmp_path):
    with listening(tmp_path) as found:
        yield found


def notify(**variables):
    return closing(Notify(variables))


def test_each_message_is_what_sd_notify_sends(manager):
    with notify(NOTIFY_SOCKET=manager.address) as told:
        told.ready("serving")
        assert manager.heard() == {"READY": "1", "STATUS": "serving"}
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        told.reloading()
        heard = manager.heard()
        assert heard.keys() == {"RELOADING", "MONOTONIC_USEC"}
        assert before <= int(heard["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        told.stopping("draining")
        assert manager.heard() == {"STOPPING": "1", "STATUS": "draining"}
        told.status("3 requests")
        assert manager.heard() == {"STATUS": "3 requests"}
        told.alive()
        assert manager.heard() == {"WATCHDOG": "1"}
    assert manager.quiet(0)


def test_a_name_that_is_in_no_folder():
    name = f"@slipstream-{uuid.uuid4()}"
    manager = Manager(name)
    with closing(manager), notify(NOTIFY_SOCKET=name) as told:
        told.ready("here")
        assert manager.heard()["STATUS"] == "here"


def test_a_status_is_one_line(manager):
    with notify(NOTIFY_SOCKET=manager.address) as told:
        told.status("a\nREADY=1\r\x00b\u2028c é")
        assert manager.heard() == {"STATUS": "a READY=1  b c é"}


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1", "/nowhere/at/all"])
def test_where_nobody_listens_nothing_happens(address):
    with notify(NOTIFY_SOCKET=address) as told:
        for _ in range(3):
            told.ready("x")
            told.reloading()
            told.stopping("x")
            told.status("x")
            told.alive()


def test_a_manager_that_goes_away_is_nobody(manager):
    with notify(NOTIFY_SOCKET=manager.address) as told:
        told.alive()
        manager.close()
        told.alive()
        told.stopping("x")


def test_nothing_is_left_in_the_environment():
    variables = {"NOTIFY_SOCKET": "", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "", "ELSE": "1"}
    with closing(Notify(variables)):
        assert variables == {"ELSE": "1"}


@pytest.mark.parametrize(
    ("variables", "beat"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 1.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_how_often_a_sign_of_life_is_expected(variables, beat):
    with notify(**variables) as told:
        assert told.beat == beat


def test_what_must_not_be_lost_waits_for_room(manager):
    """A manager that is busy takes no more; telling it must not hold up the event loop."""
    with (
        notify(NOTIFY_SOCKET=manager.address) as told,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
    ):
        other.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                other.sendto(b"X=1", manager.address)
        told.alive()
        told.reloading()
        told.status("lost")
        told.ready("serves")
        assert [message for message in manager.all() if "X" not in message] == []
        told.status("next")
        heard = manager.all()
        assert [set(message) for message in heard] == [
            {"RELOADING", "MONOTONIC_USEC"},
            {"READY", "STATUS"},
            {"STATUS"},
        ]
        assert heard[-1] == {"STATUS": "next"}


class Kept(Nobody):
    """Keeps what it is told, and how often a life sign comes."""

    def __init__(self, beat):
        self.beat = beat
        self.said, self.signs = [], 0
        self.changed = asyncio.Event()

    def status(self, status):
        self.said.append(status)

    def alive(self):
        self.signs += 1
        self.changed.set()


async def test_signs_of_life_go_on_and_a_status_is_told_when_it_changes(monkeypatch):
    monkeypatch.setattr("sidecar.cli.notify.STATUS", 0.0)
    kept, statuses = Kept(0.001), iter(["a", "a", "b"])
    posting = asyncio.create_task(keep_posted(kept, lambda: next(statuses, "c")))
    while kept.signs < 5:
        kept.changed.clear()
        await kept.changed.wait()
    posting.cancel()
    assert kept.said[:3] == ["a", "b", "c"]
    assert kept.said.count("c") == 1


# A real process.

SERVE = ["serve", "--port", "0", "--admin-port", "0", "--upstream", UPSTREAM, "--log-format", "json"]


def environment(manager, **more):
    return {**os.environ, "NOTIFY_SOCKET": manager.address, **more}


@pytest.mark.usefixtures("clean")
def test_a_service_tells_what_becomes_of_it(manager, tmp_path):
    with process(*SERVE, env=environment(manager)) as running:
        ready = manager.heard()
        assert ready["READY"] == "1"
        url = re.fullmatch(
            r"serving on (http://127\.0\.0\.1:\d+): 0 requests, 0 upstream calls", ready["STATUS"]
        )
        assert url is not None
        # It serves by now.
        with socket.create_connection(("127.0.0.1", int(url[1].rpartition(":")[2])), 30) as client:
            client.sendall(b"GET /_slipstream/healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert client.recv(64).startswith(b"HTTP/1.1 200 ")
        running.send_signal(signal.SIGHUP)
        assert "RELOADING" in manager.until("RELOADING")
        assert manager.until("READY")["STATUS"].startswith("serving on")
        running.send_signal(signal.SIGTERM)
        assert manager.until("STOPPING")["STATUS"] == "draining for at most 30 s"
        running.communicate()
        assert running.returncode == 0
    assert not [message for message in manager.all() if "READY" in message]


@pytest.mark.usefixtures("clean")
def test_a_service_that_cannot_start_is_never_ready(manager):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with process("serve", "--port", port, "--upstream", UPSTREAM, env=environment(manager)) as running:
            running.communicate()
            assert running.returncode == 2
    assert manager.all() == []


PROGRAM = """
import asyncio, signal, sys
from sidecar.cli import main, serve

announce, path = serve.announce, sys.argv.pop(1)

def hang():
    with open(path) as told:  # until somebody writes there
        told.read()

def announced(*given, **named):
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, hang)
    announce(*given, **named)

serve.announce = announced
main.main()
"""


@pytest.fixture
def hanging(manager, tmp_path, clean):
    """A service whose loop is blocked by SIGUSR1, until something is written to the file; and that file."""
    fifo, program = tmp_path / "fifo", tmp_path / "program.py"
    os.mkfifo(fifo)
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(fifo), *SERVE]
    variables = environment(manager, WATCHDOG_USEC="150000")
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=variables, **pipes) as running:
        try:
            manager.until("READY")
            yield running, fifo
        finally:
            running.kill()


def test_a_loop_that_is_blocked_gives_no_sign_of_life(manager, hanging):
    """By a thread there would be signs on and on."""
    running, fifo = hanging
    for _ in range(3):
        manager.until("WATCHDOG")
    running.send_signal(signal.SIGUSR1)
    with fifo.open("w") as release:  # opened at both ends: it is blocked now
        manager.all()
        assert manager.quiet(1.0)
        release.write("go on")
    manager.until("WATCHDOG")
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate()
    assert running.returncode == 0
    assert json.loads(err.splitlines()[-1])["event"] == "stopped"


def until_it_reads(process):
    """Wait until it is blocked in a read. While it runs, CPython's frames may be half made, and whoever goes
    through them then (faulthandler) crashes now and then."""
    place = Path(f"/proc/{process.pid}")
    if not place.is_dir():
        return  # not Linux
    end = time.monotonic() + 60
    while time.monotonic() < end:
        where, state = (
            (place / "wchan").read_text(),
            (place / "stat").read_text().rpartition(")")[2].split()[0],
        )
        if "pipe_read" in where or (where in ("", "0") and state == "S"):  # not every kernel tells where
            return
        time.sleep(0.005)
    pytest.fail("it never read")


def test_a_watchdog_that_ends_it_leaves_word_of_where_it_was(hanging):
    running, fifo = hanging
    running.send_signal(signal.SIGUSR1)
    with fifo.open("w"):
        until_it_reads(running)
        running.send_signal(signal.SIGABRT)
        _, err = running.communicate()
    assert running.returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in err
    assert "in hang" in err
