"""What a configuration must be beyond the types of its values."""

import math
import re
from ipaddress import ip_address

import msgspec

from sidecar import checks_inbound
from sidecar.core.semantic.guards import GUARDS
from sidecar.core.values import ConfigError, is_loopback, shown, upstream_url
from sidecar.tables import Config

_LEAST_HEADERS = 1024
_COUNTS_ALWAYS = frozenset(
    {"model", "stream", "stream_options", "messages", "input", "prompt", "contents", "system", "tools"}
)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:\d+)?", re.ASCII)
_MILLISECONDS = "expected milliseconds, such as 500, or 0 for none"


def check(config: Config) -> None:
    """Raises ConfigError."""
    for name, seconds in msgspec.structs.asdict(config.timeouts).items():
        if seconds <= 0:
            raise ConfigError(f"timeouts.{name} = 0: expected more than 0; there is no such thing as none")
    if config.limits.headers < _LEAST_HEADERS:
        raise ConfigError(f"limits.headers = {config.limits.headers:d}: expected at least {_LEAST_HEADERS}")
    if config.server.upstream is not None:
        upstream_url("server.upstream", config.server.upstream)
    if config.otel.endpoint is not None:
        upstream_url("otel.endpoint", config.otel.endpoint, "http://127.0.0.1:4318")
        if config.otel.endpoint.rstrip("/").endswith(("/v1/traces", "/v1/metrics")):
            raise ConfigError(
                "otel.endpoint: expected the collector's address, without /v1/traces or /v1/metrics"
            )
    if config.otel.interval <= 0:
        raise ConfigError("otel.interval = 0: expected more than 0")
    _check_admin(config)
    for name, budget in config.budgets.items():
        for key, value in msgspec.structs.asdict(budget).items():
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"budgets.{name}.{key}: {_MILLISECONDS}")
    for key, prefixes in (
        ("disconnect.paths", config.disconnect.paths),
        ("cache.paths", config.cache.paths),
        ("semantic.paths", config.semantic.paths),
    ):
        for prefix in prefixes:
            if not prefix.startswith("/") or "?" in prefix:
                raise ConfigError(f"{key}: {prefix!r} is no path prefix; expected one such as /v1")
    for name in config.cache.ignore:
        if name in _COUNTS_ALWAYS or "" in name.split("."):
            raise ConfigError(f"cache.ignore: {name!r} cannot be ignored; expected a field such as user")
    for name in config.semantic.skip_guards:
        if name not in GUARDS:
            raise ConfigError(f"semantic.skip_guards: {name!r} is no guard; there are {', '.join(GUARDS)}")
    if config.semantic.embedder != "local":
        upstream_url("semantic.embedder", config.semantic.embedder)
    names = set()
    for number, entry in enumerate(config.upstreams):
        where = f"upstreams[{number}]"
        upstream_url(f"{where}.url", entry.url)
        if entry.name in names or not entry.name:
            raise ConfigError(f"{where}.name = {entry.name!r}: expected a name that no other upstream has")
        names.add(entry.name)
        for prefix in entry.paths:
            if not prefix.startswith("/") or "?" in prefix:
                raise ConfigError(f"{where}.paths: {prefix!r} is no path prefix; expected one such as /v1")
    if config.server.upstream is not None and config.upstreams:
        raise ConfigError("server.upstream and [[upstreams]] exclude each other: keep one of them")
    checks_inbound.check(config)


def _check_admin(config: Config) -> None:
    token = config.admin.token_sha256
    if token is not None:
        checks_inbound.check_hash("admin.token_sha256", token)
    for name in config.admin.hosts:
        if _HOST.fullmatch(name) is None and not _is_address(name):
            raise ConfigError(f"admin.hosts{shown(name)}: expected a host name such as metrics.internal")
    if token is None and not is_loopback(config.admin.host):
        raise ConfigError(
            f"admin.host{shown(config.admin.host)}: beyond loopback it needs admin.token_sha256, "
            f"{checks_inbound.HOW}"
        )


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
