"""Who is asking, and what: scopes and keys, as hashes.

The credential itself goes nowhere but to the upstream. What is logged or used in keys is a keyed hash of
it under a secret that only this installation has, so that it cannot be guessed from outside. BLAKE2b is
a MAC by itself when keyed (RFC 7693, 2.9); HMAC-SHA256 through OpenSSL costs six times as much.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec

from sidecar.core.canonical import LARGEST, canonical, forms, without_text
from sidecar.core.dialects import Dialect
from sidecar.core.headers import CREDENTIALS, HOP_BY_HOP
from sidecar.core.ids import belongs
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
    other: bytes | None = None
    """The scope that the same caller has where it is the only credential that counts; see `client_caller`."""
    namespace: str | None = None
    """What the configuration splits off for it, and it cannot leave."""
    key: bytes = b""
    """Stands for the sidecar's own key, where the upstream is asked with one."""

    def holds(self, secret: bytes, name: str) -> bool:
        """Whether an id was made for this caller."""
        return belongs(secret, self.scope, name) or (
            self.other is not None and belongs(secret, self.other, name)
        )


def caller(secret: bytes, request: Request) -> Caller:
    """Who asks, under this installation's secret."""
    return caller_of(secret, credential(request))


def caller_of(secret: bytes, found: bytes | None) -> Caller:
    """The same of a credential; None where there is none."""
    scope = hashlib.blake2b(found or b"", key=secret, digest_size=32, person=b"scope").digest()
    return Caller(scope, scope[:8].hex() if found is not None else None)


def client_caller(
    secret: bytes, token: bytes, namespace: str | None, request: Request, *, key: bytes, alone: bool
) -> Caller:
    """Who asks, of a request that came with a client's token, which it does not have any more.

    `token`: its digest. `key`: stands for the key that the upstream is asked with; the client's other
    credentials, which it does not get, make no difference then. `alone`: no upstream is asked.
    """
    named = (namespace or "").encode()
    own = b"client %d:%b %d:%b" % (len(token), token, len(named), named)
    found = None if key else credential(request)
    made = caller_of(secret, own + found if found is not None else own)
    other = caller_of(secret, own).scope if alone and found is not None else None
    return Caller(made.scope, made.tenant, other, namespace, key)


def identity(scope: bytes, upstream: str, request: Request, body: bytes) -> bytes:
    """What makes a request the same request again, body byte for byte, whichever client sends it."""
    return _digest(b"identity", scope, upstream, request, body)


def exact_key(
    scope: bytes,
    upstream: str,
    request: Request,
    body: bytes,
    ignored: Sequence[str] = (),
    *,
    opaque: bool = False,
) -> bytes | None:
    """SHA-256 over everything that may change the answer; None for a body that cannot be judged. `opaque`:
    such a body counts byte for byte.

    Of the body every field counts that is not `ignored`, in any order and spelling. Of the headers all count
    that are not known to be about something else: a header of some gateway may choose the model or say who
    asks, and a wrong answer that looks right is worse than a call too many.
    """
    canon = body if len(body) > LARGEST else canonical(body, ignored)
    if canon is None and opaque:
        canon = body
    return _digest(b"exact", scope, upstream, request, canon, ignored) if canon is not None else None


class Keys(msgspec.Struct, frozen=True):
    """Where the answer to a request is kept."""

    exact: bytes
    alias: bytes | None = None
    """Where those look for it who ask the same in the other mode: for a whole answer instead of a stream, or
    the other way round."""
    other: bytes | None = None
    """Where to look for an answer to the same in the other mode."""


def keys(
    scope: bytes,
    upstream: str,
    request: Request,
    body: bytes,
    dialect: Dialect,
    *,
    stream: bool,
    ignored: Sequence[str] = (),
) -> Keys | None:
    """Both keys of a request to a model, as `exact_key` makes them. `stream`: whether it wants one."""
    canons = None if len(body) > LARGEST else forms(body, ignored, dialect.mode_fields)
    if canons is None or dialect.framing is None:
        exact = exact_key(scope, upstream, request, body, ignored, opaque=dialect.opaque)
        return Keys(exact) if exact is not None else None
    modeless = msgspec.structs.replace(request, target=dialect.modeless(request.target))
    alias = _digest(b"modeless", scope, upstream, modeless, canons[1], ignored)
    ways = (alias + b"s", alias + b"w")
    own, other = ways if stream else reversed(ways)
    return Keys(_digest(b"exact", scope, upstream, request, canons[0], ignored), own, other)


class Question(msgspec.Struct, frozen=True):
    """What is asked, as far as it may be compared with others."""

    scope: bytes
    """32 bytes over who asks, and everything of the request but the question."""
    text: str
    """The question: the last words of the user."""


def question(
    scope: bytes,
    upstream: str,
    request: Request,
    body: bytes,
    dialect: Dialect,
    ignored: Sequence[str] = (),
) -> Question | None:
    """What is asked in a request to a model; None where the last turn is not plain text, or the body cannot
    be judged. As in exact keys, all headers count that are not known to be about something else."""
    return question_at(scope, upstream, request, body, dialect.question, ignored)


def question_at(
    scope: bytes,
    upstream: str,
    request: Request,
    body: bytes,
    place: Callable[[dict[str, Any]], tuple[str | int, ...] | None],
    ignored: Sequence[str] = (),
) -> Question | None:
    """The same where `place` tells, of the parsed body, where the question is."""
    found = without_text(body, ignored, place) if len(body) <= LARGEST else None
    if found is None:
        return None
    text, rest = found
    return Question(_digest(b"question", scope, upstream, request, rest, ignored), text)


def shared_scope(secret: bytes, caller: Caller, request: Request) -> bytes:
    """The scope of answers that all share who bring a key. Who brings none, or only a cookie, is by
    themselves: no upstream would have answered them. Whether a key is good is not known here."""
    fields = request.fields
    keyed = caller.key or any(fields.get(name, b"").strip() for name in CREDENTIALS if name != b"cookie")
    if not keyed and without_credentials(request.target) == request.target:
        return caller.scope
    # Namespaces and keys of the configuration are for keeping answers apart, here most of all.
    split = b""
    if caller.namespace is not None or caller.key:
        namespace = (caller.namespace or "").encode()
        split = b"%d:%b %b" % (len(namespace), namespace, caller.key)
    return hashlib.blake2b(split, key=secret, digest_size=32, person=b"shared").digest()


def _digest(
    kind: bytes, scope: bytes, upstream: str, request: Request, body: bytes, ignored: Sequence[str] = ()
) -> bytes:
    fields = request.fields
    parts = [_VERSION, kind, scope, upstream.encode(), request.method.encode()]
    parts.append(without_credentials(request.target))
    for key in sorted(fields):
        if key == NAMESPACE or (key not in _ASIDE and not key.startswith(_ASIDE_FAMILIES)):
            parts += (key, fields[key])
    if ignored:
        # What was stored while a field made no difference is of no use once it makes one.
        parts.append(b"\n".join(sorted([name.encode() for name in ignored])))
    made = hashlib.sha256()
    # With lengths, so that no part can be mistaken for several, or the body for some of them.
    made.update(b"".join([b"%d:%b" % (len(part), part) for part in parts]) + b"%d:" % len(body))
    made.update(body)
    return made.digest()


def without_credentials(target: bytes) -> bytes:
    """Path and query without a credential, which the scope stands for."""
    path, found, query = target.partition(b"?")
    if not found:
        return target
    parts = query.split(b"&")
    kept = [part for part in parts if _name(part) not in _QUERY]
    return target if len(kept) == len(parts) else path + b"?" + b"&".join(kept)


def _name(part: bytes) -> str:
    """Of a part of a query."""
    return unquote_to_bytes(part.partition(b"=")[0].replace(b"+", b" ")).decode("latin-1")


NAMESPACE = b"slipstream-namespace"
_VERSION = b"1"
"""Of the key's form: another form must never find what this one stored."""

_ASIDE = frozenset(
    {
        *HOP_BY_HOP,
        *CREDENTIALS,  # the scope stands for them
        b"accept",
        b"accept-encoding",
        b"baggage",
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
