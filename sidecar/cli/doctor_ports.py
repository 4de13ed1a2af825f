"""The two ports: free, or taken by a sidecar that runs already, or by something else."""

import asyncio
import errno
import os

import msgspec
import orjson

from sidecar.cli.doctor_http import Answer
from sidecar.cli.doctor_reach import UnreachableError, place, reach
from sidecar.cli.doctor_show import Finding, fail, ok, printable
from sidecar.config import Loaded
from sidecar.core.values import is_loopback
from sidecar.engine.source import Origin

_ALL = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - an address to call instead


class _Port(msgspec.Struct, frozen=True):
    check: str
    key: str
    flag: str
    scheme: str
    host: str
    port: int
    health: str
    """The path that says whether it serves."""
    moves: bool
    """A free one is taken instead where nobody chose this one."""

    @property
    def origin(self) -> Origin:
        return Origin(self.scheme, _ALL.get(self.host, self.host), self.port)


async def ports(found: Loaded, timeout: float) -> list[Finding]:  # noqa: ASYNC109
    """Both of them. `timeout`: seconds for whoever is there to answer."""
    config = found.config
    secure = config.tls.certificate is not None
    server, admin = config.server, config.admin
    proxy = _Port(
        "port",
        "server",
        "--port",
        "https" if secure else "http",
        server.host,
        server.port,
        "/_slipstream/healthz",
        moves=False,
    )
    moves = "admin.port" not in found.origins
    operators = _Port(
        "admin port", "admin", "--admin-port", "http", admin.host, admin.port, "/healthz", moves=moves
    )
    version = await _version(operators, timeout)
    return [await _port(one, version, timeout) for one in (proxy, operators)]


async def _port(port: _Port, version: str | None, timeout: float) -> Finding:  # noqa: ASYNC109
    where = place(Origin(port.scheme, port.host, port.port))
    if port.port == 0:
        return ok(port.check, f"any free one on {port.host}")
    number = await _bound(port.host, port.port)
    if number == 0:
        return ok(port.check, f"{where} is free")
    if number == errno.EADDRINUSE:
        state = await _health(port, timeout)
        if state is not None:
            named = f" of version {version}" if version else ""
            return ok(
                port.check, f"a sidecar{named} serves at {where} ({state})", state=state, version=version
            )
        if port.moves:
            return ok(port.check, f"{where} is taken by something else: a free one is going to be used")
        remedy = (
            f"stop that (`ss -ltnp 'sport = :{port.port}'` names it), or choose another port: {port.flag}"
        )
        return fail(port.check, f"{where} is taken by something that is no sidecar", remedy)
    fact = f"cannot listen on {where}: {os.strerror(number) if number else 'no such address'}"
    if number in (errno.EACCES, errno.EPERM):
        return fail(
            port.check, fact, f"a port from 1024 on: {port.flag}, or AmbientCapabilities=CAP_NET_BIND_SERVICE"
        )
    return fail(port.check, fact, f"{port.key}.host has to be an address of this machine")


async def _bound(host: str, port: int) -> int | None:
    """0 when the address could be had, the error's number when not; None for a host that is unknown."""
    loop = asyncio.get_running_loop()
    try:
        # Bound as the sidecar does, without listening: nobody can come.
        server = await loop.create_server(asyncio.Protocol, host, port, start_serving=False)
    except OSError as error:
        return error.errno if (error.errno or 0) > 0 else None
    server.close()
    await server.wait_closed()
    return 0


async def _asked(port: _Port, path: str, timeout: float) -> Answer | None:  # noqa: ASYNC109
    try:
        answer, _ = await reach(port.origin, timeout, checked=False)
    except UnreachableError:
        return None
    try:
        await answer.ask(port.origin, path)
        await answer.ended(timeout)
    finally:
        answer.close()
    return answer


async def _health(port: _Port, timeout: float) -> str | None:  # noqa: ASYNC109
    """What a sidecar that is there says of itself; None where there is none."""
    answer = await _asked(port, port.health, timeout)
    if answer is None or answer.status not in (200, 503):
        return None
    try:
        state = orjson.loads(answer.body)["status"]
    except (ValueError, KeyError, TypeError):
        return None
    return printable(str(state))[:20]


async def _version(port: _Port, timeout: float) -> str | None:  # noqa: ASYNC109
    """Of the sidecar that runs, where it tells: on loopback it takes no token."""
    if port.port == 0 or not is_loopback(port.host):
        return None
    answer = await _asked(port, "/stats?window=1m", timeout)
    try:
        return printable(str(orjson.loads(answer.body)["version"]))[:20] if answer is not None else None
    except (ValueError, KeyError, TypeError):
        return None
