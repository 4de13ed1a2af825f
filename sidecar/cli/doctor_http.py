"""One request, and when every piece of its answer reached this machine.

The arrival times are those of the socket: nothing is decoded, collected or decompressed before the clock is
read. HTTP/1.1 only, which every proxy and CDN speaks.
"""

import asyncio
import ssl
import time
from typing import Literal, cast

import httptools
import msgspec

from sidecar import __version__
from sidecar.core.headers import render
from sidecar.engine.source import Origin

MOST = 4 << 20
"""Bytes of body that are taken; more is somebody who does not stop."""
AGENT = f"slipstream-doctor/{__version__}"
LONGEST_SECRET = 4096
"""Characters of a token or key."""
End = Literal["whole", "cut", "reset", "invalid", "endless"]


class Answer(asyncio.Protocol):
    """An answer as it comes in. Times are those of `time.perf_counter`."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.asked_at = 0.0
        self.status = 0
        self.version = ""
        """Of HTTP, as the answer has it."""
        self.fields: dict[str, str] = {}
        """By lower-case name; the last one of a kind counts."""
        self.head: asyncio.Future[bool] = loop.create_future()
        """Whether there was one."""
        self.pieces: list[tuple[float, bytes]] = []
        """What came of the body, and when."""
        self.end: End | None = None
        """How it ended. `cut`: before it was whole."""
        self.ended_at = 0.0
        self.over = asyncio.Event()
        self.latest = 0.0
        """When something came last."""
        self.transport: asyncio.Transport | None = None
        self._changed = asyncio.Event()
        self._size = 0
        self._parser = httptools.HttpResponseParser(self)

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.latest = time.perf_counter()
        if self.end is not None:
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._ended("invalid")
        if self._size > MOST:
            self._ended("endless")
        self._changed.set()

    def eof_received(self) -> None:
        self.latest = time.perf_counter()
        # Without a length or chunks, the end of the connection is the end of the body.
        delimited = "content-length" in self.fields or "transfer-encoding" in self.fields
        self._ended("cut" if delimited or not self.head.done() else "whole")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.latest = self.latest if self.end is not None else time.perf_counter()
        self._ended("reset" if exc is not None else "cut")

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields[name.decode("latin-1").lower()] = value.decode("latin-1").strip()

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self.version = self._parser.get_http_version()
        if self.status < 200:
            self.fields = {}
        elif not self.head.done():
            self.head.set_result(True)

    def on_body(self, body: bytes) -> None:
        self.pieces.append((self.latest, body))
        self._size += len(body)

    def on_message_complete(self) -> None:
        if self.status >= 200:
            self._ended("whole")

    def _ended(self, end: End) -> None:
        if self.end is not None:
            return
        self.end, self.ended_at = end, self.latest
        if not self.head.done():
            self.head.set_result(False)
        self.over.set()
        self._changed.set()
        self.close()

    # For those who ask.

    async def ask(
        self,
        origin: Origin,
        target: str,
        fields: dict[str, str] | None = None,
        *,
        method: str = "GET",
        body: bytes = b"",
    ) -> None:
        """Send the request. Raises ValueError, before anything is sent, where a part of it would break out of
        its line, or a field is beyond latin-1."""
        assert self.transport is not None
        default = 443 if origin.scheme == "https" else 80
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        given = [
            ("Host", host if origin.port == default else f"{host}:{origin.port}"),
            ("User-Agent", AGENT),
            *(fields or {}).items(),
        ]
        if body:
            given.append(("Content-Length", str(len(body))))
        lines = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given]
        head = render(f"{method} {target} HTTP/1.1".encode(), lines)
        self.asked_at = self.latest = time.perf_counter()
        self.transport.write(head + body)

    async def ended(self, silence: float) -> bool:
        """Wait for its end; returns False when nothing came for `silence` seconds, or the whole took three
        times as long."""
        last = time.perf_counter() + 3 * silence
        while not self.over.is_set():
            self._changed.clear()
            until = min(self.latest + silence, last)
            try:
                async with asyncio.timeout(until - time.perf_counter()):
                    await self._changed.wait()
            except TimeoutError:
                if self.latest + silence <= time.perf_counter() or last <= time.perf_counter():
                    return False
        return True

    @property
    def body(self) -> bytes:
        """What came of it so far, as it came."""
        return b"".join(piece for _, piece in self.pieces)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Timed(msgspec.Struct):
    """How long each step of a connection took, in seconds."""

    resolve: float | None = None
    """None where the address was given."""
    addresses: list[str] = []
    connect: float = 0.0
    handshake: float | None = None
    tls: str = ""
    """Its version."""
    expires: float | None = None
    """Until when the certificate is valid, as unix time."""


def sendable(secret: str) -> bool:
    """Whether it can be a token or key in a header field: one word of ASCII, and not a whole file."""
    return (
        0 < len(secret) <= LONGEST_SECRET and secret.isascii() and secret.isprintable() and " " not in secret
    )


def context() -> ssl.SSLContext:
    """As the sidecar checks upstreams: against OpenSSL's trust store, or what SSL_CERT_FILE names."""
    return ssl.create_default_context()
