"""sidecar.core.sse: boundaries of server-sent events, against httpx-sse and a line-by-line model."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.core.sse import Frame, SSEFramer, data_of
from tests.core.oracle import BOM, blocks, events, split, streams, typed

LIMIT = 1 << 20


def frames_of(pieces, limit=LIMIT):
    framer = SSEFramer(limit)
    found = [frame for piece in pieces for frame in framer.feed(piece)]
    return found + framer.close()


def told(frames):
    return [data.decode("utf-8", "replace") for frame in frames if (data := data_of(frame.block)) is not None]


def ascii_stream(end):
    return end.join([b"event: a", b"data: 1", b"", b": c", b"", b"data: 2", b"data: 3", b"", b""])


@given(split(streams()))
@example((b"data: x\r\n\r\n", [b"data: x\r\n\r", b"\n"]))
@example((b"data: x\r\r\ndata: y\n\n", [b"data: x\r", b"\r", b"\ndata: y\n\n"]))
@example((b"data: x\n\r\ndata: y\r\r", [b"data: x\n", b"\r\ndata: y\r\r"]))
@example((b"\r\r\ndata: x\r\n\n", [b"\r", b"\r", b"\ndata: x\r\n\n"]))
@example((BOM + b"data: x\n\n", [BOM[:1], BOM[1:2], BOM[2:] + b"data: x\n\n"]))
def test_any_split_gives_the_frames_of_the_whole(case):
    body, pieces = case
    found = frames_of(pieces)
    assert found == frames_of([body])
    assert [(frame.fields_end, frame.end) for frame in found] == [place[1:] for place in blocks(body)]
    assert [frame.block.removeprefix(BOM) for frame in found] == [
        body[start:end].removeprefix(BOM) for start, _, end in blocks(body)
    ]


@given(split(streams()))
def test_the_events_are_those_a_client_sees(case):
    body, pieces = case
    assert told(frames_of(pieces)) == [data for _, data in typed(body)]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_every_cut_in_two(end):
    body = BOM + ascii_stream(end)
    whole = frames_of([body])
    assert told(whole) == ["1", "2\n3"]
    for cut in range(len(body) + 1):
        assert frames_of([body[:cut], body[cut:]]) == whole, cut


def test_a_later_bom_is_data():
    body = BOM + b"data: first\n\n" + BOM + b"data: of an unknown field\n\ndata: " + BOM + b"last\n\n"
    assert told(frames_of([body])) == [data for _, data in typed(body)] == ["first", "\ufefflast"]


@given(streams())
def test_a_field_written_at_fields_end_belongs_to_its_event(body):
    with_ids, at, ids = bytearray(), 0, []
    for frame in frames_of([body]):
        with_ids += body[at : frame.fields_end]
        at = frame.fields_end
        if data_of(frame.block) is not None:
            ids.append(f"{len(ids)}")
            with_ids += b"id: %d\n" % (len(ids) - 1)
    with_ids += body[at:]
    expected = [(*event, number) for event, number in zip(typed(body), ids, strict=True)]
    assert events(bytes(with_ids)) == expected


@given(streams())
def test_bytes_inserted_at_a_boundary_change_no_event(body):
    framer = SSEFramer()
    # Nothing may be written before a byte order mark; whether one comes is not known at offset 0.
    open_ = [0] if not body.startswith(BOM[:1]) else []
    for at in range(len(body)):
        framer.feed(body[at : at + 1])
        if framer.at_boundary:
            open_.append(at + 1)
    expected = events(body)
    for inserted in (b": keepalive\n", framer.newline):
        everywhere, last = b"", 0
        for at in open_:
            assert events(body[:at] + inserted + body[at:]) == expected, (at, inserted)
            everywhere += body[last:at] + inserted
            last = at
        assert events(everywhere + body[last:]) == expected


@given(streams(ends=(b"\n", b"\r\n")))
def test_a_boundary_is_seen_as_soon_as_an_event_is_whole(body):
    ends = {end for _, _, end in blocks(body)}
    framer = SSEFramer()
    seen = set()
    for at in range(len(body)):
        framer.feed(body[at : at + 1])
        if framer.at_boundary:
            seen.add(at + 1)
    # After LF, CR may be the first half of a CRLF or a line end of its own: the next byte tells.
    assert ends <= seen


@given(streams(), st.integers(0, 200))
def test_closing_bytes_make_an_error_frame_an_event_of_its_own(body, cut):
    prefix = body[:cut]
    framer = SSEFramer()
    framer.feed(prefix)
    found = typed(prefix + framer.closing + b"event: error\ndata: {}\n\n")
    assert found[-1] == ("error", "{}")
    before = typed(prefix)
    assert found[: len(before)] == before
    assert len(found) <= len(before) + 2
    assert (framer.closing == b"") == framer.at_boundary


@given(split(streams()), st.integers(1, 24))
def test_the_cap_drops_the_content_of_long_events_and_nothing_else(case, limit):
    body, pieces = case
    framer = SSEFramer(limit)
    found = [frame for piece in pieces for frame in framer.feed(piece)] + framer.close()
    places = blocks(body)
    assert [(frame.fields_end, frame.end) for frame in found] == [place[1:] for place in places]
    for frame, (start, _, end) in zip(found, places, strict=True):
        if end - start <= limit:
            assert frame.block is not None
    if any(frame.block is None for frame in found):
        assert framer.overflowed


@given(split(streams(bom=False)), st.integers(1, 24))
def test_what_the_cap_drops_does_not_depend_on_the_split(case, limit):
    body, pieces = case
    expected = [
        body[start:end].removeprefix(b"" if start else BOM) if end - start <= limit else None
        for start, _, end in blocks(body)
    ]
    assert [frame.block for frame in frames_of(pieces, limit)] == expected


def test_a_dropped_event_takes_no_memory():
    framer = SSEFramer(limit=1000)
    for _ in range(100):
        assert framer.feed(b"x" * 1000) == []
    assert len(framer._buffer) <= 3
    assert not framer.at_boundary
    assert framer.closing == b"\n\n"
    assert framer.feed(b"\n\ndata: y\n\n") == [
        Frame(None, 100_001, 100_002),
        Frame(b"data: y\n\n", 100_010, 100_011),
    ]
    assert framer.overflowed


@pytest.mark.parametrize(
    ("pieces", "newline"),
    [
        ([b""], b"\n"),
        ([b"data: x\n\n"], b"\n"),
        ([b"data: x\r\n\r\n"], b"\r\n"),
        ([b"data: x\r", b"\n\r\n"], b"\r\n"),
        ([b"data: x\r\rdata: y"], b"\r"),
        ([b": c\n", b"data: x\r\n\r\n"], b"\r\n"),
    ],
)
def test_the_upstreams_line_end(pieces, newline):
    framer = SSEFramer()
    for piece in pieces:
        framer.feed(piece)
    assert framer.newline == newline


@pytest.mark.parametrize(
    ("block", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"data:  x\n\n", b" x"),
        (b"data: \n\n", b""),
        (b"data\n\n", b""),
        (b"data: a\ndata\ndata: b\n\n", b"a\n\nb"),
        (b"data: a\r\ndata: b\r\n\r\n", b"a\nb"),
        (b"data: a\rdata: b\r\r", b"a\nb"),
        (b"data: a\n\r\n", b"a"),
        (b"id: 1\ndata: x\nevent: e\n\n", b"x"),
        (b"data: \xe2\x80\xa8\xc2\x85\n\n", b"\xe2\x80\xa8\xc2\x85"),
        (b"event: e\nid: 1\nretry: 5\n: c\n\n", None),
        (b"datax: 1\n data: 2\nDATA: 3\n\n", None),
    ],
)
def test_data_of(block, data):
    assert data_of(block) == data
