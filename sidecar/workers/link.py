"""What a supervisor and a worker tell each other: lines of JSON on a socket that only the two have.

When it is closed, the other one is gone: a worker without its supervisor stops as if it had been told to.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import orjson

BEAT = 1.0
"""Seconds between two signs of life of a worker's event loop."""


class Order(msgspec.Struct, frozen=True):
    """What a worker is told when it begins: all that it must have in common with the others."""

    number: int
    count: int
    folder: str
    """Of the workers' sockets."""
    secret: bytes
    """The secret behind ids and keys, which may be that of this run only."""
    flags: dict[str, Any]
    """Of the command line, by dotted key."""
    trees: list[dict[str, Any] | None]
    """What the configuration file held when all of this began, and at each reload that was taken since: what
    a reload cannot change is as it was. The file itself may have been changed again."""
    file: str
    """What messages call it."""
    listen: list[tuple[int, list[Any]]]
    """Family and address of each socket to make."""
    inherited: list[int]
    """Descriptors of sockets that listen already, instead."""


class Link:
    """A worker's end; what `Notifier` has is what the supervisor is told."""

    beat: float | None = BEAT

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._rest = b""
        self.tree: dict[str, Any] | None = None
        """The configuration file's content as the supervisor has read it last."""
        self._ready = self._missed = False
        """Whether it serves; whether it was to be told of a new configuration before."""
        self.orphaned = False
        """The supervisor is gone."""

    def order(self) -> Order:
        """What to do. Waits for it; raises ValueError if it does not come."""
        said = b""
        while b"\n" not in said:
            part = self._socket.recv(1 << 16)
            if not part:
                raise ValueError("no supervisor")
            said += part
        self._socket.setblocking(False)  # noqa: FBT003 - the standard library's
        line, _, self._rest = said.partition(b"\n")
        order = msgspec.json.decode(line, type=Order)
        self.tree = order.trees[-1]
        return order

    def listen(self, stop: Callable[[], None], reload: Callable[[], None]) -> None:
        """From now on be told, on the running event loop."""
        loop = asyncio.get_running_loop()

        def heard() -> None:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                loop.remove_reader(self._socket)
                self.orphaned = True
                stop()
                return
            take(data)

        def take(data: bytes) -> None:
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                said = orjson.loads(line)
                if said["say"] == "stop":
                    stop()
                elif said["say"] == "reload":
                    self.tree = said["tree"]
                    if self._ready:
                        reload()
                    else:
                        self._missed = True

        loop.add_reader(self._socket, heard)
        self._reload = reload
        take(b"")

    # As `Notifier`.

    def ready(self, status: str) -> None:
        self._say("ready", status)
        missed, self._ready, self._missed = self._missed, True, False
        if missed:
            asyncio.get_running_loop().call_soon(self._reload)

    def reloading(self) -> None:
        self._say("reloading", "")

    def stopping(self, status: str) -> None:
        self._say("stopping", status)

    def status(self, status: str) -> None:
        self._say("status", status)

    def alive(self) -> None:
        self._say("alive", "")

    def stopped(self, *, clean: bool) -> None:
        self._say("stopped", "" if clean else "cut")

    def failed(self, reason: str) -> None:
        """It cannot be started with this configuration."""
        self._say("failed", reason)

    def _say(self, kind: str, text: str) -> None:
        # A supervisor that does not listen is going to hear of it later, or not at all.
        with suppress(OSError):
            self._socket.send(orjson.dumps({"say": kind, "text": text}) + b"\n")


class Line:
    """The supervisor's end of one."""

    def __init__(self, connected: socket.socket, heard: Callable[[str, str], None]) -> None:
        """`heard`: kind and text of what is said. On the running event loop."""
        connected.setblocking(False)  # noqa: FBT003 - the standard library's
        self._socket = connected
        self._heard = heard
        self._rest = b""
        self._owed = b""
        asyncio.get_running_loop().add_reader(connected, self._read)

    def order(self, order: Order) -> None:
        self._send(msgspec.json.encode(order) + b"\n")

    def stop(self) -> None:
        self._send(b'{"say":"stop"}\n')

    def reload(self, tree: dict[str, Any] | None) -> None:
        self._send(orjson.dumps({"say": "reload", "tree": tree}) + b"\n")

    def close(self) -> None:
        """Hear what was said last, and nothing more."""
        while self._read():
            pass
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        loop.remove_writer(self._socket)
        self._socket.close()

    def _send(self, data: bytes) -> None:
        self._owed += data
        self._pay()

    def _pay(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._owed:
                self._owed = self._owed[self._socket.send(self._owed) :]
        except BlockingIOError:
            loop.add_writer(self._socket, self._pay)
            return
        except OSError:
            self._owed = b""  # it is gone, and is waited for elsewhere
        loop.remove_writer(self._socket)

    def _read(self) -> bool:
        """Returns whether there may be more."""
        try:
            data = self._socket.recv(1 << 16)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._socket)
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            with suppress(ValueError):  # cut, by a socket that was full: it is not the last sign of life
                said = orjson.loads(line)
                self._heard(said["say"], said["text"])
        return True


def pair() -> tuple[socket.socket, socket.socket]:
    """The two ends: the supervisor's, and the one that the worker inherits."""
    return socket.socketpair()
