"""A request as an ASGI server hands it over."""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from sidecar.core.errors import RefusedError
from sidecar.core.headers import index
from sidecar.core.types import Request
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


def _where(scope: Scope) -> tuple[str, str, bytes]:
    """The root as part of a URL, since a mount may take any part of a path; the path below it; and path and
    query as the client spelt them, as far as that is still the same path: who rewrites it may forget
    `raw_path`."""
    root, path = below(scope)
    prefix = quote(root, safe=_SAFE) if root else ""
    spelt: bytes = (scope.get("raw_path") or b"").partition(b"?")[0]
    if spelt == path.encode("latin-1", "replace") and not root and b"%" not in spelt:
        target = spelt  # as most are
    elif spelt and unquote(spelt.decode("latin-1")) == scope["path"] and spelt.startswith(prefix.encode()):
        target = spelt[len(prefix) :]
    else:
        target = b""
    if target[:1] != b"/":
        target = quote(path, safe=_SAFE).encode()
    query: bytes = scope.get("query_string", b"")
    return prefix, path, target + b"?" + query if query else target


class _Rest:
    """What is left of a body. Whoever waits for a part of it may give up, and ask again."""

    def __init__(self, arriving: "Arriving") -> None:
        self._arriving = arriving
        self._lock = asyncio.Lock()

    def __aiter__(self) -> "_Rest":
        return self

    async def __anext__(self) -> bytes:
        arriving = self._arriving
        async with self._lock:
            try:
                while not arriving.whole:
                    if part := await arriving.part():
                        return part
            except ClientGoneError:
                if arriving.on_gone is not None:
                    arriving.on_gone()
                raise
            raise StopAsyncIteration


class Arriving:
    """One request; see `sidecar.serving.shell.Arriving`."""

    __slots__ = (
        "_left",
        "_path",
        "_receive",
        "_spelt",
        "_target",
        "_timeout",
        "named",
        "nobody",
        "on_gone",
        "root",
        "run",
        "scope",
        "whole",
    )

    def __init__(self, scope: Scope, receive: Receive, timeout: float, *, spelt: bool) -> None:
        """`timeout`: seconds that a client may take for the next part of its body. `spelt`: paths are looked
        at as clients spell them, as by a proxy; an app looks at what that means."""
        self.scope = scope
        self.root, path, self._target = _where(scope)
        self._path = self._target.partition(b"?")[0].decode("utf-8", "backslashreplace") if spelt else path
        self.whole = self._path.startswith(RESERVED)
        """All of its body has been received, or nobody is going to read it: what comes next is its end."""
        self.on_gone: Callable[[], None] | None = None
        """Told when the client leaves while the rest of its body streams past, in whichever task."""
        self.run: Run | None = None
        """The app's work on it, if it was begun for this very request."""
        self.named = False
        """It says who asks, in the way that is configured."""
        self.nobody = True
        """Nothing in it may say who asks."""
        self._left: int | None = None
        """Bytes of the body that are still to come, if its head says how many it has."""
        self._receive = receive
        self._timeout = timeout
        self._spelt = spelt

    handed = False
    switch = None  # a WebSocket is another kind of scope, and the server's own

    @property
    def raised(self) -> bool:
        """See `Arriving`."""
        return self.run is not None and self.run.error is not None

    def leave_alone(self) -> None:
        """Its server has given it up: nobody waits any more for what the app does."""
        if self.run is not None:
            self.run.alone()

    async def until_returned(self) -> BaseException | None:
        """Wait until the app has returned; what it raised, once."""
        run = self.run
        if run is None:
            return None
        await run.over()
        error, run.error = run.error, None  # its traceback leads back to the run
        return error

    def head(self) -> Request:
        """See `Arriving`."""
        scope = self.scope
        headers = tuple([(name, value) for name, value in scope["headers"]])
        return Request(
            method=scope["method"],
            target=self._target,
            path=self._path,
            query=scope.get("query_string", b"").decode("utf-8", "backslashreplace"),
            headers=headers,
            fields=index(headers),
            http10=scope.get("http_version") == "1.0",
        )

    async def body(self, request: Request, *, keep: int) -> Body:
        """See `Arriving`."""
        length = request.fields.get(b"content-length", b"")
        self._left = int(length) if self._spelt and length.isdigit() else None
        if keep <= 0 and _announced(request):
            # Not a byte of it is waited for: its client may want to see an answer first.
            return Body(b"", _Rest(self), 0.0)
        parts: list[bytes] = []
        size, waited = 0, 0.0
        while not self.whole:
            begun = time.perf_counter()
            part = await self.part()
            waited += time.perf_counter() - begun
            parts.append(part)
            size += len(part)
            if size > keep:
                return Body(b"".join(parts), _Rest(self), waited)
        return Body(parts[0] if len(parts) == 1 else b"".join(parts), None, waited)

    async def part(self) -> bytes:
        """The next part of the body. Raises RefusedError, ClientGoneError."""
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
        if self._left is not None:
            self._left -= len(part)
            if self._left < 0 or (self._left and self.whole):
                # Of an offer of h2c uvicorn loses the body; the upstream would take the next request for it.
                raise RefusedError("bad_request", "the body is not as long as Content-Length says")
        return part

    async def until_gone(self) -> None:
        """Wait for the client to leave. Only once the body is whole."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
