"""Figures of several processes, added up: they are those of one process that had seen it all."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sidecar.core.latency import Aside
from sidecar.serving.board import Board
from sidecar.serving.merging import Lasting
from sidecar.serving.merging import together as facts_together
from sidecar.serving.snapshot import Facts, Wanted, decode, encode
from sidecar.tables import Budget, Config
from sidecar.telemetry.budgets import LEAST
from sidecar.telemetry.counted import COUNTER_SERIES, HISTOGRAM_SERIES, Counted, Histogram, Room, add_up
from sidecar.telemetry.figures import cells_of, together
from sidecar.telemetry.log import make_logger
from sidecar.telemetry.meter import Meter
from sidecar.telemetry.process import OwnProcess
from sidecar.telemetry.window import MOST, OTHER, SLOT, SPANS, Reading
from sidecar.web.admin.overview import ACTIVE, COUNTERS, LINES
from sidecar.workers.figures import Gathered
from sidecar.workers.known import Known
from tests.telemetry.lines_rig import PLACES, TEXT, call, gaps, job, line, parsed
from tests.telemetry.test_window import Clock

BUDGETS = {"chat": Budget(500, 5000), "batch": Budget(None, 600.0)}
CONFIG = Config(budgets=BUDGETS)
ALL = [*SPANS, COUNTERS, LINES]
COUNTS = ["stored", "verify_right", "verify_wrong", "not_stored_size", "guard_numbers", "lookup_late"]


class Process:
    """A worker, but for what serves requests."""

    def __init__(self, clock):
        self.faults = []
        log = make_logger(SimpleNamespace(write=lambda _line: None), "json", "info")
        self.meter = Meter(CONFIG, lambda _line: None, log, self.faults.append, PLACES, clock)
        self.counts = Counter()
        self.front = SimpleNamespace(active=0, visits=[], draining=False, full=None)
        jobs = SimpleNamespace(running=0, queue=[])
        cache = SimpleNamespace(counts=self.counts, opening=False)
        self.board = Board(CONFIG, self.meter, self.front, [], jobs, cache, None, lambda: 0)
        self.board.started = True

    def take(self, event):
        kind, given_ = event
        if kind == "line":
            changes, spaces, saved = given_
            self.meter.take(line(**changes), Aside(gaps=gaps(*spaces), saved=saved))
        elif kind == "call":
            self.meter.take_call(lambda: call(**given_))
        elif kind == "job":
            self.meter.take_job(job(**given_))
        elif kind == "lag":
            self.board.late(given_)
        else:
            self.counts[given_] += 1
        self.meter.settle()
        assert not self.faults


class Together:
    """A supervisor, and its workers."""

    def __init__(self, clock, count):
        self.clock = clock
        self.workers = {number: Process(clock) for number in range(count)}
        self.gathered = Gathered(CONFIG, lambda: dict.fromkeys(self.workers), pytest.fail)

    def ask(self, *parts):
        for number, worker in self.workers.items():
            known = self.gathered._known.setdefault(number, Known())
            wanted = known.wanted(parts)
            known.take(decode(encode(worker.board.snapshot(wanted)())), parts)
            self.gathered._served.add(number)
        self.gathered._watch()

    def restart(self, number):
        self.ask(*ALL)
        self.gathered.ended(number)
        self.workers[number] = Process(self.clock)


def scrape(overview):
    """All samples but the process's, buckets as well."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parsed(overview.metrics(TEXT), TEXT).values()
        for sample in family.samples
        if not sample.name.startswith(("process_", "slipstream_worker"))
    }


def told(overview, window=None):
    stats = json.loads(json.dumps(overview.prepare(window)()))
    for name in ("time", "uptime_s", "workers"):
        del stats[name]
    saved = {name: stats["cache"].pop(name) for name in list(stats["cache"]) if name.startswith("saved_")}
    return stats, saved


times = st.one_of(st.none(), st.floats(0.5, 20_000))
lines = st.tuples(
    st.fixed_dictionaries(
        {
            "upstream": st.sampled_from(["a", "b", None]),
            "model": st.sampled_from(["m", "n", "你好", None]),
            "feature": st.sampled_from(["chat", "search", None]),
            "cache": st.sampled_from(["miss", "hit", "collapsed", "bypass"]),
            "outcome": st.sampled_from(["complete", "cancelled", "truncated", "timeout"]),
            "status": st.sampled_from([200, 429, 500]),
            "stream": st.booleans(),
            "ttft_ms": times,
            "total_ms": st.floats(0.5, 50_000),
            "input_tokens": st.one_of(st.none(), st.integers(0, 1 << 40)),
        }
    ),
    st.lists(st.floats(0.001, 9.0), max_size=5),
    st.one_of(st.none(), st.floats(0.0, 30.0)),
)
events = st.one_of(
    st.tuples(st.just("line"), lines),
    st.tuples(
        st.just("call"),
        st.fixed_dictionaries({"model": st.sampled_from(["m", "n"]), "total": st.floats(0.001, 99)}),
    ),
    st.tuples(st.just("job"), st.fixed_dictionaries({"status": st.sampled_from(["complete", "failed"])})),
    st.tuples(st.just("lag"), st.floats(0.0, 2.0)),
    st.tuples(st.just("count"), st.sampled_from(COUNTS)),
)
scripts = st.lists(
    st.tuples(st.integers(0, 2), events, st.sampled_from([0.0, 0.0, 0.3, 7.0, SLOT, 70.0])), max_size=40
)


@settings(max_examples=60, deadline=None)
@given(scripts, st.sampled_from(list(SPANS)))
def test_any_partition_makes_the_same_figures(script, window):
    clock = Clock()
    one, several = Process(clock), Together(clock, 3)
    for number, event, passes in script:
        one.take(event)
        several.workers[number].take(event)
        clock.now += passes
        several.ask(*ALL)
        one.meter.watch()
    several.ask(*ALL)
    gathered = several.gathered
    assert scrape(gathered) == pytest.approx(scrape(one.board), rel=1e-9, abs=1e-5, nan_ok=True)
    for asked in (None, window):
        (ours, ours_saved), (theirs, theirs_saved) = told(gathered, asked), told(one.board, asked)
        assert ours == theirs
        assert ours_saved == pytest.approx(theirs_saved)
        assert [type(value) for value in ours_saved.values()] == [float, int, int]
    recent = [each["request_id"] for each in gathered.recent(200)]
    assert len(recent) == len(one.board.recent(200))
    assert len(gathered.errors(50)) == len(one.board.errors(50))
    assert gathered.since(0, 200)[0] == 0  # nobody has heard of these by asking


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(st.tuples(st.integers(0, 2), events), st.integers(0, 2)), max_size=30))
def test_counters_stay_whatever_ends(script):
    clock = Clock()
    one, several = Process(clock), Together(clock, 3)
    seen = {}
    for step in script:
        if isinstance(step, int):
            several.restart(step)
        else:
            one.take(step[1])
            several.workers[step[0]].take(step[1])
        several.ask(COUNTERS)
        found = {
            key: value
            for key, value in scrape(several.gathered).items()
            if key[0].endswith(("_total", "_count", "_sum"))
        }
        for key, value in seen.items():
            assert found[key] >= value, key  # by not so much as the last bit: that would be a restart
        seen = found
    several.ask(COUNTERS)
    theirs = {
        key: value
        for key, value in scrape(one.board).items()
        if key[0].endswith(("_total", "_count", "_sum"))
    }
    found = {key: value for key, value in scrape(several.gathered).items() if key in theirs}
    assert found == pytest.approx(theirs, rel=1e-9, abs=1e-4)


def test_an_alarm_is_one_of_all_together():
    """None of them has enough requests to say; all together have."""
    clock = Clock()
    several = Together(clock, 4)
    event = ("line", ({"ttft_ms": 9000.0, "total_ms": 9000.0}, [], None))
    for at in range(LEAST):
        several.workers[at % 4].take(event)
    several.ask()
    assert not any(worker.meter.budgets.changes() for worker in several.workers.values())
    alerts = {
        key: value for key, value in scrape(several.gathered).items() if key[0] == "slipstream_budget_alert"
    }
    assert sorted(alerts.values()) == [0.0, 1.0, 1.0]
    (chat, *_) = several.gathered.prepare("1m")()["budgets"]
    assert (chat["alert"], chat["windows"]["5m"]["requests"]) == (True, LEAST)
    # And it ends as one.
    clock.now += 400
    several.ask()
    assert not any(one["alert"] for one in several.gathered.prepare("1m")()["budgets"])


def test_nothing_is_forgotten():
    """A fact that is not added up would be that of one process, or none."""
    facts = Facts(
        began=5.0,
        uptime=7.0,
        metrics=True,
        mode="exact",
        active={"requests": 3},
        counts={"stored": 2},
        saved={"saved_seconds": 1.5},
        lag={100: 4},
        dropped=1,
        memory=0.5,
        memory_level=1,
        faults=2,
        taken=9,
        failed=3,
        targets=[("chat", "ttft_ms", 500.0)],
        budgets={"1m": Reading(60.0, {("chat", "ttft_ms"): {100: 1}})},
        burning=[("chat", "ttft_ms")],
        workers=1,
        restarts=1,
    )
    blank = Facts(0.0, 0.0, False, "")
    unset = {name for name in facts.__struct_fields__ if getattr(facts, name) == getattr(blank, name)}
    assert unset == {"checks", "workers"}
    assert facts_together([facts]) == facts
    both = facts_together([facts, facts])
    assert (both.counts, both.memory, both.workers, both.lag) == ({"stored": 4}, 0.5, 2, {100: 8})
    lasting = Lasting(replace(blank, workers=0)).with_(facts, None, {}, Room()).facts
    assert (lasting.counts, lasting.taken, lasting.faults, lasting.dropped) == ({"stored": 2}, 9, 2, 1)
    assert (lasting.active, lasting.memory_level, lasting.workers, lasting.burning) == ({}, 0, 0, [])


def test_of_two_answers_that_cross_each_other_the_later_one_counts():
    process, known = Process(Clock()), Known()
    event = ("line", ({"model": "m"}, [], None))
    process.take(event)
    parts = [*ALL, ACTIVE]
    wanted = known.wanted(parts)
    # Encoded at once: in one process they would share what they tell of.
    earlier = encode(process.board.snapshot(wanted)())
    process.take(event)
    later = encode(process.board.snapshot(wanted)())
    first = known.take(decode(later), parts)
    second = known.take(decode(earlier), parts)
    assert (len(first.recent), second.recent, len(known.recent)) == (2, [], 2)
    assert known.facts is not None and known.facts.taken == 2
    assert known.counted is not None
    assert sum(known.counted.counters["slipstream_requests_total"].values()) == 2
    counts = [sum(sum(cells.values()) for cells in one.series.values()) for one in known.windows.values()]
    assert counts == [
        sum(sum(cells.values()) for cells in process.meter.reading(name).series.values()) for name in SPANS
    ]


# Caps.


def counted(names, value=1.0):
    labels = {(name, "502"): value for name in names}
    series = {(name, "hit"): Histogram({100: 1}, 0.5) for name in names}
    return Counted({"slipstream_upstream_errors_total": labels}, {"slipstream_overhead_seconds": series})


def test_more_series_than_there_may_be_are_other_for_good():
    room = Room()
    first, second = [f"a{n}" for n in range(800)], [f"b{n}" for n in range(800)]
    total = add_up([counted(first), counted(second)], room)
    series = total.counters["slipstream_upstream_errors_total"]
    assert len(series) == COUNTER_SERIES + 1
    assert series[(OTHER, OTHER)] == 1600 - COUNTER_SERIES
    histograms = total.histograms["slipstream_overhead_seconds"]
    assert len(histograms) == HISTOGRAM_SERIES + 1
    assert histograms[(OTHER, OTHER)].cells == {100: 1600 - HISTOGRAM_SERIES}
    # New ones of the first take nobody's place.
    more = [*first, *[f"c{n}" for n in range(100)]]
    again = add_up([counted(more), counted(second)], room).counters["slipstream_upstream_errors_total"]
    assert all(again[key] >= value for key, value in series.items())
    assert again[(OTHER, OTHER)] == 1700 - COUNTER_SERIES


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=6), st.integers(1, 5))
def test_sums_are_the_same_to_the_last_bit_in_whatever_order(values, first):
    """One that ends is added to the others that have ended: whoever scrapes takes less for a restart."""
    name = "slipstream_cache_saved_seconds_total"
    lag = "slipstream_event_loop_lag_seconds"
    parts = [Counted({name: {(): value}}, {lag: {(): Histogram({1: 1}, value)}}) for value in values]
    total = add_up(parts, Room())
    for some in (parts, parts[::-1]):
        assert add_up([add_up(some[:first], Room()), *some[first:]], Room()) == total
    assert total.counters[name][()] == pytest.approx(sum(values), abs=1e-5)


def test_what_is_added_up_stays_as_it_is():
    part = counted(["a"])
    for _ in range(3):
        add_up([part, part], Room())
    assert part == counted(["a"])


def test_windows_keep_the_busiest_and_lose_nothing():
    def reading(prefix, count, requests):
        cells = dict(cells_of(line(), Aside(), {}))
        one = {cell: value * requests for cell, value in cells.items()}
        return Reading(60.0, {("a", f"{prefix}{n}", "chat", "miss"): dict(one) for n in range(count)})

    found = together([reading("quiet", MOST, 1), reading("busy", 10, 5)])
    assert len(found.series) == MOST + 1
    assert {("a", f"busy{n}", "chat", "miss") for n in range(10)} <= found.series.keys()
    total = sum(sum(cells.values()) for cells in found.series.values())
    wanted = sum(
        sum(cells.values())
        for one in (reading("quiet", MOST, 1), reading("busy", 10, 5))
        for cells in one.series.values()
    )
    assert total == wanted
    assert ("a", OTHER, OTHER, "miss") in found.series


# Processes.


def test_processes_add_up():
    own = OwnProcess()
    before = {family.name: family.samples[0].value for family in own.families()}
    if not before:
        pytest.skip("the system tells nothing of processes")
    other = {
        "process_cpu_seconds": 1000.0,
        "process_resident_memory_bytes": 1e12,
        "process_virtual_memory_bytes": 1e13,
        "process_start_time_seconds": 1.0,
        "process_open_fds": 90.0,
        "process_max_fds": 100.0,
    }
    ended = {"process_cpu_seconds": 500.0}
    found = {family.name: family.samples[0].value for family in own.families([other, ended])}
    assert found["process_cpu_seconds"] - before["process_cpu_seconds"] == pytest.approx(1500, abs=1)
    assert found["process_resident_memory_bytes"] > 1e12
    assert found["process_start_time_seconds"] == before["process_start_time_seconds"]
    # Of descriptors, those of the one that is nearest to its limit.
    assert (found["process_open_fds"], found["process_max_fds"]) == (90.0, 100.0)
    far = other | {"process_open_fds": 0.0}
    found = {family.name: family.samples[0].value for family in own.families([far])}
    assert found["process_max_fds"] == before["process_max_fds"]


def test_a_snapshot_survives_being_sent():
    process = Process(Clock())
    process.take(("line", ({"model": "你好 🌊\n"}, [0.1, 7.0], 2.0)))
    snapshot = process.board.snapshot(Wanted(True, tuple(SPANS), 10, (0, 0)))()
    assert decode(encode(snapshot)) == snapshot
