"""What the cells of a window mean: of each latency line, what is counted, and what can be read off many."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sidecar.core.gaps import Gaps
from sidecar.core.latency import Aside
from sidecar.telemetry.scale import bucket, quantiles, tally
from sidecar.telemetry.window import MOST, OTHER, Cells, Key, Reading, add_up, merge

METRICS = ("ttft_ms", "ttfb_ms", "gap_ms", "total_ms", "overhead_ms", "tokens_per_second")
"""Of which percentiles are told."""
_COUNTS = (
    "requests",
    "hits",
    "asked",
    "cancelled",
    "streams",
    "broken",
    "timeouts",
    "input_tokens",
    "output_tokens",
    "saved_ms",
    "saved_tokens",
)
_SHIFT = 12
_NUMBER = {name: (len(METRICS) << _SHIFT) + number for number, name in enumerate(_COUNTS)}
_GAP = METRICS.index("gap_ms") << _SHIFT
_DIRECT = [(name, at << _SHIFT) for at, name in enumerate(METRICS) if name != "gap_ms"]
SHARES = (0.5, 0.95, 0.99)
DIMENSIONS = ("upstream", "model", "feature", "cache")


def overflow(key: Key) -> Key:
    """The series that stands for one for which there is no room."""
    upstream, _, _, cache = key
    return (upstream, OTHER, OTHER, cache)


def cells_of(line: Mapping[str, Any], aside: Aside, gaps: Cells) -> Iterator[tuple[int, int]]:
    """What a line adds to its series. `gaps`: as `gaps_of` has them."""
    yield _NUMBER["requests"], 1
    status = line["status"]
    for name, base in _DIRECT:
        value = line[name]
        # 202 is a job: what it takes is another matter. 101 is a WebSocket, which ends when its ends like.
        if value is not None and status != 202 and (status != 101 or name != "total_ms"):
            yield base + bucket(value), 1
    for at, count in gaps.items():
        yield _GAP + at, count
    cache, outcome = line["cache"], line["outcome"]
    if cache in ("hit", "miss", "collapsed"):
        yield _NUMBER["asked"], 1
        if cache == "hit" and line["cache_kind"] != "stale":
            yield _NUMBER["hits"], 1
    if line["stream"] and line["status"] is not None and line["status"] < 300:
        yield _NUMBER["streams"], 1
        if outcome in ("truncated", "upstream_error"):
            yield _NUMBER["broken"], 1
    if outcome == "cancelled":
        yield _NUMBER["cancelled"], 1
    elif outcome == "timeout":
        yield _NUMBER["timeouts"], 1
    tokens = 0
    for name in ("input_tokens", "output_tokens"):
        if line[name]:
            tokens += line[name]
            yield _NUMBER[name], line[name]
    if aside.saved is not None:
        yield _NUMBER["saved_ms"], saved_ms(line, aside)
        yield _NUMBER["saved_tokens"], tokens


def saved_ms(line: Mapping[str, Any], aside: Aside) -> int:
    """What a hit would have taken longer, had it gone upstream as its answer once did."""
    spared: float = (aside.saved or 0.0) * 1000 - line["total_ms"]
    return max(round(spared), 0)


def gaps_of(aside: Aside) -> Cells:
    """The gaps between the tokens of an answer, by bucket of milliseconds."""
    return tally_of(aside.gaps)


def tally_of(gaps: Gaps) -> Cells:
    """The same of any. Not to be changed."""
    kept, weight = gaps.kept
    if not kept:
        return {}
    made = gaps.made
    if made is None or made[:2] != (len(kept), weight):
        made = gaps.made = (len(kept), weight, tally(kept, weight, 1000.0))
    return made[2]


def figures(cells: Mapping[int, int], seconds: float) -> dict[str, Any]:
    """What can be said of a series, or of several that were merged."""
    by_metric: list[Cells] = [{} for _ in METRICS]
    for cell, count in cells.items():
        metric = cell >> _SHIFT
        if metric < len(METRICS):
            by_metric[metric][cell & 0xFFF] = count
    of = {name: cells.get(number, 0) for name, number in _NUMBER.items()}
    found: dict[str, Any] = {
        "requests": of["requests"],
        "per_second": round(of["requests"] / seconds, 3),
    }
    for name, counted in zip(METRICS, by_metric, strict=True):
        found[name] = percentiles(counted)
    return found | {
        "hit_rate": _share(of["hits"], of["asked"]),
        "cancel_rate": _share(of["cancelled"], of["requests"]),
        "stream_error_rate": _share(of["broken"], of["streams"]),
        "timeout_rate": _share(of["timeouts"], of["requests"]),
        "input_tokens": of["input_tokens"],
        "output_tokens": of["output_tokens"],
        "saved_seconds": of["saved_ms"] / 1000,
        "saved_tokens": of["saved_tokens"],
    }


def percentiles(cells: Mapping[int, int]) -> dict[str, float | int | None]:
    """How many, and p50, p95 and p99."""
    told = quantiles(cells, SHARES)
    p50, p95, p99 = [None if value is None else round(value, 3) for value in told]
    return {"count": sum(cells.values()), "p50": p50, "p95": p95, "p99": p99}


def summary(reading: Reading, *, series: bool) -> dict[str, Any]:
    """A whole window, as `/stats` has it. `series`: with every combination."""
    total: Cells = {}
    by: dict[str, dict[str, Cells]] = {name: {} for name in DIMENSIONS}
    for key, cells in reading.series.items():
        merge(total, cells)
        for name, value in zip(DIMENSIONS, key, strict=True):
            merge(by[name].setdefault(value if value is not None else "-", {}), cells)
    seconds = reading.seconds
    found: dict[str, Any] = {"seconds": round(seconds, 1), "total": figures(total, seconds)}
    for name, values in by.items():
        found[name] = {value: figures(values[value], seconds) for value in sorted(values)}
    if series:
        found["series"] = [
            {**dict(zip(DIMENSIONS, key, strict=True)), **figures(cells, seconds)}
            for key, cells in _ordered(reading)
        ]
    return found


def together(readings: Iterable[Reading]) -> Reading:
    """A window of several processes. Where they tell more series apart than one may, the busiest are kept."""
    found = add_up(readings)
    if len(found.series) <= MOST:
        return found
    requests = _NUMBER["requests"]
    by_size = sorted(found.series.items(), key=lambda item: item[1].get(requests, 0), reverse=True)
    kept = dict(by_size[:MOST])
    for key, cells in by_size[MOST:]:
        merge(kept.setdefault(overflow(key), {}), cells)
    return Reading(found.seconds, kept)


def _ordered(reading: Reading) -> Sequence[tuple[Key, Cells]]:
    return sorted(reading.series.items(), key=lambda item: [value or "" for value in item[0]])


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
