"""Fixtures: a scripted provider and the sidecar, both in this process and on real loopback sockets."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from sidecar.cache.embed import model
from sidecar.config import load
from sidecar.scripted import ScriptedProvider
from sidecar.stores.disk import DiskStore
from sidecar.stores.jobs import JobStore
from sidecar.tables import Semantic
from sidecar.telemetry.log import make_logger, request_lines
from sidecar.web.service import Service

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slipstream-tests"
GIVEN_MODEL = os.environ.get("SLIPSTREAM_TEST_MODEL")


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
    fails if the sidecar logged a fault of its own. `folder`: where it keeps jobs and answers. `parts`: what
    answers to other questions are found with. Answers are
    stored only where a test says for how long: the others send the same request again and again."""
    running: list[Sidecar] = []

    async def start(
        upstream: str | None,
        *,
        tls: Any = None,
        file: Any = None,
        folder: Any = None,
        parts: Any = None,
        jobs: bool = True,
        **keys: Any,
    ) -> Sidecar:
        flags = {"cache.ttl": 0} | {key.replace("__", "."): value for key, value in keys.items()}
        flags |= {"server.upstream": upstream, "server.port": 0}
        config = load(flags, environment={}, file=file).config
        lines = Lines()
        log, requests = make_logger(lines, "json", "info"), request_lines(lines, "json", "info")
        store = JobStore.open(folder) if folder is not None and jobs else None
        size = config.cache.size
        answers = (lambda: DiskStore.open(folder / "answers", size)) if folder is not None else None
        service = Service(
            config,
            b"s" * 32,
            log,
            requests,
            tls,
            store=store,
            answers=answers,
            webhook_key=b"w" * 32,
            semantic=parts,
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


class Told(list[str]):
    """A `Report` that keeps what it is told; a list of what did not work."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.seen: list[tuple[str, int, int]] = []

    def failed(self, line: str) -> None:
        self.append(line)

    def step(self, line: str) -> None:
        self.steps.append(line)

    def progress(self, title: str, done: int, total: int) -> None:
        self.seen.append((title, done, total))


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """A data folder in which the real model is ready: the one that SLIPSTREAM_TEST_MODEL names, or else one that
    is filled once, by the ways of `slipstream model pull`, and kept for the next run. Not to be written to."""
    from sidecar.cache.embed import graph, make
    from sidecar.cache.embed.base import EmbedError
    from sidecar.cache.embed.pull import pull

    if GIVEN_MODEL:
        return Path(GIVEN_MODEL)
    # Another one when the code that builds it is other code; its weights are those of an earlier one then.
    code = hashlib.sha256(
        b"".join(Path(module.__file__).read_bytes() for module in (graph, make))
    ).hexdigest()
    folder, told = CACHE / f"model-{model.BUILDER}-{code[:8]}", Told()
    earlier = [path.parent for path in CACHE.glob(f"model-*/model/{model.DEFAULT}/{model.FACTS}")]
    for source in [*earlier, None]:
        try:
            pull(Semantic(), folder, source, told)
        except EmbedError as error:
            told.append(str(error))
        else:
            return folder
    pytest.fail("; ".join(told))


@pytest.fixture
def with_model(model_folder: Path) -> Callable[[Path], Path]:
    """`with_model(folder)`: the model is ready in that data folder too, which may be written to."""

    def give(folder: Path) -> Path:
        place = model.root(folder) / model.DEFAULT
        place.mkdir(mode=0o700, parents=True)
        for file in (model.root(model_folder) / model.DEFAULT).iterdir():
            (place / file.name).symlink_to(file)
        return folder

    return give
