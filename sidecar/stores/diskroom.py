"""Room in the database of sealed answers: how much is taken, what makes way, what is given back and wiped.

All of it is for a connection that writes, and for one thread at a time.
"""

import itertools
import math
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress

from sidecar.stores.sqlitefile import PAGE

OWN = 32 * PAGE
"""Bytes of an empty database, about."""
_STEP = 64
"""Entries that make room in one transaction."""
_REMOVED = 128
"""Entries that are removed in one transaction."""
_BREAK = 0.1
"""Seconds between two of those at most."""
_PAGES = 4096
"""Unused pages that are given back in one transaction."""
_CACHE = 4096
"""Pages that may be in memory meanwhile."""


def used(connection: sqlite3.Connection) -> int:
    """Bytes of all pages that hold something."""
    ((pages,),) = connection.execute("PRAGMA page_count").fetchall()
    ((free,),) = connection.execute("PRAGMA freelist_count").fetchall()
    return int(pages - free) * PAGE


def mark(connection: sqlite3.Connection, keys: Iterable[bytes]) -> float:
    """They were used now, in this order. Returns a time for what is used next."""
    ((latest,),) = connection.execute(
        "SELECT max(access_time) FROM Cache WHERE access_time < 1e300"
    ).fetchall()
    # Later than any entry was used: clocks are set back.
    at = math.nextafter(latest or 0.0, math.inf)
    times = []
    for key in keys:
        times.append((at, key))
        at = math.nextafter(at, math.inf)
    connection.executemany("UPDATE Cache SET access_time = ? WHERE key = ? AND raw = 1", times)
    return at


def cull(connection: sqlite3.Connection, limit: int) -> bool:
    """Make room, in one step; returns whether another one is needed."""
    if used(connection) <= limit:
        return False
    oldest = connection.execute("SELECT rowid FROM Cache ORDER BY access_time LIMIT ?", (_STEP,)).fetchall()
    for row in oldest:
        connection.execute("DELETE FROM Cache WHERE rowid = ?", row)
        if used(connection) <= limit:
            return False
    return bool(oldest)


def steps(keys: Iterable[bytes]) -> Iterator[list[bytes]]:
    """What is to be removed, some at a time. Each time it waits for as long as that took: other processes
    only look now and then whether they may write, and give up in the end."""
    left = iter(keys)
    some = list(itertools.islice(left, _REMOVED))
    while some:
        begun = time.monotonic()
        yield some
        took = time.monotonic() - begun
        if some := list(itertools.islice(left, _REMOVED)):
            time.sleep(min(took, _BREAK))


def shrink(connection: sqlite3.Connection) -> None:
    """Give unused pages back to the file system, a few at a time: others want to write too."""
    with suppress(sqlite3.Error):
        ((free,),) = connection.execute("PRAGMA freelist_count").fetchall()
        ((cache,),) = connection.execute("PRAGMA cache_size").fetchall()
        if free > _PAGES:
            # For each page SQLite goes through the list of all unused ones, which is in such pages itself.
            connection.execute(f"PRAGMA cache_size={_CACHE}")
        try:
            for _ in range(0, free, _PAGES):
                # `execute` would stop after the first page: SQLite answers with a row for each.
                connection.executescript(f"PRAGMA incremental_vacuum({_PAGES})")
        finally:
            connection.execute(f"PRAGMA cache_size={cache}")


def wipe(connection: sqlite3.Connection) -> bool:
    """Move the log of SQLite into the database, where zeros overwrite what was deleted, and empty it. Returns
    whether that was done: not while somebody reads."""
    with suppress(sqlite3.Error):
        ((busy, _, _),) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return bool(busy == 0)
    return False
