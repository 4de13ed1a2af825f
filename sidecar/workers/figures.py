"""The figures of all worker processes, as the supervisor's admin port shows them.

Each worker is asked on its Unix socket for what it has counted, and what is told is made of the sums. One
that does not answer in a moment is shown as it was, and `/readyz` names it. Counters never go down: what a
process had counted when it was asked last stays when it ends, and only that is lost which came after. So all
are asked every few seconds, whoever looks or not.
"""

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from sidecar.cache.worker import Worker
from sidecar.config import Config
from sidecar.serving.merging import Lasting, together
from sidecar.serving.snapshot import Check, Facts, Line, Snapshot, decode, gauges, stats
from sidecar.telemetry.budgets import Alarms, rates_of
from sidecar.telemetry.counted import Counted, Room, add_up
from sidecar.telemetry.figures import together as readings_together
from sidecar.telemetry.meter import ERRORS, RECENT
from sidecar.telemetry.metrics import render
from sidecar.telemetry.process import OwnProcess
from sidecar.telemetry.window import SPANS, Reading
from sidecar.web.admin.overview import COUNTERS, LINES
from sidecar.web.admin.private import SNAPSHOT
from sidecar.workers.asking import AskError, Told, ask
from sidecar.workers.known import Known
from sidecar.workers.readiness import WORKER, readiness

PERIOD = 3.0
"""Seconds after which all are asked, whoever looks or not."""
MEMORY = 0.5
"""Seconds for which nobody is asked again."""
_PATIENCE = 1.0
"""Seconds that a worker is waited for."""
_AGAIN = 0.1
"""The same of one that has not answered the last time: others wait for what is told."""
_LARGEST = 64 << 20
"""Bytes of an answer. An hour of the most series that there may be is a few megabytes."""
_FACTS = "facts"


class Gathered:
    """See `Overview`. `start` and `stop`."""

    def __init__(
        self,
        config: Config,
        sockets: Callable[[], Mapping[int, Path]],
        on_fault: Callable[[BaseException], None],
        restarts: Callable[[], int] = lambda: 0,
    ) -> None:
        """`sockets`: where the workers that there should be can be asked, by number. `on_fault` is told of
        mistakes of our own. `restarts`: how many processes took the place of one that had ended."""
        self._sockets = sockets
        self._on_fault = on_fault
        self._restarts = restarts
        self.faults = 0
        """The supervisor's own."""
        self.memory = MEMORY
        self._began, self._born = time.monotonic(), time.time()
        self._known: dict[int, Known] = {}
        self._served: set[int] = set()
        """Those that have been ready."""
        nothing = Facts(self._born, 0.0, config.metrics.enabled, config.cache.mode, workers=0)
        self._ended = Lasting(nothing)
        self._room = Room()
        self._alarms = Alarms()
        self._process = OwnProcess()
        self._recent: deque[Line] = deque(maxlen=RECENT)
        """As they were heard of, whoever had them, the latest last."""
        self._past: deque[Line] = deque(maxlen=RECENT)
        self._past_errors: deque[Line] = deque(maxlen=ERRORS)
        """Of processes that have ended."""
        self._heard = 0
        self._flights: dict[str, _Flight] = {}
        self._worker = Worker("slipstream-gather", on_fault)
        self._timer: asyncio.TimerHandle | None = None

    # For the supervisor.

    def start(self) -> None:
        """Ask now and then, from now on."""
        self._beat()

    async def stop(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()
        tasks = {flight.task for flight in self._flights.values()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._worker.stop()

    def served(self, number: int) -> None:
        """A worker serves."""
        self._served.add(number)

    def ended(self, number: int) -> None:
        """A worker's process has ended. To be called before there is another one in its place."""
        known = self._known.pop(number, None)
        if known is None or known.facts is None:
            return
        self._ended = self._ended.with_(known.facts, known.counted, known.process, self._room)
        self._past.extend(known.recent)
        self._past_errors.extend(known.errors)

    # For those who ask.

    async def refresh(self, *parts: str) -> None:
        """See `Overview`. Whoever leaves takes it from nobody."""
        wanted = (_FACTS, *parts)
        missing = frozenset([part for part in wanted if not self._is_fresh(part)])
        if missing:
            flight = _Flight(asyncio.ensure_future(self._ask_all(missing)))
            self._flights |= dict.fromkeys(missing, flight)
        await asyncio.wait({self._flights[part].task for part in wanted})

    def prepare(self, window: str | None = None) -> Callable[[], dict[str, object]]:
        """See `Overview`."""
        facts = self._facts()
        names = [window] if window is not None else list(SPANS)
        known = list(self._known.values())
        parts = {name: [one.windows[name] for one in known if name in one.windows] for name in names}

        def make() -> dict[str, object]:
            windows: dict[str, Reading] = {name: readings_together(some) for name, some in parts.items()}
            return stats(facts(), windows, series=window is None)

        return make

    def metrics(self, accept: str) -> Callable[[], tuple[bytes, str]]:
        """See `Overview`."""
        facts, known = self._facts(), list(self._known.values())
        counted = [self._ended.counted, *[one.counted for one in known if one.counted is not None]]
        processes = [self._ended.process, *[one.process for one in known]]

        def make() -> tuple[bytes, str]:
            total: Counted = add_up(counted, self._room)
            total.put(gauges(facts()))
            return render(total, self._process, processes, accept)

        return make

    def active(self, most: int) -> list[Line]:
        """See `Overview`."""
        rows = [row for known in self._known.values() for row in known.active]
        return heapq.nlargest(most, rows, key=lambda row: row["age_ms"])

    def recent(self, most: int) -> list[Line]:
        """See `Overview`."""
        return _latest([self._past, *[known.recent for known in self._known.values()]], most)

    def errors(self, most: int) -> list[Line]:
        """See `Overview`."""
        return _latest([self._past_errors, *[known.errors for known in self._known.values()]], most)

    def since(self, mark: int, most: int) -> tuple[int, list[Line]]:
        """See `Overview`."""
        new = max(min(self._heard - mark, most, len(self._recent)), 0)
        return self._heard, [self._recent[-1 - at] for at in range(new)]

    def find(self, request_id: str) -> Line | None:
        """See `Overview`."""
        kept = [self._past, *[known.recent for known in self._known.values()]]
        return next((line for lines in kept for line in lines if line["request_id"] == request_id), None)

    def ready(self) -> dict[str, Check]:
        """See `Overview`."""
        return readiness(sorted(self._sockets()), self._known, self._served)

    @property
    def shared(self) -> bool:
        """Whether all workers are known to have the same stored answers: all can use the data folder."""
        cache = self.ready().get("cache")
        return cache is not None and cache.ready

    def _facts(self) -> Callable[[], Facts]:
        """Of all; what is returned adds them up."""
        parts = [known.facts for known in self._known.values() if known.facts is not None]
        checks, restarts = self.ready(), self._restarts()
        workers = sum(check.ready for name, check in checks.items() if name.startswith(WORKER))
        burning, uptime, faults = sorted(self._alarms.burning), time.monotonic() - self._began, self.faults

        def make() -> Facts:
            total = together([*parts, self._ended.facts])
            total.checks, total.workers, total.restarts = checks, workers, restarts
            total.burning, total.uptime = burning, uptime
            total.faults += faults
            return total

        return make

    # Asking.

    def _beat(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(PERIOD, self._beat)
        parts = frozenset({_FACTS, COUNTERS, LINES})
        if not any(part in self._flights and not self._flights[part].task.done() for part in parts):
            flight = _Flight(asyncio.ensure_future(self._ask_all(parts, patient=True)))
            self._flights |= dict.fromkeys(parts, flight)

    def _is_fresh(self, part: str) -> bool:
        """Whether it is being asked for, or has been just now."""
        flight = self._flights.get(part)
        if flight is None or flight.task.cancelled():
            return False
        return flight.ended is None or time.monotonic() - flight.ended < self.memory

    async def _ask_all(self, parts: frozenset[str], *, patient: bool = False) -> None:
        """Never raises."""
        try:
            sockets = dict(self._sockets())
            for number in self._known.keys() - sockets.keys():
                self.ended(number)
            asked = [self._ask(number, path, parts, patient=patient) for number, path in sockets.items()]
            heard = [line for lines in await asyncio.gather(*asked) for line in lines]
            heard.sort(key=_when)
            self._recent.extend(heard)
            self._heard += len(heard)
            self._watch()
        except Exception as error:  # noqa: BLE001 - reason: whoever asked is told what is known
            self._on_fault(error)

    async def _ask(self, number: int, path: Path, parts: frozenset[str], *, patient: bool) -> list[Line]:
        """Lines of it that nobody has heard of."""
        known = self._known.setdefault(number, Known())
        patience = _PATIENCE if patient or known.silent is None else _AGAIN
        target = f"{SNAPSHOT}?{known.wanted(parts).query}"
        try:
            told = await ask(path, target, patience, _LARGEST)
            snapshot = await self._worker.result(lambda: _read(told))
        except AskError as error:
            known.silent = str(error)
            return []
        if self._known.get(number) is not known:
            return []  # it ended meanwhile, and was counted without this
        if known.facts is not None and known.facts.began != snapshot.facts.began:
            self.ended(number)  # another process is in its place, and nobody has said so
            known = self._known[number] = Known()
            parts -= {LINES}  # it was asked for those that came after another one's
        heard = known.take(snapshot, parts)
        if known.check.ready:
            self._served.add(number)
        return heard.recent

    def _watch(self) -> None:
        """Whether budgets burn, by the requests of all."""
        facts = [one.facts for one in self._known.values() if one.facts is not None]
        if not facts:
            return
        total = together(facts)
        short, longer = total.budgets.get("1m"), total.budgets.get("5m")
        if short is not None and longer is not None:
            self._alarms.changes(total.targets, rates_of(short), rates_of(longer))


class _Flight:
    """All are being asked for something."""

    __slots__ = ("ended", "task")

    def __init__(self, task: asyncio.Future[None]) -> None:
        self.task = task
        self.ended: float | None = None
        task.add_done_callback(self._done)

    def _done(self, _task: asyncio.Future[None]) -> None:
        self.ended = time.monotonic()


def _read(told: Told) -> Snapshot:
    """Raises AskError."""
    if told.status != 200:
        raise AskError(f"status {told.status}", reached=True)
    try:
        return decode(told.body)
    except msgspec.MsgspecError:
        raise AskError("what it says is no snapshot", reached=True) from None


def _when(line: Line) -> str:
    return str(line["timestamp"])


def _latest(kept: Iterable[Iterable[Line]], most: int) -> list[Line]:
    """The latest first. Of the same time, those that came later."""
    found = sorted([line for lines in kept for line in lines], key=_when)
    return found[: -most - 1 : -1]
