"""The stored answers as `slipstream cache` sees them: found as `serve` finds them, and opened."""

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import msgspec

from sidecar.config import Loaded
from sidecar.core.values import ConfigError
from sidecar.serving.folder import data_dir
from sidecar.stores.base import AnswerStore, StoreError
from sidecar.stores.disk import DiskStore
from sidecar.stores.diskbytes import DBNAME


class WorkError(Exception):
    """The work could not be done: exit status 1. The message is one line for people."""


class Place(msgspec.Struct, frozen=True):
    """Where the answers are."""

    folder: Path
    """The data folder."""
    limit: int
    """Bytes that they may take there."""

    @property
    def answers(self) -> Path:
        return self.folder / "answers"


def place(found: Loaded) -> Place:
    """Where a sidecar with this configuration keeps its answers. Raises ConfigError."""
    folder = data_dir(found.config)
    limit = int(found.config.cache.size)
    try:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder}: is not a folder; name the sidecar's with --data-dir")
        # A store is opened with its limit, and makes room at once where it holds more. Who only looks at it,
        # without the sidecar's configuration at hand, must not drive answers out.
        recorded = _recorded(folder / "answers" / DBNAME)
        said = "cache.size" in found.origins or not recorded
        return Place(folder, max(limit, recorded) if said else recorded)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be used: {error.strerror}") from None


def _recorded(database: Path) -> int:
    """The limit that the store was opened with last; 0 where nobody can tell."""
    if not database.is_file():
        return 0
    with suppress(sqlite3.Error, TypeError, ValueError):
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            ((limit,),) = connection.execute("SELECT value FROM Settings WHERE key = 'size_limit'").fetchall()
        return int(limit)
    return 0


def exists(where: Place) -> bool:
    """Whether anything was ever stored there; says so if not. Raises ConfigError."""
    try:
        found = where.answers.is_dir()
    except OSError as error:
        raise ConfigError(f"{where.answers}: cannot be used: {error.strerror}") from None
    if not found:
        # What is read by programs is empty then, but it must not look like a mistake to people.
        print(f"nothing is stored yet in {where.folder}", file=sys.stderr)
    return found


@contextmanager
def opened(where: Place) -> Iterator[AnswerStore]:
    """The store, made if there is none. Raises ConfigError when the folder cannot be used, and WorkError in
    the place of the StoreErrors of the block."""
    try:
        store = DiskStore.open(where.answers, where.limit)
    except OSError as error:
        reason = f"{where.folder}: cannot be used: {error.strerror}" if error.strerror else str(error)
        raise ConfigError(reason) from None
    if store.set_aside is not None:
        print(f"the store was damaged, or of another version, and is now {store.set_aside}", file=sys.stderr)
    try:
        yield store
    except StoreError as error:
        raise WorkError(f"{where.folder}: {error}; is the disk full, or another process at work?") from None
    finally:
        store.close()
