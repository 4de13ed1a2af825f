"""The measurements of stored answers beside nginx, which asks the provider each time, and of what storing
costs. Each of them fails unless every answer came from where it should, and the provider was called as often
as it should have been."""

import http.client
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.asks import ANOTHER, REFERRED, TRACED, WHOLE, streamed
from benchmarks.jobs import NUMBER, Misses, Requests, Result
from benchmarks.measure import Bench, LoadFailedError, Values, percentiles
from benchmarks.peers import HOST, Peer, sidecar
from benchmarks.provider import CALLS
from sidecar.config import Config
from sidecar.core.entry import is_pointer
from sidecar.stores.disk import DiskStore

HIT = r"\r\nCache-Status: slipstream; hit; "
FROM_DISK = HIT + r"[^\0]*lookup;dur=(?!0\.000)"
"""What takes no time was found in memory."""
WARM_UP = 320
CONNECTIONS = 32
EVENTS = 300
INTERVAL = 0.01
SPACING = 0.0171
"""Seconds between starts; not a multiple of the interval, so that their phases differ."""
SETTLE = 0.5
"""Seconds in which a store gets done."""
PATIENCE = 30.0


class Storing(NamedTuple):
    """Streamed misses, with storing and without."""

    cpu: Values
    """Microseconds for each."""
    lasted: Values
    """Milliseconds from the first event to the last byte, in the middle."""
    more: Values
    """By how much storing makes that longer."""


WAYS = {"in the same bytes": WHOLE, "with another trace": TRACED, "in another head": REFERRED}
"""How a request comes again."""


def hits(bench: Bench) -> list[Values]:
    """Microseconds of CPU per hit from memory, in each of the ways."""
    found: list[Values] = [defaultdict(list) for _ in WAYS]
    with _filled(bench) as peer:
        for number in range(bench.size.rounds * 2):
            bench.note(f"hits from memory, round {number + 1} of {bench.size.rounds * 2}")
            for values, request in zip(found, WAYS.values(), strict=True):
                for one in _turn(bench, peer, number):
                    got = _whole(bench, one, request, bench.size.requests)
                    values[one.name].append(got.cpu[0] / got.done * 1e6)
    return found


def first_bytes(bench: Bench) -> list[tuple[Values, Values]]:
    """Milliseconds from a request to the first byte of a hit, the 50th and the 99th percentile, in each of
    the ways."""
    found: list[tuple[Values, Values]] = [(defaultdict(list), defaultdict(list)) for _ in WAYS]
    with _filled(bench) as peer:
        for number in range(bench.size.rounds * 2):
            bench.note(f"first byte of hits, round {number + 1} of {bench.size.rounds * 2}")
            for (middle, tail), request in zip(found, WAYS.values(), strict=True):
                got = percentiles(_whole(bench, peer, request, bench.size.requests).first)
                middle["sidecar"].append(got[0] * 1e3)
                tail["sidecar"].append(got[1] * 1e3)
    return found


def disk_hits(bench: Bench) -> Values:
    """Microseconds of CPU per hit from disk, each of another answer."""
    rounds, count = bench.size.rounds * 2, bench.size.requests // 4
    total = WARM_UP + rounds * count
    bench.note(f"storing {total} answers")
    data = bench.folder / "answers-on-disk"
    with sidecar(bench.folder, bench.provider.port, "--cache", "exact", data=data) as peer:
        _whole(bench, peer, ANOTHER, total, calls=total, expected="fwd=miss; stored")
        _stored(data, total)
    settings = bench.folder / "no-memory.toml"
    settings.write_text("[cache]\nmemory = 0\n")
    options = ("--cache", "exact", "--config", str(settings))
    values: Values = defaultdict(list)
    # A new process: the one that stored them also remembers what the requests' keys are.
    with sidecar(bench.folder, bench.provider.port, *options, data=data) as peer:
        for one in (bench.proxies["nginx"], peer):
            _whole(bench, one, ANOTHER, WARM_UP, expected=FROM_DISK)
        for number in range(rounds):
            bench.note(f"hits from disk, round {number + 1} of {rounds}")
            for one in _turn(bench, peer, number):
                start = 1 + WARM_UP + number * count
                got = _whole(bench, one, ANOTHER, count, number=start, expected=FROM_DISK)
                values[one.name].append(got.cpu[0] / got.done * 1e6)
    return values


def storing(bench: Bench) -> Storing:
    """Streamed misses where answers are stored, beside a time to live of 0."""
    size = bench.size
    made = Storing(defaultdict(list), defaultdict(list), defaultdict(list))
    settings = bench.folder / "nothing-stored.toml"
    settings.write_text("[cache]\nttl = 0\n")
    data = bench.folder / "answers-of-streams"
    request = streamed(events=EVENTS - 4, interval=INTERVAL, user=NUMBER.decode())
    with (
        sidecar(bench.folder, bench.provider.port, "--cache", "exact", data=data) as stores,
        sidecar(bench.folder, bench.provider.port, "--cache", "exact", "--config", str(settings)) as without,
    ):
        ways = {"sidecar": (stores, b"fwd=miss; stored"), "without": (without, b"fwd=miss")}
        for number in range(-1, size.rounds):
            if number >= 0:
                bench.note(f"misses with and without storing, round {number + 1} of {size.rounds}")
            streams = size.misses if number >= 0 else 4
            middle = {}
            for name in reversed(ways) if number % 2 else ways:
                peer, status = ways[name]
                with calls_made(bench, streams):
                    got = bench.load(
                        peer,
                        Misses,
                        request=request,
                        streams=streams,
                        number=1 + (number + 1) * 1000,
                        status=status,
                        spacing=SPACING,
                        settle=SETTLE,
                    )
                if number < 0:
                    continue  # first connections, first calls of everything
                bench.watch(got)
                middle[name] = statistics.median(got.lasted) * 1e3
                made.cpu[name].append(got.cpu[0] / got.done * 1e6)
                made.lasted[name].append(middle[name])
            if middle:
                made.more["sidecar"].append(middle["sidecar"] - middle["without"])
        _stored(data, size.rounds * size.misses + 4)
    return made


@contextmanager
def _filled(bench: Bench) -> Iterator[Peer]:
    """A sidecar that has the one answer, and is warm; as is nginx."""
    with sidecar(bench.folder, bench.provider.port, "--cache", "exact") as peer:
        with calls_made(bench, 1):
            bench.load(peer, Requests, request=WHOLE, count=1, concurrent=1, expected="fwd=miss; stored")
        for request in WAYS.values():
            for one in (bench.proxies["nginx"], peer):
                _whole(bench, one, request, WARM_UP)
        yield peer


def _whole(
    bench: Bench,
    peer: Peer,
    request: bytes,
    count: int,
    *,
    number: int = 1,
    expected: str = HIT,
    calls: int = 0,
) -> Result:
    """Requests to nginx, which calls the provider for each, or to the sidecar, which may do so `calls` times
    and says what is `expected`."""
    proxy = peer is bench.proxies["nginx"]
    with calls_made(bench, count if proxy else calls):
        return bench.load(
            peer,
            Requests,
            request=request,
            count=count,
            concurrent=CONNECTIONS,
            number=number,
            expected="" if proxy else expected,
            timed=True,
        )


def _turn(bench: Bench, peer: Peer, number: int) -> tuple[Peer, Peer]:
    nginx = bench.proxies["nginx"]
    return (peer, nginx) if number % 2 else (nginx, peer)


@contextmanager
def calls_made(bench: Bench, expected: int) -> Iterator[None]:
    """Raises LoadFailedError unless the provider is called that often."""
    before = calls_of(bench.provider)
    yield
    found = calls_of(bench.provider) - before
    if found != expected:
        raise LoadFailedError(f"the provider was called {found} times instead of {expected}")


def calls_of(provider: Peer) -> int:
    """How often it has been called so far."""
    connection = http.client.HTTPConnection(HOST, provider.port)
    connection.request("GET", CALLS)
    called = int(connection.getresponse().read())
    connection.close()
    return called


def _stored(data: Path, expected: int) -> None:
    """Wait until so many answers are on disk. Raises LoadFailedError."""
    until = time.monotonic() + PATIENCE
    with closing(DiskStore.open(data / "answers", int(Config().cache.size))) as store:
        while (found := sum(not is_pointer(row.start) for row in store.rows(8))) < expected:
            if time.monotonic() > until:
                raise LoadFailedError(f"{found} of {expected} answers were stored")
            time.sleep(0.1)
