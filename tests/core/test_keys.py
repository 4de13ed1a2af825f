"""sidecar.core.fingerprint: which requests are the same, and what never shares a key."""

import json
import os
import random
import subprocess
import sys
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.canonical import LARGEST
from sidecar.core.dialects import recognise
from sidecar.core.fingerprint import caller, exact_key, identity, keys
from sidecar.core.headers import index
from sidecar.core.types import Request
from tests.core.test_canonical import OBJECTS, RANDOM, meaning, written

SECRET = b"s" * 32
SCOPE = b"c" * 32
TARGET = b"/v1/chat/completions"
BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'


def asked(*headers, target=TARGET, method="POST"):
    path, _, query = target.decode("latin-1").partition("?")
    return Request(method, target, path, query, headers, index(headers))


def key(*headers, body=BODY, scope=SCOPE, upstream="default", **request):
    return exact_key(scope, upstream, asked(*headers, **request), body)


def ident(*headers, body=BODY, scope=SCOPE, upstream="default", **request):
    return identity(scope, upstream, asked(*headers, **request), body)


def all_differ(found):
    """Every one is there, and no two are the same."""
    assert None not in found
    assert len(set(found)) == len(found), [
        (one, other) for one, other in combinations(range(len(found)), 2) if found[one] == found[other]
    ]


# The body.


@given(OBJECTS, OBJECTS, RANDOM, RANDOM)
def test_bodies_share_a_key_exactly_when_they_mean_the_same(one, other, dice, more):
    keys = [
        key(body=written(value, how).encode()) for value, how in ((one, dice), (one, more), (other, more))
    ]
    assert keys[0] == keys[1] is not None
    assert (keys[1] == keys[2]) == (meaning(one) == meaning(other))


FIELDS = {
    "model": ["m", "m-2", "M", "", None],
    "messages": [
        [{"role": "user", "content": "hi"}],
        [{"role": "user", "content": "hi "}],
        [{"role": "User", "content": "hi"}],
        [{"role": "user", "content": "hi", "name": "a"}],
        [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        [{"role": "system", "content": "x"}, {"role": "user", "content": "hi"}],
        [{"role": "user", "content": "hi"}, {"role": "system", "content": "x"}],
        [],
    ],
    "stream": [True, False, None],
    "stream_options": [{"include_usage": True}, {"include_usage": False}, {}],
    "temperature": [0, 0.0, 1, 0.7, None],
    "top_p": [1, 0.1],
    "n": [1, 2],
    "seed": [0, 2**63, 2**64 + 1],
    "max_tokens": [1, 2],
    "stop": ["a", ["a"], ["a", "b"], ["b", "a"], None],
    "tools": [
        [{"type": "function", "function": {"name": "f", "parameters": {"a": {"b": {"c": 1}}}}}],
        [{"type": "function", "function": {"name": "f", "parameters": {"a": {"b": {"c": 2}}}}}],
    ],
    "tool_choice": ["auto", "none", {"type": "function"}],
    "logit_bias": [{"50256": -100}, {"50256": -99}, {"50257": -100}],
    "response_format": [{"type": "json_object"}, {"type": "text"}],
    "user": ["u1", "u2"],
    "metadata": [{"a": "1"}, {"a": 1}, {"b": "1"}],
    "a field of tomorrow": [0, "0", [0], {"0": 0}, False],
}


def test_every_field_of_the_body_counts():
    whole = {name: values[0] for name, values in FIELDS.items()}
    changed = [{**whole, name: value} for name, values in FIELDS.items() for value in values[1:]]
    without = [{field: whole[field] for field in whole if field != name} for name in whole]
    all_differ([key(body=json.dumps(body).encode()) for body in [whole, *changed, *without, {}]])


@given(st.permutations(list(FIELDS)), RANDOM)
def test_the_order_of_fields_and_the_way_they_are_written_do_not_count(order, dice):
    whole = {name: FIELDS[name][0] for name in FIELDS}
    assert key(body=written({name: whole[name] for name in order}, dice).encode()) == key(
        body=json.dumps(whole, indent=2).encode()
    )


UNJUDGED = {
    "nothing": b"",
    "text": b"hello",
    "cut": BODY[:-1],
    "two": BODY + BODY,
    "array": b"[" + BODY + b"]",
    "string": b'"{}"',
    "field twice": b'{"model":"a","model":"b"}',
    "field twice, the same": b'{"model":"a","model":"a"}',
    "field twice, deep": b'{"a":[{"b":1,"b":2}]}',
    "NaN": b'{"temperature":NaN}',
    "infinite": b'{"temperature":1e999}',
    "half a surrogate pair": b'{"a":"\\ud83d"}',
    "no UTF-8": b'{"a":"\xff"}',
    "BOM": b"\xef\xbb\xbf" + BODY,
    "UTF-16": BODY.decode().encode("utf-16"),
    "deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "compressed": b"\x1f\x8b\x08\x00",
    "multipart": b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--b--\r\n',
}


@pytest.mark.parametrize("body", UNJUDGED.values(), ids=UNJUDGED)
def test_a_body_that_cannot_be_judged_has_no_key_but_an_identity(body):
    assert key(body=body) is None
    assert ident(body=body) != ident(body=body + b" ")


def of_size(size, start=b"{"):
    return start + b'"a":"' + b"x" * (size - len(start) - 7) + b'"}'


def test_a_large_body_is_keyed_by_its_bytes():
    small, blank = of_size(LARGEST), of_size(LARGEST + 1, b"{ ")
    assert json.loads(small) == json.loads(blank)
    one_less, spread_out = small[:-3] + b'"}', b"{ " + small[1:-3] + b'"}'
    assert len(spread_out) == LARGEST
    assert key(body=spread_out) == key(body=one_less) != key(body=small)
    # One byte more than is looked at: only the bytes are left to go by.
    broken = b"\xff" * (LARGEST + 1)
    all_differ(
        [key(body=body) for body in (small, blank, blank[:-1] + b" ", blank + b" ", broken, broken + b"\xff")]
    )
    assert key(body=blank) == key(body=bytes(bytearray(blank)))


# The headers.

COUNT = [
    "openai-organization",
    "openai-project",
    "openai-beta",
    "anthropic-version",
    "anthropic-beta",
    "x-goog-user-project",
    "api-version",
    "x-api-version",
    "x-model",
    "x-ms-model-mesh-model-name",
    "x-portkey-config",
    "helicone-model-override",
    "cf-aig-skip-cache",
    "x-user-id",
    "x-tenant",
    "range",
    "if-none-match",
    "accept-language",
    "content-encoding",
    "content-language",
    "content-type",
    "forwarded",
    "origin",
    "x-http-method-override",
    "x-nothing-anybody-knows",
    "slipstreamish",
    "x-stainless",
    "xsec-a",
    "x-forwarded",
    "x-forwarded-user",
    "slipstream-namespace",
]
"""Those that may change the answer, and those nobody knows."""

ASIDE = [
    "accept",
    "accept-encoding",
    "user-agent",
    "traceparent",
    "baggage",
    "tracestate",
    "x-request-id",
    "x-client-request-id",
    "x-correlation-id",
    "x-b3-traceid",
    "x-datadog-trace-id",
    "x-amzn-trace-id",
    "x-cloud-trace-context",
    "sentry-trace",
    "x-stainless-retry-count",
    "x-stainless-timeout",
    "x-stainless-lang",
    "x-stainless-async",
    "x-stainless-helper-method",
    "x-goog-api-client",
    "idempotency-key",
    "host",
    "connection",
    "keep-alive",
    "te",
    "expect",
    "content-length",
    "transfer-encoding",
    "via",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-real-ip",
    "referer",
    "sec-fetch-mode",
    "sec-ch-ua",
    "dnt",
    "date",
    "last-event-id",
    "cache-control",
    "slipstream-disconnect",
    "slipstream-feature",
]
"""Those about the connection, the client or the trace."""


def test_every_header_that_may_change_the_answer_counts():
    fields = [[(name.encode(), value)] for name in COUNT for value in (b"", b"1", b"2", b"1, 2")]
    pairs = [[(one.encode(), b"1"), (other.encode(), b"1")] for one, other in combinations(COUNT, 2)]
    all_differ([key(), *(key(*given) for given in fields + pairs)])


@pytest.mark.parametrize("name", ASIDE)
def test_a_header_about_something_else_does_not_count(name):
    field = (name.encode(), b"anything: 1")
    assert key(field) == key((name.title().encode(), b"")) == key()
    assert key(field, (b"X-Model", b"a")) == key((b"X-Model", b"a")) != key()


@given(st.permutations([(name, value) for name in (b"X-A", b"x-b", b"X-C") for value in (b"1", b"2")]))
def test_the_order_and_the_case_of_names_do_not_count_but_the_order_of_repeated_ones_does(fields):
    plain = [(name, [value for other, value in fields if other == name]) for name in (b"X-A", b"x-b", b"X-C")]
    expected = [(name.lower(), b", ".join(values)) for name, values in plain]
    assert key(*fields) == key(*expected) == key(*reversed(expected))
    in_order = all(values == sorted(values) for _, values in plain)
    assert (key(*fields) == key(*sorted(fields))) == in_order


# Who asks, and where.


CREDENTIALS = [
    asked(),
    *(
        asked((name, value))
        for name in (b"Authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"Cookie")
        for value in (b"sk-1", b"sk-2", b"")
    ),
    asked((b"Authorization", b"sk-1"), (b"x-api-key", b"sk-1")),
    asked((b"Authorization", b"sk-1"), (b"Cookie", b"sk-1")),
    *(asked(target=TARGET + b"?" + query) for query in (b"key=sk-1", b"key=sk-2", b"api_key=sk-1")),
]


def test_other_credentials_never_share():
    all_differ([exact_key(caller(SECRET, who).scope, "default", who, BODY) for who in CREDENTIALS])
    all_differ([identity(caller(SECRET, who).scope, "default", asked(), BODY) for who in CREDENTIALS])


def test_other_installations_have_other_keys():
    who = asked((b"Authorization", b"sk-1"))
    all_differ([exact_key(caller(secret, who).scope, "u", who, BODY) for secret in (SECRET, b"t" * 32)])


def test_namespaces_never_share():
    names = (b"a", b"b", b"A", b"a ", b"a, a", b"", b"\xff")
    given = [[(b"Slipstream-Namespace", name)] for name in names]
    all_differ([key(), *(key(*fields) for fields in given)])
    assert key((b"SLIPSTREAM-namespace", b"a")) == key(*given[0])


ELSEWHERE = {
    "upstream": {"upstream": "other"},
    "method": {"method": "PUT"},
    "path": {"target": b"/v1/completions"},
    "query": {"target": TARGET + b"?a=1"},
    "other query": {"target": TARGET + b"?a=2"},
    "empty query": {"target": TARGET + b"?"},
    "spelling": {"target": b"/v1/chat%2Fcompletions"},
    "bytes": {"target": TARGET + b"?\xff"},
    "other bytes": {"target": TARGET + b"?\xfe"},
    "scope": {"scope": b"d" * 32},
}


@pytest.mark.parametrize("of", [key, ident])
def test_where_it_goes_and_how_counts(of):
    all_differ([of(), *(of(**change) for change in ELSEWHERE.values())])


# The whole of it.

TEXT = st.text("01234:ab, ", max_size=6).map(str.encode)
PARTS = st.tuples(
    TEXT,
    TEXT.map(bytes.decode),
    TEXT,
    st.dictionaries(st.sampled_from([b"a", b"ab", b"b", b"1", b"12"]), TEXT, max_size=3),
    TEXT,
)


@given(PARTS, PARTS)
def test_no_part_can_be_made_to_look_like_another(one, other):
    padding = b"x" * (LARGEST + 1)

    def made(scope, upstream, target, fields, body):
        request = asked(*fields.items(), target=b"/" + target)
        return exact_key(scope, upstream, request, body + padding), identity(scope, upstream, request, body)

    (key_one, id_one), (key_other, id_other) = made(*one), made(*other)
    assert (key_one == key_other) == (id_one == id_other) == (one == other)


@pytest.mark.parametrize("of", [key, ident])
def test_a_body_that_imitates_what_is_around_it_is_another_request(of):
    """It is taken as it is where it is large, or where its bytes are what counts."""
    padding = b"x" * (LARGEST + 1)
    around = [
        b"3:x-a1:1",
        b"x-a1",
        b"3:x-a",
        b"1:1",
        b"\r\nx-a: 1",
        b"%d:" % len(padding),
        b"3:x-a1:1%d:" % len(padding),
    ]
    bodies = [padding, *(part + padding for part in around), *(padding + part for part in around)]
    all_differ([of(*fields, body=body) for body in bodies for fields in ((), [(b"x-a", b"1")])])


def test_the_identity_is_of_the_bytes():
    all_differ([ident(), ident(body=BODY + b" "), ident(body=b" " + BODY), ident(body=b"")])
    assert ident() != key()


@pytest.mark.parametrize("name", [*COUNT, *ASIDE])
def test_the_identity_is_of_the_same_headers_as_the_key(name):
    """A retry that asks another model, or for another's namespace, is none."""
    field = (name.encode(), b"1")
    assert (ident(field) == ident()) == (key(field) == key()) == (name in ASIDE)


def spread():
    """Requests of every kind."""
    dice = random.Random(11)
    whole = {name: values[0] for name, values in FIELDS.items()}
    headers = [(name.encode(), b"1") for name in [*COUNT, *ASIDE]]
    dice.shuffle(headers)
    return [
        ((), BODY),
        (headers, json.dumps(whole).encode()),
        ((), written(whole, dice).encode()),
        (headers[:20], of_size(LARGEST + 1)),
        ((), b"no JSON"),
    ]


def test_other_processes_find_the_same_keys():
    program = (
        "from tests.core.test_keys import *\n"
        "print(hash('a'), [(key(*h, body=b), ident(*h, body=b)) for h, b in spread()])"
    )
    hashes, told = set(), set()
    for seed in ("0", "1", "4294967295"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        hashed, _, keys = done.stdout.strip().partition(" ")
        hashes.add(hashed)
        told.add(keys)
    assert len(hashes) == 3
    assert told == {
        str([(key(*headers, body=body), ident(*headers, body=body)) for headers, body in spread()])
    }


GOLDEN = [
    "3ff9016bad1c911d60798e83349d147692d42353e1ebad821089aa5a747e60de",
    "f864bb7ca1289fe75fd7e995d0cc829505ededee3b876b554dfbc749dcca2e4a73",
    "f864bb7ca1289fe75fd7e995d0cc829505ededee3b876b554dfbc749dcca2e4a77",
]
"""The same on Python 3.11, 3.12 and 3.13."""


def test_keys_stay_what_they_are():
    """What was stored is found again by another process, Python or version of the product: whoever changes how
    keys are made gives them another version."""
    body = b'{"stream": true, "model": "m", "stream_options": {"include_usage": true}, "messages": ["\\u00e9", 1.50]}'
    request = asked((b"Anthropic-Version", b"2023-06-01"), target=b"/v1/chat/completions?b=1&key=secret&a=2")
    found = keys(b"s" * 32, "default", request, body, recognise("POST", "/v1/chat/completions"), stream=True)
    assert [part.hex() for part in (found.exact, found.alias, found.other)] == GOLDEN
