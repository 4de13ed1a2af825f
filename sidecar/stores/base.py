"""What a store of sealed answers is: bytes under a key, for a time, in bounded room.

The store knows nothing of what the bytes say. It may lose an entry at any time, and may not return another
one instead. Its methods block: they are for threads, of which several may call it at once. `generation` may
be read from anywhere, and each `ChangeLog` has a thread of its own.

Of entries whose question may be asked in other words it keeps a log as well: whoever compares questions reads
the log to its end, and then what is new at its end. A row of the log is there only as long as its entry, and
comes into being with it or not at all.
"""

from array import array
from collections.abc import Generator, Iterable, Sequence
from typing import Protocol

import msgspec

from sidecar.stores.sqlite import StoreError

__all__ = [
    "ENTRIES",
    "NAMES",
    "AnswerStore",
    "Blob",
    "Change",
    "ChangeLog",
    "DamagedEntryError",
    "Near",
    "Noted",
    "Row",
    "StoreError",
    "StoreStats",
]

ENTRIES = 100_000
"""Rows of the log, unless it is told otherwise."""
NAMES = 10_000
"""Ids that are remembered under which answers were given."""
SCOPE = 32
"""Bytes of a scope."""


class Row(msgspec.Struct, frozen=True):
    """An entry, as far as a list shows it."""

    key: bytes
    tag: str
    expires: float
    """Unix seconds."""
    size: int
    """Bytes of the whole blob."""
    start: bytes
    """Its first bytes."""


class DamagedEntryError(StoreError):
    """One entry cannot be read; the others may well be."""


class Near(msgspec.Struct, frozen=True):
    """Where an answer lies for those who ask the same in other words."""

    scope: bytes
    """32 bytes: whose answers, and to what kind of request."""
    vector: bytes
    """Of the question: float16, little-endian, any number of dimensions."""
    traits: bytes
    """Of the question."""


class Blob(msgspec.Struct, frozen=True):
    """Something to keep."""

    key: bytes
    blob: bytes
    tag: str
    seconds: float
    """For how long."""
    near: Near | None = None
    """Without it, what the log has under that key stays: the same key is the same question."""


class StoreStats(msgspec.Struct, frozen=True):
    """What a store holds."""

    entries: int
    bytes: int
    """What it takes of its room, its own overhead included."""
    limit: int
    vectors: int = 0
    """Entries that the log has."""


class Change(msgspec.Struct, frozen=True):
    """A row of the log, as far as an index needs it."""

    seq: int
    """At least 1; what comes later has a larger one, and none is used again."""
    scope: bytes
    vector: bytes


class Noted(msgspec.Struct, frozen=True):
    """A row of the log, as far as it takes to judge a match and to get the answer."""

    key: bytes
    scope: bytes
    traits: bytes


class ChangeLog(Protocol):
    """A view of the log, for one thread at a time, whatever others do with the store. It sees what any
    process wrote. Every method raises StoreError when it cannot do what was asked, and once the store is
    closed."""

    def after(self, seq: int, most: int) -> list[Change]:
        """The next ones in order; fewer than `most` only at the end. The time of some may be over."""

    def noted(self, seqs: Sequence[int]) -> dict[int, Noted]:
        """Those that are still there, and whose entry's time is not over."""

    def alive(self) -> "array[int]":
        """All `seq` there are, ascending. What comes or goes meanwhile may be missing or not."""

    def close(self) -> None:
        """Never raises."""


class AnswerStore(Protocol):
    """Every method raises StoreError when the store cannot do what was asked."""

    @property
    def generation(self) -> int:
        """Another number once anything was removed on purpose, by this process or by another one: whoever
        holds copies has to drop them. Never raises; costs no more than a look into memory."""

    def get(self, key: bytes) -> bytes | None:
        """The blob, unless there is none or its time is over. Raises DamagedEntryError as well."""

    def put(self, key: bytes, blob: bytes, *, tag: str, seconds: float) -> None:
        """Keep it for so long, in the place of what was there. What was used longest ago makes room: entries
        of the store, and of the log what came first, whose entries stay."""

    def put_all(self, blobs: Sequence[Blob]) -> None:
        """The same for several, as a whole or not at all."""

    def touch(self, keys: Iterable[bytes]) -> None:
        """They were used, though not from here."""

    def delete(self, keys: Iterable[bytes]) -> int:
        """Remove some; returns how many there were. However many these are, others can write meanwhile. The
        generation changes before the first key is taken from `keys`, which may look at the store for them,
        and at the end. When it raises, some may have been removed."""

    def purge(self, tag: str) -> int:
        """Remove all with that tag, from the disk as well as from sight; returns how many there were."""

    def clear(self) -> int:
        """Remove everything, likewise."""

    def expire(self) -> int:
        """Remove what is over, likewise."""

    def changes(self) -> ChangeLog:
        """A new one, to be closed by whoever asked for it."""

    def note(self, key: bytes, near: Near) -> bool:
        """Add an entry that is there to the log; False if it is not."""

    def served(self, name: str, key: bytes) -> None:
        """An answer was given under this id. The newest `NAMES` are remembered, as long as their entry is
        there."""

    def served_all(self, served: Sequence[tuple[str, bytes]]) -> None:
        """The same for several."""

    def served_key(self, name: str) -> bytes | None:
        """What was given under this id, as far as that is remembered."""

    def rows(self, start: int, *, newest: bool = False, largest: int | None = None) -> Generator[Row]:
        """All entries whose time is not over, each with its first `start` bytes, in no particular order; or,
        `newest`, those first that came last, or nearly so. `largest`: only those of at most so many bytes.
        What is put or removed meanwhile may be missing or not. To be closed by whoever does not read it to
        its end."""

    def stats(self) -> StoreStats:
        """How much there is, expired entries included."""

    def close(self) -> None:
        """Never raises; what was put is kept, as far as it is kept at all."""
