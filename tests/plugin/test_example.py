"""plugins/examples/chat.py as people run it, a process of its own, with its page in Chromium."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import httpx
import pytest

from sidecar.scripted import Script, ScriptedProvider
from sidecar.scripted.script import content
from tests.clients import conftest as clients
from tests.clients.cutter import Cut, Cutter
from tests.clients.rig import CHAT, HANG, Answer, Hosts

EXAMPLE = Path(__file__).parents[2] / "plugins" / "examples" / "chat.py"
QUESTION = "Does a page that comes back after a cut get the answer again from the cache?"
SCRIPT = Script(
    text="<b>Whole</b> answers &amp; nothing else: <img src=x onerror=alert(1)>, \u20ac and \U0001f600 too. "
    * 4
)
UNFINISHED = "ERROR:    ASGI callable returned without completing response.\n"
"""What uvicorn says of a stream that was stopped before it has noticed that the page has left it."""
TOKENS = content(SCRIPT)
TEXT = "".join(TOKENS)
PREFIXES = list(accumulate(TOKENS))
SOURCES = ["Stored answers", "Cut connections"]

node, hosts, chromium = clients.node, clients.hosts, clients.chromium


class App:
    """The example, running."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.url = url
        self.port = int(url.rpartition(":")[2])
        self.lines: list[dict[str, Any]] = []
        """The latency lines of questions."""
        self.other: list[str] = []
        """What else it wrote to stderr."""
        self._process = process
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            if not line.startswith(b"{"):
                self.other.append(line.decode())
            elif (said := json.loads(line)).get("path") == "/chat":
                self.lines.append(said)
                self._news.set()

    async def line(self, number: int) -> dict[str, Any]:
        async with asyncio.timeout(HANG):
            while len(self.lines) <= number:
                self._news.clear()
                await self._news.wait()
        return self.lines[number]

    async def stop(self) -> None:
        """As Ctrl-C does."""
        try:
            self._process.send_signal(signal.SIGINT)
            async with asyncio.timeout(HANG):
                await self._process.wait()
                await self._reading
        finally:
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
            self._reading.cancel()
        assert self._process.returncode == 0, self.other


@asynccontextmanager
async def example(*arguments: str) -> AsyncIterator[App]:
    command = (sys.executable, str(EXAMPLE), "--port", "0", *arguments)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    async with asyncio.timeout(HANG):
        url = (await process.stdout.readline()).decode().strip()
    assert url.startswith("http://127.0.0.1:"), (await process.communicate())[1].decode()
    app = App(process, url)
    try:
        yield app
    finally:
        await app.stop()


class Tab:
    """A page of the example in the browser."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._page: int | None = None

    async def step(self, step: str, **more: Any) -> Any:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)
        try:
            writer.write(json.dumps({"step": step, "page": self._page, **more}).encode() + b"\n")
            async with asyncio.timeout(HANG):
                item = json.loads(await reader.readline())
        finally:
            writer.close()
            await writer.wait_closed()
        assert "error" not in item, item["error"]
        return item["end"]

    async def open(self, url: str, **more: Any) -> None:
        self._page = await self.step("open", url=url, **more)

    async def send(self, text: str = QUESTION) -> None:
        await self.step("send", text=text)

    async def until(self, **shows: Any) -> list[dict[str, Any]]:
        """Wait until that is what it shows; returns all that it has shown since it was opened."""
        return await self.step("until", shows=shows)


Open = Callable[..., Awaitable[Tab]]


@pytest.fixture
async def open_tab(hosts: Hosts, chromium: None) -> AsyncIterator[Open]:
    """`await open_tab(url, width=390, scheme="dark")`; a page asks nobody but who served it."""
    async with AsyncExitStack() as stack:

        async def opened(url: str, **more: Any) -> Tab:
            tab = Tab(hosts.port("../../plugin/chat"))
            await tab.open(url, **more)

            async def close() -> None:
                asked = await tab.step("close")
                assert all(one.startswith((url, "data:")) for one in asked), asked

            stack.push_async_callback(close)
            return tab

        yield opened


class Gate:
    """A `hold` that lets out one event for each `open`."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(0)

    async def __call__(self, number: int) -> None:
        if number > 0:  # that is, all but the head and the role
            await self._free.acquire()

    def open(self, times: int = 1) -> None:
        for _ in range(times):
            self._free.release()


@pytest.fixture
async def model(provider: ScriptedProvider) -> AsyncIterator[App]:
    """The example, with `provider` as its model."""
    async with example("--upstream", f"{provider.url}/v1") as app:
        yield app


def different(seen: list[dict[str, Any]], name: str) -> list[Any]:
    """What a page has shown there, one after the other."""
    return [value for value, _ in groupby(shown[name] for shown in seen)]


async def test_token_by_token(provider: ScriptedProvider, model: App, open_tab: Open) -> None:
    gate = Gate()
    Answer(provider, CHAT, SCRIPT, gate, retry=False)
    tab = await open_tab(model.url)
    await tab.send()
    await tab.until(status="Writing", text="", busy=True, send=False, cancel=True)
    for prefix in PREFIXES:
        gate.open()
        await tab.until(text=prefix)
    gate.open(2)  # why it ended, and that it did
    seen = await tab.until(status="Done", busy=False, send=True, cancel=False)
    assert different(seen, "text") == ["", *PREFIXES]
    assert different(seen, "progress") == [None, 1, 2, 3, 4, None]
    assert different(seen, "status") == ["Ready", "Asking", "Searching", "Writing", "Done"]
    assert seen[-1]["sources"] == SOURCES
    before = [shown for shown in seen if not shown["text"]]
    assert before[-1]["sources"] == SOURCES
    assert not any(shown["sources"] for shown in before if shown["progress"] in (1, 2, 3))
    assert re.search(r"\nFirst token after \d+ ms\nDone after \d+ ms$", seen[-1]["facts"])
    line = await model.line(0)
    assert (line["outcome"], line["cache"]) == ("complete", "miss")
    assert line["phases"]["retrieval_ms"] > 0
    assert not model.other


async def test_cut_connections(provider: ScriptedProvider, model: App, open_tab: Open) -> None:
    """In the midst of the answer, of its rest, and before there is any."""
    cuts = [Cut(body=1000, hasty=True), Cut(body=250, hasty=True), Cut(head=True, hasty=True)]
    plan: list[Any] = [None, *cuts]  # the page itself comes whole
    async with Cutter(model.port, plan) as cutter:

        async def hold(number: int) -> None:
            if number > len(TOKENS) // 2:
                await cutter.until(lambda: len(cutter.exchanges) > len(plan))

        answer = Answer(provider, CHAT, SCRIPT, hold, retry=False)
        tab = await open_tab(cutter.url)
        await tab.send()
        seen = await tab.until(status="Done")
        asked = cutter.exchanges[1:]
        assert [exchange.over for exchange in asked] == ["cut", "cut", "cut", "whole"]
        assert [exchange.method for exchange in asked] == ["POST", "GET", "GET", "GET"]
        stream = asked[0].answer["slipstream-stream-id"]
        assert {exchange.target for exchange in asked[1:]} == {f"/_slipstream/streams/{stream}"}
        numbers = [
            int(exchange.headers["last-event-id"].removeprefix(f"{stream}:")) for exchange in asked[1:]
        ]
        assert numbers == sorted(numbers)
    assert different(seen, "text") == ["", *PREFIXES]
    assert seen[-1]["sources"] == SOURCES
    assert "The connection was cut, coming back" in different(seen, "status")
    assert answer.calls == 1
    assert not model.other


@pytest.mark.parametrize("key", ["Cancel", "Escape"])
async def test_cancel_ends_the_call(provider: ScriptedProvider, model: App, open_tab: Open, key: str) -> None:
    gate = Gate()
    Answer(provider, CHAT, SCRIPT, gate, retry=False)
    tab = await open_tab(model.url)
    await tab.send()
    gate.open(3)
    await tab.until(text=PREFIXES[2])
    [call] = provider.requests
    assert not call.closed.is_set()
    await tab.step("press", key=key)
    async with asyncio.timeout(2):
        await call.closed.wait()
        line = await model.line(0)
    assert line["outcome"] == "cancelled"
    seen = await tab.until(status="Cancelled", send=True, cancel=False, busy=False)
    assert seen[-1]["text"] == PREFIXES[2]
    # Half an answer is not kept: the same question is asked anew.
    Answer(provider, CHAT, SCRIPT, retry=False)
    await tab.send()
    seen = await tab.until(status="Done", turns=2)
    assert seen[-1]["text"] == TEXT
    assert seen[-1]["facts"].startswith("New answer (slipstream; fwd=miss; stored)\n")
    assert set(model.other) <= {UNFINISHED}


async def test_again_from_the_cache(open_tab: Open, tmp_path: Path) -> None:
    """With the model that it has of its own."""
    async with example("--data-dir", str(tmp_path)) as app:
        tab = await open_tab(app.url)
        await tab.send("What happens when a connection is cut?")
        first = await tab.until(status="Done")
        assert first[-1]["facts"].startswith("New answer (slipstream; fwd=miss; stored)\n")
        assert first[-1]["text"].startswith("When a connection is cut, its answer goes on")
        assert len(different(first, "text")) > 20
        assert (await app.line(0))["cache"] == "miss"  # stored by then
        await tab.send("What happens when a connection is cut?")
        again = await tab.until(status="Done", turns=2)
        assert again[-1]["facts"].startswith("Cache hit (slipstream; hit; ttl=")
        assert (again[-1]["text"], again[-1]["sources"]) == (first[-1]["text"], first[-1]["sources"])
        assert (await app.line(1))["cache"] == "hit"
    assert not app.other
    assert (tmp_path / "answers").is_dir()


async def test_a_broken_answer_is_said_to_be_one(
    provider: ScriptedProvider, model: App, open_tab: Open
) -> None:
    answer = Answer(provider, CHAT, SCRIPT, retry=False)
    answer.lost_after = 5
    tab = await open_tab(model.url)
    await tab.send()
    seen = await tab.until(status="The answer could not be completed", send=True)
    assert PREFIXES[3].startswith(seen[-1]["text"])
    assert (await model.line(0))["outcome"] == "upstream_error"


async def test_what_is_no_question(model: App) -> None:
    async with httpx.AsyncClient(base_url=model.url, trust_env=False) as client:
        for body in (b"", b"[]", b"{}", b'{"message": 1}', b"\xff"):
            answer = await client.post("/chat", content=body)
            assert (answer.status_code, answer.json()) == (
                400,
                {"detail": 'expected {"message": "a question"}'},
            )
    assert not model.other


async def test_fits(provider: ScriptedProvider, model: App, open_tab: Open) -> None:
    Answer(provider, CHAT, SCRIPT, retry=False)
    for width in (390, 1280):
        tab = await open_tab(model.url, width=width)
        assert not await tab.step("overflows")
        await tab.send("w" * 200)
        await tab.until(status="Done")
        await tab.send()
        await tab.until(status="Done", turns=2)
        assert not await tab.step("overflows")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"], ids=repr)
async def test_its_parser(hosts: Hosts, newline: str) -> None:
    source = re.search(r"^async function\* events.*?^}$", EXAMPLE.read_text(), re.DOTALL | re.MULTILINE)
    assert source
    lines = [
        "",
        ":",
        "retry: 5",
        "data: 1",
        "id: a",
        "",
        "event:token",
        'data:{"text":',
        'data: "\u20ac\U0001f600\\r"}',
        "",
    ]
    lines += [
        "id: b",
        "",
        "data:  [2]",
        "event",
        "",
        "event: lost",
        "",
        "data",
        ":",
        "data: 3",
        "",
        ":",
        ": end",
        "",
    ]
    raw = newline.join(lines).encode()
    wanted = [
        {"type": "message", "id": "a", "data": 1},
        {"type": "token", "id": "a", "data": {"text": "\u20ac\U0001f600\r"}},
        {"type": "", "id": "b", "data": [2]},
        {"type": "message", "id": "b", "data": 3},
    ]
    for size in (1, 2, 3, 7, len(raw)):
        pieces = [list(raw[at : at + size]) for at in range(0, len(raw), size)]
        tab = Tab(hosts.port("../../plugin/chat"))
        assert await tab.step("parse", source=source[0], pieces=pieces) == wanted, size
