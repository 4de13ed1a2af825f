"""`slipstream doctor`: look at everything that a sidecar needs, and say what to do about what is wrong."""

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import click

from sidecar.cli.doctor_checks import (
    Clock,
    certificate,
    configuration,
    descriptors,
    keys,
    model,
    who_may_ask,
)
from sidecar.cli.doctor_folder import folder
from sidecar.cli.doctor_http import LONGEST_SECRET, sendable
from sidecar.cli.doctor_ports import ports
from sidecar.cli.doctor_probe import PACED, Way, probed
from sidecar.cli.doctor_show import Report
from sidecar.cli.doctor_upstreams import unreachable, visited
from sidecar.cli.options import flags, loaded
from sidecar.cli.serve import run_loop
from sidecar.config import Loaded
from sidecar.core.values import ConfigError, upstream_url

_TOKEN = "SLIPSTREAM_TOKEN"  # noqa: S105 - a variable's name


@click.command("doctor", short_help="look at everything that a sidecar needs")
@flags
@click.option(
    "--url",
    metavar="URL",
    help="Look at the way from here to a sidecar that runs, instead: its URL as clients have it.",
)
@click.option(
    "--idle",
    type=click.FloatRange(0, 120),
    default=20.0,
    metavar="SECONDS",
    help="With --url: for how long the stream is silent, to see whether something cuts it.  [20]",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"With --url: a file with the token of one of its clients.  [${_TOKEN}]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 600),
    default=10.0,
    metavar="SECONDS",
    help="For each step of a connection.  [10]",
)
@click.option(
    "--model",
    "named",
    metavar="NAME",
    help="The model that is asked for its first token. Upstreams that are no known provider are asked only "
    "if it is given, with their key_file or without a key.",
)
@click.option("--no-calls", is_flag=True, help="Send no request to a provider that wants to be paid.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of lines.")
def command(
    *,
    url: str | None,
    idle: float,
    token_file: Path | None,
    timeout: float,
    named: str | None,
    no_calls: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Look at everything that a sidecar needs, and say what to do where something is wrong.

    Give the same flags as to `serve`. With --url it looks at the way from here to a sidecar that runs, by a
    paced stream through whatever stands in between: is it buffered, compressed, cut when it is silent?

    Exit status: 0 all well, or nothing worse than warnings; 1 a check failed; 2 bad usage or configuration.
    """
    if url is not None:
        upstream_url("--url", url, "https://llm.example.com")
    if named is not None and not (named and named.isprintable()):
        raise ConfigError("--model: expected the name of a model")
    found = loaded(given)
    report = Report(as_json=as_json)
    if url is not None:
        way = Way(url.rstrip("/"), idle, timeout, _token(token_file))
        sys.exit(run_loop(lambda: _through(way, report)))
    wish = _Wish(timeout, named, calls=not no_calls)
    sys.exit(run_loop(lambda: _here(found, report, wish)))


class _Wish(NamedTuple):
    timeout: float
    model: str | None
    calls: bool


async def _through(way: Way, report: Report) -> int:
    report.note(f"Asks {way.url} for a stream of {PACED + way.idle:.0f} s, {way.idle:g} s of it silent.")
    async for finding in probed(way):
        report.add(finding)
    report.finish()
    return int(report.failed)


async def _here(found: Loaded, report: Report, wish: _Wish) -> int:
    config, clock = found.config, Clock()
    report.add(configuration(found), who_may_ask(config))
    report.add(*folder(config))
    report.add(descriptors(config), model(config), *keys(config))
    if (own := certificate(config)) is not None:
        report.add(own)
    report.add(*await ports(found, wish.timeout))
    seen = []
    async for target, came in visited(config, wish.timeout):
        report.add(came.finding)
        seen.append((target, came))
    if (none := unreachable(seen)) is not None:
        report.add(none)
    skews = [(target.check, came.skew) for target, came in seen if came.skew is not None]
    report.add(clock.judge(config, skews))
    await _first_token(found, report, wish)
    report.finish("What lies between clients and a sidecar that runs: slipstream doctor --url https://...")
    return int(report.failed)


async def _first_token(found: Loaded, report: Report, wish: _Wish) -> None:
    from sidecar.cli.doctor_asks import TOKENS, Ask, asks
    from sidecar.cli.doctor_first_token import ROUNDS, asked, scripted

    given = asks(found.config, wish.model) if wish.calls else []
    for ask in given:
        if not isinstance(ask, Ask):
            report.add(ask)
            continue
        key = f"with the key of {ask.whence}" if ask.whence else "without a key"
        report.note(
            f"Sends {2 * ROUNDS} requests for {TOKENS} tokens each to {ask.origin.host} ({ask.model}), "
            f"{key}; --no-calls leaves them out."
        )
        report.add(await asked(found.config, ask, wish.timeout))
    if not any(isinstance(ask, Ask) for ask in given):
        report.add(await scripted(wish.timeout))


def _token(file: Path | None) -> str | None:
    """Raises ConfigError, without any of it."""
    where = "--token-file" if file is not None else _TOKEN
    if file is None:
        token = os.environ.get(_TOKEN, "").strip()
    else:
        try:
            with file.open("rb") as opened:
                token = opened.read(LONGEST_SECRET + 1).decode("ascii", "replace").strip()
        except OSError as error:
            raise ConfigError(f"{where}: {file}: cannot be read: {error.strerror}") from None
    if not token and file is None:
        return None
    if not sendable(token):
        raise ConfigError(f"{where}: expected one line with the token, in ASCII, and nothing else")
    return token
