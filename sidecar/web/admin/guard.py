"""Who may ask the admin port for what. Nothing but decisions: each takes what a request says.

It listens where every page that a browser on this machine shows can send requests to, so what counts is what
pages cannot forge:

| header | may be | or else |
|---|---|---|
| `Host`, exactly one | `localhost`, a loopback address, the name or address that it listens on, one of `admin.hosts`; any address where it listens on all of them. With or without a port | 403 `foreign_host` |
| `Origin`, at most one | `http://` with the very value of `Host`; `https://` where that is one of `admin.hosts`, since something in front has to speak it. `null` is not | 403 `foreign_origin` |
| `Sec-Fetch-Site`, at most one | `same-origin`, or `none`: typed, or a bookmark. Others only where somebody follows a link to the page: GET of `/` with `Sec-Fetch-Mode: navigate` and `Sec-Fetch-Dest: document` | 403 `foreign_site` |

A name that an attacker owns may lead to this machine (DNS rebinding), but then it stands in `Host`. Names below
`localhost` may lead elsewhere first, where a resolver asks the network for them: they have to be listed.

| to do what | it takes | or else |
|---|---|---|
| change something | `Authorization: Bearer` with the token. Not Basic: browsers add that to whatever a page asks for | 401 `token_required`, and 403 `no_token` where none is configured |
| anything but `/healthz`, from beyond loopback | Bearer, or Basic with the token as password and any name | the same |

Tokens are compared by their SHA-256, in constant time.
"""  # noqa: E501 - a table

import binascii
import hashlib
import hmac
import re
from base64 import b64decode
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec

from sidecar.config import Config
from sidecar.core.types import Request
from sidecar.core.values import is_loopback
from sidecar.web.admin.answer import ProblemError

_HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(?::[0-9]{1,5})?")
OPEN = "/healthz"
"""For everybody who knows the host."""
_REMEDY = 'set admin.token_sha256 to the first word of what `printf %s "$TOKEN" | sha256sum` prints'


class Rules(msgspec.Struct, frozen=True):
    """What goes for one admin port."""

    bound: str
    """Where it listens, as configured."""
    hosts: frozenset[str]
    digest: bytes | None
    """SHA-256 of the token."""
    beyond: bool
    """Whether it can be reached from other machines."""


def rules(config: Config, addresses: Collection[str]) -> Rules:
    """`addresses`: those that it listens on in fact."""
    admin = config.admin
    beyond = not all(is_loopback(host) for host in (admin.host, *addresses))
    digest = bytes.fromhex(admin.token_sha256) if admin.token_sha256 else None
    return Rules(admin.host.lower(), frozenset(map(_normal, admin.hosts)), digest, beyond)


def admit(rules: Rules, request: Request) -> None:
    """Raises ProblemError for who may not even look."""
    host, listed = _host(rules, _values(request, b"host"))
    _check_origin(host, _values(request, b"origin"), listed=listed)
    _check_site(request)
    if rules.beyond and request.path != OPEN:
        _check_token(rules, request, basic=True)


def permit(rules: Rules, request: Request) -> None:
    """Raises ProblemError for who may not change anything."""
    _check_token(rules, request, basic=False)


def _values(request: Request, name: bytes) -> list[str]:
    return [value.decode("latin-1") for field, value in request.headers if field.lower() == name]


def _host(rules: Rules, values: list[str]) -> tuple[str, bool]:
    """The value of `Host`, and whether it is listed."""
    value = values[0].lower() if len(values) == 1 else ""
    found = _HOST.fullmatch(value)
    listed = found is not None and not rules.hosts.isdisjoint((_normal(found[1]), _normal(value)))
    if found is None or not (listed or _is_ours(rules, found[1])):
        detail = "this port is not served under that name; list it in admin.hosts if it is yours"
        raise ProblemError(403, "foreign_host", "Another host's name", detail)
    return value, listed


def _is_ours(rules: Rules, name: str) -> bool:
    if name in ("localhost", rules.bound):
        return True
    address, bound = _address(name.strip("[]")), _address(rules.bound)
    if address is None:
        return False
    everywhere = not rules.bound or (bound is not None and bound.is_unspecified)
    return is_loopback(str(address)) or address == bound or everywhere


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _normal(text: str) -> str:
    """A name or an address, with a port or without, as there is one spelling of it."""
    text = text.lower()
    name, _, port = text.rpartition(":")
    if _address(text) is not None or not port.isdigit():
        name, port = text, ""
    address = _address(name.strip("[]"))
    if isinstance(address, IPv6Address):
        name = f"[{address}]"
    return f"{name}:{port}" if port else name


def _check_origin(host: str, values: list[str], *, listed: bool) -> None:
    ours = (f"http://{host}", f"https://{host}") if listed else (f"http://{host}",)
    if values and (len(values) > 1 or values[0].lower() not in ours):
        raise ProblemError(
            403, "foreign_origin", "Another site's page", "only its own page may ask this port in a browser"
        )


def _check_site(request: Request) -> None:
    site, mode, dest = (_values(request, b"sec-fetch-" + name) for name in (b"site", b"mode", b"dest"))
    link = _is_page(request) and mode == ["navigate"] and dest == ["document"]
    if site and site not in (["same-origin"], ["none"]) and not (len(site) == 1 and link):
        raise ProblemError(
            403, "foreign_site", "Another site's page", "from other sites only links to the page at / work"
        )


def _check_token(rules: Rules, request: Request, *, basic: bool) -> None:
    if rules.digest is None:
        raise ProblemError(403, "no_token", "No token is configured", f"this needs one: {_REMEDY}")
    token = _token(_values(request, b"authorization"), basic=basic)
    # Also without one, so that all refusals take the same.
    given = hashlib.sha256(token or b"").digest()
    if not hmac.compare_digest(given, rules.digest) or not token:
        navigates = _is_page(request) and _values(request, b"sec-fetch-mode") in ([], ["navigate"])
        asks = b'Basic realm="slipstream admin", charset="UTF-8"' if basic and navigates else b"Bearer"
        detail = "send Authorization: Bearer with the token whose SHA-256 is admin.token_sha256"
        raise ProblemError(
            401, "token_required", "The token is missing or wrong", detail, (b"WWW-Authenticate", asks)
        )


def _is_page(request: Request) -> bool:
    return request.method in ("GET", "HEAD") and request.path == "/"


def _token(values: list[str], *, basic: bool) -> bytes | None:
    """The token in `Authorization`."""
    scheme, _, rest = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    credential = rest.strip(" ").encode("latin-1")
    if scheme.lower() == "bearer":
        return credential
    if scheme.lower() == "basic" and basic:
        try:
            return b64decode(credential, validate=True).partition(b":")[2]
        except binascii.Error:
            return None
    return None
