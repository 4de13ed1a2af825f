"""Background jobs that are sent again by a client, or an SDK, that has not heard of the first attempt."""

import asyncio
import contextlib

import pytest

from tests.faults.conftest import eventually
from tests.faults.jobs import (
    ANOTHER,
    ONE,
    Disk,
    ask,
    ended,
    name_of,
    result,
    status,
    stream,
    submitted,
    whole,
    works,
)
from tests.faults.wire import CHAT, LAST, chunk, head, request

pytestmark = pytest.mark.both_shells

NAMED = (b"Idempotency-Key", b"operation-1")
RETRY = (b"x-stainless-retry-count", b"1")
WHOLE = head(CHAT.kind) + chunk(CHAT.whole) + LAST
WAITING = [(b"Prefer", b"respond-async, wait=60"), NAMED]


@pytest.fixture
async def disk(rig, monkeypatch):
    made = Disk(monkeypatch)
    yield made
    made.release()


@pytest.fixture
async def client(rig, tmp_path):
    """A client of a sidecar that keeps jobs."""
    await rig.start(folder=tmp_path)
    rig.script(CHAT.target)
    return await rig.connect()


@pytest.mark.parametrize(("first", "again"), [([NAMED], [NAMED]), ([NAMED], [NAMED, RETRY]), ([], [RETRY])])
async def test_the_same_operation_is_the_same_job(rig, client, first, again):
    """Sent again before it has ended -> the same id, and one call."""
    name = await submitted(client, CHAT, *first)
    assert await submitted(client, CHAT, *again) == name
    call = await rig.call()
    assert await submitted(client, CHAT, *again) == name
    await stream(call)
    await ended(client, name)
    assert bytes((await result(client, name)).body) == CHAT.whole
    assert rig.uncalled()


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ([], []),
        ([NAMED, ONE], [NAMED, ANOTHER]),
        ([NAMED], [(NAMED[0], b"operation-2"), RETRY]),
        ([NAMED], []),
    ],
    ids=["unnamed", "another-credential", "another-name", "named-once"],
)
async def test_another_operation_is_another_job(rig, client, first, again):
    names = [await submitted(client, CHAT, *fields) for fields in (first, again)]
    assert len(set(names)) == 2
    for _ in names:
        await stream(await rig.call())
    for name, fields in zip(names, (first, again), strict=True):
        await ended(client, name, *[field for field in fields if field[0] == ONE[0]])
    assert rig.uncalled()


async def test_another_body_is_another_job(rig, client):
    names = [await submitted(client, CHAT._replace(body=body), NAMED) for body in (b'{"a":1}', b'{"a":2}')]
    assert len(set(names)) == 2
    for _ in names:
        await stream(await rig.call())
    for name in names:
        await ended(client, name)


async def test_sent_again_while_it_is_put_on_disk(rig, client, disk):
    """The first attempt is not on disk yet: still one job, one call."""
    reached, gate = disk.hold("add")
    asks = [asyncio.ensure_future(ask(await rig.connect(), CHAT, NAMED))]
    await reached.wait()
    asks.append(asyncio.ensure_future(ask(await rig.connect(), CHAT, NAMED, RETRY)))
    await works(rig)
    gate.set()
    names = {name_of(await whole(await each)) for each in asks}
    await stream(await rig.call())
    for name in names:
        await ended(client, name)
    assert len(names) == 1
    assert rig.uncalled()


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_one_of_two_that_wait_leaves(rig, client, how):
    """The other one still does: the job goes on, and it gets the answer."""
    leaving, staying = await rig.connect(), await rig.connect()
    await leaving.send(request("POST", CHAT.target, CHAT.body, WAITING))
    call = await rig.call()
    await staying.send(request("POST", CHAT.target, CHAT.body, WAITING))
    await works(rig)
    leaving.leave(how)
    assert (await rig.line(0))["outcome"] == "cancelled"
    await works(rig)
    assert not call.received.closed.is_set()
    assert rig.uncalled()
    await stream(call)
    answer = await whole(await staying.answer())
    assert (answer.status, bytes(answer.body)) == (200, CHAT.whole)


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_one_that_waits_leaves_when_another_knows_the_id(rig, client, how):
    """Both have waited for a while; one more attempt waits when the others have their 202 already: nobody's job is cancelled
    because it leaves."""
    fields = [(b"Prefer", b"respond-async, wait=1"), NAMED]
    name = name_of(await client.whole("POST", CHAT.target, CHAT.body, fields))
    call = await rig.call()
    leaving = await rig.connect()
    await leaving.send(request("POST", CHAT.target, CHAT.body, fields))
    await works(rig)
    lines = rig.sidecar.lines
    leaving.leave(how)
    await eventually(
        lambda: "cancelled" in [line["outcome"] for line in lines.requests], lambda: len(lines.all)
    )
    await works(rig)
    assert not call.received.closed.is_set()
    assert (await status(client, name))["status"] == "running"
    await stream(call)
    assert (await ended(client, name))["status"] == "complete"
    assert rig.uncalled()


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 20])
async def test_client_that_gives_up_waiting_and_sends_it_again(rig, client, turns):
    """What an SDK does at its timeout: it hangs up, and asks again. Whichever comes first, it gets an answer, not the news
    that the first attempt was cancelled."""
    leaving, again = await rig.connect(), await rig.connect()
    await leaving.send(request("POST", CHAT.target, CHAT.body, WAITING))
    first = await rig.call()
    rig.provider.on(CHAT.target, lambda connection, received: connection.send(WHOLE))
    leaving.close()
    for _ in range(turns):
        await asyncio.sleep(0)
    asking = asyncio.ensure_future(ask(again, CHAT, NAMED, RETRY, prefer=WAITING[0][1]))
    await works(rig)
    if not first.received.closed.is_set():
        with contextlib.suppress(ConnectionError):
            await stream(first)
    answer = await whole(await asking)
    assert (answer.status, bytes(answer.body)) == (200, CHAT.whole)


async def test_ended_job_is_not_joined(rig, client):
    """Sent again once it has ended: a new one. Its result is under its own id."""
    names = []
    for _ in range(2):
        names.append(await submitted(client, CHAT, NAMED))
        await stream(await rig.call())
        await ended(client, names[-1])
    assert len(set(names)) == 2
    assert await status(client, names[0]) != await status(client, names[1])
