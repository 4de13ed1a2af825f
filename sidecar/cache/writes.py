"""Writing answers to a store: in a thread, all that wait at once. What waits is in memory meanwhile."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import msgspec

from sidecar.cache.breaker import Breaker
from sidecar.cache.worker import Worker
from sidecar.core.entry import Entry, point, seal
from sidecar.stores.base import AnswerStore, Blob, StoreError

_ROOM = 64 << 20
"""Bytes of answers that may wait; more are not stored."""

Done = Callable[[float | None], None]
"""Hears when an answer is stored, and how many seconds that took, or None if it never will be."""


class Write(msgspec.Struct, frozen=True, eq=False):
    """An answer on its way to the store."""

    entry: Entry
    alias: bytes | None
    """Where those look for it who ask the same in the other mode."""
    seconds: float
    """For how long it is kept."""
    generation: int
    """Of the store, when it was asked for; what was asked before a purge is not there after it."""
    touched: frozenset[bytes]
    """What was used meanwhile, though not from the store."""
    done: Done


class Writes:
    """Those of one process, to one store."""

    def __init__(
        self,
        counts: Counter[str],
        told: Callable[[str | None], None],
        on_fault: Callable[[BaseException], None],
    ) -> None:
        """`counts` is added to; `told`: see `Breaker`; `on_fault` is told of mistakes of our own."""
        self._counts = counts
        self._breaker = Breaker(told)
        self._on_fault = on_fault
        self._next: list[Write] = []
        self._under_way: list[Write] = []
        self._size = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.worker = Worker("slipstream-store", on_fault)
        """All that changes the store is done here."""
        self.pending: dict[bytes, Entry] = {}
        """What is not stored yet, by its key."""

    @property
    def open(self) -> bool:
        """Whether the store is believed to take something."""
        return not self._breaker.open

    def put(self, store: AnswerStore, write: Write) -> None:
        """Begin to store an answer, unless that is of no use just now."""
        size = write.entry.size
        if not self.open or self._size + size > _ROOM:
            self._counts["store_skipped"] += 1
            write.done(None)
            return
        self.pending[write.entry.key] = write.entry
        self._size += size
        self._idle.clear()
        self._next.append(write)
        if not self._under_way:
            self._begin(store)

    def _begin(self, store: AnswerStore) -> None:
        batch = self._under_way = self._next
        self._next = []
        try:
            self.worker.do(
                lambda: _write(store, batch), lambda took, error: self._ended(store, batch, took, error)
            )
        except RuntimeError as error:  # no thread to be had
            self._ended(store, batch, None, StoreError(str(error)))

    async def settled(self, patience: float) -> bool:
        """Wait for what is under way, but not for longer than so many seconds; those who wait for what is
        still not done then hear that it never will be. Returns whether there was nothing of that."""
        try:
            async with asyncio.timeout(patience):
                await self._idle.wait()
        except TimeoutError:
            stuck = [*self._under_way, *self._next]
            self._under_way, self._next = [], []
            self._counts["store_skipped"] += len(stuck)
            for write in stuck:
                write.done(None)
            return False
        return True

    def _ended(
        self,
        store: AnswerStore,
        batch: list[Write],
        took: list[float | None] | None,
        error: BaseException | None,
    ) -> None:
        if batch is not self._under_way:
            return  # nobody waits for it any more
        self._under_way = []
        for write in batch:
            self._size -= write.entry.size
            if self.pending.get(write.entry.key) is write.entry:
                del self.pending[write.entry.key]
        if error is not None:
            self._counts["store_failed"] += len(batch)
            known = isinstance(error, StoreError)
            self._breaker.failed(str(error) if known else type(error).__name__)
            if not known:
                self._on_fault(error)
        else:
            self._breaker.worked()
        for write, seconds in zip(batch, took or [None] * len(batch), strict=True):
            if error is None:
                self._counts["stored" if seconds is not None else "store_purged"] += 1
            write.done(seconds)
        if self._next:
            self._begin(store)
        elif not self._size:
            self._idle.set()


def _write(store: AnswerStore, batch: list[Write]) -> list[float | None]:
    """In the thread: seconds that each took; None for what a purge came before."""
    begun = time.perf_counter()
    generation = store.generation
    valid = [write for write in batch if write.generation == generation]
    touched = {key for write in valid for key in write.touched}
    if touched:
        store.touch(touched)
    blobs = []
    for write in valid:
        entry, alias = write.entry, write.alias
        tag = entry.known.tag
        blobs.append(Blob(entry.key, seal(entry), tag, write.seconds))
        if alias is not None:
            blobs.append(Blob(alias, point(alias, entry.key), tag, write.seconds))
    if blobs:
        store.put_all(blobs)
    if store.generation != generation:
        store.delete([blob.key for blob in blobs])
        return [None] * len(batch)
    took = time.perf_counter() - begun
    return [took if write.generation == generation else None for write in batch]
