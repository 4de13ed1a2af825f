"""Background jobs followed live and stopped, and who may do so."""

import orjson
import pytest

from tests.faults.jobs import (
    ANOTHER,
    JOBS,
    ONE,
    STREAMS,
    TAKES_IDS,
    ended,
    pieces,
    refused,
    result,
    status,
    stream,
    submitted,
    whole,
    works,
)
from tests.faults.wire import (
    CHAT,
    FORMATS,
    FRAMED,
    LAST,
    chunk,
    head,
)

pytestmark = pytest.mark.both_shells

FIELDS = (b"X-Request-Id: up-1", b"x-ratelimit-remaining: 7", b"Set-Cookie: a=1", b"Set-Cookie: b=2")


@pytest.fixture
async def client(rig, tmp_path):
    """A client of a sidecar that keeps jobs."""
    await rig.start(folder=tmp_path)
    return await rig.connect()


# Following it live.


@pytest.mark.parametrize("form", FORMATS, ids=str)
async def test_followed_live_from_the_start_and_from_later(rig, client, form):
    """A follower gets what is there and then each event as it comes; one that comes later, the same; one that knows
    some events, the rest."""
    rig.script(form.target)
    parts = pieces(form)
    count = len(parts) - 1
    name = await submitted(client, form)
    call = await rig.call()
    early, late = await rig.connect(), await rig.connect()
    await early.send(b"GET %b%b HTTP/1.1\r\nHost: h\r\n\r\n" % (STREAMS.encode(), name.encode()))
    await call.send(head(form.kind, *FIELDS), chunk(parts[0]))
    first = await early.answer()
    await first.until(len(parts[0]))
    assert (first.status, bytes(first.body)) == (200, parts[0])
    assert first.header("x-request-id") == b"up-1"
    second = await late.ask("GET", f"{STREAMS}{name}?after=1")
    for number in range(1, count):
        await call.send(chunk(parts[number]))
        await first.until(len(b"".join(parts[: number + 1])))
        await second.until(len(b"".join(parts[1 : number + 1])))
        assert bytes(first.body) == b"".join(parts[: number + 1])
        assert bytes(second.body) == b"".join(parts[1 : number + 1])
    await call.send(*[chunk(part) for part in parts[count:] if part], LAST)
    call.done()
    assert (await first.rest(), first.end) == (form.whole, "whole")
    assert (await second.rest(), second.end) == (b"".join(parts[1:]), "whole")
    await ended(client, name)
    for number in range(count + 1):
        again = await client.whole("GET", f"{STREAMS}{name}?after={number}")
        assert (bytes(again.body), again.end) == (b"".join(parts[number:]), "whole")
    refused(await client.whole("GET", f"{STREAMS}{name}?after={count + 1}"), 400, "bad_request")


async def test_followed_with_ids_and_taken_up_again(rig, client):
    """Every event carries `{job id}:{n}`; Last-Event-ID continues after it, live and once it is over."""
    rig.script(CHAT.target)
    name = await submitted(client, CHAT)
    call = await rig.call()
    follower, other = await rig.connect(), await rig.connect()
    await call.send(head(CHAT.kind), chunk(CHAT.events[0] + CHAT.events[1]))
    answer = await follower.ask("GET", STREAMS + name, fields=[TAKES_IDS])
    await answer.until_has(f"id: {name}:1".encode())
    follower.close()
    more = await other.ask(
        "GET", STREAMS + name, fields=[TAKES_IDS, (b"Last-Event-ID", f"{name}:0".encode())]
    )
    await more.until_has(f"id: {name}:1".encode())
    assert f"{name}:0".encode() not in more.body
    await call.send(chunk(b"".join(CHAT.events[2:])), LAST)
    call.done()
    await more.rest()
    stamped = [event[:-1] + f"id: {name}:{number}\n\n".encode() for number, event in enumerate(CHAT.events)]
    assert (bytes(more.body), more.end) == (b"".join(stamped[1:]), "whole")
    await ended(client, name)
    for number in range(len(stamped)):
        fields = [TAKES_IDS, (b"Last-Event-ID", f"{name}:{number}".encode())]
        got = await client.whole("GET", STREAMS + name, fields=fields)
        assert bytes(got.body) == b"".join(stamped[number + 1 :])
    fields = [TAKES_IDS, (b"Last-Event-ID", f"{name}:{len(stamped)}".encode())]
    refused(await client.whole("GET", STREAMS + name, fields=fields), 404, "not_found")
    fields = [*fields[:1], (b"Last-Event-ID", f"{name}:3".encode()), (b"Cache-Control", b"no-cache")]
    assert (await client.whole("GET", STREAMS + name, fields=fields)).status == 204


async def test_where_events_have_no_ids_nobody_continues_by_guess(rig, client):
    """The upstream sets its own ids from the third event on: a client whose last id is that of the second may have
    more than that. 410, while it runs and once it is over."""
    rig.script(CHAT.target)
    events = [*CHAT.events[:2], b"id: own\n" + CHAT.events[2], CHAT.events[3]]
    name = await submitted(client, CHAT)
    call = await rig.call()
    await call.send(head(CHAT.kind), chunk(b"".join(events[:3])))
    while (await status(client, name))["progress"]["events"] < 3:
        pass
    fields = [TAKES_IDS, (b"Last-Event-ID", f"{name}:1".encode())]
    refused(await client.whole("GET", STREAMS + name, fields=fields), 410, "gone")
    await call.send(chunk(events[3]), LAST)
    call.done()
    await ended(client, name)
    refused(await client.whole("GET", STREAMS + name, fields=fields), 410, "gone")
    fields = [TAKES_IDS, (b"Last-Event-ID", f"{name}:0".encode())]
    got = await client.whole("GET", STREAMS + name, fields=fields)
    assert got.body.count(b"id: ") == 2


@pytest.mark.parametrize("form", FRAMED, ids=str)
async def test_follower_is_kept_alive_and_the_result_is_not(rig, tmp_path, form):
    """Keepalives are for those who wait: nothing of them is in the result."""
    await rig.start(folder=tmp_path, keepalive__interval=0.03)
    client, follower = await rig.connect(), await rig.connect()
    rig.script(form.target)
    name = await submitted(client, form)
    call = await rig.call()
    await call.send(head(form.kind), chunk(form.events[0]))
    answer = await follower.ask("GET", STREAMS + name)
    await answer.until_has(form.keepalive, 2)
    await call.send(chunk(b"".join(form.events[1:])), LAST)
    call.done()
    await answer.rest()
    await ended(client, name)
    assert bytes((await result(client, name)).body) == form.whole


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize(
    "fields", [(), [(b"Slipstream-Disconnect", b"cancel")], [TAKES_IDS]], ids=["-", "cancel", "ids"]
)
async def test_follower_that_leaves_ends_nothing(rig, client, how, fields):
    """Nobody reads it, or the last who did has left: the call goes on, and the result is whole."""
    rig.script(CHAT.target)
    name = await submitted(client, CHAT)
    call = await rig.call()
    await call.send(head(CHAT.kind), chunk(CHAT.events[0]))
    followers = [await rig.connect() for _ in range(2)]
    for follower in followers:
        answer = await follower.ask("GET", STREAMS + name, fields=fields)
        await answer.more()
        follower.leave(how)
    # Both have left, as their lines say.
    lines = [await rig.line(number) for number in range(3)]
    assert [line["outcome"] for line in lines[1:]] == ["cancelled", "cancelled"]
    await call.send(chunk(b"".join(CHAT.events[1:])), LAST)
    call.done()
    assert (await ended(client, name))["status"] == "complete"
    assert bytes((await result(client, name)).body) == CHAT.whole


async def test_followers_of_a_queued_job_get_it_all(rig, tmp_path):
    """A follower may come before the call has begun."""
    await rig.start(folder=tmp_path, jobs__concurrency=1)
    client, follower = await rig.connect(), await rig.connect()
    rig.script(CHAT.target)
    first, second = await submitted(client), await submitted(client)
    blocker = await rig.call()
    await follower.send(b"GET %b%b HTTP/1.1\r\nHost: h\r\n\r\n" % (STREAMS.encode(), second.encode()))
    refused(await client.whole("GET", f"{STREAMS}{second}?after=1"), 400, "bad_request")
    await stream(blocker)
    await ended(client, first)
    await stream(await rig.call())
    answer = await whole(await follower.answer())
    assert (bytes(answer.body), answer.end) == (CHAT.whole, "whole")
    await ended(client, second)


# DELETE.


@pytest.mark.parametrize("path", [JOBS, STREAMS])
async def test_cancelled_while_it_is_queued(rig, tmp_path, path):
    """The upstream never hears of it, and who comes after it moves up."""
    await rig.start(folder=tmp_path, jobs__concurrency=1)
    client, follower = await rig.connect(), await rig.connect()
    rig.script(CHAT.target)
    names = [await submitted(client) for _ in range(3)]
    blocker = await rig.call()
    await follower.send(b"GET %b%b HTTP/1.1\r\nHost: h\r\n\r\n" % (STREAMS.encode(), names[1].encode()))
    await works(rig)
    answer = await client.whole("DELETE", path + names[1])
    assert (answer.status, answer.end) == (200 if path == JOBS else 204, "whole")
    document = await status(client, names[1])
    assert (document["status"], document["started_at"], document["error"]["kind"]) == (
        "cancelled",
        None,
        "stopped",
    )
    assert document["ended_at"] is not None
    refused(await result(client, names[1]), 410, "stopped")
    refused(await whole(await follower.answer()), 410, "stopped")
    refused(await client.whole("GET", STREAMS + names[1]), 410, "gone")
    await stream(blocker)
    await stream(await rig.call())
    assert (await ended(client, names[2]))["status"] == "complete"
    assert len([got for got in rig.provider.requests if got.path == CHAT.target]) == 2


@pytest.mark.parametrize("path", [JOBS, STREAMS])
@pytest.mark.parametrize("stage", ["before-head", "mid-stream"])
async def test_cancelled_while_it_runs(rig, client, path, stage):
    """The upstream's connection is closed within a second; followers are told; the half result never looks whole."""
    rig.script(CHAT.target)
    name = await submitted(client)
    call = await rig.call()
    follower = await rig.connect()
    await follower.send(b"GET %b%b HTTP/1.1\r\nHost: h\r\n\r\n" % (STREAMS.encode(), name.encode()))
    if stage == "mid-stream":
        await call.send(head(CHAT.kind), chunk(CHAT.events[0]))
        following = await follower.answer()
        await following.until(len(CHAT.events[0]))
    else:
        await works(rig)
    answer = await client.whole("DELETE", path + name)
    await call.closed(within=1)
    if path == JOBS:
        assert orjson.loads(answer.body)["status"] == "cancelled"
    document = await status(client, name)
    assert (answer.status, document["status"]) == (200 if path == JOBS else 204, "cancelled")
    assert (document["error"]["kind"], "DELETE" in document["error"]["detail"]) == ("stopped", True)
    got = await result(client, name)
    if stage == "mid-stream":
        await following.rest()
        assert following.end == "cut"
        assert following.body.startswith(CHAT.events[0] + CHAT.lost)
        assert (got.status, got.end) == (200, "cut")
        assert got.body.startswith(CHAT.events[0] + CHAT.lost)
    else:
        refused(await whole(await follower.answer()), 410, "stopped")
        refused(got, 410, "stopped")


@pytest.mark.parametrize("path", [JOBS, STREAMS])
async def test_cancelled_once_it_is_over_changes_nothing(rig, client, path):
    rig.script(CHAT.target)
    name = await submitted(client)
    await stream(await rig.call())
    before = await ended(client, name)
    for _ in range(2):
        assert (await client.whole("DELETE", path + name)).status in (200, 204)
    assert await status(client, name) == before
    assert bytes((await result(client, name)).body) == CHAT.whole


# Who may.


async def test_another_credential_finds_nothing(rig, client):
    """Somebody else's id, an unknown one and a malformed one: the same 404, whatever is done with it."""
    rig.script(CHAT.target)
    name = await submitted(client, CHAT, ONE)
    call = await rig.call()
    await call.send(head(CHAT.kind), chunk(CHAT.events[0]))
    changed = name[:-1] + ("A" if name[-1] != "A" else "B")
    names = [
        name,
        changed,
        "s" + name[1:],
        name[:-1],
        name + "A",
        "x",
        "..",
        "%6a" + name[1:],
        name + "%00",
        "j" * 9000,
    ]
    asks = [
        ("GET", JOBS, ""),
        ("DELETE", JOBS, ""),
        ("GET", JOBS, "/result"),
        ("GET", STREAMS, ""),
        ("DELETE", STREAMS, ""),
    ]
    answers = set()
    for method, path, end in asks:
        for each in names:
            for fields in ([ANOTHER], []) if each == name else ([ANOTHER], [ONE]):
                got = await client.whole(method, path + each + end, fields=fields)
                refused(got, 404, "not_found")
                head_of = tuple(field for field in got.headers if field[0].lower() != b"server-timing")
                answers.add((got.reason, head_of, bytes(got.body)))
    assert len(answers) == 1
    assert not call.received.closed.is_set()
    await call.send(chunk(b"".join(CHAT.events[1:])), LAST)
    call.done()
    assert (await ended(client, name, ONE))["status"] == "complete"
    refused(await result(client, name, ANOTHER), 404, "not_found")
    assert bytes((await result(client, name, ONE)).body) == CHAT.whole


async def test_stream_is_no_job(rig, client):
    """The id of an ordinary stream has no job's paths."""
    rig.script(CHAT.target)
    other = await rig.connect()
    await other.send(CHAT.sent)
    call = await rig.call()
    await call.send(head(CHAT.kind), chunk(CHAT.events[0]))
    answer = await other.answer()
    name = (answer.header("slipstream-stream-id") or b"").decode()
    assert name.startswith("s")
    for method, end in [("GET", ""), ("GET", "/result"), ("DELETE", "")]:
        refused(await client.whole(method, JOBS + name + end), 404, "not_found")
    refused(await client.whole("GET", STREAMS + name + "/result"), 404, "not_found")
    await call.send(chunk(b"".join(CHAT.events[1:])), LAST)
    call.done()
    assert await answer.rest() == CHAT.whole


async def test_other_methods_are_405(rig, client):
    rig.script(CHAT.target)
    name = await submitted(client)
    call = await rig.call()
    for path in (JOBS + name, STREAMS + name, JOBS + name + "/result"):
        for method in (
            "POST",
            "PUT",
            "PATCH",
            "HEAD",
            "OPTIONS",
            *(["DELETE"] if path.endswith("/result") else []),
        ):
            got = await client.whole(method, path, b"" if method != "HEAD" else None)
            assert (got.status, got.header("slipstream-error")) == (405, b"method_not_allowed")
    refused(await result(client, name), 409, "job_unfinished")
    await stream(call)
    assert (await ended(client, name))["status"] == "complete"
