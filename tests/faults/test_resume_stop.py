"""Streams that are stopped with DELETE, and what else their address answers."""

import orjson
import pytest

from tests.faults.comeback import (
    AGENT,
    IDS,
    PATIENT,
    STREAMS,
    WITH_IDS,
    again,
    begin,
    ended,
    gone,
    left,
    passed,
    stamped,
)
from tests.faults.conftest import eventually
from tests.faults.wire import CHAT, FORMATS, FRAMED, GEMINI_ARRAY, LAST, OLLAMA, OTHER, chunk, head, request

pytestmark = pytest.mark.both_shells


@pytest.mark.parametrize("at", ["boundary", "inside", "nothing"])
@pytest.mark.parametrize("form", [*FORMATS, AGENT], ids=str)
async def test_stopped_stream_ends_the_call_and_tells_every_reader(rig, form, at):
    """DELETE -> 204, the upstream is closed within a second; readers get what came, the error frame and a cut."""
    stream = await begin(rig, form, IDS)
    parts = {"boundary": form.events[:1], "inside": [form.events[0], form.events[1][:9]], "nothing": []}[at]
    await passed(stream, *parts)
    readers = [stream.answer]
    for after in range(2 if parts else 1):
        client = await rig.connect()
        readers.append(await client.ask("GET", f"{STREAMS}{stream.name}?after={after}"))
    answer = await again(rig, "DELETE", STREAMS + stream.name)
    assert (answer.status, answer.end, answer.header("content-length")) == (204, "whole", None)
    await stream.call.closed(within=1)
    sent = b"".join(parts)
    for reader, after in zip(readers, [-1, 0, 1], strict=False):
        body, ids = await reader.rest(), form in WITH_IDS and after < 0
        came = stamped(parts[:1], stream.name) + b"".join(parts[1:]) if ids else sent
        came = came[len(form.events[0]) if after == 1 else 0 :]
        assert reader.end == "cut"
        assert body[: len(came)] == came
        rest = bytes(body[len(came) :])
        if form is GEMINI_ARRAY:
            assert rest == b""
        else:
            assert rest.lstrip(b"\r\n").startswith(form.lost)
            assert b"stopped" in rest
            assert (rest[0] in b"\r\n") == (at == "inside")
    await gone(rig, stream.name)
    lines = {line["request_id"]: line for line in rig.sidecar.lines.requests}
    assert sorted(
        (line["method"], line["outcome"]) for line in lines.values() if line["status"] != 410
    ) == sorted(
        [("DELETE", "complete"), (form.method, "cancelled"), *[("GET", "cancelled")] * (len(readers) - 1)]
    )


@pytest.mark.parametrize("form", [CHAT, OTHER, OLLAMA], ids=str)
async def test_stream_that_nobody_reads_can_be_stopped(rig, form):
    """DELETE while the client is away -> closed within a second, and gone."""
    stream = await begin(rig, form, PATIENT)
    await passed(stream, form.events[0])
    await left(rig, stream)
    assert (await again(rig, "DELETE", STREAMS + stream.name)).status == 204
    await stream.call.closed(within=1)
    await gone(rig, stream.name)


@pytest.mark.parametrize("form", FORMATS, ids=str)
async def test_stream_that_has_ended_can_be_taken_away(rig, form):
    """DELETE after the end -> 204, and nobody gets it again."""
    stream = await begin(rig, form, IDS)
    await ended(stream.call, form.whole)
    await stream.answer.rest()
    assert stream.answer.end == "whole"
    assert (await again(rig, "DELETE", STREAMS + stream.name)).status == 204
    await gone(rig, stream.name)


@pytest.mark.parametrize("form", [form for form in FRAMED if form is not OTHER], ids=str)
async def test_stop_after_the_terminal_marker_writes_nothing_behind_it(rig, form):
    """DELETE between the marker and the upstream's end -> nothing follows the marker: some clients read on."""
    stream = await begin(rig, form, IDS)
    await passed(stream, *form.events)
    assert (await again(rig, "DELETE", STREAMS + stream.name)).status == 204
    await stream.call.closed(within=1)
    await stream.answer.rest()
    expected = stamped(form.events, stream.name) if form in WITH_IDS else form.whole
    assert bytes(stream.answer.body) == expected


async def test_stream_that_was_committed_early_can_be_come_back_to_and_stopped_before_its_head(rig):
    """A 200 before the upstream's head -> the name is known, others follow, and a stop ends all of it."""
    await rig.start(keepalive__early=0.01, keepalive__interval=0.02)
    rig.script(CHAT.target)
    client = await rig.connect()
    answer = await client.ask("POST", CHAT.target, CHAT.body, [IDS])
    call = await rig.call()
    name = answer.header("slipstream-stream-id").decode()
    await answer.until_has(CHAT.keepalive)
    second = await rig.connect()
    await second.send(request("GET", STREAMS + name, fields=[IDS]))
    await eventually(lambda: rig.sidecar.service.assembly.front.active == 2, lambda: "one reader")
    assert (await again(rig, "DELETE", STREAMS + name)).status == 204
    await call.closed(within=1)
    assert (await answer.rest()).replace(CHAT.keepalive, b"").startswith(CHAT.lost)
    assert answer.end == "cut"
    late = await second.answer()
    await late.rest()
    assert (late.status, late.header("slipstream-error")) == (410, b"stopped")
    await gone(rig, name)


async def test_stream_that_was_committed_early_is_followed_through_its_head(rig):
    """A 200 before the upstream's head, cut, back before the head too -> the events, each with its id, once."""
    await rig.start(keepalive__early=0.01)
    rig.script(CHAT.target)
    client = await rig.connect()
    answer = await client.ask("POST", CHAT.target, CHAT.body, [IDS])
    call = await rig.call()
    name = answer.header("slipstream-stream-id").decode()
    await left(rig, client)
    second = await rig.connect()
    await second.send(request("GET", STREAMS + name, fields=[IDS]))
    await eventually(lambda: rig.sidecar.service.assembly.front.active == 1, lambda: "no reader")
    await call.send(head(CHAT.kind), chunk(CHAT.whole), LAST)
    call.done()
    answer = await second.answer()
    assert (await answer.rest(), answer.end) == (stamped(CHAT.events, name), "whole")
    assert answer.header("slipstream-stream-id") == name.encode()


METHODS = ["POST", "PUT", "PATCH", "HEAD", "OPTIONS", "PURGE"]


async def test_other_methods_are_405_whatever_the_id(rig):
    """A method that means nothing here -> 405, and the stream goes on."""
    stream = await begin(rig, CHAT, IDS)
    await passed(stream, CHAT.events[0])
    for method in METHODS:
        body = b"{}" if method in ("POST", "PUT", "PATCH") else None
        answers = [
            await again(rig, method, STREAMS + name, body=body)
            for name in (stream.name, "s" + "A" * 32, "x", "j" + stream.name[1:])
        ]
        assert {answer.status for answer in answers} == {405}
        assert len({(tuple(answer.headers), bytes(answer.body)) for answer in answers}) == 1
        if method != "HEAD":
            assert orjson.loads(answers[0].body)["status"] == 405
    await ended(stream.call, *CHAT.events[1:])
    assert (await stream.answer.rest(), stream.answer.end) == (stamped(CHAT.events, stream.name), "whole")
