"""A SQLite file that one process owns: opening it safely, and changing it as a whole or not at all.

The file is locked against other processes, readable by its owner only, and made under another name, so
that under its own it is never half made. What is damaged, or was written by a newer version, is set aside
with all that belongs to it, and an empty one takes its place. Deleted content is overwritten with zeros.
"""

import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from sidecar.stores.sqlitefile import (
    ERRORS,
    PAGE,
    DamagedError,
    check_content,
    check_schema,
    connect,
    family,
    reason,
    shape,
    sync_folder,
)

__all__ = ["PAGE", "Database", "FolderInUseError", "StoreError"]

_SETTINGS = (
    "synchronous=FULL",  # a commit is on the disk when it returns
    "secure_delete=ON",
    "temp_store=MEMORY",  # or SQLite puts copies of what it changes into /tmp
    "cache_size=-1024",  # KiB
    "cell_size_check=ON",
    "trusted_schema=OFF",
)


class FolderInUseError(Exception):
    """Another process uses the folder; the message is one line for people."""


class StoreError(Exception):
    """The disk did not do what was asked; the message is one line for people, without anybody's data."""


class Database:
    """One connection, used by one thread at a time. Every method raises StoreError."""

    def __init__(self, connection: sqlite3.Connection, name: str, lock: int, set_aside: Path | None) -> None:
        """`lock`: the descriptor that holds the lock; both it and the connection are closed by `close`."""
        self._connection = connection
        self._name = name
        self._lock: int | None = lock
        self.set_aside = set_aside
        """Where the file went that was found unusable."""
        self._wiping = False
        # A process that died may have left what it had deleted.
        self._wipe()

    @classmethod
    def open(cls, path: Path, schema: str, version: int) -> "Database":
        """The database at `path`, empty if there was none or none that can be used.

        `schema`: the statements that make it; whoever changes them gives them another `version`.
        Raises FolderInUseError, and OSError when file or folder cannot be used at all.
        """
        lock = _lock(path.with_suffix(".lock"))
        try:
            connection, aside = _open(path, schema, version)
        except BaseException:
            os.close(lock)
            raise
        return cls(connection, path.name, lock, aside)

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """All rows at once: a statement left half read would keep what is deleted on the disk."""
        with self._translated():
            return self._connection.execute(statement, values).fetchall()

    def change(self, statement: str, *values: object) -> int:
        """How many rows it changed."""
        with self._translated():
            return self._connection.execute(statement, values).rowcount

    def delete(self, statement: str, *values: object) -> None:
        """What is deleted is gone from all files once the transaction is over."""
        self._wiping = self.change(statement, *values) > 0 or self._wiping

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is done inside is done as a whole, and on the disk afterwards; or none of it is.

        Where the disk is full or somebody else reads the file, wiping what was deleted is left to the
        transactions that follow: the deletion itself is done and cannot be taken back.
        """
        with self._translated():
            self._roll_back()  # only where an earlier one could not be
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(*ERRORS):
                    self._roll_back()
                raise
        if self._wiping:
            self._wipe()

    def shrink(self, pages: int) -> None:
        """Give up to so many unused pages back to the file system."""
        with self._translated():
            # `execute` would stop after the first page: SQLite answers with a row for each.
            self._connection.executescript(f"PRAGMA incremental_vacuum({pages})")
        self._wipe()

    def close(self) -> None:
        """Never raises; what a transaction has done is on the disk already."""
        if self._lock is not None:
            with suppress(*ERRORS):
                self._connection.close()
            os.close(self._lock)
            self._lock = None

    def _wipe(self) -> None:
        """Move the log into the database, where zeros overwrite what was deleted, and empty it."""
        try:
            state = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._wiping = state[0][0] != 0
        except ERRORS:
            self._wiping = True

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ERRORS as error:
            # Without its cause: it may quote what is in the file.
            raise StoreError(f"{self._name}: {reason(error)}") from None


def _lock(path: Path) -> int:
    if sys.platform == "win32":
        raise OSError(f"{path}: keeping a store needs a POSIX system")
    import fcntl  # noqa: PLC0415 - exists on POSIX only

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise FolderInUseError(f"{path.parent} is in use by another process") from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open(path: Path, schema: str, version: int) -> tuple[sqlite3.Connection, Path | None]:
    check = partial(_check, schema=schema, version=version)
    if path.exists():
        with suppress(DamagedError):
            return connect(path, _SETTINGS, check), None
    aside = _set_aside(path)
    _create(path, schema, version)
    try:
        return connect(path, _SETTINGS, check), aside
    except DamagedError as error:
        raise OSError(f"{path}: {error}") from None


def _set_aside(path: Path) -> Path | None:
    """The database first: SQLite drops a log whose database is missing or empty, but would play an old
    log into a new database."""
    stamp = int(time.time())
    while any(path.parent.glob(f"{path.name}.damaged-{stamp}*")):
        stamp += 1
    target = path.with_name(f"{path.name}.damaged-{stamp}")
    moved = None
    for old, new in zip(family(path), family(target), strict=True):
        if old.exists():
            old.rename(new)
            moved = moved or new
    return moved


def _create(path: Path, schema: str, version: int) -> None:
    """Made aside and renamed, so that an empty or half-made file under the real name is a damaged one."""
    draft = path.with_name(path.name + ".new")
    for leftover in family(draft):
        leftover.unlink(missing_ok=True)
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with closing(sqlite3.connect(draft, isolation_level=None)) as connection:
            connection.executescript(
                f"PRAGMA page_size={PAGE}; PRAGMA auto_vacuum=INCREMENTAL; BEGIN; {schema};"
                f"PRAGMA user_version={version}; COMMIT"
            )
    except sqlite3.Error as error:
        raise OSError(f"{path}: {reason(error)}") from None
    draft.rename(path)
    sync_folder(path.parent)


def _check(connection: sqlite3.Connection, schema: str, version: int) -> None:
    """Raises DamagedError, and sqlite3.Error where SQLite itself finds fault."""
    with closing(sqlite3.connect(":memory:")) as model:
        model.executescript(schema)
        check_schema(connection, shape(model), version)
    check_content(connection)
