"""One task per upstream call: source -> recording.

The pump waits for room when even the fastest reader is far behind, and so passes a slow client's
pace on to the upstream. It owns the source and closes it, whatever happens to the task.
"""

import asyncio

from sidecar.core import policy
from sidecar.core.answer import Answer
from sidecar.core.errors import RefusedError, UpstreamError
from sidecar.core.recording import Recording
from sidecar.core.types import End, Fault, Outcome, Timings
from sidecar.engine.source import Call, Upstream

HIGH = 512 * 1024
LOW = 128 * 1024
"""Bytes between the upstream and the fastest reader at which the upstream is paused and resumed."""


class Live:
    """An upstream call that is going on: the recording it fills, and what is known of it."""

    __slots__ = (
        "_waiter",
        "answer",
        "arrived",
        "end_on_cancel",
        "offset",
        "recording",
        "task",
        "timings",
    )

    def __init__(self, recording: Recording, answer: Answer) -> None:
        self.recording = recording
        self.answer = answer
        self.timings: Timings | None = None
        self.arrived = 0.0
        """When the latest bytes came, by `time.perf_counter`."""
        self.end_on_cancel = End(Outcome.CANCELLED)
        self.task: asyncio.Task[None] | None = None
        self.offset = 0
        self._waiter: asyncio.Future[None] | None = None

    def cancel(self, end: End | None = None) -> None:
        """Give the call up; the recording ends with `end`."""
        if end is not None:
            self.end_on_cancel = end
        if self.task is not None:
            self.task.cancel()
        # A task cancelled before its first step never runs its own handlers.
        self.recording.finish(self.end_on_cancel)

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def room(self) -> None:
        """Wait until the readers have caught up."""
        self._waiter = asyncio.get_running_loop().create_future()
        self.recording.when_room(self, LOW)
        await self._waiter


async def pump(upstream: Upstream, call: Call, live: Live) -> None:
    """Make the call and record its answer, to its end or the first fault."""
    recording, answer = live.recording, live.answer
    source = None
    try:
        source = await upstream.open(call)
        head = source.head
        live.timings = source.timings
        answer.begin(head)
        recording.commit(head)
        while chunk := await source.read():
            live.arrived = source.arrived
            recording.events.extend(answer.feed(chunk, source.arrived))
            recording.append(chunk)
            if recording.backlog > HIGH:
                await live.room()
        whole = answer.close(source.arrived)
        recording.finish(
            policy.end_of_body(whole=whole, declared_error=answer.facts.error, status=head.status)
        )
    except (UpstreamError, RefusedError) as error:
        recording.finish(
            policy.end_of_fault(error.fault, over=answer.over, declared_error=answer.facts.error)
        )
    except asyncio.CancelledError:
        recording.finish(live.end_on_cancel)
        raise
    finally:
        if source is not None:
            source.close()
        # Only a fault of our own gets here without an end; no reader may wait for ever because of it.
        recording.finish(End(Outcome.UPSTREAM_ERROR, Fault("internal", "see the log of the sidecar")))
