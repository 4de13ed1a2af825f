"""`python -m benchmarks.soak`: thousands of streams that say nothing, then clients that do whatever
clients do; and whether the sidecar is after it what it was before. Exit status 1 where it is not.

The sidecar, its upstream and the load are processes of their own, on loopback, and end with the run.
"""

import argparse
import asyncio
import contextlib
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import orjson
import psutil

from benchmarks.peers import ROOT, free_port
from benchmarks.soak_load import HOST, Job, Told

MB = 1 << 20
_INTERVAL = 5.0
"""Seconds between keepalives."""
_STARTED = 15.0
_ENDED = 60.0
_CACHE = 64 * MB
_BUSY = 0.05
"""Share of the time for which the sidecar had no core, above which latencies are those of the machine."""
_KEEP = 20
"""Seconds for which streams that have ended are kept. This and the memories below are small, so that they are
full soon and what grows after that is a leak."""
SETTINGS = {
    "SLIPSTREAM_KEEPALIVE__INTERVAL": f"{_INTERVAL:g}",
    "SLIPSTREAM_CACHE__SIZE": str(_CACHE),
    "SLIPSTREAM_CACHE__MEMORY": str(8 * MB),
    "SLIPSTREAM_CACHE__TTL": "60s",
    "SLIPSTREAM_RESUME__KEEP": f"{_KEEP}s",
    "SLIPSTREAM_RESUME__MEMORY": str(16 * MB),
    "SLIPSTREAM_JOBS__KEEP": "60s",
}


class Line(NamedTuple):
    """One line of the verdict."""

    what: str
    found: str
    wanted: str
    good: bool | None
    """None: it is told, and not judged."""

    def __str__(self) -> str:
        said = "    " if self.good is None else "PASS" if self.good else "FAIL"
        return f"{said}  {self.what:<44} {self.found:<34} {self.wanted}"


class Sample(NamedTuple):
    """The sidecar at one moment."""

    at: float
    memory: int
    """Bytes that are its own."""
    descriptors: int
    threads: int


def waited(pid: int) -> float:
    """Seconds for which its first thread, the event loop's, was ready to run and had no core."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[1]) / 1e9


class Watched:
    """The sidecar as the kernel sees it, once a second."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.samples: list[Sample] = []

    def look(self) -> Sample:
        _, resident, shared, *_ = Path(f"/proc/{self._pid}/statm").read_text().split()
        own = (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
        descriptors = len(os.listdir(f"/proc/{self._pid}/fd"))  # noqa: PTH208 - as many as that are no paths
        threads = len(os.listdir(f"/proc/{self._pid}/task"))  # noqa: PTH208
        self.samples.append(Sample(time.perf_counter(), own, descriptors, threads))
        return self.samples[-1]

    async def run(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(1)

    def since(self, at: float) -> list[Sample]:
        return [sample for sample in self.samples if sample.at >= at]


def slope(samples: list[Sample]) -> float:
    """MB per hour, by least squares."""
    if len(samples) < 3:
        return 0.0
    times, sizes = [sample.at for sample in samples], [sample.memory / MB for sample in samples]
    middle, mean = sum(times) / len(times), sum(sizes) / len(sizes)
    over = sum((at - middle) * (size - mean) for at, size in zip(times, sizes, strict=True))
    return over / sum((at - middle) ** 2 for at in times) * 3600


def mean(samples: list[Sample]) -> float:
    """MB."""
    return sum(sample.memory for sample in samples) / len(samples) / MB


class Soak:
    """One run."""

    def __init__(self, folder: Path, note: Callable[[str], None]) -> None:
        self.folder = folder
        self.note = note
        self._processes: list[asyncio.subprocess.Process] = []
        self.lines: list[Line] = []
        self.port, self._admin = free_port(), free_port()
        self.watched: Watched
        self.before: Sample
        self.figures: dict[str, Any] = {}

    def verdict(self, what: str, found: str, wanted: str = "", *, good: bool | None = None) -> None:
        self.lines.append(Line(what, found, wanted, good))

    def latency(self, what: str, found: str, wanted: str, waits: float, *, good: bool) -> None:
        """Where there is no core for the sidecar, that is what is measured. `waits`: share of the time."""
        if good or waits <= _BUSY:
            self.verdict(what, found, wanted, good=good)
        else:
            self.verdict(what, found, f"{wanted}; not judged: the machine is busy")

    async def start(self) -> None:
        upstream = free_port()
        await self._run("-m", "benchmarks.soak_provider", str(upstream))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SLIPSTREAM_")}
        settings = {**SETTINGS, "SLIPSTREAM_SERVER__DATA_DIR": str(self.folder / "data")}
        with (self.folder / "log").open("wb") as log:
            self.sidecar = await self._run(
                *(
                    "-m",
                    "sidecar",
                    "serve",
                    "--upstream",
                    f"http://{HOST}:{upstream}",
                    "--log-format",
                    "json",
                ),
                *("--port", str(self.port), "--admin-port", str(self._admin)),
                env={**kept, **settings},
                stderr=log,
            )
        async with asyncio.timeout(_STARTED):
            for port in (upstream, self.port):
                while not await _listens(port):  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0.05)
        self.watched = Watched(self.sidecar.pid)

    async def _run(self, *arguments: str, **more: Any) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, cwd=ROOT, **more)
        self._processes.append(process)
        return process

    async def stop(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def load(self, job: Job) -> Told:
        """Have it done. Returns the last that it told."""
        process = await self._run(
            "-m", "benchmarks.soak_load", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(job))
        process.stdin.close()
        told = Told()
        while (line := await process.stdout.readline()) or not process.stdout.at_eof():
            told = msgspec.json.decode(line, type=Told)
            if not told.last:
                self._progress(told)
        if await process.wait() or not told.last:
            raise RuntimeError("the load generator has failed; see above")
        return told

    def _progress(self, told: Told) -> None:
        now = self.watched.look()
        done, failed = sum(told.done.values()), sum(told.failed.values())
        self.note(
            f"{told.open} open, {done} done, {failed} failed; the sidecar: {now.memory / MB:.0f} MB,"
            f" {now.descriptors} descriptors, {now.threads} threads"
        )

    async def stats(self) -> dict[str, Any]:
        reader, writer = await asyncio.open_connection(HOST, self._admin, limit=64 * MB)
        try:
            writer.write(b"GET /stats HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            _, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
            found: dict[str, Any] = orjson.loads(body)
            return found
        finally:
            writer.close()

    async def calm(self, within: float) -> dict[str, Any]:
        """Wait until nothing is under way, but for so many seconds at most; returns what is."""
        until = time.perf_counter() + within
        while True:
            active: dict[str, Any] = (await self.stats())["active"]
            if not any(active.values()) or time.perf_counter() > until:
                return active
            await asyncio.sleep(0.5)


@contextlib.asynccontextmanager
async def running(folder: Path, note: Callable[[str], None]) -> AsyncIterator[Soak]:
    soak = Soak(folder, note)
    try:
        await soak.start()
        watching = asyncio.ensure_future(soak.watched.run())
        yield soak
        watching.cancel()
    finally:
        await soak.stop()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    return True


async def idle(soak: Soak, count: int, seconds: float) -> None:
    """FAULTS 45."""
    soak.note(f"{count} streams that say nothing, for {seconds:.0f} s")
    before, begun, waited_before = soak.watched.look(), time.perf_counter(), waited(soak.sidecar.pid)
    told = await soak.load(Job("idle", soak.port, count, seconds, _INTERVAL))
    held = soak.watched.since(begun + seconds / 2)
    held = [sample for sample in held if sample.at < begun + seconds]
    first, last = mean(held[: len(held) // 3]), mean(held[-len(held) // 3 :])
    each = (first - before.memory / MB) * MB / count / 1000
    late = {name: seconds * 1000 for name, seconds in told.late.items()}
    due = count * (seconds / 2) / _INTERVAL
    failed = f"{sum(told.failed.values())} {told.first[:2] if told.first else ''}".strip()
    soak.verdict(
        "idle: streams open", f"{told.done['streams']}", f"{count}", good=told.done["streams"] == count
    )
    soak.verdict("idle: streams that broke", failed, "0", good=not told.failed)
    keepalives = told.done["keepalives"]
    soak.verdict("idle: keepalives", f"{keepalives}", f">= {due:.0f}", good=keepalives >= due)
    found = f"p50 {late['p50']:.0f}, p99 {late['p99']:.0f}, max {late['max']:.0f} ms"
    waits = (waited(soak.sidecar.pid) - waited_before) / seconds
    soak.latency("idle: keepalives late by", found, "p99 <= 250 ms", waits, good=late["p99"] <= 250)
    soak.verdict("idle: the load generator's own timers", f"p99 {told.lag * 1000:.0f} ms late")
    soak.verdict("idle: the sidecar waited for a core", f"{waits:.1%} of the time")
    found = f"{first:.1f} -> {last:.1f} MB, {slope(held):+.0f} MB/h"
    soak.verdict("idle: memory, second half", found, "+2 MB at most", good=last <= first + 2)
    soak.verdict("idle: memory per stream", f"{each:.1f} KB", "<= 60 KB", good=each <= 60)
    await _back(soak, "idle", before)
    soak.figures["idle"] = {"streams": count, "late_ms": late, "kb_per_stream": each, "mb": [first, last]}


async def churn(soak: Soak, clients: int, seconds: float) -> None:
    soak.note(f"{clients} clients that do whatever clients do, for {seconds:.0f} s")
    before, begun, waited_before = soak.watched.look(), time.perf_counter(), waited(soak.sidecar.pid)
    told = await soak.load(Job("churn", soak.port, clients, seconds))
    samples = [sample for sample in soak.watched.since(begun) if sample.at < begun + seconds]
    fifth = max(len(samples) // 5, 1)
    middle, last = mean(samples[2 * fifth : 3 * fifth]), mean(samples[-fifth:])
    done = sum(told.done.values())
    for name in sorted(told.done):
        failed = told.failed.get(name, 0)
        soak.verdict(
            f"churn: {name}", f"{told.done[name]} done, {failed} failed", "0 failed", good=not failed
        )
    for name in sorted(told.failed.keys() - told.done.keys()):
        soak.verdict(f"churn: {name}", f"{told.failed[name]} failed", "0 failed", good=False)
    for line in told.first:
        soak.note(line)
    grows = slope(samples[len(samples) // 2 :])
    found = f"{before.memory / MB:.0f}, {middle:.0f}, {last:.0f} MB; {grows:+.0f} MB/h"
    most = middle * 1.08 + 4
    soak.verdict("churn: memory at begin, middle, end", found, f"end <= {most:.0f} MB", good=last <= most)
    await _back(soak, "churn", before)
    waits = (waited(soak.sidecar.pid) - waited_before) / seconds
    stats = await soak.stats()
    lag, faults = stats["loop_lag_ms"], stats.get("faults")
    found = f"p50 {lag['p50']:.1f}, p99 {lag['p99']:.1f} ms"
    soak.latency("event loop late by", found, "p99 <= 100 ms", waits, good=lag["p99"] <= 100)
    soak.verdict("churn: the load generator's own timers", f"p99 {told.lag * 1000:.0f} ms late")
    soak.verdict("churn: the sidecar waited for a core", f"{waits:.1%} of the time")
    soak.verdict("churn: all together", f"{done} done, {done / seconds:.0f} per second")
    size = sum(
        file.stat().st_size for file in (soak.folder / "data" / "answers").rglob("*") if file.is_file()
    )
    most = _CACHE + 16 * MB
    soak.verdict("answers on disk", f"{size / MB:.0f} MB", f"<= {most / MB:.0f} MB", good=size <= most)
    dropped = stats["log_lines_dropped"]
    soak.verdict("log lines dropped", f"{dropped}", "0", good=not dropped)
    soak.figures["churn"] = {
        "done": told.done,
        "failed": told.failed,
        "per_second": done / seconds,
        "mb": [before.memory / MB, middle, last],
        "lag_ms": lag,
        "faults": faults,
    }


async def _back(soak: Soak, part: str, before: Sample) -> None:
    """Descriptors, threads and work are what they were, once idle connections had their time."""
    left = await soak.calm(20)
    over = {name: count for name, count in left.items() if count}
    soak.verdict(f"{part}: left under way", f"{over or 'nothing'}", "nothing", good=not over)
    until = time.perf_counter() + 50
    # Idle connections to the upstream have their time, and threads of the store were not there at first.
    now = soak.watched.look()
    while now.descriptors > before.descriptors + 16 and time.perf_counter() < until:
        await asyncio.sleep(0.5)
        now = soak.watched.look()
    found = f"{before.descriptors} -> {now.descriptors}, threads {before.threads} -> {now.threads}"
    good = now.descriptors <= before.descriptors + 16 and now.threads <= before.threads + 8
    soak.verdict(f"{part}: descriptors", found, "+16 at most, threads +8", good=good)


async def stopped(soak: Soak) -> None:
    """It ends in good order, and has made no mistake."""
    soak.sidecar.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(_ENDED):
            code = str(await soak.sidecar.wait())
    except TimeoutError:
        code = "none within a minute"
    soak.verdict("exit status after SIGTERM", code, "0", good=code == "0")
    faults, raw = 0, (soak.folder / "log").read_bytes()
    for line in raw.splitlines():
        with contextlib.suppress(orjson.JSONDecodeError):
            faults += orjson.loads(line)["event"] == "fault"
    faults += raw.count(b"Traceback")
    soak.verdict("faults and tracebacks in the log", str(faults), "0", good=not faults)


async def run(given: argparse.Namespace, note: Callable[[str], None]) -> Soak:
    with tempfile.TemporaryDirectory(prefix="slipstream-soak-") as made:
        async with running(Path(made), note) as soak:
            if given.idle:
                await idle(soak, given.idle, given.idle_seconds)
            if given.minutes:
                await churn(soak, given.clients, given.minutes * 60)
            await stopped(soak)
        return soak


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="under two minutes: 1,000 streams, 36 s of churn"
    )
    parser.add_argument("--minutes", type=float, default=60.0, metavar="N", help="of churn; 60")
    parser.add_argument("--idle", type=int, default=5000, metavar="N", help="streams that say nothing; 5000")
    parser.add_argument("--idle-seconds", type=float, default=120.0, metavar="N", help="for that long; 120")
    parser.add_argument("--clients", type=int, default=48, metavar="N", help="of the churn; 48")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    given = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("the soak reads memory and descriptors as only Linux tells them")
    if given.quick:
        given.minutes, given.idle, given.idle_seconds = 0.6, 1000, 22.0
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 2 * given.idle + 128 > hard:
        sys.exit(f"--idle {given.idle}: each takes two descriptors, and there are {hard} (ulimit -Hn)")
    begun = time.perf_counter()

    def note(what: str) -> None:
        print(f"{time.perf_counter() - begun:7.1f} s  {what}", file=sys.stderr, flush=True)

    soak = asyncio.run(run(given, note))
    print(f"{psutil.cpu_count()} cores, Python {sys.version.split()[0]}, {time.strftime('%Y-%m-%d')}\n")
    for line in soak.lines:
        print(line)
    if given.json:
        given.json.write_bytes(orjson.dumps(soak.figures, option=orjson.OPT_INDENT_2))
    judged = [line for line in soak.lines if line.good is not None]
    bad = [line for line in judged if not line.good]
    print(f"\n{'FAIL' if bad else 'PASS'}: {len(judged) - len(bad)} of {len(judged)}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
