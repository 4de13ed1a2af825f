"""Clients that leave, stall, cheat or ask for too much: what it costs the upstream, and what it cannot do to others."""

import asyncio
import hashlib
import socket
import tracemalloc

import orjson
import pytest

from sidecar.scripted import ScriptedProvider
from tests.faults.wire import (
    ANTHROPIC,
    ASK,
    CHAT,
    FORMATS,
    FRAMED,
    GEMINI_ARRAY,
    LAST,
    OLLAMA,
    OTHER,
    ClosedError,
    chunk,
    head,
    request,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PLAIN = request("POST", CHAT.target, b'{"model":"m"}')
LEAVE = pytest.mark.parametrize("how", ["fin", "rst"])


def refused(answer, status, kind):
    """An error of the sidecar's own, of that kind, and whole."""
    assert (answer.status, answer.header("slipstream-error"), answer.end) == (status, kind.encode(), "whole")


async def works(rig, client=None):
    """The sidecar still serves, and client and sidecar are in step."""
    client = client or await rig.connect()
    rig.provider.on("/works", lambda connection, received: connection.send(OK))
    answer = await client.whole("GET", "/works")
    assert (answer.status, bytes(answer.body), answer.end) == (200, b"ok", "whole")


# 23: leaving.


@LEAVE
@pytest.mark.parametrize(
    "sent", [b"", b"POST /v1/chat/compl", PLAIN[:60], PLAIN[:-5]], ids=["nothing", "line", "head", "body"]
)
@pytest.mark.both_shells
async def test_client_that_leaves_before_its_request_is_whole_costs_no_upstream_call(rig, how, sent):
    """23: gone before or inside its request -> the upstream never hears of it."""
    client = await rig.connect()
    if sent:
        await client.send(sent)
    client.leave(how)
    await works(rig)
    assert [received.target for received in rig.provider.requests] == ["/works"]


@LEAVE
@pytest.mark.parametrize("stage", ["before-head", "before-first-event", "mid-stream", "mid-event"])
@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.both_shells
@pytest.mark.asgi_every(3)
async def test_client_that_leaves_a_stream_ends_the_upstream_call(rig, form, stage, how):
    """23: gone in any phase of a stream -> the upstream connection is closed within a second; cancelled, once."""
    rig.script(form.target)
    client = await rig.connect()
    await client.send(form.sent)
    call = await rig.call()
    if stage != "before-head":
        await call.send(head(form.kind))
        answer = await client.answer()
    if stage in ("mid-stream", "mid-event"):
        sent = form.events[0] + (form.events[1][:9] if stage == "mid-event" else b"")
        await call.send(chunk(sent))
        await answer.until(len(sent))
    client.leave(how)
    await call.closed(within=1)
    line = await rig.line()
    assert line["outcome"] == "cancelled"
    assert line["bytes"] == (len(answer.body) if stage != "before-head" else 0)
    await works(rig)
    assert len(rig.sidecar.lines.requests) == 2


@LEAVE
@pytest.mark.parametrize("stage", ["before-head", "before-body", "mid-body"])
@pytest.mark.parametrize("sent", [PLAIN, request("GET", CHAT.target)], ids=["model", "download"])
@pytest.mark.both_shells
async def test_client_that_leaves_a_plain_request_ends_the_upstream_call(rig, sent, stage, how):
    """23: the same for answers that are no streams."""
    rig.script(CHAT.target)
    client = await rig.connect()
    await client.send(sent)
    call = await rig.call()
    if stage != "before-head":
        await call.send(head(b"application/json", framing=b"Content-Length: 100"))
        answer = await client.answer()
    if stage == "mid-body":
        await call.send(b'{"half":')
        await answer.until(8)
    client.leave(how)
    await call.closed(within=1)
    assert (await rig.line())["outcome"] == "cancelled"
    await works(rig)


@LEAVE
@pytest.mark.parametrize("framing", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
@pytest.mark.both_shells
async def test_client_that_leaves_its_upload_ends_the_upstream_call(rig, framing, how):
    """23: half an upload that streams past -> the upstream sees it break off, never a whole request."""
    rig.script("/v1/files", early=True)
    client = await rig.connect()
    await client.send(b"POST /v1/files HTTP/1.1\r\nHost: h\r\n" + framing + b"\r\n\r\n" + chunk(b"half"))
    call = await rig.call()
    client.leave(how)
    await call.closed(within=1)
    assert not call.received.complete
    assert (await rig.line())["outcome"] == "cancelled"
    await works(rig)


@LEAVE
@pytest.mark.both_shells
async def test_client_that_leaves_while_the_upstream_is_being_connected_to(rig, how):
    """23: gone during the connect -> the attempt ends too."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        filling = []
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
            filling.append(sock)
        await rig.start(f"http://127.0.0.1:{full.getsockname()[1]}")
        client = await rig.connect()
        await client.send(PLAIN)
        async with asyncio.timeout(5):
            while not len(rig.sidecar.service.assembly.hub):  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0)
        client.leave(how)
        assert (await rig.line())["outcome"] == "cancelled"
        for sock in filling:
            sock.close()


@LEAVE
async def test_client_that_leaves_takes_its_pipelined_requests_with_it(rig, how):
    """23: three requests in the pipe, gone during the first -> the others are never sent."""
    rig.script(CHAT.target)
    client = await rig.connect()
    await client.send(CHAT.sent * 3)
    call = await rig.call()
    await call.send(head(CHAT.kind), chunk(CHAT.events[0]))
    await (await client.answer()).until(5)
    client.leave(how)
    await call.closed(within=1)
    await works(rig)
    assert len(rig.provider.requests) == 2


@pytest.mark.parametrize("form", [CHAT, OTHER], ids=str)
async def test_half_closed_client_gets_a_whole_answer_or_none(rig, form):
    """23: FIN right after the request, still reading -> it may be served or be taken for gone; never half of both."""
    rig.script(form.target)
    client = await rig.connect()
    await client.send(form.sent)
    call = await rig.call()
    client.writer.write_eof()
    try:
        await call.send(head(form.kind), chunk(form.whole), LAST)
    except ConnectionError:
        pass
    call.done()
    try:
        answer = await client.answer()
    except ClosedError:
        assert (await rig.line())["outcome"] == "cancelled"
    else:
        assert (await answer.rest(), answer.end) == (form.whole, "whole")
        assert (await rig.line())["outcome"] == "complete"


# 25: not reading.


async def flood(call, most):
    """Send for as long as the sidecar takes it, at most so many bytes. Returns bytes and their hash."""
    block = CHAT.events[0] * 1000
    sent, seen = 0, hashlib.sha256()
    while sent < most and call.connection.writable and not call.received.closed.is_set():
        call.connection.write(chunk(block))
        sent += len(block)
        seen.update(block)
        # The event loop's turn: sockets take what they can before it is asked again.
        for _ in range(20):
            await asyncio.sleep(0)
    return sent, seen


async def deaf(rig, sent):
    """A client that takes as little as the kernel lets it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", rig.sidecar.port))
    await loop.sock_sendall(sock, sent)
    return sock


@pytest.mark.parametrize("form", [CHAT, OTHER], ids=str)
@pytest.mark.both_shells
async def test_client_that_stops_reading_pauses_the_upstream_and_gets_everything_when_it_reads_on(rig, form):
    """25: nobody reads -> the upstream is paused after a bounded number of bytes; reading on gives every byte."""
    await rig.start()
    rig.script(form.target)
    sock = await deaf(rig, form.sent)
    call = await rig.call()
    await call.send(head(form.kind))
    sent, seen = await flood(call, 64 << 20)
    assert not call.connection.writable, "the upstream was never paused"
    assert sent < 32 << 20
    reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 20)
    await reader.readuntil(b"\r\n\r\n")
    got, size = hashlib.sha256(), 0
    async with asyncio.timeout(20):
        while size < sent:
            wanted = int(await reader.readuntil(b"\r\n"), 16)
            got.update(await reader.readexactly(wanted))
            size += wanted
            assert await reader.readexactly(2) == b"\r\n"
    assert got.digest() == seen.digest()
    writer.close()
    await call.closed()


@pytest.mark.parametrize("form", [CHAT, OTHER], ids=str)
@pytest.mark.both_shells
async def test_client_that_never_reads_again_is_dropped_and_slows_nobody(rig, form):
    """25: not reading until the write timeout -> dropped, upstream closed, memory given back; another reader of
    the same sidecar is served meanwhile."""
    await rig.start(timeouts__client=0.3)
    rig.script(form.target)
    sock = await deaf(rig, form.sent)
    call = await rig.call()
    await call.send(head(form.kind))
    await flood(call, 64 << 20)
    await works(rig)
    await call.closed(within=5)
    line = await rig.line(1)
    assert line["outcome"] == "cancelled"
    sock.close()


async def test_client_that_never_reads_an_early_answer_holds_no_upload(rig):
    """25: an echo nobody reads -> the upload is paused as well, and given up at the write timeout."""
    await rig.start(timeouts__client=0.3)
    sock = await deaf(rig, b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    loop, sent = asyncio.get_running_loop(), 0
    try:
        async with asyncio.timeout(20):
            while sent < 256 << 20:
                await loop.sock_sendall(sock, chunk(b"x" * 65536))
                sent += 65536
    except ConnectionError:
        pass
    assert sent < 64 << 20
    assert (await rig.line())["outcome"] == "cancelled"
    sock.close()


# 26: slow and big.


@pytest.mark.parametrize(
    "sent", [b"", b"GET /", b"GET / HTTP/1.1\r\nHost: h\r\nX-A: "], ids=["nothing", "line", "head"]
)
async def test_unfinished_headers_are_408(rig, sent):
    """26: a connection that says nothing, or half a head -> 408 and closed; no upstream call."""
    await rig.start(timeouts__client=0.1)
    client = await rig.connect()
    if sent:
        await client.send(sent)
    answer = await client.answer()
    await answer.rest()
    refused(answer, 408, "request_timeout")
    assert await client.closed() == b""
    assert (await rig.line())["error"] == "request_timeout"
    assert rig.provider.accepted == 0


@pytest.mark.parametrize("first", [True, False])
async def test_dripping_headers_are_408(rig, first):
    """26: a byte now and then, on a new connection and on a used one -> the clock does not begin anew, 408."""
    await rig.start(timeouts__client=0.2)
    client = await rig.connect()
    if not first:
        await works(rig, client)
    await client.send(b"GET / HTTP/1.1\r\nHost: h\r\nX-Drip: ")
    answered = asyncio.ensure_future(client.answer())
    dripped = 0
    while not answered.done() and dripped < 100:
        client.writer.write(b"x")
        dripped += 1
        await asyncio.wait([answered], timeout=0.02)  # the fault's own pace
    assert dripped < 100
    answer = await answered
    await answer.rest()
    refused(answer, 408, "request_timeout")
    assert await client.closed() == b""


@pytest.mark.parametrize(
    "sent", [PLAIN[:-5], CHAT.sent[: CHAT.sent.index(b"\r\n\r\n") + 4]], ids=["half", "none"]
)
@pytest.mark.both_shells
async def test_body_that_stops_is_408_and_the_upstream_saw_nothing(rig, sent):
    """26: a model request whose body does not come -> 408 in the SDK's shape, no upstream call, closed."""
    await rig.start(timeouts__client=0.1)
    client = await rig.connect()
    await client.send(sent)
    answer = await client.answer()
    await answer.rest()
    refused(answer, 408, "request_timeout")
    assert orjson.loads(answer.body)["error"]["code"] == "request_timeout"
    assert await client.closed() == b""
    assert rig.provider.accepted == 0
    assert (await rig.line())["outcome"] == "refused"


@pytest.mark.both_shells
async def test_upload_that_stops_is_408_and_the_upstream_sees_it_break_off(rig):
    """26: an upload that streams past and stops -> 408, upstream closed."""
    await rig.start(timeouts__client=0.1)
    rig.script("/v1/files", early=True)
    client = await rig.connect()
    await client.send(b"POST /v1/files HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nhalf")
    call = await rig.call()
    answer = await client.answer()
    await answer.rest()
    refused(answer, 408, "request_timeout")
    await call.closed()
    assert await client.closed() == b""


BIG = {
    "one-line": b"X-Big: " + b"b" * 70_000 + b"\r\n",
    "together": b"".join(b"X-%d: " % n + b"b" * 1000 + b"\r\n" for n in range(100)),
    "tiny": b"".join(b"X-%d:\r\n" % n for n in range(20_000)),
    "name": b"b" * 70_000 + b": X\r\n",
}


@pytest.mark.parametrize("fields", BIG.values(), ids=BIG)
@pytest.mark.parametrize("apart", [True, False])
async def test_headers_over_the_limit_are_431(rig, fields, apart):
    """26: one header or all together over 64 KiB, in one go or in pieces -> 431, closed, no upstream call."""
    client = await rig.connect()
    whole = b"GET /thing HTTP/1.1\r\nHost: h\r\n" + fields + b"\r\n"
    answered = asyncio.ensure_future(client.answer())
    step = 1000 if apart else len(whole)
    for at in range(0, len(whole), step):
        await client.send(whole[at : at + step])
        for _ in range(10):
            await asyncio.sleep(0)
        if answered.done():  # it did not wait for the rest
            break
    answer = await answered
    await answer.rest()
    refused(answer, 431, "headers_too_large")
    await client.closed()
    assert rig.provider.accepted == 0
    assert (await rig.line())["error"] == "headers_too_large"


async def test_target_over_the_limit_is_refused(rig):
    """26: a path of 100 KB -> 431, no upstream call, and a log line of moderate size."""
    client = await rig.connect()
    await client.send(b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n")
    answer = await client.answer()
    await answer.rest()
    refused(answer, 431, "headers_too_large")
    assert rig.provider.accepted == 0
    await rig.line()
    assert len(rig.sidecar.lines.raw[-1]) < 4000


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.both_shells
async def test_body_over_what_is_kept_streams_past_unchanged(rig, framing):
    """26: a model request larger than what is kept for parsing -> not refused, forwarded byte for byte."""
    await rig.start(limits__body=1000)
    client = await rig.connect()
    body = orjson.dumps({"model": "m", "stream": True, "pad": "流" * 300_000})
    if framing == "length":
        await client.send(request("POST", CHAT.target, body))
    else:
        pieces = b"".join(chunk(body[i : i + 7777]) for i in range(0, len(body), 7777))
        await client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
            + pieces
            + LAST
        )
    answer = await client.answer()
    assert (await answer.rest()).endswith(b"data: [DONE]\n\n")
    assert (answer.status, answer.end) == (200, "whole")
    assert rig.provider.requests[0].body == body


@pytest.mark.both_shells
async def test_upload_of_64_mb_goes_through_in_little_memory(rig):
    """26: a body of any size on any other path -> counted and hashed alike, memory grows under 20 MB."""
    client = await rig.connect()
    block, count = hashlib.sha256(b"").digest() * 32768, 64
    tracemalloc.start()
    try:
        await client.send(
            b"POST /upload HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (len(block) * count)
        )
        seen = hashlib.sha256()
        for _ in range(count):
            async with asyncio.timeout(10):
                client.writer.write(block)
                await client.writer.drain()
            seen.update(block)
        answer = await client.answer()
        body = orjson.loads(await answer.rest())
        assert (body["bytes"], body["sha256"]) == (len(block) * count, seen.hexdigest())
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.both_shells
async def test_more_requests_than_the_limit_are_503_and_it_recovers(rig):
    """26: over `limits.requests` -> 503 with Retry-After; afterwards it serves again, on the same connection."""
    await rig.start(limits__requests=1)
    rig.script(CHAT.target)
    first, second = await rig.connect(), await rig.connect()
    await first.send(CHAT.sent)
    call = await rig.call()
    answer = await second.whole("POST", CHAT.target, ASK)
    refused(answer, 503, "overloaded")
    assert answer.header("retry-after")
    await call.send(head(CHAT.kind), chunk(CHAT.whole), LAST)
    call.done()
    assert await (await first.answer()).rest() == CHAT.whole
    await works(rig, second)


async def test_more_connections_than_the_limit_are_503_and_it_recovers(rig):
    """26: over `limits.connections` -> 503 and closed; when one has left, there is room again."""
    await rig.start(limits__connections=2)
    first, second, third = [await rig.connect() for _ in range(3)]
    answer = await third.answer()
    await answer.rest()
    refused(answer, 503, "overloaded")
    assert await third.closed() == b""
    await works(rig, first)
    second.close()
    await second.writer.wait_closed()
    async with asyncio.timeout(5):
        while len(rig.sidecar.service._server.connections) > 1:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)
    await works(rig)


# 27: requests that two parsers could read differently.

TAIL = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

CHEATS = {
    "te-gzip-chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + LAST,
    "te-chunked-gzip": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + LAST,
    "te-identity": POST + b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\n{}",
    "te-unknown": POST + b"Transfer-Encoding: xchunked\r\nContent-Length: 2\r\n\r\n{}",
    "te-twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + LAST,
    "te-twice-gzip": POST + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n" + LAST,
    "te-then-cow": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n\r\n" + LAST,
    "te-chunked-chunked": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + LAST,
    "te-empty": POST + b"Transfer-Encoding:\r\nContent-Length: 2\r\n\r\n{}",
    "te-quoted": POST + b'Transfer-Encoding: "chunked"\r\nContent-Length: 2\r\n\r\n{}',
    "te-parameter": POST + b"Transfer-Encoding: chunked;q=1\r\nContent-Length: 2\r\n\r\n{}",
    "te-space-before-colon": POST + b"Transfer-Encoding : chunked\r\n\r\n" + LAST,
    "te-vertical-tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + LAST,
    "te-folded": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + LAST,
    "te-on-http10": POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + LAST,
    "te-on-http10-kept": POST.replace(b"1.1", b"1.0")
    + b"Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"
    + LAST,
    "cl-and-te": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + LAST,
    "te-and-cl": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 50\r\n\r\n" + LAST,
    "cl-plus": POST + b"Content-Length: +1\r\n\r\n1",
    "cl-minus": POST + b"Content-Length: -1\r\n\r\n",
    "cl-hex": POST + b"Content-Length: 0x1\r\n\r\n1",
    "cl-underscore": POST + b"Content-Length: 1_0\r\n\r\n{        }",
    "cl-inner-space": POST + b"Content-Length: 1 0\r\n\r\n{        }",
    "cl-list": POST + b"Content-Length: 1, 2\r\n\r\n12",
    "cl-same-list": POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "cl-two": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n12",
    "cl-empty": POST + b"Content-Length:\r\n\r\n",
    "cl-huge": POST + b"Content-Length: 99999999999999999999999\r\n\r\n1",
    "cl-arabic": POST + "Content-Length: ٢\r\n\r\n{}".encode(),
    "cl-folded": POST + b"Content-Length:\r\n 2\r\n\r\n{}",
    "fold": POST + b"X-A: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
    "fold-tab": POST + b"X-A: a\r\n\tContent-Length: 99\r\nContent-Length: 2\r\n\r\n{}",
    "leading-fold": b"POST /v1/chat/completions HTTP/1.1\r\n Host: h\r\nContent-Length: 2\r\n\r\n{}",
    "bare-lf": POST + b"X-A: a\nContent-Length: 2\r\n\r\n{}",
    "bare-lf-line": b"POST /v1/chat/completions HTTP/1.1\nHost: h\r\nContent-Length: 2\r\n\r\n{}",
    "bare-lf-end": POST + b"Content-Length: 2\r\n\n{}",
    "bare-lf-all": b"POST /v1/chat/completions HTTP/1.1\nHost: h\nContent-Length: 2\n\n{}",
    "bare-cr": POST + b"X-A: a\rX-B: b\r\nContent-Length: 2\r\n\r\n{}",
    "nul-value": POST + b"X-A: a\x00b\r\nContent-Length: 2\r\n\r\n{}",
    "nul-name": POST + b"X\x00A: a\r\nContent-Length: 2\r\n\r\n{}",
    "space-in-name": POST + b"X A: a\r\nContent-Length: 2\r\n\r\n{}",
    "no-name": POST + b": a\r\nContent-Length: 2\r\n\r\n{}",
    "no-colon": POST + b"nonsense\r\nContent-Length: 2\r\n\r\n{}",
    "host-twice": POST + b"Host: other\r\nContent-Length: 2\r\n\r\n{}",
    "host-none": b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
    "method-odd": b"PO(ST /v1/chat/completions HTTP/1.1\r\nHost: h\r\n\r\n",
    "http09": b"GET /thing\r\n\r\n",
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http12": b"GET /thing HTTP/1.2.3\r\nHost: h\r\n\r\n",
    "http-none": b"GET /thing HTTP\r\nHost: h\r\n\r\n",
    "http-far": b"GET /thing HTTP/9.9\r\nHost: h\r\n\r\n",
    "tab": b"GET\t/thing\tHTTP/1.1\r\nHost: h\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "chunk-letters": CHUNKED + b"zz\r\n{}\r\n" + LAST,
    "chunk-minus": CHUNKED + b"-2\r\n{}\r\n" + LAST,
    "chunk-plus": CHUNKED + b"+2\r\n{}\r\n" + LAST,
    "chunk-hex": CHUNKED + b"0x2\r\n{}\r\n" + LAST,
    "chunk-underscore": CHUNKED + b"0_2\r\n{}\r\n" + LAST,
    "chunk-space": CHUNKED + b" 2\r\n{}\r\n" + LAST,
    "chunk-overflow": CHUNKED + b"10000000000000002\r\n{}\r\n" + LAST,
    "chunk-empty-size": CHUNKED + b"\r\n{}\r\n" + LAST,
    "chunk-lf": CHUNKED + b"2\n{}\r\n" + LAST,
    "chunk-cr": CHUNKED + b"2\r{}\r\n" + LAST,
    "chunk-no-crlf": CHUNKED + b"2\r\n{}0\r\n\r\n",
    "chunk-long": CHUNKED + b"2\r\n{}x\r\n" + LAST,
    "chunk-lf-after": CHUNKED + b"2\r\n{}\n0\r\n\r\n",
    "chunk-lf-in-extension": CHUNKED + b"2;a\nb\r\n{}\r\n" + LAST,
    "chunk-nul-in-extension": CHUNKED + b"2;a\x00\r\n{}\r\n" + LAST,
    "last-lf": CHUNKED + b"2\r\n{}\r\n0\n\n",
    "trailer-no-colon": CHUNKED + b"2\r\n{}\r\n0\r\nnonsense\r\n\r\n",
}


@pytest.mark.parametrize("cheat", CHEATS.values(), ids=CHEATS)
async def test_request_that_two_parsers_could_read_differently_is_400_and_the_upstream_saw_no_byte(
    rig, cheat
):
    """27: framing in doubt -> 400, closed, nothing of it or of what hides behind it reaches the upstream."""
    await rig.start(timeouts__client=2)
    client = await rig.connect()
    await client.send(cheat + TAIL)
    answer = await client.answer()
    await answer.rest()
    assert rig.provider.accepted == 0, "the upstream saw something"
    refused(answer, 400, "bad_request")
    assert await client.closed() == b"", "more was answered than was asked"
    assert rig.provider.accepted == 0


async def test_bad_chunk_in_a_body_that_came_well_so_far_is_400(rig):
    """27: a model request turns bad in its second packet -> 400 at once, the upstream saw nothing, closed."""
    client = await rig.connect()
    await client.send(CHUNKED + chunk(b'{"model":'))
    async with asyncio.timeout(5):
        while not rig.sidecar.service.assembly.front.active:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)
    await client.send(b"zz\r\n" + TAIL)
    answer = await client.answer()
    await answer.rest()
    refused(answer, 400, "bad_request")
    assert await client.closed() == b""
    assert rig.provider.accepted == 0


async def test_bad_chunk_in_an_upload_breaks_the_upload_off(rig):
    """27: an upload that streams past turns bad -> the upstream never sees a whole request; 400, closed."""
    rig.script("/v1/files", early=True)
    client = await rig.connect()
    await client.send(
        b"POST /v1/files HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"good")
    )
    call = await rig.call()
    await client.send(b"zz\r\n" + TAIL)
    answer = await client.answer()
    await answer.rest()
    refused(answer, 400, "bad_request")
    await call.closed()
    assert not call.received.complete
    assert await client.closed() == b""


@pytest.mark.parametrize("part", ["extension", "trailer", "trailers", "zeros"])
async def test_chunk_framing_without_measure_takes_no_memory(rig, part):
    """27: 16 MB of chunk extension, of trailers or of zeros -> refused or skipped, never stored, never forwarded."""
    await rig.start()
    client = await rig.connect()
    lead, block, end = {
        "extension": (b"2;", b"e" * 65536, b"\r\n{}\r\n" + LAST),
        "trailer": (chunk(b"{}") + b"0\r\nX-T: ", b"t" * 65536, b"\r\n\r\n"),
        "trailers": (chunk(b"{}") + b"0\r\n", (b"X-T: " + b"t" * 57 + b"\r\n") * 1024, b"\r\n"),
        "zeros": (b"", b"0" * 65536, b"2\r\n{}\r\n" + LAST),
    }[part]
    tracemalloc.start()
    try:
        await client.send(CHUNKED + lead)
        for _ in range(256):
            await client.send(block)
        await client.send(end)
        answer = await client.answer()
        await answer.rest()
        assert answer.status in (200, 400, 413, 431)
    except (ClosedError, ConnectionError):
        pass  # closed while it was still being sent: the answer may be lost to the reset
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 12 << 20  # the client's own buffers included
    assert [received.body for received in rig.provider.requests] in ([], [b"{}"])
    await works(rig)


@pytest.mark.parametrize(
    "trailer",
    [b"X-Sum: 1", b"Authorization: other", b"Host: other", b"Content-Length: 3", b"Transfer-Encoding: gzip"],
)
async def test_trailers_of_a_request_are_not_forwarded(rig, trailer):
    """27: trailers, also those that look like headers -> dropped, and no part of the next request on the connection,
    which may be somebody else's behind a shared proxy; framing among them may be refused instead."""
    client = await rig.connect()
    await client.send(CHUNKED + chunk(ASK) + b"0\r\n" + trailer + b"\r\n\r\n")
    answer = await client.answer()
    await answer.rest()
    if answer.status == 400 and trailer.startswith((b"Content-Length", b"Transfer-Encoding")):
        assert rig.provider.accepted == 0
        return
    (received,) = rig.provider.requests
    assert (answer.status, received.body) == (200, ASK)
    assert received.header("x-sum") is None
    assert received.header("authorization") is None
    assert received.header("host") == f"127.0.0.1:{rig.provider.port}".encode()
    assert received.header("content-length") == b"%d" % len(ASK)
    rig.provider.on("/works", lambda connection, received: connection.send(OK))
    try:
        after = await client.whole("GET", "/works")
    except (ClosedError, ConnectionError, RuntimeError):
        return  # closed: as sound as being in step
    assert (after.status, bytes(after.body)) == (200, b"ok")
    name = trailer.partition(b":")[0].decode()
    if name != "Host":
        assert rig.provider.requests[1].header(name) is None, (
            "the trailer became a header of the next request"
        )


@pytest.mark.parametrize("second", ["chunked", "length"])
async def test_trailers_reach_no_request_pipelined_in_the_same_packet(rig, second):
    """27: a request with trailers and the next one in one write -> the next one is refused, or has none of them."""
    client = await rig.connect()
    following = CHUNKED + chunk(ASK) + LAST if second == "chunked" else request("POST", CHAT.target, ASK)
    await client.send(CHUNKED + chunk(ASK) + b"0\r\nAuthorization: other\r\n\r\n" + following)
    await (await client.answer()).rest()
    try:
        await (await client.answer()).rest()
    except ClosedError:
        pass
    for received in rig.provider.requests:
        assert received.header("authorization") is None, "the trailer became a header of the next request"


@pytest.mark.both_shells
async def test_connection_header_of_a_request_takes_away_its_own_fields_only(rig):
    """27: `Connection:` nominates content-length, host, authorization and a field of its own -> only the last goes;
    the request arrives with its framing, its credential and its own upstream's name."""
    client = await rig.connect()
    fields = [
        (b"Connection", b"content-length, Host, Authorization, x-mine, transfer-encoding"),
        (b"X-Mine", b"1"),
        (b"Authorization", b"Bearer k"),
        (b"TE", b"trailers"),
        (b"Keep-Alive", b"timeout=1"),
        (b"Proxy-Authorization", b"Basic eA=="),
        (b"X-Yours", b"2"),
    ]
    answer = await client.whole("POST", CHAT.target, ASK, fields)
    assert answer.status == 200
    (received,) = rig.provider.requests
    names = {name.lower() for name, _ in received.headers}
    assert not names & {b"x-mine", b"te", b"keep-alive", b"proxy-authorization"}
    assert (received.header("authorization"), received.header("x-yours"), received.body) == (
        b"Bearer k",
        b"2",
        ASK,
    )
    assert received.header("host") == f"127.0.0.1:{rig.provider.port}".encode()
    await works(rig, client)


# 28: requests for somewhere else.

TARGETS = {
    "absolute": ("GET", b"http://%s/steal"),
    "absolute-tls": ("GET", b"https://%s/steal"),
    "absolute-case": ("GET", b"HTTP://%s/steal"),
    "absolute-userinfo": ("GET", b"http://x@%s/steal"),
    "absolute-bare": ("GET", b"http:/steal"),
    "absolute-no-host": ("GET", b"http:///steal"),
    "scheme-other": ("GET", b"file:///etc/passwd"),
    "slashes": ("GET", b"//%s/steal"),
    "slashes-three": ("GET", b"///%s/steal"),
    "backslash": ("GET", b"/\\%s/steal"),
    "backslashes": ("GET", b"\\\\%s\\steal"),
    "at": ("GET", b"@%s/steal"),
    "slash-at": ("GET", b"/@%s/steal"),
    "dot-at": ("GET", b".%s/steal"),
    "colon-at": ("GET", b":80@%s/steal"),
    "query-only": ("GET", b"?x=@%s"),
    "fragment": ("GET", b"/x#@%s/"),
    "fragment-first": ("GET", b"#@%s/"),
    "dots": ("GET", b"/../../%s/steal"),
    "dots-encoded": ("GET", b"/%%2e%%2e/%%2E%%2e%%2f%s/steal"),
    "dots-double": ("GET", b"/%%252e%%252e/%s/steal"),
    "slash-encoded": ("GET", b"/%%2f%%2f%s/steal"),
    "nul-encoded": ("GET", b"/%%00@%s/"),
    "crlf-encoded": ("GET", b"/x%%0d%%0aHost:%%20%s"),
    "semicolon": ("GET", b"/..;/%s/steal"),
    "star": ("OPTIONS", b"*"),
    "star-get": ("GET", b"*"),
    "connect": ("CONNECT", b"%s"),
    "connect-path": ("CONNECT", b"/%s"),
    "authority": ("GET", b"%s"),
    "empty-path": ("GET", b"http://%s"),
    "high-bytes": ("GET", b"/\xe4\xbd\xa0/%s"),
    "no-utf8": ("GET", b"/\xff\xfe/%s"),
    "delete": ("GET", b"/\x7f/%s"),
    "tab": ("GET", b"/\t%s"),
    "own": ("GET", b"/_slipstream/../%s"),
    "own-absolute": ("GET", b"http://%s/_slipstream/healthz"),
    "bracket": ("GET", b"/[::1]:80/%s"),
}


@pytest.mark.parametrize(("method", "target"), TARGETS.values(), ids=TARGETS)
async def test_target_for_another_host_is_refused_or_goes_to_the_configured_upstream(rig, method, target):
    """28: absolute-form, `//host`, `@host`, dot segments, `*`, CONNECT -> 4xx, or the configured upstream gets the
    target as it was written; the host that was asked for hears nothing, nor does it when the Host header names it."""
    async with ScriptedProvider() as elsewhere:
        place = f"127.0.0.1:{elsewhere.port}".encode()
        where = target % place if b"%s" in target else target
        await rig.start(timeouts__client=2)
        client = await rig.connect()
        await client.send(
            request(method, where, None, [(b"X-Scripted", b"{}"), (b"X-Forwarded-Host", place)], host=place)
        )
        answer = await client.answer(method)
        await answer.rest()
        assert elsewhere.accepted == 0
        if rig.provider.requests:
            (received,) = rig.provider.requests
            assert received.target.encode("latin-1") == where
            assert received.target.startswith("/")
            assert received.header("host") == f"127.0.0.1:{rig.provider.port}".encode()
        else:
            assert 400 <= answer.status < 500
            assert answer.header("slipstream-error")
        await works(rig)


@pytest.mark.parametrize(
    "host", [b"127.0.0.1:%d", b"a, 127.0.0.1:%d", b"x@127.0.0.1:%d", b"127.0.0.1:%d#", b"", b"\xff"]
)
@pytest.mark.both_shells
async def test_host_header_has_no_say_in_where_a_request_goes(rig, host):
    """28: whatever `Host` says -> 400, or the configured upstream with its own name."""
    async with ScriptedProvider() as elsewhere:
        place = host % elsewhere.port if b"%d" in host else host
        client = await rig.connect()
        await client.send(request("GET", "/v1/models", host=place))
        answer = await client.answer()
        await answer.rest()
        assert answer.status in (200, 400)
        assert elsewhere.accepted == 0
        for received in rig.provider.requests:
            assert received.header("host") == f"127.0.0.1:{rig.provider.port}".encode()


@pytest.mark.parametrize("name", [b"Upgrade: h2c, websocket", b"Upgrade: TLS/1.0"])
async def test_upgrade_is_refused_and_what_follows_it_is_not_served(rig, name):
    """28: a request to leave HTTP -> 501, nothing upstream, the bytes behind it are nobody's request."""
    client = await rig.connect()
    await client.send(
        b"GET /v1/realtime HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\n" + name + b"\r\n\r\n" + TAIL
    )
    answer = await client.answer()
    await answer.rest()
    refused(answer, 501, "upgrade_unsupported")
    assert await client.closed() == b""
    assert rig.provider.accepted == 0


async def test_h2c_offer_is_ignored_and_both_sides_stay_in_step(rig):
    """28: an offer of h2c, with a body, then another request -> served as HTTP/1.1, nothing of it forwarded."""
    client = await rig.connect()
    offer = [
        (b"Connection", b"Upgrade, HTTP2-Settings"),
        (b"Upgrade", b"h2c"),
        (b"HTTP2-Settings", b"AAMAAABk"),
    ]
    answer = await client.whole("POST", CHAT.target, ASK, offer)
    assert (answer.status, answer.end) == (200, "whole")
    (received,) = rig.provider.requests
    assert received.body == ASK
    assert not {b"upgrade", b"http2-settings", b"connection"} & {name.lower() for name, _ in received.headers}
    # aiohttp's parser loses what is pipelined behind such an offer, so the connection must not go on.
    assert answer.header("connection") == b"close"
    await works(rig)


# 29: manners of HTTP/1.1 and 1.0.


@pytest.mark.parametrize("target", [CHAT.target, "/upload"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.both_shells
async def test_expect_100_continue_is_answered_before_the_body_is_sent(rig, target, framing):
    """29: a client that waits for the 100 -> gets it, then its answer; the upstream is not asked to expect."""
    client = await rig.connect()
    field = b"Content-Length: %d" % len(ASK) if framing == "length" else b"Transfer-Encoding: chunked"
    await client.send(
        b"POST %b HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\n%b\r\n\r\n" % (target.encode(), field)
    )
    interim = await client.answer()
    assert (interim.status, interim.raw) == (100, b"HTTP/1.1 100 Continue\r\n\r\n")
    await client.send(ASK if framing == "length" else chunk(ASK) + LAST)
    answer = await client.answer()
    await answer.rest()
    assert (answer.status, answer.end) == (200, "whole")
    assert rig.provider.requests[0].body == ASK
    assert rig.provider.requests[0].header("expect") is None
    await works(rig, client)


@pytest.mark.parametrize("reason", ["target", "framing", "busy"])
@pytest.mark.parametrize("body", ["sent", "kept", "request"])
async def test_expect_100_continue_of_a_refused_request_gets_the_refusal_alone(rig, reason, body):
    """29: refused before the body is wanted -> the final answer without a 100 before it; then closed or in step,
    whether the client sends the body after all, keeps it, or sends one that looks like a request."""
    await rig.start(limits__requests=1)
    if reason == "busy":
        rig.script("/busy")
        other = await rig.connect()
        await other.send(request("GET", "/busy"))
        call = await rig.call()
    client = await rig.connect()
    target = b"http://h/x" if reason == "target" else b"/v1/chat/completions"
    more = b"Transfer-Encoding: chunked\r\n" if reason == "framing" else b""
    await client.send(
        b"POST "
        + target
        + b" HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: %d\r\n" % len(TAIL)
        + more
        + b"\r\n"
    )
    answer = await client.answer()
    await answer.rest()
    assert answer.status in (400, 503)
    if reason == "busy":
        await call.send(OK)
        call.done()
        await (await other.answer()).rest()
    try:
        if body != "kept":
            await client.send(TAIL if body == "request" else b"b" * len(TAIL))
        client.writer.write_eof()
    except (ConnectionError, OSError):
        pass
    assert await client.closed() == b"", "the body was answered"
    assert "/smuggled" not in [received.target for received in rig.provider.requests]


async def test_http10_expect_gets_no_100(rig):
    """29: HTTP/1.0 knows no 100 -> none is sent."""
    client = await rig.connect()
    await client.send(b"POST /upload HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}")
    answer = await client.answer()
    await answer.rest()
    assert (answer.status, await client.closed()) == (200, b"")


async def test_10000_pipelined_requests_are_bounded_and_answered_in_order(rig):
    """29: ten thousand requests at once -> one at a time goes upstream, few are held, all are answered in order."""
    count, first = 10_000, asyncio.Event()

    async def numbered(connection, received):
        if received.query == "0":
            await first.wait()
        await connection.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"
            % (len(received.query), received.query.encode())
        )

    rig.provider.on("/n", numbered)
    client = await rig.connect()
    writing = asyncio.ensure_future(
        client.send(b"".join(b"GET /n?%d HTTP/1.1\r\nHost: h\r\n\r\n" % n for n in range(count)))
    )
    async with asyncio.timeout(10):
        await rig.provider.wait_for(1)
    for _ in range(200):
        await asyncio.sleep(0)
    (connection,) = rig.sidecar.service._server.connections
    assert len(rig.provider.requests) == 1
    assert len(connection._messages) < 1000
    first.set()
    for n in range(count):
        answer = await client.answer()
        assert (answer.status, await answer.rest()) == (200, b"%d" % n)
    await writing
    assert rig.provider.peak_active == 1
    assert rig.provider.accepted == 1


async def test_pipelined_requests_behind_a_body_and_a_stream_are_each_their_own(rig):
    """29: different requests in one write -> answered in order, bodies where they belong."""
    rig.script(CHAT.target)
    client = await rig.connect()
    await client.send(
        CHAT.sent
        + request("POST", "/upload", b"abc")
        + request("HEAD", "/v1/models")
        + request("GET", "/v1/models")
    )
    call = await rig.call()
    await call.send(head(CHAT.kind), chunk(CHAT.whole), LAST)
    call.done()
    assert await (await client.answer()).rest() == CHAT.whole
    assert orjson.loads(await (await client.answer()).rest())["bytes"] == 3
    assert (await client.answer("HEAD")).status == 200
    assert (await (await client.answer()).rest()).startswith(b"{")


@pytest.mark.parametrize("form", [*FRAMED, GEMINI_ARRAY], ids=str)
async def test_http10_client_gets_a_stream_that_ends_with_the_connection(rig, form):
    """29: HTTP/1.0 -> no chunks, events as they come, closed at the end."""
    rig.script(form.target)
    client = await rig.connect()
    await client.send(form.sent.replace(b"HTTP/1.1", b"HTTP/1.0"))
    call = await rig.call()
    await call.send(head(form.kind))
    answer = await client.answer()
    assert not answer.chunked
    size = 0
    for event in form.events:
        await call.send(chunk(event))
        size += len(event)
        await answer.until(size)
    await call.send(LAST)
    call.done()
    assert (await answer.rest(), answer.end) == (form.whole, "whole")


@pytest.mark.parametrize("form", [CHAT, ANTHROPIC, OLLAMA, OTHER, GEMINI_ARRAY], ids=str)
async def test_http10_client_can_tell_a_truncated_stream(rig, form):
    """29: cut where the end of the connection is the end of the body -> error frame, and a reset instead of a FIN."""
    rig.script(form.target)
    client = await rig.connect()
    await client.send(form.sent.replace(b"HTTP/1.1", b"HTTP/1.0"))
    call = await rig.call()
    await call.send(head(form.kind), chunk(form.events[0]))
    answer = await client.answer()
    await answer.until(len(form.events[0]))
    call.close()
    body = await answer.rest()
    assert body.startswith(form.events[0] + form.lost)
    assert answer.end == "reset"


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("wish", [b"", b"Connection: keep-alive\r\n", b"Connection: close\r\n"])
async def test_connection_is_kept_or_closed_as_version_and_wish_say(rig, version, wish):
    """29: HTTP/1.0 with and without keep-alive, HTTP/1.1 with and without close -> kept only where it may be."""
    rig.provider.on("/works", lambda connection, received: connection.send(OK))
    client = await rig.connect()
    await client.send(b"GET /works HTTP/" + version + b"\r\nHost: h\r\n" + wish + b"\r\n")
    answer = await client.answer()
    assert (await answer.rest(), answer.end) == (b"ok", "whole")
    if b"close" in wish or (version == b"1.0" and not wish):
        assert await client.closed() == b""
    else:
        if version == b"1.0":
            assert answer.header("connection") == b"keep-alive"
        await works(rig, client)


# 30: bodies that are not what they seem.

BODIES = {
    "invalid": b'{"model": "m", "stream": tr',
    "empty": b"",
    "array": b"[1, 2]",
    "string": b'"stream"',
    "null": b"null",
    "nan": b'{"model":"m","stream":true,"temperature":NaN}',
    "infinity": b'{"model":"m","top_p":-Infinity}',
    "duplicate": b'{"model":"a","stream":false,"model":"b","stream":true,"messages":[]}',
    "surrogate": b'{"model":"\\ud800","stream":true,"messages":[{"content":"\\udfff"}]}',
    "raw-surrogate": b'{"model":"\xed\xa0\x80"}',
    "bom": b'\xef\xbb\xbf{"model":"m"}',
    "not-utf8": b'{"model":"\xff\xfe"}',
    "utf16": '{"model":"m"}'.encode("utf-16"),
    "bigint": b'{"model":"m","seed":123456789012345678901234567890,"n":1e999}',
    "types": b'{"model":{"a":[]},"stream":"yes","messages":7,"stream_options":3}',
    "nul": b'{"model":"\x00"}\x00',
    "spaces": b' \t\r\n{ "model" : "m" } \n',
    "comments": b'{"model":"m" /* hm */}',
    "cjk": '{"model":"模型 🌊","messages":[{"content":"你好\u2028"}]}'.encode(),
    "deep": b'{"model":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep-objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "wide": b'{"model":"m","a":[' + b"1," * 500_000 + b"1]}",
}


@pytest.mark.parametrize("form", [form for form in FORMATS if form.body], ids=str)
@pytest.mark.both_shells
async def test_body_that_does_not_parse_is_forwarded_byte_for_byte(rig, form):
    """30: invalid, deep, NaN, duplicate keys, lone surrogates, BOM, no JSON at all -> the upstream gets these bytes
    and the client the upstream's answer, whatever it is; nothing is refused on the way."""
    rig.script(form.target)
    client = await rig.connect()
    for number, (name, body) in enumerate(BODIES.items()):
        await client.send(request(form.method, form.target, body))
        call = await rig.call()
        assert call.received.body == body, name
        reply = b'{"error":"' + name.encode() + b'"}'
        await call.send(
            head(b"application/json", status=b"400 Bad Request", framing=b"Content-Length: %d" % len(reply)),
            reply,
        )
        call.done()
        answer = await client.answer()
        assert (answer.status, await answer.rest()) == (400, reply), name
        assert (await rig.line(number))["status"] == 400
