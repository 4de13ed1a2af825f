"""The charts of the page that `slipstream report --html` writes, as SVG; told apart without colours, too.

All of them have a logarithmic scale for times: p50 and p99 are seldom of one size.
"""

import math
from collections.abc import Iterator, Sequence

import msgspec

from sidecar.cli.cache_words import plain
from sidecar.cli.report_facts import Bar, Q, Row, Shown, Slot
from sidecar.cli.report_words import PHASES, markup, minute, ms

_WIDTH = 760
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 68, 16, 40
_HEIGHT = 260
_LINE = 22
"""From one row of a chart with names to the next."""
_NAMES = 200
"""Room for names."""
_TICKS = (1, 2, 5)
_LEAST = 0.005
"""Share of a request below which a phase is not drawn."""
SERIES = ("p50", "p95", "p99")


class Scale(msgspec.Struct, frozen=True):
    """From durations to places, logarithmic."""

    low: float
    high: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        part = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return round(self.first + part * (self.last - self.first), 1)

    def ticks(self) -> list[float]:
        """Round durations, not more than are worth a line."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        found = [digit * 10.0**power for power in powers for digit in _TICKS]
        inside = [tick for tick in found if self.low <= tick <= self.high]
        return inside if len(inside) <= 8 else [tick for tick in inside if f"{tick:e}".startswith("1.0")]


def scale(values: Sequence[float], first: float, last: float) -> Scale:
    """One on which all of them have a place, and some room."""
    known = [value for value in values if value > 0]
    low, high = (min(known) / 1.15, max(known) * 1.15) if known else (1.0, 10.0)
    return Scale(low, high, first, last)


def text(x: float, y: float, said: str, anchor: str = "middle", kind: str = "") -> str:
    """A label."""
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{round(x, 1)}" y="{round(y, 1)}" text-anchor="{anchor}">{markup(said)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> str:
    """A straight one."""
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def picture(name: str, title: str, said: str, height: float, parts: Iterator[str]) -> str:
    """The whole of one. `name` makes its ids differ from those of others on the page."""
    ids, box = f"{name}-title {name}-desc", f"0 0 {_WIDTH} {round(height)}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" role="img" aria-labelledby="{ids}">',
            f'<title id="{name}-title">{markup(title)}</title>',
            f'<desc id="{name}-desc">{markup(said)}</desc>',
            *parts,
            "</svg>",
        ]
    )


def over_time(name: str, title: str, slots: Sequence[Slot], figures: Sequence[Q]) -> str:
    """p50, p95 and p99 of each slot."""
    most = max(figures, key=lambda q: q.p99 or 0.0)
    at = slots[[*figures].index(most)].start
    said = f"p99 is highest, {ms(most.p99)}, in the step that begins at {minute(at)} UTC."
    return picture(name, title, said, _HEIGHT, _lines(slots, figures))


def _lines(slots: Sequence[Slot], figures: Sequence[Q]) -> Iterator[str]:
    bottom = _HEIGHT - _BOTTOM
    known = [value for q in figures for value in (q.p50, q.p95, q.p99) if value is not None]
    y = scale(known, bottom, _TOP)
    step = (_WIDTH - _LEFT - _RIGHT) / len(slots)
    for tick in y.ticks():
        yield line(_LEFT, y(tick), _WIDTH - _RIGHT, y(tick))
        yield text(_LEFT - 8, y(tick) + 4, ms(tick), "end")
    yield from _clock(slots, step, bottom)
    ends: list[float] = []
    for series in SERIES:
        values: list[float | None] = [getattr(q, series) for q in figures]
        spots = [
            (round(_LEFT + (at + 0.5) * step, 1), y(value))
            for at, value in enumerate(values)
            if value is not None
        ]
        if not spots:
            continue
        yield f'<polyline class="line {series}" points="{" ".join(f"{a},{b}" for a, b in spots)}"/>'
        if len(spots) == 1:
            yield f'<circle class="dot {series}" cx="{spots[0][0]}" cy="{spots[0][1]}" r="4"/>'
        end = min([spots[-1][1], *(other - 15 for other in ends if abs(other - spots[-1][1]) < 15)])
        ends.append(end)
        yield text(_WIDTH - _RIGHT + 6, end + 4, series, "start", series)


def _clock(slots: Sequence[Slot], step: float, bottom: float) -> Iterator[str]:
    """When the slots are, below them: a few of them."""
    days = len({slot.start[:10] for slot in slots}) > 1
    every = max(1, math.ceil(len(slots) / (5 if days else 8)))
    for at in range(0, len(slots), every):
        x = round(_LEFT + at * step, 1)
        yield line(x, bottom, x, bottom + 5)
        start = slots[at].start
        yield text(x, bottom + 19, minute(start)[5:] if days else start[11:19].removesuffix(":00"))
    yield text(_WIDTH - _RIGHT, bottom + 36, "UTC", "end")


def counts_over_time(name: str, title: str, slots: Sequence[Slot]) -> str:
    """Requests of each slot, and those that failed."""
    requests, failed = sum(slot.requests for slot in slots), sum(slot.failed for slot in slots)
    most = max(slot.failed for slot in slots)
    said = f"{requests:,} requests, of which {failed:,} failed; at most {most:,} in one step."
    return picture(name, title, said, _HEIGHT, _counts(slots))


def _counts(slots: Sequence[Slot]) -> Iterator[str]:
    step = (_WIDTH - _LEFT - _RIGHT) / len(slots)
    middle, bottom = _TOP + (_HEIGHT - _TOP - _BOTTOM) * 0.55, _HEIGHT - _BOTTOM
    for label, top, floor, values in (
        ("requests", _TOP, middle, [slot.requests for slot in slots]),
        ("failed", middle + 24, bottom, [slot.failed for slot in slots]),
    ):
        most = max(values)
        yield text(_LEFT - 8, top + 10, f"{most:,}", "end")
        yield text(_LEFT - 8, floor, "0", "end")
        yield text(_WIDTH - _RIGHT + 6, floor, label, "start", f"name {label}")
        yield line(_LEFT, floor, _WIDTH - _RIGHT, floor)
        for at, value in enumerate(values):
            if value:
                height = max((floor - top) * value / most, 1.0)
                yield _bar(label, _LEFT + at * step, floor - height, max(step - 1, 1), height)
    yield from _clock(slots, step, bottom)


def _bar(kind: str, x: float, y: float, width: float, height: float) -> str:
    size = f'width="{round(width, 1)}" height="{round(height, 1)}"'
    return f'<rect class="bar {kind}" x="{round(x, 1)}" y="{round(y, 1)}" {size}/>'


def distribution(name: str, title: str, bars: Sequence[Bar], q: Q) -> str:
    """How many requests took how long, with the percentiles."""
    said = f"Half of {q.count:,} took up to {ms(q.p50)}, 95% up to {ms(q.p95)}, 99% up to {ms(q.p99)}."
    return picture(name, title, said, _HEIGHT, _bars(bars, q))


def _bars(bars: Sequence[Bar], q: Q) -> Iterator[str]:
    top, bottom = _TOP + 20, _HEIGHT - _BOTTOM
    x = Scale(max(bars[0].over_ms, bars[0].up_to_ms / 2), bars[-1].up_to_ms, _LEFT, _WIDTH - _RIGHT)
    most = max(bar.requests for bar in bars)
    yield text(_LEFT - 8, top + 8, f"{most:,}", "end")
    yield text(_LEFT - 8, bottom, "0", "end")
    yield line(_LEFT, bottom, _WIDTH - _RIGHT, bottom)
    for bar in bars:
        if bar.requests:
            first, height = x(bar.over_ms), max((bottom - top) * bar.requests / most, 1.0)
            width = max(x(bar.up_to_ms) - first - 1, 1)
            yield _bar("requests", first, bottom - height, width, height)
    for tick in x.ticks():
        yield line(x(tick), bottom, x(tick), bottom + 5)
        yield text(x(tick), bottom + 19, ms(tick))
    for series in SERIES:
        value: float | None = getattr(q, series)
        if value is not None:
            yield line(x(value), _TOP + 6, x(value), bottom, f"mark {series}")
            yield text(x(value), _TOP + 2, series, "middle", series)


def by_name(name: str, title: str, rows: Sequence[Row]) -> str:
    """First-token percentiles of each name on one line."""
    slow = max(rows, key=lambda row: row.figures.ttft_ms.p99 or 0.0)
    p99 = ms(slow.figures.ttft_ms.p99)
    said = f"The highest p99 is {p99}, of {plain(slow.name)}. The table has all figures."
    height = _TOP + _LINE * len(rows) + _BOTTOM
    return picture(name, title, said, height, _ranges(rows, height))


def _ranges(rows: Sequence[Row], height: float) -> Iterator[str]:
    figures = [row.figures.ttft_ms for row in rows]
    x = scale([value for q in figures for value in (q.p50, q.p99) if value], _NAMES, _WIDTH - _RIGHT)
    bottom = height - _BOTTOM + 4
    for tick in x.ticks():
        yield line(x(tick), _TOP, x(tick), bottom)
        yield text(x(tick), bottom + 17, ms(tick))
    for at, (row, q) in enumerate(zip(rows, figures, strict=True)):
        y = _TOP + _LINE * (at + 0.5)
        yield text(_NAMES - 10, y + 4, _short(plain(row.name)), "end")
        if q.p50 is None or q.p95 is None or q.p99 is None:
            continue
        yield line(x(q.p50), y, x(q.p99), y, "range")
        yield f'<circle class="dot p50" cx="{x(q.p50)}" cy="{y}" r="5"/>'
        yield f'<rect class="dot p95" x="{x(q.p95) - 4:.1f}" y="{y - 4}" width="8" height="8"/>'
        yield line(x(q.p99), y - 7, x(q.p99), y + 7, "end p99")


def waterfall(name: str, title: str, shown: Shown) -> str:
    """The phases of one request, each where it was in its time."""
    total = shown.total_ms or 1.0
    pieces = [
        (str(piece["name"]), float(piece["start_ms"]), float(piece["ms"]))
        for piece in shown.pieces
        if float(piece["ms"]) / total >= _LEAST
    ]
    said = ", ".join(f"{PHASES.get(phase, phase)} {ms(took)}" for phase, _, took in pieces)
    height = _TOP + _LINE * max(len(pieces), 1) + 8
    return picture(name, title, f"{said}.", height, _pieces(pieces, total))


def _pieces(pieces: Sequence[tuple[str, float, float]], total: float) -> Iterator[str]:
    room = _WIDTH - _NAMES - _RIGHT - 20
    for at, (phase, start, took) in enumerate(pieces):
        y = _TOP + _LINE * at
        x, width = _NAMES + room * start / total, max(room * took / total, 2.0)
        yield text(_NAMES - 10, y + 14, phase.replace("_", " "), "end")
        yield _bar(f"phase {phase}", x, y + 2, width, _LINE - 5)
        yield text(x + width + 6, y + 14, ms(took), "start")


def _short(name: str) -> str:
    return name if len(name) <= 26 else f"{name[:12]}…{name[-13:]}"
