"""`python -m benchmarks.workers`: how throughput grows from one worker process to two."""

import argparse
import http.client
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import orjson

from benchmarks.__main__ import BUSY, QUIET
from benchmarks.load import LONGEST
from benchmarks.measure import LoadFailedError
from benchmarks.peers import HOST, PATIENCE, POLL, ROOT, Peer, PeerError, free_port, sidecar
from benchmarks.procs import family
from benchmarks.report import aligned, machine
from benchmarks.wire import LAST_CHUNK
from benchmarks.workers_load import Dealt, Shares, Side
from benchmarks.workers_provider import EVENTS, PATH, WHOLE, body

COUNTS = (1, 2)
"""Workers of the sidecars that are compared."""
TARGET = 1.7
CONNECTIONS = 256
"""The kernel deals them out by a hash of the addresses: of few, one worker may get most."""
RAMP = 0.15
"""Seconds of load before it counts."""
WINDOW = 0.4
"""Seconds that count, of one turn of one of the sidecars."""
FEWEST = 2
"""Rounds that there have to be."""
MORE = COUNTS[1]
HOW = f"""\
Accounted for: requests per CPU second of the worker that used most, with {MORE} workers, divided by the same
with one. It is what the workers could serve if each had a core for itself. Here they share the cores with
provider and load generator; alone on them, these processes could serve what stands below that."""


class Size(NamedTuple):
    """How much is measured."""

    rounds: int = 8
    """Each with new connections, dealt out anew."""
    turns: int = 4
    """Of each sidecar, in a round."""
    limit: float = 45.0
    """Seconds for each kind, after which no further round is begun, once there were two."""


FULL = Size()
QUICK = Size(rounds=2, turns=2, limit=8.0)


class Kind(NamedTuple):
    """What is asked for."""

    name: str
    cache: str
    stream: bool
    expected: bytes = b""
    """What has to be in the head of each answer."""


KINDS = {
    "request": Kind("small request, proxied", "off", stream=False),
    "stream": Kind(f"stream of {EVENTS} events at once", "off", stream=True),
    "hit": Kind("hit from memory", "exact", stream=False, expected=b"\r\nCache-Status: slipstream; hit; "),
}


class Sidecar(NamedTuple):
    """A running one."""

    port: int
    workers: list[list[int]]
    """The process of each."""
    supervisor: list[int]
    """None, where the one worker needs none."""


class Found(NamedTuple):
    """What one round with so many workers came to."""

    seen: float
    """Requests per second."""
    capacity: float
    """Requests per CPU second of the worker that used most."""
    alone: float
    """Requests per second that there could be on these cores if nobody else were on them."""
    cpu: dict[str, float]
    """Microseconds per request of all processes of a kind."""
    share: dict[str, float]
    """Of a core; of workers, that of the one that used most."""
    busy: float
    """Cores that were at work, for others than the run as well."""
    connections: float
    requests: float
    """Of all, the share of the worker that had most."""


WHO = WORKERS, SUPERVISOR, PROVIDER, GENERATOR = "workers", "supervisor", "provider", "load generator"
OTHERS = "processes of others"


def found(shares: Shares) -> Found:
    total, count = shares.total, len(shares.requests)
    workers, (supervisor, provider, generator) = total.cpu[:count], total.cpu[count:]
    helpers = {SUPERVISOR: supervisor, PROVIDER: provider, GENERATOR: generator}
    every = {WORKERS: sum(workers), **helpers}
    most = {WORKERS: max(workers), **helpers, OTHERS: total.others}
    capacity = total.done / max(workers)
    return Found(
        seen=total.done / total.seconds,
        capacity=capacity,
        alone=min(capacity, total.done * (os.cpu_count() or 1) / sum(total.cpu)),
        cpu={name: used / total.done * 1e6 for name, used in every.items()},
        share={name: used / total.seconds for name, used in most.items()},
        busy=(sum(total.cpu) + total.others) / total.seconds,
        connections=max(shares.connections) / sum(shares.connections),
        requests=max(shares.requests) / total.done,
    )


Rounds = dict[int, list[Found]]
"""By the number of workers."""


def request(kind: Kind) -> bytes:
    sent = body(stream=kind.stream)
    lines = [
        b"POST %b HTTP/1.1" % PATH.encode(),
        b"Host: sidecar.example",
        b"Accept: application/json",
        b"Content-Type: application/json",
        b"Authorization: Bearer sk-benchmark-000000000000000000000000000000000000",
        b"Content-Length: %d" % len(sent),
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + sent


class Workers:
    """Runs the load generator against the sidecars of one run."""

    def __init__(self, folder: Path, provider: Peer, size: Size, note: Callable[[str], None]) -> None:
        """`note` is told what is being done."""
        self._folder = folder
        self._provider = provider
        self._size = size
        self._note = note

    def measure(self, kinds: list[str]) -> dict[str, Rounds]:
        """In rounds, in which the sidecars take turns."""
        made: dict[str, Rounds] = {name: defaultdict(list) for name in kinds}
        for name in kinds:
            kind = KINDS[name]
            # New processes: what streams leave behind makes what comes after them dearer.
            with self._sidecar(kind.cache, COUNTS[0]) as one, self._sidecar(kind.cache, COUNTS[1]) as more:
                running = dict(zip(COUNTS, (one, more), strict=True))
                self._note(f"{kind.name}, warming up")
                # Hits come of answers that are stored first, by each worker in its memory.
                self._load(running, kind._replace(expected=b""), 1)
                until = time.perf_counter() + self._size.limit
                for number in range(self._size.rounds):
                    if number >= FEWEST and time.perf_counter() > until:
                        self._note("the machine is slow: no further rounds")
                        break
                    self._note(f"{kind.name}, round {number + 1} of {self._size.rounds}")
                    for count, shares in self._load(running, kind, self._size.turns).items():
                        made[name][count].append(found(shares))
        return made

    @contextmanager
    def _sidecar(self, cache: str, count: int) -> Iterator[Sidecar]:
        """One all of whose workers serve."""
        admin = free_port()
        options = ("--cache", cache, "--workers", str(count), "--admin-port", str(admin))
        with sidecar(self._folder, self._provider.port, *options) as peer:
            until = time.perf_counter() + PATIENCE
            while not _ready(admin):
                if time.perf_counter() > until:
                    raise PeerError(f"not all of {count} workers serve")
                time.sleep(POLL)
            first, *rest = family(peer.pids[0])
            if len(rest) != (count if count > 1 else 0):
                raise PeerError(f"{len(rest)} processes below the one that was started, for {count} workers")
            yield Sidecar(peer.port, [[pid] for pid in rest or [first]], [first] if rest else [])

    def _load(self, running: dict[int, Sidecar], kind: Kind, turns: int) -> dict[int, Shares]:
        job = Dealt(
            sides=[
                Side(
                    port=on.port,
                    watched=[*on.workers, on.supervisor, self._provider.pids],
                    workers=len(on.workers),
                )
                for on in running.values()
            ],
            request=request(kind),
            expected=kind.expected,
            end=LAST_CHUNK if kind.stream else WHOLE[-32:],
            events=EVENTS if kind.stream else 0,
            connections=CONNECTIONS,
            turns=turns,
            ramp=RAMP,
            window=WINDOW,
        )
        ran = subprocess.run(
            [sys.executable, "-m", "benchmarks.workers_load"],
            cwd=ROOT,
            input=msgspec.json.encode(job),
            capture_output=True,
            timeout=LONGEST * 2,
            check=False,
        )
        if ran.returncode:
            raise LoadFailedError(f"{kind.name}: {ran.stderr.decode(errors='replace')[-2000:]}")
        shares = msgspec.json.decode(ran.stdout, type=list[Shares])
        return dict(zip(running, shares, strict=True))


def _ready(admin: int) -> bool:
    connection = http.client.HTTPConnection(HOST, admin, timeout=PATIENCE)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def provider(folder: Path) -> Peer:
    port = free_port()
    return Peer("provider", [sys.executable, "-m", "benchmarks.workers_provider", str(port)], port, folder)


def growth(rounds: Rounds, what: Callable[[Found], float]) -> float:
    """The median of the rounds' ratios: the noise of a moment is in both."""
    one, more = (rounds[count] for count in COUNTS)
    return statistics.median([what(after) / what(before) for before, after in zip(one, more, strict=True)])


def table(name: str, rounds: Rounds) -> list[list[str]]:
    """Lines of one kind."""

    def line(label: str, what: Callable[[Found], float], form: str, *more: str) -> list[str]:
        middle = [statistics.median(map(what, rounds[count])) for count in COUNTS]
        return [f"  {label}", *(format(value, form) for value in middle), *more, *[""] * (3 - len(more))]

    def cpu(of: str) -> Callable[[Found], float]:
        return lambda one: one.cpu[of]

    def share(of: str) -> Callable[[Found], float]:
        return lambda one: one.share[of]

    seen, capacity, alone = (
        growth(rounds, what)
        for what in (lambda one: one.seen, lambda one: one.capacity, lambda one: one.alone)
    )
    verdict = "ok" if capacity >= TARGET else "MISSED"
    return [
        [KINDS[name].name, *[""] * 5],
        line("requests/s, as seen", lambda one: one.seen, ",.0f", f"{seen:.2f}x"),
        line(
            "requests/s, accounted for",
            lambda one: one.capacity,
            ",.0f",
            f"{capacity:.2f}x",
            f">= {TARGET:g}x",
            verdict,
        ),
        line("requests/s, alone on these cores", lambda one: one.alone, ",.0f", f"{alone:.2f}x"),
        *[line(f"CPU per request, {of}, us", cpu(of), ".1f") for of in WHO],
        line("share of a core, busiest worker", share(WORKERS), ".0%"),
        *[line(f"share of a core, {of}", share(of), ".0%") for of in (PROVIDER, GENERATOR, OTHERS)],
        line("cores at work", lambda one: one.busy, ".2f"),
        line("connections of the worker with most", lambda one: one.connections, ".0%"),
        line("requests of the worker with most", lambda one: one.requests, ".0%"),
    ]


def report(made: dict[str, Rounds]) -> None:
    where = machine()
    print(f"{where['cores']} cores, Python {where['python']}, {where['system']}, {where['date']}\n")
    lines = [["", *(f"{count} worker{'s' if count > 1 else ''}" for count in COUNTS), "growth", "target", ""]]
    for name, rounds in made.items():
        lines += table(name, rounds)
    print(aligned(lines, "<>>><<"), end="\n\n")
    print(HOW)
    every = [one for rounds in made.values() for each in rounds.values() for one in each]
    for helper in (GENERATOR, PROVIDER):
        highest = max(one.share[helper] for one in every)
        limit = "and held the workers up: what was seen is its limit" if highest > BUSY else "no limit"
        print(f"The {helper} took {highest:.0%} of a core at most: {limit}.")
    others = max(one.share[OTHERS] for one in every)
    if others > QUIET:
        print(f"The machine had other work, {others:.0%} of a core at most: what was seen is less for it.")
    if any(growth(rounds, lambda one: one.capacity) > MORE for rounds in made.values()):
        print(f"Growth above {MORE} is no capacity: a request took more of the one worker than of {MORE}.")


def as_json(made: dict[str, Rounds]) -> dict[str, object]:
    return {
        "machine": machine(),
        "connections": CONNECTIONS,
        "kinds": [
            {
                "name": KINDS[name].name,
                "rounds": {str(count): [one._asdict() for one in rounds[count]] for count in COUNTS},
                "growth_seen": growth(rounds, lambda one: one.seen),
                "growth_accounted_for": growth(rounds, lambda one: one.capacity),
                "target": f">= {TARGET:g}",
                "met": growth(rounds, lambda one: one.capacity) >= TARGET,
            }
            for name, rounds in made.items()
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="half a minute, not two; less certain")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures there")
    parser.add_argument("--only", choices=KINDS, action="append", help="measure only this; may be repeated")
    given = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("the benchmark reads CPU time, and deals out connections, as only Linux does")
    # Whoever ends it, the processes that it has started end, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    begun = time.perf_counter()

    def note(what: str) -> None:
        print(f"{time.perf_counter() - begun:6.1f} s  {what}", file=sys.stderr, flush=True)

    kinds = [name for name in KINDS if name in (given.only or KINDS)]
    try:
        with (
            tempfile.TemporaryDirectory(prefix="slipstream-") as made,
            provider(Path(made)) as upstream,
        ):
            run = Workers(Path(made), upstream, QUICK if given.quick else FULL, note)
            measured = run.measure(kinds)
    except (LoadFailedError, PeerError) as error:
        sys.exit(f"could not measure: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
    report(measured)
    if given.json:
        given.json.write_bytes(orjson.dumps(as_json(measured), option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main()
