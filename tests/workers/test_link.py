"""What a worker and its supervisor tell each other, with both ends in a test's hands."""

import asyncio
import sys

import msgspec
import orjson
import pytest

from sidecar.cli.reload import Reload, Reloads
from sidecar.config import load
from sidecar.telemetry.log import Level, make_logger
from sidecar.workers.link import Line, Link, Order, pair
from tests.conftest import Lines

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no Unix sockets")

GUARD = 10.0
ORDER = Order(1, 2, "/run", b"secret", {}, [{"a": 1}], "x.toml", [], [])


class Rig:
    """A worker's end that has its order; what it is told is in `told`, what it says in `said`."""

    def __init__(self):
        mine, theirs = pair()
        self.supervisor, self.link = mine, Link(theirs)
        self.told, self.said = asyncio.Queue(), asyncio.Queue()
        mine.sendall(msgspec.json.encode(ORDER) + b"\n")
        assert self.link.order() == ORDER

    def listen(self):
        self.link.listen(lambda: self.told.put_nowait("stop"), lambda: self.told.put_nowait("reload"))

    def close(self):
        asyncio.get_running_loop().remove_reader(self.link._socket)
        self.link._socket.close()
        self.supervisor.close()


@pytest.fixture
async def rig():
    made = Rig()
    yield made
    made.close()


async def heard(rig):
    async with asyncio.timeout(GUARD):
        return await rig.told.get()


async def test_a_reload_while_it_starts_is_made_up_for_once_it_serves(rig):
    rig.supervisor.sendall(b'{"say":"reload","tree":{"a":2}}\n{"say":"stop"}\n')
    rig.listen()
    assert await heard(rig) == "stop"  # which came after it
    assert rig.told.empty()
    rig.link.ready("")
    assert await heard(rig) == "reload"
    assert rig.link.tree == {"a": 2}
    rig.link.ready("")
    rig.supervisor.sendall(b'{"say":"reload","tree":null}\n')
    assert await heard(rig) == "reload"
    assert rig.told.empty()  # once each
    assert rig.link.tree is None


async def test_what_comes_in_pieces_is_put_together(rig):
    rig.listen()
    rig.link.ready("")
    for byte in b'{"say":"reload","tree":{"a":3}}\n':
        rig.supervisor.sendall(bytes([byte]))
        await asyncio.sleep(0)
    assert await heard(rig) == "reload"
    assert rig.link.tree == {"a": 3}


async def test_without_its_supervisor_it_stops(rig):
    rig.listen()
    rig.supervisor.close()
    assert await heard(rig) == "stop"
    assert rig.link.orphaned


async def test_the_last_words_of_a_worker_are_heard(rig):
    heard = []
    line = Line(rig.supervisor, lambda kind, text: heard.append((kind, text)))
    rig.link.stopped(clean=False)
    line.close()
    assert heard == [("stopped", "cut")]


class Told:
    """A `Notifier` that keeps what it is told."""

    beat = None

    def __init__(self):
        self.all = asyncio.Queue()

    def reloading(self):
        self.all.put_nowait("reloading")

    def ready(self, status):
        self.all.put_nowait(status)


async def test_a_reload_is_over_when_the_others_have_made_it_too():
    told, begun, go = Told(), asyncio.Event(), asyncio.Event()
    config, lines = load(environment={}).config, Lines()
    reloads = Reloads(config, lambda _config: lambda: None, pytest.fail, make_logger(lines, "json", "info"))

    async def others():
        begun.set()
        await go.wait()

    running = asyncio.create_task(
        reloads.run(Reload(lambda: config, Level("info")), told, lambda: "serves", others)
    )
    try:
        async with asyncio.timeout(GUARD):
            reloads.ask()
            await begun.wait()
            assert (told.all.get_nowait(), told.all.empty()) == ("reloading", True)
            assert orjson.loads(lines.raw[0])["event"] == "reloaded"
            go.set()
            assert await told.all.get() == "serves"
    finally:
        running.cancel()
        await asyncio.wait({running})
