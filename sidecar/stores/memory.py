"""Sealed answers in this process's memory, for as long as it runs."""

import itertools
import time
from array import array
from collections.abc import Callable, Generator, Iterable, Sequence
from threading import Lock
from typing import NamedTuple

from sidecar.core.lru import Lru
from sidecar.stores.base import (
    ENTRIES,
    NAMES,
    SCOPE,
    Blob,
    Change,
    DamagedEntryError,
    Near,
    Noted,
    Row,
    StoreError,
    StoreStats,
)

OVERHEAD = 512
"""Bytes that an entry takes beside its key, tag and blob, about."""


class _Kept(NamedTuple):
    blob: bytes
    tag: str
    expires: float
    life: int
    """The same as long as there is something under its key."""
    near: tuple[int, Near] | None = None
    """With its place in the log."""


class MemoryStore:
    """An `AnswerStore` that nobody else sees."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.time, *, entries: int = ENTRIES) -> None:
        """`limit`: bytes; `clock`: unix seconds; `entries`: the most rows of the log, counting those that are
        gone."""
        self._kept: Lru[_Kept] = Lru(limit)
        self._entries = entries
        self._last = 0
        self._log: dict[int, bytes] = {}
        """Keys by their place in the log; what was there may be gone, or have got another place."""
        self._served: dict[str, tuple[bytes, int]] = {}
        """Key and life."""
        self._lives = itertools.count()
        self._clock = clock
        self._lock = Lock()
        self._generation = 0
        self._closed = False

    @property
    def generation(self) -> int:
        return self._generation

    def get(self, key: bytes) -> bytes | None:
        with self._open():
            found = self._kept.peek(key)
            if found is None or found.expires <= self._clock():
                return None
            self._kept.get(key)
            return found.blob

    def put(self, key: bytes, blob: bytes, *, tag: str, seconds: float) -> None:
        self.put_all([Blob(key, blob, tag, seconds)])

    def put_all(self, blobs: Sequence[Blob]) -> None:
        with self._open():
            for one in blobs:
                held = self._kept.peek(one.key)
                former = held.near[1] if held is not None and held.near is not None else None
                self._check(_size(one.key, one.tag, one.blob, one.near or former), one.near)
            for one in blobs:
                held = self._kept.peek(one.key)
                life, near = (held.life, held.near) if held is not None else (next(self._lives), None)
                kept = _Kept(one.blob, one.tag, self._clock() + one.seconds, life, near)
                self._keep(one.key, kept, one.near)

    def touch(self, keys: Iterable[bytes]) -> None:
        with self._open():
            for key in keys:
                self._kept.get(key)

    def delete(self, keys: Iterable[bytes]) -> int:
        with self._open():
            self._generation += 1
        going = list(keys)
        with self._open():
            self._generation += 1
            return sum([self._kept.pop(key) is not None for key in going])

    def purge(self, tag: str) -> int:
        with self._open():
            self._generation += 1
            return self._remove([key for key, kept in self._kept.items() if kept.tag == tag])

    def clear(self) -> int:
        with self._open():
            self._generation += 1
            return self._remove([key for key, _ in self._kept.items()])

    def expire(self) -> int:
        with self._open():
            now = self._clock()
            count = self._remove([key for key, kept in self._kept.items() if kept.expires <= now])
            self._generation += count > 0
            return count

    def changes(self) -> "MemoryLog":
        with self._open():
            return MemoryLog(self)

    def note(self, key: bytes, near: Near) -> bool:
        with self._open():
            held = self._kept.peek(key)
            if held is None or held.expires <= self._clock():
                return False
            self._check(_size(key, held.tag, held.blob, near), near)
            self._keep(key, held, near)
            return True

    def served(self, name: str, key: bytes) -> None:
        self.served_all([(name, key)])

    def served_all(self, served: Sequence[tuple[str, bytes]]) -> None:
        with self._open():
            for name, key in served:
                if (held := self._kept.peek(key)) is not None:
                    self._served.pop(name, None)
                    self._served[name] = key, held.life
                if len(self._served) > NAMES:
                    del self._served[next(iter(self._served))]

    def served_key(self, name: str) -> bytes | None:
        with self._open():
            key, life = self._served.get(name, (b"", -1))
            held = self._kept.peek(key)
            return key if held is not None and held.life == life else None

    def rows(self, start: int, *, newest: bool = False, largest: int | None = None) -> Generator[Row]:
        with self._open():
            now, items = self._clock(), list(self._kept.items())
        if newest:
            items.reverse()
        for key, kept in items:
            if kept.expires > now and (largest is None or len(kept.blob) <= largest):
                yield Row(key, kept.tag, kept.expires, len(kept.blob), kept.blob[:start])

    def stats(self) -> StoreStats:
        with self._open():
            logged = sum([self._row(seq) is not None for seq in self._log])
            return StoreStats(len(self._kept), self._kept.used, self._kept.limit, logged)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._kept.clear()
            self._log.clear()
            self._served.clear()

    # What a `MemoryLog` asks.

    def after(self, seq: int, most: int) -> list[Change]:
        with self._open():
            first = max(seq, self._last - self._entries) + 1
            rows = ((number, self._row(number)) for number in range(first, self._last + 1))
            found = ((number, row[1]) for number, row in rows if row is not None)
            return [Change(number, near.scope, near.vector) for number, near in itertools.islice(found, most)]

    def noted(self, seqs: Sequence[int]) -> dict[int, Noted]:
        with self._open():
            now, found = self._clock(), {}
            for seq in seqs:
                if (row := self._row(seq)) is not None and self._expires(row[0]) > now:
                    found[seq] = Noted(row[0], row[1].scope, row[1].traits)
            return found

    def alive(self) -> "array[int]":
        with self._open():
            return array("q", [seq for seq in self._log if self._row(seq) is not None])

    # All that follows is called with the lock held.

    def _row(self, seq: int) -> tuple[bytes, Near] | None:
        key = self._log.get(seq)
        held = self._kept.peek(key) if key is not None else None
        if key is None or held is None or held.near is None or held.near[0] != seq:
            return None
        return key, held.near[1]

    def _expires(self, key: bytes) -> float:
        held = self._kept.peek(key)
        return held.expires if held is not None else 0.0

    def _check(self, size: int, near: Near | None) -> None:
        if near is not None and len(near.scope) != SCOPE:
            raise DamagedEntryError("memory: a scope of another length")
        if size > self._kept.limit:
            raise StoreError("memory: larger than the whole store")

    def _keep(self, key: bytes, kept: _Kept, near: Near | None) -> None:
        """`near`: to be logged, unless that is what the log says."""
        row = self._row(kept.near[0]) if kept.near is not None else None
        if near is not None and row != (key, near):
            self._last += 1
            kept = kept._replace(near=(self._last, near))
            self._log[self._last] = key
            self._log.pop(self._last - self._entries, None)
        said = kept.near[1] if kept.near is not None else None
        self._kept.put(key, kept, _size(key, kept.tag, kept.blob, said))

    def _remove(self, keys: list[bytes]) -> int:
        for key in keys:
            self._kept.pop(key)
        return len(keys)

    def _open(self) -> Lock:
        if self._closed:
            raise StoreError("memory: the store is closed")
        return self._lock


class MemoryLog:
    """A `ChangeLog`."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._closed = False

    def after(self, seq: int, most: int) -> list[Change]:
        return self._open().after(seq, most)

    def noted(self, seqs: Sequence[int]) -> dict[int, Noted]:
        return self._open().noted(seqs)

    def alive(self) -> "array[int]":
        return self._open().alive()

    def close(self) -> None:
        self._closed = True

    def _open(self) -> MemoryStore:
        if self._closed:
            raise StoreError("memory: the log is closed")
        return self._store


def _size(key: bytes, tag: str, blob: bytes, near: Near | None) -> int:
    size = len(key) + len(tag) + len(blob) + OVERHEAD
    return size + len(near.scope) + len(near.vector) + len(near.traits) if near is not None else size
