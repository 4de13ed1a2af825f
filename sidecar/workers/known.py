"""What a supervisor knows of one worker process: the latest that it has said of each part, and of its lines
those that were heard of."""

from collections import deque
from collections.abc import Collection

import msgspec

from sidecar.serving.snapshot import Check, Facts, Line, Snapshot, Wanted
from sidecar.telemetry.counted import Counted
from sidecar.telemetry.meter import ERRORS, RECENT
from sidecar.telemetry.process import Process
from sidecar.telemetry.window import SPANS, Reading
from sidecar.web.admin.overview import ACTIVE, COUNTERS, LINES

_ACTIVE = 200
"""Requests that are asked for."""


class Heard(msgspec.Struct):
    """Lines that are new."""

    recent: list[Line]
    """The latest first."""
    errors: list[Line]


class Known:
    """One process."""

    def __init__(self) -> None:
        self.facts: Facts | None = None
        self.counted: Counted | None = None
        self.process: Process = {}
        self.windows: dict[str, Reading] = {}
        self.active: list[Line] = []
        self.recent: deque[Line] = deque(maxlen=RECENT)
        """The latest last."""
        self.errors: deque[Line] = deque(maxlen=ERRORS)
        self.silent: str | None = None
        """Why it has not answered when it was asked last."""
        self._heard = (0, 0)
        self._at: dict[str, float] = {}
        """Parts, and how long it had been up when it told them."""

    @property
    def check(self) -> Check:
        """Whether it serves requests."""
        if self.silent is not None:
            return Check(ready=False, why=f"it does not answer: {self.silent}")
        if self.facts is None:
            return Check(ready=False, why="it starts")
        return self.facts.checks.get("proxy", Check(ready=False, why="it does not say"))

    def wanted(self, parts: Collection[str]) -> Wanted:
        """What to ask it for."""
        return Wanted(
            counters=COUNTERS in parts,
            windows=tuple([name for name in SPANS if name in parts]),
            active=_ACTIVE if ACTIVE in parts else 0,
            since=self._heard if LINES in parts else None,
        )

    def take(self, snapshot: Snapshot, parts: Collection[str]) -> Heard:
        """It has answered. Of two answers that cross each other, the later one counts."""
        facts, self.silent = snapshot.facts, None
        if self._later("", facts):
            self.facts = facts
        if snapshot.counted is not None and self._later(COUNTERS, facts):
            self.counted, self.process = snapshot.counted, snapshot.process
        for name, reading in snapshot.windows.items():
            if self._later(name, facts):
                self.windows[name] = reading
        if ACTIVE in parts and self._later(ACTIVE, facts):
            self.active = snapshot.active
        if LINES not in parts:
            return Heard([], [])
        taken, failed = self._heard
        heard = Heard(
            snapshot.recent[: max(facts.taken - taken, 0)], snapshot.errors[: max(facts.failed - failed, 0)]
        )
        self._heard = max(facts.taken, taken), max(facts.failed, failed)
        self.recent.extend(reversed(heard.recent))
        self.errors.extend(reversed(heard.errors))
        return heard

    def _later(self, part: str, facts: Facts) -> bool:
        if facts.uptime < self._at.get(part, 0.0):
            return False
        self._at[part] = facts.uptime
        return True
