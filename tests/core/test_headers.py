"""sidecar.core.headers: what goes through, what ends here, and what never reaches a wire."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.headers import CREDENTIALS, end_to_end, index, render, request_fields, tokens


def fields(*lines):
    return tuple(tuple(part.strip() for part in line.split(b":", 1)) for line in lines)


def through(*lines, host=None):
    given_ = fields(*lines)
    kept = end_to_end(given_, index(given_)) if host is None else request_fields(given_, index(given_), host)
    return [b"%b: %b" % field for field in kept]


@pytest.mark.parametrize(
    "name",
    [
        b"Connection",
        b"Keep-Alive",
        b"Proxy-Authenticate",
        b"Proxy-Authorization",
        b"Proxy-Connection",
        b"TE",
        b"Trailer",
        b"Transfer-Encoding",
        b"Upgrade",
    ],
)
def test_hop_by_hop_fields_end_here(name):
    for spelled in (name, name.lower(), name.upper()):
        assert through(spelled + b": x", b"Accept: y") == [b"Accept: y"]
        assert through(spelled + b": x", b"Host: a", host=b"b") == [b"Host: b"]


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        # Order, case and repetition stay.
        ([b"b: 1", b"A: 2", b"b: 3", b"B: 4", b"a: "], [b"b: 1", b"A: 2", b"b: 3", b"B: 4", b"a: "]),
        ([b"Set-Cookie: a", b"Date: d", b"Set-Cookie: b"], [b"Set-Cookie: a", b"Date: d", b"Set-Cookie: b"]),
        (
            [b"Content-Length: 3", b"Content-Encoding: gzip"],
            [b"Content-Length: 3", b"Content-Encoding: gzip"],
        ),
        ([b"Expect: x", b"Slipstream-Stream-Id: s"], [b"Expect: x", b"Slipstream-Stream-Id: s"]),
        # What `Connection` names goes with it, wherever it stands and however often.
        ([b"X-Hop: 1", b"Connection: close, x-hop", b"x-HOP: 2", b"X-Hopper: 3"], [b"X-Hopper: 3"]),
        ([b"Connection: a", b"A: 1", b"connection: b,,", b"B: 2", b"C: 3"], [b"C: 3"]),
        ([b"Connection: close", b"Close: 1"], [b"Close: 1"]),
        # But not framing, routing, or what changes who is asking.
        (
            [
                b"Connection: content-length, HOST, cache-control",
                b"Content-Length: 1",
                b"Host: h",
                b"Cache-Control: c",
            ],
            [b"Content-Length: 1", b"Host: h", b"Cache-Control: c"],
        ),
    ],
)
def test_end_to_end(lines, kept):
    assert through(*lines) == kept


@pytest.mark.parametrize("name", CREDENTIALS)
def test_connection_cannot_take_a_credential_away(name):
    assert through(b"Connection: " + name, name + b": secret") == [name + b": secret"]


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        ([b"Accept: x", b"hOsT: here", b"Z: z"], [b"Accept: x", b"hOsT: up:1", b"Z: z"]),
        ([b"Accept: x"], [b"Host: up:1", b"Accept: x"]),
        ([b"Host: h", b"Expect: 100-continue"], [b"Host: up:1"]),
        ([b"Host: h", b"Slipstream-Feature: f", b"slipstream-: x", b"Slip: y"], [b"Host: up:1", b"Slip: y"]),
        ([b"Host: h", b"Authorization: Bearer k"], [b"Host: up:1", b"Authorization: Bearer k"]),
    ],
)
def test_request_fields(lines, kept):
    assert through(*lines, host=b"up:1") == kept


def test_index_joins_repetitions():
    assert index(fields(b"A: 1", b"b: 2", b"a: 3")) == {b"a": b"1, 3", b"b": b"2"}


def test_tokens():
    assert tokens(b" Close , ,x-A,close,") == {b"close", b"x-a"}
    assert tokens(b"") == set()


def test_render():
    head = render(b"GET / HTTP/1.1", [(b"a", b"1"), (b"A", b""), (b"b", b"\xff\t")])
    assert head == b"GET / HTTP/1.1\r\na: 1\r\nA: \r\nb: \xff\t\r\n\r\n"


@given(
    st.sampled_from([b"\r", b"\n", b"\0", b"\r\n", b"\n\r", b"\r\nx: y", b"\r\n\r\n"]),
    st.integers(0, 4),
    st.integers(0, 2),
)
def test_render_refuses_what_would_break_out_of_its_line(bad, place, at):
    parts = [b"GET / HTTP/1.1", b"ab", b"cd", b"ef", b"gh"]
    parts[place] = parts[place][:at] + bad + parts[place][at:]
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        render(parts[0], [(parts[1], parts[2]), (parts[3], parts[4])])
