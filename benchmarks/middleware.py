"""`python -m benchmarks.middleware`: what the middleware costs an app, beside the app without it."""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import orjson

from benchmarks.__main__ import report_helpers
from benchmarks.jobs import NUMBER, Job, Requests, Result
from benchmarks.load import LONGEST
from benchmarks.measure import OTHERS, TICKS, LoadFailedError, Values
from benchmarks.middleware_load import Paced, Streams
from benchmarks.peers import HOST, ROOT, Peer, PeerError, free_port, provider
from benchmarks.report import Row, as_json, machine, own_table

PARTS = ("request", "event", "hit")
BARE = "bare app"
OWN = "own answer"
CONNECTIONS = 32
MISS = r"\r\ncache-status: slipstream; fwd=miss; stored\r\n"
HIT = r"\r\ncache-status: slipstream; hit; ttl=\d+; detail=exact\r\n"
IDS = MISS + r"[^\0]*\nid: "
FAST = 16
"""Streams at a time whose events come as fast as they go."""
LONG = 1500
"""Events of each of those: so many that what a request costs is nothing beside them."""
PACED = 100
GAP = 0.010
SPACING = 0.0031
"""Seconds between starts; see `Bench.cpu_per_event`."""
SETTLE = 0.4
"""Seconds in which what was left behind gets done: apps are cancelled, answers are stored."""
WARM_UP = 320

REQUEST_LIMIT = 60
EVENT_LIMIT = 12
HIT_LIMIT = 0.33
"""Of what the app's own answer costs."""


class Size(NamedTuple):
    """How much is measured."""

    rounds: int = 5
    requests: int = 1600
    streams: int = 16
    """Of those that are as fast as they go."""
    window: float = 1.0
    answers: int = 48
    hits: int = 800


FULL = Size()
QUICK = Size(rounds=3, requests=1200, streams=16, window=0.7, answers=32, hits=500)


def post(path: str, body: dict[str, object], *, accept: bytes = b"*/*") -> bytes:
    """A request as a browser's `fetch` sends it to an app, more or less."""
    sent = orjson.dumps(body)
    lines = [
        b"POST %b HTTP/1.1" % path.encode(),
        b"Host: app.example",
        b"Accept: " + accept,
        b"Accept-Language: en",
        b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        b"Content-Type: application/json",
        b"Origin: https://app.example",
        # Else what clients with ids have left would go on for a while, and keep the next ones company.
        b"Slipstream-Disconnect: cancel",
        b"Cookie: session=0123456789abcdef0123456789abcdef",
        b"Content-Length: %d" % len(sent),
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + sent


def small(session: str) -> bytes:
    message = "My parcel has not come. It says delivered, but nobody has seen it."
    return post("/json", {"session": session, "message": message, "language": "en", "top_k": 5})


def streamed(events: int, gap: float, *, accept: bytes = b"*/*") -> bytes:
    return post("/events", {"session": NUMBER.decode(), "events": events, "gap": gap}, accept=accept)


def chat(message: str) -> bytes:
    return post("/chat", {"message": f"{message}: what becomes of a connection that is cut?"})


class Middleware:
    """Runs jobs against the apps of one run, and remembers how busy the helpers were."""

    def __init__(
        self, apps: dict[str, Peer], provider: Peer, size: Size, note: Callable[[str], None]
    ) -> None:
        self.apps = apps
        self.size = size
        self.busiest: dict[str, float] = defaultdict(float)
        self._provider = provider
        self._note = note
        self._numbers = count(1, 100_000)
        """No two jobs ask for the same, unless they are meant to."""

    def requests(self) -> list[Row]:
        size = self.size

        def one(app: str, request: bytes, expected: str, times: int) -> float:
            found = self._load(
                app,
                Requests,
                request=request,
                count=times,
                concurrent=min(CONNECTIONS, times),
                number=next(self._numbers),
                expected=expected,
            )
            return found.cpu[0] / found.done * 1e6

        ways = {
            BARE: ("bare", small(NUMBER.decode()), ""),
            "cache off": ("off", small(NUMBER.decode()), ""),
            "miss that is stored": ("exact", small(NUMBER.decode()), MISS),
            "hit": ("exact", small("the same each time"), HIT),
        }
        one("exact", small("the same each time"), MISS, 1)
        for way in ways.values():
            one(*way, WARM_UP)
        found = self._rounds("requests", ways, lambda way: one(*way, size.requests))
        rows = []
        for name in list(ways)[1:]:
            limit = None if name == "hit" else REQUEST_LIMIT
            rows += _beside(f"CPU per request, {name}", found[name], found[BARE], limit)
        return rows

    def events(self) -> list[Row]:
        return self._fast() + self._paced()

    def _fast(self) -> list[Row]:
        size = self.size

        def one(app: str, accept: bytes, expected: str, streams: int) -> float:
            found = self._load(
                app,
                Streams,
                request=streamed(LONG, 0, accept=accept),
                number=next(self._numbers),
                count=streams,
                concurrent=FAST,
                events=LONG,
                expected=expected,
                settle=0.1,
            )
            return found.cpu[0] / found.done * 1e6

        return self._per_event("at once", lambda *way: one(*way, size.streams))

    def _paced(self) -> list[Row]:
        size = self.size
        events = round((PACED * SPACING + size.window + 10) / GAP)

        def one(app: str, accept: bytes, expected: str) -> float:
            found = self._load(
                app,
                Paced,
                request=streamed(events, GAP, accept=accept),
                number=next(self._numbers),
                streams=PACED,
                spacing=SPACING,
                window=size.window,
                expected=expected,
            )
            time.sleep(SETTLE)
            # uvloop's timers fire on the next millisecond, and what else is done takes its time, too.
            if not 0.4 < found.done / found.seconds * GAP / PACED < 1.1:
                raise LoadFailedError(f"{found.done / found.seconds:.0f} events/s on {PACED} streams")
            self._watch(found)
            return found.cpu[0] / found.done * 1e6

        return self._per_event(f"of {PACED} streams", one)

    def _per_event(self, what: str, one: Callable[[str, bytes, str], float]) -> list[Row]:
        ways: dict[str, tuple[str, bytes, str]] = {
            BARE: ("bare", b"*/*", ""),
            "cache off": ("off", b"*/*", ""),
            "stored": ("exact", b"*/*", MISS),
            "stored, with ids": ("exact", b"text/event-stream", IDS),
        }
        for way in ways.values():
            one(*way)
        found = self._rounds(f"events {what}", ways, lambda way: one(*way))
        rows = []
        for name in list(ways)[1:]:
            rows += _beside(f"CPU per event {what}, {name}", found[name], found[BARE], EVENT_LIMIT)
        return rows

    def hits(self) -> list[Row]:
        """The same streamed answer, made by the app and out of the middleware's cache."""
        size = self.size
        once = chat("The first time")

        def one(app: str, request: bytes, expected: str, times: int) -> float:
            found = self._load(
                app,
                Streams,
                request=request,
                number=next(self._numbers),
                count=times,
                concurrent=CONNECTIONS,
                events=0,
                expected=expected,
                settle=0.1,
            )
            return found.cpu[0] / times * 1e6

        one("exact", once, MISS, 1)
        ways = {
            OWN: ("bare", chat(NUMBER.decode()), "", size.answers),
            "with": ("exact", chat(NUMBER.decode()), MISS, size.answers),
            "hit": ("exact", once, HIT, size.hits),
        }
        for app, request, expected, _ in ways.values():
            one(app, request, expected, CONNECTIONS)
        found = self._rounds("hits", ways, lambda way: one(*way))
        own, name = {OWN: found[OWN]}, "the example's answer"
        return [
            Row(f"CPU of {name} through it", "us", {"sidecar": found["with"], **own}, digits=0, base=OWN),
            Row(
                f"CPU of a hit of {name}",
                "us",
                {"sidecar": found["hit"], **own},
                HIT_LIMIT,
                relative=True,
                digits=0,
                base=OWN,
            ),
        ]

    def _rounds(
        self, what: str, ways: dict[str, tuple[Any, ...]], one: Callable[[tuple[Any, ...]], float]
    ) -> Values:
        values: Values = defaultdict(list)
        for number in range(self.size.rounds):
            self._note(f"{what}, round {number + 1} of {self.size.rounds}")
            for name in _turn(ways, number):
                values[name].append(one(ways[name]))
        return values

    def _watch(self, result: Result) -> None:
        for name, used in zip(("app", "provider", "load generator"), result.cpu, strict=True):
            self.busiest[name] = max(self.busiest[name], used / result.seconds)

    def _load(self, app: str, kind: type[Job], **given: Any) -> Result:
        peer = self.apps[app]
        job = kind(port=peer.port, watched=[peer.pids, self._provider.pids], **given)
        module = "benchmarks.load" if kind is Requests else "benchmarks.middleware_load"
        ran = subprocess.run(
            [sys.executable, "-m", module],
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


def _turn(ways: Iterable[str], number: int) -> Iterable[str]:
    """All of them, every second time backwards."""
    return reversed(list(ways)) if number % 2 else ways


def _beside(name: str, with_it: list[float], bare: list[float], limit: float | None) -> list[Row]:
    """What was measured, and the difference, round by round: the noise of a moment is in both."""
    more = [one - other for one, other in zip(with_it, bare, strict=True)]
    return [
        Row(name, "us", {"sidecar": with_it, BARE: bare}, base=BARE),
        Row("  added to it", "us", {"sidecar": more}, limit, base=""),
    ]


@contextmanager
def apps(folder: Path, upstream: Peer) -> Iterator[dict[str, Peer]]:
    """The app by itself, and with the middleware, without its cache and with it."""

    def one(name: str, *cache: str) -> Peer:
        port = free_port()
        target = f"http://{HOST}:{upstream.port}"
        command = ["-m", "benchmarks.middleware_apps", str(port), str(folder / f"data-{name}"), target]
        return Peer(name, [sys.executable, *command, *cache], port, folder, "/ready")

    with one("bare") as bare, one("off", "off") as off, one("exact", "exact") as exact:
        yield {"bare": bare, "off": off, "exact": exact}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.middleware", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute; less certain")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures there")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure only this; may be repeated")
    given = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("the benchmark reads CPU time and memory as only Linux tells them")
    begun = time.perf_counter()

    def note(what: str) -> None:
        print(f"{time.perf_counter() - begun:6.1f} s  {what}", file=sys.stderr, flush=True)

    parts = given.only or PARTS
    try:
        with (
            tempfile.TemporaryDirectory(prefix="slipstream-") as made,
            provider(Path(made)) as upstream,
            apps(Path(made), upstream) as running,
        ):
            bench = Middleware(running, upstream, QUICK if given.quick else FULL, note)
            measures = {"request": bench.requests, "event": bench.events, "hit": bench.hits}
            rows = [row for part in PARTS if part in parts for row in measures[part]()]
    except (LoadFailedError, PeerError) as error:
        sys.exit(f"could not measure: {error}")
    where = machine()
    print(f"{where['cores']} cores, Python {where['python']}, {where['system']}, {where['date']}\n")
    print(own_table(rows), end="\n\n")
    for row in rows:
        if row.relative and row.ratio:
            print(f"A hit was {1 / row.ratio:.0f} times cheaper than the app's own answer.")
    report_helpers(bench.busiest)
    if given.json:
        given.json.write_bytes(orjson.dumps(as_json(rows, bench.busiest), option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main()
