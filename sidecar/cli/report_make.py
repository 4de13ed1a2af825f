"""From what `slipstream report` counted to the figures that it tells."""

from collections.abc import Iterator, Mapping

import msgspec

from sidecar.cli.report_facts import (
    Bar,
    Comparison,
    Exceeded,
    Failure,
    Figures,
    Lines,
    OverTime,
    Period,
    Phase,
    Q,
    Report,
    Row,
    Shown,
    Slot,
)
from sidecar.cli.report_lines import Log, moment
from sidecar.cli.report_read import Reader
from sidecar.cli.report_sums import AT, Cells, Group, Phases, Sums
from sidecar.cli.report_worst import Kept
from sidecar.telemetry.scale import bound, bucket, quantiles

_SLOW, _MIDDLE = 0.95, (0.4, 0.6)
"""Shares of requests: the slowest begin at the one, the middle is between the others."""
_BARS = 60
_GROUPINGS = (1, 2, 3, 5, 7, 10, 14, 20, 35, 70)
"""How many steps of the scale a bar of a distribution may be wide; 35 is a doubling, 70 is enough for all."""


def report(sums: Sums, log: Log, reader: Reader, files: list[str]) -> Report:
    """The figures of what was read, without findings. There has to be a request."""
    assert sums.since is not None and sums.until is not None
    sums.merge()
    by = {name: [*_rows(named.groups)] for name, named in sums.by.items()}
    features = {row.name: row.figures.requests for row in by["feature"]}
    return Report(
        files=files,
        lines=_lines(log, reader),
        period=Period(moment(sums.since), moment(sums.until), round(sums.until - sums.since, 3)),
        outcomes=dict(sums.outcomes.most_common()),
        total=_figures(sums.total),
        models=by["model"],
        features=by["feature"],
        upstreams=by["upstream"],
        cache=by["cache"],
        failures=[*_failures(sums)],
        budgets=[*_budgets(sums, features)],
        phases_to_end=_compared(sums.to_end),
        phases_to_first_token=_compared(sums.to_first),
        slowest=[_shown(kept) for kept in sums.slowest],
        latest_first_tokens=[_shown(kept) for kept in sums.latest],
        over_time=_over_time(sums),
        ttft_distribution=distribution(sums.total.metric("ttft_ms")),
        total_distribution=distribution(sums.total.metric("total_ms")),
        retries=sums.retries,
        resumed=sums.resumed,
    )


def percentiles(cells: Cells) -> Q:
    """Five digits of each are more than the scale is worth."""
    p50, p95, p99 = [_digits(value) for value in quantiles(cells, (0.5, 0.95, 0.99))]
    ratio = round(p99 / p50, 2) if p50 and p99 is not None else None
    return Q(sum(cells.values()), p50, p95, p99, ratio)


def distribution(cells: Cells) -> list[Bar]:
    """At most sixty bars, each as much wider than the one before."""
    if not cells:
        return []
    first, last = min(cells), max(cells)
    step = next((step for step in _GROUPINGS if last // step - first // step < _BARS), _GROUPINGS[-1])
    counts: dict[int, int] = {}
    for at, number in cells.items():
        # The last bucket of a bar is a multiple, so that bars of 5, 7 or 35 end at doublings.
        counts[-(-at // step)] = counts.get(-(-at // step), 0) + number
    return [
        Bar(_edge((at - 1) * step), _edge(at * step), counts.get(at, 0))
        for at in range(min(counts), max(counts) + 1)
    ]


def _edge(at: int) -> float:
    return float(f"{bound(at):.5g}") if at >= 0 else 0.0


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None


def _figures(group: Group) -> Figures:
    requests, asked, failed = group.count("requests"), group.count("asked"), group.count("failed")

    def of(name: str) -> Q:
        return percentiles(group.metric(name))

    return Figures(
        requests=requests,
        failed=failed,
        cancelled=group.count("cancelled"),
        error_rate=_share(failed, requests),
        cancel_rate=_share(group.count("cancelled"), requests),
        timeout_rate=_share(group.count("timeouts"), requests),
        hit_rate=_share(group.count("hits"), asked),
        ttft_ms=of("ttft_ms"),
        ttfb_ms=of("ttfb_ms"),
        total_ms=of("total_ms"),
        overhead_ms=of("overhead_ms"),
        tokens_per_second=of("tokens_per_second"),
        gap_median_ms=of("itl_p50_ms"),
        gap_p99_ms=of("itl_p99_ms"),
        gap_longest_ms=of("itl_max_ms"),
        input_tokens=group.input_tokens,
        output_tokens=group.output_tokens,
    )


def _rows(groups: Mapping[str | None, Group]) -> Iterator[Row]:
    for name, group in sorted(groups.items(), key=lambda item: -item[1].count("requests")):
        yield Row(name, _figures(group))


def _lines(log: Log, reader: Reader) -> Lines:
    return Lines(
        read=log.lines,
        bytes=reader.bytes,
        requests=log.requests,
        damaged=sum(log.damaged.values()),
        damaged_by=dict(log.damaged.most_common()),
        damaged_at=[f"{name}:{number}" for name, number in log.places],
        dropped=log.dropped,
        console=log.console,
        other=log.others,
        events=dict(log.events.most_common()),
    )


def _failures(sums: Sums) -> Iterator[Failure]:
    for key, bad in sorted(sums.errors.items(), key=lambda item: -item[1].requests):
        yield Failure(*key, bad.requests, moment(bad.first), moment(bad.last))


def _budgets(sums: Sums, features: Mapping[str | None, int]) -> Iterator[Exceeded]:
    for name, over in sorted(sums.over.items(), key=lambda item: -item[1].requests):
        requests = max(features.get(name, 0), over.requests)
        yield Exceeded(
            budget=name,
            requests=requests,
            over=over.requests,
            share=_share(over.requests, requests),
            over_ttft=over.ttft,
            over_total=over.total,
            worst_ttft_ms=over.ttft_worst if over.ttft else None,
            worst_total_ms=over.total_worst if over.total else None,
            phases=dict(over.phases.most_common()),
        )


def _compared(phases: Phases) -> Comparison:
    total = sum(phases.requests.values())
    low, high, slow = (
        None if value is None else bucket(value) for value in quantiles(phases.requests, (*_MIDDLE, _SLOW))
    )
    if low is None or high is None or slow is None:
        return Comparison(0, 0, 0, None, [])
    middle, middle_count = _mean(phases, low, high)
    slowest, slow_count = _mean(phases, slow, max(phases.requests))
    rows = [
        Phase(
            name.strip(),
            name.startswith(" "),
            round(middle.get(name, 0.0), 3),
            round(slowest.get(name, 0.0), 3),
            _share_of(middle, name),
            _share_of(slowest, name),
        )
        for name in {**middle, **slowest}
    ]
    rows.sort(key=lambda row: (row.span, row.middle_ms - row.slow_ms))
    edge = _digits(bound(slow - 1)) if slow else 0.0
    return Comparison(total, middle_count, slow_count, edge, rows)


def _share_of(means: Mapping[str, float], name: str) -> float:
    # Spans lie inside of the others.
    whole = sum(ms for other, ms in means.items() if not other.startswith(" "))
    return _share(means.get(name, 0.0), whole) or 0.0


def _mean(phases: Phases, first: int, last: int) -> tuple[dict[str, float], int]:
    """Average milliseconds of the phases of requests in these buckets, and how many those are."""
    inside = [at for at in phases.requests if first <= at <= last]
    count = sum(phases.requests[at] for at in inside)
    sums: dict[str, float] = {}
    for at in inside:
        for name, ms in phases.took[at].items():
            sums[name] = sums.get(name, 0.0) + ms
    return {name: ms / count for name, ms in sums.items()}, count


def _shown(kept: Kept) -> Shown:
    fields = msgspec.structs.asdict(kept)
    fields["timestamp"] = moment(kept.timestamp)
    fields["pieces"] = [msgspec.structs.asdict(piece) for piece in kept.pieces]
    return Shown(**fields)


def _over_time(sums: Sums) -> OverTime:
    slots = []
    for start, cells in sums.slots.shown():
        group = Group()
        group.cells = cells
        slots.append(
            Slot(
                moment(start),
                cells.get(AT["requests"], 0),
                group.count("failed"),
                percentiles(group.metric("ttft_ms")),
                percentiles(group.metric("total_ms")),
            )
        )
    return OverTime(sums.slots.width, slots)
