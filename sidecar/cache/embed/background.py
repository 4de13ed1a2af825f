"""Making the model ready while the sidecar serves already: in another process, which may take its time."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sidecar.config import PREFIX
from sidecar.tables import Semantic

_NICE = 10
_GRACE = 3.0
"""Seconds for it to clean up when it has to stop."""
_LONGEST = 1000
"""Characters of what is said of it."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


async def pull(folder: Path, semantic: Semantic, on_line: Callable[[str], None]) -> bool:
    """Whether the model is ready now. `folder`: the data folder. `on_line` hears one line, for the log.

    Building a graph here would hold up the event loop, and what it takes of memory would never be given back.
    Cancelled, it leaves no process behind. Never raises.
    """
    command = [sys.executable, "-m", "sidecar", "model", "pull", "--quiet", "--data-dir", str(folder)]
    environment = dict.fromkeys(_THREADS, "1") | os.environ
    environment[f"{PREFIX}SEMANTIC__MODEL"] = semantic.model
    environment[f"{PREFIX}SEMANTIC__EMBEDDER"] = semantic.embedder
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # with pip it is two, and they end together
        )
    except OSError as error:
        on_line(f"the model cannot be pulled: {error.strerror}")
        return False
    try:
        with suppress(OSError):
            os.setpriority(os.PRIO_PGRP, process.pid, _NICE)
        said, _ = await process.communicate()
    finally:
        await _ended(process)
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    on_line("; ".join(lines)[-_LONGEST:] or f"`slipstream model pull` ended with status {process.returncode}")
    return process.returncode == 0


async def _ended(process: asyncio.subprocess.Process) -> None:
    """However it was left, it and what it started are over."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        async with asyncio.timeout(_GRACE):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
