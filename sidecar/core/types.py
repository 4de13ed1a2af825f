"""The values that travel between the parts: what was asked, what came back, how it ended.

All of them are immutable. They know no socket, no event loop and no configuration. As values they cannot be
part of a cycle, so the garbage collector does not follow them (`gc=False`).
"""

from enum import StrEnum
from typing import Literal

import msgspec

Headers = tuple[tuple[bytes, bytes], ...]
"""Raw header fields in wire order, names in the case they were sent in."""

DeltaKind = Literal["content", "reasoning", "tool", "event"]
"""What a streamed event carried for a person who waits; `event` where the format is not known."""


class Request(msgspec.Struct, frozen=True, gc=False):
    """The head of one client request."""

    method: str
    target: bytes
    """Origin-form, byte for byte as received: path, and `?query` if there was one."""
    path: str
    query: str
    headers: Headers
    fields: dict[bytes, bytes]
    """The same headers by lower-case name; repeated ones joined with a comma."""
    http10: bool = False


class Head(msgspec.Struct, frozen=True, gc=False):
    """The head of an upstream's answer."""

    status: int
    reason: bytes
    headers: Headers
    fields: dict[bytes, bytes]


class Outcome(StrEnum):
    """How a request ended, as the latency line says it."""

    COMPLETE = "complete"
    CANCELLED = "cancelled"
    TRUNCATED = "truncated"
    UPSTREAM_ERROR = "upstream_error"
    TIMEOUT = "timeout"
    REFUSED = "refused"


class Fault(msgspec.Struct, frozen=True, gc=False):
    """Why the sidecar could not hand over a whole answer of the upstream."""

    kind: str
    """One of the kinds in `errors.KINDS`; also the value of the `Slipstream-Error` header."""
    detail: str
    """For people. Never holds a credential, a prompt or a query string."""


class End(msgspec.Struct, frozen=True, gc=False):
    """The last entry of a recording."""

    outcome: Outcome
    fault: Fault | None = None


class Intent(msgspec.Struct, frozen=True, gc=False):
    """What a request asks of a model, as far as its dialect can tell from path and body."""

    model: str | None = None
    stream: bool = False
    temperature: float | None = None
    stateful: bool = False
    """The answer depends on what the provider keeps of other requests, and may change what it keeps."""


class Timings(msgspec.Struct, gc=False):
    """When the phases of one upstream call were over, in seconds of `time.perf_counter`; 0 before."""

    started: float = 0.0
    connected: float = 0.0
    sent: float = 0.0
    head: float = 0.0
    retries: int = 0
