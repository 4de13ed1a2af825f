"""Which providers `slipstream doctor` may ask for a few tokens, and in which words.

A key in a provider's own variable goes to that provider alone: over TLS, to its host and port. Whatever the
name of a model looks like, another host never gets it. The `key_file` of an upstream is for that upstream,
and crosses no network without TLS. Servers that are no known provider are asked only where somebody names a
model for them, with that `key_file` or without any key.
"""

import os
from collections.abc import Mapping
from urllib.parse import quote, urlsplit

import msgspec
import orjson

from sidecar.checks_inbound import read_key
from sidecar.cli.doctor_http import sendable
from sidecar.cli.doctor_reach import origin_of
from sidecar.cli.doctor_show import Finding, fail
from sidecar.config import Config, UpstreamTable
from sidecar.core.types import Request
from sidecar.core.values import ConfigError, is_loopback
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
    """Where the key is from; empty where none is sent."""

    def __repr__(self) -> str:
        return f"Ask({self.provider}, {self.model})"  # `fields` hold a key

    @property
    def request(self) -> Request:
        return request_of("POST", self.target.encode(), ())

    def trouble(self, status: int) -> tuple[str, str]:
        """What an error of the provider's means, and what to do."""
        if status in (401, 403) and not self.whence:
            return (
                f"it wants a key ({status}), and none was sent",
                "name its key_file in [[upstreams]]; beyond this machine a key is sent over https only",
            )
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
    """How names of its models begin. All others are asked for in OpenAI's format, whosever they are."""

    @property
    def origin(self) -> Origin:
        """The only place for the key in its variable."""
        return Origin("https", self.host, 443)


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


def asks(
    config: Config, model: str | None, environment: Mapping[str, str] = os.environ
) -> list[Ask | Finding]:
    """All that can be put with the keys at hand, and what is wrong with those that cannot be sent. `model`:
    named by the user."""
    names = [_format_of(model)] if model is not None else list(PROVIDERS)
    made = [_ask(config, name, model, environment) for name in names]
    return [ask for ask in made if ask is not None]


def _format_of(model: str) -> str:
    name = model.lower()
    return next((key for key, value in PROVIDERS.items() if name.startswith(value.prefixes)), "openai")


def _ask(
    config: Config, name: str, model: str | None, environment: Mapping[str, str]
) -> Ask | Finding | None:
    provider = PROVIDERS[name]
    written = model or provider.model
    path = _path(config, name, provider.path.format(model=quote(written, safe="")))
    routes = Routes(config)
    # As an app with a key sends it: the names of fields choose upstreams, too.
    request = _request(path, _words(name, written, "")[0])
    route = routes.match(request)
    if route is None:
        return None
    table = next(each for each in routes.tables if each.name == route.name)
    found = _key(config, table, provider, environment, named=model is not None)
    if not isinstance(found, tuple):
        return found
    key, whence = found
    direct = route.target(request).decode()
    fields, body = _words(name, written, key)
    if table.key_header is not None and key is not None:
        fields = {field: value for field, value in fields.items() if key not in value}
        fields[table.key_header] = key
    made = _made(name, table.url, written, path, direct, fields, body)
    again = routes.match(_request(path, made.fields))
    if again is None or again.name != route.name:
        return None  # the sidecar would hand it, and the key in it, to another upstream
    return msgspec.structs.replace(made, whence=whence)


def _request(path: str, fields: Mapping[str, str]) -> Request:
    pairs = [(name.encode(), value.encode()) for name, value in fields.items()]
    return request_of("POST", path.encode(), tuple(pairs))


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
) -> tuple[str | None, str] | Finding | None:
    """The key and where it is from, or what is wrong with it; None where nothing is to be asked."""
    origin = origin_of(table.url)
    own = origin == provider.origin
    if table.key_file is not None and (own or named):
        if origin.scheme != "https" and not is_loopback(origin.host):
            return None, ""
        where = f"upstreams[{config.upstreams.index(table)}].key_file"
        try:
            return read_key(where, table.key_file).decode("ascii"), table.key_file
        except ConfigError:
            return None  # it has a finding of its own
    key = environment.get(provider.variable, "").strip()
    if own and key:
        if sendable(key):
            return key, provider.variable
        fact = "not one word of ASCII, as keys are: it is not sent"
        remedy = f"set {provider.variable} to the key and nothing else, or unset it, or --no-calls"
        return fail(provider.variable, fact, remedy)
    # A server of one's own often wants none.
    return (None, "") if named and not own else None


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
