"""The provider of `python -m benchmarks.workers`: it has its two answers ready, so that of the cores that it
shares with the workers it takes as little as it can. `python -m benchmarks.workers_provider PORT`.
"""

import asyncio
import re
import sys
from typing import cast

import orjson
import uvloop

from benchmarks.wire import HOST
from sidecar.scripted.answers import find
from sidecar.scripted.render import Shape, rendered
from sidecar.scripted.script import Script

PATH = "/v1/chat/completions"
STREAMED = b'"stream":true'
"""What is in the body of a request for a stream, and of no other."""
TOKENS = 47
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


def body(*, stream: bool) -> bytes:
    """A small question."""
    said = "My parcel has not come. It says delivered, but nobody has seen it."
    return orjson.dumps(
        {"model": "scripted", "messages": [{"role": "user", "content": said}], "stream": stream}
    )


def _answer(*, stream: bool) -> bytes:
    """As the scripted provider gives it."""
    route = find("POST", PATH)
    ask = route.read(orjson.loads(body(stream=stream)), PATH, "")
    made = rendered(route, ask, Script(tokens=TOKENS), Shape())
    return made.head + b"".join(piece for frame in made.frames for piece in frame)


WHOLE = _answer(stream=False)
STREAM = _answer(stream=True)
EVENTS = STREAM.count(b"\n\n")


class Prepared(asyncio.Protocol):
    """A connection of a sidecar, whose requests are complete and one at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        got = self._got = self._got + data if self._got else data
        head = got.find(b"\r\n\r\n")
        if head < 0:
            return
        length = _LENGTH.search(got, 0, head + 2)
        if len(got) < head + 4 + (int(length[1]) if length else 0):
            return
        self._got = b""
        self._transport.write(STREAM if STREAMED in got else WHOLE)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Prepared, HOST, port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
