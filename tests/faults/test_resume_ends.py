"""Streams that break or are left: what becomes of the upstream call, and of who comes back."""

import asyncio
import contextlib
import socket

import pytest

from tests.core.oracle import events
from tests.faults.comeback import (
    AGENT,
    IDS,
    PATIENT,
    SOURCE,
    STREAMS,
    WAYS,
    WITH_IDS,
    again,
    back,
    bare,
    begin,
    ended,
    gone,
    holds,
    last_id,
    left,
    passed,
    seen,
    stamped,
)
from tests.faults.conftest import eventually
from tests.faults.wire import (
    ANTHROPIC,
    CHAT,
    FORMATS,
    OTHER,
    Client,
    chunk,
    head,
    request,
)

pytestmark = pytest.mark.both_shells

BOTH = pytest.mark.parametrize("way", WAYS)
BREAK = pytest.mark.parametrize("fault", ["reset", "close"])


# 11, 12: broken streams.


@BREAK
@BOTH
@pytest.mark.parametrize("form", WITH_IDS, ids=str)
async def test_rest_of_a_broken_stream_ends_as_the_stream_did(rig, form, way, fault):
    """11: broken in the middle of an event -> who comes back gets the rest, closed off, the error frame and a cut."""
    stream = await begin(rig, form, IDS)
    half = form.events[1][:-5]
    await passed(stream, form.events[0], half)
    getattr(stream.call, fault)()
    first = await stream.answer.rest()
    assert first.startswith(stamped(form.events[:1], stream.name) + half + b"\n\n" + form.lost)
    assert stream.answer.end in ("cut", "reset")
    frame = first[len(stamped(form.events[:1], stream.name) + half) + 2 :]
    # It has an id too, so that who was told of the error does not come back for it for ever.
    assert frame == stamped([bare(frame)], stream.name, 1)
    tail = half + b"\n\n" + frame
    for fields in ([], [IDS], SOURCE):
        client, answer = await back(rig, form, way, stream.name, 0, *fields)
        assert (await answer.rest(), answer.end) == (tail, "cut")
        client.close()
    answer = await again(rig, "GET", STREAMS + stream.name)
    assert (answer.body, answer.end) == (form.events[0] + bare(tail), "cut")
    lines = [await rig.line(number) for number in range(5)]
    assert [line["outcome"] for line in lines] == ["truncated"] * 5
    assert [line["error"] for line in lines] == ["upstream_closed"] * 5
    assert [line["resumed_from"] for line in lines] == [None, 1, 1, 1, 0]
    assert rig.uncalled()


@BREAK
@BOTH
@pytest.mark.parametrize("form", WITH_IDS, ids=str)
async def test_stream_that_breaks_while_its_client_is_away_is_not_whole_when_it_is_back(
    rig, form, way, fault
):
    """11: cut, then the upstream breaks -> the rest, the error frame and a cut, also where nothing else is left."""
    stream = await begin(rig, form, IDS)
    await passed(stream, form.events[0])
    await left(rig, stream)
    await stream.call.send(chunk(form.events[1]))
    getattr(stream.call, fault)()
    await eventually(lambda: not len(rig.sidecar.service.assembly.hub), lambda: "the broken call")
    for had in (1, 2):
        # Also an EventSource that has every event: the answer is not whole, so this is not its end.
        client, answer = await back(rig, form, way, stream.name, had - 1, *SOURCE)
        body = await answer.rest()
        assert body.startswith(stamped(form.events[had:2], stream.name, had) + form.lost)
        assert (answer.status, answer.end) == (200, "cut")
        client.close()
    assert rig.uncalled()


@BOTH
@pytest.mark.parametrize("form", [CHAT, ANTHROPIC, OTHER, AGENT], ids=str)
async def test_who_was_told_of_the_error_is_not_told_again(rig, form, way):
    """11: back with the id of the error frame -> nothing more; an EventSource is told to stay away."""
    stream = await begin(rig, form, IDS)
    await passed(stream, form.events[0])
    stream.call.reset()
    last = last_id(await stream.answer.rest())
    assert last == f"{stream.name}:1"
    for fields, status in (([], 200), ([IDS], 200), (SOURCE, 204)):
        client, answer = await back(rig, form, way, stream.name, 1, *fields)
        assert (await answer.rest(), answer.end) == (b"", "whole")
        assert answer.status == (status if way == "stream" or form.method == "GET" else 200)
        client.close()
    client, answer = await back(rig, form, way, stream.name, 2)
    await answer.rest()
    assert answer.status == 404
    # Who was not told is told.
    client, answer = await back(rig, form, way, stream.name, 0, *SOURCE)
    assert (await answer.rest()).startswith(form.lost)
    assert answer.end == "cut"


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "told"])
@pytest.mark.parametrize("end", [b"\r\n\r", b"\r\r", b"\n\r"], ids=repr)
@BOTH
async def test_stream_that_breaks_behind_a_cr_is_not_whole_for_who_has_its_last_event(rig, way, end, cut):
    """11: the blank line's CR was the last byte: its event is given, id included -> back with it, the error is told."""
    stream = await begin(rig, AGENT, IDS)
    await passed(stream, b"data: 0" + end)
    assert last_id(stream.answer.body) == f"{stream.name}:0"
    if cut:
        await left(rig, stream)
    stream.call.reset()
    if not cut:
        body = await stream.answer.rest()
        assert [event[2] for event in events(body)] == [f"{stream.name}:0", f"{stream.name}:1"]
    await eventually(lambda: not len(rig.sidecar.service.assembly.hub), lambda: "the broken call")
    _, answer = await back(rig, AGENT, way, stream.name, 0, *SOURCE)
    body = await answer.rest()
    assert (answer.status, answer.end) == (200, "cut")
    assert [kind for kind, _ in seen(body)] == ["error"]


@pytest.mark.parametrize("form", [form for form in FORMATS if form is not OTHER], ids=str)
async def test_stream_without_its_marker_is_never_whole_for_who_counts(rig, form):
    """12: a clean end too early -> ?after gives what there is and ends in a cut, in every format."""
    stream = await begin(rig, form)
    await passed(stream, form.events[0])
    await ended(stream.call)
    first = await stream.answer.rest()
    assert stream.answer.end == "cut"
    answer = await again(rig, "GET", f"{STREAMS}{stream.name}?after=1")
    assert (form.events[0] + answer.body, answer.end) == (first, "cut")
    assert form.lost in answer.body
    answer = await again(rig, "GET", f"{STREAMS}{stream.name}")
    assert (answer.body, answer.end) == (first, "cut")
    assert [(await rig.line(number))["outcome"] for number in range(3)] == ["truncated"] * 3


@pytest.mark.proxy_only("uvicorn answers HTTP/1.0 in chunks")
async def test_broken_stream_ends_in_a_reset_for_a_client_of_http_1_0(rig):
    """11: where the connection's end is the body's -> only a reset can tell."""
    stream = await begin(rig, CHAT, IDS)
    await passed(stream, CHAT.events[0])
    stream.call.reset()
    await stream.answer.rest()
    client = await rig.connect()
    await client.send(request("GET", STREAMS + stream.name).replace(b"HTTP/1.1", b"HTTP/1.0"))
    answer = await client.answer()
    await answer.rest()
    assert answer.end == "reset"


# 23, 24: clients that leave.


@BOTH
@pytest.mark.parametrize("form", WITH_IDS, ids=str)
async def test_call_waits_for_a_client_that_takes_ids_and_ends_when_it_does_not_come(rig, form, way):
    """24: cut -> the upstream is closed when the grace is over, not before somebody could be back; then it is gone."""
    await rig.start(resume__grace=0.05)
    stream = await begin(rig, form, IDS)
    await passed(stream, form.events[0])
    await left(rig, stream)
    await stream.call.closed(within=5)
    await gone(rig, stream.name)
    _, answer = await back(rig, form, way, stream.name, 0)
    await answer.rest()
    assert (answer.status, answer.end) == (410, "whole")
    line = next(line for line in rig.sidecar.lines.requests if line["status"] == 200)
    assert (line["outcome"], line["stream_id"]) == ("cancelled", stream.name)
    assert line["total_ms"] >= 50
    assert rig.uncalled()


HASTY = (b"Slipstream-Disconnect", b"cancel")


@pytest.mark.parametrize(
    "fields",
    [[], [(b"Accept", b"*/*")], [IDS, HASTY], [(b"Last-Event-ID", b""), HASTY]],
    ids=["none", "any", "cancel", "cancel-id"],
)
@pytest.mark.parametrize("form", WITH_IDS, ids=str)
async def test_call_of_a_client_that_will_not_come_back_ends_with_it(rig, form, fields):
    """23: no ids, or `cancel` -> closed within a second, and gone."""
    stream = await begin(rig, form, *fields)
    await passed(stream, form.events[0])
    await left(rig, stream)
    await stream.call.closed(within=1)
    await gone(rig, stream.name)


async def test_clock_of_the_grace_stops_while_somebody_reads(rig):
    """24: back in time -> the call lives for as long as it is read, however long that is."""
    await rig.start(resume__grace=1, keepalive__interval=0.3)
    stream = await begin(rig, CHAT, IDS)
    await passed(stream, CHAT.events[0])
    await left(rig, stream)
    _, answer = await back(rig, CHAT, "stream", stream.name, 0, IDS)
    await answer.until_has(CHAT.keepalive, 4)
    assert not stream.call.received.closed.is_set()
    await ended(stream.call, *CHAT.events[1:])
    assert (await answer.rest()).endswith(stamped(CHAT.events[1:], stream.name, 1))


async def test_client_that_left_is_as_patient_as_the_most_patient_one(rig):
    """24: `finish`, then a reader that asked for nothing comes and goes -> the call is finished all the same."""
    await rig.start(resume__grace=0.01)
    stream = await begin(rig, CHAT, PATIENT)
    await passed(stream, CHAT.events[0])
    await left(rig, stream)
    client = await rig.connect()
    answer = await client.ask("GET", STREAMS + stream.name, fields=[IDS])
    await answer.until_has(b"\n\n")
    await left(rig, client)
    await ended(stream.call, *CHAT.events[1:])
    await eventually(lambda: not len(rig.sidecar.service.assembly.hub), lambda: "the call")
    assert (await again(rig, "GET", STREAMS + stream.name)).body == CHAT.whole


async def test_client_cut_behind_the_terminal_marker_has_all_of_it(rig):
    """31: cut between the marker and the upstream's end -> the call is over and whole; nothing is left to have."""
    stream = await begin(rig, CHAT, IDS)
    await passed(stream, *CHAT.events)
    await left(rig, stream)
    await stream.call.closed(within=1)
    for way in WAYS:
        _, answer = await back(rig, CHAT, way, stream.name, 3)
        assert (await answer.rest(), answer.status, answer.end) == (b"", 200, "whole")
        _, answer = await back(rig, CHAT, way, stream.name, 2)
        assert (await answer.rest(), answer.end) == (stamped(CHAT.events[3:], stream.name, 3), "whole")
    assert {line["outcome"] for line in rig.sidecar.lines.requests} == {"complete"}
    assert rig.uncalled()


async def test_time_granted_to_who_has_come_back_is_not_left_to_others(rig):
    """23: a client that takes ids was waited for and came back without any -> when it leaves, nobody is waited for."""
    stream = await begin(rig, CHAT, IDS)
    await passed(stream, CHAT.events[0])
    await left(rig, stream)
    client = await rig.connect()
    answer = await client.ask("GET", f"{STREAMS}{stream.name}?after=0")
    await holds(answer, len(CHAT.events[0]))
    await left(rig, client)
    await stream.call.closed(within=1)
    await gone(rig, stream.name)


async def deaf(rig, sent):
    """A client that takes as little as the kernel lets it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", rig.sidecar.port))
    await loop.sock_sendall(sock, sent)
    return sock


@pytest.mark.parametrize("fields", [[IDS], [PATIENT]], ids=["ids", "finish"])
async def test_slow_client_cut_before_it_was_sent_the_terminal_marker_comes_back_for_it(rig, fields):
    """24: the marker is here, the client had not been sent it yet, the upstream has not ended -> it can come back."""
    await rig.start()
    rig.script(CHAT.target)
    sock = await deaf(rig, request("POST", CHAT.target, CHAT.body, fields))
    call = await rig.call()
    await call.send(head(CHAT.kind))
    block, sent = CHAT.events[0] * 500, 0
    await eventually(lambda: len(rig.sidecar.service.assembly.hub), lambda: "no call")
    (live,) = rig.sidecar.service.assembly.hub._live
    while not live.recording.backlog:
        await call.send(chunk(block))
        sent += len(block)
        await eventually(lambda: live.recording.size == sent, lambda: "bytes on their way")  # noqa: B023
    await call.send(chunk(CHAT.events[-1]))
    await eventually(lambda: live.answer.over, lambda: "the marker")
    reader, writer = await asyncio.open_connection(sock=sock)
    client, name = Client(reader, writer), live.name
    rig.clients.append(client)
    await left(rig, client)
    with contextlib.suppress(ConnectionError):
        await ended(call)
    answer = await again(rig, "GET", STREAMS + name)
    assert (answer.status, answer.end) == (200, "whole")
    assert len(answer.body) == sent + len(CHAT.events[-1])


async def test_call_that_a_slow_client_held_up_goes_on_when_it_is_cut(rig):
    """25: the upstream was paused for a client that is cut -> it is not paused for nobody; all of it can be had."""
    await rig.start()
    rig.script(CHAT.target)
    sock = await deaf(rig, request("POST", CHAT.target, CHAT.body, [IDS]))
    call = await rig.call()
    await call.send(head(CHAT.kind))
    block, sent = CHAT.events[0] * 1000, 0
    while call.connection.writable and sent < 7 << 20:
        call.connection.write(chunk(block))
        sent += len(block)
        for _ in range(20):
            await asyncio.sleep(0)
    await eventually(lambda: len(rig.sidecar.service.assembly.hub), lambda: "no call")
    (live,) = rig.sidecar.service.assembly.hub._live
    await eventually(lambda: live.recording.backlog, lambda: "a client that is not slow")
    name = live.name
    reader, writer = await asyncio.open_connection(sock=sock)
    rig.clients.append(Client(reader, writer))
    await left(rig, rig.clients[-1])
    await ended(call, CHAT.events[-1])
    answer = await again(rig, "GET", STREAMS + name)
    assert (len(answer.body), answer.end) == (sent + len(CHAT.events[-1]), "whole")


@pytest.mark.parametrize("fields", [[IDS], []], ids=["ids", "plain"])
@pytest.mark.proxy_only("looks into the server's own buffers")
async def test_who_comes_back_and_does_not_read_is_sent_no_more_than_a_part(rig, fields):
    """25: megabytes are there at once -> they wait in the recording, which all share, not once for each reader."""
    stream = await begin(rig, CHAT)
    reading = asyncio.ensure_future(stream.answer.rest())
    for _ in range(7):
        await stream.call.send(chunk(CHAT.events[0] * ((1 << 20) // len(CHAT.events[0]))))
    await ended(stream.call, CHAT.events[-1])
    size = len(await reading)
    server, socks = rig.sidecar.service._server, []
    try:
        for _ in range(5):
            socks.append(await deaf(rig, request("GET", STREAMS + stream.name, None, fields)))
        await eventually(
            lambda: sum(one.writing_paused for one in server.connections) == 5, lambda: "somebody reads"
        )
        waiting = [one.transport.get_write_buffer_size() for one in server.connections]
        assert max(waiting) < 3 << 20
        assert sum(waiting) < 5 * size / 2
        assert rig.sidecar.service.assembly.front.active == 5
    finally:
        for sock in socks:
            sock.close()


@pytest.mark.proxy_only("looks into the server's own buffers")
async def test_requests_of_who_does_not_read_wait_for_one_another(rig):
    """25: many returns in the pipe, none of them read -> the next begins when the one before has been taken."""
    stream = await begin(rig, CHAT)
    reading = asyncio.ensure_future(stream.answer.rest())
    for _ in range(9):
        await stream.call.send(chunk(CHAT.events[0] * 1600))
    await ended(stream.call, CHAT.events[-1])
    assert 800_000 < len(await reading) < 1 << 20, "less than is passed on at once"
    server = rig.sidecar.service._server
    sock = await deaf(rig, request("GET", STREAMS + stream.name) * 40)
    try:
        await eventually(lambda: any(one.writing_paused for one in server.connections), lambda: "it reads")
        for _ in range(500):
            await asyncio.sleep(0)
        assert max(one.transport.get_write_buffer_size() for one in server.connections) < 3 << 20
        assert len(rig.sidecar.lines.requests) < 10
    finally:
        sock.close()
