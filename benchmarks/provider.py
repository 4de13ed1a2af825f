"""The scripted provider as the benchmark runs it: its events come when they are due, to the microsecond.

`python -m benchmarks.provider PORT`.
"""

import asyncio
import sys

from benchmarks.timer import ExactLoop
from sidecar.scripted import ScriptedProvider


async def serve(port: int) -> None:
    async with ScriptedProvider(port=port, record=False):
        await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=ExactLoop) as runner:
        runner.run(serve(int(sys.argv[1])))
