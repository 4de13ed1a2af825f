"""From a recording to the client: head, bytes as they come, signs of life, and an honest end.

One `Render` serves one reader. It writes the upstream's bytes unchanged and adds, at event boundaries
only, what the dialect allows: a keepalive in silence, an error frame when the upstream is lost. Clients
that can use them get ids as the last field of each event.
"""

import time
from collections.abc import Callable

import msgspec
import orjson

from sidecar.core.dialects import Dialect
from sidecar.core.errors import RefusedError, status_of
from sidecar.core.headers import end_to_end
from sidecar.core.latency import Trace, server_timing
from sidecar.core.stamp import Stamper
from sidecar.core.types import End, Fault, Head, Outcome
from sidecar.engine.pump import Live
from sidecar.engine.reader import LostError, Reader
from sidecar.serving.shell import ClientGoneError, Reply

EARLY_TYPE = {"sse": b"text/event-stream", "ndjson": b"application/x-ndjson"}
"""The formats that can start before the upstream has answered, with their content type."""
_ERROR_BODY = 64 * 1024


Fields = tuple[tuple[bytes, bytes], ...]
NO_FIELDS: Fields = ()


class SparedError(Exception):
    """The upstream failed with `status`, and this client need not hear of it. Nothing has been written."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class ApartError(Exception):
    """What was joined turned out to be for the request that began it, and for no other. Nothing has been
    written."""


class View(msgspec.Struct, frozen=True):
    """How one client sees an answer."""

    interval: float
    """Of keepalives, in seconds."""
    early: float = 0.0
    """Seconds to wait for the head before a 200 is committed; 0: as long as it takes."""
    ids: bool = False
    """Whether the client can use event ids."""
    number: int = 0
    """Events the client has already; the reader stands behind them."""
    told: bool = False
    """Whether the client has all of it, to the error that ended it."""
    named: Callable[[Live], str] | None = None
    """Gives the id under which the client can come back to a stream; None: it is not told any."""
    fields: Callable[[Head | None], Fields] = lambda _head: NO_FIELDS
    """Further fields for the head; it is given the upstream's, if that is known."""
    back: bool = False
    """Whether the client comes back to it: it is its own."""
    spared: bool = False
    """Whether there is something better than an upstream's failure; see `SparedError`."""


class Render:
    """The way of one answer to one client."""

    __slots__ = ("_dialect", "_live", "_reader", "_ready_at", "_reply", "_stamper", "_trace", "_view")

    def __init__(
        self, reply: Reply, trace: Trace, live: Live, reader: Reader, dialect: Dialect | None, view: View
    ) -> None:
        """`dialect`: the request's, known before any answer."""
        self._reply = reply
        self._trace = trace
        self._live = live
        self._reader = reader
        self._dialect = dialect
        self._view = view
        self._ready_at = 0.0
        self._stamper: Stamper | None = None

    async def run(self) -> None:
        """Serve the answer to its end.

        Raises ClientGoneError, and RefusedError and SparedError while nothing has been written.
        """
        try:
            await self._run()
        except LostError:
            self._reply.cut(reset=True)
            raise ClientGoneError("the client was too far behind the others") from None

    async def _run(self) -> None:
        live, reader, reply = self._live, self._reader, self._reply
        recording = live.recording
        if self._view.early:
            reader.every(self._view.early)
        while (head := await reader.head()) is None and recording.end is None:
            if not reply.started:
                self._commit_early()
                reader.every(self._view.interval)
            self._keepalive(self._dialect.keepalive if self._dialect else None)
            await reply.drained()
        self._trace.timings = live.timings
        self._trace.spans = None if self._trace.joined else live.spans
        if head is None:
            self._failed_before_head(recording.end)
        elif reply.started and not live.answer.framed:
            await self._report_head(head)
        else:
            if self._trace.joined and live.apart and not reply.started and not self._view.back:
                raise ApartError
            if self._view.spared and head.status >= 500 and not reply.started:
                raise SparedError(head.status)
            self._number_events()
            if not reply.started:
                self._start(head)
            await self._body()

    async def _body(self) -> None:
        live, reader, reply = self._live, self._reader, self._reply
        answer = live.answer
        # Also ends the clock of an early commit: nothing is written into a body of a declared length.
        reader.every(self._view.interval if answer.framed and reply.insertable else 0)
        await reply.drained()
        while (pause := await reader.flow(self._forward)) != "end":
            if pause == "behind":
                await reply.drained()
                self._ready_at = time.perf_counter()
            else:
                self._keepalive(answer.keepalive if answer.at_boundary else None)
                await reply.drained()
        end = live.recording.end
        assert end is not None
        # The connection's next request waits until this client has taken what it was sent.
        await reply.drained()
        self._end(end)

    def _forward(self, data: bytes) -> bool:
        """Write the next bytes; returns whether the client is behind."""
        reply, trace = self._reply, self._trace
        behind = reply.behind
        if self._stamper is not None:
            data = self._stamper.stamp(data, self._reader.offset - len(data))
        reply.write(data)
        if behind:
            return True
        # A slow client's time is its own: what waited for it counts from when it was ready again.
        came = max(self._live.arrived, self._ready_at)
        if came:  # else it was there before it was asked for
            trace.delay = max(trace.delay, time.perf_counter() - came)
        return reply.behind

    def _start(self, head: Head) -> None:
        trace, reply, answer = self._trace, self._reply, self._live.answer
        fields = end_to_end(head.headers, head.fields)
        if trace.joined:
            # A session that was begun for one request is not another's.
            fields = [field for field in fields if field[0].lower() != b"set-cookie"]
        sized = b"content-length" in head.fields
        if sized and (self._stamper is not None or self._reader.offset):
            # It is the length of another body than this client gets.
            fields = [field for field in fields if field[0].lower() != b"content-length"]
            sized = False
        trace.stream = trace.stream or answer.streaming
        if answer.events_are_separate:
            if b"x-accel-buffering" not in head.fields:
                fields.append((b"X-Accel-Buffering", b"no"))
            if b"cache-control" not in head.fields:
                fields.append((b"Cache-Control", b"no-cache"))
        fields += self._own_fields(head, resumable=answer.resumable)
        fields.append((b"Server-Timing", server_timing(trace)))
        trace.status = head.status
        recording = self._live.recording
        first = recording.take(self._reader) if recording.size > self._reader.offset else b""
        if first and self._stamper is not None:
            first = self._stamper.stamp(first, self._reader.offset - len(first))
        end = recording.end
        last = end is not None and end.fault is None and recording.size == self._reader.offset
        try:
            reply.start(head.status, head.reason, fields, sized=sized, body=first, last=last)
        except ValueError as error:
            raise RefusedError("upstream_protocol", str(error)) from None
        trace.head_at = time.perf_counter()

    def _number_events(self) -> None:
        live, view = self._live, self._view
        if view.ids and view.named is not None and live.answer.takes_ids and self._nameable:
            name = view.named(live)
            self._stamper = Stamper(live.answer, live.recording.events, name, view.number)

    @property
    def _nameable(self) -> bool:
        """Whether all of it is there for a client that comes back, or once was."""
        return self._live.name is not None or self._live.recording.retained

    def _own_fields(self, head: Head | None, *, resumable: bool) -> list[tuple[bytes, bytes]]:
        fields = list(self._view.fields(head))
        if resumable and self._view.named is not None and self._nameable and not self._reply.bodiless:
            self._trace.stream_id = self._view.named(self._live)
            fields.append((b"Slipstream-Stream-Id", self._trace.stream_id.encode()))
        return fields

    def _end(self, end: End) -> None:
        reply, trace, answer = self._reply, self._trace, self._live.answer
        trace.outcome = end.outcome
        if self._view.told:
            reply.finish()
        elif end.fault is not None:
            trace.error = end.fault.kind
            if answer.framed and reply.insertable and answer.dialect is not None:
                frame = answer.dialect.error_frame(end.fault, status_of(end.fault))
                if self._stamper is not None:
                    frame = self._stamper.closing(frame)
                reply.write(answer.closing + frame)
            reply.cut()
        elif end.outcome is Outcome.CANCELLED or self._short:
            reply.cut()
        else:
            reply.finish()

    @property
    def _short(self) -> bool:
        """Whether less came than the head said, though the answer itself is over: the client waits for it."""
        reply, recording = self._reply, self._live.recording
        if reply.insertable or reply.bodiless or recording.head is None:
            return False
        size = b"%d" % recording.size
        return recording.head.fields.get(b"content-length", size) != size

    def _keepalive(self, frame: bytes | None) -> None:
        if frame and self._reply.insertable and not self._reply.behind:
            self._reply.write(frame)
            self._trace.keepalives += 1

    # A head that comes late or never.

    def _failed_before_head(self, end: End | None) -> None:
        assert end is not None
        if end.fault is None:
            raise ClientGoneError("the call was given up")
        if not self._reply.started:
            # A body that broke off leaves the connection out of step. Where no descriptor was free for a call
            # (nothing else ends one as `overloaded`), the client's own makes room: who is refused and stays
            # would keep the next one from being served, for good.
            close = end.fault.kind in ("bad_request", "request_timeout", "overloaded")
            raise RefusedError(end.fault.kind, end.fault.detail, close=close)
        self._trace.outcome = end.outcome
        self._break_off(end.fault, status_of(end.fault), None)

    def _commit_early(self) -> None:
        """Answer 200 before the upstream has: the client's idle clocks see life, and what the upstream
        says later can only be said inside the stream."""
        dialect = self._live.answer.dialect
        assert dialect is not None
        kind = EARLY_TYPE[dialect.framing_of(self._live.answer.query) or "sse"]
        fields = [
            (b"Content-Type", kind),
            (b"X-Accel-Buffering", b"no"),
            (b"Cache-Control", b"no-cache"),
            *self._own_fields(None, resumable=True),
        ]
        self._reply.start(200, b"OK", fields, sized=False)
        self._trace.status = 200
        self._trace.head_at = time.perf_counter()

    async def _report_head(self, head: Head) -> None:
        """The answer does not fit the head that was sent early: say so inside the stream."""
        self._reader.every(0)
        body = bytearray()
        while len(body) < _ERROR_BODY and (data := await self._reader.read()):
            body += data
        upstream = None
        if head.status >= 400 and self._live.answer.identity:
            try:
                given = orjson.loads(bytes(body))
                upstream = orjson.dumps(given) if isinstance(given, dict) else None
            except ValueError:
                upstream = None
        self._trace.outcome = Outcome.UPSTREAM_ERROR
        self._trace.status = head.status
        self._break_off(
            Fault("upstream_refused", f"status {head.status}, and no stream"), head.status, upstream
        )

    def _break_off(self, fault: Fault, status: int, upstream: bytes | None) -> None:
        assert self._dialect is not None
        self._trace.error = fault.kind
        self._reply.write(self._dialect.error_frame(fault, status, upstream))
        self._reply.cut()
