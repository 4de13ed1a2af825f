"""`python -m tests.sdk.served UPSTREAM CACHE`: the ASGI app in a process of its own, mounted in an app that uvicorn
serves. It says where, and takes its other settings from the environment."""

from __future__ import annotations

import json
import socket
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from sidecar_starlette import Sidecar


def main(upstream: str, cache: str) -> None:
    app = Starlette(routes=[Mount("/llm", Sidecar(upstream=upstream, cache=cache))])
    sock = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}/llm"
    sys.stderr.write(json.dumps({"event": "serving", "url": url}) + "\n")
    sys.stderr.flush()
    uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False)).run(sockets=[sock])


if __name__ == "__main__":
    main(*sys.argv[1:])
