"""How code that runs for a request finds that request: one context variable, which tasks and threads
inherit."""

from contextvars import ContextVar
from typing import Protocol

import msgspec

from sidecar.core.spans import Spans


class Channel(Protocol):
    """The event stream that a request is answered with."""

    async def event(self, frame: bytes) -> None:
        """Write a whole event, its blank line included, before, between or after others, never inside one.
        Never raises: a client that has left, or an answer that is no event stream, gets none."""

    def done(self) -> None:
        """The last event is on the stream: nothing follows."""


class Here(msgspec.Struct, frozen=True):
    """The request that the running code belongs to."""

    spans: Spans | None = None
    """Where its phases are timed."""
    channel: Channel | None = None
    """Where people who wait for it can be told something."""


NOWHERE = Here()

HERE: ContextVar[Here] = ContextVar("slipstream_request", default=NOWHERE)
