"""What workers have in common before they begin: an address, and a folder for their sockets."""

import fcntl
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_LONGEST = 70
"""Characters of a folder below which the names of sockets still fit into an address."""
_PREFIX = "slipstream-"
_ALIVE = "alive"
"""A file that is locked for as long as the folder is in use."""
LOG_TURN = "log.lock"
"""A file in it; see `telemetry.log.LineWriter`."""


def reserve(host: str, port: int) -> list[socket.socket]:
    """An address, kept for the workers' own sockets: these are bound and do not listen. Of port 0 it is a
    free one. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    made: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((each[0], each[4]) for each in found):
            at: tuple[Any, ...] = (address[0], made[0].getsockname()[1] if made else port, *address[2:])
            # Not to be shared, for a moment: where another program shares its port, this would take part in
            # it in silence.
            with bound(family, at, shared=False) as alone:
                at = (at[0], alone.getsockname()[1], *at[2:])
            made.append(bound(family, at, shared=True))
    except BaseException:
        for each in made:
            each.close()
        raise
    return made


def bound(family: int, address: tuple[Any, ...], *, shared: bool) -> socket.socket:
    """A socket at an address. `shared`: others may be there, too, and the kernel deals connections out among
    those that listen. Raises OSError."""
    made = socket.socket(socket.AddressFamily(family), socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


@contextmanager
def folder(environment: Mapping[str, str] = os.environ) -> Iterator[Path]:
    """A folder in which nobody else gets, gone when it is done with: below the service manager's
    (RUNTIME_DIRECTORY), or among the temporary ones. Raises OSError."""
    parent = Path(environment.get("RUNTIME_DIRECTORY", "").partition(":")[0] or tempfile.gettempdir())
    if len(str(parent)) > _LONGEST:
        parent = Path("/tmp")  # noqa: S108 - what is made there is 0700, and has no name to guess
    _sweep(parent)
    made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    try:
        with (made / _ALIVE).open("ab") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX)
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Take away the folders of those that were killed."""
    for each in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            found = each.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                continue
            with (each / _ALIVE).open("r+b") as alive:
                fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(each, ignore_errors=True)
