"""Stored answers as clients see them: what is asked, what providers answer, and stores in a test's own hands."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import orjson

from sidecar.stores.base import Blob, StoreError
from sidecar.stores.memory import MemoryStore
from sidecar.web.service import Service
from tests.faults.conftest import Rig, eventually
from tests.faults.wire import CHAT, GUARD, LAST, Answer, Format, Upstream, chunk, head, request

MISS = b"slipstream; fwd=miss; stored"
UNSTORED = b"slipstream; fwd=miss"
BYPASS = b"slipstream; fwd=bypass"
KEY = (b"Authorization", b"Bearer sk-planted-credential")
OTHER_KEY = (b"Authorization", b"Bearer sk-planted-other")
DAY = 86400.0
LIMIT = 8 << 20


class Form(NamedTuple):
    """A kind of request."""

    name: str
    target: str
    body: dict[str, Any]
    stream: bool = False

    @property
    def sent(self) -> bytes:
        return orjson.dumps(self.body)

    def __str__(self) -> str:
        return self.name


TALK = {"model": "m", "messages": [{"role": "user", "content": "planted prompt 你好 🌊"}]}
TEXT = {"model": "m", "prompt": "planted prompt 你好 🌊"}
INPUT = {"model": "m", "input": "planted prompt 你好 🌊"}
PARTS = {"contents": [{"role": "user", "parts": [{"text": "planted prompt 你好 🌊"}]}]}
GEMINI = "/v1beta/models/g-1:"
STREAM = {"stream": True}
USAGE = {"stream_options": {"include_usage": True}}

STREAMS = [
    Form("chat-stream", "/v1/chat/completions", {**TALK, **STREAM, **USAGE}, stream=True),
    Form("completions-stream", "/v1/completions", {**TEXT, **STREAM, **USAGE}, stream=True),
    Form("responses-stream", "/v1/responses", {**INPUT, **STREAM}, stream=True),
    Form("anthropic-stream", "/v1/messages", {**TALK, "max_tokens": 64, **STREAM}, stream=True),
    Form("gemini-sse", GEMINI + "streamGenerateContent?alt=sse", PARTS, stream=True),
    Form("gemini-array", GEMINI + "streamGenerateContent", PARTS, stream=True),
    Form("ollama-chat-stream", "/api/chat", TALK, stream=True),
    Form("ollama-generate-stream", "/api/generate", TEXT, stream=True),
]
WHOLES = [
    Form("chat", "/v1/chat/completions", TALK),
    Form("completions", "/v1/completions", TEXT),
    Form("responses", "/v1/responses", INPUT),
    Form("anthropic", "/v1/messages", {**TALK, "max_tokens": 64}),
    Form("gemini", GEMINI + "generateContent", PARTS),
    Form("ollama-chat", "/api/chat", {**TALK, "stream": False}),
    Form("ollama-generate", "/api/generate", {**TEXT, "stream": False}),
    Form("embeddings", "/v1/embeddings", INPUT),
    Form("ollama-embed", "/api/embed", INPUT),
]
FORMS = STREAMS + WHOLES
FORM = {form.name: form for form in FORMS}
PLAIN, STREAMED = FORM["chat"], FORM["chat-stream"]
TOOLS = {"tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]}


def patched(form: Form, **fields: Any) -> Form:
    """The same with other fields of the body."""
    return form._replace(body={**form.body, **fields})


async def ask(rig: Rig, form: Form, *fields: tuple[bytes, bytes], body: bytes | None = None) -> Answer:
    """One request on a connection of its own, read to its end."""
    client = await rig.connect()
    answer = await client.whole("POST", form.target, form.sent if body is None else body, fields)
    client.close()
    return answer


def asked(rig: Rig) -> int:
    """How often the upstream was."""
    return rig.provider.received


def counts(rig: Rig) -> dict[str, int]:
    """What was counted, hits apart."""
    found = rig.sidecar.service.assembly.cache.counts
    return {name: count for name, count in found.items() if not name.startswith(("hit", "stored"))}


async def settled(rig: Rig, stored: int | None = None) -> None:
    """No call is running and no store is under way; `stored`: so many were, in all."""
    service, cache = rig.sidecar.service, rig.sidecar.service.assembly.cache
    await eventually(
        lambda: (
            not len(service.assembly.hub) and not service.assembly.front.active and not cache._writes._size
        ),
        lambda: (len(service.assembly.hub), service.assembly.front.active, cache._writes._size),
    )
    if stored is not None:
        assert cache.counts["stored"] == stored, cache.counts


async def filled(rig: Rig, form: Form, *fields: tuple[bytes, bytes]) -> Answer:
    """Ask for the first time; the answer is stored when this returns."""
    before = rig.sidecar.service.assembly.cache.counts["stored"] if rig.sidecars else 0
    answer = await ask(rig, form, *fields)
    assert answer.header("cache-status") == MISS
    assert (answer.status, answer.end) == (200, "whole")
    await settled(rig, before + 1)
    return answer


def is_hit(answer: Answer) -> bool:
    """Whether it is an ordinary hit; anything else that looks like one is a fault."""
    said = answer.header("cache-status") or b""
    if b"hit" not in said.split(b"; "):
        assert answer.header("age") is None
        return False
    _, hit, left, detail = said.split(b"; ")
    assert (hit, left[:4], detail) == (b"hit", b"ttl=", b"detail=exact")
    assert left[4:].isdigit()
    assert (answer.header("age") or b"").isdigit()
    assert b"lookup;dur=" in (answer.all("server-timing")[-1])
    assert not answer.all("set-cookie")
    assert (answer.status, answer.end) == (200, "whole")
    return True


async def hits(rig: Rig, form: Form, first: Answer, *fields: tuple[bytes, bytes], **how: Any) -> Answer:
    """Ask again: it is a hit with the same bytes, and the upstream hears nothing."""
    before = asked(rig)
    answer = await ask(rig, form, *fields, **how)
    assert is_hit(answer), answer.headers
    assert answer.body == first.body
    assert asked(rig) == before
    return answer


async def misses(rig: Rig, form: Form, *fields: tuple[bytes, bytes], **how: Any) -> Answer:
    """Ask: the upstream is asked, too."""
    before = asked(rig)
    answer = await ask(rig, form, *fields, **how)
    assert not is_hit(answer), answer.headers
    assert asked(rig) == before + 1
    return answer


# Answers that a test writes by itself.


def event(choices: str) -> bytes:
    shared = '"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m-1"'
    return f'data: {{{shared},"choices":[{choices}]}}\n\n'.encode()


def spoken(finish: str = "stop", text: str = "planted answer 你好 🌊", size: int = 0) -> list[bytes]:
    """A chat stream in its events."""
    content = json.dumps(text + "x" * size, ensure_ascii=False)
    return [
        event('{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}'),
        event(f'{{"index":0,"delta":{{"content":{content}}},"finish_reason":null}}'),
        event(f'{{"index":0,"delta":{{}},"finish_reason":"{finish}"}}'),
        b"data: [DONE]\n\n",
    ]


def said(finish: str = "stop", text: str = "planted answer 你好 🌊", size: int = 0) -> bytes:
    """The whole answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    more = {"padding": "x" * size} if size else {}
    return orjson.dumps({"id": "chatcmpl-1", "model": "m-1", "choices": [choice], **more})


SPOKEN = CHAT._replace(body=STREAMED.sent, events=spoken())


async def told(call: Upstream, body: bytes, *fields: bytes, status: bytes = b"200 OK") -> None:
    """Answer a call with a whole body."""
    framing = b"Content-Length: %d" % len(body)
    await call.send(head(b"application/json", *fields, status=status, framing=framing), body)
    call.done()


async def streamed(call: Upstream, *parts: bytes, fields: tuple[bytes, ...] = ()) -> None:
    """Answer a call with a whole stream."""
    await call.send(head(CHAT.kind, *fields), *map(chunk, parts), LAST)
    call.done()


async def begun(rig: Rig, form: Form | Format, *fields: tuple[bytes, bytes]) -> tuple[Any, Upstream]:
    """A request that the upstream has, with its client; the path is scripted."""
    rig.script(form.target)
    client = await rig.connect()
    body = form.sent if isinstance(form, Form) else form.body
    await client.send(request("POST", form.target, body, fields))
    return client, await rig.call()


# A clock and stores in a test's own hands.


class Clock:
    """Stands still until it is told to go."""

    def __init__(self, now: float | None = None) -> None:
        self.now = time.time() if now is None else now

    def __call__(self) -> float:
        return self.now


def clocked(sidecar: Any) -> Clock:
    """From now on the sidecar's answers go by this clock; the store's own does not matter in memory."""
    clock = sidecar.service.assembly.answers.clock = Clock()
    return clock


class HeldStore(MemoryStore):
    """A store in memory whose calls a test can hold up, or make fail."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__(LIMIT, clock)
        self.gets: list[bytes] = []
        self.puts: list[bytes] = []
        self.broken: set[str] = set()
        self.closed = False
        self._gates = {name: threading.Event() for name in ("get", "put")}
        self.entered = {name: threading.Event() for name in ("get", "put")}
        for gate in self._gates.values():
            gate.set()

    def hold(self, name: str) -> None:
        self.entered[name].clear()
        self._gates[name].clear()

    def release(self, name: str) -> None:
        self._gates[name].set()

    async def inside(self, name: str) -> None:
        """Until a call is being held up."""
        await eventually(self.entered[name].is_set, lambda: f"no {name}")

    def _pass(self, name: str) -> None:
        self.entered[name].set()
        assert self._gates[name].wait(GUARD * 2)
        if name in self.broken:
            raise StoreError("answers: the disk reports an error")

    def get(self, key: bytes) -> bytes | None:
        self.gets.append(key)
        found = super().get(key)
        self._pass("get")
        return found

    def put_all(self, blobs: Sequence[Blob]) -> None:
        self.puts.append(blobs[0].key)
        self._pass("put")
        super().put_all(blobs)

    def close(self) -> None:
        self.closed = True


async def on_store(rig: Rig, store: Any, **keys: Any) -> Any:
    """A sidecar on that store."""
    sidecar = await rig.start(**{"cache__ttl": 3600, **keys})
    service: Service = sidecar.service
    await service.assembly.cache.open(lambda: store)
    return sidecar


async def turns(count: int = 50) -> None:
    """Let the event loop do what it would."""
    for _ in range(count):
        await asyncio.sleep(0)


async def stopped(rig: Rig, grace: float = 0.0) -> bool:
    """The sidecar started last is stopped, in good order. Returns whether all had ended by itself."""
    service = rig.sidecars.pop().service
    clean: bool = await service.stop(grace)

    async def again(_grace: float) -> bool:
        return True

    service.stop = again  # what started it stops it, too
    return clean
