"""Who is asking, and what: scopes and keys, as hashes.

The credential itself goes nowhere but to the upstream. What is logged or used in keys is a keyed hash of
it under a secret that only this installation has, so that it cannot be guessed from outside. BLAKE2b is
a MAC by itself when keyed (RFC 7693, 2.9); HMAC-SHA256 through OpenSSL costs six times as much.
"""

import hashlib
from urllib.parse import parse_qsl

import msgspec

from sidecar.core.canonical import LARGEST, canonical
from sidecar.core.headers import CREDENTIALS, HOP_BY_HOP
from sidecar.core.types import Request

_QUERY = frozenset({"key", "api_key", "api-key", "access_token"})


def credential(request: Request) -> bytes | None:
    """All that says who is asking, header or query, or None when nothing does."""
    found = [(name, request.fields[name]) for name in CREDENTIALS if name in request.fields]
    if "=" in request.query:
        pairs = parse_qsl(request.query, keep_blank_values=True, errors="surrogateescape")
        found += [
            (b"?" + name.encode(), value.encode(errors="surrogateescape"))
            for name, value in pairs
            if name in _QUERY
        ]
    # With lengths, so that no value can be mistaken for several.
    return b"".join(b"%b %d:%b" % (name, len(value), value) for name, value in found) or None


class Caller(msgspec.Struct, frozen=True):
    """Who asks, without the credential itself."""

    scope: bytes
    """32 bytes that stand for the credential in keys and ids. No credential is a scope of its own."""
    tenant: str | None
    """16 hexadecimal digits of it for the log; None without a credential."""


def caller(secret: bytes, request: Request) -> Caller:
    """Who asks, under this installation's secret."""
    found = credential(request)
    scope = hashlib.blake2b(found or b"", key=secret, digest_size=32, person=b"scope").digest()
    return Caller(scope, scope[:8].hex() if found is not None else None)


def identity(scope: bytes, upstream: str, request: Request, body: bytes) -> bytes:
    """What makes a request the same request again, body byte for byte, whichever client sends it."""
    return _digest(b"identity", scope, upstream, request, body)


def exact_key(scope: bytes, upstream: str, request: Request, body: bytes) -> bytes | None:
    """SHA-256 over everything that may change the answer; None for a body that cannot be judged.

    Of the body every field counts, in any order and spelling. Of the headers all count that are not known
    to be about something else: a header of some gateway may choose the model or say who asks, and a wrong
    answer that looks right is worse than a call too many.
    """
    canon = body if len(body) > LARGEST else canonical(body)
    return _digest(b"exact", scope, upstream, request, canon) if canon is not None else None


def _digest(kind: bytes, scope: bytes, upstream: str, request: Request, body: bytes) -> bytes:
    fields = request.fields
    parts = [_VERSION, kind, scope, upstream.encode(), request.method.encode(), request.target]
    for key in sorted(fields):
        if key == _NAMESPACE or (key not in _ASIDE and not key.startswith(_ASIDE_FAMILIES)):
            parts += (key, fields[key])
    made = hashlib.sha256()
    # With lengths, so that no part can be mistaken for several, or the body for some of them.
    made.update(b"".join([b"%d:%b" % (len(part), part) for part in parts]) + b"%d:" % len(body))
    made.update(body)
    return made.digest()


_NAMESPACE = b"slipstream-namespace"
_VERSION = b"1"
"""Of the key's form: another form must never find what this one stored."""

_ASIDE = frozenset(
    {
        *HOP_BY_HOP,
        *CREDENTIALS,  # the scope stands for them
        b"accept",
        b"accept-encoding",
        b"cache-control",
        b"client-request-id",
        b"content-length",
        b"date",
        b"dnt",
        b"expect",
        b"host",
        b"http-referer",
        b"idempotency-key",
        b"last-event-id",
        b"newrelic",
        b"pragma",
        b"priority",
        b"referer",
        b"request-id",
        b"sentry-trace",
        b"te",
        b"traceparent",
        b"tracestate",
        b"user-agent",
        b"via",
        b"x-amzn-trace-id",
        b"x-client-request-id",
        b"x-cloud-trace-context",
        b"x-correlation-id",
        b"x-forwarded-for",
        b"x-forwarded-port",
        b"x-forwarded-proto",
        b"x-goog-api-client",
        b"x-real-ip",
        b"x-request-id",
        b"x-request-start",
        b"x-requested-with",
        b"x-title",
    }
)
_ASIDE_FAMILIES = (b"sec-", b"slipstream-", b"x-b3-", b"x-datadog-", b"x-stainless-")
"""Headers about the connection, the client or the trace."""
