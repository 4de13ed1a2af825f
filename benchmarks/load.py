"""The load generator: one bounded job per process, as JSON from stdin to stdout, on loopback only.

It also reads the CPU time and memory of the processes under test, because only it knows the moments
between which the work was done.
"""

import asyncio
import re
import sys
from itertools import count
from typing import cast

import msgspec
import uvloop

from benchmarks import again
from benchmarks.jobs import (
    NUMBER,
    AnyJob,
    Events,
    FirstEvents,
    Kept,
    Misses,
    Open,
    Requests,
    Result,
    Resumes,
    Shared,
    Watch,
    numbered,
)
from benchmarks.misses import misses
from benchmarks.procs import private_bytes
from benchmarks.timer import Pace
from benchmarks.wire import HOST, Connection, LoadError, Stream, Tally, Whole, check, dropped, ramped

LONGEST = 60.0
"""Seconds after which a job is given up."""


async def requests(job: Requests) -> Result:
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(Whole, HOST, job.port) for _ in range(job.concurrent)]
    over: asyncio.Future[None] = loop.create_future()
    to_send = done = 0
    numbers, differ = count(job.number), NUMBER in job.request
    first: list[float] = []

    def following() -> bytes:
        return numbered(job.request, next(numbers)) if differ else job.request

    def next_one(connection: Connection) -> None:
        nonlocal to_send, done
        done += 1
        if connection.broken and not over.done():
            over.set_exception(LoadError(connection.broken))
        elif to_send:
            to_send -= 1
            connection.send(following())
        elif done == job.count and not over.done():
            over.set_result(None)

    watch = Watch(job)
    to_send = job.count - len(made)
    for _, connection in made:
        connection.done = next_one
        connection.expected = re.compile(job.expected.encode()) if job.expected else None
        connection.sample = first if job.timed else None
        connection.send(following())
    await over
    result = watch.result(done)
    result.first = first
    for transport, _ in made:
        transport.close()
    return result


async def events(job: Events) -> Result:
    tally = Tally()
    async with dropped([]) as connections:
        await ramped(job.port, [job.request] * job.streams, job.spacing, tally, connections)
        if any((b"\nid: " in stream.head) is not job.ids for stream in connections):
            raise LoadError(f"expected events {'with' if job.ids else 'without'} ids")
        watch, before = Watch(job), tally.events
        await asyncio.sleep(job.window)
        result = watch.result(tally.events - before)
        check(connections)
    return result


async def open_streams(job: Open) -> Result:
    tally = Tally()
    before = private_bytes(job.watched[0])
    async with dropped([]) as connections:
        await ramped(job.port, [job.request] * job.streams, job.spacing, tally, connections)
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


async def run(job: AnyJob) -> Result:
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
            case Shared():
                return await again.shared(job)
            case Kept():
                return await again.kept(job)
            case Resumes():
                return await again.resumes(job)
            case Misses():
                return await misses(job)


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=AnyJob)
    try:
        result = uvloop.run(run(job))
    except (LoadError, TimeoutError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.stdout.buffer.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
