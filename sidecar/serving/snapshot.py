"""What one process knows of itself, as it is, and what operators are told of it.

What is told is made of a snapshot: of the process that is asked, or of those of several worker processes,
added up (`merging`). So there is one way to make it, and a snapshot can be sent from one process to another.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from sidecar import __version__
from sidecar.core.semantic.curve import wilson
from sidecar.telemetry.budgets import Kind, Target, told
from sidecar.telemetry.cachecounts import read_counts
from sidecar.telemetry.counted import Counted, Labels
from sidecar.telemetry.figures import percentiles, summary
from sidecar.telemetry.process import Process
from sidecar.telemetry.window import Reading

Line = dict[str, Any]
_LARGEST = (1 << 64) - 1
"""The largest whole number that can be sent."""


class Check(msgspec.Struct, frozen=True):
    """Whether a component does its work."""

    ready: bool
    why: str | None = None
    """Why not."""


class Facts(msgspec.Struct):
    """What is always told: little, and quickly made."""

    began: float
    """Unix time; tells a process from the one whose place it took."""
    uptime: float
    """Seconds."""
    metrics: bool
    """Whether figures are kept."""
    mode: str
    """Of the cache."""
    active: dict[str, int] = {}
    counts: dict[str, int] = {}
    """Of the cache."""
    saved: dict[str, int | float] = {}
    lag: dict[int, int] = {}
    """Of the event loop, as `scale` has it."""
    dropped: int = 0
    faults: int = 0
    memory: float = 0.0
    """In use, as a share of `limits.memory`."""
    memory_level: int = 0
    """See `watermark.Level`."""
    taken: int = 0
    """Latency lines."""
    failed: int = 0
    """Those of requests that ended badly."""
    checks: dict[str, Check] = {}
    targets: list[Target] = []
    budgets: dict[str, Reading] = {}
    """What was held against budgets, by window."""
    burning: list[tuple[str, Kind]] = []
    workers: int = 1
    restarts: int = 0


class Snapshot(msgspec.Struct):
    """The facts, and of the rest what was wanted."""

    facts: Facts
    counted: Counted | None = None
    """Without what `gauges` makes of the facts."""
    process: Process = {}
    windows: dict[str, Reading] = {}
    active: list[Line] = []
    recent: list[Line] = []
    """Those that came since the last time, the latest first."""
    errors: list[Line] = []


class Wanted(msgspec.Struct, frozen=True):
    """What a snapshot is to have beside the facts."""

    counters: bool = False
    windows: tuple[str, ...] = ()
    active: int = 0
    """Requests at most."""
    since: tuple[int, int] | None = None
    """Lines and bad ones that the asker has heard of."""

    @property
    def query(self) -> str:
        """As it stands in a URL."""
        parts = ["counters=1"] if self.counters else []
        parts += [f"windows={','.join(self.windows)}"] if self.windows else []
        parts += [f"active={self.active}"] if self.active else []
        parts += [f"since={self.since[0]},{self.since[1]}"] if self.since is not None else []
        return "&".join(parts)


_DECODER = msgspec.msgpack.Decoder(Snapshot)


def encode(snapshot: Snapshot) -> bytes:
    """For another process of this version. It takes a while: for a thread."""
    try:
        return msgspec.msgpack.encode(snapshot)
    except OverflowError:  # sums of what a provider made up
        return msgspec.msgpack.encode(_bounded(snapshot))


def decode(data: bytes) -> Snapshot:
    """Raises msgspec.MsgspecError: it is nothing that `encode` made."""
    return _DECODER.decode(data)


def stats(facts: Facts, windows: Mapping[str, Reading], *, series: bool) -> dict[str, object]:
    """What `/stats` shows. `series`: with every combination of each window. It takes a while."""
    return {
        "version": __version__,
        "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "metrics": facts.metrics,
        "uptime_s": round(facts.uptime, 1),
        "workers": {"running": facts.workers, "restarts": facts.restarts},
        "active": facts.active,
        "windows": {name: summary(reading, series=series) for name, reading in windows.items()},
        "budgets": told(facts.targets, facts.budgets, facts.burning),
        "cache": {"mode": facts.mode, "counts": dict(sorted(facts.counts.items())), **facts.saved},
        "semantic": _checked(facts.counts),
        "loop_lag_ms": percentiles(facts.lag),
        "log_lines_dropped": facts.dropped,
    }


def gauges(facts: Facts) -> Iterator[tuple[str, Labels, float]]:
    """Metrics that are made of the facts."""
    active = facts.active
    yield "slipstream_active_requests", (), active.get("requests", 0)
    yield "slipstream_active_streams", (), active.get("streams", 0)
    yield "slipstream_active_calls", (), active.get("calls", 0)
    yield "slipstream_jobs", ("queued",), active.get("jobs_queued", 0)
    yield "slipstream_jobs", ("running",), active.get("jobs_running", 0)
    proxy = facts.checks.get("proxy")
    yield "slipstream_ready", (), float(proxy is not None and proxy.ready)
    yield "slipstream_workers", (), facts.workers
    yield "slipstream_worker_restarts_total", (), facts.restarts
    yield "slipstream_info", (__version__,), 1.0
    yield "slipstream_log_lines_dropped_total", (), facts.dropped
    yield "slipstream_faults_total", (), facts.faults
    yield "slipstream_memory_used_ratio", (), facts.memory
    yield "slipstream_memory_level", (), facts.memory_level
    yield from read_counts(facts.counts)
    checked = _checked(facts.counts)
    for name, key in (("", "false_hit_rate"), ("_upper", "upper")):
        share = checked[key]
        yield f"slipstream_semantic_false_hit_ratio{name}", (), float("nan") if share is None else share
    if facts.metrics:
        yield from _budget_gauges(told(facts.targets, facts.budgets, facts.burning))


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


def _bounded(value: Any) -> Any:
    """The same, with no number that is too large."""
    if isinstance(value, msgspec.Struct):
        return type(value)(*[_bounded(getattr(value, name)) for name in value.__struct_fields__])
    if isinstance(value, Reading):
        return Reading(value.seconds, _bounded(value.series))
    if isinstance(value, dict):
        return {key: _bounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_bounded(each) for each in value])
    return min(value, _LARGEST) if isinstance(value, int) else value
