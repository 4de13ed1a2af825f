"""What the admin port answers: a body and its fields, or what is wrong (RFC 9457, `problem+json`)."""

from http import HTTPStatus
from typing import NamedTuple

import orjson

from sidecar.core.errors import KINDS, RefusedError

Fields = tuple[tuple[bytes, bytes], ...]

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFE: Fields = (
    (b"Content-Security-Policy", _POLICY.encode()),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"no-referrer"),
    # Not even as a script or an image of another page.
    (b"Cross-Origin-Resource-Policy", b"same-origin"),
    # A page that opens ours, or that ours opens, holds no window of it.
    (b"Cross-Origin-Opener-Policy", b"same-origin"),
)
"""Fields of every answer."""
NEVER_KEPT: Fields = ((b"Cache-Control", b"no-store"),)
_LATER = (429, 503)
"""Whoever gets one of these may come back."""
ASKED_AGAIN: Fields = ((b"Cache-Control", b"no-cache"),)


class Answer(NamedTuple):
    """An answer whose end is known."""

    status: int
    kind: bytes
    body: bytes
    more: Fields = NEVER_KEPT

    @property
    def fields(self) -> Fields:
        """All of its header fields."""
        fields = ((b"Content-Type", self.kind), (b"Content-Length", b"%d" % len(self.body)), *self.more)
        if self.status in _LATER and not any(name == b"Retry-After" for name, _ in self.more):
            fields += ((b"Retry-After", b"1"),)
        return (*fields, *SAFE)

    @property
    def phrase(self) -> bytes:
        """The reason phrase."""
        return HTTPStatus(self.status).phrase.encode()


def as_json(value: object, status: int = 200) -> Answer:
    """A JSON document."""
    return Answer(status, b"application/json", orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE))


class ProblemError(Exception):
    """A request that is not served."""

    def __init__(self, status: int, kind: str, title: str, detail: str, *fields: tuple[bytes, bytes]) -> None:
        """`kind`: the value of the `Slipstream-Error` header; `fields`: further headers."""
        super().__init__(f"{kind}: {detail}")
        told = {"type": "about:blank", "title": title, "status": status, "detail": detail}
        more = ((b"Slipstream-Error", kind.encode()), *fields, *NEVER_KEPT)
        self.answer = Answer(status, b"application/problem+json", orjson.dumps(told), more)


def problem_of(error: RefusedError) -> ProblemError:
    """What the server has found wrong with a request."""
    status, title, _ = KINDS[error.fault.kind]
    return ProblemError(status, error.fault.kind, title, error.fault.detail)


def not_allowed(*methods: str) -> ProblemError:
    """The path is there, but not with that method."""
    allow = (b"Allow", ", ".join(methods).encode())
    return ProblemError(
        405, "method_not_allowed", "Not with this method", f"use {' or '.join(methods)}", allow
    )
