"""The measurements beside others, in rounds: nginx, sidecar, bare pass-through, and again, so that a noisy
machine is noisy for all of them."""

import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec

from benchmarks.asks import WHOLE, streamed
from benchmarks.jobs import Events, FirstEvents, Job, Open, Requests, Result
from benchmarks.load import LONGEST
from benchmarks.peers import PROXIES, ROOT, Peer, sidecar
from benchmarks.procs import KB

Values = dict[str, list[float]]
"""Per peer, one figure per round."""

STREAMS = 200
PER_SECOND = 50
EVENTS = STREAMS * PER_SECOND
OTHERS = "processes of others"
TICKS = 0.1
"""Seconds that are long beside the ticks in which the system counts what is used by others."""


class Size(NamedTuple):
    """How much is measured."""

    rounds: int = 3
    """Of the measurements at a steady pace; of the other, short ones, twice as many."""
    requests: int = 4000
    window: float = 4.0
    """Seconds at a steady pace."""
    stream: float = 2.0
    """Seconds a stream takes whose first event is timed."""
    open: int = 1000
    starts: int = 7
    glance: float = 1.2
    """Seconds of one of several windows that are compared with each other."""
    kept: int = 1000
    resumes: int = 400
    misses: int = 64
    """Streams whose answers are stored, or not."""
    entries: tuple[int, ...] = (100, 10_000, 1_000_000)
    """Of the stores in which something is looked up."""


FULL = Size()
QUICK = Size(
    rounds=1,
    requests=1500,
    window=1.2,
    stream=1.0,
    open=300,
    starts=3,
    glance=0.5,
    kept=100,
    resumes=100,
    misses=32,
    entries=(100, 10_000, 100_000),
)


class LoadFailedError(Exception):
    """The load generator could not do its job."""


class Bench:
    """Runs jobs against the processes of one run, and remembers how busy the helpers were."""

    def __init__(self, folder: Path, provider: Peer, size: Size, note: Callable[[str], None]) -> None:
        """`note` is told what is being done."""
        self.size = size
        self.busiest: dict[str, float] = defaultdict(float)
        """Share of a core that each took at most: helpers at a steady pace, everyone else at any time."""
        self.folder = folder
        self.provider = provider
        self.note = note
        self.proxies: dict[str, Peer] = {}
        self._running = ExitStack()

    def __enter__(self) -> Self:
        with self._running:
            for name, make in PROXIES.items():
                self.proxies[name] = self._running.enter_context(make(self.folder, self.provider.port))
            self._running = self._running.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    def cpu_per_request(self) -> Values:
        """Microseconds."""

        def one(peer: Peer) -> float:
            found = self.load(peer, Requests, request=WHOLE, count=self.size.requests, concurrent=32)
            return found.cpu[0] / found.done * 1e6

        for peer in self.proxies.values():
            one(peer)  # first connections, first calls of everything
        return self._rounds("CPU per request", self.size.rounds * 2, one)

    def cpu_per_event(self) -> Values:
        """Microseconds; only between the streams' first events and their ends."""
        size = self.size
        # Not a multiple of the interval, or all streams would have their events at the same moments.
        spacing = 0.0051
        lasts = STREAMS * spacing + size.window + 10
        request = streamed(events=round(lasts * PER_SECOND), interval=1 / PER_SECOND)

        def one(peer: Peer) -> float:
            found = self.load(
                peer, Events, request=request, streams=STREAMS, spacing=spacing, window=size.window
            )
            if not 0.9 < found.done / found.seconds / EVENTS < 1.1:
                raise LoadFailedError(f"{found.done / found.seconds:.0f} events/s instead of {EVENTS}")
            self.watch(found)
            return found.cpu[0] / found.done * 1e6

        return self._rounds("CPU per event", size.rounds, one)

    def added_ttft(self) -> tuple[Values, Values]:
        """Milliseconds more than without a proxy: of the medians, and of the 99th percentiles."""
        size = self.size
        request = streamed(events=round(size.stream * PER_SECOND), interval=1 / PER_SECOND)
        # A little more than what keeps 200 streams open, so that their phases differ.
        spacing = size.stream / STREAMS * 1.01
        middle: Values = defaultdict(list)
        tail: Values = defaultdict(list)
        for number in range(size.rounds):
            self.note(f"time to first event, round {number + 1} of {size.rounds}")
            found = {}
            for peer in (self.provider, *self._turn(number)):
                result = self.load(
                    peer, FirstEvents, request=request, spacing=spacing, ramp=size.stream, window=size.window
                )
                self.watch(result)
                found[peer.name] = percentiles(result.first)
            direct = found.pop("provider")
            for name, (half, late) in found.items():
                middle[name].append((half - direct[0]) * 1e3)
                tail[name].append((late - direct[1]) * 1e3)
            middle["direct"].append(direct[0] * 1e3)
            tail["direct"].append(direct[1] * 1e3)
        return middle, tail

    def memory_per_stream(self) -> Values:
        """KB, with a few events on each stream; fresh processes, because a used one has memory to reuse."""
        size = self.size
        request = streamed(events=120, interval=1.0)

        def one(used: Peer) -> float:
            with PROXIES[used.name](self.folder, self.provider.port) as peer:
                self.load(peer, Requests, request=WHOLE, count=64, concurrent=1)
                self.load(peer, Open, request=request, streams=4, spacing=0.001, settle=0.0)
                found = self.load(peer, Open, request=request, streams=size.open, spacing=0.001, settle=1.5)
            return found.memory / found.done / KB

        return self._rounds("memory per open stream", 1, one)

    def start_up(self) -> Values:
        """Seconds from the command to the first 200."""
        self.note("start-up")
        times = []
        for _ in range(self.size.starts):
            with sidecar(self.folder, self.provider.port) as started:
                times.append(started.started_in)
        return {"sidecar": times}

    def _rounds(self, what: str, rounds: int, one: Callable[[Peer], float]) -> Values:
        values: Values = defaultdict(list)
        for number in range(rounds):
            self.note(f"{what}, round {number + 1} of {rounds}")
            for peer in self._turn(number):
                values[peer.name].append(one(peer))
        return values

    def _turn(self, number: int) -> Iterable[Peer]:
        """All proxies, every second time backwards."""
        peers = list(self.proxies.values())
        return reversed(peers) if number % 2 else peers

    def watch(self, result: Result) -> None:
        for name, used in zip(("proxy", "provider", "load generator"), result.cpu, strict=True):
            self.busiest[name] = max(self.busiest[name], used / result.seconds)

    def load(self, peer: Peer, kind: type[Job], **given: Any) -> Result:
        job = kind(port=peer.port, watched=[peer.pids, self.provider.pids], **given)
        ran = subprocess.run(
            [sys.executable, "-m", "benchmarks.load"],
            cwd=ROOT,
            input=msgspec.json.encode(job),
            capture_output=True,
            timeout=LONGEST * 2,
            check=False,
        )
        if ran.returncode:
            said = ran.stderr.decode(errors="replace")[-2000:]
            raise LoadFailedError(f"{kind.__name__} on {peer.name}: {said}")
        result = msgspec.json.decode(ran.stdout, type=Result)
        if result.seconds > TICKS:
            self.busiest[OTHERS] = max(self.busiest[OTHERS], result.others / result.seconds)
        return result


def percentiles(sample: list[float]) -> tuple[float, float]:
    """The 50th and the 99th."""
    found = statistics.quantiles(sample, n=100, method="inclusive")
    return found[49], found[98]
