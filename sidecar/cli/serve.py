"""`slipstream serve`: run the sidecar until it is told to stop."""

import asyncio
import contextlib
import errno
import faulthandler
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import click
from structlog.typing import FilteringBoundLogger

from sidecar import __version__
from sidecar.checks_inbound import check_files
from sidecar.cli.activation import inherited, placed
from sidecar.cli.notify import Nobody, Notifier, Notify, keep_posted
from sidecar.cli.options import flags, loaded
from sidecar.cli.reload import Reload, Reloads
from sidecar.config import Config
from sidecar.core.values import ConfigError, is_loopback
from sidecar.serving.folder import data_dir, open_stores, read_secret
from sidecar.serving.front import Line
from sidecar.serving.routes import Routes
from sidecar.serving.siblings import JOBS
from sidecar.telemetry.log import Level, LineWriter, format_of, make_logger, request_lines, stderr_writer
from sidecar.web.handover import Place
from sidecar.web.service import AdminPort, AdminPortError, Service

FORCED = 1
"""Exit status when a second signal cut requests off."""


@click.command("serve", short_help="run the sidecar")
@flags
def command(**given: Any) -> None:
    """Run the sidecar. Point your app's base URL at it; see `slipstream env`."""
    faulthandler.enable()  # a watchdog ends who hangs by SIGABRT: where was it?
    sockets = inherited()
    found = loaded(dict(given))
    config = placed(found.config, sockets)
    check_files(config)
    level = Level(config.log.level)
    reload = Reload(lambda: placed(loaded(dict(given)).config, sockets), level)
    writer = stderr_writer()
    try:
        log = make_logger(writer, format_of(config.log.format), level)
        secret = read_secret(data_dir(config), log, named=bool(config.server.data_dir))
        lines = request_lines(writer, format_of(config.log.format), level)
        admin = AdminPort(data_dir(config), moves="admin.port" not in found.origins)
        if config.server.workers > 1:
            sys.exit(_supervised(given, config, secret, log, writer, level, admin, sockets))
        main = partial(serve, config, secret, log, lines, writer, admin)
        sys.exit(run_loop(lambda: main(notify=Notify(), sockets=sockets, reload=reload)))
    finally:
        writer.close()


def _supervised(given: dict[str, Any], config: Config, *rest: Any) -> int:
    """With several workers. Raises ConfigError."""
    from sidecar.cli import workers

    named = {name.replace("__", "."): value for name, value in given.items() if name != "file"}
    return run_loop(lambda: workers.supervise(config, workers.Source(named, given["file"]), *rest))


async def serve(
    config: Config,
    secret: bytes,
    log: FilteringBoundLogger,
    lines: Callable[[Line], None],
    writer: LineWriter,
    admin: AdminPort | None,
    *,
    notify: Notifier | None = None,
    sockets: Sequence[socket.socket] = (),
    lasting: bool = True,
    reload: Reload | None = None,
    place: Place | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, drain, and return the exit status. `notify` is told how it goes.
    `sockets`, `lasting`, `place`: see `Service`. `reload`: where SIGHUP finds the configuration; without it
    that signal has its ordinary meaning."""
    notify = notify or Nobody()
    early = asyncio.Event()
    if reload is not None:
        on_signal("SIGHUP", early.set)  # for the moment: it must not end what is only starting
    service = await started(
        config,
        secret,
        log,
        lines,
        jobs=place is None or place.number == JOBS,
        admin=admin,
        dropped=lambda: writer.dropped,
        sockets=sockets,
        lasting=lasting,
        place=place,
    )
    stop, again = asyncio.Event(), asyncio.Event()
    # A worker's supervisor is told twice, and ends it.
    on_signals(lambda: again.set() if stop.is_set() and place is None else stop.set())
    reloads = Reloads(config, service.prepare, service.assembly.on_fault, log)
    status = partial(_status, service, reloads)
    _collect_less()
    if place is None:
        announce(config, service.url, log, service.admin.url if service.admin is not None else None)
    notify.ready(status())
    posting = asyncio.create_task(keep_posted(notify, status))
    reloading: asyncio.Task[None] | None = None
    if reload is not None:
        reloading = asyncio.create_task(reloads.run(reload, notify, status))
        on_signal("SIGHUP", reloads.ask)
        if early.is_set():
            reloads.ask()
    await stop.wait()
    if reloading is not None:
        reloading.cancel()  # or it might say that all is ready
    log.info("draining", grace_s=float(config.shutdown.grace))
    notify.stopping(f"draining for at most {config.shutdown.grace:g} s")
    draining = asyncio.ensure_future(service.stop(config.shutdown.grace))
    hurried = asyncio.ensure_future(again.wait())
    await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        log.warning("stopped_at_once", reason="second signal")
        writer.close()
        # Nothing may hold the process up now: not a client, not a thread.
        os._exit(FORCED)
    hurried.cancel()
    posting.cancel()
    notify.stopped(clean=draining.result())
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
    sockets: Sequence[socket.socket] = (),
    lasting: bool = True,
    place: Place | None = None,
) -> Service:
    """A service that listens. Without `jobs` it leaves those alone that are on disk. The rest: see
    `Service`. Raises ConfigError when an address cannot be had."""
    stores = open_stores(config, data_dir(config), log, jobs=jobs)
    service = Service(
        config,
        secret,
        log,
        lines,
        stores,
        dropped=dropped,
        admin=admin,
        sockets=sockets,
        lasting=lasting,
        place=place,
    )
    try:
        await service.start()
    except AdminPortError as error:
        raise taken("admin", "--admin-port", config.admin.host, config.admin.port, error.__cause__) from None
    except OSError as error:
        raise taken("server", "--port", config.server.host, config.server.port, error) from None
    return service


def taken(table: str, flag: str, host: str, port: int, error: BaseException | None) -> ConfigError:
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
    if not (is_loopback(config.server.host) or config.clients):
        log.warning("open_port", host=config.server.host, reason="anyone who reaches it can use it")
    elif not is_loopback(config.server.host) and config.tls.certificate is None:
        reason = "clients' tokens can be read on their way: set tls.certificate and tls.key"
        log.warning("unencrypted_port", host=config.server.host, reason=reason)


def banner(config: Config, url: str, admin: str | None = None) -> str:
    """The first thing a person sees."""
    from sidecar.cli.env import exports, reachable

    upstreams = {table.name: table.url for table in Routes(config).tables}
    lines = ["", f"  Slipstream {__version__} listens on {url}", ""]
    if not (is_loopback(config.server.host) or config.clients):
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


def _collect_less() -> None:
    """A full collection stops every stream for as long as it takes to look at all that the open ones are made
    of, and finds next to nothing: requests leave no cycles. What is there now is left out of it, and it comes
    after a hundred of the smaller ones instead of ten."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], 100)


def _status(service: Service, reloads: Reloads) -> str:
    """What it does, in a line for people."""
    front, calls = service.assembly.front, len(service.assembly.hub)
    does = "draining" if front.ending else f"serving on {service.url}"
    return f"{does}: {front.active} requests, {calls} upstream calls{reloads.remark}"


def on_signals(stop: Callable[[], None]) -> None:
    for name in ("SIGTERM", "SIGINT"):
        on_signal(name, stop)


def on_signal(name: str, do: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError, AttributeError):  # Windows: Ctrl-C ends the process
        loop.add_signal_handler(getattr(signal, name), do)
