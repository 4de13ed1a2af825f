"""What `slipstream tune` says, on the terminal as on the page: shares, titles, the suggestion in words."""

import json
import time

from sidecar.cli.cache_words import plain
from sidecar.cli.tune_read import Filter, Found
from sidecar.cli.tune_sample import Group, Kind, Sample
from sidecar.core.semantic.curve import Point, Rate, Refusal, Suggestion

HEADS: dict[Kind, str] = {
    "pairs": "Labelled pairs",
    "shadow": "Requests, looked up and not served",
    "verify": "Hits, served and checked",
}
HIT: dict[Kind, str] = {"pairs": "true pairs hit", "shadow": "requests hit", "verify": "hits kept"}
"""The one rate: what the cache is good for."""
FALSE: dict[Kind, str] = {"pairs": "false pairs hit", "shadow": "hits false", "verify": "hits false"}
"""The other one: what it costs. A threshold is chosen by it."""
THIRD: dict[Kind, str] = {"pairs": "hits false", "shadow": "hits compared", "verify": "hits compared"}
MEANING: dict[Kind, str] = {
    "pairs": (
        "True pairs hit: of the pairs that one answer serves, those that would get it from the cache."
        " False pairs hit: of the others, those that would get a wrong answer."
        " Hits false: the wrong ones among all hits, which follows from how many false pairs the file has."
    ),
    "shadow": (
        "Requests hit: of all that were looked up, those that would be answered from the cache."
        " Hits false: of those, the ones to which the upstream said something else."
        " Hits compared: how many hits that is known of."
    ),
    "verify": (
        "Hits kept: of the hits that were served and checked, those that would remain."
        " Hits false: of those, the ones to which the upstream said something else."
        " Hits compared: how many hits that is known of."
    ),
}
INTERVAL = "In brackets: where the true share lies with 95% confidence."
_TOPS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
_PRECISE = 0.1
"""Smaller shares are told with two digits after the point."""


def percent(share: float) -> str:
    """A share for people."""
    return f"{share:.2%}" if 0 < share < _PRECISE else f"{share:.0%}" if share in (0, 1) else f"{share:.1%}"


def shown(threshold: float) -> str:
    """A threshold, with two digits or more."""
    return f"{threshold:.2f}" if round(threshold, 2) == threshold else f"{threshold:.12g}"


def round_percent(share: float) -> str:
    """A share that somebody chose."""
    return f"{share * 100:.6g}%"


def cell(rate: Rate) -> str:
    """A rate with its interval."""
    if rate.share is None:
        return "-"
    return f"{percent(rate.share)} ({percent(rate.low)}-{percent(rate.high)})"


def cells(sample: Sample, point: Point) -> tuple[str, str, str, str]:
    """One row: threshold, and what is under HIT, FALSE and THIRD."""
    pairs = sample.kind == "pairs"
    third = cell(point.share_of_hits_false) if pairs else f"{point.share_of_hits_false.total:,}"
    return shown(point.threshold), cell(point.hit_rate), cell(sample.rate(point)), third


def group(row: Group) -> tuple[str, str, str, str, str, str]:
    """One row: name, how many, threshold, what is under HIT and FALSE, and what is suggested."""
    sample, point = row.sample, suggested(row.sample)
    now = sample.at(sample.configured)
    return (
        plain(row.name),
        f"{sample.counts.every:,}",
        shown(sample.configured),
        cell(now.hit_rate) if now else "-",
        cell(sample.rate(now)) if now else "-",
        shown(point.threshold) if point else "-",
    )


def reach(sample: Sample) -> float:
    """The share at which a picture of both rates ends."""
    rates = [rate for point in sample.points for rate in (point.hit_rate, sample.rate(point))]
    highest = max((rate.share or 0.0 for rate in rates), default=0.0)
    return next((top for top in _TOPS if highest <= top), 1.0)


def mark(sample: Sample, point: Point) -> str:
    """What the threshold is, beside one of many."""
    chosen = suggested(sample)
    marks = [("configured", sample.configured), ("suggested", chosen.threshold if chosen else None)]
    return ", ".join(name for name, threshold in marks if threshold == point.threshold)


def suggested(sample: Sample) -> Point | None:
    """The point that is suggested."""
    return sample.result.point if isinstance(sample.result, Suggestion) else None


def title(sample: Sample, found: Found) -> str:
    """What the figures are of."""
    counts = sample.counts
    if sample.kind == "pairs":
        return f"{counts.every:,} labelled pairs: {counts.right:,} true, {counts.wrong:,} false"
    what = "requests, looked up and not served" if sample.kind == "shadow" else "hits, served and checked"
    parts = [f"{counts.every:,} {what}{_between(found)}"]
    if counts.alone:
        parts.append(f"{counts.alone:,} had no candidate")
    if counts.unknown:
        parts.append(f"of {counts.unknown:,} the answers could not be compared")
    if counts.every > counts.different:
        parts.append(f"{counts.every - counts.different:,} repeat others, and make no interval smaller")
    return "; ".join(parts)


def _between(found: Found) -> str:
    if found.since is None or found.until is None:
        return ""
    since, until = (time.strftime("%Y-%m-%d", time.localtime(at)) for at in (found.since, found.until))
    return f", {since}" if since == until else f", {since} to {until}"


def setting(wanted: Filter, threshold: float) -> str:
    """The line to write into the configuration."""
    value = shown(threshold)
    if wanted.namespace is not None:
        return f"semantic.namespaces.{_key(wanted.namespace)} = {value}"
    if wanted.path is not None:
        return f"semantic.paths.{_key(wanted.path)} = {value}"
    if wanted.upstream is not None:
        return f"threshold = {value}  # below [[upstreams]], at name = {_key(wanted.upstream)}"
    return f"semantic.threshold = {value}"


def _key(name: str) -> str:
    return plain(json.dumps(name, ensure_ascii=False))


def reasons(sample: Sample, want: float) -> str:
    """Why this threshold, or why none; in sentences."""
    result = sample.result
    if isinstance(result, Suggestion):
        at = _at(sample, result.point)
        return f"{at[0].upper()}{at[1:]} {_gain(sample, result.point)} It holds for what is like these."
    return f"No suggestion: {_refusal(sample, result, want)}"


def _refusal(sample: Sample, result: Refusal, want: float) -> str:
    wanted = f"{round_percent(want)} or less"
    takes = f"it takes at least {_things(sample, result.needed)}, and more if any of them is wrong."
    nearest = result.nearest
    if nearest is None:
        most = max((sample.rate(point).total for point in sample.points), default=0)
        return f"there are {_things(sample, most)}. To show that {wanted} are wrong, {takes}"
    there = _at(sample, nearest)
    if result.reason == "too_false":
        return f"there is no threshold at which {wanted} are wrong. Nearest to it, {there}"
    if result.reason == "no_hits":
        return (
            f"{wanted} are wrong only where nothing hits, or where there is no data. Nearest to it, {there}"
        )
    enough = sample.rate(nearest).different >= result.needed
    more = "More data might show it." if enough else f"To show it, {takes}"
    return f"this is too little to show that {wanted} are wrong. Nearest to it, {there} {more}"


def _at(sample: Sample, point: Point) -> str:
    rate = sample.rate(point)
    how = "hit" if sample.kind == "pairs" else "are false"
    share = f"{percent(rate.share or 0.0)}, and with 95% confidence not more than {percent(rate.high)}"
    return f"at {shown(point.threshold)}, {rate.count:,} of {_things(sample, rate.total)} {how}: {share}."


def _gain(sample: Sample, point: Point) -> str:
    what = {"pairs": "of the true pairs hit", "shadow": "of requests hit", "verify": "of these hits remain"}
    said = f"{percent(point.hit_rate.share or 0.0)} {what[sample.kind]}"
    now = sample.at(sample.configured)
    if now is None or now is point:
        return f"{said}."
    return f"{said}; at {shown(sample.configured)}, as configured, {percent(now.hit_rate.share or 0.0)}."


def _things(sample: Sample, count: int) -> str:
    one, more = ("false pair", "false pairs") if sample.kind == "pairs" else ("compared hit", "compared hits")
    return f"{count:,} {one if count == 1 else more}"
