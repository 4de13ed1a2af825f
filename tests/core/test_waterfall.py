"""sidecar.core.waterfall: a request's time as pieces, of whole lines and of damaged ones."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.core.latency import Heard, Labels, Trace, record
from sidecar.core.spans import Spans
from sidecar.core.types import Outcome, Timings
from sidecar.core.waterfall import Piece, pieces, slowest

NAMES = {
    *("read", "lookup", "embed", "search", "connect", "upstream"),
    *("sidecar", "first_token", "stream", "body"),
}
BEGUN = 1000.0
SECONDS = st.one_of(st.just(0.0), st.floats(0, 1e-6), st.floats(0, 5), st.floats(0, 1e5))


def phases(**changes):
    names = ("read_ms", "lookup_ms", "embed_ms", "search_ms", "connect_ms", "upstream_ms", "store_ms")
    return dict.fromkeys(names) | changes


def line(**changes):
    """A streamed answer: 1 ms read, 2 ms lookup, 12 ms to connect, 287 ms for the head, 110 ms for a token."""
    return {
        "stream": True,
        "cache": "miss",
        "cache_kind": None,
        "resumed_from": None,
        "ttfb_ms": 303.0,
        "ttft_ms": 413.0,
        "total_ms": 2313.0,
        "phases": phases(read_ms=1.0, lookup_ms=2.0, connect_ms=12.0, upstream_ms=287.0, store_ms=9.0),
        **changes,
    }


def told(line):
    return [(piece.name, piece.start_ms, piece.ms) for piece in pieces(line)]


def adds_up(line):
    """No gap, no overlap, and the whole of the time."""
    found, total = pieces(line), line["total_ms"]
    whole = total if isinstance(total, int | float) and total > 0 else 0.0
    slack = 0.001 + whole * 1e-9
    at = 0.0
    for piece in found:
        assert piece.name in NAMES
        assert piece.ms > 0
        assert piece.start_ms == pytest.approx(at, abs=slack)
        at = piece.start_ms + piece.ms
    assert at == pytest.approx(whole, abs=slack)
    longest = slowest(line)
    assert (longest is None) == (not found)
    return found


def test_a_stream_in_its_pieces():
    assert told(line()) == [
        ("read", 0.0, 1.0),
        ("lookup", 1.0, 2.0),
        ("connect", 3.0, 12.0),
        ("upstream", 15.0, 287.0),
        ("sidecar", 302.0, 1.0),
        ("first_token", 303.0, 110.0),
        ("stream", 413.0, 1900.0),
    ]
    assert pieces(line())[0] == Piece("read", 0.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # What was done inside of the lookup is taken out of it.
        (
            {"phases": phases(lookup_ms=10.0, embed_ms=6.0, search_ms=3.0), "cache": "hit", "ttft_ms": None},
            [("lookup", 1.0), ("embed", 6.0), ("search", 3.0), ("sidecar", 293.0), ("stream", 2010.0)],
        ),
        # Side by side they took longer than was waited for.
        (
            {"phases": phases(lookup_ms=5.0, embed_ms=4.0, search_ms=3.0), "cache": "hit", "ttft_ms": None},
            [("lookup", 5.0), ("sidecar", 298.0), ("stream", 2010.0)],
        ),
        # What is no stream has a body.
        (
            {"stream": False, "ttft_ms": None, "phases": phases(upstream_ms=300.0)},
            [("upstream", 300.0), ("sidecar", 3.0), ("body", 2010.0)],
        ),
        # Who shares a call waits for another's head, and for nothing of their own.
        (
            {"cache": "collapsed", "phases": phases(read_ms=1.0)},
            [("read", 1.0), ("upstream", 302.0), ("first_token", 110.0), ("stream", 1900.0)],
        ),
        # Who comes back does not wait for the upstream's head again, whatever the line says of it.
        (
            {
                "resumed_from": 3,
                "cache": "bypass",
                "ttft_ms": None,
                "phases": phases(connect_ms=5.0, upstream_ms=9.0),
            },
            [("sidecar", 303.0), ("stream", 2010.0)],
        ),
        # A stored answer stood in for an upstream that failed: that was waited for.
        (
            {"cache": "hit", "cache_kind": "stale", "phases": phases(connect_ms=3.0, upstream_ms=300.0)},
            [("connect", 3.0), ("upstream", 300.0), ("first_token", 110.0), ("stream", 1900.0)],
        ),
        # It ended while it waited for the head.
        (
            {"ttfb_ms": None, "ttft_ms": None, "phases": phases(connect_ms=3.0, upstream_ms=2310.0)},
            [("connect", 3.0), ("upstream", 2310.0)],
        ),
        ({"ttfb_ms": None, "ttft_ms": None, "phases": phases()}, [("sidecar", 2313.0)]),
        # The request that the phases are of took longer than this one, which came in the same bytes.
        (
            {
                "ttfb_ms": 0.25,
                "ttft_ms": 0.25,
                "total_ms": 0.25,
                "cache": "hit",
                "phases": phases(read_ms=9.0, lookup_ms=0.0),
            },
            [("read", 0.25)],
        ),
        ({"total_ms": 0.0}, []),
    ],
)
def test_pieces_of_other_ways(changes, expected):
    assert [(name, ms) for name, _, ms in told(line(**changes))] == expected
    adds_up(line(**changes))


@pytest.mark.parametrize(
    ("changes", "until", "expected"),
    [
        ({}, None, "stream"),
        ({}, 413.0, "upstream"),
        ({}, 14.0, "connect"),
        ({}, 2.9, "lookup"),
        ({}, 0.0, None),
        ({"total_ms": None}, None, None),
        # An app's own spans say more than `upstream` where they are most of it: more than half, not half.
        (
            {"phases": phases(upstream_ms=300.0) | {"search_docs_ms": 151.0, "db_ms": 20.0}},
            400.0,
            "search_docs",
        ),
        ({"phases": phases(upstream_ms=300.0) | {"search_docs_ms": 150.0}}, 400.0, "upstream"),
        ({"phases": phases(upstream_ms=300.0) | {"search_docs_ms": 299.0}}, None, "stream"),
        ({"phases": phases(upstream_ms=300.0) | {"app_read_ms": 299.0}}, 400.0, "app_read"),
        ({"phases": phases(upstream_ms=300.0) | {"odd": 299.0, "none_ms": None}}, 400.0, "odd"),
    ],
)
def test_the_slowest(changes, until, expected):
    assert slowest(line(**changes), until) == expected


# Whatever `record` can make.


@st.composite
def requests(draw):
    """A trace, what the answer told, and when it ended."""
    moments = sorted(draw(st.lists(SECONDS, min_size=8, max_size=8)))
    started, connected, sent, head, head_at, first, last, now = [BEGUN + moment for moment in moments]
    steps = draw(st.integers(0, 4))
    timings = Timings(
        *[at if step < steps else 0.0 for step, at in enumerate([started, connected, sent, head])]
    )
    maybe = st.none() | SECONDS
    spans = None
    if draw(st.booleans()):
        spans = Spans()
        spans.begin("retrieve", started).ended = draw(st.sampled_from([0.0, head, now]))
        spans.begin("rank", connected)
    trace = Trace(
        "r",
        "POST",
        "/v1/chat/completions",
        BEGUN,
        labels=Labels("a", "openai", "chat", "m", stream=draw(st.booleans())),
        resumed_from=draw(st.none() | st.integers(0, 9)),
        cache=draw(st.sampled_from(["hit", "miss", "bypass", "collapsed", "off"])),
        cache_kind=draw(st.sampled_from([None, "exact", "semantic", "stale"])),
        embed=draw(maybe),
        search=draw(maybe),
        lookup=draw(maybe),
        stored=draw(maybe),
        joined=draw(st.booleans()),
        status=draw(st.sampled_from([None, 200, 202, 404, 502])),
        waited=draw(SECONDS),
        timings=draw(st.sampled_from([None, timings])),
        spans=spans,
        head_at=draw(st.sampled_from([0.0, head_at])),
        outcome=draw(st.sampled_from(list(Outcome))),
    )
    kind = draw(st.sampled_from([None, "content"]))
    return trace, Heard(first_at=first, first_kind=kind, last_at=last, deltas=2), now


@given(requests())
def test_pieces_of_any_line_add_up_to_its_time(request_):
    made = record(*request_)
    for piece in adds_up(made):
        assert math.isfinite(piece.start_ms)
    until = made["ttft_ms"]
    if until is not None:
        # Up to the first token nothing after it counts.
        assert slowest(made, until) not in {"stream", "body"} or until > made["total_ms"]


@given(requests(), st.floats(0, 1e8))
def test_the_slowest_of_any_line_is_a_piece_or_a_span_of_it(request_, until):
    made = record(*request_)
    names = {piece.name for piece in pieces(made)}
    spans = {"retrieve", "rank"} if request_[0].spans is not None else set()
    assert slowest(made, until) in names | spans | {None}


# Damaged ones.

DAMAGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.text(max_size=9),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=9), st.floats() | st.text(max_size=3), max_size=3),
)
KEYS = ["stream", "cache", "cache_kind", "resumed_from", "ttfb_ms", "ttft_ms", "total_ms", "phases"]
PHASES = [*phases(), "span_ms", "span", ""]


@given(
    st.dictionaries(st.sampled_from(KEYS), DAMAGE),
    st.dictionaries(st.sampled_from(PHASES), DAMAGE),
    st.lists(st.sampled_from(KEYS)),
)
@example({"total_ms": 10**400}, {}, [])
@example({"total_ms": math.inf}, {}, [])
@example({"total_ms": math.nan, "ttfb_ms": math.nan}, {"read_ms": math.nan}, [])
@example(
    {"ttft_ms": -5, "ttfb_ms": "1"}, {"read_ms": -3, "upstream_ms": "x", "connect_ms": math.inf}, ["cache"]
)
@example({"phases": ["read_ms"], "cache": ["hit"], "cache_kind": {}}, {}, [])
def test_damaged_lines_never_raise(changes, damaged, missing):
    made = line()
    made["phases"] |= damaged
    made |= changes
    for name in missing:
        made.pop(name, None)
    found = pieces(made)
    for piece in found:
        assert piece.name in NAMES
        assert math.isfinite(piece.start_ms) and math.isfinite(piece.ms)
        assert piece.ms >= 0
    assert (slowest(made) is None) == (not found)
    slowest(made, 100.0)
    total = made.get("total_ms")
    if isinstance(total, int | float) and 0.001 < total < 1e12:
        adds_up(made)


def test_nothing_is_known():
    assert pieces({}) == []
    assert slowest({}) is None
    assert slowest({"phases": {"span_ms": 5.0}}) is None
