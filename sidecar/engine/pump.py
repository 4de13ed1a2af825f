"""One task per upstream call: source -> recording.

Bytes are recorded where they arrive, without a task in between; the task is there for the beginning
and the end. When even the fastest reader is far behind, the source is paused, which passes a slow
client's pace on to the upstream. The pump owns the source and closes it, whatever happens to the task.
"""

import asyncio

from sidecar.core import policy
from sidecar.core.answer import Answer
from sidecar.core.errors import RefusedError, UpstreamError
from sidecar.core.recording import Recording
from sidecar.core.types import End, Fault, Outcome, Timings
from sidecar.engine.source import Call, Source, Upstream

HIGH = 512 * 1024
LOW = 128 * 1024
"""Bytes between the upstream and the fastest reader at which the upstream is paused and resumed."""


class Live:
    """An upstream call that is going on: the recording it fills, and what is known of it."""

    __slots__ = ("_source", "answer", "arrived", "end_on_cancel", "recording", "task", "timings")

    def __init__(self, recording: Recording, answer: Answer) -> None:
        self.recording = recording
        self.answer = answer
        self.timings = Timings()
        self.arrived = 0.0
        """When the latest bytes came, by `time.perf_counter`."""
        self.end_on_cancel = End(Outcome.CANCELLED)
        self.task: asyncio.Task[None] | None = None
        self._source: Source | None = None

    def cancel(self, end: End | None = None) -> None:
        """Give the call up; the recording ends with `end`."""
        if end is not None:
            self.end_on_cancel = end
        if self.task is not None:
            self.task.cancel()
        # A task cancelled before its first step never runs its own handlers.
        self.recording.finish(self.end_on_cancel)

    def begin(self, source: Source) -> None:
        """The head is here."""
        self._source = source
        self.answer.begin(source.head)
        self.recording.commit(source.head)

    def take(self, chunk: bytes) -> None:
        """Record the next bytes of the body, in the moment they arrive."""
        source, recording = self._source, self.recording
        assert source is not None
        self.arrived = source.arrived
        ends = self.answer.feed(chunk, source.arrived)
        if ends and recording.retained:
            recording.events.extend(ends)
        recording.append(chunk)
        if recording.backlog > HIGH:
            source.pause()
            recording.when_room(self, LOW)

    def release(self) -> None:
        """The source is closed. Source and call hold each other; a cut here leaves nothing for the
        garbage collector, which would cost a tenth of a request."""
        self._source = None

    def wake(self) -> None:
        """The readers have caught up."""
        if self._source is not None:
            self._source.resume()


async def pump(upstream: Upstream, call: Call, live: Live) -> None:
    """Make the call and record its answer, to its end or the first fault."""
    recording, answer = live.recording, live.answer
    source = None
    try:
        source = await upstream.open(call, live.timings)
        live.begin(source)
        await source.deliver(live.take)
        whole = answer.close(source.arrived)
        recording.finish(
            policy.end_of_body(whole=whole, declared_error=answer.facts.error, status=source.head.status)
        )
    except (UpstreamError, RefusedError) as error:
        recording.finish(
            policy.end_of_fault(
                error.fault,
                begun=recording.head is not None,
                over=answer.over,
                declared_error=answer.facts.error,
            )
        )
    except asyncio.CancelledError:
        recording.finish(live.end_on_cancel)
        raise
    finally:
        if source is not None:
            source.close()
        live.release()
        # Only a fault of our own gets here without an end; no reader may wait for ever because of it.
        recording.finish(End(Outcome.UPSTREAM_ERROR, Fault("internal", "see the log of the sidecar")))
