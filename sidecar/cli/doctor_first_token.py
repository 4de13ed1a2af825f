"""Time to the first token, directly and through a sidecar: by turns, so that both see the same weather.

The sidecar is started for it in this process, on a free port of loopback, without cache, clients and data
folder. With a provider's key at hand it is that provider who is asked, a few times and for a few tokens;
the sidecar's own share is then its latency line's, since the difference of two such times is mostly the
provider's own spread. Otherwise it is the scripted provider of `slipstream demo`, on this machine.
"""

from collections.abc import Callable
from contextlib import AsyncExitStack
from statistics import median
from typing import Any

import msgspec

from sidecar.cli.doctor_asks import Ask
from sidecar.cli.doctor_http import Answer
from sidecar.cli.doctor_reach import UnreachableError, origin_of, place, reach
from sidecar.cli.doctor_show import Finding, fail, milliseconds, ok, warn
from sidecar.config import Config
from sidecar.core.answer import Answer as Reading
from sidecar.core.dialects import recognise
from sidecar.core.types import Head, Intent
from sidecar.engine.source import Origin
from sidecar.scripted import Script, ScriptedProvider
from sidecar.serving.assembly import Stores
from sidecar.tables import Otel, Tls
from sidecar.telemetry.log import make_logger
from sidecar.web.service import Service

ROUNDS = 3
"""Of a provider that wants to be paid."""
SCRIPTED_ROUNDS = 11
_FIRST = 0.02
"""Seconds that the scripted provider thinks."""
_SLOW = 0.025
"""Seconds that a sidecar with nothing else to do does not take on any sound machine."""
PATIENCE = 60.0
"""Seconds that a provider may be silent."""
_CHECK = "first token"


class RefusedAskError(Exception):
    """An answer without a first token: why, and what to do."""

    def __init__(self, fact: str, remedy: str) -> None:
        super().__init__(fact)
        self.fact, self.remedy = fact, remedy


class _Nowhere:
    """Takes log lines of a sidecar that nobody is to hear of."""

    def write(self, line: bytes) -> None:
        """Drop it."""


async def scripted(timeout: float) -> Finding:  # noqa: ASYNC109
    """Against the scripted provider on this machine."""
    script = Script(tokens=3, first=_FIRST)
    async with ScriptedProvider(script=script, record=False) as provider:
        ask = Ask.openai(provider.url, "any", None)
        config = msgspec.structs.replace(
            Config(), server=msgspec.structs.replace(Config().server, upstream=provider.url)
        )
        try:
            found = await _measured(config, ask, SCRIPTED_ROUNDS, timeout)
        except (RefusedAskError, UnreachableError) as error:
            return fail(_CHECK, f"scripted provider: {error.fact}", f"this is our fault: {error.remedy}")
    direct, through, own = (median(times) for times in found)
    fact = (
        f"{milliseconds(direct)} from the scripted provider, {milliseconds(through)} through a sidecar "
        f"(medians of {SCRIPTED_ROUNDS}): {milliseconds(max(through - direct, 0))} more"
    )
    return _judged(fact, through - direct, "scripted", direct, through, own, SCRIPTED_ROUNDS)


async def asked(config: Config, ask: Ask, timeout: float) -> Finding:  # noqa: ASYNC109
    """Against a provider, with a key."""
    try:
        found = await _measured(config, ask, ROUNDS, timeout)
    except (RefusedAskError, UnreachableError) as error:
        return fail(_CHECK, f"{ask.model}: {error.fact}", error.remedy)
    direct, through, own = (median(times) for times in found)
    fact = (
        f"{milliseconds(direct)} directly, {milliseconds(through)} through a sidecar, which took "
        f"{milliseconds(own)} of it (medians of {ROUNDS}; {ask.model} at {place(ask.origin)})"
    )
    return _judged(fact, own, ask.model, direct, through, own, ROUNDS)


def _judged(
    fact: str, added: float, model: str, direct: float, through: float, own: float, rounds: int
) -> Finding:
    data = {
        "model": model,
        "direct_ms": round(direct * 1000, 2),
        "through_ms": round(through * 1000, 2),
        "own_ms": round(own * 1000, 2),
        "rounds": rounds,
    }
    if added > _SLOW:
        remedy = (
            "the machine is busy or slow: look at its CPU (`top`), give the sidecar a core, and try again"
        )
        return warn(_CHECK, fact, remedy, **data)
    return ok(_CHECK, fact, **data)


async def _measured(config: Config, ask: Ask, rounds: int, timeout: float) -> list[list[float]]:  # noqa: ASYNC109
    """Times directly, times through, and the sidecar's own share of these; in seconds."""
    direct: list[float] = []
    through: list[float] = []
    lines: list[dict[str, Any]] = []
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(_service(config, lines.append))
        near = origin_of(service.url)
        for _ in range(rounds):
            direct.append(await _first(ask, ask.origin, ask.direct, timeout))
            through.append(await _first(ask, near, ask.target, timeout))
    own = [line["overhead_ms"] / 1000 for line in lines if line.get("overhead_ms") is not None]
    return [direct, through, own or [0.0]]


def _service(config: Config, take: Callable[[dict[str, Any]], None]) -> Service:
    replace = msgspec.structs.replace
    alone = replace(
        config,
        server=replace(config.server, host="127.0.0.1", port=0, workers=1),
        tls=Tls(),
        clients=[],
        # The key is in the requests, as an app would send it.
        upstreams=[replace(table, key_file=None, key_header=None) for table in config.upstreams],
        cache=replace(config.cache, mode="off"),
        otel=Otel(),
    )
    return Service(alone, b"doctor" * 6, make_logger(_Nowhere(), "json", "error"), take, Stores())


async def _first(ask: Ask, origin: Origin, target: str, timeout: float) -> float:  # noqa: ASYNC109
    """Seconds from the request to the first token, on a connection that is there already. Raises
    RefusedAskError, UnreachableError."""
    answer, _ = await reach(origin, timeout)
    try:
        await answer.ask(origin, target, ask.fields, method="POST", body=ask.body)
        ended = await answer.ended(PATIENCE)
        return _first_of(ask, answer, ended=ended)
    finally:
        answer.close()


def _first_of(ask: Ask, answer: Answer, *, ended: bool) -> float:
    if not ended or not answer.status:
        raise RefusedAskError(
            "no answer, or not to its end", "try again; see whether the provider has trouble"
        )
    if answer.status != 200:
        raise RefusedAskError(*ask.trouble(answer.status))
    reading = Reading(ask.request, recognise("POST", ask.request.path), Intent(ask.model, stream=True))
    fields = {name.encode(): value.encode("latin-1") for name, value in answer.fields.items()}
    reading.begin(Head(answer.status, b"OK", tuple(fields.items()), fields))
    for at, data in answer.pieces:
        reading.feed(data, at)
    if reading.first_kind is None:
        fact = "an answer, but no token in it"
        raise RefusedAskError(fact, "name a model that writes at once, without reasoning: --model NAME")
    return reading.first_at - answer.asked_at
