"""Streams that are not kept any more: gone by every way, whole for who reads them, and never asked for twice."""

import asyncio

import pytest

from tests.faults.comeback import (
    AGENT,
    IDS,
    KEY,
    STREAMS,
    WAYS,
    again,
    back,
    begin,
    ended,
    holds,
    left,
    look,
    passed,
    stamped,
)
from tests.faults.wire import CHAT, OTHER, chunk

pytestmark = pytest.mark.both_shells

OTHER_KEY = (b"Authorization", b"Bearer sk-somebody-else")


async def is_gone(rig, form, name, *fields):
    """By every way: 410, and no call."""
    calls = len(rig.provider.requests)
    shown = set()
    for way in WAYS:
        for number in (0, 7):
            client, answer = await back(rig, form, way, name, number, *fields)
            await answer.rest()
            assert (answer.status, answer.header("slipstream-error"), answer.end) == (410, b"gone", "whole")
            shown.add((way, look(answer)))
            client.close()
    for method in ("GET", "DELETE"):
        assert (await again(rig, method, STREAMS + name, *fields)).status == 410
    assert len(shown) == 2
    assert (len(rig.provider.requests), rig.uncalled()) == (calls, True)


@pytest.mark.parametrize("form", [CHAT, OTHER, AGENT], ids=str)
async def test_stream_is_gone_when_its_time_is_over(rig, form):
    """33: `resume.keep` has passed -> whole until then, 410 from then on."""
    await rig.start(resume__keep=0.05)
    stream = await begin(rig, form, IDS)
    await passed(stream, form.events[0])
    await ended(stream.call, *form.events[1:])
    await stream.answer.rest()
    async with asyncio.timeout(5):
        while (answer := await again(rig, "GET", f"{STREAMS}{stream.name}?after=1")).status == 200:
            assert (bytes(answer.body), answer.end) == (b"".join(form.events[1:]), "whole")
    await is_gone(rig, form, stream.name)
    assert rig.sidecar.service.assembly.hub._shelf.used == 0


async def test_stream_that_had_to_make_room_is_gone_and_the_newest_is_not(rig):
    """33: `resume.memory` is full -> those that ended first go, whole; what is left is whole."""
    await rig.start(resume__memory=20_000)
    streams = []
    for number in range(5):
        form = CHAT._replace(body=CHAT.body.replace(b'"m"', b'"%d"' % number))
        stream = await begin(rig, form, IDS)
        await ended(stream.call, CHAT.whole)
        await stream.answer.rest()
        streams.append((form, stream.name))
        stream.client.close()
    kept = [name for _, name in streams if (await again(rig, "GET", STREAMS + name)).status == 200]
    assert kept == [name for _, name in streams][-len(kept) :]
    assert 0 < len(kept) < 5
    for form, name in streams:
        if name in kept:
            assert (await again(rig, "GET", STREAMS + name)).body == CHAT.whole
        else:
            await is_gone(rig, form, name)


async def test_running_stream_that_had_to_make_room_goes_on_for_who_reads_it_and_is_gone_for_others(rig):
    """33: no room even for one that runs -> its reader gets every byte, without ids that would lead nowhere; 410 else."""
    await rig.start(resume__memory=20_000)
    stream = await begin(rig, OTHER, IDS)
    parts = [b"data: %05d %b\n\n" % (number, b"x" * 500) for number in range(100)]
    for part in parts:
        await passed(stream, part)
    await is_gone(rig, OTHER, stream.name)
    await ended(stream.call)
    got = await stream.answer.rest()
    number = got.count(b"id: ")
    assert 10 < number < 40
    assert got == stamped(parts[:number], stream.name) + b"".join(parts[number:])
    assert stream.answer.end == "whole"
    await is_gone(rig, OTHER, stream.name)


async def test_call_whose_client_is_away_and_that_had_to_make_room_is_gone(rig):
    """33: evicted while nobody reads -> 410 when the client is back, never the end without the middle."""
    await rig.start(resume__memory=20_000)
    stream = await begin(rig, CHAT, IDS)
    await passed(stream, CHAT.events[0])
    await left(rig, stream)
    await stream.call.send(chunk(CHAT.events[0] * 500))
    await ended(stream.call, *CHAT.events[1:])
    while len(rig.sidecar.service.assembly.hub):  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0)
    await is_gone(rig, CHAT, stream.name)


async def test_stream_that_is_too_long_is_gone_and_its_reader_gets_all_of_it(rig):
    """33: over 8 MiB -> it only passes through from there on."""
    stream = await begin(rig, CHAT, IDS)
    block = CHAT.events[0] * 1000
    for _ in range((9 << 20) // len(block)):
        await stream.call.send(chunk(block))
        assert await stream.answer.more()
    size = ((9 << 20) // len(block)) * len(block)
    reading = asyncio.ensure_future(stream.answer.rest())
    await ended(stream.call, CHAT.events[-1])
    got = await reading
    assert stream.answer.end == "whole"
    assert got.count(CHAT.events[0][:-1]) == size // len(CHAT.events[0])
    await is_gone(rig, CHAT, stream.name)


@pytest.mark.parametrize("form", [CHAT, OTHER, AGENT], ids=str)
async def test_stream_from_before_a_restart_is_gone_and_not_paid_twice(rig, form):
    """34: another process of the same installation -> 410 by every way, no call; foreign ids are 404 as ever."""
    first = await rig.start()
    stream = await begin(rig, form, IDS, KEY)
    await ended(stream.call, form.whole)
    await stream.answer.rest()
    await first.service.stop(0.0)
    await rig.start()
    await is_gone(rig, form, stream.name, KEY)
    _, answer = await back(rig, form, "again", stream.name, 0, OTHER_KEY)
    await answer.rest()
    assert answer.status == 404
    # Asked anew, it is a new stream.
    fresh = await begin(rig, form, IDS, KEY)
    assert fresh.name != stream.name
    await ended(fresh.call, form.whole)
    assert await fresh.answer.rest() == stamped(form.events, fresh.name)


@pytest.mark.parametrize("way", WAYS)
async def test_events_without_ids_that_followed_are_not_guessed_at(rig, way):
    """An upstream that set its own ids later, and a client that comes back with the last of ours -> 410."""
    stream = await begin(rig, AGENT, IDS)
    parts = [b"data: 0\n\n", b"data: 1\n\n", b"id: 7\ndata: 2\n\n", b"data: 3\n\n"]
    await passed(stream, *parts[:2])
    await left(rig, stream)
    _, answer = await back(rig, AGENT, way, stream.name, 1)
    await stream.call.send(chunk(parts[2]))
    await holds(answer, len(parts[2]))
    assert bytes(answer.body) == parts[2]
    _, late = await back(rig, AGENT, way, stream.name, 1)
    await late.rest()
    assert (late.status, late.header("slipstream-error")) == (410, b"gone")
    _, early = await back(rig, AGENT, way, stream.name, 0)
    await ended(stream.call, parts[3])
    assert await early.rest() == stamped(parts[1:2], stream.name, 1) + parts[2] + parts[3]
    assert await answer.rest() == parts[2] + parts[3]
