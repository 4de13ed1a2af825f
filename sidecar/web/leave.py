"""Leaving a port on which somebody else goes on listening.

Whoever connects from now on waits for the successor, and gets an answer from it. But some have connected
already and not asked yet: to close their connection would be to refuse them. They are given a moment, and
what they ask is served.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from sidecar.serving.front import Front
from sidecar.web.listen import Listener

if TYPE_CHECKING:
    from sidecar.web.server import Protocol, Server

_MOMENT = 5.0
"""Seconds for a client to ask, once it has connected."""
_LOOK = 0.01


async def leave(listeners: Sequence[Listener], server: "Server", front: Front, grace: float) -> None:
    """Take no more connections, make each answer the last one on its own, and close those on which nothing
    happens. When this returns, the rest may drain. It takes no longer than `grace` seconds."""
    front.leaving = True
    for listener in listeners:
        listener.close()
    loop = asyncio.get_running_loop()
    end = loop.time() + min(grace, _MOMENT)
    while True:
        # At first, too: what has come by now is read meanwhile.
        await asyncio.sleep(_LOOK)
        protocols = [cast("Protocol", protocol) for protocol in server.connections]
        opening = any(listener.opening for listener in listeners)
        if loop.time() >= end or not (opening or any(_is_asking(each, loop.time()) for each in protocols)):
            break
    for protocol in protocols:
        if _is_idle(protocol) and protocol.transport is not None:
            protocol.transport.close()
    # What has come has been read by now, but it may be about to be looked at.
    await asyncio.sleep(_LOOK)


def _is_asking(protocol: "Protocol", now: float) -> bool:
    """Whether a request is likely to come: its head has begun, or could not before, a moment ago."""
    timer = protocol._header_timer  # noqa: SLF001 - reason: nobody else is to know
    return timer is not None and timer.when() - protocol.client_timeout + _MOMENT > now


def _is_idle(protocol: "Protocol") -> bool:
    """Whether nothing is being served or waits to be."""
    waiter = protocol._waiter  # noqa: SLF001 - reason: aiohttp's way to say so
    return waiter is not None and not waiter.done() and not protocol._messages  # noqa: SLF001 - likewise
