"""How a request is served: an answer played at its pace, a body echoed, a body counted, a handler run.

Owns pace and backpressure. Timers, no tasks: one callback and one write per event.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

from sidecar.scripted.answers.base import answer
from sidecar.scripted.render import LAST_CHUNK, Rendered, Shape, render
from sidecar.scripted.script import Script

if TYPE_CHECKING:
    from sidecar.scripted.connection import Connection
    from sidecar.scripted.received import Received

Handler: TypeAlias = "Callable[[Connection, Received], Awaitable[None]]"
BURST = 64
"""Events written in one turn of the loop when there is no interval, so that no stream starves the others."""
KEPT = 65536


class Work:
    """Serves one request. `early`: begins when the head is here, and is given the body as it comes."""

    early = False
    keep = sys.maxsize
    """Bytes of the body that are kept."""

    def start(self, connection: Connection, received: Received) -> None:
        raise NotImplementedError

    def data(self, chunk: bytes) -> None: ...

    def end(self) -> None: ...

    def resume(self) -> None:
        """The connection can be written to again."""

    def lost(self) -> None:
        """The connection is gone."""


def shape(received: Received) -> Shape:
    return Shape(not received.persistent, received.version == "1.0", received.method == "HEAD")


class Play(Work):
    """Writes a rendered answer."""

    def __init__(self, make: Callable[[Received], tuple[Rendered, Script]], *, early: bool = False) -> None:
        self._make = make
        self.early = early
        if early:
            self.keep = KEPT
        self._timer: asyncio.Handle | None = None
        self._parked: Callable[[], None] | None = None
        self._pieces: Iterator[bytes] = iter(())

    def start(self, connection: Connection, received: Received) -> None:
        self._connection = connection
        self._loop = connection.loop
        self._rendered, script = self._make(received)
        self._frames = iter(self._rendered.frames)
        self._left = len(self._rendered.frames)
        self._interval = script.interval
        self._first = script.first
        self._due = self._loop.time()
        self._after(script.head, self._head)

    def _after(self, delay: float, step: Callable[[], None]) -> None:
        if delay > 0:
            self._due += delay
            self._timer = self._loop.call_at(self._due, step)
        else:
            step()

    def _head(self) -> None:
        if self._rendered.head:
            self._connection.write(self._rendered.head)
        self._after(self._first, self._event)

    def _event(self) -> None:
        connection = self._connection
        for _ in range(BURST):
            if not connection.writable:
                self._parked = self._event
                return
            pieces = next(self._frames, None)
            if pieces is None:
                connection.end(self._rendered.ending)
                return
            if len(pieces) > 1:
                self._pieces = iter(pieces)
                self._piece()
                return
            connection.write(pieces[0])
            self._left -= 1
            if not self._left:
                # Nothing to wait for: a real provider ends its answer with the last event.
                connection.end(self._rendered.ending)
                return
            if self._interval:
                # On the grid, not after the fact: a late timer must not slow the stream down.
                self._due = due = self._due + self._interval
                self._timer = self._loop.call_at(due, self._event)
                return
        self._timer = self._loop.call_soon(self._event)

    def _piece(self) -> None:
        if not self._connection.writable:
            self._parked = self._piece
            return
        piece = next(self._pieces, None)
        if piece is None:
            self._left -= 1
            self._after(self._interval if self._left else 0, self._event)
            return
        self._connection.write(piece)
        self._timer = self._loop.call_soon(self._piece)

    def resume(self) -> None:
        step, self._parked = self._parked, None
        if step is not None:
            self._due = self._loop.time()
            step()

    def lost(self) -> None:
        self._parked = None
        if self._timer is not None:
            self._timer.cancel()


class Echo(Work):
    """Sends the body back as it comes, with its type, coding and, when it had one, its length."""

    early = True
    keep = KEPT

    def start(self, connection: Connection, received: Received) -> None:
        self._connection = connection
        length = received.header("content-length")
        old = received.version == "1.0"
        self._chunked = length is None and not old
        copied = [(name, received.header(name)) for name in ("Content-Type", "Content-Encoding")]
        lines = [b"HTTP/1.1 200 OK"]
        lines += [name.encode() + b": " + value for name, value in copied if value]
        if length is not None:
            lines.append(b"Content-Length: " + length)
        elif self._chunked:
            lines.append(b"Transfer-Encoding: chunked")
        self._ending = connection.manners(received, close=old)
        if self._ending == "close":
            lines.append(b"Connection: close")
        connection.write(b"\r\n".join(lines) + b"\r\n\r\n")

    def data(self, chunk: bytes) -> None:
        self._connection.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._chunked else chunk)
        if not self._connection.writable:
            self._connection.pause_reading()

    def resume(self) -> None:
        self._connection.resume_reading()

    def end(self) -> None:
        if self._chunked:
            self._connection.write(LAST_CHUNK)
        self._connection.end(self._ending)


class Upload(Work):
    """Counts and hashes the body."""

    early = True
    keep = KEPT

    def start(self, connection: Connection, received: Received) -> None:
        self._connection = connection
        self._received = received
        self._hash = hashlib.sha256()

    def data(self, chunk: bytes) -> None:
        self._hash.update(chunk)

    def end(self) -> None:
        counted = {"bytes": self._received.size, "sha256": self._hash.hexdigest()}
        made = render(answer(counted), Script(), shape(self._received))
        self._connection.write(b"".join([made.head, *(piece for frame in made.frames for piece in frame)]))
        self._connection.end(made.ending)


class Handled(Work):
    """Runs a handler of the user's, who has the bytes in hand."""

    def __init__(self, handler: Handler, failed: Callable[[BaseException], None], *, early: bool) -> None:
        self._handler = handler
        self._failed = failed
        self.early = early
        self._task: asyncio.Task[None] | None = None

    def start(self, connection: Connection, received: Received) -> None:
        self._task = connection.loop.create_task(self._run(connection, received))
        connection.tasks.add(self._task)
        self._task.add_done_callback(connection.tasks.discard)

    async def _run(self, connection: Connection, received: Received) -> None:
        try:
            await self._handler(connection, received)
        except ConnectionError:
            pass  # the peer left while the handler was writing: what `Received.closed` is for
        except Exception as error:  # noqa: BLE001 - kept, and raised again when the provider stops
            self._failed(error)
            connection.reset()
        else:
            connection.end("keep" if received.persistent else "close")
