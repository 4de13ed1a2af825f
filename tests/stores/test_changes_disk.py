"""sidecar.stores.changes: what is on disk of questions and ids, what is left of it, and what is damaged."""

import random

import pytest

from sidecar.stores import changes
from sidecar.stores.base import Blob, Near
from sidecar.stores.disk import DiskStore
from tests.stores.answers_rig import DATABASE, HOUR, LIMIT, Clock, by_hand, key, logged, names, near, put
from tests.stores.rig import copied, files_with

SECRET = b"the-planted-secret"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data" / "answers"


@pytest.fixture
def opened(folder, clock):
    """`opened()`: the store in the folder."""
    made = []

    def opened(limit=LIMIT, **named):
        made.append(DiskStore.open(folder, limit, clock, **named))
        return made[-1]

    yield opened
    for store in made:
        store.close()


@pytest.fixture
def store(opened):
    return opened()


# What is removed is gone.


def personal(dice: random.Random) -> Near:
    """A question of any size, which is all secret."""
    sizes = [2, 20, 42, 43, 60, 200, 230, 500]
    return Near(key("scope"), SECRET * dice.choice(sizes), SECRET * dice.choice(sizes))


def scattered(store: DiskStore) -> None:
    """Secret and other questions, in every order; some replaced, some noted later, some dropped."""
    dice = random.Random(7)
    for number in range(500):
        put(store, dice.randrange(300), b"other", tag="other", near=near(number))
        name = f"secret {dice.randrange(200)}"
        put(store, name, b"blob", tag="secret", seconds=10 + number, near=personal(dice))
        if number % 3 == 0:
            store.note(key(name), personal(dice))
        store.served(SECRET.decode() + str(number), key(name))
        store.served(SECRET.decode() * 3, key(name))


REMOVALS = {
    "purge": lambda store, clock: store.purge("secret"),
    "clear": lambda store, clock: store.clear(),
    "delete": lambda store, clock: store.delete([key(f"secret {number}") for number in range(200)]),
    "expire": lambda store, clock: setattr(clock, "now", 1600.0) or store.expire(),
}


@pytest.mark.parametrize("entries", [100_000, 300])
@pytest.mark.parametrize("name", REMOVALS)
def test_what_was_removed_is_in_no_file(opened, folder, clock, name, entries):
    store = opened(32 << 20, entries=entries)
    scattered(store)
    log = store.changes()
    assert log.after(0, 1000)
    assert files_with(folder, SECRET)
    assert REMOVALS[name](store, clock) >= 100
    assert files_with(folder, SECRET) == []
    assert (folder / f"{DATABASE}-wal").stat().st_size == 0
    store.close()
    assert files_with(folder, SECRET) == []


def test_what_made_room_is_in_no_file_either(opened, folder):
    store = opened(1 << 20)
    dice = random.Random(8)
    for number in range(150):
        put(store, f"secret {number}", near=personal(dice))
        put(store, number, near=near(number))
    for number in range(300):
        put(store, f"more {number}", near=near(number))
    assert names(store, [f"secret {number}" for number in range(150)]) == []
    store.close()
    assert files_with(folder, SECRET) == []


@pytest.mark.parametrize("how", ["another question", "the end of the log"])
def test_what_has_left_the_log_is_gone_with_the_next_removal(opened, folder, how):
    store = opened(entries=3)
    put(store, "a", near=personal(random.Random(9)))
    if how == "another question":
        store.note(key("a"), near("a"))
    else:
        for number in range(3):
            put(store, number, near=near(number))
    assert store.get(key("a")) == b"blob"
    store.delete([])
    assert files_with(folder, SECRET) == []


def test_no_question_shares_a_page_with_another(opened, folder):
    store = opened(32 << 20)
    scattered(store)
    store.close()
    content = (folder / DATABASE).read_bytes()
    pages = [content[start : start + 4096] for start in range(0, len(content), 4096)]
    found = [page for page in pages if SECRET in page]
    assert len(found) > 100
    # A page with rows begins with its kind; one for the rest of a row, with the number of the next.
    assert {page[0] for page in found} == {0}


def test_ids_are_in_no_file(store, folder):
    put(store, "a")
    store.served(SECRET.decode(), key("a"))
    assert store.served_key(SECRET.decode()) == key("a")
    assert files_with(folder, SECRET) == []


def test_what_could_not_be_wiped_is_wiped_later(store, folder):
    """Not even a log that reads all the time keeps it from being wiped in the end."""
    put(store, "a", near=personal(random.Random(1)))
    log = store.changes()
    store._sql("PRAGMA busy_timeout=0")
    log._connection.execute("BEGIN")
    log._connection.execute("SELECT count(*) FROM Changes").fetchall()
    assert store.purge("tag") == 1
    assert files_with(folder, SECRET)
    log._connection.execute("COMMIT")
    put(store, "b")
    assert files_with(folder, SECRET) == []


# What it costs.


def test_a_question_takes_a_page_and_a_bit(store):
    for number in range(200):
        put(store, number, b"pointer")
    before = store.stats().bytes
    for number in range(200):
        store.note(key(number), near(number, traits=bytes(1000)))
    assert 200 * 4096 < store.stats().bytes - before < 200 * 4900


def test_listing_and_counting_reads_no_questions(store):
    for statement, values in ((changes._ALIVE, (0, 10)), (changes.COUNT, ())):
        plan = store._rows(f"EXPLAIN QUERY PLAN {statement}", *values)
        assert all("USING COVERING INDEX Changes_seq" in row[-1] for row in plan)
        assert not any("TEMP B-TREE" in row[-1] for row in plan)


def test_an_answer_without_a_question_asks_nothing_of_the_log(store):
    said: list[str] = []
    put(store, "a")
    store._writer.set_trace_callback(said.append)
    put(store, "a")
    put(store, "b")
    assert said
    assert not [text for text in said if "Changes" in text or "Served" in text]


def test_more_than_there_may_be_goes_as_others_come(opened):
    """Who opens the store with other limits, to look at it, drops nothing."""
    store = opened(16 << 20)
    store.put_all([Blob(key(number), b"", "tag", HOUR, near(number)) for number in range(1000)])
    store.close()
    store = opened(16 << 20, entries=10)
    put(store, "no question")
    assert len(logged(store)) == 1000
    before = set(logged(store))
    put(store, "new", near=near("new"))
    after = set(logged(store))
    assert before - after == {key(number) for number in range(257)}
    for number in range(9):
        store.note(key(number), near(f"new {number}"))
    assert set(logged(store)) == {key("new"), *map(key, range(9))}
    assert len(names(store, range(1000))) == 1000


# Damage.

DAMAGE = [
    "UPDATE Changes SET near = NULL WHERE seq IN (SELECT seq FROM Changes WHERE seq < ?)",
    "UPDATE Changes SET near = 5 WHERE seq < ?",
    "UPDATE Changes SET near = x'' WHERE seq < ?",
    "UPDATE Changes SET near = CAST(substr(near, 2) AS TEXT) WHERE seq < ?",
    "UPDATE Changes SET near = substr(near, 1, length(near) - 1) WHERE seq < ?",
    "UPDATE Changes SET near = (SELECT near FROM Changes WHERE seq = 1001) WHERE seq < ?",
    "UPDATE Changes SET near = zeroblob(length(near)) WHERE seq < ?",
    "UPDATE Changes SET near = substr(near, 1, 493) || x'FFFFFFFF' || substr(near, 498) WHERE seq < ?",
    "UPDATE Changes SET near = substr(near, 1, 999) || x'FFFFFFFF' || substr(near, 1004) WHERE seq < ?",
    "UPDATE Changes SET key = CAST('text' || seq AS TEXT) WHERE seq < ?",
    "UPDATE Changes SET key = CAST('key' || seq AS BLOB) WHERE seq < ?",
]


@pytest.mark.parametrize("statement", DAMAGE)
def test_rows_that_are_damaged_are_left_out(opened, folder, statement):
    """However many there are: what comes after them is found."""
    store = opened(16 << 20)
    store.put_all([Blob(key(number), b"", "tag", HOUR, near(number)) for number in range(1005)])
    store.close()
    by_hand(folder, statement, values=(1001,))
    store = opened(16 << 20)
    assert store.set_aside is None
    log = store.changes()
    assert [row.seq for row in log.after(0, 3)] == [1001, 1002, 1003]
    assert len(log.after(0, 100)) == 5
    assert sorted(log.noted(range(1, 1006))) == [1001, 1002, 1003, 1004, 1005]
    assert len(log.alive()) == 1005
    # Put again, it is whole again; and it all goes with the rest.
    put(store, 3, near=near(3))
    assert log.after(1005, 10)[0].vector == near(3).vector
    store.clear()
    assert log.after(0, 100) == []


def test_ids_that_lead_to_something_else_than_a_key(opened, folder):
    store = opened()
    put(store, "a")
    store.served("id", key("a"))
    store.close()
    by_hand(folder, "UPDATE Served SET key = 'text'")
    assert opened().served_key("id") is None


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE Changes",
        "DROP TABLE Served",
        "DROP INDEX Changes_seq",
        "DROP INDEX Served_key",
        "DROP TRIGGER Cache_gone",
        "ALTER TABLE Changes ADD COLUMN more",
        "PRAGMA user_version = 2",
    ],
)
def test_a_database_of_another_kind_is_set_aside(opened, folder, statement):
    opened().close()
    by_hand(folder, statement)
    store = opened()
    assert store.set_aside is not None
    put(store, "a", near=near("a"))
    assert logged(store) == {key("a"): near("a")}


# Who reads it.


def test_it_is_there_after_a_restart(opened):
    store = opened()
    put(store, "a", near=near("a"))
    store.served("id", key("a"))
    (before,) = store.changes().after(0, 10)
    store.close()
    store = opened()
    assert store.changes().after(0, 10) == [before]
    assert store.served_key("id") == key("a")
    store.clear()
    store.close()
    store = opened()
    put(store, "a", near=near("a"))
    assert store.changes().after(0, 10)[0].seq > before.seq


def test_a_log_only_reads(store):
    log = store.changes()
    assert log._connection.execute("PRAGMA query_only").fetchall() == [(1,)]
    assert log._connection.execute("PRAGMA busy_timeout").fetchall() == [(1000,)]


def test_what_is_not_committed_yet_is_not_seen(store, folder, tmp_path, clock):
    log = store.changes()
    put(store, "a", near=near("a"))
    with store._cache.transact():
        changes.add(store._writer, key("b"), near("b"))
        assert len(log.after(0, 10)) == 1
        crashed = copied(folder, tmp_path / "copy")
    assert len(log.after(0, 10)) == 2
    other = DiskStore.open(crashed, LIMIT, clock)
    assert logged(other) == {key("a"): near("a")}
    other.close()
