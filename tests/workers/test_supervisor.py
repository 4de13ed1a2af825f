"""The supervisor with small workers: whatever goes wrong, a worker that has ended is begun again."""

import asyncio
import fcntl
import signal
import socket
import sys

import pytest

from sidecar.serving.shares import Shares
from sidecar.telemetry.log import make_logger
from sidecar.web.handover import Place
from sidecar.workers import ground, supervisor
from sidecar.workers.link import Order
from sidecar.workers.supervisor import Supervisor, WorkerError
from tests.conftest import Lines

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers share a port, as POSIX has it")

SERVES = """
import socket, sys
line = socket.socket(fileno=int(sys.argv[1]))
while not line.recv(65536).endswith(b"\\n"): pass
line.sendall(b'{"say":"ready","text":""}\\n')
while (said := line.recv(65536)):
    if b"reload" in said and b"silent" not in said:
        line.sendall(b'{"say":"reloading","text":""}\\n{"say":"ready","text":""}\\n')
    if b"stop" in said:
        line.sendall(b'{"say":"stopped","text":"%s"}\\n' % sys.argv[2].encode())
        break
"""
FAILS = """
import socket, sys
line = socket.socket(fileno=int(sys.argv[1]))
line.sendall(b'{"say":"failed","text":"cache.ttl: no"}\\n')
sys.exit(2)
"""


class Rig:
    def __init__(self, code=SERVES, count=2, *, cut=""):
        self.lines = Lines()
        self.faults = []
        log = make_logger(self.lines, "json", "info")
        order = Order(0, count, "", b"s", {}, [None], "", [], [])
        self.supervisor = Supervisor(
            lambda number: [sys.executable, "-c", code, str(number), cut],
            lambda _number: order,
            count,
            log,
            silence=60.0,
            on_fault=self.faults.append,
        )

    def told(self, event):
        return [line for line in self.lines.all if line["event"] == event]

    async def again(self, number, times=1):
        """Until that worker has been begun so many times again."""
        async with asyncio.timeout(20):
            while [line["worker"] for line in self.told("worker_started")].count(number) <= times:
                await self.lines.changed()

    async def end(self):
        self.supervisor.stop()
        return await self.supervisor.over()


async def test_all_serve_and_end_well():
    rig = Rig()
    await rig.supervisor.start()
    assert [line["worker"] for line in rig.told("worker_started")] == [0, 1]
    assert await rig.end()
    assert not rig.told("worker_ended")


async def test_a_reload_is_over_when_all_have_taken_it():
    rig = Rig()
    await rig.supervisor.start()
    rig.supervisor.reload({"cache": {}})
    await rig.supervisor.reloaded(20)
    assert all(worker.reloaded.is_set() for worker in rig.supervisor.workers)
    rig.supervisor.reload({"silent": {}})
    await rig.supervisor.reloaded(0.05)  # not waited for without end
    assert not any(worker.reloaded.is_set() for worker in rig.supervisor.workers)
    assert len(rig.told("worker_started")) == 2
    assert await rig.end()


async def test_one_that_has_cut_requests_has_not_ended_well():
    rig = Rig(cut="cut")
    await rig.supervisor.start()
    assert not await rig.end()


async def test_a_mistake_of_ours_does_not_keep_a_worker_down():
    rig = Rig()
    await rig.supervisor.start()

    def ended(_number):
        raise KeyError("merging")

    rig.supervisor.ended = ended
    rig.supervisor.workers[1].process.send_signal(signal.SIGKILL)
    await rig.again(1)
    assert [type(fault) for fault in rig.faults] == [KeyError]
    rig.supervisor.ended = lambda _number: None
    assert await rig.end()


async def test_a_process_that_cannot_be_begun_is_tried_more_and_more_rarely(monkeypatch):
    rig = Rig(count=1)
    await rig.supervisor.start()
    rig.supervisor.workers[0].begun -= 1000  # it has run for long
    tries = []

    def pair():
        tries.append(1)
        if len(tries) < 4:
            raise OSError(24, "Too many open files")
        return socket.socketpair()

    monkeypatch.setattr(supervisor, "pair", pair)
    rig.supervisor.workers[0].process.send_signal(signal.SIGKILL)
    await rig.again(0)
    assert [line["again_in_s"] for line in rig.told("worker_ended")] == [0.25, 0.5, 1.0, 2.0]
    assert rig.supervisor.restarts == 1
    assert await rig.end()


async def test_one_that_cannot_be_configured_says_why():
    rig = Rig(FAILS)
    with pytest.raises(WorkerError, match=r"cache\.ttl: no") as raised:
        await rig.supervisor.start()
    assert raised.value.bad_configuration


async def test_a_program_that_is_not_there():
    rig = Rig()
    rig.supervisor._command = lambda _number: ["/nowhere/python"]
    with pytest.raises(WorkerError):
        await rig.supervisor.start()


def test_what_a_worker_counted_ends_with_it(tmp_path):
    places = [Place(tmp_path, number, 2) for number in range(2)]
    first, second = (place.shares(["a", "b"]) for place in places)
    assert isinstance(first, Shares)
    first.set_running("a", 3)
    first.set_running("b", 1)
    second.set_running("a", 2)
    places[0].release()
    assert (second.running("a"), second.running("b")) == (2, 0)
    places[1].release()
    assert second.running("a") == 0


def test_folders_of_those_that_were_killed_are_taken_away(tmp_path):
    killed, alive, other = (tmp_path / f"slipstream-{name}" for name in ("killed", "alive", "other"))
    for each in (killed, alive):
        each.mkdir()
        (each / "alive").touch()
        (each / "worker-0.sock").touch()
    other.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "alive").touch()
    (tmp_path / "slipstream-link").symlink_to(elsewhere)
    with (alive / "alive").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with ground.folder({"RUNTIME_DIRECTORY": str(tmp_path)}) as made:
            assert made.parent == tmp_path
            assert made.stat().st_mode & 0o777 == 0o700
            with ground.folder({"RUNTIME_DIRECTORY": str(tmp_path)}) as second:
                assert made.is_dir()
                assert second != made
        assert not made.exists()
    assert not killed.exists()
    assert alive.is_dir()
    assert other.is_dir()
    assert (elsewhere / "alive").exists()


def test_sockets_fit_into_an_address_wherever_the_folder_is(tmp_path):
    deep = tmp_path / ("d" * 80)
    deep.mkdir()
    with (
        ground.folder({"RUNTIME_DIRECTORY": str(deep)}) as made,
        socket.socket(socket.AF_UNIX) as listening,
    ):
        listening.bind(str(Place(made, 63, 64).figures))


def test_an_address_that_another_program_shares_is_taken():
    with ground.bound(socket.AF_INET, ("127.0.0.1", 0), shared=True) as listening:
        listening.listen()
        with pytest.raises(OSError, match="in use"):
            ground.reserve("127.0.0.1", listening.getsockname()[1])


def test_all_addresses_of_a_name_have_the_same_port():
    made = ground.reserve("localhost", 0)
    try:
        assert len({each.getsockname()[1] for each in made}) == 1
        for each in made:
            with ground.bound(each.family, each.getsockname(), shared=True) as listening:
                listening.listen()
    finally:
        for each in made:
            each.close()
