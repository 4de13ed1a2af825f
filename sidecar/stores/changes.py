"""The log of questions on disk, and under which ids answers were given: two tables beside diskcache's own.

They are in the same database, so that an answer and its question come in one transaction; a trigger removes
both together, whatever it was that removed the answer: its age, a purge, or room that was needed.

What tells of a question is stored as `diskbytes` stores an answer: in pages that hold nothing else, of
which no copies are left behind, and which are zeroed when they are freed. So a purge need not rewrite the
table; but a question takes 4.7 KiB, with up to 4052 bytes of vector and traits. The numbers of the rows have
an index of their own, which is all that is read to list them. Of the ids there are only hashes.
"""

import sqlite3
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from hashlib import blake2b
from threading import Lock
from typing import Any
from zlib import crc32

from sidecar.stores.base import NAMES, SCOPE, Change, Near, Noted
from sidecar.stores.diskbytes import room, unwrap, wrap
from sidecar.stores.diskerrors import ERRORS, translated

_TRIGGER = (
    "CREATE TRIGGER Cache_gone AFTER DELETE ON Cache FOR EACH ROW BEGIN"
    " DELETE FROM Changes WHERE key = OLD.key; DELETE FROM Served WHERE key = OLD.key; END"
)
_TABLES = (
    "CREATE TABLE Changes (seq INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB NOT NULL UNIQUE, near BLOB)",
    "CREATE INDEX Changes_seq ON Changes (seq)",
    "CREATE TABLE Served (number INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, key BLOB NOT NULL)",
    "CREATE INDEX Served_key ON Served (key)",
    _TRIGGER,
)
COUNT = "SELECT count(*) FROM Changes"
_SAME = "SELECT 1 FROM Changes WHERE key = ? AND near = ?"
_ADD = "INSERT OR REPLACE INTO Changes (key, near) VALUES (?, ?)"
_OLD = (
    "DELETE FROM Changes WHERE seq IN (SELECT seq FROM Changes"
    " WHERE seq <= (SELECT max(seq) FROM Changes) - ? ORDER BY seq LIMIT ?)"
)
_AFTER = "SELECT seq, key, near FROM Changes WHERE seq > ? ORDER BY seq LIMIT ?"
_NOTED = (
    "SELECT Changes.key, near FROM Changes JOIN Cache ON Cache.key = Changes.key AND raw = 1"
    " WHERE seq = ? AND expire_time > ?"
)
_ALIVE = "SELECT seq FROM Changes INDEXED BY Changes_seq WHERE seq > ? ORDER BY seq LIMIT ?"
_SERVED = (
    "INSERT OR REPLACE INTO Served (name, key) SELECT ?1, ?2"
    " WHERE EXISTS (SELECT 1 FROM Cache WHERE key = ?2 AND raw = 1)"
)
_FORMER = "DELETE FROM Served WHERE number <= (SELECT max(number) FROM Served) - ?"

_BEYOND = 256
"""Rows more than there may be that are dropped with one that is added: there are more only where the limit
was larger before."""
_ROWS = 512
"""Rows that are read at once, 4.7 KiB each."""
_NUMBERS = 16384
"""Numbers that are read at once."""
_NUMBER = 4
"""Bytes of the length of a vector, and of a checksum: one wrong bit can make a question like any other."""


def make(connection: sqlite3.Connection) -> None:
    """The tables, in a database that has diskcache's."""
    for statement in _TABLES:
        connection.execute(statement)


def room_of(near: Near | None) -> int:
    """Bytes that it takes in the database, about."""
    return room(2 * _NUMBER + SCOPE + len(near.vector) + len(near.traits)) if near is not None else 0


def add(connection: sqlite3.Connection, key: bytes, near: Near) -> None:
    """Log the entry, unless the log says the same of it already. In a transaction, like all that changes
    something here."""
    value = _pack(key, near)
    if not connection.execute(_SAME, (key, value)).fetchall():
        connection.execute(_ADD, (key, value))


def trim(connection: sqlite3.Connection, entries: int, added: int) -> None:
    """Drop what came first, after so many were added."""
    connection.execute(_OLD, (entries, added + _BEYOND))


def serve(connection: sqlite3.Connection, served: Iterable[tuple[str, bytes]]) -> None:
    """Remember under which ids which entries were given."""
    connection.executemany(_SERVED, [(_hashed(name), key) for name, key in served])
    connection.execute(_FORMER, (NAMES,))


def served_key(connection: sqlite3.Connection, name: str) -> bytes | None:
    """The entry that was given under that id."""
    found = connection.execute("SELECT key FROM Served WHERE name = ?", (_hashed(name),)).fetchall()
    return found[0][0] if found and type(found[0][0]) is bytes else None


class DiskLog:
    """A `ChangeLog`."""

    def __init__(self, connection: sqlite3.Connection, name: str, clock: Callable[[], float]) -> None:
        """`connection`: for reading, and closed with this. `name`: of the store."""
        self._connection = connection
        connection.text_factory = bytes  # there is none but by damage, and then it need not be text
        self._name = name
        self._clock = clock
        self._lock = Lock()
        self.closed = False

    def after(self, seq: int, most: int) -> list[Change]:
        found: list[Change] = []
        # What is damaged is left out, and must not hide what comes after it.
        while len(found) < most and (rows := self._rows(_AFTER, seq, min(most - len(found), _ROWS))):
            for number, key, value in rows:
                with suppress(ValueError, TypeError):
                    near = _unpack(key, value)
                    found.append(Change(number, near.scope, near.vector))
            seq = rows[-1][0]
        return found

    def noted(self, seqs: Sequence[int]) -> dict[int, Noted]:
        now = self._clock()
        found = {}
        for seq in seqs:
            for key, value in self._rows(_NOTED, seq, now):
                with suppress(ValueError, TypeError):
                    near = _unpack(key, value)
                    found[seq] = Noted(key, near.scope, near.traits)
        return found

    def alive(self) -> "array[int]":
        found = array("q")
        last = 0
        # In steps: whoever reads for long keeps the store from wiping what was deleted.
        while rows := self._rows(_ALIVE, last, _NUMBERS):
            found.extend([seq for (seq,) in rows])
            last = found[-1]
        return found

    def close(self) -> None:
        with self._lock:
            self.closed = True
            with suppress(sqlite3.Error):
                self._connection.close()

    def _rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._connection.execute(statement, values).fetchall()
            except ERRORS as error:
                raise translated(self._name, error, closed=self.closed) from None


def _pack(key: bytes, near: Near) -> bytes:
    if len(near.scope) != SCOPE:
        raise ValueError("a scope of another length")
    length = len(near.vector).to_bytes(_NUMBER, "big")
    content = b"".join((length, near.scope, near.vector, near.traits))
    return wrap(key, crc32(content).to_bytes(_NUMBER, "big") + content, small=0)


def _unpack(key: bytes, value: bytes) -> Near:
    """Raises ValueError, or TypeError where something else than bytes was put in its place."""
    checked = unwrap(key, value, small=0)
    content = checked[_NUMBER:]
    if checked[:_NUMBER] != crc32(content).to_bytes(_NUMBER, "big"):
        raise ValueError("a question that is not whole")
    begin = _NUMBER + SCOPE
    end = begin + int.from_bytes(content[:_NUMBER], "big")
    return Near(content[_NUMBER:begin], content[begin:end], content[end:])


def _hashed(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=16, person=b"served").digest()
