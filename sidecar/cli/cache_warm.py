"""An answer to a request that no client has made yet: filed where the sidecar will look for it.

What a request means is asked of the parts of the sidecar that serve requests; nothing of it is decided here.
"""

import math
import re
from http import HTTPStatus
from typing import cast

import msgspec

from sidecar.cli.cache_line import LineError, fields_of, judged
from sidecar.cli.cache_words import REASONS
from sidecar.config import Config
from sidecar.core.canonical import LARGEST
from sidecar.core.dialects import recognise
from sidecar.core.errors import RefusedError, sentence
from sidecar.core.headers import index
from sidecar.core.latency import Trace
from sidecar.core.types import Head, Headers, Request
from sidecar.core.values import Duration
from sidecar.engine.keeping import Kept
from sidecar.engine.pump import Keep, Live
from sidecar.engine.source import Call
from sidecar.serving import intake
from sidecar.serving.asks import Asked, Asks
from sidecar.serving.backend import Upstreams
from sidecar.serving.clients import Clients
from sidecar.serving.keys import Keys
from sidecar.serving.routes import Routes
from sidecar.serving.shell import Body
from sidecar.serving.visit import Visit

_TARGET = re.compile(r"/[!-~]*")
"""As clients write it on the wire."""
_TYPES = {"sse": "text/event-stream", "ndjson": "application/x-ndjson"}


class AskedFor(msgspec.Struct, frozen=True):
    """A request, as an app sends it to the sidecar."""

    path: str
    """With the query, if there is one."""
    body: msgspec.Raw
    """The JSON itself, or a string with it."""
    headers: dict[str, str] = {}


class Answered(msgspec.Struct, frozen=True):
    """What the upstream would answer."""

    body: msgspec.Raw
    status: int = 200
    headers: dict[str, str | list[str]] = {}


class Pair(msgspec.Struct, frozen=True):
    """A line for warming."""

    request: AskedFor
    response: Answered
    ttl: float | str | None = None


class _Nobody:
    """In the place of the visit of a client: all that `Asks.ask` does with it is to note something."""

    def __init__(self) -> None:
        self.trace = Trace.begin("POST")


def _unsent(live: Live, call: Call) -> None:
    """Nothing is asked of an upstream here."""


class Warmer:
    """Makes stored answers of pairs, as a sidecar with this configuration and secret would."""

    def __init__(self, config: Config, secret: bytes, headers: list[tuple[str, str]]) -> None:
        """`headers`: of every request that does not have them itself."""
        # Whether this command's environment turns the cache off says nothing about the sidecar's.
        cache = msgspec.structs.replace(config.cache, mode="exact")
        self._config = msgspec.structs.replace(config, cache=cache)
        self._headers = headers
        self._reasons: list[str] = []
        keys = Keys(config.upstreams, secret)
        if config.cache.share == "upstream":
            keys.read()  # by them, answers are told apart
        else:
            keys.assume()
        limit = config.limits.headers
        self._upstreams = upstreams = Upstreams(Routes(self._config), _unsent, secret, limit, keys=keys)
        self._clients = Clients(config)
        self._asks = Asks(self._config, upstreams, secret, self._reasons.append)
        self.anonymous = 0
        """Requests without a credential."""

    def made(self, pair: Pair, now: float) -> Kept:
        """The answer, to be stored. `now`: unix seconds. Raises LineError."""
        request = self._request(pair.request)
        body = _bytes(pair.request.body, "request.body")
        # How the app writes it, nobody can tell from an object.
        if len(body) > LARGEST and not bytes(pair.request.body).startswith(b'"'):
            raise LineError("request.body is so long that it counts byte for byte: give it as a string")
        if len(body) > self._config.limits.body:
            raise LineError("request.body is larger than limits.body")
        client, request = self._clients.identify(request)
        asking = self._upstreams.caller(request, None, client)
        try:
            self._clients.demand(client, request)
            intake.check(request, self._config.limits.headers)
            intake.patience(request.fields.get(b"slipstream-disconnect"))
            if recognise("POST", request.path) is None:
                raise LineError("request.path is none of a model's API")
            route = self._asks.route(request, request.path)
            asked = self._asks.asked(request, route, Body(body, None, 0.0))
            keep = self._asks.ask(cast("Visit", _Nobody()), asked, asking).keep
        except RefusedError as error:
            raise LineError(sentence(error.fault)) from None
        reasons, self._reasons[:] = [*self._reasons], []
        if keep is None:
            named = {f"not_stored_{reason}": words for reason, words in REASONS.items()}
            raise LineError(
                next((named[each] for each in reasons if each in named), "it would not be stored")
            )
        answer = _bytes(pair.response.body, "response.body")
        kept = judged(
            asked.answer(), self._head(pair.response, asked, len(answer)), answer,
            _lasting(keep, pair.ttl), asked.labels, now,
        )  # fmt: skip
        self.anonymous += asking.tenant is None
        return kept

    def _request(self, asked: AskedFor) -> Request:
        own = {name.lower() for name in asked.headers}
        pairs = [*asked.headers.items()]
        pairs += [(name, value) for name, value in self._headers if name.lower() not in own]
        headers = list(fields_of(pairs))
        names = {name.lower() for name, _ in headers}
        if b"content-type" not in names:
            headers.append((b"Content-Type", b"application/json"))  # as every SDK sends it
        if b"host" not in names:
            headers.append((b"Host", b"localhost"))
        if not _TARGET.fullmatch(asked.path):
            raise LineError(
                "request.path is no path such as /v1/chat/completions, with what is special escaped"
            )
        path, _, query = asked.path.partition("?")
        return Request("POST", asked.path.encode(), path, query, tuple(headers), index(headers))

    @staticmethod
    def _head(answered: Answered, asked: Asked, size: int) -> Head:
        pairs = []
        for name, value in answered.headers.items():
            # The length is that of the body in this file, whatever it was when it was recorded.
            if name.lower() != "content-length":
                pairs += [(name, each) for each in ([value] if isinstance(value, str) else value)]
        headers: Headers = fields_of(pairs)
        streams = asked.intent.stream and asked.dialect is not None
        if b"content-type" not in index(headers):
            framing = asked.dialect.framing_of(asked.request.query) if streams and asked.dialect else None
            kind = _TYPES.get(framing or "", "application/json")
            headers += ((b"Content-Type", kind.encode()),)
        if not streams:
            headers += ((b"Content-Length", b"%d" % size),)
        known = answered.status in list(HTTPStatus)
        phrase = HTTPStatus(answered.status).phrase.encode() if known else b""
        return Head(answered.status, phrase, headers, index(headers))


def _bytes(raw: msgspec.Raw, name: str) -> bytes:
    """JSON as it stands in the line, or what a string holds. Raises LineError."""
    found = bytes(raw)
    if found.startswith((b"{", b"[")):
        return found
    if not found.startswith(b'"'):
        raise LineError(f"{name} is neither a JSON object nor a string")
    try:
        return msgspec.json.decode(found, type=str).encode()
    except ValueError:  # msgspec's, and that of a lone surrogate
        raise LineError(f"{name} is not valid text") from None


def _lasting(keep: Keep, ttl: float | str | None) -> Keep:
    """As long as the line says, but no longer than the configuration does. Raises LineError."""
    if ttl is None:
        return keep
    try:
        seconds = Duration.parse(ttl)
    except ValueError as error:
        raise LineError(f"ttl: {error}") from None
    if not 0 < seconds < math.inf:
        raise LineError("ttl: expected more than 0")
    terms = msgspec.structs.replace(keep.terms, ttl=min(float(seconds), keep.terms.ttl))
    return msgspec.structs.replace(keep, terms=terms)
