"""The proxy as an ASGI app, to mount: `app.mount("/llm", Sidecar(upstream="https://api.openai.com"))`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sidecar_starlette.asgi import Receive, Scope, Send
from sidecar_starlette.runtime import Given, Runtime, settings
from sidecar_starlette.serve import serve


class Sidecar:
    """What `slipstream serve` does, at the path where this is mounted."""

    def __init__(
        self,
        upstream: str | None = None,
        cache: str | None = None,
        data_dir: str | Path | None = None,
        config: Given = None,
    ) -> None:
        """`upstream`: where everything goes; without it, what `config` says, or known API paths to their
        provider. For the rest see `SidecarMiddleware`. Raises ConfigError."""
        given = settings(config, cache=cache, data_dir=data_dir, upstream=upstream)
        self._timeout = given.config.timeouts.client
        self.runtime = Runtime(given)

    @asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[None]:
        """For the app that it is mounted in, `Starlette(lifespan=sidecar.lifespan)`: starts with that, and
        drains before it stops."""
        await self.runtime.assembly()
        try:
            yield
        finally:
            await self.runtime.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI 3 has it."""
        kind = scope["type"]
        if kind == "http":
            made = self.runtime.here or await self.runtime.assembly()
            await serve(made.front, scope, receive, send, self._timeout)
        elif kind == "lifespan":
            await self.runtime.lifespan(_alive, scope, receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1011, "reason": "WebSockets are not supported"})


async def _alive(_scope: Scope, receive: Receive, send: Send) -> None:
    """The lifespan of an app that has nothing of its own to start."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
