"""`slipstream serve`: run the sidecar until it is told to stop."""

import asyncio
import contextlib
import errno
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import click
from structlog.typing import FilteringBoundLogger

from sidecar import __version__
from sidecar.cli.options import flags, loaded
from sidecar.config import Config
from sidecar.core.values import ConfigError, is_loopback
from sidecar.serving.folder import data_dir, open_stores, read_secret
from sidecar.serving.front import Line
from sidecar.serving.routes import Routes
from sidecar.telemetry.log import LineWriter, format_of, make_logger, request_lines, stderr_writer
from sidecar.web.service import AdminPort, AdminPortError, Service

_FORCED = 1
"""Exit status when a second signal cut requests off."""


@click.command("serve", short_help="run the sidecar")
@flags
def command(**given: Any) -> None:
    """Run the sidecar. Point your app's base URL at it; see `slipstream env`."""
    found = loaded(given)
    config = found.config
    writer = stderr_writer()
    try:
        log = make_logger(writer, format_of(config.log.format), config.log.level)
        secret = read_secret(data_dir(config), log, named=bool(config.server.data_dir))
        lines = request_lines(writer, format_of(config.log.format), config.log.level)
        admin = AdminPort(data_dir(config), moves="admin.port" not in found.origins)
        sys.exit(run_loop(lambda: serve(config, secret, log, lines, writer, admin)))
    finally:
        writer.close()


async def serve(
    config: Config,
    secret: bytes,
    log: FilteringBoundLogger,
    lines: Callable[[Line], None],
    writer: LineWriter,
    admin: AdminPort,
) -> int:
    """Serve until SIGTERM or SIGINT, drain, and return the exit status."""
    service = await started(config, secret, log, lines, admin=admin, dropped=lambda: writer.dropped)
    stop, again = asyncio.Event(), asyncio.Event()
    _on_signals(lambda: again.set() if stop.is_set() else stop.set())
    # What is there now stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    announce(config, service.url, log, service.admin.url if service.admin is not None else None)
    await stop.wait()
    log.info("draining", grace_s=float(config.shutdown.grace))
    draining = asyncio.ensure_future(service.stop(config.shutdown.grace))
    hurried = asyncio.ensure_future(again.wait())
    await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        log.warning("stopped_at_once", reason="second signal")
        writer.close()
        # Nothing may hold the process up now: not a client, not a thread.
        os._exit(_FORCED)
    hurried.cancel()
    log.info("stopped", unfinished=not draining.result())
    return 0


async def started(
    config: Config,
    secret: bytes,
    log: FilteringBoundLogger,
    lines: Callable[[Line], None],
    *,
    jobs: bool = True,
    admin: AdminPort | None = None,
    dropped: Callable[[], int] = lambda: 0,
) -> Service:
    """A service that listens. Without `jobs` it leaves those alone that are on disk. Raises ConfigError
    when an address cannot be had."""
    stores = open_stores(config, data_dir(config), log, jobs=jobs)
    service = Service(config, secret, log, lines, stores, dropped=dropped, admin=admin)
    try:
        await service.start()
    except AdminPortError as error:
        raise _taken("admin", "--admin-port", config.admin.host, config.admin.port, error.__cause__) from None
    except OSError as error:
        raise _taken("server", "--port", config.server.host, config.server.port, error) from None
    return service


def _taken(table: str, flag: str, host: str, port: int, error: BaseException | None) -> ConfigError:
    """Why an address cannot be had, and what to do."""
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        remedy = f"in use on {host}; choose another with {flag}, or 0 for a free one"
        return ConfigError(f"{table}.port = {port}: {remedy}")
    reason = getattr(error, "strerror", None) or str(error)
    return ConfigError(f"{table}.host = {host!r}: cannot listen there on port {port}: {reason}")


def announce(config: Config, url: str, log: FilteringBoundLogger, admin: str | None = None) -> None:
    """Say where it listens, to people and to machines."""
    if format_of(config.log.format) == "console":
        print(banner(config, url, admin), file=sys.stderr, flush=True)
    log.info("serving", url=url, admin=admin, version=__version__, pid=os.getpid())
    if not is_loopback(config.server.host):
        log.warning("open_port", host=config.server.host, reason="anyone who reaches it can use it")


def banner(config: Config, url: str, admin: str | None = None) -> str:
    """The first thing a person sees."""
    from sidecar.cli.env import exports, reachable

    upstreams = {table.name: table.url for table in Routes(config).tables}
    lines = ["", f"  Slipstream {__version__} listens on {url}", ""]
    if not is_loopback(config.server.host):
        lines[1:1] = ["  Anyone who reaches this address can use it: it asks for no credential.", ""]
    lines += [f"    {name:<10} {target}" for name, target in upstreams.items()]
    lines += ["", "  Point your app at it:", ""]
    lines += [f"    {line}" for line in exports(config, reachable(config, url))]
    if admin is not None:
        lines += ["", f"  See where the time goes: {admin}"]
    lines += ["", "  Ctrl-C drains and stops; a second one stops at once.", ""]
    return "\n".join(lines)


def run_loop(main: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run on uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def _on_signals(stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C ends the process
            loop.add_signal_handler(number, stop)
