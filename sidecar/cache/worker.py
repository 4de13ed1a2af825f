"""One thread for work that blocks, in the order it was given.

An executor's futures cost the event loop more than a lookup itself does: here a job is a queue entry, and the
results of all jobs that are done are handed back together. The thread is a daemon: one that hangs on a disk
keeps no process from ending.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_Done = Callable[[Any, BaseException | None], None]
_Job = tuple[Callable[[], Any], _Done]


class Worker:
    """Its thread starts with the first job. For one event loop."""

    def __init__(self, name: str, on_fault: Callable[[BaseException], None]) -> None:
        """`on_fault` is told of what those raise who are handed results."""
        self._name = name
        self._on_fault = on_fault
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._results: deque[tuple[_Done, Any, BaseException | None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = False

    def do(self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        """Have `work` done; `done` gets what it returned, or raised, on the loop. Raises RuntimeError when no
        thread can be had."""
        if self._loop is None:
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._loop = asyncio.get_running_loop()
            try:
                thread.start()
            except RuntimeError:
                self._loop = None
                raise
        self._jobs.put((work, done))

    async def result(self, work: Callable[[], T], timeout: float | None = None) -> T:  # noqa: ASYNC109
        """What `work` returns, or raises. Raises TimeoutError; the work goes on then."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(result: T | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.do(work, done)
        async with asyncio.timeout(timeout):
            found: T = await future
        return found

    def stop(self) -> None:
        """The thread ends once it has done what it was given."""
        self._jobs.put(None)

    def _run(self) -> None:
        loop = self._loop
        assert loop is not None
        while (job := self._jobs.get()) is not None:
            work, done = job
            result: Any = None
            error: BaseException | None = None
            try:
                result = work()
            except BaseException as raised:  # noqa: BLE001 - reason: it is handed to whoever asked
                error = raised
            self._results.append((done, result, error))
            del job, work, done, result, error  # while it waits for the next one, they are nobody's
            if not self._told:
                self._told = True
                try:
                    loop.call_soon_threadsafe(self._deliver)
                except RuntimeError:
                    return  # the loop is closed: nobody is left to tell

    def _deliver(self) -> None:
        self._told = False  # first: what is done from now on is told of again
        while self._results:
            done, result, error = self._results.popleft()
            try:
                done(result, error)
            except Exception as mistake:  # noqa: BLE001 - reason: the next ones are somebody else's
                self._on_fault(mistake)


def tell(waiting: "Iterable[asyncio.Future[T]]", result: T) -> None:
    """Give a result to those who still wait for it."""
    for waiter in waiting:
        if not waiter.done():
            waiter.set_result(result)
