"""sidecar.telemetry.scale: quantiles to 1 %, and counts below bounds to the last value."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.telemetry.families import FAMILIES, TOKENS
from sidecar.telemetry.scale import LAST, UNIT, bound, bucket, cumulative, doublings, middle, quantiles, tally
from sidecar.telemetry.window import merge

BOUNDS = doublings(-9, 17)
VALUES = st.one_of(
    st.just(0.0),
    st.floats(1e-3, 1e9),
    st.sampled_from([1e-3, 1.0, 5.0, 250.0, 1e9, *BOUNDS]),
    st.integers(1, 1000).map(float),
)
LISTS = st.lists(VALUES, min_size=1, max_size=400) | st.lists(st.sampled_from([0.0, 1.0, 40.0]), min_size=1)


def exact(values, share):
    """Nearest rank, by the definition."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


@given(LISTS, st.lists(st.integers(0, 1000), max_size=6))
@example([7.0], [0, 500, 1000])
@example([float(number) for number in range(1, 101)], [10, 70, 500, 950, 990, 1000])
@example([1.0] * 19 + [1000.0], [949, 950, 951])
def test_quantiles_are_nearest_rank_within_1_percent(values, thousandths):
    shares = sorted(thousandths)
    found = quantiles(tally(values), [share / 1000 for share in shares])
    wanted = [exact(values, Fraction(share, 1000)) for share in shares]
    assert found == [pytest.approx(value, rel=0.01, abs=UNIT) for value in wanted]
    assert all(one == 0.0 for one, value in zip(found, wanted, strict=True) if value == 0.0)


def test_quantiles_of_nothing():
    assert quantiles({}, (0.5, 0.95, 0.99)) == [None, None, None]
    assert quantiles({5: 0}, (0.5,)) == [None]
    assert quantiles({5: 3}, ()) == []


def test_no_value_of_a_bucket_is_further_than_1_percent_from_what_stands_for_it():
    assert middle(0) == 0.0
    for at in range(1, LAST + 1):
        low, high = bound(at - 1), bound(at)
        assert low < middle(at) < high
        assert (high - middle(at)) / high <= 0.01
        assert (middle(at) - low) / low <= 0.01


def test_bounds_belong_to_the_bucket_below():
    for at in range(LAST):
        assert bucket(bound(at)) == at
        assert bucket(bound(at) * (1 + 1e-9)) == at + 1
    for value in BOUNDS:
        assert bound(bucket(value)) == pytest.approx(value, rel=1e-9)
        assert bucket(value / 1000 * 1000) == bucket(value)  # as bounds in seconds come back


@pytest.mark.parametrize(
    ("value", "at"), [(0.0, 0), (-1.0, 0), (UNIT, 0), (UNIT * 1.001, 1), (1e32, LAST), (1e300, LAST)]
)
def test_ends_of_the_scale(value, at):
    assert bucket(value) == at


@given(LISTS, st.sampled_from([1.0, 1000.0, 0.001]), st.integers(1, 1 << 20))
def test_a_tally_counts_each_value_in_its_bucket(values, factor, weight):
    expected = Counter([bucket(value * factor) for value in values])
    assert tally(values, weight, factor) == {at: count * weight for at, count in expected.items()}
    assert tally(values) == Counter(map(bucket, values))


@given(st.lists(VALUES, max_size=200), st.integers(-12, 5), st.integers(0, 14))
@example(BOUNDS, -9, 17)
@example([value * (1 + 1e-9) for value in BOUNDS], -9, 17)
@example([value * (1 - 1e-9) for value in BOUNDS], -9, 17)
def test_counts_at_or_below_doublings_are_exact(values, first, more):
    bounds = doublings(first, first + more)
    assert bounds == [10.0 * 2.0**power for power in range(first, first + more + 1)]
    counts = cumulative(tally(values), bounds)
    assert counts == [sum(value <= edge for value in values) for edge in bounds]


def test_bounds_of_all_histograms_are_doublings_or_the_conventions():
    assert tuple([4.0**power for power in range(14)]) == TOKENS
    for family in FAMILIES:
        if family.kind == "histogram" and family.bounds != TOKENS:
            edges = [edge * 1000 for edge in family.bounds]
            assert [math.log2(edge / 10) for edge in edges] == pytest.approx(
                [round(math.log2(edge / 10)) for edge in edges], abs=1e-12
            )
            assert all(one < other for one, other in itertools.pairwise(edges))


@given(*[st.lists(VALUES, max_size=60)] * 3)
def test_merging_is_counting_together_in_any_order(one, two, three):
    def merged(*tallies):
        into = {}
        for cells in tallies:
            merge(into, cells)
        return into

    tallies = [tally(values) for values in (one, two, three)]
    together = tally([*one, *two, *three])
    left = merged(merged(tallies[0], tallies[1]), tallies[2])
    right = merged(tallies[0], merged(tallies[1], tallies[2]))
    assert left == right == merged(*reversed(tallies)) == together
    assert quantiles(left, (0.5, 0.99)) == quantiles(together, (0.5, 0.99))
