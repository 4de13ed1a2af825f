"""One task per upstream call: source -> recording.

Bytes are recorded where they arrive, without a task in between; the task is there for the beginning
and the end. When even the fastest reader is far behind, the source is paused, which passes a slow
client's pace on to the upstream. The pump owns the source and closes it, whatever happens to the task.
"""

import asyncio
from collections.abc import Callable

import msgspec

from sidecar.cache.inquiry import Check, Inquiry
from sidecar.core import policy
from sidecar.core.answer import Answer
from sidecar.core.caching import Terms
from sidecar.core.errors import RefusedError, UpstreamError
from sidecar.core.fingerprint import Keys
from sidecar.core.latency import NO_LABELS, Labels
from sidecar.core.recording import Recording
from sidecar.core.spans import Spans
from sidecar.core.types import End, Fault, Outcome, Timings
from sidecar.engine.shelf import Shelf
from sidecar.engine.source import Call, Source, Upstream

HIGH = 512 * 1024
LOW = 128 * 1024
"""Bytes between the upstream and the fastest reader at which the upstream is paused and resumed."""


RETAINED = 8 << 20
"""Bytes of a stream that are kept from its start on; a longer one only passes through."""


class Keep(msgspec.Struct, frozen=True):
    """How an answer is to be stored."""

    keys: Keys
    terms: Terms
    tag: str
    """Whose it is."""
    path: str
    query: str
    """Of the request, as far as it says how the answer is framed."""
    generation: int = 0
    """Of the store, when it was asked: what is purged after that has nothing to do there."""
    inquiry: Inquiry | None = None
    """What is asked, where answers to the same in other words are looked for."""
    mark: bytes = b""
    """Stands for the sidecar's own key with which the upstream is to be asked."""


class Ask(msgspec.Struct, frozen=True):
    """By what another request finds a call, to join it instead of making its own."""

    identity: bytes = b""
    """Of the request, byte for byte; empty where it cannot be told, because its body streamed past."""
    key: bytes | None = None
    """Of everything that may change the answer, and who asks; None where that cannot be told."""
    coding: bytes = b""
    """Its `Accept-Encoding`: a compressed answer is for those who asked for the same."""
    idempotency: bytes | None = None
    """Its `Idempotency-Key`."""
    alone: bool = False
    """It shares its call with nobody, though it has a key."""
    keep: Keep | None = None
    """How its answer is stored; None for one that is not."""


NO_ASK = Ask()


class Live:
    """An upstream call: the recording it fills, what is known of it, and who may find it."""

    __slots__ = (
        "__weakref__",
        "_source",
        "abort",
        "answer",
        "apart",
        "arrived",
        "ask",
        "brief",
        "charged",
        "check",
        "clean",
        "configured",
        "early",
        "end_on_cancel",
        "fleeting",
        "grants",
        "held",
        "labels",
        "name",
        "recording",
        "settled",
        "shelf",
        "spans",
        "stored",
        "timer",
        "timings",
        "waiting",
    )

    def __init__(
        self, recording: Recording, answer: Answer, ask: Ask = NO_ASK, labels: Labels = NO_LABELS
    ) -> None:
        self.recording = recording
        self.answer = answer
        self.ask = ask
        self.labels = labels
        self.timings = Timings()
        self.arrived = 0.0
        """When the latest bytes came, by `time.perf_counter`."""
        self.end_on_cancel = End(Outcome.CANCELLED)
        self.abort: Callable[[], object] | None = None
        """Gives up the work of making its answer; None before that has begun, and once it is over."""
        self.spans: Spans | None = None
        """Phases that the code which makes its answer has timed."""
        self.waiting: tuple[asyncio.Future[None], ...] = ()
        """Who waits for its end; see `Hub.until_over`."""
        self.name: str | None = None
        """The id under which clients can come back to it; None until one was told."""
        self.shelf: Shelf | None = None
        self.charged = 0
        self.check: Check | None = None
        """What its answer is to be compared with."""
        self.clean = False
        """The body ended cleanly, not only after what looked like its end."""
        self.fleeting = False
        """Made for one client: nobody is told how to come back to it who cannot use event ids."""
        self.brief = False
        """Nothing of it is kept that no reader needs: memory was short when it began."""
        self.apart = False
        """It depends on what does not count for what is the same request: it is nobody else's."""
        self.held = False
        """A job needs it, whoever reads it or does not."""
        self.early = 0.0
        """Seconds of waiting for its head after which clients get a 200; 0: as long as it takes."""
        self.configured = 0.0
        """See `policy.patience`: what goes for clients that ask for nothing."""
        self.grants: tuple[float, ...] = ()
        """Until when, by the loop's clock, those who have left were granted that it goes on."""
        self.timer: asyncio.TimerHandle | None = None
        """Runs while nobody reads it."""
        self.stored: float | None = None
        """Seconds it took to store its answer, once that is done."""
        self.settled: tuple[Callable[[], None], ...] = ()
        """Who waits to hear what became of a call that its clients had left: that it has ended, or that
        somebody reads it again."""
        self._source: Source | None = None

    def cancel(self, end: End | None = None) -> None:
        """Give the call up; the recording ends with `end`."""
        if end is not None:
            self.end_on_cancel = end
        if self.abort is not None:
            self.abort()
        # A task cancelled before its first step never runs its own handlers.
        self.recording.finish(self.end_on_cancel)

    def begin(self, source: Source) -> None:
        """The head is here."""
        self._source = source
        self.answer.begin(source.head)
        if self.answer.resumable and not self.recording.retained and not self.brief:
            self.recording.keep(RETAINED)
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
        if self.shelf is not None:
            self._count(len(chunk) + 8 * len(ends))
        if recording.backlog > HIGH:
            source.pause()
            recording.when_room(self, LOW)

    def close(self, now: float) -> End:
        """The body ended cleanly: what end was that?"""
        source, answer = self._source, self.answer
        assert source is not None
        self.clean = True
        self._settle(answer.close(now))
        return policy.end_of_body(
            whole=answer.whole, declared_error=answer.facts.error, status=source.head.status
        )

    def broke(self, fault: Fault) -> End:
        """The upstream was lost: what end was that?"""
        answer, begun = self.answer, self.recording.head is not None
        self._settle(answer.settle(self.arrived))
        error = answer.facts.error
        return policy.end_of_fault(fault, begun=begun, over=answer.over, declared_error=error)

    def _settle(self, ends: list[int]) -> None:
        if ends and self.recording.retained:
            self.recording.events.extend(ends)

    def learn(self, body: bytes | None = None) -> None:
        """Read an answer that was not a stream, once it has ended; for after the client has it. `body`: its
        bytes, for whoever has them anyway."""
        if self.recording.end is not None and not self.answer.learnt:
            self.answer.read_whole(body or self.recording.whole() or b"")

    def release(self) -> None:
        """The source is closed. Source and call hold each other; a cut here leaves nothing for the
        garbage collector, which would cost a tenth of a request."""
        self._source = None

    def wake(self) -> None:
        """The readers have caught up."""
        if self._source is not None:
            self._source.resume()

    def _count(self, grown: int) -> None:
        shelf, name = self.shelf, self.name
        assert shelf is not None
        assert name is not None
        if self.recording.retained:
            shelf.charge(self, grown)
        else:
            shelf.drop(name)  # too long to be kept


async def pump(upstream: Upstream, call: Call, live: Live) -> None:
    """Make the call and record its answer, to its end or the first fault."""
    recording = live.recording
    source = None
    try:
        source = await upstream.open(call, live.timings)
        live.begin(source)
        await source.deliver(live.take)
        recording.finish(live.close(source.arrived))
    except (UpstreamError, RefusedError) as error:
        recording.finish(live.broke(error.fault))
    except asyncio.CancelledError:
        recording.finish(live.end_on_cancel)
        raise
    finally:
        if source is not None:
            source.close()
        live.release()
        # Only a fault of our own gets here without an end; no reader may wait for ever because of it.
        recording.finish(End(Outcome.UPSTREAM_ERROR, Fault("internal", "see the log of the sidecar")))
