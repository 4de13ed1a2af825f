"""What serving needs of a shell: of the server that a request came by, whichever that is."""

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Protocol

import msgspec

from sidecar.core.types import Request
from sidecar.engine.wire import Wire


class ClientGoneError(Exception):
    """The client left, or did not take what it was sent within the timeout."""


class Body(msgspec.Struct, frozen=True):
    """What is there of a request's body, and the rest, if it streams past."""

    kept: bytes
    more: AsyncIterator[bytes] | None
    waited: float
    """Seconds spent waiting for the client."""


class Arriving(Protocol):
    """A request that has come as far as its head."""

    root: str
    """The path under which all of this is mounted; empty, or with a slash in front and none behind."""

    @property
    def handed(self) -> bool:
        """Whether another worker has handed it over, which is done once."""

    @property
    def raised(self) -> bool:
        """Whether its server is going to hear of an exception, and answers by itself."""

    def head(self) -> Request:
        """Its head. Target and path are what is below `root`."""

    @property
    def switch(self) -> Callable[[], Wire] | None:
        """Takes its connection out of HTTP, as it asks for, with all that has come behind it, and may raise
        ClientGoneError; None where that cannot be done."""

    async def body(self, request: Request, *, keep: int) -> Body:
        """Read up to `keep` bytes of its body. A body that goes on after that is left to be streamed.

        Raises RefusedError when the client is too slow or its body is not valid HTTP.
        """


class Reply(Protocol):
    """The response to one request. After `finish` or `cut` nothing more can be written.

    Writing may raise ClientGoneError.
    """

    keep_alive: bool
    """Whether the connection may carry another request."""
    bodiless: bool
    """No body is to be sent, whatever is written."""
    started: bool
    sent: int
    """Bytes of body sent, framing not counted."""

    @property
    def insertable(self) -> bool:
        """Whether the body's length is open, so that frames of our own may be added."""

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
        """Write the head, and what is already there of the body, in one go.

        `sized`: the fields hold a Content-Length that the body will have. `last`: this is all of the body.
        Raises ValueError when a field would break out of its line; nothing has been written then.
        """

    def write(self, data: bytes) -> None:
        """Write some of the body. Never waits; see `drained`."""

    @property
    def behind(self) -> bool:
        """Whether there is something to wait for with `drained`."""

    async def drained(self) -> None:
        """Wait until the client has taken enough. Raises ClientGoneError."""

    def finish(self) -> None:
        """The body is whole."""

    def cut(self, *, reset: bool = False) -> None:
        """End the connection so that no client can take the body for whole. `reset`: at once, for a client
        that takes nothing any more."""

    async def flush(self) -> None:
        """After all was written: let it go out. Raises ClientGoneError."""
