"""Writing a response through an ASGI server's `send`.

What is written is sent by the task that serves the request, which the reader wakes for it; so `behind` is
true whenever there is something to send.
"""

import re
import time
from collections.abc import Iterable

from sidecar.serving.shell import ClientGoneError
from sidecar_starlette.asgi import Message, Send

_BREAKS_OUT = re.compile(rb"[\x00\r\n]")


class Reply:
    """The response to one request; see `sidecar.serving.shell.Reply`."""

    __slots__ = (
        "_closes",
        "_cut",
        "_final",
        "_head",
        "_parts",
        "_send",
        "_sized",
        "bodiless",
        "keep_alive",
        "over",
        "sending_since",
        "sent",
        "started",
    )

    def __init__(self, send: Send, *, bodiless: bool, closes: bool) -> None:
        """`closes`: a field can say that the connection ends, which HTTP/2 has no such field for."""
        self._send = send
        self._closes = closes
        self._head: Message | None = None
        self._parts: list[bytes] = []
        self._final = False
        self._cut = False
        self._sized = False
        self.keep_alive = True
        self.bodiless = bodiless
        self.started = False
        self.sent = 0
        self.sending_since = 0.0
        """When the server was given what it has not taken yet, by `time.perf_counter`; 0: it has taken
        all."""
        self.over = False
        """The server has all of it."""

    @property
    def insertable(self) -> bool:
        return not self._sized and not self.bodiless

    def start(
        self,
        status: int,
        reason: bytes,
        fields: Iterable[tuple[bytes, bytes]],
        *,
        sized: bool,
        body: bytes = b"",
        last: bool = False,
    ) -> None:
        headers = [(name.lower(), value) for name, value in fields]
        if status in (204, 304):
            # A 304 may have the length of what it stands for; servers would wait for so many bytes.
            headers = [field for field in headers if field[0] != b"content-length"]
        if not self.keep_alive and self._closes:
            headers.append((b"connection", b"close"))
        # Some servers write what they are given.
        if _BREAKS_OUT.search(b"".join([part for field in headers for part in field])):
            raise ValueError("a header field holds a line end")
        self._head = {"type": "http.response.start", "status": status, "headers": headers}
        self.started, self._cut = True, False
        self._sized = sized
        self.bodiless = self.bodiless or status in (204, 304)
        if body:
            self.write(body)
        self._final = last or self.bodiless

    def write(self, data: bytes) -> None:
        if not self.bodiless and not self._cut:
            self.sent += len(data)
            self._parts.append(data)

    @property
    def behind(self) -> bool:
        return self._head is not None or bool(self._parts)

    async def drained(self) -> None:
        send, parts, head = self._send, self._parts, self._head
        try:
            if head is not None:
                self._head = None
                self.sending_since = time.perf_counter()
                await send(head)
            while parts or (self._final and not self.over):
                body = parts[0] if len(parts) == 1 else b"".join(parts)
                parts.clear()
                final = self.over = self._final
                self.sending_since = time.perf_counter()
                await send({"type": "http.response.body", "body": body, "more_body": not final})
        except OSError:  # as ASGI 2.4 has it for a client that is gone
            raise ClientGoneError("the client closed the connection") from None
        finally:
            self.sending_since = 0.0

    def finish(self) -> None:
        self._final = not self._cut

    def cut(self, *, reset: bool = False) -> None:
        """A server closes the connection of a response that is never completed."""
        if not self.over:
            self._cut, self._final = True, False
        if reset:
            self._parts.clear()

    async def flush(self) -> None:
        if self.started:
            if not self._cut:
                self._final = True
            await self.drained()
