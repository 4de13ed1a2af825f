"""The running sidecar: listen, serve, drain, stop."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
from msgspec.structs import replace
from structlog.typing import FilteringBoundLogger

from sidecar.config import Config
from sidecar.serving.assembly import Assembly, Stores
from sidecar.serving.front import Line
from sidecar.serving.machine import Memory
from sidecar.serving.relief import watch
from sidecar.serving.watermark import Watch
from sidecar.web.admin.entries import Entries
from sidecar.web.admin.private import Private
from sidecar.web.admin.server import Admin
from sidecar.web.admin.stored import Stored
from sidecar.web.again import Again
from sidecar.web.descriptors import clients_possible
from sidecar.web.handed import Handed
from sidecar.web.handover import Handover, Place
from sidecar.web.handshakes import Handshakes
from sidecar.web.leave import leave
from sidecar.web.listen import BACKLOG, Listener
from sidecar.web.proxy import Proxy
from sidecar.web.server import Server
from sidecar.web.tls import HANDSHAKE, of


class AdminPort(msgspec.Struct, frozen=True):
    """What the admin port needs beside its configuration."""

    folder: Path | None = None
    """The data folder; None where there is none."""
    moves: bool = False
    """Whether it takes a free port when the configured one is taken."""

    def beside(self, config: Config) -> Config:
        """The configuration for it: what was given to the proxy it only had by default."""
        if not self.moves or config.admin.port != config.server.port:
            return config
        return replace(config, admin=replace(config.admin, port=0))


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
        sockets: Sequence[socket.socket] = (),
        lasting: bool = True,
        place: Place | None = None,
    ) -> None:
        """As `Assembly`. `admin`: there is an admin port, too. `sockets`: what to listen on instead of the
        configured address. `lasting`: somebody else holds them, too, and goes on when this one stops.
        `place`: it is one of several workers, and what an admin port would show is for its supervisor. Raises
        ConfigError."""
        self._config = config
        self.tls = of(config)
        handover = Handover(place, config.timeouts.client) if place is not None else None
        self.assembly = made = Assembly(
            config,
            secret,
            log,
            lines,
            stores,
            tls=tls,
            dropped=dropped,
            siblings=handover,
            shares=place.shares if place is not None else None,
        )
        routed = made.backend.routes.headers
        self._again = again = Again(
            made.answers, secret, routed, made.front.clients, made.meter.take, made.on_fault
        )
        self._proxy = Proxy(config, made.front, again, made.meter.take)
        self._handed: Handed | None = None
        if place is not None:
            self._handed = Handed(config, place, self._proxy, made.on_fault, self._exhausted)
        self._admin = admin
        self._place = place
        self._private: Private | None = None
        self.admin: Admin | None = None
        if admin is not None:
            entries = Entries(made.cache, config, admin.folder, made.on_fault)
            made.settle = entries.settled
            if place is None:
                self.admin = Admin(admin.beside(config), made.board, Stored(entries, log), log, made.on_fault)
            else:
                self._private = Private(config, made.board, entries, log, made.on_fault)
        self._sockets = sockets
        self._lasting = lasting and bool(sockets)
        self._listeners: list[Listener] = []
        self._handshakes = Handshakes(log)
        self._log = log
        self._memory: Memory | None = None
        self._watch: Watch | None = None
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
            most=min(config.limits.connections, clients_possible()),
        )
        await self._listen(self._server)
        await self.assembly.start()
        if self._handed is not None:
            await self._handed.start()
        if self._private is not None and self._place is not None:
            await self._private.start(self._place.figures)
        self._memory = Memory()
        self._watch = watch(config, self.assembly, self._log, self._memory, [self._again])
        self.assembly.board.memory = self._watch
        for listener in self._listeners:
            await listener.start_serving()
        self._watch.start()
        address = self._listeners[0].sockets[0].getsockname()
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        self.url = f"{'https' if self.tls is not None else 'http'}://{host}:{address[1]}"

    async def _listen(self, server: Server) -> None:
        listen = asyncio.get_running_loop().create_server
        bound = [
            await listen(server, sock=given, backlog=BACKLOG, start_serving=False) for given in self._sockets
        ]
        if not self._sockets:
            host, port = self._config.server.host, self._config.server.port
            bound.append(await listen(server, host, port, backlog=BACKLOG, start_serving=False))
        tls = self.tls
        self._listeners = [
            Listener(
                one,
                server,
                refusal=self._proxy.refusal,
                exhausted=self._exhausted,
                tls=(lambda: tls.context) if tls is not None else None,
                room=lambda: server.most - server.serving,
                failed=self._handshakes.failed,
                on_fault=self.assembly.on_fault,
                handshake=min(HANDSHAKE, self._config.timeouts.client),
                farewell=self._config.timeouts.client,
            )
            for one in bound
        ]

    def _exhausted(self) -> None:
        if self._watch is not None:
            self._watch.no_descriptor()

    def prepare(self, config: Config) -> Callable[[], None]:
        """Read what has to be read for another configuration, in any thread. What is returned goes by it from
        then on, as far as it can be changed, and does not fail. Raises ConfigError."""
        tls = self.tls.prepare(config) if self.tls is not None else None
        assembly = self.assembly.prepare(config)

        def take() -> None:
            if tls is not None:
                tls()
            assembly()
            self._again.forget()

        return take

    async def stop(self, grace: float) -> bool:
        """Drain for at most `grace` seconds, then end what is left with an error the client can see.

        While it drains the port stays open, so that health checks learn of it; new requests get 503. But
        what somebody else listens on, too, is left at once: who comes now waits for the successor.
        Returns whether everything had ended by itself.
        """
        if self._lasting and self._server is not None:
            await leave(self._listeners, self._server, self.assembly.front, grace)
        clean = await self.assembly.drain(grace)
        for listener in self._listeners:
            listener.close()
        if self._server is not None:
            await self._server.shutdown(0.1)
        for listener in self._listeners:
            await listener.wait_closed()
        self._handshakes.stop()
        if self._handed is not None:
            await self._handed.stop()
        if self._private is not None:
            await self._private.stop()
        self.assembly.close()
        if self._watch is not None:
            self._watch.stop()
        if self._memory is not None:
            self._memory.close()
        if self.admin is not None:
            await self.admin.stop()
        return clean
