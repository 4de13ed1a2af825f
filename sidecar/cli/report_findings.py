"""What to look at first: pure functions from a report's figures to what stands out in them.

Each says what was seen, with figures, and what to do. A threshold stands where it is used, with its reason.
"""

from collections.abc import Callable, Sequence
from statistics import median

from sidecar.cli.cache_words import plain
from sidecar.cli.report_facts import Comparison, Failure, Finding, Report, Row
from sidecar.cli.report_words import PHASES, clock, many, minute, ms, share, times

MOST = 5
"""More than that is no help in deciding what comes first."""
_ENOUGH = 100
"""Requests, from which on a p99 is more than its single worst one."""

_DO: dict[str, str] = {
    "429": "The upstream limits the rate: ask for more, send less at once, or cache more.",
    "401": "The upstream does not take the credentials that clients send: check them.",
    "403": "The upstream does not take the credentials that clients send: check them.",
    "404": "The upstream does not know the path or the model: check what clients ask for.",
    "upstream_timeout": "No answer began within timeouts.connect or timeouts.head: raise it if answers may"
    " take as long, or ask the provider.",
    "upstream_stalled": "Answers went silent for longer than timeouts.stall: raise it if models may pause as"
    " long, or ask the provider.",
    "upstream_unreachable": "The upstream refused connections, has no address, or its certificate is not"
    " good: check its URL, and the network from here.",
    "upstream_incomplete": "Answers end before their end marker: give the request ids to whoever runs the"
    " upstream, or what is between.",
    "upstream_closed": "Connections are closed in mid-answer: give the request ids to whoever runs the"
    " upstream, or what is between.",
    "upstream_protocol": "The upstream's answers are not valid HTTP: check that its URL has the right port.",
    "overloaded": "limits.requests was reached: raise it, or run another sidecar beside this one.",
    "unauthorized": "No client's token came, or one that is in no [[clients]]: give the app its token.",
    "forbidden": "A web page, or a host name, where only apps on this machine may use the upstream's key: add"
    " [[clients]].",
    "rate_limited": "A client reached its limit: raise its `requests` or `rate` in [[clients]].",
    "no_upstream": "No upstream takes the path: add it to [[upstreams]], or correct the client's base URL.",
    "app_failed": "The app raised an exception: its own log says which.",
}
"""By kind of error, or by status."""

_PHASE: dict[str, str] = {
    "read": "Clients send their request bodies slowly: look at the network between them and the sidecar.",
    "lookup": "Looking for stored answers takes long: look at the disk under the data folder.",
    "embed": "Making vectors of questions takes long: semantic.deadline bounds it.",
    "search": "Searching the questions takes long: semantic.deadline bounds it.",
    "connect": "New connections take long: look at DNS and the network between the sidecar and the upstream.",
    "upstream": "The time passes upstream, before the answer's head: compare models and upstreams below.",
    "first_token": "The head comes, and content does not: compare models and upstreams below.",
    "stream": "The answers themselves take long: compare tokens per second and gaps by model below.",
    "body": "The answers' bodies take long: compare the requests listed below.",
    "sidecar": "The time passes in the sidecar itself: look at the CPU and the disk of its machine.",
}


def findings(report: Report) -> list[Finding]:
    """The first five, the most urgent first; none when all is well."""
    found = [finding for look in _LOOKS if (finding := look(report)) is not None]
    return found[:MOST]


def calm(report: Report) -> str:
    """What is said when nothing stands out."""
    said = [f"{share(report.total.error_rate)} of requests failed"]
    for name, q in (("first token", report.total.ttft_ms), ("whole request", report.total.total_ms)):
        if q.p99_to_p50 is not None:
            said.append(f"{name} p99 {ms(q.p99)} is {times(q.p99_to_p50)} p50")
    return f"Nothing stands out: {'; '.join(said)}."


def _faults(report: Report) -> Finding | None:
    count = report.lines.events.get("fault", 0)
    if not count:  # there should be none at all
        return None
    seen = f"The sidecar logged {many(count, 'fault')} of its own."
    return Finding("faults", seen, "Find the lines with event `fault`: each names its type and place.")


def _failures(report: Report) -> Finding | None:
    total = report.total
    # One in a hundred is what users notice; below three it may be chance.
    if (total.error_rate or 0.0) < 0.01 or total.failed < 3:
        return None
    first = report.failures[0]
    seen = (
        f"{total.failed:,} of {many(total.requests, 'request')} failed ({share(total.error_rate)}). Most of"
        f" all ({share(first.requests / total.failed)} of these): {_named(first)}."
    )
    status = str(first.status)
    advice = _DO.get(first.error or "") or _DO.get(status)
    if advice is None and status.startswith("5") and first.outcome == "upstream_error":
        advice = "The upstream itself fails; cache.stale_if_error lets stored answers stand in meanwhile."
    return Finding("failures", seen, advice or "See the table of failures for when and where.")


def _named(failure: Failure) -> str:
    said = [failure.outcome, *([failure.error] if failure.error else [])]
    said += [f"status {failure.status}"] if failure.status is not None else ["no status"]
    where = f" at {plain(failure.upstream)}" if failure.upstream else ""
    return ", ".join(plain(part) for part in said) + where


def _dropped(report: Report) -> Finding | None:
    if not report.lines.dropped:  # each is a request, or more, that these figures do not know
        return None
    seen = f"{many(report.lines.dropped, 'log line')} were never written; the figures lack them."
    return Finding("dropped", seen, "Whatever reads the sidecar's stderr is too slow: write it to a file.")


def _budgets(report: Report) -> Finding | None:
    # Budgets are p95 targets: one request in twenty may be over.
    over = [one for one in report.budgets if (one.share or 0.0) > 0.05 and one.over >= 3]
    if not over:
        return None
    worst = max(over, key=lambda one: one.share or 0.0)
    phase, count = max(worst.phases.items(), key=lambda item: item[1])
    more = f" So are {many(len(over) - 1, 'other feature')}." if len(over) > 1 else ""
    seen = (
        f"Over budget: {worst.over:,} of {many(worst.requests, 'request')} of {plain(worst.budget)}"
        f" ({share(worst.share)}, and a p95 target allows 5%), in {share(count / worst.over)} of them mostly"
        f" because of {PHASES.get(phase, plain(phase))}.{more}"
    )
    return Finding("budgets", seen, _PHASE.get(phase, "Look at what that part of the app does."))


def _tail(report: Report) -> Finding | None:
    total = report.total
    streams = total.ttft_ms.count >= _ENOUGH
    q = total.ttft_ms if streams else total.total_ms
    # Of a log-normal with the spread that providers show, p99 is three to four times p50.
    if q.count < _ENOUGH or (q.p99_to_p50 or 0.0) < 5:
        return None
    what = "the first token" if streams else "the end"
    seen = f"The wait for {what} has a long tail: p99 {ms(q.p99)} is {times(q.p99_to_p50)} p50 ({ms(q.p50)})."
    compared = report.phases_to_first_token if streams else report.phases_to_end
    said, advice = _difference(compared)
    return Finding("tail", f"{seen}{said}", advice)


def _difference(compared: Comparison) -> tuple[str, str]:
    phases = [phase for phase in compared.phases if not phase.span]
    if not phases or phases[0].slow_ms <= phases[0].middle_ms:
        return "", "Look at the slowest requests below."
    first = phases[0]
    said = (
        f" In the slowest 5%, {PHASES.get(first.name, first.name)} takes {ms(first.slow_ms)} on average,"
        f" against {ms(first.middle_ms)} in the middle."
    )
    return said, _PHASE[first.name]


def _slow_times(report: Report) -> Finding | None:
    streams = report.total.ttft_ms.count >= _ENOUGH
    known = [
        (q.p95 or 0.0, slot)
        for slot in report.over_time.slots
        if (q := slot.ttft_ms if streams else slot.total_ms).count >= 50
    ]
    usual = median([p95 for p95, _ in known]) if known else 0.0
    # Twice the p95 of other times, of fifty requests or more, is no chance.
    slow = [(p95, slot) for p95, slot in known if usual and p95 >= 2 * usual]
    if not slow:
        return None
    p95, slot = max(slow, key=lambda item: item[0])
    what = "to the first token" if streams else "of the whole request"
    when = f"in the {clock(report.over_time.seconds)} from {minute(slot.start)} UTC"
    seen = (
        f"Some times are slower: {when} the p95 {what} was {ms(p95)}, and usually it is {ms(usual)}."
        f" So it was in {len(slow)} of {many(len(known), 'such step')}."
    )
    return Finding("slow_times", seen, "See what happened then: deployments, load, the provider's status.")


def _slow_model(report: Report) -> Finding | None:
    known = [row for row in report.models if row.name is not None and row.figures.ttft_ms.count >= _ENOUGH]
    # Three times the others is more than models of one kind differ.
    found: list[tuple[float, float, Row]] = []
    for row in known:
        others = [other.figures.ttft_ms.p95 or 0.0 for other in known if other is not row]
        p95, usual = row.figures.ttft_ms.p95 or 0.0, median(others) if others else 0.0
        if usual and p95 >= 3 * usual:
            found.append((p95 / usual, usual, row))
    if not found:
        return None
    _, usual, row = max(found, key=lambda item: item[0])
    seen = (
        f"{plain(row.name)} is slow to begin: p95 to the first token is {ms(row.figures.ttft_ms.p95)}, and"
        f" the median of the other models' is {ms(usual)}."
    )
    return Finding("slow_model", seen, "Where a quick beginning matters, see whether another model will do.")


def _stalls(report: Report) -> Finding | None:
    longest, usual = report.total.gap_longest_ms, report.total.gap_median_ms.p50 or 0.0
    # Two seconds are seen as a stop, unless the stream is as slow all the time.
    if longest.count < _ENOUGH or (longest.p99 or 0.0) < max(2000, 20 * usual):
        return None
    seen = (
        f"Streams stop in between: in one of a hundred the longest gap was {ms(longest.p99)} or more; the"
        f" median gap is {ms(usual)}."
    )
    return Finding("stalls", seen, "Compare the gaps by model and upstream below; keepalives cover them.")


def _overhead(report: Report) -> Finding | None:
    q = report.total.overhead_ms
    # It should be about a millisecond, also under load.
    if q.count < _ENOUGH or (q.p99 or 0.0) < 20:
        return None
    seen = f"The sidecar itself adds {ms(q.p99)} at p99 ({ms(q.p50)} at p50)."
    return Finding(
        "overhead", seen, "Look at the CPU of its machine, and at how many streams it has at once."
    )


def _cancelled(report: Report) -> Finding | None:
    total = report.total
    # Some always leave; one in ten is a habit.
    if (total.cancel_rate or 0.0) < 0.1 or total.cancelled < 10:
        return None
    seen = f"Clients left before the end in {total.cancelled:,} requests ({share(total.cancel_rate)})."
    return Finding("cancelled", seen, "Compare their timeouts with the percentiles below.")


def _cache(report: Report) -> Finding | None:
    asked = sum(row.figures.requests for row in report.cache if row.name in ("miss", "collapsed"))
    # Fewer than one in twenty, of enough to have met again.
    if asked < 1000 or (report.total.hit_rate or 0.0) >= 0.05:
        return None
    seen = f"The cache answered {share(report.total.hit_rate)} of what was looked up."
    return Finding(
        "cache", seen, "`slipstream cache stats` says why answers are not stored, and what was asked."
    )


def _damaged(report: Report) -> Finding | None:
    # A few are cut off by rotation or a crash; one in a hundred is something else.
    if report.lines.damaged * 100 < report.lines.read:
        return None
    seen = f"{report.lines.damaged:,} of {many(report.lines.read, 'line')} are damaged."
    return Finding("damaged", seen, "See that only one program writes to the log, and that it is not cut.")


def _few(report: Report) -> Finding | None:
    if report.total.requests >= _ENOUGH:
        return None
    seen = f"There are {many(report.total.requests, 'request')}: p95 and p99 are a few single ones."
    return Finding("few", seen, "Read a longer log before deciding by them.")


_LOOKS: Sequence[Callable[[Report], Finding | None]] = (
    _faults,
    _failures,
    _dropped,
    _budgets,
    _tail,
    _slow_times,
    _slow_model,
    _stalls,
    _overhead,
    _cancelled,
    _cache,
    _damaged,
    _few,
)
"""The most urgent first."""
