"""The load generator's jobs for questions in other words, on loopback only: `python -m
benchmarks.semantic_load` takes one as JSON from stdin, and says to stdout what it found.
"""

import asyncio
import sys
import time
from collections.abc import Iterator

import msgspec
import uvloop

from benchmarks.jobs import Job, Result, Watch
from benchmarks.semantic_questions import asking
from benchmarks.timer import Pace
from benchmarks.wire import HOST, LoadError, Parsed, Stream, Tally, check, dropped, parsed

LONGEST = 120.0
"""Seconds after which a job is given up."""
SEMANTIC = b"detail=semantic:"
MISS = b"fwd=miss; stored"
SETTLE = 0.5
"""Seconds between a window with questions and one without."""


class Asks(Job):
    """Ask the questions one after the other, on one connection."""

    texts: list[str]


class Gaps(Job):
    """Open streams, one every `spacing` seconds. Look at the gaps between their events for `window` seconds,
    and then for as long while `clients` ask new questions, each as soon as it has its answer; and so on,
    `rounds` times."""

    requests: list[bytes]
    """One for each stream."""
    texts: list[str]
    """None is asked twice."""
    spacing: float
    window: float
    rounds: int
    clients: int


AnyJob = Asks | Gaps


class Asked(msgspec.Struct, kw_only=True):
    """What became of questions. Times are seconds."""

    result: Result
    hits: int = 0
    """Answered with what was said to the same question in other words."""
    took: list[float] = []
    """To the last byte of each of these."""


class Gapped(msgspec.Struct, kw_only=True):
    """Gaps between events, in seconds: 50th and 99th percentiles, and the longest; for each round."""

    quiet: list[list[float]] = []
    loaded: list[list[float]] = []
    result: list[Result] = []
    """Of the questions."""
    new: list[int] = []
    """How many of them went upstream, to be stored."""


async def asks(job: Asks) -> Asked:
    hits, took = 0, []
    requests = [asking(text) for text in job.texts]
    async with dropped([await parsed(job.port)]) as [client]:
        watch = Watch(job)
        for request in requests:
            begun = time.perf_counter()
            await client.fetch(request)
            if client.status != 200:
                raise LoadError(f"unexpected answer: {client!r}")
            if SEMANTIC not in client.fields.get(b"cache-status", b""):
                continue
            hits += 1
            took.append(client.ended - begun)
        result = watch.result(len(requests))
    return Asked(result=result, hits=hits, took=took)


class Spaced(Stream):
    """Also says how far its events are apart."""

    def __init__(self, tally: Tally) -> None:
        super().__init__(tally)
        self.gaps: list[float] = []
        self._last = 0.0

    def data_received(self, data: bytes) -> None:
        now, before = time.perf_counter(), self.events
        super().data_received(data)
        if events := self.events - before:
            if self._last:
                self.gaps += [now - self._last, *[0.0] * (events - 1)]
            self._last = now


async def gaps(job: Gaps) -> Gapped:
    loop = asyncio.get_running_loop()
    tally, found = Tally(), Gapped()
    texts = iter(job.texts)
    streams: list[Spaced] = []
    async with dropped(streams):
        with Pace(job.spacing) as pace:
            for request in job.requests:
                await pace.tick()
                _, stream = await loop.create_connection(lambda: Spaced(tally), HOST, job.port)
                streams.append(stream)
                stream.send(request)
            while not all(stream.events for stream in streams):
                check(streams)
                await pace.tick()
        await asyncio.sleep(SETTLE)
        for _ in range(job.rounds):
            found.quiet.append(await window(job, streams))
            async with dropped([await parsed(job.port) for _ in range(job.clients)]) as clients:
                said: list[bytes] = []
                tasks = [loop.create_task(keep_asking(client, texts, said)) for client in clients]
                await asyncio.sleep(SETTLE)
                watch, before = Watch(job), len(said)
                found.loaded.append(await window(job, streams))
                found.result.append(watch.result(len(said) - before))
                found.new.append(sum(MISS in each for each in said[before:]))
                for task in tasks:
                    task.cancel()
                for error in await asyncio.gather(*tasks, return_exceptions=True):
                    if isinstance(error, LoadError):
                        raise error
            await asyncio.sleep(SETTLE)
        check(streams)
    return found


async def window(job: Gaps, streams: list[Spaced]) -> list[float]:
    for stream in streams:
        stream.gaps.clear()
    await asyncio.sleep(job.window)
    every = sorted(gap for stream in streams for gap in stream.gaps)
    return [every[len(every) // 2], every[len(every) * 99 // 100], every[-1]]


async def keep_asking(client: Parsed, texts: Iterator[str], said: list[bytes]) -> None:
    """`said` takes each `Cache-Status`."""
    while (text := next(texts, None)) is not None:
        await client.fetch(asking(text))
        if client.status != 200:
            raise LoadError(f"unexpected answer: {client!r}")
        said.append(client.fields.get(b"cache-status", b""))
    raise LoadError("there were not enough questions")


async def run(job: AnyJob) -> Asked | Gapped:
    async with asyncio.timeout(LONGEST):
        return await (asks(job) if isinstance(job, Asks) else gaps(job))


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=AnyJob)
    try:
        result = uvloop.run(run(job))
    except (LoadError, TimeoutError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.stdout.buffer.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
