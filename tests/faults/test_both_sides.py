"""Faults that sit between the two sides: what one connection is owed must not come from another's answer."""

import asyncio

import orjson
import pytest

pytestmark = pytest.mark.both_shells

ASK = b'{"model":"m","messages":[]}'


async def connect(sidecar):
    return await asyncio.open_connection("127.0.0.1", sidecar.port)


def request(target, body=b"", *fields):
    head = [b"POST %b HTTP/1.1" % target, b"Host: h", b"Content-Length: %d" % len(body), *fields]
    return b"\r\n".join([*head, b"", body])


async def answer(reader):
    """(head, body) of an answer with a Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return head, await reader.readexactly(length)


def told(body, kind=b"application/json"):
    return b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (kind, len(body), body)


async def test_a_count_that_fits_no_number_disturbs_nothing(provider, sidecar):
    """An upstream that reports more tokens than 64 bits hold -> its answer, one line, and a connection in step."""
    body = orjson.dumps({"model": "m", "usage": {"input_tokens": 2**64 - 1, "cache_read_input_tokens": 5}})

    async def lie(connection, received):
        await connection.send(told(body))

    provider.on("/v1/messages", lie)
    reader, writer = await connect(sidecar)
    for number in range(2):
        writer.write(request(b"/v1/messages", ASK))
        assert (await answer(reader))[1] == body
        line = await sidecar.lines.request(number)
        assert (line["outcome"], line["input_tokens"]) == ("complete", None)
    writer.close()


async def test_nothing_is_written_into_a_stream_of_declared_length(provider, start_sidecar):
    """Early keepalives on, then an event stream with a Content-Length -> exactly its bytes."""
    sidecar = await start_sidecar(provider.url, keepalive__early=0.05, keepalive__interval=0.02)
    first, last = b'data: {"choices":[]}\n\n', b"data: [DONE]\n\n"

    async def sized(connection, received):
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n"
        await connection.send(head % len(first + last) + first)
        # Another stream of the same sidecar gets keepalives meanwhile: the clock has had its time.
        while not any(line["keepalives"] > 2 for line in sidecar.lines.requests):
            await sidecar.lines.request(len(sidecar.lines.requests))
        await connection.send(last)

    provider.on("/v1/chat/completions", sized)
    reader, writer = await connect(sidecar)
    writer.write(request(b"/v1/chat/completions", b'{"model":"m","stream":true,"messages":[]}'))
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"content-length" in head.lower()
    other_reader, other = await connect(sidecar)
    script = orjson.dumps({"first": 0.3})
    other.write(request(b"/v1/completions", b'{"model":"m","stream":true}', b"X-Scripted: " + script))
    assert await reader.readexactly(len(first + last)) == first + last
    assert b": keepalive" in await other_reader.readuntil(b"[DONE]\n\n\r\n0\r\n\r\n")
    writer.close()
    other.close()


async def test_a_connection_with_an_unsent_body_is_not_used_again(provider, sidecar):
    """An answer before most of the request was written -> the next request goes another way."""
    body = b'{"model":"m","messages":["' + b"x" * (12 << 20) + b'"]}'

    async def early(connection, received):
        connection.pause_reading()
        await connection.send(told(b"{}"))

    provider.on("/v1/chat/completions", early, early=True)
    reader, writer = await connect(sidecar)
    writer.write(request(b"/v1/chat/completions", body))
    assert (await answer(reader))[1] == b"{}"
    second_reader, second = await connect(sidecar)
    second.write(request(b"/v1/embeddings", b'{"model":"m","input":"x"}'))
    assert b"200 OK" in (await answer(second_reader))[0]
    numbers = [received.connection for received in provider.requests]
    assert len(set(numbers)) == 2
    writer.close()
    second.close()


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"chunked, chunked"])
async def test_own_paths_are_checked_like_all_others(sidecar, coding):
    """A request that two proxies could frame differently -> 400 on the sidecar's own paths as well."""
    reader, writer = await connect(sidecar)
    head = b"GET /_slipstream/healthz HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: %b\r\n\r\n0\r\n\r\n"
    writer.write(head % coding)
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 400 ")
    writer.close()


@pytest.mark.parametrize(("method", "status", "asked"), [(b"GET", b"200", 3), (b"POST", b"502", 2)])
async def test_only_what_changes_nothing_is_sent_again(provider, sidecar, method, status, asked):
    """The upstream closes a kept connection on reading the next request -> a GET goes again, a POST does not."""
    seen = 0

    async def once(connection, received):
        nonlocal seen
        seen += 1
        if seen == 2:
            connection.close()
        else:
            await connection.send(told(b"{}"))

    provider.on("/thing", once)
    reader, writer = await connect(sidecar)
    for expected in (b"200", status):
        writer.write(b"%b /thing HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n" % method)
        head, _ = await answer(reader)
        assert head.split()[1] == expected
    assert seen == asked
    line = await sidecar.lines.request(1)
    assert line["retries"] == asked - 2
    writer.close()


async def test_the_phase_that_did_not_end_is_in_the_line(provider, start_sidecar):
    """A silent upstream -> the line says that the time went into waiting for its head."""
    sidecar = await start_sidecar(provider.url, timeouts__head=0.1)
    reader, writer = await connect(sidecar)
    script = orjson.dumps({"fault": "no_head"})
    writer.write(request(b"/v1/chat/completions", ASK, b"X-Scripted: " + script))
    assert b"504" in (await answer(reader))[0]
    line = await sidecar.lines.request()
    assert line["phases"]["upstream_ms"] >= 100
    assert line["phases"]["connect_ms"] is not None
    writer.close()
