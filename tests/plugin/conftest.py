"""`serve`: apps behind SidecarMiddleware, on uvicorn. After each test nothing of them may be left."""

import asyncio
import gc

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware

from sidecar_starlette import SidecarMiddleware
from tests.conftest import Lines as Kept
from tests.plugin.rig import Served, eventually


class Lines(Kept):
    """As `open_log` gives one."""

    def __init__(self):
        super().__init__()
        self.closed = 0

    def close(self):
        self.closed += 1


@pytest.fixture
def lines(monkeypatch):
    """What is logged by all engines of the test."""
    found = Lines()
    monkeypatch.setattr("sidecar_starlette.runtime.open_log", lambda: found)
    return found


@pytest.fixture
async def serve(lines, tmp_path):
    """`await serve(routes, credential=..., config={...})`: a Starlette app with these routes behind the
    middleware, `outer` around and `inner` inside of it; or `app=` with whatever the test has made. `on`: for
    uvicorn. `faults`: of ours that are expected in the log."""
    running, loop, heard = [], asyncio.get_running_loop(), []
    before = asyncio.all_tasks()
    loop.set_exception_handler(lambda _loop, context: heard.append(context))
    expected = []

    async def start(
        routes=(), *, app=None, outer=(), inner=(), lifespan=None, handlers=None, on=None, heard=(), **keys
    ):
        expected.extend(heard)
        keys.setdefault("data_dir", tmp_path)
        if app is None:
            stack = [*outer, Middleware(SidecarMiddleware, **keys), *inner]
            app = Starlette(
                routes=list(routes), middleware=stack, lifespan=lifespan, exception_handlers=handlers
            )
        served = Served(app, lines, **(on or {}))
        running.append(served)
        await served.start()
        return served

    yield start
    for served in running:
        await served.stop()
    left = []

    def gone():
        left[:] = [task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()]
        return not left

    await eventually(gone, lambda: left)
    gc.collect(1)
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert [str(context.get("exception")) for context in heard] == expected
    assert not lines.faults
