"""sidecar.telemetry.budgets: who is held against what, how fast a budget burns, and when that is an alarm."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.tables import BUDGETS, Budget
from sidecar.telemetry.budgets import LEAST, Budgets, Held, Rates, exceeded, held
from sidecar.telemetry.window import SLOT
from tests.telemetry.lines_rig import line
from tests.telemetry.test_window import Clock

CHAT = {"chat": Budget(500, 5000)}


def found(budgets=CHAT, **changes):
    """Kind, milliseconds, and by how much too many."""
    return [(one.kind, one.value, one.over) for one in held(line(**changes), budgets)]


TTFT, TOTAL = ("ttft_ms", 100.0, None), ("total_ms", 1000.0, None)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [TTFT, TOTAL]),
        ({"ttft_ms": 500.0, "total_ms": 5000.0}, [("ttft_ms", 500.0, None), ("total_ms", 5000.0, None)]),
        ({"ttft_ms": 500.001}, [("ttft_ms", 500.001, 0.001), TOTAL]),
        ({"ttft_ms": 612.3, "total_ms": 9000.0}, [("ttft_ms", 612.3, 112.3), ("total_ms", 9000.0, 4000.0)]),
        # What does not stream has no first token.
        ({"stream": False, "ttft_ms": None}, [TOTAL]),
        ({"stream": False, "ttft_ms": 700.0}, [TOTAL]),
        # Whoever leaves early has said nothing yet, unless it took too long already.
        ({"outcome": "cancelled", "ttft_ms": None, "total_ms": 499.0}, []),
        ({"outcome": "cancelled", "ttft_ms": None, "total_ms": 600.0}, [("ttft_ms", 600.0, 100.0)]),
        (
            {"outcome": "cancelled", "ttft_ms": None, "total_ms": 6000.0},
            [("ttft_ms", 6000.0, 5500.0), ("total_ms", 6000.0, 1000.0)],
        ),
        ({"outcome": "cancelled", "total_ms": 600.0}, [TTFT]),
        ({"outcome": "cancelled", "total_ms": 6000.0}, [TTFT, ("total_ms", 6000.0, 1000.0)]),
        # So it is with errors: a quick one is not within the budget.
        ({"outcome": "truncated", "error": "upstream_closed"}, [TTFT]),
        ({"outcome": "upstream_error", "status": 500, "ttft_ms": None, "total_ms": 20.0}, []),
        (
            {"outcome": "timeout", "ttft_ms": None, "total_ms": 5001.0, "stream": False},
            [("total_ms", 5001.0, 1.0)],
        ),
        ({"outcome": "refused", "status": 503, "ttft_ms": None, "total_ms": 1.0}, []),
        ({"outcome": "complete", "error": "internal"}, [TTFT]),
        # A job that was taken in, and a client that came back.
        ({"status": 202, "stream": False, "ttft_ms": None}, []),
        ({"resumed_from": 0, "ttft_ms": None}, []),
        ({"resumed_from": 4, "ttft_ms": 900.0, "total_ms": 9000.0}, []),
        # Hits and shared calls are what their clients waited for, too.
        (
            {"cache": "hit", "cache_kind": "exact", "ttft_ms": 0.5, "total_ms": 1.0},
            [("ttft_ms", 0.5, None), ("total_ms", 1.0, None)],
        ),
        ({"cache": "collapsed"}, [TTFT, TOTAL]),
        # Of other features.
        ({"feature": None}, []),
        ({"feature": "search"}, []),
        ({"feature": "Chat"}, []),
    ],
)
def test_who_is_held_against_what(changes, expected):
    assert found(**changes) == expected


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (Budget(50, None), [("ttft_ms", 100.0, 50.0)]),
        (Budget(None, 50), [("total_ms", 1000.0, 950.0)]),
        (Budget(0, 0), []),
        (Budget(0, 50), [("total_ms", 1000.0, 950.0)]),
        (Budget(), []),
    ],
)
def test_budgets_that_are_none(budget, expected):
    assert found({"chat": budget}) == expected


def test_the_feature_says_which_budget():
    budgets = {"chat": Budget(500, None), "completion": Budget(50, None)}
    assert held(line(feature="completion"), budgets) == [Held("completion", "ttft_ms", 100.0, 50.0)]
    assert held(line(feature="chat"), budgets) == [Held("chat", "ttft_ms", 100.0, None)]
    assert BUDGETS.keys() == {"chat", "completion", "summarization", "batch"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"outcome": "cancelled", "ttft_ms": None, "total_ms": 20.0}, None),
        (
            {"ttft_ms": 612.3, "total_ms": 2000.0, "upstream_ms": 80.0, "ttfb_ms": 90.0},
            {"budget": "chat", "ttft_ms": 112.3, "total_ms": None, "phase": "first_token"},
        ),
        # Of the first token: what came after it does not count, however long it took.
        (
            {"ttft_ms": 612.5, "total_ms": 9000.0, "upstream_ms": 590.0, "ttfb_ms": 600.0},
            {"budget": "chat", "ttft_ms": 112.5, "total_ms": 4000.0, "phase": "upstream"},
        ),
        (
            {"total_ms": 9000.0},
            {"budget": "chat", "ttft_ms": None, "total_ms": 4000.0, "phase": "stream"},
        ),
        # It ended before there was one.
        (
            {
                "outcome": "timeout",
                "status": None,
                "ttfb_ms": None,
                "ttft_ms": None,
                "total_ms": 600.0,
                "upstream_ms": 590.0,
            },
            {"budget": "chat", "ttft_ms": 100.0, "total_ms": None, "phase": "upstream"},
        ),
        (
            {"stream": False, "ttft_ms": None, "total_ms": 6000.0, "connect_ms": 5000.0},
            {"budget": "chat", "ttft_ms": None, "total_ms": 1000.0, "phase": "connect"},
        ),
    ],
)
def test_the_line_says_by_how_much_and_what_took_most_of_it(changes, expected):
    made = line(**changes)
    assert exceeded(made, held(made, CHAT)) == expected


def test_a_span_of_an_app_takes_the_blame():
    made = line(ttft_ms=900.0, ttfb_ms=890.0, upstream_ms=870.0)
    made["phases"] |= {"retrieve_ms": 600.0, "rank_ms": 30.0}
    told = exceeded(made, held(made, CHAT))
    assert told is not None and told["phase"] == "retrieve"


# Rates.


@pytest.mark.parametrize(
    ("over", "requests", "burn"),
    [(0, 0, None), (0, 7, 0.0), (5, 100, 1.0), (10, 100, 2.0), (1, 1, 20.0), (1, 3, 6.67)],
)
def test_burn_rate(over, requests, burn):
    assert Rates(requests, over, None).burn == burn


def one(value=100.0, target=500.0, feature="chat", kind="ttft_ms"):
    return Held(feature, kind, value, value - target if value > target else None)


WITHIN, OVER = one(), one(800.0)


@given(st.lists(st.floats(0.01, 1e6), min_size=1, max_size=100))
def test_rates_are_those_of_the_requests(values):
    budgets = Budgets(CHAT, Clock())
    for value in values:
        budgets.add(one(value))
    for window in ("1m", "5m", "60m"):
        (rates,) = budgets.rates(window).values()
        over = sum(value > 500 for value in values)
        assert (rates.requests, rates.over) == (len(values), over)
        assert rates.burn == round(over / len(values) / 0.05, 2)
        p95 = sorted(values)[-(-95 * len(values) // 100) - 1]
        assert rates.p95_ms == pytest.approx(p95, rel=0.01, abs=0.0005)


def test_budgets_are_told_apart():
    budgets = Budgets({"chat": Budget(500, 5000), "completion": Budget(None, 100), "none": Budget()}, Clock())
    budgets.add(one())
    budgets.add(one(9000.0, 5000.0, kind="total_ms"))
    budgets.add(one(9000.0, 100.0, "completion", "total_ms"))
    assert budgets.targets() == [
        ("chat", "ttft_ms", 500),
        ("chat", "total_ms", 5000),
        ("completion", "total_ms", 100),
    ]
    told = {key: (rates.requests, rates.over) for key, rates in budgets.rates("5m").items()}
    assert told == {
        ("chat", "ttft_ms"): (1, 0),
        ("chat", "total_ms"): (1, 1),
        ("completion", "total_ms"): (1, 1),
    }


def test_every_budget_is_told_apart_however_many_there_are():
    budgets = Budgets({f"f{number}": Budget(500, 5000) for number in range(100)}, Clock())
    for number in range(100):
        for kind, target in (("ttft_ms", 500.0), ("total_ms", 5000.0)):
            for _ in range(LEAST):
                budgets.add(one(9000.0, target, f"f{number}", kind))
    assert len(budgets.rates("1m")) == 200
    assert len(budgets.changes()) == 200
    assert budgets.alert("f99", "total_ms")


# Alarms.


def alarms(budgets):
    return [(change.feature, change.kind, change.begins) for change in budgets.changes()]


BEGINS, ENDS = [("chat", "ttft_ms", True)], [("chat", "ttft_ms", False)]


def test_nine_requests_say_nothing_and_ten_do():
    budgets = Budgets(CHAT, Clock())
    for _ in range(LEAST - 1):
        budgets.add(OVER)
        assert alarms(budgets) == []
    budgets.add(OVER)
    assert not budgets.alert("chat", "ttft_ms")
    (change,) = budgets.changes()
    assert (change.feature, change.kind, change.target, change.begins) == ("chat", "ttft_ms", 500, True)
    assert (change.rates.requests, change.rates.over, change.rates.burn) == (10, 10, 20.0)
    assert change.rates.p95_ms == pytest.approx(800.0, rel=0.01)
    assert budgets.alert("chat", "ttft_ms")
    assert not budgets.alert("chat", "total_ms")
    assert alarms(budgets) == []  # it has been said


@pytest.mark.parametrize(("over", "begins"), [(9, False), (10, True)])
def test_it_begins_at_twice_the_rate(over, begins):
    budgets = Budgets(CHAT, Clock())
    for number in range(100):
        budgets.add(OVER if number < over else WITHIN)
    assert alarms(budgets) == (BEGINS if begins else [])


def test_what_burnt_minutes_ago_and_has_stopped_is_no_alarm():
    clock = Clock()
    budgets = Budgets(CHAT, clock)
    for _ in range(50):
        budgets.add(OVER)
    clock.now += 90.0
    assert alarms(budgets) == []  # nothing within the last minute
    for _ in range(50):
        budgets.add(WITHIN)
    assert budgets.rates("5m")[("chat", "ttft_ms")].burn == 10.0
    assert alarms(budgets) == []


def test_what_burns_now_and_not_over_five_minutes_is_no_alarm():
    clock = Clock()
    budgets = Budgets(CHAT, clock)
    for _ in range(200):
        budgets.add(WITHIN)
    clock.now += 90.0
    for _ in range(10):
        budgets.add(OVER)
    assert budgets.rates("1m")[("chat", "ttft_ms")].burn == 20.0
    assert alarms(budgets) == []


def test_it_ends_when_it_is_kept_again_and_not_before():
    budgets = Budgets(CHAT, Clock())
    for _ in range(10):
        budgets.add(OVER)
    assert alarms(budgets) == BEGINS
    told = []
    for number in range(11, 400):
        budgets.add(WITHIN)
        told += [(number, change) for change in alarms(budgets)]
    # 10 of 200 are 5 %, exactly what may be; 10 of 201 are less. Rates are told to two places.
    ((number, change),) = told
    assert (change,) == tuple(ENDS)
    assert 10 / number / 0.05 < 1.0 <= 10 / (number - 2) / 0.05
    assert not budgets.alert("chat", "ttft_ms")


def test_near_the_line_it_does_not_flap():
    """Between once and twice the rate it stays what it was, for hours."""
    for first in (OVER, WITHIN):
        clock = Clock()
        budgets = Budgets(CHAT, clock)
        for _ in range(20):
            budgets.add(first)
        before = alarms(budgets)
        assert before == (BEGINS if first is OVER else [])
        for step in range(1000):
            clock.now += 1.0
            for number in range(20):
                # 5, 5 and 15 % of what came in each second: 1.7 times the rate.
                budgets.add(OVER if number < (3 if step % 3 == 0 else 1) else WITHIN)
            assert alarms(budgets) == []


def test_it_ends_when_nobody_asks_any_more():
    clock = Clock()
    budgets = Budgets(CHAT, clock)
    for _ in range(10):
        budgets.add(OVER)
    assert alarms(budgets) == BEGINS
    clock.now += 280.0
    assert alarms(budgets) == []
    clock.now += 30.0
    (change,) = budgets.changes()
    assert not change.begins
    assert (change.rates.requests, change.rates.burn) == (0, None)
    clock.now += 86_400.0
    assert alarms(budgets) == []


STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 1.0, SLOT, 30.0, 70.0, 310.0, 4000.0]),
        st.integers(0, 40),
        st.integers(0, 40),
        st.sampled_from(["ttft_ms", "total_ms"]),
    ),
    max_size=60,
)


@given(STEPS)
@example(
    [(0.0, 0, 10, "ttft_ms"), (0.0, 40, 0, "ttft_ms"), (310.0, 0, 10, "ttft_ms"), (310.0, 0, 0, "ttft_ms")]
)
def test_an_alarm_that_has_begun_ends_before_it_begins_again(steps):
    clock = Clock()
    budgets = Budgets(CHAT, clock)
    burning = {"ttft_ms": False, "total_ms": False}
    for advance, within, over, kind in steps:
        clock.now += advance
        for _ in range(within):
            budgets.add(one(1.0, 500.0, kind=kind))
        for _ in range(over):
            budgets.add(one(9000.0, 500.0, kind=kind))
        for change in budgets.changes():
            assert change.begins != burning[change.kind]
            burning[change.kind] = change.begins
            key = ("chat", change.kind)
            short, longer = budgets.rates("1m").get(key), budgets.rates("5m").get(key)
            if change.begins:
                assert longer is not None and longer.requests >= LEAST
                assert short is not None and min(short.burn or 0, longer.burn or 0) >= 2.0
            else:
                assert longer is None or (longer.burn or math.inf) < 1.0 or longer.over == 0
        assert {kind: budgets.alert("chat", kind) for kind in burning} == burning
