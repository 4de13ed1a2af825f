"""The admin port of a supervisor: figures of several workers together, whatever becomes of one of them."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import msgspec
import orjson
import pytest

from sidecar.serving.snapshot import Wanted, decode, encode
from sidecar.web.admin import feed, query
from sidecar.web.admin.entries import Entries
from sidecar.web.admin.overview import COUNTERS, LINES
from sidecar.web.admin.private import Private
from sidecar.web.admin.server import Admin
from sidecar.workers import figures
from sidecar.workers.asking import AskError, ask
from sidecar.workers.figures import Gathered
from sidecar.workers.forward import Forwarded
from tests.admin.conftest import ASK, BEARER, DIGEST, KEY, Port, problem
from tests.admin.test_feed import listen
from tests.faults.conftest import Rig, eventually
from tests.faults.wire import CHAT, GUARD, Client
from tests.telemetry.lines_rig import TEXT, parsed, samples


class Fleet(Port):
    """Workers, each with its own private socket, and the admin port of all of them."""

    def __init__(self, rig: Rig, folder: Path) -> None:
        self.rig = rig
        self.folder = folder
        self.sockets: dict[int, Path] = {}
        self.privates: dict[int, Private] = {}
        self.sidecars: dict[int, Any] = {}
        self.faults: list[BaseException] = []
        self.stubs: list[asyncio.Server] = []
        self._numbers = itertools.count()

    async def listen(self) -> None:
        """Open the admin port."""
        service = next(iter(self.sidecars.values())).service
        self.restarts = 0
        self.gathered = Gathered(
            service._config, lambda: self.sockets, self.faults.append, lambda: self.restarts
        )
        self.gathered.memory = 0.0
        cache = Forwarded(lambda: self.sockets, lambda: self.gathered.shared)
        self.admin = Admin(service._config, self.gathered, cache, service.assembly._log, self.faults.append)
        self.admin._shared.memory = 0.0
        await self.admin.start(moves=False)
        self.url = self.admin.url
        self.port = int(self.url.rpartition(":")[2])
        self.host = self.url.removeprefix("http://").encode()

    async def begin(self, number: int, **keys: Any) -> Any:
        """A worker's process."""
        sidecar = self.sidecars[number] = await self.rig.start(**keys)
        service = sidecar.service
        made = service.assembly
        entries = Entries(made.cache, service._config, keys.get("folder"), made.on_fault)
        made.settle = entries.settled
        private = self.privates[number] = Private(
            service._config, made.board, entries, made._log, made.on_fault
        )
        path = self.folder / f"figures-{next(self._numbers)}.sock"
        await private.start(path)
        self.sockets[number] = path
        return sidecar

    async def end(self, number: int) -> None:
        """It has ended, and the supervisor has noticed."""
        await self.privates.pop(number).stop()
        del self.sockets[number]
        self.gathered.ended(number)

    async def stub(self, number: int, handle: Callable[..., Awaitable[None]]) -> None:
        """In the place of a worker, something else."""
        path = self.folder / f"stub-{next(self._numbers)}.sock"

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                await handle(reader, writer)
            writer.close()

        self.stubs.append(await asyncio.start_unix_server(connected, path))
        self.sockets[number] = path

    async def through(self, number: int, count: int = 1, **more: Any) -> list[dict[str, Any]]:
        """Requests through one worker; their lines."""
        sidecar = self.sidecars[number]
        before = len(sidecar.lines.requests)
        for _ in range(count):
            client = await Client.open(sidecar.port)
            self.rig.clients.append(client)
            answer = await client.whole("POST", CHAT.target, orjson.dumps(ASK | more), [KEY])
            assert answer.status == 200
        async with asyncio.timeout(GUARD):
            return [await sidecar.lines.request(before + at) for at in range(count)]

    async def series(self) -> dict[Any, float]:
        """What a scrape finds."""
        answer = await self.ask("/metrics", fields=[(b"Accept", TEXT.encode())])
        assert answer.status == 200
        return samples(parsed(lambda: (bytes(answer.body), TEXT)))

    async def requests(self) -> float:
        """As the counter has them."""
        found = await self.series()
        return sum(value for (name, _), value in found.items() if name == "slipstream_requests_total")

    async def stop(self) -> None:
        await self.admin.stop()
        await self.gathered.stop()
        for private in self.privates.values():
            await private.stop()
        for server in self.stubs:
            server.close()
            await server.wait_closed()


Start = Callable[..., Awaitable[Fleet]]


@pytest.fixture
async def fleet(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """`await fleet(2, ...)`: so many workers; `beat`: seconds between two events of the feed."""
    made: list[Fleet] = []

    async def begin(workers: int, *, beat: float = 0.02, **keys: Any) -> Fleet:
        monkeypatch.setattr(feed, "BEAT", beat)
        monkeypatch.setattr(figures, "_PATIENCE", GUARD)
        made.append(Fleet(rig, tmp_path))
        for number in range(workers):
            await made[-1].begin(number, **keys)
        await made[-1].listen()
        return made[-1]

    yield begin
    for one in made:
        await one.stop()
        assert not one.faults


# Together.


async def test_stats_and_metrics_are_those_of_all(fleet):
    port = await fleet(3)
    for number, count in ((0, 3), (1, 2), (2, 4)):
        await port.through(number, count)
    stats = await port.get("/stats")
    assert stats["windows"]["1m"]["total"]["requests"] == 9
    assert stats["windows"]["60m"]["total"]["ttft_ms"]["count"] == 0  # they do not stream
    assert stats["windows"]["5m"]["model"]["m"]["total_ms"]["count"] == 9
    assert stats["workers"] == {"running": 3, "restarts": 0}
    assert await port.requests() == 9
    found = await port.series()
    assert found[("slipstream_workers", ())] == 3
    assert found[("slipstream_ready", ())] == 1
    version = [labels for name, labels in found if name == "slipstream_info"]
    assert len(version) == 1
    durations = [
        value for (name, _), value in found.items() if name == "slipstream_request_duration_seconds_count"
    ]
    assert sum(durations) == 9


async def test_requests_and_the_pieces_of_one(fleet):
    port = await fleet(2)
    lines = [*await port.through(0, 2), *await port.through(1, 2)]
    told = await port.get("/requests")
    names = [line["request_id"] for line in told["recent"]]
    assert sorted(names) == sorted(line["request_id"] for line in lines)
    times = [line["timestamp"] for line in told["recent"]]
    assert times == sorted(times, reverse=True)
    for line in lines:
        found = await port.get("/requests/" + line["request_id"])
        assert found["line"]["request_id"] == line["request_id"]
        assert found["pieces"]
    answer = await port.ask("/requests/nobodys")
    problem(answer, 404, "not_found")


async def test_what_runs_and_what_failed(fleet):
    port = await fleet(2)
    port.rig.script(CHAT.target)
    clients, calls = [], []
    for number in (1, 0):
        clients.append(await Client.open(port.sidecars[number].port))
        await clients[-1].send(CHAT.sent)
        calls.append(await port.rig.call())
    port.rig.clients += clients
    told = await port.get("/requests")
    assert [row["phase"] for row in told["active"]] == ["upstream"] * 2
    ages = [row["age_ms"] for row in told["active"]]
    assert ages == sorted(ages, reverse=True)
    assert (await port.get("/stats"))["active"]["requests"] == 2
    for call in calls:
        await call.send(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
        call.done()
    for client in clients:
        assert (await client.answer("POST")).status == 500
    for number in (0, 1):
        async with asyncio.timeout(GUARD):
            await port.sidecars[number].lines.request()
    told = await port.get("/requests")
    assert told["active"] == []
    assert [line["status"] for line in told["errors"]] == [500, 500]


async def test_the_feed_tells_of_all(fleet):
    port = await fleet(2)
    listener = await listen(port, "?window=1m")
    assert (await listener.tick())["recent"] == []
    first = await port.through(1)
    tick = await listener.until(lambda tick: tick["recent"])
    assert [line["request_id"] for line in tick["recent"]] == [first[0]["request_id"]]
    second = await port.through(0)
    tick = await listener.until(lambda tick: tick["recent"])
    assert [line["request_id"] for line in tick["recent"]] == [second[0]["request_id"]]
    tick = await listener.until(lambda tick: tick["stats"]["windows"]["1m"]["total"]["requests"] == 2)
    assert set(tick["stats"]["windows"]) == {"1m"}


async def test_each_line_is_told_once_whoever_asks_at_once(fleet):
    port = await fleet(2)
    listener = await listen(port)
    heard: list[str] = []
    for _ in range(5):
        lines = [*await port.through(0), *await port.through(1)]
        await asyncio.gather(*[port.get("/requests") for _ in range(4)])
        wanted = {line["request_id"] for line in lines}
        async with asyncio.timeout(GUARD):
            while not wanted <= set(heard):
                heard += [line["request_id"] for line in (await listener.tick())["recent"]]
    assert len(heard) == len(set(heard)) == 10


async def test_health(fleet):
    port = await fleet(2)
    assert await port.get("/healthz") == {"status": "ok"}
    told = await port.get("/readyz")
    assert told["ready"] is True
    assert told["checks"]["worker-0"] == told["checks"]["worker-1"] == {"ready": True, "why": None}
    # One that drains does not stop the others; when all do, it is over.
    port.sidecars[1].service.assembly.front.draining = True
    told = await port.get("/readyz")
    assert told["ready"] is True
    assert told["checks"]["worker-1"] == {"ready": False, "why": "it drains, and will stop"}
    port.sidecars[0].service.assembly.front.draining = True
    answer = await port.ask("/readyz")
    assert answer.status == 503
    assert json.loads((await port.ask("/healthz")).body)["why"] == "worker 0: it drains, and will stop"


async def test_components_are_ready_when_they_are_in_all(fleet):
    port = await fleet(2)
    boards = [port.sidecars[number].service.assembly.board for number in (0, 1)]
    for board in boards:
        board.memory_only, board.no_jobs = None, None
    assert {"cache", "jobs"} <= (await port.get("/readyz"))["checks"].keys()
    boards[1].memory_only = boards[1].no_jobs = "planted"
    checks = (await port.get("/readyz"))["checks"]
    assert checks["cache"] == {"ready": False, "why": "worker 1: planted"}
    assert checks["jobs"]["ready"]  # the first worker keeps them
    boards[0].memory_only = boards[0].no_jobs = "planted"
    checks = (await port.get("/readyz"))["checks"]
    assert checks["cache"] == checks["jobs"] == {"ready": False, "why": "planted"}


async def test_nothing_is_ready_before_every_worker_has_been(fleet):
    port = await fleet(1)
    port.sockets[1] = port.folder / "not-yet.sock"
    told = json.loads((await port.ask("/readyz")).body)
    assert told["ready"] is False
    assert told["checks"]["proxy"]["why"].startswith("worker 1: it does not answer: it takes no connection")
    await port.begin(1)
    assert (await port.get("/readyz"))["ready"] is True
    # It has served: that it is begun again is nothing to stop for.
    await port.end(1)
    port.sockets[1] = port.folder / "not-yet.sock"
    assert (await port.get("/readyz"))["ready"] is True


async def test_no_worker_at_all(fleet):
    port = await fleet(1)
    await port.through(0)
    await port.get("/stats")
    await port.end(0)
    assert json.loads((await port.ask("/healthz")).body)["why"] == "no worker runs"
    assert (await port.get("/stats"))["windows"]["60m"]["total"]["requests"] == 0
    assert (await port.series())[("slipstream_ready", ())] == 0
    answer = await port.ask("/cache")
    assert "no worker runs" in problem(answer, 503, "store_failed")


# The stored answers.


async def test_cache_is_asked_of_a_worker(fleet, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    port = await fleet(2, folder=folder, jobs=False, cache__ttl=3600, admin__token_sha256=DIGEST)
    await port.through(0)
    await port.through(1, seed=2)
    items: list[Any] = []
    async with asyncio.timeout(GUARD):
        while len(items) < 2:  # they are stored after the clients have them
            items = (await port.get("/cache?limit=10"))["items"]
    assert len(items) == 2
    answer = await port.ask("/cache?model=m", "DELETE")
    problem(answer, 401, "token_required")
    answer = await port.ask("/cache?colour=red")
    problem(answer, 400, "bad_request")
    assert await port.delete("/cache?all=1") == (200, {"removed": 2})
    assert (await port.get("/cache"))["entries"] == 0
    answer = await port.ask("/cache", "PUT", [BEARER])
    problem(answer, 405, "method_not_allowed")
    told = [line["event"] for line in port.sidecars[0].lines.all]
    assert "cache_purged" in told


@pytest.mark.parametrize("model", ["你好", "a+b", "a b", "100%", "a&all=1", "a#b", "a/b?c"])
async def test_filters_reach_the_worker_as_they_were_meant(fleet, model):
    port = await fleet(1, cache__ttl=3600, admin__token_sha256=DIGEST)
    await port.through(0, model=model)
    await port.through(0, model="another")
    for escaped in (quote(model, safe=""), quote_plus(model)):
        assert [item["model"] for item in (await port.get(f"/cache?model={escaped}"))["items"]] == [model]
    assert await port.delete(f"/cache?model={quote(model, safe='')}") == (200, {"removed": 1})
    assert [item["model"] for item in (await port.get("/cache"))["items"]] == ["another"]


async def test_a_fragment_is_no_way_to_say_less(fleet):
    port = await fleet(1, cache__ttl=3600, admin__token_sha256=DIGEST)
    await port.through(0)
    assert await port.delete("/cache?model=m#x") == (200, {"removed": 0})
    client = await port.open()
    await client.send(
        b"DELETE /cache?model=m\xff HTTP/1.1\r\nHost: %b\r\n%b: %b\r\n\r\n" % (port.host, *BEARER)
    )
    answer = await client.answer("DELETE")
    await answer.rest()
    problem(answer, 400, "bad_request")
    assert len((await port.get("/cache"))["items"]) == 1


async def test_answers_that_are_in_memory_are_purged_in_all(fleet):
    port = await fleet(2, cache__ttl=3600, admin__token_sha256=DIGEST)
    await port.through(0)
    await port.through(1)
    await port.get("/readyz")
    assert await port.delete("/cache?model=m") == (200, {"removed": 2})
    assert await port.delete("/cache?model=m") == (200, {"removed": 0})


async def test_the_next_worker_answers_when_the_first_is_gone(fleet):
    port = await fleet(2, cache__ttl=3600)
    await port.privates[0].stop()
    assert (await port.get("/cache"))["mode"]
    del port.privates[0]


# Workers that end.


async def test_counters_never_go_down(fleet):
    port = await fleet(2)
    seen: list[dict[Any, float]] = []

    async def look() -> None:
        seen.append(await port.series())

    await look()
    for round_ in range(3):
        await port.through(0, 2)
        await port.through(1, 3)
        await look()
        await port.end(1)
        await look()
        await port.begin(1)
        port.restarts += 1
        await look()
        assert await port.requests() == 5 * (round_ + 1)
    counters = {key for one in seen for key in one if key[0].endswith(("_total", "_count", "_sum"))}
    for key in counters:
        values = [one.get(key, 0.0) for one in seen]
        assert values == sorted(values), key
    assert seen[-1][("slipstream_worker_restarts_total", ())] == 3
    assert {one[("slipstream_workers", ())] for one in seen} == {1, 2}


async def test_what_one_had_told_stays_when_it_ends(fleet):
    port = await fleet(2)
    (line,) = await port.through(1)
    await port.through(0)
    await port.get("/requests")
    await port.series()
    await port.end(1)
    assert (await port.get("/requests/" + line["request_id"]))["line"]["model"] == "m"
    assert len((await port.get("/requests"))["recent"]) == 2
    assert await port.requests() == 2
    stats = await port.get("/stats")
    assert stats["workers"] == {"running": 1, "restarts": 0}
    assert stats["active"]["requests"] == 0
    # What is no count goes with it.
    assert stats["windows"]["60m"]["total"]["requests"] == 1


async def test_an_end_that_nobody_told_of(fleet):
    """By the next answer: another process is in its place."""
    port = await fleet(1)
    await port.through(0, 2)
    assert await port.requests() == 2
    old = port.privates.pop(0)
    await port.begin(0)
    await port.through(0)
    assert await port.requests() == 3
    assert len((await port.get("/requests"))["recent"]) == 1
    await old.stop()


async def test_an_answer_that_comes_after_the_end_counts_nothing(fleet):
    """It would be counted twice."""
    port = await fleet(1)
    await port.through(0)
    assert await port.requests() == 1
    going, gate = asyncio.Event(), asyncio.Event()
    told = encode(port.sidecars[0].service.assembly.board.snapshot(Wanted(counters=True))())

    async def late(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        going.set()
        await gate.wait()
        writer.write(_answer(told))

    real = port.sockets[0]
    await port.stub(0, late)
    asked = asyncio.ensure_future(port.requests())
    await going.wait()
    port.gathered.ended(0)
    gate.set()
    assert await asked == 1
    del port.sockets[0]
    assert await port.requests() == 1
    assert real != port.folder


# Workers that misbehave.


def _answer(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


async def _hang(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()


def says(data: bytes) -> Callable[..., Awaitable[None]]:
    async def say(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return say


GARBAGE = {
    "no HTTP": (b"\x00\xff" * 100, "no answer"),
    "a head that never ends": (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000, "no answer"),
    "half a body": (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", "no answer"),
    "nothing": (b"", "no answer"),
    "a refusal": (_answer(b"", b"500 Internal Server Error"), "status 500"),
    "elsewhere": (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "302"),
    "no snapshot": (_answer(b"\x93\x01\x02\x03"), "no snapshot"),
    "not even msgpack": (_answer(b"\xc1"), "no snapshot"),
    "another version's": (_answer(msgspec.msgpack.encode({"facts": {"began": 1.0}})), "no snapshot"),
    "deeply nested": (_answer(b"\x91" * 100_000), "no snapshot"),
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_one_that_answers_garbage(fleet, kind):
    port = await fleet(1)
    await port.through(0)
    said, why = GARBAGE[kind]
    await port.stub(1, says(said))
    assert await port.requests() == 1
    told = json.loads((await port.ask("/readyz")).body)
    assert told["checks"]["worker-0"]["ready"]
    assert not told["checks"]["worker-1"]["ready"]
    assert why in told["checks"]["worker-1"]["why"]


async def test_one_that_answers_without_end(fleet, monkeypatch):
    monkeypatch.setattr(figures, "_LARGEST", 1 << 20)
    port = await fleet(1)
    sent = 0

    async def pour(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(1 << 18))
            await writer.drain()
            sent += 1 << 18

    await port.stub(1, pour)
    told = json.loads((await port.ask("/readyz")).body)
    assert "more than 1048576 bytes" in told["checks"]["worker-1"]["why"]
    assert sent < 16 << 20


async def test_one_that_hangs_is_shown_as_it_was(fleet, monkeypatch):
    port = await fleet(2)
    await port.through(0)
    await port.through(1, 2)
    assert await port.requests() == 3
    await port.get("/stats")
    monkeypatch.setattr(figures, "_PATIENCE", 0.2)
    await port.stub(1, _hang)
    assert await port.requests() == 3
    assert (await port.get("/stats"))["windows"]["1m"]["total"]["requests"] == 3
    told = await port.get("/readyz")
    assert told["ready"] is True
    assert "has not answered within" in told["checks"]["worker-1"]["why"]
    # Others count on.
    await port.through(0)
    async with asyncio.timeout(GUARD):
        while await port.requests() != 4:
            pass


async def test_the_feed_goes_on_while_one_hangs(fleet, monkeypatch):
    port = await fleet(1)
    monkeypatch.setattr(figures, "_PATIENCE", 0.2)
    await port.stub(1, _hang)
    listener = await listen(port)
    for _ in range(2):
        (line,) = await port.through(0)
        tick = await listener.until(lambda tick: tick["recent"])
        assert [each["request_id"] for each in tick["recent"]] == [line["request_id"]]


async def test_one_that_has_hung_is_waited_for_less(fleet, monkeypatch):
    waits: list[float] = []

    async def noted(path: Path, target: str, timeout: float, most: int) -> Any:  # noqa: ASYNC109
        waits.append(timeout)
        raise AskError("planted", reached=True)

    port = await fleet(1)
    monkeypatch.setattr(figures, "ask", noted)
    monkeypatch.setattr(figures, "_PATIENCE", 1.0)
    for _ in range(3):
        await port.ask("/healthz")
    port.gathered._beat()
    await eventually(lambda: len(waits) == 4, lambda: waits)
    assert waits == [1.0, 0.1, 0.1, 1.0]


async def test_one_whose_folder_is_gone(fleet):
    port = await fleet(1)
    await port.through(0)
    port.sockets[1] = Path("/nowhere/figures-1.sock")
    assert await port.requests() == 1
    port.sockets[2] = port.folder  # no socket at all
    assert await port.requests() == 1


async def test_a_cache_that_is_answered_with_garbage(fleet):
    port = await fleet(1, admin__token_sha256=DIGEST)
    await port.stub(0, says(b"\x00"))
    problem(await port.ask("/cache"), 503, "store_failed")
    detail = problem(await port.ask("/cache?all=1", "DELETE", [BEARER]), 503, "store_failed")
    assert detail == "worker 0: what it says is no answer: ClientResponseError"


# How often, and how much.


async def test_many_who_ask_at_once_are_one(fleet, monkeypatch):
    port = await fleet(1)
    board = port.sidecars[0].service.assembly.board
    port.gathered.memory = port.admin._shared.memory = 3600.0
    asked: list[Wanted] = []
    real = board.snapshot
    monkeypatch.setattr(board, "snapshot", lambda wanted: asked.append(wanted) or real(wanted))
    paths = ["/metrics", "/stats", "/requests", "/healthz", "/readyz"]
    for answer in await asyncio.gather(*[port.ask(path) for path in paths * 8]):
        assert answer.status == 200
    assert len(asked) <= len(paths)
    for path in paths:
        await port.ask(path)
    assert len(asked) <= len(paths)


async def test_it_asks_by_itself(fleet, monkeypatch):
    monkeypatch.setattr(figures, "PERIOD", 0.01)
    port = await fleet(2)
    port.gathered.start()
    await port.through(0)
    await port.through(1, 2)
    known = port.gathered._known

    def counted() -> float:
        series = [one.counted.counters["slipstream_requests_total"] for one in known.values() if one.counted]
        return sum(sum(each.values()) for each in series)

    await eventually(lambda: counted() == 3, counted)
    await port.end(1)
    await eventually(lambda: counted() == 1, counted)
    assert await port.requests() == 3


async def test_whoever_leaves_takes_it_from_nobody(fleet):
    port = await fleet(1)
    going, gate = asyncio.Event(), asyncio.Event()

    async def slow(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        going.set()
        await gate.wait()

    await port.stub(1, slow)
    gone = asyncio.ensure_future(port.gathered.refresh(COUNTERS))
    stays = asyncio.ensure_future(port.gathered.refresh(COUNTERS, LINES))
    await going.wait()
    gone.cancel()
    await asyncio.wait({gone})
    gate.set()
    async with asyncio.timeout(GUARD):
        await stays
    assert port.gathered._known[0].counted is not None


async def test_it_stops_while_it_asks(fleet):
    port = await fleet(1)
    await port.stub(1, _hang)
    waits = asyncio.ensure_future(port.gathered.refresh(COUNTERS))
    await eventually(lambda: port.gathered._flights, lambda: "it does not ask")
    async with asyncio.timeout(GUARD):
        await port.gathered.stop()
        await waits


# The private socket.


async def private(port: Fleet, target: str, method: str = "GET") -> Any:
    return await ask(port.sockets[0], target, GUARD, 1 << 24, method=method)


async def test_a_snapshot_has_what_is_wanted(fleet):
    port = await fleet(1)
    await port.through(0, 2)
    snapshot = decode((await private(port, "/snapshot")).body)
    assert (snapshot.counted, snapshot.windows, snapshot.recent) == (None, {}, [])
    assert (snapshot.facts.taken, snapshot.facts.checks["proxy"].ready) == (2, True)
    wanted = Wanted(counters=True, windows=("1m", "60m"), active=5, since=(1, 0))
    snapshot = decode((await private(port, f"/snapshot?{wanted.query}")).body)
    assert snapshot.counted is not None and snapshot.counted.counters["slipstream_requests_total"]
    assert "slipstream_ready" not in snapshot.counted.gauges
    assert set(snapshot.windows) == {"1m", "60m"}
    assert len(snapshot.recent) == 1
    assert snapshot.process["process_resident_memory_bytes"] > 0


@pytest.mark.parametrize(
    ("target", "method", "status"),
    [
        ("/", "GET", 404),
        ("/stats", "GET", 404),
        ("/snapshot", "DELETE", 405),
        ("/snapshot", "HEAD", 200),
        ("/cache", "PUT", 405),
        ("/cache", "DELETE", 400),
        ("/cache", "HEAD", 200),
        ("/snapshot?windows=2m", "GET", 400),
        ("/snapshot?since=1", "GET", 400),
        ("/snapshot?since=1,2,3", "GET", 400),
        ("/snapshot?since=-1,0", "GET", 400),
        ("/snapshot?active=x", "GET", 400),
        ("/snapshot?active=" + "9" * 5000, "GET", 400),
        ("/snapshot?colour=red", "GET", 400),
        ("/snapshot?active=99999999", "GET", 200),
    ],
)
async def test_what_it_is_asked_is_checked(fleet, target, method, status):
    port = await fleet(1)
    assert (await private(port, target, method)).status == status


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(),
        Wanted(True),
        Wanted(False, ("5m",)),
        Wanted(True, ("1m", "60m"), 50, (7, 3)),
        Wanted(since=(0, 0)),
    ],
)
async def test_a_wish_survives_its_url(wanted):
    assert query.snapshot(wanted.query) == wanted


async def test_it_takes_the_place_of_a_socket_that_was_left(fleet):
    port = await fleet(1)
    path = port.sockets[0]
    await port.privates.pop(0).stop()
    assert not path.exists()
    left = await asyncio.start_unix_server(lambda _reader, _writer: None, path)
    left.close()
    await left.wait_closed()
    made = port.sidecars[0].service.assembly
    config = port.sidecars[0].service._config
    entries = Entries(made.cache, config, None, made.on_fault)
    again = Private(config, made.board, entries, made._log, made.on_fault)
    await again.start(path)
    assert (await private(port, "/snapshot")).status == 200
    await again.stop()


async def test_a_snapshot_of_lies_can_be_sent(fleet):
    """A provider may call any number a number of tokens, and sums of such fit nowhere."""
    port = await fleet(1)
    board = port.sidecars[0].service.assembly.board
    board._meter._saved["saved_input_tokens"] = 1 << 70
    board._meter.metrics.count("slipstream_keepalives_total", (), 1 << 80)
    snapshot = decode((await private(port, "/snapshot?counters=1")).body)
    assert snapshot.facts.saved["saved_input_tokens"] == (1 << 64) - 1
    assert (await port.series())[("slipstream_keepalives_total", ())] >= 1 << 63
