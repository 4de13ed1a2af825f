"""The job store, off the event loop: one thread does all of it, in the order it was asked for."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sidecar.core.errors import RefusedError
from sidecar.core.types import Fault
from sidecar.stores.jobs import JobRecord, JobStore, Order, Result, StoreError, WebhookState

T = TypeVar("T")

NO_FOLDER = "there is no data folder that this process can use alone; see server.data_dir and the log"


class JobDisk:
    """What `Jobs` needs of a store. Work that was begun is finished even if nobody waits for it any more.

    All methods raise StoreError, but those that answer clients: they raise RefusedError.
    """

    def __init__(self, store: JobStore | None) -> None:
        self._store = store
        self._unsaved: dict[str, tuple[JobRecord, Result | None]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="slipstream-jobs")

    @property
    def there(self) -> bool:
        """Whether there is a store."""
        return self._store is not None

    # For clients.

    async def add(self, record: JobRecord, order: Order) -> None:
        await self._answer(lambda store: store.add(record, order))

    async def record(self, name: str) -> JobRecord:
        found = await self._answer(lambda store: store.get(name))
        if found is None:
            raise RefusedError("gone", "the job is no longer kept", close=False)
        return found

    async def result(self, name: str) -> Result | None:
        return await self._answer(lambda store: store.result(name))

    # For the jobs themselves.

    async def interrupt(self, now: float, fault: Fault) -> list[JobRecord]:
        """What an earlier process had begun has failed; those jobs, as they are now."""
        return await self._do(lambda store: _records(store, store.interrupt(now, fault)))

    async def queued(self) -> list[JobRecord]:
        return await self._do(lambda store: _records(store, store.queued()))

    async def begin(self, name: str, now: float) -> Order | None:
        return await self._do(lambda store: store.begin(name, now))

    async def finish(self, record: JobRecord, result: Result | None) -> StoreError | None:
        """Note the end of a job that has ended. What cannot be written is kept, and tried again with the
        next one; returns why."""
        self._unsaved[record.id] = (record, result)
        return await self.save()

    def saved(self, name: str) -> bool:
        """Whether the job's end is on disk."""
        return name not in self._unsaved

    async def save(self) -> StoreError | None:
        """Write what could not be written yet."""
        for record, result in list(self._unsaved.values()):
            try:
                await self._write(record, result)
            except StoreError as error:
                return error
            self._unsaved.pop(record.id, None)
        return None

    async def drop(self, record: JobRecord) -> None:
        """Note that a queued job will not run. Raises RefusedError when that cannot be written."""
        try:
            await self._write(record, None)
        except StoreError as error:
            raise RefusedError("jobs_unavailable", str(error), close=False) from None

    async def _write(self, record: JobRecord, result: Result | None) -> None:
        at = record.ended or 0.0
        await self._do(
            lambda store: store.finish(record.id, record.status, at, record.details, record.error, result)
        )

    async def webhooks(self) -> list[JobRecord]:
        return await self._do(lambda store: store.webhooks())

    async def webhook_result(self, name: str, state: WebhookState, attempts: int) -> None:
        await self._do(lambda store: store.webhook_result(name, state, attempts))

    async def expire(self, before: float) -> int:
        return await self._do(lambda store: store.expire(before))

    async def close(self) -> None:
        """Be done, once everything that was asked for is."""
        if self._store is not None:
            await self.save()
            await self._do(lambda store: store.close())
        self._thread.shutdown(wait=False)

    async def _do(self, work: Callable[[JobStore], T]) -> T:
        store = self._store
        assert store is not None
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(store))

    async def _answer(self, work: Callable[[JobStore], T]) -> T:
        if self._store is None:
            raise RefusedError("jobs_unavailable", NO_FOLDER, close=False)
        try:
            return await self._do(work)
        except StoreError as error:
            raise RefusedError("jobs_unavailable", str(error), close=False) from None


def _records(store: JobStore, names: list[str]) -> list[JobRecord]:
    found = [store.get(name) for name in names]
    return [record for record in found if record is not None]
