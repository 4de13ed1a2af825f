"""An app behind SidecarMiddleware on a real uvicorn in the test's own loop, and a client that sees each chunk."""

import asyncio
import contextlib
import socket
import time

import h11
import uvicorn
from starlette.responses import StreamingResponse
from starlette.routing import Route

from sidecar_starlette import SidecarMiddleware

GUARD = 10.0
"""Seconds after which something that has to happen has not."""
STREAM = {"accept": "text/event-stream"}
END = object()


async def eventually(true, told=lambda: "", limit=GUARD):
    """Wait for something that has no event to wait for."""
    deadline = time.monotonic() + limit
    while not true():
        assert time.monotonic() < deadline, told()
        await asyncio.sleep(0.002)


async def soon(work, seconds=GUARD):
    """Its result, which has to come before anybody gives up on the test."""
    async with asyncio.timeout(seconds):
        return await work


def said(number):
    """An event of an answer."""
    return b"data: %d\n\n" % number


class Recorder:
    """Stands where the server is: keeps what is raised to it, and passes it on. `requests`: calls that have not
    returned yet."""

    def __init__(self, app):
        self.app = app
        self.raised = []
        self.requests = 0

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        self.requests += 1
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            self.raised.append(error)
            raise
        finally:
            self.requests -= 1


class Served:
    """An app on a real server."""

    def __init__(self, app, lines, **config):
        self.recorder = Recorder(app)
        self.lines = lines
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        settings = {"log_config": None, "lifespan": "on", "ws": "none", **config}
        self.server = uvicorn.Server(uvicorn.Config(self.recorder, timeout_graceful_shutdown=5, **settings))
        self.running = False
        self.clients = []

    @property
    def raised(self):
        return self.recorder.raised

    @property
    def assembly(self):
        """The engine."""
        app = self.recorder.app
        while not isinstance(app, SidecarMiddleware):
            app = app.middleware_stack if hasattr(app, "middleware_stack") else app.app
        return app.runtime.here

    async def active(self, number):
        """Until so many requests are being served."""
        await eventually(lambda: self.assembly is not None and self.assembly.front.active == number)

    async def start(self):
        """As `Server.serve` does, without its clock: that makes each stop a matter of tenths of seconds."""
        config = self.server.config
        config.load()
        self.server.lifespan = config.lifespan_class(config)
        await self.server.startup(sockets=[self.listener])
        assert self.server.started and not self.server.should_exit
        self.running = True

    async def stop(self):
        for client in self.clients:
            client.close()
        if self.running:
            self.running = False
            with contextlib.suppress(AssertionError):
                await eventually(
                    lambda: not self.server.server_state.connections and not self.recorder.requests, limit=2
                )
            await soon(self.server.shutdown([self.listener]), 20)
        self.listener.close()

    async def idle(self):
        """Until all requests, with all that was begun for them, are over."""
        await eventually(lambda: not self.recorder.requests)

    async def send(self, method, target, body=b"", headers=(), *, more=False):
        """A request on a connection of its own, whose answer is still to be read. `more`: of its body comes
        later."""
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22))
        self.clients.append(client)
        client.request(method, target, body, dict(headers), more=more)
        return client

    async def post(self, target="/chat", body=b"{}", headers=()):
        return await self.send("POST", target, body, headers)

    async def ask(self, target="/chat", body=b"{}", headers=(), method="POST"):
        """The whole answer."""
        return await (await self.send(method, target, body, headers)).answer()

    async def get(self, target, headers=()):
        return await self.ask(target, b"", headers, "GET")


class Client:
    """One request and its answer, chunk by chunk."""

    def __init__(self, reader, writer):
        self._reader, self._writer = reader, writer
        self._h11 = h11.Connection(h11.CLIENT)
        self.status = None
        self.headers = {}
        self.body = b""
        self.end = None
        """`whole`, or `cut` when the connection ended before the answer did."""

    def request(self, method, target, body, headers, *, more):
        fields = {"host": "test", **headers}
        if more:
            fields.setdefault("transfer-encoding", "chunked")
        elif body:
            fields.setdefault("content-length", str(len(body)))
        self._say(h11.Request(method=method, target=target, headers=list(fields.items())))
        if body:
            self.upload(body)
        if not more:
            self._say(h11.EndOfMessage())

    def upload(self, part, *, last=False):
        self._say(h11.Data(part))
        if last:
            self._say(h11.EndOfMessage())

    def _say(self, event):
        data = self._h11.send(event)
        if data:
            self._writer.write(data)

    async def _event(self):
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            self._h11.receive_data(await self._reader.read(1 << 16))
        return event

    async def head(self):
        event = await soon(self._event())
        assert isinstance(event, h11.Response), event
        self.status = event.status_code
        for name, value in event.headers:
            key = name.decode()
            had = self.headers.get(key)
            self.headers[key] = value.decode() if had is None else f"{had}, {value.decode()}"
        return self

    async def more(self):
        """The next part of the body; empty at its end."""
        if self.end is None:
            try:
                event = await soon(self._event())
            except (h11.RemoteProtocolError, ConnectionError):
                self.end = "cut"
                return b""
            if isinstance(event, h11.Data):
                self.body += event.data
                return bytes(event.data)
            self.end = "whole" if isinstance(event, h11.EndOfMessage) else "cut"
        return b""

    async def until(self, text):
        """Read until the body so far ends with that."""
        while not self.body.endswith(text):
            assert await self.more(), (self.body, self.end)
        return self

    async def rest(self):
        while await self.more():
            pass
        return self

    async def answer(self):
        await self.head()
        return await self.rest()

    @property
    def cache(self):
        return self.headers.get("cache-status")

    @property
    def stream_id(self):
        return self.headers["slipstream-stream-id"]

    def close(self):
        self._writer.close()


class Feed:
    """An endpoint that streams what the test gives it, piece by piece, to its first run; every run gets its own
    queue, in `runs`. `hold`: it waits for `go` before its head."""

    def __init__(self, *, hold=False, kind="text/event-stream", sync=False, **more):
        self.runs = []
        self.go = asyncio.Event()
        if not hold:
            self.go.set()
        self.kind, self.more, self.sync = kind, more, sync
        self.began = asyncio.Event()

    def at(self, path="/chat", methods=("GET", "POST")):
        """A route for it."""
        return Route(path, self.endpoint, methods=list(methods))

    async def endpoint(self, request):
        run = _FeedRun(self)
        self.runs.append(run)
        run.request, run.sent_body = request, await request.body()
        self.began.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            run.how = "cancelled before its head"
            run.closed.set()
            raise
        return StreamingResponse(run.pieces(), media_type=self.kind, **self.more)

    def say(self, *pieces, run=-1):
        for piece in pieces:
            self.runs[run].queue.put_nowait(piece)

    def end(self, run=-1):
        self.say(END, run=run)


class _FeedRun:
    def __init__(self, feed):
        self.feed = feed
        self.queue = asyncio.Queue()
        self.closed = asyncio.Event()
        self.how = None

    async def pieces(self):
        try:
            while (piece := await self.queue.get()) is not END:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
            self.how = "ended"
        except asyncio.CancelledError:
            self.how = "cancelled"
            raise
        except GeneratorExit:
            self.how = "closed"
            raise
        except Exception as error:
            self.how = type(error).__name__
            raise
        finally:
            self.closed.set()
