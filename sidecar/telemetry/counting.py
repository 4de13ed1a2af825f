"""From requests and calls that have ended to metrics: which counters and histograms each of them moves.

A request is what a client saw, as its latency line has it. A call is what an upstream did, whoever of several
clients, a job, or a check of a stored answer it was made for.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from sidecar.core.errors import KINDS
from sidecar.core.gaps import NO_GAPS, Gaps
from sidecar.core.latency import Aside, Labels
from sidecar.core.types import Outcome
from sidecar.telemetry.figures import saved_ms, tally_of
from sidecar.telemetry.metrics import Metrics

STALL = 5.0
"""Seconds between two tokens that a person takes for an end."""
_RESERVED = "/_slipstream/"
_STREAMS = _RESERVED + "streams/"
_NO_WAY_BACK = {"not_found": "unknown", "gone": "gone"}
_OURS = frozenset([kind for kind, (_, _, outcome) in KINDS.items() if outcome is Outcome.REFUSED])
"""What ends calls of which the upstream is not to blame, such as our own stop."""
_OTEL_CALL = "gen_ai_client_"
_TOKENS = (("input", "input_tokens"), ("output", "output_tokens"))


class Call(msgspec.Struct, frozen=True):
    """A call that has ended."""

    labels: Labels
    total: float
    """Seconds from its beginning to its end."""
    first: float | None = None
    """Seconds to the first content, reasoning or tool call."""
    gaps: Gaps = NO_GAPS
    response_model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None
    """A status, or a kind of error; None where it did what it should, or was given up."""
    complete: bool = True
    retries: int = 0


class Counting:
    """Counts for one process."""

    def __init__(self, metrics: Metrics, places: Mapping[str, tuple[str, int]]) -> None:
        """`places`: host and port of upstreams by name."""
        self.metrics = metrics
        self._places = {name: (host, str(port)) for name, (host, port) in places.items()}

    def request(self, line: Mapping[str, Any], aside: Aside) -> None:
        """A request has ended."""
        metrics, count, observe = self.metrics, self.metrics.count, self.metrics.observe
        status, cache, upstream = line["status"], line["cache"], line["upstream"] or ""
        model = metrics.names.get(line["model"], good=is_good(line))
        klass = f"{status // 100}xx" if status is not None else ""
        count("slipstream_requests_total", (upstream, model, line["outcome"], klass, cache))
        count("slipstream_cache_results_total", (cache, line["cache_kind"] or ""))
        if status != 101:  # a WebSocket ends when its ends like
            observe("slipstream_request_duration_seconds", (upstream, cache), line["total_ms"])
        if line["ttft_ms"] is not None:
            observe("slipstream_time_to_first_token_seconds", (upstream, cache), line["ttft_ms"])
        if line["overhead_ms"] is not None:
            observe("slipstream_overhead_seconds", (upstream, cache), line["overhead_ms"])
        if line["keepalives"]:
            count("slipstream_keepalives_total", (), line["keepalives"])
        if aside.saved is not None:
            count("slipstream_cache_saved_seconds_total", (), saved_ms(line, aside) / 1000)
            for kind, name in _TOKENS:
                if line[name]:
                    count("slipstream_cache_saved_tokens_total", (kind,), line[name])
        self._end(line)

    def _end(self, line: Mapping[str, Any]) -> None:
        """How it ended."""
        count, outcome = self.metrics.count, line["outcome"]
        if outcome == "cancelled":
            count("slipstream_disconnects_total", (phase_of(line),))
        elif outcome == "refused":
            count("slipstream_refused_total", (line["error"] or "",))
        if line["resumed_from"] is not None:
            count("slipstream_resumes_total", ("resumed",))
        elif line["error"] in _NO_WAY_BACK and _came_back(line):
            count("slipstream_resumes_total", (_NO_WAY_BACK[line["error"]],))

    def call(self, call: Call) -> None:
        """A call has ended."""
        metrics, count, upstream = self.metrics, self.metrics.count, call.labels.upstream or ""
        count("slipstream_upstream_calls_total", (upstream,))
        if call.error is not None and call.error not in _OURS:
            count("slipstream_upstream_errors_total", (upstream, call.error))
        if call.retries:
            count("slipstream_upstream_retries_total", (upstream,), call.retries)
        kept, weight = call.gaps.kept
        gaps = tally_of(call.gaps)
        stalls = int(call.error == "upstream_stalled")
        if call.gaps.longest >= STALL:  # it may be one of those that were not kept
            stalls += sum([gap >= STALL for gap in kept]) * weight or 1
        if stalls:
            count("slipstream_stalls_total", (upstream,), stalls)
        if not call.labels.operation:
            return
        labels = self._labels(call)
        total = f"{_OTEL_CALL}operation_duration_seconds"
        metrics.observe(total, (*labels, call.error or ""), call.total * 1000)
        if call.first is not None:
            metrics.observe(f"{_OTEL_CALL}time_to_first_chunk_seconds", labels, call.first * 1000)
        if gaps:
            name = f"{_OTEL_CALL}time_per_output_chunk_seconds"
            metrics.observe_cells(name, labels, gaps.items(), sum(kept) * weight)
        for kind, tokens in (("input", call.input_tokens), ("output", call.output_tokens)):
            if tokens is not None:
                metrics.observe_count(f"{_OTEL_CALL}token_usage", (*labels, kind), tokens)

    def _labels(self, call: Call) -> tuple[str, ...]:
        labels = call.labels
        model = self.metrics.names.get(labels.model, good=call.error is None and call.complete)
        response = self.metrics.answering.get(call.response_model, good=True)
        host, port = self._places.get(labels.upstream or "", ("", ""))
        return (labels.operation or "", labels.provider or "", model, response, host, port)

    def job(self, status: str) -> None:
        """A background job has ended."""
        self.metrics.count("slipstream_jobs_ended_total", (status,))


def is_good(line: Mapping[str, Any]) -> bool:
    """Whether something came of a request, so that what it names is there."""
    status = line["status"]
    return status is not None and status < 300 and line["outcome"] == "complete"


def error_type(line: Mapping[str, Any]) -> str | None:
    """What was wrong with a call: a kind in `Slipstream-Error`, or the upstream's status; None for
    nothing."""
    if line["outcome"] == "cancelled":
        return None
    if line["error"] is not None:
        return str(line["error"])
    if line["status"] is not None and line["status"] >= 400:
        return str(line["status"])
    return None if line["outcome"] == "complete" else str(line["outcome"])


def phase_of(line: Mapping[str, Any]) -> str:
    """How far a request had come whose client left."""
    if line["status"] is None:
        called = line["phases"]["connect_ms"] is not None or line["cache"] == "collapsed"
        return "upstream" if called else "request"
    if not line["stream"]:
        return "body"
    if line["status"] == 101:
        return "stream"
    return "first_token" if line["ttft_ms"] is None and line["resumed_from"] is None else "stream"


def _came_back(line: Mapping[str, Any]) -> bool:
    """Whether a request for which nothing was found wanted to go on with a stream: at the stream's address,
    or by the same request again, which finds everything else upstream."""
    path: str = line["path"]
    return not path.startswith(_RESERVED) or (line["method"] == "GET" and path.startswith(_STREAMS))
