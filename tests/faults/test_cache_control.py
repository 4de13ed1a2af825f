"""What requests say of the cache, time, and stale answers where the upstream is down."""

import pytest

from tests.faults.cache import (
    BYPASS,
    DAY,
    FORM,
    KEY,
    MISS,
    PLAIN,
    SPOKEN,
    STREAMED,
    ask,
    asked,
    begun,
    clocked,
    counts,
    filled,
    hits,
    is_hit,
    misses,
    said,
    settled,
    spoken,
    stopped,
    streamed,
    told,
)
from tests.faults.comeback import IDS, back, numbers
from tests.faults.conftest import eventually
from tests.faults.wire import chunk, head, request

pytestmark = pytest.mark.both_shells

FIELD = b"Cache-Control"


def control(value):
    return (FIELD, value)


@pytest.mark.parametrize(
    "value", [b"no-store", b"NO-STORE", b"max-age=0, no-store", b"no-cache, no-store", b'no-store="x"']
)
async def test_no_store_is_neither_read_nor_written(rig, value):
    """no-store: goes upstream, leaves nothing, and what is there stays."""
    await rig.start(cache__ttl=3600)
    answer = await misses(rig, PLAIN, control(value))
    assert answer.header("cache-status") == BYPASS
    first = await filled(rig, PLAIN)
    assert (await misses(rig, PLAIN, control(value))).header("cache-status") == BYPASS
    await hits(rig, PLAIN, first)
    await settled(rig, 1)
    assert counts(rig) == {"not_stored_no_store": 2}
    assert [(await rig.line(n))["cache"] for n in range(4)] == ["bypass", "miss", "bypass", "hit"]


@pytest.mark.parametrize("value", [b"no-cache", b"No-Cache", b"max-age=5,no-cache", b'no-cache="a"'])
async def test_no_cache_is_not_read_but_written(rig, value):
    """no-cache: the next plain one hits, and gets the newer answer."""
    await rig.start(cache__ttl=3600)
    answers = []
    for number in range(3):
        client, call = await begun(rig, PLAIN, control(value))
        await told(call, said(text=str(number)))
        answer = await client.answer("POST")
        await answer.rest()
        assert answer.header("cache-status") == BYPASS + b"; stored"
        await settled(rig, number + 1)
        answers.append(await ask(rig, PLAIN))
        assert is_hit(answers[-1])
        assert answers[-1].body == said(text=str(number))
    assert rig.uncalled()


async def test_a_client_that_reconnects_says_no_cache_and_is_served(rig):
    """WIRE: EventSource says no-cache always; on a resume it is ignored, and no second call is made."""
    await rig.start(cache__ttl=3600)
    answer = await ask(rig, STREAMED, KEY, IDS, control(b"no-cache"))
    assert answer.header("cache-status") == BYPASS + b"; stored"
    name = answer.header("slipstream-stream-id").decode()
    form = SPOKEN._replace(body=STREAMED.sent)
    for way in ("stream", "again"):
        for value in (b"no-cache", b"no-store", b"only-if-cached", b"max-age=0"):
            _, rest = await back(rig, form, way, name, 1, KEY, IDS, control(value))
            assert rest.status == 200
            assert numbers(await rest.rest()) == numbers(answer.body)[2:]
    assert asked(rig) == 1


async def test_max_age_and_min_fresh(rig):
    """RFC 9111, 5.2.1: only answers that are young enough, or stay fresh long enough; else a call, whose answer
    takes the place of the older one."""
    await rig.start(cache__ttl=100)
    clock = clocked(rig.sidecar)
    first = await filled(rig, PLAIN)
    clock.now += 40
    for value in (b"max-age=40", b"max-age=999999999999", b'max-age="41"', b"min-fresh=60", b"min-fresh=0"):
        await hits(rig, PLAIN, first, control(value))
    await hits(rig, PLAIN, first, control(b"max-age=40, min-fresh=60"))
    await hits(rig, PLAIN, first, control(b"max-age=50, max-age=1"))
    await hits(rig, PLAIN, first, control(b"max-stale=5"))
    stored = 1
    for value in (
        b"max-age=39",
        b"max-age=0",
        b"max-age=-1",
        b"max-age=x",
        b"max-age",
        b"max-age=1e9",
        b"max-age=4.5",
        b"max-age=",
        b"max-age=99999999999999999999",
        b"min-fresh=61",
        b"min-fresh=x",
        b"min-fresh",
        b"MAX-AGE=0",
        b"max-age=40, min-fresh=61",
    ):
        answer = await misses(rig, PLAIN, control(value))
        assert answer.header("cache-status") == b"slipstream; fwd=request; stored"
        stored += 1
        await settled(rig, stored)
        assert (await ask(rig, PLAIN)).header("age") == b"0"
        clock.now += 40
    assert counts(rig) == {}


@pytest.mark.parametrize(
    "form", [FORM[name] for name in ("chat", "chat-stream", "anthropic", "gemini", "ollama-chat")], ids=str
)
async def test_only_if_cached(rig, form):
    """only-if-cached: 504 in the provider's own shape, and the upstream saw nothing; a hit where there is one."""
    await rig.start(cache__ttl=100)
    clock = clocked(rig.sidecar)
    only = control(b"only-if-cached")
    for value in (only[1], b"Only-If-Cached, max-age=5", b"only-if-cached=1", b"no-cache, only-if-cached"):
        answer = await ask(rig, form, control(value))
        assert (answer.status, answer.header("slipstream-error")) == (504, b"not_cached")
        assert b'"error"' in answer.body
        assert answer.header("content-type") == b"application/json"
    assert asked(rig) == 0
    first = await filled(rig, form)
    await hits(rig, form, first, only)
    await hits(rig, form, first, only, (FIELD, b"max-age=0"))
    clock.now += 50
    assert (await ask(rig, form, control(b"only-if-cached, max-age=49"))).status == 504
    assert (await ask(rig, form, control(b"only-if-cached, min-fresh=51"))).status == 504
    clock.now += 51
    assert (await ask(rig, form, only)).status == 504
    assert asked(rig) == 1
    refused = await rig.line(0)
    assert (refused["outcome"], refused["error"], refused["status"]) == ("refused", "not_cached", 504)


async def test_only_if_cached_does_not_wait_for_a_running_call(rig):
    """It joins none."""
    await rig.start(cache__ttl=100)
    client, call = await begun(rig, STREAMED)
    answer = await ask(rig, STREAMED, control(b"only-if-cached"))
    assert answer.status == 504
    await streamed(call, *spoken())
    await (await client.answer("POST")).rest()


@pytest.mark.parametrize(
    "value", [b"", b",", b"=", b"public", b"immutable; no", b"no_store", b"\xff\xfe", b"max-age:0"]
)
async def test_words_that_mean_nothing(rig, value):
    """What is no directive of ours changes nothing."""
    await rig.start(cache__ttl=100)
    first = await filled(rig, PLAIN, control(value))
    await hits(rig, PLAIN, first, control(value))
    await hits(rig, PLAIN, first)


# Time.


async def test_an_answer_ends_with_its_time(rig):
    """TTL: the last moment is fresh, the next one is not; the answer that comes then is stored."""
    await rig.start(cache__ttl=100)
    clock = clocked(rig.sidecar)
    first = await filled(rig, PLAIN)
    clock.now += 99.999
    await hits(rig, PLAIN, first)
    clock.now += 0.002
    answer = await misses(rig, PLAIN)
    assert answer.header("cache-status") == MISS
    await settled(rig, 2)
    assert (await hits(rig, PLAIN, answer)).header("age") == b"0"


@pytest.mark.parametrize("moved", [-DAY, -3600.0, -3.0, DAY, 3600.0])
async def test_a_clock_that_is_moved(rig, tmp_path, moved):
    """43: by a day, either way -> a miss, and nothing lives until then; moved back again, the new one is gone
    as well."""
    await rig.start(cache__ttl=3600, folder=tmp_path)
    clock = clocked(rig.sidecar)
    await filled(rig, PLAIN)
    begun_at = clock.now
    clock.now += moved
    await misses(rig, PLAIN)
    await settled(rig, 2)
    assert is_hit(await ask(rig, PLAIN))
    clock.now = begun_at
    if moved > 0:
        await misses(rig, PLAIN)
    else:
        again = await ask(rig, PLAIN)
        assert is_hit(again) is (moved > -3600)
    clock.now = begun_at + 10 * DAY
    rig.sidecar.service.assembly.cache._hot.clear()
    assert not is_hit(await ask(rig, PLAIN))


async def test_a_clock_that_is_corrected_by_a_second(rig):
    """NTP sets clocks back by a little: that is no reason to pay again, and no time is negative."""
    await rig.start(cache__ttl=3600)
    clock = clocked(rig.sidecar)
    first = await filled(rig, PLAIN)
    clock.now -= 1.5
    answer = await hits(rig, PLAIN, first)
    assert answer.header("age") == b"0"
    left = int(answer.header("cache-status").partition(b"ttl=")[2].partition(b";")[0])
    assert left <= 3600


async def test_a_shorter_time_in_the_configuration_goes_for_old_answers(rig, tmp_path):
    """An operator who lowers the TTL and restarts: older answers are not served any longer than that."""
    await rig.start(cache__ttl=3600, folder=tmp_path)
    first = await filled(rig, PLAIN)
    await stopped(rig)
    await rig.start(cache__ttl=50, folder=tmp_path)
    clock = clocked(rig.sidecar)
    clock.now += 40
    await hits(rig, PLAIN, first)
    clock.now += 11
    await misses(rig, PLAIN)


# Stale, because the upstream is down.

DOWN = {
    "500": (500, b"; fwd-status=500"),
    "503": (503, b"; fwd-status=503"),
    "529": (529, b"; fwd-status=529"),
    "reset": (None, b""),
    "fin": (None, b""),
    "nonsense": (None, b""),
    "silence": (None, b""),
}


async def fails(call, how):
    if how.isdigit():
        await told(call, b'{"error":{}}', b"Retry-After: 3", status=how.encode() + b" X")
    elif how == "reset":
        call.reset()
    elif how == "fin":
        call.close()
    elif how == "nonsense":
        await call.send(b"SPAM\r\n\r\n")


@pytest.mark.parametrize("how", DOWN)
@pytest.mark.parametrize("form", [PLAIN, STREAMED], ids=str)
@pytest.mark.parametrize("tier", ["memory", "disk"])
async def test_a_stale_answer_stands_in(rig, tmp_path, form, how, tier):
    """`stale_if_error`: 5xx, reset, nonsense, silence -> the expired answer, and `Cache-Status` says so; what
    comes when the upstream is back is stored."""
    keys = {"timeouts__head": 0.2} if how == "silence" else {}
    await rig.start(cache__ttl=100, cache__stale_if_error=1000, folder=tmp_path, **keys)
    clock = clocked(rig.sidecar)
    first = await filled(rig, form, KEY)
    clock.now += 150
    if tier == "disk":
        rig.sidecar.service.assembly.cache._hot.clear()
    for number in range(1, 3):
        client, call = await begun(rig, form, KEY)
        await fails(call, how)
        answer = await client.answer("POST")
        assert await answer.rest() == first.body
        assert (answer.status, answer.end) == (200, "whole")
        said_so = b"slipstream; fwd=stale%b; ttl=-50; detail=stale-if-error" % DOWN[how][1]
        assert answer.header("cache-status") == said_so
        assert answer.header("age") == b"150"
        assert answer.header("retry-after") is None
        line = await rig.line(number)
        assert (line["cache"], line["cache_kind"], line["outcome"], line["status"]) == (
            "hit",
            "stale",
            "complete",
            200,
        )
    client, call = await begun(rig, form, KEY)
    await (told(call, said()) if form is PLAIN else streamed(call, *spoken()))
    fresh = await client.answer("POST")
    await fresh.rest()
    assert fresh.header("cache-status") == b"slipstream; fwd=stale; stored"
    await settled(rig, 2)
    assert (await ask(rig, form, KEY)).body == fresh.body
    assert rig.sidecar.service.assembly.cache.counts["hit_stale"] == 2


async def test_an_upstream_that_is_gone(rig):
    """Refused: the expired answer, for everyone at once."""
    await rig.start(cache__ttl=100, cache__stale_if_error=1000)
    clock = clocked(rig.sidecar)
    first = await filled(rig, PLAIN)
    clock.now += 101
    await eventually(lambda: not rig.provider.active, lambda: "active")
    await rig.provider.stop()
    for _ in range(3):
        answer = await ask(rig, PLAIN)
        assert (answer.status, answer.body) == (200, first.body)
        assert answer.header("cache-status") == b"slipstream; fwd=stale; ttl=-1; detail=stale-if-error"
    assert (await ask(rig, PLAIN, KEY)).status == 502


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 429])
async def test_other_answers_of_the_upstream_go_through(rig, status):
    """The upstream is there and says no: that is its answer."""
    await rig.start(cache__ttl=100, cache__stale_if_error=1000)
    clock = clocked(rig.sidecar)
    await filled(rig, PLAIN)
    clock.now += 150
    client, call = await begun(rig, PLAIN)
    await told(call, b"{}", b"Retry-After: 3", status=b"%d X" % status)
    answer = await client.answer("POST")
    assert await answer.rest() == b"{}"
    assert (answer.status, answer.header("retry-after")) == (status, b"3")
    assert answer.header("cache-status") == b"slipstream; fwd=stale"


@pytest.mark.parametrize(
    ("age", "value"),
    [(1100.001, b""), (150, b"max-age=100"), (150, b"min-fresh=1"), (150, b"no-cache"), (150, b"no-store")],
)
async def test_where_no_stale_answer_is_wanted(rig, age, value):
    """Outside of the window, or the client wants something fresher: the error."""
    await rig.start(cache__ttl=100, cache__stale_if_error=1000)
    clock = clocked(rig.sidecar)
    await filled(rig, PLAIN)
    clock.now += age
    client, call = await begun(rig, PLAIN, *([control(value)] if value else []))
    await told(call, b"{}", status=b"503 X")
    answer = await client.answer("POST")
    await answer.rest()
    assert answer.status == 503


async def test_an_answer_that_breaks_off_is_no_stale_one(rig):
    """3: the head is the commit point; what breaks later is told in the stream."""
    await rig.start(cache__ttl=100, cache__stale_if_error=1000)
    clock = clocked(rig.sidecar)
    await filled(rig, STREAMED)
    clock.now += 150
    client, call = await begun(rig, STREAMED)
    await call.send(head(b"text/event-stream"), chunk(spoken()[0]))
    answer = await client.answer("POST")
    await answer.more()
    call.reset()
    await answer.rest()
    assert answer.end != "whole"
    assert b'"error"' in answer.body


async def test_many_with_a_stale_answer_share_the_failing_call(rig):
    """36: one call that fails, and all get the stale answer."""
    await rig.start(cache__ttl=100, cache__stale_if_error=1000)
    clock = clocked(rig.sidecar)
    first = await filled(rig, PLAIN)
    clock.now += 150
    rig.script(PLAIN.target)
    clients = [await rig.connect() for _ in range(20)]
    for client in clients:
        await client.send(request("POST", PLAIN.target, PLAIN.sent))
    call = await rig.call()
    live = next(iter(rig.sidecar.service.assembly.hub._live))
    await eventually(lambda: live.recording.readers == 20, lambda: live.recording.readers)
    await told(call, b"{}", status=b"500 X")
    for client in clients:
        answer = await client.answer("POST")
        assert await answer.rest() == first.body
        assert b"detail=stale-if-error" in answer.header("cache-status")
    assert rig.uncalled()
