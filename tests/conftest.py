"""Fixtures: a scripted provider and the sidecar, both in this process and on real loopback sockets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
import pytest

from sidecar.config import load
from sidecar.scripted import ScriptedProvider
from sidecar.stores.disk import DiskStore
from sidecar.stores.jobs import JobStore
from sidecar.telemetry.log import make_logger, request_lines
from sidecar.web.service import Service


class Lines:
    """A log writer that keeps what it is given, parsed, and lets tests wait for it."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []
        self.raw: list[bytes] = []
        self._changed = asyncio.Event()

    def write(self, line: bytes) -> None:
        self.raw.append(line)
        self.all.append(orjson.loads(line))
        self._changed.set()

    @property
    def requests(self) -> list[dict[str, Any]]:
        return [line for line in self.all if line["event"] == "request"]

    @property
    def faults(self) -> list[dict[str, Any]]:
        return [line for line in self.all if line["event"] == "fault"]

    async def request(self, number: int = 0) -> dict[str, Any]:
        """The latency line of the request that ended as number `number`."""
        while len(self.requests) <= number:
            self._changed.clear()
            await self._changed.wait()
        return self.requests[number]


class Sidecar:
    """A running sidecar."""

    def __init__(self, service: Service, lines: Lines) -> None:
        self.service = service
        self.lines = lines
        self.url = service.url
        self.port = int(service.url.rpartition(":")[2])


StartSidecar = Callable[..., Awaitable[Sidecar]]


@pytest.fixture
async def provider() -> AsyncIterator[ScriptedProvider]:
    async with ScriptedProvider() as running:
        yield running


@pytest.fixture
async def start_sidecar() -> AsyncIterator[StartSidecar]:
    """`await start_sidecar(upstream_url, keepalive__interval=0.05, ...)`; stopped after the test, which
    fails if the sidecar logged a fault of its own. `folder`: where it keeps jobs and answers. Answers are
    stored only where a test says for how long: the others send the same request again and again."""
    running: list[Sidecar] = []

    async def start(
        upstream: str | None, *, tls: Any = None, file: Any = None, folder: Any = None, **keys: Any
    ) -> Sidecar:
        flags = {"cache.ttl": 0} | {key.replace("__", "."): value for key, value in keys.items()}
        flags |= {"server.upstream": upstream, "server.port": 0}
        config = load(flags, environment={}, file=file).config
        lines = Lines()
        log, requests = make_logger(lines, "json", "info"), request_lines(lines, "json", "info")
        store = JobStore.open(folder) if folder is not None else None
        size = config.cache.size
        answers = (lambda: DiskStore.open(folder / "answers", size)) if folder is not None else None
        service = Service(
            config, b"s" * 32, log, requests, tls, store=store, answers=answers, webhook_key=b"w" * 32
        )
        await service.start()
        running.append(Sidecar(service, lines))
        return running[-1]

    yield start
    for sidecar in running:
        await sidecar.service.stop(0.0)
        assert not sidecar.lines.faults


@pytest.fixture
async def sidecar(provider: ScriptedProvider, start_sidecar: StartSidecar) -> Sidecar:
    """A sidecar with its defaults in front of the scripted provider."""
    return await start_sidecar(provider.url)
