"""Clients that are cut and come back, by every way and at every point: no gap, no duplicate."""

import asyncio
import contextlib
import itertools
from random import Random

import pytest

from tests.core.oracle import events
from tests.faults.comeback import (
    AGENT,
    IDS,
    LINE_ENDS,
    SOURCE,
    STREAMS,
    WAYS,
    WITH_IDS,
    again,
    back,
    bare,
    begin,
    ended,
    holds,
    last_id,
    left,
    passed,
    returning,
    seen,
    stamped,
    with_line_ends,
)
from tests.faults.wire import ANTHROPIC, CHAT, FORMATS, GEMINI_ARRAY, OTHER, RESPONSES, chunk, head, request

pytestmark = pytest.mark.both_shells

BOTH = pytest.mark.parametrize("way", WAYS)
LEAVE = pytest.mark.parametrize("how", ["fin", "rst"])


# 31: cut anywhere.


@LEAVE
@BOTH
@pytest.mark.parametrize("form", WITH_IDS, ids=str)
async def test_client_cut_after_any_event_comes_back_for_what_followed(rig, form, way, how):
    """31: cut between two events, the upstream goes on only when it is back -> exactly the rest, live."""
    for had in range(1, len(form.events)):
        stream = await begin(rig, form, IDS)
        await passed(stream, *form.events[:had])
        assert stream.answer.body == stamped(form.events[:had], stream.name)
        await left(rig, stream, how)
        client, answer = await back(rig, form, way, stream.name, had - 1)
        assert answer.status == 200
        assert answer.header("slipstream-stream-id") == stream.name.encode()
        size = 0
        for event in form.events[had:]:
            await stream.call.send(chunk(event))
            size += len(event)
            await holds(answer, size)
        await ended(stream.call)
        assert await answer.rest() == stamped(form.events[had:], stream.name, had)
        assert answer.end == "whole"
        client.close()
    assert rig.uncalled()
    assert len(rig.provider.requests) == len(form.events) - 1


@BOTH
@pytest.mark.parametrize("ends", ["lf", "crlf", "cr", "mixed"])
@pytest.mark.asgi_every(8)
async def test_client_cut_after_any_byte_misses_no_event_and_gets_none_twice(rig, ends, way):
    """31: cut inside events, inside CJK, emoji, CRLF and blank lines -> what it was given before and after is the answer."""
    body = with_line_ends(ends)
    for at in range(1, len(body)):
        stream = await begin(rig, CHAT, IDS)
        await passed(stream, body[:at])
        got = bytes(stream.answer.body)
        await left(rig, stream)
        last = last_id(got)
        number = int(last.rpartition(":")[2]) if last else -1
        # Without any event it only knows the stream's name, and that leads to its address.
        client, answer = await back(rig, CHAT, way if last else "stream", stream.name, number, IDS)
        await ended(stream.call, body[at:])
        rest = await answer.rest()
        assert (answer.status, answer.end) == (200, "whole"), at
        assert seen(got) + seen(rest) == seen(body), at
        later = [f"{stream.name}:{n}" for n in range(number + 1, 4)]
        assert [event[2] for event in events(rest)] == later, at
        client.close()
    assert len(rig.provider.requests) == len(body) - 1


@pytest.mark.parametrize("cut", ["head", "half"])
@pytest.mark.parametrize("form", WITH_IDS, ids=str)
async def test_client_cut_before_its_first_event_comes_back_by_the_name(rig, form, cut):
    """31: it has the head and at most half an event -> the stream's address gives it from the start."""
    stream = await begin(rig, form, IDS)
    had = form.events[0][:9] if cut == "half" else b""
    await passed(stream, had)
    await left(rig, stream)
    client, answer = await back(rig, form, "stream", stream.name, -1, IDS)
    await holds(answer, len(had))
    await ended(stream.call, form.whole[len(had) :])
    assert (await answer.rest(), answer.end) == (stamped(form.events, stream.name), "whole")
    client.close()
    assert rig.uncalled()


@BOTH
@pytest.mark.parametrize("form", [CHAT, ANTHROPIC, OTHER, AGENT], ids=str)
async def test_client_cut_again_before_a_new_event_comes_back_with_the_same_id(rig, form, way):
    """31: cut, back, cut with nothing new or half an event more, back -> as if it had been cut once."""
    stream = await begin(rig, form, IDS)
    await passed(stream, form.events[0])
    await left(rig, stream)
    half = form.events[1][:9]
    for parts in ([], [], [half], []):
        client, answer = await back(rig, form, way, stream.name, 0)
        for part in parts:
            await stream.call.send(chunk(part))
            await holds(answer, len(part))
        await left(rig, client)
    client, answer = await back(rig, form, way, stream.name, 0)
    await ended(stream.call, b"".join(form.events[1:])[9:])
    assert (await answer.rest(), answer.end) == (stamped(form.events[1:], stream.name, 1), "whole")
    client.close()
    assert rig.uncalled()


@BOTH
@pytest.mark.parametrize("form", [CHAT, RESPONSES, OTHER, AGENT], ids=str)
async def test_client_that_comes_back_while_its_old_connection_is_open_gets_the_rest_too(rig, form, way):
    """31: a client that only thinks it was cut -> both connections get every event once."""
    stream = await begin(rig, form, IDS)
    await passed(stream, form.events[0])
    client, answer = await back(rig, form, way, stream.name, 0)
    await ended(stream.call, *form.events[1:])
    assert await answer.rest() == stamped(form.events[1:], stream.name, 1)
    assert await stream.answer.rest() == stamped(form.events, stream.name)
    client.close()


@pytest.mark.parametrize("form", WITH_IDS, ids=str)
async def test_many_readers_come_back_to_one_stream_each_to_its_own_event(rig, form):
    """31: several at once, some plain, by every way, while the upstream goes on -> each gets its rest."""
    stream = await begin(rig, form, IDS)
    await passed(stream, *form.events[:2])
    await left(rig, stream)
    readers = []
    for number, way, fields in itertools.product([-1, 0, 1], WAYS, ([IDS], [(b"Accept", b"*/*")])):
        if number >= 0 or way == "stream":
            _, answer = await back(rig, form, way, stream.name, number, *fields)
            # An id that is sent shows, as Accept does, that ids are of use.
            readers.append((answer, number + 1, number >= 0 or fields == [IDS]))
    await ended(stream.call, *form.events[2:])
    for answer, had, ids in readers:
        rest = form.events[had:]
        assert await answer.rest() == (stamped(rest, stream.name, had) if ids else b"".join(rest))
        assert answer.end == "whole"
    assert rig.uncalled()


@pytest.mark.parametrize("form", FORMATS, ids=str)
async def test_client_that_counts_comes_back_after_any_number_of_events(rig, form):
    """?after=N, in every format, live -> what it had and what it gets are the upstream's bytes."""
    for had in range(len(form.events) - (form is GEMINI_ARRAY)):
        stream = await begin(rig, form, (b"Slipstream-Disconnect", b"finish"))
        await passed(stream, *form.events[:had])
        assert stream.answer.body == b"".join(form.events[:had])
        await left(rig, stream)
        client = await rig.connect()
        answer = await client.ask("GET", f"{STREAMS}{stream.name}?after={had}")
        assert (answer.status, answer.header("content-type")) == (200, form.kind)
        await ended(stream.call, *form.events[had:])
        assert (await answer.rest(), answer.end) == (form.whole[len(b"".join(form.events[:had])) :], "whole")
        client.close()
    assert rig.uncalled()


async def test_array_whose_client_is_cut_before_its_bracket_is_finished(rig):
    """A Gemini array, cut between its last element and the bracket, `finish` -> the bracket can be had."""
    stream = await begin(rig, GEMINI_ARRAY, (b"Slipstream-Disconnect", b"finish"))
    await passed(stream, *GEMINI_ARRAY.events[:2])
    await left(rig, stream)
    with contextlib.suppress(ConnectionError):
        await ended(stream.call, GEMINI_ARRAY.events[2])
    answer = await again(rig, "GET", f"{STREAMS}{stream.name}?after=0")
    assert (bytes(answer.body), answer.end) == (GEMINI_ARRAY.whole, "whole")


async def test_counting_goes_by_events_not_by_blocks_or_lines(rig):
    """Comments, `retry:` and blank lines are no events -> ?after counts none of them, and ids do not either."""
    parts = [
        b": hello\n\n",
        b"retry: 1\n\ndata: 0\n\n",
        b": x\n\n\n",
        b"event: e\ndata: 1\n\n",
        b":\n\ndata: 2\n\n",
    ]
    body = b"".join(parts)
    ends = [0, *(body.index(data) + len(data) for data in (b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"))]
    stream = await begin(rig, OTHER, IDS)
    await passed(stream, *parts)
    await ended(stream.call)
    await stream.answer.rest()
    for number, at in enumerate(ends):
        answer = await again(rig, "GET", f"{STREAMS}{stream.name}?after={number}")
        assert (answer.body, answer.end) == (body[at:], "whole")
        answer = await again(rig, "GET", f"{STREAMS}{stream.name}?after={number}", IDS)
        assert (bare(answer.body), seen(answer.body)) == (body[at:], seen(body[at:]))


async def test_last_event_id_goes_before_after(rig):
    """An EventSource whose URL has `?after` comes back with both -> the id counts, whatever `after` says."""
    stream = await begin(rig, CHAT, IDS)
    await passed(stream, *CHAT.events[:3])
    for after in ("0", "1", "3", "4", "-1", "abc", ""):
        client = await rig.connect()
        given = [(b"Last-Event-ID", b"%b:1" % stream.name.encode())]
        answer = await client.ask("GET", f"{STREAMS}{stream.name}?after={after}", fields=given)
        assert answer.status == 200
        await holds(answer, len(CHAT.events[2]))
        assert answer.body == stamped(CHAT.events[2:3], stream.name, 2)
        client.close()
    # An empty one is as good as none.
    client = await rig.connect()
    answer = await client.ask("GET", f"{STREAMS}{stream.name}?after=2", fields=[(b"Last-Event-ID", b"")])
    await holds(answer, len(CHAT.events[2]))
    assert answer.body == stamped(CHAT.events[2:3], stream.name, 2)
    await ended(stream.call)


async def test_client_of_another_spelling_that_shares_a_call_comes_back_with_its_own_request(rig):
    """Two spellings of one JSON body share a call -> the second client's own request is a way back as well."""
    stream = await begin(rig, CHAT)
    await passed(stream, CHAT.events[0])
    other = CHAT._replace(body=CHAT.body.replace(b",", b", "))
    client = await rig.connect()
    late = await client.ask("POST", CHAT.target, other.body, [IDS])
    await holds(late, len(CHAT.events[0]))
    assert late.header("slipstream-stream-id") == stream.name.encode()
    await left(rig, client)
    _, answer = await back(rig, other, "again", stream.name, 0)
    status = answer.status
    await ended(stream.call, *CHAT.events[1:])
    await answer.rest()
    await stream.answer.rest()
    assert (status, answer.body) == (200, stamped(CHAT.events[1:], stream.name, 1))


# 32: racing the live tail.


@pytest.mark.parametrize("seed", range(24))
async def test_any_interleaving_of_sending_cutting_and_coming_back_gives_every_event_once(rig, seed):
    """32: pieces that fall anywhere, cuts and returns that wait for nothing -> each client is given the answer."""
    random = Random(seed)
    form = random.choice([CHAT, RESPONSES, ANTHROPIC, OTHER, AGENT])
    end = random.choice([b"\n", b"\r\n"])
    terminal = form.events[-1].replace(b"\n", end)
    parts = [form.events[random.randrange(len(form.events) - 1)].replace(b"\n", end) for _ in range(30)]
    body = b"".join(parts) + terminal
    # A blank line's CR and LF stay together: see the test of every byte for what becomes of them.
    spots = [at for at in range(1, len(body)) if body[at - 1 : at] != b"\r"]
    cuts = sorted(random.sample(spots, random.randrange(5, 40)))
    pieces = [body[a:b] for a, b in itertools.pairwise([0, *cuts, len(body)])]
    stream = await begin(rig, form, IDS)

    async def follow(random, client, answer):
        """Read, be cut, come back, until there is an end; returns what it was given."""
        given = []
        while True:
            for _ in range(random.randrange(0, 6)):
                if not await answer.more():
                    break
            found = events(bytes(answer.body))
            if answer.end is not None or random.random() < 0.1:
                await answer.rest()
                found = events(bytes(answer.body))
                assert answer.end == "whole"
                return given + found
            given += found
            client.leave(random.choice(["fin", "rst"]))
            number = int(given[-1][2].rpartition(":")[2]) if given else -1
            assert number == len(given) - 1
            way = random.choice(WAYS) if given else "stream"
            client, answer = await back(rig, form, way, stream.name, number, IDS)
            assert answer.status == 200

    async def send():
        for piece in pieces:
            await stream.call.send(chunk(piece))
            for _ in range(random.randrange(0, 12)):
                await asyncio.sleep(0)
        # When all have gone with the terminal marker, the call is over before its end.
        with contextlib.suppress(ConnectionError):
            await ended(stream.call)

    sending = asyncio.ensure_future(send())
    _, second = await back(rig, form, "stream", stream.name, -1, IDS)
    clients = [(stream.client, stream.answer), (rig.clients[-1], second)]
    followers = [follow(Random(seed * 10 + number), *client) for number, client in enumerate(clients)]
    for given in await asyncio.gather(*followers):
        assert [event[:2] for event in given] == seen(body)
        assert [event[2] for event in given] == [f"{stream.name}:{n}" for n in range(len(given))]
    await sending
    assert rig.uncalled()
    assert len(rig.provider.requests) == 1


@pytest.mark.parametrize("memory", ["256MiB", "3MiB"], ids=["as it came", "packed"])
@pytest.mark.parametrize("ends", LINE_ENDS)
async def test_stream_of_megabytes_can_be_had_from_anywhere_while_it_goes_on_and_after(rig, ends, memory):
    """31: kept in blocks, packed or not, and given in slices -> every way in gets exactly what followed."""
    await rig.start(resume__memory=memory)
    random, end = Random(5), LINE_ENDS[ends]
    parts = [
        b"event: e%bdata: %d %b%b%b" % (end, number, b"word " * random.randrange(200), end, end)
        for number in range(5000)
    ]
    stream = await begin(rig, AGENT, IDS)
    reading = asyncio.ensure_future(stream.answer.rest())
    for at in range(0, 4500, 500):
        await stream.call.send(chunk(b"".join(parts[at : at + 500])))
    asked = [(random.randrange(4000), random.choice(WAYS)) for _ in range(4)]
    late = [(had, await back(rig, AGENT, way, stream.name, had - 1)) for had, way in asked]
    await ended(stream.call, *parts[4500:])
    assert await reading == stamped(parts, stream.name)
    for had, (_, answer) in late:
        assert await answer.rest() == stamped(parts[had:], stream.name, had)
    for had in (0, 1, 4999, 5000, *(random.randrange(5000) for _ in range(6))):
        answer = await again(rig, "GET", f"{STREAMS}{stream.name}?after={had}")
        assert answer.body == b"".join(parts[had:])
    packed = next(iter(rig.sidecar.service.assembly.hub._shelf._ended.values())).kept.recording.packed
    assert bool(packed) == (memory == "3MiB")


@pytest.mark.parametrize("ends", ["crlf", "mixed"])
async def test_what_is_given_in_slices_is_not_cut_inside_a_blank_line(rig, ends):
    """31: where a slice of a mebibyte would end between CR and LF -> the id stands before both, and the event once."""
    size = 61_681  # 17 of them are a mebibyte and one byte
    blank = b"\r\n\r\n" if ends == "crlf" else b"\n\r\n"
    parts = [b"data: %04d %b%b" % (number, b"x" * (size - 11 - len(blank)), blank) for number in range(40)]
    assert {len(part) for part in parts} == {size}
    stream = await begin(rig, AGENT, IDS)
    reading = asyncio.ensure_future(stream.answer.rest())
    await ended(stream.call, *parts)
    assert await reading == stamped(parts, stream.name)
    for had in (1, 2, 20):
        _, answer = await back(rig, AGENT, "stream", stream.name, had - 1)
        assert await answer.rest() == stamped(parts[had:], stream.name, had)


async def test_hundreds_of_returns_on_one_connection_some_at_once(rig):
    """31: by all ways, pipelined, refused ones among them -> each its answer, in order."""
    stream = await begin(rig, CHAT, IDS)
    await passed(stream, *CHAT.events[:2])
    client = await rig.connect()
    await client.send(returning(CHAT, "stream", stream.name, 0))
    answer = await client.answer()
    await holds(answer, len(CHAT.events[1]))
    asked = [(WAYS[number % 2], number % 6) for number in range(300)]
    await client.send(b"".join(returning(CHAT, way, stream.name, number) for way, number in asked))
    await ended(stream.call, *CHAT.events[2:])
    assert await answer.rest() == stamped(CHAT.events[1:], stream.name, 1)
    for way, number in asked:
        answer = await client.answer("GET" if way == "stream" else "POST")
        body = await answer.rest()
        assert (answer.status, answer.end) == (200 if number < 4 else 404, "whole")
        assert number > 3 or body == stamped(CHAT.events[number + 1 :], stream.name, number + 1)
    await client.send(request("DELETE", STREAMS + stream.name) + returning(CHAT, "stream", stream.name, 0))
    assert (await client.answer("DELETE")).status == 204
    assert (await client.answer()).status == 410
    assert len(rig.provider.requests) == 1


# 34: after the end.


@BOTH
@pytest.mark.parametrize("form", WITH_IDS, ids=str)
async def test_after_the_end_the_rest_and_the_terminal_event_can_be_had(rig, form, way):
    """34: the upstream is done -> from every event on the rest, as often as one asks; never a second call."""
    stream = await begin(rig, form, IDS)
    await passed(stream, form.events[0])
    await left(rig, stream)
    await ended(stream.call, *form.events[1:])
    for had in [*range(1, len(form.events)), 1]:
        client, answer = await back(rig, form, way, stream.name, had - 1, *SOURCE)
        assert await answer.rest() == stamped(form.events[had:], stream.name, had)
        assert (answer.status, answer.end) == (200, "whole")
        client.close()
    assert rig.uncalled()
    assert len(rig.provider.requests) == 1


CURT = [IDS, (b"Cache-Control", b"max-age=0, No-Cache")]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (SOURCE, 204),
        (CURT, 204),
        ([IDS], 200),
        ([(b"Accept", b"*/*"), (b"Cache-Control", b"no-cache")], 200),
        ([IDS, (b"Cache-Control", b"no-store")], 200),
        ([], 200),
    ],
    ids=["event-source", "curt", "no-cache-control", "no-accept", "no-store", "plain"],
)
@BOTH
@pytest.mark.parametrize("form", [CHAT, OTHER, AGENT], ids=str)
async def test_client_that_has_all_gets_an_empty_stream_and_an_event_source_is_told_to_stay_away(
    rig, form, way, fields, status
):
    """34: nothing is left -> 200 and no bytes; 204 for an EventSource, which would come back for ever."""
    stream = await begin(rig, form, IDS)
    await ended(stream.call, form.whole)
    await stream.answer.rest()
    client, answer = await back(rig, form, way, stream.name, len(form.events) - 1, *fields)
    method = "GET" if way == "stream" else form.method
    assert answer.status == (status if method == "GET" else 200)
    assert (await answer.rest(), answer.end) == (b"", "whole")
    # The connection is in step.
    second = await client.whole("GET", STREAMS + stream.name)
    assert (bytes(second.body), second.end) == (form.whole, "whole")
    line = await rig.line(1)
    assert (line["status"], line["outcome"], line["stream_id"]) == (answer.status, "complete", stream.name)
    assert (line["resumed_from"], line["bytes"], line["events"]) == (len(form.events), 0, 0)


@pytest.mark.parametrize("form", [CHAT, OTHER], ids=str)
async def test_event_source_that_has_all_so_far_is_not_told_to_stay_away(rig, form):
    """34: the upstream is not done -> it follows, and gets what comes."""
    stream = await begin(rig, form, IDS)
    await passed(stream, *form.events[:-1])
    _, answer = await back(rig, form, "stream", stream.name, len(form.events) - 2, *SOURCE)
    assert answer.status == 200
    await ended(stream.call, form.events[-1])
    assert await answer.rest() == stamped(form.events[-1:], stream.name, len(form.events) - 1)


@pytest.mark.parametrize("sized", [True, False])
async def test_part_of_an_answer_of_known_length_is_not_said_to_be_all_of_it(rig, sized):
    """The upstream gave a Content-Length -> who comes back later gets a body of another length, and is not told that one."""
    framing = b"Content-Length: %d" % len(CHAT.whole) if sized else b"Transfer-Encoding: chunked"
    stream = await begin(rig, CHAT, upstream=head(CHAT.kind, framing=framing))
    if sized:
        await stream.call.send(CHAT.whole)
        stream.call.done()
    else:
        await ended(stream.call, CHAT.whole)
    assert await stream.answer.rest() == CHAT.whole
    for had in range(len(CHAT.events) + 1):
        answer = await again(rig, "GET", f"{STREAMS}{stream.name}?after={had}")
        assert (bytes(answer.body), answer.end) == (b"".join(CHAT.events[had:]), "whole")
        answer = await again(rig, "GET", f"{STREAMS}{stream.name}?after={had}", IDS)
        assert (bytes(answer.body), answer.end) == (stamped(CHAT.events[had:], stream.name, had), "whole")
