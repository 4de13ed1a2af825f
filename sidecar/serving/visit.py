"""One client request while it is served, and the line that is left of it."""

from collections.abc import Callable
from typing import Any

import msgspec

from sidecar.cache.inquiry import Inquiry
from sidecar.core.caching import Wish
from sidecar.core.dialects import Dialect
from sidecar.core.entry import Entry, Known
from sidecar.core.gaps import NO_GAPS
from sidecar.core.latency import Aside, Heard, Trace, record
from sidecar.core.policy import end_of_leaving
from sidecar.core.types import Outcome, Request
from sidecar.engine.pump import Keep, Live
from sidecar.serving.clients import Client
from sidecar.serving.relay import Relay
from sidecar.serving.shell import Reply

NAME = 128
"""Characters of a name chosen by a client or an upstream that a log line repeats."""


class Hit(msgspec.Struct):
    """What a request was answered with from memory."""

    entry: Entry
    keep: Keep
    wish: Wish
    live: Live | None
    """What was read, if it is a stream."""
    request: Request
    body: bytes
    """Of the request."""


class Visit:
    """What belongs to one request."""

    __slots__ = (
        "came",
        "client",
        "dialect",
        "elsewhere",
        "hit",
        "inquiry",
        "live",
        "logged",
        "relay",
        "reply",
        "room",
        "root",
        "stored",
        "taken",
        "took",
        "trace",
        "whose",
    )

    def __init__(self, method: str, reply: Reply, root: str = "") -> None:
        """`root`: see `Arriving`."""
        self.root = root
        self.reply = reply
        self.trace = Trace.begin(method)
        self.dialect: Dialect | None = None
        self.live: Live | None = None
        self.stored: Known | None = None
        """What is known of the stored answer that it was answered with, if that was no stream."""
        self.hit: Hit | None = None
        """What it was answered with, if that was at hand."""
        self.inquiry: Inquiry | None = None
        """What was looked for among other questions."""
        self.took = 0.0
        """Seconds that it took to make the stored answer that it was answered with."""
        self.taken = False
        """The client has been sent all that there was of the answer."""
        self.logged = False
        self.elsewhere = False
        """Another worker serves it, and counts it."""
        self.relay: Relay | None = None
        """The WebSocket that it has become."""
        self.came: Request | None = None
        """The request as it came, if it came with a client's token."""
        self.client: Client | None = None
        """Whose limits it counts against, while it does."""
        self.whose: Client | None = None
        """Whose limits a call counts against that goes on when it has ended."""
        self.room: Callable[[], None] = lambda: None
        """Raises RefusedError where its client may begin no further call."""

    def left(self) -> Outcome:
        """What came of a request whose client has hung up: perhaps it had all it wanted."""
        live = self.live
        if self.relay is not None:
            return self.relay.outcome or Outcome.CANCELLED
        if live is None or not self.taken:
            return Outcome.CANCELLED
        answer = live.answer
        end = live.recording.end or end_of_leaving(over=answer.over, declared_error=answer.facts.error)
        return end.outcome if end is not None else Outcome.CANCELLED

    def line(self, now: float) -> dict[str, Any]:
        """The latency line of a request that ended at `now` (`time.perf_counter`)."""
        trace, live, inquiry = self.trace, self.live, self.inquiry
        if inquiry is not None:
            trace.embed, trace.search = inquiry.embed, inquiry.search
            nearest = inquiry.verdict.nearest
            if nearest is not None and trace.similarity is None:
                trace.similarity, trace.guard = nearest.similarity, nearest.guard
        if live is not None:
            if trace.cache_kind != "stale":
                trace.timings = live.timings
            trace.spans = None if trace.joined else live.spans
            trace.stored = None if trace.joined else live.stored
            live.learn()
            if live.answer.facts.error and trace.status == 200 and trace.outcome is Outcome.COMPLETE:
                trace.outcome = Outcome.UPSTREAM_ERROR
        sent = self.reply.sent
        if self.relay is not None:
            return record(trace, Heard(events=self.relay.upstream.frames.messages, bytes=sent), now)
        return record(trace, _remembered(self.stored, sent) if self.stored else heard(live, sent), now)

    def aside(self) -> Aside:
        """What figures are made of beside that line."""
        trace, live = self.trace, self.live
        return Aside(
            gaps=live.answer.gaps if live is not None and trace.resumed_from is None else NO_GAPS,
            saved=self.took if trace.cache_kind in ("exact", "semantic") else None,
            parent=trace.parent,
        )


def heard(live: Live | None, sent: int) -> Heard:
    """What the answer itself told. `sent`: bytes of body sent to the client."""
    if live is None:
        return Heard(bytes=sent)
    answer = live.answer
    facts = answer.facts
    return Heard(
        response_model=facts.model and facts.model[:NAME],
        input_tokens=facts.input_tokens,
        output_tokens=facts.output_tokens,
        cached_input_tokens=facts.cached_input_tokens,
        reasoning_tokens=facts.reasoning_tokens,
        events=answer.events,
        deltas=answer.deltas,
        bytes=sent,
        first_at=answer.first_at,
        first_kind=answer.first_kind,
        last_at=answer.last_at,
        gaps=answer.gaps,
    )


def _remembered(known: Known, sent: int) -> Heard:
    """The same of a stored answer."""
    return Heard(
        response_model=known.response_model and known.response_model[:NAME],
        input_tokens=known.input_tokens,
        output_tokens=known.output_tokens,
        cached_input_tokens=known.cached_input_tokens,
        reasoning_tokens=known.reasoning_tokens,
        bytes=sent,
    )


def name(value: bytes | None) -> str | None:
    """A name out of a header, for the line."""
    return value.decode("ascii", "replace")[:NAME] if value else None
