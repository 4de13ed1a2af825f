"""What is known of one upstream answer as its bytes go by: where events end, what they say, when.

`Answer` reads a copy. Nothing it concludes changes a byte of what is forwarded; it only tells whether
bytes may be inserted here, whether the answer is whole, and what the latency line can say of it.
"""

import msgspec

from sidecar.core.decode import Decoder
from sidecar.core.dialects import OTHER_SSE, Dialect, Facts
from sidecar.core.dialects.base import Framing, error_name, read_whole
from sidecar.core.gaps import NO_GAPS, Gaps
from sidecar.core.lines import ArrayFramer, LineFramer
from sidecar.core.sse import Framer, SSEFramer, data_of, has_id, name_of
from sidecar.core.told import NEVER, Told, spent
from sidecar.core.types import DeltaKind, Head, Intent, Request

_SURPRISES = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    RecursionError,
    msgspec.MsgspecError,
)
"""What reading somebody else's JSON can raise. Learning nothing is then the right answer."""

_FRAMERS: dict[str, type[SSEFramer] | type[LineFramer] | type[ArrayFramer]] = {
    "sse": SSEFramer,
    "ndjson": LineFramer,
    "array": ArrayFramer,
}


class Answer:
    """The reading of one answer. Made with the request, begun with the head."""

    __slots__ = (
        "_blind",
        "_closing",
        "_decoder",
        "_framer",
        "_read",
        "deltas",
        "dialect",
        "events",
        "facts",
        "first_at",
        "first_kind",
        "gaps",
        "identity",
        "ids_until",
        "intent",
        "last_at",
        "query",
        "streaming",
        "unreadable",
    )

    def __init__(self, request: Request, dialect: Dialect | None, intent: Intent) -> None:
        self.dialect = dialect
        self.intent = intent
        self.query = request.query
        self.facts = Facts()
        self.gaps = Gaps()
        self.events = 0
        self.deltas = 0
        """Events that carried content, reasoning or a tool call."""
        self.first_at = 0.0
        self.first_kind: DeltaKind | None = None
        self.last_at = 0.0
        self.streaming = False
        """The answer is a stream of events whose format is known."""
        self.identity = True
        """Its bytes are not compressed."""
        self.unreadable = False
        """Some event could not be parsed: it is forwarded, and never stored."""
        self.ids_until = NEVER
        """The first event that may get no id of ours: the upstream set its own, or it was too long to be
        looked at."""
        self._framer: Framer | None = None
        self._decoder: Decoder | None = None
        self._blind = False
        self._read = False
        self._closing = b""

    def begin(self, head: Head) -> None:
        """Choose how to read the body, by what the answer says it is."""
        encoding = head.fields.get(b"content-encoding", b"identity").strip().lower()
        self.identity = encoding in (b"identity", b"")
        kind = head.fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
        ok = 200 <= head.status < 300
        framing: Framing | None = None
        if kind == b"text/event-stream":
            if self.dialect is None or (
                self.dialect.declared and self.dialect.framing_of(self.query) in (None, "ndjson")
            ):
                self.dialect = OTHER_SSE
            self.streaming = ok
            framing = "sse"
        elif self.dialect is not None and self.intent.stream:
            framing = self.dialect.framing_of(self.query)
            self.streaming = ok and framing in ("ndjson", "array")
        if self.streaming and framing is not None:
            self._framer = _FRAMERS[framing]()
        if not self.identity and self.dialect is not None:
            self._decoder = Decoder(encoding)

    def over_with(self, told: Told) -> None:
        """After `begin`: all of it has been read elsewhere, and this is what there was."""
        self.facts, self.events, self.deltas = told.facts, told.events, told.deltas
        self.first_at, self.first_kind, self.last_at = told.first_at, told.first_kind, told.last_at
        self.ids_until, self.unreadable, self._read = told.ids_until, told.unreadable, True
        self.gaps = NO_GAPS if told.gaps is None else Gaps.unpacked(told.gaps)
        self._closing = told.closing

    def told(self) -> Told:
        """What is known of it, once it is over and all of it has been read."""
        return Told(
            facts=spent(self.facts),
            events=self.events,
            deltas=self.deltas,
            first_at=self.first_at,
            first_kind=self.first_kind,
            last_at=self.last_at,
            ids_until=self.ids_until,
            unreadable=self.unreadable,
            closing=self.closing,
            gaps=self.gaps.packed() if self.deltas > 1 else None,
        )

    @property
    def learnt(self) -> bool:
        """Whether `read_whole` has nothing left to do."""
        return self.dialect is None or self.streaming or self._read

    @property
    def readable(self) -> bool:
        """Whether all of the body could be looked at so far."""
        return self._decoder is None or not self._decoder.failed

    @property
    def at_boundary(self) -> bool:
        """Whether a keepalive or a whole event may be written after the bytes so far."""
        return self.framed and self._framer is not None and self._framer.at_boundary and not self.over

    @property
    def events_are_separate(self) -> bool:
        """A stream whose events stand for themselves; the elements of a JSON array do not."""
        return self.streaming and not isinstance(self._framer, ArrayFramer)

    @property
    def resumable(self) -> bool:
        """Whether its events can be counted, so that a client can come back to it."""
        return self.streaming and self.identity

    @property
    def takes_ids(self) -> bool:
        """Whether events of this stream may carry an `id` field."""
        return self.framed and self.dialect is not None and self.dialect.ids and self.ids_until > 0

    @property
    def blank_begun(self) -> bool:
        """Whether the last byte so far begins the blank line of an event that may carry an id."""
        begun = self._framer.begun if isinstance(self._framer, SSEFramer) else None
        return begun is not None and data_of(begun) is not None and not has_id(begun)

    @property
    def framed(self) -> bool:
        """Whether frames of our own can be part of this body at all."""
        return self.events_are_separate and self.identity

    @property
    def over(self) -> bool:
        """The terminal marker, or the provider's own error, went by: nothing may follow."""
        return self.facts.terminal or self.facts.error is not None

    @property
    def said(self) -> bool:
        """The same, and no byte of it is missing; the bracket that closes a JSON array may be."""
        return self.over and not isinstance(self._framer, ArrayFramer)

    @property
    def settled(self) -> bool:
        """At the end of the body: whether its last event is not half of one."""
        if isinstance(self._framer, ArrayFramer):
            return self._framer.closed
        return self._framer is None or self._framer.at_boundary

    @property
    def keepalive(self) -> bytes | None:
        """What to write at a boundary to show life, in the upstream's own line end."""
        if self.dialect is None or self._framer is None:
            return None
        frame = self.dialect.keepalive
        return self._framer.newline if frame == b"\n" else frame

    @property
    def closing(self) -> bytes:
        """What closes off a half event, so that an error frame after it is read as one."""
        return self._closing or (self._framer.closing if self._framer is not None else b"")

    def feed(self, chunk: bytes, now: float) -> list[int]:
        """Take the next bytes of the body; return the offsets at which events ended.

        `now`: when they arrived, in seconds of `time.perf_counter`. The offsets count in the body
        as sent, so there are none for a compressed one. Blocks without data, comments for instance, are
        no events: no client is ever told of them.
        """
        if self._framer is None:
            return []
        frames = self._framer.feed(self._decoder.feed(chunk) if self._decoder else chunk)
        ends = [frame.end for frame in frames if self._event(frame.block, now)]
        return ends if self.identity else []

    def close(self, now: float) -> list[int]:
        """At a clean end of the body: as `feed`, for the events that only the end could settle."""
        if self._framer is None:
            return []
        ends = [frame.end for frame in self._framer.close() if self._event(frame.block, now)]
        return ends if self.identity else []

    def settle(self, now: float) -> list[int]:
        """Where the body broke off: as `close`, for an event whose blank line had begun, and no other."""
        return self.close(now) if isinstance(self._framer, SSEFramer) else []

    @property
    def whole(self) -> bool:
        """After a clean end of the body: whether this was the whole answer."""
        if self._framer is None or self.dialect is None:
            return True
        # What could not be read may have been the end marker: nobody can call that cut.
        return not self.readable or self._blind or self.over or self.dialect.ended(self.facts)

    def read_whole(self, body: bytes) -> None:
        """Learn from an answer that was not a stream; only the first call counts."""
        if self.dialect is None or self.streaming or self._read:
            return
        self._read = True
        try:
            plain = self._decoder.feed(body) if self._decoder else body
            if plain:
                parsed = read_whole(plain, opaque=self.dialect.opaque)
                if parsed.get("error"):
                    self.facts.error = error_name(parsed["error"])
                self.dialect.whole(parsed, self.facts)
        except _SURPRISES:
            self.unreadable = True

    def _event(self, block: bytes | None, now: float) -> bool:
        """Read one block; returns whether it is an event."""
        kind: DeltaKind | None = None
        if block is None:
            self._blind = True
            self.ids_until = min(self.ids_until, self.events)
            # Too long to be read. Whatever it says, a person has something to look at now.
            self.unreadable = True
            kind = "content"
        else:
            data = data_of(block) if isinstance(self._framer, SSEFramer) else block.strip()
            sse = isinstance(self._framer, SSEFramer)
            if sse and self.dialect is not None and self.ids_until > self.events and has_id(block):
                self.ids_until = self.events
            if data is None or self.dialect is None or (not data and not sse):
                return False
            try:
                dialect = self.dialect
                if dialect.named:
                    kind = dialect.read_named(name_of(block), data, self.facts)
                else:
                    kind = dialect.read(data, self.facts)
            except _SURPRISES:
                self.unreadable = True
        self.events += 1
        if kind is None:
            return True
        # Something more was said, so what could not be read was not the end.
        self._blind = block is None
        self.deltas += 1
        if self.first_kind is None:
            self.first_at, self.first_kind = now, kind
        else:
            self.gaps.add(now - self.last_at)
        self.last_at = now
        return True
