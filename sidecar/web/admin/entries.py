"""The stored answers as operators see them: what is there, and purging it, while the process goes on.

All that reads or changes the store is done in one thread, one thing after another. What holds copies of what
was removed, in this process or in others, learns of it by the store's generation.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import NoReturn, TypeVar, cast

from sidecar.cache import records
from sidecar.cache.exact import ExactCache
from sidecar.cache.worker import Worker
from sidecar.config import Config
from sidecar.core.entry import Entry
from sidecar.stores.base import AnswerStore, StoreError
from sidecar.stores.listing import Census, Filter, Item, count, items, purge

T = TypeVar("T")

_LOOKED_AT = 20_000
"""Entries that one listing goes through at most, while requests want the processor too."""
_WAITING = 8
"""What the thread may be given at once."""
_PATIENCE = 60.0
"""Seconds that anybody waits for it."""

Ended = Callable[[int | None, BaseException | None], None]
"""Told of what was removed, or why not."""


class BusyError(StoreError):
    """It is not the store that is at fault: ask again later."""


class Entries:
    """Those of one process."""

    def __init__(
        self,
        cache: ExactCache,
        config: Config,
        folder: Path | None,
        on_fault: Callable[[BaseException], None],
    ) -> None:
        """`folder`: the data folder, with the records of compared answers; None where there is none.
        `on_fault` is told of mistakes of our own."""
        self._cache = cache
        self._mode = config.cache.mode
        self._memory = int(config.cache.memory)
        self._folder = folder
        self._worker = Worker("slipstream-admin", on_fault)
        self._given = 0
        """Of what the thread was given, what has not ended."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._ending = False

    @property
    def off(self) -> bool:
        """Whether nothing is stored or looked up, by configuration."""
        return self._mode == "off"

    async def listing(self, wanted: Filter, limit: int) -> dict[str, object]:
        """What `GET /cache` says: the newest `limit` of those that fit, or nearly so. Raises StoreError."""
        if self.off:
            return _said(self._mode, None, None, None, [], more=False)
        store = self._store()
        if store is None:
            held = self._cache.held()
            return await self._do(lambda: self._in_memory(held, wanted, limit))
        return await self._do(lambda: self._stored(store, wanted, limit))

    async def purge(self, wanted: Filter | None, ended: Ended) -> int:
        """Remove those that fit, or everything; returns how many answers there were. It goes on when nobody
        waits for it any more: `ended` is told in the end. It never is where this raises BusyError.

        What is removed with a filter may still be in the records of what was compared, which tell of it
        without a word of question or answer. Raises StoreError."""
        store = self._store()
        if store is not None and wanted is not None:
            return await self._do(lambda: _removed(store, wanted), ended)
        if store is not None:
            return await self._do(lambda: self._clear(store), ended)
        self._refuse_more()
        gone = self._forget(wanted)
        return await self._do(lambda: self._forgotten(gone, wanted), ended)

    async def settled(self, patience: float) -> None:
        """Take nothing on any more, and wait for what is under way, so many seconds at most: the store is
        about to be closed."""
        self._ending = True
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._idle.wait()

    def close(self) -> None:
        """The thread ends once it has done what it was given."""
        self._worker.stop()

    def _store(self) -> AnswerStore | None:
        """None where they are in memory only, for good."""
        if self._cache.opening:
            raise BusyError("the stored answers are being opened; ask again")
        if self._ending:
            raise BusyError("the sidecar is being stopped")
        return self._cache.store

    def _refuse_more(self) -> None:
        if self._given >= _WAITING:
            raise BusyError("too many ask at once")

    async def _do(
        self, work: Callable[[], T], ended: Callable[[T | None, BaseException | None], None] | None = None
    ) -> T:
        """`ended`: it changes something, and is told when that is done, whoever waits. What only looks is not
        done at all once nobody waits for it."""
        self._refuse_more()
        waiter: asyncio.Future[T | None] = asyncio.get_running_loop().create_future()

        def run() -> T | None:
            return None if ended is None and waiter.done() else work()

        def done(result: T | None, error: BaseException | None) -> None:
            self._given -= 1
            if not self._given:
                self._idle.set()
            if not waiter.done() and error is not None:
                waiter.set_exception(error)
            elif not waiter.done():
                waiter.set_result(result)
            if ended is not None:
                ended(result, error)

        try:
            self._worker.do(run, done)
        except RuntimeError as error:  # no thread to be had
            raise BusyError(str(error)) from None
        # Until it has ended, not as long as somebody waits: others would wait in vain behind it.
        self._given += 1
        self._idle.clear()
        try:
            async with asyncio.timeout(_PATIENCE):
                found = await waiter
        except TimeoutError:
            _give_up(purging=ended is not None)
        return cast("T", found)

    # In the thread, but for `_forget`.

    def _in_memory(self, held: list[Entry], wanted: Filter, limit: int) -> dict[str, object]:
        fitting = _fitting(map(_item, held), wanted, limit)
        size = sum([entry.size for entry in held])
        return _said(self._mode, len(held), size, self._memory, fitting[:limit], more=len(fitting) > limit)

    def _stored(self, store: AnswerStore, wanted: Filter, limit: int) -> dict[str, object]:
        census, held = Census(), store.stats()
        with closing(items(store, census, newest=True, most=_LOOKED_AT)) as found:
            seen = _Counted(found)
            fitting = _fitting(seen, wanted, limit)
        ended = len(fitting) <= limit
        looked_at = seen.count + census.aliases + census.unreadable
        more = not ended or looked_at >= _LOOKED_AT
        return _said(self._mode, held.entries, held.bytes, held.limit, fitting[:limit], more=more)

    def _clear(self, store: AnswerStore) -> int:
        gone = count(store)
        store.clear()
        self._remove_records()
        return gone

    def _forgotten(self, gone: int, wanted: Filter | None) -> int:
        if wanted is None:
            self._remove_records()
        return gone

    def _remove_records(self) -> None:
        """Of what was compared: they tell of answers, too."""
        if self._folder is None:
            return
        for path in (self._folder / records.NAME, self._folder / records.OLDER):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise StoreError(f"{path.name} cannot be removed: {error.strerror}") from None

    def _forget(self, wanted: Filter | None) -> int:
        held = self._cache.held()
        keys = [entry.key for entry in held if wanted is None or wanted.takes(_item(entry))]
        return self._cache.forget(frozenset(keys))


class _Counted:
    """Counts what goes by."""

    def __init__(self, found: Iterable[Item]) -> None:
        self.count = 0
        self._found = iter(found)

    def __iter__(self) -> "_Counted":
        return self

    def __next__(self) -> Item:
        item = next(self._found)
        self.count += 1
        return item


def _fitting(found: Iterable[Item], wanted: Filter, limit: int) -> list[Item]:
    """Up to one more than the limit."""
    return list(itertools.islice((item for item in found if wanted.takes(item)), limit + 1))


def _removed(store: AnswerStore, wanted: Filter) -> int:
    if wanted.tenant is None or wanted != Filter(tenant=wanted.tenant):
        return purge(store, wanted)
    gone = count(store, wanted.tenant)
    store.purge(wanted.tenant)
    return gone


def _give_up(*, purging: bool) -> NoReturn:
    more = "; the purge may still be going on, and the log says when it has ended" if purging else ""
    raise StoreError(f"the disk takes too long{more}")


def _item(entry: Entry) -> Item:
    known = entry.known
    return Item(entry.key, known.tag, known.stored + known.ttl, entry.size, known)


def _said(
    mode: str, entries: int | None, size: int | None, limit: int | None, found: list[Item], *, more: bool
) -> dict[str, object]:
    now = time.time()
    shown = sorted(found, key=lambda item: item.known.stored, reverse=True)
    return {
        "mode": mode,
        "entries": entries,
        "bytes": size,
        "limit": limit,
        "items": [_row(item, now) for item in shown],
        "more": more,
    }


def _row(item: Item, now: float) -> dict[str, object]:
    known = item.known
    return {
        "key": item.key.hex(),
        "tenant": item.tag or None,
        "upstream": known.upstream,
        "model": known.model,
        "path": known.path,
        "stream": known.stream,
        "age_s": round(max(now - known.stored, 0.0), 1),
        # Past its time it is kept for when the upstream fails (cache.stale_if_error).
        "left_s": round(max(known.stored + known.ttl - now, 0.0), 1),
        "size": item.size,
    }
