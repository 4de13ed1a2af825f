"""One engine per event loop: made of the configuration, started with the app or by its first request,
drained when the app stops or the loop does."""

import asyncio
import io
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any

from sidecar.config import load
from sidecar.core.values import ConfigError
from sidecar.engine.hub import Hub
from sidecar.serving.assembly import Assembly
from sidecar.serving.backend import Backend
from sidecar.serving.folder import data_dir, open_stores, read_secret
from sidecar.tables import Config
from sidecar.telemetry.log import LineWriter, format_of, make_logger, request_lines
from sidecar_starlette.asgi import App, Message, Receive, Scope, Send

Given = str | Path | Mapping[str, object] | None
"""A configuration: a TOML file's path, or what would be in it."""


def settings(
    config: Given, *, cache: str | None, data_dir: str | Path | None, upstream: str | None = None
) -> Config:
    """The configuration: what is given goes before environment variables, those before `config`. Raises
    ConfigError."""
    flags = {
        "cache.mode": cache,
        "server.data_dir": str(data_dir) if data_dir is not None else None,
        "server.upstream": upstream,
    }
    return load(flags, file=Path(config) if isinstance(config, str) else config).config


class _Running:
    """The engine of one loop."""

    def __init__(
        self, config: Config, writer: LineWriter, backend: Callable[[Hub, bytes], Backend] | None
    ) -> None:
        """Raises ConfigError."""
        form, level = format_of(config.log.format), config.log.level
        self.loop = asyncio.get_running_loop()
        self._config = config
        self._writer = writer
        self.log = make_logger(writer, form, level)
        folder = data_dir(config)
        secret = read_secret(folder, self.log, named=bool(config.server.data_dir))
        self.assembly = Assembly(
            config,
            secret,
            self.log,
            request_lines(writer, form, level),
            open_stores(config, folder, self.log),
            backend=(lambda hub: backend(hub, secret)) if backend is not None else None,
        )
        self._guard = self._until_closed()

    async def start(self) -> None:
        await self.assembly.start()
        await anext(self._guard)

    async def stop(self, grace: float) -> None:
        await self.assembly.drain(grace)
        self.assembly.close()
        self._writer.close()

    async def end(self) -> None:
        """Drain, with the time that is configured for it."""
        self.log.info("draining", grace_s=float(self._config.shutdown.grace))
        await self.stop(self._config.shutdown.grace)
        await self._guard.aclose()

    async def _until_closed(self) -> AsyncGenerator[None, None]:
        """The loop closes asynchronous generators when it ends: for apps that hear nothing of a lifespan,
        such as those that are mounted, that is the only sign of it."""
        stopped = False
        try:
            yield
        except GeneratorExit:
            stopped = True
            raise
        finally:
            if stopped and not self.assembly.front.draining:
                await self.stop(0.0)


class Runtime:
    """Gives each event loop its engine."""

    def __init__(self, config: Config, backend: Callable[[Hub, bytes], Backend] | None = None) -> None:
        """`backend`: makes the answers, of a hub and the installation's secret."""
        self.config = config
        self._backend = backend
        self._running: _Running | None = None
        self._starting: asyncio.Future[None] | None = None

    @property
    def here(self) -> Assembly | None:
        """The engine of the running loop, if it has started."""
        running = self._running
        return (
            running.assembly if running is not None and running.loop is asyncio.get_running_loop() else None
        )

    async def assembly(self) -> Assembly:
        """The same, started if need be. Raises ConfigError."""
        loop = asyncio.get_running_loop()
        while (made := self.here) is None:
            starting = self._starting
            if starting is None or starting.get_loop() is not loop:
                self._starting = asyncio.ensure_future(self._start())
                starting = self._starting
            try:
                await asyncio.shield(starting)
            finally:
                if starting.done() and self._starting is starting:
                    self._starting = None
        return made

    async def _start(self) -> None:
        running = _Running(self.config, open_log(), self._backend)
        await running.start()
        self._running = running

    async def stop(self) -> None:
        """Drain the engine of the running loop."""
        running = self._running
        if running is not None and self.here is not None:
            self._running = None
            await running.end()

    async def lifespan(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an app's lifespan on; the engine starts before the app and drains before it stops, while what
        the app needs for its answers is still there."""

        async def received() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.assembly()
                except ConfigError as error:
                    await send({"type": "lifespan.startup.failed", "message": f"slipstream: {error}"})
                    raise
            elif message["type"] == "lifespan.shutdown":
                await self.stop()
            return message

        await app(scope, received, send)


def open_log() -> LineWriter:
    """Where lines go: standard error."""
    stream: Any = getattr(sys.stderr, "buffer", None)
    return LineWriter(stream if stream is not None else io.BytesIO())
