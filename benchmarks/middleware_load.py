"""The load generator's jobs with streams that are all different, from end to end or at a steady pace, for
servers that spell the names of fields in small letters; otherwise as `benchmarks.load`."""

import asyncio
import re
import sys
from itertools import count
from typing import cast

import msgspec
import uvloop

from benchmarks.jobs import Job, Result, Watch, numbered
from benchmarks.load import LONGEST
from benchmarks.wire import HOST, Connection, LoadError, Stream, Tally, check, dropped, ramped

FEW = 10


class Streams(Job):
    """`count` streams, `concurrent` at a time, each to its end, and `settle` seconds for what is done after
    that."""

    request: bytes
    """See NUMBER."""
    number: int
    """Of the first one."""
    count: int
    concurrent: int
    events: int
    """That each of them has to have; 0: more than a few."""
    expected: str
    """A pattern that each head has to match."""
    settle: float


class Paced(Job):
    """As `Events`, with another request for each stream."""

    request: bytes
    """See NUMBER."""
    number: int
    streams: int
    spacing: float
    window: float
    expected: str


async def paced(job: Paced) -> Result:
    tally, expected = Tally(), re.compile(job.expected.encode())
    requests = [numbered(job.request, job.number + at) for at in range(job.streams)]
    async with dropped([]) as connections:
        await ramped(job.port, requests, job.spacing, tally, connections)
        for stream in connections:
            if not expected.search(stream.head):
                raise LoadError(f"expected {job.expected!r}: {stream.head[:600]!r}")
        watch, before = Watch(job), tally.events
        await asyncio.sleep(job.window)
        result = watch.result(tally.events - before)
        check(connections)
    return result


async def streams(job: Streams) -> Result:
    """`done` counts events."""
    loop = asyncio.get_running_loop()
    tally, expected = Tally(), re.compile(job.expected.encode())
    over: asyncio.Future[None] = loop.create_future()
    to_send, left, numbers = job.count, job.count, count(job.number)

    def broken(stream: Stream) -> str | None:
        if stream.broken:
            return stream.broken
        if stream.events != job.events and (job.events or stream.events < FEW):
            return f"{stream.events} events instead of {job.events or FEW}"
        return None if expected.search(stream.head) else f"expected {job.expected!r}: {stream.head[:600]!r}"

    def next_one(connection: Connection) -> None:
        nonlocal left
        stream = cast("Stream", connection)
        left -= 1
        if (why := broken(stream)) is not None:
            if not over.done():
                over.set_exception(LoadError(why))
        elif to_send:
            send(stream)
        elif not left and not over.done():
            over.set_result(None)

    def send(stream: Stream) -> None:
        nonlocal to_send
        to_send -= 1
        stream.send(numbered(job.request, next(numbers)))

    async with dropped([]) as connections:
        for _ in range(min(job.concurrent, job.count)):
            _, stream = await loop.create_connection(lambda: Stream(tally), HOST, job.port)
            stream.done = next_one
            connections.append(stream)
        watch = Watch(job)
        for stream in connections:
            send(stream)
        await over
        await asyncio.sleep(job.settle)
        return watch.result(tally.events)


async def run(job: Streams | Paced) -> Result:
    async with asyncio.timeout(LONGEST):
        return await (paced(job) if isinstance(job, Paced) else streams(job))


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Streams | Paced)
    try:
        result = uvloop.run(run(job))
    except (LoadError, TimeoutError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.stdout.buffer.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
