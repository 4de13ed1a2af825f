"""Errors of the sidecar's own, as responses."""

from sidecar.core.dialects import Dialect
from sidecar.core.errors import KINDS, problem, status_of
from sidecar.core.types import Fault
from sidecar.serving.shell import Reply


def own_error(reply: Reply, dialect: Dialect | None, fault: Fault, retry: int = 1) -> int:
    """Answer with an error of the sidecar's own: in the shape the client's SDK knows, or as a problem
    document. `retry`: see `RefusedError`. Returns the status."""
    status = status_of(fault)
    body, fields = error_parts(fault, dialect, retry)
    reply.start(status, reason(fault), fields, sized=True, body=body)
    return status


def error_parts(
    fault: Fault, dialect: Dialect | None = None, retry: int = 1
) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Body and fields of an error of the sidecar's own. `retry`: see `RefusedError`."""
    if dialect is not None and dialect.provider:
        body, kind = dialect.error_body(fault, status_of(fault)), b"application/json"
    else:
        body, kind = problem(fault), b"application/problem+json"
    fields = [
        (b"Content-Type", kind),
        (b"Content-Length", b"%d" % len(body)),
        (b"Slipstream-Error", fault.kind.encode()),
    ]
    if fault.kind in ("overloaded", "draining", "jobs_unavailable", "rate_limited"):
        fields.append((b"Retry-After", b"%d" % max(retry, 1)))
    if fault.kind == "unauthorized":
        fields.append((b"WWW-Authenticate", b"Bearer"))
    return body, fields


_REASONS = {
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    409: b"Conflict",
    410: b"Gone",
    413: b"Content Too Large",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}


def reason(fault: Fault) -> bytes:
    """The reason phrase of a fault's status."""
    return _REASONS[KINDS[fault.kind][0]]
