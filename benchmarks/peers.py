"""The processes of a run: started on free loopback ports, with a folder of their own, and ended with it."""

import contextlib
import getpass
import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.procs import family

HOST = "127.0.0.1"
ROOT = Path(__file__).parent.parent
PATIENCE = 15.0
"""Seconds a server may take to answer, and to go."""
POLL = 0.002

NGINX = """
{user}
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 8192; }}
http {{
    # What a latency line says, as far as nginx knows it; batched as the sidecar's is.
    log_format latency escape=json '{{"timestamp":"$time_iso8601","event":"request",'
        '"request_id":"$request_id","method":"$request_method","path":"$uri",'
        '"upstream":"$upstream_addr","status":$status,'
        '"total_ms":$request_time,"ttfb_ms":"$upstream_header_time","phases":{{"connect_ms":'
        '"$upstream_connect_time","upstream_ms":"$upstream_response_time"}},"bytes":$body_bytes_sent}}';
    access_log {folder}/access.log latency buffer=64k flush=1s;
    client_body_temp_path {folder}/client;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 0;
    keepalive_requests 100000000;
    upstream provider {{
        server {upstream};
        keepalive 512;
        keepalive_requests 100000000;
    }}
    server {{
        listen {host}:{port} backlog=1024;
        location / {{
            proxy_pass http://provider;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


class PeerError(Exception):
    """A server of the run did not start."""


def free_port() -> int:
    with socket.create_server((HOST, 0)) as server:
        port: int = server.getsockname()[1]
    return port


class Peer:
    """A running server. Its output goes to a file in `folder`."""

    def __init__(
        self,
        name: str,
        command: list[str],
        port: int,
        folder: Path,
        ready: str = "/",
        patience: float = PATIENCE,
    ) -> None:
        """`ready`: the path that answers with a 200, or anything else for "/", once the server serves.
        `patience`: seconds that this may take."""
        self.name = name
        self.port = port
        environment = {key: text for key, text in os.environ.items() if not key.startswith("SLIPSTREAM_")}
        self._log = folder / f"{name}-{port}.log"
        with self._log.open("wb") as log:
            begun = time.perf_counter()
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        try:
            self._wait(ready, begun + patience)
        except BaseException:
            self.stop()
            raise
        self.started_in = time.perf_counter() - begun
        """Seconds from the start of the command to the first answer."""
        self.pids = family(self._process.pid)

    def _wait(self, ready: str, until: float) -> None:
        while not _answers(self.port, ready):
            if self._process.poll() is not None or time.perf_counter() > until:
                said = self._log.read_text(errors="replace")[-2000:]
                raise PeerError(f"{self.name} does not serve: {said}")
            time.sleep(POLL)

    def stop(self) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
            return
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200 or path == "/"
    except OSError:
        return False
    finally:
        connection.close()


def provider(folder: Path) -> Peer:
    port = free_port()
    return Peer("provider", [sys.executable, "-m", "benchmarks.provider", str(port)], port, folder)


def sidecar(folder: Path, upstream: int, *options: str, data: Path | None = None) -> Peer:
    """`options`: instead of `--cache off`. `data`: the folder of another one that has ended."""
    port = free_port()
    command = (
        f"-m sidecar serve --upstream http://{HOST}:{upstream} --port {port} --admin-port 0 --log-format json"
    )
    own = [*(options or ("--cache", "off")), "--data-dir", str(data or folder / f"data-{port}")]
    return Peer("sidecar", [sys.executable, *command.split(), *own], port, folder, "/_slipstream/healthz")


def nginx(folder: Path, upstream: int) -> Peer:
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if program is None:
        raise PeerError("nginx is not installed; Debian has it as nginx-light")
    port = free_port()
    own = folder / f"nginx-{port}"
    own.mkdir()
    # Started by root, its worker would be www-data, who may not enter the folder.
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    text = NGINX.format(user=user, folder=own, upstream=f"{HOST}:{upstream}", host=HOST, port=port)
    (own / "nginx.conf").write_text(text)
    return Peer("nginx", [program, "-p", str(own), "-c", str(own / "nginx.conf")], port, folder)


def bare(folder: Path, upstream: int) -> Peer:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.bare", str(port), f"http://{HOST}:{upstream}"]
    return Peer("bare", command, port, folder)


PROXIES = {"nginx": nginx, "sidecar": sidecar, "bare": bare}
