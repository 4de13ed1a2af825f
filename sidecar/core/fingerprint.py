"""Who is asking: a request's tenant, as a keyed hash of its credential.

The credential itself goes nowhere but to the upstream. What is logged or used in keys is a keyed hash of
it under a secret that only this installation has, so that it cannot be guessed from outside. BLAKE2b is
a MAC by itself when keyed (RFC 7693, 2.9); HMAC-SHA256 through OpenSSL costs six times as much.
"""

import hashlib
from urllib.parse import parse_qsl

from sidecar.core.headers import CREDENTIALS
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


def tenant(secret: bytes, request: Request) -> str | None:
    """16 hexadecimal digits that stand for the credential; None without one."""
    found = credential(request)
    if found is None:
        return None
    return hashlib.blake2b(found, key=secret, digest_size=8).hexdigest()
