"""What all the figures cost: the sidecar with metrics, budgets, an open dashboard and a scraper, beside one
without metrics."""

import contextlib
import http.client
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from benchmarks.asks import WHOLE, streamed
from benchmarks.jobs import NUMBER, Misses, Requests
from benchmarks.measure import Bench, Values
from benchmarks.peers import HOST, Peer, free_port, sidecar

EVENTS = 300
INTERVAL = 0.01
SPACING = 0.0031
SETTLE = 0.5
SCRAPE = 5.0
"""Seconds between two scrapes; Prometheus' default is 60."""


class Metered(NamedTuple):
    """Microseconds of CPU, with and without."""

    request: Values
    event: Values


def metered(bench: Bench) -> Metered:
    """Both, in turns."""
    size = bench.size
    made = Metered(defaultdict(list), defaultdict(list))
    settings = bench.folder / "no-metrics.toml"
    settings.write_text("[metrics]\nenabled = false\n")
    events = streamed(events=EVENTS - 4, interval=INTERVAL, user=NUMBER.decode())
    options = ("--cache", "off")
    with (
        _watched(bench, *options) as everything,
        sidecar(bench.folder, bench.provider.port, *options, "--config", str(settings)) as without,
    ):
        ways = {"sidecar": everything, "without": without}
        rounds = size.rounds * 4
        for number in range(-1, rounds):
            if number >= 0:
                bench.note(f"with and without metrics, round {number + 1} of {rounds}")
            for name in reversed(ways) if number % 2 else ways:
                whole = bench.load(ways[name], Requests, request=WHOLE, count=size.requests, concurrent=32)
                if number >= 0:
                    made.request[name].append(whole.cpu[0] / whole.done * 1e6)
            for name in reversed(ways) if number % 2 else ways:
                # All of their lives: what is made of the events when a stream ends is in it.
                got = bench.load(
                    ways[name],
                    Misses,
                    request=events,
                    streams=size.misses,
                    number=1 + (number + 1) * 1000,
                    status=None,
                    spacing=SPACING,
                    settle=SETTLE,
                )
                if number >= 0:
                    bench.watch(got)
                    made.event[name].append(got.cpu[0] / got.done / EVENTS * 1e6)
    return made


@contextmanager
def _watched(bench: Bench, *options: str) -> Iterator[Peer]:
    """A sidecar whose dashboard is open and whose metrics are scraped."""
    admin, over = free_port(), threading.Event()
    with sidecar(bench.folder, bench.provider.port, *options, "--admin-port", str(admin)) as peer:
        threads = [
            threading.Thread(target=work, args=(admin, over), daemon=True) for work in (_listen, _scrape)
        ]
        for thread in threads:
            thread.start()
        try:
            yield peer
        finally:
            over.set()


def _listen(port: int, over: threading.Event) -> None:
    connection = http.client.HTTPConnection(HOST, port)
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/events")
        answer = connection.getresponse()
        while not over.is_set() and answer.read1():
            pass
    connection.close()


def _scrape(port: int, over: threading.Event) -> None:
    while not over.wait(SCRAPE):
        connection = http.client.HTTPConnection(HOST, port)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/metrics")
            connection.getresponse().read()
        connection.close()
