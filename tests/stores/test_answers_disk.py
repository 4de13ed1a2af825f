"""sidecar.stores.disk: what its files hold, who may read them, and what becomes of damaged ones."""

import fcntl
import gc
import math
import os
import random
import sqlite3
import stat
import threading
import weakref
from contextlib import closing
from pathlib import Path

import diskcache
import pytest

from sidecar.stores import diskopen
from sidecar.stores.base import Change, Near, StoreError
from sidecar.stores.disk import DiskStore
from sidecar.stores.diskbytes import BytesDisk
from tests.stores.answers_rig import (
    DATABASE,
    LIMIT,
    Clock,
    Trap,
    by_hand,
    is_whole,
    key,
    names,
    near,
    put,
    sealed,
)
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

    def opened(limit=LIMIT):
        made.append(DiskStore.open(folder, limit, clock))
        return made[-1]

    yield opened
    for store in made:
        store.close()


@pytest.fixture
def store(opened):
    return opened()


def told_of(call, *arguments) -> str:
    with pytest.raises(StoreError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert SECRET.decode() not in str(caught.value)
    return str(caught.value)


def free_lock(folder: Path) -> bool:
    """Nobody has the store claimed."""
    file = os.open(folder.with_name(folder.name + ".lock"), os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(file)


# Bytes, and nothing else.


@pytest.fixture
def trap(tmp_path):
    trap = Trap(tmp_path / "trace")
    yield trap
    assert not trap.trace.exists()


@pytest.mark.parametrize("value", ["text", 5, 1.5, None, bytearray(b"b"), memoryview(b"b"), [b"b"], ("b",)])
def test_only_bytes_go_in(value):
    disk = BytesDisk("unused")
    for call in (
        lambda: disk.put(value),
        lambda: disk.hash(value),
        lambda: disk.store(value, False, key=b"key"),
        lambda: disk.store(b"value", False, key=value),
        lambda: disk.store(value, True, key=b"key"),
    ):
        with pytest.raises(TypeError):
            call()


def test_no_files_go_in(tmp_path):
    disk = BytesDisk(str(tmp_path))
    with (tmp_path / "file").open("wb+") as file, pytest.raises(TypeError):
        disk.store(file, True, key=b"key")
    with pytest.raises(TypeError):
        disk.store(b"value", True, key=b"key")
    with pytest.raises(TypeError):
        disk.store(b"value", False)
    for call in (disk.filename, lambda: disk.filename(b"key", b"value")):
        with pytest.raises(ValueError):
            call()
    disk.remove("file")
    assert (tmp_path / "file").exists()


def test_only_bytes_come_out(tmp_path, trap):
    disk = BytesDisk(str(tmp_path))
    (tmp_path / "file").write_bytes(trap.pickled())
    _, mode, name, value = disk.store(b"value", False, key=b"key")
    value = bytes(value)
    assert (mode, name) == (1, None)
    assert disk.fetch(1, None, value, False) == b"value"
    assert disk.get(b"key", 1) == b"key"
    for wrong in (
        lambda: disk.get(trap.pickled(), 0),
        lambda: disk.get(b"key", 0),
        lambda: disk.get(b"key", None),
        lambda: disk.get("key", 1),
        lambda: disk.fetch(4, None, trap.pickled(), False),
        lambda: disk.fetch(4, None, value, False),
        lambda: disk.fetch(4, "file", None, False),
        lambda: disk.fetch(2, "file", None, False),
        lambda: disk.fetch(3, "file", None, False),
        lambda: disk.fetch(0, None, value, False),
        lambda: disk.fetch(None, None, value, False),
        lambda: disk.fetch(1, "file", value, False),
        lambda: disk.fetch(1, None, value, True),
        lambda: disk.fetch(1, None, "text", False),
        lambda: disk.fetch(1, None, 5, False),
        lambda: disk.fetch(1, None, None, False),
        lambda: disk.fetch(1, None, b"", False),
        lambda: disk.fetch(1, None, value[:-1], False),
        lambda: disk.fetch(1, None, value + b"\0", False),
        lambda: disk.fetch(1, None, b"\0" * len(value), False),
        lambda: disk.fetch(1, None, value, False, b"another"),
        lambda: disk.fetch(1, None, b"\xff" * len(value), False),
    ):
        with pytest.raises(ValueError):
            wrong()


def test_diskcache_itself_would_fall_for_it(store, folder, tmp_path):
    """What the next test plants does unpickle where nothing keeps it from that."""
    trap = Trap(tmp_path / "trace")
    put(store, "a", seconds=1e10)
    store.close()
    by_hand(folder, "UPDATE Cache SET mode = 4, value = ?", values=(trap.pickled(),))
    with diskcache.Cache(str(folder)) as cache:
        cache.get(key("a"))
    assert trap.trace.exists()
    trap.trace.rmdir()


PLANTED = [
    "UPDATE Cache SET mode = 4, value = ?1",
    "UPDATE Cache SET mode = 4, filename = 'value.pickle', value = NULL, tag = ifnull(tag, ?1)",
    "UPDATE Cache SET mode = 2, filename = 'value.pickle', value = NULL, tag = ifnull(tag, ?1)",
    "UPDATE Cache SET mode = 3, filename = 'value.pickle', value = NULL, tag = ifnull(tag, ?1)",
    "UPDATE Cache SET filename = 'value.pickle', tag = ifnull(tag, ?1)",
    "UPDATE Cache SET value = ?1",
    "UPDATE Cache SET value = CAST(?1 AS TEXT)",
    "UPDATE Cache SET value = 5, tag = ifnull(tag, ?1)",
    "UPDATE Cache SET value = NULL, tag = ifnull(tag, ?1)",
]


@pytest.mark.parametrize("statement", PLANTED)
def test_values_that_were_planted(opened, folder, trap, statement):
    store = opened()
    put(store, "a")
    store.close()
    (folder / "value.pickle").write_bytes(trap.pickled())
    by_hand(folder, statement, values=(trap.pickled(),))
    store = opened()
    assert store.set_aside is None
    told_of(store.get, key("a"))
    store.touch([key("a")])
    if "filename" not in statement:
        assert list(store.rows(10)) == []
    put(store, "a", b"new")
    assert store.get(key("a")) == b"new"
    store.close()
    by_hand(folder, statement, values=(trap.pickled(),))
    store = opened()
    assert store.purge("tag") == 1
    assert (folder / "value.pickle").exists()


def test_keys_that_were_planted(opened, folder, trap, clock):
    store = opened(400_000)
    put(store, "a")
    store.close()
    insert = (
        "INSERT INTO Cache (key, raw, store_time, expire_time, access_time, tag, mode, value)"
        " SELECT ?1, 0, store_time, 1e9, access_time, tag, mode, value FROM Cache WHERE raw = 1"
    )
    by_hand(folder, insert, values=(trap.pickled(),))
    by_hand(folder, "INSERT INTO Cache (key, raw, expire_time, tag, mode, value)"
            " SELECT 'text', 1, 1e9, tag, mode, value FROM Cache WHERE raw = 0")  # fmt: skip
    store = opened(400_000)
    assert store.set_aside is None
    assert store.get(trap.pickled()) is None
    assert [row.key for row in store.rows(0)] == [key("a")]
    for number in range(100):
        put(store, number, bytes(10_000))
    assert store._rows("SELECT count(*) FROM Cache WHERE raw = 0 OR key = 'text'") == [(0,)]
    store.close()
    by_hand(folder, "UPDATE Cache SET raw = 0")
    store = opened(400_000)
    assert store.clear() > 10


def test_a_files_name_that_was_planted(opened, folder, tmp_path):
    """diskcache would remove that file."""
    victim = tmp_path / "victim"
    victim.touch()
    store = opened()
    for name in "ab":
        put(store, name)
    store.close()
    by_hand(folder, "UPDATE Cache SET filename = ?", values=(str(victim),))
    store = opened()
    put(store, "a")
    assert store.clear() == 2
    assert victim.exists()


# Who may read it.


def modes(folder):
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def test_nobody_else_may_read_it(store, folder):
    put(store, "a")
    store.get(key("a"))
    assert modes(folder) == dict.fromkeys((DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"), 0o600)
    assert modes(folder.parent) == {"answers": 0o700, "answers.lock": 0o600}


def test_files_that_others_may_read_are_closed_to_them(opened, folder):
    store = opened()
    put(store, "a")
    store.close()
    folder.chmod(0o755)
    (folder / DATABASE).chmod(0o644)
    store = opened()
    put(store, "b")
    assert set(modes(folder).values()) == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert names(store, "ab") == ["a", "b"]


def test_all_is_in_the_database(store, folder):
    put(store, "a", bytes(3_000_000))
    assert {path.name for path in folder.iterdir()} == {DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"}


# Settings.

PRAGMAS = {
    "journal_mode": "wal",
    "synchronous": 1,
    "mmap_size": 0,
    "cache_size": -2048,
    "secure_delete": 1,
    "trusted_schema": 0,
    "cell_size_check": 1,
    "auto_vacuum": 2,
    "page_size": 4096,
    "busy_timeout": 1000,
    "temp_store": 2,
}


def settings_of(store):
    for connection, own in ((store._writer, {}), (store._reader, {"query_only": 1})):
        found = {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in PRAGMAS | own}
        assert found == PRAGMAS | own
    cache = store._cache
    return cache.eviction_policy, cache.statistics, cache.tag_index, cache.size_limit, cache.cull_limit


def test_settings(store):
    assert settings_of(store) == ("least-recently-used", 0, 1, LIMIT, 0)


def test_settings_in_the_file_mean_nothing(opened, folder):
    opened().close()
    for name, value in {
        "eviction_policy": "none",
        "statistics": 1,
        "tag_index": 0,
        "size_limit": 1,
        "cull_limit": 1000,
        "sqlite_mmap_size": 1 << 30,
        "sqlite_synchronous": 0,
        "sqlite_journal_mode": "delete",
        "sqlite_cache_size": 100_000,
        "sqlite_auto_vacuum": 0,
        "disk_min_file_size": 0,
        "count": "many",
    }.items():
        by_hand(folder, "UPDATE Settings SET value = ? WHERE key = ?", values=(value, name))
    store = opened()
    assert store.set_aside is None
    assert settings_of(store) == ("least-recently-used", 0, 1, LIMIT, 0)
    put(store, "a", bytes(100_000))
    assert names(store, "a") == ["a"]
    assert store.stats().entries == 1
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize(
    "name", ["sqlite_writable_schema", "sqlite_secure_delete", "disk_x", "more", None, 5]
)
def test_unknown_settings_are_damage(opened, folder, name):
    opened().close()
    by_hand(folder, "INSERT INTO Settings VALUES (CAST(? AS BLOB), 0)", values=(name or "",))
    assert opened().set_aside is not None


def test_another_limit_holds_from_the_start(opened):
    store = opened()
    for number in range(50):
        put(store, number, bytes(100_000))
    assert store.stats().bytes > 5_000_000
    store.close()
    store = opened(1 << 20)
    assert store.stats().bytes <= 1 << 20
    there = names(store, range(50))
    assert there == list(range(50 - len(there), 50))
    assert len(there) > 5
    store.close()
    assert opened(1 << 30).stats().limit == 1 << 30


def test_a_lookup_is_one_statement_that_writes_nothing(store):
    put(store, "a")
    said = []
    store._reader.set_trace_callback(said.append)
    store._writer.set_trace_callback(said.append)
    before = store._reader.execute("PRAGMA data_version").fetchall()
    said.clear()
    assert store.get(key("a")) == b"blob"
    assert len(said) == 1
    assert said[0].startswith("SELECT")
    assert store.get(key("b")) is None
    assert len(said) == 2
    assert store._reader.execute("PRAGMA data_version").fetchall() == before
    assert not store._reader.in_transaction


def test_infinite_times(store):
    put(store, "a", seconds=math.inf)
    put(store, "b", seconds=1e300)
    put(store, "c", seconds=-math.inf)
    assert names(store, "abc") == ["a", "b"]
    assert store.get(key("a")) == b"blob"
    assert store.stats().entries == 2


# Damage.


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A closed store with blobs of all sizes."""
    folder = tmp_path_factory.mktemp("original") / "answers"
    store = DiskStore.open(folder, LIMIT)
    dice = random.Random(4)
    for number in range(60):
        put(store, number, blob_of(number), tag=str(number % 3), near=near(number) if number % 2 else None)
        store.served(str(number), key(number))
    store.delete([key(dice.randrange(60)) for _ in range(10)])
    store.close()
    return folder


def blob_of(number):
    dice = random.Random(number)
    return sealed(dice.randbytes(dice.choice([0, 100, 3000, 5000, 40_000])))


@pytest.fixture
def copy(original, folder):
    folder.parent.mkdir()
    return copied(original, folder)


def opened_empty(folder, opened) -> Path:
    """The store opens, is empty and works; what was damaged is beside it."""
    store = opened()
    aside = store.set_aside
    assert aside is not None
    assert aside.parent == folder.parent
    assert aside.name.startswith("answers.damaged-")
    assert stat.S_IMODE(aside.stat().st_mode) == 0o700
    assert list(store.rows(0)) == []
    put(store, "new")
    store.close()
    store = opened()
    assert store.set_aside is None
    assert names(store, ["new"]) == ["new"]
    store.close()
    assert free_lock(folder)
    return aside


@pytest.mark.parametrize("length", [0, 1, 15, 100, 511, 4095, 4096, 4097, 8192, 0.3, 0.5, 0.9, -4096, -1])
def test_a_truncated_database(copy, opened, length):
    content = (copy / DATABASE).read_bytes()
    damaged = content[: int(len(content) * length) if isinstance(length, float) else length]
    (copy / DATABASE).write_bytes(damaged)
    aside = opened_empty(copy, opened)
    assert (aside / DATABASE).read_bytes() == damaged


@pytest.mark.parametrize(
    "content",
    [
        b"\0" * 100_000,
        b"a text file\n" * 1000,
        b"SQLite format 3\0" * 1000,
        random.Random(6).randbytes(40_960),
    ],
    ids=["zeros", "text", "headers", "random"],
)
def test_something_else_than_a_database(copy, opened, content):
    (copy / DATABASE).write_bytes(content)
    assert (opened_empty(copy, opened) / DATABASE).read_bytes() == content


@pytest.mark.parametrize(
    "statement",
    [
        "PRAGMA user_version = 99",
        "PRAGMA user_version = 0",
        "DROP TABLE Settings",
        "DROP INDEX Cache_tag_rowid",
        "DROP TRIGGER Settings_size_update",
        "DELETE FROM Settings WHERE key = 'count'",
        "ALTER TABLE Cache ADD COLUMN more",
        "CREATE TABLE more (a)",
        "CREATE VIEW more AS SELECT * FROM Cache",
        "CREATE TRIGGER more AFTER INSERT ON Cache BEGIN DELETE FROM Cache; END",
        "CREATE INDEX more ON Cache (value)",
    ],
)
def test_a_database_of_another_kind(copy, opened, statement):
    by_hand(copy, statement)
    opened_empty(copy, opened)


def test_a_cache_that_diskcache_made(folder, opened):
    with diskcache.Cache(str(folder)) as cache:
        cache["key"] = ["value"]
    opened_empty(folder, opened)


def test_a_folder_without_a_database(copy, opened):
    (copy / DATABASE).rename(copy / f"{DATABASE}-wal")
    opened_empty(copy, opened)


def test_a_folder_in_the_place_of_the_database(copy, opened):
    (copy / DATABASE).unlink()
    (copy / DATABASE).mkdir()
    opened_empty(copy, opened)


def test_an_empty_folder_is_none_that_is_damaged(folder, opened):
    folder.mkdir(parents=True)
    store = opened()
    assert store.set_aside is None
    put(store, "a")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert modes(folder.parent) == {"answers": 0o700, "answers.lock": 0o600}


def test_a_draft_that_was_left(folder, opened):
    opened().close()
    folder.rename(folder.with_name("answers.new"))
    (folder.with_name("answers.new") / "more").touch()
    store = opened()
    assert store.set_aside is None
    assert set(modes(folder.parent)) == {"answers", "answers.lock"}


def test_only_the_last_damaged_one_is_kept(folder, opened):
    for turn in range(4):
        opened().close()
        (folder / DATABASE).write_bytes(bytes([turn]))
        store = opened()
        assert (store.set_aside / DATABASE).read_bytes() == bytes([turn])
        assert set(modes(folder.parent)) == {"answers", "answers.lock", store.set_aside.name}
        store.close()


def test_flipped_bits(original, tmp_path):
    """Set aside, or what is served is what was stored: or shows that it is not."""
    content = (original / DATABASE).read_bytes()
    dice = random.Random(5)
    aside = served = damaged = errors = followed = 0
    asked = {n: Change(n, key("scope"), near(2 * n - 1).vector) for n in range(1, 31)}
    for turn in range(100):
        folder = tmp_path / str(turn) / "answers"
        folder.mkdir(parents=True)
        flipped = bytearray(content)
        for _ in range(dice.choice([1, 1, 5, 50])):
            place = dice.randrange(dice.choice([100, 4096, 40_960, len(content)]))
            flipped[place] ^= 1 << dice.randrange(8)
        (folder / DATABASE).write_bytes(flipped)
        store = DiskStore.open(folder, LIMIT)
        aside += store.set_aside is not None
        for number in range(60):
            try:
                found = store.get(key(number))
            except StoreError as error:
                assert "\n" not in str(error)
                errors += 1
                continue
            if found is None:
                continue
            assert store.set_aside is None
            if is_whole(found):
                assert found == blob_of(number)
                served += 1
            else:
                damaged += 1
        try:
            for row in store.changes().after(0, 1000):
                assert row == asked[row.seq]
                followed += 1
        except StoreError as error:
            assert "\n" not in str(error)
        for call in (
            lambda store=store: store.changes().noted(range(70)),
            lambda store=store: store.changes().alive(),
            lambda store=store: store.note(key(2), near("new")),
            lambda store=store: store.served("new", key(2)),
            lambda store=store: store.served_key("2"),
            lambda store=store: put(store, "near", near=near("near")),
            lambda store=store: put(store, "new", bytes(50_000)),
            lambda store=store: store.touch(map(key, range(60))),
            lambda store=store: list(store.rows(50)),
            lambda store=store: store.purge("1"),
            store.expire,
            store.stats,
            store.clear,
        ):
            try:
                call()
            except StoreError as error:
                assert "\n" not in str(error)
        store.close()
        assert free_lock(folder)
    assert aside > 25
    assert served > 500
    assert followed > 500


def test_pages_that_are_damaged_while_it_is_open(copy, opened):
    """An error, or what was stored; never what belongs to another key."""
    store = opened()
    log = store.changes()
    size = (copy / DATABASE).stat().st_size
    file = os.open(copy / DATABASE, os.O_RDWR)  # closed last: closing it drops SQLite's locks
    dice = random.Random(8)
    seen = set()
    for _ in range(30):
        page = dice.randrange(1, size // 4096)
        os.pwrite(file, dice.randbytes(4096), page * 4096)
        for connection in (store._reader, log._connection):
            connection.execute("PRAGMA shrink_memory")
        for number in range(60):
            try:
                found = store.get(key(number))
            except StoreError as error:
                assert "\n" not in str(error)
                seen.add("error")
            else:
                assert found is None or found == blob_of(number) or not is_whole(found)
        for call in (lambda: log.after(0, 100), lambda: log.noted(range(70)), log.alive):
            try:
                call()
            except StoreError as error:
                assert "\n" not in str(error)
                seen.add("error of the log")
    assert seen == {"error", "error of the log"}
    store.close()
    os.close(file)


def test_a_value_of_another_key(store):
    """Where an index is damaged, SQLite takes the key from it, and the value from wherever it leads."""
    put(store, "a", b"blob of a")
    put(store, "b", b"blob of b")
    ((value,),) = store._rows("SELECT value FROM Cache WHERE key = ?", key("b"))
    store._sql("UPDATE Cache SET value = ? WHERE key = ?", value, key("a"))
    told_of(store.get, key("a"))
    assert store.get(key("b")) == b"blob of b"
    assert [row.key for row in store.rows(10)] == [key("b")]


# What cannot be used at all.


def test_a_file_in_the_way(folder, opened):
    folder.parent.mkdir()
    for path in (folder, folder.with_name("answers.new")):
        path.write_bytes(b"in the way")
        for _ in range(2):
            with pytest.raises(OSError):
                opened()
            assert free_lock(folder)
        assert path.read_bytes() == b"in the way"
        path.unlink()
    folder.with_name("answers.lock").unlink()
    folder.with_name("answers.lock").mkdir()
    with pytest.raises(OSError):
        opened()
    folder.with_name("answers.lock").rmdir()
    assert opened().set_aside is None


def test_a_file_for_a_parent(folder, opened):
    folder.parent.touch()
    with pytest.raises(OSError):
        opened()


@pytest.mark.parametrize("name", ["BytesCache", "check_content", "sync_folder", "connect", "mmap.mmap"])
def test_nothing_is_held_after_a_failure(folder, opened, monkeypatch, name):
    def fails(*arguments, **named):
        raise OSError(5, "Input/output error")

    if name == "check_content":
        opened().close()
    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(f"sidecar.stores.diskopen.{name}", fails)
        with pytest.raises(OSError):
            opened()
    assert descriptors() == before
    assert free_lock(folder)
    assert opened().set_aside is None


def test_one_that_is_kept_locked(folder, opened, monkeypatch):
    opened().close()
    monkeypatch.setattr(diskopen, "_PATIENCE", 0.0)
    file = os.open(folder.with_name("answers.lock"), os.O_RDWR)
    fcntl.flock(file, fcntl.LOCK_EX)
    with pytest.raises(OSError, match="kept locked by another process"):
        opened()
    os.close(file)
    assert opened().set_aside is None


# What goes wrong later.


def test_another_process_that_writes(store, folder):
    put(store, "a")
    store._sql("PRAGMA busy_timeout=0")
    other = sqlite3.connect(folder / DATABASE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for call in (
        lambda: put(store, "b"),
        lambda: store.touch([key("a")]),
        lambda: store.note(key("a"), near("a")),
        lambda: store.served("id", key("a")),
        lambda: store.purge("tag"),
        store.clear,
    ):
        assert told_of(call) == "answers: another process has locked it (SQLITE_BUSY)"
    assert store.get(key("a")) == b"blob"
    other.execute("ROLLBACK")
    other.close()
    put(store, "b")
    assert names(store, "ab") == ["a", "b"]


def test_what_could_not_be_committed_is_undone(store):
    put(store, "a", b"first")
    store._sql("PRAGMA max_page_count=1")  # as many as there are
    assert "the disk is full" in told_of(put, store, "a", bytes(500_000))
    assert not store._writer.in_transaction
    store._sql("PRAGMA max_page_count=1000000")
    assert store.get(key("a")) == b"first"
    put(store, "a", bytes(500_000))
    assert store.get(key("a")) == bytes(500_000)


def test_others_write_while_many_are_deleted(store, folder, monkeypatch):
    for number in range(600):
        put(store, number)
    changes = []
    change = store._claim.change
    monkeypatch.setattr(store._claim, "change", lambda: changes.append(change()))
    other = sqlite3.connect(folder / DATABASE, isolation_level=None, timeout=0)

    def keys():
        for number in range(600):
            other.execute("BEGIN IMMEDIATE")
            other.execute("ROLLBACK")
            yield key(number)

    assert store.delete(keys()) == 600
    other.close()
    assert len(changes) == 2
    assert store.stats().entries == 0


def test_a_deletion_that_is_broken_off_is_told_of_all_the_same(store, folder, opened):
    for number in range(300):
        put(store, number)
    other = opened()
    seen = []

    def keys():
        for number in range(300):
            if number == 200:
                seen.append(other.generation)
                store.close()
            yield key(number)

    assert told_of(store.delete, keys()) == "answers: the store is closed"
    assert other.generation != seen[0]
    assert 0 < other.stats().entries < 300


def test_rows_leave_nothing_behind(store):
    """CPython keeps a reference for every blob that was ever opened on a connection."""
    for number in range(300):
        put(store, number)

    def references():
        gc.collect()
        connections = [one for one in gc.get_objects() if isinstance(one, sqlite3.Connection)]
        held = [one for some in gc.get_referents(*connections) if type(some) is list for one in some]
        return len([one for one in held if isinstance(one, weakref.ref)])

    before = references()
    with closing(store.rows(10)) as rows:
        next(rows)
        assert references() > before + 90  # this does tell of them
    list(store.rows(10))
    assert references() < before + 90


def test_rows_do_not_wait_for_those_who_write(store):
    for number in range(300):
        put(store, number)
    rows = store.rows(10)
    next(rows)
    found = []
    with store._writing:
        reading = threading.Thread(target=lambda: found.extend(rows), daemon=True)
        reading.start()
        reading.join(30)
        assert len(found) == 299


def test_rows_of_a_store_that_is_closed_meanwhile(store):
    for number in range(300):
        put(store, number)
    rows = store.rows(10)
    next(rows)
    store.close()
    assert told_of(list, rows) == "answers: the store is closed"


def test_errors_quote_nothing(store):
    for call in (
        lambda: store.get(SECRET.decode()),
        lambda: put(store, "a", SECRET.decode()),
        lambda: store.put(SECRET.decode(), b"", tag="t", seconds=1),
        lambda: store.put(SECRET * 50, b"", tag="t", seconds=1),
        lambda: store.put(b"k", b"", tag=[SECRET], seconds=1),
        lambda: store.put(b"k", b"", tag=SECRET.decode() + "\ud800", seconds=1),
        lambda: store.touch([[SECRET]]),
        lambda: store.delete([[SECRET]]),
        lambda: store.note(b"k", Near(SECRET, b"", b"")),
        lambda: store.note(b"k", Near(SECRET.decode(), b"", b"")),
        lambda: store.note(SECRET.decode(), near("a")),
        lambda: store.served(SECRET.decode() + "\ud800", b"k"),
        lambda: store.served_key(SECRET.decode() + "\ud800"),
        lambda: store.served("id", [SECRET]),
        lambda: store.changes().after(SECRET.decode(), 5),
        lambda: store.changes().noted([[SECRET]]),
    ):
        try:
            assert not call()
        except StoreError as error:
            assert SECRET.decode() not in str(error)
            assert "\n" not in str(error)
    assert store.stats().entries == 0


# What is deleted is gone.


def scattered(store, clock):
    """Secret and other blobs of all sizes that answers have, put in every order; some replaced."""
    dice = random.Random(7)
    for number in range(400):
        put(store, dice.randrange(300), b"other" * dice.randrange(1500), tag="other")
        blob = SECRET * dice.choice([4, 20, 100, 226, 227, 228, 300, 2000])
        put(store, f"secret {dice.randrange(200)}", blob, tag="secret", seconds=10 + number)


REMOVALS = {
    "purge": lambda store, clock: store.purge("secret"),
    "clear": lambda store, clock: store.clear(),
    "delete": lambda store, clock: store.delete([key(f"secret {number}") for number in range(200)]),
    "expire": lambda store, clock: setattr(clock, "now", 1500.0) or store.expire(),
}


@pytest.mark.parametrize("name", REMOVALS)
def test_what_was_removed_is_in_no_file(store, folder, clock, name):
    scattered(store, clock)
    assert files_with(folder, SECRET)
    assert REMOVALS[name](store, clock) >= 100
    assert files_with(folder, SECRET) == []
    assert (folder / f"{DATABASE}-wal").stat().st_size == 0
    store.close()
    assert files_with(folder, SECRET) == []


def test_no_blob_shares_a_page_with_another(store, folder, clock):
    """What they share, SQLite copies when it moves it; deleting does not wipe the copies."""
    scattered(store, clock)
    store.close()
    content = (folder / DATABASE).read_bytes()
    pages = [content[start : start + 4096] for start in range(0, len(content), 4096)]
    found = [page for page in pages if SECRET in page]
    assert len(found) > 100
    # A page with rows begins with its kind; one for the rest of a row, with the number of the next.
    assert {page[0] for page in found} == {0}


def test_what_is_replaced_is_gone_with_the_next_removal(store, folder):
    put(store, "a", SECRET * 1000)
    put(store, "a", b"other")
    store.delete([])
    assert files_with(folder, SECRET) == []


@pytest.fixture
def onlooker(folder, store):
    """Somebody who is reading the database, and keeps the store from wiping anything."""
    store._sql("PRAGMA busy_timeout=0")
    put(store, "a", SECRET)
    connection = sqlite3.connect(folder / DATABASE, isolation_level=None)
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM Cache").fetchall()
    yield connection
    connection.close()


def test_what_could_not_be_wiped_is_wiped_later(store, folder, onlooker):
    assert store.purge("tag") == 1
    assert files_with(folder, SECRET)
    put(store, "b")
    assert files_with(folder, SECRET)
    onlooker.execute("ROLLBACK")
    put(store, "c")
    assert files_with(folder, SECRET) == []


def test_what_a_dead_process_could_not_wipe_is_wiped_by_the_next(store, folder, onlooker, tmp_path):
    assert store.purge("tag") == 1
    other = copied(folder, tmp_path / "copy")
    assert files_with(other, SECRET)
    following = DiskStore.open(other, LIMIT)
    assert files_with(other, SECRET) == []
    following.close()


def test_the_space_of_what_was_removed_is_given_back(store, folder):
    for number in range(50):
        put(store, number, bytes(100_000), tag=str(number % 2))
    assert store.purge("0") == 25
    assert (folder / DATABASE).stat().st_size < 3_000_000
    assert names(store, range(50)) == list(range(1, 50, 2))
    store.clear()
    assert (folder / DATABASE).stat().st_size < 100_000


# Descriptors.


def descriptors() -> list[str]:
    """What is open, without the listing itself."""
    found = [path for path in Path("/proc/self/fd").iterdir() if path.exists() or path.is_symlink()]
    return sorted(str(path.readlink()) for path in found if path.is_symlink())


def in_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def test_a_log_that_cannot_be_opened_leaves_nothing_open(store, folder, monkeypatch):
    seen = []
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(diskopen, "VERSION", 99)
            told_of(store.changes)
        store.changes().close()
        seen.append(descriptors())
    # SQLite itself keeps the first one for the next, while others of the process have locks on the file.
    assert seen[0] == seen[1] == seen[2]
    (folder / DATABASE).rename(folder / "away")
    told_of(store.changes)
    (folder / "away").rename(folder / DATABASE)
    assert store.changes().after(0, 1) == []


@pytest.mark.parametrize("closer", ["this thread", "a third one"])
def test_close_leaves_no_descriptor_open(folder, opened, closer):
    before = descriptors()
    store = opened()
    in_thread(lambda: store.get(key("a")))
    in_thread(lambda: put(store, "a"))
    in_thread(lambda: store.purge("tag"))
    next(store.rows(0), None)
    logs = [store.changes() for _ in range(3)]
    in_thread(lambda: logs[0].after(0, 10))
    logs[1].close()
    assert len([name for name in descriptors() if str(folder) in name]) > 3
    store.close() if closer == "this thread" else in_thread(store.close)
    assert descriptors() == before
    assert free_lock(folder)
    assert [path.name for path in folder.iterdir()] == [DATABASE]


def test_a_closed_store_writes_into_nobodys_file(store, tmp_path):
    store.close()
    with (tmp_path / "theirs").open("wb+") as file:
        for call in (store.clear, lambda: store.purge("t"), lambda: store.delete([])):
            told_of(call)
        assert file.read() == b""


def test_sizes(store):
    for number in range(200):
        put(store, number, bytes(2000))
    assert 200 * 4096 < store.stats().bytes < 200 * 5200
