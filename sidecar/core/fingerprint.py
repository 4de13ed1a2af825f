"""Who is asking: a request's tenant, as a keyed hash of its credential.

The credential itself goes nowhere but to the upstream. What is logged or used in keys is an HMAC of
it under a secret that only this installation has, so that it cannot be guessed from outside.
"""

import hmac
from urllib.parse import parse_qsl

from sidecar.core.types import Request

_HEADERS = (b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key", b"cookie")
_QUERY = frozenset({"key", "api_key", "api-key", "access_token"})


def credential(request: Request) -> bytes | None:
    """All that says who is asking, header or query, or None when nothing does."""
    found = [name + b"\0" + request.fields[name] for name in _HEADERS if name in request.fields]
    if "=" in request.query:
        pairs = parse_qsl(request.query, keep_blank_values=True, errors="surrogateescape")
        found += [
            f"{name}\0{value}".encode(errors="surrogateescape") for name, value in pairs if name in _QUERY
        ]
    return b"\n".join(found) if found else None


def tenant(secret: bytes, request: Request) -> str | None:
    """16 hexadecimal digits that stand for the credential; None without one."""
    found = credential(request)
    return hmac.digest(secret, found, "sha256").hex()[:16] if found is not None else None
