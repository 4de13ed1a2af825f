"""From latency lines to metrics: which counters and histograms a request that has ended moves."""

from collections.abc import Mapping
from typing import Any

from sidecar.core.errors import KINDS
from sidecar.core.latency import Aside
from sidecar.core.types import Outcome
from sidecar.telemetry.figures import saved_ms
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.window import Cells

STALL = 5000.0
"""Milliseconds between two tokens that a person takes for an end."""
_RESERVED = "/_slipstream/"
_STREAMS = _RESERVED + "streams/"
_NO_WAY_BACK = {"not_found": "unknown", "gone": "gone"}
_OURS = frozenset([kind for kind, (_, _, outcome) in KINDS.items() if outcome is Outcome.REFUSED])
"""What ends calls of which the upstream is not to blame, such as our own stop."""
_OTEL_CALL = "gen_ai_client_"
_TOKENS = (("input", "input_tokens"), ("output", "output_tokens"))


class Counting:
    """Counts for one process."""

    def __init__(self, metrics: Metrics, places: Mapping[str, tuple[str, int]]) -> None:
        """`places`: host and port of upstreams by name."""
        self.metrics = metrics
        self._places = {name: (host, str(port)) for name, (host, port) in places.items()}

    def request(self, line: Mapping[str, Any], aside: Aside, gaps: Cells) -> None:
        """A request has ended."""
        metrics, count, observe = self.metrics, self.metrics.count, self.metrics.observe
        status, cache, upstream = line["status"], line["cache"], line["upstream"] or ""
        model = metrics.names.get(line["model"], good=is_good(line))
        klass = f"{status // 100}xx" if status is not None else ""
        count("slipstream_requests_total", (upstream, model, line["outcome"], klass, cache))
        count("slipstream_cache_results_total", (cache, line["cache_kind"] or ""))
        observe("slipstream_request_duration_seconds", (upstream, cache), line["total_ms"])
        if line["ttft_ms"] is not None:
            observe("slipstream_time_to_first_token_seconds", (upstream, cache), line["ttft_ms"])
        if line["overhead_ms"] is not None:
            observe("slipstream_overhead_seconds", (upstream, cache), line["overhead_ms"])
        if line["keepalives"]:
            count("slipstream_keepalives_total", (), line["keepalives"])
        if line["retries"]:
            count("slipstream_upstream_retries_total", (upstream,), line["retries"])
        if aside.saved is not None:
            count("slipstream_cache_saved_seconds_total", (), saved_ms(line, aside) / 1000)
            for kind, name in _TOKENS:
                if line[name]:
                    count("slipstream_cache_saved_tokens_total", (kind,), line[name])
        self._end(line, aside, upstream)
        if aside.own and line["operation"]:
            self._call(line, aside, model, gaps)

    def _end(self, line: Mapping[str, Any], aside: Aside, upstream: str) -> None:
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
        if aside.own and (line["itl_max_ms"] or 0.0) >= STALL:
            count("slipstream_stalls_total", (upstream,))
        if (aside.own or aside.failed is not None) and upstream:
            count("slipstream_upstream_calls_total", (upstream,))
        failed = aside.failed if aside.failed is not None else error_type(line) if aside.own else None
        if failed is not None and failed not in _OURS and upstream:
            count("slipstream_upstream_errors_total", (upstream, failed))

    def _call(self, line: Mapping[str, Any], aside: Aside, model: str, gaps: Cells) -> None:
        """It was a call to a provider."""
        metrics, labels = self.metrics, self._labels(line, model)
        error = error_type(line) or ""
        metrics.observe(f"{_OTEL_CALL}operation_duration_seconds", (*labels, error), line["total_ms"])
        if line["ttft_ms"] is not None:
            metrics.observe(f"{_OTEL_CALL}time_to_first_chunk_seconds", labels, line["ttft_ms"])
        if gaps:
            kept, weight = aside.gaps.kept
            name = f"{_OTEL_CALL}time_per_output_chunk_seconds"
            metrics.observe_cells(name, labels, gaps.items(), sum(kept) * weight)
        self._tokens(line, labels)

    def _labels(self, line: Mapping[str, Any], model: str) -> tuple[str, ...]:
        response = self.metrics.answering.get(line["response_model"], good=True)
        host, port = self._places.get(line["upstream"] or "", ("", ""))
        return (line["operation"], line["provider"] or "", model, response, host, port)

    def _tokens(self, line: Mapping[str, Any], labels: tuple[str, ...]) -> None:
        for kind, name in _TOKENS:
            if line[name] is not None:
                self.metrics.observe_count(f"{_OTEL_CALL}token_usage", (*labels, kind), line[name])

    def job(self, line: Mapping[str, Any]) -> None:
        """A background job has ended. `line`: its fields in the log, and `upstream`, `provider`, `operation`,
        `response_model`, `called_ms` beside them."""
        self.metrics.count("slipstream_jobs_ended_total", (line["status"],))
        if line["called_ms"] is None:
            return
        upstream = line["upstream"] or ""
        if upstream:
            self.metrics.count("slipstream_upstream_calls_total", (upstream,))
        if line["status"] == "failed" and line["error"] and line["error"] not in _OURS:
            self.metrics.count("slipstream_upstream_errors_total", (upstream, line["error"]))
        good = line["status"] == "complete"
        if not line["operation"]:
            return
        labels = self._labels(line, self.metrics.names.get(line["model"], good=good))
        name = f"{_OTEL_CALL}operation_duration_seconds"
        self.metrics.observe(name, (*labels, line["error"] or ""), line["called_ms"])
        self._tokens(line, labels)


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
    return "first_token" if line["ttft_ms"] is None and line["resumed_from"] is None else "stream"


def _came_back(line: Mapping[str, Any]) -> bool:
    """Whether a request for which nothing was found wanted to go on with a stream: at the stream's address,
    or by the same request again, which finds everything else upstream."""
    path: str = line["path"]
    return not path.startswith(_RESERVED) or (line["method"] == "GET" and path.startswith(_STREAMS))
