"""sidecar.core.fingerprint: the same asker has the same tenant id, and nobody else has it."""

from itertools import combinations
from urllib.parse import quote

import pytest

from sidecar.core.fingerprint import caller, credential
from sidecar.core.headers import index
from sidecar.core.types import Request

SECRET = b"s" * 32


def request(*headers, query=""):
    target = b"/v1/x" + (b"?" + query.encode() if query else b"")
    return Request("POST", target, "/v1/x", query, headers, index(headers))


def tenant(secret, asking):
    return caller(secret, asking).tenant


BEARER = (b"Authorization", b"Bearer sk-1")

ASKERS = [
    request(BEARER),
    request((b"Authorization", b"Bearer sk-2")),
    request((b"x-api-key", b"sk-1")),
    request((b"api-key", b"sk-1")),
    request((b"x-goog-api-key", b"sk-1")),
    request((b"Cookie", b"session=1")),
    request((b"Cookie", b"session=2")),
    request(BEARER, (b"Cookie", b"session=1")),
    request(BEARER, (b"Authorization", b"Bearer sk-2")),
    request(query="key=sk-1"),
    request(query="key=sk-2"),
    request(query="api_key=sk-1"),
    request(query="access_token=sk-1"),
    request(query="key="),
    request(query="key=%FF"),
    request(BEARER, query="key=sk-1"),
    # A value with separators in it is not two values.
    request(query="key=a&api_key=b"),
    request(query="key=a%0Aapi_key%00b"),
    request(query="key=authorization%00Bearer+sk-1"),
]


def test_different_askers_have_different_tenants():
    for one, other in combinations(ASKERS, 2):
        assert tenant(SECRET, one) != tenant(SECRET, other), (one, other)
        assert caller(SECRET, one).scope != caller(SECRET, other).scope


@pytest.mark.parametrize(
    "first", [request(query="key=AAA&api_key=b"), request((b"Cookie", b"AAA"), query="key=b")]
)
def test_no_value_can_be_made_to_look_like_several(first):
    told = credential(first)
    rest = told.partition(b"AAA")[2]
    where = {"query": "key=AAA" + quote(rest)} if "AAA" in first.query else {}
    headers = [] if where else [(b"Cookie", b"AAA" + rest)]
    assert credential(request(*headers, **where)) != told


@pytest.mark.parametrize(
    "same",
    [
        request((b"AUTHORIZATION", b"Bearer sk-1")),
        request(BEARER, (b"Accept", b"x"), (b"User-Agent", b"y")),
        request((b"Accept", b"x"), BEARER, query="page=2&keys=3&alt=sse"),
        request(BEARER, query="key"),
    ],
)
def test_what_is_no_credential_changes_nothing(same):
    assert tenant(SECRET, same) == tenant(SECRET, request(BEARER))


def test_the_id_says_nothing_about_the_credential():
    found = tenant(SECRET, request(BEARER))
    assert len(found) == 16
    assert set(found) <= set("0123456789abcdef")
    assert found != tenant(b"t" * 32, request(BEARER))


@pytest.mark.parametrize("anonymous", [request(), request((b"Accept", b"x"), query="q=key=1")])
def test_without_a_credential_there_is_no_tenant(anonymous):
    assert credential(anonymous) is None
    assert tenant(SECRET, anonymous) is None
    # It is a scope of its own, and not that of an empty credential.
    assert caller(SECRET, anonymous).scope == caller(SECRET, request()).scope
    assert caller(SECRET, anonymous).scope not in {caller(SECRET, asker).scope for asker in ASKERS}
