"""The app at work on one request, and its answer going into a recording.

Whoever asked may leave: the app is told of that only once nobody wants its answer any more. Then it has a
moment to end by itself, and is cancelled.
"""

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Callable

import msgspec

from sidecar.core.caching import for_one
from sidecar.core.headers import index
from sidecar.core.spans import Spans
from sidecar.core.types import Fault, Head
from sidecar.engine.hub import Hub
from sidecar.engine.pump import Live
from sidecar.serving.shell import Body
from sidecar_starlette.asgi import App, Message, Scope, send_raises
from sidecar_starlette.context import HERE, Here
from sidecar_starlette.feed import Feed
from sidecar_starlette.misfit import Misfit, early_head

_GRACE = 0.25
"""Seconds that the app has to end by itself once nobody wants its answer."""
_RETURNING = 0.05
"""Seconds after its end within which an answer is taken back whose app raises: some middleware ends what has
failed as if it were whole, and raises only then."""
_WAITING = 64
"""Events of progress that wait for the stream to begin."""


class Run:
    """Starts at once. It is a `sidecar.engine.source.Source`, as far as a recording needs one."""

    __slots__ = (
        "_alone",
        "_announces",
        "_app",
        "_counted",
        "_ended",
        "_feed",
        "_gone",
        "_hub",
        "_live",
        "_loop",
        "_misfit",
        "_on_head",
        "_progress",
        "_raises",
        "_room",
        "_said",
        "_scope",
        "_task",
        "arrived",
        "error",
        "head",
    )

    def __init__(
        self,
        app: App,
        hub: Hub,
        live: Live,
        scope: Scope,
        body: Body,
        *,
        announces: bool,
        counted: frozenset[bytes],
        context: contextvars.Context,
        on_head: Callable[[Scope], None],
    ) -> None:
        """`announces`: the client takes an event stream: one may begin before the app says so. `counted`:
        header fields on which the answer may depend without being this request's alone. `context`: to run in.
        `on_head` gets the scope as the app has left it when its answer begins."""
        self._app = app
        self._hub = hub
        self._live = live
        self._scope = scope
        self._feed = Feed(body)
        self._alone = False
        self._said = False
        """The stream has had its last event."""
        self._announces = announces
        self._counted = counted
        self._on_head = on_head
        self._progress: deque[bytes] = deque(maxlen=_WAITING)
        self._misfit: Misfit | None = None
        self._gone = False
        """Nobody wants the answer any more."""
        self._ended = 0.0
        self._room = asyncio.Event()
        self._room.set()
        self._raises = send_raises(scope)
        self.head: Head
        self.arrived = 0.0
        self.error: BaseException | None = None
        """What the app raised."""
        live.spans = Spans()
        timings = live.timings
        timings.started = timings.connected = timings.sent = time.perf_counter()
        context.run(HERE.set, Here(live.spans, self))
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        task = self._task = self._loop.create_task(self._run(), context=context)
        task.add_done_callback(self._returned)
        hub.adopt(live, self._abort)

    async def over(self) -> None:
        """Wait until the app has returned, its background tasks included."""
        if self._task is not None and not self._task.done():
            await asyncio.wait({self._task})

    def alone(self) -> None:
        """No request waits for its end: what it raises is told to the loop."""
        self._alone = True
        if self._task is None:
            self._returned()

    def _returned(self, _task: asyncio.Task[None] | None = None) -> None:
        self._task = None  # its context leads back here
        if self._alone and self.error is not None:
            said = {"message": "the app failed, and no request waits for it", "exception": self.error}
            self._loop.call_exception_handler(said)

    async def _run(self) -> None:
        live, recording = self._live, self._live.recording
        try:
            await self._app(self._scope, self._feed.receive, self._send)
            if recording.end is None:
                self._broke("it returned before its answer was complete")
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                if not self._gone:
                    raise  # the loop ends
            else:
                self._failed(error)  # something that it waited for was cancelled
        except Exception as error:  # noqa: BLE001 - reason: it is raised again where the app's server sees it
            if not self._gone or not isinstance(error, OSError):
                self._failed(error)
        finally:
            recording.finish(live.end_on_cancel)
            live.release()
            self._loop.call_soon(self._hub.over, live)

    def _failed(self, error: BaseException) -> None:
        self.error = error
        if self._ended and time.perf_counter() - self._ended < _RETURNING:
            self._unstored()
            self._hub.retract(self._live)
        if self._live.recording.end is None:
            self._broke("it raised an exception; the log of its server has it")

    def _broke(self, detail: str) -> None:
        self._live.recording.finish(self._live.broke(Fault("app_failed", detail)))

    def _abort(self) -> None:
        """Nobody wants the answer any more. Its recording is finished by whoever says so."""
        self._gone = True
        self._feed.end()
        self._room.set()
        if self._task is not None:
            self._loop.call_later(_GRACE, self._task.cancel)
        self._loop.call_soon(self._hub.over, self._live)

    # What the app says.

    async def _send(self, message: Message) -> None:
        recording = self._live.recording
        if recording.end is not None:
            if self._gone and self._raises:
                raise OSError("nobody wants the answer any more")
            await asyncio.sleep(0)  # an app that waits for nothing else could not be cancelled
            return
        kind = message["type"]
        if kind == "http.response.body":
            data: bytes = message.get("body", b"")
            if not message.get("more_body", False):
                self._last(data)
                return
            if data:
                self._take(data)
                if not self._room.is_set():
                    await self._room.wait()
                else:
                    await asyncio.sleep(0)  # let it go out, if the app has nothing to wait for
        elif kind == "http.response.start":
            self._begin(message)

    def _begin(self, message: Message) -> None:
        headers = tuple([(bytes(name), bytes(value)) for name, value in message.get("headers", ())])
        self._on_head(self._scope)
        fields = index(headers)
        status: int = message["status"]
        if for_one(fields, self._counted):
            fields = {**fields, b"cache-control": b"no-store"}
            self._hub.set_apart(self._live)
        if self.arrived:
            # The stream has begun for the sake of progress: the rest has to fit into it.
            if self._live.apart:
                self._unstored()
            if status != 200 or not fields.get(b"content-type", b"").lower().startswith(b"text/event-stream"):
                self._misfit = Misfit(status)
            return
        self._commit(Head(status, b"", headers, fields))

    def _unstored(self) -> None:
        """As if its head had said that it must not be stored."""
        recording = self._live.recording
        if recording.head is not None:
            fields = {**recording.head.fields, b"cache-control": b"no-store"}
            recording.head = msgspec.structs.replace(recording.head, fields=fields)

    def _commit(self, head: Head) -> None:
        self.head = head
        self.arrived = self._live.timings.head = time.perf_counter()
        self._live.begin(self)

    def _take(self, data: bytes) -> None:
        if self._misfit is not None:
            self._misfit.add(data)
            return
        self.arrived = time.perf_counter()
        if self._progress:
            self._tell()
        self._live.take(data)
        if self._progress:
            self._tell()

    def _last(self, data: bytes) -> None:
        live = self._live
        if data:
            self._take(data)
        if self._misfit is not None:
            live.take(self._misfit.event())
        # Nobody but the app can have ended it here: a clean end is completion.
        live.answer.facts.terminal = True
        live.recording.finish(live.close(time.perf_counter()))
        live.release()
        self._feed.end()
        self._ended = time.perf_counter()
        # Storing is for after the client has its last byte.
        self._loop.call_soon(self._hub.over, live)

    # Progress.

    def done(self) -> None:
        """See `Channel`."""
        self._said = True
        self._progress.clear()

    async def event(self, frame: bytes) -> None:
        """See `Channel`."""
        live = self._live
        if live.recording.end is not None or self._misfit is not None:
            return
        if live.answer.dialect is None or not live.answer.dialect.named:
            return  # SDKs take each event of a known format for a piece of the answer
        if asyncio.get_running_loop() is self._loop:
            self._put(frame)
            await asyncio.sleep(0)
        else:  # a thread of the app's has a loop of its own
            self._loop.call_soon_threadsafe(self._put, frame)

    def _put(self, frame: bytes) -> None:
        if self._live.recording.end is not None or self._said:
            return
        self._progress.append(frame)
        if not self.arrived and self._announces:
            self._commit(early_head())
        if self.arrived:
            self._tell()

    def _tell(self) -> None:
        """Write the events that wait, if this is between two others."""
        live = self._live
        if not live.answer.framed:
            self._progress.clear()
        while self._progress and live.answer.at_boundary:
            self.arrived = time.perf_counter()
            live.take(self._progress.popleft())

    # What a recording needs of its source.

    def pause(self) -> None:
        """The readers are behind: the app waits in its next `send`."""
        self._room.clear()

    def resume(self) -> None:
        self._room.set()

    async def deliver(self, take: Callable[[bytes], None]) -> None:
        """Nothing is left to deliver: the app itself does."""

    def close(self) -> None:
        """Nothing is open."""
