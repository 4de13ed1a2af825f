"""SDKs that are given ids because they ask for an event stream, keepalives among the events, make the same of an answer as
without the sidecar. Left to their own headers they are given no id."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import anthropic
import openai
import pytest

from sidecar.scripted import Script, ScriptedProvider

from .cutter import Cutter
from .rig import ANTHROPIC, CHAT, HANG, RESPONSES, Answer, Form

pytestmark = pytest.mark.both_shells

QUESTION: Any = [{"role": "user", "content": "What is the weather?"}]
EVENTS = {"Accept": "text/event-stream"}
SCRIPT = {"tokens": 5, "reasoning": 2}
PACE = {"first": 0.1, "interval": 0.06}
INTERVAL = 0.02
"""Of keepalives; the scripted provider is slower."""
Headers = dict[str, str]


async def chat(base: str, headers: Headers) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(
        base_url=f"{base}/v1", api_key="sk-test", max_retries=0, default_headers=headers
    ) as client:
        async for chunk in await client.chat.completions.create(model="m", messages=QUESTION, stream=True):
            yield chunk


async def responses(base: str, headers: Headers) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="sk-test", max_retries=0) as client:
        given = client.responses.create(model="m", input="What?", stream=True, extra_headers=headers)
        async for event in await given:
            yield event


async def messages(base: str, headers: Headers) -> AsyncIterator[Any]:
    async with anthropic.AsyncAnthropic(base_url=base, api_key="sk-test", max_retries=0) as client:
        given = client.messages.create(
            model="m", messages=QUESTION, max_tokens=100, stream=True, extra_headers=headers
        )
        async for event in await given:
            yield event


class Sdk(NamedTuple):
    form: Form
    call: Callable[[str, Headers], AsyncIterator[Any]]
    keepalive: bytes

    def __str__(self) -> str:
        return self.form.name


SDKS = (
    Sdk(CHAT, chat, b": keepalive\n"),
    Sdk(RESPONSES, responses, b": keepalive\n"),
    Sdk(ANTHROPIC, messages, b'event: ping\ndata: {"type": "ping"}\n\n'),
)


class Heard(NamedTuple):
    """What an SDK made of an answer, and the bytes that it was given."""

    dumps: list[Any]
    body: bytes
    status: int


async def hear(port: int, sdk: Sdk, headers: Headers) -> Heard:
    async with Cutter(port) as cutter:
        dumps = [item.model_dump(mode="json") async for item in sdk.call(cutter.url, headers)]
        # The SDK stops at the terminal event; the bytes up to there are what counts.
        exchange = cutter.exchanges[0]
        return Heard(dumps, bytes(exchange.body), exchange.status)


async def test_all_at_once(provider: ScriptedProvider, start_sidecar: Any) -> None:
    sidecar = await start_sidecar(provider.url, keepalive__interval=INTERVAL)
    plain = {"X-Scripted": json.dumps(SCRIPT)}
    paced = {"X-Scripted": json.dumps(SCRIPT | PACE)}
    asked = [
        *((provider.port, sdk, plain) for sdk in SDKS),
        *((sidecar.port, sdk, paced) for sdk in SDKS),
        *((sidecar.port, sdk, paced | EVENTS) for sdk in SDKS),
    ]
    heard = await asyncio.gather(*(hear(*one) for one in asked))
    assert {one.status for one in heard} == {200}
    for sdk, direct, through, stamped in zip(SDKS, heard[:3], heard[3:6], heard[6:], strict=True):
        assert len(direct.dumps) > SCRIPT["tokens"]
        assert through.dumps == direct.dumps
        assert stamped.dumps == direct.dumps

        assert direct.body.startswith(through.body.replace(sdk.keepalive, b""))
        assert b"id:" not in re.findall(rb"^\w+:", through.body, re.MULTILINE)

        ids = re.findall(rb"^id: (s\S+):(\d+)\n\n", stamped.body, re.MULTILINE)
        assert len({stream for stream, _ in ids}) == 1
        assert [int(number) for _, number in ids] == list(range(len(ids)))
        assert len(ids) >= len(direct.dumps)
        bare = re.sub(rb"^id: .*\n", b"", stamped.body.replace(sdk.keepalive, b""), flags=re.MULTILINE)
        assert direct.body.startswith(bare)
    # A busy machine may leave no gap in a single one.
    assert sum(one.body.count(ask[1].keepalive) for one, ask in zip(heard[3:], asked[3:], strict=True)) >= 6


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("sdk", SDKS, ids=str)
async def test_every_event_is_given_when_it_comes(
    provider: ScriptedProvider, sidecar: Any, sdk: Sdk, newline: Any
) -> None:
    """The upstream sends each event when the SDK has given out the one before. Anthropic's looks for two line ends of one
    kind."""
    given = asyncio.Semaphore(0)

    async def hold(number: int) -> None:
        if number > 0 and given_out[number - 1]:
            await given.acquire()

    answer = Answer(provider, sdk.form, Script(tokens=5, newline=newline), hold, retry=False)
    given_out = [kind != "ping" and data != "[DONE]" for kind, data in answer.wanted]
    dumps = []
    try:
        async with asyncio.timeout(HANG):
            async for item in sdk.call(sidecar.url, EVENTS):
                dumps.append(item)
                given.release()
    except TimeoutError:
        pytest.fail(f"the SDK holds back what came after {dumps[-1:]}")
    assert len(dumps) == sum(given_out)
