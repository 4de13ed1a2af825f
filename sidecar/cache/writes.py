"""Writing answers to a store, in a thread, one after the other; what waits for it is in memory meanwhile."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from sidecar.cache.breaker import Breaker
from sidecar.core.entry import Entry, point, seal
from sidecar.stores.base import AnswerStore, StoreError

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
        self._under_way: set[Write] = set()
        self._size = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="slipstream-store")
        """All that changes a store is done here."""
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
        try:
            work = asyncio.get_running_loop().run_in_executor(self.thread, _written, store, write)
        except RuntimeError:  # no thread to be had
            self._counts["store_failed"] += 1
            write.done(None)
            return
        self.pending[write.entry.key] = write.entry
        self._under_way.add(write)
        self._size += size
        self._idle.clear()
        work.add_done_callback(lambda work: self._ended(write, work))

    async def settled(self, patience: float) -> bool:
        """Wait for what is under way, but not for longer than so many seconds; those who wait for what is
        still not done then hear that it never will be. Returns whether there was nothing of that."""
        try:
            async with asyncio.timeout(patience):
                await self._idle.wait()
        except TimeoutError:
            stuck, self._under_way = self._under_way, set()
            self._counts["store_skipped"] += len(stuck)
            for write in stuck:
                write.done(None)
            return False
        return True

    def _ended(self, write: Write, work: "asyncio.Future[float | None]") -> None:
        entry = write.entry
        self._size -= entry.size
        if self.pending.get(entry.key) is entry:
            del self.pending[entry.key]
        took = None
        if work.cancelled():
            pass
        elif (error := work.exception()) is not None:
            self._counts["store_failed"] += 1
            known = isinstance(error, StoreError)
            self._breaker.failed(str(error) if known else type(error).__name__)
            if not known:
                self._on_fault(error)
        else:
            self._breaker.worked()
            took = work.result()
            self._counts["stored" if took is not None else "store_purged"] += 1
        if write in self._under_way:
            self._under_way.discard(write)
            write.done(took)
        if not self._size:
            self._idle.set()


def _written(store: AnswerStore, write: Write) -> float | None:
    """In the thread: seconds that it took; None where a purge came first."""
    begun = time.perf_counter()
    entry, alias = write.entry, write.alias
    if store.generation != write.generation:
        return None
    if write.touched:
        store.touch(write.touched)
    store.put(entry.key, seal(entry), tag=entry.known.tag, seconds=write.seconds)
    if alias is not None:
        store.put(alias, point(alias, entry.key), tag=entry.known.tag, seconds=write.seconds)
    if store.generation != write.generation:
        store.delete([entry.key])
        return None
    return time.perf_counter() - begun
