"""The dashboard in Chromium, against a sidecar with real traffic: what it shows, and what can be done there."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from sidecar.scripted import ScriptedProvider
from sidecar.web.admin import feed
from tests.admin import tab as rig
from tests.admin.conftest import DIGEST, TOKEN, Start
from tests.admin.tab import HOSTILE, App, Open, Tab, find, quiet, some_of_everything
from tests.cli import conftest as cli
from tests.clients.rig import HANG
from tests.faults.wire import CHAT, LAST, chunk, head

clean, process = cli.clean, cli.process
node, browser, first, open_tab = rig.node, rig.browser, rig.first, rig.open_tab
WINDOWS = ("1m", "5m", "60m")
DIMENSIONS = ("model", "feature", "upstream", "cache")
QUANTILES = ("ttft_ms", "gap_ms", "total_ms", "overhead_ms", "tokens_per_second")
PASSING = ("per_second", "uptime_s", "loop_lag_ms")
"""Figures that change while nothing happens."""
CHOOSE = "(node, value) => { node.value = value; node.dispatchEvent(new Event('change', {bubbles: true})); }"


async def test_before_anything_was_asked_it_says_what_to_do(start: Start, open_tab: Open) -> None:
    port = await start()
    tab = await open_tab(port.url)
    await tab.until("!document.querySelector('#hint').hidden")
    assert "Point an app at the proxy" in await tab.text("#hint")
    assert "Nothing is running." in await tab.text("#active")
    assert await tab.js("[...document.querySelectorAll('.scroll')].filter((one) => !one.hidden).length") == 2
    figures, _ = await tab.figures()
    unknown = {one["text"] for one in figures if one["value"] == "null"}
    assert unknown == {"–no data"}
    async with App(port.sidecar.url) as app:
        await app.ask()
    await tab.until("document.querySelector('#hint').hidden")


async def test_figures_are_those_of_stats(start: Start, open_tab: Open, tmp_path: Path) -> None:
    port = await start(folder=tmp_path, cache__ttl=3600, admin__token_sha256=DIGEST)
    tab = await open_tab(port.url)
    async with App(port.sidecar.url) as app:
        asked = await some_of_everything(app)
    await quiet(tab, asked)
    for window in WINDOWS:
        await tab.js(f"document.querySelector('input[value=\"{window}\"]').click()")
        await quiet(tab, asked, window)
        for dimension in DIMENSIONS:
            await tab.js(f"({CHOOSE})(document.querySelector('#dimension'), '{dimension}')")
            figures, tick = await tab.figures()
            shown = {one["stat"]: json.loads(one["value"]) for one in figures}
            assert {stat: find(tick["stats"], stat) for stat in shown} == shown
            names = tick["stats"]["windows"][window][dimension]
            assert len(names) > (dimension != "upstream")
            wanted = {
                f"windows.{window}.{of}.{quantile}.{p}"
                for of in ("total", *[f"{dimension}.{quoted(name)}" for name in names])
                for quantile in QUANTILES
                for p in ("p50", "p95", "p99")
            }
            assert wanted <= shown.keys()
            fresh = await port.get("/stats")
            lasting = {
                stat: value for stat, value in shown.items() if not any(one in stat for one in PASSING)
            }
            if window != "1m":  # which may end at any time
                assert {stat: find(fresh, stat) for stat in lasting} == lasting
    assert shown["windows.60m.total.requests"] == asked
    assert shown["windows.60m.total.hit_rate"] > 0
    assert shown["windows.60m.total.stream_error_rate"] > 0
    assert shown["cache.saved_output_tokens"] > 0
    assert {one["text"] for one in figures if one["stat"] == "windows.60m.total.requests"} == {str(asked)}


def quoted(name: str) -> str:
    """As paths have the names of others; JavaScript's encodeURIComponent leaves these as they are."""
    return quote(name, safe="!~*'()-_").replace(".", "%2E")


FORMATS = [
    ("ms", 0, "0 ms"),
    ("ms", 0.4213, "0.42 ms"),
    ("ms", 4.21, "4.2 ms"),
    ("ms", 999.4, "999 ms"),
    ("ms", 999.5, "1 s"),
    ("ms", 2314, "2.31 s"),
    ("ms", 59_949, "59.9 s"),
    ("ms", 59_950, "1 min"),
    ("ms", 125_400, "2 min 5 s"),
    ("seconds", 3600, "1 h"),
    ("seconds", 3599.6, "1 h"),
    ("seconds", 90_000, "1 d 1 h"),
    ("seconds", 86_399, "1 d"),
    ("share", 0, "0 %"),
    ("share", 0.0001, "<0.1 %"),
    ("share", 0.123, "12.3 %"),
    ("share", 0.9999, ">99.9 %"),
    ("share", 1, "100 %"),
    ("bytes", 1023, "1,023 B"),
    ("bytes", 1024, "1 KiB"),
    ("bytes", 5_000_000, "4.77 MiB"),
    ("count", 1_234_567, "1,234,567"),
    ("factor", 1.4, "1.4×"),
]


async def test_figures_in_words(start: Start, open_tab: Open) -> None:
    tab = await open_tab((await start()).url)
    asked = json.dumps([[name, value] for name, value, _ in FORMATS])
    said = await tab.js(
        f"import('/format.js').then(({{FORMATS}}) => {asked}.map(([name, value]) => FORMATS[name](value)))"
    )
    assert said == [text for *_, text in FORMATS]


async def test_a_request_as_it_runs(start: Start, open_tab: Open) -> None:
    port = await start()
    port.rig.script(CHAT.target)
    tab = await open_tab(port.url)
    client = await port.rig.connect()
    await client.send(CHAT.sent)
    call = await port.rig.call()
    await phase(tab, "waiting for the upstream")
    row = (await tab.rows("active"))[0]
    assert row[2:6] == ["POST /v1/chat/completions", "default", "chat", "miss"]
    await tab.js("void (globalThis.kept = document.querySelector('#active tbody tr'))")
    await call.send(head())
    await phase(tab, "waiting for the first token")
    for number, event in enumerate(CHAT.events[:3], 1):
        await call.send(chunk(event))
        await tab.until(f"feed.latest.active[0]?.events === {number}")
    await phase(tab, "streaming")
    shown, row = await tab.js(
        "[[...document.querySelectorAll('#active [data-value]')].map((one) => one.dataset.value),"
        " feed.latest.active[0]]"
    )
    names = ("age_ms", "ttft_ms", "events", "output_tokens", "tokens_per_second")
    assert [json.loads(value) for value in shown] == [row[name] for name in names]
    assert await tab.js("kept === document.querySelector('#active tbody tr')")
    for event in CHAT.events[3:]:
        await call.send(chunk(event))
    await call.send(LAST)
    await tab.until("document.querySelector('#active .scroll').hidden")
    await tab.until("document.querySelectorAll('#recent tbody tr').length === 1")
    assert (await tab.rows("recent"))[0][1] == "complete"


async def phase(tab: Tab, words: str) -> None:
    await tab.until(f"document.querySelector('#active tbody th')?.textContent === '{words}'")


async def test_ended_requests_and_errors(start: Start, open_tab: Open, tmp_path: Path) -> None:
    port = await start(folder=tmp_path, cache__ttl=3600, file={"budgets": {"chat": {"total_ms": 0.001}}})
    async with App(port.sidecar.url) as app:
        asked = await some_of_everything(app)
        tab = await open_tab(port.url)  # which learns of them afterwards
        await tab.until(f"document.querySelectorAll('#recent tbody tr').length === {asked}")
        kept = await port.get("/requests")
        rows = await tab.rows("recent")
        assert [row[2] for row in rows] == [line["model"] for line in kept["recent"]]
        local = "new Date(%s).toLocaleTimeString('en-GB')"
        assert rows[0][0] == await tab.js(local % json.dumps(kept["recent"][0]["timestamp"]))
        assert rows[0][0] == f"{rows[0][0]}" and len(rows[0][0]) == len("12:34:56")
        assert {row[5] for row in rows} == {"miss", "hit, exact"}
        assert {row[1] for row in rows} >= {"complete", "cut off (200)", "upstream error (429)"}
        assert rows[-1][-1].startswith("+")  # over a budget
        assert [row[1:4] for row in await tab.rows("errors")] == [
            ["default", "upstream_error", "200"],
            ["default", "429", "429"],
            ["default", "upstream_closed", "200"],
        ]
        assert [line["model"] for line in kept["errors"]] == [row[4] for row in await tab.rows("errors")]
        # One that comes while it looks on is the first.
        await app.ask("eight", model="later", scripted={"status": 500})
        await tab.until("document.querySelector('#errors tbody tr').cells[4].textContent === 'later'")
        await tab.until("document.querySelector('#recent tbody tr').cells[2].textContent === 'later'")
        # A list that the pointer is in stands still, but for the filter.
        await tab.step("hover", selector="#recent tbody tr:nth-child(2)")
        await app.ask("nine", model="still later")
        await tab.until("document.querySelector('#recent .held').textContent.includes('1 newer')")
        assert (await tab.rows("recent"))[0][2] == "later"
    await tab.js("document.querySelector('#filter').focus()")
    await tab.step("type", text="HIT gpt")
    assert [row[2] for row in await tab.rows("recent")] == ["gpt-5.1-mini"] * 2
    assert "2 that match, of 11" in await tab.text("#recent .note")
    await tab.step("type", text=" nothing")
    assert "None of the recent requests matches." in await tab.text("#recent")


async def test_a_waterfall_by_keyboard(start: Start, open_tab: Open) -> None:
    port = await start()
    tab = await open_tab(port.url)
    async with App(port.sidecar.url) as app:
        await app.ask(model="first", scripted={"first": 0.02, "interval": 0.002})
        await tab.until("document.querySelectorAll('#recent tbody tr').length === 1")
        line = (await port.get("/requests"))["recent"][0]
        await tab.js("document.querySelector('#filter').focus()")
        await tab.press("Tab", "Tab")
        assert (await tab.focused()).endswith(" waterfall of first")
        # The list stands still under the focus, and while the dialog is open.
        await app.ask(model="second")
        await tab.until("document.querySelector('#recent .held').textContent.includes('1 newer')")
        await tab.press("Enter")
        await tab.until("document.querySelector('#waterfall').open")
        await tab.until("document.querySelectorAll('#waterfall tbody tr').length > 0")
        assert await tab.focused() == "Close"
        await app.ask(model="third")
        await quiet(tab, 3)
    told = await port.get(f"/requests/{line['request_id']}")
    assert told["line"] == line and len(told["pieces"]) > 2
    shown = await tab.js(
        "[...document.querySelectorAll('#waterfall tbody tr')].map((row) => [row.dataset.piece, ..."
        "[...row.querySelectorAll('td.number')].map((one) => JSON.parse(one.dataset.value)), ..."
        "['x', 'width'].map((name) => Number(row.querySelector('rect').getAttribute(name)))])"
    )
    total = line["total_ms"]
    for piece, (name, took, share, at, x, width) in zip(told["pieces"], shown, strict=True):
        assert (name, took, at) == (piece["name"], piece["ms"], piece["start_ms"])
        assert share == pytest.approx(took / total)
        assert width == pytest.approx(max(took / total * 1000, 3))
        assert x == pytest.approx(min(at / total * 1000, 1000 - width))
    facts = await tab.text("#waterfall dl")
    for fact in (line["request_id"], "first", "POST /v1/chat/completions", "complete"):
        assert fact in facts
    await tab.press("Escape")
    await tab.until("!document.querySelector('#waterfall').open")
    assert (await tab.focused()).endswith(" waterfall of first")
    await tab.press("Space")
    await tab.until("document.querySelector('#waterfall').open")
    await tab.press("Enter")  # on its button
    await tab.until("!document.querySelector('#waterfall').open")
    # Once the focus leaves the list, it goes on.
    await tab.js("document.querySelector('#filter').focus()")
    await tab.until("document.querySelectorAll('#recent tbody tr').length === 3")


async def test_a_request_that_is_no_longer_kept(start: Start, open_tab: Open) -> None:
    port = await start()
    tab = await open_tab(port.url)
    async with App(port.sidecar.url) as app:
        await app.ask()
        await tab.until("document.querySelectorAll('#recent tbody tr').length === 1")
        await tab.js("document.querySelector('#recent tbody button').focus()")
        await asyncio.gather(*[app.ask() for _ in range(200)])
    await quiet(tab, 201)
    await tab.press("Enter")
    await tab.until("document.querySelector('#waterfall .said').textContent.includes('only those')")
    assert await tab.text("#waterfall .said") == "No such request: only those that ended lately are kept"


async def purge(tab: Tab, selector: str, token: str = "") -> None:
    await tab.js(f"document.querySelector('{selector}').click()")
    await tab.until("document.querySelector('#purge').open")
    if token:
        await tab.js("document.querySelector('#token').focus()")
        await tab.step("type", text=token)
        await tab.press("Enter")
    else:
        await tab.js("document.querySelector('#purge-go').click()")


def keys(listing: dict[str, Any]) -> list[str]:
    return [item["key"] for item in listing["items"]]


async def test_purging(start: Start, open_tab: Open, tmp_path: Path) -> None:
    port = await start(folder=tmp_path, cache__ttl=3600, admin__token_sha256=DIGEST)
    async with App(port.sidecar.url) as app:
        for number in range(6):
            await app.ask(f"{number}", model="a" if number % 2 else HOSTILE)
    await port.sidecar.lines.request(5)  # they are stored by then
    stored = keys(await port.get("/cache"))
    tab = await open_tab(port.url)
    shown = "[...document.querySelectorAll('#cache tbody tr')].map((row) => row.dataset.key)"
    await tab.until("document.querySelectorAll('#cache tbody tr').length === 6")
    assert await tab.js(shown) == stored
    # Without the token, and with a wrong one: the server's own words, and nothing has gone.
    for wrong in ("", "wrong"):
        await purge(tab, "#cache tbody tr:nth-child(2) button", wrong)
        await tab.until("document.querySelector('#purge-said').textContent.includes('missing or wrong')")
        assert "send Authorization: Bearer with the token" in await tab.text("#purge-said")
        assert not await tab.js("document.querySelector('#token-asked').hidden")
        await tab.press("Escape")
        await tab.until("document.activeElement.textContent.startsWith('Purge')")
    assert keys(await port.get("/cache")) == stored
    # One of them.
    await purge(tab, "#cache tbody tr:nth-child(2) button", TOKEN)
    await tab.until("document.querySelector('#cache-said').textContent === '1 answer purged'")
    await tab.until("document.querySelectorAll('#cache tbody tr').length === 5")
    left = stored[:1] + stored[2:]
    assert await tab.js(shown) == left == keys(await port.get("/cache"))
    # All of a model: the token is asked for once.
    assert await tab.js("document.querySelector('#purge-matching').disabled")
    await tab.js("document.querySelector('#cache input[name=model]').focus()")
    await tab.step("type", text=HOSTILE)
    await tab.press("Enter")
    mine = [item["key"] for item in (await port.get("/cache"))["items"] if item["model"] == HOSTILE]
    await tab.until(f"document.querySelectorAll('#cache tbody tr').length === {len(mine)}")
    assert await tab.js(shown) == mine
    await purge(tab, "#purge-matching")
    assert HOSTILE in await tab.js("document.querySelector('#purge-what').textContent")
    await tab.until(f"document.querySelector('#cache-said').textContent === '{len(mine)} answers purged'")
    assert keys(await port.get("/cache")) == [key for key in left if key not in mine]
    await tab.until("document.querySelector('#cache').innerText.includes('No stored answer matches.')")
    # Everything, after another look at all.
    await tab.js("document.querySelector('#cache form').reset()")
    await tab.until(f"document.querySelectorAll('#cache tbody tr').length === {len(left) - len(mine)}")
    await purge(tab, "#purge-all")
    await tab.until("document.querySelector('#cache').innerText.includes('No answer is stored yet.')")
    assert (await port.get("/cache"))["items"] == []
    # The token is nowhere but in a variable.
    kept = "[localStorage.length, sessionStorage.length, document.cookie, document.querySelector('#token').value]"
    assert await tab.js(kept) == [0, 0, "", ""]
    assert TOKEN not in await tab.js("document.documentElement.outerHTML")


async def test_no_token_is_configured(start: Start, open_tab: Open, tmp_path: Path) -> None:
    port = await start(folder=tmp_path, cache__ttl=3600)
    async with App(port.sidecar.url) as app:
        await app.ask()
    await port.sidecar.lines.request()
    tab = await open_tab(port.url)
    await tab.until("document.querySelectorAll('#cache tbody tr').length === 1")
    await purge(tab, "#purge-all", "anything")
    await tab.until("document.querySelector('#purge-said').textContent.includes('No token is configured')")
    assert "set admin.token_sha256 to" in await tab.text("#purge-said")
    assert len(keys(await port.get("/cache"))) == 1


async def test_a_filter_that_is_not_understood(start: Start, open_tab: Open, tmp_path: Path) -> None:
    tab = await open_tab((await start(folder=tmp_path, cache__ttl=3600)).url)
    await tab.js("document.querySelector('#cache input[name=key]').value = 'no digits'")
    await tab.js("document.querySelector('#cache form').requestSubmit()")
    await tab.until("document.querySelector('#cache .note').textContent.includes('hexadecimal')")


async def test_names_are_never_markup(start: Start, open_tab: Open, tmp_path: Path) -> None:
    port = await start(folder=tmp_path, cache__ttl=3600, admin__token_sha256=DIGEST)
    tab = await open_tab(port.url)
    before = await tab.js("document.querySelectorAll('script, img, iframe, object, a').length")
    long = "/v1/" + "x" * 3000
    async with App(port.sidecar.url) as app:
        await app.ask(model=HOSTILE)
        await app.ask(model=HOSTILE, path="/v1/<img src=x>", slipstream_feature="<b>bold</b>")
        await app.ask(path=long)
        await quiet(tab, 3)
        await tab.until("document.querySelectorAll('#recent tbody tr').length === 3")
        for dimension in DIMENSIONS:
            await tab.js(f"({CHOOSE})(document.querySelector('#dimension'), '{dimension}')")
        port.rig.script("/v1/held")
        client = await port.rig.connect()
        await client.send(b"GET /v1/held?<i> HTTP/1.1\r\nHost: x\r\n\r\n")
        await port.rig.call()
        await tab.until("!document.querySelector('#active .scroll').hidden")
    rows = await tab.rows("recent")
    assert [row[2] for row in rows].count(HOSTILE) == 1
    assert [row[3] for row in rows if "<img src=x>" in row[3] or "%3Cimg" in row[3]]
    assert [len(row[3]) for row in rows if "xxx" in row[3]] == [161]
    for number in range(1, 4):
        await tab.js(f"document.querySelector('#recent tbody tr:nth-child({number}) button').click()")
        await tab.until("document.querySelectorAll('#waterfall tbody tr').length > 0")
        await tab.press("Escape")
        await tab.until("!document.querySelector('#waterfall').open")
    # Another one at once, before the page is told that the last one is closed.
    await tab.js(
        "document.querySelector('#recent tbody button').click(); document.querySelector('#waterfall').close();"
        "document.querySelector('#recent tbody tr:nth-child(2) button').click()"
    )
    await tab.until("document.querySelectorAll('#waterfall tbody tr').length > 0")
    assert await tab.focused() == "Close"
    await tab.press("Escape")
    assert await tab.js("document.querySelectorAll('script, img, iframe, object, a, i').length") == before
    assert await tab.js("document.querySelectorAll('main b b, td b, dd dd, th b').length") == 0
    assert await tab.js("document.title") == "Slipstream"
    client.close()


async def test_budgets_are_told_when_they_burn(start: Start, open_tab: Open) -> None:
    port = await start(file={"budgets": {"chat": {"ttft_ms": 0.001, "total_ms": 60_000}}})
    tab = await open_tab(port.url)
    assert [row[:3] for row in await tab.rows("budgets")][:2] == [
        ["chat", "first token", "unused"],
        ["chat", "total time", "unused"],
    ]
    assert await tab.text("#alerts") == ""
    async with App(port.sidecar.url) as app:
        for _ in range(12):
            await app.ask()
    await quiet(tab, 12)
    port.sidecar.service.assembly.meter.watch()
    await tab.until("document.querySelector('#alerts').textContent !== ''")
    assert await tab.text("#alerts") == "Latency budget burning: chat (first token)."
    assert [row[:3] for row in await tab.rows("budgets")][:2] == [
        ["chat", "first token", "burning"],
        ["chat", "total time", "within"],
    ]
    assert await tab.js("document.title") == "(1 burning) Slipstream"
    # Said once: a text that is written again and again would be read out again and again.
    await tab.js(
        "void new MutationObserver(() => (globalThis.again = true))"
        ".observe(document.querySelector('#alerts'), {childList: true, characterData: true, subtree: true})"
    )
    await tab.ticks(3)
    assert not await tab.js("globalThis.again === true")


async def test_pausing_and_windows(start: Start, open_tab: Open) -> None:
    port = await start()
    tab = await open_tab(port.url)
    async with App(port.sidecar.url) as app:
        await app.ask()
        await quiet(tab, 1)
        await tab.js("document.querySelector('#pause').focus()")
        await tab.press("Space")
        assert await tab.js("document.querySelector('#pause').ariaPressed") == "true"
        await tab.until("document.querySelector('#connection').textContent.startsWith('Paused')")
        await app.ask()
        await quiet(tab, 2)
        requests = "document.querySelector('[data-stat=\"windows.5m.total.requests\"]').dataset.value"
        assert await tab.js(requests) == "1"
        await tab.press("Space")
        assert await tab.js(requests) == "2"
    # By keyboard: the arrows choose, and only the chosen one is asked for.
    await tab.js("document.querySelector('#window-5').focus()")
    await tab.press("ArrowRight")
    await quiet(tab, 2, "60m")
    await tab.until(
        "document.querySelector('[data-stat=\"windows.60m.total.requests\"]')?.dataset.value === '2'"
    )
    assert list(await tab.js("feed.latest.stats.windows")) == ["60m"]
    assert await tab.text("#summary-title") == "Last 60 min"


@pytest.mark.usefixtures("clean")
async def test_it_comes_back_after_a_restart(
    provider: ScriptedProvider, open_tab: Open, tmp_path: Path
) -> None:
    command = ["serve", "--port", "0", "--upstream", provider.url, "--log-format", "json"]
    with process(*command, "--admin-port", "0") as running:
        line = await serving(running)
        tab = await open_tab(line["admin"])
        async with App(line["url"]) as app:
            await app.ask(model="before")
        await tab.until("document.querySelectorAll('#recent tbody tr').length === 1")
        running.terminate()
        await asyncio.to_thread(running.communicate)
    await tab.until("document.body.dataset.state === 'lost'")
    said = await tab.text("#connection")
    assert said.startswith("Not connected; trying again. Figures are from "), said
    assert (
        await tab.js("document.querySelector('[data-stat=\"windows.5m.total.requests\"]').dataset.value")
        == "1"
    )
    with process(*command, "--admin-port", line["admin"].rpartition(":")[2]) as running:
        line = await serving(running)
        await tab.until("document.body.dataset.state === 'live'")
        await tab.until("document.querySelector('#connection').textContent === 'Live'")
        # The new process knows nothing of what the other one was asked.
        await tab.until("document.querySelector('#recent .scroll').hidden")
        async with App(line["url"]) as app:
            await app.ask(model="after")
        await tab.until("document.querySelectorAll('#recent tbody tr').length === 1")
        assert (await tab.rows("recent"))[0][2] == "after"
        running.terminate()
        await asyncio.to_thread(running.communicate)


async def serving(running: Any) -> dict[str, Any]:
    """Its `serving` line."""
    while True:
        async with asyncio.timeout(HANG):
            text = await asyncio.to_thread(running.stderr.readline)
        assert text, "it did not start"
        if (line := json.loads(text))["event"] == "serving":
            return line


async def test_it_asks_again_where_it_was_refused(
    start: Start, open_tab: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EventSource itself gives up at a status that is not 200."""
    port = await start()
    with monkeypatch.context() as full:
        full.setattr(feed, "MOST", 0)
        tab = await open_tab(port.url, state="lost")
        assert await tab.text("#connection") == "Not connected; trying again. No figures yet."
    await tab.until("document.body.dataset.state === 'live'")
