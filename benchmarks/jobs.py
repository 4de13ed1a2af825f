"""What the load generator is asked for, and what it answers: one job per process, as JSON."""

import time

import msgspec

from benchmarks.procs import busy_seconds, cpu_seconds


class Job(msgspec.Struct, tag=True, kw_only=True):
    """What all jobs have in common."""

    port: int
    watched: list[list[int]]
    """Process groups whose CPU time is read; the first one is also asked for its memory."""


class Requests(Job):
    """Whole answers, as fast as they come, on `concurrent` connections."""

    request: bytes
    """See NUMBER."""
    count: int
    concurrent: int
    number: int = 1
    """Of the first request."""
    expected: str = ""
    """A pattern that the head of each answer has to match."""
    timed: bool = False
    """Whether the seconds to each first byte are taken."""


class Events(Job):
    """Open `streams`, one every `spacing` seconds, and count events for `window` seconds."""

    request: bytes
    streams: int
    spacing: float
    window: float
    ids: bool = False
    """Whether the events must have ids; else they must have none."""


class FirstEvents(Job):
    """Start a stream every `spacing` seconds, whatever becomes of the others, for `ramp + window` seconds.

    Streams that start in the ramp only make the company the others are measured in.
    """

    request: bytes
    spacing: float
    ramp: float
    window: float


class Open(Job):
    """Open `streams`, one every `spacing` seconds, let them lie for `settle` seconds, look at memory."""

    request: bytes
    streams: int
    spacing: float
    settle: float


class Shared(Job):
    """Open a stream per request, one every `spacing` seconds, and count events for `window` seconds; then
    with a second reader of each, which has to join the first; then without; and so on, `cycles` times."""

    requests: list[bytes]
    spacing: float
    window: float
    cycles: int


class Kept(Job):
    """Open `streams`, one every `spacing` seconds; look at memory once each has brought `events` and none
    has ended, and again when they have ended, their clients are gone, and `settle` seconds are over."""

    request: bytes
    go_on: bytes
    """The request upon which the provider begins them, and the second time ends them."""
    back: bytes
    """The request of a client that comes back and has all events; see NAMED."""
    anew: bytes
    """That of one that has none."""
    streams: int
    events: int
    spacing: float
    settle: float


class Resumes(Job):
    """Let one stream run to its end, then come back to it: `count` times each way, a way after the other."""

    request: bytes
    ways: list[bytes]
    """Requests of clients that come back; see NAMED."""
    without: list[int]
    """How many of the events each way has already."""
    count: int
    pause: float
    """Seconds between them."""
    trace: str | None
    """The program of strace; None where there is none."""
    folder: str


class Misses(Job):
    """Start a stream every `spacing` seconds, let all of them come to their ends, and wait for `settle`
    seconds: what is done after a last byte is in the CPU time, too."""

    request: bytes
    """See NUMBER."""
    streams: int
    number: int
    """Of the first one."""
    status: bytes | None
    """What `Cache-Status` has to say of each; None where there is none."""
    spacing: float
    settle: float


NAMED = b"STREAM-ID"
"""Stands for the stream's id, which only the load generator gets to know."""
NUMBER = b"0-REQUEST-NUMBER"
"""Stands for a number of as many digits, which is another one in each request."""

AnyJob = Requests | Events | FirstEvents | Open | Shared | Kept | Resumes | Misses


def numbered(request: bytes, number: int) -> bytes:
    """The request with that number."""
    return request.replace(NUMBER, b"%0*d" % (len(NUMBER), number))


class Way(msgspec.Struct, kw_only=True):
    """How one way back went."""

    seconds: list[float] = []
    """From the request to the last byte."""
    cpu: list[float] = []
    """CPU seconds of the first group, from the request until the next one."""
    writes: float = 0.0
    """Write calls of the first group's first process, per time."""


class Result(msgspec.Struct, kw_only=True):
    """What a job found. `cpu`: seconds, per group of `watched`; the load generator's own comes last."""

    done: int
    """Requests, streams or events."""
    joined: int = 0
    """Events that went to second readers, beside those that are done."""
    seconds: float = 0.0
    cpu: list[float] = []
    first: list[float] = []
    """Seconds to the first event, per stream; to the first byte, per request."""
    lasted: list[float] = []
    """Seconds from the first event to the last byte, per stream."""
    others: float = 0.0
    """CPU seconds that processes used that have no part in the run."""
    memory: int = 0
    """Bytes of private memory that the first group has more than before."""
    ended: int = 0
    """The same, once the streams had ended."""
    whole: int = 0
    """Streams that can be come back to from their first event on, once they had ended."""
    body: int = 0
    """Bytes of body that had come when memory was looked at."""
    windows: list["Result"] = []
    """One reader, two readers, one reader, and so on."""
    ways: list[Way] = []
    traced: bool = False
    """Writes were counted by strace; else by the kernel, over the main thread."""


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
