"""benchmarks/soak.py: that what it calls good is good, and that nothing else is."""

import pytest

from benchmarks.soak_judge import (
    EARLY,
    LEAK,
    TELLING,
    Line,
    Sample,
    due,
    leaked,
    least,
    mean,
    operations,
    overdue,
    slope,
    summary,
)
from benchmarks.soak_load import WEIGHTS, Churn


def samples(growth, seconds=1800):
    """One per second; `growth` in bytes per second, on top of what goes up and down."""
    return [Sample(100.0 + at, int(2e8 + growth * at + 1e6 * (at % 7)), 30, 9) for at in range(seconds)]


@pytest.mark.parametrize(("seconds", "expected"), [(0, 0), (4.9, 0), (9.9, 0), (10, 1), (22, 3), (120, 23)])
def test_keepalives_that_are_due(seconds, expected):
    assert due(7.0, 7.0 + seconds, 5.0) == expected


def test_a_stream_without_keepalives_is_late_once_one_is_due():
    assert overdue(10.0, 14.9, 5.0) is None
    assert overdue(10.0, 60.0, 5.0) == pytest.approx(45.0)


def test_growth_is_told_from_what_goes_up_and_down():
    assert abs(slope(samples(0))) < 100
    assert slope(samples(5000)) == pytest.approx(5000, rel=0.02)
    assert slope(samples(0)[:2]) == 0
    assert mean([Sample(0, 1 << 20, 1, 1), Sample(1, 3 << 20, 1, 1)]) == 2


def test_a_leak_is_bytes_per_operation():
    count = 150 * 1800
    assert leaked(samples(150 * LEAK * 2), count) == pytest.approx(LEAK * 2, rel=0.02)
    assert abs(leaked(samples(0), count)) < LEAK / 10
    assert leaked(samples(1e6), TELLING - 1) is None


def test_operations_between_two_moments():
    told = [(0.0, 0), (10.0, 100), (20.0, 400)]
    assert operations(told, 0, 20) == 400
    assert operations(told, 5, 15) == 200
    assert operations(told, 15, 99) == 150
    assert operations(told[:1], 0, 99) == 0


def test_each_kind_has_a_least():
    assert least({"a": 3, "b": 1}, 40, 60) == {"a": 450, "b": 150}
    assert least({"a": 999, "b": 1}, 1, 1)["b"] == 1
    assert all(callable(getattr(Churn, name)) for name in WEIGHTS)


def test_the_last_line_counts_what_was_not_judged():
    good, bad = Line("a", "1", "1", good=True), Line("b", "2", "1", good=False)
    told, skipped = Line("c", "3", "", None), Line("d", "4", "1", None, excused=True)
    assert summary([good, told]) == (True, "PASS: 1 of 1")
    assert summary([good, skipped, skipped]) == (True, "PASS: 1 of 1; 2 could not be judged")
    assert summary([good, bad, skipped]) == (False, "FAIL: 1 of 2; 1 could not be judged")
    assert summary([told]) == (False, "FAIL: 0 of 0")
    assert [str(line)[:4] for line in (good, bad, told, skipped)] == ["PASS", "FAIL", "    ", "SKIP"]
    assert 0 < EARLY < 1
