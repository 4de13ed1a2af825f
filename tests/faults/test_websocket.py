"""WebSockets through the sidecar, byte by byte: the handshake, what follows it, and every way in which it ends."""

import asyncio
import os
import socket
import ssl
import sys

import pytest
import trustme

from sidecar.config import load
from sidecar.core.websocket import close_frame
from sidecar.engine.wire import Wire
from sidecar.serving.intake import request_of
from sidecar.serving.relay import LINGER, Relay
from sidecar.serving.shell import ClientGoneError
from sidecar.web import tunnel
from tests.core.test_websocket import CLOSE, MIXED, PING, frame
from tests.faults.clients import ALICE, BOB, beside, client, two
from tests.faults.conftest import eventually
from tests.faults.sockets import (
    ASK,
    KEY,
    MASK,
    SWITCH,
    Far,
    close,
    connect,
    masked,
    opened,
    text,
)
from tests.faults.test_client import refused
from tests.faults.wire import GUARD, Answer, request

LEAVE = pytest.mark.parametrize("how", ["fin", "rst"])
ANSWERS = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PLENTY = 16 << 20
"""More than all the buffers of kernels and transports on the way."""


@pytest.fixture
async def far(nothing_left):
    """An upstream whose connections are the test's."""
    made = Far()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture(autouse=True)
async def closed(rig, far):
    """Before the rig looks for what is left, both ends are gone; and nothing planted is in any line."""
    yield
    for upstream in far.peers:
        upstream.writer.transport.abort()
    for sidecar in rig.sidecars:
        for line in sidecar.lines.raw:
            assert b"planted-query" not in line
            assert b"planted-key" not in line


async def answered(client):
    """The answer of a request that has come to no WebSocket."""
    answer = Answer(client.reader, await client.head(), "GET")
    await answer.rest()
    return answer


async def line_of(rig, outcome, error=None, number=0, **more):
    line = await rig.line(number)
    told = {name: line[name] for name in ("status", "outcome", "error", *more)}
    assert told == {"status": 101, "outcome": outcome, "error": error, **more}
    return line


def relay(rig):
    (found,) = rig.sidecar.service.assembly.upgrades._relays
    return found


async def end(client, upstream):
    """The usual end."""
    await client.send(close(mask=MASK))
    await upstream.sees(close(mask=MASK))
    await upstream.send(close())
    upstream.leave("fin")
    await client.sees(close())
    assert await client.rest() == b""
    client.leave("fin")


# The handshake.


async def test_the_request_goes_through_but_for_what_ends_at_a_proxy(rig, far):
    """All fields, in their order and spelling; its own `Host`; the two that ask to switch are the proxy's."""
    await rig.start(far.url)
    client = await connect(rig)
    upstream = await far.call()
    assert await upstream.head() == (
        b"GET /v1/realtime?model=planted-model&secret=planted-query HTTP/1.1\r\n"
        b"Host: 127.0.0.1:%d\r\n"
        b"authorization: Bearer planted-key\r\n"
        b"OpenAI-Beta: realtime=v1\r\n"
        b"Sec-WebSocket-Key: " % far.port + KEY + b"\r\n"
        b"Sec-WebSocket-Version: 13\r\n"
        b"Origin: https://app.test\r\n"
        b"sec-websocket-extensions: permessage-deflate; client_max_window_bits\r\n"
        b"Sec-WebSocket-Protocol: realtime, other\r\n"
        b"Connection: Upgrade\r\n"
        b"Upgrade: websocket\r\n\r\n"
    )
    await upstream.send(SWITCH)
    assert await client.head() == SWITCH
    await end(client, upstream)
    line = await line_of(rig, "complete", close_code=1000, events=0, bytes=len(close()))
    assert (line["method"], line["path"], line["model"]) == ("GET", "/v1/realtime", "planted-model")
    assert (line["provider"], line["operation"], line["upstream"]) == ("openai", None, "default")
    assert (line["stream"], line["cache"], line["feature"]) == (True, "bypass", "voice")
    assert line["ttft_ms"] is None
    assert 0 < line["ttfb_ms"] <= line["total_ms"]
    assert None not in (line["phases"]["connect_ms"], line["phases"]["upstream_ms"], line["tenant"])


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"], ids=["", "103"])
async def test_what_comes_with_the_heads_is_not_lost(rig, far, before):
    """The upstream's first frame right behind its 101, and a client's frames right behind its request."""
    await rig.start(far.url)
    client = await connect(rig, ASK + masked(b"at once"))
    await client.send(masked(b"and before the answer"))
    upstream = await far.call()
    await upstream.head()
    await upstream.send(before + SWITCH + text(b"first"))
    await client.sees(SWITCH + text(b"first"))
    await upstream.sees(masked(b"at once") + masked(b"and before the answer"))
    await end(client, upstream)
    await line_of(rig, "complete", events=1)


@pytest.mark.parametrize("cut", range(0, len(SWITCH) + len(text()), 7))
async def test_the_upstreams_head_cut_in_two(rig, far, cut):
    await rig.start(far.url)
    client = await connect(rig)
    upstream = await far.call()
    await upstream.head()
    sent = SWITCH + text()
    await upstream.send(sent[:cut])
    await asyncio.sleep(0)
    await upstream.send(sent[cut:])
    await client.sees(sent)
    await end(client, upstream)


async def test_a_client_that_cannot_wait_is_held_back(rig, far):
    """What it sends before there is an answer waits, of that no more than a bound, and then all of it comes."""
    await rig.start(far.url)
    client = await connect(rig)
    upstream = await far.call()
    await upstream.head()
    sent = masked(os.urandom(PLENTY), 2)
    sending = asyncio.create_task(client.send(sent))
    (protocol,) = rig.sidecar.connections
    await eventually(lambda: not protocol.transport.is_reading(), lambda: "it goes on reading")
    assert len(protocol._message_tail) < 1 << 20
    await upstream.send(SWITCH)
    assert await client.head() == SWITCH
    await upstream.sees(sent)
    await sending
    await end(client, upstream)


async def test_what_does_not_ask_the_upstream_for_anything_else(rig, far):
    """Fields that mean something with other requests mean nothing here."""
    await rig.start(far.url, cache__ttl=60)
    more = b"Prefer: respond-async\r\nLast-Event-ID: 7\r\nCache-Control: only-if-cached\r\n\r\n"
    client = await connect(rig, ASK[:-2] + more)
    upstream = await far.call()
    assert b"\r\nLast-Event-ID: 7\r\nCache-Control: only-if-cached\r\n" in await upstream.head()
    await upstream.send(SWITCH)
    assert await client.head() == SWITCH
    await end(client, upstream)


DECLINED = {
    "401": b"HTTP/1.1 401 No\r\nX-Why: key\r\nContent-Length: 7\r\n\r\nbad key",
    "404-chunked": b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nnowhere\r\n0\r\n\r\n",
    "429": b"HTTP/1.1 429 Slow Down\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n",
    "426": b"HTTP/1.1 426 Upgrade Required\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nv8",
    "302": b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere.test/\r\nContent-Length: 0\r\n\r\n",
    "200": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n",
}


@pytest.mark.parametrize("early", [b"", masked(request("GET", "/hidden")), request("GET", "/hidden")])
@pytest.mark.parametrize("said", DECLINED.values(), ids=DECLINED)
async def test_another_answer_is_relayed_and_nothing_behind_the_request_is_one(rig, far, said, early):
    """Whatever a client has sent in the hope of a 101 is nobody's request when there is none."""
    await rig.start(far.url)
    client = await connect(rig, ASK + early)
    upstream = await far.call()
    await upstream.head()
    await upstream.send(said)
    if b"Content-Length" not in said and b"chunked" not in said:
        upstream.leave("fin")
    answer = await answered(client)
    status, _, rest = said.partition(b"\r\n")
    assert (b"HTTP/1.1 %d %b" % (answer.status, answer.reason), answer.end) == (status, "whole")
    body = {b"7\r\nnowhere\r\n0\r\n\r\n": b"nowhere"}.get(rest.partition(b"\r\n\r\n")[2])
    assert bytes(answer.body) == (body if body is not None else rest.partition(b"\r\n\r\n")[2])
    for name in ("x-why", "retry-after", "location", "content-type"):
        assert (answer.header(name) is not None) == (name.encode() in said.lower())
    assert answer.header("connection") == b"close"
    assert await client.rest() == b""
    line = await rig.line()
    assert (line["status"], line["bytes"], line["close_code"]) == (answer.status, len(answer.body), None)
    assert len(rig.sidecar.lines.requests) == len(far.peers) == 1


ODD = {
    "no upgrade": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "another protocol": SWITCH.replace(b"WebSocket", b"h2c"),
    "with length": SWITCH[:-2] + b"Content-Length: 5\r\n\r\n",
    "chunked": SWITCH[:-2] + b"Transfer-Encoding: chunked\r\n\r\n",
    "HTTP/1.0": SWITCH.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "long": SWITCH[:-2] + b"X: %b\r\n\r\n" % (b"x" * 70000),
    "broken": SWITCH.replace(b"X-First: 1", b"X-First: 1\0"),
    "no HTTP": text(b"hello"),
}


@pytest.mark.parametrize("said", ODD.values(), ids=ODD)
async def test_a_101_that_is_none_is_502(rig, far, said):
    await rig.start(far.url)
    client = await connect(rig)
    upstream = await far.call()
    await upstream.head()
    await upstream.send(said + text() + request("GET", "/hidden"))
    refused(await answered(client), 502, "upstream_protocol")
    await upstream.rest(1.0)
    line = await rig.line()
    assert (line["status"], line["outcome"], line["error"]) == (502, "upstream_error", "upstream_protocol")


MALFORMED = {
    "post": (ASK.replace(b"GET", b"POST", 1), 400, "bad_request"),
    "body": (ASK[:-2] + b"Content-Length: 5\r\n\r\nhello", 400, "bad_request"),
    "chunks": (ASK[:-2] + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "bad_request"),
    "http10": (ASK.replace(b"HTTP/1.1", b"HTTP/1.0"), 400, "bad_request"),
    "tls": (ASK.replace(b"Upgrade: websocket", b"Upgrade: TLS/1.0"), 501, "upgrade_unsupported"),
    "choice": (ASK.replace(b"Upgrade: websocket", b"Upgrade: h2c, websocket"), 501, "upgrade_unsupported"),
    "twice": (ASK.replace(b"Upgrade: w", b"Upgrade: websocket\r\nUpgrade: w"), 501, "upgrade_unsupported"),
}


@pytest.mark.parametrize(("sent", "status", "kind"), MALFORMED.values(), ids=MALFORMED)
async def test_a_request_for_something_else_is_refused(rig, far, sent, status, kind):
    """28: also with a body that another parser could take for frames; nothing of it reaches an upstream."""
    await rig.start(far.url)
    client = await connect(rig, sent + request("GET", "/hidden"))
    refused(await answered(client), status, kind)
    assert await client.rest() == b""
    assert not far.peers
    assert len(rig.sidecar.lines.requests) == 1


@pytest.mark.parametrize("taken", [b"keep-alive, Upgrade", b"Upgrade: websocket\r\n"])
async def test_a_request_that_only_looks_like_it_is_an_ordinary_one(rig, far, taken):
    """`Upgrade` without `Connection: upgrade`, or the other way round (RFC 9110, 7.8)."""
    await rig.start(far.url)
    kept = {b"keep-alive, Upgrade": b"keep-alive"}.get(taken, b"")
    client = await connect(rig, ASK.replace(taken, kept))
    upstream = await far.call()
    assert b"pgrade" not in await upstream.head()
    await upstream.send(ANSWERS)
    answer = await answered(client)
    assert (answer.status, bytes(answer.body)) == (200, b"ok")


async def test_a_request_without_a_key_is_the_upstreams_to_refuse(rig, far):
    await rig.start(far.url)
    client = await connect(rig, ASK.replace(b"Sec-WebSocket-Key", b"X-Other"))
    upstream = await far.call()
    await upstream.head()
    await upstream.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    assert (await answered(client)).status == 400


async def test_an_upstream_that_is_silent_is_504(rig, far):
    """10: the clock on the head goes for the handshake."""
    await rig.start(far.url, timeouts__head=0.2)
    client = await connect(rig)
    refused(await answered(client), 504, "upstream_timeout")
    upstream = await far.call()
    await upstream.head()
    assert await upstream.rest(1.0) == b""


async def test_an_upstream_that_is_not_there_is_502(rig, far):
    await rig.start("http://127.0.0.1:9")
    client = await connect(rig)
    refused(await answered(client), 502, "upstream_unreachable")


async def test_a_kept_connection_may_carry_it_and_one_that_was_closed_costs_one_retry(rig, far):
    """18, and a connection that became a WebSocket is never used for another request."""
    await rig.start(far.url)
    client = await connect(rig, request("GET", "/plain"))
    kept = await far.call()
    await kept.head()
    await kept.send(ANSWERS)
    assert (await answered(client)).status == 200
    await client.send(ASK)
    await kept.head()
    kept.leave("rst")
    upstream = await far.call()
    await upstream.head()
    await upstream.send(SWITCH)
    assert await client.head() == SWITCH
    await end(client, upstream)
    line = await line_of(rig, "complete", number=1)
    assert line["retries"] == 1
    another = await connect(rig, request("GET", "/plain"))
    fresh = await far.call()
    await fresh.head()
    await fresh.send(ANSWERS)
    assert (await answered(another)).status == 200


async def test_a_pipelined_request_before_it_is_answered_first(rig, far):
    await rig.start(far.url)
    client = await connect(rig, request("GET", "/plain") + ASK + masked(b"early"))
    first = await far.call()
    assert (await first.head()).startswith(b"GET /plain ")
    await first.send(ANSWERS)
    assert (await answered(client)).status == 200
    assert (await first.head()).startswith(b"GET /v1/realtime")
    await first.send(SWITCH)
    assert await client.head() == SWITCH
    await first.sees(masked(b"early"))
    await end(client, first)


# What goes through.


async def test_each_byte_is_forwarded_before_the_next_is_sent(rig, far):
    """1 and 2: frames cut at every offset, in both directions; the line counts them all the same."""
    client, upstream = await opened(rig, far)
    for at in range(len(MIXED)):
        await upstream.send(MIXED[at : at + 1])
        await client.sees(MIXED[at : at + 1])
        await client.send(MIXED[at : at + 1])
        await upstream.sees(MIXED[at : at + 1])
    upstream.leave("fin")
    client.leave("fin")
    await line_of(rig, "complete", close_code=1012, events=3, bytes=len(MIXED))


async def test_what_is_sent_is_never_read_as_http(rig, far):
    """Whatever it looks like, and whether or not it is frames at all."""
    client, upstream = await opened(rig, far)
    hidden = request("POST", "/hidden", b"{}") * 3
    await client.send(hidden)
    await upstream.sees(hidden)
    await upstream.send(ANSWERS * 3)
    await client.sees(ANSWERS * 3)
    noise = b"\x82\xff" + b"\xff" * 8 + os.urandom(100_000)
    await client.send(noise)
    await upstream.sees(noise)
    await upstream.send(noise)
    await client.sees(noise)
    client.leave("fin")
    assert await upstream.rest() == b""
    assert (await rig.line())["status"] == 101
    assert len(rig.sidecar.lines.requests) == len(far.peers) == 1


@pytest.mark.parametrize("way", ["down", "up"])
async def test_a_slow_reader_slows_the_other_side(rig, far, way):
    """25: what one side does not read is not read from the other: memory stays bounded, and nothing is lost."""
    client, upstream = await opened(rig, far)
    sender, reader = (upstream, client) if way == "down" else (client, upstream)
    sent = frame(2, os.urandom(PLENTY), mask=None if way == "down" else MASK)
    sender.writer.write(sent)
    joined = relay(rig)
    source, sink = joined.upstream, joined.client
    if way == "up":
        source, sink = sink, source
    await eventually(lambda: not source.wire._transport.is_reading(), lambda: "it goes on reading")
    assert sink.wire.waiting < 1 << 20
    assert source.passed < PLENTY
    # The other direction is as quick as ever.
    back = masked(b"meanwhile") if way == "down" else text(b"meanwhile")
    await reader.send(back)
    await sender.sees(back)
    await reader.sees(sent)
    await end(client, upstream)
    await line_of(rig, "complete", close_code=1000)


async def test_both_ways_at_once(rig, far):
    client, upstream = await opened(rig, far)
    up, down = masked(os.urandom(PLENTY), 2), frame(2, os.urandom(PLENTY))
    await asyncio.gather(client.send(up), upstream.send(down), client.sees(down), upstream.sees(up))
    await end(client, upstream)
    await line_of(rig, "complete", events=1, bytes=len(down) + len(close()))


@pytest.mark.parametrize("who", ["client", "upstream"])
async def test_a_side_that_takes_nothing_is_dropped_in_the_end(rig, far, who):
    """25: at the timeout that goes for it elsewhere."""
    key = {"client": "timeouts__client", "upstream": "timeouts__stall"}[who]
    client, upstream = await opened(rig, far, **{key: 0.2})
    sender, stuck = (upstream, client) if who == "client" else (client, upstream)
    sender.writer.write(frame(2, bytes(PLENTY)))
    verdict = ("cancelled", None) if who == "client" else ("timeout", "upstream_stalled")
    await line_of(rig, *verdict)
    await sender.rest(1.0)
    del stuck


class Still:
    """A wire on which nothing happens by itself."""

    def __init__(self):
        self.waiting, self.closed = 0, []

    def write(self, data):
        self.waiting += len(data)

    def close(self, within):
        self.closed.append(within)

    def finish(self):
        pass

    pause = resume = finish


async def test_one_that_takes_a_little_is_not_dropped():
    """The clock is on taking nothing, not on being slow: also when more was written meanwhile than was taken."""
    client, upstream = Still(), Still()
    joined = Relay(client, upstream, 60.0, 60.0)
    joined.upstream.received(bytes(100))
    joined.client.full()
    joined.upstream.received(bytes(500))  # a piece that was on its way
    client.waiting -= 1
    joined.client._look()
    assert not client.closed
    client.waiting -= 1
    joined.client._look()
    assert not client.closed
    joined.client._look()
    assert client.closed[0] == 0.0
    assert upstream.closed == [LINGER]
    assert (joined.outcome, joined.error) == ("cancelled", None)
    joined.client.ready()


@pytest.mark.skipif(sys.platform != "linux", reason="looks at what Linux can be told")
async def test_a_peer_that_is_gone_without_a_word_is_noticed_in_minutes(rig, far):
    """Nobody speaks, and no clock runs; but the kernel asks whether anybody is there."""
    client, upstream = await opened(rig, far)
    joined = relay(rig)
    for one in (joined.client, joined.upstream):
        sock = one.wire._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        assert [sock.getsockopt(socket.IPPROTO_TCP, name) for name in names] == [60, 15, 4]
    await end(client, upstream)


async def test_a_socket_that_takes_no_options_is_taken_all_the_same():
    """It may have been closed by its peer in that moment, or be no TCP socket at all."""
    near, beyond = socket.socketpair()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=near)
    beyond.close()

    class Closed:
        def get_extra_info(self, name):
            assert name == "socket"
            return self

        def setsockopt(self, *option):
            raise OSError(22, "Invalid argument")

        def __getattr__(self, name):
            return getattr(transport, name)

    wire = Wire(Closed(), b"early")
    assert wire._early == [b"early"]
    lost = loop.create_future()
    wire._on_lost = lost.set_result
    wire.close(0.0)
    async with asyncio.timeout(GUARD):
        await lost


async def test_silence_is_no_reason_to_end_it(rig, far):
    """No clock of the sidecar's runs while both sides are quiet."""
    client, upstream = await opened(rig, far, timeouts__client=0.1, timeouts__stall=0.1, timeouts__head=0.1)
    await asyncio.sleep(0.5)
    await client.send(masked())
    await upstream.sees(masked())
    await upstream.send(frame(PING, b"still here"))
    await client.sees(frame(PING, b"still here"))
    await end(client, upstream)
    await line_of(rig, "complete")


# Ends.


@LEAVE
@pytest.mark.parametrize("stage", ["handshake", "open", "inside a frame", "with early frames"])
async def test_a_client_that_leaves_takes_the_upstreams_connection_with_it(rig, far, stage, how):
    """23: within a second, in every phase."""
    if stage in ("handshake", "with early frames"):
        await rig.start(far.url)
        client = await connect(rig, ASK + (masked() if stage != "handshake" else b""))
        upstream = await far.call()
        await upstream.head()
    else:
        client, upstream = await opened(rig, far)
        sent = masked() if stage == "open" else masked(b"x" * 100)[:50]
        await client.send(sent)
        await upstream.sees(sent)
    client.leave(how)
    await upstream.closed()
    line = await rig.line()
    assert (line["outcome"], line["error"], line["close_code"]) == ("cancelled", None, None)
    assert line["status"] == (None if stage in ("handshake", "with early frames") else 101)


async def test_a_client_that_leaves_while_the_101_comes_in_costs_the_upstreams_connection(
    rig, far, monkeypatch
):
    """23: nobody takes what the upstream has switched to, and it is not left open."""

    def gone(protocol):
        raise ClientGoneError("the client closed the connection")

    await rig.start(far.url)
    client = await connect(rig)
    upstream = await far.call()
    await upstream.head()
    monkeypatch.setattr(tunnel, "switch", gone)
    await upstream.send(SWITCH)
    await upstream.closed()
    assert await client.rest() == b""
    line = await rig.line()
    assert (line["status"], line["outcome"]) == (None, "cancelled")


@LEAVE
@pytest.mark.parametrize("inside", [False, True])
async def test_an_upstream_that_vanishes_takes_the_clients_connection_with_it(rig, far, inside, how):
    """11: what it has sent is delivered, and then the connection ends without a close frame: that is 1006."""
    client, upstream = await opened(rig, far)
    sent = text() + (text(b"x" * 100)[:50] if inside else b"")
    await upstream.send(sent)
    await client.sees(sent)
    upstream.leave(how)
    await client.closed()
    await line_of(rig, "truncated", "upstream_closed", close_code=None, events=1, bytes=len(sent))


async def test_a_slow_client_gets_all_that_was_sent_before_the_upstream_vanished(rig, far):
    client, upstream = await opened(rig, far)
    sent = frame(2, os.urandom(PLENTY))
    await asyncio.gather(upstream.send(sent), client.sees(sent[: PLENTY // 2]))
    upstream.leave("fin")
    joined = relay(rig)
    await eventually(
        lambda: joined.upstream.over or not joined.upstream.wire._transport.is_reading(), lambda: 0
    )
    await client.sees(sent[PLENTY // 2 :])
    await client.closed()
    await line_of(rig, "truncated", "upstream_closed", bytes=len(sent))


@pytest.mark.parametrize("first", ["client", "upstream"])
@pytest.mark.parametrize("code", [1000, 1001, 1011, 3000, 4999])
async def test_a_close_frame_and_its_answer_go_through(rig, far, first, code):
    client, upstream = await opened(rig, far)
    reason = "schluß".encode()
    ours, theirs = close(code, reason, mask=MASK), close(code, reason)
    if first == "client":
        await client.send(ours)
        await upstream.sees(ours)
        await upstream.send(theirs)
        await client.sees(theirs)
    else:
        await upstream.send(theirs)
        await client.sees(theirs)
        await client.send(ours)
        await upstream.sees(ours)
    upstream.leave("fin")
    assert await client.rest(0.5) == b""
    client.leave("fin")
    await line_of(rig, "complete", close_code=code)


async def test_an_upstream_that_closes_its_half_still_hears_the_client(rig, far):
    """It has said its last word, and waits for the client's (RFC 6455, 7.1.1); then all is said."""
    client, upstream = await opened(rig, far)
    joined = relay(rig)
    await upstream.send(close())
    upstream.finish()
    await client.sees(close())
    assert await client.reader.read(1) == b""
    await client.send(masked(b"on its way") + close(mask=MASK))
    await upstream.sees(masked(b"on its way") + close(mask=MASK))
    assert await upstream.rest() == b""
    assert not joined._lingered
    client.leave("fin")
    await line_of(rig, "complete", close_code=1000)


async def test_a_client_that_closes_its_half_still_hears_the_upstream(rig, far):
    client, upstream = await opened(rig, far)
    await client.send(close(mask=MASK))
    client.finish()
    await upstream.sees(close(mask=MASK))
    assert await upstream.reader.read(1) == b""
    await upstream.send(text(b"on its way") + close())
    await client.sees(text(b"on its way") + close())
    upstream.leave("fin")
    assert await client.rest(0.5) == b""
    await line_of(rig, "complete", close_code=1000, events=1)


@pytest.mark.parametrize("first", ["client", "upstream"])
async def test_the_reply_to_a_close_is_waited_for_longer_than_anything_else(rig, far, monkeypatch, first):
    """One that was told why may take its time to reply, and loses the reason if its reply finds nobody."""
    monkeypatch.setattr("sidecar.serving.relay.LINGER", 0.0)
    client, upstream = await opened(rig, far)
    joined = relay(rig)
    one, other = (client, upstream) if first == "client" else (upstream, client)
    mask, back = (MASK, None) if first == "client" else (None, MASK)
    await one.send(close(4001, mask=mask))
    one.finish()
    await other.sees(close(4001, mask=mask))
    assert await other.reader.read(1) == b""
    await other.send(close(4001, mask=back))
    await one.sees(close(4001, mask=back))
    other.leave("fin")
    assert await one.rest() == b""
    assert not joined._lingered
    await line_of(rig, "complete", close_code=4001)


async def test_one_that_does_not_answer_a_close_is_not_waited_for(rig, far, monkeypatch):
    monkeypatch.setattr("sidecar.serving.relay.REPLY", 0.2)
    client, upstream = await opened(rig, far)
    await client.send(close(mask=MASK))
    client.finish()
    await upstream.sees(close(mask=MASK))
    assert await upstream.reader.read(1) == b""
    await upstream.closed()
    await line_of(rig, "complete", close_code=1000)


async def test_a_client_in_full_flow_gets_the_close_frame(rig, far):
    """Closing on what it is still sending would be a reset, and could cost it the code."""
    client, upstream = await opened(rig, far)
    sending = asyncio.create_task(client.send(masked(bytes(PLENTY), 2)))
    await upstream.exactly(1 << 20)
    await upstream.send(close(1008, b"too much"))
    upstream.finish()
    await client.sees(close(1008, b"too much"))
    assert await client.rest(1.0) == b""
    client.leave("rst")
    await asyncio.gather(sending, return_exceptions=True)
    await line_of(rig, "complete", close_code=1008)


REFUSED = """
[[upstreams]]
name = "far"
url = "{url}"
paths = ["/v1"]

[[clients]]
name = "one"
token_sha256 = "{token}"
"""


@pytest.mark.parametrize("upgrade", [b"websocket", b"h2c"])
async def test_a_refused_upgrade_ends_the_connection(rig, far, tmp_path, upgrade):
    """What is sent behind it is partly lost, so nothing may be read as the next request; also where it is refused
    before anybody looks what it asks for."""
    file = tmp_path / "slipstream.toml"
    file.write_text(REFUSED.format(url=far.url, token="0" * 64))
    await rig.start(None, file=file)
    asked = ASK.replace(b"Upgrade: websocket", b"Upgrade: " + upgrade)
    client = await connect(rig, asked + request("GET", "/v1/hidden"))
    answer = await answered(client)
    assert (answer.status, answer.header("connection")) == (401, b"close")
    assert await client.rest() == b""
    assert len(rig.sidecar.lines.requests) == 1
    assert not far.peers


# Limits, and the sidecar's own end.


async def test_it_takes_the_place_of_a_request_as_long_as_it_lasts(rig, far):
    client, upstream = await opened(rig, far, limits__requests=1)
    other = await connect(rig, request("GET", "/plain"))
    refused(await answered(other), 503, "overloaded")
    second = await connect(rig)
    refused(await answered(second), 503, "overloaded")
    await end(client, upstream)
    front = rig.sidecar.service.assembly.front
    await eventually(lambda: not front.active, lambda: "requests")
    third = await connect(rig, request("GET", "/plain"))
    call = await far.call()
    await call.head()
    await call.send(ANSWERS)
    assert (await answered(third)).status == 200


async def drained(rig, grace, meanwhile):
    """A drain that begins with `meanwhile`, once new requests are refused; returns whether it was clean."""
    assembly = rig.sidecar.service.assembly
    draining = asyncio.create_task(assembly.drain(grace))
    await eventually(lambda: assembly.front.draining, lambda: "it does not drain")
    await meanwhile()
    async with asyncio.timeout(GUARD):
        return await draining


async def test_while_it_drains_what_is_open_goes_on_and_nothing_new_begins(rig, far):
    """47: until the deadline."""
    client, upstream = await opened(rig, far)

    async def meanwhile():
        other = await connect(rig)
        refused(await answered(other), 503, "draining")
        await client.send(masked())
        await upstream.sees(masked())
        await end(client, upstream)

    assert await drained(rig, GUARD, meanwhile)
    assert len(far.peers) == 1


async def test_at_the_deadline_both_sides_are_told(rig, far):
    """47: a close frame to each, 1012 to the client, 1001 to the upstream, masked as a client's has to be."""
    client, upstream = await opened(rig, far)
    await upstream.send(text())
    await client.sees(text())

    async def meanwhile():
        await client.sees(close(1012))
        await client.send(close(1012, mask=MASK))
        assert await client.rest() == b""
        client.leave("fin")
        head = await upstream.exactly(2)
        mask = await upstream.exactly(4)
        assert head + mask + await upstream.exactly(2) == close_frame(1001, mask=mask)
        assert await upstream.rest() == b""
        upstream.leave("fin")

    assert not await drained(rig, 0.0, meanwhile)
    await line_of(rig, "truncated", "draining", close_code=1012, events=1, bytes=len(text()) + 4)
    assert [
        event["requests"] for event in rig.sidecar.lines.all if event["event"] == "stopped_unfinished"
    ] == [1]


@pytest.mark.parametrize("cut", [1, 3, 50])
async def test_no_close_frame_is_put_inside_of_a_frame(rig, far, cut):
    """It waits for the end of that, and takes the place of whatever follows."""
    client, upstream = await opened(rig, far)
    down, up = text(b"x" * 200), masked(b"y" * 200)
    await upstream.send(down[:cut])
    await client.sees(down[:cut])
    await client.send(up[:cut])
    await upstream.sees(up[:cut])

    async def meanwhile():
        joined = relay(rig)
        await eventually(lambda: joined._timer is not None, lambda: "it was not told to stop")
        await upstream.send(down[cut:] + text(b"never seen"))
        await client.sees(down[cut:] + close(1012))
        await client.send(up[cut:] + masked(b"never seen"))
        await upstream.sees(up[cut:])
        assert (await upstream.rest())[:2] == b"\x88\x82"
        assert await client.rest() == b""

    assert not await drained(rig, 0.0, meanwhile)
    await line_of(rig, "truncated", "draining", events=1)


async def test_a_frame_that_does_not_end_is_cut_off_and_looks_like_it(rig, far):
    client, upstream = await opened(rig, far)
    sent = text(b"x" * 200)[:100]
    await upstream.send(sent)
    await client.sees(sent)

    async def meanwhile():
        assert await client.rest() == b""

    assert not await drained(rig, 0.0, meanwhile)
    await line_of(rig, "truncated", "draining", close_code=None, bytes=len(sent))


async def test_one_that_is_being_closed_is_left_to_its_peers(rig, far):
    client, upstream = await opened(rig, far)
    await upstream.send(close(4000))
    await client.sees(close(4000))

    async def meanwhile():
        joined = relay(rig)
        await eventually(lambda: joined._timer is not None, lambda: "it was not told to stop")
        assert (await upstream.rest())[:2] == b"\x88\x82"
        upstream.leave("fin")
        assert await client.rest() == b""

    assert not await drained(rig, 0.0, meanwhile)
    await line_of(rig, "complete", close_code=4000)


async def test_one_that_is_still_being_opened_is_refused_at_the_deadline(rig, far):
    await rig.start(far.url)
    client = await connect(rig)
    upstream = await far.call()
    await upstream.head()

    async def meanwhile():
        refused(await answered(client), 503, "draining")

    assert not await drained(rig, 0.0, meanwhile)
    assert await upstream.rest(1.0) == b""


HERS = ASK.replace(b"Host:", b"Proxy-Authorization: Bearer " + ALICE + b"\r\nHost:")


def without_alice(rig, far, **alices):
    """The configuration is read again, and has only Bob now; or Alice with what is given."""
    clients = two(**alices) if alices else [client("bob", BOB)]
    config = load({}, {}, {"clients": clients, "server": {"upstream": far.url}}).config
    rig.sidecar.service.assembly.prepare(config)()


async def test_a_client_that_is_taken_out_keeps_none(rig, far):
    """1008 to the client, 1001 to the upstream; others' go on."""
    await rig.start(far.url, file={"clients": two()})
    ends = []
    for ask in (HERS, HERS.replace(ALICE, BOB)):
        peer = await connect(rig, ask)
        upstream = await far.call()
        assert b"token" not in await upstream.head()
        await upstream.send(SWITCH)
        assert await peer.head() == SWITCH
        ends.append((peer, upstream))
    (hers, her_upstream), (his, his_upstream) = ends
    without_alice(rig, far, requests=7)
    await hers.send(masked())
    await her_upstream.sees(masked())
    without_alice(rig, far)
    await hers.sees(close(1008))
    assert await hers.rest() == b""
    assert (await her_upstream.rest())[:2] == b"\x88\x82"
    await line_of(rig, "truncated", "unauthorized", close_code=1008)
    await end(his, his_upstream)
    await line_of(rig, "complete", number=1)


async def test_a_client_that_is_taken_out_meanwhile_gets_none(rig, far):
    await rig.start(far.url, file={"clients": two()})
    peer = await connect(rig, HERS)
    upstream = await far.call()
    await upstream.head()
    without_alice(rig, far)
    await upstream.send(SWITCH)
    refused(await answered(peer), 401, "unauthorized")
    assert await upstream.rest(1.0) == b""


async def test_one_that_would_be_one_too_many_is_not_opened(rig, far):
    """A call that goes on without its client has its place."""
    await rig.start(far.url, file={"clients": two(requests=1)})
    clients = rig.sidecar.service.assembly.inbound.clients
    alice = clients.identify(request_of("GET", b"/", (beside(ALICE),)))[0]
    clients.left(alice, 1)
    refused(await answered(await connect(rig, HERS)), 429, "rate_limited")
    assert not far.peers
    clients.left(alice, -1)
    await opened_by_her(rig, far)


async def opened_by_her(rig, far):
    peer = await connect(rig, HERS)
    upstream = await far.call()
    await upstream.head()
    await upstream.send(SWITCH)
    assert await peer.head() == SWITCH
    await end(peer, upstream)


@pytest.fixture(params=["client", "upstream"])
async def secured(request, rig, far, tmp_path):
    """TLS on that side: the upstream, and what its client is to trust."""
    authority, trusted = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(trusted)
    issued = authority.issue_cert("127.0.0.1")
    if request.param == "client":
        certificate, key = tmp_path / "certificate", tmp_path / "key"
        issued.cert_chain_pems[0].write_to_path(certificate)
        issued.private_key_pem.write_to_path(key)
        key.chmod(0o600)
        await rig.start(far.url, tls__certificate=str(certificate), tls__key=str(key))
        yield far, trusted
        return
    server, place = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), Far()
    issued.configure_cert(server)
    await place.start(server)
    await rig.start(place.url, tls=trusted)
    yield place, None
    await place.stop()


async def test_tls(rig, secured):
    """What TLS cannot do is to close one way only: the rest is the same."""
    place, told = secured
    client, upstream = await opened(rig, place, behind=text(b"first"), early=masked(b"early"), tls=told)
    await client.sees(text(b"first"))
    await upstream.sees(masked(b"early"))
    up, down = masked(os.urandom(1 << 20), 2), frame(2, os.urandom(1 << 20))
    await asyncio.gather(client.send(up), upstream.send(down), client.sees(down), upstream.sees(up))
    await end(client, upstream)
    await line_of(rig, "complete", close_code=1000, events=2)

    # Each of the two vanishes.
    client, upstream = await opened(rig, place, tls=told)
    client.leave("fin")
    assert await upstream.rest(1.0) == b""
    await line_of(rig, "cancelled", number=1)
    client, upstream = await opened(rig, place, tls=told)
    await upstream.send(text())
    upstream.leave("fin")
    await client.sees(text())
    assert await client.rest(1.0) == b""
    client.leave("fin")
    await line_of(rig, "truncated", "upstream_closed", number=2)

    # One that says its last word and is gone still has it delivered, and gets the answer if it waits.
    client, upstream = await opened(rig, place, tls=told)
    await client.send(close(mask=MASK))
    await upstream.sees(close(mask=MASK))
    await upstream.send(close())
    upstream.leave("fin")
    await client.sees(close())
    assert await client.rest(0.5) == b""
    client.leave("fin")
    await line_of(rig, "complete", close_code=1000, number=3)

    client, upstream = await opened(rig, place, tls=told)

    async def meanwhile():
        await client.sees(close(1012))
        assert (await upstream.rest())[:2] == b"\x88\x82"
        assert await client.rest() == b""

    assert not await drained(rig, 0.0, meanwhile)


@pytest.mark.parametrize("opcode", [CLOSE, 1])
async def test_many_frames_at_once_cost_little_each(rig, far, opcode):
    """A quarter of a million of the shortest frames there are."""
    client, upstream = await opened(rig, far)
    many = frame(opcode) * (1 << 18)
    await asyncio.gather(upstream.send(many), client.sees(many))
    upstream.leave("fin")
    client.leave("fin")
    expected = (
        {"events": 0, "close_code": 1005} if opcode == CLOSE else {"events": 1 << 18, "close_code": None}
    )
    line = await rig.line()
    assert {name: line[name] for name in expected} == expected
