"""Background jobs: a durable envelope around a recording.

A job is on disk before its client hears of it. It waits its turn there, without a copy in memory; before
its upstream call begins, that is on disk too, and prompt and credential are gone from it. So a job found
half done after a restart is never sent a second time: nobody can know whether it was worked on.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from sidecar.core.answer import Answer
from sidecar.core.errors import RefusedError
from sidecar.core.latency import Labels
from sidecar.core.recording import Recording
from sidecar.core.types import End, Fault, Outcome
from sidecar.engine.hub import Hub
from sidecar.engine.jobdisk import JobDisk
from sidecar.engine.jobstate import LIMIT, answer_of, ended, labels_of, sealed, status_of
from sidecar.engine.pump import Live
from sidecar.engine.source import Call
from sidecar.stores.jobs import JobRecord, Order, StoreError, WebhookState

_SWEEP = 300.0
"""Seconds between looks for results whose time is over."""

INTERRUPTED = Fault(
    "interrupted",
    "it is not known whether the upstream did the work, so it was not sent again; send a new job",
)
_STOPPING = End(
    Outcome.REFUSED, Fault("interrupted", "the sidecar was stopped before its call began; send a new job")
)


class Work(msgspec.Struct):
    """An order made ready to be sent."""

    call: Callable[[], Call]
    answer: Answer
    labels: Labels


class Job:
    """A job that is queued or running in this process."""

    __slots__ = ("done", "live", "record")

    def __init__(self, record: JobRecord, live: Live) -> None:
        self.record = record
        self.live = live
        self.done = asyncio.Event()
        """Set once its end is on disk, or could not be put there."""


class Jobs:
    """All background jobs of one data folder."""

    def __init__(
        self,
        hub: Hub,
        disk: JobDisk,
        prepare: Callable[[Order], Work],
        told: Callable[[JobRecord], None],
        deliver: "Callable[[JobRecord, Jobs], Awaitable[None]]",
        on_fault: Callable[[BaseException], None],
        *,
        keep: float,
        concurrency: int,
        queue: int,
    ) -> None:
        """`prepare` may raise RefusedError for an order that configuration no longer allows. `told` hears
        of each job that ended, `deliver` tells those who asked for it, `on_fault` is told of mistakes of
        our own."""
        self._hub = hub
        self._disk = disk
        self._prepare = prepare
        self._told = told
        self._deliver = deliver
        self._on_fault = on_fault
        self._keep = keep
        self._concurrency = concurrency
        self._most = queue
        self._jobs: dict[str, Job] = {}
        self._queue: deque[str] = deque()
        self._adding = 0
        self._running = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Take up what an earlier process left: queued jobs run, those it had begun have failed."""
        if not self._disk.there:
            return
        for record in await self._disk.interrupt(time.time(), INTERRUPTED):
            self._told(record)
        for record in await self._disk.queued():
            self._enqueue(record, None)
        for record in await self._disk.webhooks():
            self._spawn(self._deliver(record, self))
        self._sweep()

    async def submit(self, record: JobRecord, order: Order, work: Work) -> Job:
        """Take on a job; it is on disk when this returns. Raises RefusedError."""
        if len(self._queue) + self._adding >= self._most:
            raise RefusedError("overloaded", f"{self._most} jobs are waiting", close=False)
        adding = self._spawn(self._add(record, order, work))
        try:
            return await asyncio.shield(adding)
        except asyncio.CancelledError:
            # Its client has left without knowing its id.
            adding.add_done_callback(self._unwanted)
            raise

    async def status(self, name: str) -> dict[str, object]:
        """What `GET /_slipstream/jobs/{id}` answers. Raises RefusedError."""
        job = self._jobs.get(name)
        return status_of(job.record, job.live) if job else status_of(await self._disk.record(name))

    async def result(self, name: str) -> Live:
        """The upstream's response, whole. Raises RefusedError."""
        job = self._jobs.get(name)
        if job is not None and not job.done.is_set():
            raise RefusedError("job_unfinished", f"it is {job.record.status}", close=False)
        live = await self.live(name)
        if live is None or live.recording.head is None:
            record = await self._disk.record(name)
            fault = record.error or Fault("gone", "its result is not kept")
            raise RefusedError(fault.kind, fault.detail, close=False)
        return live

    async def live(self, name: str) -> Live | None:
        """Its recording, growing or whole, to be followed as a stream; None when there is none."""
        job = self._jobs.get(name)
        if job is not None:
            return job.live
        record = await self._disk.record(name)
        result = await self._disk.result(name)
        return sealed(record, result) if result is not None else None

    async def cancel(self, name: str, fault: Fault) -> None:
        """End a job, queued or running; one that has ended stays as it is. Raises RefusedError."""
        job = self._jobs.get(name)
        if job is None:
            await self._disk.record(name)
            return
        if name in self._queue:
            self._queue.remove(name)
            job.live.end_on_cancel = End(Outcome.CANCELLED, fault)
            job.live.recording.finish(job.live.end_on_cancel)
            self._hub.forget(job.live)
            await asyncio.shield(self._spawn(self._finish(job)))
        else:
            self._hub.cancel(job.live, fault)
            await job.done.wait()

    async def webhook_result(self, record: JobRecord, state: WebhookState, attempts: int) -> None:
        """Note what came of telling about a job's end."""
        try:
            await self._disk.webhook_result(record.id, state, attempts)
        except StoreError:
            pass  # at worst it is told again after a restart; receivers know it by its id

    def drain(self) -> None:
        """Begin no more jobs; what is queued stays on disk."""
        self._stopping = True

    async def close(self) -> None:
        """End what is left. Call after the hub was stopped, so that nothing runs any more."""
        self._stopping = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for name, job in list(self._jobs.items()):
            if name not in self._queue:
                await job.done.wait()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._disk.close()

    # From the queue to the end.

    async def _add(self, record: JobRecord, order: Order, work: Work) -> Job:
        self._adding += 1
        try:
            await self._disk.add(record, order)
        finally:
            self._adding -= 1
        return self._enqueue(record, work)

    def _unwanted(self, adding: "asyncio.Task[Job]") -> None:
        if not adding.cancelled() and adding.exception() is None:
            fault = Fault("stopped", "its client left before it was told the id")
            self._spawn(self.cancel(adding.result().record.id, fault))

    def _enqueue(self, record: JobRecord, work: Work | None) -> Job:
        live = Live(Recording(limit=LIMIT), work.answer if work else answer_of(record))
        live.labels = work.labels if work else labels_of(record)
        live.held = True
        self._hub.publish(live, record.id)
        job = self._jobs[record.id] = Job(record, live)
        self._queue.append(record.id)
        self._kick()
        return job

    def _kick(self) -> None:
        while self._queue and self._running < self._concurrency and not self._stopping:
            self._running += 1
            self._spawn(self._run(self._jobs[self._queue.popleft()]))

    async def _run(self, job: Job) -> None:
        live = job.live
        try:
            now = time.time()
            order = await self._disk.begin(job.record.id, now)
            job.record = msgspec.structs.replace(job.record, status="running", started=now)
            if live.recording.end is None and order is not None and not self._stopping:
                live.answer = (work := self._prepare(order)).answer
                self._hub.start(live, work.call())
                assert live.task is not None
                await asyncio.wait({live.task})
            else:
                self._hub.forget(live)
        except StoreError as error:
            live.recording.finish(End(Outcome.REFUSED, Fault("jobs_unavailable", str(error))))
        except RefusedError as error:
            live.recording.finish(End(Outcome.REFUSED, error.fault))
        finally:
            if live.recording.end is None:
                live.recording.finish(_STOPPING)
            self._running -= 1
        await self._finish(job)
        self._kick()

    async def _finish(self, job: Job) -> None:
        """Put its end on disk, and tell whoever wants to know."""
        live = job.live
        job.record, result = ended(job.record, live, time.time())
        try:
            await self._disk.finish(job.record, result)
            del self._jobs[job.record.id]
        except StoreError as error:
            # Memory has it as long as the process lives; that is better than nothing.
            why = job.record.error or Fault("jobs_unavailable", f"its result is not on disk: {error}")
            job.record = msgspec.structs.replace(job.record, error=why)
        finally:
            live.held = False
            job.done.set()
        self._told(job.record)
        if job.record.webhook is not None:
            self._spawn(self._deliver(job.record, self))

    def _spawn(self, work: Any) -> "asyncio.Task[Any]":
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._gone)
        return task

    def _gone(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, RefusedError | StoreError):
            self._on_fault(error)

    def _sweep(self) -> None:
        self._sweeper = asyncio.get_running_loop().call_later(_SWEEP, self._sweep)
        self._spawn(self._expire())

    async def _expire(self) -> None:
        try:
            while await self._disk.expire(time.time() - self._keep):
                pass  # a part at a time, so that others who wait for the disk have their turn
        except StoreError:
            pass  # they take space until the disk works again
