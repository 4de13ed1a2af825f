"""Coming back when more than a connection is out of order: silence, a head that takes long, an upstream that is lost or has
ids of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from sidecar.scripted import Connection, Received

from .cutter import Cut, Cutter, Plan
from .rig import (
    AGENT,
    ANTHROPIC,
    CHAT,
    EVENTS,
    GEMINI,
    HEAD,
    OLLAMA,
    PATIENT,
    RESPONSES,
    SCRIPT,
    Answer,
    Form,
    Hold,
    Setting,
    Told,
    begin,
)

pytestmark = pytest.mark.both_shells

StartSetting = Callable[..., Awaitable[Setting]]

PING = b'event: ping\ndata: {"type": "ping"}\n\n'
KEEPALIVES = {
    "chat": b": keepalive\n",
    "responses": b": keepalive\n",
    "agent": b": keepalive\n",
    "anthropic": PING,
    "gemini": b"\r\n",
    "ollama": b" ",
}
PLAN: Plan = [3, 0, 4]


def silence(form: Form) -> Callable[[Cutter], Hold]:
    """The upstream says nothing more until the client has been sent a keepalive, on any connection."""
    frame = KEEPALIVES[form.name]

    def make(cutter: Cutter) -> Hold:
        async def hold(number: int) -> None:
            if number > 0:
                had = kept(cutter, frame)
                await cutter.until(lambda: kept(cutter, frame) > had)

        return hold

    return make


def kept(cutter: Cutter, frame: bytes) -> int:
    bodies = [bytes(exchange.body) for exchange in cutter.exchanges]
    if frame == b" ":
        return sum(body.startswith(b" ") + body.count(b"\n ") for body in bodies)
    if frame == b"\r\n":
        return sum(body.startswith(b"\r\n") + body.count(b"\r\n\r\n\r\n") for body in bodies)
    return sum(body.count(frame) for body in bodies)


@pytest.mark.parametrize("script", ["fetch-event-source", "eventsource-client", "fetch"])
@pytest.mark.parametrize("form", [CHAT, RESPONSES, ANTHROPIC, AGENT], ids=str)
async def test_keepalives_between(start_setting: StartSetting, form: Form, script: str) -> None:
    """Anthropic's are events, for all that a client can tell, but have no id; cuts count them too."""
    setting = await start_setting(keepalive__interval=0.02)
    came = await setting.come_back(
        script, form, PLAN, silence(form), headers=EVENTS, accept="text/event-stream"
    )
    stream = (came.ids[0] or "").rpartition(":")[0]
    numbered = [event for event in came.result.events if event.id]
    assert [(event.event, event.data) for event in numbered] == came.answer.wanted
    assert [event.id for event in numbered] == [f"{stream}:{n}" for n in range(len(numbered))]
    assert came.answer.calls == 1
    assert came.cutter.cuts == len(PLAN)


@pytest.mark.parametrize("form", [CHAT, GEMINI, OLLAMA], ids=str)
async def test_keepalives_do_not_count(start_setting: StartSetting, form: Form) -> None:
    setting = await start_setting(keepalive__interval=0.02)
    came = await setting.come_back("fetch", form, PLAN, silence(form), headers=PATIENT)
    own = [(event.event, event.data.lstrip()) for event in came.result.events if event.event != "ping"]
    assert own == [event for event in came.answer.wanted if event[0] != "ping"]
    assert came.cutter.cuts == len(PLAN)


async def test_cut_before_the_upstream_has_said_anything(start_setting: StartSetting) -> None:
    """The head is the sidecar's own, also for who comes back; the call goes on."""
    setting = await start_setting(keepalive__early=0.02, keepalive__interval=0.02)

    def slow(cutter: Cutter) -> Hold:
        async def hold(number: int) -> None:
            if number == HEAD:
                await cutter.until(lambda: len(cutter.exchanges) == 3)

        return hold

    came = await setting.come_back("fetch", CHAT, [0, 0], slow, headers=EVENTS, accept="text/event-stream")
    came.check()
    came.check_ids()


OWN = Form("own", "GET", "/own/events")


async def resuming(connection: Connection, received: Received) -> None:
    """Nine events with ids of the upstream's own, from where the client is."""
    first = int(received.header("last-event-id") or b"-1") + 1
    if first == 9:
        await connection.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        return
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    await connection.send(head)
    for number in range(first, 9):
        event = b"retry: 1\nid: %d\ndata: %d\n\n" % (number, number)
        await connection.send(b"%x\r\n%b\r\n" % (len(event), event))
    await connection.send(b"0\r\n\r\n")


@pytest.mark.parametrize("script", ["fetch-event-source", "eventsource", "eventsource-client"])
async def test_an_upstream_that_resumes_by_itself(setting: Setting, script: str) -> None:
    """It is asked again, as it would be without the sidecar."""
    setting.provider.on(OWN.path, resuming)
    cutter = await setting.cutter([3, Cut(2, into=12), 1])
    result = await setting.ask(script, OWN, cutter, types=["message"], last="8")
    assert result.events == [Told(str(number), "message", str(number)) for number in range(9)]
    assert cutter.cuts == 3
    last = [request.header("last-event-id") for request in setting.provider.requests]
    assert last[:4] == [None, b"2", b"4", b"5"]


@pytest.mark.parametrize("script", ["eventsource", "eventsource-client"])
async def test_a_lost_upstream_is_told_of_once(setting: Setting, script: str) -> None:
    """Who has been told does not come back for it for ever."""
    answer = Answer(setting.provider, CHAT, SCRIPT)
    answer.lost_after = 4
    cutter = await setting.cutter([3])
    url = f"/_slipstream/streams/{await begin(setting.port, CHAT)}"
    more = {"method": "GET", "body": None, "headers": {"Accept": "text/event-stream"}, "last": None}
    result = await setting.ask(script, CHAT, cutter, url=url, **more)
    *given, error = result.plain
    assert given == answer.wanted[:4]
    assert "upstream_closed" in error[1]
    assert answer.calls == 1
