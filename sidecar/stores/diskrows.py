"""The entries of a store on disk, one after another, for whoever looks through them."""

import sqlite3
from collections.abc import Callable, Generator
from contextlib import suppress
from threading import Lock

from sidecar.stores.base import Row
from sidecar.stores.diskbytes import FRONT, PIECE, length_of
from sidecar.stores.diskerrors import ERRORS, translated

_ROWS = (
    "SELECT rowid, key, tag, expire_time, {} FROM Cache WHERE rowid {} ? AND raw = 1 AND mode = 1"
    " AND expire_time > ? AND typeof(key) = 'blob' AND typeof(tag) = 'text' AND typeof(value) = 'blob'"
    " AND length(value) <= ? ORDER BY rowid {} LIMIT 100"
)
_LAST = (1 << 63) - 1
"""A number that follows those of all entries, and a length that none has."""


class DiskRows:
    """One pass through them, in short transactions. Nobody who writes waits for it."""

    def __init__(self, connection: sqlite3.Connection, name: str, clock: Callable[[], float]) -> None:
        """`connection`: for reading, and closed with this: it remembers every blob that was ever opened on it
        (python/cpython#144424), so none may live as long as the store. `name`: of the store."""
        self._connection: sqlite3.Connection | None = connection
        self._name = name
        self._clock = clock
        self._lock = Lock()
        self.closed = False

    def all(self, start: int, *, newest: bool, largest: int | None) -> Generator[Row]:
        """As `AnswerStore.rows`."""
        order = ("<", "DESC") if newest else (">", "ASC")
        # SQLite reads a value as a whole, and its length without reading it.
        statement = _ROWS.format("NULL" if largest is None else "value", *order)
        longest = _LAST if largest is None else FRONT + largest + PIECE
        last: int | None = _LAST if newest else 0
        while last is not None:
            batch, last = self._some(statement, (last, self._clock(), longest), start)
            yield from [row for row in batch if largest is None or row.size <= largest]

    def close(self) -> None:
        """Never raises."""
        with self._lock:
            self.closed = True
            connection, self._connection = self._connection, None  # and all that it remembers
            if connection is not None:
                with suppress(sqlite3.Error):
                    connection.close()

    def _some(
        self, statement: str, values: tuple[int, float, int], start: int
    ) -> tuple[list[Row], int | None]:
        """And the number that others may follow."""
        with self._lock:
            try:
                return self._read(statement, values, start)
            except ERRORS as error:
                raise translated(self._name, error, closed=self.closed) from None

    def _read(
        self, statement: str, values: tuple[int, float, int], start: int
    ) -> tuple[list[Row], int | None]:
        connection = self._connection
        if connection is None:
            raise sqlite3.ProgrammingError("closed")
        found = []
        connection.execute("BEGIN")
        rows = connection.execute(statement, values).fetchall()
        for rowid, key, tag, expires, begin in rows:
            if begin is None:
                with connection.blobopen("Cache", "value", rowid, readonly=True) as value:
                    begin = value.read(FRONT + start)  # noqa: PLW2901 - it is read here or there
            with suppress(ValueError):
                size = length_of(key, begin)
                found.append(Row(key, tag, expires, size, begin[FRONT : FRONT + min(start, size)]))
        connection.execute("COMMIT")
        return found, rows[-1][0] if rows else None
