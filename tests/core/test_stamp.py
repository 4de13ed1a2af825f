"""sidecar.core.stamp: ids as clients see them, in any stream, split anywhere, from any event on."""

import re
from array import array

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.core.stamp import Stamper
from tests.core.asking import answer_to
from tests.core.oracle import BOM, blocks, events, split, streams

NAME = "s" + "A" * 32
OURS = re.compile(rb"id: s" + b"A" * 32 + rb":(\d+)(?:\r\n|\n|\r)")


class Tail:
    """A recording that is read at its tail, as far as a stamper can tell."""

    def __init__(self) -> None:
        self.answer = answer_to("/feed")
        self.events = array("Q")
        self.size = 0
        self.stamper = Stamper(self.answer, self.events, NAME, 0)

    def pass_on(self, piece: bytes) -> bytes:
        self.events.extend(self.answer.feed(piece, 0.0))
        start, self.size = self.size, self.size + len(piece)
        return self.stamper.stamp(piece, start)

    def close(self) -> None:
        self.events.extend(self.answer.close(0.0))


def stamped(pieces):
    tail = Tail()
    body = b"".join([tail.pass_on(piece) for piece in pieces if piece])
    tail.close()
    return body, tail


def ids(body):
    return [int(number) for number in OURS.findall(body)]


@given(split(streams()))
@example((b"data: x\r\n\r\n", [b"data: x\r\n\r", b"\n"]))
@example((b"data: x\r\n\r\n", [b"data: x\r\n", b"\r", b"\n"]))
@example((b"data: x\r\rdata: y\r\r", [b"data: x\r\r", b"data: y\r", b"\r"]))
@example((b"data: x\n\r\ndata: y\r\r", [b"data: x\n\r", b"\ndata: y\r\r"]))
@example((b": c\r\r", [b": c\r", b"\r"]))
@example((BOM + b"data: x\r\n\r\n", [BOM + b"data: x\r\n\r", b"\n"]))
@example((b"data: x\nid: 7\n\ndata: y\n\n", [b"data: x\nid: 7\n\ndata: y\n\n"]))
@example((b"data: x\r\nid: 7\r\n\r\n", [b"data: x\r\nid: 7\r\n\r", b"\n"]))
def test_the_events_are_the_same_and_carry_ids_until_the_upstream_sets_its_own(case):
    body, pieces = case
    out, tail = stamped(pieces)
    assert OURS.sub(b"", out) == body
    before, after = events(body), events(out)
    assert [event[:2] for event in after] == [event[:2] for event in before]
    assert len(tail.events) == len(before)
    until = min(tail.answer.ids_until, len(before))
    assert ids(out) == list(range(until))
    assert [event[2] for event in after[:until]] == [f"{NAME}:{number}" for number in range(until)]
    # What comes after the upstream's first id has no other than the upstream's.
    own = [number for number, event in enumerate(before) if event[2]]
    assert until <= (own[0] if own else len(before))


@given(split(streams(ends=(b"\n", b"\r\n"))))
def test_an_id_is_the_last_field_of_its_event(case):
    out, _ = stamped(case[1])
    for found in OURS.finditer(out):
        assert out[found.end() : found.end() + 1] in (b"\n", b"\r")
        assert out[found.start() - 1 : found.start()] in (b"\n", b"\r")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_its_line_ends_as_those_of_the_stream(end, size):
    """anthropic-python looks for LF LF, CR CR or CRLF CRLF, and takes nothing else for the end of an event."""
    body = b"data: 1" + end * 2 + b"event: x" + end + b"data: 2" + end * 2 + b"data: 3" + end * 2
    out, _ = stamped([body[at : at + size] for at in range(0, len(body), size)])
    assert out.count(end * 2) == 3
    assert ids(out) == [0, 1, 2]
    assert out.replace(end, b"").count(b"\n") + out.replace(end, b"").count(b"\r") == 0


@given(streams(), st.data())
def test_a_reader_from_any_event_on_gets_what_followed_with_the_ids_it_had(body, data):
    out, tail = stamped([body])
    number = data.draw(st.integers(0, len(tail.events)))
    offset = tail.events[number - 1] if number else 0
    late = (
        Stamper(tail.answer, tail.events, NAME, number).stamp(body[offset:], offset) if body[offset:] else b""
    )
    assert OURS.sub(b"", late) == body[offset:]
    assert ids(late) == [found for found in ids(out) if found >= number]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_the_first_event_is_whole_before_the_second_is_there(end):
    """Also where one CR might be half of a line end: what has come is passed on, id included."""
    tail = Tail()
    first = tail.pass_on(b"data: 1" + end + end)
    assert ids(first) == [0]
    assert tail.pass_on(b"data: 2" + end + end).endswith(b"id: %b:1" % NAME.encode() + end * 2)


def test_every_byte_by_itself():
    body = (
        BOM + b"data: 1\r\n\r\n: comment\r\n\r\nevent: a\ndata: 2\n\ndata: 3\r\rretry: 5\r\r\ndata: 4\n\r\n"
    )
    out, tail = stamped([body[at : at + 1] for at in range(len(body))])
    assert OURS.sub(b"", out) == body
    assert ids(out) == [0, 1, 2, 3]
    assert len(blocks(body)) == 6
    assert len(tail.events) == 4


def test_no_ids_from_an_event_on_that_is_too_long_to_be_looked_at():
    pieces = [b"data: 1\n\n", b"data: ", b"x" * (3 << 20), b"\n\n", b"data: 3\n\n"]
    out, tail = stamped(pieces)
    assert ids(out) == [0]
    assert OURS.sub(b"", out) == b"".join(pieces)
    assert (len(tail.events), tail.answer.ids_until) == (3, 1)
