"""The load generator's jobs with answers that are read more than once: shared, kept, come back to."""

import asyncio
import time

from benchmarks.jobs import NAMED, Kept, Result, Resumes, Shared, Watch, Way
from benchmarks.procs import cpu_seconds, private_bytes
from benchmarks.timer import Pace
from benchmarks.wire import LoadError, Parsed, Stream, Tally, check, dropped, parsed, ramped
from benchmarks.writes import calls_so_far, traced

COLLAPSED = b"fwd=miss; collapsed\r\n"
MISS = b"fwd=miss; stored\r\n"
GONE = 0.1
"""Seconds in which the proxy gets over clients that left."""
SAMPLE = 20
"""Kept streams that are read again from their start."""
FIRST = 10
"""Resumes of each way before those that count."""
TRACED = 10
"""Resumes of each way whose write calls strace counts."""


async def shared(job: Shared) -> Result:
    upstream, seconds = Tally(), Tally()
    windows: list[Result] = []

    async def look() -> None:
        """A window; its events are the upstream's, however many read them."""
        watch, before, also = Watch(job), upstream.events, seconds.events
        await asyncio.sleep(job.window)
        result = watch.result(upstream.events - before)
        result.joined = seconds.events - also
        windows.append(result)

    readers: list[Stream] = []
    async with dropped(readers):
        await ramped(job.port, job.requests, job.spacing, upstream, readers)
        expect(readers, MISS)
        await look()
        for _ in range(job.cycles):
            joined: list[Stream] = []
            async with dropped(joined):
                await ramped(job.port, job.requests, job.spacing, seconds, joined)
                expect(joined, COLLAPSED)
                await look()
                check(joined)
            await asyncio.sleep(GONE)
            await look()
        check(readers)
    return Result(done=sum(window.done for window in windows), windows=windows)


def expect(readers: list[Stream], status: bytes) -> None:
    """Whether all were answered in the way that is to be measured."""
    for reader in readers:
        if b"\r\nCache-Status: slipstream; " + status not in reader.head:
            raise LoadError(f"expected {status!r}: {reader.head[:600]!r}")


async def kept(job: Kept) -> Result:
    before = private_bytes(job.watched[0])
    streams: list[Parsed] = []
    async with dropped(streams), dropped([await parsed(job.port)]) as [client]:
        with Pace(job.spacing) as pace:
            for _ in range(job.streams):
                await pace.tick()
                stream = await parsed(job.port)
                streams.append(stream)
                stream.send(job.request)
            while not all(stream.status for stream in streams):
                check(streams)
                await pace.tick()
        await client.fetch(job.go_on)
        while any(stream.events < job.events for stream in streams):
            check(streams)
            await asyncio.sleep(job.settle / 4)
        await asyncio.sleep(job.settle)
        check(streams)
        opened, body = private_bytes(job.watched[0]) - before, sum(stream.size for stream in streams)
        await client.fetch(job.go_on)
        for stream in streams:
            await stream.end()
    await asyncio.sleep(job.settle)
    ended = private_bytes(job.watched[0]) - before
    result = Result(done=job.streams, memory=opened, ended=ended, body=body)
    async with dropped([await parsed(job.port)]) as [client]:
        for stream in streams:
            name = stream.fields[b"slipstream-stream-id"]
            await client.fetch(job.back.replace(NAMED, name))
            if client.status not in (200, 410) or (client.status == 200 and client.size):
                raise LoadError(f"a client that came back with all events: {client!r}")
            result.whole += client.status == 200
            if client.status == 200 and stream in streams[:: max(len(streams) // SAMPLE, 1)]:
                await client.fetch(job.anew.replace(NAMED, name))
                if (client.events, client.size) != (stream.events, stream.size):
                    raise LoadError(f"a stream that was read again: {client!r}")
    return result


async def resumes(job: Resumes) -> Result:
    async with dropped([await parsed(job.port)]) as [client]:
        client.body = []
        await client.fetch(job.request)
        sent, events, name = b"".join(client.body), client.events, client.fields[b"slipstream-stream-id"]
        requests = [way.replace(NAMED, name) for way in job.ways]
        for request, without in zip(requests, job.without, strict=True):
            client.body = []
            await client.fetch(request)
            if client.events != events - without or rest(sent, without) != unstamped(b"".join(client.body)):
                raise LoadError(f"{client.events} of {events - without} events, or others")
        client.body = None
        ways = [Way() for _ in requests]
        for number in range(-FIRST, job.count):
            for way, request in zip(ways, requests, strict=True):
                await timed(job, client, request, way if number >= 0 else Way())
    counted = False
    if job.trace:
        for way, request in zip(ways, requests, strict=True):
            async with dropped([await parsed(job.port)]) as [client]:
                found = await traced(job.trace, job.folder, job.watched[0][0], client, request, TRACED)
            if found is not None:
                counted, way.writes = True, found
    return Result(done=events, ways=ways, traced=counted)


async def timed(job: Resumes, client: Parsed, request: bytes, way: Way) -> None:
    """Come back once."""
    pids = job.watched[0]
    used, written = cpu_seconds(pids), calls_so_far(pids[0])
    begun = time.perf_counter()
    await client.fetch(request)
    way.seconds.append(client.ended - begun)
    await asyncio.sleep(job.pause)
    way.cpu.append(cpu_seconds(pids) - used)
    way.writes += (calls_so_far(pids[0]) - written) / job.count


def rest(body: bytes, without: int) -> bytes:
    """What follows the first events."""
    return body.split(b"\n\n", without)[-1]


def unstamped(body: bytes) -> bytes:
    """The upstream's bytes of a copy with ids."""
    return b"\n".join(line for line in body.split(b"\n") if not line.startswith(b"id: "))
