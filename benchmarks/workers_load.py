"""The load generator of `python -m benchmarks.workers`: one job per process, as JSON from stdin to stdout.

The same prepared bytes on many connections, each time as soon as the answer has ended. An answer is looked at
no closer than it takes to know that it is the right one and where it ends: what the generator takes of the
cores is missing for the workers. The sidecars that are compared are asked in turns of less than a second, so
that what else the machine does is the same for all of them.
"""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any

import msgspec
import psutil
import uvloop

from benchmarks.jobs import Job, Result, Watch
from benchmarks.load import LONGEST
from benchmarks.wire import HOST, Connection, LoadError

_OK = b"HTTP/1.1 200"


class Side(Job):
    """One of the sidecars. Each of the first `workers` groups of processes that are watched is one worker."""

    workers: int


class Dealt(msgspec.Struct):
    """Ask each side for `ramp` seconds, then for `window` seconds that count; and so on, `turns` times, every
    second time backwards."""

    sides: list[Side]
    request: bytes
    expected: bytes
    """What has to be in the first piece of each answer."""
    end: bytes
    """What each answer ends in, and has nowhere else at the end of a piece."""
    events: int
    """That each answer has to have; 0: it is not a stream."""
    connections: int
    """To each side."""
    turns: int
    ramp: float
    window: float


class Shares(msgspec.Struct):
    """What was done by one side, in all turns, and by whom."""

    total: Result
    connections: list[int]
    """Per worker."""
    requests: list[int]
    """Per worker."""


class Asking(Connection):
    """One of the connections. It asks while it is to `go_on`; what went wrong is told to `failed`."""

    def __init__(self, job: Dealt, failed: asyncio.Future[None]) -> None:
        super().__init__()
        self.answers = 0
        self.go_on = False
        self._request, self._expected, self._end = job.request, job.expected, job.end
        self._due = job.events
        self._failed = failed
        self._begun = False
        self._events = 0
        self._tail = b""

    def data_received(self, data: bytes) -> None:
        if not self._begun:
            self._begun = True
            if not data.startswith(_OK) or self._expected not in data:
                self.over(f"expected {self._expected!r}: {data[:600]!r}")
                return
        if self._due:
            self._events += data.count(b"\n\n")
        if not data.endswith(self._end):
            # It may have come in two.
            self._tail = (self._tail + data)[-len(self._end) :]
            if self._tail != self._end:
                return
        if self._events != self._due:
            self.over(f"{self._events} events instead of {self._due}")
            return
        self._begun, self._events, self._tail = False, 0, b""
        self.answers += 1
        if self.go_on:
            self.transport.write(self._request)
        else:
            self.over()

    def over(self, broken: str | None = None) -> None:
        if broken is None:
            super().over()
            return
        self.busy = False
        self.transport.abort()
        if not self._failed.done():
            self._failed.set_exception(LoadError(broken))


class Asked:
    """One side, its connections, and what it has done."""

    def __init__(self, job: Dealt, side: Side, failed: asyncio.Future[None]) -> None:
        self.shares = Shares(Result(done=0), [0] * side.workers, [0] * side.workers)
        self.made: list[Asking] = []
        self._job, self._side, self._failed = job, side, failed
        self._counts = [0] * job.connections
        self._going = 0
        self._quiet = asyncio.Event()

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(self._job.connections):
            _, made = await loop.create_connection(
                lambda: Asking(self._job, self._failed), HOST, self._side.port
            )
            made.done = self._stopped
            self.made.append(made)

    async def turn(self) -> None:
        job, total = self._job, self.shares.total
        self._going = len(self.made)
        self._quiet.clear()
        for connection in self.made:
            connection.go_on = True
            connection.send(job.request)
        await _while(asyncio.sleep(job.ramp), self._failed)
        watch, before = Watch(self._side), [connection.answers for connection in self.made]
        await _while(asyncio.sleep(job.window), self._failed)
        done = [connection.answers - old for connection, old in zip(self.made, before, strict=True)]
        now = watch.result(sum(done))
        for connection in self.made:
            connection.go_on = False
        self._counts = [old + more for old, more in zip(self._counts, done, strict=True)]
        total.done += now.done
        total.seconds += now.seconds
        total.others += now.others
        total.cpu = [old + more for old, more in zip(total.cpu or [0.0] * len(now.cpu), now.cpu, strict=True)]
        await _while(self._quiet.wait(), self._failed)

    def _stopped(self, _connection: Connection) -> None:
        self._going -= 1
        if not self._going:
            self._quiet.set()

    def deal(self) -> Shares:
        """Who has done it."""
        owners = _owners(self._side)
        for connection, count in zip(self.made, self._counts, strict=True):
            worker = owners.get(connection.transport.get_extra_info("sockname")[1])
            if worker is None:
                raise LoadError("a connection that no worker has")
            self.shares.connections[worker] += 1
            self.shares.requests[worker] += count
        return self.shares


async def dealt(job: Dealt) -> list[Shares]:
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asked = [Asked(job, side, failed) for side in job.sides]
    try:
        for each in asked:
            await each.connect()
        for number in range(job.turns):
            for each in reversed(asked) if number % 2 else asked:
                await each.turn()
        return [each.deal() for each in asked]
    finally:
        for each in asked:
            for connection in each.made:
                connection.busy = False
                connection.transport.abort()
        failed.cancel()


async def _while(waited: Coroutine[Any, Any, Any], failed: asyncio.Future[None]) -> None:
    """Raises LoadError at once if something goes wrong meanwhile."""
    task: asyncio.Future[Any] = asyncio.ensure_future(waited)
    await asyncio.wait((task, failed), return_when=asyncio.FIRST_COMPLETED)
    task.cancel()
    if failed.done():
        failed.result()


def _owners(side: Side) -> dict[int, int]:
    """The worker that has a connection, by the port at this end: the kernel knows it, and nobody else."""
    found = {}
    for worker, pids in enumerate(side.watched[: side.workers]):
        for pid in pids:
            for one in psutil.Process(pid).net_connections("tcp4"):
                if one.raddr and one.laddr.port == side.port:
                    found[one.raddr.port] = worker
    return found


async def run(job: Dealt) -> list[Shares]:
    async with asyncio.timeout(LONGEST):
        return await dealt(job)


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Dealt)
    try:
        shares = uvloop.run(run(job))
    except (LoadError, TimeoutError, OSError, psutil.Error) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.stdout.buffer.write(msgspec.json.encode(shares))


if __name__ == "__main__":
    main()
