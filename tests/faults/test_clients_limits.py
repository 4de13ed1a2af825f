"""What clients may: so many requests at once, so many per second, counted once each however they end."""

import orjson
import pytest

from sidecar.serving.clients import _names
from sidecar.serving.shares import Shares
from tests.faults.clients import (
    ALICE,
    BOB,
    BODY,
    HEALTH,
    WHOLE,
    answered,
    bearer,
    begin,
    post,
    two,
)
from tests.faults.conftest import eventually
from tests.faults.jobs import JOBS, STREAMS, name_of
from tests.faults.wire import ANTHROPIC, CHAT, GEMINI, LAST, OLLAMA, OTHER, chunk, head, request

both = pytest.mark.both_shells


def inbound(rig):
    return rig.sidecar.service.assembly.inbound.clients


async def free(rig):
    """Until nothing counts any more: an answer's last byte comes before its end."""
    await eventually(lambda: not inbound(rig)._running, lambda: inbound(rig)._running)
    assert inbound(rig)._shares.running("alice") == 0


async def refused(answer):
    error = await answer.rest()
    assert (answer.status, answer.header("slipstream-error")) == (429, b"rate_limited")
    assert int(answer.header("retry-after")) >= 1
    return orjson.loads(error)


async def streaming(rig, connection, *fields):
    await connection.send(request("POST", CHAT.target, CHAT.body, [bearer(ALICE), *fields]))
    call = await rig.call()
    await call.send(head(), chunk(CHAT.events[0]))
    answer = await connection.answer()
    await answer.until(len(CHAT.events[0]))
    return call, answer


@both
async def test_one_too_many_at_once_is_429_and_the_others_go_on(rig):
    await begin(rig, clients=two(requests=2))
    rig.script(CHAT.target)
    first = await streaming(rig, await rig.connect())
    second = await streaming(rig, await rig.connect(), (b"Cache-Control", b"no-store"))
    connection = await rig.connect()
    error = await refused(await post(connection, bearer(ALICE)))
    assert error["error"]["type"] == "rate_limit_error"
    line = await rig.line()
    assert (line["outcome"], line["status"], line["error"]) == ("refused", 429, "rate_limited")
    # The other client has limits of its own, and this connection is still good.
    await connection.send(request("POST", CHAT.target, BODY, [bearer(BOB)]))
    await answered(await rig.call())
    assert (await connection.answer()).status == 200
    for call, answer in (first, second):
        await call.send(b"".join(map(chunk, CHAT.events[1:])), LAST)
        call.done()
        await answer.rest()
        assert (answer.end, bytes(answer.body)) == ("whole", CHAT.whole)
    await free(rig)


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        (CHAT, lambda error: error["error"]["type"] == "rate_limit_error"),
        (ANTHROPIC, lambda error: error["error"]["type"] == "rate_limit_error"),
        (GEMINI, lambda error: error["error"]["status"] == "RESOURCE_EXHAUSTED"),
        (OLLAMA, lambda error: "Too many" in error["error"]),
        (OTHER, lambda error: error["status"] == 429),
    ],
    ids=str,
)
async def test_a_refusal_has_the_shape_that_the_sdk_retries(rig, form, shape):
    await begin(rig, clients=two(rate=0.001))
    connection = await rig.connect()
    await connection.whole("GET", "/_slipstream/none", None, [bearer(ALICE)])
    answer = await post(connection, bearer(ALICE), form=form)
    assert shape(await refused(answer))
    assert 990 <= int(answer.header("retry-after")) <= 1000


@both
async def test_as_many_per_second_as_are_allowed(rig):
    await begin(rig, clients=two(rate=3))
    clock = Clock()
    inbound(rig)._shares._clock = clock
    connection = await rig.connect()

    async def statuses(count):
        found = []
        for _ in range(count):
            answer = await connection.whole("GET", "/_slipstream/none", None, [bearer(ALICE)])
            found.append(answer.status)
        return found

    assert await statuses(5) == [404, 404, 404, 429, 429]
    clock.now += 0.34
    assert await statuses(2) == [404, 429]
    clock.now += 60
    assert await statuses(4) == [404, 404, 404, 429]
    assert (await connection.whole("GET", "/_slipstream/none", None, [bearer(BOB)])).status == 404


class Clock:
    now = 5000.0

    def __call__(self):
        return self.now


@both
@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("when", ["upload", "upstream", "stream"])
async def test_a_client_that_leaves_gives_its_place_back_once(rig, how, when):
    await begin(rig, clients=two(requests=1))
    rig.script(CHAT.target)
    leaver, other = await rig.connect(), await rig.connect()
    if when == "upload":
        start = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %b\r\n" % ALICE
        await leaver.send(start + b"Content-Length: 999\r\n\r\n{")
        await eventually(lambda: inbound(rig)._running["alice"] == 1, lambda: "it has not begun")
    elif when == "upstream":
        await leaver.send(request("POST", CHAT.target, CHAT.body, [bearer(ALICE)]))
        await rig.call()
    else:
        await streaming(rig, leaver)
    await refused(await post(other, bearer(ALICE)))
    leaver.leave(how)
    await free(rig)
    await other.send(request("POST", CHAT.target, BODY, [bearer(ALICE)]))
    await answered(await rig.call())
    assert (await other.answer()).status == 200
    await free(rig)


FINISH = (b"Slipstream-Disconnect", b"finish")


def alone(rig):
    return inbound(rig)._running["alice/alone"]


@both
@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_call_that_goes_on_without_its_client_counts(rig, how):
    """Or hanging up would be a way around the limit."""
    await begin(rig, clients=two(requests=1))
    rig.script(CHAT.target)
    leaver, other = await rig.connect(), await rig.connect()
    call, _ = await streaming(rig, leaver, FINISH)
    leaver.leave(how)
    await eventually(lambda: alone(rig) == 1, lambda: inbound(rig)._running)
    await eventually(lambda: not inbound(rig)._running["alice"], lambda: inbound(rig)._running)
    await refused(await post(other, bearer(ALICE), (b"X-Other", b"1")))
    assert rig.uncalled()
    assert alone(rig) == 1
    await call.send(b"".join(map(chunk, CHAT.events[1:])), LAST)
    call.done()
    await free(rig)
    await other.send(request("POST", CHAT.target, BODY, [bearer(ALICE)]))
    await answered(await rig.call())
    assert (await other.answer()).status == 200
    await free(rig)


@both
async def test_who_comes_back_to_its_own_call_is_let_in(rig):
    """It takes the place that the call has; and when it leaves again, the call has it again."""
    await begin(rig, clients=two(requests=1))
    rig.script(CHAT.target)
    leaver = await rig.connect()
    ids = (b"Accept", b"text/event-stream")
    call, answer = await streaming(rig, leaver, FINISH, ids)
    name = answer.header("slipstream-stream-id")
    leaver.leave("rst")
    for _ in range(2):
        await eventually(lambda: alone(rig) == 1, lambda: inbound(rig)._running)
        back = await rig.connect()
        after = [bearer(ALICE), FINISH, ids, (b"Last-Event-ID", name + b":0")]
        await back.send(request("POST", CHAT.target, CHAT.body, after))
        assert (await back.answer()).status == 200
        assert (alone(rig), inbound(rig)._running["alice"]) == (0, 1)
        back.leave("rst")
    await eventually(lambda: alone(rig) == 1, lambda: inbound(rig)._running)
    await refused(await post(await rig.connect(), bearer(ALICE), (b"X-Other", b"1")))
    stopped = await (await rig.connect()).whole("DELETE", STREAMS + name.decode(), None, [bearer(ALICE)])
    assert stopped.status == 204
    await call.closed()
    await free(rig)


async def test_a_call_that_two_read_counts_once_when_both_have_left(rig):
    await begin(rig, clients=two(requests=2))
    rig.script(CHAT.target)
    one, two_ = await rig.connect(), await rig.connect()
    call, _ = await streaming(rig, one, FINISH)
    await two_.send(request("POST", CHAT.target, CHAT.body, [bearer(ALICE), FINISH]))
    assert (await two_.answer()).status == 200
    one.leave("rst")
    await eventually(lambda: inbound(rig)._running["alice"] == 1, lambda: inbound(rig)._running)
    assert not alone(rig)
    two_.leave("rst")
    await eventually(lambda: alone(rig) == 1, lambda: inbound(rig)._running)
    call.reset()
    await free(rig)


@both
@pytest.mark.parametrize("end", ["close", "reset", "garbage"])
async def test_an_upstream_that_breaks_gives_it_back_too(rig, end):
    await begin(rig, clients=two(requests=1))
    rig.script(CHAT.target)
    connection = await rig.connect()
    call, answer = await streaming(rig, connection)
    if end == "garbage":
        await call.send(b"not a chunk\r\n")
        call.done()
    else:
        getattr(call, end)()
    await answer.rest()
    assert answer.end in ("cut", "reset")
    await free(rig)


async def test_refusals_of_all_kinds_give_it_back(rig):
    await begin(rig, clients=two(requests=1))
    for target, fields, status in (
        ("/_slipstream/none", [], 404),
        ("/v1/x", [(b"Prefer", b"respond-async")], 503),
        ("/v1/x", [(b"Last-Event-ID", b"s" + b"x" * 32 + b":1")], 404),
        ("/v1/x", [(b"Slipstream-Disconnect", b"never")], 400),
    ):
        connection = await rig.connect()
        answer = await connection.whole("POST", target, BODY, [bearer(ALICE), *fields])
        assert answer.status == status, bytes(answer.body)
    await free(rig)


@both
async def test_a_limit_does_not_keep_one_from_stopping_what_runs(rig):
    await begin(rig, clients=two(requests=1))
    rig.script(CHAT.target)
    call, answer = await streaming(rig, await rig.connect(), (b"Accept", b"text/event-stream"))
    name = answer.header("slipstream-stream-id").decode()
    other = await rig.connect()
    await refused(await other.ask("GET", STREAMS + name, None, [bearer(ALICE)]))
    assert (await other.whole("DELETE", STREAMS + name, None, [bearer(ALICE)])).status == 204
    await call.closed()
    await answer.rest()
    await free(rig)


async def test_health_is_no_request_of_anybodys(rig):
    await begin(rig, clients=two(rate=0.001))
    connection = await rig.connect()
    for _ in range(5):
        assert (await connection.whole("GET", HEALTH, None, [bearer(ALICE)])).status == 200


async def test_a_job_counts_until_it_is_taken(rig, tmp_path):
    await begin(rig, clients=two(requests=1), folder=tmp_path)
    rig.script(CHAT.target)
    connection = await rig.connect()
    fields = [bearer(ALICE), (b"Prefer", b"respond-async")]
    job = name_of(await connection.whole("POST", CHAT.target, BODY, fields))
    call = await rig.call()
    await free(rig)
    assert (await connection.whole("GET", JOBS + job, None, [bearer(ALICE)])).status == 200
    # One that waits for its answer is a request that goes on.
    waiting = [bearer(ALICE), (b"Prefer", b"respond-async, wait=60"), (b"Idempotency-Key", b"1")]
    await connection.send(request("POST", CHAT.target, CHAT.body, waiting))
    second = await rig.call()
    other = await rig.connect()
    await refused(await other.ask("GET", JOBS + job, None, [bearer(ALICE)]))
    await answered(call)
    await answered(second)
    assert (await connection.answer()).status == 200
    await free(rig)


async def test_a_hit_from_memory_counts_like_any_other(rig):
    """The short way, which reads nothing, spends of the rate as the long one does, and no more."""
    await begin(rig, clients=two(rate=5, requests=1), cache__ttl=3600)
    clock = Clock()
    inbound(rig)._shares._clock = clock
    rig.script(CHAT.target)
    connection = await rig.connect()
    asking = request("POST", CHAT.target, BODY, [bearer(ALICE)])
    await connection.send(asking)
    await answered(await rig.call())
    await (await connection.answer()).rest()
    for _ in range(4):
        await connection.send(asking)
        answer = await connection.answer()
        assert (answer.status, await answer.rest()) == (200, WHOLE)
    assert len(rig.sidecar.service._proxy._again._known) == 1
    await connection.send(asking)
    await refused(await connection.answer())
    clock.now += 0.21
    await connection.send(asking)
    assert (await connection.answer()).status == 200
    assert rig.uncalled()
    # At the limit of those at once, neither way is open.
    clock.now += 60
    other = await rig.connect()
    call, answer = await streaming(rig, other)
    connection = await rig.connect()
    await connection.send(asking)
    await refused(await connection.answer())
    await call.send(b"".join(map(chunk, CHAT.events[1:])), LAST)
    call.done()
    await answer.rest()
    await free(rig)


async def test_workers_count_together(rig, tmp_path):
    """What another process of this sidecar serves counts here."""
    await begin(rig, clients=two(requests=2, rate=100))
    clients = inbound(rig)
    names = _names(clients._table)
    clients._shares.close()
    clients._shares = Shares(tmp_path / "shares", 0, 2, names)
    other = Shares(tmp_path / "shares", 1, 2, names)
    other.set_running("alice", 1)
    rig.script(CHAT.target)
    call, answer = await streaming(rig, await rig.connect())
    assert other.running("alice") == 2
    connection = await rig.connect()
    await refused(await post(connection, bearer(ALICE)))
    other.set_running("alice", 0)
    await connection.send(request("POST", CHAT.target, BODY, [bearer(ALICE)]))
    await answered(await rig.call())
    assert (await connection.answer()).status == 200
    await call.send(b"".join(map(chunk, CHAT.events[1:])), LAST)
    call.done()
    await answer.rest()
    await free(rig)
    assert other.running("alice") == 0
    other.close()
