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
from pathlib import Path
from typing import Any

PAGE = 4096
"""Bytes of a page."""
_PATIENCE = 2.0
"""Seconds to wait for somebody who looks into the file, such as a backup or the `sqlite3` shell."""

_SETTINGS = (
    "synchronous=FULL",  # a commit is on the disk when it returns
    "secure_delete=ON",
    "temp_store=MEMORY",  # or SQLite puts copies of what it changes into /tmp
    "cache_size=-1024",  # KiB
    "cell_size_check=ON",
    "trusted_schema=OFF",
)

_REASONS = {
    "SQLITE_FULL": "the disk is full",
    "SQLITE_IOERR": "the disk reports an error",
    "SQLITE_READONLY": "it cannot be written to",
    "SQLITE_CANTOPEN": "it cannot be opened",
    "SQLITE_BUSY": "another process has locked it",
    "SQLITE_CORRUPT": "it is damaged",
    "SQLITE_NOTADB": "it is damaged",
}

_ERRORS = (sqlite3.Error, UnicodeError)
"""What its methods raise; the latter where a message quotes a damaged file."""
_DAMAGE = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""What SQLite says of a file that it does not understand."""


class FolderInUseError(Exception):
    """Another process uses the folder; the message is one line for people."""


class StoreError(Exception):
    """The disk did not do what was asked; the message is one line for people, without anybody's data."""


class _DamagedError(Exception):
    """What is in the file cannot be used."""


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
                with suppress(*_ERRORS):
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
            with suppress(*_ERRORS):
                self._connection.close()
            os.close(self._lock)
            self._lock = None

    def _wipe(self) -> None:
        """Move the log into the database, where zeros overwrite what was deleted, and empty it."""
        try:
            state = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._wiping = state[0][0] != 0
        except _ERRORS:
            self._wiping = True

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except _ERRORS as error:
            # Without its cause: it may quote what is in the file.
            raise StoreError(f"{self._name}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    kind = "_".join(name.split("_")[:2])
    return f"{_REASONS[kind]} ({name})" if kind in _REASONS else name


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
    if path.exists():
        with suppress(_DamagedError):
            return _connect(path, schema, version), None
    aside = _set_aside(path)
    _create(path, schema, version)
    try:
        return _connect(path, schema, version), aside
    except _DamagedError as error:
        raise OSError(f"{path}: {error}") from None


def _family(path: Path) -> list[Path]:
    """A database and the files SQLite keeps beside it."""
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm", "-journal")]


def _set_aside(path: Path) -> Path | None:
    """The database first: SQLite drops a log whose database is missing or empty, but would play an old
    log into a new database."""
    stamp = int(time.time())
    while any(path.parent.glob(f"{path.name}.damaged-{stamp}*")):
        stamp += 1
    target = path.with_name(f"{path.name}.damaged-{stamp}")
    moved = None
    for old, new in zip(_family(path), _family(target), strict=True):
        if old.exists():
            old.rename(new)
            moved = moved or new
    return moved


def _create(path: Path, schema: str, version: int) -> None:
    """Made aside and renamed, so that an empty or half-made file under the real name is a damaged one."""
    draft = path.with_name(path.name + ".new")
    for leftover in _family(draft):
        leftover.unlink(missing_ok=True)
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with closing(sqlite3.connect(draft, isolation_level=None)) as connection:
            connection.executescript(
                f"PRAGMA page_size={PAGE}; PRAGMA auto_vacuum=INCREMENTAL; BEGIN; {schema};"
                f"PRAGMA user_version={version}; COMMIT"
            )
    except sqlite3.Error as error:
        raise OSError(f"{path}: {_reason(error)}") from None
    draft.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _connect(path: Path, schema: str, version: int) -> sqlite3.Connection:
    """Raises _DamagedError and OSError."""
    # The file is not opened to look at it: closing it again would drop SQLite's own locks.
    for file in _family(path):
        if file.exists() and file.stat().st_mode & 0o077:
            file.chmod(0o600)
    if not os.access(path, os.R_OK | os.W_OK):
        raise PermissionError(f"{path} cannot be written to")
    log = path.with_name(path.name + "-wal")
    if path.stat().st_size % PAGE and not (log.exists() and log.stat().st_size):
        # SQLite takes what is missing of the last page for zeros.
        raise _DamagedError("its end is missing")
    connection: sqlite3.Connection | None = None
    try:
        # Cached statements would keep the last values they were given: a prompt, or 32 MiB of an answer.
        connection = sqlite3.connect(
            path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False, cached_statements=0
        )
        for setting in _SETTINGS:
            connection.execute(f"PRAGMA {setting}").fetchall()
        _check(connection, schema, version)
        _keep_log(connection, path)
    except BaseException as error:
        if connection is not None:
            connection.close()
        if not isinstance(error, _ERRORS):
            raise
        if _is_damage(error):
            raise _DamagedError(_reason(error)) from None
        raise OSError(f"{path}: {_reason(error)}") from None
    return connection


def _check(connection: sqlite3.Connection, schema: str, version: int) -> None:
    """Raises _DamagedError, and sqlite3.Error where SQLite itself finds fault."""
    if connection.execute("PRAGMA user_version").fetchall() != [(version,)]:
        raise _DamagedError("it is of another version")
    with closing(sqlite3.connect(":memory:")) as model:
        model.executescript(schema)
        if _shape(connection) != _shape(model):
            raise _DamagedError("its tables are not those of its version")
    if connection.execute("PRAGMA integrity_check(1)").fetchall() != [("ok",)]:
        raise _DamagedError("it fails SQLite's check")
    # A damaged header can make it read-only, which shows only when writing.
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(f"PRAGMA user_version={version}")
    connection.execute("ROLLBACK")


def _keep_log(connection: sqlite3.Connection, path: Path) -> None:
    if connection.execute("PRAGMA journal_mode=WAL").fetchall() != [("wal",)]:
        raise OSError(f"{path}: the file system does not allow a write-ahead log")


def _shape(connection: sqlite3.Connection) -> list[tuple[str, str, str]]:
    found = connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY type, name").fetchall()
    return [(kind, name, " ".join((sql or "").split())) for kind, name, sql in found]


def _is_damage(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    # Plain "read-only" comes from a damaged header; the longer codes have reasons outside of the file.
    return code & 0xFF in _DAMAGE or code == sqlite3.SQLITE_READONLY
