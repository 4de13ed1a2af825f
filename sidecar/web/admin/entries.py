"""The stored answers as operators see them: what is there, and purging it, while the process goes on.

All that reads or changes the store is done in one thread, one thing after another. What holds copies of what
was removed, in this process or in others, learns of it by the store's generation.
"""

import itertools
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from sidecar.cache import records
from sidecar.cache.exact import ExactCache
from sidecar.cache.worker import Worker
from sidecar.config import Config
from sidecar.core.entry import Entry
from sidecar.stores.base import AnswerStore, StoreError
from sidecar.stores.listing import Census, Filter, Item, chosen, count, items, remove

T = TypeVar("T")

_LOOKED_AT = 20_000
"""Entries that one listing goes through at most, while requests want the processor too."""
_WAITING = 8
"""Who may wait for the thread at once."""
_PATIENCE = 60.0
"""Seconds that anybody waits for it."""


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
        self._waiting = 0

    @property
    def off(self) -> bool:
        """Whether nothing is stored or looked up, by configuration."""
        return self._mode == "off"

    async def listing(self, wanted: Filter, limit: int) -> dict[str, object]:
        """What `GET /cache` says: the newest `limit` of those that fit, or nearly so. Raises StoreError."""
        if self.off:
            return _said(self._mode, None, None, None, [], more=False)
        store = self._cache.store
        if store is None:
            held = self._cache.held()
            return await self._do(lambda: self._in_memory(held, wanted, limit))
        return await self._do(lambda: self._stored(store, wanted, limit))

    async def purge(self, wanted: Filter | None) -> int:
        """Remove those that fit, or everything; returns how many answers there were. Raises StoreError."""
        store = self._cache.store
        if store is None:
            gone = self._forget(wanted)
            if wanted is None:
                await self._do(self._remove_records)
            return gone
        if wanted is None:
            return await self._do(lambda: self._clear(store))
        return await self._do(lambda: _removed(store, wanted))

    def close(self) -> None:
        """The thread ends once it has done what it was given."""
        self._worker.stop()

    async def _do(self, work: Callable[[], T]) -> T:
        if self._waiting >= _WAITING:
            raise StoreError("too many ask at once")
        self._waiting += 1
        try:
            return await self._worker.result(work, _PATIENCE)
        except TimeoutError:
            raise StoreError("the disk takes too long") from None
        except RuntimeError as error:  # no thread to be had
            raise StoreError(str(error)) from None
        finally:
            self._waiting -= 1

    # In the thread, but for `_forget`.

    def _in_memory(self, held: list[Entry], wanted: Filter, limit: int) -> dict[str, object]:
        fitting = _fitting(map(_item, held), wanted, limit)
        size = sum([entry.size for entry in held])
        return _said(self._mode, len(held), size, self._memory, fitting[:limit], more=len(fitting) > limit)

    def _stored(self, store: AnswerStore, wanted: Filter, limit: int) -> dict[str, object]:
        census, held = Census(), store.stats()
        seen = _Counted(items(store, census, newest=True, most=_LOOKED_AT))
        fitting = _fitting(seen, wanted, limit)
        ended = len(fitting) <= limit
        looked_at = seen.count + census.aliases + census.unreadable
        more = not ended or looked_at >= _LOOKED_AT
        return _said(self._mode, held.entries, held.bytes, held.limit, fitting[:limit], more=more)

    def _clear(self, store: AnswerStore) -> int:
        self._remove_records()
        gone = count(store)
        store.clear()
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
        return remove(store, chosen(store, wanted))
    gone = count(store, wanted.tenant)
    store.purge(wanted.tenant)
    return gone


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
