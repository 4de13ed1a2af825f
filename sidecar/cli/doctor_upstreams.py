"""Every place that requests go to: its name, its port, TLS, and what its clock says."""

import asyncio
import time
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime

import msgspec

from sidecar.cli.doctor_http import Answer, Timed
from sidecar.cli.doctor_reach import (
    UnreachableError,
    ends_soon,
    figures,
    origin_of,
    place,
    reach,
    told,
)
from sidecar.cli.doctor_show import Finding, fail, ok, warn
from sidecar.config import Config
from sidecar.core.values import is_loopback
from sidecar.engine.source import Origin
from sidecar.serving.routes import Routes

_DATE = 5.0
"""Seconds to wait for an answer that only its date is wanted of."""


class Target(msgspec.Struct, frozen=True):
    """One of them."""

    names: tuple[str, ...]
    origin: Origin
    chosen: bool
    """Somebody configured it: without it, something does not work that should."""

    @property
    def check(self) -> str:
        return ", ".join(self.names)


class Visited(msgspec.Struct, frozen=True):
    """What came of going there."""

    finding: Finding
    reachable: bool
    skew: float | None = None
    """Seconds that its clock is ahead of ours; None where it did not say."""


def targets(config: Config) -> list[Target]:
    """All of them, each once."""
    chosen = config.server.upstream is not None or bool(config.upstreams)
    found: dict[Origin, list[str]] = {}
    for table in Routes(config).tables:
        names = found.setdefault(origin_of(table.url), [])
        if table.name not in names:
            names.append(table.name)
    made = [Target(tuple(names), origin, chosen) for origin, names in found.items()]
    if config.cache.mode in ("semantic", "shadow") and config.semantic.embedder != "local":
        made.append(Target(("embedder",), origin_of(config.semantic.embedder), chosen=True))
    return made


async def visited(config: Config, timeout: float) -> AsyncIterator[tuple[Target, Visited]]:  # noqa: ASYNC109
    """Go to all of them at once; told in their order, each as soon as that can be."""
    found = targets(config)
    tasks = [asyncio.ensure_future(visit(target, timeout)) for target in found]
    try:
        for target, task in zip(found, tasks, strict=True):
            yield target, await task
    finally:
        for task in tasks:
            task.cancel()


async def visit(target: Target, timeout: float) -> Visited:  # noqa: ASYNC109
    """Go there."""
    check = f"upstream {target.check}" if target.names != ("embedder",) else "embedder"
    try:
        answer, timed = await reach(target.origin, timeout)
    except UnreachableError as error:
        # What nobody chose may be out of reach; a certificate that is not accepted is wrong in any case.
        if target.chosen or error.step == "tls":
            return Visited(fail(check, error.fact, error.remedy), reachable=False)
        return Visited(warn(check, error.fact, _unchosen(target, error)), reachable=False)
    try:
        skew = await _skew(answer, target.origin, min(timeout, _DATE))
    finally:
        answer.close()
    return Visited(_fine(check, target, timed), reachable=True, skew=skew)


def _unchosen(target: Target, error: UnreachableError) -> str:
    if is_loopback(target.origin.host) and error.step == "connect":
        return "only matters if your apps call Ollama: then start it there (`ollama serve`)"
    what = "its name server" if error.step == "resolve" else "its routes and firewall"
    return f"only matters if your apps call it: then see to the network of this machine, {what}"


def _fine(check: str, target: Target, timed: Timed) -> Finding:
    fact = f"{target.origin.scheme}://{place(target.origin)}: {told(timed)}"
    if ends_soon(timed):
        return warn(check, fact, "whoever runs it has to renew the certificate", **figures(timed))
    return ok(check, fact, **figures(timed))


async def _skew(answer: Answer, origin: Origin, timeout: float) -> float | None:  # noqa: ASYNC109
    """How far its clock is ahead of ours. It is asked for nothing, without any credential."""
    await answer.ask(origin, "/", method="HEAD")
    try:
        async with asyncio.timeout(timeout):
            if not await answer.head:
                return None
        now = time.time() - (answer.latest - answer.asked_at) / 2
        return parsedate_to_datetime(answer.fields["date"]).timestamp() - now
    except (TimeoutError, KeyError, ValueError, OverflowError):
        return None


def unreachable(found: list[tuple[Target, Visited]]) -> Finding | None:
    """When nothing at all can be reached, though nobody chose any of it."""
    providers = [(target, seen) for target, seen in found if target.names != ("embedder",)]
    if any(seen.reachable or target.chosen for target, seen in providers):
        return None
    remedy = "see to the network of this machine, or name an upstream that it reaches: --upstream URL"
    return fail(
        "upstreams", "none of the known providers can be reached: every request would end in a 502", remedy
    )
