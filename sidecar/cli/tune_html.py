"""The page that `slipstream tune --html` writes. Everything is in it: no script, and nothing from elsewhere.

It is well-formed XML as well as HTML.
"""

from collections.abc import Iterator, Sequence
from html import escape

from sidecar.cli.cache_words import plain
from sidecar.cli.tune_read import Filter, Found
from sidecar.cli.tune_sample import By, Group, Sample
from sidecar.cli.tune_svg import svg
from sidecar.cli.tune_words import (
    FALSE,
    HEADS,
    HIT,
    INTERVAL,
    MEANING,
    THIRD,
    cells,
    group,
    mark,
    reasons,
    round_percent,
    setting,
    shown,
    suggested,
    title,
)

_STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --text: #1c1f23; --soft: #5a6169; --rule: #d9dde2;
  --hit: #0b5cad; --false: #b3261e; --mark: #e9f1fa; }
@media (prefers-color-scheme: dark) {
  :root { --back: #15181c; --text: #e7e9ec; --soft: #a6adb5; --rule: #363c43;
    --hit: #7cb8ff; --false: #ff9c8f; --mark: #1d2b3a; }
}
body { background: var(--back); color: var(--text); font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 60rem; padding: 0 1rem; }
h1, h2 { line-height: 1.25; }
code { background: var(--mark); border-radius: .25rem; font-size: 1.05em; padding: .2rem .5rem; }
figure { margin: 1.5rem 0; }
figcaption, caption { color: var(--soft); }
.wide { margin: 1.5rem 0; overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { padding: .5rem 0; text-align: left; }
th, td { border-bottom: 1px solid var(--rule); padding: .25rem .75rem; text-align: right;
  white-space: nowrap; }
th:first-child { text-align: left; }
tr.mark { background: var(--mark); }
svg { display: block; height: auto; max-width: 100%; }
svg text { fill: var(--soft); font: 13px system-ui, sans-serif; }
.grid { stroke: var(--rule); }
.mark { stroke: var(--soft); }
.configured { stroke-dasharray: 2 4; }
.line { fill: none; stroke-width: 2.5; }
.line.hit { stroke: var(--hit); }
.line.false { stroke: var(--false); stroke-dasharray: 7 4; }
.band { opacity: .16; }
.band.hit, .dot.hit, svg text.hit { fill: var(--hit); }
.band.false, .dot.false, svg text.false { fill: var(--false); }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(samples: Sequence[Sample], found: Found, wanted: Filter, want: float) -> str:
    """The whole document."""
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en" xmlns="http://www.w3.org/1999/xhtml"><head><meta charset="utf-8"/>',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>',
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
        "<title>Slipstream: similarity threshold</title>",
        f"<style>{_STYLE}</style></head><body><main>",
        "<h1>Similarity threshold of the semantic cache</h1>",
    ]
    for sample in samples:
        parts += _section(sample, found, wanted, want)
    return "\n".join([*parts, "</main></body></html>", ""])


def _section(sample: Sample, found: Found, wanted: Filter, want: float) -> Iterator[str]:
    yield f'<section aria-labelledby="{sample.kind}">'
    yield f'<h2 id="{sample.kind}">{HEADS[sample.kind]}</h2><p>{escape(title(sample, found))}.</p>'
    point = suggested(sample)
    if point is not None:
        yield f"<p>For {round_percent(want)} of {FALSE[sample.kind]} or less:</p>"
        yield f"<p><code>{escape(setting(wanted, point.threshold))}</code></p>"
    yield f"<p>{escape(reasons(sample, want))}</p>"
    meaning = escape(f"{MEANING[sample.kind]} {INTERVAL} The picture has it shaded.")
    if sample.points:
        yield f"<figure>{svg(sample, 'curve-' + sample.kind)}<figcaption>{meaning}</figcaption></figure>"
        yield from _points(sample)
    if sample.guards:
        yield from _guards(sample)
    for by, rows in sample.groups.items():
        yield from _groups(by, rows)
    yield "</section>"


def _points(sample: Sample) -> Iterator[str]:
    marks = [mark(sample, point) for point in sample.points]
    rows = [(*cells(sample, point), text) for point, text in zip(sample.points, marks, strict=True)]
    titles = ("threshold", HIT[sample.kind], FALSE[sample.kind], THIRD[sample.kind], "")
    yield from _table("The same in figures", titles, rows, [bool(text) for text in marks])


def _guards(sample: Sample) -> Iterator[str]:
    said = f"Kept from being hits at {shown(sample.configured)} by guards"
    rows = [
        (plain(one.guard), f"{one.wrong:,}", f"{one.right:,}", f"{one.unknown:,}") for one in sample.guards
    ]
    yield from _table(said, ("guard", "rightly", "wrongly", "unknown"), rows)


def _groups(by: By, rows: Sequence[Group]) -> Iterator[str]:
    titles = (by, "count", "threshold", HIT[rows[0].sample.kind], FALSE[rows[0].sample.kind], "suggested")
    yield from _table(
        f"By {by}, each at the threshold that is configured for it", titles, [*map(group, rows)]
    )


def _table(
    caption: str, titles: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool] = ()
) -> Iterator[str]:
    yield f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
    yield f"<caption>{escape(caption)}</caption><thead><tr>"
    yield "".join(f'<th scope="col">{escape(name)}</th>' for name in titles) + "</tr></thead><tbody>"
    for number, (first, *rest) in enumerate(rows):
        start = '<tr class="mark">' if marked and marked[number] else "<tr>"
        others = "".join(f"<td>{escape(text)}</td>" for text in rest)
        yield f'{start}<th scope="row">{escape(first)}</th>{others}</tr>'
    yield "</tbody></table></div>"
