"""`/events`: ticks as the product's own framer and an independent parser read them, and who is told what."""

import asyncio
import json
import socket
import threading

import httpx
import httpx_sse
import pytest

from sidecar.core.sse import SSEFramer, data_of, name_of
from sidecar.web.admin import feed
from tests.admin.conftest import problem
from tests.faults.conftest import eventually
from tests.faults.wire import CHAT, GUARD, LAST, chunk, head

BOARD = {"version", "time", "uptime_s", "active", "windows", "budgets", "cache", "semantic"}


class Listener:
    """An open stream, read by the product's own framer."""

    def __init__(self, answer):
        self.answer = answer
        self._framer = SSEFramer()
        self._ready = []

    async def tick(self):
        """The next one."""
        while not self._ready:
            data = await self.answer.more()
            assert data, self.answer.end
            self._ready += self._framer.feed(data)
        block = self._ready.pop(0).block
        assert name_of(block) == b"tick"
        return json.loads(data_of(block))

    async def until(self, condition):
        """The first tick that is so."""
        async with asyncio.timeout(GUARD):
            while not condition(tick := await self.tick()):
                pass
        return tick


async def listen(port, window=""):
    answer = await port.head("/events" + window)
    assert (answer.status, answer.header("content-type")) == (200, b"text/event-stream")
    assert answer.header("cache-control") == b"no-store"
    return Listener(answer)


async def test_the_first_tick_comes_at_once(start):
    port = await start(beat=3600)
    await port.chat()
    line = await port.rig.line()
    listener = await listen(port)
    tick = await listener.tick()
    assert set(tick) == {"stats", "active", "recent"}
    assert set(tick["stats"]) >= BOARD
    assert set(tick["stats"]["windows"]) == {"5m"}
    assert "series" not in tick["stats"]["windows"]["5m"]
    assert [each["request_id"] for each in tick["recent"]] == [line["request_id"]]
    # A later one does not have to wait either.
    assert (await (await listen(port, "?window=1m")).tick())["recent"] == tick["recent"]


@pytest.mark.parametrize("window", ["1m", "5m", "60m"])
async def test_figures_are_those_of_the_window_that_was_asked_for(start, window):
    port = await start()
    await port.chat()
    await port.rig.line()
    tick = await (await listen(port, f"?window={window}")).tick()
    told = (await port.get("/stats"))["windows"][window]
    told.pop("series")
    assert set(tick["stats"]["windows"]) == {window}
    found = tick["stats"]["windows"][window]
    for each in (told, found):  # these go on
        each.pop("seconds")
        for figures in (each["total"], *each["model"].values(), *each["upstream"].values()):
            figures.pop("per_second")
        for name in ("feature", "cache"):
            for figures in each[name].values():
                figures.pop("per_second")
    assert found == told


@pytest.mark.parametrize(
    "query", ["?window=2m", "?window=", "?window", "?window=5m&window=1m", "?windows=5m"]
)
async def test_windows_that_are_none(start, query):
    port = await start()
    problem(await port.ask("/events" + query), 400, "bad_request")


async def test_each_request_is_told_of_once_to_each(start):
    port = await start()
    early = await listen(port)
    assert (await early.tick())["recent"] == []
    await port.chat()
    first = await port.rig.line(0)
    seen = await early.until(lambda tick: tick["recent"])
    assert [line["request_id"] for line in seen["recent"]] == [first["request_id"]]
    late = await listen(port, "?window=60m")
    assert (await late.tick())["recent"] == seen["recent"]
    await port.chat(seed=1)
    await port.chat(seed=2)
    third = await port.rig.line(2)
    for listener in (early, late):
        ids = []
        while third["request_id"] not in ids:
            ids += [line["request_id"] for line in reversed((await listener.tick())["recent"])]
        assert ids == [(await port.rig.line(number))["request_id"] for number in (1, 2)]


async def test_requests_as_they_run(start):
    port = await start()
    listener = await listen(port)
    assert (await listener.tick())["active"] == []
    port.rig.script(CHAT.target)
    client = await port.rig.connect()
    await client.send(CHAT.sent)
    call = await port.rig.call()
    tick = await listener.until(lambda tick: tick["active"])
    assert tick["stats"]["active"]["requests"] == 1
    await call.send(head(), chunk(CHAT.events[0]))
    await listener.until(lambda tick: [row["phase"] for row in tick["active"]] == ["stream"])
    await call.send(chunk(b"".join(CHAT.events[1:])), LAST)
    call.done()
    answer = await client.answer("POST")
    assert await answer.rest() == CHAT.whole
    tick = await listener.until(lambda tick: tick["recent"])
    assert tick["active"] == []


async def test_an_independent_parser_reads_it(start):
    port = await start()
    async with (
        httpx.AsyncClient() as client,
        httpx_sse.aconnect_sse(client, "GET", f"{port.url}/events") as source,
    ):
        found = []
        async for event in source.aiter_sse():
            found.append((event.event, set(event.json())))
            if len(found) == 3:
                break
    assert found == [("tick", {"stats", "active", "recent"})] * 3
    await eventually(lambda: not port.admin._feed._listeners, lambda: "a listener")


async def test_a_tick_is_made_once_for_all_listeners(start, monkeypatch):
    port = await start(beat=3600)
    board, asked = port.sidecar.service.assembly.board, []
    prepare = board.prepare
    monkeypatch.setattr(board, "prepare", lambda window: asked.append(window) or prepare(window))
    listeners = [await listen(port, f"?window={window}") for window in ("1m", "5m", "5m", "1m", "5m")]
    for listener in listeners:
        await listener.tick()
    assert sorted(asked) == ["1m", "5m"]
    port.admin._feed._tick()
    for listener in listeners:
        await listener.tick()
    assert sorted(asked) == ["1m", "1m", "5m", "5m"]


async def test_figures_are_made_in_a_thread_of_the_ports_own_and_never_told_twice(start, monkeypatch):
    port = await start(beat=3600)
    board, threads = port.sidecar.service.assembly.board, []
    prepare = board.prepare

    def noted(window):
        prepared = prepare(window)
        return lambda: threads.append(threading.current_thread().name) or prepared()

    monkeypatch.setattr(board, "prepare", noted)
    port.admin._shared.memory = 3600.0
    listener = await listen(port)
    await listener.tick()
    port.admin._feed._tick()
    await listener.tick()
    assert threads == ["slipstream-figures"] * 2


async def test_more_than_the_most_are_refused_until_one_leaves(start):
    port = await start()
    listeners = [await port.head("/events") for _ in range(feed.MOST)]
    assert {answer.status for answer in listeners} == {200}
    answer = await port.ask("/events")
    problem(answer, 503, "overloaded")
    assert answer.header("retry-after")
    assert await port.get("/healthz")  # others are not in their way
    port.rig.clients[0].reset()
    await eventually(lambda: not port.admin._feed.full, lambda: "a listener that has gone")
    assert (await port.head("/events")).status == 200


async def test_the_clock_stands_still_while_nobody_listens(start):
    port = await start()
    assert port.admin._feed._timer is None
    listener = await listen(port)
    await listener.tick()
    assert port.admin._feed._timer is not None
    port.rig.clients[-1].reset()
    await eventually(lambda: port.admin._feed._timer is None, lambda: "the clock")
    assert (await (await listen(port)).tick())["stats"]


async def slow_listener(port):
    """Takes the head of the answer, and nothing more; the kernel holds little for it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", port.port))
    await loop.sock_sendall(sock, b"GET /events HTTP/1.1\r\nHost: %b\r\n\r\n" % port.host)
    return sock


async def test_who_does_not_read_is_not_buffered_for_and_is_cut_off(start):
    port = await start(beat=0.001, timeouts__client=0.3)
    with await slow_listener(port) as sock:
        server = port.admin._server
        await eventually(
            lambda: any(each.writing_paused for each in server.connections), lambda: "it is read"
        )
        (protocol,) = [each for each in server.connections if each.writing_paused]
        held = protocol.transport.get_write_buffer_size()
        others = await listen(port)
        for _ in range(50):  # the feed goes on for those who do read, and nothing is added for who does not
            await others.tick()
        assert protocol.transport is None or protocol.transport.get_write_buffer_size() <= held
        await eventually(lambda: len(server.connections) == 1, lambda: "it is waited for")
        loop = asyncio.get_running_loop()
        with pytest.raises(ConnectionResetError):
            while await loop.sock_recv(sock, 1 << 16):
                pass
    await eventually(lambda: port.admin._feed._listeners == 1, lambda: "a listener")


async def test_an_http_1_0_client_gets_it_too(start):
    port = await start()
    client = await port.open()
    await client.send(b"GET /events HTTP/1.0\r\nHost: %b\r\n\r\n" % port.host)
    answer = await client.answer()
    assert (answer.status, answer.chunked) == (200, False)
    await answer.until_has(b"event: tick\ndata: {", 2)


async def test_a_board_that_fails_is_a_fault_of_ours(start, monkeypatch):
    port = await start()
    board = port.sidecar.service.assembly.board
    listener = await listen(port)
    await listener.tick()
    with monkeypatch.context() as broken:
        broken.setattr(board, "since", lambda mark, most: 1 // 0)
        await listener.answer.rest()
        assert listener.answer.end == "cut"
        late = await port.ask("/events")
        assert (late.status, late.end, bytes(late.body)) == (200, "cut", b"")
    assert [line["kind"] for line in port.sidecar.lines.faults] == ["ZeroDivisionError"] * 2
    port.sidecar.lines.all.clear()
