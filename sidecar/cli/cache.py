"""`slipstream cache`: look into the stored answers, purge them, move them."""

import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sidecar.cli.options import loaded
from sidecar.core.values import ConfigError

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

Work = Callable[..., int | None]

_PLACE = (
    click.option(
        "--data-dir",
        "server__data_dir",
        metavar="DIR",
        help="The sidecar's data folder.  [$STATE_DIRECTORY, else the XDG cache folder]",
    ),
    click.option("--config", "file", metavar="FILE", type=click.Path(path_type=Path), help="TOML file."),
)
_FILTERS = (
    click.option("--upstream", metavar="NAME", help="Only answers of that upstream."),
    click.option("--model", metavar="NAME", help="Only answers of the model that was asked for."),
    click.option("--path", metavar="PREFIX", help="Only answers to paths that begin so."),
)
_TENANTS = click.option("--tenant", metavar="ID", help="Only answers of that tenant, as in the log.")


def _with(*options: Callable[[Work], Work]) -> Callable[[Work], Work]:
    """Give a command options, and what it raises an exit status."""

    def give(work: Work) -> Work:
        @functools.wraps(work)
        def run(**given: Any) -> int | None:
            from sidecar.cli.cache_store import WorkError

            try:
                done = work(**given)
                sys.stdout.flush()
            except WorkError as error:
                print(f"slipstream: {error}", file=sys.stderr)
                return 1
            except BrokenPipeError:
                # Who read it has gone. Python would say so once more when it flushes stdout at its end.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 1
            return done

        made: Work = run
        for option in reversed(options):
            made = option(made)
        return made

    return give


@click.group("cache", short_help="look into the stored answers, purge them, move them")
def command() -> None:
    """Look into the stored answers, purge them, move them.

    All of it works on the sidecar's data folder, whether one is running there or not. A running sidecar
    notices at once what was purged, and what came in. Give the same --config and --data-dir as to `serve`.
    """


@command.command("stats")
@_with(*_PLACE, click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object."))
def stats(*, as_json: bool, **given: Any) -> None:
    """How much is stored, of which models, and how often it was of use."""
    from sidecar.cli.cache_show import stats
    from sidecar.cli.cache_store import place

    stats(place(loaded(given)), as_json=as_json)


@command.command("list")
@_with(
    _TENANTS,
    *_FILTERS,
    click.option(
        "--limit", type=click.IntRange(min=0), default=100, help="The most to show; 0 for all.  [100]"
    ),
    click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object per line."),
    *_PLACE,
)
def show(*, limit: int, as_json: bool, **given: Any) -> None:
    """The stored answers, newest first.

    Columns: key, tenant, upstream, model, path, stream or whole, age, time left, size. On a terminal keys are
    cut to their first digits, which `purge --key` takes; elsewhere nothing is cut, and columns are separated
    by tabs.
    """
    from sidecar.cli.cache_show import show
    from sidecar.cli.cache_store import place

    wanted = _filter(given)
    show(place(loaded(given)), wanted, limit, as_json=as_json)


@command.command("purge")
@_with(
    click.option("--all", "every", is_flag=True, help="Everything, the records of compared answers too."),
    click.option("--tenant", metavar="ID", help="All answers of that tenant, as in the log."),
    click.option("--expired", is_flag=True, help="What is still on disk though its time is over."),
    click.option(
        "--stream",
        metavar="ID",
        help="The answer that was given under that stream id, or request_id of the log, to somebody who asked"
        " in other words.",
    ),
    *_FILTERS,
    click.option("--key", metavar="PREFIX", help="Only answers whose key begins so."),
    *_PLACE,
)
def purge(*, every: bool, expired: bool, stream: str | None, **given: Any) -> None:
    """Remove answers, from the disk too.

    Give --all, or --tenant, or --expired, or --stream, or any of --upstream, --model, --path and --key, which
    then all have to fit.
    """
    from sidecar.cli import cache_export
    from sidecar.cli.cache_store import place

    wanted = _filter(given)
    narrowed = (wanted.upstream, wanted.model, wanted.path, wanted.key)
    some = any(value is not None for value in narrowed)
    if sum([every, wanted.tenant is not None, expired, stream is not None, some]) != 1:
        some_of = "any of --upstream, --model, --path and --key"
        aims = f"--all, or --tenant ID, or --expired, or --stream ID, or {some_of}"
        raise click.UsageError(f"say what to purge: {aims}")
    where = place(loaded(given))
    if every:
        cache_export.purge_all(where)
    elif wanted.tenant is not None:
        cache_export.purge_tenant(where, wanted.tenant)
    elif expired:
        cache_export.purge_expired(where)
    elif stream is not None:
        cache_export.purge_served(where, stream)
    else:
        cache_export.purge_some(where, wanted)


@command.command("export", short_help="Write answers as JSON lines, for import.")
@_with(
    click.option(
        "--output",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Where to; the file is for its owner only.  [stdout]",
    ),
    click.option("--force", is_flag=True, help="Overwrite the file."),
    _TENANTS,
    *_FILTERS,
    *_PLACE,
)
def export(*, output: Path | None, force: bool, **given: Any) -> int:
    """Write answers as JSON lines: key, what is known of it, and the answer itself.

    `import` reads them. The prompts are not in it, nor any credential; the answers are.
    """
    from sidecar.cli.cache_export import export
    from sidecar.cli.cache_store import place

    wanted = _filter(given)
    return export(place(loaded(given)), wanted, output, force=force)


@command.command("import", short_help="Store answers from a file, or for requests to come.")
@_with(
    click.option("--fresh", is_flag=True, help="Take exported answers as of now, whatever their age."),
    click.option(
        "--header",
        multiple=True,
        metavar="'NAME: VALUE'",
        help="For requests without that header. Other users see it in the list of processes.",
    ),
    click.option(
        "--header-env",
        multiple=True,
        metavar="NAME=VARIABLE",
        help="The same with the value of an environment variable, such as Authorization=MY_AUTH.",
    ),
    click.option("--upstream", "server__upstream", metavar="URL", help="As given to `serve`."),
    *_PLACE,
    click.argument("file_", metavar="FILE", type=click.Path(path_type=Path)),
)
def bring_in(
    *, file_: Path, fresh: bool, header: tuple[str, ...], header_env: tuple[str, ...], **given: Any
) -> int:
    """Store answers from FILE, or from stdin where that is `-`. It holds JSON lines of two kinds.

    First, what `export` wrote. The keys hold only for an installation with the same file `secret` in its data
    folder.

    Second, requests with their responses, so that there are answers before anybody has asked. Each is one
    line with this in it:

    \b
    {"request":  {"path": "/v1/chat/completions", "headers": {...}, "body": {...}},
     "response": {"status": 200, "headers": {...}, "body": {...}},
     "ttl": "10m"}

    A request is what an app sends to the sidecar. Path and body have to be the same, and so do the headers,
    but for those that are known to make no difference; Content-Type is application/json if left out. The
    answer is for the credential in the request's headers alone; --header-env keeps that out of the file.

    A body is a JSON object, or a string with the raw body: of a streamed answer, all of its events. Status,
    headers and ttl can be left out. What the sidecar would not store by itself is refused.

    What comes in is found by identical requests only, also with `serve --cache semantic`: what questions are
    compared by is not in the file.
    """  # noqa: D301 - click's mark for lines that stay as they are
    from sidecar.cli.cache_import import bring_in
    from sidecar.cli.cache_store import place

    headers = [*_headers(header), *_from_environment(header_env)]
    found = loaded(given)
    source = None if str(file_) == "-" else file_
    return bring_in(place(found), found.config, source, headers, fresh=fresh)


def _filter(given: dict[str, Any]) -> Any:
    """What the options ask for. Raises ConfigError."""
    from sidecar.stores.listing import Filter

    said = {name: given.pop(name, None) for name in ("tenant", "upstream", "model", "path", "key")}
    try:
        return Filter.of(**said)
    except ValueError as error:
        raise ConfigError(f"--{error}") from None


def _headers(given: tuple[str, ...]) -> list[tuple[str, str]]:
    """Raises ConfigError, which quotes nothing: it may be a credential."""
    found = []
    for text in given:
        name, colon, value = text.partition(":")
        if not colon:
            raise ConfigError("--header: expected 'Name: value'")
        found.append(_header("--header", name, value))
    return found


def _from_environment(given: tuple[str, ...]) -> list[tuple[str, str]]:
    found = []
    for text in given:
        name, equals, variable = text.partition("=")
        if not equals or not variable.isidentifier():
            raise ConfigError("--header-env: expected NAME=VARIABLE, such as Authorization=MY_AUTH")
        if variable not in os.environ:
            raise ConfigError(f"--header-env: the environment has no {variable}; export it first")
        found.append(_header("--header-env", name, os.environ[variable]))
    return found


def _header(option: str, name: str, value: str) -> tuple[str, str]:
    value = value.strip()
    if not _NAME.fullmatch(name) or not value.isprintable() or not value.isascii():
        raise ConfigError(f"{option}: name or value has characters that no header may have")
    return name, value
