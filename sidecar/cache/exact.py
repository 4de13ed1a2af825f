"""Answers by their exact key: those of the last moments in memory, all of them in a store behind it.

A lookup never waits for long, and a store that fails costs nothing but its entries: whatever happens to
the disk means a miss and a count. The store's calls block, so they run in two threads: one reads, one
writes. Between an answer's end and its being on disk it is in memory, whatever the budget says.
"""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress

from sidecar.cache.breaker import Breaker
from sidecar.cache.tally import Note, Tally
from sidecar.cache.worker import Worker, tell
from sidecar.cache.writes import Done, Write, Writes
from sidecar.core.entry import Entry, pointed, unseal
from sidecar.core.fingerprint import Keys
from sidecar.core.lru import Lru
from sidecar.stores.base import AnswerStore, ChangeLog, DamagedEntryError, Near, StoreError

DEADLINE = 0.1
"""Seconds after which a lookup is a miss."""
_PATIENCE = 5.0
"""Seconds that closing waits for answers to be on disk."""
_TOUCHED = 256
_ALIASES = 65536
_CONVERTED = 256 << 10
"""Bytes of the largest answer that is converted to the other mode."""

Convert = Callable[[Entry], Entry | None]
"""Makes an answer in one mode of an answer in the other; None where that cannot be done exactly."""


class ExactCache:
    """One process's view of the stored answers."""

    def __init__(
        self,
        memory: int,
        told: Callable[[str | None], None],
        on_fault: Callable[[BaseException], None],
        *,
        note: Note | None = None,
        deadline: float = DEADLINE,
        opening: bool = False,
    ) -> None:
        """`memory`: bytes of entries at hand. `told`: see `Breaker`. `on_fault` is told of mistakes of our
        own. `note`: see `Tally`. `opening`: `open` is going to be called."""
        self.opening = opening
        self._tally = Tally(note)
        self.counts = self._tally.counts
        self._hot: Lru[Entry] = Lru(memory)
        self.resize = self._hot.resize
        """Sets how many bytes may be at hand."""
        self._aliases: Lru[bytes] = Lru(_ALIASES)
        """The keys of entries by where those look for them who ask in the other mode."""
        self._inexact: Lru[float] = Lru(_ALIASES)
        """By key, the age of the answer in the other mode that could not be converted."""
        self._on_fault = on_fault
        self._deadline = deadline
        self._store: AnswerStore | None = None
        self._generation = 0
        self._writes = Writes(self.counts, told, on_fault)
        self._looking: dict[bytes, list[asyncio.Future[Entry | None]]] = {}
        """Those who wait for a lookup, by its key."""
        self._overdue: set[bytes] = set()
        """Lookups that have taken too long and are not over: the disk is slow, or stuck."""
        self._touched: set[bytes] = set()
        self._reading = Breaker(told)
        self._reader = Worker("slipstream-lookup", on_fault)
        self._closed = False

    async def open(self, opener: Callable[[], AnswerStore | None]) -> AnswerStore | None:
        """Take on the store that `opener` opens, in a thread: checking it may take long."""
        try:
            store = await self._writes.worker.result(opener)
        finally:
            self.opening = False
        if store is not None and self._closed:
            store.close()
        elif store is not None:
            self._generation = store.generation
            self._store = store
            self._tally.start(self._writes.worker)
        return store

    # Looking.

    def generation(self) -> int:
        """Of the store: another number after each purge, whoever purged. Drops what was at hand then."""
        if self._store is not None and self._store.generation != self._generation:
            self._generation = self._store.generation
            self._hot.clear()
            self._writes.pending.clear()
        return self._generation

    def number(self) -> int:
        """The same, for any thread: nothing is dropped."""
        store = self._store
        return store.generation if store is not None else self._generation

    def hot(self, key: bytes) -> Entry | None:
        """What is in memory under that key."""
        self.generation()
        entry = self._hot.get(key)
        if entry is None:
            return self._writes.pending.get(key)
        if len(self._touched) < _TOUCHED:
            self._touched.add(entry.origin)
        return entry

    async def lookup(self, keys: Keys, convert: Convert | None) -> Entry | None:
        """What is in the store under these keys, or can be made of what is. Never raises, and does not wait
        past the deadline; what comes later is at hand for the next one."""
        if self._overdue:
            return None  # the thread hangs
        looking = self._looking.get(keys.exact) or self._look(keys, convert)
        if looking is None:
            return None
        # Each who waits has a future of its own: whoever leaves takes nobody's with it.
        waiter: asyncio.Future[Entry | None] = asyncio.get_running_loop().create_future()
        looking.append(waiter)
        return await waiter

    def _look(self, keys: Keys, convert: Convert | None) -> "list[asyncio.Future[Entry | None]] | None":
        """Begin to look; None where that is of no use, else those who wait."""
        generation = self.generation()
        alias = self._aliases.get(keys.other) if keys.other is not None else None
        near = self.hot(alias) if alias is not None else None
        if near is not None and self._inexact.peek(keys.exact) == near.known.stored:
            near = None
        store = None if self._reading.open else self._store
        if self._closed or (store is None and near is None):
            return None
        # Identical requests that come at once look once.
        waiting: list[asyncio.Future[Entry | None]] = []
        late = asyncio.get_running_loop().call_later(self._deadline, self._late, keys.exact)

        def done(entry: Entry | None, error: BaseException | None) -> None:
            late.cancel()
            self._looked(keys.exact, entry, error, generation)

        try:
            self._reader.do(lambda: self._find(store, keys, near, convert), done)
        except RuntimeError:  # no thread to be had
            late.cancel()
            self.counts["lookup_failed"] += 1
            return None
        self._looking[keys.exact] = waiting
        return waiting

    def _late(self, key: bytes) -> None:
        """Nobody waits any longer."""
        self._overdue.add(key)
        self.counts["lookup_late"] += 1
        tell(self._looking.pop(key), None)

    def _looked(self, key: bytes, entry: Entry | None, error: BaseException | None, generation: int) -> None:
        self._overdue.discard(key)
        found = None
        try:
            self._judge(error)
            if generation == self.generation():
                # While it was looked for, a newer one may have come.
                found = self._writes.pending.get(key) or self._hot.peek(key)
                if found is None and entry is not None:
                    found = entry
                    self._hot.put(key, entry, entry.size)
        finally:
            tell(self._looking.pop(key, []), found)

    def _judge(self, error: BaseException | None) -> None:
        if error is None:
            self._reading.worked()
        elif isinstance(error, ValueError | DamagedEntryError):
            self.counts["lookup_damaged"] += 1
        elif isinstance(error, StoreError):
            self.counts["lookup_failed"] += 1
            self._reading.failed(str(error))
        else:
            self.counts["lookup_failed"] += 1
            self._on_fault(error)

    def _find(
        self, store: AnswerStore | None, keys: Keys, near: Entry | None, convert: Convert | None
    ) -> Entry | None:
        """In the reading thread. Raises StoreError, and ValueError for what is damaged."""
        if store is not None and (blob := store.get(keys.exact)) is not None:
            return unseal(keys.exact, blob)
        if convert is None or keys.other is None:
            return None
        if near is None and store is not None and (blob := store.get(keys.other)) is not None:
            target = pointed(keys.other, blob)
            if (blob := store.get(target)) is not None:
                near = unseal(target, blob)
        # Others wait for this thread, and it holds up the loop.
        if near is None or len(near.body) > _CONVERTED:
            return None
        if self._inexact.peek(keys.exact) == near.known.stored:
            return None
        made = convert(near)
        if made is None:
            self._inexact.put(keys.exact, near.known.stored, 1)
        else:
            made.origin = near.key
        return made

    # Storing.

    @property
    def accepts(self) -> bool:
        """Whether what is put is going to be kept."""
        return self._store is None or (self._writes.open and not self._closed)

    def put(
        self,
        entry: Entry,
        alias: bytes | None,
        *,
        seconds: float,
        generation: int,
        done: Done,
        near: Near | None = None,
    ) -> None:
        """Keep an answer; see `Write`. It is found from now on."""
        if generation != self.generation():
            self.counts["store_purged"] += 1
            done(None)
            return
        self._hot.put(entry.key, entry, entry.size)
        if alias is not None:
            self._aliases.put(alias, entry.key, 1)
        if self._store is None or self._closed:
            self.counts["stored" if not self._closed else "store_skipped"] += 1
            done(None)
            return
        touched, self._touched = frozenset(self._touched), set()
        self._writes.put(self._store, Write(entry, alias, seconds, generation, touched, done, near))

    def note(self, key: bytes, near: Near, generation: int) -> None:
        """Where an answer lies that was put before; see `Write`."""
        if self._store is not None and not self._closed and generation == self.generation():
            self._writes.note(self._store, key, near, generation)

    def served(self, name: str, key: bytes) -> None:
        """An answer was given under an id, by which it can be removed from now on. Never raises."""
        if self._store is not None and not self._closed:
            self._writes.served(self._store, name, key)

    def changes(self) -> ChangeLog | None:
        """A view of what is stored, for those who compare questions: to be asked for, used and closed in a
        thread of their own. None where nothing is stored. Raises StoreError."""
        store = self._store
        return store.changes() if store is not None else None

    @property
    def store(self) -> AnswerStore | None:
        """Where they are kept, for those who look at it or purge it, in a thread of their own. None as long
        as they are in memory only."""
        return self._store

    def held(self) -> list[Entry]:
        """What is in memory, first what was used last."""
        self.generation()
        return [entry for _, entry in self._hot.items()][::-1]

    def forget(self, keys: Collection[bytes]) -> int:
        """Remove these from memory, and what was made of them; returns how many there were. What was asked
        for before now is not stored."""
        if self._store is None:
            self._generation += 1
        going = [key for key, entry in self._hot.items() if key in keys or entry.origin in keys]
        return len([self._hot.pop(key) for key in going])

    def drop(self, entry: Entry) -> None:
        """An entry whose time is over."""
        if self._hot.peek(entry.key) is entry:
            self._hot.pop(entry.key)

    async def close(self) -> None:
        """Be done, once what waits for the disk is there, or has had its time."""
        self._closed = True
        settled = await self._writes.settled(_PATIENCE)
        self._tally.stop()
        store, self._store = self._store, None
        if store is not None and settled:
            with suppress(TimeoutError, StoreError):
                await self._writes.worker.result(lambda: self._end(store), _PATIENCE)
        self._reader.stop()
        self._writes.worker.stop()

    def _end(self, store: AnswerStore) -> None:
        try:
            self._tally.write()
        finally:
            store.close()
