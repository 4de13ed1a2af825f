"""An upstream made of a script, and an event loop whose clock jumps instead of waiting."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sidecar.core.answer import Answer
from sidecar.core.dialects import recognise
from sidecar.core.headers import index
from sidecar.core.recording import Recording
from sidecar.core.types import Head, Intent, Request, Timings
from sidecar.engine.hub import Hub
from sidecar.engine.pump import NO_ASK, RETAINED, Ask, Live
from sidecar.engine.shelf import Shelf
from sidecar.engine.source import Call, Origin

Result = TypeVar("Result")

FIELDS = ((b"Content-Type", b"text/event-stream"),)
HEAD = Head(200, b"OK", FIELDS, index(FIELDS))
TIMINGS = Timings(started=1.0, connected=2.0, sent=3.0, head=4.0)
CALL = Call(Origin("http", "upstream.test", 80), "POST", b"/v1/chat/completions", [])
PATH = "/v1/chat/completions"
DONE = b"data: [DONE]\n\n"


class ClockLoop(asyncio.SelectorEventLoop):
    """Time stands still while anything can run, and jumps to the next timer when nothing can."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        due = [timer.when() for timer in self._scheduled if not timer.cancelled()]
        if not self._ready:
            assert due, "nothing is left that could ever wake this loop: a deadlock"
            self.now = max(self.now, min(due))
        super()._run_once()


def run(main: Callable[[], Awaitable[Result]]) -> Result:
    """Run `main` on a loop of its own; no task may be left behind, and no timer."""

    async def checked() -> Result:
        result = await main()
        await settled()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        timers = [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]
        assert not timers, timers
        return result

    with asyncio.Runner(loop_factory=ClockLoop) as runner:
        return runner.run(checked())


async def settled() -> None:
    """Give everything that can run its turn; no time passes."""
    for _ in range(20):
        await asyncio.sleep(0)


async def pass_time(seconds: float) -> None:
    """Let the clock reach now + `seconds`; what is due until then has run."""
    loop = asyncio.get_running_loop()
    until = loop.create_future()
    loop.call_later(seconds, until.set_result, None)
    await until
    await settled()


class ScriptedSource:
    """See `engine.source.Source`: yields the pieces it is given, then whatever the script says."""

    def __init__(self, head: Head = HEAD) -> None:
        self.head = head
        self.arrived = 0.0
        self.closed = 0
        self.reads = 0
        self._going = asyncio.Event()
        self._going.set()
        self._pieces: asyncio.Queue[bytes | BaseException] = asyncio.Queue()

    def give(self, *pieces: bytes | BaseException) -> "ScriptedSource":
        """Bytes to hand out, b"" for a clean end, an exception to raise."""
        for piece in pieces:
            self._pieces.put_nowait(piece)
        return self

    async def deliver(self, take: Callable[[bytes], None]) -> None:
        while True:
            await self._going.wait()
            self.reads += 1
            piece = await self._pieces.get()
            self.arrived += 1.0
            if isinstance(piece, BaseException):
                raise piece
            if not piece:
                return
            take(piece)

    def pause(self) -> None:
        self._going.clear()

    def resume(self) -> None:
        self._going.set()

    def close(self) -> None:
        self.closed += 1


class ScriptedUpstream:
    """See `engine.source.Upstream`: every call gets the source, once the door is open."""

    def __init__(self, source: ScriptedSource | BaseException, *, waits: bool = False) -> None:
        self.source = source
        self.calls: list[Call] = []
        self.aborted = 0
        self.door = asyncio.Event()
        if not waits:
            self.door.set()

    async def open(self, call: Call, timings: Timings) -> Any:
        self.calls.append(call)
        try:
            await self.door.wait()
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        timings.started, timings.connected = TIMINGS.started, TIMINGS.connected
        if isinstance(self.source, BaseException):
            raise self.source
        timings.sent, timings.head = TIMINGS.sent, TIMINGS.head
        return self.source


class Rig:
    """A hub on a scripted upstream. `faults`: what the hub reported as the sidecar's own mistakes."""

    def __init__(
        self,
        *pieces: bytes | BaseException,
        waits: bool = False,
        refuses: BaseException | None = None,
        keep: float = 600.0,
        memory: int = 1 << 28,
    ) -> None:
        self.source = ScriptedSource().give(*pieces)
        self.upstream = ScriptedUpstream(refuses or self.source, waits=waits)
        self.faults: list[BaseException] = []
        self.shelf = Shelf(keep, memory)
        self.hub = Hub(self.upstream, self.faults.append, self.shelf)

    def start(self, *, retain: bool = True, ask: Ask = NO_ASK) -> Any:
        """(live, reader) of a new call."""
        request = Request("POST", PATH.encode(), PATH, "", (), {})
        answer = Answer(request, recognise("POST", PATH), Intent("m", stream=True))
        live = Live(Recording(limit=RETAINED if retain else 0), answer, ask)
        self.hub.start(live, CALL)
        return live, self.hub.read(live)


async def everything(reader: Any) -> bytes:
    """All that a reader gets, to the end."""
    found = b""
    while data := await reader.read():
        found += data
    return found
