"""The load generator: one bounded job per process, as JSON from stdin to stdout, on loopback only.

It also reads the CPU time and memory of the processes under test, because only it knows the moments
between which the work was done.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import msgspec
import uvloop

from benchmarks.procs import busy_seconds, cpu_seconds, private_bytes
from benchmarks.timer import Pace
from benchmarks.wire import Connection, Stream, Tally, Whole

HOST = "127.0.0.1"
LONGEST = 60.0
"""Seconds after which a job is given up."""


class LoadError(Exception):
    """The peer did not do what the job needs to measure anything."""


class Job(msgspec.Struct, tag=True, kw_only=True):
    """What all jobs have in common."""

    port: int
    request: bytes
    watched: list[list[int]]
    """Process groups whose CPU time is read; the first one is also asked for its memory."""


class Requests(Job):
    """Whole answers, as fast as they come, on `concurrent` connections."""

    count: int
    concurrent: int


class Events(Job):
    """Open `streams`, one every `spacing` seconds, and count events for `window` seconds."""

    streams: int
    spacing: float
    window: float


class FirstEvents(Job):
    """Start a stream every `spacing` seconds, whatever becomes of the others, for `ramp + window` seconds.

    Streams that start in the ramp only make the company the others are measured in.
    """

    spacing: float
    ramp: float
    window: float


class Open(Job):
    """Open `streams`, one every `spacing` seconds, let them lie for `settle` seconds, look at memory."""

    streams: int
    spacing: float
    settle: float


class Result(msgspec.Struct, kw_only=True):
    """What a job found. `cpu`: seconds, per group of `watched`; the load generator's own comes last."""

    done: int
    """Requests or events."""
    seconds: float = 0.0
    cpu: list[float] = []
    first: list[float] = []
    """Seconds to the first event, per stream."""
    others: float = 0.0
    """CPU seconds that processes used that have no part in the run."""
    memory: int = 0
    """Bytes of private memory that the first group has more than before."""


class Watch:
    """CPU time between two moments."""

    def __init__(self, job: Job) -> None:
        self._groups = job.watched
        self._before = self._read()
        self._all = busy_seconds()
        self._begun = time.perf_counter()

    def result(self, done: int) -> Result:
        seconds = time.perf_counter() - self._begun
        used = [after - before for before, after in zip(self._before, self._read(), strict=True)]
        others = busy_seconds() - self._all - sum(used)
        return Result(done=done, seconds=seconds, cpu=used, others=others)

    def _read(self) -> list[float]:
        return [*map(cpu_seconds, self._groups), time.process_time()]


@asynccontextmanager
async def dropped(connections: list[Stream]) -> AsyncIterator[list[Stream]]:
    """Streams end with the job, finished or not."""
    try:
        yield connections
    finally:
        for connection in connections:
            connection.busy = False
            connection.transport.abort()


async def requests(job: Requests) -> Result:
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(Whole, HOST, job.port) for _ in range(job.concurrent)]
    over: asyncio.Future[None] = loop.create_future()
    to_send = done = 0

    def next_one(connection: Connection) -> None:
        nonlocal to_send, done
        done += 1
        if connection.broken and not over.done():
            over.set_exception(LoadError(connection.broken))
        elif to_send:
            to_send -= 1
            connection.send(job.request)
        elif done == job.count and not over.done():
            over.set_result(None)

    watch = Watch(job)
    to_send = job.count - len(made)
    for _, connection in made:
        connection.done = next_one
        connection.send(job.request)
    await over
    result = watch.result(done)
    for transport, _ in made:
        transport.close()
    return result


async def ramped(job: Events | Open, connections: list[Stream], tally: Tally) -> None:
    """Open the streams one after the other, each on its own connection, and wait for every first event."""
    loop = asyncio.get_running_loop()
    with Pace(job.spacing) as pace:
        for _ in range(job.streams):
            await pace.tick()
            _, stream = await loop.create_connection(lambda: Stream(tally), HOST, job.port)
            connections.append(stream)
            stream.send(job.request)
        while not all(stream.events for stream in connections):
            check(connections)
            await pace.tick()


def check(connections: list[Stream]) -> None:
    for stream in connections:
        if not stream.busy:
            raise LoadError(stream.broken or "a stream ended before its time")


async def events(job: Events) -> Result:
    tally = Tally()
    async with dropped([]) as connections:
        await ramped(job, connections, tally)
        watch, before = Watch(job), tally.events
        await asyncio.sleep(job.window)
        result = watch.result(tally.events - before)
        check(connections)
    return result


async def open_streams(job: Open) -> Result:
    tally = Tally()
    before = private_bytes(job.watched[0])
    async with dropped([]) as connections:
        await ramped(job, connections, tally)
        await asyncio.sleep(job.settle)
        after = private_bytes(job.watched[0])
        check(connections)
    return Result(done=job.streams, memory=after - before)


async def first_events(job: FirstEvents) -> Result:
    loop = asyncio.get_running_loop()
    tally = Tally()
    idle: list[Stream] = []
    first: list[float] = []
    broken: list[str] = []

    def over(connection: Connection) -> None:
        if connection.broken:
            broken.append(connection.broken)
        idle.append(cast("Stream", connection))

    async with dropped([]) as connections:

        async def start(sample: list[float] | None) -> None:
            await pace.tick()
            if not idle:
                _, stream = await loop.create_connection(lambda: Stream(tally), HOST, job.port)
                stream.done = over
                connections.append(stream)
                idle.append(stream)
            stream = idle.pop()
            stream.sample = sample
            stream.send(job.request)

        with Pace(job.spacing) as pace:
            for _ in range(round(job.ramp / job.spacing)):
                await start(None)
            watch, before = Watch(job), tally.events
            wanted = round(job.window / job.spacing)
            for _ in range(wanted):
                await start(first)
            result = watch.result(tally.events - before)
            while len(first) < wanted and not broken:
                await pace.tick()
    if broken:
        raise LoadError(broken[0])
    result.first = first
    return result


async def run(job: Requests | Events | FirstEvents | Open) -> Result:
    async with asyncio.timeout(LONGEST):
        match job:
            case Requests():
                return await requests(job)
            case Events():
                return await events(job)
            case FirstEvents():
                return await first_events(job)
            case Open():
                return await open_streams(job)


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Requests | Events | FirstEvents | Open)
    try:
        result = uvloop.run(run(job))
    except (LoadError, TimeoutError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.stdout.buffer.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
