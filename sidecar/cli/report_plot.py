"""Pictures of text for the terminal: percentiles over time, a distribution, a request's phases."""

import math
import sys
from collections.abc import Iterator, Sequence

from sidecar.cli.cache_words import plain
from sidecar.cli.report_facts import Bar, Report, Shown, Slot
from sidecar.cli.report_words import minute, ms

_HEIGHT = 8
_BARS = 5
"""Lines of a distribution."""
_LABEL = 8
_NAMED = 13
"""Columns for the name of a phase."""
_LEAST = 0.005
"""Share of a request below which a phase is not worth a line."""
_BLOCKS, _ASCII_BLOCKS = " ▁▂▃▄▅▆▇█", " .:-=+*##"
_SIGNS, _ASCII_SIGNS = "●○◉│└─█…", "ox8|+-#~"


class Pen:
    """Draws with the characters that stdout can have."""

    def __init__(self, width: int) -> None:
        self.width = width
        fine = _encodable(_BLOCKS + _SIGNS)
        self.blocks = _BLOCKS if fine else _ASCII_BLOCKS
        signs = _SIGNS if fine else _ASCII_SIGNS
        self.low, self.high, self.both, self.side, self.corner, self.floor, self.full, self.more = [*signs]

    def over_time(self, slots: Sequence[Slot], what: str) -> Iterator[str]:
        """p50 and p99 of each slot; and how many requests it has. The scale is logarithmic."""
        figures = [slot.ttft_ms if what == "ttft_ms" else slot.total_ms for slot in slots]
        values = [value for q in figures for value in (q.p50, q.p99) if value]
        if not values:
            return
        low, high = math.log(min(values)), math.log(max(values))
        step = (high - low) / _HEIGHT or 1.0
        wide = 1 if len(slots) > (self.width - _LABEL) // 2 else 2

        def level(value: float | None) -> int | None:
            return round((math.log(value) - low) / step) if value else None

        yield f"{'':{_LABEL}} {self.low} p50   {self.high} p99   {self.both} both"
        places = [(level(q.p50), level(q.p99)) for q in figures]
        for at in range(_HEIGHT, -1, -1):
            label = ms(math.exp(low + step * at)) if at % 4 == 0 else ""
            row = ""
            for p50, p99 in places:
                sign = self.low if p50 == at else self.high if p99 == at else " "
                row += (self.both if p50 == p99 == at else sign).ljust(wide)
            yield f"{label:>{_LABEL}} {self.side}{row}".rstrip()
        yield f"{'':{_LABEL}} {self.corner}{self.floor * (wide * len(slots))}"
        most = max(slot.requests for slot in slots)
        bars = "".join(self._block(slot.requests / most).ljust(wide) for slot in slots)
        yield f"{'requests':>{_LABEL}}  {bars}  max {most:,}".rstrip()
        failed = max(slot.failed for slot in slots)
        if failed:
            bars = "".join(self._block(slot.failed / failed).ljust(wide) for slot in slots)
            yield f"{'failed':>{_LABEL}}  {bars}  max {failed:,}".rstrip()
        yield _ends(wide * len(slots), minute(slots[0].start), minute(slots[-1].start))

    def distribution(self, bars: Sequence[Bar]) -> Iterator[str]:
        """How many requests took how long; the scale of the times is logarithmic."""
        most = max(bar.requests for bar in bars)
        wide = 1 if len(bars) > (self.width - _LABEL) // 2 else 2
        for at in range(_BARS, 0, -1):
            label = f"{most:,}" if at == _BARS else ""
            row = "".join(self._block(bar.requests / most * _BARS - at + 1) * wide for bar in bars)
            yield f"{label:>{_LABEL}} {self.side}{row}".rstrip()
        yield f"{'':{_LABEL}} {self.corner}{self.floor * (wide * len(bars))}"
        yield _ends(wide * len(bars), ms(bars[0].over_ms), ms(bars[-1].up_to_ms), _middle(bars))

    def waterfall(self, shown: Shown) -> Iterator[str]:
        """The phases of one request, each where it was in its time."""
        columns = max(self.width - _NAMED - 14, 20)
        total = shown.total_ms or 1.0
        small = 0.0
        for piece in shown.pieces:
            start, took = float(piece["start_ms"]), float(piece["ms"])
            if took / total < _LEAST:
                small += took
                continue
            first = min(round(start / total * columns), columns - 1)
            last = max(round((start + took) / total * columns), first + 1)
            bar = " " * first + self.full * (last - first)
            yield f"   {piece['name']:<{_NAMED}} {ms(took):>7} {self.side}{bar}"
        if small:
            yield f"   {'the rest':<{_NAMED}} {ms(small):>7} {self.side}"
        for name, took in shown.spans.items():
            yield f"   {self.short('+ ' + plain(name), _NAMED):<{_NAMED}} {ms(took):>7} {self.side}"

    def short(self, text: str, width: int) -> str:
        """No wider than that: of a longer one the middle is left out."""
        if len(text) <= width:
            return text
        end = (width - 1) // 2
        return text[: width - 1 - end] + self.more + text[len(text) - end :]

    def _block(self, part: float) -> str:
        """A character that is filled to that part, from below; what there is something of is seen."""
        if part <= 0:
            return " "
        return self.blocks[max(1, min(round(part * 8), 8))]


def _middle(bars: Sequence[Bar]) -> str:
    return ms(bars[len(bars) // 2].over_ms)


def _ends(width: int, first: str, last: str, middle: str = "") -> str:
    """What the ends of an axis are, below it."""
    room = max(width, len(first) + len(last) + len(middle) + 4)
    line = first.ljust(room - len(last)) + last
    if middle:
        at = room // 2
        line = line[:at] + middle + line[at + len(middle) :]
    return f"{'':{_LABEL}}  {line}"


def of_first_tokens(report: Report) -> bool:
    """Whether there are enough streams for the pictures to be of first tokens."""
    return report.total.ttft_ms.count * 2 >= report.total.requests


def _encodable(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True
