"""One record of where a request's time went.

Definitions (all times in milliseconds, from `time.perf_counter` differences):

- `ttfb_ms`: from the request's head being read to the answer's head being written.
- `ttft_ms`: to the first content, reasoning or tool-call delta; `ttft_kind` says which. Role-only
  chunks, pings and comments do not count. Streams only.
- `itl_*`: gaps between those deltas, as they arrived from the upstream.
- `tpot_ms`: from first to last delta, per output token after the first; by the provider's own count
  where it gave one, else per delta. `tokens_per_second` is its inverse, by the provider's count only.
- `overhead_ms`: what the sidecar itself added: request read to upstream request written, without
  waiting for the client's body or the connection; the upstream's head to its being written; and the
  longest that any chunk lay here while the client was ready to take it.
"""

import itertools
import math
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from sidecar.core.gaps import NO_GAPS, Gaps
from sidecar.core.spans import Spans
from sidecar.core.types import Outcome, Timings

_LONGEST_TIMING = 1024
"""Bytes of a `Server-Timing` header after which no further phase is named."""
_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?", re.DOTALL)

_RUN = secrets.token_hex(4)
_NUMBERS = itertools.count(1)
"""Request ids are unique, not secret: eight random digits per process, then a count."""


def next_request_id() -> str:
    """The id of one more request."""
    return f"{_RUN}{next(_NUMBERS):08x}"


CacheResult = Literal["hit", "miss", "bypass", "collapsed", "off"]


class Labels(msgspec.Struct, frozen=True, gc=False):
    """What was called, for every line that has to do with the call."""

    upstream: str | None = None
    provider: str | None = None
    operation: str | None = None
    model: str | None = None
    stream: bool = False


NO_LABELS = Labels()


class Trace(msgspec.Struct):
    """What the shell learns of one request while serving it. Times: `time.perf_counter`, seconds."""

    request_id: str
    method: str
    path: str
    started: float
    trace_id: str | None = None
    tenant: str | None = None
    feature: str | None = None
    parent: bytes | None = None
    """The request's `traceparent`."""
    labels: Labels = NO_LABELS
    stream: bool = False
    stream_id: str | None = None
    resumed_from: int | None = None
    """The first event that was asked for, by a client that came back."""
    cache: CacheResult = "off"
    cache_kind: Literal["exact", "semantic", "stale"] | None = None
    """Of a hit: by which key, or that it stood in for an upstream that failed."""
    similarity: float | None = None
    """Cosine of the question and the nearest one that is stored."""
    guard: str | None = None
    """What says that the nearest one is not the same question."""
    embed: float | None = None
    search: float | None = None
    """Seconds spent making the question's vector, and searching with it."""
    lookup: float | None = None
    """Seconds spent looking for a stored answer."""
    stored: float | None = None
    """Seconds spent storing the answer, after the client had it."""
    joined: bool = False
    """The call was begun by another request."""
    status: int | None = None
    waited: float = 0.0
    """Seconds spent waiting for the client's body."""
    timings: Timings | None = None
    spans: Spans | None = None
    """Phases that the code which makes the answer has timed itself."""
    head_at: float = 0.0
    delay: float = 0.0
    close_code: int | None = None
    """Of a WebSocket: what the first close frame said (RFC 6455, 7.4)."""
    keepalives: int = 0
    outcome: Outcome = Outcome.COMPLETE
    error: str | None = None

    @classmethod
    def begin(cls, method: str) -> "Trace":
        """A trace that starts now."""
        return cls(
            request_id=next_request_id(),
            method=method,
            path="",
            started=time.perf_counter(),
        )


class Heard(msgspec.Struct, frozen=True):
    """What the answer itself told, for the record."""

    response_model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int | None = None
    reasoning_tokens: int | None = None
    events: int = 0
    deltas: int = 0
    bytes: int = 0
    """Bytes of body sent to the client."""
    first_at: float = 0.0
    first_kind: str | None = None
    last_at: float = 0.0
    gaps: Gaps = NO_GAPS


class Aside(msgspec.Struct, frozen=True):
    """What figures are made of beside the line."""

    gaps: Gaps = NO_GAPS
    saved: float | None = None
    """Seconds that the answer took when it was made, of one out of the cache."""
    parent: bytes | None = None
    """The request's `traceparent`."""


NOTHING = Aside()

FEATURES = {"chat": "chat", "text_completion": "completion", "generate_content": "chat"}
"""What a request counts as that names no feature, by its operation."""


def trace_id(traceparent: bytes | None) -> str | None:
    """The trace id of a valid W3C `traceparent` (version 00 and up), else None."""
    found = _TRACEPARENT.fullmatch(traceparent) if traceparent is not None else None
    if found is None or found[1] == b"ff" or (found[1] == b"00" and found[4]):
        return None
    if not found[2].strip(b"0") or not found[3].strip(b"0"):
        return None
    return found[2].decode()


def record(trace: Trace, heard: Heard, now: float) -> dict[str, Any]:
    """The fields of the latency line, in the order people read them."""
    begun = trace.started
    timings = None if trace.joined else trace.timings
    labels = trace.labels
    # What arrived with the head still had to wait for the head to be written.
    first = max(heard.first_at, trace.head_at) - begun if heard.first_kind else None
    kind = heard.first_kind
    if trace.resumed_from is not None:
        first = kind = None  # it was waited for in another request
    speaking = heard.last_at - heard.first_at
    # The first of them marks the beginning, so there is one fewer to divide by.
    steps = (heard.output_tokens if heard.output_tokens is not None else heard.deltas) - 1
    spoke = heard.deltas > 1 and steps > 0 and speaking > 0
    p50, p99 = heard.gaps.percentiles(0.5, 0.99)
    longest = heard.gaps.longest if p50 is not None else None
    if p99 is not None:
        p99 = min(p99, heard.gaps.longest)  # kept in single precision, which rounds
    return {
        "request_id": trace.request_id,
        "trace_id": trace.trace_id,
        "stream_id": trace.stream_id,
        "tenant": trace.tenant,
        "method": trace.method,
        "path": trace.path,
        "upstream": labels.upstream,
        "provider": labels.provider,
        "operation": labels.operation,
        "model": labels.model,
        "response_model": heard.response_model,
        "stream": trace.stream or labels.stream,
        "status": trace.status,
        "outcome": trace.outcome.value,
        "close_code": trace.close_code,
        "cache": trace.cache,
        "cache_kind": trace.cache_kind,
        "similarity": None if trace.similarity is None else math.floor(trace.similarity * 1000) / 1000,
        "guard": trace.guard,
        "ttfb_ms": _ms(trace.head_at - begun) if trace.head_at else None,
        "ttft_ms": _ms(first),
        "ttft_kind": kind,
        "tpot_ms": _ms(speaking / steps) if spoke else None,
        "itl_p50_ms": _ms(p50),
        "itl_p99_ms": _ms(p99),
        "itl_max_ms": _ms(longest),
        "total_ms": _ms(now - begun),
        "overhead_ms": _ms(_overhead(trace)),
        "phases": _phases(trace, timings, now),
        "tokens_per_second": round(steps / speaking, 1) if spoke and heard.output_tokens else None,
        "input_tokens": heard.input_tokens,
        "output_tokens": heard.output_tokens,
        "cached_input_tokens": heard.cached_input_tokens,
        "reasoning_tokens": heard.reasoning_tokens,
        "events": max(heard.events - (trace.resumed_from or 0), 0),
        "bytes": heard.bytes,
        "keepalives": trace.keepalives,
        "resumed_from": trace.resumed_from,
        "retries": timings.retries if timings is not None else 0,
        "feature": trace.feature or FEATURES.get(labels.operation or ""),
        "budget_exceeded": None,
        "error": trace.error,
    }


def server_timing(trace: Trace) -> bytes:
    """What is known when the head is written, as the value of a `Server-Timing` header."""
    timings = trace.timings
    read = b"read;dur=%.3f" % (trace.waited * 1000)
    if trace.lookup is not None:
        read += b", lookup;dur=%.3f" % (trace.lookup * 1000)
    if timings is None or not timings.head or trace.joined:
        return read
    connect, upstream = timings.connected - timings.started, timings.head - timings.sent
    said = b"%b, connect;dur=%.3f, upstream;dur=%.3f" % (read, connect * 1000, upstream * 1000)
    if trace.spans is not None:
        for name, seconds in trace.spans.over().items():
            if len(said) > _LONGEST_TIMING:
                break  # proxies bound the heads that they take
            said += b", %b;dur=%.3f" % (name.encode(), seconds * 1000)
    return said


def _phases(trace: Trace, timings: Timings | None, now: float) -> Mapping[str, float | None]:
    """A phase that was not over when the request ended has lasted until then."""
    connect = upstream = None
    if timings is not None and timings.started:
        connect = (timings.connected or now) - timings.started
        if timings.sent:
            upstream = (timings.head or now) - timings.sent
    phases = {
        "read_ms": _ms(trace.waited),
        "lookup_ms": _ms(trace.lookup),
        "embed_ms": _ms(trace.embed),
        "search_ms": _ms(trace.search),
        "connect_ms": _ms(connect),
        "upstream_ms": _ms(upstream),
        "store_ms": _ms(trace.stored),
    }
    if trace.spans is not None:
        phases |= {f"{name}_ms": _ms(seconds) for name, seconds in trace.spans.seconds(now).items()}
    return phases


def _overhead(trace: Trace) -> float | None:
    timings = trace.timings
    if trace.cache_kind in ("exact", "semantic") and trace.head_at:
        return max(trace.head_at - trace.started - trace.waited, 0.0) + trace.delay
    if timings is None or not timings.sent:
        return None
    if trace.joined:
        # It waited for the call's head, if that was not there yet, and for nothing else.
        ready = max(trace.started + trace.waited, timings.head)
        return (max(trace.head_at - ready, 0.0) if trace.head_at else 0.0) + trace.delay
    before = timings.started - trace.started - trace.waited + (timings.sent - timings.connected)
    after = trace.head_at - timings.head if trace.head_at and timings.head else 0.0
    return max(before, 0.0) + max(after, 0.0) + trace.delay


def _ms(seconds: float | None) -> float | None:
    """Whole microseconds are as much as these clocks are worth; several times cheaper than round()."""
    return None if seconds is None else int(seconds * 1e6 + 0.5) / 1000
