"""core.semantic.trust: when checked hits say that a scope must not be served any more."""

import math

from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.semantic.trust import WINDOW, Checks, Trust, lower_bound

RESULTS = st.lists(st.booleans(), max_size=3 * WINDOW)


@given(st.integers(0, 500), st.integers(0, 500))
def test_the_lower_bound_is_below_the_share(wrong, right):
    checked = wrong + right
    bound = lower_bound(wrong, checked)
    assert 0 <= bound <= (wrong / checked if checked else 0) + 1e-12


def test_the_lower_bound_is_wilsons():
    # From the tables of Newcombe (1998): 81 of 263.
    assert math.isclose(lower_bound(81, 263), 0.2553, abs_tol=5e-5)
    assert math.isclose(lower_bound(15, 148), 0.0624, abs_tol=5e-5)


@given(RESULTS)
def test_checks_count_the_latest(results):
    checks = Checks()
    for right in results:
        checks.add(right=right)
    latest = results[-WINDOW:]
    assert (checks.checked, checks.wrong) == (len(latest), latest.count(False))


def test_one_false_hit_says_nothing():
    trust = Trust(0.05)
    assert not trust.check(b"a", right=False)
    assert trust.served(b"a")


def test_two_false_hits_of_two_switch_their_scope_off_and_no_other():
    trust = Trust(0.05)
    assert [trust.check(b"a", right=False) for _ in range(3)] == [False, True, False]
    assert not trust.served(b"a")
    assert trust.served(b"b")


def test_two_false_hits_of_many_do_not():
    trust = Trust(0.05)
    for at in range(40):
        assert not trust.check(b"a", right=at not in (5, 30))
    assert trust.served(b"a")


def test_a_bound_of_one_puts_up_with_everything():
    trust = Trust(1.0)
    assert not any(trust.check(b"a", right=False) for _ in range(WINDOW))
    assert trust.served(b"a")


def test_the_alarm_rises_once_and_falls_once():
    trust = Trust(0.05)
    heard = []
    for number in range(4):
        trust.check(bytes([number]), right=False)
        heard.append(trust.alarm())
    for number in range(2 * WINDOW):
        trust.check(bytes([number % 250]), right=True)
        heard.append(trust.alarm())
    assert [one for one in heard if one is not None] == [True, False]


def test_scopes_are_forgotten_but_not_those_that_are_off():
    trust = Trust(0.05)
    for _ in range(2):
        trust.check(b"off", right=False)
    for number in range(10_000):
        trust.check(number.to_bytes(4, "big"), right=True)
    assert not trust.served(b"off")
    assert len(trust._scopes) <= 4096
