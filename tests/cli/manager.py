"""What a service manager is to its service: a socket on which it is told things, and sockets that it passes on."""

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

GUARD = 30.0

_EXEC = """
import os, sys
count, *command = sys.argv[1:]
os.environ.update(LISTEN_FDS=count, LISTEN_PID=str(os.getpid()))
os.execv(command[0], command)
"""


class Manager:
    """Listens to its service, as NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(GUARD)

    def heard(self) -> dict[str, str]:
        """The next message."""
        text = self._socket.recv(65536).decode()
        return dict(line.split("=", 1) for line in text.split("\n"))

    def until(self, key: str) -> dict[str, str]:
        """The next message with that key; what comes before is passed over."""
        while key not in (message := self.heard()):
            pass
        return message

    def all(self) -> list[dict[str, str]]:
        """What has come, without waiting."""
        found = []
        while self.quiet(0) is False:
            found.append(self.heard())
        return found

    def quiet(self, seconds: float) -> bool:
        """Whether nothing comes for so long."""
        return not select.select([self._socket], [], [], seconds)[0]

    def close(self) -> None:
        self._socket.close()


@contextmanager
def listening(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    try:
        yield manager
    finally:
        manager.close()


@contextmanager
def passing(sockets: list[socket.socket], command: list[str]) -> Iterator[tuple[list[str], list[int]]]:
    """A command that runs another one as systemd does: with those sockets passed on. Also the descriptors that
    it needs itself, which are closed when the block is left."""
    kept = [os.dup(each.fileno()) for each in sockets]
    try:
        # They become descriptors 3, 4, ...: a shell puts them there, and the helper says whose they are.
        moves = " ".join(f"{3 + at}<&{number}" for at, number in enumerate(kept))
        helper = [sys.executable, "-c", _EXEC, str(len(kept)), *command]
        yield ["bash", "-c", f'exec "$@" {moves}', "bash", *helper], kept
    finally:
        for number in kept:
            os.close(number)


@contextmanager
def activated(
    sockets: list[socket.socket], command: list[str], **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """A process that is started like this; killed when the block is left."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with passing(sockets, command) as (argv, kept):
        running = subprocess.Popen(argv, pass_fds=kept, **{**pipes, **options})
    with running:
        try:
            yield running
        finally:
            running.kill()
