"""A SQLite file: what connects to it, and what tells a whole one from a damaged one."""

import os
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path

PAGE = 4096
"""Bytes of a page."""
Shape = list[tuple[str, str, str]]
"""Kind, name and SQL of all that a schema makes."""
_PATIENCE = 2.0
"""Seconds to wait for somebody who looks into the file, such as a backup or the `sqlite3` shell."""

_REASONS = {
    "SQLITE_FULL": "the disk is full",
    "SQLITE_IOERR": "the disk reports an error",
    "SQLITE_READONLY": "it cannot be written to",
    "SQLITE_CANTOPEN": "it cannot be opened",
    "SQLITE_BUSY": "another process has locked it",
    "SQLITE_CORRUPT": "it is damaged",
    "SQLITE_NOTADB": "it is damaged",
}

ERRORS = (sqlite3.Error, UnicodeError)
"""What its methods raise; the latter where a message quotes a damaged file."""
_DAMAGE = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""What SQLite says of a file that it does not understand."""


class DamagedError(Exception):
    """What is in the file cannot be used."""


def reason(error: BaseException) -> str:
    """What went wrong, in words that quote nothing of what is in the file."""
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    kind = "_".join(name.split("_")[:2])
    return f"{_REASONS[kind]} ({name})" if kind in _REASONS else name


def family(path: Path) -> list[Path]:
    """A database and the files SQLite keeps beside it."""
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm", "-journal")]


def sync_folder(folder: Path) -> None:
    """What was made, renamed or removed in it is so after a power cut too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def connect(
    path: Path, settings: Iterable[str], check: Callable[[sqlite3.Connection], None], statements: int = 0
) -> sqlite3.Connection:
    """A connection to an existing database with a write-ahead log, for one thread at a time.

    `settings`: pragmas. `check` raises DamagedError where the database is not what it should be, and may
    let sqlite3.Error pass. `statements`: how many prepared ones it keeps, with the values they were last
    given: a prompt, or 32 MiB of an answer. Raises DamagedError and OSError.
    """
    # The file is not opened to look at it: closing it again would drop SQLite's own locks.
    for file in family(path):
        if file.exists() and file.stat().st_mode & 0o077:
            file.chmod(0o600)
    if not os.access(path, os.R_OK | os.W_OK):
        raise PermissionError(f"{path} cannot be written to")
    log = path.with_name(path.name + "-wal")
    if path.stat().st_size % PAGE and not (log.exists() and log.stat().st_size):
        # SQLite takes what is missing of the last page for zeros.
        raise DamagedError("its end is missing")
    connection: sqlite3.Connection | None = None
    try:
        connection = sqlite3.connect(
            path,
            timeout=_PATIENCE,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=statements,
        )
        for setting in settings:
            connection.execute(f"PRAGMA {setting}").fetchall()
        check(connection)
        _keep_log(connection, path)
    except BaseException as error:
        if connection is not None:
            connection.close()
        if not isinstance(error, ERRORS):
            raise
        if _is_damage(error):
            raise DamagedError(reason(error)) from None
        raise OSError(f"{path}: {reason(error)}") from None
    return connection


def check_schema(connection: sqlite3.Connection, model: Shape, version: int) -> None:
    """Raises DamagedError, and sqlite3.Error where SQLite itself finds fault."""
    if connection.execute("PRAGMA user_version").fetchall() != [(version,)]:
        raise DamagedError("it is of another version")
    if shape(connection) != model:
        raise DamagedError("its tables are not those of its version")


def check_content(connection: sqlite3.Connection) -> None:
    """Reads all of it. Raises like `check_schema`."""
    if connection.execute("PRAGMA integrity_check(1)").fetchall() != [("ok",)]:
        raise DamagedError("it fails SQLite's check")
    # A damaged header can make it read-only, which shows only when writing.
    ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(f"PRAGMA user_version={version}")
    connection.execute("ROLLBACK")


def _keep_log(connection: sqlite3.Connection, path: Path) -> None:
    if connection.execute("PRAGMA journal_mode=WAL").fetchall() != [("wal",)]:
        raise OSError(f"{path}: the file system does not allow a write-ahead log")


def shape(connection: sqlite3.Connection) -> Shape:
    """Its tables, indexes, triggers and views."""
    found = connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY type, name").fetchall()
    return [(kind, name, " ".join((sql or "").split())) for kind, name, sql in found]


def _is_damage(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    # Plain "read-only" comes from a damaged header; the longer codes have reasons outside of the file.
    return code & 0xFF in _DAMAGE or code == sqlite3.SQLITE_READONLY
