"""`/cache`: what is listed, and that what is purged is not served any more, from the disk, from memory and again."""

import asyncio
import hashlib
import threading
import time
from array import array
from contextlib import contextmanager

import orjson
import pytest

from sidecar.cache import records
from sidecar.cache.exact import ExactCache
from sidecar.core.entry import Entry, Known, unseal
from sidecar.stores.base import StoreError
from sidecar.stores.disk import DiskStore
from sidecar.stores.listing import Filter, aliases, purge
from sidecar.web.admin import entries
from tests.admin.conftest import ASK, BEARER, DIGEST, KEY, problem
from tests.cli.cache_rig import ALICE, BOB, put, some, store_in
from tests.faults.conftest import eventually
from tests.faults.wire import CHAT, LAST, chunk, head, request

HIT, MISS = b"slipstream; hit", b"slipstream; fwd=miss"
OTHER = (b"Authorization", b"Bearer sk-planted-other")
WHERE = pytest.mark.parametrize("where", ["disk", "memory"])


@pytest.fixture
def begin(start, tmp_path):
    """A sidecar that keeps answers: on disk, or in memory only."""

    async def begin(where="disk", **keys):
        folder = tmp_path if where == "disk" else None
        given = {"cache__ttl": 3600, "admin__token_sha256": DIGEST} | keys
        return await start(folder=folder, **given)

    return begin


async def ask(port, key=KEY, **more):
    """Whether it was found, once the request is done with: what it stores is there then."""
    number = len(port.sidecar.lines.requests)
    status, body = await port.chat(key, **more)
    line = await port.rig.line(number)
    return status.startswith(HIT), body, line["tenant"]


async def keys_listed(port, query=""):
    return [item["key"] for item in (await port.get(f"/cache{query}"))["items"]]


@WHERE
async def test_what_is_stored_is_listed_without_a_word_of_it(begin, where):
    port = await begin(where)
    before = await port.get("/cache")
    assert (before["mode"], before["entries"], before["items"], before["more"]) == ("exact", 0, [], False)
    _, body, tenant = await ask(port)
    await ask(port, OTHER, stream=True)
    told = await port.get("/cache")
    assert told["entries"] >= 2 and 0 < told["bytes"] <= told["limit"]
    newest, oldest = told["items"]
    assert set(newest) == {"key", "tenant", "upstream", "model", "path", "stream", "age_s", "left_s", "size"}
    assert (oldest["tenant"], oldest["model"], oldest["path"], oldest["stream"]) == (
        tenant,
        "m",
        CHAT.target,
        False,
    )
    assert newest["stream"] is True and newest["tenant"] != tenant
    assert len(bytes.fromhex(oldest["key"])) == 32
    assert 3500 < oldest["left_s"] <= 3600 and 0 <= newest["age_s"] <= oldest["age_s"] < 100
    assert oldest["size"] > len(body)


@WHERE
async def test_a_purge_is_seen_at_once(begin, where):
    port = await begin(where)
    assert [(await ask(port))[0] for _ in range(2)] == [False, True]
    assert await port.delete("/cache?all=1") == (200, {"removed": 1})
    assert (await port.get("/cache"))["items"] == []
    assert [(await ask(port))[0] for _ in range(2)] == [False, True]
    assert len(await keys_listed(port)) == 1


@WHERE
async def test_requests_that_come_again_in_the_same_bytes_see_it_too(begin, where):
    port = await begin(where)
    sent = request("POST", CHAT.target, orjson.dumps(ASK), [KEY])
    client = await port.rig.connect()

    async def again():
        await client.send(sent)
        answer = await client.answer("POST")
        await answer.rest()
        return answer.header("cache-status").startswith(HIT)

    assert not await again()
    await port.rig.line()
    assert [await again() for _ in range(4)] == [True] * 4
    assert await port.delete("/cache?model=m") == (200, {"removed": 1})
    assert not await again()


@WHERE
async def test_the_other_mode_goes_with_it(begin, where):
    """An answer that was asked for whole is served as a stream, too: made of the first, and gone with it."""
    port = await begin(where)
    await ask(port)
    (key,) = await keys_listed(port)
    assert (await ask(port, stream=True))[0]
    status, told = await port.delete(f"/cache?key={key}")
    assert (status, told["removed"] >= 1) == (200, True)
    assert await keys_listed(port) == []
    assert not (await ask(port, stream=True))[0]


@WHERE
async def test_only_what_fits_is_purged(begin, where):
    port = await begin(where)
    _, _, tenant = await ask(port)
    await ask(port, OTHER)
    await ask(port, OTHER, model="n")
    assert await port.delete(f"/cache?tenant={tenant}") == (200, {"removed": 1})
    assert await port.delete("/cache?model=n&path=/v1/chat") == (200, {"removed": 1})
    assert await port.delete("/cache?model=n") == (200, {"removed": 0})
    assert [(await ask(port, OTHER))[0], (await ask(port))[0]] == [True, False]
    _, _, other = await ask(port, OTHER, model="n")
    assert await port.delete(f"/cache?tenant={other}&model=m") == (200, {"removed": 1})
    assert (await ask(port, OTHER, model="n"))[0]


@pytest.mark.parametrize("query", ["all=1", "model=m", "model=n", "key=00", "tenant=" + ALICE])
@WHERE
async def test_what_was_asked_before_a_purge_is_not_stored_after_it(begin, where, query):
    port = await begin(where)
    port.rig.script(CHAT.target)
    client = await port.rig.connect()
    await client.send(CHAT.sent)
    call = await port.rig.call()
    assert await port.delete(f"/cache?{query}") == (200, {"removed": 0})
    await call.send(head(), chunk(CHAT.whole), LAST)
    call.done()
    assert await (await client.answer("POST")).rest() == CHAT.whole
    await port.rig.line()
    assert (await port.get("/cache"))["items"] == []


async def test_another_process_sees_the_purge(begin, tmp_path):
    port = await begin()
    await ask(port)
    with store_in(tmp_path) as other:
        before = other.generation
        assert len(list(other.rows(0))) == 2  # with what points at it
        await port.delete("/cache?upstream=upstream")
        await port.delete(f"/cache?path={CHAT.target}")
        assert other.generation != before
        assert list(other.rows(0)) == []


async def test_filters_are_those_of_the_command_line(begin, tmp_path):
    some(tmp_path)
    port = await begin()
    for query, names in (
        ("", ["five", "four", "three", "two", "one"]),
        ("?tenant=" + BOB, ["five", "two"]),
        ("?model=n", ["four", "three"]),
        ("?upstream=local&path=/local", ["four"]),
        ("?model=n&path=/v1", ["three"]),
        ("?model=nobody", []),
        (f"?tenant={ALICE.upper()}&model=m", ["one"]),
        ("?key=" + key_of("two")[:10], ["two"]),
        ("?key=" + key_of("two"), ["two"]),
        ("?limit=50&tenant=&model=n&key=", ["four", "three"]),
    ):
        assert await keys_listed(port, query) == [key_of(name) for name in names], query
    assert await port.delete("/cache?upstream=local") == (200, {"removed": 2})
    assert await keys_listed(port) == [key_of(name) for name in ("five", "two", "one")]
    assert await port.delete(f"/cache?tenant={BOB}") == (200, {"removed": 2})
    assert await keys_listed(port) == [key_of("one")]
    with store_in(tmp_path) as store:
        assert len(list(store.rows(0))) == 2


def key_of(name):
    return hashlib.sha256(name.encode()).hexdigest()


async def test_more_than_is_shown(begin, tmp_path):
    now = time.time()
    with store_in(tmp_path) as store:
        for number in range(250):
            put(store, str(number), alias=False, stored=now - 1000 + number)
    port = await begin()
    told = await port.get("/cache")
    assert (len(told["items"]), told["more"], told["entries"]) == (50, True, 250)
    assert [item["key"] for item in told["items"]] == [key_of(str(number)) for number in range(249, 199, -1)]
    for limit, shown, more in ((1, 1, True), (249, 249, True), (250, 250, False), (500, 250, False)):
        told = await port.get(f"/cache?limit={limit}")
        assert (len(told["items"]), told["more"]) == (shown, more)


async def test_a_listing_looks_at_so_many_entries_and_says_that_there_are_more(begin, tmp_path, monkeypatch):
    now = time.time()
    with store_in(tmp_path) as store:
        put(store, "rare", alias=False, stored=now - 500, model="rare")
        for number in range(20):
            put(store, str(number), alias=False, stored=now - 400 + number)
    port = await begin()
    assert await keys_listed(port, "?model=rare") == [key_of("rare")]
    monkeypatch.setattr(entries, "_LOOKED_AT", 20)
    told = await port.get("/cache?model=rare")
    assert (told["items"], told["more"]) == ([], True)
    told = await port.get("/cache?model=m&limit=500")
    assert (len(told["items"]), told["more"]) == (20, True)
    monkeypatch.setattr(entries, "_LOOKED_AT", 22)
    told = await port.get("/cache?model=rare")
    assert (len(told["items"]), told["more"]) == (1, False)
    # A purge goes through all of them.
    monkeypatch.setattr(entries, "_LOOKED_AT", 1)
    assert await port.delete("/cache?model=rare") == (200, {"removed": 1})


async def test_without_a_cache_there_is_nothing(begin, tmp_path):
    some(tmp_path)
    port = await begin(cache__mode="off")
    told = await port.get("/cache")
    assert told == {"mode": "off", "entries": None, "bytes": None, "limit": None, "items": [], "more": False}
    said = problem(await port.ask("/cache?all=1", "DELETE", [BEARER]), 409, "cache_off")
    assert "slipstream cache purge" in said


@WHERE
async def test_a_purge_of_everything_takes_the_records_too(begin, tmp_path, where):
    port = await begin(where)
    named = [tmp_path / records.NAME, tmp_path / records.OLDER]
    for path in named:
        path.write_text("{}\n")
    await port.delete("/cache?model=m")
    assert all(path.exists() for path in named)
    await port.delete("/cache?all=1")
    # Without a data folder it knows of none.
    assert [path.exists() for path in named] == [where == "memory"] * 2


async def test_records_that_cannot_be_removed(begin, tmp_path):
    port = await begin()
    await ask(port)
    (tmp_path / records.NAME).mkdir()
    said = problem(await port.ask("/cache?all=1", "DELETE", [BEARER]), 503, "store_failed")
    assert records.NAME in said and str(tmp_path) not in said
    # The answers went first: they are what matters.
    assert await keys_listed(port) == []
    (line,) = logged(port, "cache_purge_failed")
    assert records.NAME in line["reason"] and str(tmp_path) not in line["reason"]


async def test_a_store_that_fails(begin, monkeypatch):
    port = await begin()
    await ask(port)

    def fail(self, start, *, newest=False, largest=None):
        raise StoreError("answers: disk I/O error")
        yield

    with monkeypatch.context() as broken:
        broken.setattr(DiskStore, "rows", fail)
        assert "disk I/O error" in problem(await port.ask("/cache"), 503, "store_failed")
        problem(await port.ask("/cache?model=m", "DELETE", [BEARER]), 503, "store_failed")
        assert (await port.ask("/stats")).status == 200
    assert len(await keys_listed(port)) == 1


async def test_a_disk_that_hangs_keeps_only_those_who_ask_for_it(begin, monkeypatch):
    port = await begin()
    gate, entered = threading.Event(), threading.Event()
    stats = DiskStore.stats

    def hang(self):
        entered.set()
        assert gate.wait(10)
        return stats(self)

    monkeypatch.setattr(DiskStore, "stats", hang)
    asked = [asyncio.create_task(port.ask("/cache")) for _ in range(entries._WAITING)]
    await eventually(
        lambda: port.admin._cache._entries._given == entries._WAITING and entered.is_set(),
        lambda: "they do not wait",
    )
    refused = await port.ask("/cache")
    assert "too many" in problem(refused, 503, "store_failed")
    assert refused.header("retry-after") == b"1"
    assert (await port.ask("/healthz")).status == 200
    gate.set()
    assert {answer.status for answer in await asyncio.gather(*asked)} == {200}
    monkeypatch.setattr(entries, "_PATIENCE", 0.01)
    gate.clear()
    assert "too long" in problem(await port.ask("/cache"), 503, "store_failed")
    gate.set()


async def test_what_is_purged_while_others_ask_and_store(begin):
    """Whoever asks meanwhile gets an answer, and after the last purge nothing is left of before."""
    port = await begin()

    async def asks(number):
        for turn in range(4):
            await port.chat(seed=number * 10 + turn)

    async def purges():
        for _ in range(4):
            assert (await port.delete("/cache?model=m"))[0] == 200

    await asyncio.gather(*[asks(number) for number in range(4)], purges(), purges())
    await port.rig.line(15)
    await port.delete("/cache?all=1")
    assert await keys_listed(port) == []
    assert not (await ask(port, seed=0))[0]


def test_pointers_of_what_stays_stay(tmp_path):
    some(tmp_path)
    with store_in(tmp_path) as store:
        told = []

        @contextmanager
        def shown(total):
            told.append(f"of {total}")
            yield told.append
            told.append("end")

        assert purge(store, Filter(model="n"), shown) == 2
        assert told == ["of 2", 1, 1, "end"]
        assert {key.hex() for key in aliases(store)} == {key_of("one"), key_of("two")}
        assert unseal(bytes.fromhex(key_of("one")), store.get(bytes.fromhex(key_of("one"))))
        assert purge(store, Filter(model="n")) == 0


def test_an_answer_whose_key_is_known_is_not_searched_for(tmp_path, monkeypatch):
    some(tmp_path)
    read = []
    rows = DiskStore.rows

    def watched(self, start, *, newest=False, largest=None):
        for row in rows(self, start, newest=newest, largest=largest):
            read.append(len(row.key))
            yield row

    with store_in(tmp_path) as store:
        monkeypatch.setattr(DiskStore, "rows", watched)
        assert purge(store, Filter(key=key_of("one"))) == 1
        assert read == [33] * 4  # pointers only
        assert purge(store, Filter(key=key_of("one"))) == 0
        assert read == [33] * 4
        assert purge(store, Filter(key=key_of("two"), tenant=ALICE)) == 0
        assert {key.hex() for key in aliases(store)} == {key_of(name) for name in ("two", "three", "four")}
        assert len(list(rows(store, 0))) == 7


def logged(port, event):
    return [line for line in port.sidecar.lines.all if line["event"] == event]


@pytest.fixture
def gate(monkeypatch):
    """Holds up the looking and the purging of everything."""
    made = threading.Event(), threading.Event()
    opened, entered = made
    calls = {"stats": DiskStore.stats, "clear": DiskStore.clear}
    seen = []

    def held(name):
        def call(self):
            seen.append(name)
            entered.set()
            assert opened.wait(30)
            return calls[name](self)

        return call

    for name in calls:
        monkeypatch.setattr(DiskStore, name, held(name))
    yield opened, entered, seen
    opened.set()


async def test_while_the_store_is_being_opened_nothing_is_claimed(begin, tmp_path):
    some(tmp_path)
    port = await begin("memory")
    opened = threading.Event()

    def opener():
        assert opened.wait(30)
        return DiskStore.open(tmp_path / "answers", 1 << 30)

    faults = []
    cache = ExactCache(1 << 20, faults.append, faults.append, opening=True)
    port.admin._cache._entries._cache = cache
    opening = asyncio.create_task(cache.open(opener))
    for method, fields in (("GET", []), ("DELETE", [BEARER])):
        answer = await port.ask("/cache?model=n" if method == "GET" else "/cache?all=1", method, fields)
        assert "being opened" in problem(answer, 503, "store_failed")
        assert answer.header("retry-after") == b"1"
    opened.set()
    await opening
    assert len(await keys_listed(port)) == 5
    assert await port.delete("/cache?all=1") == (200, {"removed": 5})
    await cache.close()
    assert faults == []


async def test_a_store_that_cannot_be_opened_is_not_waited_for(begin):
    port = await begin("memory")

    def opener():
        raise OSError("no")

    cache = ExactCache(1 << 20, print, print, opening=True)
    port.admin._cache._entries._cache = cache
    with pytest.raises(OSError, match="no"):
        await cache.open(opener)
    assert await keys_listed(port) == []
    assert await port.delete("/cache?all=1") == (200, {"removed": 0})
    await cache.close()


async def test_those_who_leave_make_no_room_and_no_work(begin, gate):
    """Until the thread has got to what they asked for: it would be done for nobody."""
    opened, entered, seen = gate
    port = await begin()
    held = port.admin._cache._entries
    asked = [asyncio.create_task(held.listing(Filter(), 1)) for _ in range(entries._WAITING)]
    await eventually(entered.is_set, lambda: "nobody looks")
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    assert "too many" in problem(await port.ask("/cache"), 503, "store_failed")
    opened.set()
    await eventually(lambda: not held._given, lambda: "they are still there")
    assert seen == ["stats"]
    assert await keys_listed(port) == []


async def test_a_purge_is_logged_when_its_client_has_gone(begin, gate):
    opened, entered, _ = gate
    port = await begin()
    await ask(port)
    client = await port.open()
    await client.send(request("DELETE", "/cache?all=1", None, [BEARER], host=port.host))
    await eventually(entered.is_set, lambda: "it does not purge")
    assert [line["all"] for line in logged(port, "cache_purging")] == [True]
    client.close()
    opened.set()
    await eventually(lambda: logged(port, "cache_purged"), lambda: "nothing is logged")
    (line,) = logged(port, "cache_purged")
    assert (line["removed"], line["all"]) == (1, True)


async def test_a_purge_that_takes_too_long_says_that_it_goes_on(begin, gate, monkeypatch):
    opened, _, _ = gate
    port = await begin()
    monkeypatch.setattr(entries, "_PATIENCE", 0.01)
    said = problem(await port.ask("/cache?all=1", "DELETE", [BEARER]), 503, "store_failed")
    assert "may still be going on" in said
    assert logged(port, "cache_purged") == []
    opened.set()
    await eventually(lambda: logged(port, "cache_purged"), lambda: "nothing is logged")


async def test_what_the_log_says_of_a_filter(begin):
    port = await begin()
    await port.delete(f"/cache?upstream=planted-name&model=m&path=/v1&key=abcdef&tenant={ALICE}")
    for event in ("cache_purging", "cache_purged"):
        (line,) = logged(port, event)
        assert line["filters"] == ["key", "model", "path", "tenant", "upstream"]
        assert (line["all"], line["tenant"], line["model"], line["path"]) == (False, ALICE, "m", "/v1")
        assert "key" not in line and "upstream" not in line


async def test_before_the_store_is_closed_a_purge_comes_to_its_end(begin, gate):
    opened, entered, _ = gate
    port = await begin()
    await ask(port)
    held = port.admin._cache._entries
    purging = asyncio.create_task(port.delete("/cache?all=1"))
    await eventually(entered.is_set, lambda: "it does not purge")
    await held.settled(0.0)  # no longer than it was told
    waiting = asyncio.create_task(held.settled(30.0))
    answer = await port.ask("/cache?all=1", "DELETE", [BEARER])
    assert "being stopped" in problem(answer, 503, "store_failed")
    assert answer.header("retry-after") == b"1"
    assert not waiting.done()
    opened.set()
    assert await purging == (200, {"removed": 1})
    await waiting


async def test_memory_forgets_no_more_than_it_was_told(begin):
    port = await begin("memory")
    cache = port.sidecar.service.assembly.cache
    for name in (b"a", b"b", b"c"):
        entry = Entry(name * 32, Known(200, "OK", (), time.time(), 60.0, "d", "/"), b"body", array("Q"))
        cache.put(entry, None, seconds=60, generation=cache.generation(), done=lambda _took: None)
    before = cache.generation()
    assert cache.forget(frozenset([b"b" * 32, b"x" * 32])) == 1
    assert [entry.key[:1] for entry in cache.held()] == [b"c", b"a"]
    assert cache.generation() != before and cache.number() == cache.generation()
