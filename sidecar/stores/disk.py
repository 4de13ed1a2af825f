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
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from sidecar.stores import changes, diskroom
from sidecar.stores.base import ENTRIES, Blob, Near, Row, StoreError, StoreStats
from sidecar.stores.changes import DiskLog
from sidecar.stores.diskbytes import (
    COUNT,
    GET,
    OVER,
    PUT,
    REMOVE,
    THERE,
    BytesCache,
    BytesDisk,
    room,
)
from sidecar.stores.diskerrors import ERRORS, translated
from sidecar.stores.diskopen import Claim, connected
from sidecar.stores.diskrows import DiskRows

_PATIENCE = 1000
"""Milliseconds to wait for another process that writes."""
LEAST = 256 << 10
"""Bytes of the smallest store."""
_View = TypeVar("_View", DiskLog, DiskRows)
_FOUND = 64
"""Entries found since the last change that count as used by it."""


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
        entries: int = ENTRIES,
    ) -> None:
        """`connections`: one to read and one to write; they and the claim are closed with the store. The rest
        is as for `open`. Raises StoreError."""
        self.set_aside = held.set_aside
        self._name = held.folder.name
        self._limit = limit
        self._entries = entries
        self._clock = clock
        self._claim = held
        self._closed = False
        self._wiping = False
        self._reading = Lock()
        self._writing = Lock()
        self._reader, self._writer = connections
        self._found: deque[bytes] = deque(maxlen=_FOUND)
        self._disk = BytesDisk(None)
        self._views: list[DiskLog | DiskRows] = []
        self._removals = 0
        with self._changing():
            # At once, or many processes that start together would wait for each other.
            self._sql("BEGIN IMMEDIATE")
            self._cache = BytesCache(self._writer, limit)
            self._sql("COMMIT")
        self._make_room()
        with self._changing():
            diskroom.shrink(self._writer)
            # A process that died may have left what it had deleted.
            self._wipe()
            for connection in connections:
                connection.execute(f"PRAGMA busy_timeout={_PATIENCE}")

    @classmethod
    def open(
        cls, folder: Path, limit: int, clock: Callable[[], float] = time.time, *, entries: int = ENTRIES
    ) -> "DiskStore":
        """The store in `folder`, which is made with mode 0700 if it is missing.

        `limit`: bytes of its database, of which it needs some itself: less than `LEAST` is taken for that.
        `clock`: unix seconds. `entries`: the most rows of the log, counting those that are gone; what came
        first is dropped as more is added. Where no other process has it open, all of it is read, to see that
        it is whole; what is damaged or of another version is renamed to `NAME.damaged-TIME`, and the store is
        empty then. Raises OSError when the folder cannot be used.
        """
        with ExitStack() as undo:
            held = undo.enter_context(closing(Claim.on(folder)))
            reader = undo.enter_context(closing(connected(folder, writes=False)))
            writer = undo.enter_context(closing(connected(folder, writes=True)))
            try:
                store = cls(max(limit, LEAST), clock, held, (reader, writer), entries)
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
        except ERRORS as error:
            raise self._translated(error) from None
        self._found.append(key)
        return blob

    def put(self, key: bytes, blob: bytes, *, tag: str, seconds: float) -> None:
        self.put_all([Blob(key, blob, tag, seconds)])

    def put_all(self, blobs: Sequence[Blob]) -> None:
        self._refuse(max([room(len(one.blob)) + changes.room_of(one.near) for one in blobs], default=0))
        now = self._clock()
        with self._changing(), self._cache.transact():
            at = diskroom.mark(self._writer, [self._found.popleft() for _ in range(len(self._found))])
            for one in blobs:
                key, raw = self._disk.put(one.key)
                size, mode, name, value = self._disk.store(one.blob, False, one.key)  # noqa: FBT003 - its signature
                # diskcache takes times that are not positive for none.
                until = max(now + one.seconds, sys.float_info.min)
                self._sql(PUT, key, raw, now, until, at, one.tag, size, mode, name, value)
                at = math.nextafter(at, math.inf)
            self._log([(one.key, one.near) for one in blobs if one.near is not None])
            self._sql(OVER, now)
            more = diskroom.cull(self._writer, self._limit)
        if more:
            self._make_room()
        if self._wiping:
            with self._changing():
                self._wipe()

    def touch(self, keys: Iterable[bytes]) -> None:
        with self._changing(), self._cache.transact():
            diskroom.mark(self._writer, keys)

    def delete(self, keys: Iterable[bytes]) -> int:
        count = 0
        with self._removal():
            for some in diskroom.steps(keys):
                with self._changing(), self._cache.transact():
                    count += sum([self._sql(REMOVE, key) for key in some])
        return count

    def purge(self, tag: str) -> int:
        return self._remove(lambda: self._cache.evict(tag))

    def clear(self) -> int:
        return self._remove(self._cache.clear)

    def expire(self) -> int:
        just_over = math.nextafter(self._clock(), math.inf)
        with self._changing():
            over = self._rows("SELECT 1 FROM Cache WHERE expire_time < ? LIMIT 1", just_over)
        return self._remove(lambda: self._cache.expire_all(just_over)) if over else 0

    def changes(self) -> DiskLog:
        return self._view(DiskLog)

    def note(self, key: bytes, near: Near) -> bool:
        self._refuse(changes.room_of(near))
        with self._changing(), self._cache.transact():
            if not self._rows(THERE, key, self._clock()):
                return False
            self._log([(key, near)])
        self._make_room()
        return True

    def served(self, name: str, key: bytes) -> None:
        self.served_all([(name, key)])

    def served_all(self, served: Sequence[tuple[str, bytes]]) -> None:
        with self._changing(), self._cache.transact():
            changes.serve(self._writer, served)

    def served_key(self, name: str) -> bytes | None:
        with self._changing():
            return changes.served_key(self._writer, name)

    def rows(self, start: int, *, newest: bool = False, largest: int | None = None) -> Generator[Row]:
        with closing(self._view(DiskRows)) as view:
            yield from view.all(start, newest=newest, largest=largest)

    def stats(self) -> StoreStats:
        with self._changing():
            ((entries,),), ((logged,),) = map(self._rows, (COUNT, changes.COUNT))
            return StoreStats(entries, diskroom.used(self._writer), self._limit, logged)

    def close(self) -> None:
        with self._reading, self._writing:
            self._closed = True
            # Not after the claim: nothing would keep the store from being replaced while one of them reads.
            for view in self._views:
                view.close()
            for connection in (self._reader, self._writer):
                with suppress(sqlite3.Error):
                    connection.close()
            if self._removals:
                with suppress(OSError):
                    self._claim.change()
            self._claim.close()

    # All that follows is called within `_changing`, except for `_view`, `_make_room`, `_remove`, `_removal`
    # and `_refuse`.

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._writing:
            try:
                yield
            except ERRORS as error:
                raise self._translated(error) from None
            finally:
                # diskcache leaves a transaction open that cannot be committed.
                with suppress(sqlite3.Error):
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")

    def _translated(self, error: Exception) -> StoreError:
        return translated(self._name, error, closed=self._closed)

    def _view(self, make: Callable[[sqlite3.Connection, str, Callable[[], float]], _View]) -> _View:
        with self._changing():
            if self._closed:
                raise sqlite3.ProgrammingError("closed")
            connection = connected(self._claim.folder, writes=False)
            connection.execute(f"PRAGMA busy_timeout={_PATIENCE}")
            made = make(connection, self._name, self._clock)
            self._views = [*[view for view in self._views if not view.closed], made]
            return made

    def _sql(self, statement: str, *values: object) -> int:
        return self._writer.execute(statement, values).rowcount

    def _rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        return self._writer.execute(statement, values).fetchall()

    def _refuse(self, size: int) -> None:
        if diskroom.OWN + size > self._limit:
            raise StoreError(f"{self._name}: larger than the whole store")

    def _log(self, added: Sequence[tuple[bytes, Near]]) -> None:
        for key, near in added:
            changes.add(self._writer, key, near)
        if added:
            changes.trim(self._writer, self._entries, len(added))

    def _make_room(self) -> None:
        more = True
        while more:
            with self._changing(), self._cache.transact():
                more = diskroom.cull(self._writer, self._limit)

    def _remove(self, remove: Callable[[], int]) -> int:
        with self._removal(), self._changing():
            return remove()

    @contextmanager
    def _removal(self) -> Iterator[None]:
        with self._changing():
            self._claim.change()  # what is being written now was asked for before
            self._removals += 1
        try:
            yield
        finally:
            with self._changing():
                self._removals -= 1
                self._wiping = True
                self._claim.change()
        with self._changing():
            diskroom.shrink(self._writer)
            self._wipe()

    def _wipe(self) -> None:
        """Left to the next change while somebody reads."""
        self._wiping = True
        self._wiping = not diskroom.wipe(self._writer)
