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
from weakref import WeakValueDictionary

import msgspec

from sidecar.core.answer import Answer
from sidecar.core.errors import RefusedError
from sidecar.core.latency import Labels
from sidecar.core.recording import Recording
from sidecar.core.types import End, Fault, Outcome
from sidecar.engine.hub import Hub, is_again
from sidecar.engine.jobdisk import JobDisk
from sidecar.engine.jobstate import LIMIT, Job, Work, answer_of, ended, labels_of, sealed, status_of
from sidecar.engine.pump import NO_ASK, Ask, Live
from sidecar.stores.jobs import JobRecord, Order, StoreError, WebhookState

_SWEEP = 300.0  # seconds between looks for results whose time is over
_LAST_WRITES = 30.0  # seconds that stopping waits for the ends of jobs to be on disk
_DRAINING = End(Outcome.REFUSED, Fault("draining", "the job will begin once the sidecar runs again"))
INTERRUPTED = Fault(
    "interrupted",
    "it is not known whether the upstream did the work, so it was not sent again; send a new job",
)
_STOPPING = End(Outcome.REFUSED, Fault("interrupted", "the sidecar was stopped; send a new job"))


class Jobs:
    """All background jobs of one data folder."""

    def __init__(
        self,
        hub: Hub,
        disk: JobDisk,
        prepare: Callable[[JobRecord, Order], Work],
        told: Callable[[JobRecord], None],
        deliver: "Callable[[JobRecord, Jobs], Awaitable[None]]",
        on_fault: Callable[[BaseException], None],
        *,
        keep: float,
        concurrency: int,
        queue: int,
    ) -> None:
        """`prepare` may raise RefusedError for an order that is no longer allowed. `told` hears of each job
        that ended, `deliver` tells those who asked for it, `on_fault` is told of mistakes of our own."""
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
        self._sealed: WeakValueDictionary[str, Live] = WeakValueDictionary()
        self.queue: deque[str] = deque()
        self._adding: dict[str, tuple[Ask, asyncio.Task[Job]]] = {}
        self._forsaken: set[str] = set()
        self.running = 0
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
            self._enqueue(record, answer_of(record), labels_of(record), NO_ASK)
        for record in await self._disk.webhooks():
            self._spawn(self._deliver(record, self))
        self._sweep()

    def repeated(self, ask: Ask, *, retry: bool) -> str | None:
        """The job that this request was already sent for, if it has not ended. `retry`: an SDK says so."""
        known = [(name, before) for name, (before, _) in self._adding.items()]
        known += [(name, job.ask) for name, job in self._jobs.items() if job.record.ended is None]
        again = [name for name, before in known if is_again(ask, before, retry=retry)]
        return next((name for name in again if name not in self._forsaken), None)

    async def submit(self, record: JobRecord, order: Order, work: Work, ask: Ask) -> Job:
        """Take on a job; it is on disk when this returns. Raises RefusedError."""
        if len(self.queue) + len(self._adding) >= self._most:
            raise RefusedError("overloaded", f"{self._most} jobs are waiting", close=False)
        adding = self._spawn(self._add(record, order, work.answer, work.labels, ask))
        self._adding[record.id] = (ask, adding)
        return await asyncio.shield(adding)

    async def taken(self, name: str) -> Job:
        """A job that `repeated` named, once it is on disk. Raises RefusedError."""
        return await asyncio.shield(self._adding[name][1]) if name in self._adding else self._jobs[name]

    def unwanted(self, name: str) -> None:
        """Nobody was told the job's id, nor will be: there is no use in going on."""
        self._forsaken.add(name)
        self._spawn(self._forsake(name))

    async def status(self, name: str, root: str = "") -> dict[str, object]:
        """What `GET /_slipstream/jobs/{id}` answers; see `status_of`. Raises RefusedError."""
        job = self._jobs.get(name)
        record, live = (job.record, job.live) if job else (await self._disk.record(name), None)
        return status_of(record, live, root)

    async def result(self, name: str) -> Live:
        """The upstream's response, whole. Raises RefusedError."""
        job = self._jobs.get(name)
        if job is not None and job.record.ended is None:
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
        live = self._sealed.get(name)
        if live is None:
            record = await self._disk.record(name)
            result = await self._disk.result(name)
            if result is not None:
                # However many read it, it is in memory once.
                live = self._sealed.setdefault(name, sealed(record, result))
        return live

    async def cancel(self, name: str, fault: Fault) -> None:
        """End a job, queued or running; one that has ended stays as it is. Raises RefusedError."""
        job = self._jobs.get(name)
        if job is None:
            await self._disk.record(name)
        elif name in self.queue:
            self.queue.remove(name)
            await asyncio.shield(self._spawn(self._cancel_queued(job, fault)))
        elif not job.done.is_set():
            self._hub.cancel(job.live, fault)
            await job.done.wait()

    async def webhook_result(self, record: JobRecord, state: WebhookState, attempts: int) -> None:
        """Note what came of telling about a job's end."""
        try:
            await self._disk.webhook_result(record.id, state, attempts)
        except StoreError:
            pass  # at worst it is told again after a restart; receivers know it by its id

    def drain(self) -> None:
        """Begin no more jobs. What is queued stays on disk; whoever waits for it need not wait here."""
        self._stopping = True
        for name in self.queue:
            job = self._jobs[name]
            job.live.recording.finish(_DRAINING)
            job.done.set()

    async def close(self) -> None:
        """End what is left. Call after the hub was stopped, so that nothing runs any more."""
        self._stopping = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        begun = [self._spawn(job.done.wait()) for name, job in self._jobs.items() if name not in self.queue]
        if begun:
            await asyncio.wait(begun, timeout=_LAST_WRITES)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._disk.close()

    # From the queue to the end.

    async def _add(self, record: JobRecord, order: Order, answer: Answer, labels: Labels, ask: Ask) -> Job:
        try:
            await self._disk.add(record, order)
        finally:
            del self._adding[record.id]
        return self._enqueue(record, answer, labels, ask)

    async def _forsake(self, name: str) -> None:
        if name in self._adding:
            await asyncio.wait({self._adding[name][1]})
        try:
            await self.cancel(name, Fault("stopped", "its client left before it was told the id"))
        finally:
            self._forsaken.discard(name)

    def _enqueue(self, record: JobRecord, answer: Answer, labels: Labels, ask: Ask) -> Job:
        live = Live(Recording(limit=LIMIT), answer, Ask(keep=ask.keep), labels)
        live.held = True
        self._hub.publish(live, record.id)
        job = self._jobs[record.id] = Job(record, live, ask)
        self.queue.append(record.id)
        if self._stopping:
            self.drain()
        self._kick()
        return job

    def _kick(self) -> None:
        while self.queue and self.running < self._concurrency and not self._stopping:
            self.running += 1
            self._spawn(self._run(self._jobs[self.queue.popleft()]))

    async def _run(self, job: Job) -> None:
        live = job.live
        try:
            await self._call(job)
        except StoreError as error:
            live.recording.finish(End(Outcome.REFUSED, Fault("jobs_unavailable", str(error))))
        except RefusedError as error:
            live.recording.finish(End(Outcome.REFUSED, error.fault))
        except Exception as error:  # noqa: BLE001 - reason: whatever it is, somebody waits for the job's end
            self._on_fault(error)
            live.recording.finish(End(Outcome.REFUSED, Fault("internal", "see the log of the sidecar")))
        finally:
            self.running -= 1
        await self._finish(job)
        self._kick()

    async def _call(self, job: Job) -> None:
        live, now = job.live, time.time()
        order = await self._disk.begin(job.record.id, now)
        job.record = msgspec.structs.replace(job.record, status="running", started=now)
        if live.recording.end is not None or order is None or self._stopping:
            live.recording.finish(_STOPPING)
            return
        work = self._prepare(job.record, order)
        live.answer = work.answer
        work.start(live)
        del order, work  # the body, which has been sent
        await self._hub.until_over(live)

    async def _cancel_queued(self, job: Job, fault: Fault) -> None:
        record = msgspec.structs.replace(job.record, status="cancelled", ended=time.time(), error=fault)
        try:
            await self._disk.drop(record)
        except RefusedError:
            self.queue.appendleft(record.id)  # on disk it is still there, and would run after a restart
            self._kick()
            raise
        job.live.recording.finish(End(Outcome.CANCELLED, fault))
        self._over(job, record)

    async def _finish(self, job: Job) -> None:
        record, result = ended(job.record, job.live, time.time())
        error = await self._disk.finish(record, result)
        if not self._disk.saved(record.id):
            # Memory has it until the disk works again; that is better than nothing.
            why = record.error or Fault("jobs_unavailable", f"its result is not on disk: {error}")
            record = msgspec.structs.replace(record, error=why)
        self._over(job, record)

    def _over(self, job: Job, record: JobRecord) -> None:
        """Its end is on disk: tell whoever wants to know."""
        job.record = record
        self._hub.forget(job.live)  # from now on it is read from disk
        job.live.held = False
        job.done.set()
        for name in [name for name, job in self._jobs.items() if job.record.ended is not None]:
            if self._disk.saved(name):
                del self._jobs[name]
        self._told(record)
        if record.webhook is not None:
            self._spawn(self._deliver(record, self))

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
        await self._disk.save()
        try:
            while await self._disk.expire(time.time() - self._keep):
                pass  # a part at a time, so that others who wait for the disk have their turn
        except StoreError:
            pass  # they take space until the disk works again
