"""A Starlette app under uvicorn, by itself or with the middleware: `python -m benchmarks.middleware_apps PORT
FOLDER PROVIDER [off|exact]`. Without the last word there is nothing between the server and the app.

It has what the measurements ask for: a small answer in JSON, event streams as fast as they go or at a pace,
and the chat of `plugins/examples`, with the scripted provider of the run as its model.
"""

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from sidecar_starlette import SidecarMiddleware

HOST = "127.0.0.1"
WORDS = (" the", " parcel", " was", " delivered", " on", " Wednesday", ",", " to", " a", " neighbour", ".")
FRAMES = [b'event: token\ndata: {"text":"%b"}\n\n' % word.encode() for word in WORDS]
EXAMPLE = Path(__file__).parent.parent / "plugins" / "examples" / "chat.py"


async def ready(_request: Request) -> Response:
    return Response()


async def answer(request: Request) -> Response:
    """A little JSON for a little JSON."""
    asked = await request.json()
    return JSONResponse({"session": asked["session"], "answer": "It was delivered.", "sources": [3, 14, 15]})


async def events(request: Request) -> Response:
    """As many events as asked for, `gap` seconds apart; 0: with nothing but others' turn in between."""
    asked = await request.json()
    count, gap = asked["events"], asked["gap"]

    async def frames() -> AsyncIterator[bytes]:
        for number in range(count):
            yield FRAMES[number % len(FRAMES)]
            await asyncio.sleep(gap)

    return StreamingResponse(frames(), media_type="text/event-stream")


def example() -> ModuleType:
    """`plugins/examples/chat.py`, which is no package."""
    spec = importlib.util.spec_from_file_location("chat", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["chat"] = module
    spec.loader.exec_module(module)
    return module


def made(provider: str, folder: str, cache: str | None) -> ASGIApp:
    chat = example()
    routes = [
        Route("/ready", ready),
        Route("/json", answer, methods=["POST"]),
        Route("/events", events, methods=["POST"]),
        Route("/chat", chat.chat, methods=["POST"]),
    ]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with chat.with_model(f"{provider}/v1", "scripted", app) as state:
            # The run's provider is told what to say, as the example's own is.
            yield {"model": state["model"]._replace(scripted=True)}

    app = Starlette(routes=routes, lifespan=lifespan)
    if cache is not None:
        app.add_middleware(SidecarMiddleware, credential="cookie", cache=cache, data_dir=folder)
    return app


if __name__ == "__main__":
    port, folder, provider, *cache = sys.argv[1:]
    uvicorn.run(
        made(provider, folder, cache[0] if cache else None),
        host=HOST,
        port=int(port),
        loop="uvloop",
        http="httptools",
        lifespan="on",
        access_log=False,
        log_level="warning",
    )
