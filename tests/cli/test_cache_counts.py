"""sidecar.stores.counts: counters that outlive the process, and words for each of them."""

import json
import multiprocessing
import os
import time
from typing import get_args

import pytest

from sidecar.cli.cache_words import COUNTS, REASONS, plain, size, span
from sidecar.core.caching import Reason
from sidecar.stores import counts
from sidecar.stores.counts import Counts, add, read


def test_what_is_added_adds_up(tmp_path):
    path = tmp_path / "counts.json"
    before = time.time()
    add(path, {"stored": 2, "hit_disk": 1})
    add(path, {"stored": 3, "hit_memory": 0, "store_failed": -4})
    found = read(path)
    assert found.counts == {"stored": 5, "hit_disk": 1}
    assert before <= found.since <= time.time()
    since = found.since
    add(path, {})
    assert read(path) == Counts(since, {"stored": 5, "hit_disk": 1})


def test_nothing_was_counted_where_there_is_no_file(tmp_path):
    assert read(tmp_path / "counts.json") == Counts(0.0, {})
    assert list(tmp_path.iterdir()) == []


def test_the_files_are_the_owners_alone(tmp_path):
    add(tmp_path / "counts.json", {"stored": 1})
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"counts.json": 0o600, "counts.json.lock": 0o600}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"since": 1, "counts": {"stored": -1}}',
        b'{"since": 1, "counts": {"stored": "1"}}',
        b'{"since": 1, "counts": {"stored": 1.5}}',
        b'{"since": 1, "counts": {"stored": 99999999999999999999}}',
        b"\xff" * 10,
        b'{"counts": ' + b"[" * 100_000,
        b'{"since": 1, "counts": {}}' + b" " * (2 << 20),
    ],
)
def test_a_damaged_file_starts_anew(tmp_path, content):
    path = tmp_path / "counts.json"
    path.write_bytes(content)
    assert read(path) == Counts()
    add(path, {"stored": 1})
    assert read(path).counts == {"stored": 1}


def test_a_count_stays_a_count(tmp_path):
    path = tmp_path / "counts.json"
    for _ in range(2):
        add(path, {"stored": (1 << 63) - 2})
    assert read(path).counts == {"stored": (1 << 63) - 1}
    assert json.loads(path.read_bytes())["counts"]["stored"] < 1 << 63


def test_a_folder_that_cannot_be_used_is_an_os_error(tmp_path):
    with pytest.raises(OSError):
        add(tmp_path / "none" / "counts.json", {"stored": 1})
    (tmp_path / "counts.json").mkdir()
    with pytest.raises(OSError):
        read(tmp_path / "counts.json")
    with pytest.raises(OSError):
        add(tmp_path / "counts.json", {"stored": 1})
    assert {path.name for path in tmp_path.iterdir()} == {"counts.json", "counts.json.lock"}


def test_who_holds_the_lock_for_ever_holds_nobody_up_for_ever(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(counts, "_PATIENCE", 0.0)
    path = tmp_path / "counts.json"
    with (tmp_path / "counts.json.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OSError):
            add(path, {"stored": 1})
    add(path, {"stored": 1})
    assert read(path).counts == {"stored": 1}


def _add_often(path, times):
    for _ in range(times):
        add(path, {"stored": 1, f"of_{os.getpid()}": 1})


def test_processes_lose_nothing_of_each_other(tmp_path):
    path = tmp_path / "counts.json"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add_often, args=(path, 50)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = read(path).counts
    assert found.pop("stored") == 200
    assert sorted(found.values()) == [50] * 4
    assert {path.name for path in tmp_path.iterdir()} == {"counts.json", "counts.json.lock"}


# The words.


def test_every_reason_and_counter_has_words():
    assert set(REASONS) == set(get_args(Reason))
    named = {name for group in COUNTS.values() for name, _ in group}
    assert named >= {f"not_stored_{reason}" for reason in get_args(Reason)}
    assert named >= {"hit_memory", "hit_disk", "hit_stale", "lookup_late", "lookup_failed", "lookup_damaged"}
    assert named >= {"stored", "store_failed", "store_skipped"}
    assert len(set(REASONS.values())) == len(REASONS)


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (10_188, "9.9 KiB"),
        (10_240, "10 KiB"),
        (1_048_575, "1.0 MiB"),
        (1 << 30, "1.0 GiB"),
        (5 << 40, "5.0 TiB"),
        (9999 << 40, "9999 TiB"),
    ],
)
def test_sizes(count, said):
    assert size(count) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-5, "0 s"), (59.4, "59 s"), (60, "1 min"), (3599, "60 min"), (3600, "1 h"), (86400 * 3, "3 d")],
)
def test_spans(seconds, said):
    assert span(seconds) == said


def test_names():
    assert [plain(text) for text in ("m", "", None, "a\x1bb\x85c\u2028")] == ["m", "-", "-", "a?b?c?"]
