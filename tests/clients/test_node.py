"""JavaScript clients that are cut off in the middle come back by themselves and have the whole answer, each event once."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.scripted import Script

from .cutter import Cut, Plan
from .rig import (
    AGENT,
    ANTHROPIC,
    CHAT,
    EVENTS,
    FEED,
    GEMINI,
    OLLAMA,
    PATIENT,
    RESPONSES,
    SCRIPT,
    WAYS,
    Form,
    Setting,
    events,
    told,
)

pytestmark = pytest.mark.both_shells

FETCH_EVENT_SOURCE = "fetch-event-source"
EVENTSOURCE = "eventsource"
EVENTSOURCE_CLIENT = "eventsource-client"
FETCH = "fetch"
PLANS: dict[str, Plan] = {
    "between-events": [3, 0, 5],
    "after-each": [1] * 7,
    "in-events": [Cut(2, into=20), Cut(0, into=1), Cut(3, into=40, how="fin"), Cut(0, into=60)],
    "by-fin": [Cut(4, how="fin"), Cut(0, how="fin"), Cut(1, how="fin")],
    "unnoticed": [Cut(3, silent=True), Cut(2, silent=True)],
}
EVERY = (FETCH_EVENT_SOURCE, EVENTSOURCE, EVENTSOURCE_CLIENT, FETCH)

CRLF = Script(tokens=8, newline="\r\n")


def grid(*forms: Form) -> Any:
    """Every plan for the first form, both ways; a few for the others."""
    cases = [(forms[0], plan, way) for plan in PLANS for way in WAYS]
    cases += [
        (form, *case)
        for form in forms[1:]
        for case in (("between-events", "live"), ("in-events", "recorded"))
    ]
    return pytest.mark.parametrize(("form", "plan", "way"), cases, ids=str)


@grid(CHAT, RESPONSES, ANTHROPIC, AGENT, FEED)
async def test_fetch_event_source(setting: Setting, form: Form, plan: str, way: str) -> None:
    came = await setting.come_back(FETCH_EVENT_SOURCE, form, PLANS[plan], way)
    came.check()
    came.check_ids()
    assert set(came.end["statuses"]) == {200}


@grid(CHAT, RESPONSES, ANTHROPIC, AGENT, FEED)
async def test_eventsource_client(setting: Setting, form: Form, plan: str, way: str) -> None:
    came = await setting.come_back(EVENTSOURCE_CLIENT, form, PLANS[plan], way)
    came.check()
    came.check_ids()
    assert came.end["closed"] == "by the app"


@grid(FEED)
async def test_eventsource_at_the_upstreams_own_path(
    setting: Setting, form: Form, plan: str, way: str
) -> None:
    came = await setting.come_back(EVENTSOURCE, form, PLANS[plan], way)
    came.check()
    came.check_ids()
    assert came.end["closed"] == 204


@grid(CHAT, RESPONSES, ANTHROPIC, AGENT)
async def test_eventsource_at_the_stream(setting: Setting, form: Form, plan: str, way: str) -> None:
    came = await setting.join(EVENTSOURCE, form, PLANS[plan], way)
    came.check()
    came.check_ids()
    assert came.end["closed"] == 204


@grid(ANTHROPIC, CHAT)
async def test_eventsource_client_at_the_stream(setting: Setting, form: Form, plan: str, way: str) -> None:
    """Nobody tells it which event is the last: it goes on until 204."""
    came = await setting.join(EVENTSOURCE_CLIENT, form, PLANS[plan], way, last=None)
    came.check()
    came.check_ids()
    assert came.end["closed"] == 204


@grid(CHAT, RESPONSES, ANTHROPIC, AGENT, FEED)
async def test_fetch_by_id(setting: Setting, form: Form, plan: str, way: str) -> None:
    came = await setting.come_back(FETCH, form, PLANS[plan], way, headers=EVENTS, accept="text/event-stream")
    came.check()
    came.check_ids()
    assert all(exchange.target.startswith("/_slipstream/") for exchange in came.exchanges[1:])


@grid(GEMINI, OLLAMA)
async def test_fetch_by_count(setting: Setting, form: Form, plan: str, way: str) -> None:
    """Formats that have no place for ids. The request says itself that somebody will come back."""
    came = await setting.come_back(FETCH, form, PLANS[plan], way, headers=PATIENT)
    came.check()
    assert came.ids == [None] * len(came.ids)
    given = 0
    for exchange in came.exchanges:
        after = exchange.target.partition("?after=")[2]
        assert after == (str(given) if given and exchange.method == "GET" else "")
        given += exchange.events


@pytest.mark.parametrize("how", ["rst", "fin"])
@pytest.mark.parametrize("script", EVERY)
async def test_cut_to_pieces(setting: Setting, script: str, how: Any) -> None:
    """Anywhere, whatever the client has made of it by then: what it was sent and not told of, it asks for again. Only
    the first cut waits, so that it knows an id."""
    plan = [Cut(1, into=30, how=how), *(Cut(body=n, how=how, hasty=True) for n in (7, 120, 61, 150, 99))]
    came = await setting.come_back(script, FEED, plan, "recorded", scripted=Script(tokens=20), headers=EVENTS)
    came.check()
    came.check_ids(hasty=True)


@pytest.mark.parametrize("how", ["rst", "fin"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("script", EVERY)
async def test_cut_before_the_head(setting: Setting, script: str, way: str, how: Any) -> None:
    plan = [2, Cut(head=True, how=how), Cut(head=True, how=how), 1]
    came = await setting.come_back(script, FEED, plan, way, headers=EVENTS)
    came.check()
    came.check_ids()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("script", [EVENTSOURCE, EVENTSOURCE_CLIENT, FETCH])
async def test_cut_one_byte_before_an_event_ends(setting: Setting, script: str, way: str) -> None:
    """The id is there, the event is not."""
    came = await setting.come_back(script, FEED, [Cut(2, brink=True), Cut(brink=True)], way, headers=EVENTS)
    came.check()
    came.check_ids()


async def test_fetch_event_source_skips_an_event_that_lacks_its_last_byte(setting: Setting) -> None:
    """It takes an id for its own with the id's line, before it has the event. The id is the last field, so this needs a
    cut at that one byte; were it the first, every cut in the middle of an event would do."""
    came = await setting.come_back(FETCH_EVENT_SOURCE, CHAT, [Cut(2, brink=True)], "recorded")
    wanted = came.answer.wanted
    assert came.result.plain == wanted[:2] + wanted[3:]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("script", EVERY)
async def test_line_ends_of_two_bytes(setting: Setting, script: str, way: str) -> None:
    plan = [Cut(2, into=20), 1, Cut(1, into=3)]
    came = await setting.come_back(script, FEED, plan, way, scripted=CRLF, headers=EVENTS)
    came.check()
    came.check_ids()


@pytest.mark.parametrize("script", EVERY)
async def test_line_ends_cut_in_half(setting: Setting, script: str) -> None:
    """Some clients have the event by then, others have not."""
    plan = [Cut(2, brink=True, hasty=True), Cut(1, brink=True, hasty=True)]
    came = await setting.come_back(script, FEED, plan, "recorded", scripted=CRLF, headers=EVENTS)
    came.check()
    came.check_ids(hasty=True)


# After the last event of the answer, before the end of the body: nothing is missing, and the client doesn't know.

WHOLE = 9
"""Events of the feed."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("script", "status"),
    [(EVENTSOURCE, 204), (EVENTSOURCE_CLIENT, 204), (FETCH_EVENT_SOURCE, 200), (FETCH, 200)],
)
async def test_cut_after_the_last_event(setting: Setting, script: str, status: int, way: str) -> None:
    """204 tells an EventSource not to come again. To fetch-event-source it would be an error, and a reason to."""
    came = await setting.come_back(
        script, FEED, [WHOLE], way, headers=EVENTS, accept="text/event-stream", last=None
    )
    came.check()
    came.check_ids()
    assert [exchange.status for exchange in came.exchanges] == [200, status]
    assert not came.exchanges[-1].body


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", [CHAT, RESPONSES, ANTHROPIC, AGENT], ids=str)
async def test_posted_again_after_the_last_event(setting: Setting, form: Form, way: str) -> None:
    whole = sum(told(form, event) for event in events(form, SCRIPT))
    came = await setting.come_back(FETCH_EVENT_SOURCE, form, [whole], way)
    came.check()
    came.check_ids()
    assert came.end["statuses"] == [200, 200]
    assert not came.exchanges[-1].body


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", [CHAT, OLLAMA, GEMINI], ids=str)
async def test_fetched_again_after_the_last_event(setting: Setting, form: Form, way: str) -> None:
    whole = sum(told(form, event) for event in events(form, SCRIPT))
    came = await setting.come_back(FETCH, form, [whole], way, headers=EVENTS if form.ids else PATIENT)
    came.check()
    assert came.end["statuses"] == [200, 200]
    assert not came.exchanges[-1].body


@pytest.mark.parametrize("way", WAYS)
async def test_two_clients_on_one_stream(setting: Setting, way: str) -> None:
    """Each is cut in its own places, and neither notices the other."""
    one, two = await setting.join_all(CHAT, {EVENTSOURCE: [3, 0, 5], FETCH: [Cut(2, into=20), 4]}, way)
    for came in (one, two):
        came.check()
        came.check_ids()
    assert one.ids == two.ids
