"""The running sidecar: listen, serve, drain, stop."""

import asyncio
import ssl
import sys
from types import TracebackType
from typing import Self

from structlog.typing import FilteringBoundLogger

from sidecar.config import Config
from sidecar.serving.assembly import Assembly, Stores
from sidecar.serving.front import Log
from sidecar.web.again import Again
from sidecar.web.proxy import Proxy
from sidecar.web.server import Server

_SPARE = 64
"""Descriptors for everything that is not a connection: log, data folder, libraries."""


class Service:
    """One process's sidecar. Use as an async context manager, or `start` and `stop`."""

    def __init__(
        self,
        config: Config,
        secret: bytes,
        log: FilteringBoundLogger,
        lines: Log,
        stores: Stores,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """As `Assembly`. Raises ConfigError."""
        self._config = config
        self.assembly = made = Assembly(config, secret, log, lines, stores, tls=tls)
        again = Again(made.answers, secret, made.backend.routes.headers, lines, made.on_fault)
        self._proxy = Proxy(config, made.front, again, lines)
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
        """Listen. Raises OSError when the address cannot be had."""
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
    return 1 << 30 if soft == resource.RLIM_INFINITY else max((soft - _SPARE) // 2, 1)
