"""A TCP proxy between a client and the sidecar that cuts the client off where a plan says.

Bytes go through as they are, request by request. A cut is placed in the body as the client gets it, framing aside: after
so many events, so many bytes into the next one, or after so many bytes. Nothing is timed: a cut waits until the client
has said (`confirm`) that it was given every event that was let through, so what it knows when it comes back is certain.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, NamedTuple, Self

RESET = struct.pack("ii", 1, 0)
CONTROL = "/_slipstream/"


@dataclass(frozen=True)
class Cut:
    """Where one request's answer ends. An int in a plan is a cut after so many events."""

    events: int = 0
    into: int = 0
    """So many bytes after the last of the events; more than a byte makes it the middle of the next."""
    brink: bool = False
    """Instead of `into`: all of the next event but its last byte."""
    body: int | None = None
    """Instead of all that: so many bytes of the body."""
    head: bool = False
    """Before the head, though the sidecar has sent it."""
    how: Literal["rst", "fin"] = "rst"
    hasty: bool = False
    """Don't wait until the client has seen what was let through. It may be told of less than that, then."""
    silent: bool = False
    """The sidecar does not learn of it: its connection stays open, read by nobody."""


Plan = Sequence[int | Cut]


class LeftError(ConnectionError):
    """The client is gone."""


class Exchange:
    """A request that was passed on, and what the client was given of its answer."""

    def __init__(self, raw: bytes, cut: Cut | None) -> None:
        start, self.headers = _head(raw)
        self.method, self.target, _ = start.split(" ")
        self.request = b""
        """The request's body."""
        self.cut = cut
        self.status = 0
        self.answer: dict[str, str] = {}
        """The answer's headers."""
        self.body = bytearray()
        self.events = 0
        self.over: Literal["whole", "cut", "left", "lost"] | None = None
        """How it ended: `left` when the client went by itself, `lost` when the sidecar aborted."""

    @property
    def streamed(self) -> bool:
        return self.answer.get("content-type", "").startswith(("text/event-stream", "application/x-ndjson"))

    def __repr__(self) -> str:
        last = self.headers.get("last-event-id")
        return f"<{self.method} {self.target} after {last}: {self.status}, {self.events} events, {self.over}>"


def _head(raw: bytes) -> tuple[str, dict[str, str]]:
    """The first line, and the fields by name in lower case."""
    start, *lines = raw[:-4].decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines)
    return start, {name.lower(): value.strip() for name, _, value in fields}


class Gauge:
    """Follows a body to where it is to be cut. Counts what a client is told of: events with data, or lines."""

    def __init__(self, cut: Cut | None, *, lines: bool) -> None:
        self.events = 0
        self._cut = cut
        self._lines = lines
        self._size = 0
        self._past = 0  # bytes since the last event's end
        self._line = bytearray()
        self._data = False

    @property
    def due(self) -> bool:
        cut = self._cut
        if cut is None:
            return False
        if cut.body is not None:
            return self._size >= cut.body
        return not cut.brink and self.events == cut.events and self._past >= cut.into

    def feed(self, data: bytes) -> int:
        """How many of these bytes may pass; when that is not all of them, or `due` then, the cut is here."""
        for at, byte in enumerate(data):
            if self.due or self._on_the_brink(byte):
                return at
            self._take(byte)
        return len(data)

    def _ends(self, byte: int) -> bool:
        """Whether this byte ends an event."""
        if byte != 10:
            return False
        blank = not self._line.rstrip(b"\r")
        return not blank if self._lines else blank and self._data

    def _on_the_brink(self, byte: int) -> bool:
        cut = self._cut
        return cut is not None and cut.brink and self.events == cut.events and self._ends(byte)

    def _take(self, byte: int) -> None:
        self._size += 1
        self._past += 1
        if byte != 10:
            self._line.append(byte)
            return
        if self._ends(byte):
            self.events += 1
            self._past = 0
        line = bytes(self._line.rstrip(b"\r"))
        self._line.clear()
        self._data = bool(line) and (self._data or line.startswith(b"data"))


class Page(NamedTuple):
    """What the cutter answers itself, so that a browser has a page of the same origin."""

    kind: str
    body: bytes


class Cutter:
    """Listens on a port of its own. Every request that is passed on takes the next entry of the plan; those after the
    plan's end are not cut."""

    def __init__(self, port: int, plan: Plan = (), pages: Mapping[str, Page] | None = None) -> None:
        """`port`: the sidecar's."""
        self.exchanges: list[Exchange] = []
        self.connections = 0
        """Accepted, ever."""
        self.url = ""
        self.plan = [Cut(entry) if isinstance(entry, int) else entry for entry in plan]
        self._port = port
        self._pages = pages or {}
        self._confirmed = 0
        self._news: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._silent: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    @property
    def cuts(self) -> int:
        return sum(exchange.over == "cut" for exchange in self.exchanges)

    @property
    def delivered(self) -> int:
        """Events that clients were given, those of every connection added up."""
        return sum(exchange.events for exchange in self.exchanges)

    def confirm(self) -> None:
        """The client says that it was given one more event."""
        self._confirmed += 1
        self._changed()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Until that holds; looked at whenever something was passed on, has ended or was confirmed."""
        while not condition():
            if self._news is None:
                self._news = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._news)

    def _changed(self) -> None:
        if self._news is not None:
            self._news.set_result(None)
            self._news = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        failed = [e for e in await asyncio.gather(*self._tasks, return_exceptions=True) if _is_error(e)]
        # Those whose task was cancelled before its first step, too: clients come back at any time.
        for writer in (*self._silent, *self._writers):
            writer.transport.abort()
        await self._server.wait_closed()
        if failed and error is None:
            raise failed[0]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        task = asyncio.create_task(self._connection(Wire(reader, writer)))
        self._tasks.add(task)

    async def _connection(self, client: Wire) -> None:
        sidecar: Wire | None = None
        try:
            while raw := await client.head():
                _, fields = _head(raw)
                body = await client.exactly(int(fields.get("content-length", 0)))
                if (page := self._page(raw)) is not None:
                    await client.send(page)
                    continue
                if sidecar is None:
                    sidecar = Wire(*await asyncio.open_connection("127.0.0.1", self._port))
                if not await self._exchange(client, sidecar, raw, body):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # one of the two left between requests
        finally:
            client.abort()
            if sidecar is not None and sidecar.writer not in self._silent:
                sidecar.abort()

    def _page(self, raw: bytes) -> bytes | None:
        path = raw.split(b" ", 2)[1].decode()
        if path == "/favicon.ico":
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        if (page := self._pages.get(path)) is None:
            return None
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {page.kind}\r\nContent-Length: {len(page.body)}\r\n\r\n"
        return head.encode() + page.body

    async def _exchange(self, client: Wire, sidecar: Wire, raw: bytes, body: bytes) -> bool:
        """Pass one request on, and its answer back; returns whether the connection goes on."""
        number = len(self.exchanges)
        exchange = Exchange(raw, self.plan[number] if number < len(self.plan) else None)
        exchange.request = body
        self.exchanges.append(exchange)
        self._changed()
        await sidecar.send(raw + body)
        down = asyncio.create_task(self._answer(exchange, client, sidecar))
        left = asyncio.create_task(client.gone())
        try:
            await asyncio.wait((down, left), return_when=asyncio.FIRST_COMPLETED)
            if not down.done():
                exchange.over = "left"
                return False
            return await down
        finally:
            for task in (down, left):
                task.cancel()
            await asyncio.gather(down, left, return_exceptions=True)
            self._changed()

    async def _answer(self, exchange: Exchange, client: Wire, sidecar: Wire) -> bool:
        cut = exchange.cut
        try:
            while True:
                raw = await sidecar.head()
                start, exchange.answer = _head(raw)
                exchange.status = int(start.split(" ")[1])
                if exchange.status >= 200:
                    break
                await _give(client, raw)
            assert "content-encoding" not in exchange.answer, "events cannot be counted"
            gauge = Gauge(cut, lines="ndjson" in exchange.answer.get("content-type", ""))
            if cut is None or not cut.head:
                await _give(client, raw)
                if not await self._body(exchange, gauge, client, sidecar):
                    exchange.over = "whole"
                    return "transfer-encoding" in exchange.answer or "content-length" in exchange.answer
        except LeftError:
            exchange.over = "left"
            return False
        except (ConnectionError, asyncio.IncompleteReadError):
            exchange.over = "lost"
            return False
        assert cut is not None
        if not cut.hasty:
            await self.until(lambda: self._confirmed >= self.delivered)
        exchange.over = "cut"
        if cut.silent:
            self._silent.append(sidecar.writer)
        client.leave(cut.how)
        return False

    async def _body(self, exchange: Exchange, gauge: Gauge, client: Wire, sidecar: Wire) -> bool:
        """Pass the body on; returns whether it is to be cut here."""
        if exchange.status in (204, 304) or exchange.method == "HEAD":
            return False
        if gauge.due:
            return True
        async with aclosing(_pieces(exchange, sidecar)) as pieces:
            async for piece, framing in pieces:
                passed = piece if framing else piece[: gauge.feed(piece)]
                if not framing:
                    exchange.body += passed
                    exchange.events = gauge.events
                    self._changed()
                await _give(client, passed)
                if len(passed) < len(piece) or gauge.due:
                    return True
        return False


async def _give(client: Wire, data: bytes) -> None:
    try:
        await client.send(data)
    except ConnectionError as error:
        raise LeftError from error


async def _pieces(exchange: Exchange, sidecar: Wire) -> AsyncGenerator[tuple[bytes, bool], None]:
    """An answer's bytes after its head as they come, and whether they are framing."""
    if exchange.answer.get("transfer-encoding") != "chunked":
        left = int(exchange.answer.get("content-length", 1 << 62))
        while left and (data := await sidecar.some(left)):
            left -= len(data)
            yield data, False
        if left and "content-length" in exchange.answer:
            raise asyncio.IncompleteReadError(b"", left)
        return
    size = -1
    while size:
        line = await sidecar.line()
        yield line, True
        left = size = int(line, 16)
        while left:
            if not (data := await sidecar.some(left)):
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(data)
            yield data, False
        yield await sidecar.line(), True


def _is_error(outcome: object) -> bool:
    return isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError)


class Wire:
    """One side of the proxy: a connection, and what came on it and is not used yet."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        writer.transport.set_write_buffer_limits(0)  # `drain` means: the kernel has it
        self._reader = reader
        self._held = b""

    async def _more(self) -> bool:
        data = await self._reader.read(1 << 16)
        self._held += data
        return bool(data)

    def _take(self, size: int) -> bytes:
        taken, self._held = self._held[:size], self._held[size:]
        return taken

    async def _through(self, mark: bytes) -> bytes:
        while mark not in self._held:
            if not await self._more():
                raise asyncio.IncompleteReadError(self._held, None)
        return self._take(self._held.index(mark) + len(mark))

    async def head(self) -> bytes:
        return await self._through(b"\r\n\r\n")

    async def line(self) -> bytes:
        return await self._through(b"\r\n")

    async def exactly(self, size: int) -> bytes:
        while len(self._held) < size:
            if not await self._more():
                raise asyncio.IncompleteReadError(self._held, size)
        return self._take(size)

    async def some(self, most: int) -> bytes:
        """What is there, or comes next; b"" at the end."""
        if not self._held:
            await self._more()
        return self._take(most)

    async def gone(self) -> None:
        """Until the peer has closed."""
        try:
            while await self._more():
                pass
        except ConnectionError:
            pass

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def leave(self, how: Literal["rst", "fin"]) -> None:
        if how == "rst":
            sock: socket.socket = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.abort()
        else:
            self.writer.close()

    def abort(self) -> None:
        self.writer.transport.abort()
