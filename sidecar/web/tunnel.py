"""Client connections that leave HTTP.

aiohttp's parser stops behind a request for a WebSocket, and its protocol keeps what follows, up to a bound,
without reading it. Either the connection is taken over, with that, or what follows is forgotten: it is never
read as another request.
"""

from typing import TYPE_CHECKING

from sidecar.engine.wire import Wire
from sidecar.serving.shell import ClientGoneError

if TYPE_CHECKING:
    from sidecar.web.server import Protocol

# ruff: noqa: SLF001 - reason: aiohttp has its own way out of HTTP, and these are its words for it


def may_switch(protocol: "Protocol") -> bool:
    """Whether the request being served is one to leave HTTP, as the parser sees it: only then it has kept
    what follows."""
    return protocol._upgraded and not protocol._messages


def switch(protocol: "Protocol") -> Wire:
    """Take the connection over. The protocol hears no more of it but that it is lost; that ends the task
    which serves the request. Raises ClientGoneError."""
    transport = protocol.transport
    if transport is None or transport.is_closing():
        raise ClientGoneError("the client closed the connection")
    behind, protocol._message_tail = protocol._message_tail, b""
    return Wire(transport, behind, full=protocol.writing_paused, on_lost=protocol.connection_lost)


def forget(protocol: "Protocol") -> None:
    """The request has been served. Where it was one to leave HTTP, what came behind it is nobody's: else
    aiohttp would look for a request in it."""
    if may_switch(protocol):
        protocol._message_tail = b""
