"""Figures and metrics of a real sidecar: what happened is what they say, and nothing else."""

import time

import orjson
import pytest

from sidecar.scripted import Script
from sidecar.telemetry.families import FAMILIES
from tests.faults.cache import (
    FORM,
    KEY,
    PLAIN,
    STREAMED,
    ask,
    begun,
    clocked,
    filled,
    hits,
    said,
    settled,
    spoken,
    streamed,
    told,
)
from tests.faults.comeback import IDS, STREAMS, again, back, begin, ended, left, passed
from tests.faults.conftest import eventually
from tests.faults.jobs import cancel, numbered, submitted
from tests.faults.jobs import ended as job_ended
from tests.faults.semantic import AGAIN, ASKED, asking, known, likeness, on_model
from tests.faults.wire import CHAT, LAST, chunk, head, request
from tests.telemetry.lines_rig import OPEN, TEXT, moved, parsed, samples

pytestmark = pytest.mark.both_shells

USAGE = b'"usage":{"prompt_tokens":3,"completion_tokens":7}'
WHOLE = said()[:-1] + b"," + USAGE + b"}"


def board(rig):
    return rig.sidecar.service.assembly.board


def meter(rig):
    return rig.sidecar.service.assembly.meter


def scraped(rig, accept=TEXT):
    return parsed(board(rig).metrics(accept), accept)


STANDING = ("slipstream_event_loop_lag", "slipstream_cache_not_stored", "slipstream_budget_")


class Counted:
    """What has moved since it was made."""

    def __init__(self, rig):
        self.rig = rig
        self.before = samples(scraped(rig))

    def __call__(self, *prefixes):
        found = moved(self.before, samples(scraped(self.rig, OPEN)))
        found = {name: value for name, value in found.items() if not name.startswith(STANDING)}
        return (
            {name: value for name, value in found.items() if name.startswith(prefixes)} if prefixes else found
        )


CALLS = "slipstream_upstream_calls_total"
ERRORS = "slipstream_upstream_errors_total"
DURATION = "gen_ai_client_operation_duration_seconds_count"
OF_CALLS = ("gen_ai_", "slipstream_upstream_", "slipstream_stalls_")


async def over(rig, counted):
    """What calls have moved, once none is running."""
    await settled(rig)
    return counted(*OF_CALLS)


def one_call(found, error=None):
    """It was one, and ended so."""
    (labels, amount), (_, called) = found[DURATION], found[CALLS]
    assert (labels.get("error_type"), amount, called) == (error, 1, 1)
    assert found.get(ERRORS) == (
        ({"upstream": found[CALLS][0]["upstream"], "error_type": error}, 1) if error else None
    )


def summed(rig, name):
    """By the last of its labels that has a value."""
    told_ = samples(scraped(rig))
    return {
        labels[-1][1]: value for (of, labels), value in told_.items() if of == f"gen_ai_client_{name}_sum"
    }


def total(rig, window="5m"):
    return board(rig).stats(window)["windows"][window]["total"]


def by(value):
    """Labels -> amount, in any order."""
    given = value if isinstance(value, list) else [value]
    return {tuple(labels.values()): amount for labels, amount in given}


def requests(found):
    """Outcome, status and cache of the requests that were counted."""
    given = found["slipstream_requests_total"]
    given = given if isinstance(given, list) else [given]
    return {(labels["outcome"], labels.get("status"), labels["cache"]): amount for labels, amount in given}


@pytest.mark.parametrize("accept", [TEXT, OPEN])
async def test_every_documented_name_is_there_from_the_beginning(rig, tmp_path, accept):
    await rig.start(folder=tmp_path)
    before = scraped(rig, accept)
    ours = [name for name in before if name.startswith(("slipstream_", "gen_ai_"))]
    assert ours == [family.name for family in FAMILIES]
    await ask(rig, PLAIN, KEY)
    await rig.line()
    after = scraped(rig, accept)
    assert before.keys() == after.keys()
    for family in FAMILIES:
        assert (after[family.name].type, after[family.name].documentation) == (family.kind, family.help)
        for sample in after[family.name].samples:
            assert set(sample.labels) - {"le"} == set(family.labels), sample
    told = samples(after)
    for name in ("slipstream_ready", "slipstream_info"):
        assert [value for (known, _), value in told.items() if known == name] == [1]
    assert told["slipstream_faults_total", ()] == told["slipstream_log_lines_dropped_total", ()] == 0


async def test_a_miss_and_its_hits(rig, tmp_path):
    await rig.start(cache__ttl=3600, folder=tmp_path)
    counted = Counted(rig)
    await hits(rig, PLAIN, await filled(rig, PLAIN, KEY), KEY)
    await rig.line(1)
    found = counted()
    calls = {
        name: value for name, value in found.items() if name.startswith("gen_ai_") and name.endswith("_count")
    }
    labels, amount = calls.pop("gen_ai_client_operation_duration_seconds_count")
    assert amount == 1  # the hit made none
    assert labels == {
        "gen_ai_operation_name": "chat",
        "gen_ai_provider_name": "openai",
        "gen_ai_request_model": "m",
        "gen_ai_response_model": (await rig.line())["response_model"],
        "server_address": "127.0.0.1",
        "server_port": str(rig.provider.port),
    }
    assert [one[1] for one in calls.pop("gen_ai_client_token_usage_count")] == [1, 1]
    assert not calls
    assert requests(found) == {("complete", "2xx", "miss"): 1, ("complete", "2xx", "hit"): 1}
    assert by(found["slipstream_cache_results_total"]) == {("miss",): 1, ("exact", "hit"): 1}
    assert found["slipstream_cache_stored_total"] == 1
    assert found[CALLS] == ({"upstream": (await rig.line())["upstream"]}, 1)
    miss, hit = await rig.line(), await rig.line(1)
    tokens = {(kind,): miss[f"{kind}_tokens"] for kind in ("input", "output")}
    assert by(found["slipstream_cache_saved_tokens_total"]) == tokens
    stats = board(rig).stats()
    figures = stats["windows"]["1m"]["total"]
    assert (figures["requests"], figures["hit_rate"]) == (2, 0.5)
    assert figures["input_tokens"] == 2 * miss["input_tokens"]
    assert figures["saved_tokens"] == hit["input_tokens"] + hit["output_tokens"]
    assert {name: one["requests"] for name, one in stats["windows"]["1m"]["cache"].items()} == {
        "hit": 1,
        "miss": 1,
    }
    assert stats["cache"]["saved_output_tokens"] == hit["output_tokens"]
    assert stats["cache"]["counts"]["hit_memory"] == 1
    assert [line["request_id"] for line in board(rig).recent(9)] == [hit["request_id"], miss["request_id"]]
    assert board(rig).find(hit["request_id"])["cache"] == "hit"
    assert board(rig).find("none") is None
    assert board(rig).errors(9) == []


@pytest.mark.proxy_only("only the proxy's own server sees a request's bytes")
@pytest.mark.parametrize("form", [PLAIN, STREAMED], ids=str)
async def test_hits_that_came_in_the_same_bytes_are_counted_as_well(rig, tmp_path, form):
    await rig.start(cache__ttl=3600, folder=tmp_path)
    rig.provider.script = Script(head=0.02)
    first = await filled(rig, form, KEY)
    counted, client = Counted(rig), await rig.connect()
    for _ in range(5):
        await client.send(request("POST", form.target, form.sent, [KEY]))
        answer = await client.answer("POST")
        assert await answer.rest() == first.body
    assert len(rig.sidecar.service._proxy._again._known) == 1
    lines = [await rig.line(number) for number in range(6)]
    found = counted()
    assert requests(found) == {("complete", "2xx", "hit"): 5}
    assert by(found["slipstream_cache_results_total"]) == {("exact", "hit"): 5}
    assert not [name for name in found if name.startswith("gen_ai_")]
    assert found["slipstream_request_duration_seconds_count"][1] == 5
    assert found["slipstream_overhead_seconds_count"][1] == 5
    assert found.get("slipstream_time_to_first_token_seconds_count", [0, 0])[1] == (5 if form.stream else 0)
    ((_, entry),) = rig.sidecar.service.assembly.cache._hot.items()
    assert entry.known.took > 0
    took = entry.known.took * 1000
    figures = total(rig)
    assert figures["hit_rate"] == round(5 / 6, 4)
    assert figures["saved_tokens"] == 5 * (lines[0]["input_tokens"] + lines[0]["output_tokens"])
    assert (
        figures["saved_seconds"] == sum([max(round(took - hit["total_ms"]), 0) for hit in lines[1:]]) / 1000
    )
    saved = board(rig).stats()["cache"]["saved_seconds"]
    assert (
        saved
        == pytest.approx(figures["saved_seconds"])
        == pytest.approx(found["slipstream_cache_saved_seconds_total"])
    )


async def test_a_stored_stream_without_tokens_that_hits_for_minutes(rig, tmp_path):
    """What a hit saved may be nothing: the figures go on when that leaves the window."""
    await rig.start(cache__ttl=3600)
    late = Offset(rig)
    client, call = await begun(rig, CHAT, KEY)
    await streamed(call, *CHAT.events)
    await (await client.answer("POST")).rest()
    await settled(rig, 1)
    for number in range(12):
        late.seconds += 9.0
        assert (await client.whole("POST", CHAT.target, CHAT.body, [KEY])).body == CHAT.whole
        await rig.line(number + 1)
        assert total(rig)["saved_tokens"] == 0
        assert total(rig, "1m")["requests"] <= 7
    assert total(rig)["requests"] == 13


class Offset:
    """Makes the meter's clock go on by so much more than it has."""

    def __init__(self, rig):
        self.seconds = 0.0
        for window in (meter(rig)._window, meter(rig).budgets._window):
            clock = window._clock
            window._clock = lambda clock=clock: clock() + self.seconds


async def test_a_streamed_answer_while_it_runs_and_after_it(rig):
    await rig.start()
    counted = Counted(rig)
    assert board(rig).active(9) == []
    client, call = await begun(rig, CHAT, KEY)
    (row,) = board(rig).active(9)
    age = row.pop("age_ms")
    assert age >= 0
    assert row == {
        "request_id": row["request_id"],
        "method": "POST",
        "path": CHAT.target,
        "upstream": row["upstream"],
        "model": "m",
        "feature": row["feature"],
        "stream": True,
        "phase": "upstream",
        "ttft_ms": None,
        "events": 0,
        "output_tokens": None,
        "tokens_per_second": None,
        "cache": "miss",
    }
    await call.send(head(CHAT.kind))
    answer = await client.answer("POST")
    assert board(rig).active(9)[0]["phase"] == "first_token"
    assert board(rig).stats()["active"] == {
        "requests": 1,
        "streams": 1,
        "calls": 1,
        "jobs_running": 0,
        "jobs_queued": 0,
    }
    size = 0
    for number, event in enumerate(CHAT.events[:2], 1):
        await call.send(chunk(event))
        size += len(event)
        await answer.until(size)
        (row,) = board(rig).active(9)
        assert (row["phase"], row["events"]) == ("stream", number)
        assert row["ttft_ms"] is not None
    told_ = samples(scraped(rig))
    for name in ("slipstream_active_requests", "slipstream_active_streams", "slipstream_active_calls"):
        assert told_[name, ()] == 1
    await ended(call, *CHAT.events[2:])
    await answer.rest()
    line = await rig.line()
    await settled(rig)
    assert board(rig).active(9) == []
    assert set(board(rig).stats()["active"].values()) == {0}
    found = counted()
    assert requests(found) == {("complete", "2xx", "miss"): 1}
    assert found["gen_ai_client_time_to_first_chunk_seconds_count"][1] == 1
    assert found["gen_ai_client_time_per_output_chunk_seconds_count"][1] == 2  # three deltas, two gaps
    assert found["slipstream_time_to_first_token_seconds_count"][1] == 1
    assert "gen_ai_client_token_usage_count" not in found
    figures = total(rig)
    assert figures["gap_ms"]["count"] == 2
    for name in ("ttft_ms", "ttfb_ms", "total_ms", "overhead_ms"):
        assert figures[name]["count"] == 1
        assert figures[name]["p50"] == pytest.approx(line[name], rel=0.011, abs=0.001)


async def test_a_row_says_the_feature_that_the_line_will_say(rig):
    await rig.start()
    features = []
    for fields in ([], [(b"Slipstream-Feature", b"search")]):
        client, call = await begun(rig, CHAT, KEY, *fields)
        (row,) = board(rig).active(9)
        await streamed(call, *CHAT.events)
        await (await client.answer("POST")).rest()
        line = await rig.line(len(features))
        features.append((row["feature"], line["feature"]))
        await settled(rig)
    assert features == [("chat", "chat"), ("search", "search")]


async def test_a_request_of_which_nothing_is_here_is_read(rig):
    await rig.start()
    rig.script(PLAIN.target)
    client = await rig.connect()
    whole = request("POST", PLAIN.target, PLAIN.sent, [KEY])
    await client.send(whole[:-1])
    await eventually(lambda: board(rig).active(9), lambda: "no request")
    assert board(rig).active(9)[0]["phase"] == "read"
    await client.send(whole[-1:])
    call = await rig.call()
    assert board(rig).active(9)[0]["phase"] == "upstream"
    await call.send(head(b"application/json", framing=b"Content-Length: %d" % len(WHOLE)), WHOLE[:5])
    answer = await client.answer("POST")
    await answer.until(5)
    (row,) = board(rig).active(9)
    assert (row["phase"], row["stream"]) == ("body", False)
    assert board(rig).stats()["active"]["streams"] == 0
    await call.send(WHOLE[5:])
    call.done()
    await answer.rest()


async def test_active_rows_come_oldest_first_and_not_more_than_asked_for(rig):
    await rig.start(cache__collapse=False)
    for number in range(3):
        await begun(rig, CHAT, (b"Slipstream-Feature", b"f%d" % number))
    assert [row["feature"] for row in board(rig).active(2)] == ["f0", "f1"]
    assert len(board(rig).active(9)) == 3
    assert board(rig).active(0) == []


async def test_a_collapsed_pair_is_two_requests_and_one_call(rig):
    await rig.start()
    counted = Counted(rig)
    first, call = await begun(rig, STREAMED, KEY)
    second = await rig.connect()
    await second.send(request("POST", STREAMED.target, STREAMED.sent, [KEY]))
    await eventually(
        lambda: len(board(rig).active(9)) == 2 and board(rig).active(9)[1]["phase"] == "upstream",
        lambda: board(rig).active(9),
    )
    assert board(rig).stats()["active"] == {
        "requests": 2,
        "streams": 0,
        "calls": 1,
        "jobs_running": 0,
        "jobs_queued": 0,
    }
    await streamed(call, *spoken())
    for client in (first, second):
        await (await client.answer("POST")).rest()
    await rig.line(1)
    await settled(rig)
    found = counted()
    assert requests(found) == {("complete", "2xx", "miss"): 1, ("complete", "2xx", "collapsed"): 1}
    assert by(found["slipstream_cache_results_total"]) == {("miss",): 1, ("collapsed",): 1}
    assert found[DURATION][1] == 1
    assert found["gen_ai_client_time_to_first_chunk_seconds_count"][1] == 1
    assert found[CALLS][1] == 1
    assert (total(rig)["hit_rate"], total(rig)["requests"]) == (0.0, 2)


USED = b'data: {"model":"m-1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":7}}\n\n'


async def both(rig, form):
    """Two clients that share a call: the first one's, the other's, and the call."""
    first, call = await begun(rig, form, KEY)
    second = await rig.connect()
    await second.send(request("POST", form.target, form.sent, [KEY]))
    hub = rig.sidecar.service.assembly.hub
    await eventually(lambda: [live.recording.readers for live in hub._live] == [2], lambda: "not joined")
    return first, second, call


@pytest.mark.parametrize("end", ["whole", "reset"])
async def test_a_call_whose_first_client_leaves_while_another_reads_on_is_one_whole_call(rig, end):
    """How long it took, what it used and how it failed are the call's, whoever was there to see it."""
    await rig.start()
    counted = Counted(rig)
    first, second, call = await both(rig, STREAMED)
    *begins, last = spoken()
    await call.send(head(CHAT.kind), *map(chunk, begins[:2]))
    size = len(b"".join(begins[:2]))
    await (await first.answer("POST")).until(size)
    answer = await second.answer("POST")
    await left(rig, first)
    gone = await rig.line()
    assert (gone["outcome"], gone["cache"]) == ("cancelled", "miss")
    assert counted(*OF_CALLS) == {}  # it goes on
    # The rest of it takes longer than all that the first one saw.
    until = time.perf_counter() + 2 * gone["total_ms"] / 1000
    await eventually(lambda: time.perf_counter() > until, lambda: "time")
    await call.send(chunk(begins[2] + USED))
    await answer.until(len(b"".join(begins) + USED))
    if end == "whole":
        await call.send(chunk(last), LAST)
        call.done()
    else:
        call.reset()
    await answer.rest()
    line = await rig.line(1)
    error = None if end == "whole" else "upstream_closed"
    assert (line["cache"], line["error"]) == ("collapsed", error)
    found = await over(rig, counted)
    one_call(found, error)
    assert found[DURATION][0]["gen_ai_response_model"] == "m-1"
    assert found["gen_ai_client_time_to_first_chunk_seconds_count"][1] == 1
    assert [amount for _, amount in found["gen_ai_client_token_usage_count"]] == [1, 1]
    (took,) = summed(rig, "operation_duration_seconds").values()
    assert took * 1000 > 2 * gone["total_ms"]
    tokens = [
        value for (of, _), value in samples(scraped(rig)).items() if of == "gen_ai_client_token_usage_sum"
    ]
    assert sorted(tokens) == [3, 7]


async def test_a_call_that_all_its_clients_have_left_was_given_up(rig):
    await rig.start()
    counted = Counted(rig)
    *clients, call = await both(rig, STREAMED)
    await call.send(head(CHAT.kind), *map(chunk, spoken()[:2]))
    for number, client in enumerate(clients):
        await client.answer("POST")
        await left(rig, client)
        await rig.line(number)
    one_call(await over(rig, counted))


@pytest.mark.parametrize("replay", ["instant", "paced"])
@pytest.mark.parametrize("stays", [True, False])
async def test_what_comes_out_of_the_cache_is_no_call(rig, replay, stays):
    await rig.start(cache__ttl=3600, cache__replay=replay, keepalive__interval=0)
    rig.provider.script = Script(tokens=6, interval=0.002)
    first = await filled(rig, STREAMED, KEY)
    counted = Counted(rig)
    client = await rig.connect()
    await client.send(request("POST", STREAMED.target, STREAMED.sent, [KEY]))
    answer = await client.answer("POST")
    if stays:
        assert await answer.rest() == first.body
    else:
        await answer.more()
        client.reset()
    assert (await rig.line(1))["cache_kind"] == "exact"
    assert await over(rig, counted) == {}
    assert counted("slipstream_cache_results_total")


async def test_what_checks_a_stored_answer_is_a_call(rig, tmp_path, model_folder):
    """Though nobody waits for it."""
    await on_model(rig, model_folder, tmp_path, semantic__verify=1)
    await known(rig, asking(PLAIN, ASKED), KEY)
    counted = Counted(rig)
    assert likeness(await ask(rig, asking(PLAIN, AGAIN), KEY)) is not None
    kept = rig.sidecar.service.assembly.cache.counts
    await eventually(lambda: kept["verify_right"], lambda: kept)
    found = await over(rig, counted)
    one_call(found)
    assert [amount for _, amount in found["gen_ai_client_token_usage_count"]] == [1, 1]
    await rig.line(1)
    assert requests(counted()) == {("complete", "2xx", "hit"): 1}


# Clients that leave.


@pytest.mark.parametrize("phase", ["request", "upstream", "joined", "first_token", "stream", "body"])
async def test_how_far_a_client_had_come_that_left(rig, phase):
    await rig.start()
    counted = Counted(rig)
    lines = 0
    if phase == "request":
        rig.script(PLAIN.target)
        client = await rig.connect()
        await client.send(request("POST", PLAIN.target, PLAIN.sent, [KEY])[:-1])
        await eventually(lambda: board(rig).active(9), lambda: "no request")
    else:
        client, call = await begun(rig, PLAIN if phase == "body" else CHAT, KEY)
    if phase == "joined":
        first, client = client, await rig.connect()
        await client.send(request("POST", CHAT.target, CHAT.body, [KEY]))
        hub = rig.sidecar.service.assembly.hub
        await eventually(lambda: [live.recording.readers for live in hub._live] == [2], lambda: "not joined")
    elif phase == "body":
        await call.send(head(b"application/json", framing=b"Content-Length: %d" % len(WHOLE)), WHOLE[:5])
        await (await client.answer("POST")).until(5)
    elif phase in {"first_token", "stream"}:
        await call.send(head(CHAT.kind), *([chunk(CHAT.events[0])] if phase == "stream" else []))
        answer = await client.answer("POST")
        await answer.until(len(CHAT.events[0]) if phase == "stream" else 0)
    await left(rig, client)
    line = await rig.line(lines)
    assert line["outcome"] == "cancelled"
    found = counted()
    expected = "upstream" if phase == "joined" else phase
    assert found["slipstream_disconnects_total"] == ({"phase": expected}, 1)
    assert ERRORS not in found
    assert (total(rig)["cancel_rate"], total(rig)["requests"]) == (1.0, 1)
    assert board(rig).errors(9) == []
    if phase == "joined":
        assert found.get(CALLS) is None
        await streamed(call, *CHAT.events)
        await (await first.answer("POST")).rest()
    found = await over(rig, counted)
    if phase == "request":
        assert found == {}
    else:
        one_call(found)


# Upstreams that fail.


@pytest.mark.parametrize("status", [400, 429, 500, 503])
async def test_an_upstream_that_answers_with_an_error(rig, status):
    await rig.start()
    counted = Counted(rig)
    client, call = await begun(rig, STREAMED, KEY)
    await told(call, b'{"error":{"message":"planted"}}', status=b"%d Bad" % status)
    assert (await client.answer("POST")).status == status
    line = await rig.line()
    await settled(rig)
    found = counted()
    one_call(found, str(status))
    assert requests(found) == {("upstream_error", f"{status // 100}xx", "miss"): 1}
    labels, amount = found[DURATION]
    assert (labels["error_type"], labels["gen_ai_request_model"], amount) == (str(status), line["model"], 1)
    assert total(rig)["stream_error_rate"] is None  # there was none
    assert [one["request_id"] for one in board(rig).errors(9)] == [line["request_id"]]


@pytest.mark.parametrize(
    ("how", "kind", "rate"),
    [
        ("gone", "upstream_unreachable", None),
        ("cut", "upstream_closed", 1.0),
        ("stalled", "upstream_stalled", 0.0),
    ],
)
async def test_an_upstream_that_fails(rig, how, kind, rate):
    if how == "gone":
        await rig.start("http://127.0.0.1:9")
    else:
        await rig.start(timeouts__stall=0.05 if how == "stalled" else 300)
    counted = Counted(rig)
    if how == "gone":
        await ask(rig, STREAMED, KEY)
    else:
        client, call = await begun(rig, CHAT, KEY)
        await call.send(head(CHAT.kind), chunk(CHAT.events[0]))
        if how == "cut":
            call.reset()
        await (await client.answer("POST")).rest()
    assert (await rig.line())["error"] == kind
    found = await over(rig, counted)
    one_call(found, kind)
    assert (found.get("slipstream_stalls_total", (None, 0))[1] == 1) == (how == "stalled")
    assert total(rig)["stream_error_rate"] == rate
    assert total(rig)["timeout_rate"] == (how == "stalled")
    assert len(board(rig).errors(9)) == 1


@pytest.mark.parametrize("form", [PLAIN, STREAMED], ids=str)
async def test_an_upstream_that_reports_an_error_in_a_good_answer(rig, form):
    await rig.start()
    counted = Counted(rig)
    client, call = await begun(rig, form, KEY)
    reported = b'{"error":{"message":"planted"}}'
    if form is PLAIN:
        await told(call, reported)
    else:
        await streamed(call, spoken()[0], b"data: %b\n\n" % reported)
    assert (await client.answer("POST")).status == 200
    await rig.line()
    one_call(await over(rig, counted), "upstream_error")


@pytest.mark.parametrize("many", [1, 2])
async def test_what_stood_in_for_an_upstream_that_failed(rig, many):
    """One call failed, whoever waited for it."""
    await rig.start(cache__ttl=60, cache__stale_if_error=3600)
    clock = clocked(rig.sidecar)
    client, call = await begun(rig, PLAIN, KEY)
    await told(call, said())
    await (await client.answer("POST")).rest()
    await settled(rig, 1)
    clock.now += 120.0
    counted = Counted(rig)
    clients = [await rig.connect() for _ in range(many)]
    for client in clients:
        await client.send(request("POST", PLAIN.target, PLAIN.sent, [KEY]))
    call = await rig.call()
    hub = rig.sidecar.service.assembly.hub
    await eventually(lambda: [live.recording.readers for live in hub._live] == [many], lambda: "not joined")
    await told(call, b"{}", status=b"503 Unavailable")
    for client in clients:
        answer = await client.answer("POST")
        assert (answer.status, await answer.rest()) == (200, said())
    for number in range(many):
        line = await rig.line(1 + number)
        assert (line["cache"], line["cache_kind"]) == ("hit", "stale")
    await settled(rig)
    found = counted()
    assert found["slipstream_cache_results_total"] == ({"result": "hit", "kind": "stale"}, many)
    assert "slipstream_cache_saved_seconds_total" not in found
    one_call(found, "503")
    assert "gen_ai_client_token_usage_count" not in found
    assert total(rig)["hit_rate"] == 0.0


async def test_our_own_end_is_no_fault_of_the_upstream(rig):
    await rig.start()
    client, call = await begun(rig, CHAT, KEY)
    await call.send(head(CHAT.kind), chunk(CHAT.events[0]))
    answer = await client.answer("POST")
    await answer.until(len(CHAT.events[0]))
    assembly = rig.sidecar.service.assembly
    counted = Counted(rig)
    assert not await assembly.drain(0.0)
    line = await rig.line()
    assert (line["outcome"], line["error"]) == ("truncated", "draining")
    await settled(rig)
    found = counted()
    assert ERRORS not in found
    assert (found[CALLS][1], found[DURATION][0]["error_type"], found[DURATION][1]) == (1, "draining", 1)
    assert found["slipstream_ready"] == -1
    assert board(rig).ready()["proxy"].ready is False
    assert "drains" in board(rig).ready()["proxy"].why


# Clients that come back, and jobs.


@pytest.mark.parametrize("way", ["stream", "again"])
async def test_a_client_that_comes_back_is_no_call(rig, way):
    await rig.start()
    stream = await begin(rig, CHAT, IDS)
    await passed(stream, CHAT.events[0])
    await left(rig, stream)
    counted = Counted(rig)
    _, answer = await back(rig, CHAT, way, stream.name, 0)
    (row,) = board(rig).active(9)
    assert (row["phase"], row["events"]) == ("stream", 1)
    await ended(stream.call, *CHAT.events[1:])
    await answer.rest()
    await rig.line(1)
    first, second = sorted(
        [await rig.line(), await rig.line(1)], key=lambda line: line["resumed_from"] is not None
    )
    assert (first["outcome"], second["resumed_from"]) == ("cancelled", 1)
    await settled(rig)
    found = counted()
    assert found["slipstream_resumes_total"] == ({"result": "resumed"}, 1)
    # The first client's line is written when its call is taken up again.
    assert found["slipstream_disconnects_total"] == ({"phase": "stream"}, 1)
    one_call(found)
    assert found["slipstream_time_to_first_token_seconds_count"][1] == 1


@pytest.mark.parametrize("way", ["stream", "again"])
async def test_a_way_back_that_leads_nowhere(rig, way):
    await rig.start()
    stream = await begin(rig, CHAT, IDS)
    await ended(stream.call, *CHAT.events)
    await stream.answer.rest()
    await rig.line()
    counted = Counted(rig)
    await again(rig, "DELETE", STREAMS + stream.name)
    for name, status in ((stream.name, 410), ("s" + "A" * 32, 404)):
        _, answer = await back(rig, CHAT, way, name, 0)
        assert answer.status == status
        await answer.rest()
    await rig.line(3)
    assert by(counted()["slipstream_resumes_total"]) == {("gone",): 1, ("unknown",): 1}


async def test_a_job(rig, tmp_path):
    await rig.start(folder=tmp_path, budgets__batch__total_ms=0.001)
    rig.script(PLAIN.target)
    client = await rig.connect()
    counted = Counted(rig)
    form = CHAT._replace(body=PLAIN.sent)
    name = await submitted(client, form)
    call = await rig.call()
    assert board(rig).stats()["active"] == {
        "requests": 0,
        "streams": 0,
        "calls": 1,
        "jobs_running": 1,
        "jobs_queued": 0,
    }
    assert samples(scraped(rig))["slipstream_jobs", (("state", "running"),)] == 1
    await told(call, WHOLE)
    assert (await job_ended(client, name))["status"] == "complete"
    await eventually(
        lambda: [one for one in rig.sidecar.lines.all if one["event"] == "job"], lambda: "no line"
    )
    found = counted()
    assert found["slipstream_jobs_ended_total"] == ({"status": "complete"}, 1)
    one_call(found)
    assert {
        labels["gen_ai_token_type"]: amount for labels, amount in found["gen_ai_client_token_usage_count"]
    } == {"input": 1, "output": 1}
    assert "slipstream_jobs" not in found
    (batch,) = [one for one in board(rig).stats()["budgets"] if one["feature"] == "batch"]
    assert (batch["windows"]["1m"]["requests"], batch["windows"]["1m"]["over"]) == (1, 1)
    # Taking it in and asking after it are requests like others, and no calls.
    assert all(line["budget_exceeded"] is None for line in rig.sidecar.lines.requests)


async def ends_as(rig, client, name, end):
    """The job has, and its line is written."""
    assert (await job_ended(client, name))["status"] == end
    await eventually(
        lambda: [one for one in rig.sidecar.lines.all if one["event"] == "job" and one["job_id"] == name],
        lambda: "no line",
    )


@pytest.mark.parametrize(
    ("how", "status", "error"),
    [("cut", "failed", "upstream_closed"), ("refused", "failed", "503"), ("stopped", "cancelled", None)],
)
async def test_a_job_whose_call_came_to_nothing(rig, tmp_path, how, status, error):
    await rig.start(folder=tmp_path)
    rig.script(CHAT.target)
    client = await rig.connect()
    counted = Counted(rig)
    name = await submitted(client)
    call = await rig.call()
    if how == "refused":
        await told(call, b"{}", status=b"503 Unavailable")
    else:
        await call.send(head(CHAT.kind), chunk(CHAT.events[0]))
        if how == "cut":
            call.reset()
        else:
            await cancel(client, name)
    await ends_as(rig, client, name, status)
    one_call(await over(rig, counted), error)
    assert counted("slipstream_jobs_ended_total") == {"slipstream_jobs_ended_total": ({"status": status}, 1)}


async def test_a_job_that_never_began_is_no_call(rig, tmp_path):
    await rig.start(folder=tmp_path, jobs__concurrency=1)
    rig.script(CHAT.target)
    client = await rig.connect()
    counted = Counted(rig)
    running = await submitted(client)
    call = await rig.call()
    queued = await submitted(client, numbered(2))
    await cancel(client, queued)
    await ends_as(rig, client, queued, "cancelled")
    assert counted(*OF_CALLS) == {}
    await streamed(call, *CHAT.events)
    await ends_as(rig, client, running, "complete")
    one_call(await over(rig, counted))


async def test_a_job_that_is_waited_for_is_one_call(rig, tmp_path):
    await rig.start(folder=tmp_path)
    rig.script(PLAIN.target)
    client = await rig.connect()
    counted = Counted(rig)
    await client.send(
        request("POST", PLAIN.target, PLAIN.sent, [KEY, (b"Prefer", b"respond-async, wait=10")])
    )
    await told(await rig.call(), WHOLE)
    answer = await client.answer("POST")
    assert (answer.status, await answer.rest()) == (200, WHOLE)
    await rig.line()
    await eventually(
        lambda: [one for one in rig.sidecar.lines.all if one["event"] == "job"], lambda: "no line"
    )
    one_call(await over(rig, counted))


# Budgets.


async def test_a_line_over_its_budget_says_so(rig):
    await rig.start(
        budgets__chat__ttft_ms=0.001, budgets__chat__total_ms=0.001, budgets__search__total_ms=60_000
    )
    rig.provider.script = Script(first=0.02)
    await ask(rig, STREAMED, KEY)
    await ask(rig, STREAMED, KEY, (b"Slipstream-Feature", b"search"))
    await ask(rig, STREAMED, KEY, (b"Slipstream-Feature", b"unheard"))
    over, within, none = [await rig.line(number) for number in range(3)]
    told_ = over["budget_exceeded"]
    assert (told_["budget"], told_["phase"] in {"upstream", "first_token"}) == ("chat", True)
    assert told_["ttft_ms"] == round(over["ttft_ms"] - 0.001, 3)
    assert told_["total_ms"] == round(over["total_ms"] - 0.001, 3)
    assert (within["feature"], within["budget_exceeded"]) == ("search", None)
    assert (none["feature"], none["budget_exceeded"]) == ("unheard", None)
    found = {
        (labels["feature"], labels["budget"], labels["verdict"]): amount
        for labels, amount in moved({}, samples(scraped(rig)))["slipstream_budget_requests_total"]
    }
    assert found == {
        ("chat", "ttft_ms", "over"): 1,
        ("chat", "total_ms", "over"): 1,
        ("search", "total_ms", "within"): 1,
    }
    told_ = samples(scraped(rig))
    of = (("budget", "ttft_ms"), ("feature", "chat"))
    assert told_["slipstream_budget_target_seconds", of] == pytest.approx(1e-6)
    assert told_["slipstream_budget_burn_rate", (*of, ("window", "5m"))] == 20
    assert told_["slipstream_budget_alert", of] == 0


async def test_a_budget_that_burns_and_recovers_is_said_once_each(rig):
    await rig.start(budgets__chat__ttft_ms=0.001)
    late = Offset(rig)
    of = ("slipstream_budget_alert", (("budget", "ttft_ms"), ("feature", "chat")))

    def alarms():
        meter(rig).watch()
        return [line for line in rig.sidecar.lines.all if line["event"].startswith("budget_")]

    for number in range(10):
        assert alarms() == []
        await ask(rig, STREAMED, KEY)
        await rig.line(number)
    for _ in range(3):
        (burning,) = alarms()
    assert (burning["event"], burning["level"]) == ("budget_burning", "warning")
    assert (burning["feature"], burning["budget"], burning["requests"]) == ("chat", "ttft_ms", 10)
    assert (burning["burn"], burning["target_ms"]) == (20.0, 0.001)
    assert samples(scraped(rig))[of] == 1
    assert [one["alert"] for one in board(rig).stats()["budgets"][:2]] == [True, False]
    late.seconds = 400.0
    for _ in range(3):
        _, recovered = alarms()
    assert (recovered["event"], recovered["level"], recovered["requests"]) == ("budget_recovered", "info", 0)
    assert samples(scraped(rig))[of] == 0
    assert total(rig)["requests"] == 0
    assert total(rig, "60m")["requests"] == 10


async def test_with_metrics_off_nothing_is_kept_and_lines_say_all(rig, tmp_path):
    await rig.start(metrics__enabled=False, cache__ttl=3600, folder=tmp_path, budgets__chat__ttft_ms=0.001)
    first = await filled(rig, STREAMED, KEY)
    await hits(rig, STREAMED, first, KEY)
    client = await rig.connect()
    for _ in range(3):
        await client.whole("POST", STREAMED.target, STREAMED.sent, [KEY])
    lines = [await rig.line(number) for number in range(5)]
    assert [line["cache"] for line in lines] == ["miss", *["hit"] * 4]
    assert all(line["budget_exceeded"]["ttft_ms"] > 0 for line in lines)
    assert board(rig).recent(9) == board(rig).errors(9) == []
    assert board(rig).since(0, 9) == (0, [])
    stats = board(rig).stats()
    assert {name: one["total"]["requests"] for name, one in stats["windows"].items()} == {
        "1m": 0,
        "5m": 0,
        "60m": 0,
    }
    assert stats["cache"]["saved_seconds"] == 0
    assert not any(one["windows"]["5m"]["requests"] for one in stats["budgets"])
    assert stats["loop_lag_ms"]["count"] == 0
    kept = {name for (name, _), value in samples(scraped(rig)).items() if value}
    # What is known anyway is told: the process's own state, and what the cache has counted.
    assert not {
        name for name in kept if name.startswith("gen_ai_") or "requests" in name or "results" in name
    }


# What is ready, and what is never told.


async def test_what_is_ready(rig, tmp_path):
    await rig.start(folder=tmp_path)
    found = board(rig).ready()
    assert {name: (check.ready, check.why) for name, check in found.items()} == dict.fromkeys(
        ["proxy", "cache", "jobs"], (True, None)
    )


async def test_without_a_folder_there_are_no_jobs_and_answers_are_in_memory_only(rig):
    await rig.start()
    found = board(rig).ready()
    assert (found["proxy"].ready, found["cache"].ready, found["jobs"].ready) == (True, False, False)
    assert "in memory only" in found["cache"].why
    assert all("--data-dir" in found[name].why for name in ("cache", "jobs"))
    await rig.start(cache__mode="off")
    assert "cache" not in board(rig).ready()


async def test_a_cache_that_could_not_be_opened_is_in_memory_only_and_says_why(rig, tmp_path):
    (tmp_path / "answers").write_bytes(b"in the way")
    await rig.start(cache__ttl=3600, folder=tmp_path)
    found = board(rig).ready()
    assert (found["proxy"].ready, found["cache"].ready, found["jobs"].ready) == (True, False, True)
    assert found["cache"].why
    assert str(tmp_path) not in found["cache"].why
    (warned,) = [line for line in rig.sidecar.lines.all if line["event"] == "cache_in_memory_only"]
    assert warned["reason"] == found["cache"].why


async def test_before_it_has_started_it_is_not_ready(rig):
    await rig.start()
    board(rig).started = False
    assert board(rig).ready()["proxy"].ready is False
    assert samples(scraped(rig))["slipstream_ready", ()] == 0
    board(rig).started = True


@pytest.mark.parametrize("accept", [TEXT, OPEN])
async def test_no_prompt_credential_or_query_is_in_figures_or_metrics(rig, tmp_path, accept):
    """49: after a miss, a hit, an error and one that is refused; all of what an operator can see."""
    await rig.start(cache__ttl=3600, folder=tmp_path)
    form = PLAIN._replace(target=PLAIN.target + "?key=planted-query")
    await hits(rig, form, await filled(rig, form, KEY), KEY)
    client = await rig.connect()
    await client.whole(
        "POST", "/v1/chat/completions?a=planted", PLAIN.sent, [KEY, (b"X-Scripted", b'{"status":500}')]
    )
    await client.whole("GET", STREAMS + "s" + "A" * 32 + "?token=planted", fields=[KEY])
    await client.whole("POST", FORM["chat-stream"].target, b'{"planted', [KEY])
    held = await begun(rig, CHAT._replace(target="/v1/completions"), KEY, (b"X-Planted", b"planted"))
    await rig.line(4)
    body, _ = board(rig).metrics(accept)()
    assert b"planted" not in body
    seen = [board(rig).stats(), board(rig).active(9), board(rig).recent(9), board(rig).errors(9)]
    assert len(seen[1]) == 1
    assert len(seen[2]) == 5
    assert b"planted" not in orjson.dumps(seen)
    assert "Bearer" not in str(seen)
    held[0].close()


async def test_what_ended_since_a_mark(rig):
    await rig.start()
    assert board(rig).since(0, 9) == (0, [])
    for number in range(3):
        await ask(rig, PLAIN, KEY)
        await rig.line(number)
    ids = [(await rig.line(number))["request_id"] for number in (2, 1, 0)]

    def since(mark, most):
        mark, lines = board(rig).since(mark, most)
        return mark, [line["request_id"] for line in lines]

    assert since(0, 9) == (3, ids)
    assert since(1, 9) == (3, ids[:2])
    assert since(0, 1) == (3, ids[:1])
    assert since(3, 9) == (3, [])
    assert since(9, 9) == (3, [])  # a mark of another process


async def test_figures_of_one_window_have_no_combinations(rig):
    await rig.start()
    await ask(rig, PLAIN, KEY)
    await rig.line()
    assert list(board(rig).stats("1m")["windows"]) == ["1m"]
    assert "series" not in board(rig).stats("1m")["windows"]["1m"]
    every = board(rig).stats()["windows"]
    assert list(every) == ["1m", "5m", "60m"]
    ((one,),) = [window["series"] for window in every.values()][:1]
    assert (one["model"], one["feature"], one["cache"], one["requests"]) == ("m", "chat", "miss", 1)


async def test_a_late_timer_is_counted(rig):
    await rig.start()
    rig.sidecar.service.assembly._pulse.stop()
    before = board(rig).stats()["loop_lag_ms"]["count"]
    for _ in range(100):
        board(rig).late(0.5)
    lag = board(rig).stats()["loop_lag_ms"]
    assert lag["count"] == before + 100
    assert lag["p99"] == pytest.approx(500.0, rel=0.01)
    assert samples(scraped(rig))["slipstream_event_loop_lag_seconds_count", ()] == before + 100
