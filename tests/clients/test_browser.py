"""Pages in Chromium: what its own network stack makes of connections that are cut, and of the answers after that."""

from __future__ import annotations

from typing import Any

import pytest

from .cutter import Cut, Plan
from .rig import AGENT, ANTHROPIC, CHAT, EVENTS, FEED, OLLAMA, PATIENT, RESPONSES, RETRY, WAYS, Form, Setting

pytestmark = [pytest.mark.usefixtures("chromium"), pytest.mark.both_shells, pytest.mark.asgi_every(4)]

PAGE = "browser"
FETCH = {
    "page": "fetch",
    "headers": EVENTS,
    "accept": "text/event-stream",
}
SOURCE = {"page": "eventSource", "headers": {}}
PLANS: dict[str, Plan] = {
    "between-events": [3, 0, 5],
    "in-events": [
        Cut(2, into=20),
        Cut(0, into=1),
        Cut(3, into=40, how="fin"),
        Cut(0, into=60),
        Cut(brink=True),
    ],
    "before-the-head": [1, Cut(head=True), Cut(head=True, how="fin"), Cut(1, how="fin")],
}


def grid(*forms: Form) -> Any:
    """Every plan for the first form, one for the others, live; and once recorded."""
    cases = [
        *((forms[0], plan, "live") for plan in PLANS),
        (forms[0], "in-events", "recorded"),
        *((form, "between-events", "live") for form in forms[1:]),
    ]
    return pytest.mark.parametrize(("form", "plan", "way"), cases, ids=str)


@grid(CHAT, RESPONSES, ANTHROPIC, AGENT, FEED)
async def test_fetch(setting: Setting, form: Form, plan: str, way: str) -> None:
    came = await setting.come_back(PAGE, form, PLANS[plan], way, **FETCH)
    came.check()
    came.check_ids()
    assert all(exchange.target.startswith("/_slipstream/") for exchange in came.exchanges[1:])


@pytest.mark.parametrize("way", WAYS)
async def test_fetch_by_count(setting: Setting, way: str) -> None:
    came = await setting.come_back(PAGE, OLLAMA, PLANS["between-events"], way, page="fetch", headers=PATIENT)
    came.check()
    assert came.ids == [None] * len(came.ids)


@grid(CHAT, RESPONSES, ANTHROPIC, AGENT)
async def test_event_source_at_the_stream(setting: Setting, form: Form, plan: str, way: str) -> None:
    """The first connection lives to see `retry:`, without which Chromium takes three seconds to come back."""
    came = await setting.join(PAGE, form, [Cut(0, into=len(RETRY)), *PLANS[plan]], way, **SOURCE)
    came.check()
    came.check_ids()
    assert came.exchanges[-1].status == 204


@pytest.mark.parametrize("way", WAYS)
async def test_event_source_at_the_upstreams_own_path(setting: Setting, way: str) -> None:
    came = await setting.come_back(PAGE, FEED, PLANS["between-events"], way, **SOURCE)
    came.check()
    came.check_ids()
    assert came.exchanges[-1].status == 204


@pytest.mark.parametrize(("page", "status"), [(FETCH, 200), (SOURCE, 204)], ids=["fetch", "EventSource"])
async def test_cut_after_the_last_event(setting: Setting, page: Any, status: int) -> None:
    came = await setting.come_back(PAGE, FEED, [9], "live", **page)
    came.check()
    came.check_ids()
    assert [exchange.status for exchange in came.exchanges] == [200, status]
