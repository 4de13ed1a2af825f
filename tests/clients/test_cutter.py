"""The cutter itself: what it lets through, and where it cuts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from sidecar.scripted import Connection, Received, ScriptedProvider

from .cutter import Cut, Cutter, Page

EVENTS = (
    b": hello\n\n",
    b"retry: 1\n\n",
    b"data: 0\n\n",
    b"event: e\ndata: 1\nid: 1\n\n",
    b"data: 2\r\n\r\n",
)
BODY = b"".join(EVENTS)
LINES = b'{"n":0}\n\n{"n":1}\n{"n":2}\n'
REQUEST = b"POST /it HTTP/1.1\r\nHost: test\r\nLast-Event-ID: s:1\r\nContent-Length: 2\r\n\r\n{}"


async def chunked(connection: Connection, received: Received) -> None:
    """Chunks that have nothing to do with events."""
    await connection.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    for at in range(0, len(BODY), 7):
        piece = BODY[at : at + 7]
        await connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
    await connection.send(b"0\r\n\r\n")


async def sized(connection: Connection, received: Received) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n"
    await connection.send(head % len(BODY) + BODY)


async def closing(connection: Connection, received: Received) -> None:
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + BODY)
    connection.close()


async def ndjson(connection: Connection, received: Received) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nContent-Length: %d\r\n\r\n"
    await connection.send(head % len(LINES) + LINES)


FRAMINGS = {"chunked": chunked, "sized": sized, "closing": closing}


async def ask(cutter: Cutter) -> tuple[bytes, str]:
    """Everything that comes, and how it ended."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(cutter.url.rpartition(":")[2]))
    data = b""
    end = "fin"
    async with asyncio.timeout(5):
        writer.write(REQUEST)
        try:
            while more := await reader.read(1 << 16):
                data += more
        except ConnectionResetError:
            end = "rst"
        writer.close()
        try:
            await writer.wait_closed()
        except ConnectionResetError:
            pass
    return data, end


def body(raw: bytes) -> bytes:
    """Without head and framing; what is cut off may lack its end."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    if b"chunked" not in head:
        return rest
    found = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        found += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return found


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize(
    ("cut", "left", "events"),
    [
        (Cut(), b"", 0),
        (Cut(0, into=10), BODY[:10], 0),
        (Cut(1), b"".join(EVENTS[:3]), 1),
        (Cut(1, into=9), b"".join(EVENTS[:3]) + b"event: e\n", 1),
        (Cut(1, brink=True), b"".join(EVENTS[:4])[:-1], 1),
        (Cut(2, brink=True), BODY[:-1], 2),
        (Cut(3), BODY, 3),
        (Cut(body=0), b"", 0),
        (Cut(body=33), BODY[:33], 1),
        (Cut(body=len(BODY)), BODY, 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("how", ["rst", "fin"])
async def test_where_it_cuts(
    provider: ScriptedProvider, framing: str, cut: Cut, left: bytes, events: int, how: Any
) -> None:
    provider.on("/it", FRAMINGS[framing])
    async with Cutter(provider.port, [replace(cut, how=how, hasty=True)]) as cutter:
        raw, end = await ask(cutter)
        assert raw.startswith(b"HTTP/1.1 200 OK\r\n")
        assert body(raw) == left
        assert b"\r\n0\r\n" not in raw
        assert end == how
        (exchange,) = cutter.exchanges
        assert (exchange.over, exchange.events, bytes(exchange.body)) == ("cut", events, left)


@pytest.mark.parametrize(
    ("cut", "left"), [(Cut(2), b'{"n":0}\n\n{"n":1}\n'), (Cut(1, into=4), b'{"n":0}\n\n{"n')]
)
async def test_lines_are_events(provider: ScriptedProvider, cut: Cut, left: bytes) -> None:
    provider.on("/it", ndjson)
    async with Cutter(provider.port, [replace(cut, hasty=True)]) as cutter:
        raw, _ = await ask(cutter)
        assert body(raw) == left


async def test_before_the_head(provider: ScriptedProvider) -> None:
    provider.on("/it", chunked)
    async with Cutter(provider.port, [Cut(head=True)]) as cutter:
        assert await ask(cutter) == (b"", "rst")
        assert cutter.exchanges[0].status == 200


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_what_is_not_cut_goes_through_as_it_is(provider: ScriptedProvider, framing: str) -> None:
    provider.on("/it", FRAMINGS[framing])
    async with Cutter(provider.port, [Cut(99)]) as cutter:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(cutter.url.rpartition(":")[2]))
        for number in range(1 if framing == "closing" else 3):
            writer.write(REQUEST)
            raw = b""
            while not ended(raw, framing) and (more := await reader.read(1 << 16)):
                raw += more
            assert body(raw) == BODY
            assert cutter.exchanges[number].over == "whole"
        writer.close()
        await writer.wait_closed()
        assert cutter.connections == 1
        assert provider.accepted == 1
        received = provider.requests[0]
        assert (received.method, received.target, received.body) == ("POST", "/it", b"{}")
        assert cutter.exchanges[0].headers["last-event-id"] == "s:1"


def ended(raw: bytes, framing: str) -> bool:
    return (
        raw.endswith(b"\r\n0\r\n\r\n") if framing == "chunked" else framing == "sized" and raw.endswith(BODY)
    )


async def test_a_cut_waits_until_the_client_has_seen_it_all(provider: ScriptedProvider) -> None:
    provider.on("/it", chunked)
    async with Cutter(provider.port, [2]) as cutter:
        asking = asyncio.create_task(ask(cutter))
        await cutter.until(lambda: cutter.delivered == 2)
        cutter.confirm()
        assert cutter.exchanges[0].over is None
        cutter.confirm()
        raw, end = await asking
        assert body(raw) == b"".join(EVENTS[:4])
        assert end == "rst"


async def test_a_silent_cut_leaves_the_other_side_open(provider: ScriptedProvider) -> None:
    provider.on("/it", chunked)
    async with Cutter(provider.port, [Cut(1, silent=True, hasty=True)]) as cutter:
        await ask(cutter)
        assert provider.connections == 1
    await provider.wait_until(lambda: provider.connections == 0)


async def test_a_page_of_its_own(provider: ScriptedProvider) -> None:
    async with Cutter(provider.port, [], {"/page.html": Page("text/html", b"<p>")}) as cutter:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(cutter.url.rpartition(":")[2]))
        writer.write(
            b"GET /page.html HTTP/1.1\r\nHost: test\r\n\r\nGET /favicon.ico HTTP/1.1\r\nHost: test\r\n\r\n"
        )
        assert (await reader.readuntil(b"<p>")).startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
        writer.close()
        await writer.wait_closed()
    assert cutter.exchanges == []
    assert provider.accepted == 0
