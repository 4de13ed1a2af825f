"""Taking connections in: a bounded number at once, and with a word where no descriptor is left.

The event loops' own ways end badly there. Plain asyncio (CPython 3.11) tries a thousand times for each
connection that waits, with a line in the log and a timer for each, while clients hang; libuv closes them
without an answer. Here one descriptor is kept in reserve: a client gets it for as long as it takes to be told
503, and everything goes on by itself once others are free.
"""

import asyncio
import errno
import os
import socket
import ssl
import sys
from asyncio.trsock import TransportSocket
from collections.abc import Callable, Sequence
from contextlib import suppress

_AT_ONCE = 64
"""Connections that are taken in a row: those that are being served have their turn in between."""
_OPENING = 1024
"""Connections whose handshakes are not over. Whoever is one too many takes the place of the oldest: clients
that connect and say nothing keep nobody out."""
_ALWAYS = 64
"""So many of them may be open where there is room for fewer connections."""
_PAUSE = 0.5
"""Seconds until the next try, where not even the reserve helps."""
BACKLOG = 1024
"""Connections that may wait to be taken, where nobody else has said how many."""
_LEFT = 64 << 10
_WAITS = sys.platform == "win32"
"""Whether the event loop tells of no readiness, and has to be asked for each connection."""
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
_NO_MEMORY = (errno.ENOBUFS, errno.ENOMEM)


class CrowdedOutError(Exception):
    """A handshake was given up for one that began later."""


class Listener:
    """Accepts what comes to the sockets of a server that was made with `start_serving=False`; takes its
    place."""

    def __init__(
        self,
        server: asyncio.Server,
        factory: Callable[[], asyncio.Protocol],
        *,
        refusal: Callable[[], bytes],
        exhausted: Callable[[], None] = lambda: None,
        tls: Callable[[], ssl.SSLContext] | None = None,
        room: Callable[[], int] = lambda: _OPENING,
        failed: Callable[[BaseException], None] = lambda _error: None,
        on_fault: Callable[[BaseException], None] | None = None,
        handshake: float = 60.0,
        farewell: float = 30.0,
    ) -> None:
        """`refusal`: the whole answer for a client for whom there is no descriptor; `exhausted` is told of
        each. `tls`: what a handshake that begins now goes by; `room`: how many more connections there may be;
        `failed` is told of handshakes, `on_fault` of mistakes of our own. `handshake`: seconds for that of
        TLS; `farewell`: for what is left to be sent when a connection is closed, and for the client to close
        it, too."""
        self._server = server
        self._factory = factory
        self._refusal = refusal
        self._exhausted = exhausted
        self._tls = tls
        self._room = room
        self._failed = failed
        self._on_fault = on_fault
        self._handshake = handshake if tls is not None else None
        self._farewell = farewell if tls is not None else None
        self._loop = asyncio.get_running_loop()
        self._sockets: list[socket.socket] = []
        self._opening: dict[asyncio.Task[None], socket.socket] = {}
        """The oldest comes first."""
        self._waiting: set[asyncio.Task[None]] = set()
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._reserve: int | None = None

    @property
    def sockets(self) -> Sequence[socket.socket] | Sequence[TransportSocket]:
        """What it is bound to."""
        return self._server.sockets

    @property
    def opening(self) -> int:
        """Connections that have been taken and are not the server's yet."""
        return len(self._opening)

    async def start_serving(self) -> None:
        """Listen. Raises OSError."""
        self._take_reserve()
        for bound in self._server.sockets:
            # The loop has given the server's own to a transport, and lets nobody else read from it.
            made = bound.dup() if _WAITS else socket.socket(fileno=os.dup(bound.fileno()))
            made.setblocking(False)  # noqa: FBT003 - the standard library's
            if not made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                made.listen(BACKLOG)  # on one that listens already it would replace what a manager chose
            self._sockets.append(made)
        if _WAITS:
            self._waiting = {self._loop.create_task(self._wait_for(made)) for made in self._sockets}
        else:
            self._resume()

    def close(self) -> None:
        """Take no more; what has been taken is being opened."""
        self._pause()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._server.close()
        for task in self._waiting:
            task.cancel()
        for made in self._sockets:
            made.close()
        self._sockets.clear()
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None

    async def wait_closed(self) -> None:
        """Be done with those, too, whose handshakes are not over."""
        opening = [*self._opening, *self._waiting]
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        await self._server.wait_closed()

    def _resume(self) -> None:
        self._paused, self._timer = False, None
        for made in [] if _WAITS else self._sockets:
            self._loop.add_reader(made.fileno(), self._ready, made)

    def _pause(self) -> None:
        self._paused = True
        for made in [] if _WAITS else self._sockets:
            self._loop.remove_reader(made.fileno())

    def _ready(self, listening: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            if self._paused:
                return
            try:
                made, _ = listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NO_DESCRIPTOR:
                    if not self._turn_away(listening):
                        return
                elif error.errno in _NO_MEMORY:
                    self._wait()
                # Else it was about that one connection, which is gone again.
                continue
            self._take(made)

    async def _wait_for(self, listening: socket.socket) -> None:
        while True:
            try:
                made, _ = await self._loop.sock_accept(listening)
            except OSError:
                await asyncio.sleep(_PAUSE)
            else:
                self._take(made)

    def _take(self, made: socket.socket) -> None:
        made.setblocking(False)  # noqa: FBT003 - the standard library's
        with suppress(OSError):  # it is of no use for a Unix socket, nor where the client has left
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None and len(self._opening) >= max(_ALWAYS, min(_OPENING, self._room())):
            self._drop_oldest()
        task = self._loop.create_task(self._open(made))
        self._opening[task] = made
        task.add_done_callback(self._opened)

    def _drop_oldest(self) -> None:
        for task in self._opening:
            if not task.cancelling():
                task.cancel()
                self._failed(CrowdedOutError())
                return

    async def _open(self, made: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._factory,
                made,
                ssl=self._tls() if self._tls is not None else None,
                ssl_handshake_timeout=self._handshake,
                ssl_shutdown_timeout=self._farewell,
            )
        except OSError as error:
            made.close()  # the client has left, or speaks no TLS
            if self._tls is not None:
                self._failed(error)
        except Exception as error:
            made.close()
            if self._on_fault is None:
                raise
            self._on_fault(error)
        except BaseException:
            made.close()
            raise

    def _opened(self, task: asyncio.Task[None]) -> None:
        made = self._opening.pop(task)
        if task.cancelled():
            made.close()  # it may not even have begun

    # Without descriptors.

    def _turn_away(self, listening: socket.socket) -> bool:
        """Answer one client that there is no room, and close. Returns whether there may be another one.

        The kernel says that no descriptor is free before it looks whether anybody waits."""
        if self._reserve is None:
            self._take_reserve()
        if self._reserve is None:
            self._exhausted()
            self._wait()
            return False
        os.close(self._reserve)
        self._reserve = None
        try:
            made, _ = listening.accept()
        except OSError as error:
            self._take_reserve()
            if error.errno in _NO_DESCRIPTOR:  # somebody else was quicker
                self._exhausted()
                self._wait()
            return not isinstance(error, BlockingIOError)
        self._exhausted()
        with made, suppress(OSError):
            made.setblocking(False)  # noqa: FBT003 - the standard library's
            if self._tls is None:
                made.send(self._refusal())
                made.shutdown(socket.SHUT_WR)
                made.recv(_LEFT)  # closing with bytes unread is a reset, which may take the answer back
        self._take_reserve()
        return True

    def _take_reserve(self) -> None:
        with suppress(OSError):
            self._reserve = os.open(os.devnull, os.O_RDONLY)

    def _wait(self) -> None:
        if not self._paused:
            self._pause()
            self._timer = self._loop.call_later(_PAUSE, self._resume)
