"""sidecar.cache.exact with a scripted store: what waits, what does not, and what is counted."""

import asyncio
import threading
from array import array

import pytest

from sidecar.cache.exact import ExactCache
from sidecar.core.entry import Entry, Known, seal
from sidecar.core.fingerprint import Keys
from sidecar.stores.base import StoreError
from sidecar.stores.memory import MemoryStore
from tests.faults.conftest import eventually

LIMIT = 1 << 20


class Scripted(MemoryStore):
    """Raises what it is told to, and waits where it is told to."""

    def __init__(self):
        super().__init__(LIMIT)
        self.error = {}
        self.gets = self.puts = 0
        self.gate = threading.Event()
        self.gate.set()

    def get(self, key):
        self.gets += 1
        assert self.gate.wait(10)
        if "get" in self.error:
            raise self.error["get"]
        return super().get(key)

    def put_all(self, blobs):
        self.puts += len(blobs)
        if "put" in self.error:
            raise self.error["put"]
        super().put_all(blobs)


def key(number):
    return bytes([number]) * 32


def entry(number, body=b"body"):
    return Entry(key(number), Known(200, "OK", (), 0.0, 9.0, "d", "/", tag="t"), body, array("Q"))


@pytest.fixture
async def rig():
    """A cache on a scripted store, what it said, and its faults."""
    said, faults = [], []
    cache = ExactCache(LIMIT, said.append, faults.append, deadline=0.05)
    store = Scripted()
    await cache.open(lambda: store)
    yield cache, store, said
    store.gate.set()
    await cache.close()
    assert not faults


async def put(cache, made, alias=None):
    done = asyncio.get_running_loop().create_future()
    cache.put(made, alias, seconds=9.0, generation=cache.generation(), done=done.set_result)
    return await done


async def test_what_is_put_is_in_memory_at_once_and_then_in_the_store(rig):
    cache, store, _ = rig
    made = entry(1)
    done = []
    cache.put(made, None, seconds=9.0, generation=cache.generation(), done=done.append)
    assert cache.hot(key(1)) is made
    await eventually(lambda: done, lambda: "not stored")
    assert done[0] is not None
    assert store.get(key(1)) == seal(made)
    cache._hot.clear()
    assert cache.hot(key(1)) is None
    found = await cache.lookup(Keys(key(1)), None)
    assert (found.body, found.known) == (made.body, made.known)
    assert cache.hot(key(1)) is found
    assert cache.counts["stored"] == 1


async def test_identical_lookups_look_once(rig):
    cache, store, _ = rig
    await put(cache, entry(1))
    cache._hot.clear()
    found = await asyncio.gather(*[cache.lookup(Keys(key(1)), None) for _ in range(50)])
    assert len(set(map(id, found))) == 1
    assert store.gets == 1


async def test_a_store_that_fails_is_left_alone(rig):
    cache, store, said = rig
    store.error["get"] = StoreError("disk")
    for _ in range(5):
        assert await cache.lookup(Keys(key(1)), None) is None
    assert (store.gets, said, cache.counts["lookup_failed"]) == (1, ["disk"], 1)
    store.error.clear()
    cache._reading._until = 0.0
    assert await cache.lookup(Keys(key(1)), None) is None
    assert said == ["disk", None]


async def test_a_store_that_cannot_write(rig):
    cache, store, said = rig
    store.error["put"] = StoreError("full")
    assert [await put(cache, entry(number)) for number in range(5)] == [None] * 5
    assert store.puts == 1
    assert said == ["full"]
    assert (cache.counts["store_failed"], cache.counts["store_skipped"]) == (1, 4)
    assert all(cache.hot(key(number)) is not None for number in range(5))


async def test_a_lookup_that_hangs_is_waited_for_once(rig):
    cache, store, _ = rig
    store.gate.clear()
    assert await cache.lookup(Keys(key(1)), None) is None
    for number in (1, 2, 3, 1):
        assert await cache.lookup(Keys(key(number)), None) is None
    assert (store.gets, cache.counts["lookup_late"]) == (1, 1)
    store.gate.set()
    await eventually(lambda: not cache._overdue, lambda: cache._overdue)
    assert await cache.lookup(Keys(key(2)), None) is None
    assert store.gets == 2


async def test_what_a_late_lookup_finds_is_at_hand(rig):
    cache, store, _ = rig
    await put(cache, entry(1))
    cache._hot.clear()
    store.gate.clear()
    assert await cache.lookup(Keys(key(1)), None) is None
    store.gate.set()
    await eventually(lambda: not cache._overdue, lambda: cache._overdue)
    assert cache.hot(key(1)).body == b"body"


async def test_after_a_purge_nothing_is_at_hand(rig):
    cache, store, _ = rig
    await put(cache, entry(1), alias=key(9))
    store.purge("t")
    assert cache.hot(key(1)) is None
    assert await cache.lookup(Keys(key(1)), None) is None
    assert await cache.lookup(Keys(key(2), None, key(9)), lambda found: found) is None


async def test_what_was_asked_before_a_purge_is_not_stored_after_it(rig):
    cache, store, _ = rig
    before = cache.generation()
    store.clear()
    done = []
    cache.put(entry(1), None, seconds=9.0, generation=before, done=done.append)
    assert done == [None]
    assert cache.hot(key(1)) is None
    assert cache.counts["store_purged"] == 1
    assert store.puts == 0


@pytest.mark.parametrize("tier", ["memory", "store"])
async def test_the_other_mode(rig, tier):
    cache, _, _ = rig
    await put(cache, entry(1), alias=key(9))
    if tier == "store":
        cache._hot.clear()
        cache._aliases.clear()
    asked = []

    def convert(found):
        asked.append(found.key)
        return Entry(key(2), found.known, b"made", array("Q"))

    keys = Keys(key(2), key(8), key(9))
    assert (await cache.lookup(keys, convert)).body == b"made"
    assert cache.hot(key(2)).body == b"made"
    assert asked == [key(1)]


async def test_what_cannot_be_converted_is_tried_once(rig):
    cache, _, _ = rig
    await put(cache, entry(1), alias=key(9))
    tried = []
    for _ in range(3):
        assert await cache.lookup(Keys(key(2), None, key(9)), tried.append) is None
    assert len(tried) == 1
