"""The scripted provider as the benchmark runs it: its events come when they are due, to the microsecond.

It also has chat streams that it holds: the scripted ones, in bursts, begun and ended when somebody says so;
and it tells how often it was called.
`python -m benchmarks.provider PORT`.
"""

import asyncio
import sys
from urllib.parse import parse_qs

import orjson

from benchmarks.timer import ExactLoop
from sidecar.scripted import Connection, Received, Script, ScriptedProvider
from sidecar.scripted.answers import find
from sidecar.scripted.render import Shape, rendered
from sidecar.scripted.script import override

HELD = "/held/v1/chat/completions"
"""With `events` (how many come before the hold), `burst` (how many at once) and `interval` (seconds)."""
WORD = "/word"
CALLS = "/calls"
"""How many requests there were, other than for this."""
DONE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Holder:
    """Answers that wait for a word."""

    def __init__(self) -> None:
        self._word = asyncio.Event()

    async def held(self, connection: Connection, received: Received) -> None:
        asked = {name: float(values[0]) for name, values in parse_qs(received.query).items()}
        events, burst, interval = int(asked["events"]), int(asked["burst"]), asked["interval"]
        route = find("POST", HELD)
        ask = route.read(orjson.loads(received.body), HELD, "")
        script = override(Script(), received.header("x-scripted") or b"{}")
        answer = rendered(route, ask, script, Shape())
        frames = [frame[0] for frame in answer.frames]
        loop = asyncio.get_running_loop()
        await connection.send(answer.head)
        await self._word.wait()
        due = loop.time()
        for start in range(0, events, burst):
            await connection.send(b"".join(frames[start : min(start + burst, events)]))
            due += interval
            await asyncio.sleep(due - loop.time())
        await self._word.wait()
        await connection.send(b"".join(frames[events:]))

    async def say(self, connection: Connection, _received: Received) -> None:
        self._word.set()
        self._word = asyncio.Event()
        await connection.send(DONE)


async def serve(port: int) -> None:
    async with ScriptedProvider(port=port, record=False) as provider:
        holder = Holder()
        asked = 0

        async def calls(connection: Connection, _received: Received) -> None:
            nonlocal asked
            asked += 1
            said = b"%d" % (provider.received - asked)
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))

        provider.on(HELD, holder.held)
        provider.on(WORD, holder.say)
        provider.on(CALLS, calls)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=ExactLoop) as runner:
        runner.run(serve(int(sys.argv[1])))
