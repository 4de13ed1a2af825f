"""The paced stream of `GET /_slipstream/probe`, over both shells: what it says, and what it costs."""

import asyncio
import hashlib
import time

import orjson
import pytest

from sidecar.core.sse import SSEFramer, data_of
from sidecar.serving import probe
from tests.faults.conftest import eventually
from tests.faults.wire import GUARD, request

pytestmark = pytest.mark.both_shells

PROBE = "/_slipstream/probe"
FIELDS = {
    "content-type": b"text/event-stream",
    "x-accel-buffering": b"no",
    "cache-control": b"no-cache",
}


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(probe, "PACE", 0.005)


def events(body):
    framer = SSEFramer()
    return [orjson.loads(data_of(frame.block)) for frame in framer.feed(body)]


def served(rig):
    return rig.sidecar.service.assembly.front._own.probe


async def begun(rig, target):
    """A probe that is in its silence."""
    answer = await (await rig.connect()).ask("GET", target)
    await answer.until_has(b"data: ", probe.SMALL + probe.LARGE + 1)
    return answer


async def test_a_probe_is_sent_as_streams_are(rig):
    answer = await (await rig.connect()).whole("GET", PROBE)
    assert (answer.status, answer.end, answer.chunked) == (200, "whole", True)
    assert {name: answer.header(name) for name in FIELDS} == FIELDS
    assert answer.header("content-length") is None
    hello, *others, last = found = events(answer.body)
    assert [event["n"] for event in found] == list(range(probe.SMALL + probe.LARGE + 2))
    assert (hello["probe"], hello["http"], hello["forwarded"], hello["keepalive"]) == (1, "1.1", [], 15.0)
    assert [len(event.get("padding", "")) for event in others] == [0] * probe.SMALL + [4096] * probe.LARGE
    assert last["end"] == "whole"
    # None is sent before its time, but for the millisecond to which event loops round.
    assert all(event["at"] >= event["n"] * 5 - 2 for event in others)
    assert [event["at"] for event in found] == sorted(event["at"] for event in found)
    assert len(answer.body) < 32 << 10


async def test_events_are_sent_when_they_are_made(rig, monkeypatch):
    """The first is here while the second is not yet due."""
    monkeypatch.setattr(probe, "PACE", 3600)
    answer = await (await rig.connect()).ask("GET", PROBE)
    await answer.until_has(b"\n\n")
    assert len(events(answer.body)) == 1


async def test_the_silence_is_as_long_as_asked_for_and_has_no_keepalive(rig):
    await rig.start(keepalive__interval=0.01)
    began = time.perf_counter()
    answer = await (await rig.connect()).whole("GET", PROBE + "?idle=0.3&once=abc&other=1")
    assert time.perf_counter() - began >= 0.29
    found = events(answer.body)
    assert found[-1]["at"] - found[-2]["at"] >= 298
    assert answer.body.count(b"\n\n") == len(found)
    assert b"keepalive\n" not in answer.body
    assert (found[0]["silence"], found[0]["keepalive"]) == (0.3, 0.01)


@pytest.mark.parametrize("idle", ["121", "1000", "-1", "", "x", "1e2", "nan", "0.1234", "%EF%BC%91"])
async def test_a_silence_that_is_none_is_refused(rig, idle):
    answer = await (await rig.connect()).whole("GET", f"{PROBE}?idle={idle}".encode())
    assert (answer.status, answer.header("slipstream-error")) == (400, b"bad_request")
    assert b"120" in answer.body


@pytest.mark.parametrize("method", ["HEAD", "POST", "DELETE", "PUT"])
async def test_only_get(rig, method):
    answer = await (await rig.connect()).whole(method, PROBE)
    assert (answer.status, answer.header("slipstream-error")) == (405, b"method_not_allowed")


async def test_names_of_what_proxies_add_are_told_and_no_value(rig):
    fields = [(b"X-Forwarded-For", b"203.0.113.9"), (b"Via", b"1.1 secret-host"), (b"X-Other", b"planted")]
    fields.append((b"Authorization", b"Bearer sk-planted"))
    answer = await (await rig.connect()).whole("GET", PROBE, fields=fields)
    assert events(answer.body)[0]["forwarded"] == ["via", "x-forwarded-for"]
    for value in (b"203.0.113.9", b"secret-host", b"planted"):
        assert value not in answer.body


@pytest.mark.proxy_only("uvicorn frames as it sees fit")
async def test_http_1_0_is_told_and_ends_with_the_connection(rig):
    client = await rig.connect()
    await client.send(request("GET", PROBE).replace(b"HTTP/1.1", b"HTTP/1.0"))
    answer = await client.answer()
    await answer.rest()
    assert (answer.chunked, answer.end, events(answer.body)[0]["http"]) == (False, "whole", "1.0")


async def test_only_so_many_at_once(rig):
    waiting = [await begun(rig, f"{PROBE}?idle=100") for _ in range(probe.AT_ONCE)]
    answer = await (await rig.connect()).whole("GET", PROBE)
    assert (answer.status, answer.header("slipstream-error")) == (503, b"overloaded")
    assert answer.header("retry-after") == b"1"
    assert len(waiting) == served(rig).running == probe.AT_ONCE
    rig.clients[0].close()
    await eventually(lambda: served(rig).running < probe.AT_ONCE, lambda: served(rig).running)
    assert (await (await rig.connect()).whole("GET", PROBE)).status == 200


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_client_that_leaves_ends_it_at_once(rig, how):
    await begun(rig, f"{PROBE}?idle=100")
    assert served(rig).running == 1
    rig.clients[-1].leave(how)
    await eventually(lambda: not served(rig).running, lambda: "a probe")
    await eventually(lambda: not rig.sidecar.service.assembly.front.active, lambda: "a request")


async def test_a_probe_does_not_hold_up_a_drain(rig):
    answer = await begun(rig, f"{PROBE}?idle=100")
    async with asyncio.timeout(GUARD):
        clean = await rig.sidecar.service.stop(5.0)
    await answer.rest()
    assert clean
    assert (answer.end, events(answer.body)[-1]["end"]) == ("whole", "draining")


async def test_there_is_none_while_the_process_drains(rig):
    client = await rig.connect()
    rig.sidecar.service.assembly.front.draining = True
    answer = await client.whole("GET", PROBE)
    assert (answer.status, answer.header("slipstream-error")) == (503, b"draining")


async def test_a_probe_leaves_no_line_and_one_that_was_refused_does(rig):
    await (await rig.connect()).whole("GET", PROBE)
    await (await rig.connect()).whole("GET", PROBE + "?idle=x")
    line = await rig.line()
    assert (line["path"], line["status"], line["outcome"]) == (PROBE, 400, "refused")
    assert len(rig.sidecar.lines.requests) == 1


@pytest.mark.proxy_only("the mounted app has no clients of its own")
async def test_where_clients_have_tokens_it_takes_one(rig):
    digest = hashlib.sha256(b"the-token").hexdigest()
    await rig.start(file={"clients": [{"name": "a", "token_sha256": digest}]})
    answer = await (await rig.connect()).whole("GET", PROBE)
    assert answer.status == 401
    answer = await (await rig.connect()).whole("GET", PROBE, fields=[(b"Authorization", b"Bearer the-token")])
    assert (answer.status, events(answer.body)[-1]["end"]) == (200, "whole")
