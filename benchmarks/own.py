"""The measurements of the sidecar by itself: what one thing costs it beside another, in turns."""

import http.client
import shutil
from collections import defaultdict
from typing import NamedTuple

from benchmarks.asks import GO_ON, WHOLE, back, chat, streamed
from benchmarks.jobs import Events, Kept, Open, Requests, Result, Resumes, Shared
from benchmarks.measure import PER_SECOND, STREAMS, Bench, LoadFailedError, Values, percentiles
from benchmarks.peers import HOST, Peer, sidecar
from benchmarks.procs import MB
from benchmarks.provider import HELD
from sidecar.config import Config

IDS = b"text/event-stream"
"""What the `Accept` of clients says that get ids."""
SPACING = 0.0021
"""Seconds between starts; not a part of the interval, as in `Bench.cpu_per_event`, but sooner done."""
PAIRS = STREAMS // 2
"""Streams that get a second reader: with it, as many events go out as everywhere else."""
CYCLES = 2
EVENTS = 1000
BURST = 20


class Resumed(NamedTuple):
    """Coming back in one way."""

    middle: Values
    """Milliseconds."""
    tail: Values
    cpu: Values
    """Microseconds."""
    writes: Values


def ids(bench: Bench) -> Values:
    """Microseconds of CPU per event, with ids and without."""
    size, peer = bench.size, bench.proxies["sidecar"]
    lasts = STREAMS * SPACING + size.window + 10
    values: Values = defaultdict(list)

    def one(*, on: bool) -> float:
        request = streamed(
            events=round(lasts * PER_SECOND),
            interval=1 / PER_SECOND,
            accept=IDS if on else b"application/json",
            # Else the calls of clients with ids would wait for them, and keep the next ones company.
            fields=(b"Slipstream-Disconnect: cancel",),
        )
        found = bench.load(
            peer, Events, request=request, streams=STREAMS, spacing=SPACING, window=size.glance, ids=on
        )
        return per_event(bench, found, STREAMS)

    rounds = size.rounds * 2
    for number in range(rounds):
        bench.note(f"ids, round {number + 1} of {rounds}")
        for on in (True, False) if number % 2 else (False, True):
            values["sidecar" if on else "without"].append(one(on=on))
    return values


def second_reader(bench: Bench) -> Values:
    """Microseconds of CPU per event: of a stream with one reader, and what the second one adds to it."""
    size = bench.size
    lasts = PAIRS * SPACING * (CYCLES + 1) + size.glance * (CYCLES * 2 + 1) + 15
    requests = [
        streamed(events=round(lasts * PER_SECOND), interval=1 / PER_SECOND, user=f"reader-{number}")
        for number in range(PAIRS)
    ]
    values: Values = defaultdict(list)
    with sidecar(bench.folder, bench.provider.port, "--cache", "exact") as peer:
        for number in range(size.rounds):
            bench.note(f"second readers, round {number + 1} of {size.rounds}")
            found = bench.load(
                peer, Shared, requests=requests, spacing=SPACING, window=size.glance, cycles=CYCLES
            )
            if not all(0.9 < window.joined / window.done < 1.1 for window in found.windows[1::2]):
                raise LoadFailedError("second readers did not get what the first ones got")
            figures = [per_event(bench, window, PAIRS) for window in found.windows]
            # A machine that gets busier, or less so, does it to the windows before and after alike.
            for before, two, after in zip(figures[::2], figures[1::2], figures[2::2], strict=False):
                one = (before + after) / 2
                values["first"].append(one)
                values["sidecar"].append(two - one)
    return values


def per_event(bench: Bench, found: Result, streams: int) -> float:
    """Raises LoadFailedError when the events did not keep their pace; short windows may be a little off."""
    pace, due = found.done / found.seconds, streams * PER_SECOND
    if not 0.8 < pace / due < 1.25:
        raise LoadFailedError(f"{pace:.0f} events/s instead of {due}")
    bench.watch(found)
    return found.cpu[0] / found.done * 1e6


def memory_of_streams(bench: Bench) -> tuple[Values, Values, str]:
    """MB that a thousand streams of a thousand events take, open and then ended; and what to know of it."""
    count = bench.size.kept
    bench.note(f"memory of {count} streams with {EVENTS} events each")
    script: dict[str, object] = {"tokens": EVENTS}
    # In bursts all around, so that the streams grow side by side, as fast as a busy core manages.
    interval = count * BURST * 12e-6
    path = f"{HELD}?events={EVENTS}&burst={BURST}&interval={interval}"
    total, size = body_of(bench.provider, chat(stream=True, script=script))
    options = ["--cache", "off"]
    if count < 1000:
        # Fewer streams in as much less memory: how tight it gets is what the figure depends on.
        settings = bench.folder / "tight.toml"
        settings.write_text(f"[resume]\nmemory = {Config().resume.memory * count // 1000}\n")
        options += ["--config", str(settings)]
    with sidecar(bench.folder, bench.provider.port, *options) as peer:
        bench.load(peer, Requests, request=WHOLE, count=64, concurrent=1)
        few = streamed(events=120, interval=1.0)
        bench.load(peer, Open, request=few, streams=4, spacing=0.001, settle=0.0)
        found = bench.load(
            peer,
            Kept,
            request=chat(stream=True, script=script, path=path),
            go_on=GO_ON,
            back=back(b"?after=%d" % total),
            anew=back(),
            streams=count,
            events=EVENTS,
            spacing=0.001,
            settle=0.4,
        )
    scale = 1000 / count / MB
    body = [found.body * scale]
    note = (
        f"{size / total:.0f} bytes of body per event; {found.whole} of {count} streams were whole at the end."
    )
    if count < 1000:
        note += " Scaled up to 1000, as was the memory they may take."
    opened = {"sidecar": [found.memory * scale], "body": body}
    return opened, {"sidecar": [found.ended * scale], "body": body}, note


def body_of(provider: Peer, request: bytes) -> tuple[int, int]:
    """Events and bytes of an answer, as the provider sends it."""
    head, _, body = request.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    connection = http.client.HTTPConnection(HOST, provider.port)
    connection.request("POST", line.split()[1], body, dict(field.split(": ", 1) for field in fields))
    answer = connection.getresponse().read()
    connection.close()
    return answer.count(b"\n\n"), len(answer)


def resumes(bench: Bench) -> tuple[list[Resumed], str]:
    """Coming back to a stream that has ended, from its start and after its first event; and how the write
    calls were counted."""
    bench.note("coming back to a stream")
    made = []
    with sidecar(bench.folder, bench.provider.port) as peer:
        found = bench.load(
            peer,
            Resumes,
            # The role, the words, the finish, usage and [DONE].
            request=streamed(events=EVENTS - 4),
            ways=[back(), back(b"", b"Last-Event-ID: STREAM-ID:0")],
            without=[0, 1],
            count=bench.size.resumes,
            pause=0.003,
            trace=shutil.which("strace"),
            folder=str(bench.folder),
        )
    if found.done != EVENTS:
        raise LoadFailedError(f"a stream of {found.done} events instead of {EVENTS}")
    for way in found.ways:
        middle, tail = percentiles(way.seconds)
        made.append(
            Resumed(
                middle={"sidecar": [middle * 1e3]},
                tail={"sidecar": [tail * 1e3]},
                cpu={"sidecar": [sum(way.cpu) / len(way.cpu) * 1e6]},
                writes={"sidecar": [way.writes] if way.writes else []},
            )
        )
    return made, "by strace" if found.traced else "by the kernel, on the main thread"
