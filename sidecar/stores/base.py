"""What a store of sealed answers is: bytes under a key, for a time, in bounded room.

The store knows nothing of what the bytes say. It may lose an entry at any time, and may not return another
one instead. Its methods block: they are for threads. One thread at a time calls `get`, one at a time all
the others; `generation` may be read from anywhere.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import msgspec

from sidecar.stores.sqlite import StoreError

__all__ = ["AnswerStore", "Blob", "DamagedEntryError", "Row", "StoreError", "StoreStats"]


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


class Blob(msgspec.Struct, frozen=True):
    """Something to keep."""

    key: bytes
    blob: bytes
    tag: str
    seconds: float
    """For how long."""


class StoreStats(msgspec.Struct, frozen=True):
    """What a store holds."""

    entries: int
    bytes: int
    """What it takes of its room, its own overhead included."""
    limit: int


class AnswerStore(Protocol):
    """Every method raises StoreError when the store cannot do what was asked."""

    @property
    def generation(self) -> int:
        """Another number once anything was removed on purpose, by this process or by another one: whoever
        holds copies has to drop them. Never raises; costs no more than a look into memory."""

    def get(self, key: bytes) -> bytes | None:
        """The blob, unless there is none or its time is over. Raises DamagedEntryError as well."""

    def put(self, key: bytes, blob: bytes, *, tag: str, seconds: float) -> None:
        """Keep it for so long, in the place of what was there. What was used longest ago makes room."""

    def put_all(self, blobs: Sequence[Blob]) -> None:
        """The same for several, as a whole or not at all."""

    def touch(self, keys: Iterable[bytes]) -> None:
        """They were used, though not from here."""

    def delete(self, keys: Iterable[bytes]) -> int:
        """Remove some; returns how many there were."""

    def purge(self, tag: str) -> int:
        """Remove all with that tag, from the disk as well as from sight; returns how many there were."""

    def clear(self) -> int:
        """Remove everything, likewise."""

    def expire(self) -> int:
        """Remove what is over, likewise."""

    def rows(self, start: int) -> Iterator[Row]:
        """All entries whose time is not over, each with its first `start` bytes, in no particular order.
        What is put or removed meanwhile may be missing or not."""

    def stats(self) -> StoreStats:
        """How much there is, expired entries included."""

    def close(self) -> None:
        """Never raises; what was put is kept, as far as it is kept at all."""
