"""What `slipstream report` prints: what to look at first, pictures, tables, the worst requests."""

import json
import shutil
import sys
import textwrap
from collections.abc import Sequence

import msgspec

from sidecar.cli.report_facts import Report, Shown
from sidecar.cli.report_findings import calm
from sidecar.cli.report_plot import Pen, of_first_tokens
from sidecar.cli.report_tables import Table, steps, tables
from sidecar.cli.report_words import about, marks, ms, sources, subject

_WIDEST = 110
"""Of sentences and pictures."""
_ROWS = 10
_NAME = 8
"""Characters of a name that are shown, however narrow the terminal is."""


def for_programs(report: Report) -> str:
    """All of it, as one object."""
    return json.dumps(msgspec.to_builtins(report), ensure_ascii=False, allow_nan=False)


def show(report: Report) -> None:
    """Print all of it."""
    columns = shutil.get_terminal_size().columns
    width = min(columns, _WIDEST)
    pen = Pen(width - 2)
    _say(subject(report), width)
    for sentence in sources(report):
        _say(sentence, width)
    print("\nWhat to look at first")
    for number, finding in enumerate(report.findings, 1):
        _say(f"{number}. {finding.seen} {finding.advice}", width, 5)
    if not report.findings:
        _say(calm(report), width)
    _show_pictures(report, pen)
    for table in tables(report, _ROWS):
        _show_table(table, pen, width, columns)
    _show_worst("Slowest requests", report.slowest, pen, width)
    known = {shown.request_id for shown in report.slowest}
    latest = [shown for shown in report.latest_first_tokens if shown.request_id not in known]
    _show_worst("Longest waits for the first token, besides these", latest, pen, width)


def _say(text: str, width: int, hang: int = 2, first: int = 2) -> None:
    # Flags, names and paths are to be copied.
    filler = textwrap.TextWrapper(width, " " * first, " " * hang)
    filler.break_on_hyphens = filler.break_long_words = False
    print(filler.fill(text))


def _show_pictures(report: Report, pen: Pen) -> None:
    first = of_first_tokens(report)
    what = "Time to the first token" if first else "Time of the whole request"
    if len(report.over_time.slots) > 1:
        print(f"\n{what}, {steps(report)}")
        for line in pen.over_time(report.over_time.slots, "ttft_ms" if first else "total_ms"):
            print(f"  {line}")
    bars = report.ttft_distribution if first else report.total_distribution
    print(f"\n{what}, requests by duration")
    for line in pen.distribution(bars):
        print(f"  {line}")


def _show_table(table: Table, pen: Pen, width: int, columns: int) -> None:
    print(f"\n{table.title}")
    for line in aligned(table, pen, columns - 2):
        print(f"  {line}")
    if table.more:
        print(f"  and {table.more:,} more; --json has all of them")
    if table.note:
        _say(table.note, width)


def aligned(table: Table, pen: Pen, width: int) -> list[str]:
    """Its lines. On a terminal that is too narrow, names are cut; elsewhere nothing is."""
    rows = [table.heads, *table.rows]
    widths = [max(len(row[at]) for row in rows) for at in range(len(table.heads))]
    if sys.stdout.isatty():
        over = sum(widths) + 2 * (len(widths) - 1) - width
        widths[0] -= min(max(over, 0), max(widths[0] - _NAME, 0))
    lines = []
    for row in rows:
        cells = [
            pen.short(cell, size).ljust(size) if at in table.left else cell.rjust(size)
            for at, (cell, size) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _show_worst(title: str, worst: Sequence[Shown], pen: Pen, width: int) -> None:
    if not worst:
        return
    print(f"\n{title}")
    for number, shown in enumerate(worst, 1):
        first = f", first token after {ms(shown.ttft_ms)}" if shown.ttft_ms is not None else ""
        _say(f"{number}. {ms(shown.total_ms)}{first}: {about(shown)}", width, 5)
        _say(marks(shown), width, 5, 5)
        for line in pen.waterfall(shown):
            print(f"  {line}".rstrip())
