"""`slipstream serve --cache semantic` as users start it, and an endpoint for embeddings in a test's own hands."""

import asyncio
import hashlib
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, NamedTuple, Self

import orjson

from sidecar.scripted import Connection, Received, Script, ScriptedProvider
from tests.faults.cache import KEY, Form
from tests.faults.semantic import AGAIN, ASKED, likeness
from tests.faults.test_process import Process
from tests.faults.wire import GUARD, Answer, Client, head

PATIENT = {"SLIPSTREAM_SEMANTIC__DEADLINE": "30"}
"""For tests that are not about time: the machine may be slow."""
STORED, SEMANTIC = b"slipstream; fwd=miss; stored", b"; detail=semantic:"


class Asked(NamedTuple):
    """What a client was told, and what the log was."""

    answer: Answer
    line: dict[str, Any]

    @property
    def cache(self) -> bytes:
        said = self.answer.header("cache-status")
        assert said is not None
        return said


class Serving:
    """A sidecar process. It is asked one thing after the other."""

    def __init__(self, process: Process, provider: ScriptedProvider) -> None:
        self.process = process
        self.pid = process.pid
        self._provider = provider
        self._lines = 0

    async def ask(
        self, form: Form, *fields: tuple[bytes, bytes], key: tuple[bytes, bytes] = KEY, text: str = ""
    ) -> Asked:
        """One request. No two answers of the provider's are the same. `text`: is in them."""
        said = f"answer number {self._provider.received} of the provider {text}"
        self._provider.script = Script(text=said)
        client = await Client.open(self.process.port)
        try:
            answer = await client.whole("POST", form.target, form.sent, [key, *fields])
        finally:
            client.close()
        assert answer.end == "whole"
        self._lines += 1
        return Asked(answer, await self.process.event("request", self._lines - 1))

    async def missed(self, form: Form, *fields: tuple[bytes, bytes], **how: Any) -> Asked:
        """Ask: the provider has to be asked, too. The answer is stored when this returns."""
        before = self._provider.received
        made = await self.ask(form, *fields, **how)
        assert self._provider.received == before + 1, made.cache
        assert (made.answer.status, made.cache) == (200, STORED)
        assert made.line["phases"]["store_ms"] is not None
        return made

    async def hit(self, form: Form, first: Asked, *fields: tuple[bytes, bytes], **how: Any) -> Asked:
        """Ask: it is answered with what was said to another question, and the provider hears nothing."""
        before = self._provider.received
        made = await self.ask(form, *fields, **how)
        assert likeness(made.answer) is not None, (made.cache, self.process.lines)
        assert made.answer.body == first.answer.body
        assert self._provider.received == before
        return made

    async def exact(self, form: Form, first: Asked) -> Asked:
        """Ask the same again: it is answered from the cache in the ordinary way."""
        before = self._provider.received
        made = await self.ask(form)
        assert b"; detail=exact" in made.cache
        assert made.answer.body == first.answer.body
        assert self._provider.received == before
        return made

    def names(self) -> list[str]:
        """Of its log's lines, but for those of requests."""
        return [line["event"] for line in self.process.lines if line["event"] != "request"]

    async def terminate(self) -> None:
        """As an init system does it: it has to end well."""
        self.process.signal()
        assert await self.process.exited() == 0, self.process.raw[-2000:]
        assert self.names()[-2:] == ["draining", "stopped"], self.names()
        assert self.process.lines[-1]["unfinished"] is False


@asynccontextmanager
async def serving(
    folder: Path,
    provider: ScriptedProvider,
    *flags: str,
    ready: bool = True,
    **variables: str,
) -> AsyncIterator[Serving]:
    """One that listens, and where it is to be `ready` finds paraphrases. Killed if the test leaves it running."""
    command = [
        *("serve", "--cache", "semantic", "--data-dir", str(folder), "--upstream", provider.url),
        *("--port", "0", "--log-format", "json", *flags),
    ]
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sidecar",
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "SLIPSTREAM_ADMIN__PORT": "0", **variables},
    )
    process = Process(started)
    try:
        process.port = int((await process.event("serving"))["url"].rpartition(":")[2])
        if ready:
            await process.event("semantic_ready")
        yield Serving(process, provider)
        assert not [line for line in process.lines if line["event"] == "fault"]
    finally:
        if started.returncode is None:
            started.kill()
        await process.exited()
        started._transport.close()


def rows(folder: Path, statement: str) -> list[tuple[Any, ...]]:
    """What the database of answers in that data folder says; it is only read."""
    place = f"{(folder / 'answers' / 'cache.db').as_uri()}?mode=ro"
    with closing(sqlite3.connect(place, uri=True, timeout=GUARD)) as connection:
        return connection.execute(statement).fetchall()


async def gone(pids: list[int]) -> None:
    """Until these processes are over, which are not ours to wait for."""
    for pid in pids:
        async with asyncio.timeout(GUARD):
            while alive(pid):  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    """A zombie is not, whoever its parent is now."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in ("Z", "X")


class Endpoint:
    """Embeds `ASKED` and what begins with `AGAIN` near each other, and anything else somewhere."""

    def __init__(self, port: int = 0) -> None:
        self._server = ScriptedProvider(port=port)
        self._server.on("/v1/embeddings", self._answer)
        self.texts: list[str] = []
        self.held = 0
        """Calls that are being held up."""
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop()

    @property
    def port(self) -> int:
        return self._server.port

    @property
    def variables(self) -> dict[str, str]:
        """For the environment of who is to use it."""
        url = f"http://127.0.0.1:{self.port}/v1/embeddings"
        return {"SLIPSTREAM_SEMANTIC__EMBEDDER": url, "SLIPSTREAM_SEMANTIC__MODEL": "small"}

    def hold(self) -> None:
        self.gate.clear()
        self.entered.clear()

    async def inside(self) -> None:
        """Until a call is being held up."""
        async with asyncio.timeout(GUARD):
            await self.entered.wait()

    async def _answer(self, connection: Connection, received: Received) -> None:
        ask = orjson.loads(received.body)
        assert ask["model"] == "small"
        self.texts += ask["input"]
        self.held += 1
        self.entered.set()
        try:
            await self.gate.wait()
        finally:
            self.held -= 1
        data = [{"index": at, "embedding": _vector(text)} for at, text in enumerate(ask["input"])]
        body = orjson.dumps({"object": "list", "data": data})
        await connection.send(head(b"application/json", framing=b"Content-Length: %d" % len(body)) + body)


def _vector(text: str) -> list[float]:
    if text == ASKED:
        return [1.0, 0.0, 0.0, 0.0, 0.0]
    if text.startswith(AGAIN):
        return [0.96, 0.28, 0.0, 0.0, 0.0]
    return [0.0, 0.0, *(byte - 127.5 for byte in hashlib.sha256(text.encode()).digest()[:3])]
