"""One engine per event loop: made of the configuration, started with the app or by its first request,
drained when the app stops or the loop does."""

import asyncio
import io
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from sidecar.config import load
from sidecar.core.values import ConfigError
from sidecar.engine.hub import Hub
from sidecar.serving.assembly import Assembly
from sidecar.serving.backend import Backend
from sidecar.serving.folder import data_dir as default_folder
from sidecar.serving.folder import open_stores, read_secret
from sidecar.tables import Config
from sidecar.telemetry.log import LineWriter, format_of, make_logger, request_lines
from sidecar_starlette.asgi import App, Message, Receive, Scope, Send
from sidecar_starlette.name import started_as

Given = str | Path | Mapping[str, object] | None
"""A configuration: a TOML file's path, or what would be in it."""


class Settings(msgspec.Struct, frozen=True):
    """What an engine is made with."""

    config: Config
    folder: Path
    """Where answers, jobs and the installation's secret are kept."""
    models: Path
    """Where models are."""
    named: bool
    """Whether somebody said so: then it must be usable."""


def settings(
    config: Given,
    *,
    cache: str | None,
    data_dir: str | Path | None,
    upstream: str | None = None,
    apart: str | None = None,
) -> Settings:
    """The settings: what is given goes before environment variables, those before `config`. `apart`: an app
    that names no data folder gets one of its own. Raises ConfigError."""
    flags = {
        "cache.mode": cache,
        "server.data_dir": str(data_dir) if data_dir is not None else None,
        "server.upstream": upstream,
    }
    loaded = load(flags, file=Path(config) if isinstance(config, str) else config)
    folder = default_folder(loaded.config)
    origin = loaded.origins.get("server.data_dir")
    models = folder
    if apart is not None and (origin is None or origin.startswith("SLIPSTREAM_")):
        folder = folder / "apps" / f"{started_as()}-{apart}"
    return Settings(loaded.config, folder, models, named=origin is not None)


class _Running:
    """The engine of one loop."""

    def __init__(
        self, given: Settings, writer: LineWriter, backend: Callable[[Hub, bytes], Backend] | None
    ) -> None:
        """Raises ConfigError."""
        config, folder = given.config, given.folder
        form, level = format_of(config.log.format), config.log.level
        self._config = config
        self._writer = writer
        self.log = make_logger(writer, form, level)
        secret = read_secret(folder, self.log, named=given.named)
        self.assembly = Assembly(
            config,
            secret,
            self.log,
            request_lines(writer, form, level),
            open_stores(config, folder, self.log, models=given.models),
            dropped=lambda: writer.dropped,
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

    def __init__(self, given: Settings, backend: Callable[[Hub, bytes], Backend] | None = None) -> None:
        """`backend`: makes the answers, of a hub and the installation's secret."""
        self._settings = given
        self._backend = backend
        self._running: dict[asyncio.AbstractEventLoop, _Running] = {}
        self._starting: dict[asyncio.AbstractEventLoop, asyncio.Future[None]] = {}

    @property
    def here(self) -> Assembly | None:
        """The engine of the running loop, if it has started."""
        running = self._running.get(asyncio.get_running_loop())
        return running.assembly if running is not None else None

    async def assembly(self) -> Assembly:
        """The same, started if need be. Raises ConfigError."""
        loop = asyncio.get_running_loop()
        while (made := self.here) is None:
            starting = self._starting.get(loop)
            if starting is None:
                starting = self._starting[loop] = asyncio.ensure_future(self._start(loop))
            try:
                await asyncio.shield(starting)
            finally:
                if starting.done():
                    self._starting.pop(loop, None)
        return made

    async def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        for other in [other for other in self._running if other.is_closed()]:
            del self._running[other]
        writer = open_log()
        try:
            running = _Running(self._settings, writer, self._backend)
            await running.start()
        except BaseException:
            writer.close()
            raise
        self._running[loop] = running

    async def stop(self) -> None:
        """Drain the engine of the running loop."""
        loop = asyncio.get_running_loop()
        running = self._running.get(loop)
        if running is not None:
            await running.end()  # who comes meanwhile is told that it drains
            self._running.pop(loop, None)

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
