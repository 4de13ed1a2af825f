"""sidecar.stores.disk: processes that die, that share a store, and that have no space left."""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from sidecar.stores.disk import DiskStore
from tests.stores.answers_child import SMALL
from tests.stores.answers_rig import (
    DATABASE,
    LIMIT,
    answers_child,
    by_hand,
    is_whole,
    key,
    logged,
    names,
    near,
    put,
    sealed,
)

KILLS = 200


def whole(store):
    """How many entries there are; each is as it was put, with its question if it has one."""
    assert store.set_aside is None
    assert store._rows("PRAGMA integrity_check") == [("ok",)]
    blobs = {row.key: store.get(row.key) for row in store.rows(0)}
    assert all(map(is_whole, blobs.values()))
    asked = {name for name, blob in blobs.items() if blob[64]}
    assert set(logged(store)) == asked
    assert {store.served_key(f"id {number}") for number in range(7)} <= {None, *blobs}
    assert store.stats().bytes <= store.stats().limit
    return len(blobs)


def test_kill_9_at_any_time(tmp_path):
    folder = tmp_path / "answers"
    nursery = answers_child("mortal", folder)
    found = 0
    for turn in range(KILLS):
        nursery.stdin.write(b"next\n")
        nursery.stdin.flush()
        pid = int(nursery.stdout.readline().removeprefix(b"pid "))
        # The first ones die while they open it, the others at some point of the change that follows.
        for _ in range(turn % 12):
            assert nursery.stdout.readline().startswith(b"did ")
        os.kill(pid, signal.SIGKILL)
        while (line := nursery.stdout.readline()) != b"dead\n":
            assert line, nursery.stderr.read().decode()
        store = DiskStore.open(folder, SMALL)
        found += whole(store)
        store.close()
        assert [path.name for path in folder.iterdir()] == [DATABASE]
        assert {path.name for path in tmp_path.iterdir()} == {"answers", "answers.lock"}
    nursery.stdin.close()
    assert nursery.wait() == 0
    assert found > KILLS
    nursery.stdout.close()
    nursery.stderr.close()


def test_many_at_once(tmp_path):
    """All may come at once, also where there is no store yet; and all may change it."""
    children = [answers_child("busy", tmp_path / "answers", seed) for seed in range(4)]
    for child in children:
        said, trouble = child.communicate()
        assert child.returncode == 0, trouble.decode()
        assert said == b"open\nfine\n"
    store = DiskStore.open(tmp_path / "answers", SMALL)
    assert whole(store) > 5
    store.close()


class Other:
    """Another process that has the store open."""

    def __init__(self, folder):
        self.process = answers_child("obey", folder)
        assert self.process.stdout.readline() == b"open\n"

    def ask(self, *words):
        self.process.stdin.write(" ".join(words).encode() + b"\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().decode().strip()


@pytest.fixture
def other(tmp_path):
    other = Other(tmp_path / "answers")
    yield other
    other.process.kill()
    other.process.communicate()


@pytest.fixture
def store(tmp_path):
    store = DiskStore.open(tmp_path / "answers", LIMIT)
    yield store
    store.close()


def test_what_one_puts_the_other_gets(store, other):
    assert other.ask("put", "a", "tag") == "put"
    assert store.get(key("a")) == sealed(b"a")
    put(store, "b", tag="two")
    assert other.ask("has", "b") == "True"
    assert other.ask("purge", "two") == "1"
    assert names(store, "ab") == ["a"]
    assert store.purge("tag") == 1
    assert other.ask("has", "a") == "False"


def test_what_one_logs_the_other_reads(store, other):
    log = store.changes()
    assert other.ask("ask", "a") == "asked"
    assert [row.vector for row in log.after(0, 10)] == [near("a").vector]
    put(store, "b")
    assert other.ask("note", "b", "b") == "True"
    assert other.ask("note", "c", "c") == "False"
    assert [row.vector for row in log.after(1, 10)] == [near("b").vector]
    assert other.ask("log") == "2 2"
    assert other.ask("served", "s1", "a") == "served"
    assert store.served_key("s1") == key("a")
    store.served("s2", key("b"))
    assert other.ask("whose", "s2", "b") == "True"
    assert store.delete([key("a")]) == 1
    assert other.ask("log") == "1 1"
    assert other.ask("whose", "s1", "a") == "False"
    assert other.ask("clear") == "1"
    assert log.after(0, 10) == list(log.alive()) == []
    put(store, "a", near=near("a"))
    assert log.after(0, 10)[0].seq == 3


def test_each_hears_of_the_others_removals(store, other):
    seen = store.generation
    assert other.ask("generation") == str(seen)
    assert other.ask("put", "a", "tag") == "put"
    assert store.generation == seen
    for command in (("purge", "tag"), ("purge", "tag"), ("clear",)):
        assert other.ask(*command) in ("1", "0")
        assert store.generation != seen
        seen = store.generation
        assert other.ask("generation") == str(seen)
    store.purge("tag")
    assert store.generation != seen
    assert other.ask("generation") == str(store.generation)
    assert other.ask("expire") == "0"
    assert other.ask("generation") == str(store.generation)


def test_it_is_not_set_aside_while_another_uses_it(tmp_path, other):
    folder = tmp_path / "answers"
    assert other.ask("put", "a", "tag") == "put"
    by_hand(folder, "PRAGMA user_version = 99")
    with pytest.raises(OSError, match="it is of another version, and other processes use it"):
        DiskStore.open(folder, LIMIT)
    assert folder.exists()
    assert other.ask("has", "a") == "True"
    other.process.kill()
    other.process.communicate()
    store = DiskStore.open(folder, LIMIT)
    assert store.set_aside is not None
    store.close()


def test_a_second_one_does_not_wait_for_the_first(tmp_path, other):
    """It comes and goes, and so does the first."""
    folder = tmp_path / "answers"
    for turn in range(3):
        store = DiskStore.open(folder, LIMIT)
        put(store, turn)
        store.close()
        assert other.ask("has", str(turn)) == "True"
    store = DiskStore.open(folder, LIMIT)
    other.process.kill()
    other.process.communicate()
    assert names(store, range(3)) == [0, 1, 2]
    store.close()


def test_two_in_one_process(store, tmp_path):
    second = DiskStore.open(tmp_path / "answers", LIMIT)
    put(second, "a", b"of the second")
    assert store.get(key("a")) == b"of the second"
    before = store.generation
    second.clear()
    assert store.generation == second.generation != before
    second.close()
    put(store, "a", b"of the first")
    assert store.get(key("a")) == b"of the first"


def on_a_small_disk(tmp_path, what):
    mount = f"mount -t tmpfs -o size=4m tmpfs '{tmp_path}'"
    apart = ("unshare", "--mount", "sh", "-c")
    possible = os.geteuid() == 0 and shutil.which("unshare") is not None
    if not possible or subprocess.run([*apart, mount], capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    process = answers_child(what, tmp_path / "answers", before=(*apart, f'{mount} && exec "$@"', "sh"))
    said, trouble = process.communicate()
    assert process.returncode == 0, trouble.decode()
    assert said.endswith(b"fine\n")
    return said


def test_a_full_disk(tmp_path):
    assert b"the disk is full" in on_a_small_disk(tmp_path, "full")


def test_a_read_only_disk(tmp_path):
    assert on_a_small_disk(tmp_path, "readonly").count(b"refused") == 2


def test_somebody_who_may_not():
    if os.geteuid():
        pytest.skip("only root may become somebody else")
    # Others may not look into the folders that pytest makes.
    with tempfile.TemporaryDirectory() as theirs:
        process = answers_child("nobody", Path(theirs) / "answers")
        said, trouble = process.communicate()
    assert process.returncode == 0, trouble.decode()
    assert said.count(b"refused") == 5
