"""Clients that ask for the same at the same time: one upstream call, and what must never be shared."""

import asyncio
import gc
import gzip
import re
import resource
import socket
from collections import Counter

import pytest

from sidecar.core.recording import LAG
from sidecar.engine.pump import HIGH, RETAINED
from tests.faults.comeback import IDS, left
from tests.faults.conftest import eventually
from tests.faults.test_client import deaf
from tests.faults.wire import (
    ASK,
    CHAT,
    COMPLETIONS,
    FORMATS,
    GEMINI,
    GUARD,
    LAST,
    OTHER,
    Client,
    chunk,
    head,
    request,
)

pytestmark = pytest.mark.both_shells

ALONE = b"slipstream; fwd=miss"
SHARED = b"slipstream; fwd=miss; collapsed"
BYPASS = b"slipstream; fwd=bypass"
KEY = (b"Authorization", b"Bearer sk-planted-credential")
PLAIN = b'{"model":"m","messages":[{"role":"user","content":"planted prompt"}]}'
TOLD = (
    b'{"model":"m-1","choices":[{"message":{"content":"planted answer"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":7}}'
)
MODELS = [form for form in FORMATS if form is not OTHER]
GZIP = (b"Accept-Encoding", b"gzip")
JSON = (b"Content-Type", b"application/json")
LEAVE = pytest.mark.parametrize("how", ["fin", "rst"])


OURS = re.compile(rb"id: (s[A-Za-z0-9_-]{32}):(\d+)(?:\r\n|\r|\n)")


def bare(body):
    """Without the sidecar's ids: what the upstream sent."""
    return OURS.sub(b"", body)


def numbers(body):
    """The numbers in the sidecar's ids."""
    return [int(found[2]) for found in OURS.finditer(body)]


def crowd(most=1000):
    """As many clients as the descriptors allow: each needs two of them, for both of its ends are here."""
    return min(most, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 256) // 2)


def running(rig):
    return list(rig.sidecar.service.assembly.hub._live)


def readers(rig):
    return sum(live.recording.readers for live in running(rig))


async def reading(rig, count):
    """Until so many clients read a call."""
    await eventually(lambda: readers(rig) == count, lambda: f"{readers(rig)} readers")


async def ask(rig, form=CHAT, *fields, body=None, target=None):
    """Send a request on a connection of its own."""
    client = await rig.connect()
    await client.send(request(form.method, target or form.target, body or form.body, fields))
    return client


async def joined(rig, count, form=CHAT, *fields, **changes):
    """So many clients that wait for one call, and that call."""
    if not rig.sidecars:
        await rig.start()
    rig.script(form.target)
    clients = [await ask(rig, form, *fields, **changes) for _ in range(count)]
    call = await rig.call()
    await reading(rig, count)
    assert rig.uncalled()
    return clients, call


async def answers(clients):
    return await asyncio.gather(*[client.answer("POST") for client in clients])


async def bodies(found):
    return await asyncio.gather(*[answer.rest() for answer in found])


async def told(call, body=TOLD, *fields):
    """Answer a call that is no stream."""
    await call.send(head(b"application/json", *fields, framing=b"Content-Length: %d" % len(body)), body)
    call.done()


async def lines(rig, count):
    """The lines of so many requests, and no more."""
    await eventually(lambda: len(rig.sidecar.lines.requests) >= count, rig.sidecar.lines.requests.copy)
    found = rig.sidecar.lines.requests
    assert len(found) == count
    written = b"".join(rig.sidecar.lines.raw)
    for secret in (b"planted", b"Bearer"):
        assert secret not in written
    return found


def counted(found, name):
    return Counter(line[name] for line in found)


# 36: one call.


@pytest.mark.parametrize("kind", ["stream", "whole"])
async def test_1000_identical_misses_are_one_upstream_call(rig, kind):
    """36: a thousand at once -> one call, the same bytes for all, each with a line that says so."""
    many = crowd()
    form = CHAT if kind == "stream" else CHAT._replace(body=PLAIN)
    await rig.start()
    rig.script(form.target)
    clients = [await rig.connect() for _ in range(many)]
    await asyncio.gather(*[client.send(request("POST", form.target, form.body, [KEY])) for client in clients])
    call = await rig.call()
    await reading(rig, many)
    if kind == "stream":
        await call.send(head(form.kind), chunk(form.events[0]))
        found = await answers(clients)
        for event in form.events[1:]:
            await call.send(chunk(event))
        await call.send(LAST)
        call.done()
        expected = form.whole
    else:
        await told(call)
        found, expected = await answers(clients), TOLD
    assert set(await bodies(found)) == {expected}
    assert {(answer.status, answer.end) for answer in found} == {(200, "whole")}
    assert Counter(answer.header("cache-status") for answer in found) == {ALONE: 1, SHARED: many - 1}
    logged = await lines(rig, many)
    assert counted(logged, "cache") == {"miss": 1, "collapsed": many - 1}
    assert counted(logged, "outcome") == {"complete": many}
    assert counted(logged, "bytes") == {len(expected): many}
    if kind == "whole":
        assert counted(logged, "output_tokens") == {7: many}
    assert len({line["request_id"] for line in logged}) == many
    assert len(rig.provider.requests) == 1


@pytest.mark.parametrize("form", MODELS, ids=str)
async def test_the_same_in_any_spelling_is_one_call_in_every_format(rig, form):
    """36: other whitespace and key order, another framing, another client and trace -> the same call."""
    await rig.start()
    rig.script(form.target)
    spellings = [
        request("POST", form.target, form.body),
        request(
            "POST",
            form.target,
            b' { "messages" : '
            + form.body.partition(b'"messages":')[2][:-1]
            + b',"stream":true, "model":"m"}',
        ),
        request("POST", form.target, form.body, [(b"User-Agent", b"another"), (b"X-Stainless-Lang", b"js")]),
        request("POST", form.target, form.body, [(b"Traceparent", b"00-1-2-3"), (b"X-Request-Id", b"1")]),
        request("POST", form.target, form.body, [IDS]),
        request("POST", form.target, None, [JSON, (b"Transfer-Encoding", b"chunked")])
        + chunk(form.body)
        + LAST,
        request("POST", form.target, form.body).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    ]
    clients = []
    for sent in spellings:
        clients.append(await rig.connect())
        await clients[-1].send(sent)
    call = await rig.call()
    await reading(rig, len(spellings))
    assert len(running(rig)) == 1
    await call.send(head(form.kind), *[chunk(event) for event in form.events], LAST)
    call.done()
    found = await answers(clients)
    assert {bare(body) for body in await bodies(found)} == {form.whole}
    assert {answer.end for answer in found} == {"whole"}
    assert rig.uncalled()


async def test_errors_with_a_head_are_shared_as_they_are(rig):
    """36, 17: 429 -> one call; status, body and Retry-After for all, and nobody tries again."""
    clients, call = await joined(rig, 5, CHAT, KEY)
    body = b'{"error":{"type":"rate_limit"}}'
    framing = b"Content-Length: %d" % len(body)
    fields = head(b"application/json", b"Retry-After: 7", status=b"429 Too Many Requests", framing=framing)
    await call.send(fields, body)
    call.done()
    found = await answers(clients)
    assert set(await bodies(found)) == {body}
    assert {(answer.status, answer.header("retry-after")) for answer in found} == {(429, b"7")}
    assert counted(await lines(rig, 5), "outcome") == {"upstream_error": 5}
    assert rig.uncalled()


# 36: the first one fails.

FAILS = {
    "reset": (502, lambda call: call.reset()),
    "closed": (502, lambda call: call.close()),
    "garbage": (502, lambda call: call.connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n")),
    "silence": (504, lambda call: None),
}
FAILING = pytest.mark.parametrize(("status", "fail"), FAILS.values(), ids=FAILS)


@FAILING
async def test_when_the_first_fails_before_its_head_one_new_call_is_made(rig, status, fail):
    """36: refused by whatever fault before a head -> only the first gets the error; one new call for the others."""
    many = 50
    await rig.start(timeouts__head=1 if status == 504 else 600)
    clients, call = await joined(rig, many, CHAT, KEY)
    fail(call)
    again = await rig.call()
    await reading(rig, many - 1)
    await again.send(head(CHAT.kind), *[chunk(event) for event in CHAT.events], LAST)
    again.done()
    found = await answers(clients)
    texts = await bodies(found)
    assert [answer.status for answer in found] == [status] + [200] * (many - 1)
    assert set(texts[1:]) == {CHAT.whole}
    assert Counter(answer.header("cache-status") for answer in found[1:]) == {ALONE: 1, SHARED: many - 2}
    logged = await lines(rig, many)
    assert counted(logged, "cache") == {"miss": 2, "collapsed": many - 2}
    assert counted(logged, "outcome")["complete"] == many - 1
    assert len(rig.provider.requests) == 2
    call.over.set()


@FAILING
async def test_when_the_new_call_fails_too_all_get_its_error(rig, status, fail):
    """36: both fail -> two calls, errors for all, no deadlock; and the next request is served."""
    many = 20
    await rig.start(timeouts__head=1 if status == 504 else 600)
    clients, call = await joined(rig, many, CHAT, KEY)
    fail(call)
    again = await rig.call()
    await reading(rig, many - 1)
    fail(again)
    found = await answers(clients)
    await bodies(found)
    assert {(answer.status, answer.end) for answer in found} == {(status, "whole")}
    logged = await lines(rig, many)
    assert counted(logged, "cache") == {"miss": 2, "collapsed": many - 2}
    assert len(rig.provider.requests) == 2
    for made in (call, again):
        made.over.set()
    # Each connection is in step, and nothing of the failed calls is in the way.
    await clients[-1].send(request("POST", CHAT.target, CHAT.body, [KEY]))
    third = await rig.call()
    await told(third)
    assert await (await clients[-1].answer("POST")).rest() == TOLD


async def test_refused_connections_are_tried_twice_and_then_told_to_all(rig):
    """36, 9: refused while the others wait for the connection -> one more attempt, 502 for all."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        filling = []
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
            filling.append(sock)
        await rig.start(f"http://127.0.0.1:{full.getsockname()[1]}")
        clients = [await ask(rig) for _ in range(10)]
        await reading(rig, 10)
        assert len(running(rig)) == 1
    found = await answers(clients)
    await bodies(found)
    assert {(answer.status, answer.header("slipstream-error")) for answer in found} == {
        (502, b"upstream_unreachable")
    }
    assert counted(await lines(rig, 10), "cache") == {"miss": 2, "collapsed": 8}
    for sock in filling:
        sock.close()


async def test_one_that_comes_for_the_new_call_shares_it(rig):
    """36: a request that comes while the second call is running -> no third."""
    clients, call = await joined(rig, 3)
    call.reset()
    again = await rig.call()
    clients.append(await ask(rig))
    await reading(rig, 3)
    await again.send(head(CHAT.kind), chunk(CHAT.whole), LAST)
    again.done()
    found = await answers(clients)
    await bodies(found)
    assert [answer.status for answer in found] == [502, 200, 200, 200]
    assert rig.uncalled()


# 23, 24: leaving.


@LEAVE
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
@pytest.mark.parametrize("stage", ["before-head", "before-first-event", "mid-stream", "whole"])
async def test_the_upstream_is_closed_when_the_last_one_leaves(rig, stage, order, how):
    """24: one after the other leaves -> the call goes on until nobody is left, and ends within a second then."""
    form = CHAT if stage != "whole" else CHAT._replace(body=PLAIN)
    clients, call = await joined(rig, 3, form, KEY)
    if stage == "whole":
        await call.send(head(b"application/json", framing=b"Content-Length: 100"), b'{"half":')
    elif stage != "before-head":
        await call.send(head(form.kind), *([chunk(form.events[0])] if stage == "mid-stream" else []))
    if stage != "before-head":
        found = await answers(clients)
        for answer in found:
            await answer.until({"whole": 8, "mid-stream": len(form.events[0])}.get(stage, 0))
    for number in order[:-1]:
        await left(rig, clients[number], how)
        assert not call.received.closed.is_set()
        assert len(running(rig)) == 1
    clients[order[-1]].leave(how)
    await call.closed(within=1)
    assert counted(await lines(rig, 3), "outcome") == {"cancelled": 3}


@LEAVE
@pytest.mark.parametrize("leaving", [0, 1, 2])
@pytest.mark.parametrize("stage", ["before-head", "mid-stream", "mid-event"])
async def test_whoever_leaves_takes_nothing_from_the_others(rig, stage, leaving, how):
    """24: the first or any other is gone -> the others get every byte, and so does one that comes later."""
    clients, call = await joined(rig, 3, CHAT, KEY)
    sent, found = b"", {}
    if stage != "before-head":
        sent = CHAT.events[0] + (CHAT.events[1][:9] if stage == "mid-event" else b"")
        await call.send(head(CHAT.kind), chunk(sent))
        found = {client: await client.answer("POST") for client in clients}
        for answer in found.values():
            await answer.until(len(sent))
    gone = clients.pop(leaving)
    await left(rig, gone, how)
    clients.append(await ask(rig, CHAT, KEY))
    await reading(rig, 3)
    if stage == "before-head":
        await call.send(head(CHAT.kind))
    for client in clients:
        found[client] = found.get(client) or await client.answer("POST")
    await found[clients[-1]].until(len(sent))
    await call.send(chunk(CHAT.whole[len(sent) :]), LAST)
    call.done()
    assert set(await bodies([found[client] for client in clients])) == {CHAT.whole}
    assert counted(await lines(rig, 4), "outcome") == {"cancelled": 1, "complete": 3}
    assert rig.uncalled()


async def test_when_the_one_that_made_the_new_call_leaves_the_others_still_get_it(rig):
    """36, 23: the first fails, and the second that was begun loses its client -> no third call."""
    clients, call = await joined(rig, 4)
    call.reset()
    again = await rig.call()
    await reading(rig, 3)
    assert (await clients[0].answer("POST")).status == 502
    maker = next(number for number, live in enumerate(clients) if number)
    await left(rig, clients[maker])
    await reading(rig, 2)
    await again.send(head(CHAT.kind), chunk(CHAT.whole), LAST)
    again.done()
    found = await answers(clients[2:])
    assert set(await bodies(found)) == {CHAT.whole}
    assert rig.uncalled()


@LEAVE
async def test_clients_that_leave_in_the_moment_their_call_fails_cost_no_call(rig, how):
    """36, 23: the upstream resets while all who waited leave -> at most one more call, and that one is ended."""
    for _ in range(20):
        clients, call = await joined(rig, 6)
        call.reset()
        for client in clients[1:]:
            client.leave(how)
        await eventually(lambda: not rig.sidecar.service.assembly.front.active, lambda: "requests")
        await eventually(lambda: not running(rig), lambda: running(rig))
        while not rig.uncalled():
            again = await rig.call()
            await again.closed()
            again.over.set()
        clients[0].leave(how)
    assert len(rig.provider.requests) <= 40
    assert len(rig.sidecar.lines.requests) == 120


@pytest.mark.parametrize("leaves", ["first", "second"])
async def test_usage_of_a_compressed_answer_is_told_whoever_left_before_its_end(rig, leaves):
    """23, 36: one leaves in the middle of a gzip body -> the other's line has what the provider counted."""
    clients, call = await joined(rig, 2, CHAT._replace(body=PLAIN), GZIP)
    packed = gzip.compress(TOLD)
    sent = head(b"application/json", b"Content-Encoding: gzip", framing=b"Content-Length: %d" % len(packed))
    await call.send(sent, packed[:20])
    found = await answers(clients)
    for answer in found:
        await answer.until(20)
    gone = leaves == "second"
    await left(rig, clients[gone])
    await call.send(packed[20:])
    call.done()
    assert await found[not gone].rest() == packed
    assert [(line["outcome"], line["output_tokens"]) for line in await lines(rig, 2)] == [
        ("cancelled", None),
        ("complete", 7),
    ]


async def test_one_that_hangs_up_on_the_terminal_marker_had_a_whole_answer(rig):
    """12, 36: SDKs hang up on the marker -> complete, also while somebody else reads on."""
    clients, call = await joined(rig, 2)
    await call.send(head(CHAT.kind), chunk(CHAT.whole))
    for answer in await answers(clients):
        await answer.until(len(CHAT.whole))
    await left(rig, clients[0], "fin")
    await call.send(LAST)
    call.done()
    await left(rig, clients[1], "fin")
    assert counted(await lines(rig, 2), "outcome") == {"complete": 2}


# Coming late.


@pytest.mark.parametrize("form", MODELS, ids=str)
async def test_one_that_comes_late_gets_what_was_sent_and_then_follows_live(rig, form):
    """36: a joiner after each event, each next to one that takes ids -> first what was sent, then every event
    before the next one exists; all get the same bytes."""
    await rig.start()
    rig.script(form.target)
    found, sent, call = [], 0, None
    for event in [*form.events, None]:
        for fields in ((), (IDS,)):
            client = await ask(rig, form, *fields)
            if call is None:
                call = await rig.call()
                await call.send(head(form.kind))
            answer = await client.answer("POST")
            assert answer.header("cache-status") == (SHARED if found else ALONE)
            found.append(answer)
            await answer.until(sent)
        for answer in found:
            while len(bare(answer.body)) < sent:
                assert await answer.more()
        if event is not None:
            await call.send(chunk(event))
            sent += len(event)
    assert readers(rig) == len(found)
    await call.send(LAST)
    call.done()
    texts = await bodies(found)
    assert set(texts[::2]) == {form.whole}
    assert len(set(texts[1::2])) == 1
    assert bare(texts[1]) == form.whole
    takes = form != GEMINI and form.kind == b"text/event-stream"
    assert numbers(texts[1]) == (list(range(len(form.events))) if takes else [])
    assert len({answer.header("slipstream-stream-id") for answer in found}) == 1
    assert rig.uncalled()
    logged = await lines(rig, len(found))
    assert counted(logged, "cache") == {"miss": 1, "collapsed": len(found) - 1}
    assert counted(logged, "outcome") == {"complete": len(found)}


@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("fields", [(), (IDS,)], ids=["plain", "ids"])
@pytest.mark.asgi_every(3)
async def test_one_may_come_at_any_byte(rig, fields, ends):
    """36: a joiner at every offset, half an event and half a line end included -> byte-identical."""
    whole = CHAT.whole.replace(b"\n", ends)
    first, call = await joined(rig, 1, CHAT, IDS)
    await call.send(head(CHAT.kind))
    found = [await first[0].answer("POST")]
    for offset in range(len(whole)):
        await call.send(chunk(whole[offset : offset + 1]))
        while len(bare(found[0].body)) < offset + 1 or found[0]._left:
            assert await found[0].more()
        client = await ask(rig, CHAT, *fields)
        found.append(await client.answer("POST"))
        await found[-1].until(offset + 1)
        assert bare(found[-1].body).startswith(whole[:offset])
    await call.send(LAST)
    call.done()
    texts = await bodies(found)
    assert {bare(text) for text in texts} == {whole}
    assert set(texts[1:]) == {texts[0] if fields else whole}
    assert numbers(texts[0]) == list(range(len(CHAT.events)))
    assert rig.uncalled()


async def test_one_may_come_when_there_is_much_to_catch_up_with(rig):
    """36, 32: five megabytes in, events of every size and one of two megabytes -> the same bytes and the same
    ids for all, whenever they came; and live from there on."""
    sizes = [1, 10, 100, 1000, 10_000, 100_000]
    events = [b"data: " + bytes([97 + n % 26]) * sizes[n % 6] + b"\n\n" for n in range(240)]
    events.insert(30, b"data: " + b"z" * (2 << 20) + b"\n\n")
    events += CHAT.events
    first, call = await joined(rig, 1, CHAT, IDS)
    await call.send(head(CHAT.kind))
    found = [await first[0].answer("POST")]
    sent = 0
    for at in range(0, len(events) - 20, 40):
        block = b"".join(events[at : at + 40])
        half = len(block) // 2
        for part in (block[:half], block[half:]):
            await call.send(chunk(part))
            sent += len(part)
            await found[0].until(sent)
            for fields in ((IDS,), ()):
                client = await ask(rig, CHAT, *fields)
                found.append(await client.answer("POST"))
            # One of them has to be there before more is sent, the other catches up while it is.
            await found[-1].until(sent)
    left_over = b"".join(events)[sent:]
    await call.send(*[chunk(left_over[at : at + 999]) for at in range(0, len(left_over), 999)], LAST)
    call.done()
    texts = await bodies(found)
    whole = b"".join(events)
    assert all(text == whole for text in texts[2::2])
    assert all(text == texts[0] for text in texts[1::2])
    assert bare(texts[0]) == whole
    given = numbers(texts[0])
    assert given == list(range(len(given))) != []
    assert rig.uncalled()


async def test_one_that_comes_when_all_is_said_but_not_over_gets_all_of_it(rig):
    """36: between the terminal marker and the end of the body -> the whole answer, at once."""
    clients, call = await joined(rig, 1)
    await call.send(head(CHAT.kind), chunk(CHAT.whole))
    await (await clients[0].answer("POST")).until(len(CHAT.whole))
    late = await ask(rig)
    answer = await late.answer("POST")
    assert await answer.until(len(CHAT.whole)) == CHAT.whole
    await call.send(LAST)
    call.done()
    await answer.rest()
    assert answer.end == "whole"


async def test_a_body_that_is_too_short_is_cut_for_all(rig):
    """13, 36: fewer bytes than the head says -> what came, and nobody can take it for whole."""
    clients, call = await joined(rig, 3, CHAT._replace(body=PLAIN))
    await call.send(head(b"application/json", framing=b"Content-Length: 100"), b'{"half":')
    found = await answers(clients)
    for answer in found:
        await answer.until(8)
    found.append(await (await ask(rig, CHAT._replace(body=PLAIN))).answer("POST"))
    await found[-1].until(8)
    call.close()
    assert set(await bodies(found)) == {b'{"half":'}
    assert {answer.end for answer in found} == {"cut"}
    assert counted(await lines(rig, 4), "outcome") == {"truncated": 4}


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_an_answer_without_a_body_is_shared(rig, status):
    """16, 36: nothing but a head -> for all, and every connection is in step."""
    clients, call = await joined(rig, 3)
    await call.send(b"HTTP/1.1 %b\r\nX-A: 1\r\n\r\n" % status)
    call.done()
    found = await answers(clients)
    assert {(answer.status, answer.header("x-a"), answer.end) for answer in found} == {
        (int(status[:3]), b"1", "whole")
    }
    for client in clients:
        assert bytes((await client.whole("POST", "/echo", b"{}")).body) == b"{}"


@pytest.mark.parametrize("how", ["cut", "reset"])
async def test_a_call_that_breaks_off_is_broken_off_for_all(rig, how):
    """11, 36: lost in the middle of an event -> every reader, late ones too, gets the half event and the error."""
    clients, call = await joined(rig, 2)
    half = CHAT.events[0] + CHAT.events[1][:11]
    await call.send(head(CHAT.kind), chunk(half))
    found = await answers(clients)
    for answer in found:
        await answer.until(len(half))
    found.append(await (await ask(rig)).answer("POST"))
    await found[-1].until(len(half))
    call.close() if how == "cut" else call.reset()
    texts = await bodies(found)
    assert len(set(texts)) == 1
    assert texts[0].startswith(half)
    assert CHAT.lost in texts[0]
    assert {answer.end for answer in found} == {"cut"}
    assert counted(await lines(rig, 3), "outcome") == {"truncated": 3}


# 37: never shared.

OTHER_KEY = (b"Authorization", b"Bearer sk-planted-other")
MODEL = (b"X-Model", b"large")
NEVER = {
    "other credential": ([KEY], [OTHER_KEY]),
    "no credential": ([KEY], []),
    "credential that came": ([], [KEY]),
    "same key in another header": ([KEY], [(b"x-api-key", b"Bearer sk-planted-credential")]),
    "two credentials": ([KEY], [KEY, (b"Cookie", b"a=planted")]),
    "namespace": ([KEY], [KEY, (b"Slipstream-Namespace", b"b")]),
    "other namespace": ([KEY, (b"Slipstream-Namespace", b"a")], [KEY, (b"Slipstream-Namespace", b"b")]),
    "model header": ([], [MODEL]),
    "other model header": ([MODEL], [(b"X-Model", b"small")]),
    "organization": ([KEY], [KEY, (b"OpenAI-Organization", b"o")]),
    "beta": ([KEY, (b"Anthropic-Beta", b"a")], [KEY, (b"Anthropic-Beta", b"b")]),
    "unknown header": ([KEY], [KEY, (b"X-Nobody-Knows", b"1")]),
    "no-store": ([], [(b"Cache-Control", b"no-store")]),
    "no-cache": ([], [(b"Cache-Control", b"max-age=0, No-Cache")]),
    "first no-store": ([(b"Cache-Control", b"no-store")], []),
    "both no-store": ([(b"Cache-Control", b"no-store")], [(b"Cache-Control", b"no-store")]),
    "coding": ([GZIP], []),
    "other coding": ([GZIP], [(b"Accept-Encoding", b"br")]),
    "first without coding": ([], [GZIP]),
    "other operation": ([(b"Idempotency-Key", b"planted-a")], [(b"Idempotency-Key", b"planted-b")]),
    "retry of something else": ([KEY], [OTHER_KEY, (b"X-Stainless-Retry-Count", b"1")]),
}


async def apart(rig, first, second):
    """Both requests, the first one still running when the second comes, go upstream; each gets its own answer."""
    one, other = await rig.connect(), await rig.connect()
    await one.send(first)
    call = await rig.call()
    await other.send(second)
    another = await rig.call()
    await told(another, b'{"other":1}')
    assert await (await other.answer("POST")).rest() == b'{"other":1}'
    await told(call)
    assert await (await one.answer("POST")).rest() == TOLD
    assert rig.uncalled()
    return await lines(rig, 2)


@pytest.mark.parametrize(("first", "second"), NEVER.values(), ids=NEVER)
async def test_what_is_not_the_same_is_never_shared(rig, first, second):
    """37: each thing that may make it another answer, or another's -> a call of its own."""
    await rig.start()
    rig.script(CHAT.target)
    logged = await apart(rig, *(request("POST", CHAT.target, PLAIN, fields) for fields in (first, second)))
    alone = [b"Cache-Control" in dict(fields) for fields in (second, first)]
    assert [line["cache"] for line in logged] == ["bypass" if each else "miss" for each in alone]


BODIES = {
    "another": (PLAIN, PLAIN.replace(b"prompt", b"prompt ")),
    "no JSON": (b"planted", b"planted"),
    "no object": (b"[]", b"[]"),
    "cut": (PLAIN[:-1], PLAIN[:-1]),
    "key twice": (b'{"model":"m","model":"m"}', b'{"model":"m","model":"m"}'),
    "NaN": (b'{"temperature":NaN}', b'{"temperature":NaN}'),
    "half a surrogate pair": (b'{"a":"\\ud83d"}', b'{"a":"\\ud83d"}'),
    "empty": (b"", b""),
    "one is not a number": (b'{"n":1}', b'{"n":1.0}'),
    "too deep": (b'{"a":' + b"[" * 9999 + b"]" * 9999 + b"}",) * 2,
    "too large to be kept": (b'{"a":"' + b"x" * 70000 + b'"}',) * 2,
}


@pytest.mark.parametrize(("first", "second"), BODIES.values(), ids=BODIES)
async def test_bodies_that_differ_or_cannot_be_judged_are_never_shared(rig, first, second):
    """37, 30: another body, or one that two upstreams might read differently -> a call of its own."""
    await rig.start(limits__body=65536)
    rig.script(CHAT.target)
    await apart(rig, *(request("POST", CHAT.target, body, [KEY]) for body in (first, second)))


@pytest.mark.parametrize(
    ("form", "other"),
    [
        (CHAT, CHAT.target + "?a=1"),
        pytest.param(CHAT, CHAT.target + "?", marks=pytest.mark.proxy_only("ASGI knows no empty query")),
        (CHAT, COMPLETIONS.target),
        (CHAT, "/other" + CHAT.target),
        (GEMINI, GEMINI.target + "&key=planted"),
    ],
)
async def test_other_places_are_never_shared(rig, form, other):
    """37: another path or query -> a call of its own."""
    await rig.start()
    for target in (form.target, other):
        rig.script(target)
    await apart(rig, *(request("POST", target, PLAIN) for target in (form.target, other)))


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", CHAT.target),
        ("PUT", CHAT.target),
        ("POST", "/v1/files"),
        ("GET", "/feed"),
        ("DELETE", "/v1/x"),
    ],
)
async def test_what_is_no_model_call_is_never_shared(rig, method, target):
    """37: the same bytes twice to anything else -> twice upstream, and no word of a cache."""
    await rig.start()
    rig.script(target)
    logged = await apart(rig, *[request(method, target, PLAIN, [KEY])] * 2)
    assert counted(logged, "cache") == {"bypass": 2}


@pytest.mark.parametrize(
    ("keys", "cache", "said"),
    [
        ({"cache__mode": "off"}, "off", None),
        ({"cache__collapse": False}, "miss", ALONE),
        ({"cache__mode": "off", "cache__collapse": True}, "off", None),
    ],
)
async def test_nothing_is_shared_where_configuration_forbids_it(rig, keys, cache, said):
    """36: cache.mode=off or cache.collapse=false -> every request its own call."""
    await rig.start(**keys)
    rig.script(CHAT.target)
    clients, calls = [], []
    for _ in range(3):
        clients.append(await ask(rig, CHAT, KEY))
        calls.append(await rig.call())
    for call in calls:
        await told(call)
    found = await answers(clients)
    assert {answer.header("cache-status") for answer in found} == {said}
    await bodies(found)
    assert counted(await lines(rig, 3), "cache") == {cache: 3}


@pytest.mark.parametrize("kind", ["plain", "no model"])
async def test_cache_status_says_bypass_only_of_model_calls(rig, kind):
    """A model call that the request forbids to share says so; other paths do not mention a cache."""
    await rig.start()
    target = CHAT.target if kind == "plain" else "/v1/files"
    rig.script(target)
    client = await ask(rig, CHAT, (b"Cache-Control", b"no-store"), target=target)
    await told(await rig.call())
    answer = await client.answer("POST")
    assert answer.header("cache-status") == (BYPASS if kind == "plain" else None)


async def test_a_call_that_has_ended_is_not_shared(rig):
    """36: one after the other -> two calls, whatever the first one answered."""
    await rig.start()
    rig.script(CHAT.target)
    for number in range(3):
        client = await ask(rig, CHAT, KEY)
        await told(await rig.call(), b'{"number":%d}' % number)
        answer = await client.answer("POST")
        assert await answer.rest() == b'{"number":%d}' % number
        assert answer.header("cache-status") == ALONE


async def test_a_stream_that_outgrew_what_is_kept_is_not_shared(rig):
    """36: more than 8 MiB have gone by -> a late one makes its own call, and never gets half an answer."""
    clients, call = await joined(rig, 1)
    await call.send(head(CHAT.kind))
    answer = await clients[0].answer("POST")
    block = b": " + b"x" * (1 << 20) + b"\n\n"
    for number in range(RETAINED // len(block)):
        await call.send(chunk(block))
        await answer.until((number + 1) * len(block))
    late = await ask(rig)
    await reading(rig, 2)
    for number in range(RETAINED // len(block), RETAINED // len(block) + 2):
        await call.send(chunk(block))
        await answer.until((number + 1) * len(block))
    size = len(answer.body)
    assert size > RETAINED
    later = await ask(rig)
    another = await rig.call()
    assert readers(rig) == 3
    await another.send(head(CHAT.kind), chunk(CHAT.whole), LAST)
    another.done()
    assert await (await later.answer("POST")).rest() == CHAT.whole
    await call.send(chunk(CHAT.whole), LAST)
    call.done()
    found = await late.answer("POST")
    assert await answer.rest() == await found.rest() == block * (size // len(block)) + CHAT.whole


# Codings.


async def test_a_compressed_answer_reaches_nobody_who_did_not_ask_for_it(rig):
    """6, 36: gzip for those who said gzip, before and after the head; plain for the others."""
    await rig.start()
    rig.script(CHAT.target)
    packed = gzip.compress(TOLD)
    coded = head(b"application/json", b"Content-Encoding: gzip", framing=b"Content-Length: %d" % len(packed))
    asked = [await ask(rig, CHAT, GZIP)]
    call = await rig.call()
    plain = [await ask(rig)]
    other = await rig.call()
    await call.send(coded, packed[:5])
    answer = await asked[0].answer("POST")
    await answer.until(5)
    await other.send(head(b"application/json", framing=b"Content-Length: %d" % len(TOLD)), TOLD[:5])
    first = await plain[0].answer("POST")
    await first.until(5)
    plain.append(await ask(rig))
    plain.append(await ask(rig, CHAT, (b"Accept-Encoding", b"br")))
    await reading(rig, 4)
    await call.send(packed[5:])
    await other.send(TOLD[5:])
    for made in (call, other):
        made.done()
    assert await answer.rest() == packed
    for found in (first, *await answers(plain[1:])):
        assert found.header("content-encoding") is None
        assert await found.rest() == TOLD
    assert rig.uncalled()


async def test_a_gzip_answer_is_shared_by_those_who_asked_for_gzip(rig):
    """6, 36: the same coding, before and after the head -> the same compressed bytes."""
    clients, call = await joined(rig, 2, CHAT, GZIP)
    packed = gzip.compress(CHAT.whole)
    await call.send(head(CHAT.kind, b"Content-Encoding: gzip"), chunk(packed[:9]))
    found = await answers(clients)
    late = await ask(rig, CHAT, GZIP)
    found.append(await late.answer("POST"))
    await found[-1].until(9)
    alone = await ask(rig)
    other = await rig.call()
    await told(other)
    assert await (await alone.answer("POST")).rest() == TOLD
    await call.send(chunk(packed[9:]), LAST)
    call.done()
    assert set(await bodies(found)) == {packed}


async def test_once_the_answer_is_known_to_be_plain_every_coding_shares_it(rig):
    """36: different Accept-Encoding, after the head of a plain answer -> shared."""
    clients, call = await joined(rig, 1, CHAT, GZIP)
    await call.send(head(CHAT.kind), chunk(CHAT.events[0]))
    found = await answers(clients)
    await found[0].until(1)
    for coding in (b"br", b"identity", b"gzip, br, zstd", None):
        client = await ask(rig, CHAT, *([(b"Accept-Encoding", coding)] if coding else []))
        found.append(await client.answer("POST"))
        assert found[-1].header("cache-status") == SHARED
    await call.send(chunk(CHAT.whole[len(CHAT.events[0]) :]), LAST)
    call.done()
    assert set(await bodies(found)) == {CHAT.whole}


async def test_clients_of_two_kinds_at_once_are_two_calls(rig):
    """36: two codings that take turns before the head -> one call each, not one per request."""
    await rig.start()
    rig.script(CHAT.target)
    clients = []
    for number in range(20):
        clients.append(await ask(rig, CHAT, (b"Accept-Encoding", (b"gzip", b"br")[number % 2])))
        await reading(rig, number + 1)
    made = len(running(rig))
    for _ in range(made):
        call = await rig.call()
        await told(call)
    await bodies(await answers(clients))
    assert made == 2


# 25: slow readers.


@pytest.fixture
def silent(rig):
    """Makes clients that take as little as the kernel lets them, and takes them away in the end."""
    made = []

    async def make():
        made.append(await deaf(rig, request("POST", CHAT.target, CHAT.body)))
        return made[-1]

    yield make
    for sock in made:
        sock.close()


async def flooded(call, most, read):
    """Send so many bytes, waiting for the sidecar to take them; `read` is asked in between."""
    block = CHAT.events[0] * 4000
    sent = 0
    while sent < most:
        await call.send(chunk(block))
        sent += len(block)
        read()
    return sent


async def devour(answer):
    """Read to the end and keep nothing: the size."""
    size = 0
    while data := await answer.more():
        size += len(data)
        answer.body.clear()
    return size


@pytest.mark.parametrize("order", ["slow first", "fast first"])
@pytest.mark.asgi_every(2)
async def test_a_reader_that_stops_reading_slows_nobody_and_is_dropped(rig, silent, order):
    """25: one does not read -> the upstream goes on at the other's pace, memory stays bounded, and the slow one
    is cut off, so that it can tell."""
    await rig.start()
    rig.script(CHAT.target)
    if order == "slow first":
        sock = await silent()
        call = await rig.call()
    fast = await ask(rig)
    if order == "fast first":
        call = await rig.call()
        sock = await silent()
    await reading(rig, 2)
    await call.send(head(CHAT.kind))
    devouring = asyncio.ensure_future(devour(await fast.answer("POST")))
    recording = running(rig)[0].recording
    most = 0

    def look():
        nonlocal most
        most = max(most, len(recording._bytes))

    size = await flooded(call, 48 << 20, look)
    # It was not the slow one's write timeout that set the pace: that is a minute away.
    assert recording.readers == 1
    assert most <= LAG + HIGH + (1 << 20)
    late = await ask(rig)  # too late to be given all of it
    other = await rig.call()
    await told(other)
    assert await (await late.answer("POST")).rest() == TOLD
    await call.send(chunk(CHAT.events[-1]), LAST)
    call.done()
    async with asyncio.timeout(GUARD):
        assert await devouring == size + len(CHAT.events[-1])
        loop, got = asyncio.get_running_loop(), 0
        try:
            while part := await loop.sock_recv(sock, 1 << 20):
                got += len(part)
        except ConnectionError:
            pass
    assert got < size
    logged = await lines(rig, 3)
    assert counted(logged, "outcome") == {"complete": 2, "cancelled": 1}


async def everything(sock, size):
    """A deaf client reads at last: so many bytes of body, and their number of chunks does not matter."""
    reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 20)
    await reader.readuntil(b"\r\n\r\n")
    body = bytearray()
    while len(body) < size:
        wanted = int(await reader.readuntil(b"\r\n"), 16)
        body += await reader.readexactly(wanted)
        assert await reader.readexactly(2) == b"\r\n"
    writer.close()
    return bytes(body)


async def test_with_only_slow_readers_the_upstream_pauses_and_all_get_everything(rig, silent):
    """25: nobody reads -> the upstream is paused after a bounded number of bytes; both read on -> every byte."""
    await rig.start()
    rig.script(CHAT.target)
    socks = [await silent()]
    call = await rig.call()
    socks.append(await silent())
    await reading(rig, 2)
    await call.send(head(CHAT.kind))
    written = 0
    block = CHAT.events[0] * 1000
    while written < 64 << 20 and call.connection.writable:
        call.connection.write(chunk(block))
        written += len(block)
        for _ in range(20):
            await asyncio.sleep(0)
    assert not call.connection.writable, "the upstream was never paused"
    assert running(rig)[0]._source._paused
    assert len(running(rig)[0].recording._bytes) < RETAINED
    async with asyncio.timeout(20):
        found = await asyncio.gather(*[everything(sock, written) for sock in socks])
    assert found[0] == found[1] == block * (written // len(block))
    await call.closed()


async def test_one_that_comes_late_sets_a_call_going_that_waits_for_a_slow_reader(rig, silent):
    """25, 36: the upstream pauses for the only reader; one that reads joins -> it gets all, at its own pace."""
    await rig.start()
    rig.script(CHAT.target)
    await silent()
    call = await rig.call()
    await call.send(head(CHAT.kind))
    written, block = 0, CHAT.events[0] * 100
    while written < RETAINED // 2 and call.connection.writable:
        call.connection.write(chunk(block))
        written += len(block)
        for _ in range(20):
            await asyncio.sleep(0)
    late = await ask(rig)
    answer = await late.answer("POST")
    await answer.until(written)
    await call.send(chunk(CHAT.whole), LAST)
    call.done()
    assert await answer.rest() == block * (written // len(block)) + CHAT.whole


# SDK retries.

RETRY = (b"X-Stainless-Retry-Count", b"1")
IDEMPOTENT = (b"Idempotency-Key", b"planted-a")
RETRIES = {
    "retry": ([], [RETRY], True),
    "tenth retry": ([(b"X-Stainless-Retry-Count", b"1")], [(b"x-stainless-retry-count", b"10")], True),
    "retry of a retry": ([RETRY], [RETRY], True),
    "another client's trace": ([], [RETRY, (b"Traceparent", b"00-1-2-3"), (b"User-Agent", b"x")], True),
    "no-store": ([(b"Cache-Control", b"no-store")], [(b"Cache-Control", b"no-store"), RETRY], True),
    "same idempotency key": ([IDEMPOTENT], [IDEMPOTENT], True),
    "same idempotency key and retry": ([IDEMPOTENT], [IDEMPOTENT, RETRY], True),
    "no retry": ([], [], False),
    "retry count 0": ([], [(b"X-Stainless-Retry-Count", b"0")], False),
    "retry count that is none": ([], [(b"X-Stainless-Retry-Count", b"one")], False),
    "other idempotency key": ([IDEMPOTENT], [(b"Idempotency-Key", b"planted-b")], False),
    "other idempotency key, a retry": ([IDEMPOTENT], [(b"Idempotency-Key", b"planted-b"), RETRY], False),
    "idempotency key only later": ([], [IDEMPOTENT], False),
    "other credential": ([], [OTHER_KEY, RETRY], False),
    "other coding": ([], [GZIP, RETRY], False),
    "other namespace": ([], [(b"Slipstream-Namespace", b"b"), RETRY], False),
    "other model": ([], [MODEL, RETRY], False),
}


@pytest.mark.parametrize("stage", ["before-head", "mid-stream"])
@pytest.mark.parametrize(("first", "second", "joins"), RETRIES.values(), ids=RETRIES)
async def test_a_retry_joins_the_call_that_is_still_running(rig, first, second, joins, stage):
    """36: with the cache off too, and with everything from the start; anything else is a call of its own."""
    if (GZIP in second or any(b"coding" in field[0].lower() for field in second)) and stage == "mid-stream":
        joins = True  # the answer is known to be plain
    await rig.start(cache__mode="off")
    rig.script(CHAT.target)
    fields = [[*([] if OTHER_KEY in given else [KEY]), *given] for given in (first, second)]
    clients = [await ask(rig, CHAT, *fields[0])]
    call = await rig.call()
    sent, found = b"", []
    if stage == "mid-stream":
        sent = CHAT.events[0] + CHAT.events[1][:7]
        await call.send(head(CHAT.kind), chunk(sent))
        found = await answers(clients)
        await found[0].until(len(sent))
    clients.append(await ask(rig, CHAT, *fields[1]))
    if joins:
        await reading(rig, 2)
        assert len(running(rig)) == 1
        if sent:
            found.append(await clients[1].answer("POST"))
            await found[1].until(len(sent))
    else:
        another = await rig.call()
        await told(another)
        assert await (await clients.pop().answer("POST")).rest() == TOLD
    if stage == "before-head":
        await call.send(head(CHAT.kind))
        found = await answers(clients)
    await call.send(chunk(CHAT.whole[len(sent) :]), LAST)
    call.done()
    assert set(await bodies(found)) == {CHAT.whole}
    assert {answer.header("cache-status") for answer in found[1:]} == ({SHARED} if joins else set())
    assert rig.uncalled()
    logged = await lines(rig, 2)
    assert counted(logged, "cache") == ({"off": 1, "collapsed": 1} if joins else {"off": 2})


@pytest.mark.parametrize("body", [PLAIN + b" ", b" " + PLAIN, PLAIN.replace(b"m", b"n")])
async def test_a_retry_with_other_bytes_is_none(rig, body):
    """36: with the cache off it is the bytes that count, not their meaning."""
    await rig.start(cache__mode="off")
    rig.script(CHAT.target)
    first, second = (request("POST", CHAT.target, sent, [KEY, RETRY]) for sent in (PLAIN, body))
    await apart(rig, first, second)


async def test_a_retry_after_the_end_is_a_new_call(rig):
    """36: the first one was answered, with an error say -> the retry goes upstream."""
    await rig.start(cache__mode="off")
    rig.script(CHAT.target)
    first = await ask(rig, CHAT, KEY)
    call = await rig.call()
    await call.send(head(b"application/json", status=b"500 No", framing=b"Content-Length: 2"), b"{}")
    call.done()
    assert (await first.answer("POST")).status == 500
    await eventually(lambda: not running(rig), lambda: running(rig))
    second = await ask(rig, CHAT, KEY, RETRY)
    await told(await rig.call())
    assert await (await second.answer("POST")).rest() == TOLD


@LEAVE
async def test_a_retry_of_an_sdk_that_gave_up_waiting_gets_the_answer_it_waited_for(rig, how):
    """36, 24: the first attempt's client has left a call that finishes -> the retry gets it, and nothing is
    paid twice."""
    await rig.start(cache__mode="off", disconnect__default="finish")
    rig.script(CHAT.target)
    first = await ask(rig, CHAT, KEY)
    call = await rig.call()
    await left(rig, first, how)
    for number in range(1, 3):
        again = await ask(rig, CHAT, KEY, (b"X-Stainless-Retry-Count", b"%d" % number))
        await reading(rig, 1)
        if number == 1:
            await left(rig, again, how)
    await call.send(head(CHAT.kind), chunk(CHAT.whole), LAST)
    call.done()
    assert await (await again.answer("POST")).rest() == CHAT.whole
    assert counted(await lines(rig, 3), "outcome") == {"cancelled": 2, "complete": 1}
    assert rig.uncalled()


async def test_each_of_two_operations_with_the_same_bytes_is_retried_by_itself(rig):
    """36: two idempotency keys -> two calls, and each retry joins the one it was sent for."""
    await rig.start(cache__mode="off")
    rig.script(CHAT.target)
    clients, calls = [], []
    for name in (b"a", b"b"):
        clients.append(await ask(rig, CHAT, (b"Idempotency-Key", name)))
        calls.append(await rig.call())
    for name in (b"a", b"b"):
        clients.append(await ask(rig, CHAT, (b"Idempotency-Key", name), RETRY))
    await eventually(lambda: readers(rig) == 4 or len(running(rig)) > 2, lambda: readers(rig))
    many = len(running(rig))
    while not rig.uncalled():
        calls.append(await rig.call())
    for number, call in enumerate(calls):
        await told(call, b"%d" % number)
    assert many == 2
    assert await bodies(await answers(clients)) == [b"0", b"1", b"0", b"1"]


@pytest.mark.parametrize("form", [OTHER._replace(method="POST", body=ASK)], ids=str)
async def test_retries_to_other_paths_are_not_looked_at(rig, form):
    """36: what is no model call is not kept from its start on -> sent on as it is."""
    await rig.start()
    rig.script(form.target)
    await apart(rig, *[request("POST", form.target, form.body, [RETRY])] * 2)


# What is left.

TYPES = {"Answer", "Call", "Exchange", "Live", "Recording", "Reply", "Render", "Reader", "Stamper", "Visit"}


@pytest.mark.parametrize("what", ["read", "left", "failed", "failed twice", "late", "retried", "cut"])
async def test_nothing_of_a_shared_call_stays_for_the_garbage_collector(rig, what):
    """Nothing of it is in a reference cycle, whatever becomes of call and clients."""
    await rig.start(disconnect__default="grace=60" if what == "late" else "cancel")

    async def once():
        before = len(rig.sidecar.lines.requests)
        clients, call = await joined(rig, 3, CHAT, *([RETRY, IDS] if what == "retried" else []))
        many = 3
        if what in ("failed", "failed twice"):
            call.reset()
            call = await rig.call()
            await reading(rig, 2)
        if what == "failed twice":
            call.reset()
        else:
            await call.send(head(CHAT.kind), chunk(CHAT.events[0]))
            for answer in await answers(clients if what != "failed" else clients[1:]):
                await answer.until(len(CHAT.events[0]))
        if what in ("left", "late"):
            for client in clients:
                client.reset()
            clients = []
        if what == "late":
            await reading(rig, 0)
            clients = [await ask(rig)]
            await reading(rig, 1)
            many = 4
        if what == "left":
            await call.closed()
        elif what == "cut":
            call.reset()
        elif what != "failed twice":
            await call.send(chunk(CHAT.whole[len(CHAT.events[0]) :]), LAST)
        call.done()
        await eventually(lambda: len(rig.sidecar.lines.requests) == before + many, lambda: what)
        await eventually(lambda: not running(rig), lambda: what)
        for client in clients:
            client.close()
        await eventually(lambda: not rig.sidecar.connections, lambda: what)

    await once()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        await once()
        gc.collect()
        found = Counter(type(each).__name__ for each in gc.garbage)
        tests = [each for each in gc.garbage if type(each) is Client]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not tests
    assert not TYPES & set(found), found
