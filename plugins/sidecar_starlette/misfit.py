"""An answer that is no event stream, in one that was begun for it for the sake of progress."""

from sidecar.core.errors import problem
from sidecar.core.types import Fault, Head

_LARGEST = 64 << 10
"""Bytes that an event may have of it."""


def early_head() -> Head:
    """The head of a stream that begins before the app says so."""
    fields = {b"content-type": b"text/event-stream; charset=utf-8"}
    return Head(200, b"", tuple(fields.items()), fields)


class Misfit:
    """Such an answer."""

    __slots__ = ("_body", "_status")

    def __init__(self, status: int) -> None:
        self._status = status
        self._body = bytearray()

    def add(self, data: bytes) -> None:
        """More of its body. What is too much is not kept."""
        self._body += data[: _LARGEST + 1 - len(self._body)]

    def event(self) -> bytes:
        """All of it as one event: its body, or that it is an error."""
        if self._status < 400 and len(self._body) <= _LARGEST:
            lines = bytes(self._body).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
            return b"".join([b"data: " + line + b"\n" for line in lines]) + b"\n"
        said = f"status {self._status}" if self._status >= 400 else "it is no event stream, and too long"
        return b"event: error\ndata: " + problem(Fault("app_failed", said)) + b"\n\n"
