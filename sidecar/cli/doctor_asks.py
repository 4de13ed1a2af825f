"""Which providers `slipstream doctor` may ask for a few tokens, and in which words.

Only with a key that was left for it: in the provider's own variable, or in the `key_file` of the upstream. A
key goes to the provider that it is of, and to another host only where somebody names a model for it.
"""

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec
import orjson

from sidecar.checks_inbound import read_key
from sidecar.cli.doctor_reach import origin_of
from sidecar.config import Config, UpstreamTable
from sidecar.core.types import Request
from sidecar.engine.source import Origin
from sidecar.serving.intake import request_of
from sidecar.serving.routes import Routes

TOKENS = 16
"""The most that one answer may have."""
_QUESTION = "Say: ready"


class Ask(msgspec.Struct, frozen=True):
    """One question, as often as it is put."""

    provider: str
    model: str
    origin: Origin
    target: str
    """As an app sends it to a sidecar."""
    direct: str
    """As it is sent to the upstream."""
    fields: dict[str, str]
    body: bytes
    whence: str = ""
    """Where the key is from."""

    def __repr__(self) -> str:
        return f"Ask({self.provider}, {self.model})"  # `fields` hold a key

    @property
    def request(self) -> Request:
        return request_of("POST", self.target.encode(), ())

    def trouble(self, status: int) -> tuple[str, str]:
        """What an error of the provider's means, and what to do."""
        if status in (401, 403):
            return f"the provider refuses the key ({status})", f"correct the key of {self.whence}"
        if status in (400, 404):
            return (
                f"the provider does not take this model or request ({status})",
                "name another: --model NAME",
            )
        if status == 429:
            return (
                "the provider's limit is reached, or nothing is paid for (429)",
                "see the account, or --no-calls",
            )
        return f"the provider answers with {status}", "try again; see whether the provider has trouble"

    @classmethod
    def openai(cls, url: str, model: str, key: str | None, path: str = "/v1/chat/completions") -> "Ask":
        """In OpenAI's format, to that upstream."""
        body = {
            "model": model,
            "stream": True,
            "max_completion_tokens": TOKENS,
            "messages": [{"role": "user", "content": _QUESTION}],
        }
        fields = {"Authorization": f"Bearer {key}"} if key is not None else {}
        return _made("openai", url, model, path, path, fields, body)


def _made(
    provider: str, url: str, model: str, path: str, direct: str, fields: dict[str, str], body: object
) -> Ask:
    given = {"Content-Type": "application/json", **fields}
    # Such an answer would not come in one piece per event.
    given["Accept-Encoding"] = "identity"
    return Ask(provider, model, origin_of(url), path, direct, given, orjson.dumps(body))


class _Provider(msgspec.Struct, frozen=True):
    host: str
    variable: str
    model: str
    """A small one that writes at once."""
    path: str
    prefixes: tuple[str, ...]
    """How names of its models begin."""


PROVIDERS = {
    "openai": _Provider("api.openai.com", "OPENAI_API_KEY", "gpt-4.1-nano", "/v1/chat/completions", ()),
    "anthropic": _Provider(
        "api.anthropic.com", "ANTHROPIC_API_KEY", "claude-haiku-4-5", "/v1/messages", ("claude",)
    ),
    "gemini": _Provider(
        "generativelanguage.googleapis.com",
        "GEMINI_API_KEY",
        "gemini-2.5-flash-lite",
        "/v1beta/models/{model}:streamGenerateContent?alt=sse",
        ("gemini",),
    ),
}


def asks(config: Config, model: str | None, environment: Mapping[str, str] = os.environ) -> list[Ask]:
    """All that can be put with the keys at hand. `model`: named by the user. Raises ConfigError."""
    names = [_provider_of(model)] if model is not None else list(PROVIDERS)
    made = [_ask(config, name, model, environment) for name in names]
    return [ask for ask in made if ask is not None]


def _provider_of(model: str) -> str:
    name = model.lower()
    return next((key for key, value in PROVIDERS.items() if name.startswith(value.prefixes)), "openai")


def _ask(config: Config, name: str, model: str | None, environment: Mapping[str, str]) -> Ask | None:
    provider = PROVIDERS[name]
    written = model or provider.model
    path = _path(config, name, provider.path.format(model=written))
    routes = Routes(config)
    request = request_of("POST", path.encode(), ())
    route = routes.match(request)
    if route is None:
        return None
    table = next(each for each in routes.tables if each.name == route.name)
    found = _key(config, table, provider, environment, named=model is not None)
    if found is None:
        return None
    key, whence = found
    direct = route.target(request).decode()
    fields, body = _words(name, written, key)
    if table.key_header is not None and key is not None:
        fields = {field: value for field, value in fields.items() if key not in value}
        fields[table.key_header] = key
    made = _made(name, table.url, written, path, direct, fields, body)
    return msgspec.structs.replace(made, whence=whence)


def _path(config: Config, name: str, path: str) -> str:
    """As an app would send it: see `slipstream env`."""
    upstream = config.server.upstream
    if name == "openai" and upstream and urlsplit(upstream).path.strip("/"):
        return path.removeprefix("/v1")
    stripped = [table for table in config.upstreams if table.strip and "*" not in table.paths[0]]
    if stripped and Routes(config).match(request_of("POST", path.encode(), ())) is None:
        return stripped[0].paths[0].rstrip("/") + path
    return path


def _key(
    config: Config,
    table: UpstreamTable,
    provider: _Provider,
    environment: Mapping[str, str],
    *,
    named: bool,
) -> tuple[str | None, str] | None:
    """The key and where it is from; None where none may be used."""
    host = urlsplit(table.url).hostname
    if table.key_file is not None and (named or host == provider.host):
        number = config.upstreams.index(table)
        return read_key(f"upstreams[{number}].key_file", table.key_file).decode("ascii"), table.key_file
    key = environment.get(provider.variable, "").strip()
    if key and (named or host == provider.host):
        return key, provider.variable
    chosen = config.server.upstream is not None or bool(config.upstreams)
    # A server of one's own often wants none.
    return (None, "") if named and chosen else None


def _words(name: str, model: str, key: str | None) -> tuple[dict[str, str], dict[str, object]]:
    turn = [{"role": "user", "content": _QUESTION}]
    if name == "anthropic":
        fields = {"anthropic-version": "2023-06-01"} | ({"x-api-key": key} if key is not None else {})
        return fields, {"model": model, "stream": True, "max_tokens": TOKENS, "messages": turn}
    if name == "gemini":
        fields = {"x-goog-api-key": key} if key is not None else {}
        contents = [{"role": "user", "parts": [{"text": _QUESTION}]}]
        return fields, {"contents": contents, "generationConfig": {"maxOutputTokens": TOKENS}}
    made = Ask.openai("http://127.0.0.1", model, key)
    given = {field: value for field, value in made.fields.items() if field == "Authorization"}
    return given, orjson.loads(made.body)
