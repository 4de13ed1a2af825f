"""diskcache, kept to bytes: what it makes of keys and blobs, and the database it makes.

Nothing is ever unpickled, whatever a file says (CVE-2025-69872), and no file but the database's is written,
read or removed.

A blob is stored between a front and a tail of zeros:

    length of blob (8 bytes), length of key (2), key, zeros up to 489 bytes; blob; zeros up to n * 4092

489 bytes is what SQLite keeps of a long row in a page that it shares with other rows. It leaves copies behind
when it moves rows between such pages, so that deleting a row would not wipe it all. 4092 bytes are what
fits into each page for the rest of a row. So the blob begins where those pages begin: they hold nothing else,
are never copied, and are zeroed when they are freed. What has up to 64 bytes is no answer but a hash that
leads to one: it gets no tail, and no page of its own.
"""

import os
import sqlite3
from typing import Any

import diskcache
from diskcache.core import DBNAME, DEFAULT_SETTINGS, METADATA, MODE_RAW, UNKNOWN

from sidecar.stores.sqlitefile import PAGE

__all__ = [
    "COUNT",
    "DBNAME",
    "FRONT",
    "GET",
    "OVER",
    "PIECE",
    "PUT",
    "REMOVE",
    "SETTINGS",
    "THERE",
    "BytesCache",
    "BytesDisk",
    "length_of",
    "room",
    "unwrap",
    "wrap",
]

FRONT = ((PAGE - 12) * 32 // 255) - 23
"""Bytes before the blob; from https://www.sqlite.org/fileformat2.html, section 1.6."""
PIECE = PAGE - 4
_SMALL = 64
LONGEST_KEY = FRONT - 10

SETTINGS = frozenset(DEFAULT_SETTINGS.keys() | METADATA.keys())
"""All that diskcache keeps in its table of settings. It runs others as pragmas, if they are in the file."""


# What is asked of the table that diskcache makes, where it would go by the wall clock.
GET = "SELECT mode, filename, value FROM Cache WHERE key = ? AND raw = 1 AND expire_time > ?"
THERE = "SELECT 1 FROM Cache WHERE key = ? AND raw = 1 AND expire_time > ?"
COUNT = "SELECT count(*) FROM Cache"
PUT = (
    "INSERT INTO Cache (key, raw, store_time, expire_time, access_time, tag, size, mode, filename, value)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key, raw) DO UPDATE SET"
    " store_time = excluded.store_time, expire_time = excluded.expire_time,"
    " access_time = excluded.access_time, tag = excluded.tag, size = excluded.size, mode = excluded.mode,"
    " filename = excluded.filename, value = excluded.value"
)
REMOVE = "DELETE FROM Cache WHERE key = ? AND raw = 1"
OVER = (
    "DELETE FROM Cache WHERE rowid IN"
    " (SELECT rowid FROM Cache WHERE expire_time <= ? ORDER BY expire_time LIMIT 10)"
)


def _front(key: bytes, size: int) -> bytes:
    return (size.to_bytes(8, "big") + len(key).to_bytes(2, "big") + key).ljust(FRONT, b"\0")


def length_of(key: bytes, value: bytes) -> int:
    """Of the blob that a stored value, or its first `FRONT` bytes, belongs to. Raises ValueError where it is
    not that key's: a damaged index can lead to another row."""
    size = int.from_bytes(value[:8], "big")
    if value[:FRONT] != _front(key, size):
        raise ValueError("the value of another key")
    return size


def wrap(key: bytes, blob: bytes, small: int = _SMALL) -> bytes:
    """What is stored of a blob. `small`: bytes up to which it may share its pages."""
    return b"".join((_front(key, len(blob)), blob, bytes(_tail(len(blob), small))))


def unwrap(key: bytes, value: bytes, small: int = _SMALL) -> bytes:
    """The blob. Raises ValueError where it is not whole, or that of another key."""
    size = length_of(key, value)
    if len(value) != FRONT + size + _tail(size, small):
        raise ValueError("a value that is not whole")
    return value[FRONT : FRONT + size]


def room(size: int) -> int:
    """Bytes that a blob takes in the database, about."""
    return size + _tail(size, _SMALL) + FRONT + 300


def _tail(size: int, small: int) -> int:
    return -size % PIECE if size > small else 0


class BytesDisk(diskcache.Disk):  # type: ignore[misc]  # it has no types
    """Keys and values are bytes. Raises TypeError when given, and ValueError when finding anything else."""

    def put(self, key: bytes) -> tuple[memoryview, bool]:
        if type(key) is not bytes:
            raise TypeError("keys are bytes")
        if len(key) > LONGEST_KEY:
            raise ValueError("the key is too long")
        return sqlite3.Binary(key), True

    def get(self, key: object, raw: object) -> bytes:
        if not raw or type(key) is not bytes:
            raise ValueError("a key that is not bytes")
        return key

    def store(self, value: bytes, read: object, key: bytes = UNKNOWN) -> tuple[int, int, None, memoryview]:
        if type(value) is not bytes or type(key) is not bytes or read:
            raise TypeError("keys and values are bytes")
        return 0, MODE_RAW, None, sqlite3.Binary(wrap(key, value))

    def fetch(
        self, mode: object, filename: object, value: object, read: object, key: bytes | None = None
    ) -> bytes:
        if mode != MODE_RAW or filename is not None or type(value) is not bytes or read:
            raise ValueError("a value that is not bytes")
        if key is None:
            key = value[10 : 10 + int.from_bytes(value[8:10], "big")]
        return unwrap(key, value)

    def filename(self, key: object = UNKNOWN, value: object = UNKNOWN) -> tuple[str, str]:
        raise ValueError("there are no files of values")

    def remove(self, file_path: object) -> None:
        """Nothing: a row with a file's name was not made here, and may name any file."""


class BytesCache(diskcache.Cache):  # type: ignore[misc]  # it has no types
    """diskcache on a connection of ours. Those it makes itself belong to one thread each, which alone can
    close them, and take their pragmas from what is in the file."""

    def __init__(self, connection: sqlite3.Connection, limit: int) -> None:
        self._connection = connection
        super().__init__(
            os.sep,  # it would expand "~" and "$" in the real one, and has no use for it
            disk=BytesDisk,
            statistics=0,
            tag_index=1,
            eviction_policy="least-recently-used",
            size_limit=limit,
            cull_limit=0,  # it goes by the wall clock; see DiskStore
            sqlite_auto_vacuum=2,  # incremental: no pages are moved while entries come and go
            sqlite_cache_size=-2048,  # KiB
            sqlite_journal_mode="wal",
            sqlite_mmap_size=0,  # an error of the disk would be a SIGBUS
            sqlite_synchronous=1,  # normal: a power cut may take the last entries, and nothing else
            disk_min_file_size=1 << 62,
            disk_pickle_protocol=0,
        )

    def expire_all(self, now: float) -> int:
        """What was over before now; returns how many there were."""
        count = 0
        # Of those whose time is over at the same moment, diskcache removes a hundred and leaves the rest.
        while some := self.expire(now):
            count += some
        return count

    @property
    def _con(self) -> Any:
        return self._connection
