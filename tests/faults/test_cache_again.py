"""Requests that come again in the very same bytes are not read again; whatever else comes with them is."""

import itertools
import random

import pytest

from sidecar.stores.disk import DiskStore
from sidecar.web.again import Again
from tests.faults.wire import CHAT, Client, request

ANSWER = b'{"id":"x-%d","model":"m","choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}'
PATH = "/v1/chat/completions"


def asking(number: int) -> bytes:
    body = b'{"model":"m","messages":[{"role":"user","content":"question %d"}]}' % number
    return request("POST", PATH, body, [(b"Authorization", b"Bearer a")])


async def known(rig, *numbers: int) -> Client:
    """A connection on which these questions were asked, and answered from memory as well."""
    client = await rig.connect()
    rig.script(PATH)
    for number in numbers:
        await client.send(asking(number))
        call = await rig.call()
        body = ANSWER % number
        await call.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nSet-Cookie: a=b\r\nContent-Length: %d\r\n\r\n"
            % len(body),
            body,
        )
        call.done()
        assert await (await client.answer("POST")).rest() == body
        for _ in range(2):  # the first time it is only noted
            await client.send(asking(number))
            assert await (await client.answer("POST")).rest() == body
    return client


def remembered(rig) -> int:
    return len(rig.sidecar.service._proxy._again._known)


async def start(rig, **keys):
    return await rig.start(cache__ttl=3600, **keys)


async def test_the_short_way_gives_what_the_long_way_gives(rig):
    await start(rig)
    client = await known(rig, 1)
    assert remembered(rig) == 1
    heads = []
    for way in (asking(1), asking(1).replace(b"Host: sidecar.test", b"Host:  sidecar.test")):
        await client.send(way)
        answer = await client.answer("POST")
        assert await answer.rest() == ANSWER % 1
        heads.append([field for field in answer.headers if field[0] != b"Server-Timing"])
        assert answer.header("cache-status").startswith(b"slipstream; hit; ttl=")
        assert answer.header("set-cookie") is None
    assert heads[0] == heads[1]
    assert rig.uncalled()
    lines = [await rig.line(number) for number in range(5)]
    assert len({line["request_id"] for line in lines}) == 5
    changing = {"request_id", "timestamp", "ttfb_ms", "total_ms", "overhead_ms", "phases"}
    short, long = [{key: line[key] for key in line.keys() - changing} for line in lines[3:]]
    assert short == long
    assert short["cache"] == "hit"


async def test_a_stream_keeps_its_id_as_long_as_it_is_good(rig, monkeypatch):
    short = []
    serve = Again.serve
    monkeypatch.setattr(Again, "serve", lambda *given: short.append(serve(*given)) or short[-1])
    await start(rig)
    client = await rig.connect()
    rig.script(CHAT.target)
    await client.send(CHAT.sent)
    call = await rig.call()
    await call.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n", CHAT.whole
    )
    call.close()
    assert await (await client.answer("POST")).rest() == CHAT.whole
    names = []
    for _ in range(3):
        await client.send(CHAT.sent)
        answer = await client.answer("POST")
        assert await answer.rest() == CHAT.whole
        names.append(answer.header("slipstream-stream-id"))
    assert len(set(names)) == 1
    assert short == [False, False, True]
    other = await rig.connect()
    stream = f"/_slipstream/streams/{names[0].decode()}"
    assert (await other.whole("GET", stream)).body == CHAT.whole
    assert (await other.whole("DELETE", stream)).status == 204
    await client.send(CHAT.sent)
    answer = await client.answer("POST")
    assert await answer.rest() == CHAT.whole
    assert short[-1] is False
    anew = answer.header("slipstream-stream-id")
    assert anew not in names
    assert (await other.whole("GET", f"/_slipstream/streams/{anew.decode()}")).body == CHAT.whole
    assert rig.uncalled()


async def test_what_is_purged_is_asked_for_again(rig):
    await start(rig)
    client = await known(rig, 1)
    rig.sidecar.service.assembly.cache._hot.clear()
    await client.send(asking(1))
    call = await rig.call()
    call.close()
    assert (await client.answer("POST")).status == 502


async def test_known_bytes_inside_of_another_request_are_part_of_it(rig):
    """A header that holds a known request, cut off right before it; then a body that does."""
    await start(rig)
    client = await known(rig, 1)
    rig.provider.on("/other", _echo)
    inside = asking(1).replace(b"\r\n", b" ")
    for first, then in (
        (asking(1) + b"GET /other HTTP/1.1\r\nHost: sidecar.test\r\nX-A: ", inside + b"\r\n\r\n"),
        (
            asking(1) + b"POST /other HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(asking(1)),
            asking(1),
        ),
    ):
        await client.send(first)
        assert await (await client.answer("POST")).rest() == ANSWER % 1
        await client.send(then)
        assert await (await client.answer("POST")).rest() == b"other"
    await client.send(b"POST /other HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(asking(1)))
    await client.send(asking(1))
    assert await (await client.answer("POST")).rest() == b"other"


async def _echo(connection, received) -> None:
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother")


@pytest.mark.parametrize("seed", range(12))
async def test_however_requests_are_cut_and_joined_each_gets_its_answer(rig, seed):
    await start(rig)
    client = await known(rig, 1, 2, 3)
    chance = random.Random(seed)
    order = [chance.randint(1, 3) for _ in range(60)]
    stream = b"".join(map(asking, order))
    size = len(asking(1))
    cuts = {chance.randrange(len(stream)) for _ in range(chance.choice([0, 5, 60]))}
    cuts |= {number * size for number in range(60) if chance.random() < 0.8}
    points = sorted(cuts | {0, len(stream)})
    for begin, end in itertools.pairwise(points):
        await client.send(stream[begin:end])
        if chance.random() < 0.3 and order and end % size == 0:
            while order and len(order) > 60 - end // size:
                assert await (await client.answer("POST")).rest() == ANSWER % order.pop(0)
    while order:
        assert await (await client.answer("POST")).rest() == ANSWER % order.pop(0)
    assert rig.uncalled()


async def test_who_asks_the_short_way_only_is_still_idle_later(rig):
    await start(rig)
    client = await known(rig, 1)
    (protocol,) = rig.sidecar.service._server.connections
    protocol._next_keepalive_close_time -= 50
    before = protocol._next_keepalive_close_time
    await client.send(asking(1))
    await (await client.answer("POST")).rest()
    assert protocol._next_keepalive_close_time > before


async def test_nothing_is_answered_the_short_way_while_it_drains(rig):
    await start(rig)
    client = await known(rig, 1)
    rig.sidecar.service.assembly.front.draining = True
    await client.send(asking(1))
    assert (await client.answer("POST")).status == 503


async def test_another_credential_is_another_request(rig):
    await start(rig)
    client = await known(rig, 1)
    await client.send(asking(1).replace(b"Bearer a", b"Bearer b"))
    call = await rig.call()
    call.close()
    assert (await client.answer("POST")).status == 502


TRACING = [
    b"traceparent",
    b"tracestate",
    b"baggage",
    b"sentry-trace",
    b"request-id",
    b"x-request-id",
    b"client-request-id",
    b"x-client-request-id",
    b"x-correlation-id",
    b"x-amzn-trace-id",
    b"x-cloud-trace-context",
    b"x-request-start",
    b"x-b3-traceid",
    b"x-datadog-parent-id",
]


def traced(*lines: bytes) -> bytes:
    return asking(1).replace(b"Host:", b"".join([line + b"\r\n" for line in lines]) + b"Host:")


async def test_lines_about_tracing_may_differ(rig):
    """They count for nothing, whichever way a request goes; the trace's id is in its line."""
    await start(rig)
    client = await known(rig, 1)
    trace = b"0af7651916cd43dd8448eb211c80319c"
    for name in TRACING:
        for value in (b"a", b"00-%b-b7ad6b7169203331-01" % trace):
            await client.send(traced(name.title() + b": " + value))
            answer = await client.answer("POST")
            assert await answer.rest() == ANSWER % 1
    assert remembered(rig) == 1
    assert rig.uncalled()
    found = [await rig.line(number) for number in range(3 + 2 * len(TRACING))]
    assert [line["trace_id"] for line in found[:5]] == [None, None, None, None, trace.decode()]


@pytest.mark.parametrize(
    "lines",
    [
        [b"X-Request-Id: a", b"x-request-id: b"],
        [b"X-Request-Id: a\r\n folded"],
        [b"X-Request-Id: " + b"a" * 600],
        [b"X-Request-Id : a"],
    ],
)
async def test_a_line_that_is_not_plain_goes_the_long_way(rig, lines):
    await start(rig)
    client = await known(rig, 1)
    for _ in range(2):
        before = len(rig.sidecar.lines.requests)
        await client.send(traced(*lines))
        answer = await client.answer("POST")
        assert (await rig.line(before))["status"] == answer.status
        if answer.status == 400:
            return
        assert await answer.rest() == ANSWER % 1
    assert remembered(rig) == 2


async def test_tracing_in_the_body_is_no_tracing(rig):
    await start(rig)
    client = await known(rig, 1)
    body = b'{"model":"m",\r\nx-request-id: a\r\n"messages":[]}'
    for number in (0, 1):
        other = body.replace(b": a", b": %d" % number)
        await client.send(request("POST", PATH, other, [(b"Authorization", b"Bearer a")]))
        call = await rig.call()
        await call.send(b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n")
        call.done()
        assert (await client.answer("POST")).status == 400


async def test_a_known_request_behind_others_waits_for_them(rig):
    """Three in a row: while the second one is served, the known third one must not overtake it."""
    await start(rig)
    client = await known(rig, 3)
    first, second = await rig.connect(), b"two"
    await first.send(asking(3))
    assert await (await first.answer("POST")).rest() == ANSWER % 3
    await first.send(asking(1))
    held = await rig.call()
    await first.send(asking(2))
    await held.send(b"HTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\none")
    held.done()
    assert await (await first.answer("POST")).rest() == b"one"
    held = await rig.call()
    await first.send(asking(3))
    # What comes on another connection is behind it for sure.
    await client.send(asking(3))
    assert await (await client.answer("POST")).rest() == ANSWER % 3
    await held.send(b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n" % len(second), second)
    held.done()
    assert await (await first.answer("POST")).rest() == second
    assert await (await first.answer("POST")).rest() == ANSWER % 3


async def test_what_is_remembered_is_what_was_asked(rig):
    """Bytes that are not those of the request that was answered are not remembered, whoever mixes them up."""
    await start(rig)
    client = await known(rig, 1)
    again = rig.sidecar.service._proxy._again
    seen = []
    remember = again.remember

    def spied(visit, reply, line):
        reply._raw.whole = asking(2)
        seen.append(visit)
        remember(visit, reply, line)

    again.remember = spied
    again._known.clear()
    for number in (3, 4):
        await client.send(asking(1))
        assert await (await client.answer("POST")).rest() == ANSWER % 1
        await rig.line(number)
    assert len(seen) == 2
    assert remembered(rig) == 0


async def test_a_field_that_chooses_the_upstream_is_not_set_aside(rig, tmp_path):
    other = tmp_path / "routes.toml"
    url = rig.provider.url
    other.write_text(
        f'[[upstreams]]\nname = "one"\nurl = "{url}"\n'
        f'[[upstreams]]\nname = "two"\nurl = "{url}/two"\nheader = "baggage"\n'
    )
    await rig.start(None, cache__ttl=3600, file=other)
    client = await known(rig, 1)
    rig.script("/two" + PATH)
    await client.send(traced(b"Baggage: a"))
    call = await rig.call()
    assert call.received.path == "/two" + PATH
    call.close()
    assert (await client.answer("POST")).status == 502


async def test_too_many_headers_are_too_many_on_either_way(rig):
    await start(rig, limits__headers=2048)
    client = await known(rig, 1)
    lines = [b"X-B3-%c: %b" % (65 + number, b"a" * 500) for number in range(20)]
    await client.send(traced(*lines))
    assert (await client.answer("POST")).status == 431


async def test_a_purge_clears_what_is_remembered(rig, tmp_path):
    await start(rig, folder=tmp_path)
    client = await known(rig, 1)
    assert remembered(rig) == 1
    store = DiskStore.open(tmp_path / "answers", 1 << 30)
    store.clear()
    store.close()
    await client.send(asking(1))
    call = await rig.call()
    assert remembered(rig) == 0
    call.close()
    assert (await client.answer("POST")).status == 502
