"""What `slipstream report` found, as figures: the object behind the tables, the page and `--json`.

Field names are those of the JSON document, and stable. Durations are milliseconds; a percentile is within 1 %
of a request's; rates are shares from 0 to 1. What there is nothing of is None, as is the name of requests
without one (a model, say), and what came after the first hundred names is `other`.
"""

import msgspec


class Q(msgspec.Struct, frozen=True):
    """Percentiles of one figure, over the requests that have it."""

    count: int
    p50: float | None
    p95: float | None
    p99: float | None
    p99_to_p50: float | None


class Figures(msgspec.Struct, frozen=True):
    """Of requests that have something in common. Gaps are between tokens; each request brings its median
    gap, its p99 and its longest, and the percentiles are over requests."""

    requests: int
    failed: int
    """Neither complete nor cancelled."""
    cancelled: int
    error_rate: float | None
    cancel_rate: float | None
    timeout_rate: float | None
    hit_rate: float | None
    """Of lookups: hits, misses and joined calls. A stored answer that stood in for an error is no hit."""
    ttft_ms: Q
    ttfb_ms: Q
    total_ms: Q
    overhead_ms: Q
    tokens_per_second: Q
    gap_median_ms: Q
    gap_p99_ms: Q
    gap_longest_ms: Q
    input_tokens: int
    output_tokens: int


class Row(msgspec.Struct, frozen=True):
    """Figures under a name."""

    name: str | None
    figures: Figures


class Lines(msgspec.Struct, frozen=True):
    """What was read."""

    read: int
    bytes: int
    requests: int
    damaged: int
    damaged_by: dict[str, int]
    damaged_at: list[str]
    """The first of them, as file:line."""
    dropped: int
    """Never written, because the log's pipe was full."""
    console: int
    other: int
    """Of other programs."""
    events: dict[str, int]
    """The sidecar's other events."""


class Period(msgspec.Struct, frozen=True):
    """From the first request's end to the last one's."""

    since: str
    until: str
    seconds: float


class Failure(msgspec.Struct, frozen=True):
    """Requests that failed in one way."""

    outcome: str
    error: str | None
    upstream: str | None
    status: int | None
    requests: int
    first: str
    last: str


class Exceeded(msgspec.Struct, frozen=True):
    """One budget, and the requests over it."""

    budget: str
    requests: int
    """Of this feature."""
    over: int
    share: float | None
    over_ttft: int
    over_total: int
    worst_ttft_ms: float | None
    """By how much, at worst."""
    worst_total_ms: float | None
    phases: dict[str, int]
    """What took most of the time in them."""


class Phase(msgspec.Struct, frozen=True):
    """A phase of requests, on average."""

    name: str
    span: bool
    """Timed by an app's own code, inside of another phase."""
    middle_ms: float
    slow_ms: float
    middle_share: float
    """Of the whole."""
    slow_share: float


class Comparison(msgspec.Struct, frozen=True):
    """The phases of the slowest twentieth beside those of the fifth in the middle. Cache hits, and clients
    that came back, are left out."""

    requests: int
    middle_requests: int
    slow_requests: int
    slow_from_ms: float | None
    phases: list[Phase]
    """What differs most first."""


class Shown(msgspec.Struct, frozen=True):
    """One request, with its phases in order."""

    timestamp: str
    request_id: str | None
    method: str | None
    path: str | None
    upstream: str | None
    model: str | None
    feature: str | None
    status: int | None
    outcome: str
    error: str | None
    cache: str | None
    ttft_ms: float | None
    total_ms: float
    pieces: list[dict[str, str | float]]
    spans: dict[str, float]


class Slot(msgspec.Struct, frozen=True):
    """A part of the period."""

    start: str
    requests: int
    failed: int
    ttft_ms: Q
    total_ms: Q


class OverTime(msgspec.Struct, frozen=True):
    """The period in equal parts."""

    seconds: int
    """Width of a part."""
    slots: list[Slot]


class Bar(msgspec.Struct, frozen=True):
    """Requests above `over_ms`, up to `up_to_ms`."""

    over_ms: float
    up_to_ms: float
    requests: int


class Finding(msgspec.Struct, frozen=True):
    """What stands out: what was seen, and what to do."""

    kind: str
    seen: str
    advice: str


class Report(msgspec.Struct, frozen=True):
    """All of it."""

    files: list[str]
    lines: Lines
    period: Period
    outcomes: dict[str, int]
    total: Figures
    models: list[Row]
    features: list[Row]
    upstreams: list[Row]
    cache: list[Row]
    """By what the cache did, and of hits by kind."""
    failures: list[Failure]
    budgets: list[Exceeded]
    phases_to_end: Comparison
    phases_to_first_token: Comparison
    slowest: list[Shown]
    latest_first_tokens: list[Shown]
    over_time: OverTime
    ttft_distribution: list[Bar]
    total_distribution: list[Bar]
    retries: int
    resumed: int
    findings: list[Finding] = []
