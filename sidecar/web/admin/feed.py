"""`/events`: what has changed, once a second, for everybody who listens.

One clock ticks for all of them, as long as there are any, and what they are told is made once. A listener
that does not keep up misses ticks, which are never queued, and hears later of requests that ended meanwhile,
as far as they are remembered; one that takes nothing for long is cut off.
"""

import asyncio
from collections.abc import Callable

import orjson

from sidecar.core.events import event
from sidecar.web.admin.overview import ACTIVE, LINES, Overview
from sidecar.web.admin.shared import Shared
from sidecar.web.reply import Reply

MOST = 32
"""Listeners at once."""
BEAT = 1.0
"""Seconds between two ticks."""
_SHOWN = 50
"""Requests of each kind in a tick."""


class Feed:
    """All listeners of one process."""

    def __init__(self, board: Overview, shared: Shared) -> None:
        self._board = board
        self._shared = shared
        self._next = asyncio.Event()
        """Set at the next tick, when another one takes its place."""
        self._timer: asyncio.TimerHandle | None = None
        self._listeners = 0
        self._made = _Made(board, shared)
        self.closed = False

    @property
    def full(self) -> bool:
        """Whether there is no room for another listener."""
        return self._listeners >= MOST

    async def tell(self, reply: Reply, window: str) -> None:
        """Tell one listener until it leaves, or all is over. Raises ClientGoneError."""
        self._listeners += 1
        if self._timer is None:
            self._tick()
        mark = 0
        try:
            while not self.closed:
                following = self._next
                mark, frame = await self._made.tick(window, mark)
                reply.write(frame)
                await reply.drained()
                await following.wait()
            reply.finish()
        finally:
            self._listeners -= 1

    def stop(self) -> None:
        """All streams end."""
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._next.set()

    def _tick(self) -> None:
        self._timer = None
        self._made = _Made(self._board, self._shared)
        following, self._next = self._next, asyncio.Event()
        following.set()
        if self._listeners:
            self._timer = asyncio.get_running_loop().call_later(BEAT, self._tick)


class _Made:
    """What is told between one tick and the next; each part is made when it is asked for first."""

    def __init__(self, board: Overview, shared: Shared) -> None:
        self._board = board
        self._shared = shared
        self._stats: dict[str, asyncio.Future[orjson.Fragment]] = {}
        self._active: orjson.Fragment | None = None
        self._lines: dict[int, tuple[int, orjson.Fragment]] = {}
        """By the mark that a listener has: its next one, and what it has not seen."""

    async def tick(self, window: str, mark: int) -> tuple[int, bytes]:
        """The next mark of a listener, and its event."""
        await self._board.refresh(window, ACTIVE, LINES)
        if window not in self._stats:
            self._stats[window] = self._shared.ask((window,), lambda: self._figures(window), remembered=False)
        # Whoever leaves takes it from nobody.
        stats = await asyncio.shield(self._stats[window])
        if self._active is None:
            self._active = _json(self._board.active(_SHOWN))
        if mark not in self._lines:
            following, lines = self._board.since(mark, _SHOWN)
            self._lines[mark] = following, _json(lines)
        following, recent = self._lines[mark]
        return following, event("tick", {"stats": stats, "active": self._active, "recent": recent})

    def _figures(self, window: str) -> Callable[[], orjson.Fragment]:
        prepared = self._board.prepare(window)
        return lambda: _json(prepared())


def _json(value: object) -> orjson.Fragment:
    return orjson.Fragment(orjson.dumps(value))
