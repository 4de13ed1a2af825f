"""`slipstream config`: show, validate, schema."""

import json
from typing import Any

import click
import msgspec

from sidecar.cli.options import flags, loaded
from sidecar.config import SECTIONS, Loaded, schema


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
    loaded(given)
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
    for upstream in found.config.upstreams:
        lines.append("[[upstreams]]")
        values = msgspec.structs.asdict(upstream)
        lines += [f"{name} = {_value(value)}" for name, value in values.items() if value is not None]
        lines.append("")
    return "\n".join(lines).rstrip()


def _value(value: object) -> str:
    """A TOML value. JSON's strings, booleans and arrays of strings are TOML's too."""
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False)
