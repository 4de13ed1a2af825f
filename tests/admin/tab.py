"""The dashboard in a browser, and what happens behind it: apps that ask, with the answers that a test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any, Self
from urllib.parse import unquote

import httpx
import pytest

from tests.clients import conftest as clients
from tests.clients.rig import HANG, Hosts

HOSTILE = "<script>document.title='x'</script><img src=x onerror=alert(1)>.\"'&amp;"
DRIVER = "../../admin/dashboard"
REFUSED = "Failed to load resource: the server responded with a status of "
"""What Chromium says of each answer that is a refusal."""


class Tab:
    """One page."""

    def __init__(self, port: int, url: str) -> None:
        self.url = url
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

    async def open(self, **more: Any) -> None:
        self._page = await self.step("open", url=self.url, **more)

    async def js(self, expression: str) -> Any:
        """What that is, in the page."""
        return await self.step("evaluate", expression=expression)

    async def until(self, expression: str) -> None:
        try:
            await self.step("until", expression=expression)
        except TimeoutError:
            shown = await self.js("document.body.innerText")
            raise AssertionError(f"{expression} does not hold:\n{shown}") from None

    async def ticks(self, more: int = 1) -> None:
        """Until the feed has told it so much more, and it is drawn."""
        seen = await self.js("feed.ticks")
        await self.until(f"feed.ticks >= {seen + more}")

    async def press(self, *keys: str) -> None:
        await self.step("press", keys=keys)

    async def text(self, selector: str) -> str:
        return await self.js(f"document.querySelector({json.dumps(selector)}).innerText")

    async def focused(self) -> str:
        """What has the focus: the text that names it, or its id."""
        return await self.js("document.activeElement.id || document.activeElement.textContent.trim()")

    async def rows(self, section: str) -> list[list[str]]:
        """The texts of a table's rows, without what is only read out."""
        return await self.js(
            f"[...document.querySelectorAll('#{section} tbody tr')].map((row) => [...row.cells].map((cell) =>"
            " (cell.querySelector('button > span:not(.hidden), span[aria-hidden]') ?? cell).textContent))"
        )

    async def figures(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """All figures that it shows, and the tick that they are from."""
        taken = await self.js(
            "({tick: feed.latest, figures: [...document.querySelectorAll('[data-stat]')].map((node) =>"
            " ({stat: node.dataset.stat, value: node.dataset.value, text: node.textContent}))})"
        )
        return taken["figures"], taken["tick"]

    async def close(self) -> None:
        """It has asked nobody else, was forbidden nothing, and nothing was wrong in it."""
        told = await self.step("close")
        assert all(url.startswith((self.url, "data:")) for url in told["asked"]), told["asked"]
        assert told["forbidden"] == []
        gone = "net::ERR_"  # of a server that was stopped
        assert [said for said in told["said"] if not said.startswith(REFUSED) and gone not in said] == []


Open = Callable[..., Awaitable[Tab]]
node = clients.node


@pytest.fixture(scope="module")
def browser(node: None) -> Iterator[int]:
    """Its port. It runs before a test counts what it has opened itself."""
    running = Hosts(clients.need("chromium"))
    yield running.port(DRIVER)
    running.stop()


@pytest.fixture(autouse=True)
def first(browser: int) -> None:
    """See `browser`."""


@pytest.fixture
async def open_tab(browser: int) -> AsyncIterator[Open]:
    """`await open_tab(url, width=390, scheme="dark")`, which waits for that `state`; closed after the test,
    with what `Tab.close` asserts."""
    async with AsyncExitStack() as stack:

        async def begin(url: str, state: str = "live", **more: Any) -> Tab:
            tab = Tab(browser, f"{url}/")
            await tab.open(**more)
            stack.push_async_callback(tab.close)
            await tab.until(f"document.body.dataset.state === '{state}'")
            return tab

        yield begin


def find(stats: Any, stat: str) -> Any:
    """What is at a path that a figure names."""
    for name in stat.split("."):
        key = unquote(name)
        stats = stats[int(key)] if isinstance(stats, list) else stats[key]
    return stats


class App:
    """Asks through a sidecar."""

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(base_url=url, trust_env=False, timeout=HANG)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask(
        self,
        question: str = "What?",
        model: str = "m",
        path: str = "/v1/chat/completions",
        scripted: dict[str, Any] | None = None,
        **fields: str,
    ) -> None:
        """For a stream, to its end, whatever that is."""
        headers = {"Authorization": "Bearer sk-test", "X-Scripted": json.dumps(scripted or {})}
        headers |= {name.replace("_", "-"): value for name, value in fields.items()}
        body = {
            "model": model,
            "stream": True,
            "max_tokens": 100,
            "messages": [{"role": "user", "content": question}],
        }
        with suppress(httpx.RemoteProtocolError):
            await self._client.post(path, json=body, headers=headers)


async def some_of_everything(app: App) -> int:
    """Requests of every kind that figures tell apart; returns how many."""
    for question in ("one", "two", "one", "one"):
        await app.ask(question, model="gpt-5.1-mini", path="/v1/messages")
    await app.ask("three", model=HOSTILE, path="/v1/messages")
    await app.ask("four", model="claude", path="/v1/messages", slipstream_feature="summarization")
    await app.ask("five", scripted={"fault": "fin"})
    await app.ask("six", scripted={"status": 429})
    await app.ask("seven", scripted={"fault": "error"})
    return 9


async def quiet(tab: Tab, requests: int, window: str = "5m") -> None:
    """Until it shows that these have ended, and that none runs."""
    await tab.until(
        f"feed.latest.stats.windows['{window}']?.total.requests === {requests}"
        " && feed.latest.stats.active.requests === 0"
    )
