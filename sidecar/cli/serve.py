"""`slipstream serve`: run the sidecar until it is told to stop."""

import asyncio
import contextlib
import errno
import gc
import os
import secrets
import signal
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import click
from structlog.typing import FilteringBoundLogger

from sidecar import __version__
from sidecar.cache import embed, records
from sidecar.cache.embed import background
from sidecar.cli.options import flags, loaded
from sidecar.config import Config
from sidecar.core.values import ConfigError
from sidecar.stores import counts
from sidecar.stores.disk import DiskStore
from sidecar.stores.jobs import FolderInUseError, JobStore, StoreError
from sidecar.stores.secret import load_or_create, webhook_key
from sidecar.telemetry.log import LineWriter, make_logger, request_lines, stderr_writer
from sidecar.web.proxy import Log
from sidecar.web.routes import Routes
from sidecar.web.semantics import Parts
from sidecar.web.service import Service

ANSWERS = "answers"
"""The stored answers' folder, in the data folder."""
_FORCED = 1
"""Exit status when a second signal cut requests off."""


@click.command("serve", short_help="run the sidecar")
@flags
def command(**given: Any) -> None:
    """Run the sidecar. Point your app's base URL at it; see `slipstream env`."""
    config = loaded(given).config
    writer = stderr_writer()
    try:
        log = make_logger(writer, log_format(config), config.log.level)
        secret = read_secret(config, log)
        lines = request_lines(writer, log_format(config), config.log.level)
        sys.exit(run_loop(lambda: serve(config, secret, log, lines, writer)))
    finally:
        writer.close()


async def serve(
    config: Config, secret: bytes, log: FilteringBoundLogger, lines: Log, writer: LineWriter
) -> int:
    """Serve until SIGTERM or SIGINT, drain, and return the exit status."""
    service = await started(config, secret, log, lines)
    stop, again = asyncio.Event(), asyncio.Event()
    _on_signals(lambda: again.set() if stop.is_set() else stop.set())
    # What is there now stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    announce(config, service.url, log)
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
    config: Config, secret: bytes, log: FilteringBoundLogger, lines: Log, *, jobs: bool = True
) -> Service:
    """A service that listens. Without `jobs` it leaves those alone that are on disk. Raises ConfigError
    when its address cannot be had."""
    store = open_jobs(config, log) if jobs else None
    key = b""
    if config.jobs.webhooks and store is not None:
        try:
            key = webhook_key(data_dir(config))
        except (OSError, ValueError) as error:
            raise ConfigError(str(error)) from None
    folder = data_dir(config)
    there = folder.is_dir()  # else it has been said
    service = Service(
        config,
        secret,
        log,
        lines,
        store=store,
        answers=partial(DiskStore.open, folder / ANSWERS, config.cache.size, entries=config.semantic.entries)
        if there
        else None,
        note=partial(counts.add, folder / counts.NAME) if there else None,
        webhook_key=key,
        semantic=semantic_parts(config, folder, log),
    )
    try:
        await service.start()
    except OSError as error:
        host, port = config.server.host, config.server.port
        if error.errno == errno.EADDRINUSE:
            remedy = f"in use on {host}; choose another with --port, or 0 for a free one"
            raise ConfigError(f"server.port = {port}: {remedy}") from None
        reason = error.strerror or str(error)
        raise ConfigError(f"server.host = {host!r}: cannot listen there on port {port}: {reason}") from None
    return service


def semantic_parts(config: Config, folder: Path, log: FilteringBoundLogger) -> Parts | None:
    """What answers to the same question in other words are found with; None where that is not asked for."""
    if config.cache.mode not in ("semantic", "shadow"):
        return None
    semantic = config.semantic

    async def prepare() -> bool:
        log.info("model_missing", effect="identical requests only, until it is there", folder=str(folder))
        return await background.pull(folder, semantic, lambda line: log.info("model", said=line))

    return Parts(
        lambda: embed.load(semantic, folder),
        None if embed.ready(semantic, folder) else prepare,
        folder / records.NAME,
    )


def announce(config: Config, url: str, log: FilteringBoundLogger) -> None:
    """Say where it listens, to people and to machines."""
    if log_format(config) == "console":
        print(banner(config, url), file=sys.stderr, flush=True)
    log.info("serving", url=url, version=__version__, pid=os.getpid())
    if not is_loopback(config.server.host):
        log.warning("open_port", host=config.server.host, reason="anyone who reaches it can use it")


def banner(config: Config, url: str) -> str:
    """The first thing a person sees."""
    from sidecar.cli.env import exports, reachable

    upstreams = {table.name: table.url for table in Routes(config).tables}
    lines = ["", f"  Slipstream {__version__} listens on {url}", ""]
    if not is_loopback(config.server.host):
        lines[1:1] = ["  Anyone who reaches this address can use it: it asks for no credential.", ""]
    lines += [f"    {name:<10} {target}" for name, target in upstreams.items()]
    lines += ["", "  Point your app at it:", ""]
    lines += [f"    {line}" for line in exports(config, reachable(config, url))]
    lines += ["", "  Ctrl-C drains and stops; a second one stops at once.", ""]
    return "\n".join(lines)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    return host == "localhost" or host.startswith("127.") or host == "::1"


def log_format(config: Config) -> Any:
    """json or console, `auto` resolved."""
    if config.log.format != "auto":
        return config.log.format
    return "console" if sys.stderr.isatty() else "json"


def data_dir(config: Config) -> Path:
    """Where things are kept: as configured, else systemd's state directory, else the XDG cache."""
    if config.server.data_dir:
        return Path(config.server.data_dir)
    state = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if state:
        return Path(state)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "slipstream"


def read_secret(config: Config, log: FilteringBoundLogger) -> bytes:
    """The secret behind tenant ids. Without a usable folder it lives as long as the process."""
    folder = data_dir(config)
    try:
        return load_or_create(folder)
    except OSError as error:
        if config.server.data_dir:
            raise ConfigError(
                f"server.data_dir = {str(folder)!r}: cannot be used: {error.strerror}"
            ) from None
        log.warning(
            "no_data_dir",
            folder=str(folder),
            reason=error.strerror,
            effect="no background jobs, and tenant ids change at restart",
        )
        return secrets.token_bytes(32)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def open_jobs(config: Config, log: FilteringBoundLogger) -> JobStore | None:
    """Where background jobs are kept. Without it there are none, and everything else works."""
    folder = data_dir(config)
    try:
        store = JobStore.open(folder)
    except FolderInUseError as error:
        log.warning("no_jobs", folder=str(folder), reason=str(error))
        return None
    except (OSError, StoreError) as error:
        if folder.is_dir():  # else it has been said
            log.warning("no_jobs", folder=str(folder), reason=getattr(error, "strerror", None) or str(error))
        return None
    if store.set_aside is not None:
        log.warning(
            "jobs_set_aside", file=str(store.set_aside), reason="it was damaged, or of a newer version"
        )
    return store


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
