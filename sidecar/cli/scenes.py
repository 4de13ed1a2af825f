"""What `slipstream demo` shows: each scene does something with the product and checks what came of it."""

import asyncio
import itertools
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import aiohttp
import orjson

from sidecar.scripted import ScriptedProvider

KEEPALIVE = 0.15
"""Seconds; short, so that nobody has to wait to see one."""


class Scene(NamedTuple):
    """What one scene found."""

    passed: bool
    told: str


class Lines:
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
    lines: Lines


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
    body, _ = await _stream(stage, stage.url, _CHAT, first=4 * KEEPALIVE)
    comments = body.count(b": keepalive\n")
    told = f"{comments} keepalives while the model was silent for {4 * KEEPALIVE:g} s (every 15 s by default)"
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


async def _tunnel(stage: Stage) -> Scene:
    before = len(stage.provider.requests)
    path, body = _CHAT
    call = {**body, "user": "in a tunnel"}
    headers = {"Accept": "text/event-stream"}
    got = b""
    async with stage.client.post(stage.url + path, json=call, headers=headers) as answer:
        name = answer.headers.get("Slipstream-Stream-Id", "")
        while got.count(b"\n\n") < 8:
            got += await answer.content.readany()
        answer.close()
    whole, _, _ = got.rpartition(b"\n\n")
    last = whole.rpartition(b"\nid: ")[2].decode()
    headers["Last-Event-ID"] = last
    url = f"{stage.url}/_slipstream/streams/{name}"
    async with stage.client.get(url, headers=headers) as answer:
        rest = await answer.read()
    ids = re.findall(rb"^id: .*:(\d+)$", whole + b"\n\n" + rest, re.MULTILINE)
    calls = len(stage.provider.requests) - before
    in_order = [int(number) for number in ids] == list(range(len(ids)))
    number = int(last.rpartition(":")[2] or -1)
    told = (
        f"cut after event {number}, went on with event {number + 1}: {len(ids)} events in order, {calls} call"
    )
    return Scene(in_order and rest.endswith(b"\n\n") and b"[DONE]" in rest and calls == 1, told)


async def _crowd(stage: Stage) -> Scene:
    before = len(stage.provider.requests)
    path, body = _CHAT
    request = (path, {**body, "user": "a crowd"})
    found = await asyncio.gather(*(_stream(stage, stage.url, request) for _ in range(10)))
    calls, answers = len(stage.provider.requests) - before, {answer for answer, _ in found}
    told = f"{len(found)} clients, {calls} call to the provider, {len(answers)} answer"
    return Scene(calls == 1 and len(answers) == 1, told)


async def _paid_once(stage: Stage) -> Scene:
    before = len(stage.provider.requests)
    path, body = _CHAT
    took, answers, said = [], [], []
    for _ in range(2):
        begun = time.perf_counter()
        async with stage.client.post(stage.url + path, json={**body, "user": "twice"}) as answer:
            answers.append(await answer.read())
            said.append(answer.headers.get("Cache-Status", ""))
        took.append((time.perf_counter() - begun) * 1000)
    calls = len(stage.provider.requests) - before
    told = f"a miss in {took[0]:.0f} ms, then a hit in {took[1]:.1f} ms: {calls} call, the same bytes"
    hit = "fwd=miss" in said[0] and "; hit; " in said[1]
    return Scene(hit and calls == 1 and answers[0] == answers[1], told)


async def _other_words(stage: Stage) -> Scene:
    asked = "How can I change the email address of my account?"
    again = "How do I change my account's email address?"
    first, second = await _two(stage, asked, again)
    took = f"a miss in {first.ms:.0f} ms, a hit in {second.ms:.0f} ms"
    told = f'"{asked}"\n   "{again}"\n   {_alike(second)}; {took}'
    hit = "fwd=miss" in first.said and "; hit; " in second.said and "detail=semantic" in second.said
    return Scene(hit and second.calls == 0 and first.body == second.body, told)


async def _near_miss(stage: Stage) -> Scene:
    asked = "How many people live in Norway as of 2019?"
    other = "How many people live in Norway as of 2024?"
    first, second = await _two(stage, asked, other)
    guard = second.line.get("guard")
    told = f'"{asked}"\n   "{other}"\n   {_alike(second)}, but the {guard} differ: asked upstream'
    missed = "fwd=miss" in first.said and "fwd=miss" in second.said
    return Scene(missed and second.calls == 1 and guard is not None, told)


class _Asked(NamedTuple):
    body: bytes
    said: str
    ms: float
    calls: int
    line: dict[str, Any]


async def _two(stage: Stage, *questions: str) -> list[_Asked]:
    """One question after the other, each once the answer to the one before is stored."""
    asked = []
    for question in questions:
        calls, lines = len(stage.provider.requests), len(stage.lines.requests)
        path, body = _CHAT
        call = {**body, "messages": [{"role": "user", "content": question}]}
        begun = time.perf_counter()
        async with stage.client.post(stage.url + path, json=call) as answer:
            whole, said = await answer.read(), answer.headers.get("Cache-Status", "")
        took = (time.perf_counter() - begun) * 1000
        while len(stage.lines.requests) == lines:  # noqa: ASYNC110 - reason: a log tells nobody
            await asyncio.sleep(0.01)  # the line of a stored answer is written once that is done
        line = stage.lines.requests[-1]
        asked.append(_Asked(whole, said, took, len(stage.provider.requests) - calls, line))
    return asked


def _alike(asked: _Asked) -> str:
    similarity = asked.line.get("similarity")
    return "nothing alike was found" if similarity is None else f"{similarity:.3f} alike"


async def _background(stage: Stage) -> Scene:
    path, body = _CHAT
    headers = {"Prefer": "respond-async"}
    async with stage.client.post(stage.url + path, json=body, headers=headers) as answer:
        accepted, where = answer.status, stage.url + answer.headers.get("Location", "")
    seen: list[dict[str, Any]] = []
    while not seen or seen[-1]["status"] in ("queued", "running"):
        async with stage.client.get(where) as answer:
            seen.append(await answer.json())
        await asyncio.sleep(0.1)
    async with stage.client.get(where + "/result") as answer:
        result = await answer.read()
    events = seen[-1]["progress"]["events"]
    told = f"202 at once, {seen[-1]['status']} when asked again, {events} events to fetch"
    passed = (accepted, seen[-1]["status"], result.count(b"\n\n")) == (202, "complete", events)
    return Scene(passed, told)


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
    "A dropped connection loses nothing": _tunnel,
    "Who asks the same at the same time shares one call": _crowd,
    "Who asks the same again gets the stored answer": _paid_once,
    "So does who asks the same in other words": _other_words,
    "Who asks something else does not, however alike it looks": _near_miss,
    "An answer can be fetched later": _background,
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
