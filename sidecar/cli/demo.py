"""`slipstream demo`: the product at work on this machine, without a key.

A scripted provider, the sidecar and clients on loopback. Every scene checks what it shows; the exit
status is 0 only if each did what it should.
"""

import asyncio
import io
import itertools
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import aiohttp
import click
import orjson
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sidecar.cli.serve import banner, run_loop
from sidecar.config import Config, load
from sidecar.core.types import Outcome
from sidecar.scripted import Script, ScriptedProvider
from sidecar.telemetry.log import make_logger, request_lines
from sidecar.web.service import Service

_KEEPALIVE = 0.15
_PACE = 0.03


class Scene(NamedTuple):
    """What one scene found."""

    passed: bool
    told: str


class _Lines:
    """Keeps the sidecar's log lines for the table at the end."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    def write(self, line: bytes) -> None:
        fields = orjson.loads(line)
        if fields["event"] == "request":
            self.requests.append(fields)


class Stage(NamedTuple):
    """Everything a scene needs."""

    provider: ScriptedProvider
    url: str
    client: aiohttp.ClientSession
    lines: _Lines


@click.command("demo", short_help="see it work, without a key")
@click.option("--keep", is_flag=True, help="Leave provider and sidecar running afterwards, until Ctrl-C.")
def command(*, keep: bool) -> None:
    """Show the sidecar at work: a scripted provider, the sidecar and clients on this machine."""
    sys.exit(run_loop(lambda: _demo(keep=keep)))


async def _demo(*, keep: bool) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without these signs gets others, no traceback
    console = Console(highlight=False)
    lines = _Lines()
    async with ScriptedProvider(script=Script(tokens=24, interval=_PACE, first=0.1)) as provider:
        config = load(
            {"server.upstream": provider.url, "server.port": 0, "keepalive.interval": _KEEPALIVE},
            environment={},
        ).config
        service = Service(
            config, b"demo" * 8, make_logger(lines, "json", "info"), request_lines(lines, "json", "info")
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
                await _stay(config, service.url, console)
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


async def _stay(config: Config, url: str, console: Console) -> None:
    console.print(banner(config, url), markup=False)
    console.print('Try:  curl -N -d \'{"model":"any","stream":true,"messages":[]}\' \\', markup=False)
    console.print(f"        -H 'Content-Type: application/json' {url}/v1/chat/completions\n", markup=False)
    await asyncio.Event().wait()


# The scenes.


async def _same_bytes(stage: Stage) -> Scene:
    direct, gaps = await _stream(stage, stage.provider.url, _CHAT)
    through, also = await _stream(stage, stage.url, _CHAT)
    middle = [sorted(found)[len(found) // 2] * 1000 for found in (gaps, also)]
    told = (
        f"{len(through)} bytes, identical; median gap {middle[0]:.1f} ms direct, {middle[1]:.1f} ms through"
    )
    # A proxy that buffers shows no gaps at all: everything comes at the end.
    return Scene(direct == through and middle[1] > middle[0] / 2, told)


async def _every_dialect(stage: Stage) -> Scene:
    unequal = []
    for name, call in DIALECTS.items():
        direct, _ = await _stream(stage, stage.provider.url, call, interval=0)
        through, _ = await _stream(stage, stage.url, call, interval=0)
        if direct != through or not direct:
            unequal.append(name)
    told = f"{', '.join(unequal)} differ" if unequal else f"{', '.join(DIALECTS)}: the same bytes"
    return Scene(not unequal, told)


async def _silence(stage: Stage) -> Scene:
    body, _ = await _stream(stage, stage.url, _CHAT, first=4 * _KEEPALIVE)
    comments = body.count(b": keepalive\n")
    told = (
        f"{comments} keepalives while the model was silent for {4 * _KEEPALIVE:g} s (every 15 s by default)"
    )
    return Scene(comments >= 2 and body.endswith(b"data: [DONE]\n\n"), told)


async def _client_leaves(stage: Stage) -> Scene:
    before = len(stage.provider.requests)
    path, body = _CHAT
    headers = {"X-Scripted": orjson.dumps({"tokens": 2000}).decode()}
    async with stage.client.post(stage.url + path, json=body, headers=headers) as answer:
        for _ in range(4):
            await answer.content.readany()
        left = time.perf_counter()
        answer.close()
    received = stage.provider.requests[before]
    await received.closed.wait()
    took = (time.perf_counter() - left) * 1000
    return Scene(took < 1000, f"the upstream call was closed {took:.0f} ms after its client had left")


async def _upstream_dies(stage: Stage) -> Scene:
    try:
        body, _ = await _stream(stage, stage.url, _CHAT, fault="reset", at=8)
        clean = True
    except _BrokenStreamError as broken:
        body, clean = broken.body, False
    last = body.rstrip().rpartition(b"\n")[2].removeprefix(b"data: ")
    told = "the client got what there was, then an error its SDK raises, and no clean end"
    return Scene(not clean and b'"error"' in last and b"[DONE]" not in body, told)


SCENES: dict[str, Callable[[Stage], Awaitable[Scene]]] = {
    "A streamed answer comes through as it is made": _same_bytes,
    "So it does in every dialect": _every_dialect,
    "A silent model does not look like a dead connection": _silence,
    "A client that leaves stops costing money": _client_leaves,
    "A broken answer never looks like a whole one": _upstream_dies,
}

Request = tuple[str, dict[str, Any]]
_CHAT: Request = ("/v1/chat/completions", {"model": "scripted", "stream": True, "messages": []})
DIALECTS: dict[str, Request] = {
    "OpenAI chat": _CHAT,
    "completions": ("/v1/completions", {"model": "scripted", "stream": True, "prompt": "hi"}),
    "Responses": ("/v1/responses", {"model": "scripted", "stream": True, "input": "hi"}),
    "Anthropic": ("/v1/messages", {"model": "scripted", "stream": True, "max_tokens": 99, "messages": []}),
    "Gemini": ("/v1beta/models/scripted:streamGenerateContent?alt=sse", {"contents": []}),
    "Ollama": ("/api/chat", {"model": "scripted", "messages": []}),
}


class _BrokenStreamError(aiohttp.ClientError):
    """A stream that did not end as streams end; `body` is what came of it."""

    def __init__(self, body: bytes) -> None:
        super().__init__("the stream broke off")
        self.body = body


async def _stream(stage: Stage, url: str, request: Request, **script: Any) -> tuple[bytes, list[float]]:
    """The whole body, and the seconds between its pieces."""
    path, body = request
    headers = {"X-Scripted": orjson.dumps(script).decode()}
    pieces, times = [], []
    async with stage.client.post(url + path, json=body, headers=headers) as answer:
        try:
            async for piece in answer.content.iter_any():
                pieces.append(piece)
                times.append(time.perf_counter())
        except aiohttp.ClientError as error:
            raise _BrokenStreamError(b"".join(pieces)) from error
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    return b"".join(pieces), gaps


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
        bad = line["outcome"] not in (Outcome.COMPLETE, Outcome.CANCELLED)
        table.add_row(
            f"{line['provider']} {line['operation']}",
            f"[red]{line['outcome']}[/]" if bad else line["outcome"],
            *[
                _cell(line[name])
                for name in ("ttft_ms", "itl_p50_ms", "itl_max_ms", "total_ms", "overhead_ms")
            ],
            str(line["events"]),
        )
    return table


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
