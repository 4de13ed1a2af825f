"""A request as an ASGI server hands it over."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from urllib.parse import quote

from sidecar.core.errors import RefusedError
from sidecar.core.types import Request
from sidecar.serving import intake
from sidecar.serving.own import RESERVED
from sidecar.serving.shell import Body, ClientGoneError
from sidecar_starlette.asgi import Receive, Scope, below

if TYPE_CHECKING:
    from sidecar_starlette.run import Run

_SAFE = "/!$&'()*+,;=:@-._~"
"""What stands for itself in a path (RFC 3986, 3.3)."""


def _announced(request: Request) -> bool:
    """Whether the head says that a body follows. Without HTTP/1.1's framing that is not known."""
    fields = request.fields
    return b"transfer-encoding" in fields or fields.get(b"content-length", b"0") != b"0"


class Arriving:
    """One request; see `sidecar.serving.shell.Arriving`."""

    __slots__ = ("_receive", "_timeout", "root", "run", "scope", "whole")

    def __init__(self, scope: Scope, receive: Receive, timeout: float) -> None:
        """`timeout`: seconds that a client may take for the next part of its body."""
        self.scope = scope
        # As part of a URL: a mount may take any part of a path.
        self.root = quote(below(scope)[0], safe=_SAFE)
        self.whole = self._target().startswith(RESERVED.encode())
        """All of its body has been received, or nobody is going to read it: what comes next is its end."""
        self.run: Run | None = None
        """The app's work on it, if it was begun for this very request."""
        self._receive = receive
        self._timeout = timeout

    def head(self) -> Request:
        """See `Arriving`."""
        scope = self.scope
        headers = tuple([(name, value) for name, value in scope["headers"]])
        return intake.request_of(
            scope["method"], self._target(), headers, http10=scope.get("http_version") == "1.0"
        )

    def _target(self) -> bytes:
        """Path and query below the root, as the client spelt them wherever that is known."""
        scope = self.scope
        root, path = below(scope)
        spelt: bytes = (scope.get("raw_path") or b"").partition(b"?")[0]
        prefix = quote(root, safe=_SAFE).encode()
        if spelt.startswith(prefix) and spelt[len(prefix) : len(prefix) + 1] == b"/":
            target = spelt[len(prefix) :]
        else:
            target = quote(path, safe=_SAFE).encode()
        query: bytes = scope.get("query_string", b"")
        return target + b"?" + query if query else target

    async def body(self, request: Request, *, keep: int) -> Body:
        """See `Arriving`."""
        if keep <= 0 and _announced(request):
            # Not a byte of it is waited for: its client may want to see an answer first.
            return Body(b"", self._rest(), 0.0)
        parts: list[bytes] = []
        size, waited = 0, 0.0
        while not self.whole:
            begun = time.perf_counter()
            part = await self._part()
            waited += time.perf_counter() - begun
            parts.append(part)
            size += len(part)
            if size > keep and not self.whole:
                return Body(b"".join(parts), self._rest(), waited)
        return Body(parts[0] if len(parts) == 1 else b"".join(parts), None, waited)

    async def _rest(self) -> AsyncIterator[bytes]:
        while not self.whole:
            if part := await self._part():
                yield part

    async def _part(self) -> bytes:
        try:
            async with asyncio.timeout(self._timeout):
                message = await self._receive()
        except TimeoutError:
            detail = f"no part of the body came for {self._timeout:g} s"
            raise RefusedError("request_timeout", detail) from None
        if message["type"] == "http.disconnect":
            self.whole = True  # no more of it comes
            raise ClientGoneError("the client left before its request was whole")
        self.whole = not message.get("more_body", False)
        part: bytes = message.get("body", b"")
        return part

    async def until_gone(self) -> None:
        """Wait for the client to leave. Only once the body is whole."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
