"""Sealed answers to keep, and what the tests of their stores have in common."""

import hashlib
import os
import pickle
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

from sidecar.stores.base import Blob, Near
from tests.stores.rig import ROOT

DATABASE = "cache.db"
LIMIT = 8 << 20
HOUR = 3600.0


class Clock:
    """Goes when it is told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def key(name: object) -> bytes:
    return hashlib.blake2b(str(name).encode(), digest_size=32).digest()


def sealed(body: bytes) -> bytes:
    """A blob that shows whether it is whole."""
    return hashlib.blake2b(body).digest() + body


def is_whole(blob: bytes) -> bool:
    return blob == sealed(blob[64:])


def put(store, name, blob=b"blob", *, tag="tag", seconds=HOUR, near=None):
    if near is None:
        store.put(key(name), blob, tag=tag, seconds=seconds)
    else:
        store.put_all([Blob(key(name), blob, tag, seconds, near)])


def near(name: object, *, scope: str = "scope", traits: bytes = b"traits") -> Near:
    """As of a question; another one for another name."""
    return Near(key(scope), random.Random(str(name)).randbytes(768), traits)


def logged(store) -> dict[bytes, Near]:
    """All that the log has, by its keys; it holds together."""
    log = store.changes()
    changes = log.after(0, 1_000_000)
    seqs = [change.seq for change in changes]
    assert seqs == sorted(set(seqs)) == list(log.alive())
    assert store.stats().vectors == len(seqs)
    noted = log.noted(seqs)
    log.close()
    assert [noted[change.seq].scope for change in changes] == [change.scope for change in changes]
    found = {
        noted[change.seq].key: Near(change.scope, change.vector, noted[change.seq].traits)
        for change in changes
    }
    assert len(found) == len(seqs)
    return found


def names(store, among) -> list:
    """Those of the names that are in the store; their use is not noted."""
    there = {row.key for row in store.rows(0)}
    return [name for name in among if key(name) in there]


def by_hand(folder: Path, *statements: str, values=()) -> None:
    """Change a database that nobody uses."""
    connection = sqlite3.connect(folder / DATABASE, isolation_level=None)
    for statement in statements:
        connection.execute(statement, values)
    connection.close()


class Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)

    def pickled(self) -> bytes:
        return pickle.dumps(self)


def answers_child(*arguments: object, before: tuple[str, ...] = ()) -> subprocess.Popen:
    """`tests/stores/answers_child.py`, with pipes."""
    command = [*before, sys.executable, "-m", "tests.stores.answers_child", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
