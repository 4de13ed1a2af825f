"""WebSockets of a soak: an upstream that echoes, and ends as it is told to; a client that tells it."""

import logging
import random
from typing import Literal, get_args

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

HOST = "127.0.0.1"
PATH = "/v1/realtime"
GREETING = "hello"
Order = Literal["client", "upstream", "both", "client gone", "upstream gone"]
"""Who closes first; or vanishes, without a close frame."""
ORDERS: tuple[Order, ...] = get_args(Order)
_CLIENT, _UPSTREAM = 4001, 4002
_VANISHED = 1006
_CLOSE, _GO = "close", "go"
_TIME = 5.0


class WebSocketError(Exception):
    """A connection that is not what it should be."""


async def upstream(port: int) -> Server:
    quiet = logging.getLogger("benchmarks.soak_websocket")
    quiet.disabled = True  # connections that end badly are what it is for
    return await serve(_echo, HOST, port, logger=quiet, close_timeout=_TIME, ping_interval=None)


async def _echo(connection: ServerConnection) -> None:
    try:
        await connection.send(GREETING)
        async for message in connection:
            if message == _CLOSE:
                await connection.close(_UPSTREAM, "told to")
            elif message == _GO:
                connection.transport.abort()
            else:
                await connection.send(message)
    except ConnectionClosed:
        pass


async def talk(port: int, chance: random.Random) -> None:
    """Open one, say a few things, and end it somehow. Raises WebSocketError, or the library's own."""
    compression = chance.choice([None, "deflate"])
    fields = {"Authorization": "Bearer sk-soak"}
    client = await connect(
        f"ws://{HOST}:{port}{PATH}",
        additional_headers=fields,
        compression=compression,
        proxy=None,
        close_timeout=_TIME,
        ping_interval=None,
    )
    try:
        _same(await client.recv(), GREETING)
        for _ in range(chance.randint(1, 6)):
            size = chance.choice([0, 20, 2000, 40_000])
            message = (
                chance.randbytes(size) if chance.random() < 0.5 else f"word {chance.random()} " * (size // 20)
            )
            await client.send(message)
            _same(await client.recv(), message)
        await _end(client, chance.choice(ORDERS))
    finally:
        client.transport.abort()


async def _end(client: ClientConnection, order: Order) -> None:
    if order == "client gone":
        client.transport.abort()
        return
    if order in ("upstream", "both"):
        await client.send(_CLOSE)
    elif order == "upstream gone":
        await client.send(_GO)
    if order in ("client", "both"):
        await client.close(_CLIENT)
    await client.wait_closed()
    expected = {
        "client": (_CLIENT,),
        "upstream": (_UPSTREAM,),
        "both": (_CLIENT, _UPSTREAM),
        "upstream gone": (_VANISHED,),
    }[order]
    if client.close_code not in expected:
        raise WebSocketError(f"{order} first: close code {client.close_code}, not {expected}")


def _same(got: str | bytes, expected: str | bytes) -> None:
    if got != expected:
        raise WebSocketError(f"{len(got)} of {len(expected)}, or others")
