"""Completion webhooks of background jobs: who may be called, what is said, and how often it is tried.

A client names the URL and the operator the origins, so that no client makes the sidecar call what only the
sidecar can reach. A message is signed as Standard Webhooks 1.0.0 has it (standardwebhooks.com), for receivers
to check with a library they have: the id stays the same on every attempt, the timestamp is the attempt's.
"""

import asyncio
import hmac
import random
import re
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv6Address

import msgspec

from sidecar import __version__
from sidecar.core.errors import RefusedError, UpstreamError
from sidecar.core.types import Timings
from sidecar.core.values import ConfigError, shown
from sidecar.engine.source import Call, Origin, Upstream

Told = Callable[[int, bool], Awaitable[None]]

DELAYS = (0, 5, 30, 120, 600, 1800, 7200)
"""Seconds before each attempt, the jitter aside."""
_JITTER = 0.2
"""The most that is added to a delay, as a share of it: what failed together must not come back together."""
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_PORTS = {"http": 80, "https": 443}
_EXPECTED = "expected an origin such as hooks.example.com, hooks.example.com:8443 or http://10.0.0.5:9000"

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_AUTHORITY = re.compile(
    rf"(?P<host>\[[0-9a-f:.]+\]|{_LABEL}(?:\.{_LABEL})*)(?::(?P<port>[1-9][0-9]{{0,4}}))?",
    # ASCII: without it, IGNORECASE also takes U+212A for a k and U+017F for an s.
    re.IGNORECASE | re.ASCII,
)
_NUMERIC = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
"""Hosts that browsers and `getaddrinfo` take for an IPv4 address, 127.1 and 0x7f000001 among them."""
_ODD = (
    (r"(?s).{2049}", "the URL is longer than 2048 characters"),
    (r"[^!-~]", "the URL holds spaces, control or non-ASCII characters; percent-encode them"),
    (r"^(?!(?i:https?)://)", "expected a URL that begins with https:// or http://"),
    (r"#", "the URL has a fragment, which is never sent; leave it out"),
    (r"://[^/?]*@", "a URL with user name or password is not supported; the message is signed instead"),
    # Some parsers look for an `@` behind the host as well, and turn a backslash into a slash.
    (r"[^\w.~!$&'()*+,;=:/?%\[\]-]", "the URL holds a character, @ and \\ among them, to be percent-encoded"),
    (r"%(?![0-9A-Fa-f]{2})", "the URL holds a % that begins no percent-encoded character"),
)
"""What a URL may not hold, in order. A grammar and no parser, which would mend what it is given, each in its
own way (urlsplit drops tabs): what passes reads the same to all of them."""


class Target(msgspec.Struct, frozen=True):
    """Where one job's webhook goes."""

    origin: Origin
    """One of the configured ones; what is connected to is never read out of the URL a second time."""
    host: bytes
    """The `Host` header."""
    path: bytes
    """Origin-form, query included, byte for byte as the client wrote it."""


def allowed(entries: Sequence[str]) -> frozenset[Origin]:
    """The origins that `jobs.webhooks` names. Without a scheme: https, or http to the loopback hosts.
    Raises ConfigError."""
    origins = set()
    for number, entry in enumerate(entries):
        scheme, written, authority = entry.rpartition("://")
        try:
            origin = _origin(scheme.lower() if written else "https", authority)
            if not written and origin.host in _LOOPBACK:
                origin = _origin("http", authority)
        except ValueError as error:
            raise ConfigError(f"jobs.webhooks[{number}]{shown(entry)}: {error}; {_EXPECTED}") from None
        origins.add(origin)
    return frozenset(origins)


def target(url: str, origins: frozenset[Origin]) -> Target:
    """Where a client's URL leads, if it may go there.

    Raises RefusedError; the detail holds no more of the URL than its origin.
    """
    for pattern, reason in _ODD:
        if re.search(pattern, url):
            raise _refused(reason)
    scheme, _, rest = url.partition("://")
    authority = re.split("[/?]", rest, maxsplit=1)[0]
    path = rest[len(authority) :]
    try:
        origin = _origin(scheme.lower(), authority)
    except ValueError as error:
        raise _refused(str(error)) from None
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    host += f":{origin.port}" if origin.port != _PORTS[origin.scheme] else ""
    if origin not in origins:
        raise _refused(f"{origin.scheme}://{host} is none of the origins that jobs.webhooks allows")
    return Target(origin, host.encode(), (path if path.startswith("/") else "/" + path).encode())


def signature(key: bytes, message_id: str, timestamp: int, body: bytes) -> bytes:
    """The value of `webhook-signature`, as Standard Webhooks, "Signature scheme", has it, version included.

    `timestamp`: Unix seconds. `message_id` must hold no full stop: that separates what is signed.
    """
    signed = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
    return b"v1," + b64encode(hmac.digest(key, signed, "sha256"))


def shown_key(key: bytes) -> str:
    """The key as receivers' libraries take it. The specification wants 24 to 64 random bytes."""
    return "whsec_" + b64encode(key).decode()


class Webhooks:
    """Delivers messages. `delays`: seconds before each attempt; `timeout`: seconds that each has in all."""

    def __init__(
        self,
        upstream: Upstream,
        key: bytes,
        *,
        delays: Sequence[float] = DELAYS,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        timeout: float = 10.0,
    ) -> None:
        self._upstream, self._key = upstream, key
        self._delays, self._sleep, self._timeout = delays, sleep, timeout

    async def deliver(
        self, target: Target, job_id: str, body: bytes, *, attempts: int = 0, on_attempt: Told | None = None
    ) -> bool:
        """Try until the receiver takes the message (2xx), wants no more (410) or the delays run out.

        Returns whether it took it. `attempts`: how many were made before; the next one's delay is waited for
        in full. `on_attempt` gets each attempt's number, counted from 1, and whether it succeeded; what it
        raises, this raises. Cancelling closes the connection.
        """
        for number, delay in enumerate(self._delays[attempts:], attempts + 1):
            if delay:
                await self._sleep(delay * (1 + random.uniform(0, _JITTER)))  # noqa: S311 - spreads load, no secret
            status = await self._attempt(target, job_id, body)
            delivered = 200 <= status <= 299
            if on_attempt is not None:
                await on_attempt(number, delivered)
            if delivered or status == 410:
                return delivered
        return False

    async def _attempt(self, target: Target, job_id: str, body: bytes) -> int:
        """The status of the answer; 0 when there was none in time."""
        now = int(time.time())
        fields = [
            (b"Host", target.host),
            (b"User-Agent", b"slipstream/" + __version__.encode()),
            (b"Content-Type", b"application/json"),
            (b"Content-Length", b"%d" % len(body)),
            (b"webhook-id", job_id.encode()),
            (b"webhook-timestamp", b"%d" % now),
            (b"webhook-signature", signature(self._key, job_id, now, body)),
        ]
        call = Call(target.origin, "POST", target.path, fields, body)
        try:
            async with asyncio.timeout(self._timeout):
                source = await self._upstream.open(call, Timings())
                # Nothing is awaited between the two: neither the timeout nor a cancel finds it open.
                source.close()
        except (UpstreamError, TimeoutError):
            return 0
        return source.head.status


def _refused(reason: str) -> RefusedError:
    return RefusedError("bad_request", f"Slipstream-Webhook: {reason}", close=False)


def _origin(scheme: str, authority: str) -> Origin:
    """Raises ValueError with the reason."""
    if scheme not in _PORTS:
        raise ValueError("only https and http are supported")
    found = _AUTHORITY.fullmatch(authority)
    port = int(found["port"] or _PORTS[scheme]) if found else 0
    if found is None or len(found["host"]) > 253 or port > 65535:
        raise ValueError("there must be a plain host name or address and at most a port, 1 to 65535")
    host = found["host"].lower()
    try:
        if host.startswith("["):
            host = str(IPv6Address(host[1:-1]))
        elif _NUMERIC.fullmatch(host):
            IPv4Address(host)
    except ValueError:
        raise ValueError("the host looks like an IP address and is none") from None
    return Origin(scheme, host, port)
