"""What a store on disk says when something goes wrong: one line, which quotes nothing of what is in it."""

import sqlite3

import diskcache

from sidecar.stores.base import DamagedEntryError, StoreError
from sidecar.stores.sqlitefile import reason

ERRORS = (sqlite3.Error, diskcache.Timeout, OSError, ValueError, TypeError, OverflowError)
"""What SQLite, diskcache and the file system raise, and reading what is not as it was written."""


def translated(name: str, error: Exception, *, closed: bool) -> StoreError:
    """To be raised without its cause, which may quote what is in the file. `name`: of the store."""
    if closed:
        return StoreError(f"{name}: the store is closed")
    if isinstance(error, (ValueError, TypeError)):
        return DamagedEntryError(f"{name}: it is damaged ({type(error).__name__})")
    # What diskcache raises, also when it fails to roll back, hides what SQLite said before.
    cause: BaseException | None = error
    first: BaseException = error
    while cause is not None:
        first = cause if isinstance(cause, sqlite3.Error) else first
        cause = cause.__context__
    return StoreError(f"{name}: {reason(first)}")
