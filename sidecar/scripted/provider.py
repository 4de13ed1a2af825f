"""The scripted provider: a server on a port of its own that answers as providers do, and as they should not.

Owns the listening socket, the record of what came in, and the choice of what serves a request.
"""

from __future__ import annotations

import asyncio
import ssl as tls
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

import orjson

from sidecar.scripted.answers import EARLY, Route, find
from sidecar.scripted.answers.base import Ask
from sidecar.scripted.connection import Connection
from sidecar.scripted.received import Received
from sidecar.scripted.render import Rendered, render, rendered
from sidecar.scripted.script import Script, override
from sidecar.scripted.work import Echo, Handled, Handler, Play, Upload, Work, shape


class ScriptedProvider:
    """Serves `script` to every request, unless its `X-Scripted` header says otherwise.

    `record=False` keeps no `requests`, for runs without end. `ssl`: a server-side context.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        script: Script | None = None,
        ssl: tls.SSLContext | None = None,
        *,
        record: bool = True,
    ) -> None:
        self.script = script or Script()
        self.requests: list[Received] = []
        self.received = 0
        """Requests whose head is here, recorded or not."""
        self.accepted = 0
        """Connections, ever."""
        self.peak_active = 0
        self._active = 0
        self._host, self._port, self._ssl, self._record = host, port, ssl, record
        self._handlers: dict[str, tuple[Handler, bool]] = {}
        self._open: set[Connection] = set()
        self._errors: list[BaseException] = []
        self._server: asyncio.Server | None = None
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    @property
    def url(self) -> str:
        return f"{'https' if self._ssl else 'http'}://{self._host}:{self._port}"

    @property
    def port(self) -> int:
        return self._port

    @property
    def connections(self) -> int:
        """Open ones."""
        return len(self._open)

    @property
    def active(self) -> int:
        """Answers being written."""
        return self._active

    @active.setter
    def active(self, value: int) -> None:
        self._active = value
        self.peak_active = max(self.peak_active, value)

    def on(self, path: str, handler: Handler, *, early: bool = False) -> None:
        """Let `handler(connection, received)` serve that path (without query), with raw control of the bytes.

        It is called when the whole request is here; with `early`, when its head is. When it returns and has
        not closed the connection, the next request on it is served. What it raises, `stop` raises again; a
        ConnectionError, that is a peer that left, is no failure.
        """
        self._handlers[path] = (handler, early)

    async def wait_for(self, n: int) -> None:
        """Until the heads of `n` requests have been received in all."""
        await self.wait_until(lambda: self.received >= n)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until `condition` holds; looked at whenever a request, an answer or a connection begins or ends."""
        if not condition():
            future = asyncio.get_running_loop().create_future()
            self._waiting.append((condition, future))
            await future

    async def start(self) -> None:
        loop = asyncio.get_running_loop()

        def connect() -> Connection:
            self.accepted += 1
            return Connection(self, self.accepted, loop)

        self._server = await loop.create_server(connect, self._host, self._port, ssl=self._ssl, backlog=4096)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, drop every connection, and raise the first thing that a handler failed with."""
        if self._server is None:
            return
        self._server.close()
        tasks = [task for connection in self._open for task in connection.tasks]
        for task in tasks:
            task.cancel()
        for connection in tuple(self._open):
            connection.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.wait_until(lambda: not self._open)
        await self._server.wait_closed()
        self._server = None
        if self._errors:
            raise self._errors[0]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # What connections tell.

    def opened(self, connection: Connection) -> None:
        self._open.add(connection)
        self.changed()

    def lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        self.changed()

    def changed(self) -> None:
        if self._waiting:
            held = [(condition, future) for condition, future in self._waiting if not future.done()]
            for condition, future in held:
                if condition():
                    future.set_result(None)
            self._waiting = [(condition, future) for condition, future in held if not future.done()]

    def arrived(self, received: Received) -> Work:
        """Record the request, and say what serves it."""
        self.received += 1
        if self._record:
            self.requests.append(received)
        self.changed()
        path = received.path
        if path in self._handlers:
            handler, early = self._handlers[path]
            return Handled(handler, self._errors.append, early=early)
        if path == "/echo":
            return Echo()
        if path == "/upload":
            return Upload()
        if path == "/early":
            return Play(partial(self._answer, EARLY), early=True)
        return Play(partial(self._answer, find(received.method, path)))

    def _answer(self, route: Route, received: Received) -> tuple[Rendered, Script]:
        script, wanted = self.script, shape(received)
        ask = Ask()
        try:
            body = _object(received.body) if route.json else {}
            ask = route.read(body, received.path, received.query)
            patch = received.header("x-scripted")
            if patch is not None:
                script = override(script, patch)
        except ValueError as error:
            return render(route.refuse(400, str(error), ask), Script(), wanted), Script()
        return rendered(route, ask, script, wanted), script


def _object(body: bytes) -> dict[str, object]:
    value = orjson.loads(body)
    if not isinstance(value, dict):
        raise ValueError("the body is not a JSON object")  # noqa: TRY004 - one error for all bad input
    return value
