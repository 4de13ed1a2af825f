"""Sealed answers on this machine's disk, for any number of its processes.

The database and its upkeep are diskcache's, but for what it would do by the wall clock or with a transaction
for each lookup. Times are compared here, with the store's own clock. A lookup is one SELECT; which entries
it found is written down with the next change.
"""

import math
import sqlite3
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any

import diskcache

from sidecar.stores.base import Blob, DamagedEntryError, Row, StoreError, StoreStats
from sidecar.stores.diskbytes import FRONT, GET, OVER, PUT, ROWS, BytesCache, BytesDisk, length, room
from sidecar.stores.diskopen import Claim, connected
from sidecar.stores.sqlitefile import PAGE, reason

_PATIENCE = 1000
"""Milliseconds to wait for another process that writes."""
LEAST = 256 << 10
"""Bytes of the smallest store."""
_OWN = 24 * PAGE
"""Bytes of an empty database, about."""
_STEP = 64
"""Entries that make room in one transaction."""
_FOUND = 64
"""Entries found since the last change that count as used by it."""

_ERRORS = (sqlite3.Error, diskcache.Timeout, OSError, ValueError, TypeError, OverflowError)


class DiskStore:
    """An `AnswerStore`. Any thread may call anything; lookups do not wait for what other threads do."""

    set_aside: Path | None
    """Where a store went that was found unusable."""

    def __init__(
        self,
        limit: int,
        clock: Callable[[], float],
        held: Claim,
        connections: tuple[sqlite3.Connection, sqlite3.Connection],
    ) -> None:
        """`connections`: one to read and one to write; they and the claim are closed with the store. Raises
        StoreError."""
        self.set_aside = held.set_aside
        self._name = held.folder.name
        self._limit = limit
        self._clock = clock
        self._claim = held
        self._closed = False
        self._wiping = False
        self._reading = Lock()
        self._writing = Lock()
        self._reader, self._writer = connections
        self._found: deque[bytes] = deque(maxlen=_FOUND)
        self._disk = BytesDisk(None)
        with self._changes():
            # At once, or many processes that start together would wait for each other.
            self._sql("BEGIN IMMEDIATE")
            self._cache = BytesCache(self._writer, limit)
            self._sql("COMMIT")
        self._make_room()
        with self._changes():
            self._shrink()
            # A process that died may have left what it had deleted.
            self._wipe()
            for connection in connections:
                connection.execute(f"PRAGMA busy_timeout={_PATIENCE}")

    @classmethod
    def open(cls, folder: Path, limit: int, clock: Callable[[], float] = time.time) -> "DiskStore":
        """The store in `folder`, which is made with mode 0700 if it is missing.

        `limit`: bytes of its database, of which it needs some itself: less than `LEAST` is taken for that.
        `clock`: unix seconds. Where no other process has it open, all of it
        is read, to see that it is whole; what is damaged or of another version is renamed to
        `NAME.damaged-TIME`, and the store is empty then. Raises OSError when the folder cannot be used.
        """
        with ExitStack() as undo:
            held = undo.enter_context(closing(Claim.on(folder)))
            reader = undo.enter_context(closing(connected(folder, writes=False)))
            writer = undo.enter_context(closing(connected(folder, writes=True)))
            try:
                store = cls(max(limit, LEAST), clock, held, (reader, writer))
            except StoreError as error:
                raise OSError(f"{folder}: {error}") from None
            undo.pop_all()
        return store

    @property
    def generation(self) -> int:
        return self._claim.number

    def get(self, key: bytes) -> bytes | None:
        try:
            with self._reading:
                found = self._reader.execute(GET, (key, self._clock())).fetchall()
            if not found:
                return None
            mode, filename, value = found[0]
            blob = self._disk.fetch(mode, filename, value, False, key)  # noqa: FBT003 - its signature
        except _ERRORS as error:
            raise self._translated(error) from None
        self._found.append(key)
        return blob

    def put(self, key: bytes, blob: bytes, *, tag: str, seconds: float) -> None:
        self.put_all([Blob(key, blob, tag, seconds)])

    def put_all(self, blobs: Sequence[Blob]) -> None:
        if any(_OWN + room(len(one.blob)) > self._limit for one in blobs):
            raise StoreError(f"{self._name}: larger than the whole store")
        now = self._clock()
        with self._changes(), self._cache.transact():
            self._mark([self._found.popleft() for _ in range(len(self._found))])
            at = self._latest()
            for one in blobs:
                key, raw = self._disk.put(one.key)
                size, mode, name, value = self._disk.store(one.blob, False, one.key)  # noqa: FBT003 - its signature
                # diskcache takes times that are not positive for none.
                until = max(now + one.seconds, sys.float_info.min)
                self._sql(PUT, key, raw, now, until, at, one.tag, size, mode, name, value)
                at = math.nextafter(at, math.inf)
            self._sql(OVER, now)
            more = self._cull()
        if more:
            self._make_room()
        if self._wiping:
            with self._changes():
                self._wipe()

    def touch(self, keys: Iterable[bytes]) -> None:
        with self._changes(), self._cache.transact():
            self._mark(keys)

    def delete(self, keys: Iterable[bytes]) -> int:
        def remove() -> int:
            with self._cache.transact():
                return sum([self._sql("DELETE FROM Cache WHERE key = ? AND raw = 1", key) for key in keys])

        return self._remove(remove)

    def purge(self, tag: str) -> int:
        return self._remove(lambda: self._cache.evict(tag))

    def clear(self) -> int:
        return self._remove(self._cache.clear)

    def expire(self) -> int:
        just_over = math.nextafter(self._clock(), math.inf)

        def remove() -> int:
            count = 0
            # Of those whose time is over at the same moment, diskcache removes a hundred and leaves the rest.
            while some := self._cache.expire(just_over):
                count += some
            return count

        with self._changes():
            over = self._rows("SELECT 1 FROM Cache WHERE expire_time < ? LIMIT 1", just_over)
        return self._remove(remove) if over else 0

    def rows(self, start: int) -> Iterator[Row]:
        last: int | None = 0
        while last is not None:
            with self._changes():
                batch, last = self._batch(last, start)
            yield from batch

    def stats(self) -> StoreStats:
        with self._changes():
            return StoreStats(self._rows("SELECT count(*) FROM Cache")[0][0], self._used(), self._limit)

    def close(self) -> None:
        with self._reading, self._writing:
            self._closed = True
            for connection in (self._reader, self._writer):
                with suppress(sqlite3.Error):
                    connection.close()
            self._claim.close()

    # All that follows is called within `_changes`, except for `_make_room` and `_remove`.

    @contextmanager
    def _changes(self) -> Iterator[None]:
        with self._writing:
            try:
                yield
            except _ERRORS as error:
                raise self._translated(error) from None
            finally:
                # diskcache leaves a transaction open that cannot be committed.
                with suppress(sqlite3.Error):
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")

    def _translated(self, error: Exception) -> StoreError:
        """Without its cause: that may quote what is in the file."""
        if self._closed:
            return StoreError(f"{self._name}: the store is closed")
        if isinstance(error, (ValueError, TypeError)):
            return DamagedEntryError(f"{self._name}: it is damaged ({type(error).__name__})")
        # What diskcache raises, also when it fails to roll back, hides what SQLite said before.
        cause: BaseException | None = error
        first: BaseException = error
        while cause is not None:
            first = cause if isinstance(cause, sqlite3.Error) else first
            cause = cause.__context__
        return StoreError(f"{self._name}: {reason(first)}")

    def _sql(self, statement: str, *values: object) -> int:
        return self._writer.execute(statement, values).rowcount

    def _rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        return self._writer.execute(statement, values).fetchall()

    def _latest(self) -> float:
        """Later than any entry was used: clocks are set back."""
        ((latest,),) = self._rows("SELECT max(access_time) FROM Cache WHERE access_time < 1e300")
        return math.nextafter(latest or 0.0, math.inf)

    def _mark(self, keys: Iterable[bytes]) -> None:
        at = self._latest()
        times = []
        for key in keys:
            times.append((at, key))
            at = math.nextafter(at, math.inf)
        self._writer.executemany("UPDATE Cache SET access_time = ? WHERE key = ? AND raw = 1", times)

    def _used(self) -> int:
        ((pages,),), ((free,),) = self._rows("PRAGMA page_count"), self._rows("PRAGMA freelist_count")
        return int(pages - free) * PAGE

    def _cull(self) -> bool:
        """Make room, in one step; returns whether another one is needed."""
        excess = self._used() - self._limit
        if excess <= 0:
            return False
        oldest = self._rows("SELECT rowid, length(value) FROM Cache ORDER BY access_time LIMIT ?", _STEP)
        for rowid, size in oldest:
            if excess > 0:
                self._sql("DELETE FROM Cache WHERE rowid = ?", rowid)
                excess -= size or 0
        return bool(oldest) and self._used() > self._limit

    def _make_room(self) -> None:
        more = True
        while more:
            with self._changes(), self._cache.transact():
                more = self._cull()

    def _remove(self, remove: Callable[[], int]) -> int:
        with self._changes():
            self._claim.change()  # what is being written now was asked for before
            try:
                count = remove()
            finally:
                self._claim.change()
            self._shrink()
            self._wipe()
        return count

    def _shrink(self) -> None:
        """Give unused pages back to the file system, a few at a time: others want to write too."""
        with suppress(sqlite3.Error):
            ((free,),) = self._rows("PRAGMA freelist_count")
            for _ in range(0, free, _STEP * _STEP):
                # `execute` would stop after the first page: SQLite answers with a row for each.
                self._writer.executescript(f"PRAGMA incremental_vacuum({_STEP * _STEP})")

    def _wipe(self) -> None:
        """Move the log into the database, where zeros overwrite what was deleted, and empty it. Left to the
        next change while somebody reads."""
        self._wiping = True
        with suppress(sqlite3.Error):
            ((busy, _, _),) = self._rows("PRAGMA wal_checkpoint(TRUNCATE)")
            self._wiping = busy != 0

    def _batch(self, after: int, start: int) -> tuple[list[Row], int | None]:
        batch = []
        self._sql("BEGIN")
        found = self._rows(ROWS, after, self._clock())
        for rowid, key, tag, expires in found:
            with self._writer.blobopen("Cache", "value", rowid, readonly=True) as value:
                begin = value.read(FRONT + start)
            with suppress(ValueError):
                size = length(key, begin)
                batch.append(Row(key, tag, expires, size, begin[FRONT : FRONT + min(start, size)]))
        self._sql("COMMIT")
        return batch, found[-1][0] if found else None
