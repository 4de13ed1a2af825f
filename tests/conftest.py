"""Fixtures: a scripted provider and the sidecar, both in this process and on real loopback sockets.

The sidecar is served by the proxy's own server. What is marked `both_shells` runs a second time with the ASGI
app under uvicorn as its shell: the same script, the same answers. `proxy_only(reason)` takes a test out of
that, `asgi_every(n)` runs one in `n` of a large table.
"""

import asyncio
import hashlib
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from sidecar.cache.embed import model
from sidecar.config import Config, load
from sidecar.scripted import ScriptedProvider
from sidecar.serving.assembly import Assembly, Stores
from sidecar.stores.disk import DiskStore
from sidecar.stores.jobs import JobStore
from sidecar.tables import Semantic
from sidecar.telemetry.log import make_logger, request_lines
from sidecar.web.service import AdminPort, Service
from sidecar_starlette.serve import serve

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

    async def changed(self) -> None:
        """Until there is another line."""
        self._changed.clear()
        await self._changed.wait()

    async def request(self, number: int = 0) -> dict[str, Any]:
        """The latency line of the request that ended as number `number`."""
        while len(self.requests) <= number:
            self._changed.clear()
            await self._changed.wait()
        return self.requests[number]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "both_shells: also with the ASGI app under uvicorn as the server")
    config.addinivalue_line("markers", "proxy_only(reason): with the proxy's own server only")
    config.addinivalue_line("markers", "asgi_every(n): one in `n` of its parameters with the ASGI app")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marked = metafunc.definition.get_closest_marker
    if "shell" in metafunc.fixturenames and marked("both_shells") and not marked("proxy_only"):
        metafunc.parametrize("shell", ["proxy", "asgi"], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    met: Counter[str] = Counter()
    kept, dropped = [], []
    for item in items:
        spec, every = getattr(item, "callspec", None), item.get_closest_marker("asgi_every")
        drop = False
        if spec is not None and spec.params.get("shell") == "asgi":
            name = item.nodeid.partition("[")[0]
            drop = item.get_closest_marker("proxy_only") is not None  # one of its parameters is
            drop = drop or (every is not None and met[name] % every.args[0] != 0)
            met[name] += 1
        (dropped if drop else kept).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


@pytest.fixture
def shell(request: pytest.FixtureRequest) -> str:
    """What takes requests in: `proxy`, or `asgi` where a test is marked `both_shells`."""
    found: str = getattr(request, "param", "proxy")
    return found


class Mounted:
    """What `Service` is, with the ASGI app as the shell: mounted in an app, which uvicorn serves."""

    def __init__(
        self, config: Config, secret: bytes, log: Any, lines: Any, stores: Stores, tls: Any = None
    ) -> None:
        self.assembly = Assembly(config, secret, log, lines, stores, tls=tls)
        self._timeout = config.timeouts.client
        options = uvicorn.Config(
            Starlette(routes=[Mount("/", self._serve)]),
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            timeout_keep_alive=75,
        )
        options.load()
        self._uvicorn = uvicorn.Server(options)
        self._uvicorn.lifespan = options.lifespan_class(options)
        self.url = ""

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        await serve(self.assembly.front, scope, receive, send, self._timeout)

    @property
    def connections(self) -> Any:
        return self._uvicorn.server_state.connections

    async def start(self) -> None:
        sock = socket.create_server(("127.0.0.1", 0))
        await self.assembly.start()
        await self._uvicorn.startup(sockets=[sock])
        await self._uvicorn.on_tick(0)  # makes the `date` of all answers
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"

    async def stop(self, grace: float) -> bool:
        clean = await self.assembly.drain(grace)
        for listener in self._uvicorn.servers:
            listener.close()
        # What uvicorn does, but for its waits of 0.1 s.
        for connection in list(self.connections):
            connection.shutdown()
        if tasks := list(self._uvicorn.server_state.tasks):
            await asyncio.wait(tasks, timeout=0.1)
        for connection in list(self.connections):
            connection.transport.abort()
        if tasks := list(self._uvicorn.server_state.tasks):
            await asyncio.wait(tasks)
        for listener in self._uvicorn.servers:
            await listener.wait_closed()
        self.assembly.close()
        return clean


SHELLS: dict[str, Callable[..., Any]] = {"proxy": Service, "asgi": Mounted}


class Sidecar:
    """A running sidecar."""

    def __init__(self, service: Any, lines: Lines) -> None:
        self.service = service
        self.lines = lines
        self.url: str = service.url
        self.port = int(service.url.rpartition(":")[2])

    @property
    def connections(self) -> Any:
        """The clients' connections."""
        service = self.service
        return service.connections if isinstance(service, Mounted) else service._server.connections


StartSidecar = Callable[..., Awaitable[Sidecar]]


@pytest.fixture
async def provider() -> AsyncIterator[ScriptedProvider]:
    async with ScriptedProvider() as running:
        yield running


@pytest.fixture
async def start_sidecar(shell: str) -> AsyncIterator[StartSidecar]:
    """`await start_sidecar(upstream_url, keepalive__interval=0.05, ...)`; stopped after the test, which
    fails if the sidecar logged a fault of its own. `folder`: where it keeps jobs and answers. `parts`: what
    answers to other questions are found with. `admin`: with an admin port, at `service.admin.url`. `place`:
    it is one of several workers. Answers are stored only where a test says for how long: the others send the same request again and again."""
    running: list[Sidecar] = []

    async def start(
        upstream: str | None,
        *,
        tls: Any = None,
        file: Any = None,
        folder: Any = None,
        parts: Any = None,
        jobs: bool = True,
        admin: bool = False,
        place: Any = None,
        **keys: Any,
    ) -> Sidecar:
        flags = {"cache.ttl": 0} | {key.replace("__", "."): value for key, value in keys.items()}
        flags |= {"server.upstream": upstream, "server.port": 0, "admin.port": 0}
        config = load(flags, environment={}, file=file).config
        lines = Lines()
        log, requests = make_logger(lines, "json", "info"), request_lines(lines, "json", "info")
        store = JobStore.open(folder) if folder is not None and jobs else None
        size = config.cache.size
        answers = (lambda: DiskStore.open(folder / "answers", size)) if folder is not None else None
        more: dict[str, Any] = {"admin": AdminPort(folder)} if admin else {}
        more |= {"place": place} if place is not None else {}
        service = SHELLS[shell](
            config,
            b"s" * 32,
            log,
            requests,
            Stores(store, answers, webhook_key=b"w" * 32, semantic=parts),
            tls,
            **more,
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
