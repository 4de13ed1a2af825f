"""`slipstream run -- CMD ...`: a sidecar for the time of one command."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable
from typing import Any

import click

from sidecar.checks_inbound import check_host
from sidecar.cli.env import variables
from sidecar.cli.options import flags, loaded
from sidecar.cli.serve import run_loop, started
from sidecar.config import Config
from sidecar.serving.folder import data_dir, read_secret
from sidecar.telemetry.log import format_of, make_logger, request_lines, stderr_writer
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
    check_host(config)
    writer = stderr_writer()
    try:
        log = make_logger(writer, format_of(config.log.format), config.log.level)
        lines = request_lines(writer, format_of(config.log.format), config.log.level)
        secret = read_secret(data_dir(config), log, named=bool(config.server.data_dir))
        sys.exit(run_loop(lambda: _run(config, started(config, secret, log, lines, jobs=False), argv)))
    finally:
        writer.close()


async def _run(config: Config, starting: Awaitable[Service], argv: tuple[str, ...]) -> int:
    relay = _Relay()
    service = await starting
    try:
        environment = {**os.environ, **variables(config, service.url)}
        try:
            relay.child = await asyncio.create_subprocess_exec(*argv, env=environment)
        except FileNotFoundError:
            print(f"slipstream: {argv[0]}: command not found", file=sys.stderr)
            return _NOT_FOUND
        except OSError as error:
            print(f"slipstream: {argv[0]}: {error.strerror}", file=sys.stderr)
            return _NOT_EXECUTABLE
        relay.flush()
        status = await relay.child.wait()
        return 128 - status if status < 0 else status
    finally:
        await service.stop(0.0)


class _Relay:
    """Passes signals on: the child decides what one means, and the sidecar lives as long as it does."""

    def __init__(self) -> None:
        self.child: asyncio.subprocess.Process | None = None
        self._early: list[int] = []
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C reaches both by itself
                loop.add_signal_handler(number, self._take, number)

    def flush(self) -> None:
        """Send what came before there was a child."""
        for number in self._early:
            self._send(number)

    def _take(self, number: int) -> None:
        if self.child is None:
            self._early.append(number)
        elif number != signal.SIGINT or not _in_foreground():
            # In the foreground the terminal sent it to the child as well; twice is "at once" to many.
            self._send(number)

    def _send(self, number: int) -> None:
        if self.child is not None and self.child.returncode is None:
            self.child.send_signal(number)


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False
