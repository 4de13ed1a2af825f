"""The bytes of a stream: what the upstream sent is what the client gets, when it was sent, whatever it is."""

import itertools
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.wire import CHAT, FORMATS, FRAMED, GEMINI, LAST, OTHER, chunk, head

pytestmark = pytest.mark.both_shells

LINE_ENDS = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}
BOM = b"\xef\xbb\xbf"


def with_line_ends(name: str) -> bytes:
    """The chat answer in those line ends; `mixed` has every one of them, also within one event."""
    if name != "mixed":
        return CHAT.whole.replace(b"\n", LINE_ENDS[name])
    ends = [b"\n\r\n", b"\r\n\n", b"\r\r\n", b"\r\n\r"]
    return b"".join(event[:-2] + end for event, end in zip(CHAT.events, ends, strict=True))


async def relayed(rig, client, pieces, form=CHAT, kind=None):
    """Send the pieces one by one, each when the client has the one before; return what the client got."""
    await client.send(form.sent)
    call = await rig.call()
    await call.send(head(kind or form.kind))
    answer = await client.answer()
    size = 0
    for piece in pieces:
        await call.send(chunk(piece))
        size += len(piece)
        assert len(await answer.until(size)) == size, "a piece was held back"
    await call.send(LAST)
    call.done()
    await answer.rest()
    return answer


@pytest.mark.parametrize("ends", ["lf", "crlf", "cr", "mixed"])
async def test_stream_split_at_every_offset_is_relayed_unchanged_and_read_the_same(rig, ends):
    """1: split in two at every byte, inside CJK, emoji and CRLF -> same bytes, same events, complete."""
    rig.script(CHAT.target)
    client = await rig.connect()
    body = with_line_ends(ends)
    for number, at in enumerate(range(1, len(body))):
        answer = await relayed(rig, client, [body[:at], body[at:]])
        assert (bytes(answer.body), answer.end) == (body, "whole"), at
        line = await rig.line(number)
        assert (line["events"], line["outcome"], line["ttft_kind"]) == (4, "complete", "content"), at


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    ends=st.lists(st.sampled_from(list(LINE_ENDS)), min_size=8, max_size=8),
    cuts=st.sets(st.integers(1, 260), max_size=12),
)
async def test_any_split_of_any_mixture_of_line_ends_is_relayed_unchanged(rig, ends, cuts):
    """1: any line end per line, any split -> same bytes, same events."""
    rig.script(CHAT.target)
    client = await rig.connect()
    lines = CHAT.whole.split(b"\n")[:-1]
    parts = [line + LINE_ENDS[end] for line, end in zip(lines, ends, strict=True)]
    # A lone CR before a lone LF would be one line end, not two.
    body = (
        b"".join(
            parts[i][:-1] + b"\n" if parts[i].endswith(b"\r") and parts[i + 1] == b"\n" else parts[i]
            for i in range(7)
        )
        + parts[7]
    )
    at = [0, *sorted(cut for cut in cuts if cut < len(body)), len(body)]
    answer = await relayed(rig, client, [body[a:b] for a, b in itertools.pairwise(at)])
    assert (bytes(answer.body), answer.end) == (body, "whole")
    line = await rig.line(len(rig.provider.requests) - 1)
    assert (line["events"], line["outcome"]) == (4, "complete")


@pytest.mark.parametrize("form", FORMATS, ids=str)
async def test_one_byte_chunks_are_forwarded_one_by_one(rig, form):
    """2: each byte is sent only when the client has the one before -> all arrive, nothing waits for an event's end."""
    rig.script(form.target)
    client = await rig.connect()
    answer = await relayed(rig, client, [bytes([byte]) for byte in form.whole], form)
    assert (bytes(answer.body), answer.end) == (form.whole, "whole")
    assert (await rig.line())["outcome"] == "complete"


@pytest.mark.parametrize("cuts", [(), (1,), (2,), (3,), (1, 2, 3)])
async def test_bom_whole_or_split_is_forwarded_and_not_taken_for_data(rig, cuts):
    """3: a BOM before the first event, also split; a second one later -> forwarded; the first is no data, the later is."""
    rig.script(CHAT.target)
    client = await rig.connect()
    late = 'data: {"choices":[{"index":0,"delta":{"content":"\ufeff"}}]}\n\n'.encode()
    body = BOM + CHAT.events[0] + late + CHAT.events[-1]
    at = [0, *cuts, len(body)]
    answer = await relayed(rig, client, [body[a:b] for a, b in itertools.pairwise(at)])
    assert bytes(answer.body) == body
    line = await rig.line()
    assert (line["events"], line["outcome"], line["ttft_kind"]) == (3, "complete", "content")


async def test_data_line_of_5_mb_is_forwarded_and_the_stream_goes_on(rig):
    """4: one `data:` line of 5 MB -> forwarded whole, later events are still read, the end is recognised."""
    rig.script(CHAT.target)
    client = await rig.connect()
    long = b'data: {"choices":[{"index":0,"delta":{"content":"' + "🌊".encode() * (5 << 18) + b'"}}]}\n\n'
    pieces = [long[i : i + 65536] for i in range(0, len(long), 65536)]
    answer = await relayed(rig, client, [CHAT.events[0], *pieces, *CHAT.events[1:]])
    assert bytes(answer.body) == CHAT.events[0] + long + b"".join(CHAT.events[1:])
    line = await rig.line()
    assert (line["events"], line["outcome"]) == (5, "complete")


@pytest.mark.parametrize("form", [CHAT, OTHER], ids=str)
async def test_invalid_utf8_is_forwarded(rig, form):
    """5: bytes that are no UTF-8 inside an event -> forwarded, the stream is complete."""
    rig.script(form.target)
    client = await rig.connect()
    bad = b'data: {"choices":[{"index":0,"delta":{"content":"\xff\xfe\xc3\x28\xed\xa0\x80"}}]}\n\n'
    answer = await relayed(rig, client, [bad, *form.events], form)
    assert (bytes(answer.body), answer.end) == (bad + form.whole, "whole")
    assert (await rig.line())["outcome"] == "complete"


async def test_unterminated_last_event_without_a_marker_to_wait_for_is_forwarded(rig):
    """5: the last event lacks its blank line, in a format without a terminal marker -> forwarded as it is."""
    rig.script(OTHER.target)
    client = await rig.connect()
    body = OTHER.whole + b"data: half"
    answer = await relayed(rig, client, [body], OTHER)
    assert (bytes(answer.body), answer.end) == (body, "whole")


async def test_unterminated_terminal_marker_is_forwarded_and_is_no_completion(rig):
    """5: `[DONE]` without its blank line was never an event -> forwarded, and the client can tell."""
    rig.script(CHAT.target)
    client = await rig.connect()
    body = CHAT.whole.removesuffix(b"\n\n")
    answer = await relayed(rig, client, [body])
    assert bytes(answer.body).startswith(body)
    assert answer.end == "cut"
    assert (await rig.line())["outcome"] == "truncated"


@pytest.mark.parametrize("coding", ["gzip", "br"])
async def test_compressed_event_stream_keeps_its_coding_and_comes_as_it_is_made(rig, coding):
    """6: a compressed event stream -> same coding, same bytes, each when it was sent, no Content-Length, no
    keepalive; the witness, an idle stream beside it, shows that keepalives were due meanwhile."""
    await rig.start(keepalive__interval=0.02)
    rig.script(CHAT.target)
    if coding == "gzip":
        coder = zlib.compressobj(wbits=31)
        pieces = [coder.compress(event) + coder.flush(zlib.Z_SYNC_FLUSH) for event in CHAT.events]
        pieces[-1] += coder.flush()
    else:
        pieces = [bytes([11, 2, 128 + n]) + event[::-1] for n, event in enumerate(CHAT.events)]
    client = await rig.connect()
    await client.send(CHAT.sent)
    call = await rig.call()
    await call.send(head(CHAT.kind, b"Content-Encoding: " + coding.encode(), b"Vary: Accept-Encoding"))
    answer = await client.answer()
    assert answer.header("content-encoding") == coding.encode()
    assert answer.header("vary") == b"Accept-Encoding"
    assert not answer.sized
    size = 0
    for piece in pieces[:-1]:
        await call.send(chunk(piece))
        size += len(piece)
        await answer.until(size)
    await witness(rig)
    await call.send(chunk(pieces[-1]), LAST)
    call.done()
    assert (await answer.rest(), answer.end) == (b"".join(pieces), "whole")


async def witness(rig):
    """An event stream on the same sidecar that is silent until it was kept alive five times."""
    rig.script(OTHER.target)
    client = await rig.connect()
    await client.send(OTHER.sent)
    call = await rig.call()
    await call.send(head(OTHER.kind))
    answer = await client.answer()
    await answer.until_has(OTHER.keepalive, 5)
    await call.send(LAST)
    call.done()
    await answer.rest()


ODDITIES = [
    b": a comment, \xf0\x9f\x8c\x8a\n\n",
    b"retry: 1500\n\n",
    b'event: from.the.future\ndata: {"choices": []}\n\n',
    b"unknown: field\nDATA: shouting\ndata\ndata:\ndata:  two spaces\n\n",
    b'id: 7\ndata: {"choices":[]}\n\n',
    b'data: {"choices":\ndata: []}\n\n',
    b'data: {"choices":[],"\xe2\x80\xa8":"\xc2\x85 \x0b\x0c"}\n\n',
    b"\n\n\n",
]


@pytest.mark.parametrize(
    "odd", ODDITIES, ids=["comment", "retry", "event", "fields", "id", "lines", "u2028", "blank"]
)
async def test_what_an_upstream_adds_to_its_stream_is_left_alone(rig, odd):
    """7: comments, `retry:`, `id:`, unknown events and fields, odd white space -> unchanged, complete."""
    rig.script(CHAT.target)
    client = await rig.connect()
    pieces = [odd, *CHAT.events[:2], odd, *CHAT.events[2:]]
    answer = await relayed(rig, client, pieces)
    assert (bytes(answer.body), answer.end) == (b"".join(pieces), "whole")
    assert (await rig.line())["outcome"] == "complete"


@pytest.mark.parametrize("form", FORMATS, ids=str)
async def test_every_event_reaches_the_client_before_the_next_exists(rig, form):
    """8: the upstream makes an event only when the client has the one before -> no event is ever held."""
    rig.script(form.target)
    client = await rig.connect()
    answer = await relayed(rig, client, form.events, form)
    assert (bytes(answer.body), answer.end) == (form.whole, "whole")
    assert (await rig.line())["outcome"] == "complete"


@pytest.mark.parametrize("framing", [b"Transfer-Encoding: chunked", b"Content-Length: 6", b""])
async def test_head_and_body_that_are_no_stream_are_not_held_either(rig, framing):
    """8: a slow download -> head before any body, each part before the next."""
    rig.script("/files/slow")
    client = await rig.connect()
    await client.send(b"GET /files/slow HTTP/1.1\r\nHost: h\r\n\r\n")
    call = await rig.call()
    await call.send(head(b"text/plain", framing=framing))
    answer = await client.answer()
    assert answer.header("server") is None
    for part in (b"ab", b"cd", b"ef"):
        await call.send(chunk(part) if b"chunked" in framing else part)
        await answer.until(len(answer.body) + 2)
    if b"chunked" in framing:
        await call.send(LAST)
    call.done() if framing else call.close()
    assert (await answer.rest(), answer.end) == (b"abcdef", "whole")


@pytest.mark.parametrize("form", FRAMED, ids=str)
async def test_keepalive_stands_between_events_never_inside_one_and_never_after_the_end(rig, form):
    """Bytes equal but for keepalives: due from the head on and between events; none in half an event or after the
    terminal marker, although the witness shows that the time for it had come."""
    await rig.start(keepalive__interval=0.02)
    rig.script(form.target)
    client = await rig.connect()
    await client.send(form.sent)
    call = await rig.call()
    await call.send(head(form.kind))
    answer = await client.answer()
    alive = b"\n" if form is GEMINI else form.keepalive  # nothing has told yet what its line ends are
    await answer.until_has(alive, 2)
    before = len(answer.body)
    assert bytes(answer.body) == alive * (before // len(alive))

    first, second, *others = form.events
    await call.send(chunk(first))
    await answer.until(before + len(first) + len(form.keepalive))
    lead, _, after = bytes(answer.body).partition(first)
    assert lead + after == alive * (len(lead) // len(alive)) + form.keepalive * (
        len(after) // len(form.keepalive)
    )

    half = len(second) // 2
    await call.send(chunk(second[:half]))
    await answer.until_has(second[:half])
    await witness(rig)
    await call.send(chunk(second[half:]))
    await answer.until_has(second)

    if form is OTHER:  # it has no marker: what follows its last event cannot be known
        await call.send(LAST)
        call.done()
        await answer.rest()
        return
    if others:
        await call.send(chunk(b"".join(others)))
    await answer.until_has(form.events[-1])
    await witness(rig)
    await call.send(LAST)
    call.done()
    assert (await answer.rest()).endswith(form.events[-1]), "something was written after the end"
    assert answer.end == "whole"
    assert (await rig.line(2))["keepalives"] >= 3


async def test_no_keepalive_in_a_body_that_has_a_length(rig):
    """A stream of declared length -> nothing is inserted, or the length would lie."""
    await rig.start(keepalive__interval=0.02)
    rig.script(CHAT.target)
    client = await rig.connect()
    await client.send(CHAT.sent)
    call = await rig.call()
    await call.send(head(CHAT.kind, framing=b"Content-Length: %d" % len(CHAT.whole)), CHAT.events[0])
    answer = await client.answer()
    await answer.until(len(CHAT.events[0]))
    await witness(rig)
    await call.send(b"".join(CHAT.events[1:]))
    call.done()
    assert (await answer.rest(), answer.end) == (CHAT.whole, "whole")
