"""Who may ask: the clients of the configuration, told by their tokens, and held to their limits.

Only the SHA-256 of a token is known. What came with one goes on without it: the field that carried it is
taken out before the request is forwarded, made a key or a job of, or told about.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable

import msgspec

from sidecar.config import Config
from sidecar.core.errors import RefusedError
from sidecar.core.fingerprint import without_credentials
from sidecar.core.headers import index
from sidecar.core.types import Request
from sidecar.core.values import ConfigError
from sidecar.serving.routes import TAKEN
from sidecar.serving.shares import Shares

_CARRIERS = frozenset({b"proxy-authorization", b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"})
"""Where a token may stand: where the SDKs of OpenAI, Anthropic, Azure and Gemini put a key, or where proxies
expect theirs, so that a provider's key has room beside it."""
_SCHEMED = frozenset({b"proxy-authorization", b"authorization"})
_BEARER = re.compile(rb"(?i)bearer +")
_WORDS = re.compile(rb"[ \t,]+")
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
        """Of this process, by name."""
        self.generation = 0
        """Counts the tables there were."""

    def __bool__(self) -> bool:
        """Whether there are any; else everybody may ask."""
        return bool(self._table)

    # Who asks.

    def identify(self, request: Request) -> tuple[Client | None, Request]:
        """Whose token a request has, and the request without it. None where there is no token, or no good
        one, or those of several clients."""
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

    def check(self, config: Config) -> None:
        """Raises ConfigError if they cannot be replaced by those."""
        if self._table and not config.clients:
            raise ConfigError("clients: the last one can only be taken out by a restart: then all may ask")

    def reload(self, config: Config) -> None:
        """Replace them. What is being served goes on; what comes from now on is asked anew. Raises
        ConfigError, and nothing has changed then."""
        self.check(config)
        table = _table(config)
        if table == self._table:
            return
        names = _names(table)
        if names != _names(self._table):
            try:
                shares = self._make(names)
            except OSError as error:
                raise ConfigError(f"clients: their limits cannot be kept: {error.strerror}") from None
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
    return sorted(client.name for client in table.values())


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
    """The request without any field that has the token in it."""
    kept = [field for field in request.headers if not _carries(*field, token)]
    taken = {name.lower() for name, value in request.headers if _carries(name, value, token)}
    headers = (*kept, (TAKEN, b", ".join(sorted(taken))))
    target = request.target
    query = request.query
    if token in target:
        target = without_credentials(target)
        query = target.partition(b"?")[2].decode("utf-8", "backslashreplace")
    return msgspec.structs.replace(
        request, target=target, query=query, headers=headers, fields=index(headers)
    )


def _carries(name: bytes, value: bytes, token: bytes) -> bool:
    carrier = name.lower()
    if carrier not in _CARRIERS or token not in value:
        return False
    return token in _tokens(value, schemed=carrier in _SCHEMED) or token in _WORDS.split(value)


def _is_heavy(request: Request) -> bool:
    """Whether a body follows that is not worth reading, or that its client waits to be asked for: what comes
    next on the connection may then be the body, or the next request."""
    fields = request.fields
    length = fields.get(b"content-length", b"0")
    long = not length.isdigit() or len(length) > 9 or int(length) > _UNREAD
    return long or b"expect" in fields or b"transfer-encoding" in fields
