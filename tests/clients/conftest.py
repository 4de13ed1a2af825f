"""Fixtures of the tests of coming back: cutters, Node with its packages, and a Chromium for all tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from hashlib import sha256
from typing import Any

import pytest

from sidecar.scripted import ScriptedProvider

from .rig import NODE, Hosts, Setting


def need(program: str) -> str:
    """Where it is. Without it the tests are skipped, but never in CI."""
    if (found := shutil.which(program)) is None:
        assert not os.environ.get("CI"), f"{program} is not installed"
        pytest.skip(f"{program} is not installed")
    return found


@pytest.fixture(scope="session")
def node() -> None:
    """The JavaScript clients, installed."""
    need("node")
    lock = sha256((NODE / "package-lock.json").read_bytes()).hexdigest()
    stamp = NODE / "node_modules" / ".lock-sha256"
    if stamp.is_file() and stamp.read_text() == lock:
        return
    command = [need("npm"), "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(command, cwd=NODE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    stamp.write_text(lock)


@pytest.fixture(scope="session")
def hosts(node: None) -> Iterator[Hosts]:
    """The clients' processes."""
    running = Hosts(shutil.which("chromium") or "")
    yield running
    running.stop()


@pytest.fixture(scope="session")
def chromium() -> None:
    need("chromium")


@pytest.fixture
async def start_setting(
    provider: ScriptedProvider, start_sidecar: Any, hosts: Hosts
) -> AsyncIterator[Callable[..., Awaitable[Setting]]]:
    """`await start_setting(keepalive__interval=0.05, ...)`"""
    async with AsyncExitStack() as stack:

        async def start(**keys: Any) -> Setting:
            sidecar = await start_sidecar(provider.url, **keys)
            return Setting(provider, sidecar.port, hosts, stack)

        yield start


@pytest.fixture
async def setting(start_setting: Callable[..., Awaitable[Setting]]) -> Setting:
    """A provider, a sidecar with its defaults, and clients that are cut off from it."""
    return await start_setting()
