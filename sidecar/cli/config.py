"""`slipstream config`: show, validate, schema."""

import json
import re
from typing import Any

import click
import msgspec

from sidecar.checks_inbound import check_files, check_host
from sidecar.cli.options import flags, loaded
from sidecar.config import SECTIONS, Budget, CacheRule, ClientTable, Loaded, Section, UpstreamTable
from sidecar.core.values import Duration, Patience, Size


@click.group("config", short_help="show, validate or describe the configuration")
def command() -> None:
    """Show, validate or describe the configuration."""


@command.command("show")
@flags
def show(**given: Any) -> None:
    """Print the configuration in force as TOML, with where each value came from."""
    print(as_toml(loaded(given)))


@command.command("validate")
@flags
def validate(**given: Any) -> None:
    """Check the configuration; exit 2 with one line if it cannot be used."""
    config = loaded(given).config
    check_host(config)
    check_files(config)
    print("the configuration is valid")


@command.command("schema")
def print_schema() -> None:
    """Print the JSON Schema of the configuration file."""
    print(json.dumps(schema(), indent=2))


def as_toml(found: Loaded) -> str:
    """The effective configuration, every key with its origin."""
    lines = []
    for section in SECTIONS:
        lines.append(f"[{section}]")
        table = getattr(found.config, section)
        for field in msgspec.structs.fields(table):
            key = f"{section}.{field.name}"
            value = getattr(table, field.name)
            origin = found.origins.get(key, "default")
            if value is None:
                lines.append(f"# {field.name} is not set")
            else:
                lines.append(f"{field.name} = {_value(value)}  # {origin}")
        lines.append("")
    for name, budget in found.config.budgets.items():
        lines.append(f"[budgets.{_name(name)}]")
        for key, value in msgspec.structs.asdict(budget).items():
            origin = found.origins.get(f"budgets.{name}.{key}", "default")
            lines.append(f"# {key} is not set" if value is None else f"{key} = {_value(value)}  # {origin}")
        lines.append("")
    entries: list[tuple[str, Section]] = [("clients", client) for client in found.config.clients]
    entries += [("upstreams", upstream) for upstream in found.config.upstreams]
    for name, entry in entries:
        lines.append(f"[[{name}]]")
        values = msgspec.structs.asdict(entry)
        lines += [f"{key} = {_value(value)}" for key, value in values.items() if value is not None]
        lines.append("")
    return "\n".join(lines).rstrip()


def _name(name: str) -> str:
    """A TOML key."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _value(value: object) -> str:
    """A TOML value. JSON's strings, booleans and arrays of strings are TOML's too."""
    if isinstance(value, Patience):
        return json.dumps(str(value))
    if isinstance(value, CacheRule):
        value = {name: item for name, item in msgspec.structs.asdict(value).items() if item is not None}
    if isinstance(value, dict):
        pairs = [f"{json.dumps(name, ensure_ascii=False)} = {_value(item)}" for name, item in value.items()]
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    if isinstance(value, float):
        return repr(float(value)).removesuffix(".0")
    return json.dumps(value, ensure_ascii=False)


_UNITS: dict[Any, dict[str, Any]] = {
    Duration: {"type": ["number", "string"], "description": "seconds, or a number with ms, s, m, h or d"},
    Size: {"type": ["integer", "string"], "description": "bytes, or a number with KiB, MiB or GiB"},
    Patience: {"type": "string", "description": "cancel, finish, or grace=N"},
    dict[str, Patience]: {"type": "object", "additionalProperties": {"type": "string"}},
}


def schema() -> dict[str, Any]:
    """JSON Schema of the file."""
    properties: dict[str, Any] = {name: _table_schema(table) for name, table in SECTIONS.items()}
    properties["budgets"] = {"type": "object", "additionalProperties": _table_schema(Budget)}
    properties["clients"] = {"type": "array", "items": _table_schema(ClientTable)}
    properties["upstreams"] = {"type": "array", "items": _table_schema(UpstreamTable)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Slipstream configuration",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


def _schema_of(kind: Any) -> dict[str, Any]:
    if kind == CacheRule | None:
        return _table_schema(CacheRule)
    if kind == dict[str, CacheRule]:
        return {"type": "object", "additionalProperties": _table_schema(CacheRule)}
    known = [unit for name, unit in _UNITS.items() if kind in (name, name | None)]
    return dict(known[0]) if known else msgspec.json.schema(kind)


def _table_schema(table: type[Section]) -> dict[str, Any]:
    properties, required = {}, []
    for field in msgspec.structs.fields(table):
        made = _schema_of(field.type)
        if field.default is not msgspec.NODEFAULT and field.default is not None:
            made["default"] = str(field.default) if isinstance(field.default, Patience) else field.default
        elif field.default_factory is not msgspec.NODEFAULT:
            made["default"] = field.default_factory()
        elif field.required:
            required.append(field.name)
        properties[field.name] = made
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
