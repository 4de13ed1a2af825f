"""Requests that a web page has a browser send: refused where they would spend a key of the sidecar's.

Whoever runs on this machine may use the keys of a sidecar without clients. A page of any site, shown by a
browser on this machine, must not, though it can reach the port as well. It cannot forge these fields:

- `Host` is the name that the page's site has: an attacker's, should that name lead to this machine (DNS
  rebinding). Loopback addresses and `localhost` cannot be bought. Those that stand for every address of a
  machine lead here from any page as well, and no app needs them.
- `Origin` is the page's site, with every request that can have a body.
- `Sec-Fetch-Site` says whether that is another one, with the rest.
"""

import re
from ipaddress import ip_address

from sidecar.core.errors import RefusedError
from sidecar.core.types import Request
from sidecar.core.values import is_loopback

_HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(?::[0-9]{1,5})?")
_REMEDY = "this sidecar has the key of the upstream and no [[clients]]"


def check(request: Request, *, any_host: bool) -> None:
    """Raises RefusedError. `any_host`: it may be called by any name."""
    host = request.fields.get(b"host", b"").decode("latin-1").lower()
    if not (_is_plain(host) or (any_host and not _is_unspecified(host))):
        detail = f"{_REMEDY}, so it is served as localhost or by a loopback address only"
        raise RefusedError("forbidden", detail, close=False)
    origin = request.fields.get(b"origin")
    if origin is not None and origin.decode("latin-1").lower() not in (f"http://{host}", f"https://{host}"):
        raise RefusedError("forbidden", f"{_REMEDY}, so pages of other sites may not use it", close=False)
    if request.fields.get(b"sec-fetch-site", b"none") not in (b"same-origin", b"none"):
        raise RefusedError("forbidden", f"{_REMEDY}, so pages of other sites may not use it", close=False)


def _is_plain(host: str) -> bool:
    """Whether that is `localhost` or a loopback address, with or without a port. HTTP/1.0 knows none."""
    name = _name(host)
    return is_loopback(name) if name is not None else not host


def _is_unspecified(host: str) -> bool:
    try:
        return ip_address(_name(host) or "").is_unspecified
    except ValueError:
        return False


def _name(host: str) -> str | None:
    found = _HOST.fullmatch(host)
    return found[1].strip("[]") if found is not None else None
