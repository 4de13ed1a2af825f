"""Sealed answers to keep, and what the tests of their stores have in common."""

import hashlib
import os
import pickle
import sqlite3
import subprocess
import sys
from pathlib import Path

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


def put(store, name, blob=b"blob", *, tag="tag", seconds=HOUR):
    store.put(key(name), blob, tag=tag, seconds=seconds)


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
