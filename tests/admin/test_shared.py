"""What is made once for all who ask: of the real parts in a real thread, and on the admin port."""

import asyncio
import gc
import threading
from contextlib import contextmanager

import pytest

from sidecar.web.admin.shared import MEMORY, Shared
from tests.faults.conftest import eventually
from tests.faults.wire import GUARD


class Making:
    """What is prepared and made, and a thread that can be held up."""

    def __init__(self):
        self.prepared = []
        self.made = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, name):
        def prepare():
            self.prepared.append(name)

            def make():
                assert self.go.wait(GUARD)
                self.made.append((name, threading.current_thread().name))
                return f"{name} {len(self.made)}"

            return make

        return prepare


@pytest.fixture
def making():
    return Making()


@pytest.fixture
def faults():
    return []


@pytest.fixture
def shared(making, faults):
    shared = Shared(faults.append)
    shared.memory = 0.0
    yield shared
    making.go.set()
    shared.close()
    assert faults == []


@contextmanager
def held(making):
    """Nothing gets done in the thread."""
    making.go.clear()
    yield
    making.go.set()


async def test_all_who_ask_meanwhile_get_the_same(shared, making):
    with held(making):
        asking = [asyncio.ensure_future(shared.get(("a",), making("a"))) for _ in range(30)]
        await asyncio.sleep(0)
    assert await asyncio.gather(*asking) == ["a 1"] * 30
    assert making.prepared == ["a"]
    assert making.made == [("a", "slipstream-figures")]
    # Without a memory the next one is made anew.
    assert await shared.get(("a",), making("a")) == "a 2"


async def test_one_at_a_time_and_what_is_told_is_as_it_is_when_its_turn_comes(shared, making):
    with held(making):
        asking = [shared.ask((name,), making(name)) for name in "abcab"]
        await asyncio.sleep(0)
        assert making.prepared == ["a"]
    assert await asyncio.gather(*asking) == ["a 1", "b 2", "c 3", "a 1", "b 2"]
    assert making.prepared == ["a", "b", "c"]


async def test_whoever_leaves_takes_it_from_nobody(shared, making):
    with held(making):
        leaves, stays = [asyncio.ensure_future(shared.get(("a",), making("a"))) for _ in range(2)]
        alone = asyncio.ensure_future(shared.get(("b",), making("b")))
        await asyncio.sleep(0)
        leaves.cancel()
        alone.cancel()
        await asyncio.wait({leaves, alone})
    assert await stays == "a 1"
    assert await shared.get(("c",), making("c")) == "c 3"


async def test_it_is_remembered_until_its_time_is_over(shared, making):
    shared.memory = 3600.0
    assert await shared.get(("a",), making("a")) == await shared.get(("a",), making("a")) == "a 1"
    assert await shared.get(("b",), making("b")) == "b 2"
    assert await shared.ask(("c",), making("c"), remembered=False) == "c 3"
    assert await shared.ask(("c",), making("c"), remembered=False) == "c 4"
    assert making.prepared == ["a", "b", "c", "c"]


async def test_it_is_forgotten_by_itself(shared, making):
    shared.memory = 0.01
    await shared.get(("a",), making("a"))
    await eventually(lambda: not shared._parts, lambda: "it is held for ever")
    assert await shared.get(("a",), making("a")) == "a 2"


@pytest.mark.parametrize("where", ["loop", "thread"])
async def test_a_failure_is_told_to_all_and_not_remembered(shared, making, where):
    shared.memory = 3600.0

    def on_loop():
        raise ZeroDivisionError

    def in_thread():
        return on_loop

    failing = on_loop if where == "loop" else in_thread
    with held(making):
        before = shared.ask(("a",), making("a"))
        asking = [asyncio.ensure_future(shared.get(("b",), failing)) for _ in range(3)]
        await asyncio.sleep(0)
    raised = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(error) for error in raised] == [ZeroDivisionError] * 3
    assert await before == "a 1"
    assert await shared.get(("b",), making("b")) == "b 2"


async def test_a_failure_that_nobody_hears_is_none_of_the_loops(shared, making):
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
    with held(making):
        before = shared.ask(("a",), making("a"))
        alone = asyncio.ensure_future(shared.get(("b",), lambda: 1 // 0))
        await asyncio.sleep(0)
        alone.cancel()
        await asyncio.wait({alone})
    await before
    await eventually(lambda: not shared._parts, lambda: "it is not over")
    gc.collect()
    assert told == []


# On the admin port.


async def counted(port, monkeypatch, name):
    board, calls = port.sidecar.service.assembly.board, []
    real = getattr(board, name)
    monkeypatch.setattr(board, name, lambda *given: calls.append(given) or real(*given))
    return calls


@pytest.mark.parametrize(("path", "name"), [("/stats", "prepare"), ("/metrics", "metrics")])
async def test_more_clients_take_no_more(start, monkeypatch, path, name):
    port = await start()
    assert port.admin._shared.memory == MEMORY == 1.0
    port.admin._shared.memory = 3600.0
    calls = await counted(port, monkeypatch, name)
    first = await port.ask(path)
    for answer in await asyncio.gather(*[port.ask(path) for _ in range(20)]):
        assert (answer.status, bytes(answer.body)) == (200, bytes(first.body))
    assert len(calls) == 1


async def test_what_clients_write_in_accept_takes_no_more(start, monkeypatch):
    port = await start()
    port.admin._shared.memory = 3600.0
    calls = await counted(port, monkeypatch, "metrics")
    for number in range(20):
        for kind in (
            "application/openmetrics-text;version=1.0.0",
            f"application/openmetrics-text;version={number + 2}.0",
        ):
            answer = await port.ask("/metrics", fields=[(b"Accept", f"{kind}, x/{number}".encode())])
            assert answer.status == 200
    assert len(calls) == 2
    assert len(port.admin._shared._parts) == 2


@pytest.mark.parametrize("path", ["/stats", "/metrics"])
async def test_a_request_shows_when_nobody_has_asked_just_before(start, path):
    port = await start()
    port.admin._shared.memory = 0.0
    seen = [bytes((await port.ask(path)).body)]
    for number in range(2):
        await port.chat(seed=number)
        await port.rig.line(number)
        seen.append(bytes((await port.ask(path)).body))
    wanted = b'"requests":%d,' if path == "/stats" else b'slipstream_requests_total{cache="miss"'
    if path == "/stats":
        assert [body.count(wanted % number) > 0 for number, body in enumerate(seen)] == [True] * 3
    else:
        assert [wanted in body for body in seen] == [False, True, True]
        assert seen[1] != seen[2]


async def test_a_client_that_leaves_while_it_is_made(start, monkeypatch):
    port = await start()
    board, go = port.sidecar.service.assembly.board, threading.Event()
    prepare, begun = board.prepare, []

    def slow(*given):
        begun.append(given)
        prepared = prepare(*given)
        return lambda: go.wait(GUARD) and prepared()

    monkeypatch.setattr(board, "prepare", slow)
    gone = await port.open()
    await gone.send(b"GET /stats HTTP/1.1\r\nHost: %b\r\n\r\n" % port.host)
    await eventually(lambda: begun, lambda: "it is not asked")
    stays = asyncio.ensure_future(port.ask("/stats"))
    await eventually(lambda: len(port.admin._server.connections) == 2, lambda: "one")
    gone.reset()
    await eventually(lambda: len(port.admin._server.connections) == 1, lambda: "it stays")
    go.set()
    assert (await stays).status == 200
    assert len(begun) == 1


async def test_its_thread_ends_with_the_port(start):
    port = await start()
    await port.get("/stats")
    threads = [each for each in threading.enumerate() if each.name == "slipstream-figures"]
    assert threads
    await port.admin.stop()
    await eventually(lambda: not any(each.is_alive() for each in threads), lambda: threads)
    assert not port.admin._shared._parts
