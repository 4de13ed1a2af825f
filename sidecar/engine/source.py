"""What the engine needs of an HTTP client, and no more: small enough that another one can replace it."""

from collections.abc import AsyncIterator, Callable
from typing import Protocol

import msgspec

from sidecar.core.types import Head, Timings


class Origin(msgspec.Struct, frozen=True):
    """Where calls go; comes from configuration, never from a request."""

    scheme: str
    host: str
    port: int


class Call(msgspec.Struct, frozen=True):
    """One request to an upstream, ready to be written."""

    origin: Origin
    method: str
    target: bytes
    """Origin-form, byte for byte."""
    headers: list[tuple[bytes, bytes]]
    """All fields that are sent, in order; framing fields fit the body."""
    body: bytes = b""
    """What is there of the body; all of it unless `more`."""
    more: AsyncIterator[bytes] | None = None
    """The rest of a body that streams past."""
    chunked: bool = False
    """Whether the body is sent with `Transfer-Encoding: chunked`."""
    upgrade: bytes = b""
    """The protocol that it asks to switch to, in lower case; `headers` hold the fields that ask for it."""


class Source(Protocol):
    """An answer being received."""

    head: Head
    arrived: float
    """When the latest bytes came, by `time.perf_counter`."""

    async def deliver(self, take: Callable[[bytes], None]) -> None:
        """Hand the body to `take`, each piece in the moment it arrives; return at its clean end.

        Raises UpstreamError when the answer breaks off, after everything before that was handed over.
        """

    def pause(self) -> None:
        """Let the upstream wait: read nothing more from it. A few pieces may still come."""

    def resume(self) -> None:
        """Go on reading."""

    def close(self) -> None:
        """Be done with it, in any state. An unfinished call is aborted at once."""


class Upstream(Protocol):
    """Makes calls."""

    async def open(self, call: Call, timings: Timings) -> Source:
        """Send the request and wait for the head, noting in `timings` how far it got.

        Raises UpstreamError. Cancelling aborts the call.
        """
