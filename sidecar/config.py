"""One typed configuration: defaults < file (TOML) < environment < flags.

Times are seconds and sizes bytes; both take suffixes (`250ms`, `10m`, `64MiB`). An unknown key is an
error that names the nearest known one. Every error is one line: key, value, remedy.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sidecar.checks import check
from sidecar.core.values import ConfigError, nearest, plain, shown
from sidecar.tables import (
    BUDGETS,
    Budget,
    CacheRule,
    ClientTable,
    Config,
    Limits,
    Section,
    Timeouts,
    UpstreamTable,
)

__all__ = [
    "KEYS",
    "SECTIONS",
    "Budget",
    "CacheRule",
    "ClientTable",
    "Config",
    "Limits",
    "Loaded",
    "Section",
    "Timeouts",
    "UpstreamTable",
    "load",
]

PREFIX = "SLIPSTREAM_"

Entry = TypeVar("Entry", bound=Section)

SECTIONS: dict[str, type[Section]] = {
    field.name: field.type
    for field in msgspec.structs.fields(Config)
    if field.name not in ("upstreams", "clients", "budgets")
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
_BUDGETS = [field.name for field in msgspec.structs.fields(Budget)]
_BUDGET = re.compile(r"budgets\.([^.\s]{1,128})\.(\w+)")


class Loaded(msgspec.Struct, frozen=True):
    """A configuration and where each value that is not a default came from."""

    config: Config
    origins: dict[str, str]


def load(
    flags: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    file: Path | Mapping[str, object] | None = None,
    called: str = "the given mapping",
) -> Loaded:
    """Read all layers. `flags`: dotted key -> value, None where not given. `file`: or what would be
    in it; messages call that `called`.

    Raises ConfigError.
    """
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    upstreams: list[UpstreamTable] = []
    clients: list[ClientTable] = []
    if file is not None:
        found, upstreams, clients = _read_tree(file if isinstance(file, Mapping) else read_file(file))
        where = called if isinstance(file, Mapping) else str(file)
        values.update(found)
        origins.update(dict.fromkeys(found, where))
        if upstreams:
            origins["upstreams"] = where
        if clients:
            origins["clients"] = where
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
    budgets = {name: msgspec.structs.asdict(budget) for name, budget in BUDGETS.items()}
    for key, value in values.items():
        if (named := _BUDGET.fullmatch(key)) is not None:
            budget = budgets.setdefault(named[1], {})
            budget[named[2]] = _convert(key, value, _type_of(f"budgets.{named[2]}"), origins[key])
            continue
        section, _, name = key.partition(".")
        tables[section][name] = _convert(key, value, _type_of(key), origins[key])
    made: dict[str, Any] = {name: SECTIONS[name](**table) for name, table in tables.items()}
    kept = {name: Budget(**table) for name, table in budgets.items()}
    config = Config(upstreams=upstreams, clients=clients, budgets=kept, **made)
    check(config)
    return Loaded(config, origins)


def read_file(path: Path) -> dict[str, object]:
    """What a configuration file holds. Raises ConfigError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _read_tree(
    tree: Mapping[str, object],
) -> tuple[dict[str, object], list[UpstreamTable], list[ClientTable]]:
    values: dict[str, object] = {}
    upstreams: list[UpstreamTable] = []
    clients: list[ClientTable] = []
    for section, table in tree.items():
        if section == "upstreams":
            upstreams = _read_entries(section, table, UpstreamTable, "name, url and paths")
            continue
        if section == "clients":
            clients = _read_entries(section, table, ClientTable, "name and token_sha256")
            continue
        if section == "budgets":
            values |= _read_budgets(table)
            continue
        if section not in SECTIONS:
            known = [*SECTIONS, "upstreams", "clients", "budgets"]
            raise ConfigError(f"[{section}]: unknown table{nearest(section, known)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{section}: expected a table: write [{section}] and keys below it")
        for name, value in table.items():
            key = f"{section}.{name}"
            if key not in KEYS:
                raise ConfigError(f"{key}: unknown key{nearest(key, KEYS)}")
            values[key] = value
    return values, upstreams, clients


def _read_budgets(entries: object) -> dict[str, object]:
    values: dict[str, object] = {}
    if not isinstance(entries, dict):
        raise ConfigError("budgets: expected tables: write [budgets.chat] and keys below it")
    for name, table in entries.items():
        if not isinstance(table, dict):
            raise ConfigError(f"budgets.{name}: expected a table: write [budgets.{name}] and keys below it")
        for key, value in table.items():
            where = f"budgets.{name}.{key}"
            if key not in _BUDGETS:
                raise ConfigError(f"{where}: unknown key{nearest(key, _BUDGETS)}")
            if _BUDGET.fullmatch(where) is None:
                raise ConfigError(f"budgets.{name}: expected a name without dots and spaces")
            values[where] = value
    return values


def _read_entries(section: str, entries: object, kind: type[Entry], least: str) -> list[Entry]:
    """A list of tables. `least`: what each must have, for those who wrote something else."""
    if not isinstance(entries, list):
        raise ConfigError(f"{section}: expected [[{section}]] with double brackets")
    known = [field.name for field in msgspec.structs.fields(kind)]
    made = []
    for number, entry in enumerate(entries):
        where = f"{section}[{number}]"
        if not isinstance(entry, dict):
            raise ConfigError(f"{where}: expected a table with {least}")
        for name in entry:
            if name not in known:
                raise ConfigError(f"{where}.{name}: unknown key{nearest(name, known)}")
        try:
            made.append(msgspec.convert(entry, kind, dec_hook=_parse))
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
        if (budget := _budget_key(name)) is not None:
            found[name] = budget
        elif name in known:
            found[name] = known[name]
        elif name.startswith(f"{PREFIX}BUDGETS__"):
            raise ConfigError(
                f"{name}: unknown variable; expected one such as {PREFIX}BUDGETS__CHAT__TTFT_MS"
            )
        elif name.replace("_", "") in loose:
            raise ConfigError(f"{name}: unknown variable; did you mean {loose[name.replace('_', '')]}?")
        elif (near := _by_last_part(name, known)) is not None:
            raise ConfigError(f"{name}: unknown variable; did you mean {near}?")
        elif "__" in name.removeprefix(PREFIX):
            raise ConfigError(f"{name}: unknown variable{nearest(name, list(known))}")
    return found


def _budget_key(name: str) -> str | None:
    """SLIPSTREAM_BUDGETS__CHAT__TTFT_MS, say; names are in lower case there."""
    table, _, rest = name.removeprefix(PREFIX).lower().partition("__")
    feature, _, key = rest.rpartition("__")
    dotted = f"budgets.{feature}.{key}"
    return dotted if table == "budgets" and key in _BUDGETS and _BUDGET.fullmatch(dotted) else None


def _by_last_part(name: str, known: Mapping[str, str]) -> str | None:
    """SLIPSTREAM_PORT, say, which would be ignored in silence."""
    last = "__" + name.removeprefix(PREFIX)
    return next((variable for variable in known if variable.endswith(last)), None)


def _type_of(key: str) -> Any:
    section, _, name = key.partition(".")
    table: type[Section] = Budget if section == "budgets" else SECTIONS[section]
    return next(field.type for field in msgspec.structs.fields(table) if field.name == name)


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
        said = (
            "expected milliseconds, such as 500, or 0 for none"
            if key.startswith("budgets.")
            else plain(error)
        )
        raise ConfigError(f"{key}{shown(value)}: {said} (from {origin})") from None


def _parse(kind: Any, raw: object) -> Any:
    return kind.parse(raw)
