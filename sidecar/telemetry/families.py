"""Every metric by name: what README lists, dashboards and alert rules use, and a test compares with the
rest."""

from typing import Literal

import msgspec

from sidecar.telemetry.scale import doublings

Kind = Literal["counter", "gauge", "histogram"]


class Family(msgspec.Struct, frozen=True):
    """One metric."""

    name: str
    """As Prometheus has it, with its unit; counters end in `_total`."""
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """Of a histogram: upper bounds, in the metric's unit."""
    otel: str | None = None
    """The name in the OpenTelemetry GenAI conventions, where it is one of those."""
    across: Literal["sum", "max"] = "sum"
    """What the gauge of several worker processes is that each have one."""


def _seconds(first: int, last: int) -> tuple[float, ...]:
    return tuple([edge / 1000 for edge in doublings(first, last)])


_CALL = (
    "gen_ai_operation_name",
    "gen_ai_provider_name",
    "gen_ai_request_model",
    "gen_ai_response_model",
    "server_address",
    "server_port",
)
WAITS = _seconds(-3, 17)
"""1.25 ms to 22 minutes: reasoning models think for minutes."""
TOKENS = tuple([4.0**power for power in range(14)])
"""The bounds that the conventions advise."""

FAMILIES = (
    # In the words of the OpenTelemetry GenAI conventions: calls that went to a provider.
    Family(
        "gen_ai_client_operation_duration_seconds",
        "histogram",
        "Duration of calls to a provider.",
        (*_CALL, "error_type"),
        WAITS,
        "gen_ai.client.operation.duration",
    ),
    Family(
        "gen_ai_client_time_to_first_chunk_seconds",
        "histogram",
        "Time to the first content, reasoning or tool call of streams from a provider.",
        _CALL,
        WAITS,
        "gen_ai.client.operation.time_to_first_chunk",
    ),
    Family(
        "gen_ai_client_time_per_output_chunk_seconds",
        "histogram",
        "Gaps between such events in streams from a provider.",
        _CALL,
        _seconds(-4, 13),
        "gen_ai.client.operation.time_per_output_chunk",
    ),
    Family(
        "gen_ai_client_token_usage",
        "histogram",
        "Tokens of calls to a provider, by its own count.",
        (*_CALL, "gen_ai_token_type"),
        TOKENS,
        "gen_ai.client.token.usage",
    ),
    # What clients saw, answered from wherever.
    Family(
        "slipstream_requests_total",
        "counter",
        "Requests that have ended.",
        ("upstream", "model", "outcome", "status", "cache"),
    ),
    Family(
        "slipstream_request_duration_seconds",
        "histogram",
        "Time from a request to the end of its answer.",
        ("upstream", "cache"),
        WAITS,
    ),
    Family(
        "slipstream_time_to_first_token_seconds",
        "histogram",
        "Time from a streamed request to its first token.",
        ("upstream", "cache"),
        WAITS,
    ),
    Family(
        "slipstream_overhead_seconds",
        "histogram",
        "What the sidecar itself added to a request.",
        ("upstream", "cache"),
        _seconds(-9, 7),
    ),
    Family("slipstream_active_requests", "gauge", "Requests being served."),
    Family("slipstream_active_streams", "gauge", "Requests whose answer is being streamed."),
    Family("slipstream_active_calls", "gauge", "Upstream calls that are running, whoever reads them."),
    Family("slipstream_jobs", "gauge", "Background jobs that have not ended.", ("state",)),
    Family("slipstream_jobs_ended_total", "counter", "Background jobs that have ended.", ("status",)),
    Family(
        "slipstream_disconnects_total",
        "counter",
        "Requests whose client left before the end, by how far they had come.",
        ("phase",),
    ),
    Family("slipstream_resumes_total", "counter", "Clients that came back to a stream.", ("result",)),
    Family("slipstream_keepalives_total", "counter", "Signs of life written into silent streams."),
    Family(
        "slipstream_stalls_total",
        "counter",
        "Streams with a silence of 5 s or more between two tokens.",
        ("upstream",),
    ),
    Family(
        "slipstream_upstream_calls_total",
        "counter",
        "Calls made to an upstream, for requests and jobs.",
        ("upstream",),
    ),
    Family(
        "slipstream_upstream_errors_total",
        "counter",
        "Calls that an upstream failed: by HTTP status, or by the kind in Slipstream-Error.",
        ("upstream", "error_type"),
    ),
    Family(
        "slipstream_upstream_retries_total",
        "counter",
        "Requests sent again on a new connection.",
        ("upstream",),
    ),
    Family("slipstream_refused_total", "counter", "Requests that the sidecar refused.", ("kind",)),
    # The cache.
    Family(
        "slipstream_cache_results_total",
        "counter",
        "What the cache did for requests; kind: of hits.",
        ("result", "kind"),
    ),
    Family("slipstream_cache_stored_total", "counter", "Answers stored."),
    Family("slipstream_cache_not_stored_total", "counter", "Answers that were not stored.", ("reason",)),
    Family(
        "slipstream_cache_unmatched_total",
        "counter",
        "Questions for which no other one was taken for the same.",
        ("reason",),
    ),
    Family(
        "slipstream_cache_saved_seconds_total",
        "counter",
        "What hits would have taken longer, had they gone upstream as their answers once did.",
    ),
    Family(
        "slipstream_cache_saved_tokens_total",
        "counter",
        "Tokens of answers given from the cache.",
        ("gen_ai_token_type",),
    ),
    Family(
        "slipstream_semantic_checked_total",
        "counter",
        "Semantic hits checked against the upstream.",
        ("verdict",),
    ),
    Family(
        "slipstream_semantic_false_hit_ratio",
        "gauge",
        "Share of checked semantic hits that were wrong; NaN while none was checked.",
    ),
    Family(
        "slipstream_semantic_false_hit_ratio_upper",
        "gauge",
        "What that share is below with 95 % confidence (Wilson).",
    ),
    Family("slipstream_store_failures_total", "counter", "What the disk would not do.", ("operation",)),
    Family("slipstream_embedder_failures_total", "counter", "Questions without a vector.", ("reason",)),
    Family("slipstream_lookups_late_total", "counter", "Lookups that went past their deadline.", ("kind",)),
    # Budgets.
    Family(
        "slipstream_budget_requests_total",
        "counter",
        "Requests held against a budget.",
        ("feature", "budget", "verdict"),
    ),
    Family(
        "slipstream_budget_target_seconds", "gauge", "What 95 % should stay within.", ("feature", "budget")
    ),
    Family(
        "slipstream_budget_p95_seconds",
        "gauge",
        "What 95 % stayed within.",
        ("feature", "budget", "window"),
    ),
    Family(
        "slipstream_budget_burn_rate",
        "gauge",
        "Share of requests over budget, divided by the 5 % that may be.",
        ("feature", "budget", "window"),
    ),
    Family("slipstream_budget_alert", "gauge", "1 while a budget burns too fast.", ("feature", "budget")),
    # The process.
    Family("slipstream_event_loop_lag_seconds", "histogram", "How late a timer was.", (), _seconds(-6, 10)),
    Family("slipstream_log_lines_dropped_total", "counter", "Log lines that nobody read in time."),
    Family("slipstream_faults_total", "counter", "Mistakes of the sidecar's own; the log has where."),
    Family("slipstream_workers", "gauge", "Worker processes that serve the port; 1 without --workers."),
    Family(
        "slipstream_worker_restarts_total",
        "counter",
        "Worker processes that took the place of one that ended.",
    ),
    Family(
        "slipstream_memory_used_ratio",
        "gauge",
        "Memory of the process's own, as a share of limits.memory; 0 where it is not watched.",
        across="max",
    ),
    Family(
        "slipstream_memory_level",
        "gauge",
        "1 while memory is short and nothing new is kept, 2 while new requests are refused for it, else 0.",
        across="max",
    ),
    Family("slipstream_ready", "gauge", "1 while requests are served."),
    Family("slipstream_info", "gauge", "Always 1.", ("version",)),
)
"""All of them, in the order in which they are shown."""

BY_NAME = {family.name: family for family in FAMILIES}
