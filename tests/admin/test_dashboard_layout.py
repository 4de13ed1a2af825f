"""The dashboard for everybody: names and order for who does not see it, contrast, narrow screens, many requests."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from sidecar.web.admin import feed
from tests.admin import tab as rig
from tests.admin.conftest import DIGEST, Start
from tests.admin.tab import HOSTILE, App, Open, Tab, some_of_everything

node, browser, first, open_tab = rig.node, rig.browser, rig.first, rig.open_tab

log = logging.getLogger(__name__)
NAMED = {
    "button", "checkbox", "combobox", "dialog", "heading", "image", "link", "navigation", "radio", "region",
    "searchbox", "table", "textbox",
}  # fmt: skip
CONTRAST = """
(() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => (c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4))
    .reduce((sum, c, at) => sum + c * [.2126, .7152, .0722][at], 0);
  const ratio = (one, other) => { const [a, b] = [light(one), light(other)].sort((x, y) => y - x); return (a + .05) / (b + .05); };
  const back = (node) => {
    for (; node; node = node.parentElement) {
      const color = parse(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const seen = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.closest(':disabled')) continue;
    seen.push([node.tagName + ' ' + walker.currentNode.data.trim().slice(0, 30), ratio(parse(getComputedStyle(node).color), back(node)), 4.5]);
  }
  for (const node of document.querySelectorAll('input:not([type=radio]), select, button:enabled')) {
    if (!node.checkVisibility()) continue;
    const style = getComputedStyle(node);
    if (style.borderColor !== 'rgba(0, 0, 0, 0)') seen.push([node.id + ' border', ratio(parse(style.borderColor), back(node.parentElement)), 3]);
    if (node.placeholder) seen.push(['placeholder', ratio(parse(getComputedStyle(node, '::placeholder').color), back(node)), 4.5]);
  }
  for (const node of document.querySelectorAll('.line')) seen.push(['line', ratio(parse(getComputedStyle(node).stroke), back(node)), 3]);
  for (const node of document.querySelectorAll('rect')) seen.push(['bar', ratio(parse(getComputedStyle(node).fill), back(node)), 3]);
  return seen;
})()
"""


async def busy(start: Start, folder: Path, **keys: Any) -> tuple[Any, int]:
    """A sidecar that was asked everything, with a request that runs, and how many there were."""
    port = await start(folder=folder, cache__ttl=3600, admin__token_sha256=DIGEST, **keys)
    async with App(port.sidecar.url) as app:
        asked = await some_of_everything(app)
        for number in range(12):
            await app.ask(f"{number}", model=HOSTILE)
        await app.ask(path="/v1/" + "long" * 100)
    await port.sidecar.lines.request(asked + 12)  # what is stored is on disk by then
    port.rig.script("/v1/responses")
    client = await port.rig.connect()
    await client.send(b"GET /v1/responses HTTP/1.1\r\nHost: sidecar.test\r\n\r\n")
    await port.rig.call()
    return port, asked + 13


async def show_all(tab: Tab, asked: int) -> None:
    await tab.until(f"feed.latest.stats.windows['5m']?.total.requests === {asked}")
    await tab.until("!document.querySelector('#active .scroll').hidden")
    await tab.until("document.querySelectorAll('#cache tbody tr').length > 1")
    await tab.until("document.querySelectorAll('#errors tbody tr').length > 1")


async def test_for_who_does_not_see_it(start: Start, open_tab: Open, tmp_path: Path) -> None:
    port, asked = await busy(start, tmp_path)
    tab = await open_tab(port.url)
    await show_all(tab, asked)
    for dialog in ("", "#recent tbody button", "#purge-all"):
        if dialog:
            await tab.js(f"document.querySelector('{dialog}').click()")
            await tab.until(
                "document.querySelector('dialog[open]:not(#waterfall), #waterfall[open] tbody tr')"
            )
        tree = (await tab.step("devtools", method="Accessibility.getFullAXTree", params={}))["nodes"]
        found = [
            (one["role"]["value"], one.get("name", {}).get("value", "").strip())
            for one in tree
            if not one["ignored"]
        ]
        roles = {role for role, _ in found}
        assert [role for role, name in found if role in NAMED and not name] == []
        if not dialog:
            assert {"banner", "main", "contentinfo", "navigation"} <= roles
            assert [name for role, name in found if role == "table"] == [
                "Latency percentiles over the last 5 min",
                "Requests as they run, oldest first",
                "Requests that have ended, newest first; the button in each row opens its waterfall",
                "Latency budgets: targets for the 95th percentile, and how fast each is used up",
                "Requests that went wrong, newest first",
                "Figures by model",
                "Stored answers",
            ]
            assert any(
                name.startswith("Time to first token as this page") for role, name in found if role == "image"
            )
        else:
            assert "dialog" in roles
        await tab.press("Escape")
        await tab.until("!document.querySelector('dialog[open]')")
    headings = await tab.js("[...document.querySelectorAll('main h2, header h1')].map((one) => one.tagName)")
    assert headings[0] == "H1" and set(headings[1:]) == {"H2"}
    assert await tab.js("[...document.querySelectorAll('th:not([scope])')].length") == 0
    assert await tab.js("[...document.querySelectorAll('table')].every((one) => one.caption)")
    assert await tab.js(
        "[...document.querySelectorAll('tbody tr')].every((one) => one.cells[0].scope === 'row')"
    )
    # What is read out unasked: never what changes every second.
    live = "[...document.querySelectorAll('[role=status], [role=alert], [role=log], [aria-live]')].map((one) => one.id)"
    assert await tab.js(live) == ["connection", "alerts", "cache-said", "", "purge-said"]


async def test_by_keyboard(start: Start, open_tab: Open, tmp_path: Path) -> None:
    port, asked = await busy(start, tmp_path)
    tab = await open_tab(port.url)
    await show_all(tab, asked)
    seen = []
    outlined = (
        "(({outlineStyle: style, outlineWidth: width}) => style !== 'none' && parseFloat(width) >= 1)"
        "(getComputedStyle(document.activeElement.labels?.[0]?.matches('.choice label')"
        " ? document.activeElement.labels[0] : document.activeElement))"
    )
    for _ in range(200):
        await tab.press("Tab")
        if await tab.js("document.activeElement === document.body"):
            break
        assert await tab.js(outlined), await tab.focused()
        seen.append(await tab.focused())
    assert seen[0] == "Skip to the figures"
    assert {"pause", "filter", "dimension", "purge-all", "/stats"} <= set(seen)
    assert sum(text.endswith(f"waterfall of {HOSTILE}") for text in seen) >= 1
    assert sum(text.startswith("Purge ") for text in seen) > 1
    await tab.js("document.querySelector('.skip').focus()")
    await tab.press("Enter")
    assert await tab.focused() == "main"
    # A dialog keeps the focus to itself, and gives it back.
    await tab.js("document.querySelector('#purge-all').focus()")
    await tab.press("Enter")
    for _ in range(8):
        await tab.press("Tab")
        assert await tab.js(
            "document.activeElement === document.body || !!document.activeElement.closest('#purge')"
        )
    await tab.press("Escape")
    await tab.until("document.activeElement.id === 'purge-all'")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_can_be_read(start: Start, open_tab: Open, tmp_path: Path, scheme: str) -> None:
    port, asked = await busy(start, tmp_path, file={"budgets": {"chat": {"total_ms": 0.001}}})
    port.sidecar.service.assembly.meter.watch()
    tab = await open_tab(port.url, scheme=scheme)
    await show_all(tab, asked)
    await tab.until("document.querySelector('#alerts').textContent !== ''")
    background = await tab.js("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(244, 246, 248)") is (scheme == "light")
    places = [await tab.js(CONTRAST)]
    await tab.js("document.querySelector('#recent tbody button').click()")
    await tab.until("document.querySelectorAll('#waterfall tbody tr').length > 0")
    places.append(await tab.js(CONTRAST))
    await tab.press("Escape")
    await tab.js("document.querySelector('#purge-all').click(); document.querySelector('#purge-go').click()")
    await tab.until("document.querySelector('#purge-said').textContent !== ''")
    places.append(await tab.js(CONTRAST))
    for place in places:
        assert len(place) > 200
        assert [(what, ratio) for what, ratio, least in place if ratio < least] == []


@pytest.mark.parametrize("width", [390, 1280])
async def test_it_fits(start: Start, open_tab: Open, tmp_path: Path, width: int) -> None:
    wide = "[document.documentElement.scrollWidth, document.body.scrollWidth, innerWidth]"
    dialogs = (
        "[...document.querySelectorAll('dialog[open]')].map((one) => one.getBoundingClientRect())"
        ".every(({left, right, top, bottom}) => left >= 0 && top >= 0 && right <= innerWidth && bottom <= innerHeight)"
    )
    empty = await open_tab((await start()).url, width=width)
    assert await empty.js(wide) == [width] * 3
    port, asked = await busy(start, tmp_path)
    for scheme in ("light", "dark"):
        tab = await open_tab(port.url, width=width, scheme=scheme)
        await show_all(tab, asked)
        assert await tab.js(wide) == [width] * 3
        for button in ("#recent tbody tr:last-child button", "#cache tbody button"):
            await tab.js(f"document.querySelector('{button}').click()")
            await tab.until(
                "document.querySelector('dialog[open]:not(#waterfall), #waterfall[open] tbody tr')"
            )
            assert await tab.js(wide) == [width] * 3
            assert await tab.js(dialogs)
            await tab.press("Escape")
            await tab.until("!document.querySelector('dialog[open]')")


async def test_nothing_moves_for_who_wants_that(start: Start, open_tab: Open) -> None:
    tab = await open_tab((await start()).url)
    reduced = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    await tab.step("devtools", method="Emulation.setEmulatedMedia", params={"features": reduced})
    moving = (
        "[...document.querySelectorAll('*')].filter((one) => getComputedStyle(one).transitionDuration !== '0s'"
        " || getComputedStyle(one).animationName !== 'none').length + document.getAnimations().length"
    )
    assert await tab.js(moving) == 0


METRICS = ("Nodes", "JSEventListeners", "JSHeapUsedSize", "LayoutCount", "RecalcStyleCount")
RATE = 84
"""Requests in a second, of 5,000 a minute."""


async def test_five_thousand_requests_a_minute(start: Start, open_tab: Open) -> None:
    """Each tick brings what a second of them does. Counted, not timed: nothing may grow from one to the next."""
    port = await start(beat=3600.0)
    port.rig.script("/v1/responses")
    for _ in range(60):
        client = await port.rig.connect()
        await client.send(b"GET /v1/responses HTTP/1.1\r\nHost: sidecar.test\r\n\r\n")
        await port.rig.call()
    tab = await open_tab(port.url)
    await tab.step("devtools", method="Performance.enable", params={"timeDomain": "threadTicks"})

    async def second(app: App, number: int) -> None:
        ask = [
            app.ask(
                f"{number} {one}",
                model=f"model-{one % 40}",
                scripted={"status": 500} if one % 20 == 0 else None,
            )
            for one in range(RATE)
        ]
        await asyncio.gather(*ask)
        told = await tab.js("feed.ticks")
        tick(port.admin._feed)
        await tab.until(f"feed.ticks === {told + 1}")

    async def measured() -> dict[str, float]:
        for _ in range(2):
            await tab.step("devtools", method="HeapProfiler.collectGarbage", params={})
        got = await tab.step("devtools", method="Performance.getMetrics", params={})
        return {one["name"]: one["value"] for one in got["metrics"]}

    async with App(port.sidecar.url) as app:
        for number in range(12):
            await second(app, number)
        before = await measured()
        for number in range(12, 40):
            await second(app, number)
        after = await measured()
    ticks = 28
    shown = await tab.js("document.querySelectorAll('*').length")
    rows = await tab.js("[...document.querySelectorAll('tbody')].map((one) => one.rows.length)")
    long = await tab.js("long")
    times = [name for name in after if name.endswith("Duration")]
    grown = {name: after[name] - before[name] for name in (*METRICS, *times)}
    log.info("long tasks: %s ms", [round(one) for one in long])
    log.info("CPU per tick: %.1f ms; grown: %s", grown["TaskDuration"] * 1000 / ticks, grown)
    assert await tab.js("feed.latest.stats.windows['5m'].total.requests") == 40 * RATE
    assert await tab.js("feed.latest.recent.length") == 50
    assert max(rows) == 50
    assert shown < 5000
    assert grown["JSEventListeners"] == 0
    assert grown["Nodes"] < before["Nodes"] * 0.05
    assert grown["JSHeapUsedSize"] < 2_000_000
    # Figures are written, and laid out once: nothing is measured in between.
    assert grown["LayoutCount"] <= 4 * ticks
    assert grown["RecalcStyleCount"] <= 6 * ticks


def tick(one: feed.Feed) -> None:
    """As its timer does."""
    if one._timer is not None:
        one._timer.cancel()
    one._tick()
