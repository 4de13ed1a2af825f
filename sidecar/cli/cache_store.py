"""The stored answers as `slipstream cache` sees them: found as `serve` finds them, opened, gone through."""

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import msgspec

from sidecar.config import Loaded
from sidecar.core.entry import Known, is_pointer, peek, pointed, unseal
from sidecar.core.values import ConfigError
from sidecar.serving.folder import data_dir
from sidecar.stores.base import AnswerStore, Row, StoreError
from sidecar.stores.disk import DiskStore
from sidecar.stores.diskbytes import DBNAME

_FACTS = 16 * 1024
"""Bytes of an entry's start that nearly always hold all its facts."""
_POINTER = 128
"""The same of a pointer."""


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


class Item(msgspec.Struct, frozen=True):
    """A stored answer, as far as it is known without its body."""

    key: bytes
    tag: str
    expires: float
    """When it is removed, in unix seconds."""
    size: int
    known: Known
    """Without the header fields."""


class Filter(msgspec.Struct, frozen=True):
    """Which answers are meant."""

    tenant: str | None = None
    upstream: str | None = None
    model: str | None = None
    path: str | None = None
    """A prefix."""
    key: str | None = None
    """The first hexadecimal digits."""

    def takes(self, item: Item) -> bool:
        """Whether it is one of them."""
        known = item.known
        return (
            (self.tenant is None or item.tag == self.tenant)
            and (self.upstream is None or known.upstream == self.upstream)
            and (self.model is None or known.model == self.model)
            and (self.path is None or known.path.startswith(self.path))
            and (self.key is None or item.key.hex().startswith(self.key))
        )


class Census(msgspec.Struct):
    """What came by beside the answers."""

    aliases: int = 0
    unreadable: int = 0


def items(store: AnswerStore, census: Census) -> Iterator[Item]:
    """All answers whose time is not over. Raises StoreError."""
    for row in store.rows(_FACTS):
        if is_pointer(row.start):
            census.aliases += 1
        elif (known := _known(store, row)) is not None:
            yield Item(row.key, row.tag, row.expires, row.size, msgspec.structs.replace(known, headers=()))
        else:
            census.unreadable += 1


def aliases(store: AnswerStore) -> dict[bytes, list[bytes]]:
    """Key of an answer -> the keys of what points at it. Raises StoreError."""
    found: dict[bytes, list[bytes]] = {}
    for row in store.rows(_POINTER):
        with suppress(ValueError):
            if is_pointer(row.start):
                found.setdefault(pointed(row.key, row.start), []).append(row.key)
    return found


def count(store: AnswerStore, tag: str | None = None) -> int:
    """How many answers there are, or are of one tenant. Raises StoreError."""
    rows = store.rows(_POINTER)
    return sum([not is_pointer(row.start) for row in rows if tag is None or row.tag == tag])


def _known(store: AnswerStore, row: Row) -> Known | None:
    known = peek(row.start)
    if known is None and len(row.start) < row.size:
        # Its header fields are longer than anybody's.
        with suppress(ValueError):
            blob = store.get(row.key)
            known = unseal(row.key, blob).known if blob is not None else None
    return known
