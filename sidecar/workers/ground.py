"""What workers have in common before they begin: an address, and a folder for their sockets."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LONGEST = 80
"""Characters of a folder whose sockets' names still fit into an address."""


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
    given = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    made = Path(tempfile.mkdtemp(prefix="slipstream-", dir=given or None))
    if len(str(made)) > _LONGEST and not given:
        made.rmdir()
        made = Path(tempfile.mkdtemp(prefix="slipstream-", dir="/tmp"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
