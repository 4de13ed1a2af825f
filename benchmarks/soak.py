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
from typing import Any

import msgspec
import orjson
import psutil

from benchmarks.peers import ROOT, free_port
from benchmarks.procs import cpu_seconds
from benchmarks.soak_judge import (
    EARLY,
    LEAK,
    MB,
    TELLING,
    Line,
    Sample,
    leaked,
    least,
    mean,
    operations,
    slope,
    summary,
)
from benchmarks.soak_load import HOST, WEIGHTS, Job, Told
from benchmarks.soak_websocket import PATH as REALTIME

_INTERVAL = 5.0
"""Seconds between keepalives."""
_STARTED = 15.0
_ENDED = 60.0
_ASKED = 10.0
"""Seconds for an answer of the admin port."""
_OVER = 90.0
"""Seconds that the load may take longer than it was told to: for the last things that clients do."""
_PER_KEEPALIVE = 0.0002
_PER_OPERATION = 0.012
"""CPU seconds of the sidecar. Where it gets no core its latencies are not its own; what it uses is."""
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
        cpu = cpu_seconds([self._pid])
        self.samples.append(Sample(time.perf_counter(), own, descriptors, threads, cpu))
        return self.samples[-1]

    async def run(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(1)

    def since(self, at: float) -> list[Sample]:
        return [sample for sample in self.samples if sample.at >= at]


class LoadError(Exception):
    """The load generator has not done what it was to do."""


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
        self.told: list[tuple[float, int]] = []
        """When how much had been done, as the load generator told."""

    def verdict(self, what: str, found: str, wanted: str = "", *, good: bool | None = None) -> None:
        self.lines.append(Line(what, found, wanted, good))

    def latency(self, what: str, found: str, wanted: str, waits: float, *, good: bool) -> None:
        """Where there is no core for the sidecar, that is what is measured. `waits`: share of the time."""
        if good or waits <= _BUSY:
            self.verdict(what, found, wanted, good=good)
        else:
            self.skip(what, found, f"{wanted}; not judged: the machine is busy")

    def skip(self, what: str, found: str, wanted: str) -> None:
        self.lines.append(Line(what, found, wanted, None, excused=True))

    async def start(self) -> None:
        upstream, websockets = free_port(), free_port()
        await self._run("-m", "benchmarks.soak_provider", str(upstream), str(websockets))
        config = self.folder / "slipstream.toml"
        config.write_text(
            f'[[upstreams]]\nname = "soak"\nurl = "http://{HOST}:{upstream}"\npaths = ["/"]\n'
            f'[[upstreams]]\nname = "talk"\nurl = "http://{HOST}:{websockets}"\npaths = ["{REALTIME}"]\n'
        )
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SLIPSTREAM_")}
        settings = {**SETTINGS, "SLIPSTREAM_SERVER__DATA_DIR": str(self.folder / "data")}
        with (self.folder / "log").open("wb") as log:
            self.sidecar = await self._run(
                *("-m", "sidecar", "serve", "--config", str(config), "--log-format", "json"),
                *("--port", str(self.port), "--admin-port", str(self._admin)),
                env={**kept, **settings},
                stderr=log,
            )
        async with asyncio.timeout(_STARTED):
            for port in (upstream, websockets, self.port):
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
        """Have it done. Returns the last that it told. Raises LoadError if it fails or does not end."""
        self.told.clear()
        process = await self._run(
            "-m", "benchmarks.soak_load", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(job))
        process.stdin.close()
        told = Told()
        try:
            async with asyncio.timeout(job.seconds + _OVER):
                while line := await process.stdout.readline():
                    told = msgspec.json.decode(line, type=Told)
                    self.told.append((time.perf_counter(), sum(told.done.values())))
                    if not told.last:
                        self._progress(told)
                status = await process.wait()
        except TimeoutError:
            raise LoadError(f"no end {_OVER:.0f} s after its time") from None
        if status or not told.last:
            raise LoadError(f"exit status {status}")
        return told

    def _progress(self, told: Told) -> None:
        now = self.watched.look()
        done, failed = sum(told.done.values()), sum(told.failed.values())
        self.note(
            f"{told.open} open, {done} done, {failed} failed; the sidecar: {now.memory / MB:.0f} MB,"
            f" {now.descriptors} descriptors, {now.threads} threads"
        )

    async def admin(self, path: str) -> bytes:
        """What the admin port answers; nothing, and a FAIL, if it does not answer in time."""
        writer = None
        try:
            async with asyncio.timeout(_ASKED):
                reader, writer = await asyncio.open_connection(HOST, self._admin, limit=64 * MB)
                writer.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
                head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
        except OSError as error:
            why = f"{type(error).__name__} {error}".strip()
        else:
            if head.startswith(b"HTTP/1.1 200 "):
                return body
            why = head[:40].decode("latin-1") or "closed"
        finally:
            if writer is not None:
                writer.close()
        self.verdict(f"admin port: {path}", why, f"an answer within {_ASKED:.0f} s", good=False)
        return b""

    async def stats(self) -> dict[str, Any] | None:
        body = await self.admin("/stats")
        found: dict[str, Any] | None = orjson.loads(body) if body else None
        return found

    async def faults(self) -> int | None:
        """Mistakes of the sidecar's own that it has counted; None if it does not say."""
        for line in (await self.admin("/metrics")).splitlines():
            if line.startswith(b"slipstream_faults_total "):
                return int(float(line.split()[1]))
        return None

    async def calm(self, within: float) -> dict[str, Any]:
        """Wait until nothing is under way, but for so many seconds at most; returns what is."""
        until = time.perf_counter() + within
        while True:
            stats = await self.stats()
            if stats is None:
                return {"unknown": 1}
            active: dict[str, Any] = stats["active"]
            if not any(active.values()) or time.perf_counter() > until:
                return active
            await asyncio.sleep(0.5)


@contextlib.asynccontextmanager
async def running(folder: Path, note: Callable[[str], None]) -> AsyncIterator[Soak]:
    soak, watching = Soak(folder, note), None
    try:
        await soak.start()
        watching = asyncio.ensure_future(soak.watched.run())
        yield soak
    finally:
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
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
    failed = f"{sum(told.failed.values())} {told.first[:2] if told.first else ''}".strip()
    soak.verdict(
        "idle: streams open", f"{told.done['streams']}", f"{count}", good=told.done["streams"] == count
    )
    soak.verdict("idle: streams that broke", failed, "0", good=not told.failed)
    found = f"{told.starved} of {told.done['streams']}, {told.done['keepalives']} in all"
    soak.verdict("idle: streams with too few keepalives", found, "0", good=not told.starved)
    found = f"{-late['min']:.0f} ms"
    most = EARLY * 1000
    soak.verdict("idle: keepalives early by", found, f"<= {most:.0f} ms", good=late["min"] >= -most)
    found = f"p50 {late['p50']:.0f}, p99 {late['p99']:.0f}, max {late['max']:.0f} ms"
    waits = (waited(soak.sidecar.pid) - waited_before) / seconds
    soak.latency("idle: keepalives late by", found, "p99 <= 250 ms", waits, good=late["p99"] <= 250)
    each_cpu = (held[-1].cpu - held[0].cpu) / ((held[-1].at - held[0].at) * count / _INTERVAL)
    found, wanted = f"{each_cpu * 1e6:.0f} us", f"<= {_PER_KEEPALIVE * 1e6:.0f} us"
    soak.verdict("idle: CPU per keepalive, second half", found, wanted, good=each_cpu <= _PER_KEEPALIVE)
    soak.verdict("idle: the load generator's own timers", f"p99 {told.lag * 1000:.0f} ms late")
    soak.verdict("idle: the sidecar waited for a core", f"{waits:.1%} of the time")
    found = f"{first:.1f} -> {last:.1f} MB, {slope(held) * 3600 / MB:+.0f} MB/h"
    soak.verdict("idle: memory, second half", found, "+2 MB at most", good=last <= first + 2)
    soak.verdict("idle: memory per stream", f"{each:.1f} KB", "<= 60 KB", good=each <= 60)
    await _back(soak, "idle", before)
    soak.figures["idle"] = {
        "streams": count,
        "starved": told.starved,
        "late_ms": late,
        "kb_per_stream": each,
        "cpu_us_per_keepalive": each_cpu * 1e6,
        "mb": [first, last],
    }


async def churn(soak: Soak, clients: int, seconds: float) -> None:
    soak.note(f"{clients} clients that do whatever clients do, for {seconds:.0f} s")
    before, begun, waited_before = soak.watched.look(), time.perf_counter(), waited(soak.sidecar.pid)
    told = await soak.load(Job("churn", soak.port, clients, seconds))
    samples = [sample for sample in soak.watched.since(begun) if sample.at < begun + seconds]
    fifth = max(len(samples) // 5, 1)
    middle, last = mean(samples[2 * fifth : 3 * fifth]), mean(samples[-fifth:])
    done = sum(told.done.values())
    for name, enough in least(WEIGHTS, clients, seconds).items():
        count, failed = told.done.get(name, 0), told.failed.get(name, 0)
        good = not failed and count >= enough
        wanted = f"0 failed, >= {enough} done"
        soak.verdict(f"churn: {name}", f"{count} done, {failed} failed", wanted, good=good)
    for line in told.first:
        soak.note(line)
    half = samples[len(samples) // 2 :]
    count_half = operations([(begun, 0), *soak.told], half[0].at, half[-1].at)
    found = f"{before.memory / MB:.0f}, {middle:.0f}, {last:.0f} MB; {slope(half) * 3600 / MB:+.0f} MB/h"
    most = middle * 1.08 + 4
    soak.verdict("churn: memory at begin, middle, end", found, f"end <= {most:.0f} MB", good=last <= most)
    leak = leaked(half, count_half)
    what, wanted = "churn: leaked per operation, second half", f"<= {LEAK:.0f} bytes"
    if leak is None:
        soak.skip(what, f"{count_half:.0f} operations", f"{wanted}; not judged: it takes {TELLING:,}")
    else:
        soak.verdict(what, f"{leak:.1f} bytes, {count_half:.0f} operations", wanted, good=leak <= LEAK)
    each = (half[-1].cpu - half[0].cpu) / max(count_half, 1)
    found, wanted = f"{each * 1000:.2f} ms", f"<= {_PER_OPERATION * 1000:.0f} ms"
    soak.verdict("churn: CPU per operation, second half", found, wanted, good=each <= _PER_OPERATION)
    await _back(soak, "churn", before)
    waits = (waited(soak.sidecar.pid) - waited_before) / seconds
    lag, faults = None, await soak.faults()
    if (stats := await soak.stats()) is not None:
        lag, dropped = stats["loop_lag_ms"], stats["log_lines_dropped"]
        found = f"p50 {lag['p50']:.1f}, p99 {lag['p99']:.1f} ms"
        soak.latency("event loop late by", found, "p99 <= 100 ms", waits, good=lag["p99"] <= 100)
        soak.verdict("log lines dropped", f"{dropped}", "0", good=not dropped)
    soak.verdict("faults counted", f"{faults}", "0", good=faults == 0)
    soak.verdict("churn: the load generator's own timers", f"p99 {told.lag * 1000:.0f} ms late")
    soak.verdict("churn: the sidecar waited for a core", f"{waits:.1%} of the time")
    soak.verdict("churn: all together", f"{done} done, {done / seconds:.0f} per second")
    size = sum(
        file.stat().st_size for file in (soak.folder / "data" / "answers").rglob("*") if file.is_file()
    )
    most = _CACHE + 16 * MB
    soak.verdict("answers on disk", f"{size / MB:.0f} MB", f"<= {most / MB:.0f} MB", good=size <= most)
    soak.figures["churn"] = {
        "done": told.done,
        "failed": told.failed,
        "per_second": done / seconds,
        "mb": [before.memory / MB, middle, last],
        "leaked_bytes_per_operation": leak,
        "cpu_ms_per_operation": each * 1000,
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
    with contextlib.suppress(ProcessLookupError):  # it has gone by itself: its status says so
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
            try:
                if given.idle:
                    await idle(soak, given.idle, given.idle_seconds)
                if given.minutes:
                    await churn(soak, given.clients, given.minutes * 60)
            except LoadError as error:
                soak.verdict("load generator", f"{error}", "done, and told", good=False)
            except (FileNotFoundError, ProcessLookupError):  # of /proc/PID
                soak.verdict("sidecar", "gone", "running", good=False)
            await stopped(soak)
        return soak


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="under two minutes: 1,000 streams, 36 s of churn; leaks are not judged",
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
    good, last = summary(soak.lines)
    print(f"\n{last}")
    sys.exit(not good)


if __name__ == "__main__":
    main()
