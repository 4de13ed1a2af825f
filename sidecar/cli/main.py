"""The command line: one module per command, imported when it is called."""

import sys
from importlib import import_module
from typing import NoReturn

import click

from sidecar import __version__
from sidecar.core.values import ConfigError

COMMANDS = {
    "serve": "run the sidecar",
    "demo": "see it work: a scripted provider, the sidecar and clients on this machine",
    "run": "start a sidecar, run a command with the base-URL variables set",
    "env": "print the base-URL variables as export lines",
    "doctor": "look at everything that a sidecar needs, and say what to do",
    "cache": "look into the stored answers, purge them, move them",
    "tune": "choose a similarity threshold from shadow records or labelled pairs",
    "report": "percentiles, hit rates, slow phases from the log",
    "model": "get the model that questions are compared with",
    "config": "show, validate or describe the configuration",
}


class _Lazy(click.Group):
    """Knows the commands by name; a command's module is read when it is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"sidecar.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="slipstream")
def slipstream() -> None:
    """A sidecar for LLM APIs: change the base URL, keep the stream, know where the time went."""


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 a check or the work failed, 2 bad usage or configuration."""
    try:
        sys.exit(slipstream.main(standalone_mode=False, prog_name="slipstream"))
    except ConfigError as error:
        _fail(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        sys.exit(130)


def _fail(message: str) -> NoReturn:
    """One line, whatever was in it."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in message)
    print(f"slipstream: {shown}", file=sys.stderr)
    sys.exit(2)
