"""The running sidecar: listen, serve, drain, stop."""

import asyncio
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from msgspec.structs import replace
from structlog.typing import FilteringBoundLogger

from sidecar.config import Config
from sidecar.serving.assembly import Assembly, Stores
from sidecar.serving.front import Line
from sidecar.web.admin.entries import Entries
from sidecar.web.admin.server import Admin
from sidecar.web.again import Again
from sidecar.web.proxy import Proxy
from sidecar.web.server import Server

_SPARE = 128
"""Descriptors for all that is no client of the proxy: log, data folder, libraries, the admin port. Where
there are few, half of them."""


class AdminPort(msgspec.Struct, frozen=True):
    """What the admin port needs beside its configuration."""

    folder: Path | None = None
    """The data folder; None where there is none."""
    moves: bool = False
    """Whether it takes a free port when the configured one is taken."""


class AdminPortError(Exception):
    """The admin port cannot listen; the cause is an OSError."""


class Service:
    """One process's sidecar. Use as an async context manager, or `start` and `stop`."""

    def __init__(
        self,
        config: Config,
        secret: bytes,
        log: FilteringBoundLogger,
        lines: Callable[[Line], None],
        stores: Stores,
        tls: ssl.SSLContext | None = None,
        *,
        dropped: Callable[[], int] = lambda: 0,
        admin: AdminPort | None = None,
    ) -> None:
        """As `Assembly`. `admin`: there is an admin port, too. Raises ConfigError."""
        self._config = config
        self.assembly = made = Assembly(config, secret, log, lines, stores, tls=tls, dropped=dropped)
        again = Again(made.answers, secret, made.backend.routes.headers, made.meter.take, made.on_fault)
        self._proxy = Proxy(config, made.front, again, made.meter.take)
        self._admin = admin
        self.admin: Admin | None = None
        if admin is not None:
            entries = Entries(made.cache, config, admin.folder, made.on_fault)
            made.settle = entries.settled
            given = config
            if admin.moves and config.admin.port == config.server.port:
                # It was given to the proxy; this one only has it by default.
                given = replace(config, admin=replace(config.admin, port=0))
            self.admin = Admin(given, made.board, entries, log, made.on_fault)
        self._listener: asyncio.Server | None = None
        self._server: Server | None = None
        self.url = ""
        """Where it listens; known once started."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop(0.0)

    async def start(self) -> None:
        """Listen. Raises OSError when the address cannot be had, and AdminPortError."""
        try:
            await self._start_admin()
            await self._start_proxy()
        except (OSError, AdminPortError):
            await self.stop(0.0)
            raise

    async def _start_admin(self) -> None:
        """First, so that it can be asked what the rest is waiting for."""
        if self.admin is None or self._admin is None:
            return
        try:
            await self.admin.start(moves=self._admin.moves)
        except OSError as error:
            raise AdminPortError from error

    async def _start_proxy(self) -> None:
        config = self._config
        self._server = Server(
            self._proxy.handle,
            refuse=self._proxy.refuse,
            reject=self._proxy.reject,
            again=self._proxy.again,
            on_fault=self.assembly.on_fault,
            timeouts=config.timeouts,
            limits=config.limits,
            most=min(config.limits.connections, _connections_possible()),
        )
        self._listener = await asyncio.get_running_loop().create_server(
            self._server, config.server.host, config.server.port, backlog=1024, start_serving=False
        )
        await self.assembly.start()
        await self._listener.start_serving()
        address = self._listener.sockets[0].getsockname()
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        self.url = f"http://{host}:{address[1]}"

    async def stop(self, grace: float) -> bool:
        """Drain for at most `grace` seconds, then end what is left with an error the client can see.

        While it drains the port stays open, so that health checks learn of it; new requests get 503.
        Returns whether everything had ended by itself.
        """
        clean = await self.assembly.drain(grace)
        if self._listener is not None:
            self._listener.close()
        if self._server is not None:
            await self._server.shutdown(0.1)
        if self._listener is not None:
            await self._listener.wait_closed()
        self.assembly.close()
        if self.admin is not None:
            await self.admin.stop()
        return clean


def _connections_possible() -> int:
    """How many clients can be served when each may need a second descriptor for its upstream.

    The soft limit is raised to the hard one first: it is low for programs that use select().
    """
    if sys.platform == "win32":
        return 1 << 30
    import resource  # noqa: PLC0415 - exists on POSIX only

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard and hard != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return 1 << 30 if soft == resource.RLIM_INFINITY else max((soft - min(_SPARE, soft // 2)) // 2, 1)
