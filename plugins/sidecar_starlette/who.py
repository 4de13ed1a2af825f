"""Who asks: what `credential=` says, and where it says nothing, whatever else a request may say of that."""

import re
import secrets
from collections.abc import Callable

from sidecar.core.fingerprint import credential
from sidecar.core.headers import CREDENTIALS
from sidecar.core.types import Request
from sidecar.core.values import ConfigError
from sidecar_starlette.asgi import Scope

Credential = str | Callable[[Scope], str | bytes | None]
"""A header's name, or a callable that names who asks."""

_MAY_SAY = re.compile(rb"auth|user|token|session|ident|principal|account|tenant|customer|api-?key|jwt|secret")
"""In the name of a field: it may say who asks, as proxies do that sign people in (`X-Forwarded-User`)."""
_NOBODY = frozenset({b"user-agent", b"sec-fetch-user", *CREDENTIALS})
_NAMES = ("identity", "username", "id", "email", "display_name")
"""Where users in a scope have their names."""


class Who:
    """Tells it."""

    def __init__(self, given: Credential | None) -> None:
        """Raises ConfigError."""
        if isinstance(given, str) and not given.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(f"credential = {given!r}: expected the name of a header, or a callable")
        self._ask = given if callable(given) else None
        self.field = given.lower().encode("latin-1") if isinstance(given, str) else None
        """The header field, in lower case, that names it; None where there is none."""

    def asks(self, request: Request, scope: Scope) -> tuple[bytes | None, bool]:
        """All that says who asks, None if nothing does; and whether that is what was configured."""
        named: object = None
        if self.field is not None:
            named = request.fields.get(self.field)
        elif self._ask is not None:
            named = self._ask(scope)
        if named is not None and not isinstance(named, str | bytes):
            raise TypeError(f"credential: expected a string, bytes or None, not {type(named).__name__}")
        if named:
            value = named.encode() if isinstance(named, str) else named
            return b"tenant %d:%b" % (len(value), value), True
        found = credential(request) or b""
        for name, value in request.fields.items():
            if name not in _NOBODY and _MAY_SAY.search(name):
                found += b"%b %d:%b" % (name, len(value), value)
        for kind, text in (("user", _user(scope.get("user"))), ("tls", _certificate(scope))):
            if text is not None:
                found += b"%b %d:%b" % (kind.encode(), len(text), text)
        return found or None, False


def _user(user: object) -> bytes | None:
    """Whom an outer middleware has signed in."""
    if not getattr(user, "is_authenticated", False):
        return None
    for name in _NAMES:
        try:
            value = getattr(user, name, None)
        except NotImplementedError:  # Starlette's `BaseUser` has some of them
            continue
        if isinstance(value, str | int) and value != "":
            return f"{name} {value}".encode(errors="surrogateescape")
    return secrets.token_bytes(16)  # somebody, and nobody knows who: nobody else, then


def _certificate(scope: Scope) -> bytes | None:
    tls = (scope.get("extensions") or {}).get("tls") or {}
    named = tls.get("client_cert_name")
    return str(named).encode(errors="surrogateescape") if named else None
