"""How `slipstream report` writes figures, on the terminal as on the page."""

from html import escape

from sidecar.cli.cache_words import plain, size
from sidecar.cli.report_facts import Report, Shown
from sidecar.cli.report_lines import DAMAGE, Damage

PHASES = {
    "read": "reading the request",
    "lookup": "looking for a stored answer",
    "embed": "making the question's vector",
    "search": "searching the questions",
    "connect": "connecting",
    "upstream": "waiting for the upstream's head",
    "first_token": "waiting for the first token after the head",
    "stream": "the stream after its first token",
    "body": "the answer's body",
    "sidecar": "the sidecar itself",
}
_CLOCK = ((604800, "week"), (86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def ms(value: float | None) -> str:
    """Milliseconds, in three digits or so."""
    if value is None:
        return "-"
    if value >= 99_950:
        return f"{value / 1000:,.0f}s"
    if value >= 9_995:
        return f"{value / 1000:.1f}s"
    if value >= 999.5:
        return f"{value / 1000:.2f}s"
    return f"{value:.0f}ms" if value >= 9.95 else f"{value:.2g}ms"


def share(value: float | None) -> str:
    """A share, as per cent."""
    if value is None:
        return "-"
    if 0 < value < 0.00995:
        return f"{value * 100:.2g}%"
    return f"{value:.0%}" if value in (0, 1) else f"{value:.1%}"


def times(value: float | None) -> str:
    """How many times as much."""
    return "-" if value is None else f"{value:.1f}x"


def rate(value: float | None) -> str:
    """Tokens per second."""
    return "-" if value is None else f"{value:,.0f}" if value >= 9.95 else f"{value:.2g}"


def many(count: int, thing: str) -> str:
    """So many of them."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def clock(seconds: float) -> str:
    """A length of time in its largest unit."""
    for unit, name in _CLOCK:
        if seconds >= unit:
            number = round(seconds / unit, 1)
            return f"{number:g} {name}{'' if number == 1 else 's'}"
    return f"{seconds * 1000:.0f} ms"


def markup(said: str) -> str:
    """As text of the page: escaped, and without what XML cannot have."""
    return escape("".join(char if char.isprintable() else "?" for char in said))


def minute(at: str) -> str:
    """A moment without its seconds."""
    return at[:16].replace("T", " ")


def subject(report: Report) -> str:
    """What the report is of."""
    period = report.period
    since, until = minute(period.since), minute(period.until)
    count = many(report.total.requests, "request")
    if period.seconds < 1:
        return f"{count}, {since} UTC"
    return f"{count} in {clock(period.seconds)}, from {since} to {until} UTC"


def sources(report: Report) -> list[str]:
    """What was read, and what could not be; sentences."""
    lines = report.lines
    names = ", ".join(plain(name) for name in report.files[:3])
    more = f" and {len(report.files) - 3:,} more" if len(report.files) > 3 else ""
    said = [f"Read {size(lines.bytes)}, {many(lines.read, 'line')}, from {names}{more}."]
    if lines.damaged:
        kinds: dict[Damage, int] = {how: lines.damaged_by[how] for how in DAMAGE if how in lines.damaged_by}
        which = "; ".join(f"{count:,} {DAMAGE[how]}" for how, count in kinds.items())
        first = ", ".join(plain(place) for place in lines.damaged_at)
        is_are = "is" if lines.damaged == 1 else "are"
        said.append(
            f"{many(lines.damaged, 'line')} {is_are} damaged and left out: {which}. The first: {first}."
        )
    if lines.console:
        is_are = "is" if lines.console == 1 else "are"
        said.append(
            f"{many(lines.console, 'line')} {is_are} for people and cannot be read: have the sidecar write"
            " JSON (--log-format json)."
        )
    events = [f"{count:,} {plain(name)}" for name, count in lines.events.items()]
    if lines.other:
        events.append(f"{lines.other:,} of other programs")
    if events:
        said.append(f"Other lines: {', '.join(events[:8])}.")
    return said


def about(shown: Shown) -> str:
    """One request in a line."""
    said = [f"{plain(shown.method)} {plain(shown.path)}", plain(shown.model)]
    if shown.status is not None:
        said.append(str(shown.status))
    said.append(plain(shown.outcome) + (f" ({plain(shown.error)})" if shown.error else ""))
    return ", ".join(said)


def marks(shown: Shown) -> str:
    """How to find it again."""
    said = [plain(shown.request_id), minute(shown.timestamp) + shown.timestamp[16:]]
    said += [
        f"upstream {plain(shown.upstream)}",
        f"feature {plain(shown.feature)}",
        f"cache {plain(shown.cache)}",
    ]
    return ", ".join(said)
