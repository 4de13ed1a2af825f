"""`slipstream run -- CMD ...`: a sidecar for the time of one command."""

import asyncio
import os
import signal
import sys
from typing import Any

import click

from sidecar.cli.env import variables
from sidecar.cli.options import flags, loaded
from sidecar.cli.serve import log_format, read_secret, run_loop
from sidecar.config import Config
from sidecar.telemetry.log import make_logger, request_lines, stderr_writer
from sidecar.web.service import Service

_NOT_FOUND = 127
_NOT_EXECUTABLE = 126


@click.command(
    "run",
    short_help="start a sidecar, run a command with the base-URL variables set",
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
)
@flags
@click.argument("argv", nargs=-1, required=True, metavar="CMD ...")
def command(argv: tuple[str, ...], **given: Any) -> None:
    """Start a sidecar on a free port, run CMD with the base-URL variables set, exit with its status."""
    if given.get("server__port") is None:
        given["server__port"] = 0
    config = loaded(given).config
    writer = stderr_writer()
    try:
        log = make_logger(writer, log_format(config), config.log.level)
        lines = request_lines(writer, log_format(config), config.log.level)
        secret = read_secret(config, log)
        sys.exit(run_loop(lambda: _run(config, Service(config, secret, log, lines), argv)))
    finally:
        writer.close()


async def _run(config: Config, service: Service, argv: tuple[str, ...]) -> int:
    async with service:
        environment = {**os.environ, **variables(config, service.url)}
        try:
            child = await asyncio.create_subprocess_exec(*argv, env=environment)
        except FileNotFoundError:
            print(f"slipstream: {argv[0]}: command not found", file=sys.stderr)
            return _NOT_FOUND
        except OSError as error:
            print(f"slipstream: {argv[0]}: {error.strerror}", file=sys.stderr)
            return _NOT_EXECUTABLE
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            # The child decides what a signal means; the sidecar lives as long as the child does.
            loop.add_signal_handler(number, _pass_on, child, number)
        status = await child.wait()
        return 128 - status if status < 0 else status


def _pass_on(child: asyncio.subprocess.Process, number: int) -> None:
    if child.returncode is None:
        child.send_signal(number)
