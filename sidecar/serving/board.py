"""What operators can see of one process: figures, requests as they run, what is ready, metrics.

It only looks. Everything here is quick, changes nothing, and is called on the event loop.
"""

import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import msgspec

from sidecar import __version__
from sidecar.cache.exact import ExactCache
from sidecar.config import Config
from sidecar.core.latency import FEATURES
from sidecar.core.semantic.curve import wilson
from sidecar.engine.hub import Hub
from sidecar.engine.jobs import Jobs
from sidecar.serving.front import Front
from sidecar.serving.semantics import Semantics
from sidecar.serving.visit import Visit
from sidecar.telemetry.cachecounts import read_counts
from sidecar.telemetry.figures import percentiles
from sidecar.telemetry.meter import Line, Meter
from sidecar.telemetry.metrics import Exposition, Labels
from sidecar.telemetry.scale import bucket
from sidecar.telemetry.window import SPANS


class Check(msgspec.Struct, frozen=True):
    """Whether a component does its work."""

    ready: bool
    why: str | None = None
    """Why not."""


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
        self._began = time.monotonic()
        self._lag: dict[int, int] = {}
        self._exposition = Exposition(meter.metrics)
        self.started = False
        """Whether requests are taken."""
        self.memory_only: str | None = None
        """Why answers are not stored on disk, if they are not."""
        self.no_jobs: str | None = None
        """Why there are no background jobs, if there are none."""
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
        names = [window] if window is not None else list(SPANS)
        counts = self._cache.counts
        meter, front = self._meter, self._front
        windows = {name: meter.prepare(name, series=window is None) for name in names}
        said = {
            "version": __version__,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "metrics": self._config.metrics.enabled,
            "uptime_s": round(time.monotonic() - self._began, 1),
            "active": {
                "requests": front.active,
                "streams": sum(_streams(visit) for visit in front.visits),
                "calls": len(self._hub),
                "jobs_running": self._jobs.running,
                "jobs_queued": len(self._jobs.queue),
            },
            "windows": {},
            "budgets": meter.budget_rates(),
            "cache": {"mode": self._config.cache.mode, "counts": dict(sorted(counts.items())), **meter.saved},
            "semantic": _checked(counts),
            "loop_lag_ms": percentiles(self._lag),
            "log_lines_dropped": self._dropped(),
        }
        return lambda: said | {"windows": {name: make() for name, make in windows.items()}}

    def active(self, most: int) -> list[dict[str, object]]:
        """Requests that are being served, those first that came first."""
        oldest = heapq.nsmallest(most, self._front.visits, key=lambda visit: visit.trace.started)
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
        mode = self._config.cache.mode
        if mode != "off":
            why = "the stored answers are being opened" if self._cache.opening else self.memory_only
            checks["cache"] = Check(ready=why is None, why=why)
        if self._semantics is not None:
            why = self._semantics.missing
            checks["semantic"] = Check(ready=why is None, why=why)
        checks["jobs"] = Check(ready=self.no_jobs is None, why=self.no_jobs)
        return checks

    # Metrics that are kept elsewhere.

    def _gauges(self) -> Iterator[tuple[str, Labels, float]]:
        front, meter = self._front, self._meter
        yield "slipstream_active_requests", (), front.active
        yield "slipstream_active_streams", (), sum(_streams(visit) for visit in front.visits)
        yield "slipstream_active_calls", (), len(self._hub)
        yield "slipstream_jobs", ("queued",), len(self._jobs.queue)
        yield "slipstream_jobs", ("running",), self._jobs.running
        yield "slipstream_ready", (), float(self.ready()["proxy"].ready)
        yield "slipstream_info", (__version__,), 1.0
        yield "slipstream_log_lines_dropped_total", (), self._dropped()
        yield "slipstream_faults_total", (), self.faults
        yield from read_counts(self._cache.counts)
        checked = _checked(self._cache.counts)
        for name, key in (("", "false_hit_rate"), ("_upper", "upper")):
            share = checked[key]
            yield f"slipstream_semantic_false_hit_ratio{name}", (), float("nan") if share is None else share
        if self._config.metrics.enabled:
            yield from _budget_gauges(meter.budget_rates())


def _budget_gauges(budgets: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Labels, float]]:
    for one in budgets:
        labels = (one["feature"], one["budget"])
        yield "slipstream_budget_target_seconds", labels, one["target_ms"] / 1000
        yield "slipstream_budget_alert", labels, float(one["alert"])
        for window, rates in one["windows"].items():
            if rates["burn"] is not None:
                yield "slipstream_budget_burn_rate", (*labels, window), rates["burn"]
                yield "slipstream_budget_p95_seconds", (*labels, window), rates["p95_ms"] / 1000


def _checked(counts: Mapping[str, int]) -> dict[str, Any]:
    """What is known of false hits."""
    right, wrong = counts.get("verify_right", 0), counts.get("verify_wrong", 0)
    checked = right + wrong
    return {
        "checked": checked,
        "wrong": wrong,
        "false_hit_rate": round(wrong / checked, 4) if checked else None,
        "upper": round(wilson(wrong, checked)[1], 4) if checked else None,
    }


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
