"""Spans: what a latency line says, in the words of the OpenTelemetry conventions for GenAI clients and HTTP.

One span per request, below the caller's if it sent a `traceparent`, and one below that for each piece of its
time. It is CLIENT where a call of its own went upstream, as the conventions want it for calls to a model,
and SERVER where the sidecar was the one that answered: from the cache, from another's call, or by refusing.
Tokens are `gen_ai.usage` only in the former: what adds these up to a bill must not count what nobody pays.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from sidecar.core.waterfall import SPANS, pieces
from sidecar.telemetry.counting import error_type
from sidecar.telemetry.otel.wire import InSteps, Reports, Session, Told, in_steps

_LEAST = 0.1
"""Milliseconds; shorter pieces get no span. Nobody would see it, and hits would have several of them."""
_LONGEST = 512
"""Characters of a text."""
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_METHODS = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)
_ERROR = Status(StatusCode.ERROR)
_FINE = Status(StatusCode.UNSET)
_SPAN_ID = slice(36, 52)
_FLAGS = slice(53, 55)

_ALWAYS = (
    ("operation", "gen_ai.operation.name"),
    ("provider", "gen_ai.provider.name"),
    ("model", "gen_ai.request.model"),
    ("response_model", "gen_ai.response.model"),
    ("path", "url.path"),
    ("status", "http.response.status_code"),
    ("request_id", "slipstream.request_id"),
    ("stream_id", "slipstream.stream_id"),
    ("tenant", "slipstream.tenant"),
    ("upstream", "slipstream.upstream"),
    ("feature", "slipstream.feature"),
    ("outcome", "slipstream.outcome"),
    ("cache", "slipstream.cache"),
    ("cache_kind", "slipstream.cache_kind"),
    ("similarity", "slipstream.similarity"),
    ("guard", "slipstream.guard"),
    ("overhead_ms", "slipstream.overhead_ms"),
    ("itl_p99_ms", "slipstream.itl_p99_ms"),
    ("itl_max_ms", "slipstream.itl_max_ms"),
    ("tokens_per_second", "slipstream.tokens_per_second"),
    ("resumed_from", "slipstream.resumed_from"),
)
_CALLED = (
    ("input_tokens", "gen_ai.usage.input_tokens"),
    ("output_tokens", "gen_ai.usage.output_tokens"),
    ("cached_input_tokens", "gen_ai.usage.cache_read.input_tokens"),
    ("reasoning_tokens", "gen_ai.usage.reasoning.output_tokens"),
    ("retries", "slipstream.retries"),
)
_ANSWERED = (
    ("input_tokens", "slipstream.input_tokens"),
    ("output_tokens", "slipstream.output_tokens"),
)

IDS = RandomIdGenerator()
_NOWHERE = Resource({})

Attributes = dict[str, str | bool | int | float]


class Origin(NamedTuple):
    """Who sends."""

    resource: Resource
    scope: InstrumentationScope
    places: Mapping[str, tuple[str, int]]
    """Host and port of upstreams by name."""


class Ended(ReadableSpan):
    """A request that has ended. In the queue it is its line; what is made of that is made by the thread that
    sends it, not by the event loop."""

    def __init__(
        self,
        number: int,
        line: Mapping[str, Any],
        begun: float,
        context: SpanContext,
        parent: SpanContext | None,
    ) -> None:
        super().__init__("", context, parent, _NOWHERE)
        self.own = context
        self.number = number
        self.line = line
        self.begun = begun


def caller(trace: str, traceparent: bytes) -> SpanContext:
    """The span that a valid `traceparent` names. `trace`: its trace id."""
    flags = TraceFlags(int(traceparent[_FLAGS], 16))
    return SpanContext(int(trace, 16), int(traceparent[_SPAN_ID], 16), is_remote=True, trace_flags=flags)


def beginning(trace: int) -> SpanContext:
    """A new span in a trace."""
    return SpanContext(trace, IDS.generate_span_id(), is_remote=False, trace_flags=_SAMPLED)


def spans_of(ended: Ended, origin: Origin) -> list[ReadableSpan]:
    """A request's span, and those of the pieces of its time."""
    line, own = ended.line, ended.own
    called = (line.get("phases") or {}).get("connect_ms") is not None
    begun = int(ended.begun * 1e9)
    failure = error_type(line)
    whole = ReadableSpan(
        _text(_name(line)),
        own,
        ended.parent,
        origin.resource,
        _attributes(line, origin, failure, called=called),
        _events(line, begun),
        kind=SpanKind.CLIENT if called else SpanKind.SERVER,
        status=_status(line, failure, called=called),
        start_time=begun,
        end_time=begun + _ns(line["total_ms"]),
        instrumentation_scope=origin.scope,
    )
    parts = [
        ReadableSpan(
            piece.name,
            beginning(own.trace_id),
            own,
            origin.resource,
            start_time=begun + _ns(piece.start_ms),
            end_time=begun + _ns(piece.start_ms + piece.ms),
            instrumentation_scope=origin.scope,
        )
        for piece in pieces(line)
        if piece.ms >= _LEAST
    ]
    return [whole, *parts]


def _name(line: Mapping[str, Any]) -> str:
    """Of few different ones: neither paths nor made-up methods."""
    if line.get("operation"):
        return f"{line['operation']} {line['model']}" if line.get("model") else str(line["operation"])
    method = line["method"] if line["method"] in _METHODS else "HTTP"
    return f"{method} {line['upstream']}" if line.get("upstream") else method


def _attributes(line: Mapping[str, Any], origin: Origin, failure: str | None, *, called: bool) -> Attributes:
    found: Attributes = {
        "http.request.method": line["method"] if line["method"] in _METHODS else "_OTHER",
    }
    for key, name in (*_ALWAYS, *(_CALLED if called else _ANSWERED)):
        _put(found, name, line.get(key))
    if line.get("stream") and line.get("operation"):
        found["gen_ai.request.stream"] = True
        if called and line.get("ttft_ms") is not None:
            found["gen_ai.response.time_to_first_chunk"] = line["ttft_ms"] / 1000
    if called and line.get("upstream") in origin.places:
        found["server.address"], found["server.port"] = origin.places[line["upstream"]]
    _put(found, "error.type", failure)
    for name, took in (line.get("phases") or {}).items():
        if name == "store_ms" or name not in SPANS:
            # Not a piece of the wait: it came after the answer, or it is an app's own and nested in one.
            _put(found, f"slipstream.phase.{_text(name)}", took)
    if line.get("budget_exceeded"):
        _put(found, "slipstream.budget_exceeded", line["budget_exceeded"].get("budget"))
        _put(found, "slipstream.budget_phase", line["budget_exceeded"].get("phase"))
    return found


def _put(found: Attributes, name: str, value: object) -> None:
    if isinstance(value, str):
        found[name] = _text(value)
    elif isinstance(value, int | float):
        found[name] = value


def _events(line: Mapping[str, Any], begun: int) -> Sequence[Event]:
    if line.get("ttft_ms") is None:
        return ()
    kind = {"slipstream.kind": _text(line["ttft_kind"])} if line.get("ttft_kind") else {}
    return (Event("first_token", kind, begun + _ns(line["ttft_ms"])),)


def _status(line: Mapping[str, Any], failure: str | None, *, called: bool) -> Status:
    """To who answers, a status below 500 is the caller's mistake; to who calls, it is an error."""
    mistaken = not called and line.get("status") is not None and 400 <= line["status"] < 500
    return _FINE if failure is None or mistaken else _ERROR


def _text(value: str) -> str:
    """As it can be encoded: one lone surrogate would take the whole batch with it."""
    value = value[:_LONGEST]
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def _ns(milliseconds: float) -> int:
    return int(milliseconds * 1e6)


class SpanSender(SpanExporter):
    """Makes spans of what the queue holds, and hands them to the exporter."""

    def __init__(self, exporter: SpanExporter, session: Session, origin: Origin, tell: Told) -> None:
        self._exporter = exporter
        self._session = session
        self._origin = origin
        self._reports = Reports(tell)
        self._next = 0
        self._closed = False
        self.dropped = 0
        """Requests whose spans were lost: no room in the queue, or not taken by the collector."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Called by the queue's thread."""
        batch = [span for span in spans if isinstance(span, Ended)]
        # The queue makes room by dropping its oldest, and tells nobody how many.
        self.dropped += batch[-1].number - self._next + 1 - len(batch)
        self._next = batch[-1].number + 1
        made: list[ReadableSpan] = []
        sent = 0
        for one in in_steps(batch):
            try:
                made += spans_of(one, self._origin)
                sent += 1
            except Exception:  # noqa: BLE001 - reason: one odd line must not cost the others their spans
                self.dropped += 1
        self._session.failure = None
        try:
            result = self._exporter.export(InSteps(made))
        except Exception as error:  # noqa: BLE001 - reason: whatever it is, it is told and counted
            self._session.failure = type(error).__name__
            result = SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self._reports.take(None)
        else:
            self.dropped += sent
            self._reports.take(self._session.failure or "not to be encoded")
        return result

    def shutdown(self) -> None:
        """Give up what is not sent yet."""
        if not self._closed:
            self._closed = True
            self._exporter.shutdown()
