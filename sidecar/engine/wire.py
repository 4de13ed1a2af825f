"""A connection that has left HTTP: bytes both ways, as they come, until it is over.

It takes the transport away from the protocol that had it, so nothing that it carries from then on is read as
HTTP by anybody. Whoever listens is told of each piece in the moment it arrives: there is no task and no queue
in between, and what one side does not take in time is not read from the other.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

_FAREWELL = 1.0
"""Seconds for the other side of TLS to take its leave, too."""
_PROBES = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
"""Seconds of silence before the first probe, seconds between probes, and how many may stay unanswered: two
minutes in all, and not the two hours that are usual. Not everywhere can they be set."""


class Ear(Protocol):
    """Who listens to a wire."""

    def received(self, data: bytes) -> None:
        """The next bytes from there."""

    def ended(self) -> None:
        """No more comes from there; it may still be written to."""

    def lost(self) -> None:
        """It is closed, both ways."""

    def full(self) -> None:
        """It takes no more for now: what is written waits here."""

    def ready(self) -> None:
        """It does again."""


class Wire(asyncio.Protocol):
    """One end of such a connection."""

    __slots__ = ("_abort", "_ear", "_early", "_ended", "_full", "_lost", "_on_lost", "_transport")

    def __init__(
        self,
        transport: asyncio.Transport,
        early: bytes = b"",
        *,
        full: bool = False,
        on_lost: Callable[[Exception | None], None] | None = None,
    ) -> None:
        """`early`: what has come already. `full`: what was written before is waiting. `on_lost`: told, last
        of all, when the connection is closed."""
        self._transport = transport
        self._early = [early] if early else []
        self._full = full
        self._on_lost = on_lost
        self._ear: Ear | None = None
        self._abort: asyncio.TimerHandle | None = None
        self._ended = False
        self._lost = False
        connected = transport.get_extra_info("socket")
        if connected is not None:
            # No clock of ours ends a connection on which nobody speaks; but one whose peer is gone without
            # a word is to end some time.
            with suppress(OSError):  # it may be gone already, or a Unix socket
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for name, value in _PROBES:
                    if hasattr(socket, name):
                        connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        transport.set_protocol(self)
        self.resume()

    def listen(self, ear: Ear) -> None:
        """Tell `ear` what has happened, and what happens from now on."""
        self._ear = ear
        early, self._early = self._early, []
        for data in early:
            ear.received(data)
        if self._full:
            ear.full()
        if self._ended:
            ear.ended()
        if self._lost:
            self._ear = None
            ear.lost()

    # What may be done with it.

    @property
    def waiting(self) -> int:
        """Bytes that were written and are still here."""
        return self._transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        """Send. Never waits; see `Ear.full`. To a connection that is closed it is lost."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def finish(self) -> None:
        """Nothing more is written: say so, after what was. TLS cannot be closed one way only, and says it
        with `close`."""
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()

    def pause(self) -> None:
        """Read no more. A piece that is on its way may still come."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self, within: float) -> None:
        """Close both ways, once what was written is delivered, and at most `within` seconds from now."""
        transport = self._transport
        if within <= 0:
            transport.abort()
            return
        if not transport.get_write_buffer_size():
            within = min(within, _FAREWELL)
        transport.close()
        if self._abort is None and not self._lost:
            self._abort = asyncio.get_running_loop().call_later(within, transport.abort)

    # What the transport tells.

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._ear is not None:
            self._ear.received(data)
        else:
            self._early.append(data)

    def eof_received(self) -> bool:
        """See `asyncio.Protocol`."""
        self._ended = True
        if self._ear is not None:
            self._ear.ended()
        return self._transport.can_write_eof()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._full = True
        if self._ear is not None:
            self._ear.full()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._full = False
        if self._ear is not None:
            self._ear.ready()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._lost = True
        if self._abort is not None:
            self._abort.cancel()
            self._abort = None
        ear, self._ear = self._ear, None  # they hold each other
        if ear is not None:
            ear.lost()
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None:
            on_lost(exc)
