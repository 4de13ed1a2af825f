"""Event ids: who gets them, where they stand, and that nothing else of a stream changes because of them."""

import itertools
import re
import zlib

import pytest

from sidecar.core.dialects import OTHER_SSE
from tests.core.oracle import events
from tests.faults.comeback import (
    AGENT,
    IDS,
    LINE_ENDS,
    OURS,
    WITH_IDS,
    WITHOUT_IDS,
    bare,
    begin,
    ended,
    last_id,
    numbers,
    passed,
    seen,
    stamped,
    with_line_ends,
)
from tests.faults.wire import ANTHROPIC, CHAT, FORMATS, LAST, OTHER, RESPONSES, chunk, head, request

pytestmark = pytest.mark.both_shells

FIRST_RETRY = b"retry: 3000\n\n"


async def whole(rig, form, *fields, upstream=None):
    """All of the format's answer, each event sent when the client has the one before."""
    stream = await begin(rig, form, *fields, upstream=upstream)
    for event in form.events:
        await passed(stream, event)
    await ended(stream.call)
    await stream.answer.rest()
    return stream


# Who gets them.


@pytest.mark.parametrize(
    "accept",
    [
        b"text/event-stream",
        b"application/json, text/event-stream",
        b"Text/Event-Stream; charset=utf-8",
        b"*/*;q=0.1,text/event-stream;q=0.9",
    ],
)
@pytest.mark.parametrize("form", WITH_IDS, ids=str)
async def test_client_that_names_event_streams_gets_an_id_as_last_field_of_each_event(rig, form, accept):
    """`{Slipstream-Stream-Id}:{n}`, n from 0; without those lines the body is the upstream's."""
    stream = await whole(rig, form, (b"Accept", accept))
    assert bytes(stream.answer.body) == stamped(form.events, stream.name)
    assert stream.answer.end == "whole"
    line = await rig.line()
    assert (line["stream_id"], line["outcome"], line["resumed_from"]) == (stream.name, "complete", None)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b"Accept", b"*/*")],
        [(b"Accept", b"application/json")],
        [(b"Accept", b"text/*")],
        [(b"Accept", b"text/event-stream-not, x-text/event-stream")],
        [(b"Accept", b"text/event-stream; q=0")],
        [(b"Accept", b"text/event-stream;q=0.0")],
    ],
    ids=lambda fields: fields[0][1].decode() if fields else "none",
)
@pytest.mark.parametrize("form", WITH_IDS, ids=str)
async def test_any_other_client_gets_the_bytes_of_the_upstream_and_the_name_of_the_stream(rig, form, fields):
    """No Accept, or one that does not name event streams -> no byte of ours, but the header."""
    stream = await whole(rig, form, *fields)
    assert (bytes(stream.answer.body), stream.answer.end) == (form.whole, "whole")
    assert len(stream.name) == 33
    assert (await rig.line())["stream_id"] == stream.name


@pytest.mark.parametrize("form", WITHOUT_IDS, ids=str)
async def test_formats_whose_clients_do_not_survive_ids_never_get_any(rig, form):
    """Gemini and Ollama -> the bytes of the upstream, whatever the client accepts; the name is told."""
    stream = await whole(rig, form, IDS, (b"Last-Event-ID", b""))
    assert (bytes(stream.answer.body), stream.answer.end) == (form.whole, "whole")
    assert len(stream.name) == 33


@pytest.mark.parametrize("form", FORMATS, ids=str)
async def test_compressed_stream_has_neither_ids_nor_a_name(rig, form):
    """6: events of a compressed stream cannot be counted by the client's bytes -> nothing to come back to."""
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(form.whole) + packer.flush()
    stream = await begin(rig, form, IDS, upstream=head(form.kind, b"Content-Encoding: gzip"))
    await ended(stream.call, packed)
    assert (await stream.answer.rest(), stream.answer.end) == (packed, "whole")
    assert stream.answer.header("slipstream-stream-id") is None
    assert (await rig.line())["stream_id"] is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [(b"200 OK", b"application/json"), (b"429 Slow", b"application/json"), (b"500 No", b"text/event-stream")],
)
@pytest.mark.parametrize("form", [CHAT, AGENT, OTHER], ids=str)
async def test_answer_that_is_no_stream_has_neither_ids_nor_a_name(rig, form, status, kind):
    """JSON and errors, asked for by a client that takes ids -> unchanged."""
    body = b'data: {"choices":[]}\n\n'
    given = head(kind, status=status, framing=b"Content-Length: %d" % len(body))
    stream = await begin(rig, form, IDS, upstream=given)
    await stream.call.send(body)
    stream.call.done()
    assert (await stream.answer.rest(), stream.answer.end) == (body, "whole")
    assert stream.answer.header("slipstream-stream-id") is None
    assert stream.answer.header("content-length") == b"%d" % len(body)


@pytest.mark.parametrize("given", [b"17", b"", b"s:1", b"0" * 5000], ids=["17", "empty", "s:1", "long"])
@pytest.mark.parametrize("form", [OTHER, AGENT], ids=str)
async def test_last_event_id_of_the_upstream_reaches_it_and_shows_that_the_client_takes_ids(rig, form, given):
    """An id that is none of ours, where no model is called -> the upstream's business, and unchanged."""
    stream = await whole(rig, form, (b"Last-Event-ID", given))
    assert stream.call.received.header("last-event-id") == given
    assert bytes(stream.answer.body) == stamped(form.events, stream.name)


async def test_two_clients_of_one_call_each_get_it_their_own_way(rig):
    """A shared call: one client takes ids, the other does not -> the same events, under the same name."""
    plain = await begin(rig, CHAT)
    await passed(plain, CHAT.events[0])
    client = await rig.connect()
    late = await client.ask("POST", CHAT.target, CHAT.body, [IDS])
    await ended(plain.call, *CHAT.events[1:])
    assert await late.rest() == stamped(CHAT.events, plain.name)
    assert await plain.answer.rest() == CHAT.whole
    assert late.header("slipstream-stream-id") == plain.name.encode()
    assert rig.uncalled()


@pytest.mark.parametrize("fields", [[IDS], []], ids=["ids", "plain"])
async def test_head_request_tells_of_a_stream_and_has_no_body(rig, fields):
    """16: HEAD -> head only, and the connection stays in step."""
    stream = await begin(rig, OTHER._replace(method="HEAD"), *fields)
    stream.call.done()
    rig.script("/next")
    await stream.client.send(request("GET", "/next"))
    call = await rig.call()
    await call.send(head(b"text/plain", framing=b"Content-Length: 2"), b"ok")
    call.done()
    answer = await stream.client.answer()
    assert (await answer.rest(), answer.end) == (b"ok", "whole")


async def test_client_of_http_1_0_gets_ids_in_a_body_that_ends_with_the_connection(rig):
    """No chunks there -> the same bytes, then the connection's end."""
    rig.script(CHAT.target)
    client = await rig.connect()
    sent = request("POST", CHAT.target, CHAT.body, [IDS]).replace(b"HTTP/1.1", b"HTTP/1.0")
    await client.send(sent)
    call = await rig.call()
    await call.send(head(CHAT.kind))
    await ended(call, CHAT.whole)
    answer = await client.answer()
    name = answer.header("slipstream-stream-id").decode()
    assert (await answer.rest(), answer.end) == (stamped(CHAT.events, name), "whole")


# Where they stand.


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("own", [b"id: 7\n", b"id\n", b"id:\n", b"id:7:0\n"])
async def test_ids_of_the_upstream_are_left_alone_from_the_first_one_on(rig, own, at):
    """An upstream that sets ids itself -> none of ours from there on, in that event and in all that follow."""
    stream = await begin(rig, OTHER, IDS)
    parts = [b"data: %d\n\n" % number for number in range(4)]
    parts[at] = own + parts[at]
    for part in parts:
        await passed(stream, part)
    await ended(stream.call)
    expected = stamped(parts[:at], stream.name) + b"".join(parts[at:])
    assert (await stream.answer.rest(), stream.answer.end) == (expected, "whole")


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("together", [True, False], ids=["one-chunk", "chunks"])
async def test_id_of_the_upstream_in_a_block_without_data_counts_too(rig, at, together):
    """A block of an id alone is no event, but it sets the id of those that follow -> it is left alone."""
    stream = await begin(rig, OTHER, IDS)
    parts = [b"data: %d\n\n" % number for number in range(3)]
    parts.insert(at, b"id: 7\n\n")
    for part in [b"".join(parts)] if together else parts:
        await passed(stream, part)
    await ended(stream.call)
    await stream.answer.rest()
    assert [event[2] for event in events(bytes(stream.answer.body))][at:] == ["7"] * (3 - at)
    assert numbers(stream.answer.body) == list(range(at))
    assert bare(stream.answer.body) == b"".join(parts)


@pytest.mark.parametrize("ends", [*LINE_ENDS, "mixed"])
async def test_stream_split_at_every_offset_has_the_same_ids(rig, ends):
    """1: split in two at every byte, inside CJK, emoji and CRLF -> the same bytes, events and ids."""
    body = with_line_ends(ends)
    for at in range(1, len(body)):
        stream = await begin(rig, CHAT, IDS)
        await passed(stream, body[:at])
        await passed(stream, body[at:])
        await ended(stream.call)
        got = await stream.answer.rest()
        assert (bare(got), stream.answer.end) == (body, "whole"), at
        assert seen(got) == seen(body), at
        assert [event[2] for event in events(got)] == [f"{stream.name}:{n}" for n in range(4)], at
        stream.client.close()


@pytest.mark.parametrize("ends", [*LINE_ENDS, "mixed"])
async def test_stream_in_one_byte_chunks_has_the_same_ids_as_they_come(rig, ends):
    """2: each byte is sent only when the client has the one before -> each event is whole with its id, in time."""
    body = with_line_ends(ends)
    stream = await begin(rig, CHAT, IDS)
    for at in range(len(body)):
        await passed(stream, body[at : at + 1])
        # What a client that reads these bytes now is given has an id, and the right one.
        given = seen(body[: at + 1])
        assert seen(stream.answer.body) == given, at
        assert last_id(stream.answer.body) == (f"{stream.name}:{len(given) - 1}" if given else None), at
    await ended(stream.call)
    got = await stream.answer.rest()
    assert (bare(got), numbers(got)) == (body, [0, 1, 2, 3])


@pytest.mark.parametrize("ends", LINE_ENDS)
@pytest.mark.parametrize("form", WITH_IDS, ids=str)
async def test_first_event_is_whole_and_has_its_id_before_the_second_exists(rig, form, ends):
    """8: nothing waits to see whether a CR was half of a CRLF."""
    stream = await begin(rig, form, IDS)
    parts = [event.replace(b"\n", LINE_ENDS[ends]) for event in form.events]
    for number, part in enumerate(parts):
        await passed(stream, part)
        assert seen(stream.answer.body) == seen(b"".join(form.events[: number + 1]))
        assert last_id(stream.answer.body) == f"{stream.name}:{number}"
    await ended(stream.call)
    assert bare(await stream.answer.rest()) == b"".join(parts)


async def test_crlf_split_between_chunks_keeps_its_halves_together(rig):
    """1: the blank line comes as CR, and LF later -> the id stands before both, and the event once."""
    stream = await begin(rig, OTHER, IDS)
    await passed(stream, b"data: 1\r\n\r")
    await passed(stream, b"\ndata: 2\r\n")
    await passed(stream, b"\r\n")
    await ended(stream.call)
    name = stream.name.encode()
    expected = b"data: 1\r\nid: %b:0\r\n\r\ndata: 2\r\nid: %b:1\r\n\r\n" % (name, name)
    assert await stream.answer.rest() == expected


async def test_many_events_in_one_chunk_each_get_theirs(rig):
    """A burst, with half an event at its end -> as if they had come one by one."""
    parts = [b"event: e\ndata: %d\n\n" % number for number in range(2000)]
    stream = await begin(rig, OTHER, IDS)
    body = b"".join(parts)
    for a, b in itertools.pairwise([0, 9, 20_001, 30_000, len(body)]):
        await passed(stream, body[a:b])
    await ended(stream.call)
    assert await stream.answer.rest() == stamped(parts, stream.name)


async def test_data_line_of_5_mb_turns_ids_off_from_there_on_and_nothing_else(rig):
    """4: an event too long to be looked at -> forwarded; it might hold an id, so there are no more of ours."""
    long = b'data: {"choices":[{"index":0,"delta":{"content":"' + "🌊".encode() * (5 << 18) + b'"}}]}\n\n'
    stream = await begin(rig, CHAT, IDS)
    await passed(stream, CHAT.events[0])
    for at in range(0, len(long), 1 << 16):
        await stream.call.send(chunk(long[at : at + (1 << 16)]))
    await stream.call.send(chunk(b"".join(CHAT.events[1:])), LAST)
    stream.call.done()
    expected = stamped(CHAT.events[:1], stream.name) + long + b"".join(CHAT.events[1:])
    await stream.answer.rest()
    assert stream.answer.body == expected
    line = await rig.line()
    assert (line["events"], line["outcome"]) == (5, "complete")


@pytest.mark.parametrize("ends", LINE_ENDS)
@pytest.mark.parametrize("form", [CHAT, ANTHROPIC, OTHER], ids=str)
async def test_blocks_without_data_are_unchanged_and_not_counted(rig, form, ends):
    """7: comments, `retry:`, lone event names, blank lines -> no id in them, none skipped for them."""
    aside = [b": comment\n\n", FIRST_RETRY, b"event: nothing\n\n", b"\n", b"unknown: x\n\n", b":\n\n"]
    parts = [part.replace(b"\n", LINE_ENDS[ends]) for event in form.events for part in (*aside, event)]
    stream = await begin(rig, form, IDS)
    for part in parts:
        await passed(stream, part)
    await ended(stream.call)
    got = await stream.answer.rest()
    assert (bare(got), seen(got)) == (b"".join(parts), seen(form.whole))
    assert [event[2] for event in events(got)] == [f"{stream.name}:{n}" for n in range(len(form.events))]
    for found in OURS.finditer(got):
        assert re.search(rb"[\r\n]data: [^\r\n]+(\r\n|\r|\n)$", got[: found.start()])


@pytest.mark.parametrize("together", [True, False], ids=["one-piece", "pieces"])
@pytest.mark.parametrize("form", WITH_IDS, ids=str)
async def test_upstreams_content_length_is_not_told_to_a_client_that_gets_more(rig, form, together):
    """The length is that of another body -> chunked; who gets the same body is told the length."""
    for fields in ([IDS], []):
        given = head(form.kind, framing=b"Content-Length: %d" % len(form.whole))
        if together:
            stream = await begin(rig, form, *fields, upstream=given + form.whole)
        else:
            stream = await begin(rig, form, *fields, upstream=given)
            for event in form.events:
                await stream.call.send(event)
        stream.call.done()
        got = await stream.answer.rest()
        assert stream.answer.end == "whole"
        if fields:
            assert (stream.answer.header("content-length"), stream.answer.chunked) == (None, True)
            assert got == stamped(form.events, stream.name)
        else:
            assert stream.answer.header("content-length") == b"%d" % len(form.whole)
            assert got == form.whole
        stream.client.close()


@pytest.mark.parametrize("ends", LINE_ENDS)
@pytest.mark.parametrize("form", [CHAT, RESPONSES, ANTHROPIC, OTHER], ids=str)
@pytest.mark.asgi_every(3)
async def test_keepalives_stand_between_events_with_ids_never_inside_one(rig, form, ends):
    """Silence at a boundary -> keepalives; inside an event, or between CR and LF -> none, however long it takes."""
    await rig.start(keepalive__interval=0.02)
    clock = await begin(rig, OTHER)  # says when the interval has passed, and passed again
    await passed(clock, OTHER.events[0])

    async def silence():
        await clock.answer.until_has(OTHER_SSE.keepalive, clock.answer.body.count(OTHER_SSE.keepalive) + 4)

    stream = await begin(rig, form, IDS)
    answer, got = stream.answer, b""
    for event in (event.replace(b"\n", LINE_ENDS[ends]) for event in form.events):
        # A CR might be half of a CRLF: a stream of nothing else is not known to be at a boundary again.
        if ends != "cr" or not got:
            await answer.until_has(form.keepalive, answer.body.count(form.keepalive) + 1)
        for at, part in ((9, event[:9]), (-1, event[9:-1]), (0, event[-1:])):
            got += part
            await stream.call.send(chunk(part))
            while len(bare(answer.body).replace(form.keepalive, b"")) < len(got) or answer._left:
                assert await answer.more()
            if at:
                before = len(answer.body)
                await silence()
                assert len(answer.body) == before
    await stream.call.send(LAST)
    stream.call.done()
    await ended(clock.call)
    await answer.rest()
    assert bare(answer.body).replace(form.keepalive, b"") == got
    assert [event for event in seen(answer.body) if event[0] != "ping"] == seen(form.whole)
