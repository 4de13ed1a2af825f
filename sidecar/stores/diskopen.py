"""The folder of sealed answers: made, checked and set aside, while any number of processes use it.

A file beside the folder, `NAME.lock`, is locked by all who have it open, and by one alone while it is made or
checked. Its first bytes are a number that changes whenever something was removed on purpose.
"""

import mmap
import os
import shutil
import sqlite3
import sys
import time
from contextlib import closing
from functools import cache, partial
from pathlib import Path

from sidecar.stores import changes
from sidecar.stores.diskbytes import DBNAME, SETTINGS, BytesCache
from sidecar.stores.sqlitefile import (
    ERRORS,
    PAGE,
    DamagedError,
    Shape,
    check_content,
    check_schema,
    connect,
    reason,
    shape,
    sync_folder,
)

VERSION = 3
"""Of the database; whoever changes what is in it gives it another."""
_PATIENCE = 60.0
"""Seconds to wait for a process that checks the store."""
_NUMBER = 8

_PRAGMAS = (
    "busy_timeout=10000",
    "mmap_size=0",  # an error of the disk, or a file cut short, would be a SIGBUS
    "synchronous=NORMAL",
    "secure_delete=ON",
    "temp_store=MEMORY",
    "cache_size=-2048",  # KiB
    "cell_size_check=ON",
    "trusted_schema=OFF",
)


class Claim:
    """That a whole store is in the folder until this is closed; and the number that tells of removals."""

    def __init__(self, folder: Path) -> None:
        """Claims nothing yet. Raises OSError."""
        self.folder = folder
        self.set_aside: Path | None = None
        """Where a store went that was found unusable."""
        path = folder.with_name(folder.name + ".lock")
        if sys.platform == "win32":
            raise OSError(f"{path}: keeping answers needs a POSIX system")
        # Never truncated nor replaced: it is mapped into the memory of others.
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(self._file).st_size < _NUMBER:
                self.change()
            self._map = mmap.mmap(self._file, _NUMBER, prot=mmap.PROT_READ)
        except BaseException:
            os.close(self._file)
            raise

    @classmethod
    def on(cls, folder: Path) -> "Claim":
        """Where there is no store it is made; one that cannot be used is set aside, if nobody uses it.
        Raises OSError."""
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        claim = cls(folder)
        try:
            if claim._lock(alone=True):
                claim.set_aside = _prepare(folder)
            # Between the two locks another may have it alone for a moment, and finds it whole.
            claim._share()
        except BaseException:
            claim.close()
            raise
        return claim

    @property
    def number(self) -> int:
        """Another one after each `change` in any process; a look into memory."""
        try:
            return int.from_bytes(self._map[:], sys.byteorder)
        except ValueError:  # closed
            return 0

    def change(self) -> None:
        """Raises OSError."""
        # A random one: two processes may do so at once, and each has to leave another number behind.
        # Written, not mapped: where there is no space, that is an error and not a SIGBUS.
        os.pwrite(self._file, os.urandom(_NUMBER), 0)

    def close(self) -> None:
        """Never raises."""
        if self._file >= 0:
            self._map.close()
            os.close(self._file)
            self._file = -1  # or `change` could write into another file

    def _share(self) -> None:
        end = time.monotonic() + _PATIENCE
        while not self._lock(alone=False):
            if time.monotonic() > end:
                raise OSError(f"{self.folder} is kept locked by another process")
            time.sleep(0.02)

    def _lock(self, *, alone: bool) -> bool:
        import fcntl  # noqa: PLC0415 - exists on POSIX only

        kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        try:
            fcntl.flock(self._file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def connected(folder: Path, *, writes: bool) -> sqlite3.Connection:
    """A connection to the store that one holds a claim on. Raises OSError."""
    pragmas = _PRAGMAS if writes else (*_PRAGMAS, "query_only=ON")
    try:
        # Preparing them would be most of the work of a change. One of them remembers the last blob.
        return connect(folder / DBNAME, pragmas, _check, statements=64)
    except DamagedError as error:
        raise OSError(f"{folder}: {error}, and other processes use it") from None


def _prepare(folder: Path) -> Path | None:
    draft = folder.with_name(folder.name + ".new")
    if draft.exists():
        shutil.rmtree(draft)
    aside = None
    # An empty folder makes way for the draft when that is renamed.
    if folder.exists() and any(folder.iterdir()):
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} cannot be written to")
        if _whole(folder / DBNAME):
            return None
        aside = _set_aside(folder)
    _create(draft)
    draft.rename(folder)
    sync_folder(folder.parent)
    return aside


def _whole(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        connect(path, _PRAGMAS, partial(_check, content=True)).close()
    except DamagedError:
        return False
    return True


def _set_aside(folder: Path) -> Path:
    """Only the last one is kept: it is there to be looked at, and may be large."""
    prefix = f"{folder.name}.damaged-"
    former = [path for path in folder.parent.iterdir() if path.name.startswith(prefix)]
    stamp = int(time.time())
    while (target := folder.with_name(f"{prefix}{stamp}")) in former:
        stamp += 1
    folder.rename(target)
    for path in former:
        shutil.rmtree(path, ignore_errors=True)
    return target


def _create(draft: Path) -> None:
    draft.mkdir(mode=0o700)
    path = draft / DBNAME
    # SQLite gives its other files the mode of this one.
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA page_size={PAGE}")
            _make(connection)
            connection.execute(f"PRAGMA user_version={VERSION}")
    except ERRORS as error:
        raise OSError(f"{draft}: {reason(error)}") from None


def _check(connection: sqlite3.Connection, *, content: bool = False) -> None:
    """Raises DamagedError and sqlite3.Error. `content`: read all of it, and try to write."""
    check_schema(connection, _model(), VERSION)
    keys = connection.execute("SELECT key FROM Settings").fetchall()
    if {key for (key,) in keys} != SETTINGS:
        raise DamagedError("its settings are not those of its version")
    if content:
        check_content(connection)


@cache
def _model() -> Shape:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        _make(connection)
        return shape(connection)


def _make(connection: sqlite3.Connection) -> None:
    BytesCache(connection, 0)
    changes.make(connection)
