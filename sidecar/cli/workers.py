"""`slipstream serve --workers N`: a supervisor, and the processes that serve."""

import asyncio
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from structlog.typing import FilteringBoundLogger

import sidecar
from sidecar.cli import serve
from sidecar.cli.activation import placed
from sidecar.cli.notify import Notify, keep_posted
from sidecar.cli.reload import Reload, Reloads
from sidecar.config import Config, load, read_file
from sidecar.core.values import ConfigError
from sidecar.stores.turn import Turn
from sidecar.telemetry.log import Level, LineWriter, place_of
from sidecar.web.admin.server import Admin
from sidecar.web.handover import Place
from sidecar.web.service import AdminPort
from sidecar.workers import ground
from sidecar.workers.figures import Gathered
from sidecar.workers.forward import Forwarded
from sidecar.workers.link import Order
from sidecar.workers.supervisor import Supervisor, WorkerError

_SILENCE = 30.0
"""Seconds without a sign of life after which a worker is begun again, unless the service manager says."""
_LATE = 15.0
"""Seconds beyond the grace for workers to end; what is left then is killed."""
_RELOAD = 10.0
"""Seconds that a reload waits for the workers to take it."""
_FAILED = 1


class Source:
    """Where all processes have their configuration from: it is read here, once, for all of them."""

    def __init__(self, flags: Mapping[str, Any], file: Path | None) -> None:
        """`flags`: by dotted key. Raises ConfigError when the file cannot be read."""
        self.flags = {key: value for key, value in flags.items() if value is not None}
        self.name = str(file)
        self._file = file
        self._read = self._tree()
        self.trees: list[dict[str, Any] | None] = [self._read]
        """What was in the file at first, and with each reload that was taken."""

    def read(self) -> Config:
        """Read it again. Raises ConfigError."""
        self._read = tree = self._tree()
        return load(self.flags, file=tree, called=self.name).config

    def take(self) -> dict[str, Any] | None:
        """What was read is in force; returns what was in the file."""
        if self._read != self.trees[-1]:
            self.trees.append(self._read)
        return self._read

    def _tree(self) -> dict[str, Any] | None:
        return read_file(self._file) if self._file is not None else None


async def supervise(
    config: Config,
    source: Source,
    secret: bytes,
    log: FilteringBoundLogger,
    writer: LineWriter,
    level: Level,
    admin: AdminPort,
    sockets: Sequence[socket.socket],
) -> int:
    """Keep workers running until SIGTERM or SIGINT, let them drain, and return the exit status. `sockets`:
    those that are passed on instead of the configured address. Raises ConfigError."""
    try:
        reserved = [] if sockets else ground.reserve(config.server.host, config.server.port)
    except OSError as error:
        raise serve.taken("server", "--port", config.server.host, config.server.port, error) from None
    with ExitStack() as held:
        for each in reserved:
            held.callback(each.close)
        try:
            folder = held.enter_context(ground.folder())
            writer.share(Turn(folder / ground.LOG_TURN))
        except OSError as error:
            raise ConfigError(
                f"server.workers: no folder for the workers' sockets can be made: {error.strerror}; "
                "set RUNTIME_DIRECTORY or TMPDIR"
            ) from None
        return await _Run(config, source, secret, log, level, admin, sockets, reserved, folder).run()


class _Run:
    """One of them, from its start to its end."""

    def __init__(
        self,
        config: Config,
        source: Source,
        secret: bytes,
        log: FilteringBoundLogger,
        level: Level,
        admin: AdminPort,
        inherited: Sequence[socket.socket],
        reserved: Sequence[socket.socket],
        folder: Path,
    ) -> None:
        self._log = log
        self._level = level
        self._source = source
        self._inherited = inherited
        self._port = [*reserved, *inherited][0].getsockname()[1]
        self._config = config = self._at(config)
        self._url = _url(config, [*reserved, *inherited][0])
        self._notify = Notify()
        count = config.server.workers
        listen = [(int(each.family), list(each.getsockname())) for each in reserved]
        passed_on = [each.fileno() for each in inherited]
        flags = source.flags | {"server.port": config.server.port}

        def order(number: int) -> Order:
            return Order(
                number, count, str(folder), secret, flags, source.trees, source.name, listen, passed_on
            )

        beat = self._notify.beat
        self._workers = Supervisor(
            _command,
            order,
            count,
            log,
            silence=3 * beat if beat else _SILENCE,
            on_fault=self._on_fault,
            inherited=passed_on,
        )
        self._places = [Place(folder, number, count) for number in range(count)]
        figures = {place.number: place.figures for place in self._places}
        self._gathered = gathered = Gathered(
            config, lambda: figures, self._on_fault, lambda: self._workers.restarts
        )
        self._workers.served, self._workers.ended = gathered.served, self._ended
        forwarded = Forwarded(lambda: figures, lambda: gathered.shared)
        given = admin.beside(config)
        self._moves = admin.moves
        self._admin = Admin(given, gathered, forwarded, log, self._on_fault)
        self._reloads = Reloads(config, self._prepare, self._on_fault, log)

    async def run(self) -> int:
        """Returns the exit status. Raises ConfigError."""
        stop, again = asyncio.Event(), asyncio.Event()
        serve.on_signals(lambda: again.set() if stop.is_set() else stop.set())
        serve.on_signal("SIGHUP", self._reloads.ask)  # it is read once all serve
        try:
            await self._admin.start(moves=self._moves)
        except OSError as error:
            admin = self._config.admin
            raise serve.taken("admin", "--admin-port", admin.host, admin.port, error) from None
        self._gathered.start()
        try:
            failed = await self._started(stop)
            if failed is None and not stop.is_set():
                await self._serve(stop)
            return failed if failed is not None else await self._drained(again)
        finally:
            await self._admin.stop()
            await self._gathered.stop()

    async def _started(self, stop: asyncio.Event) -> int | None:
        """Wait until all serve, or until it is to stop. Returns the exit status if they do not come to.
        Raises ConfigError."""
        starting = asyncio.ensure_future(self._workers.start())
        starting.add_done_callback(lambda task: task.cancelled() or task.exception())
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not starting.done():
            return None  # those that serve may have something to serve
        try:
            starting.result()
        except WorkerError as error:
            if error.bad_configuration:
                raise ConfigError(str(error)) from None
            self._log.error("worker_failed", reason=str(error))
            return _FAILED
        return None

    async def _serve(self, stop: asyncio.Event) -> None:
        """Until it is to stop."""
        serve.announce(self._config, self._url, self._log, self._admin.url)
        self._notify.ready(self._status())
        tasks = [
            asyncio.create_task(keep_posted(self._notify, self._status)),
            asyncio.create_task(
                self._reloads.run(
                    Reload(self._read, self._level),
                    self._notify,
                    self._status,
                    lambda: self._workers.reloaded(_RELOAD),
                )
            ),
        ]
        await stop.wait()
        for task in tasks:
            task.cancel()

    async def _drained(self, again: asyncio.Event) -> int:
        """Let all end; at once, if it is asked for `again`."""
        grace = float(self._config.shutdown.grace)
        self._log.info("draining", grace_s=grace)
        self._notify.stopping(f"draining for at most {grace:g} s")
        self._workers.stop()
        over = asyncio.ensure_future(self._workers.over())
        hurried = asyncio.ensure_future(again.wait())
        posting = asyncio.create_task(keep_posted(self._notify, lambda: f"draining for at most {grace:g} s"))
        await asyncio.wait({over, hurried}, timeout=grace + _LATE, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        posting.cancel()
        if not over.done():
            reason = "second signal" if again.is_set() else "workers did not end"
            self._log.warning("stopped_at_once", reason=reason)
            self._workers.kill()
            await over
            return serve.FORCED
        self._log.info("stopped", unfinished=not over.result())
        return 0

    def _status(self) -> str:
        """What it does, in a line for people."""
        all_of_them = self._workers.workers
        serving = sum(worker.serving for worker in all_of_them)
        return f"serving on {self._url}: {serving} of {len(all_of_them)} workers{self._reloads.remark}"

    def _read(self) -> Config:
        """Raises ConfigError."""
        return self._at(placed(self._source.read(), self._inherited))

    def _prepare(self, _config: Config) -> Callable[[], None]:
        return lambda: self._workers.reload(self._source.take())

    def _at(self, config: Config) -> Config:
        """With the port that there is, where any would do."""
        return replace(config, server=replace(config.server, port=self._port))

    def _ended(self, number: int) -> None:
        self._places[number].release()
        self._gathered.ended(number)

    def _on_fault(self, error: BaseException) -> None:
        self._gathered.faults += 1
        self._log.error("fault", kind=type(error).__name__, place=place_of(error))


def _command(descriptor: int) -> list[str]:
    # Not `-m`: that would look into the current folder first, whatever is there.
    where = str(Path(sidecar.__file__).parents[1])
    code = f"import sys; sys.path.append({where!r}); from sidecar.cli.worker import main; main({descriptor})"
    return [sys.executable, "-P", "-c", code]


def _url(config: Config, listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    scheme = "https" if config.tls.certificate is not None else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
