"""Which upstream a request goes to, by configuration alone."""

import re
from urllib.parse import urlsplit

import msgspec

from sidecar.config import Config, UpstreamTable
from sidecar.core.dialects import Dialect
from sidecar.core.types import Request
from sidecar.engine.source import Origin

_GEMINI_VERBS = [
    f"/v1/models/*:{verb}" for verb in ("*Content", "batchEmbedContents", "countTokens", "predict")
]

PROVIDERS = [
    UpstreamTable("anthropic", "https://api.anthropic.com", ["/v1/messages", "/v1/complete"]),
    # The SDKs share paths such as /v1/models and /v1/files. Only the header tells whose they are, and
    # a guess would hand one provider's key to another.
    UpstreamTable("anthropic", "https://api.anthropic.com", ["/v1"], header="anthropic-version"),
    UpstreamTable("anthropic", "https://api.anthropic.com", ["/v1"], header="x-api-key"),
    UpstreamTable(
        "gemini",
        "https://generativelanguage.googleapis.com",
        ["/v1beta", "/v1alpha", "/upload/v1beta", "/v1/tunedModels", *_GEMINI_VERBS],
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

    def target(self, request: Request) -> bytes:
        """The target as the upstream gets it."""
        target = request.target[self.cut :] if self.cut else request.target
        return self.base + (target if target.startswith(b"/") else b"/" + target)


class Routes:
    """The routing table."""

    def __init__(self, config: Config) -> None:
        if config.server.upstream is not None:
            tables = [UpstreamTable("default", config.server.upstream)]
        else:
            tables = config.upstreams or PROVIDERS
        made = [_route(table, prefix) for table in tables for prefix in table.paths]
        self._patience = sorted(config.disconnect.paths.items(), key=lambda item: len(item[0]), reverse=True)
        self._default = config.disconnect.default
        self._routes = sorted(made, key=lambda route: route.weight, reverse=True)
        self.tables = tables

    def takes(self, path: str) -> bool:
        """Whether any request to this path has somewhere to go."""
        return any(route.pattern.match(path) and route.header is None for route in self._routes)

    def match(self, request: Request) -> Route | None:
        """The most specific route, or None."""
        for route in self._routes:
            if route.pattern.match(request.path) and (route.header is None or route.header in request.fields):
                return route
        return None

    def patience(self, path: str, route: Route) -> float:
        """Seconds that a call there may go on when its client has left: as configured for the path, else
        for the upstream, else for all."""
        for prefix, seconds in self._patience:
            if path == prefix or path.startswith(prefix.rstrip("/") + "/"):
                return seconds
        return self._default if route.patience is None else route.patience


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
        origin=Origin(parts.scheme, host, port),
        host=(shown if port == default else f"{shown}:{port}").encode(),
        base=parts.path.rstrip("/").encode(),
        pattern=re.compile(pattern + r"(?=/|$)", re.DOTALL),
        weight=(len(literal), table.header is not None),
        header=table.header.lower().encode() if table.header else None,
        cut=len(literal.encode()) if table.strip and "*" not in literal else 0,
        patience=table.disconnect,
    )
