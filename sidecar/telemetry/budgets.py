"""Latency budgets: which requests are over theirs, how fast a budget burns, and when that is worth an alarm.

A budget is what 95 of 100 requests stay within. Its burn rate is the share of requests that were over it,
divided by the 5 % that may be: at 1 the budget is just kept, at 20 every request is over. An alarm begins
when it burns at twice its rate, over one minute as well as over five, and ends when it is kept again over
five: what is near the line does not flap.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import msgspec

from sidecar.core.waterfall import slowest
from sidecar.tables import Budget
from sidecar.telemetry.scale import bucket, quantiles
from sidecar.telemetry.window import SPANS, Key, Reading, Window

MAY_BE_OVER = 0.05
BURNING = 2.0
KEPT = 1.0
LEAST = 10
"""Requests within five minutes without which a rate says nothing."""

Kind = Literal["ttft_ms", "total_ms"]
KINDS: tuple[Kind, ...] = ("ttft_ms", "total_ms")
_REQUESTS, _OVER = 1 << 12, (1 << 12) + 1


Target = tuple[str, Kind, float]
"""Feature, which, milliseconds."""


class Held(msgspec.Struct, frozen=True):
    """One budget that a request was held against."""

    feature: str
    kind: Kind
    value: float
    """Milliseconds it took, or had taken when it ended without."""
    over: float | None
    """Milliseconds that it took too long; None if it did not."""


class Rates(msgspec.Struct, frozen=True):
    """One budget over one window."""

    requests: int
    over: int
    p95_ms: float | None

    @property
    def burn(self) -> float | None:
        """None where nothing was held against it."""
        return round(self.over / self.requests / MAY_BE_OVER, 2) if self.requests else None


class Change(msgspec.Struct, frozen=True):
    """An alarm that begins, or ends."""

    feature: str
    kind: Kind
    target: float
    begins: bool
    rates: Rates
    """Over five minutes."""


def held(line: Mapping[str, Any], budgets: Mapping[str, Budget]) -> list[Held]:
    """What a request counts against, and how. Requests that came back to a stream, that only ask for a
    background job, or that became a WebSocket do not count; those that ended early count once they had taken
    too long."""
    feature = line["feature"]
    budget = budgets.get(feature) if feature is not None else None
    if budget is None or line["resumed_from"] is not None or line["status"] in (101, 202):
        return []
    found: list[Held] = []
    whole = line["outcome"] == "complete" and line["error"] is None
    values = (line["ttft_ms"], line["total_ms"] if whole else None)
    for kind, target, value in zip(KINDS, (budget.ttft_ms, budget.total_ms), values, strict=True):
        if not target or (kind == "ttft_ms" and not line["stream"]):
            continue
        known = value if value is not None else line["total_ms"]
        if value is not None or known > target:
            found.append(Held(feature, kind, known, round(known - target, 3) if known > target else None))
    return found


def exceeded(line: Mapping[str, Any], found: list[Held]) -> dict[str, object] | None:
    """What the line says of it: by how much, and what took most of that time. None within budget."""
    over = {one.kind: one.over for one in found if one.over is not None}
    if not over:
        return None
    until = line["ttft_ms"] if "ttft_ms" in over else None
    return {
        "budget": found[0].feature,
        "ttft_ms": over.get("ttft_ms"),
        "total_ms": over.get("total_ms"),
        "phase": slowest(line, until),
    }


class Budgets:
    """All budgets of one process, over time."""

    def __init__(self, budgets: Mapping[str, Budget], clock: Callable[[], float] = time.monotonic) -> None:
        self._budgets = budgets
        self._window = Window(clock, len(KINDS) * len(budgets))  # what is not told apart has no alarm
        self._alarms = Alarms()

    def reload(self, budgets: Mapping[str, Budget]) -> None:
        """Others from now on. What was held against one counts on where its target is the same."""
        before = set(self.targets())
        self._budgets = budgets
        same: set[Key] = {(feature, kind) for feature, kind, _ in before.intersection(self.targets())}
        self._window.keep(same.__contains__, len(KINDS) * len(budgets))
        self._alarms.burning &= same

    def add(self, one: Held) -> None:
        """Count a request."""
        cells = [(bucket(one.value), 1), (_REQUESTS, 1)]
        if one.over is not None:
            cells.append((_OVER, 1))
        self._window.add((one.feature, one.kind), cells)

    def targets(self) -> list[Target]:
        """All there are."""
        return [
            (feature, kind, target)
            for feature, budget in self._budgets.items()
            for kind in KINDS
            if (target := getattr(budget, kind))
        ]

    def alert(self, feature: str, kind: Kind) -> bool:
        """Whether it burns too fast."""
        return (feature, kind) in self._alarms.burning

    @property
    def burning(self) -> list[tuple[str, Kind]]:
        """Those that burn too fast."""
        return sorted(self._alarms.burning)

    def readings(self) -> dict[str, Reading]:
        """What was held against them, by window."""
        return {name: self._window.read(name) for name in SPANS}

    def rates(self, window: str) -> dict[Key, Rates]:
        """Of all that something was held against."""
        return rates_of(self._window.read(window))

    def changes(self) -> list[Change]:
        """Alarms that begin or end now."""
        return self._alarms.changes(self.targets(), self.rates("1m"), self.rates("5m"))


class Alarms:
    """Which budgets burn too fast."""

    def __init__(self) -> None:
        self.burning: set[tuple[str, Kind]] = set()

    def changes(
        self, targets: Sequence[Target], short: Mapping[Key, Rates], longer: Mapping[Key, Rates]
    ) -> list[Change]:
        """Alarms that begin or end now, by the rates over one minute and over five."""
        found = []
        for feature, kind, target in targets:
            key = (feature, kind)
            rates = longer.get(key, _NONE)
            begins = _begins(short.get(key, _NONE), rates)
            if key not in self.burning and begins:
                self.burning.add(key)
                found.append(Change(feature, kind, target, begins=True, rates=rates))
            elif key in self.burning and (rates.burn or 0.0) < KEPT:
                self.burning.discard(key)
                found.append(Change(feature, kind, target, begins=False, rates=rates))
        return found


def rates_of(reading: Reading) -> dict[Key, Rates]:
    """Of all that something was held against in a window."""
    return {key: _rates(cells) for key, cells in reading.series.items()}


def told(
    targets: Sequence[Target], readings: Mapping[str, Reading], burning: Collection[tuple[str, Kind]]
) -> list[dict[str, Any]]:
    """All budgets, as `/stats` has them."""
    by_window = {name: rates_of(reading) for name, reading in readings.items()}
    return [
        {
            "feature": feature,
            "budget": kind,
            "target_ms": target,
            "alert": (feature, kind) in burning,
            "windows": {name: _told(rates.get((feature, kind), _NONE)) for name, rates in by_window.items()},
        }
        for feature, kind, target in targets
    ]


def _told(rates: Rates) -> dict[str, Any]:
    return {"requests": rates.requests, "over": rates.over, "burn": rates.burn, "p95_ms": rates.p95_ms}


_NONE = Rates(0, 0, None)


def _begins(short: Rates, longer: Rates) -> bool:
    if longer.requests < LEAST or not short.requests:
        return False
    return (short.burn or 0.0) >= BURNING and (longer.burn or 0.0) >= BURNING


def _rates(cells: Mapping[int, int]) -> Rates:
    took = {cell: count for cell, count in cells.items() if cell < _REQUESTS}
    (p95,) = quantiles(took, (0.95,))
    return Rates(cells.get(_REQUESTS, 0), cells.get(_OVER, 0), None if p95 is None else round(p95, 3))
