"""What a service manager is told: sd_notify(3), in the few lines that it takes.

The manager names a datagram socket in the environment, and gets lines of `KEY=value`. Nothing here raises or
waits: a service that cannot tell how it is goes on serving.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Protocol

STATUS = 5.0
"""Seconds between two looks at whether the status has changed."""


class Notifier(Protocol):
    """Is told how a service is. No method raises or waits."""

    @property
    def beat(self) -> float | None:
        """Seconds between two signs of life that are expected; None where nobody waits for them."""

    def ready(self, status: str) -> None:
        """It serves, or serves again after `reloading`. `status`: a line for people, here and below."""

    def reloading(self) -> None:
        """It reads its configuration again."""

    def stopping(self, status: str) -> None:
        """It has begun to end."""

    def stopped(self, *, clean: bool) -> None:
        """It has ended. `clean`: no request was cut off."""

    def status(self, status: str) -> None:
        """Something for people has changed."""

    def alive(self) -> None:
        """A sign of life."""


class Notify:
    """Tells the service manager that started this process, if one did."""

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        """The variables are taken out of the environment: no child of this process speaks for it."""
        given = os.environ if environment is None else environment
        address = given.pop("NOTIFY_SOCKET", "")
        microseconds, whose = given.pop("WATCHDOG_USEC", ""), given.pop("WATCHDOG_PID", "")
        self._address = _address(address)
        self._socket: socket.socket | None = None
        if self._address is not None:
            # Now: there may be no descriptor left when it is needed most.
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.settimeout(0)
        self._owed: list[str] = []
        """What the manager did not take at once and must hear of."""
        self.beat: float | None = None
        """A third of the time after which silence means that it hangs: one sign may come late."""
        if whose in ("", str(os.getpid())) and microseconds.isdecimal() and int(microseconds):
            self.beat = int(microseconds) / 3e6

    def ready(self, status: str) -> None:
        self._tell("READY=1", _status(status))

    def reloading(self) -> None:
        # The time tells this reload from one that was asked for later (Type=notify-reload).
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str) -> None:
        self._tell("STOPPING=1", _status(status))

    def stopped(self, *, clean: bool) -> None:
        """The end of the process says so."""

    def status(self, status: str) -> None:
        self._send(_status(status))

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Say nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell(self, *lines: str) -> None:
        """Something that must not be lost: what is not taken now is told later."""
        self._owed.append("\n".join(lines))
        self._pay()

    def _pay(self) -> None:
        while self._owed and self._send_one(self._owed[0]):
            del self._owed[0]

    def _send(self, text: str) -> None:
        self._pay()  # first: it is older
        self._send_one(text)

    def _send_one(self, text: str) -> bool:
        """Returns whether there is no use in trying again."""
        if self._socket is None or self._address is None:
            return True
        try:
            self._socket.sendto(text.encode(), self._address)
        except BlockingIOError:
            return False
        except OSError:
            pass  # nobody is there to be told, and nobody to tell that
        return True


class Nobody:
    """Where no one wants to know."""

    beat = None

    def ready(self, status: str) -> None:
        """To nobody, as all below."""

    def reloading(self) -> None: ...

    def stopping(self, status: str) -> None: ...

    def stopped(self, *, clean: bool) -> None: ...

    def status(self, status: str) -> None: ...

    def alive(self) -> None: ...


async def keep_posted(notify: Notifier, status: Callable[[], str]) -> None:
    """Signs of life, from the event loop: one that is blocked gives none. And the status whenever it has
    changed. Never returns."""
    told, looked = "", 0.0
    loop = asyncio.get_running_loop()
    while True:
        if notify.beat is not None:
            notify.alive()
        if loop.time() - looked >= STATUS:
            looked = loop.time()
            if (now := status()) != told:
                told = now
                notify.status(now)
        await asyncio.sleep(min(notify.beat or STATUS, STATUS))


def _address(name: str) -> str | None:
    """Where to send it. A path, or a name that is in no folder; nothing else is spoken here."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else None


def _status(text: str) -> str:
    """One line, whatever was in it."""
    return "STATUS=" + "".join(char if char.isprintable() else " " for char in text)
