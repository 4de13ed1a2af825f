"""sidecar.core.lines: NDJSON lines and elements of a JSON array, against `json`."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.core.lines import ArrayFramer, LineFramer
from sidecar.core.sse import Frame
from tests.core.oracle import split

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.sampled_from(['"]}', "\\", '[{\\"'])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text(max_size=3), VALUES, max_size=3)


def feed(framer, pieces):
    return [frame for piece in pieces for frame in framer.feed(piece)] + framer.close()


def objects(body):
    return [json.loads(line) for line in body.split(b"\n") if line.strip()]


@st.composite
def ndjson(draw):
    lines = [json.dumps(value, ensure_ascii=False).encode() for value in draw(st.lists(OBJECTS, max_size=6))]
    body = b"".join(line + draw(st.sampled_from([b"\n", b"\r\n"])) for line in lines)
    return body if draw(st.booleans()) else body[:-1]


@st.composite
def arrays(draw):
    """A JSON array with objects and arrays in it, spaced as providers do."""
    elements = draw(st.lists(OBJECTS | st.lists(VALUES, max_size=3), max_size=5))
    indent, comma = draw(st.sampled_from([None, 1])), draw(st.sampled_from([b",", b"\n,\r\n", b" , "]))
    inner = comma.join(
        json.dumps(e, indent=indent, ensure_ascii=draw(st.booleans())).encode() for e in elements
    )
    return b"[" + inner + draw(st.sampled_from([b"]", b"\n]\n"]))


class TestLines:
    @given(split(ndjson()))
    def test_any_split_gives_the_lines(self, case):
        body, pieces = case
        lines = body.split(b"\n")
        found = feed(LineFramer(), pieces)
        assert b"".join(frame.block for frame in found) == body
        assert [json.loads(frame.block) for frame in found] == [
            json.loads(line) for line in lines if line.strip()
        ]
        assert [body[: frame.end][-len(frame.block) :] for frame in found] == [frame.block for frame in found]
        assert [frame.fields_end for frame in found] == [
            frame.end - frame.block.endswith(b"\n") for frame in found
        ]

    @given(ndjson())
    def test_a_space_at_a_boundary_changes_no_line(self, body):
        framer, spaced, boundaries = LineFramer(), b" ", 1
        for at in range(len(body)):
            framer.feed(body[at : at + 1])
            spaced += body[at : at + 1]
            if framer.at_boundary:
                boundaries += 1
                spaced += b" "
        assert boundaries == 1 + body.count(b"\n")
        assert objects(spaced) == objects(body)

    @given(ndjson(), st.integers(0, 200))
    def test_closing_bytes_put_an_error_on_a_line_of_its_own(self, body, cut):
        framer = LineFramer()
        framer.feed(body[:cut])
        assert (body[:cut] + framer.closing + b'{"error":1}\n').split(b"\n")[-2] == b'{"error":1}'
        assert (framer.closing == b"") == framer.at_boundary

    @given(split(ndjson()), st.integers(1, 20))
    @example((b"long line\n", [b"long line\n"]), 3)
    @example((b"a long last line", [b"a long last line"]), 3)
    def test_the_cap_drops_the_content_of_long_lines_and_nothing_else(self, case, limit):
        body, pieces = case
        framer, end, expected = LineFramer(limit), 0, []
        for line in body.splitlines(keepends=True):
            end += len(line)
            expected.append(Frame(line if len(line) <= limit else None, end - line.endswith(b"\n"), end))
        assert feed(framer, pieces) == expected
        assert framer.overflowed or all(frame.block is not None for frame in expected)

    def test_a_dropped_line_takes_no_memory_and_is_no_boundary(self):
        framer = LineFramer(limit=10)
        assert framer.feed(b"x" * 1000) == []
        assert (len(framer._buffer), framer.at_boundary, framer.closing) == (0, False, b"\n")
        assert framer.feed(b"\n{}\n") == [Frame(None, 1000, 1001), Frame(b"{}\n", 1003, 1004)]
        assert framer.at_boundary

    def test_only_lf_ends_a_line(self):
        body = '{"a":"\u2028\u0085\x0b"}\n'.encode()
        assert feed(LineFramer(), [body]) == [Frame(body, len(body) - 1, len(body))]


class TestArrays:
    @given(split(arrays()))
    @example((b'[{"a":"\\\\"},{"b":"\\""}]', [b'[{"a":"\\', b'\\"},{"b":"\\', b'""}]']))
    def test_any_split_gives_the_elements(self, case):
        body, pieces = case
        found = feed(ArrayFramer(), pieces)
        assert [json.loads(frame.block) for frame in found] == json.loads(body)
        assert all(body[frame.end - len(frame.block) : frame.end] == frame.block for frame in found)

    @given(split(arrays()), st.integers(1, 20))
    def test_the_cap_drops_the_content_of_long_elements_and_nothing_else(self, case, limit):
        body, pieces = case
        framer = ArrayFramer(limit)
        whole = feed(ArrayFramer(), [body])
        expected = [
            frame._replace(block=frame.block if len(frame.block) <= limit else None) for frame in whole
        ]
        assert feed(framer, pieces) == expected
        assert framer.overflowed == any(frame.block is None for frame in expected)

    def test_memory_is_bounded_inside_and_between_elements(self):
        framer = ArrayFramer(limit=100)
        for piece in (b"[", b" " * 10_000, b'{"a":"', b"x" * 10_000):
            framer.feed(piece)
            assert len(framer._buffer) <= 200

    @given(st.lists(st.binary(max_size=12), max_size=5))
    def test_no_bytes_make_it_raise(self, pieces):
        feed(ArrayFramer(8), [*pieces, b']}]}"\\', b'"[{'])

    @pytest.mark.parametrize("body", [b"", b"[", b"[{}", b'[{"a":1},{"b":'])
    def test_nothing_may_be_inserted(self, body):
        framer = ArrayFramer()
        framer.feed(body)
        assert not framer.at_boundary
        assert framer.closing == b""
