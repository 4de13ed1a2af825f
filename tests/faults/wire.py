"""Both ends of the sidecar in a test's own hands: a client that sees bytes, and an upstream that sends them.

A test reads as a script: the client sends, the upstream answers so much and no more, the client sees. What
orders the steps is that each waits for the one before, never a clock. `GUARD` only ends a test that hangs.
"""

import asyncio
import socket
import struct
from collections.abc import Iterable
from http.client import responses
from typing import Literal, NamedTuple

from sidecar.scripted import Connection, Received

GUARD = 10.0
UVICORN = (b"server", b"uvicorn")
RESET = struct.pack("ii", 1, 0)

Fields = Iterable[tuple[bytes, bytes]]


def request(
    method: str,
    target: str | bytes,
    body: bytes | None = None,
    fields: Fields = (),
    *,
    host: bytes = b"sidecar.test",
) -> bytes:
    """A well-formed request; with a body also its length and type."""
    where = target if isinstance(target, bytes) else target.encode()
    lines = [b"%b %b HTTP/1.1" % (method.encode(), where), b"Host: " + host]
    if body is not None:
        lines += [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    lines += [b"%b: %b" % field for field in fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST = b"0\r\n\r\n"


def head(
    kind: bytes = b"text/event-stream",
    *fields: bytes,
    status: bytes = b"200 OK",
    framing: bytes = b"Transfer-Encoding: chunked",
) -> bytes:
    """An answer's head; `framing` empty for a body that ends with the connection."""
    lines = [b"HTTP/1.1 " + status, b"Content-Type: " + kind, *fields, *([framing] if framing else [])]
    return b"\r\n".join(lines) + b"\r\n\r\n"


class ClosedError(Exception):
    """The sidecar closed the connection where the head of an answer was expected."""


class Answer:
    """An answer as it comes in. `end` tells how it ended: `cut` and `reset` are what a client can tell."""

    def __init__(self, reader: asyncio.StreamReader, raw: bytes, method: str) -> None:
        self.raw = raw
        start, *lines = raw[:-4].split(b"\r\n")
        self.version, status, self.reason = start.split(b" ", 2)
        self.status = int(status)
        self.headers = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
        self.asgi = self.headers[1:2] == [UVICORN]
        """It comes by the ASGI app: uvicorn has put a date and its name in front, which are left out."""
        if self.asgi:
            del self.headers[:2]
        self.body = bytearray()
        self.end: Literal["whole", "cut", "reset"] | None = None
        self._reader = reader
        self._left: int | None = None
        self.chunked = self.header("transfer-encoding") == b"chunked"
        self.sized = self.header("content-length") is not None
        if method == "HEAD" or self.status in (204, 304) or self.status < 200:
            self.end = "whole"
        elif not self.chunked and self.sized:
            self._left = int(self.header("content-length") or b"")
            if not self._left:
                self.end = "whole"

    def header(self, name: str) -> bytes | None:
        """The value; a test that meets two of a kind has met a fault."""
        found = self.all(name)
        assert len(found) <= 1, found
        return found[0] if found else None

    def all(self, name: str) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name.encode()]

    def spelt(self, fields: Fields) -> list[tuple[bytes, bytes]]:
        """Fields as the server of this answer spells them: ASGI knows names in lower case only."""
        return [(name.lower() if self.asgi else name, value) for name, value in fields]

    def phrased(self, reason: bytes) -> bytes:
        """What this answer has where the upstream gave that reason: ASGI knows the status only."""
        return responses.get(self.status, "").encode() if self.asgi else reason

    async def more(self) -> bytes:
        """The next bytes of the body; b"" at its end."""
        if self.end is not None:
            return b""
        try:
            async with asyncio.timeout(GUARD):
                data = await self._more()
        except asyncio.IncompleteReadError:
            self.end, data = "cut", b""
        except ConnectionError:
            self.end, data = "reset", b""
        self.body += data
        return data

    async def _more(self) -> bytes:
        if self.chunked and not self._left:
            if self._left == 0:
                assert await self._reader.readexactly(2) == b"\r\n"
            line = await self._reader.readuntil(b"\r\n")
            self._left = int(line, 16)
            if not self._left:
                trailers = await self._reader.readuntil(b"\r\n")
                assert trailers == b"\r\n", "a trailer came through"
                self.end = "whole"
                return b""
        data = await self._reader.read(self._left if self._left is not None else 1 << 16)
        if not data:
            self.end = "whole" if self._left is None else "cut"
        elif self._left is not None:
            self._left -= len(data)
            if not self._left and not self.chunked:
                self.end = "whole"
        return data

    async def until(self, size: int) -> bytes:
        """Until so many bytes of body are here; fewer only when it ended."""
        while len(self.body) < size and await self.more():
            pass
        return bytes(self.body)

    async def until_has(self, part: bytes, times: int = 1) -> None:
        while self.body.count(part) < times:
            assert await self.more(), (self.end, bytes(self.body))

    async def rest(self) -> bytes:
        while await self.more():
            pass
        return bytes(self.body)


class Client:
    """One connection to the sidecar."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> "Client":
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 20))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(GUARD):
            await self.writer.drain()

    async def answer(self, method: str = "GET") -> Answer:
        """The next answer's head. Raises ClosedError."""
        try:
            async with asyncio.timeout(GUARD):
                raw = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise ClosedError(getattr(error, "partial", b"")) from None
        return Answer(self.reader, raw, method)

    async def ask(
        self, method: str, target: str | bytes, body: bytes | None = None, fields: Fields = ()
    ) -> Answer:
        """Send a request and read the answer's head."""
        await self.send(request(method, target, body, fields))
        return await self.answer(method)

    async def whole(
        self, method: str, target: str | bytes, body: bytes | None = None, fields: Fields = ()
    ) -> Answer:
        """Send a request and read the answer to its end."""
        answer = await self.ask(method, target, body, fields)
        await answer.rest()
        return answer

    async def closed(self) -> bytes:
        """Wait for the sidecar to close, and return what it sent before."""
        data = b""
        async with asyncio.timeout(GUARD):
            try:
                while part := await self.reader.read(1 << 16):
                    data += part
            except ConnectionError:
                pass
        return data

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """RST instead of FIN."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.writer.transport.abort()

    def leave(self, how: str) -> None:
        """`fin` or `rst`."""
        self.close() if how == "fin" else self.reset()


class Upstream:
    """One request at the provider, whose answer the test writes byte by byte."""

    def __init__(self, connection: Connection, received: Received) -> None:
        self.connection = connection
        self.received = received
        self.over = asyncio.Event()

    async def send(self, *parts: bytes) -> None:
        async with asyncio.timeout(GUARD):
            await self.connection.send(b"".join(parts))

    def done(self) -> None:
        """The answer is written; the connection may serve the next request."""
        self.over.set()

    def close(self) -> None:
        self.over.set()
        self.connection.close()

    def reset(self) -> None:
        self.over.set()
        self.connection.reset()

    async def closed(self, within: float = 1.0) -> None:
        """Wait for the sidecar to close the connection under the answer."""
        async with asyncio.timeout(within):
            await self.received.closed.wait()


class Format(NamedTuple):
    """A wire format, with an answer in it."""

    name: str
    method: str
    target: str
    kind: bytes
    body: bytes | None
    events: list[bytes]
    keepalive: bytes | None
    lost: bytes
    """What an error frame of the sidecar's begins with."""

    @property
    def whole(self) -> bytes:
        return b"".join(self.events)

    @property
    def sent(self) -> bytes:
        return request(self.method, self.target, self.body)

    def __str__(self) -> str:
        return self.name


def _data(*texts: str, end: str = "\n", event: str | None = None) -> list[bytes]:
    lead = f"event: {event}{end}" if event else ""
    return [f"{lead}data: {text}{end}{end}".encode() for text in texts]


def _named(*events: tuple[str, str]) -> list[bytes]:
    return [_data(f'{{"type":"{name}"{rest}}}', event=name)[0] for name, rest in events]


ASK = '{"model":"m","stream":true,"messages":[{"role":"user","content":"你好 🌊"}]}'.encode()

CHAT = Format(
    "chat",
    "POST",
    "/v1/chat/completions",
    b"text/event-stream",
    ASK,
    _data(
        *(f'{{"choices":[{{"index":0,"delta":{{"content":"{t}"}}}}]}}' for t in ("plain", "你好", "🌊🏄‍♀️")),
        "[DONE]",
    ),
    b": keepalive\n",
    b'data: {"error":',
)
COMPLETIONS = Format(
    "completions",
    "POST",
    "/v1/completions",
    b"text/event-stream",
    ASK,
    _data('{"choices":[{"text":"é"}]}', '{"choices":[{"text":"🌊"}]}', "[DONE]"),
    b": keepalive\n",
    b'data: {"error":',
)
RESPONSES = Format(
    "responses",
    "POST",
    "/v1/responses",
    b"text/event-stream",
    ASK,
    _named(
        ("response.created", ',"response":{"model":"m"}'),
        ("response.output_text.delta", ',"delta":"你好 🌊"'),
        ("response.completed", ',"response":{"status":"completed"}'),
    ),
    b": keepalive\n",
    b"event: error\ndata: {",
)
ANTHROPIC = Format(
    "anthropic",
    "POST",
    "/v1/messages",
    b"text/event-stream",
    ASK,
    _named(
        ("message_start", ',"message":{"model":"m","usage":{"input_tokens":3}}'),
        ("content_block_delta", ',"index":0,"delta":{"type":"text_delta","text":"你好 🌊"}'),
        ("message_delta", ',"delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}'),
        ("message_stop", ""),
    ),
    b'event: ping\ndata: {"type": "ping"}\n\n',
    b'event: error\ndata: {"type":"error",',
)
GEMINI = Format(
    "gemini-sse",
    "POST",
    "/v1beta/models/g:streamGenerateContent?alt=sse",
    b"text/event-stream",
    ASK,
    _data(
        '{"candidates":[{"content":{"parts":[{"text":"你好 🌊"}]}}]}',
        '{"candidates":[{"content":{"parts":[{"text":"."}]},"finishReason":"STOP"}]}',
        end="\r\n",
    ),
    b"\r\n",
    b'data: {"error":',
)
GEMINI_ARRAY = Format(
    "gemini-array",
    "POST",
    "/v1beta/models/g:streamGenerateContent",
    b"application/json",
    ASK,
    [
        '[{"candidates":[{"content":{"parts":[{"text":"你好 🌊"}]}}]}'.encode(),
        b',\r\n{"candidates":[{"content":{"parts":[{"text":"."}]},"finishReason":"STOP"}]}\r\n',
        b"]",
    ],
    None,
    b"",
)
OLLAMA = Format(
    "ollama",
    "POST",
    "/api/chat",
    b"application/x-ndjson",
    ASK,
    [
        '{"model":"m","message":{"content":"你好 🌊"},"done":false}\n'.encode(),
        b'{"model":"m","message":{"content":"."},"done":false}\n',
        b'{"model":"m","message":{"content":""},"done":true,"done_reason":"stop"}\n',
    ],
    b" ",
    b'{"error":"',
)
OTHER = Format(
    "other-sse",
    "GET",
    "/feed",
    b"text/event-stream",
    None,
    _data("你好", "🌊", event="weather"),
    b": keepalive\n",
    b"event: error\ndata: {",
)
FORMATS = [CHAT, COMPLETIONS, RESPONSES, ANTHROPIC, GEMINI, GEMINI_ARRAY, OLLAMA, OTHER]
FRAMED = [form for form in FORMATS if form.keepalive]
"""Those into which something may be written."""
MARKED = [form for form in FORMATS if form is not OTHER]
"""Those whose end can be told from a clean end of the bytes."""
