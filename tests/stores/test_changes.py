"""sidecar.stores.base: the log of questions, and the ids of answers, in every store that has them."""

import threading

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.stores.base import NAMES, Blob, Change, Near, Noted, StoreError
from sidecar.stores.disk import DiskStore
from sidecar.stores.memory import MemoryStore
from tests.stores.answers_rig import HOUR, LIMIT, Clock, key, logged, names, near, put


@pytest.fixture
def log(store):
    return store.changes()


def seqs(log) -> list[int]:
    return [change.seq for change in log.after(0, 1000)]


# What comes in.


def test_the_log_has_what_was_put_in_its_order(store, log):
    assert (log.after(0, 10), list(log.alive()), log.noted([1])) == ([], [], {})
    put(store, "b", near=near("b"))
    put(store, "no question")
    put(store, "a", near=near("a", scope="another", traits=b"of a"))
    found = log.after(0, 10)
    assert found == [
        Change(found[0].seq, key("scope"), near("b").vector),
        Change(found[1].seq, key("another"), near("a").vector),
    ]
    assert 0 < found[0].seq < found[1].seq
    assert list(log.alive()) == seqs(log)
    assert log.alive().typecode == "q"
    assert log.noted(seqs(log)) == {
        found[0].seq: Noted(key("b"), key("scope"), b"traits"),
        found[1].seq: Noted(key("a"), key("another"), b"of a"),
    }
    assert store.stats().vectors == 2


def test_the_log_is_read_on_from_where_one_was(store, log):
    store.put_all([Blob(key(number), b"blob", "tag", HOUR, near(number)) for number in range(1300)])
    store.delete([key(number) for number in range(0, 1300, 3)])
    found, last = [], 0
    while rows := log.after(last, 100):
        assert len(rows) == 100 or rows[-1].seq == max(log.alive())
        found += rows
        last = rows[-1].seq
    assert [row.seq for row in found] == list(log.alive())
    assert [row.vector for row in found] == [near(number).vector for number in range(1300) if number % 3]
    assert log.after(0, 1300) == found
    assert log.after(0, 700) == found[:700]
    assert log.after(found[5].seq, 0) == []
    put(store, "new", near=near("new"))
    assert [row.vector for row in log.after(last, 100)] == [near("new").vector]


@pytest.mark.parametrize("vector", [0, 1, 2, 768, 3072, 4052, 4053, 16_384])
@pytest.mark.parametrize("traits", [0, 1, 200, 9000])
def test_vectors_and_traits_come_back_as_they_were(store, log, vector, traits):
    asked = Near(bytes(range(32)), b"\1" * vector, b"\2" * traits)
    put(store, "a", near=asked)
    assert log.after(0, 1) == [Change(1, asked.scope, asked.vector)]
    assert log.noted([1]) == {1: Noted(key("a"), asked.scope, asked.traits)}
    assert store.get(key("a")) == b"blob"


@pytest.mark.parametrize("name", [b"", b"\0", b"k" * 479])
def test_keys_of_all_kinds(store, log, name):
    store.put_all([Blob(name, b"blob", "tag", HOUR, near("a"))])
    assert log.noted(seqs(log)) == {1: Noted(name, key("scope"), b"traits")}
    store.served("id", name)
    assert store.served_key("id") == name
    store.delete([name])
    assert seqs(log) == []
    assert store.served_key("id") is None


@pytest.mark.parametrize("scope", [b"", b"s" * 31, b"s" * 33])
def test_a_scope_has_32_bytes(store, scope):
    put(store, "a")
    with pytest.raises(StoreError):
        put(store, "b", near=Near(scope, b"vv", b""))
    with pytest.raises(StoreError):
        store.note(key("a"), Near(scope, b"vv", b""))
    assert logged(store) == {}
    assert names(store, "ab") == ["a"]


@pytest.mark.parametrize("large", ["blob", "vector", "traits"])
def test_an_answer_and_its_question_come_as_a_whole_or_not_at_all(make, large):
    store = make(1 << 20)
    put(store, "a", b"kept", near=near("a"))
    sizes = {"blob": 4, "vector": 4, "traits": 4} | {large: 2 << 20}
    asked = Near(key("scope"), bytes(sizes["vector"]), bytes(sizes["traits"]))
    new = [
        Blob(key("b"), b"b", "tag", HOUR, near("b")),
        Blob(key("a"), bytes(sizes["blob"]), "tag", HOUR, asked),
    ]
    with pytest.raises(StoreError, match="larger than the whole store"):
        store.put_all(new)
    if large != "blob":
        with pytest.raises(StoreError, match="larger than the whole store"):
            store.note(key("a"), asked)
    assert logged(store) == {key("a"): near("a")}
    assert names(store, "ab") == ["a"]
    assert store.get(key("a")) == b"kept"


# What comes again.


def test_the_same_key_is_the_same_question(store, log, clock):
    put(store, "a", b"first", seconds=10, near=near("a"))
    before = log.after(0, 10)
    put(store, "a", b"second", tag="another", seconds=10)
    assert store.get(key("a")) == b"second"
    assert log.after(0, 10) == before
    put(store, "a", b"third", seconds=20, near=near("a"))
    assert log.after(0, 10) == before
    clock.now += 15
    assert [*log.noted([1])] == [1]
    put(store, "a", b"fourth", seconds=20)
    clock.now += 15
    assert [*log.noted([1])] == [1]
    assert logged(store) == {key("a"): near("a")}


@pytest.mark.parametrize("field", ["scope", "vector", "traits"])
def test_another_question_under_the_same_key_is_new(store, log, field):
    put(store, "a", near=near("a"))
    put(store, "b", near=near("b"))
    first = seqs(log)
    changed = {"scope": key("new"), "vector": b"\1" * 768, "traits": b"new"}[field]
    asked = msgspec.structs.replace(near("a"), **{field: changed})
    put(store, "a", near=asked)
    assert len(log.after(first[1], 10)) == 1
    assert log.noted([first[0]]) == {}
    assert logged(store) == {key("b"): near("b"), key("a"): asked}


def test_an_entry_that_is_there_can_be_noted_later(store, log, clock):
    assert store.note(key("a"), near("a")) is False
    put(store, "a", seconds=10)
    generation = store.generation
    assert store.note(key("a"), near("a")) is True
    first = seqs(log)
    assert store.note(key("a"), near("a")) is True
    assert seqs(log) == first
    assert store.note(key("a"), near("other")) is True
    assert min(seqs(log)) > max(first)
    assert logged(store) == {key("a"): near("other")}
    assert store.generation == generation
    assert store.get(key("a")) == b"blob"
    clock.now += 10
    assert store.note(key("a"), near("a")) is False


# What goes.


def test_what_is_over_is_in_the_log_but_not_noted(store, log, clock):
    put(store, "a", seconds=10, near=near("a"))
    put(store, "b", seconds=20, near=near("b"))
    first, second = seqs(log)
    clock.now += 10
    assert [*log.noted([first, second])] == [second]
    assert list(log.alive()) == [first, second]
    assert store.expire() == 1
    assert list(log.alive()) == seqs(log) == [second]


REMOVALS = {
    "delete": lambda store, clock: store.delete([key(number) for number in range(150)]),
    "purge": lambda store, clock: store.purge("gone"),
    "expire": lambda store, clock: setattr(clock, "now", 1500.0) or store.expire(),
    "put": lambda store, clock: setattr(clock, "now", 1500.0) or [put(store, f"more {n}") for n in range(20)],
}


@pytest.mark.parametrize("name", REMOVALS)
def test_a_question_goes_with_its_answer(store, log, clock, name):
    for number in range(150):
        put(store, number, tag="gone", seconds=100, near=near(number))
        put(store, f"kept {number}", near=near(f"kept {number}"))
    last = max(seqs(log))
    gone = set(log.noted(log.alive()))
    REMOVALS[name](store, clock)
    gone -= set(log.noted(log.alive()))
    assert len(gone) == 150
    assert log.noted([*gone]) == {}
    if name == "put":
        store.expire()
    assert logged(store) == {key(f"kept {number}"): near(f"kept {number}") for number in range(150)}
    # It does not come back with the key, and no number does.
    put(store, 1)
    assert key(1) not in logged(store)
    put(store, 2, near=near(2))
    assert log.after(last, 10)[0].vector == near(2).vector


def test_no_number_is_used_again(store, log):
    seen = []
    for turn in range(5):
        put(store, "a", near=near(turn))
        seen += seqs(log)
        store.clear() if turn % 2 else store.delete([key("a")])
        assert seqs(log) == list(log.alive()) == []
        assert store.stats().vectors == 0
    assert seen == sorted(set(seen))


def test_questions_take_room_and_go_where_it_is_needed(make):
    store = make(1 << 20)
    for number in range(800):
        put(store, number, b"small", near=near(number, traits=bytes(300)))
        assert store.stats().bytes <= store.stats().limit
    there = names(store, range(800))
    assert 20 < len(there) < 790
    assert there == list(range(800 - len(there), 800))
    assert set(logged(store)) == {key(number) for number in there}


def test_the_log_is_of_the_last_ones(make, clock):
    store = make(entries=10)
    for number in range(25):
        put(store, number, near=near(number))
    assert set(logged(store)) == {key(number) for number in range(15, 25)}
    assert len(names(store, range(25))) == 25
    # Those that are gone count.
    store.delete([key(number) for number in range(18, 25)])
    put(store, "new", near=near("new"))
    assert set(logged(store)) == {key(16), key(17), key("new")}
    # What was dropped comes in again, though it is asked as before.
    put(store, 3, near=near(3))
    assert store.note(key(4), near(4)) is True
    assert set(logged(store)) == {key("new"), key(3), key(4)}
    store.put_all([Blob(key(f"many {number}"), b"", "tag", HOUR, near(number)) for number in range(600)])
    assert set(logged(store)) == {key(f"many {number}") for number in range(590, 600)}


# Under which ids answers were given.


def test_an_answer_is_known_by_the_ids_it_was_given_under(store):
    put(store, "a")
    put(store, "b")
    assert store.served_key("s1") is None
    store.served("s1", key("a"))
    store.served_all([("s2", key("a")), ("ü" * 128, key("b")), ("none", key("missing"))])
    store.served_all([])
    found = {name: store.served_key(name) for name in ("s1", "s2", "ü" * 128, "none", "", "s")}
    assert found == {"s1": key("a"), "s2": key("a"), "ü" * 128: key("b"), "none": None, "": None, "s": None}
    store.served("s1", key("b"))
    assert store.served_key("s1") == key("b")
    put(store, "b", b"again")
    assert store.served_key("s1") == key("b")


@pytest.mark.parametrize(
    "remove",
    [
        lambda store, clock: store.delete([key("a")]),
        lambda store, clock: store.purge("gone"),
        lambda store, clock: store.clear(),
        lambda store, clock: setattr(clock, "now", 1010.0) or store.expire(),
        lambda store, clock: [put(store, number, bytes(500_000)) for number in range(40)],
    ],
    ids=["delete", "purge", "clear", "expire", "room"],
)
def test_ids_go_with_the_answer(store, clock, remove):
    put(store, "a", tag="gone", seconds=10)
    put(store, "b", seconds=20)
    store.served_all([("one", key("a")), ("two", key("a")), ("three", key("b"))])
    remove(store, clock)
    assert store.served_key("one") is store.served_key("two") is None
    assert store.served_key("three") in (key("b"), None)
    put(store, "a")
    assert store.served_key("one") is None


def test_only_the_newest_ids_are_remembered(store):
    put(store, "a")
    put(store, "b")
    store.served("old", key("a"))
    store.served("renewed", key("a"))
    store.served_all([(str(number), key("a")) for number in range(NAMES - 2)])
    assert store.served_key("old") == key("a")
    store.served("renewed", key("b"))
    store.served("new", key("a"))
    assert store.served_key("old") is None
    assert store.served_key("renewed") == key("b")
    assert store.served_key("0") is not None
    store.served_all([(f"more {number}", key("b")) for number in range(NAMES)])
    assert store.served_key("new") is store.served_key("renewed") is None
    assert store.served_key("more 0") == store.served_key(f"more {NAMES - 1}") == key("b")


# The end, and threads.


def test_a_log_that_is_closed_says_so(store, log):
    put(store, "a", near=near("a"))
    other = store.changes()
    log.close()
    log.close()
    for call in (lambda: log.after(0, 1), lambda: log.noted([1]), log.alive):
        with pytest.raises(StoreError, match="is closed"):
            call()
    assert other.after(0, 1)
    store.close()
    for call in (
        lambda: other.after(0, 1),
        lambda: other.noted([1]),
        other.alive,
        store.changes,
        lambda: store.note(key("a"), near("b")),
        lambda: store.served("id", key("a")),
        lambda: store.served_all([("id", key("a"))]),
        lambda: store.served_key("id"),
    ):
        with pytest.raises(StoreError, match="is closed"):
            call()
    other.close()


def test_threads_follow_the_log_until_the_store_is_closed(store):
    """What comes is seen once, in its order, whatever goes meanwhile."""
    seen: list[list[int]] = [[], []]
    trouble = []

    def follow(mine: list[int]) -> None:
        log = store.changes()
        ready.wait()
        try:
            while True:
                for row in log.after(mine[-1] if mine else 0, 7):
                    mine.append(row.seq)
                    assert len(row.vector) == 768
                log.noted(mine[-20:])
                log.alive()
        except StoreError as error:
            trouble.append(str(error))

    ready = threading.Barrier(3)
    threads = [threading.Thread(target=follow, args=(mine,)) for mine in seen]
    for thread in threads:
        thread.start()
    ready.wait()
    for number in range(300):
        put(store, number, near=near(number), tag=str(number % 5))
        if number % 50 == 49:
            store.purge("3")
        if number % 10 == 9:
            store.note(key(number), near("again"))
    last = max(store.changes().alive())
    kept = set(store.changes().alive())
    while not all(mine and mine[-1] == last for mine in seen) and all(
        thread.is_alive() for thread in threads
    ):
        pass
    store.close()
    for thread in threads:
        thread.join()
    assert len(trouble) == 2
    assert all("is closed" in text for text in trouble)
    for mine in seen:
        assert mine == sorted(set(mine))
        assert kept <= set(mine)


# Both do the same.

NAMED = st.integers(0, 5)
STEPS = st.one_of(
    st.tuples(st.just("put"), NAMED, st.none() | NAMED, st.sampled_from(["one", "two"]), st.integers(0, 9)),
    st.tuples(st.just("note"), NAMED, NAMED),
    st.tuples(st.just("served"), NAMED, NAMED),
    st.tuples(st.just("delete"), NAMED),
    st.tuples(st.just("purge"), st.sampled_from(["one", "two"])),
    st.tuples(st.just("clear")),
    st.tuples(st.just("expire")),
    st.tuples(st.just("wait"), st.integers(1, 5)),
)


def step(store, what, *words):
    if what == "put":
        name, asked, tag, seconds = words
        asked = near(asked) if asked is not None else None
        return put(store, name, tag=tag, seconds=seconds, near=asked)
    if what == "note":
        return store.note(key(words[0]), near(words[1]))
    if what == "served":
        return store.served(str(words[0]), key(words[1]))
    if what == "delete":
        return store.delete([key(words[0])])
    return getattr(store, what)(*words) and None


def view(store, log):
    there = list(log.alive())
    return (
        log.after(0, 100),
        log.noted(there),
        there,
        store.stats().vectors,
        [store.get(key(name)) for name in range(6)],
        [store.served_key(str(name)) for name in range(6)],
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_a_store_in_memory_and_one_on_disk_do_the_same(tmp_path_factory, steps):
    clock = Clock()
    stores = [
        MemoryStore(LIMIT, clock, entries=4),
        DiskStore.open(tmp_path_factory.mktemp("both") / "answers", LIMIT, clock, entries=4),
    ]
    logs = [store.changes() for store in stores]
    for what, *words in steps:
        if what == "wait":
            clock.now += words[0]
        else:
            assert len({step(store, what, *words) for store in stores}) == 1
        # On disk, what is over goes when something is put; in memory, when it is told to.
        for store in stores:
            store.expire()
        memory, disk = (view(store, log) for store, log in zip(stores, logs, strict=True))
        assert memory == disk
    for store in stores:
        store.close()
