"""sidecar.stores.base: what every store of sealed answers does, whatever it is kept in."""

import math
import random
import threading

import pytest

from sidecar.stores.base import Blob, Row, StoreError
from tests.stores.answers_rig import HOUR, key, names, put

DAY = 24 * HOUR


# Keeping.


@pytest.mark.parametrize("size", [0, 1, 488, 489, 4091, 4092, 4093, 8184, 100_000, 3_000_000])
def test_a_blob_comes_back_as_it_was(store, size):
    blob = random.Random(size).randbytes(size)
    put(store, "a", blob)
    assert store.get(key("a")) == blob
    assert list(store.rows(7)) == [Row(key("a"), "tag", 1000.0 + HOUR, size, blob[:7])]
    assert store.get(key("b")) is None


@pytest.mark.parametrize("name", [b"", b"\0", b"k", b"k\0", bytes(range(256)), b"k" * 479])
def test_keys_are_any_bytes(store, name):
    store.put(b"k\0\0", b"another", tag="t", seconds=HOUR)
    store.put(name, b"blob", tag="t", seconds=HOUR)
    assert store.get(name) == b"blob"
    assert {row.key for row in store.rows(0)} == {name, b"k\0\0"}


def test_a_tag_is_any_text(store):
    for number, tag in enumerate(["", "t", "T", "ü'\";--", "%", "1", "1.0", "x" * 5000]):
        put(store, number, tag=tag)
    assert len({row.tag for row in store.rows(0)}) == 8
    assert store.purge("t") == store.purge("1") == store.purge("x" * 5000) == store.purge("") == 1
    assert len(list(store.rows(0))) == 4


def test_a_blob_takes_the_place_of_what_was_there(store):
    put(store, "a", b"first" * 5000, tag="one", seconds=10)
    put(store, "a", b"second", tag="two", seconds=20)
    assert store.get(key("a")) == b"second"
    assert store.stats().entries == 1
    assert list(store.rows(3)) == [Row(key("a"), "two", 1020.0, 6, b"sec")]
    assert store.purge("one") == 0
    assert store.purge("two") == 1
    assert store.get(key("a")) is None


def test_several_are_kept_as_a_whole_or_not_at_all(make):
    store = make(1 << 18)
    store.put_all([])
    store.put_all([Blob(key(name), name.encode(), "tag", HOUR) for name in "abc"])
    assert [store.get(key(name)) for name in "abc"] == [b"a", b"b", b"c"]
    with pytest.raises(StoreError):
        store.put_all([Blob(key("a"), b"new", "tag", HOUR), Blob(key("d"), bytes(1 << 19), "tag", HOUR)])
    assert store.get(key("a")) == b"a"
    assert store.get(key("d")) is None
    # Of those that came together, the last one was used last.
    store.put_all([Blob(key("a"), b"twice", "tag", HOUR), Blob(key("a"), b"again", "tag", HOUR)])
    assert store.get(key("a")) == b"again"


def test_what_is_put_again_has_its_own_time(store, clock):
    put(store, "a", b"first", seconds=10)
    clock.now += 9
    put(store, "a", b"second", seconds=10)
    clock.now += 9
    assert store.get(key("a")) == b"second"


# Time.


def test_what_is_over_is_not_there(store, clock):
    put(store, "a", seconds=10)
    put(store, "b", seconds=20)
    clock.now = math.nextafter(1010.0, 0)
    assert names(store, "ab") == ["a", "b"]
    assert store.get(key("a")) == b"blob"
    clock.now = 1010.0
    assert names(store, "ab") == ["b"]
    assert store.get(key("a")) is None
    assert store.get(key("b")) == b"blob"
    clock.now = 1020.0
    assert store.get(key("b")) is None


@pytest.mark.parametrize("seconds", [0, -1, -5000])
def test_what_is_over_at_once(store, seconds):
    put(store, "a", seconds=HOUR)
    put(store, "a", seconds=seconds)
    assert store.get(key("a")) is None
    assert list(store.rows(0)) == []
    store.expire()
    assert store.stats().entries == 0


def test_expire_removes_all_that_is_over_and_nothing_else(store, clock):
    for number in range(250):
        put(store, number, seconds=10)
        put(store, f"kept {number}", seconds=11)
    before = store.generation
    assert store.expire() == 0
    assert store.generation == before
    clock.now = 1010.0
    assert store.stats().entries == 500
    assert store.expire() == 250
    assert store.stats().entries == 250
    assert store.generation != before
    assert store.expire() == 0
    assert store.get(key("kept 1")) == b"blob"
    clock.now = 1011.0
    assert store.expire() == 250
    assert list(store.rows(0)) == []


def test_a_clock_that_is_set_back(make, clock):
    """What was put in the future can be used, and makes room like everything else."""
    store = make(1 << 20)
    blob = bytes(100_000)
    clock.now = 1e10
    for number in range(5):
        put(store, f"old {number}", blob)
    clock.now = 1000.0
    for number in range(5):
        put(store, number, blob)
    assert store.get(key("old 4")) == blob
    assert store.expire() == 0
    for number in range(5, 12):
        put(store, number, blob)
    assert names(store, [f"old {number}" for number in range(4)]) == []
    assert names(store, range(8, 12)) == [8, 9, 10, 11]
    for number in range(12, 24):
        put(store, number, blob)
    assert names(store, ["old 4"]) == []


# Room.


def test_it_takes_no_more_room_than_it_may(make):
    store = make(1 << 20)
    dice = random.Random(1)
    assert store.stats().entries == 0
    assert store.stats().limit == 1 << 20
    for number in range(300):
        put(store, number, dice.randbytes(dice.choice([10, 2000, 20_000, 300_000])))
        found = store.stats()
        assert found.bytes <= found.limit
        assert names(store, [number]) == [number]
    there = names(store, range(300))
    assert there == list(range(300 - len(there), 300))
    assert found.bytes > 500_000


def test_a_large_blob_needs_the_room_of_many_small_ones(make):
    store = make(2 << 20)
    for number in range(400):
        put(store, number, bytes(2000))
    put(store, "large", bytes(1_800_000))
    assert store.get(key("large")) == bytes(1_800_000)
    assert store.stats().bytes <= 2 << 20
    there = names(store, range(400))
    assert there == list(range(400 - len(there), 400))


def test_a_blob_larger_than_the_store_is_refused(make):
    store = make(1 << 20)
    put(store, "a", b"kept")
    for size in (1 << 20, 5 << 20):
        with pytest.raises(StoreError, match="larger than the whole store"):
            put(store, "a", bytes(size))
    assert store.get(key("a")) == b"kept"
    put(store, "b", bytes(900_000))
    assert store.get(key("b")) == bytes(900_000)


def filled(make):
    """A store with five entries and room for less than ten."""
    store = make(1_100_000)
    for name in "abcde":
        put(store, name, bytes(100_000))
    return store


def pressed(store, count):
    """Those of the five that are still there after more was put."""
    for number in range(count):
        put(store, f"more {number}", bytes(100_000))
    return "".join(names(store, "abcde"))


def test_what_was_put_first_goes_first(make):
    store = filled(make)
    assert pressed(store, 4) in ("abcde", "bcde")
    there = pressed(filled(make), 7)
    assert there in ("cde", "de")


def test_what_was_looked_up_stays(make):
    store = filled(make)
    assert store.get(key("a")) == bytes(100_000)
    assert store.get(key("c")) == bytes(100_000)
    assert store.get(key("missing")) is None
    there = pressed(store, 7)
    assert there in ("ace", "ac")


def test_what_was_touched_stays(make):
    store = filled(make)
    store.touch([key("c"), key("missing"), key("a")])
    assert pressed(store, 7) in ("ace", "ac")
    store.touch([])


def test_what_is_touched_last_stays_longest(make):
    store = filled(make)
    store.touch(key(name) for name in "dbaec")
    assert pressed(store, 7) in ("ace", "ce")


def test_what_was_put_again_stays(make):
    store = filled(make)
    put(store, "a", bytes(100_000))
    assert pressed(store, 7) in ("ade", "ae")


def test_use_does_not_make_it_last_longer(store, clock):
    put(store, "a", seconds=10)
    clock.now = 1009.0
    assert store.get(key("a")) == b"blob"
    store.touch([key("a")])
    clock.now = 1010.0
    store.touch([key("a")])
    assert store.get(key("a")) is None


# Removing.


def test_delete(store):
    for name in "abc":
        put(store, name)
    assert store.delete([key("a"), key("missing"), key("c")]) == 2
    assert names(store, "abc") == ["b"]
    assert store.get(key("a")) is None
    assert store.delete(key(name) for name in "ab") == 1
    assert store.delete([]) == 0
    assert store.stats().entries == 0


def test_purge_removes_all_with_a_tag_and_nothing_else(store, clock):
    for number in range(250):
        put(store, number, bytes(number * 50), tag="one")
        put(store, f"kept {number}", tag="two")
    put(store, "over", tag="one", seconds=1)
    clock.now += 2
    assert store.purge("on") == 0
    assert store.purge("one") == 251
    assert store.purge("one") == 0
    assert names(store, range(250)) == []
    assert [store.get(key(number)) for number in range(250)] == [None] * 250
    assert all(store.get(key(f"kept {number}")) == b"blob" for number in range(250))


def test_clear(store):
    for number in range(250):
        put(store, number, tag=f"tag {number}")
    assert store.clear() == 250
    assert store.clear() == 0
    assert list(store.rows(0)) == []
    assert store.stats().entries == 0
    put(store, 1, b"new")
    assert store.get(key(1)) == b"new"


def test_the_room_of_what_was_removed_is_free(store):
    for number in range(20):
        put(store, number, bytes(100_000))
    whole = store.stats().bytes
    store.clear()
    assert store.stats().bytes < whole / 10


@pytest.mark.parametrize(
    "remove",
    [
        lambda store: store.delete([key("a")]),
        lambda store: store.delete([key("missing")]),
        lambda store: store.purge("tag"),
        lambda store: store.purge("missing"),
        lambda store: store.clear(),
    ],
    ids=["delete", "delete none", "purge", "purge none", "clear"],
)
def test_who_holds_copies_hears_of_removals(store, remove):
    """Also where nothing was there: copies may be older than what made room for others here."""
    put(store, "a")
    before = store.generation
    store.get(key("a"))
    store.touch([key("a")])
    put(store, "a")
    list(store.rows(0))
    assert store.generation == before
    remove(store)
    seen = store.generation
    assert seen != before
    assert store.generation == seen
    remove(store)
    assert store.generation not in (before, seen)


# Lists.


def test_rows_of_many(store):
    for number in range(450):
        put(store, number, str(number).encode() * 1000, tag=f"{number % 3}")
    rows = {row.key: row for row in store.rows(100)}
    assert len(rows) == 450
    for number in range(450):
        text = str(number).encode() * 1000
        assert rows[key(number)] == Row(key(number), f"{number % 3}", 1000.0 + HOUR, len(text), text[:100])


def test_rows_from_the_newest_on(store):
    assert list(store.rows(0, newest=True)) == []
    for number in range(450):
        put(store, number, str(number).encode())
    assert [row.start for row in store.rows(3, newest=True)] == [
        b"%d" % number for number in range(449, -1, -1)
    ]
    rows = store.rows(3, newest=True)
    assert next(rows).start == b"449"
    put(store, "later")
    assert len(list(rows)) == 449  # what comes meanwhile takes nothing's place


def test_what_changes_while_rows_are_read(store):
    for number in range(450):
        put(store, number)
    seen = set()
    for count, row in enumerate(store.rows(4)):
        assert row.start == b"blob"
        seen.add(row.key)
        if count % 10 == 0:
            store.delete([key(449 - count), key(448 - count)])
            put(store, f"new {count}")
        if count == 440:
            break
    assert {key(number) for number in range(200)} <= seen
    assert names(store, [449, 448, 447, 439, 438]) == [447]


def test_rows_of_what_is_small(store):
    for number in range(300):
        put(store, number, bytes(number % 130))
    found = {row.key: row for row in store.rows(100, largest=64)}
    assert set(found) == {key(number) for number in range(300) if number % 130 <= 64}
    assert all(row.start == bytes(row.size) for row in found.values())
    assert len(list(store.rows(0, newest=True, largest=0))) == 3


def test_what_is_deleted_may_be_looked_for_in_the_store(store):
    """Once nothing is stored any more that was asked for before."""
    for number in range(450):
        put(store, number, tag=f"{number % 3}")
    before = store.generation
    seen = []

    def looked_for():
        seen.append(store.generation)
        yield from [row.key for row in store.rows(0) if row.tag == "1"]

    assert store.delete(looked_for()) == 150
    assert before != seen[0] != store.generation
    assert {row.tag for row in store.rows(0)} == {"0", "2"}


def test_rows_that_nobody_reads_to_their_end(store):
    for number in range(450):
        put(store, number)
    rows = store.rows(0)
    next(rows)
    assert store.clear() == 450
    put(store, "a")
    assert len(list(store.rows(0))) == 1
    rows.close()


# The end, and threads.


def test_a_closed_store_says_so(store):
    put(store, "a")
    store.close()
    store.close()
    assert store.generation == store.generation
    for call in (
        lambda: store.get(key("a")),
        lambda: put(store, "a"),
        lambda: store.touch([key("a")]),
        lambda: store.delete([key("a")]),
        lambda: store.purge("tag"),
        store.clear,
        store.expire,
        store.stats,
        lambda: list(store.rows(0)),
    ):
        with pytest.raises(StoreError, match="the store is closed"):
            call()


def test_one_thread_looks_up_while_another_changes(make):
    store = make(1 << 20)
    blobs = [str(number).encode() * 3000 for number in range(40)]
    trouble, done = [], threading.Event()

    def look():
        dice = random.Random(2)
        try:
            while not done.is_set():
                number = dice.randrange(40)
                assert store.get(key(number)) in (None, blobs[number])
                assert store.generation is not None
        except BaseException as error:
            trouble.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    dice = random.Random(3)
    for turn in range(300):
        number = dice.randrange(40)
        put(store, number, blobs[number], tag=str(number % 4))
        if turn % 50 == 49:
            store.purge("1")
        if turn % 50 == 24:
            store.touch(map(key, range(40)))
    done.set()
    thread.join()
    assert trouble == []
