"""The rig of the fault tests: provider, sidecars and clients, and after each test the proof that nothing is left."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar.scripted import Connection, Received, ScriptedProvider
from tests.faults.wire import GUARD, Client, Upstream

try:
    import uvloop
except ImportError:  # Windows
    uvloop = None


def pytest_asyncio_loop_factories(
    config: Any, item: Any
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What the sidecar runs on in production; faults look different on every event loop."""
    return {"asyncio": asyncio.new_event_loop} if uvloop is None else {"uvloop": uvloop.new_event_loop}


def descriptors() -> set[str]:
    """This process's open descriptors, with what each is."""
    folder = Path("/proc/self/fd")
    if not folder.exists():
        return set()
    found = set()
    for entry in os.listdir(folder):  # noqa: PTH208
        try:
            found.add(f"{entry} -> {(folder / entry).readlink()}")
        except OSError:
            continue  # the one that lists the folder
    return found


async def eventually(condition: Callable[[], object], what: Callable[[], object]) -> None:
    """Wait for what the kernel and the event loop give no event for."""
    try:
        async with asyncio.timeout(GUARD / 2):
            while not condition():  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.002)
    except TimeoutError:
        pytest.fail(f"left over: {what()}")


class Rig:
    """A provider, sidecars in front of it, and clients."""

    def __init__(self, provider: ScriptedProvider, start: Callable[..., Any]) -> None:
        self.provider = provider
        self.clients: list[Client] = []
        self.sidecars: list[Any] = []
        self._start = start
        self._calls: asyncio.Queue[Upstream] = asyncio.Queue()
        self._made: list[Upstream] = []
        self._before = asyncio.all_tasks()

    async def start(self, upstream: str | None = "", **keys: Any) -> Any:
        """A sidecar in front of the provider, or of `upstream`."""
        self.sidecars.append(await self._start(self.provider.url if upstream == "" else upstream, **keys))
        return self.sidecars[-1]

    @property
    def sidecar(self) -> Any:
        return self.sidecars[-1]

    async def connect(self) -> Client:
        """A client connection to the sidecar started last."""
        if not self.sidecars:
            await self.start()
        self.clients.append(await Client.open(self.sidecar.port))
        return self.clients[-1]

    def script(self, target: str, *, early: bool = False) -> None:
        """Requests for that path are answered by the test; see `call`."""
        self.provider.on(target.partition("?")[0], self._hold, early=early)

    async def call(self) -> Upstream:
        """The next request that reached a scripted path."""
        async with asyncio.timeout(GUARD):
            return await self._calls.get()

    def uncalled(self) -> bool:
        """No further request reached a scripted path."""
        return self._calls.empty()

    async def _hold(self, connection: Connection, received: Received) -> None:
        upstream = Upstream(connection, received)
        self._made.append(upstream)
        self._calls.put_nowait(upstream)
        waits = {asyncio.ensure_future(upstream.over.wait()), asyncio.ensure_future(received.closed.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def line(self, number: int = 0) -> dict[str, Any]:
        async with asyncio.timeout(GUARD):
            return await self.sidecar.lines.request(number)

    async def finish(self) -> None:
        """All clients leave; after that nothing of what was served may be left."""
        for client in self.clients:
            client.close()
        provider = self.provider
        for sidecar in self.sidecars:
            service = sidecar.service
            await eventually(lambda: not service.assembly.front.active, lambda: "requests")  # noqa: B023
            await eventually(lambda: not len(service.assembly.hub), lambda: "upstream calls")  # noqa: B023
            await eventually(lambda: not sidecar.connections, lambda: "client connections")  # noqa: B023
        for upstream in self._made:
            upstream.over.set()
        await eventually(lambda: not provider.active, lambda: f"{provider.active} answers at the provider")
        idle = [c for s in self.sidecars for kept in s.service.assembly.client._idle.values() for c in kept]
        await eventually(
            lambda: provider.connections <= len(idle),
            lambda: f"{provider.connections} connections at the provider",
        )
        await eventually(lambda: not self.tasks(), self.tasks)

    def tasks(self) -> set[asyncio.Task[Any]]:
        return {task for task in asyncio.all_tasks() - self._before if task is not asyncio.current_task()}


@pytest.fixture(autouse=True)
async def nothing_left() -> AsyncIterator[None]:
    """After everything has stopped: no task and no descriptor more than before."""
    # What the loop itself opens when it first listens and first uses a thread is no leak.
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
    writer.close()
    listener.close()
    await writer.wait_closed()
    await listener.wait_closed()
    await loop.run_in_executor(None, int)
    before, running = descriptors(), asyncio.all_tasks()
    yield
    await eventually(lambda: not asyncio.all_tasks() - running - {asyncio.current_task()}, asyncio.all_tasks)
    if sys.platform == "linux":
        await eventually(lambda: len(descriptors()) <= len(before), lambda: descriptors() - before)


@pytest.fixture
async def rig(
    nothing_left: None, provider: ScriptedProvider, start_sidecar: Callable[..., Any]
) -> AsyncIterator[Rig]:
    """Everything a fault needs. The test fails if it leaves a task, a connection or a descriptor behind."""
    made = Rig(provider, start_sidecar)
    yield made
    await made.finish()
