"""One typed configuration: defaults < file (TOML) < environment < flags.

Times are seconds and sizes bytes; both take suffixes (`250ms`, `10m`, `64MiB`). An unknown key is an
error that names the nearest known one. Every error is one line: key, value, remedy.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from sidecar.core.semantic.guards import GUARDS
from sidecar.core.values import ConfigError, nearest, plain, shown, upstream_url
from sidecar.tables import CacheRule, Config, Limits, Section, Timeouts, UpstreamTable

__all__ = [
    "KEYS",
    "SECTIONS",
    "CacheRule",
    "Config",
    "Limits",
    "Loaded",
    "Section",
    "Timeouts",
    "UpstreamTable",
    "load",
]

PREFIX = "SLIPSTREAM_"
_LEAST_HEADERS = 1024
_COUNTS_ALWAYS = frozenset(
    {"model", "stream", "stream_options", "messages", "input", "prompt", "contents", "system", "tools"}
)

SECTIONS: dict[str, type[Section]] = {
    field.name: field.type for field in msgspec.structs.fields(Config) if field.name != "upstreams"
}
KEYS = [
    f"{section}.{field.name}"
    for section, table in SECTIONS.items()
    for field in msgspec.structs.fields(table)
]


_FLAGS = {
    "server.upstream": "--upstream",
    "server.host": "--host",
    "server.port": "--port",
    "server.workers": "--workers",
    "server.data_dir": "--data-dir",
    "admin.host": "--admin-host",
    "admin.port": "--admin-port",
    "cache.mode": "--cache",
    "log.format": "--log-format",
}


class Loaded(msgspec.Struct, frozen=True):
    """A configuration and where each value that is not a default came from."""

    config: Config
    origins: dict[str, str]


def load(
    flags: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    file: Path | Mapping[str, object] | None = None,
) -> Loaded:
    """Read all layers. `flags`: dotted key -> value, None where not given. `file`: or what would be in it.

    Raises ConfigError.
    """
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    upstreams: list[UpstreamTable] = []
    if file is not None:
        found, upstreams = _read_tree(file if isinstance(file, Mapping) else _read_file(file))
        where = "the given mapping" if isinstance(file, Mapping) else str(file)
        values.update(found)
        origins.update(dict.fromkeys(found, where))
        if upstreams:
            origins["upstreams"] = where
    for name, key in _environment_keys(os.environ if environment is None else environment).items():
        values[key] = (os.environ if environment is None else environment)[name]
        origins[key] = name
    for key, value in (flags or {}).items():
        if value is not None:
            values[key] = value
            origins[key] = _FLAGS.get(key, "a flag")
    if upstreams and origins.get("server.upstream", origins["upstreams"]) != origins["upstreams"]:
        upstreams = []  # a flag or variable goes before the file
    tables: dict[str, dict[str, object]] = {name: {} for name in SECTIONS}
    for key, value in values.items():
        section, _, name = key.partition(".")
        tables[section][name] = _convert(key, value, _type_of(key), origins[key])
    made: dict[str, Any] = {name: SECTIONS[name](**table) for name, table in tables.items()}
    config = Config(upstreams=upstreams, **made)
    _check(config)
    return Loaded(config, origins)


def _read_file(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _read_tree(tree: Mapping[str, object]) -> tuple[dict[str, object], list[UpstreamTable]]:
    values: dict[str, object] = {}
    upstreams: list[UpstreamTable] = []
    for section, table in tree.items():
        if section == "upstreams":
            upstreams = _read_upstreams(table)
            continue
        if section not in SECTIONS:
            raise ConfigError(f"[{section}]: unknown table{nearest(section, [*SECTIONS, 'upstreams'])}")
        if not isinstance(table, dict):
            raise ConfigError(f"{section}: expected a table: write [{section}] and keys below it")
        for name, value in table.items():
            key = f"{section}.{name}"
            if key not in KEYS:
                raise ConfigError(f"{key}: unknown key{nearest(key, KEYS)}")
            values[key] = value
    return values, upstreams


def _read_upstreams(entries: object) -> list[UpstreamTable]:
    if not isinstance(entries, list):
        raise ConfigError("upstreams: expected [[upstreams]] with double brackets")
    known = [field.name for field in msgspec.structs.fields(UpstreamTable)]
    made = []
    for number, entry in enumerate(entries):
        where = f"upstreams[{number}]"
        if not isinstance(entry, dict):
            raise ConfigError(f"{where}: expected a table with name, url and paths")
        for name in entry:
            if name not in known:
                raise ConfigError(f"{where}.{name}: unknown key{nearest(name, known)}")
        try:
            made.append(msgspec.convert(entry, UpstreamTable, dec_hook=_parse))
        except msgspec.ValidationError as error:
            raise ConfigError(f"{where}: {plain(error)}") from None
    return made


def _environment_keys(environment: Mapping[str, str]) -> dict[str, str]:
    """Variable -> dotted key, for the variables that are ours."""
    known = {PREFIX + key.replace(".", "__").upper(): key for key in KEYS}
    loose = {name.replace("_", ""): name for name in known}
    found = {}
    for name in environment:
        if not name.startswith(PREFIX):
            continue
        if name in known:
            found[name] = known[name]
        elif name.replace("_", "") in loose:
            raise ConfigError(f"{name}: unknown variable; did you mean {loose[name.replace('_', '')]}?")
        elif (near := _by_last_part(name, known)) is not None:
            raise ConfigError(f"{name}: unknown variable; did you mean {near}?")
        elif "__" in name.removeprefix(PREFIX):
            raise ConfigError(f"{name}: unknown variable{nearest(name, list(known))}")
    return found


def _by_last_part(name: str, known: Mapping[str, str]) -> str | None:
    """SLIPSTREAM_PORT, say, which would be ignored in silence."""
    last = "__" + name.removeprefix(PREFIX)
    return next((variable for variable in known if variable.endswith(last)), None)


def _type_of(key: str) -> Any:
    section, _, name = key.partition(".")
    return next(field.type for field in msgspec.structs.fields(SECTIONS[section]) if field.name == name)


def _convert(key: str, value: object, kind: Any, origin: str) -> object:
    if key == "keepalive.early" and str(value).lower() in ("off", "false"):
        value = 0
    if key == "cache.max_temperature" and str(value).lower() in ("none", ""):
        value = None
    if isinstance(value, str) and getattr(kind, "__origin__", None) is list:
        value = [part.strip() for part in value.split(",") if part.strip()]
    elif isinstance(value, str) and getattr(kind, "__origin__", None) is dict:
        # /a=finish,/b=grace=5
        value = {name.strip(): rest for name, _, rest in (part.partition("=") for part in value.split(","))}
    if key == "cache.paths" and isinstance(value, dict):
        # Most often it is about the time.
        value = {name: rule if isinstance(rule, dict) else {"ttl": rule} for name, rule in value.items()}
    try:
        return msgspec.convert(value, kind, strict=False, dec_hook=_parse)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{key}{shown(value)}: {plain(error)} (from {origin})") from None


def _parse(kind: Any, raw: object) -> Any:
    return kind.parse(raw)


def _check(config: Config) -> None:
    for name, seconds in msgspec.structs.asdict(config.timeouts).items():
        if seconds <= 0:
            raise ConfigError(f"timeouts.{name} = 0: expected more than 0; there is no such thing as none")
    if config.limits.headers < _LEAST_HEADERS:
        raise ConfigError(f"limits.headers = {config.limits.headers:d}: expected at least {_LEAST_HEADERS}")
    if config.server.upstream is not None:
        upstream_url("server.upstream", config.server.upstream)
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
