"""A streamed answer as server-sent events: `return SidecarResponse(pieces())`.

It owns the order of what is sent, and its end: a whole answer, a broken one, or a client that has left.
"""

import asyncio
import codecs
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Self

import msgspec
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from sidecar.core.events import event
from sidecar_starlette.context import HERE

Piece = str | bytes | Mapping[str, object] | tuple[str, object]
"""Text of the answer, or an event: `{"event": name, "data": value}` or `(name, value)`."""

_DONE = event("done", {})
# Never with the exception's own text, which may hold secrets.
_FAILED = event(
    "error", {"error": {"type": "internal_error", "message": "the answer could not be completed"}}
)
_END = object()


class SidecarResponse(Response):
    """Sends each piece as an event before the next is asked for: text as `token`, events as they are, `meta`
    first, `done` last. A `done` or `error` event among the pieces is the last one.

    When the iterator raises, an `error` event that does not say why is sent, and the exception goes on to the
    server, which aborts the connection: a broken answer must not look whole. When the client leaves, the
    iterator is cancelled where it waits, and closed; one that is not async runs in threads, and stops after
    its current piece. `background` runs after a whole answer.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        content: AsyncIterable[Piece] | Iterable[Piece],
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        background: BackgroundTask | None = None,
        *,
        meta: Mapping[str, object] | None = None,
    ) -> None:
        self._pieces: AsyncIterator[object]
        if isinstance(content, AsyncIterable):
            self._pieces = aiter(content)
        elif isinstance(content, Iterable) and not isinstance(content, str | bytes | Mapping):
            self._pieces = _InThreads(content)
        else:
            raise TypeError(f"an answer's content is an iterator of its pieces, not {type(content).__name__}")
        self._meta = None if meta is None else event("meta", dict(meta))
        self.status_code = status_code
        self.background = background
        self.init_headers(headers)
        self.headers.setdefault("Cache-Control", "no-cache")
        self.headers.setdefault("X-Accel-Buffering", "no")  # or nginx holds events back
        del self.headers["Content-Length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        channel = HERE.get().channel
        stream = _Stream(send, channel.done if channel is not None else _nothing)
        # One task sees to all of the iterator: its cancel scopes and context variables stay in one place, and
        # stopping it leaves the caller's task alone.
        answer = asyncio.create_task(self._answer(stream))
        watch = asyncio.create_task(stream.watch(receive))
        try:
            either: list[asyncio.Future[Any]] = [answer, stream.gone]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if stream.over:
                await asyncio.wait([answer])  # the iterator is being closed: nothing to stop, much to disturb
            left = not answer.done()
        finally:
            answer.cancel()
            watch.cancel()
            await _ended(answer, watch)
        if not watch.cancelled():
            watch.result()
        if left and answer.cancelled():
            return
        if answer.result() and self.background is not None:
            await self.background()

    async def _answer(self, stream: "_Stream") -> bool:
        """Sends it, closes the iterator, and says whether it was a whole answer."""
        here = HERE.get()
        if here.channel is None:
            HERE.set(msgspec.structs.replace(here, channel=stream))  # for this task and what it starts
        try:
            await stream.start(self.status_code, self.raw_headers)
            if self._meta is not None:
                await stream.write(self._meta)
            whole = await self._tell(stream)
            await stream.finish()
        except _LeftError:
            return False
        finally:
            stream.over = True
            aclose = getattr(self._pieces, "aclose", None)
            if aclose is not None:
                await aclose()
        return whole

    async def _tell(self, stream: "_Stream") -> bool:
        """Sends the pieces and the last event, and says whether that makes a whole answer."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            async for piece in self._pieces:
                if isinstance(piece, bytes):
                    await stream.text(decoder.decode(piece))
                elif isinstance(piece, str):
                    if piece:  # an empty one ends no character that is split between its neighbours
                        await stream.text(decoder.decode(b"", final=True) + piece)
                else:
                    name, data = _event_of(piece)
                    if name not in {"done", "error"}:
                        await stream.write(event(name, data))
                        continue
                    await stream.text(decoder.decode(b"", final=True))
                    await stream.write(event(name, data), last=True)
                    return name == "done"
            await stream.text(decoder.decode(b"", final=True))
            await stream.write(_DONE, last=True)
        except (Exception, asyncio.CancelledError):
            task = asyncio.current_task()
            # Cancelled, but not from here: by what the iterator waited for. A failure like others.
            if task is not None and not task.cancelling():
                with suppress(_LeftError, asyncio.CancelledError):  # what is raised is the first one
                    await stream.write(_FAILED, last=True)
            raise
        return True


def _nothing() -> None:
    """Nobody else writes to the stream."""


class _LeftError(Exception):
    """There is nobody to send to."""


class _Stream:
    """What the client is sent, and whether there still is one. It is a `Channel`: events of other tasks come
    between those of the answer."""

    def __init__(self, send: Send, on_last: Callable[[], None]) -> None:
        """`on_last`: told when the last event goes out."""
        self._send = send
        self._on_last = on_last
        self._lock = asyncio.Lock()
        self._started = asyncio.Event()
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.over = False
        """No further event is sent."""

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        await self._message({"type": "http.response.start", "status": status, "headers": headers})
        self._started.set()

    async def write(self, frame: bytes, *, last: bool = False) -> None:
        async with self._lock:
            if self.gone.done():
                raise _LeftError
            if not self.over:
                self.over = last
                if last:
                    self._on_last()
                await self._message({"type": "http.response.body", "body": frame, "more_body": True})

    async def text(self, text: str) -> None:
        if text:
            await self.write(_token(text))

    async def event(self, frame: bytes) -> None:
        with suppress(_LeftError):
            await self.write(frame)

    async def finish(self) -> None:
        # Also to a client that was seen leaving meanwhile: many do once they have the last event.
        await self._message({"type": "http.response.body", "body": b"", "more_body": False})

    async def watch(self, receive: Receive) -> None:
        """Waits until the client leaves. Not before the start: until then what is received is the app's."""
        await self._started.wait()
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            self._leave()

    async def _message(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:
            self._leave()
            raise _LeftError from None

    def done(self) -> None:
        """Its own events say so."""

    def _leave(self) -> None:
        if not self.gone.done():
            self.gone.set_result(None)


class _InThreads:
    """A sync iterator, as an async one: each of its steps in a thread."""

    def __init__(self, content: Iterable[object]) -> None:
        self._iterator = iter(content)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> object:
        piece = await _in_thread(next, self._iterator, _END)
        if piece is _END:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        close = getattr(self._iterator, "close", None)
        if close is not None:
            await _in_thread(close)


async def _in_thread(call: Callable[..., object], *args: object) -> object:
    step = asyncio.create_task(run_in_threadpool(call, *args))
    await _ended(step)  # a thread cannot be interrupted, and a generator not be closed while it runs in one
    return step.result()


async def _ended(*tasks: asyncio.Task[Any]) -> None:
    """Waits for tasks, even when cancelled meanwhile; that is raised afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while waiting := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(waiting)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


def _event_of(piece: object) -> tuple[str, object]:
    match piece:
        case tuple((str(name), data)):
            return name, data
        case {"event": str(name), "data": data, **rest} if not rest:
            return name, data
    raise TypeError(
        "a piece of an answer is a str, bytes, (name, value) or {'event': name, 'data': value}, "
        f"not this {type(piece).__name__}"
    )


def _token(text: str) -> bytes:
    try:
        return event("token", {"text": text})
    except TypeError:  # half of a surrogate pair, as of JSON that was cut in two
        return event("token", {"text": text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")})
