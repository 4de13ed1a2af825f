"""`slipstream tune`: choose a similarity threshold from shadow records or labelled pairs."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sidecar.cli.options import loaded
from sidecar.config import Config
from sidecar.core.values import ConfigError

if TYPE_CHECKING:
    from sidecar.cli.tune_read import Filter, Found
    from sidecar.cli.tune_sample import Sample


class _StopError(Exception):
    """There is nothing to go on with: exit status 1. The message is one line for people."""


def _share(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """A share such as 0.01 or 1%, above 0; a bad one is one line and exit status 2."""
    if value is None:
        return None
    text = value.strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise click.BadParameter(f"expected a share such as 0.01 or 1%, not {text!r}", ctx, param)
    return share


@click.command("tune", short_help="choose a similarity threshold from shadow records or labelled pairs")
@click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path(path_type=Path))
@click.option(
    "--want",
    callback=_share,
    default="1%",
    metavar="SHARE",
    help="The false-hit rate that may not be exceeded, such as 0.01 or 1%.  [1%]",
)
@click.option(
    "--agree",
    callback=_share,
    metavar="SIMILARITY",
    help="From which similarity on two answers say the same.  [semantic.agree]",
)
@click.option("--upstream", metavar="NAME", help="Only records of that upstream.")
@click.option("--path", metavar="PATH", help="Only records of that path, and of those below it.")
@click.option("--namespace", metavar="NAME", help="Only records of that Slipstream-Namespace.")
@click.option(
    "--html", metavar="FILE", type=click.Path(path_type=Path), help="Write a page with the curve, too."
)
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object.")
@click.option(
    "--data-dir",
    "server__data_dir",
    metavar="DIR",
    help="The sidecar's data folder.  [$STATE_DIRECTORY, else the XDG cache folder]",
)
@click.option("--config", "file", metavar="FILE", type=click.Path(path_type=Path), help="TOML file.")
def command(
    *,
    files: tuple[Path, ...],
    want: float,
    agree: float | None,
    html: Path | None,
    as_json: bool,
    **given: Any,
) -> int:
    """Choose a similarity threshold.

    Shows for each one how often the cache would hit and how often that hit would be wrong, with 95%
    confidence intervals, and suggests the lowest one that keeps to --want.

    Each FILE holds JSON lines, plain or compressed with gzip, and is stdin where it is `-`. Without FILE, the
    records in the data folder are read. A line is one of two things.

    First, a labelled pair: two questions, and whether one answer serves both. They are embedded and guarded
    as the configuration says.

    \b
    {"a": "How do I cancel?", "b": "How can I cancel?", "same": 1}

    Second, a record that the sidecar wrote: of a lookup in shadow mode (--cache shadow), or of a hit that was
    checked (semantic.verify).

    Of labelled pairs, --want is the share of the false ones that may hit. Of records, it is the share of hits
    that may be wrong. The upper end of the interval keeps to it, so it takes data: for 1% at least 381 false
    pairs, or hits, and more if any is wrong.

    The exit status is 1 when there is nothing to judge by, or not enough.
    """  # noqa: D301 - click's mark for lines that stay as they are
    from sidecar.cli.tune_read import Filter

    wanted = Filter(*(given.pop(name) for name in ("upstream", "path", "namespace")))
    if wanted.path is not None and not wanted.path.startswith("/"):
        raise ConfigError(f"--path: expected a path such as /v1, not {wanted.path!r}")
    try:
        status = _tune(loaded(given).config, files, wanted, want, agree, html, as_json=as_json)
        sys.stdout.flush()
    except _StopError as error:
        print(f"slipstream: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Who read it has gone. Python would say so once more when it flushes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _tune(
    config: Config,
    files: tuple[Path, ...],
    wanted: "Filter",
    want: float,
    agree: float | None,
    html: Path | None,
    *,
    as_json: bool,
) -> int:
    from sidecar.cli.tune_html import page
    from sidecar.cli.tune_read import read, recorded
    from sidecar.cli.tune_sample import of_records
    from sidecar.cli.tune_show import for_programs, show
    from sidecar.core.semantic.curve import Refusal
    from sidecar.serving.folder import data_dir

    folder = data_dir(config)
    found = read(files or recorded(folder), wanted)
    if found.damaged:
        lines = "1 line is" if found.damaged == 1 else f"{found.damaged:,} lines are"
        print(f"{lines} neither a labelled pair nor a record, and left out", file=sys.stderr)
    if not found.pairs and not found.records:
        raise _StopError(_nothing(found, files, folder))
    agree = config.semantic.agree if agree is None else agree
    samples = [*_of_pairs(found, config, folder, want), *of_records(found, config, wanted, agree, want)]
    if as_json:
        print(for_programs(samples, found, wanted, want))
    else:
        show(samples, found, wanted, want)
    if html is not None:
        try:
            html.write_text(page(samples, found, wanted, want), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{html}: cannot be written: {error.strerror}") from None
    scarce = [isinstance(one.result, Refusal) and one.result.reason == "too_few" for one in samples]
    return 1 if all(scarce) else 0


def _of_pairs(found: "Found", config: Config, folder: Path, want: float) -> "list[Sample]":
    if not found.pairs:
        return []
    # Only these need the model, and the libraries under it.
    from sidecar.cache.embed.base import EmbedError
    from sidecar.cli.tune_embed import judge
    from sidecar.cli.tune_sample import of_pairs

    try:
        judged, lost = judge(found.pairs, config.semantic, folder)
    except EmbedError as error:
        raise _StopError(str(error)) from None
    if lost:
        print(f"{lost:,} of the pairs are left out: the embedder has no vector for them", file=sys.stderr)
    return [of_pairs(judged, config, want)]


def _nothing(found: "Found", files: tuple[Path, ...], folder: Path) -> str:
    if found.left_out:
        return f"no record is like that; {found.left_out:,} are of others"
    if files:
        return "nothing to judge by: no line is a labelled pair or a record; see `slipstream tune --help`"
    return f"no records in {folder}: run the sidecar with --cache shadow, or name a file with labelled pairs"
