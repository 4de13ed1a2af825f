"""The async tail of a recording, from an offset.

A reader that has caught up is handed the next bytes in the moment they are recorded, without a turn of
the event loop in between; its task sleeps on one future until there is something else to do. The
keepalive clock is a single timer that looks when something last went out, and is not restarted per chunk.
"""

import asyncio
from collections.abc import Callable
from typing import Literal

from sidecar.core.recording import Recording
from sidecar.core.types import Head

Pause = Literal["behind", "silent", "end"]
"""Why a flow of bytes paused: the client has to catch up, nothing came for a while, all is said."""


class LostError(Exception):
    """The reader was too far behind the others: the bytes it wanted next are gone."""


class Reader:
    """One client's view of a recording. Used by one task."""

    __slots__ = (
        "_behind",
        "_idle",
        "_interval",
        "_last",
        "_loop",
        "_recording",
        "_timer",
        "_waiter",
        "_write",
        "lost",
        "offset",
    )

    def __init__(self, recording: Recording, loop: asyncio.AbstractEventLoop, offset: int = 0) -> None:
        """Raises ValueError when the bytes at `offset` are gone."""
        self.offset = offset
        self.lost = False
        self._recording = recording
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None
        self._write: Callable[[bytes], bool] | None = None
        self._behind = False
        self._idle = False
        self._interval = 0.0
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None
        recording.attach(self)

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if self._write is not None and self._recording.size > self.offset and not self.lost:
            try:
                self._behind = self._pass_on(self._write)
            except Exception as error:  # noqa: BLE001 - reason: it is the reader's, not the upstream's
                waiter.set_exception(error)
                return
            if not self._behind and self._recording.end is None and self._recording.size == self.offset:
                return  # all is done; the task may sleep on
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

    async def flow(self, write: Callable[[bytes], bool]) -> Pause:
        """Hand bytes to `write` as they come, each in the moment it is recorded, until there is something
        else to do. `write` returns whether its side is behind, and has to catch up first.

        Raises what `write` raises, and LostError.
        """
        recording = self._recording
        self._write = write
        try:
            while True:
                if self.lost:
                    raise LostError
                if self._behind or (recording.size > self.offset and self._pass_on(write)):
                    self._behind = False
                    return "behind"
                if recording.size > self.offset:
                    await asyncio.sleep(0)  # others' turn: there is more than was passed on at once
                    continue
                if recording.end is not None:
                    return "end"
                if self._idle:
                    self._idle = False
                    return "silent"
                await self._changed()
        finally:
            self._write = None

    async def read(self) -> bytes | None:
        """The bytes past the offset, as many as a recording gives at once; b"" at the end; None on silence.
        Raises LostError."""
        recording = self._recording
        while True:
            if self.lost:
                raise LostError
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

    def _pass_on(self, write: Callable[[bytes], bool]) -> bool:
        if self._interval:
            self._idle = False
            self._last = self._loop.time()
        return write(self._recording.take(self))

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
