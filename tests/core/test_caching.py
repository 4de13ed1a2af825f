"""sidecar.core.caching: wishes, freshness, and who has nothing to do with stored answers, as tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.caching import Terms, Wish, age, freshness, hit_status, refused, stale_status, unfit, wish
from sidecar.core.entry import Known
from sidecar.core.types import Head, Intent

TERMS = Terms(
    ttl=100.0, stale_if_error=50.0, largest=10, max_temperature=None, finish=frozenset(), tools=True
)
INF = float("inf")
NOW = 1_000_000.0


def terms(**changes):
    facts = {name: getattr(TERMS, name) for name in TERMS.__struct_fields__}
    return Terms(**facts | changes)


def known(old, ttl=100.0):
    return Known(200, "OK", (), NOW - old, ttl, "d", "/")


WISHES = {
    b"": Wish(),
    b"public": Wish(),
    b"no-store": Wish(read=False, write=False),
    b"no-cache": Wish(read=False),
    b"No-Cache , no-STORE": Wish(read=False, write=False),
    b"no-cache=x": Wish(read=False),
    b"max-age=5": Wish(max_age=5.0),
    b'max-age="5"': Wish(max_age=5.0),
    b"max-age=5, max-age=9": Wish(max_age=5.0),
    b"max-age": Wish(max_age=0.0),
    b"max-age=": Wish(max_age=0.0),
    b"max-age=-1": Wish(max_age=0.0),
    b"max-age=1.5": Wish(max_age=0.0),
    b"max-age=x": Wish(max_age=0.0),
    b"max-age=9999999999999": Wish(max_age=0.0),
    b"min-fresh=5": Wish(min_fresh=5.0),
    b"min-fresh": Wish(min_fresh=INF),
    b"min-fresh=x": Wish(min_fresh=INF),
    b"only-if-cached": Wish(only_if_cached=True),
    b"only-if-cached, max-age=1": Wish(only_if_cached=True, max_age=1.0),
    b"xno-store": Wish(),
    b"no-store-ever": Wish(),
}


@pytest.mark.parametrize(("value", "expected"), WISHES.items())
def test_wishes(value, expected):
    assert wish({b"cache-control": value}) == expected


def test_no_header_is_no_wish():
    assert wish({}) == wish({b"pragma": b"no-cache"}) == Wish()


@given(st.binary(max_size=60))
def test_any_header_is_some_wish(value):
    assert isinstance(wish({b"cache-control": value}), Wish)


FRESH = [
    (0, {}, {}, "fresh"),
    (99.9, {}, {}, "fresh"),
    (100, {}, {}, "stale"),
    (149.9, {}, {}, "stale"),
    (150, {}, {}, "over"),
    (100, {}, {"stale_if_error": 0.0}, "over"),
    (-1.9, {}, {}, "fresh"),
    (-2.1, {}, {}, "over"),
    (-86400, {}, {}, "over"),
    (50, {}, {"ttl": 40.0}, "stale"),
    (90, {}, {"ttl": 40.0}, "over"),
    (120, {}, {"ttl": 4000.0}, "stale"),
    (10, {"max_age": 10.0}, {}, "fresh"),
    (10.1, {"max_age": 10.0}, {}, "refused"),
    (120, {"max_age": 10.0}, {}, "refused"),
    (120, {"max_age": 130.0}, {}, "stale"),
    (10, {"min_fresh": 90.0}, {}, "fresh"),
    (10, {"min_fresh": 90.1}, {}, "refused"),
    (10, {"min_fresh": INF}, {}, "refused"),
    (120, {"min_fresh": 0.0}, {}, "refused"),
    (200, {"min_fresh": 0.0}, {}, "over"),
]


@pytest.mark.parametrize(("old", "wished", "configured", "expected"), FRESH)
def test_freshness(old, wished, configured, expected):
    assert freshness(known(old), Wish(**wished), terms(**configured), NOW) == expected


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.floats(0, 1e6))
def test_nothing_lives_longer_than_its_time(old, ttl, window):
    found = freshness(known(old, ttl), Wish(), terms(ttl=1e6, stale_if_error=window), NOW)
    if old > ttl + 1e-3:
        assert found != "fresh"
    if old > ttl + window + 1e-3 or old < -2.001:
        assert found == "over"


REFUSED = [
    ({}, {}, {}, None),
    ({}, {}, {"ttl": 0.0}, "off"),
    ({}, {"write": False, "read": False}, {}, "no_store"),
    ({}, {"read": False}, {}, None),
    ({"stateful": True}, {}, {}, "stateful"),
    ({}, {}, {"max_temperature": 0.9}, "temperature"),
    ({}, {}, {"max_temperature": 1.0}, None),
    ({"temperature": 0.5}, {}, {"max_temperature": 0.5}, None),
    ({"temperature": 0.51}, {}, {"max_temperature": 0.5}, "temperature"),
    ({"temperature": 2.0}, {}, {}, None),
    ({"temperature": 0.0}, {}, {"max_temperature": 0.0}, None),
]


@pytest.mark.parametrize(("intended", "wished", "configured", "expected"), REFUSED)
def test_refused(intended, wished, configured, expected):
    assert refused(Intent(**intended), Wish(**wished), terms(**configured)) == expected


def head(status=200, **fields):
    found = {name.replace("_", "-").encode(): value for name, value in fields.items()}
    return Head(status, b"", tuple(found.items()), found)


UNFIT = [
    (head(), None),
    (head(201), "status"),
    (head(304), "status"),
    (head(content_encoding=b"identity"), None),
    (head(content_encoding=b" Identity "), None),
    (head(content_encoding=b""), None),
    (head(content_encoding=b"GZIP"), "compressed"),
    (head(content_encoding=b"identity, br"), "compressed"),
    (head(cache_control=b"private, no-cache, max-age=0"), None),
    (head(cache_control=b"private, No-Store"), "upstream_no_store"),
    (head(cache_control=b"no-store=1"), "upstream_no_store"),
]


@pytest.mark.parametrize(("given", "expected"), UNFIT)
def test_unfit(given, expected):
    assert unfit(given) == expected


def test_what_is_said_of_a_hit():
    assert hit_status(known(10.5), TERMS, NOW) == b"slipstream; hit; ttl=89; detail=exact"
    assert hit_status(known(10, ttl=50.0), TERMS, NOW) == b"slipstream; hit; ttl=40; detail=exact"
    assert hit_status(known(10), terms(ttl=20.0), NOW) == b"slipstream; hit; ttl=10; detail=exact"


def test_a_similarity_is_never_said_to_be_more_than_it_was():
    for similarity, shown in ((0.92, b"0.920"), (0.99999, b"0.999"), (1.0, b"1.000"), (0.9299, b"0.929")):
        said = b"slipstream; hit; ttl=90; detail=semantic:" + shown
        assert hit_status(known(10), TERMS, NOW, similarity) == said
    assert age(known(10.9), NOW) == b"10"


def test_a_clock_that_was_set_back_by_a_second_makes_nothing_younger():
    assert age(known(-1.5), NOW) == b"0"
    assert hit_status(known(-1.5), TERMS, NOW) == b"slipstream; hit; ttl=100; detail=exact"


def test_what_is_said_of_a_stale_answer():
    said = b"slipstream; fwd=stale%b; ttl=-20; detail=stale-if-error"
    assert stale_status(known(120), TERMS, NOW, 503) == said % b"; fwd-status=503"
    assert stale_status(known(120), TERMS, NOW, None) == said % b""
