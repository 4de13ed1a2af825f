"""Sealed answers in this process's memory, for as long as it runs."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Lock
from typing import NamedTuple

from sidecar.core.lru import Lru
from sidecar.stores.base import Blob, Row, StoreError, StoreStats

OVERHEAD = 512
"""Bytes that an entry takes beside its key, tag and blob, about."""


class _Kept(NamedTuple):
    blob: bytes
    tag: str
    expires: float


class MemoryStore:
    """An `AnswerStore` that nobody else sees."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.time) -> None:
        """`limit`: bytes; `clock`: unix seconds."""
        self._kept: Lru[_Kept] = Lru(limit)
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
        sizes = [len(one.key) + len(one.tag) + len(one.blob) + OVERHEAD for one in blobs]
        with self._open():
            if max(sizes, default=0) > self._kept.limit:
                raise StoreError("memory: larger than the whole store")
            for one, size in zip(blobs, sizes, strict=True):
                self._kept.put(one.key, _Kept(one.blob, one.tag, self._clock() + one.seconds), size)

    def touch(self, keys: Iterable[bytes]) -> None:
        with self._open():
            for key in keys:
                self._kept.get(key)

    def delete(self, keys: Iterable[bytes]) -> int:
        with self._open():
            self._generation += 1
            return sum([self._kept.pop(key) is not None for key in keys])

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

    def rows(self, start: int) -> Iterator[Row]:
        with self._open():
            now, items = self._clock(), list(self._kept.items())
        for key, (blob, tag, expires) in items:
            if expires > now:
                yield Row(key, tag, expires, len(blob), blob[:start])

    def stats(self) -> StoreStats:
        with self._open():
            return StoreStats(len(self._kept), self._kept.used, self._kept.limit)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._kept.clear()

    def _remove(self, keys: list[bytes]) -> int:
        for key in keys:
            self._kept.pop(key)
        return len(keys)

    def _open(self) -> Lock:
        if self._closed:
            raise StoreError("memory: the store is closed")
        return self._lock
