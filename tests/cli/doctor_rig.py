"""What stands in front of a sidecar in the tests of `slipstream doctor`: nginx, and servers that answer anything."""

from __future__ import annotations

import asyncio
import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from sidecar.cli.doctor_probe import Way, probed
from sidecar.cli.doctor_show import Finding
from sidecar.config import load
from sidecar.serving.assembly import Stores
from sidecar.telemetry.log import make_logger, request_lines
from sidecar.web.service import AdminPort, Service
from tests.conftest import Lines

HANG = 20
"""Seconds after which something has hung. Nothing is measured with it."""
NGINX = """
{user}
daemon off;
pid {folder}/pid;
error_log {folder}/error.log warn;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        {places}
    }}
}}
"""
PLACE = """
        location /{name}/ {{
            proxy_pass http://127.0.0.1:{port}{cut};
            {options}
        }}
"""


@contextmanager
def nginx(folder: Path, port: int, places: dict[str, str]) -> Iterator[str]:
    """nginx in front of what listens on that port: a location for each of `places`, with these options, which cuts
    its prefix off (but `uncut`). Gives its URL. It is handed a socket that listens already, as in an upgrade of its
    binary: nobody can take the port, and nobody has to wait for it."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if program is None:
        assert not os.environ.get("CI"), "nginx is not installed"
        pytest.skip("nginx is not installed")
    # Started by root, its worker would be www-data, who may not enter the folder.
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    shown = "".join(
        PLACE.format(name=name, port=port, options=options, cut="" if name == "uncut" else "/")
        for name, options in places.items()
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        here, number = listening.getsockname()[1], listening.fileno()
        file = folder / "nginx.conf"
        file.write_text(NGINX.format(user=user, folder=folder, port=here, places=shown))
        command = [program, "-p", str(folder), "-c", str(file), "-e", str(folder / "error.log")]
        environment = os.environ | {"NGINX": f"{number};"}
        running = subprocess.Popen(command, pass_fds=[number], env=environment)
    try:
        yield f"http://127.0.0.1:{here}"
    finally:
        running.terminate()
        running.wait(HANG)


@asynccontextmanager
async def sidecar(**keys: object) -> AsyncIterator[Service]:
    """A sidecar in this process, with an upstream that is not there."""
    file = keys.pop("file", None)
    given = {key.replace("__", "."): value for key, value in keys.items()}
    given = {"server.upstream": "http://127.0.0.1:9", "server.port": 0, "admin.port": 0} | given
    config = load(given, environment={}, file=file).config
    lines = Lines()
    log, requests = make_logger(lines, "json", "info"), request_lines(lines, "json", "info")
    async with Service(config, b"s" * 32, log, requests, Stores(), admin=AdminPort()) as service:
        yield service


async def findings(
    url: str,
    idle: float = 0,
    token: str | None = None,
    timeout: float = 5,  # noqa: ASYNC109
) -> dict[str, Finding]:
    """What doctor says of the way there."""
    async with asyncio.timeout(HANG + idle):
        return {found.check: found async for found in probed(Way(url, idle, timeout, token))}


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[str]:
    """Something else than a sidecar; its URL."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    running = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with running:
        yield f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}"


def saying(answer: bytes) -> Handler:
    """It answers every request with these bytes, and closes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    return handle
