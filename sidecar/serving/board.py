"""What operators can see of one process: figures, requests as they run, what is ready, metrics.

It only looks. Everything here is quick, changes nothing, and is called on the event loop.
"""

import heapq
import time
from collections.abc import Callable
from itertools import islice

from sidecar.cache.exact import ExactCache
from sidecar.config import Config
from sidecar.core.latency import FEATURES
from sidecar.engine.hub import Hub
from sidecar.engine.jobs import Jobs
from sidecar.serving.front import Front
from sidecar.serving.semantics import Semantics
from sidecar.serving.snapshot import Check, Facts, Snapshot, Wanted, gauges, stats
from sidecar.serving.visit import Visit
from sidecar.serving.watermark import Watch
from sidecar.telemetry.counted import Values
from sidecar.telemetry.meter import Line, Meter
from sidecar.telemetry.metrics import Exposition
from sidecar.telemetry.process import OwnProcess
from sidecar.telemetry.scale import bucket
from sidecar.telemetry.window import SPANS


class Board:
    """One per process. No method raises."""

    def __init__(
        self,
        config: Config,
        meter: Meter,
        front: Front,
        hub: Hub,
        jobs: Jobs,
        cache: ExactCache,
        semantics: Semantics | None,
        dropped: Callable[[], int],
    ) -> None:
        """`dropped`: how many log lines nobody read in time."""
        self._config = config
        self._meter = meter
        self._front = front
        self._hub = hub
        self._jobs = jobs
        self._cache = cache
        self._semantics = semantics
        self._dropped = dropped
        self._born = time.time()
        self._began = time.monotonic()
        self._lag: dict[int, int] = {}
        self._process = OwnProcess()
        self._exposition = Exposition(meter.metrics)
        self.started = False
        """Whether requests are taken."""
        self.memory_only: str | None = None
        """Why answers are not stored on disk, if they are not."""
        self.no_jobs: str | None = None
        """Why there are no background jobs, if there are none."""
        self.memory: Watch | None = None
        """Looks at how much memory there is; None where nobody does."""
        self.faults = 0
        meter.metrics.read_from(self._gauges)

    # For those who tell.

    def late(self, seconds: float) -> None:
        """A timer was so late."""
        milliseconds = seconds * 1000
        at = bucket(milliseconds)
        self._lag[at] = self._lag.get(at, 0) + 1
        self._meter.metrics.observe("slipstream_event_loop_lag_seconds", (), milliseconds)

    # For those who ask.

    def stats(self, window: str | None = None) -> dict[str, object]:
        """What `/stats` shows. `window`: only that one, without its combinations."""
        return self.prepare(window)()

    def prepare(self, window: str | None = None) -> Callable[[], dict[str, object]]:
        """The same in two steps: what is told is what there is now; what is returned does most of the work,
        and may do so in a thread."""
        facts = self._facts()
        windows = {name: self._meter.reading(name) for name in ([window] if window is not None else SPANS)}
        return lambda: stats(facts, windows, series=window is None)

    async def refresh(self, *_parts: str) -> None:
        """See `Overview`: what is told here is always of now."""

    def snapshot(self, wanted: Wanted) -> Callable[[], Snapshot]:
        """For another process that tells of several. In two steps, as above."""
        snapshot = Snapshot(self._facts())
        facts, meter = snapshot.facts, self._meter
        if wanted.counters:
            snapshot.counted = meter.metrics.take(but=self._gauges)
        snapshot.windows = {name: meter.reading(name) for name in wanted.windows}
        snapshot.active = self.active(wanted.active) if wanted.active else []
        if wanted.since is not None:
            heard, heard_failed = wanted.since
            snapshot.recent = self.recent(max(facts.taken - heard, 0))
            snapshot.errors = self.errors(max(facts.failed - heard_failed, 0))

        def more() -> Snapshot:
            if wanted.counters:
                snapshot.process = self._process.read()
            return snapshot

        return more

    def active(self, most: int) -> list[dict[str, object]]:
        """Requests that are being served, those first that came first."""
        oldest = heapq.nsmallest(most, self._served(), key=lambda visit: visit.trace.started)
        now = time.perf_counter()
        return [_row(visit, now) for visit in oldest]

    def recent(self, most: int) -> list[Line]:
        """Lines of requests that have ended, the latest one first."""
        return list(islice(self._meter.recent, most))

    def errors(self, most: int) -> list[Line]:
        """The same of those that ended badly."""
        return list(islice(self._meter.errors, most))

    def since(self, mark: int, most: int) -> tuple[int, list[Line]]:
        """A new mark, and the lines that came since the given one; 0: all that are remembered."""
        taken = self._meter.taken
        return taken, self.recent(max(min(taken - mark, most), 0))

    def find(self, request_id: str) -> Line | None:
        """The line of a request that has ended lately."""
        return next((line for line in self._meter.recent if line["request_id"] == request_id), None)

    def metrics(self, accept: str) -> Callable[[], tuple[bytes, str]]:
        """See `Exposition.prepare`."""
        return self._exposition.prepare(accept)

    def ready(self) -> dict[str, Check]:
        """What works, by component; requests are served while `proxy` is ready, whatever else is not."""
        checks = {"proxy": Check(ready=True)}
        if self._front.draining:
            checks["proxy"] = Check(ready=False, why="it drains, and will stop")
        elif not self.started:
            checks["proxy"] = Check(ready=False, why="it starts: what is on disk is being opened")
        elif self._front.full is not None:
            checks["proxy"] = Check(ready=False, why=self._front.full)
        mode = self._config.cache.mode
        if mode != "off":
            why = "the stored answers are being opened" if self._cache.opening else self.memory_only
            checks["cache"] = Check(ready=why is None, why=why)
        if self._semantics is not None:
            why = self._semantics.missing
            checks["semantic"] = Check(ready=why is None, why=why)
        checks["jobs"] = Check(ready=self.no_jobs is None, why=self.no_jobs)
        return checks

    def _served(self) -> list[Visit]:
        """Requests that are being served here; one that was handed over is among those of another worker."""
        return [visit for visit in self._front.visits if not visit.elsewhere]

    def _gauges(self) -> Values:
        return gauges(self._facts())

    def _facts(self) -> Facts:
        meter, served = self._meter, self._served()
        budgets = meter.budget_readings()
        return Facts(
            began=self._born,
            uptime=time.monotonic() - self._began,
            metrics=self._config.metrics.enabled,
            mode=self._config.cache.mode,
            active={
                "requests": len(served),
                "streams": sum(_streams(visit) for visit in served),
                "calls": len(self._hub),
                "jobs_running": self._jobs.running,
                "jobs_queued": len(self._jobs.queue),
            },
            counts=dict(self._cache.counts),
            saved=meter.saved,
            lag=self._lag.copy(),
            dropped=self._dropped(),
            memory=self.memory.share if self.memory is not None else 0.0,
            memory_level=self.memory.level if self.memory is not None else 0,
            faults=self.faults,
            taken=meter.taken,
            failed=meter.failed,
            checks=self.ready(),
            targets=meter.budgets.targets(),
            budgets=budgets,
            burning=meter.budgets.burning,
        )


def _streams(visit: Visit) -> bool:
    """Whether its answer is being streamed."""
    live = visit.live
    return live is not None and live.answer.streaming


def _row(visit: Visit, now: float) -> dict[str, object]:
    """A request that is being served. Tokens are the provider's count, where it has given one."""
    trace, live = visit.trace, visit.live
    answer = live.answer if live is not None else None
    labels = trace.labels
    first = answer.first_at if answer is not None and answer.first_kind and answer.first_at else 0.0
    waited = max(first, trace.head_at) - trace.started if first and trace.resumed_from is None else None
    speaking = now - first if first else 0.0
    return {
        "request_id": trace.request_id,
        "method": trace.method,
        "path": trace.path,
        "upstream": labels.upstream,
        "model": labels.model,
        "feature": trace.feature or FEATURES.get(labels.operation or ""),
        "stream": labels.stream or trace.stream,
        "phase": _phase(visit),
        "age_ms": round((now - trace.started) * 1000, 1),
        "ttft_ms": None if waited is None else round(waited * 1000, 1),
        "events": answer.events if answer is not None else 0,
        "output_tokens": answer.facts.output_tokens if answer is not None else None,
        "tokens_per_second": round((answer.deltas - 1) / speaking, 1)
        if answer is not None and answer.deltas > 1 and speaking > 0
        else None,
        "cache": trace.cache,
    }


def _phase(visit: Visit) -> str:
    """What it waits for."""
    live = visit.live
    if live is None:
        return "read"
    if live.recording.head is None:
        return "upstream"
    if not live.answer.streaming:
        return "body"
    return "stream" if live.answer.first_kind else "first_token"
