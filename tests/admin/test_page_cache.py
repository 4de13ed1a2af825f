"""What the dashboard says of stored answers that a listing does not get to, in Chromium."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.web.admin import entries
from tests.admin import tab as rig
from tests.admin.conftest import DIGEST, TOKEN, Start
from tests.admin.tab import App, Open
from tests.cli import conftest as cli

clean, process = cli.clean, cli.process
node, browser, first, open_tab = rig.node, rig.browser, rig.first, rig.open_tab


async def test_what_was_not_looked_at_can_be_purged(
    start: Start, open_tab: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = await start(folder=tmp_path, cache__ttl=3600, admin__token_sha256=DIGEST)
    async with App(port.sidecar.url) as app:
        for number in range(5):
            await app.ask(f"{number}", model="m" if number else "rare")
    await port.sidecar.lines.request(4)  # they are stored by then
    monkeypatch.setattr(entries, "_LOOKED_AT", 3)
    tab = await open_tab(port.url)
    await tab.until("document.querySelectorAll('#cache tbody tr').length > 0")
    await tab.js("document.querySelector('#cache input[name=model]').value = 'rare'")
    await tab.js("document.querySelector('#cache form').requestSubmit()")
    await tab.until("!document.querySelector('#cache .none').hidden")
    said = "None that matches is among the newest, which were looked at. Purging looks at all."
    assert await tab.text("#cache .none") == said
    assert (await tab.text("#cache .note")).startswith("None of the newest matches; ")
    assert not await tab.js("document.querySelector('#purge-matching').disabled")
    assert not await tab.js("document.querySelector('#purge-all').disabled")
    await tab.js("document.querySelector('#purge-matching').click()")
    await tab.until("document.querySelector('#purge').open")
    await tab.js("document.querySelector('#token').focus()")
    await tab.step("type", text=TOKEN)
    await tab.press("Enter")
    await tab.until("document.querySelector('#cache-said').textContent === '1 answer purged'")
    # Where all were looked at, none is none.
    monkeypatch.setattr(entries, "_LOOKED_AT", 1000)
    await tab.js("document.querySelector('#cache form').requestSubmit()")
    await tab.until("document.querySelector('#cache').innerText.includes('No stored answer matches.')")
    assert await tab.js("document.querySelector('#purge-matching').disabled")
