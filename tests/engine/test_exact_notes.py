"""sidecar.cache.exact: what is told of stored answers later, in what order, and what becomes of failures."""

import asyncio
import threading
from array import array

import pytest

from sidecar.cache import writes
from sidecar.cache.exact import ExactCache
from sidecar.core.entry import Entry, Known
from sidecar.stores.base import NAMES, Near, StoreError
from sidecar.stores.memory import MemoryStore
from tests.faults.conftest import eventually

LIMIT = 1 << 20
ASKED = Near(bytes(32), b"vector", b"traits")


class Scripted(MemoryStore):
    """Raises what it is told to, and waits where it is told to."""

    def __init__(self):
        super().__init__(LIMIT)
        self.error = {}
        self.did = []
        self.gate = threading.Event()
        self.gate.set()

    def _pass(self, what):
        assert self.gate.wait(10)
        self.did.append(what)
        if what in self.error:
            raise self.error[what]

    def put_all(self, blobs):
        self._pass("put")
        super().put_all(blobs)

    def note(self, key, near):
        self._pass("note")
        return super().note(key, near)

    def served_all(self, served):
        self._pass("served")
        super().served_all(served)


def key(number):
    return number.to_bytes(32, "big")


def entry(number):
    return Entry(key(number), Known(200, "OK", (), 0.0, 9.0, "d", "/", tag="t"), b"body", array("Q"))


def put(cache, number, alias=None, near=None):
    done = asyncio.get_running_loop().create_future()
    generation = cache.generation()
    cache.put(entry(number), alias, seconds=9.0, generation=generation, done=done.set_result, near=near)
    return done


@pytest.fixture
def faults():
    return []


@pytest.fixture
async def rig(faults):
    """A cache on a scripted store, and what it said."""
    said = []
    cache = ExactCache(LIMIT, said.append, faults.append)
    store = Scripted()
    await cache.open(lambda: store)
    yield cache, store, said
    store.gate.set()
    await cache.close()


def noted(store):
    log = store.changes()
    return {one.key for one in log.noted(log.alive()).values()}


async def idle(cache):
    await eventually(cache._writes._idle.is_set, lambda: "never idle")


async def test_a_question_goes_with_the_answer_and_not_with_what_points_at_it(rig):
    cache, store, _ = rig
    await put(cache, 1, alias=b"alias", near=ASKED)
    await put(cache, 2, alias=b"other")
    assert noted(store) == {key(1)}
    log = cache.changes()
    assert [row.vector for row in await asyncio.to_thread(log.after, 0, 10)] == [b"vector"]


async def test_what_is_told_comes_after_the_answers_that_were_put_before(rig):
    cache, store, _ = rig
    store.gate.clear()
    puts = [put(cache, 1), put(cache, 2), put(cache, 3)]
    for number in (2, 1, 9):
        cache.note(key(number), ASKED, cache.generation())
        cache.served(f"s{number}", key(number))
    puts.append(put(cache, 4))
    cache.served("s4", key(4))
    store.gate.set()
    await asyncio.gather(*puts)
    await idle(cache)
    assert noted(store) == {key(1), key(2)}
    assert [store.served_key(f"s{number}") for number in (1, 2, 4, 9)] == [key(1), key(2), key(4), None]
    assert not [name for name in cache.counts if name.endswith("failed")]


async def test_ids_that_come_at_once_go_together(rig):
    cache, store, _ = rig
    await put(cache, 1)
    for number in range(500):
        cache.served(f"s{number}", key(1))
    await idle(cache)
    assert store.did == ["put", "served", "served"]
    assert store.served_key("s0") == store.served_key("s499") == key(1)


async def test_what_was_asked_before_a_purge_is_not_noted_after_it(rig):
    cache, store, _ = rig
    generation = cache.generation()
    await put(cache, 1)
    store.gate.clear()
    waiting = put(cache, 2)
    cache.note(key(1), ASKED, generation)
    MemoryStore.purge(store, "nobody")
    cache.note(key(1), ASKED, generation)
    store.gate.set()
    await waiting
    await idle(cache)
    assert "note" not in store.did
    assert noted(store) == set()


@pytest.mark.parametrize("what", ["note", "served"])
async def test_a_store_that_fails_is_left_alone(rig, what):
    cache, store, said = rig
    await put(cache, 1)
    store.error[what] = StoreError("full")

    def tell():
        cache.note(key(1), ASKED, cache.generation()) if what == "note" else cache.served("s1", key(1))

    tell()
    await eventually(lambda: said, lambda: "nothing said")
    assert (said, cache.counts[f"{what}_failed"]) == (["full"], 1)
    assert await put(cache, 2) is None
    tell()
    await idle(cache)
    assert (store.did, cache.counts[f"{what}_failed"]) == (["put", what], 2)
    store.error.clear()
    cache._writes._breaker._until = 0.0
    tell()
    await idle(cache)
    # Only an answer that was stored shows that it works again.
    assert said == ["full"]
    assert await put(cache, 3) is not None
    assert said == ["full", None]


async def test_what_comes_after_a_failure_is_not_tried(rig):
    cache, store, _ = rig
    await put(cache, 1)
    store.gate.clear()
    store.error["note"] = StoreError("full")
    waiting = put(cache, 2)
    for number in range(5):
        cache.note(key(1), Near(bytes(32), bytes([number]), b""), cache.generation())
        cache.served(f"s{number}", key(1))
    store.gate.set()
    await waiting
    await eventually(
        lambda: cache.counts["served_failed"] + cache.counts["note_failed"] == 10, lambda: cache.counts
    )
    assert store.did == ["put", "put", "note"]


async def test_a_mistake_of_our_own_is_told(rig, faults):
    cache, store, _ = rig
    await put(cache, 1)
    store.error["served"] = KeyError("mistake")
    cache.served("s1", key(1))
    await eventually(lambda: faults, lambda: "no fault")
    assert cache.counts["served_failed"] == 1


async def test_so_many_wait_and_no_more(rig, monkeypatch):
    monkeypatch.setattr(writes, "_NOTES", 3)
    monkeypatch.setattr(writes, "NAMES", 5)
    cache, store, _ = rig
    store.gate.clear()
    waiting = [put(cache, 1), put(cache, 2)]
    for number in range(10):
        cache.note(key(1), ASKED, cache.generation())
        cache.served(f"s{number}", key(1))
    assert (cache.counts["note_failed"], cache.counts["served_failed"]) == (7, 5)
    store.gate.set()
    await asyncio.gather(*waiting)
    await idle(cache)
    assert NAMES > 5
    assert store.served_key("s4") == key(1)


async def test_what_was_told_is_written_before_the_end(rig):
    cache, store, _ = rig
    await put(cache, 1)
    store.gate.clear()
    cache.served("s1", key(1))
    cache.served("s2", key(1))
    cache.note(key(1), ASKED, cache.generation())
    closing = asyncio.ensure_future(cache.close())
    await asyncio.sleep(0)
    store.gate.set()
    await closing
    assert store.did == ["put", "served", "note", "served"]
    cache.served("s3", key(1))
    cache.note(key(1), ASKED, 0)
    assert cache.changes() is None


async def test_no_thread_to_be_had(rig, monkeypatch):
    cache, _, said = rig
    await put(cache, 1)

    def fails(*_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(cache._writes.worker, "do", fails)
        cache.served("s1", key(1))
        assert cache.counts["served_failed"] == 1
    assert said == ["can't start new thread"]
    assert cache._writes._idle.is_set()


async def test_without_a_store_there_is_nothing_to_tell(faults):
    cache = ExactCache(LIMIT, faults.append, faults.append)
    await put(cache, 1, near=ASKED)
    cache.note(key(1), ASKED, cache.generation())
    cache.served("s1", key(1))
    assert cache.changes() is None
    await cache.close()
    assert faults == []
    assert cache.counts == {"stored": 1}
