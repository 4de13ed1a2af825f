"""The page that `slipstream report --html` writes. Nothing in it comes from elsewhere, and it has no script.

It is well-formed XML as well as HTML. Its tables are those of the terminal.
"""

import re
from collections.abc import Iterator, Sequence

from sidecar.cli import report_svg as svg
from sidecar.cli.report_facts import Report, Shown
from sidecar.cli.report_findings import calm
from sidecar.cli.report_plot import of_first_tokens
from sidecar.cli.report_tables import Table, steps, tables
from sidecar.cli.report_words import about, marks, markup, ms, sources, subject

_STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --text: #1c1f23; --soft: #5a6169; --rule: #d9dde2;
  --low: #0b5cad; --mid: #7a4fb5; --high: #b3261e; --fill: #7aa7d6; --mark: #e9f1fa; }
@media (prefers-color-scheme: dark) {
  :root { --back: #15181c; --text: #e7e9ec; --soft: #a6adb5; --rule: #363c43;
    --low: #7cb8ff; --mid: #c9a6ff; --high: #ff9c8f; --fill: #41698f; --mark: #1d2b3a; }
}
body { background: var(--back); color: var(--text); font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 60rem; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.25; }
h1 { margin-bottom: .5rem; }
h2 { border-top: 1px solid var(--rule); margin-top: 2.5rem; padding-top: 1.5rem; }
h3 { font-size: 1rem; margin-bottom: 0; overflow-wrap: anywhere; }
p, li { overflow-wrap: anywhere; }
.first { background: var(--mark); border-radius: .5rem; padding: .25rem 1.5rem .5rem; }
.first h2 { border: 0; margin: 0; padding-top: 1rem; }
.first li { margin: .5rem 0; }
.soft, figcaption, caption { color: var(--soft); }
.soft, figcaption { font-size: .9rem; margin: .25rem 0; }
figure { margin: 1.5rem 0; }
.wide { margin: 1rem 0; overflow-x: auto; }
.wide svg { min-width: 34rem; }
table { border-collapse: collapse; font-size: .95rem; font-variant-numeric: tabular-nums; }
caption { font-weight: 600; padding: .5rem 0; text-align: left; }
th, td { border-bottom: 1px solid var(--rule); padding: .25rem .75rem; text-align: right;
  white-space: nowrap; }
th.name, td.name { text-align: left; }
tbody th { font-weight: 400; }
svg { display: block; height: auto; max-width: 100%; }
svg text { fill: var(--soft); font: 13px system-ui, sans-serif; }
.grid { stroke: var(--rule); }
.line { fill: none; stroke-width: 2.25; }
.p95 { stroke-dasharray: 7 4; }
.p99 { stroke-dasharray: 2 3; }
.line.p50, .mark.p50 { stroke: var(--low); }
.line.p95, .mark.p95 { stroke: var(--mid); }
.line.p99, .mark.p99 { stroke: var(--high); }
.dot.p50, svg text.p50 { fill: var(--low); }
.dot.p95, svg text.p95 { fill: var(--mid); }
.dot.p99, svg text.p99 { fill: var(--high); }
.dot { stroke: none; }
.range { stroke: var(--soft); stroke-width: 2; }
.end { stroke: var(--high); stroke-dasharray: none; stroke-width: 3; }
.bar { fill: var(--fill); }
.bar.failed { fill: var(--high); }
.bar.upstream { fill: var(--low); }
.bar.first_token { fill: var(--mid); }
.bar.sidecar { fill: var(--high); }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_CODE = re.compile("`([^`]+)`")
_ROWS = 30
_NAMED = 12
"""Models in a chart."""


def page(report: Report) -> str:
    """The whole document."""
    body = [*_first(report), *_charts(report), *_tables(report), *_worst(report)]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en" xmlns="http://www.w3.org/1999/xhtml"><head><meta charset="utf-8"/>',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>',
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
            "<title>Slipstream: where the time went</title>",
            f"<style>{_STYLE}</style></head><body><main>",
            "<h1>Where the time went</h1>",
            f"<p>{markup(subject(report))}.</p>",
            *[f'<p class="soft">{markup(sentence)}</p>' for sentence in sources(report)],
            *body,
            "</main></body></html>",
            "",
        ]
    )


def _prose(said: str) -> str:
    """A sentence, in which what stands in backticks is code."""
    return _CODE.sub(r"<code>\1</code>", markup(said))


def _first(report: Report) -> Iterator[str]:
    yield '<section class="first" aria-labelledby="first"><h2 id="first">What to look at first</h2>'
    if report.findings:
        items = [
            f"<li>{_prose(one.seen)} <strong>{_prose(one.advice)}</strong></li>" for one in report.findings
        ]
        yield f"<ol>{''.join(items)}</ol>"
    else:
        yield f"<p>{markup(calm(report))}</p>"
    yield "</section>"


def _charts(report: Report) -> Iterator[str]:
    slots, total = report.over_time.slots, report.total
    yield '<section aria-labelledby="charts"><h2 id="charts">Over time, and in all</h2>'
    if len(slots) > 1:
        said = f"p50, p95 and p99, {steps(report)}. The scale is logarithmic."
        if total.ttft_ms.count:
            drawn = [slot.ttft_ms for slot in slots]
            title = "Time to the first token"
            yield _figure(title, svg.over_time("ttft", title, slots, drawn), said)
        title = "Time of the whole request"
        yield _figure(title, svg.over_time("total", title, slots, [slot.total_ms for slot in slots]), said)
        title = "Requests and failures"
        yield _figure(title, svg.counts_over_time("counts", title, slots), f"{steps(report).capitalize()}.")
    said = "How many requests took how long. The scale of times is logarithmic."
    if report.ttft_distribution and of_first_tokens(report):
        title = "Time to the first token, by duration"
        drawing = svg.distribution("ttft-bars", title, report.ttft_distribution, total.ttft_ms)
        yield _figure(title, drawing, said)
    title = "Time of the whole request, by duration"
    yield _figure(
        title, svg.distribution("total-bars", title, report.total_distribution, total.total_ms), said
    )
    rows = [row for row in report.models if row.figures.ttft_ms.count][:_NAMED]
    if rows:
        title = "Time to the first token, by model"
        yield _figure(
            title, svg.by_name("models", title, rows), "Dot: p50; square: p95; stroke at the end: p99."
        )
    yield "</section>"


def _figure(title: str, drawing: str, said: str) -> str:
    label = f'tabindex="0" role="region" aria-label="{markup(title)}"'
    return (
        f'<figure><h3>{markup(title)}</h3><div class="wide" {label}>{drawing}</div>'
        f"<figcaption>{markup(said)}</figcaption></figure>"
    )


def _tables(report: Report) -> Iterator[str]:
    yield '<section aria-labelledby="figures"><h2 id="figures">Figures</h2>'
    for table in tables(report, _ROWS):
        yield from _table(table)
    yield "</section>"


def _table(table: Table) -> Iterator[str]:
    title = markup(table.title)

    def kind(at: int) -> str:
        return ' class="name"' if at in table.left else ""

    yield f'<div class="wide" tabindex="0" role="region" aria-label="{title}"><table>'
    yield f"<caption>{title}</caption>"
    heads = [f'<th scope="col"{kind(at)}>{markup(name)}</th>' for at, name in enumerate(table.heads)]
    yield f"<thead><tr>{''.join(heads)}</tr></thead><tbody>"
    for first, *rest in table.rows:
        cells = [f"<td{kind(at)}>{markup(cell)}</td>" for at, cell in enumerate(rest, 1)]
        yield f'<tr><th scope="row" class="name">{markup(first)}</th>{"".join(cells)}</tr>'
    yield "</tbody></table></div>"
    if table.more:
        yield f'<p class="soft">And {table.more:,} more; <code>--json</code> has all of them.</p>'
    if table.note:
        yield f'<p class="soft">{markup(table.note)}</p>'


def _worst(report: Report) -> Iterator[str]:
    yield from _requests("slowest", "Slowest requests", report.slowest)
    yield from _requests("latest", "Longest waits for the first token", report.latest_first_tokens)


def _requests(name: str, title: str, worst: Sequence[Shown]) -> Iterator[str]:
    if not worst:
        return
    yield f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>'
    for number, shown in enumerate(worst, 1):
        first = f", first token after {ms(shown.ttft_ms)}" if shown.ttft_ms is not None else ""
        head = f"{number}. {ms(shown.total_ms)}{first}: {about(shown)}"
        drawing = svg.waterfall(f"{name}-{number}", f"Phases of request {number}", shown)
        said = marks(shown)
        if shown.spans:
            said += "; spans of the app: " + ", ".join(
                f"{span} {ms(took)}" for span, took in shown.spans.items()
            )
        yield _figure(head, drawing, said)
    yield "</section>"
