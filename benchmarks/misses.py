"""The load generator's job with streams that are all different, from their beginnings to their ends."""

import asyncio
import time

from benchmarks.jobs import Misses, Result, Watch, numbered
from benchmarks.timer import Pace
from benchmarks.wire import HOST, LoadError, Stream, Tally, dropped


class Timed(Stream):
    """Also says how long it took, from its first event to its last byte."""

    def __init__(self, tally: Tally) -> None:
        super().__init__(tally)
        self.began = 0.0
        self.ended = 0.0

    def data_received(self, data: bytes) -> None:
        now, waiting = time.perf_counter(), not self.events
        super().data_received(data)
        if waiting and self.events:
            self.began = now
        if not self.busy:
            self.ended = now


async def misses(job: Misses) -> Result:
    loop = asyncio.get_running_loop()
    tally = Tally()
    streams: list[Stream] = []
    made: list[Timed] = []
    async with dropped(streams):
        for _ in range(job.streams):
            _, stream = await loop.create_connection(lambda: Timed(tally), HOST, job.port)
            streams.append(stream)
            made.append(stream)
        watch = Watch(job)
        with Pace(job.spacing) as pace:
            for number, stream in enumerate(made, job.number):
                await pace.tick()
                stream.send(numbered(job.request, number))
            while any(stream.busy for stream in made):
                await pace.tick()
        await asyncio.sleep(job.settle)
        result = watch.result(job.streams)
        for stream in made:
            if stream.broken:
                raise LoadError(stream.broken)
            said = b"" if job.status is None else b"\r\nCache-Status: slipstream; %b\r\n" % job.status
            if said not in stream.head:
                raise LoadError(f"expected {job.status!r}: {stream.head[:600]!r}")
    result.lasted = [stream.ended - stream.began for stream in made]
    return result
