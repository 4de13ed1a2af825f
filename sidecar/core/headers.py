"""Which header fields end at a proxy, and which go through."""

from collections.abc import Iterable

from sidecar.core.types import Headers

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""RFC 9110, 7.6.1, and the two proxy credentials, which are meant for the nearest proxy only."""

NOT_FORWARDED = HOP_BY_HOP | {b"expect"}
"""`Expect: 100-continue` is answered here: waiting for the upstream's 100 would cost a round trip."""

CREDENTIALS = (
    b"authorization",
    b"x-api-key",
    b"api-key",
    b"x-goog-api-key",
    b"cookie",
    # Those of gateways in front of models.
    b"cf-aig-authorization",
    b"helicone-auth",
    b"ocp-apim-subscription-key",
    b"x-litellm-api-key",
    b"x-portkey-api-key",
)
"""The fields that say who is asking."""

_NEVER_NOMINATED = frozenset({b"close", b"content-length", b"host", b"cache-control", *CREDENTIALS})
"""Names that `Connection:` may not take away: framing, routing, and who is asking."""


def index(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Fields by lower-case name. Repeated fields are joined as RFC 9110, 5.3 has it."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        key = name.lower()
        found[key] = found[key] + b", " + value if key in found else value
    return found


def tokens(value: bytes) -> set[bytes]:
    """The members of a comma-separated list, in lower case."""
    return {part.strip().lower() for part in value.split(b",")} - {b""}


def directives(value: bytes) -> dict[bytes, bytes]:
    """The members of `Cache-Control` or `Prefer` by their names, in lower case, with their values, empty
    where there are none. Of those that are repeated the first counts (RFC 9111, 4.2.1)."""
    found: dict[bytes, bytes] = {}
    for part in value.lower().split(b","):
        name, _, given = part.partition(b"=")
        found.setdefault(name.strip(), given.strip())
    return found


def end_to_end(
    headers: Headers, fields: dict[bytes, bytes], drop: frozenset[bytes] = HOP_BY_HOP
) -> list[tuple[bytes, bytes]]:
    """What goes through: order, case and repetition kept; hop-by-hop and nominated fields gone."""
    nominated = fields.get(b"connection")
    if nominated is not None:
        drop = drop | (tokens(nominated) - _NEVER_NOMINATED)
    return [field for field in headers if field[0].lower() not in drop]


def request_fields(headers: Headers, fields: dict[bytes, bytes], host: bytes) -> list[tuple[bytes, bytes]]:
    """The client's fields as the upstream gets them: its own `Host`, and no `Slipstream-*`."""
    kept = end_to_end(headers, fields, NOT_FORWARDED)
    if [key for key in fields if key[:11] == b"slipstream-"]:
        kept = [field for field in kept if not field[0].lower().startswith(b"slipstream-")]
    for at, (name, _) in enumerate(kept):
        if len(name) == 4 and name.lower() == b"host":
            kept[at] = (name, host)
            return kept
    return [(b"Host", host), *kept]


def render(start: bytes, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A message head on the wire.

    Raises ValueError when a name, a value or the start line would break out of its line: whatever
    let it in, it goes no further (header injection, RFC 9112, 11.1).
    """
    lines = [name + b": " + value for name, value in fields]
    head = b"\r\n".join([start, *lines, b"", b""])
    breaks = len(lines) + 2
    if head.count(b"\n") != breaks or head.count(b"\r") != breaks or b"\0" in head:
        raise ValueError("a header field holds CR, LF or NUL")
    return head
