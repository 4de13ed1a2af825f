"""The real process, as the tests of restarts start, kill and stop it."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.faults.test_process import Process
from tests.faults.wire import CHAT, Client

ALONE = {"SLIPSTREAM_JOBS__CONCURRENCY": "1"}


async def kill(process: Process) -> None:
    process.signal(signal.SIGKILL)
    assert await process.exited() == -signal.SIGKILL


async def terminate(process: Process, code: int = 0) -> None:
    process.signal()
    assert await process.exited() == code


def asked(rig: Any, target: str = CHAT.target) -> int:
    """How often the upstream was."""
    return len([got for got in rig.provider.requests if got.path == target])


@contextlib.asynccontextmanager
async def process_of(*command: str, folder: Path) -> AsyncIterator[Process]:
    """Python with these arguments."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SLIPSTREAM_")}
    process = Process(
        await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            stderr=asyncio.subprocess.PIPE,
            stdin=asyncio.subprocess.DEVNULL,
            env={**kept, "SLIPSTREAM_SERVER__DATA_DIR": str(folder)},
        )
    )
    try:
        yield process
    finally:
        if process.process.returncode is None:
            process.process.kill()
        await process.exited()
        process.process._transport.close()


async def healthy(port: int) -> None:
    """It answers there."""
    client = await Client.open(port)
    assert (await client.whole("GET", "/_slipstream/healthz")).status == 200
    client.close()
