"""Snapshots of several processes, as one.

What is counted adds up, also what was counted by processes that have ended. What is there now is only that of
those which run.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from sidecar.serving.snapshot import Facts
from sidecar.telemetry.counted import Counted, Room, add_up, exact
from sidecar.telemetry.process import CPU, Process
from sidecar.telemetry.window import Reading
from sidecar.telemetry.window import add_up as add_up_readings

K = TypeVar("K")
V = TypeVar("V", int, float)


def together(facts: Sequence[Facts]) -> Facts:
    """All of them; they stay as they are. What is configured is as the first has it, and nothing is said of
    readiness, which does not add up. At least one."""
    first = facts[0]
    windows = dict.fromkeys([name for one in facts for name in one.budgets])
    readings: dict[str, Reading] = {
        name: add_up_readings([one.budgets[name] for one in facts if name in one.budgets]) for name in windows
    }
    return Facts(
        began=min(one.began for one in facts),
        uptime=max(one.uptime for one in facts),
        metrics=first.metrics,
        mode=first.mode,
        active=_sums([one.active for one in facts]),
        counts=_sums([one.counts for one in facts]),
        saved=_sums([one.saved for one in facts]),
        lag=_sums([one.lag for one in facts]),
        dropped=sum(one.dropped for one in facts),
        memory=max(one.memory for one in facts),
        memory_level=max(one.memory_level for one in facts),
        faults=sum(one.faults for one in facts),
        taken=sum(one.taken for one in facts),
        failed=sum(one.failed for one in facts),
        targets=first.targets,
        budgets=readings,
        burning=sorted({key for one in facts for key in one.burning}),
        workers=sum(one.workers for one in facts),
        restarts=sum(one.restarts for one in facts),
    )


class Lasting(msgspec.Struct, frozen=True):
    """What stays of processes that have ended: counters must not go down."""

    facts: Facts
    counted: Counted = msgspec.field(default_factory=Counted)
    process: Process = {}

    def with_(self, facts: Facts, counted: Counted | None, process: Process, room: Room) -> "Lasting":
        """Also of another one, of which this was the last."""
        left = replace(
            facts,
            active={},
            memory=0.0,
            memory_level=0,
            checks={},
            budgets={},
            burning=[],
            targets=[],
            workers=0,
        )
        both = [self.counted, replace(counted, gauges={})] if counted is not None else [self.counted]
        return Lasting(
            together([self.facts, left]),
            add_up(both, room),
            {CPU: self.process.get(CPU, 0.0) + exact(process.get(CPU, 0.0))},
        )


def _sums(parts: Iterable[Mapping[K, V]]) -> dict[K, V]:
    found: dict[K, V] = {}
    for part in parts:
        for key, value in part.items():
            found[key] = found[key] + value if key in found else value
    return found
