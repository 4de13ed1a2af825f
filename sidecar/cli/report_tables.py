"""The tables of `slipstream report`, as text in cells: the terminal and the page show the same ones."""

from collections.abc import Iterator, Sequence

import msgspec

from sidecar.cli.cache_words import plain
from sidecar.cli.report_facts import Comparison, Q, Report, Row
from sidecar.cli.report_words import PHASES, clock, many, minute, ms, rate, share, times

GAPS = (
    "Each request's line has its median gap between tokens, its p99 gap and its longest one; the percentiles"
    " here are of these figures, over requests. So the p99 of the longest gaps is what one stream in a"
    " hundred exceeds at least once."
)
HITS = (
    "The hit rate is the share of hits among hits, misses and collapsed requests (which joined another's"
    " call). A stale answer that stood in for an error is no hit."
)
SLOW = (
    "Average times, and their share in the slowest; what is less than 0.1% is left out, and so are cache hits"
    " and clients that came back to a stream. A plus marks spans of an app's own code, inside other phases."
)
SPREAD = (
    "p99/p50: how many times the median the p99 is. Gaps are between tokens: the median over requests of"
    " their median gap, and the p99 over requests of their p99 gap. Tokens/s and overhead are p50 and p99."
)


_LEAST = 0.001


class Table(msgspec.Struct, frozen=True):
    """The first column names things; the others are figures."""

    title: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""
    more: int = 0
    """Rows that are left out."""
    left: tuple[int, ...] = (0,)
    """Columns that are no figures."""


def tables(report: Report, most: int) -> Iterator[Table]:
    """All that have a row, with at most so many of names."""
    yield _outcomes(report)
    for name, rows in (
        ("model", report.models),
        ("feature", report.features),
        ("upstream", report.upstreams),
    ):
        if name != "upstream" or len(rows) > 1:
            yield from _by(name, rows, most)
    yield from _cache(report)
    if report.total.gap_median_ms.count:
        yield _gaps(report)
    yield from _slow(report)
    if report.budgets:
        yield _budgets(report, most)
    if report.failures:
        yield _failures(report, most)


def _of(q: Q) -> tuple[str, str, str]:
    return ms(q.p50), ms(q.p95), ms(q.p99)


def _outcomes(report: Report) -> Table:
    total = report.total.requests
    rows = [(plain(name), f"{count:,}", share(count / total)) for name, count in report.outcomes.items()]
    said = []
    if report.resumed:
        said.append(f"{many(report.resumed, 'request')} came back to a stream.")
    if report.retries:
        said.append(f"{many(report.retries, 'call')} went out a second time, on a new connection.")
    return Table("Outcomes", ("outcome", "requests", "share"), rows, " ".join(said))


def _by(name: str, rows: Sequence[Row], most: int) -> Iterator[Table]:
    shown, more = rows[:most], max(len(rows) - most, 0)
    yield Table(
        f"Waits by {name}",
        (name, "requests", "ttft p50", "p95", "p99", "total p50", "p95", "p99"),
        [
            (
                plain(row.name),
                f"{row.figures.requests:,}",
                *_of(row.figures.ttft_ms),
                *_of(row.figures.total_ms),
            )
            for row in shown
        ],
        more=more,
    )
    yield Table(
        f"Spread and pace by {name}",
        (name, "ttft p99/p50", "total", "gap p50", "p99", "tokens/s", "overhead", "failed"),
        [
            (
                plain(row.name),
                times(row.figures.ttft_ms.p99_to_p50),
                times(row.figures.total_ms.p99_to_p50),
                ms(row.figures.gap_median_ms.p50),
                ms(row.figures.gap_p99_ms.p99),
                rate(row.figures.tokens_per_second.p50),
                ms(row.figures.overhead_ms.p99),
                share(row.figures.error_rate),
            )
            for row in shown
        ],
        SPREAD if name == "model" else "",
        more,
    )


def _cache(report: Report) -> Iterator[Table]:
    total = report.total
    if total.hit_rate is None:
        return
    heads = ("cache", "requests", "share", "ttft p50", "p99", "total p50", "p99")
    rows = [
        (
            plain(row.name),
            f"{row.figures.requests:,}",
            share(row.figures.requests / total.requests),
            ms(row.figures.ttft_ms.p50),
            ms(row.figures.ttft_ms.p99),
            ms(row.figures.total_ms.p50),
            ms(row.figures.total_ms.p99),
        )
        for row in report.cache
    ]
    yield Table(f"Cache: hit rate {share(total.hit_rate)}", heads, rows, HITS)


def _gaps(report: Report) -> Table:
    total = report.total
    named = (
        ("median gap", total.gap_median_ms),
        ("p99 gap", total.gap_p99_ms),
        ("longest gap", total.gap_longest_ms),
    )
    rows = [(name, f"{q.count:,}", *_of(q), times(q.p99_to_p50)) for name, q in named]
    heads = ("of a request", "requests", "p50", "p95", "p99", "p99/p50")
    return Table("Gaps between tokens", heads, rows, GAPS)


def _slow(report: Report) -> Iterator[Table]:
    for what, compared in (
        ("whole request", report.phases_to_end),
        ("wait for the first token", report.phases_to_first_token),
    ):
        if compared.phases:
            yield _phases(what, compared, SLOW if compared is report.phases_to_end else "")


def _phases(what: str, compared: Comparison, note: str) -> Table:
    rows = [
        (
            "+ " + plain(phase.name) if phase.span else PHASES.get(phase.name, plain(phase.name)),
            ms(phase.middle_ms),
            ms(phase.slow_ms),
            share(phase.slow_share),
        )
        for phase in compared.phases
        if max(phase.slow_share, phase.middle_share) >= _LEAST
    ]
    said = (
        f"The {many(compared.slow_requests, 'request')} from {ms(compared.slow_from_ms)} on, beside"
        f" {many(compared.middle_requests, 'request')} around the median."
    )
    heads = ("phase", "middle", "slowest 5%", "share")
    return Table(f"Slow phases of the {what}", heads, rows, f"{said} {note}".strip())


def _budgets(report: Report, most: int) -> Table:
    rows = [
        (
            plain(one.budget),
            f"{one.over:,}",
            share(one.share),
            f"{one.over_ttft:,}",
            ms(one.worst_ttft_ms),
            f"{one.over_total:,}",
            ms(one.worst_total_ms),
            ", ".join(f"{plain(name)} {share(one.phases[name] / one.over)}" for name in [*one.phases][:2]),
        )
        for one in report.budgets[:most]
    ]
    heads = ("feature", "over", "share", "ttft", "at worst", "total", "at worst", "mostly because of")
    said = "Requests over their budget: in all, by time to the first token, by total time, and by how much."
    return Table("Budgets", heads, rows, said, max(len(report.budgets) - most, 0), left=(0, len(heads) - 1))


def _failures(report: Report, most: int) -> Table:
    rows = [
        (
            plain(one.error or one.outcome),
            plain(one.upstream),
            plain(one.status),
            f"{one.requests:,}",
            share(one.requests / report.total.requests),
            minute(one.last),
        )
        for one in report.failures[:most]
    ]
    heads = ("error", "upstream", "status", "requests", "share", "last")
    more = max(len(report.failures) - most, 0)
    return Table("Failures", heads, rows, "A share is of all requests. Times are UTC.", more, left=(0, 1))


def steps(report: Report) -> str:
    """What the slots of the pictures over time are."""
    return f"in steps of {clock(report.over_time.seconds)}"
