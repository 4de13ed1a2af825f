"""`slipstream report`: where the time went, from the log."""

import io
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sidecar.cli.report_lines import Log


class _StopError(Exception):
    """There is nothing to go on with: exit status 1. The message is one line for people."""


@click.command("report", short_help="percentiles, hit rates, slow phases from the log")
@click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path(path_type=Path))
@click.option(
    "--worst", type=click.IntRange(0, 100), default=5, metavar="N", help="Requests shown one by one.  [5]"
)
@click.option(
    "--html",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write a page with charts, too; `-`: to stdout, instead of the tables.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object.")
def command(*, files: tuple[Path, ...], worst: int, html: Path | None, as_json: bool) -> int:
    """Say where the time went: percentiles, hit rates, slow phases, failures, the worst requests.

    Each FILE holds log lines of the sidecar as it writes them where stderr is no terminal (--log-format
    json): plain, compressed with gzip, behind a prefix as of syslog or Kubernetes, or as `journalctl -o json`
    and Docker wrap them. `-`, or no FILE, is stdin.

    \b
    slipstream report sidecar.log sidecar.log.1.gz
    journalctl -u slipstream -o json --since today | slipstream report --html report.html

    Lines that are damaged are counted and left out. The whole log is read once, in bounded memory; a
    percentile is within 1% of a request's. The exit status is 1 when a file cannot be read, or there is no
    request in it.
    """  # noqa: D301 - click's mark for lines that stay as they are
    if html is not None and str(html) == "-" and as_json:
        raise click.UsageError("--json and --html - would both go to stdout: give --html a file")
    if not files and sys.stdin.isatty():
        raise click.UsageError("name a log file, or send one to stdin: slipstream report sidecar.log")
    if html is not None and not html.resolve().parent.is_dir():
        raise click.UsageError(f"--html {html}: there is no such folder")
    from sidecar.cli.report_read import SourceError

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # names in a log can have any character
    try:
        _report(files or (Path("-"),), worst, html, as_json=as_json)
        sys.stdout.flush()
    except (_StopError, SourceError) as error:
        print(f"slipstream: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Who read it has gone. Python would say so once more when it flushes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"slipstream: the report cannot be written: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _report(files: tuple[Path, ...], worst: int, html: Path | None, *, as_json: bool) -> None:
    import msgspec

    from sidecar.cli.cache_progress import progress
    from sidecar.cli.cache_words import plain
    from sidecar.cli.report_findings import findings
    from sidecar.cli.report_html import page
    from sidecar.cli.report_lines import Log
    from sidecar.cli.report_make import report
    from sidecar.cli.report_read import Reader, name_of, size_of
    from sidecar.cli.report_show import for_programs, show
    from sidecar.cli.report_sums import Sums

    log, sums = Log(), Sums(worst)
    with progress("reading", size_of(files)) as advance:
        reader = Reader(files, advance)
        for raw in reader:
            line = log.read(raw, reader.name, reader.number)
            if line is not None:
                sums.add(line)
    for name, number in reader.broken:
        log.broken(name, number)
    if not log.requests:
        raise _StopError(_nothing(log, plain(", ".join(name_of(path) for path in files))))
    found = report(sums, log, reader, [name_of(path) for path in files])
    found = msgspec.structs.replace(found, findings=findings(found))
    if html is not None and str(html) == "-":
        print(page(found), end="")
        return
    if html is not None:
        try:
            _write(html, page(found).encode())
        except OSError as error:
            raise _StopError(f"{plain(html)}: cannot be written: {error.strerror}") from None
    if as_json:
        print(for_programs(found))
    else:
        show(found)


def _nothing(log: "Log", files: str) -> str:
    """Why there is no report, and what to do."""
    damaged = sum(log.damaged.values())
    if log.console:
        return (
            f"{files}: no request to read: these log lines are for people. Run the sidecar with --log-format"
            " json (or log.format in its configuration)"
        )
    if not log.lines:
        return f"{files}: empty: expected log lines of the sidecar, as it writes them to stderr"
    lines = f"{log.lines:,} lines" if log.lines != 1 else "1 line"
    which = f"{lines}, {damaged:,} of them damaged" if damaged else lines
    return (
        f"{files}: no request in {which}: expected the sidecar's log, JSON lines with event=request"
        " (log.level info, which is the default)"
    )


def _write(path: Path, text: bytes) -> None:
    """A file has its name only once all of it is written. Raises OSError."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        path.write_bytes(text)  # a pipe or a device, say; a folder fails
        return
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("xb") as file:
            file.write(text)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
