"""`/cache`: what is listed, and that what is purged is not served any more, from the disk, from memory and again."""

import asyncio
import hashlib
import threading
import time
from array import array

import orjson
import pytest

from sidecar.cache import records
from sidecar.core.entry import Entry, Known, unseal
from sidecar.stores.base import StoreError
from sidecar.stores.disk import DiskStore
from sidecar.stores.listing import Filter, aliases, chosen, remove
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
    assert len(await keys_listed(port)) == 1


async def test_a_store_that_fails(begin, monkeypatch):
    port = await begin()
    await ask(port)

    def fail(self, start, *, newest=False):
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
        lambda: port.admin._entries._waiting == entries._WAITING and entered.is_set(),
        lambda: "they do not wait",
    )
    assert "too many" in problem(await port.ask("/cache"), 503, "store_failed")
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
        steps = []
        assert remove(store, chosen(store, Filter(model="n")), steps.append) == 2
        assert steps == [2]
        assert {key.hex() for key in aliases(store)} == {key_of("one"), key_of("two")}
        assert unseal(bytes.fromhex(key_of("one")), store.get(bytes.fromhex(key_of("one"))))
        assert remove(store, []) == 0


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
