"""A request as aiohttp's server hands it over: its raw head, its body stream, its connection.

aiohttp would make a `BaseRequest` of it, with URL, cookies and mapping interface, none of which a proxy
looks at. `web.RequestHandler` itself uses the three methods at the end and nothing else of it.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from sidecar.core.types import Request
from sidecar.engine.wire import Wire
from sidecar.serving import intake
from sidecar.serving.shell import Body
from sidecar.web import tunnel
from sidecar.web.body import receive

if TYPE_CHECKING:
    from sidecar.web.server import Protocol


class Incoming:
    """One request of one client connection; see `serving.shell.Arriving`."""

    root = ""
    raised = False
    __slots__ = (
        "_chunked",
        "_task",
        "content",
        "handed",
        "http10",
        "keep_alive",
        "method",
        "protocol",
        "raw_headers",
        "target",
        "whole",
        "writer",
    )

    def __init__(
        self,
        message: RawRequestMessage,
        content: StreamReader,
        protocol: "Protocol",
        writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
    ) -> None:
        self.method = message.method
        self.target = message.path
        """As on the wire; bytes that are no UTF-8 are surrogates."""
        self.raw_headers = message.raw_headers
        self.http10 = message.version < (1, 1)
        self.keep_alive = not message.should_close
        self._chunked = message.chunked
        self.content = content
        self.handed = False
        """See `Arriving`."""
        self.protocol = protocol
        self.writer = writer
        self._task: asyncio.Task[None] | None = task
        self.whole = protocol.whole
        """The request as it came, if it came in one piece and alone; else nothing."""
        protocol.incoming = self
        # What was answered came before this one, whose own answer is still to come.
        protocol.answered, protocol.whole = False, b""

    def head(self) -> Request:
        """See `Arriving`."""
        target = self.target.encode("utf-8", "surrogateescape")
        return intake.request_of(self.method, target, self.raw_headers, http10=self.http10)

    async def body(self, request: Request, *, keep: int) -> Body:
        """See `Arriving`."""
        return await receive(self, request, keep=keep, timeout=self.protocol.client_timeout)

    @property
    def switch(self) -> Callable[[], Wire] | None:
        """See `Arriving`."""
        return (lambda: tunnel.switch(self.protocol)) if tunnel.may_switch(self.protocol) else None

    @property
    def transport(self) -> asyncio.Transport | None:
        """The connection; None once it is lost."""
        return self.protocol.transport

    @property
    def trailed(self) -> bool:
        """Whether the body has, or may still get, trailers.

        aiohttp's parser keeps the last trailer and makes it the first header of the connection's next
        request, which may be somebody else's behind a shared proxy: that connection must not go on.
        """
        return self._chunked and not (self.content.is_eof() and self.protocol.ended_plainly)

    @property
    def body_exists(self) -> bool:
        """Whether the head announces a body."""
        return self.content is not EMPTY_PAYLOAD

    def _finish(self) -> None:
        """aiohttp: the handler has returned."""

    def _cancel(self, exc: BaseException) -> None:
        """aiohttp: the connection is lost; whoever waits for the body learns why."""
        self.content.set_exception(exc)
