"""A request as it came in: raw, in order, and how far it and its answer have got."""

from __future__ import annotations

import asyncio
import sys


class Received:
    """One request. `headers` have the wire's case and order; `body` is what came so far, `keep` at most."""

    __slots__ = (
        "_body",
        "arrived",
        "closed",
        "connection",
        "finished",
        "headers",
        "keep",
        "method",
        "persistent",
        "size",
        "target",
        "version",
    )

    def __init__(
        self, method: str, target: str, headers: list[tuple[bytes, bytes]], version: str, connection: int
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.version = version
        self.connection = connection
        self.persistent = True
        self.keep = sys.maxsize
        self.size = 0
        """Bytes of body so far, kept or not."""
        self.arrived = asyncio.Event()
        """Set once the whole body is here."""
        self.closed = asyncio.Event()
        """Set when the peer closed the connection before the answer was finished."""
        self.finished = asyncio.Event()
        """Set when the answer was wholly written."""
        self._body = bytearray()

    @property
    def complete(self) -> bool:
        return self.arrived.is_set()

    @property
    def body(self) -> bytes:
        return bytes(self._body)

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    def header(self, name: str) -> bytes | None:
        """The first header of that name, in any case."""
        wanted = name.lower().encode()
        return next((value for key, value in self.headers if key.lower() == wanted), None)

    def append(self, chunk: bytes) -> None:
        self.size += len(chunk)
        room = self.keep - len(self._body)
        if room > 0:
            self._body += chunk[:room]

    async def read(self) -> bytes:
        """The whole body, once it is here."""
        await self.arrived.wait()
        return self.body

    def __repr__(self) -> str:
        return f"<Received {self.method} {self.target} {self.size} bytes on connection {self.connection}>"
