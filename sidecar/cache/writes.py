"""Writing answers to a store, and what is known of them later: in a thread, all answers that wait at once.
What waits is in memory meanwhile."""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Sized

import msgspec

from sidecar.cache.breaker import Breaker
from sidecar.cache.worker import Worker
from sidecar.core.entry import Entry, point, seal
from sidecar.stores.base import NAMES, AnswerStore, Blob, Near, StoreError

_ROOM = 64 << 20
"""Bytes of answers that may wait; more are not stored."""
_NOTES = 1024
"""Questions that may wait to be noted; more are not."""

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
    near: Near | None = None
    """Where those look for it who ask the same in other words."""


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
        self._notes: deque[tuple[bytes, Near, int]] = deque()
        self._served: list[tuple[str, bytes]] = []
        self._following = False

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

    def note(self, store: AnswerStore, key: bytes, near: Near, generation: int) -> None:
        """Tell where an answer lies that is stored, or whose turn is before this."""
        if not self.open or len(self._notes) >= _NOTES:
            self._counts["note_failed"] += 1
            return
        self._notes.append((key, near, generation))
        self._follow_up(store)

    def served(self, store: AnswerStore, name: str, key: bytes) -> None:
        """Tell that such an answer was given under an id."""
        if not self.open or len(self._served) >= NAMES:
            self._counts["served_failed"] += 1
            return
        self._served.append((name, key))
        self._follow_up(store)

    def _follow_up(self, store: AnswerStore) -> None:
        """Begin to tell what is to be told, in one go, unless answers have their turn before that."""
        if self._next or self._following:
            return
        notes, self._notes = self._notes, deque()
        served, self._served = self._served, []
        if not notes and not served:
            if not self._size:
                self._idle.set()
            return
        if not self.open:
            self._lost(notes, served)
            self._follow_up(store)
            return
        self._idle.clear()
        self._following = True

        def done(_result: None, error: BaseException | None) -> None:
            self._following = False
            # That it worked says little: it takes hardly any room.
            if error is not None:
                self._lost(notes, served)
                self._judge(error)
            self._follow_up(store)

        try:
            self.worker.do(lambda: _tell(store, notes, served), done)
        except RuntimeError as error:  # no thread to be had
            done(None, StoreError(str(error)))

    def _lost(self, notes: Sized, served: Sized) -> None:
        for name, lost in (("note_failed", notes), ("served_failed", served)):
            if lost:
                self._counts[name] += len(lost)

    def _begin(self, store: AnswerStore) -> None:
        batch = self._under_way = self._next
        self._next = []
        try:
            self.worker.do(
                lambda: _write(store, batch), lambda took, error: self._ended(store, batch, took, error)
            )
        except RuntimeError as error:  # no thread to be had
            self._ended(store, batch, None, StoreError(str(error)))
        self._follow_up(store)

    async def settled(self, patience: float) -> bool:
        """Wait for what is under way, but not for longer than so many seconds; those who wait for what is
        still not done then hear that it never will be. Returns whether there was nothing of that."""
        try:
            async with asyncio.timeout(patience):
                await self._idle.wait()
        except TimeoutError:
            stuck = [*self._under_way, *self._next]
            self._under_way, self._next = [], []
            self._lost(self._notes, self._served)
            self._notes.clear()
            self._served.clear()
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
            self._judge(error)
        else:
            self._breaker.worked()
        for write, seconds in zip(batch, took or [None] * len(batch), strict=True):
            if error is None:
                self._counts["stored" if seconds is not None else "store_purged"] += 1
            write.done(seconds)
        if self._next:
            self._begin(store)
        else:
            self._follow_up(store)

    def _judge(self, error: BaseException) -> None:
        known = isinstance(error, StoreError)
        self._breaker.failed(str(error) if known else type(error).__name__)
        if not known:
            self._on_fault(error)


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
        blobs.append(Blob(entry.key, seal(entry), tag, write.seconds, write.near))
        if alias is not None:
            blobs.append(Blob(alias, point(alias, entry.key), tag, write.seconds))
    if blobs:
        store.put_all(blobs)
    if store.generation != generation:
        store.delete([blob.key for blob in blobs])
        return [None] * len(batch)
    took = time.perf_counter() - begun
    return [took if write.generation == generation else None for write in batch]


def _tell(store: AnswerStore, notes: deque[tuple[bytes, Near, int]], served: list[tuple[str, bytes]]) -> None:
    """In the thread; what is done is taken out of the lists."""
    while notes:
        key, near, generation = notes[0]
        if store.generation == generation:
            store.note(key, near)
        notes.popleft()
    if served:
        store.served_all(served)
        served.clear()
