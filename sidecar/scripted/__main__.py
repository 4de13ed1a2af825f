"""`python -m sidecar.scripted`: the scripted provider on a port, until SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import signal
from importlib import import_module
from importlib.util import find_spec

from sidecar.scripted.provider import ScriptedProvider
from sidecar.scripted.script import Script, override


async def serve(host: str, port: int, script: Script) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stopped.set)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stopped.set))
    async with ScriptedProvider(host, port, script, record=False) as provider:
        print(provider.url, flush=True)
        await stopped.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sidecar.scripted", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--script", default="{}", help="JSON with fields of Script")
    given = parser.parse_args()
    try:
        script = override(Script(), given.script.encode())
    except ValueError as error:
        parser.error(f"--script: {error}")
    loop_factory = import_module("uvloop").new_event_loop if find_spec("uvloop") else None
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(serve(given.host, given.port, script))


if __name__ == "__main__":
    main()
