"""sidecar.telemetry.figures: what a window tells, against a plain list of the lines in it."""

import itertools
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sidecar.core.latency import NOTHING, Aside
from sidecar.core.types import Outcome
from sidecar.telemetry.figures import (
    DIMENSIONS,
    METRICS,
    cells_of,
    figures,
    gaps_of,
    percentiles,
    saved_ms,
    summary,
)
from sidecar.telemetry.scale import UNIT
from sidecar.telemetry.window import SLOT, SPANS, Reading, Window
from tests.telemetry.lines_rig import gaps, line
from tests.telemetry.test_window import ADVANCE, Clock, Model

COUNTED = ("requests", "input_tokens", "output_tokens", "saved_tokens")
RATES = ("hit_rate", "cancel_rate", "stream_error_rate", "timeout_rate")


def key_of(made):
    return (made["upstream"], made["model"], made["feature"], made["cache"])


def exact(lines, seconds):
    """The figures of lines with what is beside them, by their definitions."""
    asked = [made for made, _ in lines if made["cache"] in {"hit", "miss", "collapsed"}]
    hits = [made for made in asked if made["cache"] == "hit" and made["cache_kind"] != "stale"]
    streams = [
        made for made, _ in lines if made["stream"] and made["status"] is not None and made["status"] < 300
    ]
    broken = [made for made in streams if made["outcome"] in {"truncated", "upstream_error"}]

    def ended(outcome):
        return sum(made["outcome"] == outcome for made, _ in lines)

    def share(part, whole):
        return part / whole if whole else None

    values = {
        name: [made[name] for made, _ in lines if made[name] is not None and made["status"] != 202]
        for name in METRICS
        if name != "gap_ms"
    }
    values["gap_ms"] = [gap * 1000 for _, aside in lines for gap in aside.gaps.kept[0]]
    hit_lines = [(made, aside) for made, aside in lines if aside.saved is not None]
    return {
        "requests": len(lines),
        "per_second": len(lines) / seconds,
        **{name: quantiles(values[name]) for name in METRICS},
        "hit_rate": share(len(hits), len(asked)),
        "cancel_rate": share(ended("cancelled"), len(lines)),
        "stream_error_rate": share(len(broken), len(streams)),
        "timeout_rate": share(ended("timeout"), len(lines)),
        "input_tokens": sum(made["input_tokens"] or 0 for made, _ in lines),
        "output_tokens": sum(made["output_tokens"] or 0 for made, _ in lines),
        "saved_seconds": sum(saved_ms(made, aside) for made, aside in hit_lines) / 1000,
        "saved_tokens": sum(
            (made["input_tokens"] or 0) + (made["output_tokens"] or 0) for made, _ in hit_lines
        ),
    }


def quantiles(values):
    ordered = sorted(values)

    def at(hundredths):
        return ordered[max(-(-hundredths * len(ordered) // 100), 1) - 1] if ordered else None

    return {"count": len(values), "p50": at(50), "p95": at(95), "p99": at(99)}


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if name in METRICS:
            assert found[name]["count"] == value["count"], name
            for share in ("p50", "p95", "p99"):
                if value[share] is None:
                    assert found[name][share] is None
                else:
                    # Told in whole microseconds.
                    assert found[name][share] == pytest.approx(value[share], rel=0.01, abs=UNIT + 0.0005), (
                        name
                    )
        elif value is None:
            assert found[name] is None, name
        else:
            assert found[name] == pytest.approx(value, abs=5e-4), name


MS = st.one_of(st.just(0.0), st.floats(0.001, 1e7))
TOKENS = st.none() | st.integers(0, 10_000)


@st.composite
def lines(draw):
    cache = draw(st.sampled_from(["hit", "miss", "bypass", "collapsed", "off"]))
    kind = draw(st.sampled_from(["exact", "semantic", "stale"])) if cache == "hit" else None
    made = line(
        upstream=draw(st.sampled_from(["a", "b", None])),
        model=draw(st.sampled_from(["m", "n", None])),
        feature=draw(st.sampled_from(["chat", None])),
        cache=cache,
        cache_kind=kind,
        stream=draw(st.booleans()),
        status=draw(st.sampled_from([None, 200, 200, 202, 404, 502])),
        outcome=draw(st.sampled_from([outcome.value for outcome in Outcome])),
        ttfb_ms=draw(st.none() | MS),
        ttft_ms=draw(st.none() | MS),
        total_ms=draw(MS),
        overhead_ms=draw(st.none() | MS),
        tokens_per_second=draw(st.none() | st.floats(0.1, 1e6)),
        input_tokens=draw(TOKENS),
        output_tokens=draw(TOKENS),
    )
    saved = draw(st.floats(0, 1e4)) if kind in {"exact", "semantic"} else None
    return made, Aside(gaps=gaps(*draw(st.lists(st.floats(0, 1e4, width=32), max_size=4))), saved=saved)


HIT = (
    line(cache="hit", cache_kind="exact", input_tokens=None, output_tokens=None, total_ms=5.0),
    Aside(saved=0.0),
)


@settings(max_examples=60)
@given(st.lists(st.tuples(ADVANCE, lines()), max_size=30))
@example([(0.0, HIT), (SLOT, HIT), (60.0, HIT)])  # what saved nothing, twice: it leaves the window twice
def test_a_windows_figures_are_those_of_its_lines(steps):
    clock = Clock()
    window, model, kept = Window(clock), Model(clock), {}
    for number, (advance, (made, aside)) in enumerate(steps):
        clock.now += advance
        window.add(key_of(made), cells_of(made, aside, gaps_of(aside)))
        model.add(key_of(made), [(number, 1)])
        kept[number] = (made, aside)
    for name in SPANS:
        seconds, series = model.read(name)
        found = summary(window.read(name), series=True)
        assert found.pop("seconds") == pytest.approx(seconds, abs=0.051)
        by_key = {key: [kept[number] for number in numbers] for key, numbers in series.items()}
        same(found.pop("total"), exact(list(itertools.chain(*by_key.values())), seconds))
        for place, dimension in enumerate(DIMENSIONS):
            told = found.pop(dimension)
            names = {key[place] for key in by_key}
            assert list(told) == sorted("-" if value is None else value for value in names)
            for value in names:
                of = [made for key, found_ in by_key.items() if key[place] == value for made in found_]
                same(told["-" if value is None else value], exact(of, seconds))
        told = found.pop("series")
        assert not found
        assert len(told) == len(by_key)
        for one in told:
            key = tuple(one.pop(dimension) for dimension in DIMENSIONS)
            same(one, exact(by_key[key], seconds))


@settings(max_examples=40)
@given(st.lists(lines(), max_size=20))
def test_every_dimension_adds_up_to_the_total(given_):
    window = Window(Clock())
    for made, aside in given_:
        window.add(key_of(made), cells_of(made, aside, gaps_of(aside)))
    found = summary(window.read("5m"), series=True)
    assert "series" not in summary(window.read("5m"), series=False)
    parts = [list(found[dimension].values()) for dimension in DIMENSIONS]
    for part in [*parts, found["series"]]:
        for name in COUNTED:
            assert sum(one[name] for one in part) == found["total"][name]
        assert sum(one["saved_seconds"] for one in part) == pytest.approx(found["total"]["saved_seconds"])
        for name in METRICS:
            assert sum(one[name]["count"] for one in part) == found["total"][name]["count"]


def told(*given_):
    window = Window(Clock())
    for made in given_:
        window.add(key_of(made), cells_of(made, NOTHING, {}))
    return summary(window.read("1m"), series=True)


def rates(*given_):
    total = told(*given_)["total"]
    return [total[name] for name in RATES]


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ([], [None, None, None, None]),
        ([line()], [0.0, 0.0, 0.0, 0.0]),
        # Hits are of what could have been one; bypassed, and with the cache off, it could not.
        (
            [
                line(cache="hit", cache_kind="exact"),
                line(cache="hit", cache_kind="semantic"),
                line(cache="miss"),
                line(cache="collapsed"),
                line(cache="bypass"),
                line(cache="off"),
            ],
            [0.5, 0.0, 0.0, 0.0],
        ),
        # What stood in for a failing upstream is no hit, but could have been one.
        (
            [line(cache="hit", cache_kind="stale"), line(cache="hit", cache_kind="exact")],
            [0.5, 0.0, 0.0, 0.0],
        ),
        ([line(cache="bypass"), line(cache="off", outcome="cancelled")], [None, 0.5, 0.0, 0.0]),
        # Errors of streams, of streams only.
        (
            [
                line(outcome="truncated"),
                line(outcome="upstream_error"),
                line(outcome="refused"),
                line(outcome="timeout"),
                line(outcome="upstream_error", stream=False),
            ],
            [0.0, 0.0, 0.5, 0.2],
        ),
        ([line(stream=False, outcome="truncated")], [0.0, 0.0, None, 0.0]),
        # What was answered with an error, or not at all, never was a stream.
        (
            [
                line(outcome="upstream_error", status=503),
                line(outcome="upstream_error", status=300),
                line(outcome="upstream_error", status=None),
            ],
            [0.0, 0.0, None, 0.0],
        ),
        ([line(outcome="truncated", status=502), line(outcome="truncated")], [0.0, 0.0, 1.0, 0.0]),
        ([line(), line(), line(outcome="timeout")], [0.0, 0.0, 0.0, 0.3333]),
    ],
)
def test_rates(given_, expected):
    assert rates(*given_) == expected


def test_names_that_are_none_are_a_dash():
    found = told(line(upstream=None, model=None, feature=None, cache="off"), line())
    assert [list(found[dimension]) for dimension in DIMENSIONS] == [
        ["-", "a"],
        ["-", "m"],
        ["-", "chat"],
        ["miss", "off"],
    ]
    assert [[one[dimension] for dimension in DIMENSIONS] for one in found["series"]] == [
        [None, None, None, "off"],
        ["a", "m", "chat", "miss"],
    ]


def test_gaps_are_counted_for_all_that_they_stand_for():
    aside = Aside(gaps=gaps(*[0.02] * 9000))
    kept, weight = aside.gaps.kept
    assert weight == 2
    cells = dict(cells_of(line(), aside, gaps_of(aside)))
    told_ = figures(cells, 1.0)["gap_ms"]
    assert told_["count"] == len(kept) * 2
    assert told_["p50"] == told_["p99"] == pytest.approx(20.0, rel=0.01)
    assert gaps_of(NOTHING) == {}


@pytest.mark.parametrize(
    ("took", "total", "expected"), [(2.0, 5.0, 1995), (0.004, 5.0, 0), (0.0, 5.0, 0), (None, 5.0, 0)]
)
def test_saved_is_what_it_would_have_taken_longer(took, total, expected):
    assert saved_ms(line(total_ms=total), Aside(saved=took)) == expected


def test_nothing_was_counted():
    nothing = {"count": 0, "p50": None, "p95": None, "p99": None}
    assert percentiles({}) == nothing
    found = summary(Reading(0.001, {}), series=True)
    assert [found[dimension] for dimension in DIMENSIONS] == [{}, {}, {}, {}]
    assert found["total"] == {
        "requests": 0,
        "per_second": 0.0,
        **dict.fromkeys(METRICS, nothing),
        **dict.fromkeys(RATES),
        "input_tokens": 0,
        "output_tokens": 0,
        "saved_seconds": 0.0,
        "saved_tokens": 0,
    }
    assert all(math.isfinite(one) for one in found["total"].values() if isinstance(one, float))
