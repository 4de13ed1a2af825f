"""The curve as SVG: both rates with their intervals over the thresholds, told apart without colours too."""

from collections.abc import Callable, Iterator, Sequence
from html import escape

from sidecar.cli.tune_sample import Sample
from sidecar.cli.tune_words import FALSE, HIT, percent, reach, shown, suggested
from sidecar.core.semantic.curve import Point, Rate

_WIDTH, _HEIGHT = 760, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 130, 40, 48
"""Room around the curve for what is written there."""
_TICKS = 5
"""Parts into which the shares are divided."""
_NAMED = 7
"""Thresholds that are named, at the most or nearly so."""
_LINE = 16
"""From one line of text to the next."""
_DOT = 3.5

Pick = Callable[[Point], Rate]
Spot = tuple[float, float]


class _Scale:
    """From thresholds and shares to places."""

    def __init__(self, sample: Sample) -> None:
        thresholds = [point.threshold for point in sample.points]
        self.first, self.last = min(thresholds), max(thresholds)
        self.top = reach(sample)

    def x(self, threshold: float) -> float:
        # A single threshold stands in the middle.
        part = (threshold - self.first) / (self.last - self.first) if self.last > self.first else 0.5
        return round(_LEFT + part * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, share: float) -> float:
        part = min(share / self.top, 1.0)
        return round(_HEIGHT - _BOTTOM - part * (_HEIGHT - _TOP - _BOTTOM), 1)


def svg(sample: Sample, name: str) -> str:
    """The picture; `name` makes its ids differ from those of others on the page. There has to be a point."""
    scale = _Scale(sample)
    picks: list[tuple[str, str, Pick]] = [
        ("hit", HIT[sample.kind], lambda point: point.hit_rate),
        ("false", FALSE[sample.kind], sample.rate),
    ]
    box, ids = f"0 0 {_WIDTH} {_HEIGHT}", f"{name}-title {name}-desc"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" role="img" aria-labelledby="{ids}">',
        f'<title id="{name}-title">{HIT[sample.kind]} and {FALSE[sample.kind]}, by threshold</title>',
        f'<desc id="{name}-desc">{escape(_description(sample))}</desc>',
        *_axes(sample, scale),
        *_marks(sample, scale),
    ]
    ends: list[float] = []
    for kind, label, pick in picks:
        parts += _series(kind, label, pick, sample.points, scale, ends)
    return "\n".join([*parts, "</svg>"])


def _description(sample: Sample) -> str:
    first, last = sample.points[0], sample.points[-1]
    said = [
        f"From threshold {shown(first.threshold)} to {shown(last.threshold)}, {label} goes from"
        f" {percent(pick(first).share or 0.0)} to {percent(pick(last).share or 0.0)}."
        for label, pick in (
            (HIT[sample.kind], lambda point: point.hit_rate),
            (FALSE[sample.kind], sample.rate),
        )
    ]
    return " ".join([*said, "The table has all figures."])


def _axes(sample: Sample, scale: _Scale) -> Iterator[str]:
    right = _WIDTH - _RIGHT
    for tick in range(_TICKS + 1):
        share = scale.top * tick / _TICKS
        y = scale.y(share)
        yield f'<line class="grid" x1="{_LEFT}" y1="{y}" x2="{right}" y2="{y}"/>'
        yield _text(_LEFT - 8, y + 4, f"{share * 100:.3g}%", "end")
    bottom = _HEIGHT - _BOTTOM
    for point in sample.points[:: max(1, round(len(sample.points) / _NAMED))]:
        x = scale.x(point.threshold)
        yield f'<line class="grid" x1="{x}" y1="{bottom}" x2="{x}" y2="{bottom + 5}"/>'
        yield _text(x, bottom + 19, shown(point.threshold))
    middle = (_LEFT + right) / 2
    yield _text(middle, _HEIGHT - 8, "similarity threshold")


def _marks(sample: Sample, scale: _Scale) -> Iterator[str]:
    chosen = suggested(sample)
    for row, (name, point) in enumerate(
        (("configured", sample.at(sample.configured)), ("suggested", chosen))
    ):
        if point is not None:
            x = scale.x(point.threshold)
            yield f'<line class="mark {name}" x1="{x}" y1="{_TOP}" x2="{x}" y2="{_HEIGHT - _BOTTOM}"/>'
            yield _text(x, 14 + row * _LINE, name)


def _series(
    kind: str, label: str, pick: Pick, points: Sequence[Point], scale: _Scale, ends: list[float]
) -> Iterator[str]:
    known = [(point, pick(point)) for point in points if pick(point).total]
    if not known:
        return
    spots = [(scale.x(point.threshold), scale.y(rate.share or 0.0)) for point, rate in known]
    highs = [(scale.x(point.threshold), scale.y(rate.high)) for point, rate in known]
    lows = [(scale.x(point.threshold), scale.y(rate.low)) for point, rate in known]
    yield f'<polygon class="band {kind}" points="{_path([*highs, *reversed(lows)])}"/>'
    yield f'<polyline class="line {kind}" points="{_path(spots)}"/>'
    for x, y in spots:
        if kind == "hit":
            yield f'<circle class="dot {kind}" cx="{x}" cy="{y}" r="{_DOT}"/>'
        else:
            yield (
                f'<rect class="dot {kind}" x="{x - _DOT:.1f}" y="{y - _DOT:.1f}" width="{2 * _DOT}"'
                f' height="{2 * _DOT}"/>'
            )
    x, y = spots[-1]
    # Where both end at the same place, one name stands above the other.
    at = min([y, *(end - _LINE for end in ends if abs(end - y) < _LINE)])
    ends.append(at)
    yield f'<text class="name {kind}" x="{x + 10:.1f}" y="{at + 4:.1f}">{escape(label)}</text>'


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _path(spots: Sequence[Spot]) -> str:
    return " ".join(f"{x},{y}" for x, y in spots)
