"""What `slipstream doctor` has found, as lines for people that appear one by one, or as one JSON document."""

import json
import shutil
import sys
import textwrap
from typing import Any, Literal

import click
import msgspec

from sidecar import __version__

Status = Literal["ok", "warn", "fail"]
_SHOWN = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}
_NAME = 18
"""Columns of the names of checks; longer ones move what follows."""
_INDENT = 2 + 5 + _NAME + 1
_LONGEST = 600
"""Characters of a text, which may quote what somebody else sent."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    status: Status
    check: str
    fact: str
    remedy: str = ""
    """What to do; only where not all is well."""
    data: dict[str, Any] = {}
    """Figures, for machines. Times are milliseconds unless the name says otherwise."""


def ok(check: str, fact: str, **data: object) -> Finding:
    """All is well."""
    return Finding("ok", check, fact, data=data)


def warn(check: str, fact: str, remedy: str, **data: object) -> Finding:
    """It works, but not as it might."""
    return Finding("warn", check, fact, remedy, data)


def fail(check: str, fact: str, remedy: str, **data: object) -> Finding:
    """It does not work."""
    return Finding("fail", check, fact, remedy, data)


class Report:
    """Takes findings as they are made."""

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json
        self._terminal = sys.stdout.isatty()
        self.findings: list[Finding] = []

    @property
    def failed(self) -> bool:
        return any(finding.status == "fail" for finding in self.findings)

    def add(self, *findings: Finding) -> None:
        self.findings += findings
        if not self._json:
            for finding in findings:
                self._show(finding)

    def note(self, text: str) -> None:
        """Something that people should know now: what is going to happen, or what takes time."""
        click.echo(self._folded("  ", text) if not self._json else printable(text), err=self._json)

    def finish(self, hint: str = "") -> None:
        """The last lines; or all of it, for machines. `hint`: what else there is to know, for people."""
        count = {status: sum(found.status == status for found in self.findings) for status in _SHOWN}
        if self._json:
            rows = [msgspec.structs.asdict(finding) for finding in self.findings]
            document = {"version": __version__, "exit": int(self.failed), **count, "findings": rows}
            text = json.dumps(document, indent=2, ensure_ascii=False)
            # Names of files that are no UTF-8 stay what JSON can say of them: \udcff.
            sys.stdout.write(text.encode("utf-8", "backslashreplace").decode() + "\n")
            return
        parts = [f"{count['ok']} ok"]
        parts += [f"{count['warn']} to look at"] if count["warn"] else []
        parts += [f"{count['fail']} FAILED"] if count["fail"] else []
        click.echo(f"\n  {', '.join(parts)}")
        if hint:
            click.echo(self._folded("  ", hint))

    def _show(self, finding: Finding) -> None:
        word, colour = _SHOWN[finding.status]
        start = f"  {word:<5}{finding.check:<{_NAME}} "
        line = self._folded(start, finding.fact)
        click.echo(line.replace(word, click.style(word, fg=colour, bold=finding.status == "fail"), 1))
        if finding.remedy:
            click.echo(self._folded(" " * _INDENT, f"-> {finding.remedy}"))

    def _folded(self, start: str, text: str) -> str:
        """As wide as the terminal is; where there is none, one line is one line."""
        text = printable(text)
        if not self._terminal:
            return start + text
        width = max(shutil.get_terminal_size().columns, _INDENT + 30)
        return textwrap.fill(
            text,
            width,
            initial_indent=start,
            subsequent_indent=" " * _INDENT,
            break_on_hyphens=False,
            break_long_words=False,
        )


def printable(text: str) -> str:
    """One line without control characters: some of it comes from elsewhere."""
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return shown if len(shown) <= _LONGEST else shown[:_LONGEST] + " ..."


def plural(count: int, one: str, many: str | None = None) -> str:
    """`3 streams`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def milliseconds(seconds: float) -> str:
    """`12 ms`, `1.4 s`."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


def size(count: float) -> str:
    """`1.5 GiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
