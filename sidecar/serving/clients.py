"""Who may ask: the clients of the configuration, told by their tokens, and held to their limits.

Only the SHA-256 of a token is known. What came with one goes on without it: the field that carried it is
taken out before the request is forwarded, made a key or a job of, or told about.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable
from urllib.parse import unquote_to_bytes

import msgspec

from sidecar.config import Config
from sidecar.core.errors import RefusedError
from sidecar.core.headers import CREDENTIALS, index
from sidecar.core.types import Request
from sidecar.core.values import ConfigError
from sidecar.serving.routes import TAKEN, as_sent
from sidecar.serving.shares import Shares

_CARRIERS = frozenset({b"proxy-authorization", b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"})
"""Where a token may stand: where the SDKs of OpenAI, Anthropic, Azure and Gemini put a key, or where proxies
expect theirs, so that a provider's key has room beside it."""
_SCHEMED = frozenset({b"proxy-authorization", b"authorization"})
_SECRETS = frozenset({*CREDENTIALS, *_CARRIERS})
"""Where a copy of it may stand as well, in whatever form."""
_PROTOCOLS = b"sec-websocket-protocol"
"""Of these each is looked at by itself: browsers can put a key nowhere else."""
_BEARER = re.compile(rb"(?i)bearer[ \t]+")
_LONGEST = 4096
"""Bytes of a token."""
_UNREAD = 64 << 10
"""Bytes of a body that may be read only to be thrown away."""

MakeShares = Callable[[list[str]], Shares]


class Client(msgspec.Struct, frozen=True):
    """One of them."""

    name: str
    token: bytes
    """SHA-256."""
    namespace: str | None
    requests: int | None
    rate: float | None


class Clients:
    """All of them. One per process."""

    def __init__(self, config: Config, make: MakeShares = lambda names: Shares(None, 0, 1, names)) -> None:
        """`make`: the table of what is used, for clients of these names."""
        self._make = make
        self._table = _table(config)
        self._shares = make(_names(self._table))
        self._running: Counter[str] = Counter()
        """Of this process: requests by name, and calls that go on without their client by `_alone`."""
        self.generation = 0
        """Counts the tables there were."""

    def __bool__(self) -> bool:
        """Whether there are any; else everybody may ask."""
        return bool(self._table)

    # Who asks.

    def identify(self, request: Request) -> tuple[Client | None, Request]:
        """Whose token a request has, and the request without it. None where there is no token, or no good
        one, or those of several clients. What it says about that itself is gone in any case."""
        request = as_sent(request)
        if not self._table:
            return None, request
        found: dict[bytes, Client] = {}
        for name, value in request.headers:
            carrier = name.lower()
            if carrier in _CARRIERS:
                for token in _tokens(value, schemed=carrier in _SCHEMED):
                    client = self._table.get(hashlib.sha256(token).digest())
                    if client is not None:
                        found[token] = client
        if len(found) != 1:
            return None, request
        ((token, client),) = found.items()
        return client, _without(request, token)

    def demand(self, client: Client | None, request: Request) -> None:
        """Raises RefusedError for who is none of them."""
        if client is not None or not self._table:
            return
        detail = "send a client's token as Authorization: Bearer, in the field for the API key, or, beside "
        raise RefusedError(
            "unauthorized",
            detail + "a key of yours, as Proxy-Authorization: Bearer",
            close=_is_heavy(request),
        )

    # What they may.

    def enter(self, client: Client, request: Request) -> None:
        """A request begins; `leave` follows once. Raises RefusedError for one too many, and then it has not
        begun."""
        shares, name = self._shares, client.name
        if client.requests is not None and shares.running(name) >= client.requests:
            detail = f"{client.requests} requests of this client are being served (its limit, `requests`)"
            raise RefusedError("rate_limited", detail, close=_is_heavy(request))
        wait = shares.spend(name, client.rate) if client.rate is not None else 0.0
        if wait:
            detail = f"this client may send {client.rate:g} requests per second (its limit, `rate`)"
            raise RefusedError("rate_limited", detail, close=_is_heavy(request), retry=math.ceil(wait))
        self._set(name, self._running[name] + 1)

    def leave(self, client: Client) -> None:
        """One that had begun has ended."""
        self._set(client.name, self._running[client.name] - 1)

    def room(self, client: Client, request: Request) -> None:
        """Raises RefusedError where no further call may begin for a request that has: calls which go on
        without their client count as well."""
        shares, name = self._shares, client.name
        if client.requests is None or name not in shares:
            return
        if shares.running(name) + shares.running(_alone(name)) > client.requests:
            detail = f"{client.requests} requests of this client (its limit, `requests`) are being served or "
            raise RefusedError("rate_limited", detail + "go on without it", close=_is_heavy(request))

    def left(self, client: Client, count: int) -> None:
        """One call more goes on without its client; with -1, one less."""
        name = _alone(client.name)
        self._set(name, self._running[name] + count)

    def knows(self, client: Client) -> bool:
        """Whether it is still one of them."""
        return client.token in self._table

    def passes(self, client: Client) -> bool:
        """Whether a request may begin and end at once; it has, then."""
        shares = self._shares
        if self._table.get(client.token) != client:
            return False
        if client.requests is not None and shares.running(client.name) >= client.requests:
            return False
        return client.rate is None or not shares.spend(client.name, client.rate)

    def _set(self, name: str, count: int) -> None:
        if count:
            self._running[name] = count
        else:
            del self._running[name]
        if name in self._shares:
            self._shares.set_running(name, count)

    # Other ones.

    def prepare(self, config: Config) -> Callable[[], None]:
        """Make ready to replace them, in any thread. What is returned does it, and does not fail: what is
        being served goes on; what comes then is asked anew. Raises ConfigError."""
        if self._table and not config.clients:
            raise ConfigError("clients: the last one can only be taken out by a restart: then all may ask")
        table = _table(config)
        if table == self._table:
            return lambda: None
        names, shares = _names(table), None
        if names != _names(self._table):
            try:
                shares = self._make(names)
            except OSError as error:
                raise ConfigError(f"clients: their limits cannot be kept: {error.strerror}") from None
        return lambda: self._replace(table, shares)

    def _replace(self, table: dict[bytes, Client], shares: Shares | None) -> None:
        """`shares`: where the names are others."""
        if shares is not None:
            shares.take_over(self._shares)
            for name, count in self._running.items():
                if name in shares:
                    shares.set_running(name, count)
            self._shares.close()
            self._shares = shares
        self._table = table
        self.generation += 1

    def close(self) -> None:
        """Be done with the table of what is used."""
        self._shares.close()


def _table(config: Config) -> dict[bytes, Client]:
    made = [
        Client(table.name, bytes.fromhex(table.token_sha256), table.namespace, table.requests, table.rate)
        for table in config.clients
    ]
    return {client.token: client for client in made}


def _names(table: dict[bytes, Client]) -> list[str]:
    names = [client.name for client in table.values()]
    return sorted([*names, *map(_alone, names)])


def _alone(name: str) -> str:
    """Under what the calls of a client are counted that go on without it; no client has such a name."""
    return f"{name}/alone"


def _tokens(value: bytes, *, schemed: bool) -> list[bytes]:
    """What may be a token in a field's value; of several values in one line, each."""
    values = [value, *value.split(b",")] if b"," in value else [value]
    found = []
    for part in values:
        token = part.strip(b" \t")
        if schemed:
            bearer = _BEARER.match(token)
            if bearer is None:
                continue
            token = token[bearer.end() :]
        if token and len(token) <= _LONGEST:
            found.append(token)
    return found


def _without(request: Request, token: bytes) -> Request:
    """The request without anything that says who asks and has the token in it, however that is written."""
    kept, taken = [], set()
    for name, value in request.headers:
        field, rest = name.lower(), value
        if field in _SECRETS and _has(value, token):
            rest = b""
        elif field == _PROTOCOLS and _has(value, token):
            rest = b", ".join([each.strip() for each in value.split(b",") if not _has(each, token)])
        if rest or not value:
            kept.append((name, rest))
        else:
            taken.add(field)
    headers = (*kept, (TAKEN, b", ".join(sorted(taken))))
    target = _target_without(request.target, token)
    query = target.partition(b"?")[2].decode("utf-8", "backslashreplace")
    return msgspec.structs.replace(
        request, target=target, query=query, headers=headers, fields=index(headers)
    )


def _target_without(target: bytes, token: bytes) -> bytes:
    path, found, query = target.partition(b"?")
    parts = query.split(b"&")
    kept = [part for part in parts if not _has(part, token) and not _has(part.replace(b"+", b" "), token)]
    return target if len(kept) == len(parts) else path + found + b"&".join(kept)


def _has(text: bytes, token: bytes) -> bool:
    return token in text or (b"%" in text and token in unquote_to_bytes(text))


def _is_heavy(request: Request) -> bool:
    """Whether a body follows that is not worth reading, or that its client waits to be asked for: what comes
    next on the connection may then be the body, or the next request."""
    fields = request.fields
    length = fields.get(b"content-length", b"0")
    long = not length.isdigit() or len(length) > 9 or int(length) > _UNREAD
    return long or b"expect" in fields or b"transfer-encoding" in fields
