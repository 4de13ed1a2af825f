"""Which upstream a request goes to, by configuration alone."""

import re
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import asdict, replace

from sidecar.config import CacheRule, Config, UpstreamTable
from sidecar.core.caching import Terms
from sidecar.core.dialects import Dialect
from sidecar.core.headers import index, tokens
from sidecar.core.types import Request
from sidecar.core.values import Patience
from sidecar.engine.source import Origin

_GEMINI_VERBS = [
    f"/v1/models/*:{verb}" for verb in ("*Content", "batchEmbedContents", "countTokens", "predict")
]

_GEMINI_LIVE = "/ws/google.ai.generativelanguage.*"

PROVIDERS = [
    UpstreamTable("anthropic", "https://api.anthropic.com", ["/v1/messages", "/v1/complete"]),
    # The SDKs share paths such as /v1/models and /v1/files. Only the header tells whose they are, and
    # a guess would hand one provider's key to another.
    UpstreamTable("anthropic", "https://api.anthropic.com", ["/v1"], header="anthropic-version"),
    UpstreamTable("anthropic", "https://api.anthropic.com", ["/v1"], header="x-api-key"),
    UpstreamTable(
        "gemini",
        "https://generativelanguage.googleapis.com",
        ["/v1beta", "/v1alpha", "/upload/v1beta", "/v1/tunedModels", *_GEMINI_VERBS, _GEMINI_LIVE],
    ),
    UpstreamTable(
        "gemini",
        "https://generativelanguage.googleapis.com",
        ["/v1"],
        header="x-goog-api-key",
    ),
    UpstreamTable("ollama", "http://127.0.0.1:11434", ["/api"]),
    UpstreamTable("openai", "https://api.openai.com", ["/v1"]),
]
"""Known API paths, used while neither `--upstream` nor `[[upstreams]]` is given."""

TAKEN = b"slipstream-token-field"
"""Names the fields from which a client's token was taken out: SDKs of different providers put theirs into
different ones, and by that some paths are told apart. Not forwarded, as nothing of that name is."""

_PROVIDER_OF_HOST = {
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral_ai",
    "api.perplexity.ai": "perplexity",
    "api.x.ai": "x_ai",
}
"""Who is behind an OpenAI-compatible host, in the words of the OpenTelemetry GenAI conventions."""


class Route(msgspec.Struct, frozen=True):
    """One way for requests to go."""

    name: str
    place: str
    """Name and whereabouts: what was said elsewhere, though under the same name, is another's answer."""
    origin: Origin
    host: bytes
    """The `Host` header the upstream expects."""
    base: bytes
    """The path of the upstream's URL, in front of every request's path; empty or without final slash."""
    pattern: re.Pattern[str]
    weight: tuple[int, bool]
    """Longer prefixes go before shorter ones, and those with a header before those without."""
    header: bytes | None
    cut: int
    """Bytes of the request's path that only chose the upstream."""
    patience: float | None
    """What this upstream's configuration says of clients that leave."""
    rule: CacheRule | None
    """What it says of stored answers."""
    threshold: float | None = None
    """What it says of how near two questions have to be."""

    def target(self, request: Request) -> bytes:
        """The target as the upstream gets it."""
        target = request.target[self.cut :] if self.cut else request.target
        return self.base + (target if target.startswith(b"/") else b"/" + target)


class Routes:
    """The routing table."""

    def __init__(self, config: Config, tables: list[UpstreamTable] | None = None) -> None:
        """`tables`: instead of the configured upstreams."""
        self._given = tables
        self.reload(config)

    def reload(self, config: Config) -> None:
        """Go by that configuration from now on."""
        tables = self._given
        if tables is None and config.server.upstream is not None:
            tables = [UpstreamTable("default", config.server.upstream)]
        elif tables is None:
            tables = config.upstreams or PROVIDERS
        made = [_route(table, prefix) for table in tables for prefix in table.paths]
        self._patience: dict[str, Patience] = _longest_first(config.disconnect.paths)
        self._cache = config.cache
        self._semantic = config.semantic
        self._thresholds: dict[str, float] = _longest_first(config.semantic.paths)
        self._rules: dict[str, CacheRule] = _longest_first(config.cache.paths)
        self._terms: dict[tuple[str, str], tuple[CacheRule | None, Terms]] = {}
        self._default = config.disconnect.default
        self._routes = sorted(made, key=lambda route: route.weight, reverse=True)
        self.tables = tables

    @property
    def everywhere(self) -> Route:
        """The way that all requests go where there is only one."""
        (route,) = self._routes
        return route

    @property
    def places(self) -> dict[str, tuple[str, int]]:
        """Host and port of each upstream, by name."""
        return {route.name: (route.origin.host, route.origin.port) for route in self._routes}

    @property
    def headers(self) -> frozenset[bytes]:
        """The header fields, in lower case, that choose an upstream."""
        return frozenset(route.header for route in self._routes if route.header is not None)

    def takes(self, path: str) -> bool:
        """Whether any request to this path has somewhere to go."""
        return any(route.pattern.match(path) and route.header is None for route in self._routes)

    def match(self, request: Request) -> Route | None:
        """The most specific route, or None."""
        for route in self._routes:
            if route.pattern.match(request.path) and (
                route.header is None or route.header in _names(request)
            ):
                return route
        return None

    def terms(self, path: str, route: Route) -> Terms:
        """What goes for the answers from there: as configured for the path, else for the upstream, else for
        all."""
        name = (route.name, next((prefix for prefix in self._rules if _below(path, prefix)), ""))
        rule, terms = self._terms.get(name, (None, None))
        # A request that came before the configuration was read again still goes by its route of then.
        if terms is None or rule is not route.rule:
            terms = self._terms_of(route.rule, self._rules.get(name[1]))
            self._terms[name] = route.rule, terms
        return terms

    def _terms_of(self, *rules: CacheRule | None) -> Terms:
        cache = self._cache
        said = {name: getattr(cache, name) for name in CacheRule.__struct_fields__}
        for rule in rules:
            if rule is not None:
                said |= {name: value for name, value in asdict(rule).items() if value is not None}
        for name in ("ttl", "stale_if_error"):
            said[name] = float(said[name])  # entries are kept as JSON, which knows no `Duration`
        # An entry that fills the store, or the memory for those that wait for it, would drive out all others.
        said["largest"] = min(said["largest"], cache.size // 4)
        return Terms(**said | {"finish": frozenset(said["finish"])})

    def threshold(self, path: str, route: Route, namespace: str | None) -> float:
        """Cosine of two questions from which on they may be the same: as configured for the namespace, else
        for the path, else for the upstream, else for all."""
        semantic = self._semantic
        if namespace is not None and namespace in semantic.namespaces:
            return semantic.namespaces[namespace]
        for prefix, similarity in self._thresholds.items():
            if _below(path, prefix):
                return similarity
        return semantic.threshold if route.threshold is None else route.threshold

    def patience(self, path: str, route: Route) -> float:
        """Seconds that a call there may go on when its client has left: as configured for the path, else
        for the upstream, else for all."""
        for prefix, seconds in self._patience.items():
            if _below(path, prefix):
                return seconds
        return self._default if route.patience is None else route.patience


def as_sent(request: Request) -> Request:
    """A request that comes from outside: what it says in `TAKEN` itself is not for it to say."""
    if TAKEN not in request.fields:
        return request
    headers = tuple([field for field in request.headers if field[0].lower() != TAKEN])
    return replace(request, headers=headers, fields=index(headers))


def _names(request: Request) -> Collection[bytes]:
    """The header fields of a request, and those that it had with a client's token in them."""
    taken = request.fields.get(TAKEN)
    return {*request.fields, *tokens(taken)} if taken is not None else request.fields


def place_of(table: UpstreamTable) -> str:
    """See `Route.place`."""
    parts = urlsplit(table.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{table.name} {parts.scheme}://{parts.hostname or ''}:{port}{parts.path.rstrip('/')}"


def _below(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix.rstrip("/") + "/")


def _longest_first(paths: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(paths.items(), key=lambda item: len(item[0]), reverse=True))


def provider(dialect: Dialect, origin: Origin) -> str | None:
    """`gen_ai.provider.name` for a call in this format to this place."""
    if dialect.provider != "openai":
        return dialect.provider or None
    if origin.host.endswith(".openai.azure.com"):
        return "azure.ai.openai"
    return _PROVIDER_OF_HOST.get(origin.host, "openai")


def _route(table: UpstreamTable, prefix: str) -> Route:
    parts = urlsplit(table.url)
    host = parts.hostname or ""
    default = 443 if parts.scheme == "https" else 80
    port = parts.port or default
    literal = prefix.rstrip("/")
    shown = f"[{host}]" if ":" in host else host
    pattern = re.escape(literal).replace(r"\*", "[^/]*")
    return Route(
        name=table.name,
        place=place_of(table),
        origin=Origin(parts.scheme, host, port),
        host=(shown if port == default else f"{shown}:{port}").encode(),
        base=parts.path.rstrip("/").encode(),
        pattern=re.compile(pattern + r"(?=/|$)", re.DOTALL),
        weight=(len(literal), table.header is not None),
        header=table.header.lower().encode() if table.header else None,
        cut=len(literal.encode()) if table.strip and "*" not in literal else 0,
        patience=table.disconnect,
        rule=table.cache,
        threshold=table.threshold,
    )
