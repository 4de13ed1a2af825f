"""sidecar.core.websocket: the ends of frames, against a writer of frames that knows where it put them."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.core.websocket import CLOSE, Frames, close_frame

TEXT, BINARY, CONTINUATION, PING, PONG = 1, 2, 0, 9, 10
SIZES = [0, 1, 2, 5, 125, 126, 127, 65535, 65536]


def frame(opcode, payload=b"", *, fin=True, mask=None, rsv=0, width=None):
    """One frame; `width`: bytes of its length field, shortest when left out."""
    size = len(payload)
    width = width if width is not None else 0 if size < 126 else 2 if size < 65536 else 8
    bit = 0x80 if mask is not None else 0
    first = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    second = bytes([bit | {0: size, 2: 126, 8: 127}[width]])
    length = size.to_bytes(width, "big") if width else b""
    if mask is None:
        return first + second + length + payload
    key = (mask * (size // 4 + 1))[:size]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return first + second + length + mask + masked.to_bytes(size, "big")


def told(frames):
    return frames.messages, frames.close_code, frames.at_boundary, frames.lost


def fed(pieces):
    frames = Frames()
    for piece in pieces:
        frames.feed(piece)
    return frames


@st.composite
def sequences(draw):
    """Frames on the wire, where each ends, how many messages that is, and the code of the first close frame."""
    wire, ends, messages, code = b"", [], 0, None
    for _ in range(draw(st.integers(0, 6))):
        opcode = draw(st.sampled_from([TEXT, BINARY, CONTINUATION, PING, PONG, CLOSE, 3, 11]))
        fin, rsv = draw(st.booleans()), draw(st.integers(0, 7))
        size = draw(st.sampled_from(SIZES) | st.integers(0, 300))
        begun = st.integers(999, 5001).map(lambda said: said.to_bytes(2, "big"))
        payload = draw(st.binary(min_size=2, max_size=2) | begun) * (size // 2 + 1)
        payload = payload[:size]
        mask = draw(st.none() | st.binary(min_size=4, max_size=4))
        width = draw(st.sampled_from([w for w in (0, 2, 8) if size < {0: 126, 2: 65536, 8: 1 << 63}[w]]))
        wire += frame(opcode, payload, fin=fin, mask=mask, rsv=rsv, width=width)
        ends.append(len(wire))
        messages += fin and opcode < 8
        if opcode == CLOSE and code is None:
            said = int.from_bytes(payload[:2], "big")
            code = said if 2 <= size <= 125 and 1000 <= said <= 4999 else 1005
    return wire, ends, messages, code


@st.composite
def cut_up(draw):
    sequence = draw(sequences())
    cuts = sorted(draw(st.sets(st.integers(0, len(sequence[0])), max_size=20)))
    pieces = [sequence[0][a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
    return sequence, pieces


@given(cut_up())
def test_any_split_gives_what_was_written(case):
    (_, _, messages, code), pieces = case
    assert told(fed(pieces)) == (messages, code, True, False)


@given(cut_up())
def test_boundaries_are_where_frames_end_and_nowhere_else(case):
    (wire, ends, _, _), pieces = case
    frames, passed = Frames(), 0
    for piece in pieces:
        frames.feed(piece)
        passed += len(piece)
        assert frames.at_boundary == (passed in {0, *ends})
    assert passed == len(wire)


@given(cut_up())
def test_frame_by_frame_is_the_same(case):
    (_, ends, messages, code), pieces = case
    frames, passed, met = Frames(), 0, []
    for piece in pieces:
        at = 0
        while at < len(piece):
            begun, at = at, frames.feed_frame(piece, at)
            assert at > begun
            if frames.at_boundary:
                met.append(passed + at)
        passed += len(piece)
    assert met == ends
    assert told(frames) == (messages, code, True, False)


MIXED = b"".join(
    [
        frame(TEXT, b"hello", mask=b"\x01\x02\x03\x04"),
        frame(BINARY, b"part", fin=False),
        frame(PING, b"p", mask=b"abcd"),
        frame(CONTINUATION, b"x" * 200, mask=b"\xff\xff\xff\xff"),
        frame(TEXT),
        frame(PONG, b"p" * 125, width=8),
        frame(CLOSE, b"\x03\xf4restart", mask=b"\x81\x0f\x00\x7f"),
    ]
)


def test_every_cut_in_two_and_byte_by_byte():
    whole = told(fed([MIXED]))
    assert whole == (3, 1012, True, False)
    for cut in range(len(MIXED) + 1):
        assert told(fed([MIXED[:cut], MIXED[cut:]])) == whole, cut
    assert told(fed([MIXED[at : at + 1] for at in range(len(MIXED))])) == whole


@pytest.mark.parametrize("mask", [None, b"\x81\x0f\x00\x7f"])
@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"\x03\xe8", 1000),
        (b"\x13\x87" + b"x" * 123, 4999),
        (b"\x03\xe7", 1005),
        (b"\x13\x88", 1005),
        (b"\0\0", 1005),
        (b"\xff\xff", 1005),
        (b"\x03\xe8" + b"x" * 124, 1005),
        (b"\x03\xe8" + bytes(70000), 1005),
    ],
)
def test_a_close_code_is_one_that_there_is_in_a_frame_as_it_has_to_be(said, code, mask):
    wire = frame(CLOSE, said, mask=mask)
    assert told(fed([wire])) == told(fed([wire[:3], wire[3:]])) == (0, code, True, False)


@pytest.mark.parametrize("size", [65537, 1 << 32, (1 << 63) - 1])
def test_a_payload_of_any_size_is_counted_and_not_kept(size):
    frames = Frames()
    frames.feed(bytes([0x82, 127]) + size.to_bytes(8, "big"))
    frames.feed(b"x" * 65536)
    assert told(frames) == (0, None, False, False)
    assert frames._left == size - 65536
    assert not frames._header


def test_a_message_counts_once_it_is_whole():
    frames = Frames()
    frames.feed(frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b", fin=False))
    assert frames.messages == 0
    last = frame(CONTINUATION, b"cd")
    frames.feed(last[:-1])
    assert frames.messages == 0
    frames.feed(last[-1:])
    assert frames.messages == 1


def test_the_first_close_frame_counts_once_it_is_whole():
    frames, close = Frames(), frame(CLOSE, b"\x03\xe8bye")
    frames.feed(close[:-1])
    assert frames.close_code is None
    frames.feed(close[-1:] + frame(CLOSE, b"\x03\xe9"))
    assert frames.close_code == 1000


@pytest.mark.parametrize("payload", [b"", b"\x03"])
def test_a_close_frame_without_a_code(payload):
    assert fed([frame(CLOSE, payload, mask=b"abcd")]).close_code == 1005


def test_an_impossible_length_is_not_followed():
    frames = Frames()
    frames.feed(frame(TEXT, b"a") + b"\x82\xff" + b"\x80" + b"\0" * 7 + b"mask" + frame(CLOSE, b"\x03\xe8"))
    assert told(frames) == (1, None, False, True)
    frames.feed(frame(CLOSE, b"\x03\xe8"))
    assert told(frames) == (1, None, False, True)


@given(st.binary(max_size=2000), st.lists(st.integers(0, 2000), max_size=10))
@example(b"\x81\xff" + b"\xff" * 12, [3])
def test_bytes_that_are_no_frames_split_the_same_way(data, cuts):
    cuts = sorted(min(cut, len(data)) for cut in cuts)
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
    assert told(fed(pieces)) == told(fed([data]))


@pytest.mark.parametrize("mask", [None, b"\x12\x34\x56\x78"])
@pytest.mark.parametrize("code", [1001, 1012])
def test_a_close_frame_of_our_own(code, mask):
    made = close_frame(code, mask=mask)
    assert made == frame(CLOSE, code.to_bytes(2, "big"), mask=mask)
    assert told(fed([made])) == (0, code, True, False)
