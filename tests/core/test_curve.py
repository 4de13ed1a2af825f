"""sidecar.core.semantic.curve: rates, their intervals, and when a threshold is suggested."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.semantic.curve import (
    LEAST,
    THRESHOLDS,
    WHICH,
    Judged,
    Rate,
    Refusal,
    Suggestion,
    curve,
    needed,
    rate,
    suggest,
    wilson,
)

SIMILARITIES = st.one_of(
    st.none(),
    st.floats(-1, 1),
    st.sampled_from([*THRESHOLDS, math.nan, math.inf, -math.inf, 0.92, 1.0000001]),
)
JUDGED = st.builds(
    Judged,
    SIMILARITIES,
    st.sampled_from([True, False, None]),
    st.sampled_from([None, None, None, "numbers"]),
    st.integers(1, 5),
)
RATES = ("hit_rate", "false_hit_rate", "share_of_hits_false")


def pairs(true=(), false=(), **more):
    return [Judged(one, True, **more) for one in true] + [Judged(one, False, **more) for one in false]


def at(points, threshold):
    (point,) = (point for point in points if point.threshold == threshold)
    return point


# Intervals


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        # Worked out by hand from the formula, with z = 1.96.
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (1, 100, 0.0018, 0.0545),
        (0, 381, 0.0, 0.00998),
    ],
)
def test_intervals_are_wilsons(count, total, low, high):
    assert wilson(count, total) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_of_nothing_everything_may_be_true():
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 10**7), st.floats(0, 1), st.floats(0.001, 1))
def test_an_interval_holds_its_share_and_stays_within_bounds(total, part, different):
    count = round(total * part)
    low, high = wilson(count, total)
    assert 0.0 <= low <= count / total <= high <= 1.0
    wider = wilson(count, total, total * different)
    assert wider[0] <= low + 1e-12
    assert wider[1] >= high - 1e-12


@given(st.floats(0.0005, 1))
def test_so_many_are_needed_and_no_fewer(wanted):
    least = needed(wanted)
    assert least >= LEAST
    assert wilson(0, least)[1] <= wanted + 1e-12
    assert least == LEAST or wilson(0, least - 1)[1] > wanted


# The curve


def test_each_rate_is_what_its_name_says():
    judged = [
        *pairs(true=[0.95, 0.91, 0.5], false=[0.93, 0.6, 0.4, 0.2]),
        Judged(0.99, False, "numbers"),
        Judged(0.99, True, "negation"),
        Judged(0.96, None),
        Judged(None, None),
    ]
    point = at(curve(judged), 0.92)
    assert [(one.count, one.total) for one in (point.hit_rate, point.false_hit_rate)] == [(1, 4), (1, 5)]
    assert (point.share_of_hits_false.count, point.share_of_hits_false.total) == (1, 2)
    of_all = at(curve(judged, of="requests"), 0.92)
    assert (of_all.hit_rate.count, of_all.hit_rate.total) == (3, 11)
    assert of_all.share_of_hits_false == point.share_of_hits_false


def test_a_request_without_a_candidate_counts_and_never_hits():
    judged = [Judged(None, None)] * 3 + [Judged(0.95, True)]
    for point in curve(judged, of="requests"):
        assert point.hit_rate.total == 4
        assert point.hit_rate.count == (point.threshold <= 0.95)


@pytest.mark.parametrize("similarity", [math.nan, math.inf, -math.inf, None])
def test_what_is_no_number_is_never_a_hit(similarity):
    for point in curve([Judged(similarity, False)]):
        assert (point.false_hit_rate.count, point.false_hit_rate.total) == (0, 1)
        assert not point.within


def test_what_is_just_as_similar_hits():
    assert at(curve(pairs(true=[0.92]), [0.92]), 0.92).hit_rate.count == 1


def test_thresholds_come_in_order_and_once():
    assert [point.threshold for point in curve([], [0.9, 0.8, 0.9])] == [0.8, 0.9]
    assert [point.threshold for point in curve([])] == list(THRESHOLDS)
    assert (THRESHOLDS[0], THRESHOLDS[-1], len(THRESHOLDS)) == (0.8, 0.99, 20)


def test_of_nothing_nothing_is_said():
    for point in curve([]):
        assert {rate(point, which).share for which in WHICH.values()} == {None}
        assert not point.within
    assert suggest(curve([]), 0.01) == Refusal("too_few", 381)


@given(st.lists(JUDGED, max_size=60))
def test_the_curve_is_what_counting_pair_by_pair_gives(judged):
    """The curve counts in steps; here each threshold is counted alone."""
    for of in ("pairs", "requests"):
        for point in curve(judged, of=of):
            hits = [
                one
                for one in judged
                if one.objection is None
                and one.similarity is not None
                and math.isfinite(one.similarity)
                and one.similarity >= point.threshold
            ]

            def times(of_them, *wanted):
                return sum(one.times for one in of_them if not wanted or one.same in wanted)

            if of == "pairs":
                assert (point.hit_rate.count, point.hit_rate.total) == (
                    times(hits, True),
                    times(judged, True),
                )
            else:
                assert (point.hit_rate.count, point.hit_rate.total) == (times(hits), times(judged))
            assert point.false_hit_rate.count == times(hits, False)
            assert point.false_hit_rate.total == times(judged, False)
            assert point.share_of_hits_false.count == times(hits, False)
            assert point.share_of_hits_false.total == times(hits, True, False)


@given(st.lists(JUDGED, max_size=60))
def test_higher_thresholds_have_fewer_hits_and_intervals_hold_their_shares(judged):
    points = curve(judged)
    for lower, higher in itertools.pairwise(points):
        assert higher.hit_rate.count <= lower.hit_rate.count
        assert higher.false_hit_rate.count <= lower.false_hit_rate.count
        assert higher.false_hit_rate.high <= lower.false_hit_rate.high + 1e-12
    for point in points:
        for name in RATES:
            one = getattr(point, name)
            assert 0.0 <= one.low <= one.high <= 1.0
            assert one.share is None or one.low <= one.share <= one.high
            assert one.different <= one.total + 1e-9


@given(st.lists(JUDGED, max_size=30), st.randoms(use_true_random=False))
def test_the_order_of_pairs_does_not_matter(judged, random):
    mixed = judged.copy()
    random.shuffle(mixed)
    assert curve(mixed) == curve(judged)


def test_the_same_seen_again_makes_no_interval_smaller():
    once = curve(pairs(false=[0.95] * 4 + [0.5] * 40))
    often = curve(pairs(false=[0.95] * 4 + [0.5] * 40, times=50))
    for one, other in zip(once, often, strict=True):
        assert other.false_hit_rate.total == 50 * one.false_hit_rate.total
        assert (one.false_hit_rate.low, one.false_hit_rate.high) == pytest.approx(
            (other.false_hit_rate.low, other.false_hit_rate.high)
        )


def test_one_that_was_seen_often_makes_the_others_count_for_less():
    even = at(curve(pairs(false=[0.5] * 100)), 0.9).false_hit_rate
    skewed = at(curve([*pairs(false=[0.5] * 50), Judged(0.5, False, times=50)]), 0.9).false_hit_rate
    assert (even.total, skewed.total) == (100, 100)
    assert skewed.different == pytest.approx(100 * 100 / (50 + 2500))
    assert skewed.high > even.high


def test_what_was_seen_because_it_was_a_hit_says_nothing_of_lower_thresholds():
    judged = pairs(true=[0.95, 0.99], false=[0.93], floor=0.92) + pairs(true=[0.97], floor=0.96)
    points = curve(judged, of="requests")
    totals = {point.threshold: point.hit_rate.total for point in points}
    assert (totals[0.91], totals[0.92], totals[0.95], totals[0.96]) == (0, 3, 3, 4)
    assert [point.threshold for point in points if point.within] == [
        hundredths / 100 for hundredths in range(92, 100)
    ]


# Suggestions


def found(true, false):
    """So many true pairs and false ones, evenly between 0 and 1."""
    return pairs([number / true for number in range(true)], [0.9 * number / false for number in range(false)])


def test_the_lowest_threshold_whose_upper_end_will_do():
    points = curve(pairs(true=[0.97] * 100, false=[0.85] * 6 + [0.9] * 2 + [0.3] * 992))
    suggestion = suggest(points, 0.008)
    assert isinstance(suggestion, Suggestion)
    # At 0.85, 8 of 1,000 may be as many as 1.6 %; at 0.86, 2 of 1,000 are at most 0.7 %.
    assert suggestion.point.threshold == 0.86
    assert (suggestion.rate.count, suggestion.rate.total) == (2, 1000)
    assert suggestion.rate.share < suggestion.rate.high <= 0.008
    assert at(points, 0.85).false_hit_rate.high > 0.008


@given(st.lists(JUDGED, max_size=80), st.floats(0.001, 0.9), st.sampled_from(sorted(WHICH.values())))
def test_what_is_suggested_keeps_to_what_is_wanted_with_hits_and_data_around_it(judged, wanted, which):
    points = curve(judged)
    result = suggest(points, wanted, which)
    if isinstance(result, Refusal):
        assert result.needed == needed(wanted)
        return
    chosen = rate(result.point, which)
    assert chosen == result.rate
    assert chosen.high <= wanted
    assert chosen.total >= LEAST
    assert result.point.hit_rate.count > 0
    numbers = [
        one.similarity for one in judged if one.similarity is not None and math.isfinite(one.similarity)
    ]
    assert min(numbers) <= result.point.threshold <= max(numbers)
    for lower in points:
        if lower.threshold < result.point.threshold:
            good = rate(lower, which).high <= wanted and rate(lower, which).total >= LEAST
            assert not (good and lower.within and lower.hit_rate.count)


@pytest.mark.parametrize(
    ("judged", "wanted", "reason"),
    [
        ([], 0.5, "too_few"),
        ([Judged(0.95, True)], 0.5, "too_few"),
        ([Judged(math.nan, False)], 0.5, "too_few"),
        (found(100, LEAST - 1), 0.5, "too_few"),
        (found(100, 200), 0.01, "too_few"),
        (pairs(true=[0.995] * 50, false=[0.995] * 500), 0.01, "too_false"),
        (pairs(true=[0.7] * 50, false=[0.6] * 500), 0.01, "no_hits"),
        (pairs(true=[0.795] * 50, false=[0.995] * 4 + [0.6] * 500), 0.05, "no_hits"),
    ],
)
def test_without_enough_to_go_by_there_is_a_reason_and_no_threshold(judged, wanted, reason):
    result = suggest(curve(judged), wanted)
    assert isinstance(result, Refusal)
    assert result.reason == reason
    assert result.needed == needed(wanted)


def test_enough_in_number_but_always_the_same_is_too_few():
    judged = [Judged(0.3, False, times=1000), *pairs(true=[0.95] * 20), Judged(0.99, True)]
    assert suggest(curve(judged), 0.05) == Refusal(
        "too_few", needed(0.05), min(curve(judged), key=lambda point: point.false_hit_rate.high)
    )


def test_nothing_is_suggested_below_the_least_similar_pair():
    """A file of pairs that were all above 0.9 to begin with does not know what comes below."""
    judged = pairs(true=[0.9 + number / 1000 for number in range(99)], false=[0.905] * 500)
    assert suggest(curve(pairs(true=[0.9, 0.99], false=[0.9] * 500)), 0.02).point.threshold == 0.91
    assert suggest(curve(judged, [0.7, 0.8, 0.95]), 0.02).point.threshold == 0.95
    clean = pairs(true=[0.93, 0.95], false=[0.9] * 3 + [0.91] * 497)
    assert suggest(curve(clean, [0.5, 0.92]), 0.02).point.threshold == 0.92


def test_of_requests_it_is_the_hits_that_have_to_be_right():
    """Candidates that nobody would take for the same question make the share of false pairs that hit tiny."""
    requests = pairs(true=[0.95] * 20, false=[0.93] * 20 + [0.2] * 10_000)
    points = curve(requests, of="requests")
    assert at(points, 0.92).false_hit_rate.high < 0.01
    assert at(points, 0.92).share_of_hits_false.share == 0.5
    assert isinstance(suggest(points, 0.01, WHICH["requests"]), Refusal)


def test_a_rate_of_nothing_has_no_share():
    assert Rate(0, 0, 0.0, 0.0, 1.0).share is None
