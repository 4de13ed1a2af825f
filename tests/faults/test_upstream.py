"""Upstreams that fail: what the client is told, what it keeps of the answer, and what is never done about it."""

import asyncio
import socket
import ssl
import tracemalloc
import zlib

import pytest
import trustme

from sidecar.scripted import ScriptedProvider
from tests.faults.wire import (
    ANTHROPIC,
    ASK,
    CHAT,
    FORMATS,
    FRAMED,
    GEMINI_ARRAY,
    LAST,
    MARKED,
    OLLAMA,
    OTHER,
    ClosedError,
    chunk,
    head,
    request,
)

pytestmark = pytest.mark.both_shells

GET = b"GET /thing HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def refused(answer, status, kind):
    """An error of the sidecar's own, of that kind, and whole."""
    assert (answer.status, answer.header("slipstream-error"), answer.end) == (status, kind.encode(), "whole")


async def works(rig, client=None):
    """The sidecar still serves, and client and sidecar are in step."""
    client = client or await rig.connect()
    rig.provider.on("/works", lambda connection, received: connection.send(OK))
    answer = await client.whole("GET", "/works")
    assert (answer.status, bytes(answer.body), answer.end) == (200, b"ok", "whole")


# 9, 10: no answer.


def closed_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.mark.parametrize("form", [CHAT, ANTHROPIC, OTHER], ids=str)
async def test_refused_connection_is_502(rig, form):
    """9: nothing listens -> 502 in the shape the client's SDK knows."""
    await rig.start(f"http://127.0.0.1:{closed_port()}")
    answer = await (await rig.connect()).whole(form.method, form.target, form.body)
    refused(answer, 502, "upstream_unreachable")
    kind = b"application/json" if form.body else b"application/problem+json"
    assert answer.header("content-type") == kind
    assert (await rig.line())["outcome"] == "upstream_error"


@pytest.mark.parametrize("host", ["nowhere.invalid", f"{'a' * 64}.invalid"], ids=["unknown", "no-host-name"])
async def test_unknown_host_is_502(rig, host, monkeypatch):
    """9: the name has no address, or cannot be one -> 502."""

    async def getaddrinfo(name, *rest, **named):
        assert name == host
        name.encode("idna")
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    await rig.start(f"http://{host}:80")
    client = await rig.connect()
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    refused(await client.whole("POST", CHAT.target, ASK), 502, "upstream_unreachable")


@pytest.fixture
async def tls_provider():
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with ScriptedProvider(ssl=context) as running:
        yield running, trusting


async def test_tls_upstream_streams(rig, tls_provider):
    """9, the other way round: a certificate that is trusted -> the answer."""
    provider, trusting = tls_provider
    await rig.start(provider.url, tls=trusting)
    answer = await (await rig.connect()).whole("POST", CHAT.target, ASK)
    assert (answer.status, answer.end) == (200, "whole")
    assert bytes(answer.body).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("fault", ["untrusted", "wrong-name", "no-tls"])
async def test_tls_failure_is_502_and_no_byte_of_the_request_is_sent(rig, tls_provider, fault):
    """9: unknown authority, another's certificate, no TLS at all -> 502; the upstream got no request."""
    provider, trusting = tls_provider
    url = provider.url
    if fault == "wrong-name":
        url = url.replace("127.0.0.1", "localhost")
    elif fault == "no-tls":
        url = rig.provider.url.replace("http:", "https:")
    await rig.start(url, tls=ssl.create_default_context() if fault == "untrusted" else trusting)
    client = await rig.connect()
    refused(await client.whole("POST", CHAT.target, ASK), 502, "upstream_unreachable")
    assert not provider.requests
    assert not rig.provider.requests
    assert (await rig.line())["error"] == "upstream_unreachable"


async def test_upstream_that_accepts_no_connection_is_504_at_the_connect_timeout(rig):
    """9: the SYN is never answered -> an answer within the connect timeout, and nothing left of the attempt."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        filling = []
        for _ in range(4):  # the accept queue is full, and SYNs are dropped
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
            filling.append(sock)
        await rig.start(f"http://127.0.0.1:{full.getsockname()[1]}", timeouts__connect=0.2)
        answer = await (await rig.connect()).whole("POST", CHAT.target, ASK)
        refused(answer, 504, "upstream_timeout")
        for sock in filling:
            sock.close()


async def test_silent_tls_handshake_ends_at_the_connect_timeout(rig):
    """9: a listener that never says a word of TLS -> an answer within the connect timeout, connection closed."""
    gone = asyncio.Event()

    async def silent(reader, writer):
        await reader.read(1 << 16)  # the hello
        assert await reader.read() == b""
        writer.close()
        gone.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    await rig.start(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeouts__connect=0.2)
    refused(await (await rig.connect()).whole("POST", CHAT.target, ASK), 504, "upstream_timeout")
    async with asyncio.timeout(5):
        await gone.wait()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    "partial", [b"", b"HTTP/1.1 200 OK\r\nContent-Ty", b"HTTP/1.1 102 Processing\r\n\r\n"]
)
@pytest.mark.parametrize("form", [CHAT, OTHER], ids=str)
async def test_silence_before_the_head_is_504_at_the_header_timeout(rig, form, partial):
    """10: accepted, then nothing, half a head, or an interim one -> 504, upstream connection closed."""
    await rig.start(timeouts__head=0.1)
    rig.script(form.target)
    client = await rig.connect()
    await client.send(form.sent)
    call = await rig.call()
    await call.send(partial)
    answer = await client.answer()
    await answer.rest()
    refused(answer, 504, "upstream_timeout")
    await call.closed()
    assert (await rig.line())["outcome"] == "timeout"
    await works(rig, client)


async def test_head_that_drips_is_504_at_the_header_timeout(rig):
    """10: a byte of the head every now and then -> the timeout is for the head, not for the next byte."""
    await rig.start(timeouts__head=0.15)
    rig.script(CHAT.target)
    client = await rig.connect()
    await client.send(CHAT.sent)
    call = await rig.call()
    await call.send(b"HTTP/1.1 200 OK\r\nX-Drip: ")
    sent = 0
    while not call.received.closed.is_set() and sent < 100:
        call.connection.write(b"x")
        sent += 1
        await asyncio.sleep(0.02)  # the fault's own pace
    assert sent < 100, "the clock began anew with every byte"
    answer = await client.answer()
    await answer.rest()
    refused(answer, 504, "upstream_timeout")


@pytest.mark.parametrize("form", FRAMED, ids=str)
async def test_silence_in_mid_stream_is_an_error_frame_at_the_stall_timeout(rig, form):
    """10: an event, then nothing -> everything sent, the error frame, aborted."""
    await rig.start(timeouts__stall=0.1)
    rig.script(form.target)
    client = await rig.connect()
    await client.send(form.sent)
    call = await rig.call()
    await call.send(head(form.kind), chunk(form.events[0]))
    answer = await client.answer()
    body = await answer.rest()
    assert body.startswith(form.events[0] + form.lost)
    assert answer.end == "cut"
    await call.closed()
    line = await rig.line()
    assert (line["outcome"], line["error"]) == ("timeout", "upstream_stalled")


# 11, 12, 13: half an answer.


def closed_off(form, sent, body):
    """What follows `sent`, once the half event is closed off."""
    assert body.startswith(sent), "something the upstream sent was lost"
    after = body[len(sent) :]
    at = after.find(form.lost)
    assert at >= 0, after
    assert not after[:at].strip(b"\r\n"), after
    return after[:at], after[at:]


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("framing", [b"Transfer-Encoding: chunked", b""], ids=["chunked", "until-close"])
@pytest.mark.parametrize("form", FRAMED, ids=str)
async def test_connection_lost_in_mid_event_closes_it_off_and_reports_it(rig, form, framing, how):
    """11: FIN or RST inside an event, inside a character -> nothing lost, the half event closed off, error frame,
    connection aborted, truncated. A format without terminal marker that ends with FIN is whole by its own rules."""
    rig.script(form.target)
    client = await rig.connect()
    await client.send(form.sent)
    call = await rig.call()
    flow = "🌊".encode()
    event = form.events[1] if form is OTHER else form.events[0]
    cut = event.index(flow) + 2 if flow in event else len(event) // 2
    before = form.events[0]
    sent = before + event[:cut]
    await call.send(head(form.kind, framing=framing))
    await call.send(chunk(sent) if framing else sent)
    answer = await client.answer()
    await answer.until(len(sent))
    call.close() if how == "fin" else call.reset()
    body = await answer.rest()
    line = await rig.line()
    if form is OTHER and not framing and how == "fin":
        assert (body, answer.end, line["outcome"]) == (sent, "whole", "complete")
        return
    closing, frame = closed_off(form, sent, body)
    assert frame.endswith(b"\n")
    if form is OLLAMA:
        assert closing == b"\n"
    else:
        assert closing in (b"\n\n", b"\r\n\r\n")
        assert frame.endswith(b"\n\n")
    assert answer.end == "cut"
    assert b"[DONE]" not in body
    assert line["outcome"] == "truncated"


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_nothing_sent_before_the_connection_was_lost_is_lost(rig, how):
    """11: 25 KB, less than any window, and then the loss, all at once, nobody waits for anyone -> every byte arrives first."""
    rig.script(CHAT.target)
    client = await rig.connect()
    await client.send(CHAT.sent)
    call = await rig.call()
    sent = CHAT.events[0] * 400 + b"data: {"
    call.connection.write(head(CHAT.kind) + chunk(sent))
    call.close() if how == "fin" else call.reset()
    answer = await client.answer()
    closed_off(CHAT, sent, await answer.rest())
    assert answer.end == "cut"


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_lost_gemini_array_is_aborted_and_nothing_is_written_into_it(rig, how):
    """11: a JSON array has no place for an error -> the upstream's bytes alone, and an aborted connection."""
    form = GEMINI_ARRAY
    rig.script(form.target)
    client = await rig.connect()
    await client.send(form.sent)
    call = await rig.call()
    await call.send(head(form.kind), chunk(form.events[0]))
    answer = await client.answer()
    await answer.until(len(form.events[0]))
    call.close() if how == "fin" else call.reset()
    assert await answer.rest() == form.events[0]
    assert answer.end == "cut"
    assert (await rig.line())["outcome"] == "truncated"


@pytest.mark.parametrize("framing", [b"Transfer-Encoding: chunked", b""], ids=["chunked", "until-close"])
@pytest.mark.parametrize("form", MARKED, ids=str)
async def test_clean_end_without_the_terminal_marker_is_truncation(rig, form, framing):
    """12: the message ends properly, the answer does not -> error frame, aborted; a clean EOF is not completion."""
    rig.script(form.target)
    client = await rig.connect()
    await client.send(form.sent)
    call = await rig.call()
    sent = form.events[0]
    await call.send(head(form.kind, framing=framing), chunk(sent) + LAST if framing else sent)
    call.done() if framing else call.close()
    answer = await client.answer()
    body = await answer.rest()
    assert answer.end == "cut"
    if form is GEMINI_ARRAY:
        assert body == sent
    else:
        assert body.startswith(sent + form.lost)
    line = await rig.line()
    assert (line["outcome"], line["error"]) == ("truncated", "upstream_incomplete")


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("form", [CHAT, ANTHROPIC, OLLAMA], ids=str)
async def test_connection_lost_after_the_terminal_marker_is_no_truncation(rig, form, how):
    """12: the last chunk is missing, but the marker was there -> nothing is missing, so nothing is reported."""
    rig.script(form.target)
    client = await rig.connect()
    await client.send(form.sent)
    call = await rig.call()
    await call.send(head(form.kind), chunk(form.whole))
    answer = await client.answer()
    await answer.until(len(form.whole))
    call.close() if how == "fin" else call.reset()
    assert (await answer.rest(), answer.end) == (form.whole, "whole")
    assert (await rig.line())["outcome"] == "complete"


async def test_truncated_tls_is_truncation(rig, tls_provider):
    """12: TLS cut without its goodbye, in an answer that lasts until close -> truncated like any other."""
    provider, trusting = tls_provider
    rig.provider = provider
    rig.script(CHAT.target)
    await rig.start(provider.url, tls=trusting)
    client = await rig.connect()
    await client.send(CHAT.sent)
    call = await rig.call()
    await call.send(head(CHAT.kind, framing=b""), CHAT.events[0])
    answer = await client.answer()
    await answer.until(len(CHAT.events[0]))
    call.reset()
    assert (await answer.rest()).startswith(CHAT.events[0] + CHAT.lost)
    assert answer.end == "cut"


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize(("target", "body"), [("/v1/chat/completions", b'{"model":"m"}'), ("/file", None)])
async def test_short_content_length_is_an_aborted_connection(rig, target, body, how):
    """13: fewer bytes than promised -> those bytes, then an abort: the client can count too."""
    rig.script(target)
    client = await rig.connect()
    await client.send(request("POST" if body else "GET", target, body))
    call = await rig.call()
    await call.send(head(b"application/json", framing=b"Content-Length: 100"), b'{"half":')
    answer = await client.answer()
    await answer.until(8)
    call.close() if how == "fin" else call.reset()
    assert (await answer.rest(), answer.end) == (b'{"half":', "cut")
    assert (await rig.line())["outcome"] == "truncated"
    await works(rig)


@pytest.mark.parametrize(
    "excess", [b"!", OK, b"\r\n", b"\x00" * 70000], ids=["byte", "answer", "newline", "much"]
)
@pytest.mark.parametrize("when", ["at-once", "later"])
async def test_bytes_after_content_length_are_dropped_with_the_connection(rig, when, excess):
    """13: more bytes than promised, with the answer or after it -> dropped, and never anyone's answer."""
    rig.script("/thing")
    client = await rig.connect()
    await client.send(GET)
    first = await rig.call()
    promised = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst"
    await first.send(promised + (excess if when == "at-once" else b""))
    answer = await client.answer()
    assert (await answer.rest(), answer.end) == (b"first", "whole")
    if when == "later":
        first.connection.write(excess)
        # Its end at the provider is the proof that the sidecar saw the bytes.
        async with asyncio.timeout(5):
            await first.connection.wait_closed()
    first.done()
    await client.send(GET)
    second = await rig.call()
    assert second.connection is not first.connection
    await second.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond")
    second.done()
    answer = await client.answer()
    assert (await answer.rest(), answer.end) == (b"second", "whole")


# 14: answers that two parsers could read differently.

NONSENSE = {
    "cl-with-te": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "te-with-cl": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "two-lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "length-list": b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello!",
    "length-plus": b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
    "length-minus": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
    "length-hex": b"HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\nhello",
    "length-underscore": b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\nhellohello",
    "length-huge": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\nhello",
    "length-empty": b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nhello",
    "te-gzip": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "te-unknown": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: cow\r\n\r\nhello",
    "te-twice": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "te-chunked-twice": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "te-on-http10": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "te-vertical-tab": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: \x0bchunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "nul-in-value": b"HTTP/1.1 200 OK\r\nX-A: a\x00b\r\nContent-Length: 0\r\n\r\n",
    "cr-in-value": b"HTTP/1.1 200 OK\r\nX-A: a\rX-B: b\r\nContent-Length: 0\r\n\r\n",
    "nul-in-name": b"HTTP/1.1 200 OK\r\nX\x00A: a\r\nContent-Length: 0\r\n\r\n",
    "space-before-colon": b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello",
    "space-in-name": b"HTTP/1.1 200 OK\r\nX A: a\r\nContent-Length: 0\r\n\r\n",
    "no-colon": b"HTTP/1.1 200 OK\r\nnonsense\r\nContent-Length: 0\r\n\r\n",
    "no-name": b"HTTP/1.1 200 OK\r\n: value\r\nContent-Length: 0\r\n\r\n",
    "leading-fold": b"HTTP/1.1 200 OK\r\n folded\r\nContent-Length: 0\r\n\r\n",
    "nul-in-reason": b"HTTP/1.1 200 O\x00K\r\nContent-Length: 0\r\n\r\n",
    "no-http": b"SSH-2.0-OpenSSH_9.9\r\n",
    "http09": b"<html>hello</html>\r\n\r\n",
    "http2": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "status-of-two": b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
    "status-of-four": b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
    "status-zero": b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n",
    "tls-alert": b"\x15\x03\x01\x00\x02\x02\x46",
    "switching-unasked": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x05hello",
    "switching-bare": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
}


@pytest.mark.parametrize("form", [CHAT, OTHER], ids=str)
@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE)
async def test_answer_that_is_no_valid_http_is_502_and_its_connection_closed(rig, nonsense, form):
    """14: what two parsers could read differently -> 502, nothing of it relayed, the connection is not used again."""
    rig.script(form.target)
    await rig.start(timeouts__head=2)
    client = await rig.connect()
    await client.send(form.sent)
    call = await rig.call()
    await call.send(nonsense)
    answer = await client.answer()
    await answer.rest()
    refused(answer, 502, "upstream_protocol")
    async with asyncio.timeout(5):
        await call.connection.wait_closed()
    await works(rig, client)


@pytest.mark.parametrize(
    "bad",
    [
        b"zz\r\nhello",
        b"-5\r\nhello",
        b"5 \r\r\nhello",
        b"0x5\r\nhello\r\n",
        b"fffffffffffffffff\r\n",
        b"5\r\nhello5\r\n",
        b"5;\x00\r\nhello\r\n",
        b"5\nhello\n",
    ],
    ids=["letters", "minus", "spaces", "hex", "overflow", "no-crlf", "nul", "bare-lf"],
)
async def test_bad_chunk_in_mid_stream_is_an_error_frame_and_an_abort(rig, bad):
    """14: the head was fine, a chunk is not -> what was sound before it, error frame, both connections closed."""
    rig.script(CHAT.target)
    await rig.start(timeouts__stall=5)
    client = await rig.connect()
    await client.send(CHAT.sent)
    call = await rig.call()
    await call.send(head(CHAT.kind), chunk(CHAT.events[0]))
    answer = await client.answer()
    await answer.until(len(CHAT.events[0]))
    await call.send(bad)
    body = await answer.rest()
    assert body.startswith(CHAT.events[0])
    assert CHAT.lost in body
    assert answer.end == "cut"
    async with asyncio.timeout(5):
        await call.connection.wait_closed()
    assert (await rig.line())["error"] == "upstream_protocol"


@pytest.mark.parametrize(
    "value",
    [b"caf\xe9", "née 🌊".encode(), b'a\tb "c" \\ ;=,', b""],
    ids=["latin1", "utf8", "marks", "empty"],
)
async def test_odd_but_valid_header_values_come_through_as_they_are(rig, value):
    """14, the other way round: bytes beyond ASCII, tabs, nothing -> the same bytes, name in the same case, in order."""
    rig.script("/thing")
    client = await rig.connect()
    await client.send(GET)
    call = await rig.call()
    await call.send(
        b"HTTP/1.1 200 \r\nx-oDD: 1\r\nX-Odd: ",
        value,
        b"\r\nSet-Cookie: a\r\nset-cookie: b\r\nContent-Length: 0\r\n\r\n",
    )
    call.done()
    answer = await client.answer()
    names = [(name, got) for name, got in answer.headers if name.lower() in (b"x-odd", b"set-cookie")]
    sent = [(b"x-oDD", b"1"), (b"X-Odd", value), (b"Set-Cookie", b"a"), (b"set-cookie", b"b")]
    assert names == answer.spelt(sent)
    assert answer.reason == answer.phrased(b"")


async def test_hop_by_hop_headers_of_an_answer_end_here_and_framing_cannot_be_nominated_away(rig):
    """14: `Connection:` names its own fields and, of ill will, the framing -> the former go, the latter stays."""
    rig.script("/thing")
    client = await rig.connect()
    await client.send(GET)
    call = await rig.call()
    await call.send(
        b"HTTP/1.1 200 OK\r\nConnection: X-Mine, content-length, keep-alive\r\nX-Mine: secret\r\nKeep-Alive: timeout=5\r\n"
        b"Proxy-Authenticate: Basic\r\nTrailer: X-T\r\nX-Yours: 1\r\nContent-Length: 5\r\n\r\nhello"
    )
    call.done()
    answer = await client.answer()
    assert (await answer.rest(), answer.end) == (b"hello", "whole")
    names = {name.lower() for name, _ in answer.headers}
    assert not names & {b"x-mine", b"keep-alive", b"proxy-authenticate", b"trailer"}
    assert {b"x-yours", b"content-length"} <= names
    await works(rig, client)


# 15, 16: framings.


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
@pytest.mark.parametrize("form", FORMATS, ids=str)
async def test_answer_delimited_by_close_streams(rig, form, version):
    """15: no length, no chunks, HTTP/1.0 -> every event comes as it is sent, and the end is clean."""
    rig.script(form.target)
    client = await rig.connect()
    await client.send(form.sent)
    call = await rig.call()
    await call.send(head(form.kind, framing=b"").replace(b"HTTP/1.1", version))
    answer = await client.answer()
    assert answer.version == b"HTTP/1.1"
    size = 0
    for event in form.events:
        await call.send(event)
        size += len(event)
        await answer.until(size)
    call.close()
    assert (await answer.rest(), answer.end) == (form.whole, "whole")
    await works(rig, client)


INTERIM = [
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 102 Processing\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nContent-Length: 7\r\n\r\n",
]


@pytest.mark.parametrize(
    "interim", [*([one] for one in INTERIM), INTERIM * 3], ids=["100", "102", "103", "many"]
)
@pytest.mark.parametrize("pieces", ["at-once", "apart", "bytes"])
async def test_interim_heads_are_not_the_answer(rig, interim, pieces):
    """15: 100, 102, 103 before the final head -> final status, none of the interim fields, connection kept."""
    rig.script("/thing")
    client = await rig.connect()
    await client.send(GET)
    call = await rig.call()
    final = b"HTTP/1.1 201 Created\r\nX-Final: 1\r\nContent-Length: 2\r\n\r\nok"
    whole = b"".join(interim) + final
    for part in {"at-once": [whole], "apart": [*interim, final], "bytes": [bytes([byte]) for byte in whole]}[
        pieces
    ]:
        await call.send(part)
        await asyncio.sleep(0)
    call.done()
    answer = await client.answer()
    assert (answer.status, answer.reason, await answer.rest()) == (201, b"Created", b"ok")
    assert (answer.header("x-final"), answer.header("link")) == (b"1", None)
    await works(rig, client)
    assert rig.provider.requests[0].connection == rig.provider.requests[1].connection


async def test_endless_interim_heads_are_502(rig):
    """15: 102 for ever -> bounded, 502."""
    rig.script("/thing")
    client = await rig.connect()
    await client.send(GET)
    call = await rig.call()
    sent = await until_closed(call, INTERIM[1] * 100, most=8 << 20)
    assert sent < 8 << 20
    answer = await client.answer()
    await answer.rest()
    refused(answer, 502, "upstream_protocol")


async def until_closed(call, block, most):
    """Send blocks until the sidecar closes, at most so many bytes; return how many went out."""
    sent = 0
    try:
        while sent < most and not call.received.closed.is_set():
            await call.send(block)
            sent += len(block)
            await asyncio.sleep(0)
    except ConnectionError:
        pass
    return sent


async def test_trailers_are_dropped(rig):
    """15: trailers after the last chunk -> the client gets an end without them, the connection stays usable."""
    rig.script(CHAT.target)
    client = await rig.connect()
    await client.send(CHAT.sent)
    call = await rig.call()
    await call.send(
        head(CHAT.kind, b"Trailer: X-Sum"), chunk(CHAT.whole), b"0\r\nX-Sum: 42\r\nContent-Length: 3\r\n\r\n"
    )
    call.done()
    answer = await client.answer()
    assert (await answer.rest(), answer.end) == (CHAT.whole, "whole")  # the reader would not take a trailer
    await works(rig, client)


@pytest.mark.parametrize(
    ("lead", "block"),
    [
        (b"0\r\n", b"X-T: " + b"t" * 1000 + b"\r\n"),
        (b"0\r\nX-T: ", b"t" * 1000),
        (b"5;", b"e" * 1000),
        (b"5;", b"a=b;" * 250),
        (b"", b"0" * 1000),
    ],
    ids=["trailers", "trailer", "extension", "extensions", "zeros"],
)
async def test_framing_without_end_is_cut_off(rig, lead, block):
    """15: endless trailers, chunk extensions or digits of a size -> the upstream is closed after a bounded number of
    bytes, the client keeps what was body."""
    rig.script(OTHER.target)
    client = await rig.connect()
    await client.send(OTHER.sent)
    call = await rig.call()
    await call.send(head(OTHER.kind), chunk(OTHER.events[0]))
    answer = await client.answer()
    await answer.until(len(OTHER.events[0]))
    await call.send(lead)
    most = 16 << 20
    assert await until_closed(call, block * 50, most) < most
    assert (await answer.rest()).startswith(OTHER.events[0])
    assert answer.end == "cut"
    await works(rig)


BODILESS = [
    ("GET", b"204 No Content", b""),
    ("GET", b"304 Not Modified", b""),
    ("HEAD", b"200 OK", b""),
    ("POST", b"204 No Content", b""),
    ("HEAD", b"404 Not Found", b""),
    ("GET", b"204 No Content", b"Content-Length: 5\r\n"),
    ("GET", b"304 Not Modified", b"Content-Length: 5\r\n"),
    ("HEAD", b"200 OK", b"Content-Length: 5\r\n"),
    ("HEAD", b"200 OK", b"Transfer-Encoding: chunked\r\n"),
    ("GET", b"304 Not Modified", b"Transfer-Encoding: chunked\r\n"),
    ("GET", b"204 No Content", b"Transfer-Encoding: chunked\r\n"),
]


@pytest.mark.parametrize(("method", "status", "field"), BODILESS)
@pytest.mark.parametrize(
    "body", [b"", b"hello", OK, b"5\r\nhello\r\n0\r\n\r\n"], ids=["none", "bytes", "answer", "chunks"]
)
async def test_answer_that_has_no_body_stays_in_step_even_when_it_has_one(rig, method, status, field, body):
    """16: 204, 304 and HEAD with and without body bytes -> no body for the client, and the next answer on its
    connection is the next answer."""
    rig.script("/thing")
    client = await rig.connect()
    # A connection that is in use already: what is left on it would be the next one's.
    await works(rig, client)
    await client.send(request(method, "/thing", b"{}" if method == "POST" else None))
    call = await rig.call()
    await call.send(b"HTTP/1.1 ", status, b"\r\nX-Kept: 1\r\n", field, b"\r\n", body)
    answer = await client.answer("HEAD")
    assert (answer.status, answer.header("x-kept")) == (int(status[:3]), b"1")
    call.done()
    await works(rig, client)
    await works(rig, client)
    if body:
        assert rig.provider.requests[-1].connection != rig.provider.requests[1].connection


# 17 to 20: what is relayed and never acted upon.

STATUSES = [
    201,
    202,
    206,
    299,
    300,
    301,
    304,
    307,
    308,
    *range(400, 419),
    421,
    422,
    424,
    425,
    426,
    428,
    429,
    431,
    451,
    499,
    500,
    501,
    502,
    503,
    504,
    505,
    507,
    511,
    520,
    522,
    524,
    529,
    598,
    599,
]


@pytest.mark.parametrize("form", [CHAT, ANTHROPIC, OTHER], ids=str)
async def test_every_status_is_relayed_with_body_and_headers_and_never_retried(rig, form):
    """17: 429, 529, every 4xx and 5xx -> status, reason, body, Retry-After and rate-limit headers unchanged; the
    upstream was asked once."""
    rig.script(form.target)
    client = await rig.connect()
    for number, status in enumerate(STATUSES):
        await client.send(form.sent)
        call = await rig.call()
        text = '{"error":{"message":"太多了 🌊"}}'.encode()
        fields = [
            (b"Retry-After", b"7"),
            (b"x-ratelimit-remaining-requests", b"0"),
            (b"anthropic-ratelimit-tokens-reset", b"2026-01-01T00:00:00Z"),
            (b"x-should-retry", b"true"),
            (b"Location", b"/elsewhere"),
        ]
        lines = b"".join(b"%b: %b\r\n" % field for field in fields)
        body = b"" if status == 304 else text
        await call.send(
            b"HTTP/1.1 %d Some Reason\r\n%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (status, lines, len(body), body)
        )
        call.done()
        answer = await client.answer()
        assert (answer.status, answer.reason) == (status, answer.phrased(b"Some Reason"))
        assert (await answer.rest(), answer.end) == (body, "whole")
        assert set(answer.spelt(fields)) <= set(answer.headers)
        assert answer.header("slipstream-error") is None
        line = await rig.line(number)
        assert (line["status"], line["outcome"]) == (
            status,
            "upstream_error" if status >= 400 else "complete",
        )
        assert len(rig.provider.requests) == number + 1


@pytest.mark.parametrize("body", [None, ASK])
async def test_idle_connection_that_the_upstream_closed_is_replaced(rig, body):
    """18: the pooled connection has a FIN on it -> the request goes out on a new one, once."""
    rig.script("/thing")
    client = await rig.connect()
    await works(rig, client)
    (connection,) = rig.provider._open
    connection.close()  # the sidecar's loop has not seen it when the next request comes in
    await client.send(request("POST" if body else "GET", "/thing", body))
    call = await rig.call()
    await call.send(OK)
    call.done()
    answer = await client.answer()
    assert (answer.status, await answer.rest()) == (200, b"ok")
    assert (rig.provider.accepted, len(rig.provider.requests)) == (2, 2)


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("body", [None, ASK], ids=["GET", "POST"])
@pytest.mark.parametrize("reused", [True, False])
async def test_request_that_may_have_been_processed_is_not_sent_again(rig, reused, body, how):
    """18: the upstream has read the request and closes without a word -> it may have done the work: a POST is
    reported as 502 and never sent a second time. A GET on a reused connection may go again, once."""
    rig.script("/thing")
    client = await rig.connect()
    if reused:
        await works(rig, client)
    await client.send(request("POST" if body else "GET", "/thing", body))
    call = await rig.call()
    call.close() if how == "fin" else call.reset()
    if not body and reused:
        answered = asyncio.ensure_future(client.answer())
        await asyncio.wait(
            [answered, again := asyncio.ensure_future(rig.call())], return_when=asyncio.FIRST_COMPLETED
        )
        if again.done():
            again.result().close()
        again.cancel()
        answer = await answered
    else:
        answer = await client.answer()
    await answer.rest()
    refused(answer, 502, "upstream_closed")
    assert rig.uncalled()
    await works(rig, client)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("form", [CHAT, OTHER], ids=str)
async def test_redirect_to_another_host_is_relayed_and_never_followed(rig, form, status):
    """19: a redirect elsewhere -> relayed as it is; elsewhere never heard of it."""
    async with ScriptedProvider() as elsewhere:
        rig.script(form.target)
        client = await rig.connect()
        await client.send(form.sent)
        call = await rig.call()
        place = f"{elsewhere.url}/v1/steal".encode()
        await call.send(b"HTTP/1.1 %d Go\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % (status, place))
        call.done()
        answer = await client.answer()
        assert (answer.status, answer.header("location")) == (status, place)
        await answer.rest()
        await works(rig, client)
        assert elsewhere.accepted == 0


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 200000", b"Transfer-Encoding: chunked"], ids=["length", "chunked"]
)
@pytest.mark.parametrize("then", ["finishes", "leaves", "waits"])
async def test_full_answer_before_the_request_body_is_finished_is_relayed(rig, framing, then):
    """20: the upstream answers while the upload goes on -> the client has the answer before it has sent the rest,
    and whatever it does then, nothing of it is taken for another request."""
    rig.script("/v1/files", early=True)
    client = await rig.connect()
    await client.send(b"POST /v1/files HTTP/1.1\r\nHost: h\r\n" + framing + b"\r\n\r\n")
    part = b"p" * 100_000
    await client.send(chunk(part) if b"chunked" in framing else part)
    call = await rig.call()
    await call.send(b"HTTP/1.1 413 Too Much\r\nContent-Length: 3\r\n\r\nbig")
    answer = await client.answer()
    assert (answer.status, await answer.rest(), answer.end) == (413, b"big", "whole")
    if then == "leaves":
        client.close()
    elif then == "finishes":
        rest = b"GET /smuggled HTTP/1.1\r\n\r\n".ljust(100_000, b"p")
        await client.send(chunk(rest) + LAST if b"chunked" in framing else rest)
        # Closed or in step: both are sound. A second answer to one request is not.
        rig.provider.on("/works", lambda connection, received: connection.send(OK))
        try:
            await client.send(request("GET", "/works"))
            second = await client.answer()
        except (ClosedError, ConnectionError):
            pass
        else:
            assert (second.status, await second.rest()) == (200, b"ok")
    async with asyncio.timeout(5):
        await call.connection.wait_closed()
    await works(rig)
    assert "/smuggled" not in [received.target for received in rig.provider.requests]


async def test_stream_that_starts_while_the_body_is_still_coming_is_relayed_as_it_comes(rig):
    """20: both directions at once -> each byte goes through while the other direction is open."""
    rig.script("/both", early=True)
    client = await rig.connect()
    await client.send(b"POST /both HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
    call = await rig.call()
    await call.send(head(b"application/octet-stream"))
    answer = await client.answer()
    for turn in range(1, 20):
        await client.send(chunk(b"up"))
        async with asyncio.timeout(5):
            while call.received.size < 2 * turn:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0)
        await call.send(chunk(b"down"))
        await answer.until(4 * turn)
    await client.send(LAST)
    assert await call.received.read() == b"up" * 19
    await call.send(LAST)
    call.done()
    assert (await answer.rest(), answer.end) == (b"down" * 19, "whole")
    await works(rig)


# 21, 22


@pytest.mark.parametrize(
    "block", [b"X-H: " + b"h" * 1000 + b"\r\n", b"h" * 1000, b"a:\r\n" * 250], ids=["many", "one", "tiny"]
)
async def test_10_mb_of_headers_are_502_long_before(rig, block):
    """21: headers without end -> 502 after a bounded number of bytes."""
    rig.script("/thing")
    client = await rig.connect()
    await client.send(GET)
    call = await rig.call()
    await call.send(b"HTTP/1.1 200 OK\r\nX-Lead: ")
    assert await until_closed(call, block * 50, most=10_000_000) < 10_000_000
    answer = await client.answer()
    await answer.rest()
    refused(answer, 502, "upstream_protocol")


@pytest.mark.parametrize("form", [CHAT, GEMINI_ARRAY, OLLAMA], ids=str)
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.asgi_every(3)
async def test_compressed_bomb_is_passed_raw_in_little_memory(rig, form, stream):
    """21: 200 MB in 200 KB -> the same 200 KB, unpacked nowhere: memory grows under 20 MB."""
    coder = zlib.compressobj(9, wbits=31)
    bomb = b"".join(coder.compress(b"\n" * (1 << 20)) for _ in range(200)) + coder.flush()
    rig.script(form.target)
    client = await rig.connect()
    tracemalloc.start()
    try:
        await client.send(form.sent if stream else request("POST", form.target, b'{"stream":false}'))
        call = await rig.call()
        kind = form.kind if stream else b"application/json"
        await call.send(
            head(kind, b"Content-Encoding: gzip", framing=b"Content-Length: %d" % len(bomb)), bomb
        )
        call.done()
        answer = await client.answer()
        assert (await answer.rest(), answer.end) == (bomb, "whole")
        await rig.line()
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", [CHAT, ANTHROPIC, OLLAMA], ids=str)
async def test_error_inside_a_200_is_relayed_and_counted_as_the_upstreams(rig, form):
    """22: the provider's own error event ends the stream -> its bytes, no frame of ours, `upstream_error`."""
    rig.script(form.target)
    client = await rig.connect()
    await client.send(form.sent)
    call = await rig.call()
    error = {
        "chat": b'data: {"error":{"type":"server_error","message":"no"}}\n\n',
        "anthropic": b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"no"}}\n\n',
        "ollama": b'{"error":"no"}\n',
    }[form.name]
    await call.send(head(form.kind), chunk(form.events[0]), chunk(error), LAST)
    call.done()
    answer = await client.answer()
    assert await answer.rest() == form.events[0] + error
    assert (await rig.line())["outcome"] == "upstream_error"


@pytest.mark.parametrize("finish", ["length", "refusal"])
@pytest.mark.parametrize("stream", [True, False])
async def test_unfinished_or_refused_answer_is_still_a_whole_one(rig, finish, stream):
    """22: `length` and refusal -> relayed unchanged, complete."""
    body = b'{"model":"m","stream":%s}' % (b"true" if stream else b"false")
    fields = [(b"X-Scripted", b'{"finish":"%s"}' % finish.encode())]
    client = await rig.connect()
    answer = await client.whole("POST", CHAT.target, body, fields)
    assert (answer.status, answer.end) == (200, "whole")
    assert (await rig.line())["outcome"] == "complete"
