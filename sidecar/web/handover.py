"""Requests that another worker process of the same sidecar has to answer: handed over on its Unix socket.

The other one gets the request as it came and answers as if the client had come to it; what it says goes to
the client as it is, head and framing included. So a hand-over can change nothing, and ends the way the answer
does: whole, or cut. The line in the log is the other one's; only what becomes of a request that the other one
has not answered is told here. Where that is for its body's sake the other one, which was asked, has a line of
its own: that its client has left.
"""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import httptools
import msgspec

from sidecar.core.errors import RefusedError
from sidecar.core.headers import NOT_FORWARDED, render, tokens
from sidecar.core.types import Request
from sidecar.serving.shares import Shares, clear
from sidecar.serving.shell import Arriving, Body, ClientGoneError
from sidecar.serving.visit import Visit
from sidecar.web.incoming import Incoming
from sidecar.web.reply import Reply, close_within
from sidecar.web.unchunked import Unchunked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_NOT_HANDED_ON = NOT_FORWARDED - {b"proxy-authorization"}
_CHUNK = 256 << 10
_SHARES = "shares"
_CONNECT = 5.0
"""Seconds for a connection inside of this machine."""


class Place(msgspec.Struct, frozen=True):
    """Which of several worker processes one is."""

    folder: Path
    """Of the workers' sockets; nobody else gets in there."""
    number: int
    count: int
    """Of all workers."""

    def socket(self, number: int) -> Path:
        """Where a worker takes what is handed over."""
        return self.folder / f"worker-{number}.sock"

    def shares(self, names: list[str]) -> Shares:
        """What clients of these names have used of their limits, in all workers. Raises OSError."""
        return Shares(self.folder / _SHARES, self.number, self.count, names)

    def release(self) -> None:
        """It has ended, and serves nothing any more that counts for somebody."""
        clear(self.folder / _SHARES, self.number, self.count)

    @property
    def figures(self) -> Path:
        """Where this worker tells its supervisor what it has counted."""
        return self.folder / f"figures-{self.number}.sock"


class Handover:
    """See `serving.siblings.Siblings`."""

    def __init__(self, place: Place, timeout: float) -> None:
        """`timeout`: seconds that a client may take to make room for more."""
        self.number = place.number
        self.count = place.count
        self._place = place
        self._timeout = timeout

    async def hand_over(self, worker: int, visit: Visit, raw: Arriving, request: Request) -> bool:
        """See `Siblings`."""
        connected = await self._connect(worker)
        if connected is None:
            return False
        reader, writer = connected
        upload: asyncio.Task[None] | None = None
        try:
            body = await raw.body(request, keep=0)
            writer.write(_head(request, body))
            visit.elsewhere = visit.logged = True
            if body.more is not None:
                chunked = b"content-length" not in request.fields
                upload = asyncio.create_task(_upload(body.more, writer, chunked=chunked))
            plain = Unchunked(request.method) if request.http10 else None
            if await self._relay(reader, upload, visit, cast("Incoming", raw), plain):
                return True
            visit.elsewhere = visit.logged = False
        except RefusedError:
            visit.elsewhere = visit.logged = False
            raise
        finally:
            writer.transport.abort()
            if upload is not None:
                upload.cancel()
                # Not only cancelled: nobody else must be reading this body once this has ended.
                await asyncio.wait({upload})
                if not upload.cancelled():
                    upload.exception()
        # It has ended, or it is there and could not take this: it has no descriptor left, for one.
        connected = await self._connect(worker)
        if connected is None:
            return False
        connected[1].transport.abort()
        raise RefusedError("overloaded", f"worker {worker} closed the connection without an answer")

    async def _connect(self, worker: int) -> "tuple[asyncio.StreamReader, asyncio.StreamWriter] | None":
        """None if nobody listens there. Raises RefusedError."""
        try:
            async with asyncio.timeout(_CONNECT):
                return await asyncio.open_unix_connection(str(self._place.socket(worker)), limit=_CHUNK)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except (OSError, TimeoutError) as error:
            detail = f"worker {worker} takes no more: {getattr(error, 'strerror', None) or 'no answer'}"
            raise RefusedError("overloaded", detail) from None

    async def _relay(
        self,
        reader: asyncio.StreamReader,
        upload: "asyncio.Task[None] | None",
        visit: Visit,
        raw: Incoming,
        plain: Unchunked | None,
    ) -> bool:
        """Give the client what the other one says, until its end. Returns whether it said anything. `plain`:
        for a client of HTTP/1.0. Raises RefusedError, ClientGoneError."""
        reply = cast("Reply", visit.reply)
        reply.keep_alive = False
        first = await self._first(reader, upload)
        if not first:
            return False
        data = first
        while data:
            transport = raw.transport
            if transport is None or transport.is_closing():
                raise ClientGoneError("the client closed the connection")
            reply.started = True
            try:
                transport.write(data if plain is None else plain.take(data))
            except httptools.HttpParserError:
                reply.cut_to_close()
                return True
            await reply.drained()
            data = await _read(reader)
        if plain is not None and not plain.whole:
            reply.cut_to_close() if plain.to_close else reply.cut()
        elif raw.transport is not None:
            close_within(raw.transport, self._timeout)
        return True

    @staticmethod
    async def _first(reader: asyncio.StreamReader, upload: "asyncio.Task[None] | None") -> bytes:
        """The first bytes of the answer; b"" if there is none. Raises what went wrong with the request's
        body, which the other one need not hear of, and is why there is none then."""
        if upload is None:
            return await _read(reader)
        answer = asyncio.ensure_future(_read(reader))
        try:
            await asyncio.wait({answer, upload}, return_when=asyncio.FIRST_COMPLETED)
            answered = answer.done() and answer.result()
            if not answered and upload.done() and (error := upload.exception()) is not None:
                raise error
            return await answer
        finally:
            answer.cancel()


def _head(request: Request, body: Body) -> bytes:
    """The request's head as the other one gets it: for one answer on this connection."""
    fields = [field for field in request.headers if field[0].lower() not in _NOT_HANDED_ON]
    # What a client names there goes no further than to this sidecar, of which both are part.
    nominated = tokens(request.fields.get(b"connection", b"")) - {b"close", b"keep-alive", b"upgrade"}
    # No space: the head must not outgrow what the other one takes.
    connection = (b"Connection", b",".join([b"close", *sorted(nominated)]))
    if body.more is not None and b"content-length" not in request.fields:
        fields.append((b"Transfer-Encoding", b"chunked"))
    if request.http10 and b"host" not in request.fields:
        fields.append((b"Host", b""))
    start = b"%b %b HTTP/1.1" % (request.method.encode(), request.target)
    return render(start, [*fields, connection])


async def _upload(more: "AsyncIterator[bytes]", writer: asyncio.StreamWriter, *, chunked: bool) -> None:
    """Raises RefusedError for a body that is not valid or too slow."""
    try:
        async for part in more:
            writer.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
            await writer.drain()
        if chunked:
            writer.write(b"0\r\n\r\n")
    except RefusedError:
        writer.transport.abort()
        raise
    except ConnectionError:
        pass  # it has answered without the rest, or is gone: its answer tells


async def _read(reader: asyncio.StreamReader) -> bytes:
    with suppress(ConnectionError):
        return await reader.read(_CHUNK)
    return b""
