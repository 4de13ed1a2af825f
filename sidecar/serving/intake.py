"""What may be served: checks of a request's head, the fields that are meant for the sidecar, and the `Call`
that goes upstream.

Everything a client could use to confuse the two sides about where a request ends or where it goes is
refused here, before any byte of it reaches an upstream.
"""

import re

import msgspec

from sidecar.core.dialects import Dialect
from sidecar.core.dialects.base import read_ask
from sidecar.core.errors import RefusedError
from sidecar.core.headers import index, request_fields, tokens
from sidecar.core.types import Intent, Request
from sidecar.core.values import Patience
from sidecar.engine.source import Call
from sidecar.serving.routes import Route
from sidecar.serving.shell import Body

_TARGET = re.compile(rb"/[^\x00-\x20\x7f]*")
_LONGEST_WAIT = 3600.0
_WAIT = re.compile(rb'wait\s*=\s*"?([0-9]{1,9})"?')
_SHARE = re.compile(rb"0(\.[0-9]{0,17})?|1(\.0{0,17})?|\.[0-9]{1,17}")
_SURPRISES = (ValueError, TypeError, AttributeError, RecursionError, msgspec.MsgspecError)


def request_of(
    method: str, target: bytes, headers: tuple[tuple[bytes, bytes], ...], *, http10: bool = False
) -> Request:
    """A request's head, its target byte for byte as it came."""
    path, _, query = target.partition(b"?")
    return Request(
        method=method,
        target=target,
        path=path.decode("utf-8", "backslashreplace"),
        query=query.decode("utf-8", "backslashreplace"),
        headers=headers,
        fields=index(headers),
        http10=http10,
    )


def check(request: Request, limit: int, *, websockets: bool = False) -> None:
    """Raises RefusedError for what must not be forwarded. `limit`: bytes of target and headers. `websockets`:
    whether the connection may leave HTTP for one."""
    fields = request.fields
    if len(request.target) + sum([len(name) + len(value) + 4 for name, value in request.headers]) > limit:
        raise RefusedError("headers_too_large", f"they exceed {limit} bytes")
    if request.method == "CONNECT" or not _TARGET.fullmatch(request.target):
        detail = "the target must be a path; this is no forward proxy: set it as your base URL instead"
        raise RefusedError("bad_request", detail)
    coding = fields.get(b"transfer-encoding")
    if coding is not None and (request.http10 or coding.lower() != b"chunked" or b"content-length" in fields):
        raise RefusedError(
            "bad_request",
            "only Transfer-Encoding: chunked, on HTTP/1.1, without Content-Length",
        )
    host = fields.get(b"host")
    if (host is None and not request.http10) or (host is not None and b"," in host):
        raise RefusedError("bad_request", "exactly one Host header is required")
    upgrade = fields.get(b"upgrade")
    # h2c is an offer that may be ignored (RFC 9113, 3.1); Java's HttpClient makes it with every request.
    if upgrade is None or b"upgrade" not in tokens(fields.get(b"connection", b"")):
        return
    if websockets and upgrade.lower() == b"websocket":
        _check_websocket(request)
    elif tokens(upgrade) != {b"h2c"}:
        raise RefusedError("upgrade_unsupported", "WebSockets are, to upstreams; else use the API without it")


def _check_websocket(request: Request) -> None:
    """Whether it is clear where the request ends (RFC 6455, 4.1). What else is missing the upstream says."""
    fields = request.fields
    if request.method != "GET" or request.http10:
        raise RefusedError("bad_request", "a WebSocket is asked for with GET and HTTP/1.1")
    if b"transfer-encoding" in fields or fields.get(b"content-length", b"0") != b"0":
        raise RefusedError("bad_request", "a request for a WebSocket has no body")


def for_websocket(request: Request) -> bool:
    """Whether it asks for a WebSocket, if it has passed `check`."""
    fields = request.fields
    asked = fields.get(b"upgrade", b"").lower() == b"websocket"
    return asked and b"upgrade" in tokens(fields.get(b"connection", b""))


def intent(dialect: Dialect | None, request: Request, body: Body) -> Intent:
    """What the request asks for. A body that is no JSON object is passed through, never refused."""
    if dialect is None:
        return Intent()
    try:
        parsed = read_ask(body.kept) if body.more is None else {}
        return dialect.intent(request.path, parsed)
    except _SURPRISES:
        return dialect.intent(request.path, {})


def patience(value: bytes | None) -> float | None:
    """`Slipstream-Disconnect` as `policy.patience` takes it. Raises RefusedError for what is none."""
    if value is None:
        return None
    try:
        return Patience.parse(value.decode("ascii", "replace"))
    except ValueError as error:
        raise RefusedError("bad_request", f"Slipstream-Disconnect: {error}", close=False) from None


def similarity(value: bytes | None) -> float | None:
    """`Slipstream-Similarity`; None where there is none. Raises RefusedError for what is none."""
    if value is None:
        return None
    if not _SHARE.fullmatch(value):
        detail = "Slipstream-Similarity: expected a number from 0 to 1, such as 0.95"
        raise RefusedError("bad_request", detail, close=False)
    return float(value)


def preference(request: Request) -> float | None:
    """Seconds that a request for a background job is willing to wait for its answer (RFC 7240, 4.1 and
    4.3); None without `Prefer: respond-async`."""
    prefer = request.fields.get(b"prefer", b"").lower()
    wanted = [part.partition(b";")[0].strip() for part in prefer.split(b",")]
    if b"respond-async" not in wanted or request.method == "HEAD":
        return None  # what comes of a HEAD cannot be fetched: the answer to a GET has a body
    waits = [found for part in wanted if (found := _WAIT.fullmatch(part))]
    return min(float(waits[0][1]), _LONGEST_WAIT) if waits else 0.0


def handshake(request: Request, route: Route) -> Call:
    """A request for a WebSocket as it goes upstream: hop-by-hop are only the two fields that ask for it."""
    made = call(request, route, Body(b"", None, 0.0), identity=False)
    headers = [*made.headers, (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    return msgspec.structs.replace(made, headers=headers, upgrade=b"websocket")


def call(request: Request, route: Route, body: Body, *, identity: bool) -> Call:
    """The request as it goes upstream: the same, but for hop-by-hop fields, `Host` and framing.

    `identity`: ask for an uncompressed answer, because its head will already have been sent.
    """
    fields = request_fields(request.headers, request.fields, route.host)
    if identity:
        fields = [field for field in fields if field[0].lower() != b"accept-encoding"]
        fields.append((b"Accept-Encoding", b"identity"))
    sized = b"content-length" in request.fields
    chunked = body.more is not None and not sized
    if chunked:
        fields.append((b"Transfer-Encoding", b"chunked"))
    elif b"transfer-encoding" in request.fields or (body.kept and not sized):
        # It came in chunks, or in frames of HTTP/2, which needs no length.
        fields.append((b"Content-Length", b"%d" % len(body.kept)))
    return Call(
        origin=route.origin,
        method=request.method,
        target=route.target(request),
        headers=fields,
        body=body.kept,
        more=body.more,
        chunked=chunked,
    )
