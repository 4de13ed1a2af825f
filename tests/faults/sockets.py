"""Both ends of a WebSocket in a test's own hands, as bytes; see `wire`."""

import asyncio
import contextlib
import socket
from typing import Any

from tests.core.test_websocket import frame
from tests.faults.wire import GUARD, RESET

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
MASK = b"\x37\xfa\x21\x3d"
ASK = (
    b"GET /v1/realtime?model=planted-model&secret=planted-query HTTP/1.1\r\n"
    b"Host: sidecar.test\r\n"
    b"Upgrade: websocket\r\n"
    b"authorization: Bearer planted-key\r\n"
    b"Connection: keep-alive, Upgrade\r\n"
    b"OpenAI-Beta: realtime=v1\r\n"
    b"Slipstream-Feature: voice\r\n"
    b"Sec-WebSocket-Key: " + KEY + b"\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
    b"Origin: https://app.test\r\n"
    b"sec-websocket-extensions: permessage-deflate; client_max_window_bits\r\n"
    b"Sec-WebSocket-Protocol: realtime, other\r\n\r\n"
)
SWITCH = (
    b"HTTP/1.1 101 Web Socket Protocol Handshake\r\n"
    b"X-First: 1\r\n"
    b"upgrade: WebSocket\r\n"
    b"X-Twice: a\r\n"
    b"X-Twice: b\r\n"
    b"CONNECTION: upgrade\r\n"
    b"Sec-WebSocket-Accept: not even right\r\n"
    b"Set-Cookie: a=b\r\n\r\n"
)


def text(payload: bytes = b"hello", **more: Any) -> bytes:
    """A text frame as servers send it."""
    return frame(1, payload, **more)


def masked(payload: bytes = b"hello", opcode: int = 1, **more: Any) -> bytes:
    """A frame as clients send it."""
    return frame(opcode, payload, mask=MASK, **more)


def close(code: int = 1000, reason: bytes = b"", mask: bytes | None = None) -> bytes:
    return frame(8, code.to_bytes(2, "big") + reason, mask=mask)


class Peer:
    """One end of a connection to the sidecar."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def head(self) -> bytes:
        async with asyncio.timeout(GUARD):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def exactly(self, size: int) -> bytes:
        async with asyncio.timeout(GUARD):
            return await self.reader.readexactly(size)

    async def sees(self, data: bytes) -> None:
        """That, and nothing else, comes next."""
        assert await self.exactly(len(data)) == data

    async def send(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))
        async with asyncio.timeout(GUARD):
            await self.writer.drain()

    async def rest(self, within: float = GUARD) -> bytes:
        """What comes until the sidecar has closed, by whichever way."""
        found = b""
        async with asyncio.timeout(within):
            with contextlib.suppress(ConnectionError):
                while part := await self.reader.read(1 << 18):
                    found += part
        return found

    async def closed(self, within: float = 1.0) -> None:
        """The sidecar has nothing more to say, and has closed both ways: what is written finds nobody."""
        assert await self.rest(within) == b""
        async with asyncio.timeout(within):
            with contextlib.suppress(ConnectionError):
                while True:
                    self.writer.write(b"\0")
                    await self.writer.drain()
                    await asyncio.sleep(0.005)

    def finish(self) -> None:
        """FIN, and go on reading."""
        self.writer.write_eof()

    def leave(self, how: str) -> None:
        """`fin` closes, `rst` resets."""
        if how == "rst":
            sock: socket.socket = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.writer.transport.abort()
        else:
            self.writer.close()


class Far:
    """An upstream that accepts connections and leaves the rest to the test."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self._new: asyncio.Queue[Peer] = asyncio.Queue()

    async def start(self, ssl: Any = None) -> None:
        self.server = await asyncio.start_server(self._take, "127.0.0.1", 0, limit=1 << 16, ssl=ssl)
        self.port = self.server.sockets[0].getsockname()[1]
        self.url = f"{'https' if ssl else 'http'}://127.0.0.1:{self.port}"

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peers.append(Peer(reader, writer))
        self._new.put_nowait(self.peers[-1])

    async def call(self) -> Peer:
        """The next connection of the sidecar's."""
        async with asyncio.timeout(GUARD):
            return await self._new.get()

    async def stop(self) -> None:
        self.server.close()
        for peer in self.peers:
            peer.writer.transport.abort()
        await self.server.wait_closed()


async def connect(rig: Any, sent: bytes = ASK, tls: Any = None) -> Peer:
    """A client that has sent that."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.sidecar.port, limit=1 << 16, ssl=tls)
    peer = Peer(reader, writer)
    rig.clients.append(writer)
    if sent:
        await peer.send(sent)
    return peer


async def opened(
    rig: Any, far: Far, behind: bytes = b"", early: bytes = b"", tls: Any = None, **keys: Any
) -> tuple[Peer, Peer]:
    """A WebSocket that is open: the client's end and the upstream's. `behind`: what the upstream sends with
    its 101, `early`: what the client sends with its request."""
    if not rig.sidecars:
        await rig.start(far.url, **keys)
    client = await connect(rig, ASK + early, tls)
    upstream = await far.call()
    await upstream.head()
    await upstream.send(SWITCH + behind)
    assert await client.head() == SWITCH
    return client, upstream
