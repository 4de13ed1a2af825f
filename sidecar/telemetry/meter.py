"""What becomes of each latency line: held against its budget, written to the log, counted.

A request's figures are made when it has ended; while it runs nothing is counted, so that an event costs
nothing.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from structlog.typing import FilteringBoundLogger

from sidecar.core.latency import NOTHING, Aside
from sidecar.tables import Config
from sidecar.telemetry.budgets import Budgets, Change, Held, exceeded, held, told
from sidecar.telemetry.counting import Call, Counting, error_type, is_good
from sidecar.telemetry.figures import cells_of, gaps_of, overflow, saved_ms, summary
from sidecar.telemetry.log import now
from sidecar.telemetry.metrics import Metrics, Names
from sidecar.telemetry.window import Reading, Window

Line = dict[str, Any]
Span = Callable[[Mapping[str, Any], float, bytes | None], None]
"""Takes a line, when its request began (unix seconds), and the request's `traceparent`."""

RECENT = 200
"""Requests that are remembered after their end."""
ERRORS = 50
_BATCH = 32


class Meter:
    """Takes the lines of one process."""

    def __init__(
        self,
        config: Config,
        write: Callable[[Line], None],
        log: FilteringBoundLogger,
        on_fault: Callable[[BaseException], None],
        places: Mapping[str, tuple[str, int]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`write` writes a line, `log` everything else, `on_fault` is told of mistakes of our own. `places`:
        host and port of upstreams by name."""
        self._write = write
        self._log = log
        self._on_fault = on_fault
        self._targets = config.budgets
        self._on = config.metrics.enabled
        self._window = Window(clock, overflow=overflow)
        self._features = Names(known=config.budgets)
        self._counting = Counting(Metrics(), places)
        self.metrics = self._counting.metrics
        self.metrics.read_from(self._settled)
        self.budgets = Budgets(config.budgets, clock)
        self._recent: deque[Line] = deque(maxlen=RECENT)
        self._errors: deque[Line] = deque(maxlen=ERRORS)
        self._taken = 0
        self._failed = 0
        self._saved: dict[str, int | float] = {
            "saved_seconds": 0.0,
            "saved_input_tokens": 0,
            "saved_output_tokens": 0,
        }
        self._pending: list[tuple[Line, Aside, list[Held]]] = []
        """Lines that are not counted yet: several in a row take less time, with all that it takes still in
        the processor's caches."""
        self._calls: list[Call] = []
        self.span: Span | None = None

    def reload(self, config: Config) -> None:
        """Go by that configuration from now on."""
        self.settle()
        self._targets = config.budgets
        self._features.know(config.budgets)
        self.budgets.reload(config.budgets)

    def take(self, line: Line, aside: Aside = NOTHING) -> None:
        """A request has ended, and this is its line. Never raises."""
        try:
            against = held(line, self._targets)
            line["budget_exceeded"] = exceeded(line, against) if against else None
            line["timestamp"], line["level"], line["event"] = now(), "info", "request"
            self._write(line)
            if self._on:
                self._pending.append((line, aside, against))
                if len(self._pending) >= _BATCH:
                    self.settle()
            if self.span is not None:
                self.span(line, time.time() - line["total_ms"] / 1000, aside.parent)
        except Exception as error:  # noqa: BLE001 - reason: the answer is out; its line must not disturb it
            self._on_fault(error)

    def settle(self) -> None:
        """Count what has come. Whoever reads figures calls this first. Never raises."""
        pending, self._pending = self._pending, []
        calls, self._calls = self._calls, []
        for call in calls:
            try:
                self._counting.call(call)
            except Exception as error:  # noqa: BLE001 - reason: the others are to be counted
                self._on_fault(error)
        for line, aside, against in pending:
            try:
                self._count(line, aside, against)
            except Exception as error:  # noqa: BLE001 - reason: the others are to be counted
                self._on_fault(error)

    def take_call(self, make: Callable[[], Call | None]) -> None:
        """A call to an upstream has ended; `make` says which. Never raises."""
        if not self._on:
            return
        try:
            call = make()
            if call is not None:
                self._calls.append(call)
        except Exception as error:  # noqa: BLE001 - reason: as above
            self._on_fault(error)

    def _settled(self) -> Iterable[tuple[str, tuple[str, ...], float]]:
        """Asked before metrics are read; it has none of its own."""
        self.settle()
        return ()

    def take_job(self, line: Mapping[str, Any]) -> None:
        """A background job has ended; `line`: its fields in the log. Never raises."""
        try:
            if self._on:
                self._counting.job(line["status"])
                for one in held(_as_request(line), self._targets):
                    self._hold(one)
        except Exception as error:  # noqa: BLE001 - reason: as above
            self._on_fault(error)

    @property
    def recent(self) -> Iterator[Line]:
        """Lines of requests that have ended, the latest one first."""
        self.settle()
        return reversed(self._recent)

    @property
    def errors(self) -> Iterator[Line]:
        """Those that ended badly, likewise."""
        self.settle()
        return reversed(self._errors)

    @property
    def taken(self) -> int:
        """Lines so far."""
        self.settle()
        return self._taken

    @property
    def failed(self) -> int:
        """Lines so far of requests that ended badly."""
        self.settle()
        return self._failed

    @property
    def saved(self) -> dict[str, int | float]:
        """By answers out of the cache, since the process began."""
        self.settle()
        return dict(self._saved)

    def prepare(self, window: str, *, series: bool) -> Callable[[], dict[str, Any]]:
        """A window of `SPANS`, as `/stats` has it. What is told is what was counted until now; what is
        returned does the work, and may do so in a thread."""
        reading = self.reading(window)
        return lambda: summary(reading, series=series)

    def reading(self, window: str) -> Reading:
        """A window of `SPANS`, as it is. The caller owns what it gets."""
        self.settle()
        return self._window.read(window)

    def budget_readings(self) -> dict[str, Reading]:
        """What was held against budgets, by window."""
        self.settle()
        return self.budgets.readings()

    def watch(self) -> None:
        """Say which alarms begin and end now. To be called now and then."""
        self.settle()
        self._window.beat()
        for change in self.budgets.changes() if self._on else ():
            self._tell(change)

    def budget_rates(self) -> list[dict[str, Any]]:
        """All budgets, as `/stats` has them."""
        return told(self.budgets.targets(), self.budget_readings(), self.budgets.burning)

    def _count(self, line: Line, aside: Aside, against: list[Held]) -> None:
        gaps = gaps_of(aside)
        good = is_good(line)
        model = self.metrics.names.get(line["model"], good=good)
        feature = self._features.get(line["feature"], good=good)
        key = (line["upstream"], model or None, feature or None, line["cache"])
        self._window.add(key, cells_of(line, aside, gaps))
        self._counting.request(line, aside)
        for one in against:
            self._hold(one)
        if aside.saved is not None:
            self._saved["saved_seconds"] += saved_ms(line, aside) / 1000
            self._saved["saved_input_tokens"] += line["input_tokens"] or 0
            self._saved["saved_output_tokens"] += line["output_tokens"] or 0
        self._taken += 1
        self._recent.append(line)
        if error_type(line) is not None:
            self._errors.append(line)
            self._failed += 1

    def _hold(self, one: Held) -> None:
        self.budgets.add(one)
        verdict = "within" if one.over is None else "over"
        self.metrics.count("slipstream_budget_requests_total", (one.feature, one.kind, verdict))

    def _tell(self, change: Change) -> None:
        fields = {
            "feature": change.feature,
            "budget": change.kind,
            "target_ms": change.target,
            "burn": change.rates.burn,
            "p95_ms": change.rates.p95_ms,
            "requests": change.rates.requests,
        }
        if change.begins:
            self._log.warning("budget_burning", **fields)
        else:
            self._log.info("budget_recovered", **fields)


def _as_request(line: Mapping[str, Any]) -> Line:
    """A job, as a budget looks at requests."""
    return {
        "feature": line["feature"],
        "resumed_from": None,
        "status": None,
        "outcome": line["status"],
        "error": line["error"],
        "stream": False,
        "ttft_ms": None,
        "total_ms": line["total_ms"] or 0.0,
    }
