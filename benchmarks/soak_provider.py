"""The upstream of a soak: says what it is asked to say, holds what it is asked to hold. `python -m
benchmarks.soak_provider PORT WEBSOCKETS_PORT`."""

import asyncio
import sys

import uvloop

from benchmarks import soak_websocket
from benchmarks.soak_words import PATH, asked, events, whole
from sidecar.scripted import Connection, Received, ScriptedProvider

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_WHOLE = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
_REFUSAL = b'{"error":{"message":"too much","type":"server_error"}}'


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def answer(connection: Connection, received: Received) -> None:
    """See `Spec`."""
    spec = asked(received.body)
    if spec.end == "refused":
        await connection.send(_WHOLE % (b"500 Internal Server Error", len(_REFUSAL), _REFUSAL))
        return
    if not spec.stream:
        await asyncio.sleep(spec.gap)
        body = whole(spec)
        await connection.send(_WHOLE % (b"200 OK", len(body), body))
        return
    said = events(spec)
    await connection.send(_HEAD + _chunk(said[0]))
    if spec.end == "held":
        await received.closed.wait()
        return
    for event in said[1:-1]:
        if spec.gap:
            await asyncio.sleep(spec.gap)
        await connection.send(_chunk(event))
    if spec.end == "cut":
        connection.reset()
        return
    await connection.send(_chunk(said[-1]) + b"0\r\n\r\n")


async def serve(port: int, websockets: int) -> None:
    """Until it is killed."""
    async with ScriptedProvider(port=port, record=False) as provider:
        provider.on(PATH, answer)
        async with await soak_websocket.upstream(websockets):
            await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
