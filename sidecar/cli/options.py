"""The flags that several commands share, and what they mean in the configuration."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from sidecar.config import Loaded, load

Command = TypeVar("Command", bound=Callable[..., Any])

_FLAGS = [
    click.option("--upstream", "server__upstream", metavar="URL", help="Where everything goes."),
    click.option("--host", "server__host", metavar="ADDRESS", help="Address to listen on.  [127.0.0.1]"),
    click.option(
        "--port", "server__port", metavar="PORT", help="Port to listen on; 0 for a free one.  [8400]"
    ),
    click.option(
        "--admin-host", "admin__host", metavar="ADDRESS", help="Address of the admin port.  [127.0.0.1]"
    ),
    click.option(
        "--admin-port",
        "admin__port",
        metavar="PORT",
        help="Port for metrics, figures and the dashboard; 0 for a free one.  [8401, or a free one]",
    ),
    click.option(
        "--data-dir",
        "server__data_dir",
        metavar="DIR",
        help="Folder for what must outlive the process.  [$STATE_DIRECTORY, else the XDG cache folder]",
    ),
    click.option(
        "--cache",
        "cache__mode",
        type=click.Choice(["off", "exact", "semantic", "shadow"]),
        help="Whether answers are kept for the same request, or the same question.  [exact]",
    ),
    click.option(
        "--workers", "server__workers", metavar="N", help="Processes that serve, one for each core, say.  [1]"
    ),
    click.option("--config", "file", metavar="FILE", type=click.Path(path_type=Path), help="TOML file."),
    click.option(
        "--log-format",
        "log__format",
        type=click.Choice(["json", "console"]),
        help="Logs go to stderr.  [console on a terminal, else json]",
    ),
]


def flags(command: Command) -> Command:
    """Give a command the flags; it gets them as keyword arguments, `section__key`."""
    for option in reversed(_FLAGS):
        command = option(command)
    return command


def loaded(given: dict[str, Any]) -> Loaded:
    """The configuration behind the flags. Raises ConfigError."""
    file = given.pop("file", None)
    return load({name.replace("__", "."): value for name, value in given.items()}, file=file)
