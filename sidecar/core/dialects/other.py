"""Any other event stream: forwarded, kept alive, and complete when its body is."""

from sidecar.core.dialects.base import Dialect, Facts
from sidecar.core.errors import problem
from sidecar.core.types import DeltaKind, Fault


class OtherSSE(Dialect):
    """The format of a `text/event-stream` that no other dialect claims."""

    name = "sse"
    provider = ""
    operation = ""
    keepalive = b": keepalive\n"
    ids = True
    stored = False

    def matches(self, path: str) -> bool:
        return False  # known by its answer's content type only

    def read(self, data: bytes, facts: Facts) -> DeltaKind | None:
        return "event"

    def ended(self, facts: Facts) -> bool:
        return True

    def error_body(self, fault: Fault, status: int) -> bytes:
        return problem(fault)

    def error_frame(self, fault: Fault, status: int, upstream: bytes | None = None) -> bytes:
        return b"event: error\ndata: " + (upstream or self.error_body(fault, status)) + b"\n\n"


OTHER_SSE = OtherSSE()
DIALECTS = (OTHER_SSE,)
