"""Worker processes, kept running: begun, watched, begun again when they end, and told to stop.

Whatever becomes of one, the others go on: the supervisor holds nothing that they need to serve.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from structlog.typing import FilteringBoundLogger

from sidecar.workers.link import Line, Order, pair

_FIRST_DELAY = 0.25
_LONGEST_DELAY = 30.0
"""Seconds before a worker that has ended is begun again: twice as many each time."""
_GOOD = 60.0
"""Seconds that one has to run for its end to count as the first one."""
_ABORT = 5.0
"""Seconds for one that hangs to say where, before it is killed."""
_START = 120.0
"""Seconds that one may take until it serves."""
_LOOK = 1.0


class WorkerError(Exception):
    """A worker could not be started the first time, and will not be the next."""

    def __init__(self, reason: str, *, bad_configuration: bool) -> None:
        super().__init__(reason)
        self.bad_configuration = bad_configuration


class Worker:
    """One of them, through all its processes."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: asyncio.subprocess.Process | None = None
        self.line: Line | None = None
        self.ready = asyncio.Event()
        """Set once it serves for the first time."""
        self.serving = False
        self.served = False
        """Whether this process has."""
        self.begun = self.heard = 0.0
        """When it was begun, and gave its latest sign of life (`time.monotonic`)."""
        self.failures = 0
        self.reason: str | None = None
        """Why it says that it cannot be started."""
        self.reloaded = asyncio.Event()
        """Unset while it is about to go by a new configuration."""
        self.reloaded.set()


class Supervisor:
    """Of all workers of one sidecar."""

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        order: Callable[[int], Order],
        count: int,
        log: FilteringBoundLogger,
        *,
        silence: float,
        on_fault: Callable[[BaseException], None],
        inherited: Sequence[int] = (),
    ) -> None:
        """`command`: makes a worker's, with the descriptor of its line. `order`: what one is told. `silence`:
        seconds without a sign of life after which one is taken to hang. `on_fault` is told of mistakes of our
        own. `inherited`: descriptors that all get."""
        self._command = command
        self._order = order
        self._log = log
        self._silence = silence
        self._on_fault = on_fault
        self._inherited = inherited
        self.workers = [Worker(number) for number in range(count)]
        self.restarts = 0
        self.served: Callable[[int], None] = lambda _number: None
        self.ended: Callable[[int], None] = lambda _number: None
        """Told when a process of a worker serves, and when it has ended."""
        self._keepers: list[asyncio.Task[None]] = []
        self._watch: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._clean = True

    async def start(self) -> None:
        """Return when all serve, or `stop` was called. Raises WorkerError, after those that were begun have
        ended."""
        self._watch = asyncio.create_task(self._watch_them())
        try:
            # The first one alone: it looks after what is on disk, and repairs it where that is needed.
            for some in (self.workers[:1], self.workers[1:]):
                await asyncio.gather(*[self._first(worker) for worker in some])
        except BaseException:
            self.stop()  # those that serve may have something to serve
            await self.over()
            raise

    def stop(self) -> None:
        """Tell all to drain and to stop."""
        self._stopping.set()
        for worker in self.workers:
            if worker.line is not None:
                worker.line.stop()

    def reload(self, tree: dict[str, Any] | None) -> None:
        """Tell all that there is a new configuration."""
        for worker in self.workers:
            if worker.line is not None:
                worker.line.reload(tree)
                worker.reloaded.clear()

    async def reloaded(self, patience: float) -> None:
        """Wait until all that serve have taken it, or left it, for so many seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                for worker in self.workers:
                    await worker.reloaded.wait()

    def kill(self) -> None:
        """End all at once."""
        self._stopping.set()
        for worker in self.workers:
            self._signal(worker, signal.SIGKILL)

    async def over(self) -> bool:
        """Wait until all have ended, after `stop` or `kill`. Returns whether all did so by themselves and
        well."""
        await asyncio.gather(*self._keepers, return_exceptions=True)
        if self._watch is not None:
            self._watch.cancel()
        return self._clean

    async def _first(self, worker: Worker) -> None:
        keeper = asyncio.create_task(self._keep(worker))
        self._keepers.append(keeper)
        ready = asyncio.create_task(worker.ready.wait())
        await asyncio.wait({keeper, ready}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if not worker.ready.is_set():
            if self._stopping.is_set():
                return
            await keeper  # raises

    async def _keep(self, worker: Worker) -> None:
        """Run one until all are to stop. Raises WorkerError when it never came to serve."""
        while not self._stopping.is_set():
            try:
                status = await self._run(worker)
            except OSError as error:  # no descriptor, no memory: for the moment
                status, worker.reason = 1, error.strerror
            except Exception as error:  # noqa: BLE001 - reason: nobody else would begin it again
                self._on_fault(error)
                status, worker.reason = 1, type(error).__name__
            ran = time.monotonic() - worker.begun
            if self._stopping.is_set():
                self._clean = self._clean and (status == 0 or not worker.served)
                return
            told: dict[str, object] = {"worker": worker.number, "status": status, "after_s": round(ran, 1)}
            if worker.reason is not None:
                told["reason"] = worker.reason
            if not worker.ready.is_set():
                reason = worker.reason or f"worker {worker.number} ended with status {status}; see above"
                raise WorkerError(reason, bad_configuration=status == 2 and worker.reason is not None)
            worker.failures = 1 if ran >= _GOOD else worker.failures + 1
            delay = min(_FIRST_DELAY * 2 ** (worker.failures - 1), _LONGEST_DELAY)
            self._log.error("worker_ended", **told, again_in_s=delay)
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopping.wait()

    async def _run(self, worker: Worker) -> int:
        """One process, from its beginning to its end; returns its exit status. Raises OSError."""
        worker.begun = worker.heard = time.monotonic()
        worker.reason, worker.served = None, False
        mine, theirs = pair()
        try:
            with theirs:
                number = theirs.fileno()
                worker.process = process = await asyncio.create_subprocess_exec(
                    *self._command(number),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(number, *self._inherited),
                    # What a terminal sends to all that run in it is for the supervisor to pass on.
                    start_new_session=True,
                )
        except BaseException:
            mine.close()
            raise
        if worker.ready.is_set():
            self.restarts += 1
        try:
            worker.line = Line(mine, lambda kind, text: self._heard(worker, kind, text))
            worker.line.order(self._order(worker.number))
            if self._stopping.is_set():
                process.kill()
            return await process.wait()
        except BaseException:
            self._signal(worker, signal.SIGKILL)
            raise
        finally:
            if worker.line is not None:
                worker.line.close()
            worker.line = worker.process = None
            worker.serving = False
            worker.reloaded.set()
            self.ended(worker.number)

    def _heard(self, worker: Worker, kind: str, text: str) -> None:
        worker.heard = time.monotonic()
        if kind == "ready":
            worker.reloaded.set()
        if kind == "ready" and not worker.serving:
            worker.serving = worker.served = True
            worker.ready.set()
            self.served(worker.number)
            pid = worker.process.pid if worker.process is not None else None
            self._log.info("worker_started", worker=worker.number, worker_pid=pid)
        elif kind == "failed":
            worker.reason = text
        elif kind == "stopped" and text:
            self._clean = False

    async def _watch_them(self) -> None:
        """End those that give no sign of life, so that they are begun again. Never returns."""
        aborted: dict[int, float] = {}
        while True:
            await asyncio.sleep(min(_LOOK, self._silence / 4))
            now = time.monotonic()
            for worker in self.workers:
                process = worker.process
                if process is None:
                    continue
                since = aborted.get(process.pid)
                if since is not None and now - since > _ABORT:
                    self._signal(worker, signal.SIGKILL)
                elif since is None and now - worker.heard > self._patience(worker):
                    silent = round(now - worker.heard, 1)
                    self._log.error("worker_hangs", worker=worker.number, silent_s=silent)
                    aborted = {process.pid: now, **{pid: at for pid, at in aborted.items() if now - at < 60}}
                    self._signal(worker, signal.SIGABRT)  # it says where, for those who look into it

    def _patience(self, worker: Worker) -> float:
        """Seconds of silence: one that is being begun has no event loop yet."""
        return self._silence if worker.serving else max(self._silence, _START)

    @staticmethod
    def _signal(worker: Worker, number: int) -> None:
        if worker.process is not None and worker.process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(worker.process.pid, number)
