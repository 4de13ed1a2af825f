"""The async tail of a recording, from an offset.

A reader that has caught up waits on one future; nothing else is made per chunk. The keepalive clock
is a single timer that looks when something last went out, instead of being restarted per chunk.
"""

import asyncio

from sidecar.core.recording import Recording
from sidecar.core.types import Head


class Reader:
    """One client's view of a recording. Used by one task."""

    __slots__ = (
        "_idle",
        "_interval",
        "_last",
        "_loop",
        "_recording",
        "_timer",
        "_waiter",
        "offset",
    )

    def __init__(self, recording: Recording, loop: asyncio.AbstractEventLoop, offset: int = 0) -> None:
        self.offset = offset
        self._recording = recording
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None
        self._idle = False
        self._interval = 0.0
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None
        recording.attach(self)

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def every(self, interval: float) -> None:
        """From now on, `head` and `read` return None after each `interval` seconds of silence; 0: never."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._idle = False
        self._interval = interval
        if interval > 0:
            self._last = self._loop.time()
            self._timer = self._loop.call_later(interval, self._tick)

    async def head(self) -> Head | None:
        """The head; None on silence, or when the recording ended without one (see its `end`)."""
        recording = self._recording
        while recording.head is None and recording.end is None:
            if self._idle:
                self._idle = False
                return None
            await self._changed()
        return recording.head

    async def read(self) -> bytes | None:
        """All bytes past the offset, joined; b"" at the end; None on silence."""
        recording = self._recording
        while True:
            if recording.size > self.offset:
                if self._interval:
                    self._idle = False
                    self._last = self._loop.time()
                return recording.take(self)
            if recording.end is not None:
                return b""
            if self._idle:
                self._idle = False
                return None
            await self._changed()

    def close(self) -> None:
        """Stop reading. The recording may drop what only this reader still needed."""
        self.every(0)
        self._recording.detach(self)

    async def _changed(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _tick(self) -> None:
        silent = self._loop.time() - self._last
        left = self._interval - silent
        if left <= 0.001:
            self._idle = True
            self._last = self._loop.time()
            left = self._interval
            self.wake()
        self._timer = self._loop.call_later(left, self._tick)
