"""sidecar.stores.sqlite: a database that cannot be used makes way for an empty one, and is not lost."""

import random
import sqlite3
import stat
from functools import partial

import pytest

from sidecar.stores.jobs import JobStore, StoreError
from tests.stores.rig import DATABASE, FAULT, copied, finished, order, record, result

SIZE_STEPS = [0, 1, 15, 16, 99, 100, 511, 512, 4095, 4096, 4097, 8192, 0.3, 0.5, 0.9, -4096, -1]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A closed store with something of everything in it."""
    folder = tmp_path_factory.mktemp("original") / "jobs"
    store = JobStore.open(folder)
    for number in range(20):
        finished(store, f"ended-{number}", bytes([number]) * number * 900)
        store.add(record(f"queued-{number}", webhook="https://h.test/"), order(b"p" * number * 900))
        store.add(record(f"running-{number}"), order())
        store.begin(f"running-{number}", 1.0)
    store.close()
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return copied(original, tmp_path / "jobs")


def opened_empty(folder, damaged: bytes | None = None):
    """The store opens, is empty and works; what was damaged is beside it, as it was."""
    store = JobStore.open(folder)
    aside = store.set_aside
    assert aside is not None
    assert aside.parent == folder
    assert aside.name.startswith(f"{DATABASE}.damaged-")
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    if damaged is not None:
        assert aside.read_bytes() == damaged
    assert store.queued() == []
    assert store.get("ended-1") is None
    finished(store, "new")
    store.close()
    store = JobStore.open(folder)
    assert store.set_aside is None
    assert store.get("new").status == "complete"
    store.close()
    return aside


def by_hand(path, *statements):
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize("length", SIZE_STEPS)
def test_a_truncated_database(folder, length):
    content = (folder / DATABASE).read_bytes()
    if isinstance(length, float):
        length = int(len(content) * length)
    damaged = content[:length]
    (folder / DATABASE).write_bytes(damaged)
    opened_empty(folder, damaged)


@pytest.mark.parametrize(
    "content",
    [b"\0", b"\0" * 100_000, b"a text file\n" * 1000, b"SQLite format 3\0" * 1000, bytes(range(256)) * 400],
    ids=["a zero", "zeros", "text", "headers", "bytes"],
)
def test_something_else_than_a_database(folder, content):
    (folder / DATABASE).write_bytes(content)
    opened_empty(folder, content)


@pytest.mark.parametrize(
    "statement",
    [
        "PRAGMA user_version = 2",
        "PRAGMA user_version = 0",
        "PRAGMA user_version = -1",
        "DROP TABLE results",
        "ALTER TABLE jobs ADD COLUMN more",
        "CREATE TABLE more (a)",
    ],
)
def test_a_database_of_another_version(folder, statement):
    by_hand(folder / DATABASE, statement)
    aside = opened_empty(folder, (folder / DATABASE).read_bytes())
    by_hand(aside, "PRAGMA integrity_check")


def test_somebody_elses_database(folder):
    (folder / DATABASE).unlink()
    by_hand(folder / DATABASE, "CREATE TABLE theirs (a)", "PRAGMA user_version = 1")
    opened_empty(folder, (folder / DATABASE).read_bytes())


FLIPS = {
    "magic": 0,
    "page size": 16,
    "write version": 18,
    "read version": 19,
    "format": 47,
    "root": 100,
}


@pytest.mark.parametrize("place", FLIPS.values(), ids=FLIPS)
def test_a_damaged_header(folder, place):
    content = bytearray((folder / DATABASE).read_bytes())
    content[place] ^= 0x40
    (folder / DATABASE).write_bytes(content)
    opened_empty(folder)


@pytest.mark.parametrize("content", [b"\0", b"\xff"], ids=["zeros", "ones"])
@pytest.mark.parametrize("page", range(2, 10))
def test_a_page_that_was_overwritten(folder, page, content):
    """The second says what the others are for, the rest are the first of each table and index."""
    damaged = bytearray((folder / DATABASE).read_bytes())
    damaged[(page - 1) * 4096 : page * 4096] = content * 4096
    (folder / DATABASE).write_bytes(damaged)
    opened_empty(folder)


def test_a_row_that_its_index_does_not_know(folder):
    by_hand(
        folder / DATABASE,
        "PRAGMA writable_schema = ON",
        "CREATE TABLE kept AS SELECT * FROM sqlite_master WHERE name = 'jobs_ended'",
        "DELETE FROM sqlite_master WHERE name = 'jobs_ended'",
        "PRAGMA writable_schema = RESET",
        "DELETE FROM jobs WHERE id = 'ended-1'",
        "PRAGMA writable_schema = ON",
        "INSERT INTO sqlite_master SELECT * FROM kept",
        "DROP TABLE kept",
    )
    opened_empty(folder)


def test_any_flipped_bits(original, tmp_path):
    """They may go unnoticed in what SQLite takes as it is; but nothing else than a StoreError comes of it."""
    content = (original / DATABASE).read_bytes()
    dice, aside = random.Random(5), 0
    for turn in range(60):
        folder = tmp_path / str(turn)
        folder.mkdir()
        damaged = bytearray(content)
        for _ in range(dice.choice([1, 1, 5, 50])):
            place = dice.randrange(dice.choice([100, 4096, 40_000, len(content)]))
            damaged[place] ^= 1 << dice.randrange(8)
        (folder / DATABASE).write_bytes(damaged)
        store = JobStore.open(folder)
        if store.set_aside is not None:
            aside += 1
            assert store.queued() == []
        for call in everything(store):
            try:
                call()
            except StoreError as error:
                assert "\n" not in str(error)
        store.close()
    assert aside > 20


def everything(store):
    yield partial(store.interrupt, 9.0, FAULT)
    yield store.queued
    yield store.webhooks
    for number in range(20):
        yield partial(store.get, f"running-{number}")
        yield partial(store.result, f"ended-{number}")
        yield partial(store.begin, f"queued-{number}", 1.0)
    yield partial(store.add, record("new"), order())
    yield partial(store.finish, "queued-1", "complete", 2.0, {}, None, result())
    yield partial(store.expire, 1e12)


# A database is more than one file.


@pytest.fixture
def killed(folder, tmp_path):
    """What a process left that was killed: a log that is not yet in the database."""
    store = JobStore.open(folder)
    store.add(record("logged"), order(b"in the log"))
    left = copied(folder, tmp_path / "killed")
    store.close()
    assert (left / f"{DATABASE}-wal").stat().st_size > 0
    return left


def test_the_log_of_a_killed_process_counts(killed):
    store = JobStore.open(killed)
    assert store.set_aside is None
    assert store.begin("logged", 1.0) == order(b"in the log")
    store.close()


@pytest.mark.parametrize("content", [b"", b"text"])
def test_a_damaged_database_takes_its_log_along(killed, content):
    (killed / DATABASE).write_bytes(content)
    opened_empty(killed)


def test_a_log_without_its_database_is_not_played_into_a_new_one(killed):
    (killed / DATABASE).unlink()
    log = (killed / f"{DATABASE}-wal").read_bytes()
    aside = opened_empty(killed, log)
    assert aside.name.endswith("-wal")


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 100_000])
@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_nonsense_beside_a_database_does_not_hurt_it(folder, suffix, content):
    (folder / (DATABASE + suffix)).write_bytes(content)
    store = JobStore.open(folder)
    assert store.set_aside is None
    assert len(store.queued()) == 20
    store.close()


def test_what_was_left_half_made_is_made_anew(tmp_path):
    folder = tmp_path / "jobs"
    folder.mkdir()
    for suffix in ("", "-journal", "-wal"):
        (folder / f"{DATABASE}.new{suffix}").write_bytes(b"half")
    store = JobStore.open(folder)
    assert store.set_aside is None
    finished(store, "new")
    store.close()
    assert sorted(file.name for file in folder.iterdir()) == ["jobs.lock", DATABASE]


def test_several_damaged_ones_are_all_kept(folder):
    for content in (b"one", b"two", b"three"):
        (folder / DATABASE).write_bytes(content)
        JobStore.open(folder).close()
    kept = {file.read_bytes() for file in folder.glob("*.damaged-*")}
    assert kept == {b"one", b"two", b"three"}


# A folder that is of no use at all.


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "jobs").write_bytes(b"")
    with pytest.raises(OSError):
        JobStore.open(tmp_path / "jobs")


def test_a_database_that_is_a_folder(tmp_path):
    blocking = tmp_path / DATABASE
    blocking.mkdir()
    with pytest.raises(OSError, match=DATABASE):
        JobStore.open(tmp_path)
    # The lock was let go of.
    blocking.rmdir()
    JobStore.open(tmp_path).close()
