"""`slipstream demo`: the product at work on this machine, without a key.

A scripted provider, the sidecar and clients on loopback. Every scene checks what it shows; the exit
status is 0 only if each did what it should.
"""

import asyncio
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sidecar.cache import embed
from sidecar.cache.embed.base import EmbedError
from sidecar.cli.model_progress import Shown
from sidecar.cli.scenes import KEEPALIVE, SCENES, Lines, Stage
from sidecar.cli.serve import banner, run_loop
from sidecar.config import Config, load
from sidecar.core.types import Outcome
from sidecar.scripted import Script, ScriptedProvider
from sidecar.serving.assembly import Stores
from sidecar.serving.folder import data_dir
from sidecar.serving.semantics import Parts
from sidecar.stores.disk import DiskStore
from sidecar.stores.jobs import JobStore
from sidecar.tables import Semantic
from sidecar.telemetry.log import make_logger, request_lines
from sidecar.web.service import AdminPort, Service

_PACE = 0.03


@click.command("demo", short_help="see it work, without a key")
@click.option("--keep", is_flag=True, help="Leave provider and sidecar running afterwards, until Ctrl-C.")
def command(*, keep: bool) -> None:
    """Show the sidecar at work: a scripted provider, the sidecar and clients on this machine.

    The first time it gets the model that questions are compared with, as `slipstream model pull` does.
    """
    _get_model(data_dir(Config()))
    sys.exit(run_loop(lambda: _demo(keep=keep)))


def _get_model(folder: Path) -> None:
    """Where it cannot be had, the scene that needs it says what came of that."""
    if embed.ready(Semantic(), folder):
        return
    print("The model that questions are compared with is not here yet: getting it, once.", file=sys.stderr)
    from sidecar.cache.embed.pull import pull

    try:
        with Shown(quiet=False) as report:
            pull(Semantic(), folder, None, report)
    except EmbedError as error:
        print(f"slipstream: {error}", file=sys.stderr)


async def _demo(*, keep: bool) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without these signs gets others, no traceback
    console = Console(highlight=False)
    lines = Lines()
    script = Script(tokens=24, interval=_PACE, first=0.1)
    with tempfile.TemporaryDirectory(prefix="slipstream-demo-") as folder:
        async with ScriptedProvider(script=script) as provider:
            return await _shown(provider, Path(folder), lines, console, keep=keep)


async def _shown(
    provider: ScriptedProvider, folder: Path, lines: Lines, console: Console, *, keep: bool
) -> int:
    config = load(
        {
            "server.upstream": provider.url,
            "server.port": 0,
            "admin.port": 0,
            "keepalive.interval": KEEPALIVE,
            "cache.mode": "semantic",
            "semantic.deadline": 1,  # it has only one try to show it, on whatever machine
        },
        environment={},
    ).config
    service = Service(
        config,
        b"demo" * 8,
        make_logger(lines, "json", "info"),
        request_lines(lines, "json", "info"),
        Stores(
            jobs=JobStore.open(folder),
            answers=lambda: DiskStore.open(folder / "answers", config.cache.size),
            semantic=Parts(lambda: embed.load(config.semantic, data_dir(Config()))),
        ),
        admin=AdminPort(folder) if keep else None,
    )
    async with service, aiohttp.ClientSession() as client:
        console.print(f"\n[bold]Slipstream[/] {service.url}  →  scripted provider {provider.url}\n")
        failed = await _play(Stage(provider, service.url, client, lines), console)
        console.print()
        console.print(_table(lines.requests))
        if failed:
            console.print(f"\n[red]{failed} of {len(SCENES)} scenes did not do what they should.[/]")
        else:
            console.print(f"\n[green]All {len(SCENES)} scenes did what they should.[/]")
        if keep:
            assert service.admin is not None
            await _stay(config, service.url, service.admin.url, console)
    return 1 if failed else 0


async def _play(stage: Stage, console: Console) -> int:
    failed = 0
    for title, scene in SCENES.items():
        with console.status(title):
            try:
                async with asyncio.timeout(30):
                    passed, told = await scene(stage)
            except (TimeoutError, aiohttp.ClientError) as error:
                passed, told = False, f"{type(error).__name__}: {error}"
        failed += not passed
        mark = "[green]✓[/]" if passed else "[red]✗[/]"
        console.print(f" {mark} [bold]{title}[/]\n   {told}")
    return failed


async def _stay(config: Config, url: str, admin: str, console: Console) -> None:
    console.print(banner(config, url, admin), markup=False)
    console.print('Try:  curl -N -d \'{"model":"any","stream":true,"messages":[]}\' \\', markup=False)
    console.print(f"        -H 'Content-Type: application/json' {url}/v1/chat/completions\n", markup=False)
    await asyncio.Event().wait()


def _table(requests: list[dict[str, Any]]) -> Table:
    title = "What the sidecar logged: time to the first token, gaps between tokens, own share (ms)"
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("call", no_wrap=True, max_width=22)
    table.add_column("outcome", no_wrap=True, min_width=9)
    for column in ("first", "gap", "worst", "total", "own", "events"):
        table.add_column(column, no_wrap=True, justify="right", min_width=max(len(column), 3))
    for line in requests:
        if line["provider"] is None or line["status"] == 202:
            continue  # asked of the sidecar itself
        bad = line["outcome"] not in (Outcome.COMPLETE, Outcome.CANCELLED)
        table.add_row(
            f"{line['provider']} {line['operation']}",
            f"[red]{line['outcome']}[/]" if bad else _ended(line),
            *[
                _cell(line[name])
                for name in ("ttft_ms", "itl_p50_ms", "itl_max_ms", "total_ms", "overhead_ms")
            ],
            str(line["events"]),
        )
    return table


def _ended(line: dict[str, Any]) -> str:
    if line["resumed_from"] is not None:
        return "resumed"
    return {"collapsed": "shared", "hit": "from cache"}.get(line["cache"], str(line["outcome"]))


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
