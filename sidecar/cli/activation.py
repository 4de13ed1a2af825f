"""Sockets that a service manager has opened and passes on: sd_listen_fds(3).

The manager goes on holding them while the service restarts: clients wait in the kernel's queue meanwhile, and
none is refused.
"""

import os
import socket
from collections.abc import MutableMapping, Sequence

from msgspec.structs import replace

from sidecar.checks_inbound import check_host, refusal
from sidecar.config import Config
from sidecar.core.values import ConfigError, is_loopback

_FIRST = 3
"""SD_LISTEN_FDS_START."""


def inherited(
    environment: MutableMapping[str, str] | None = None, first: int = _FIRST
) -> list[socket.socket]:
    """The listening sockets that were passed to this process; none where it was started by hand. They are for
    this process only: children find neither the variables in their environment nor the sockets open.

    Raises ConfigError for one that cannot be served.
    """
    given = os.environ if environment is None else environment
    count, whose = given.pop("LISTEN_FDS", ""), given.pop("LISTEN_PID", "")
    given.pop("LISTEN_FDNAMES", None)
    if whose != str(os.getpid()) or not count.isdecimal():
        return []
    return [_opened(number) for number in range(first, first + int(count))]


def placed(config: Config, sockets: Sequence[socket.socket]) -> Config:
    """The configuration with the address at which those sockets listen, if there are any: that of one beyond
    loopback, if one is. Raises ConfigError for what must not be open to everybody."""
    addresses = [each.getsockname()[:2] for each in sockets]
    if not addresses:
        check_host(config)
        return config
    host, port = next((each for each in addresses if not is_loopback(each[0])), addresses[0])
    if (reason := refusal(config, host)) is not None:
        raise ConfigError(f"LISTEN_FDS: {reason}")
    return replace(config, server=replace(config.server, host=host, port=port))


def _opened(number: int) -> socket.socket:
    try:
        os.set_inheritable(number, False)  # noqa: FBT003 - it takes no name
        made = socket.socket(fileno=number)
    except OSError as error:
        raise ConfigError(f"LISTEN_FDS: descriptor {number} is no socket: {error.strerror}") from None
    reason = _unfit(made)
    if reason is not None:
        made.close()
        raise ConfigError(f"LISTEN_FDS: descriptor {number} {reason}")
    return made


def _unfit(made: socket.socket) -> str | None:
    """Why it cannot be served, and what to do."""
    if made.type != socket.SOCK_STREAM or not made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "does not listen for connections; the socket unit needs ListenStream= and Accept=no"
    if made.family not in (socket.AF_INET, socket.AF_INET6):
        return "is no TCP socket; ListenStream= needs an address and a port, such as 127.0.0.1:8400"
    return None
