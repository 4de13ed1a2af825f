"""sidecar.telemetry.window: sums of the last minutes, against a plain list of what was added."""

import itertools
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.telemetry.window import OTHER, SLOT, SPANS, Window, merge

TICK = 2.0**-10
"""Clocks go by such steps, so that every border is met to the bit."""


class Clock:
    def __init__(self, now=0.0):
        self.now = now

    def __call__(self):
        return self.now


BORDERS = [0.0, TICK, SLOT - TICK, SLOT, SLOT + TICK, 50.0, 60.0 - TICK, 60.0, 290.0, 300.0, 300.0 + TICK]
HOURS = [3590.0, 3600.0 - TICK, 3600.0, 3600.0 + TICK, 3610.0, 3620.0 - TICK, 3620.0, 3620.5, 7200.0, 1e6]
ADVANCE = st.one_of(
    st.sampled_from(BORDERS + HOURS), st.integers(0, 4_000_000).map(lambda ticks: ticks * TICK)
)
COUNTS = st.one_of(st.integers(0, 9), st.integers(250, 260), st.sampled_from([65_535, 65_536, 1 << 40]))
CELLS = st.lists(st.tuples(st.integers(0, 6), COUNTS), max_size=4)
KEYS = st.tuples(st.sampled_from(["a", "b", None]), st.sampled_from(["x", None]))
STEPS = st.lists(st.tuples(ADVANCE, KEYS, CELLS), max_size=40)


def merged(all_cells):
    found = Counter()
    for cells in all_cells:
        merge(found, cells)
    return dict(found)


class Model:
    """Everything that was added, with its slot."""

    def __init__(self, clock):
        self.clock = clock
        self.began = clock.now
        self.all = []

    @property
    def slot(self):
        return (self.clock.now - self.began) // SLOT

    def add(self, key, cells):
        self.all.append((self.slot, key, cells))

    def read(self, name):
        """Seconds, and what each series has that is more than nothing."""
        found = {}
        for slot, key, cells in self.all:
            if slot > self.slot - SPANS[name]:
                series = found.setdefault(key, Counter())
                for cell, count in cells:
                    series[cell] += count
        series = {key: {cell: n for cell, n in cells.items() if n} for key, cells in found.items()}
        passed = self.clock.now - self.began
        covered = (SPANS[name] - 1) * SLOT + passed - self.slot * SLOT
        return max(min(covered, passed), 0.001), series


def more_than_nothing(series):
    return {key: {cell: n for cell, n in cells.items() if n} for key, cells in series.items()}


@given(st.sampled_from([0.0, 0.25, 1e6]), STEPS, st.booleans())
@example(0.0, [(0.0, ("a", "x"), [(1, 0)]), (10.0, ("a", "x"), [(1, 0)]), (60.0, ("a", "x"), [])], True)
@example(0.0, [(0.0, ("a", "x"), [(1, 5)]), (10.0, ("a", "x"), [(1, 0)]), (60.0, ("a", "x"), [])], True)
@example(0.0, [(0.0, ("a", "x"), []), (10.0, ("a", "x"), []), (60.0, ("b", "x"), [(1, 1)])], True)
@example(0.0, [(10.0, ("a", "x"), [(0, 1)])] * 400, False)
def test_each_window_holds_what_lies_in_its_slots(start, steps, watched):
    clock = Clock(start)
    window, model = Window(clock), Model(clock)
    for number, (advance, key, cells) in enumerate(steps):
        clock.now += advance
        window.add(key, [(9, 1), *cells])
        model.add(key, [(9, 1), *cells])
        if watched or number == len(steps) - 1:
            for name in SPANS:
                seconds, series = window.read(name)
                assert (seconds, more_than_nothing(series)) == model.read(name)
    for advance in (SLOT, 50.0, 240.0, 3300.0, 1e5):
        clock.now += advance
        for name in SPANS:
            seconds, series = window.read(name)
            assert (seconds, more_than_nothing(series)) == model.read(name)
    assert not any(window.read(name).series for name in SPANS)


@given(STEPS, st.integers(1, 3))
def test_too_many_series_are_one_and_nothing_of_them_is_lost(steps, most):
    clock = Clock()
    window, model = Window(clock, most), Model(clock)
    for advance, key, cells in steps:
        clock.now += advance
        window.add(key, [(9, 1), *cells])
        model.add(key, [(9, 1), *cells])
        for name in SPANS:
            found, wanted = window.read(name).series, model.read(name)[1]
            assert len(found) <= most + 1
            assert merged(more_than_nothing(found).values()) == merged(wanted.values())
            assert found.keys() <= wanted.keys() | {(OTHER, OTHER)}
    assert len(window._current) <= most + 1


def test_so_many_series_are_told_apart_and_no_more():
    clock = Clock()
    window = Window(clock, most=64)
    for number in range(100):
        window.add((f"m{number}",), [(0, 1)])
        clock.now += 1.0
    series = window.read("5m").series
    assert series == {(f"m{number}",): {0: 1} for number in range(64)} | {(OTHER,): {0: 36}}
    window.add(("m5",), [(0, 1)])
    assert window.read("5m").series[("m5",)] == {0: 2}
    clock.now += 3600.0
    # Those of an hour ago have left: there is room for others.
    window.add(("late",), [(0, 1)])
    assert window.read("60m").series == {("late",): {0: 1}}


def test_memory_is_bounded_whatever_the_time_that_passes():
    clock = Clock()
    window = Window(clock, most=8)
    for step in range(2000):
        clock.now += SLOT
        window.add((f"m{step % 50}",), [(cell, 1) for cell in range(step % 7)])
        assert len(window._closed) < SPANS["60m"]
    assert sum(len(slot) for slot in window._closed) <= SPANS["60m"]
    for name in SPANS:
        assert len(window._running[name]) <= 9


def test_what_is_read_is_the_callers():
    clock = Clock()
    window = Window(clock)
    for _ in range(3):
        window.add(("a",), [(1, 2)])
        clock.now += SLOT
    window.add(("a",), [(1, 2)])
    for name in SPANS:
        before = window.read(name)
        held = before.series[("a",)]
        held[1] += 100
        held[7] = 1
        before.series[("b",)] = {1: 1}
        assert window.read(name).series == {("a",): {1: 8}}
    clock.now += 2 * 3600.0
    assert window.read("60m").series == {}


@pytest.mark.parametrize("huge", [1 << 64, -1])
def test_a_count_that_cannot_be_packed_costs_its_slot_and_nothing_else(huge):
    """What only a provider's lies add up to: said once, and the figures go on."""
    clock = Clock()
    window = Window(clock)
    window.add(("a",), [(0, 1)])
    clock.now += SLOT
    window.add(("a",), [(0, 1), (1, huge)])
    clock.now += SLOT
    with pytest.raises(OverflowError):
        window.read("1m")
    for advance, count in itertools.chain([(0.0, 2)], [(5.0, 3)]):
        clock.now += advance
        window.add(("a",), [(0, 1)])
        assert window.read("1m").series == {("a",): {0: count}}
    clock.now += 60.0
    assert window.read("1m").series == {}
