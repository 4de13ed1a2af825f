"""Several workers: whichever one a client comes to, it gets what it would get from the one that has it."""

import asyncio
import errno
import socket
from contextlib import asynccontextmanager

import orjson
import pytest

from sidecar.core.fingerprint import caller_of
from sidecar.core.ids import mint, worker_of
from sidecar.web.handover import Place
from tests.faults.comeback import (
    AGENT,
    IDS,
    KEY,
    STREAMS,
    WAYS,
    WITH_IDS,
    again,
    back,
    begin,
    ended,
    gone,
    holds,
    left,
    look,
    passed,
    stamped,
)
from tests.faults.conftest import eventually
from tests.faults.jobs import JOBS, PLAIN, ask, name_of, status, submitted, until, whole
from tests.faults.test_overload import Failing
from tests.faults.wire import ANTHROPIC, CHAT, GUARD, LAST, OTHER, chunk, head, request


@pytest.fixture
async def pair(rig, tmp_path):
    """Two workers; `pair(0)` makes the first one that which clients come to."""
    return await two(rig, tmp_path)


async def two(rig, tmp_path, second=None, **keys):
    """The same; `second`: settings of the second one only."""
    for number in (0, 1):
        # The second one may keep no jobs: that is how they are begun.
        folder = tmp_path / "data" if number == 0 else None
        if folder is not None:
            folder.mkdir()
        more = (second or {}) if number == 1 else {}
        await rig.start(place=Place(tmp_path, number, 2), folder=folder, **keys, **more)
    both = list(rig.sidecars)

    def use(number):
        rig.sidecars.sort(key=lambda sidecar: sidecar is both[number])
        return both[number]

    return use


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", WITH_IDS, ids=str)
@pytest.mark.parametrize("begun", [0, 1])
async def test_a_stream_goes_on_at_the_other_worker(rig, pair, form, way, begun):
    pair(begun)
    stream = await begin(rig, form, IDS, KEY)
    assert worker_of(stream.name) == begun
    await passed(stream, *form.events[:2])
    await left(rig, stream)
    pair(1 - begun)
    client, answer = await back(rig, form, way, stream.name, 1, KEY)
    assert answer.status == 200
    assert answer.header("slipstream-stream-id") == stream.name.encode()
    size = 0
    for event in form.events[2:]:
        await stream.call.send(chunk(event))
        size += len(event)
        await holds(answer, size)  # each as it comes
    await ended(stream.call)
    assert await answer.rest() == stamped(form.events[2:], stream.name, 2)
    assert answer.end == "whole"
    client.close()
    assert rig.uncalled()


async def test_the_same_bytes_as_from_the_one_that_has_it(rig, pair):
    """Heads, too, but for the connection's end."""
    pair(0)
    stream = await begin(rig, CHAT, IDS)
    await passed(stream, *CHAT.events)
    await ended(stream.call)
    await stream.answer.rest()
    asked = [
        ("GET", ()),
        ("GET", ((b"Last-Event-ID", f"{stream.name}:2".encode()),)),
        ("GET", ((b"Last-Event-ID", f"{stream.name}:{len(CHAT.events)}".encode()),)),
        ("POST", ()),
        ("GET", ((b"Slipstream-Disconnect", b"nonsense"),)),
    ]
    for method, fields in asked:
        shown = []
        for number in (0, 1):
            pair(number)
            answer = await again(rig, method, STREAMS + stream.name, *fields)
            close = (b"Connection", b"close")
            assert number == 0 or close in answer.headers
            answer.headers = [
                field for field in answer.headers if field != close and field[0] != b"Server-Timing"
            ]
            shown.append(look(answer))
        assert shown[0] == shown[1], (method, fields)


async def test_a_stream_is_stopped_at_the_other_worker(rig, pair):
    pair(0)
    stream = await begin(rig, ANTHROPIC, IDS)
    await passed(stream, *ANTHROPIC.events[:2])
    pair(1)
    answer = await again(rig, "DELETE", STREAMS + stream.name)
    assert answer.status == 204
    await stream.answer.rest()
    assert stream.answer.end == "cut"
    await stream.call.closed()
    await gone(rig, stream.name)


async def test_ids_of_others_look_like_none_at_all(rig, pair):
    pair(0)
    stream = await begin(rig, CHAT, IDS, KEY)
    pair(1)
    foreign = await again(rig, "GET", STREAMS + stream.name, (b"Authorization", b"Bearer else"))
    unknown = await again(
        rig, "GET", STREAMS + mint(b"x" * 32, b"", "s", 0), (b"Authorization", b"Bearer else")
    )
    assert look(foreign) == look(unknown)
    assert foreign.status == 404
    await ended(stream.call, *CHAT.events)


async def test_an_id_of_a_worker_that_is_no_more_is_gone(rig, pair):
    """Of one that was there when there were more, and of one that has ended."""
    pair(0)
    stream = await begin(rig, CHAT, IDS)
    await ended(stream.call, *CHAT.events)
    await stream.answer.rest()
    await deaf(pair(0))
    pair(1)
    await gone(rig, stream.name)
    scope = caller_of(b"s" * 32, None).scope
    await gone(rig, mint(b"s" * 32, scope, "s", 7))


async def deaf(sidecar):
    """It takes nothing from the others any more."""
    handed, sidecar.service._handed = sidecar.service._handed, None
    await handed.stop()


async def test_who_leaves_the_other_worker_has_left(rig, pair):
    """23, through a hand-over: nobody is left, so the upstream's call ends."""
    pair(0)
    stream = await begin(rig, CHAT, IDS)
    await passed(stream, *CHAT.events[:1])
    pair(1)
    client, answer = await back(rig, CHAT, "stream", stream.name, 0)
    await passed_on(stream, answer, CHAT.events[1])
    pair(0)
    await left(rig, stream)
    client.leave("rst")
    hub = pair(0).service.assembly.hub
    # It waits for a client that knows how to come back, as always.
    await eventually(lambda: hub.left, lambda: "a call whose readers have left")
    pair(1)
    assert (await again(rig, "DELETE", STREAMS + stream.name)).status == 204
    await stream.call.closed()


async def passed_on(stream, answer, event):
    size = len(event)
    await stream.call.send(chunk(event))
    await holds(answer, size)


async def test_a_cut_stream_is_cut_there_as_well(rig, pair):
    """12: never looking like success."""
    pair(0)
    stream = await begin(rig, CHAT, IDS)
    await passed(stream, *CHAT.events[:2])
    pair(1)
    client, answer = await back(rig, CHAT, "stream", stream.name, 0)
    await stream.call.send(LAST)  # a clean end without the terminal marker
    stream.call.done()
    await answer.rest()
    assert answer.end == "cut"
    assert b'"error"' in answer.body
    await stream.answer.rest()
    client.close()


async def test_a_reader_that_stops_reading_slows_nobody_and_stays_small(rig, pair):
    """25: the other worker keeps no more of it than a buffer."""
    pair(0)
    stream = await begin(rig, OTHER, IDS)
    pair(1)
    client, answer = await back(rig, OTHER, "stream", stream.name, -1)
    client.reader._transport.pause_reading()
    big = b"data: " + b"x" * (1 << 20) + b"\n\n"
    for _ in range(24):
        await stream.call.send(chunk(big))
        await stream.answer.until(len(stream.answer.body) + len(big))
    client.reader._transport.resume_reading()
    await ended(stream.call)
    await stream.answer.rest()
    assert (len(stream.answer.body) >= 24 * len(big), stream.answer.end) == (True, "whole")
    await answer.rest()
    assert answer.end == "cut"  # it was too far behind, and is told so
    client.close()


async def test_a_job_is_taken_polled_fetched_and_cancelled_at_any_worker(rig, pair):
    pair(1)
    rig.script(CHAT.target)
    client = await rig.connect()
    name = await submitted(client, CHAT)
    assert (name[0], worker_of(name)) == ("j", 0)
    call = await rig.call()
    for number in (0, 1):
        pair(number)
        assert (await status(await rig.connect(), name))["status"] == "running"
    await call.send(head(CHAT.kind))
    await ended(call, *CHAT.events)
    pair(0)
    await until(await rig.connect(), name, "complete")
    shown = []
    for number in (0, 1):
        pair(number)
        answer = await again(rig, "GET", f"{JOBS}{name}/result")
        shown.append((answer.status, bytes(answer.body), answer.end))
    assert shown[0] == shown[1] == (200, CHAT.whole, "whole")
    pair(1)
    client = await rig.connect()
    other = await submitted(client, CHAT)
    call = await rig.call()
    answer = await again(rig, "DELETE", JOBS + other)
    assert orjson.loads(answer.body)["status"] == "cancelled"
    await call.closed()


@pytest.mark.parametrize("framing", ["sized", "chunked"])
async def test_a_large_body_is_handed_on_as_it_comes(rig, pair, framing):
    pair(1)
    rig.script(CHAT.target)
    body = PLAIN[:-1] + b',"x":"' + b"y" * (3 << 20) + b'"}'
    client = await rig.connect()
    asks = (b"Prefer", b"respond-async")
    if framing == "sized":
        await client.send(request("POST", CHAT.target, body, [asks]))
    else:
        fields = [asks, (b"Transfer-Encoding", b"chunked"), (b"Content-Type", b"application/json")]
        await client.send(request("POST", CHAT.target, None, fields))
        for at in range(0, len(body), 1 << 19):
            await client.send(chunk(body[at : at + (1 << 19)]))
        await client.send(LAST)
    name_of(await whole(await client.answer("POST")))
    call = await rig.call()
    assert call.received.body == body
    await call.send(head(b"application/json", framing=b"Content-Length: 2") + b"{}")
    call.done()


async def test_a_body_that_breaks_off_is_no_job(rig, pair):
    pair(1)
    rig.script(CHAT.target)
    client = await rig.connect()
    fields = [(b"Prefer", b"respond-async"), (b"Content-Length", b"1000")]
    await client.send(request("POST", CHAT.target, None, fields) + b"{")
    first = pair(0)
    await eventually(lambda: first.service.assembly.front.active, lambda: "it has not come")
    client.leave("rst")
    await eventually(lambda: not first.service.assembly.front.active, lambda: "a request without a client")
    assert rig.uncalled()


async def test_a_body_that_is_no_http_is_refused_here(rig, pair):
    pair(1)
    client = await rig.connect()
    fields = [(b"Prefer", b"respond-async"), (b"Transfer-Encoding", b"chunked")]
    await client.send(request("POST", CHAT.target, None, fields) + b"zz\r\n")
    answer = await client.answer("POST")
    await answer.rest()
    assert (answer.status, answer.header("slipstream-error")) == (400, b"bad_request")


async def test_jobs_without_the_worker_that_keeps_them(rig, pair):
    await deaf(pair(0))
    pair(1)
    client = await rig.connect()
    answer = await whole(await ask(client, CHAT))
    assert (answer.status, answer.header("slipstream-error")) == (503, b"jobs_unavailable")
    answer = await again(rig, "GET", JOBS + mint(b"s" * 32, caller_of(b"s" * 32, None).scope, "j"))
    assert (answer.status, answer.header("slipstream-error")) == (503, b"jobs_unavailable")


async def test_one_line_per_request_and_it_is_that_of_the_one_who_answers(rig, pair):
    pair(0)
    stream = await begin(rig, AGENT, IDS)
    await ended(stream.call, *AGENT.events)
    await stream.answer.rest()
    second = pair(1)
    await again(rig, "GET", STREAMS + stream.name)
    first = pair(0)
    async with asyncio.timeout(GUARD):
        line = await first.lines.request(1)
    assert (line["resumed_from"], line["outcome"], line["stream_id"]) == (0, "complete", stream.name)
    assert not second.lines.requests


async def test_a_hung_worker_does_not_keep_clients_of_others_from_leaving(rig, pair, tmp_path):
    """It takes the connection, as the kernel does for it, and says nothing."""
    pair(0)
    stream = await begin(rig, CHAT, IDS)
    await ended(stream.call, *CHAT.events)
    await stream.answer.rest()
    path = Place(tmp_path, 0, 2).socket(0)
    path.rename(tmp_path / "aside")
    silent = socket.socket(socket.AF_UNIX)
    silent.bind(str(path))
    silent.listen()
    second = pair(1)
    client = await rig.connect()
    await client.send(request("GET", STREAMS + stream.name))
    await eventually(lambda: second.service.assembly.front.active, lambda: "it has not come")
    client.leave("rst")
    await eventually(lambda: not second.service.assembly.front.active, lambda: "a request without a client")
    silent.close()
    path.unlink(missing_ok=True)
    (tmp_path / "aside").rename(path)


@asynccontextmanager
async def instead(tmp_path, answer=b"", rest=b""):
    """In the place of the first worker: who takes connections, says that much to requests, says the rest once
    the event that this gives is set, and closes."""
    seen = asyncio.Event()

    async def connected(reader, writer):
        if answer:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await seen.wait()
            writer.write(rest)
        writer.close()

    path, aside = Place(tmp_path, 0, 2).socket(0), tmp_path / "aside"
    path.rename(aside)
    async with await asyncio.start_unix_server(connected, path):
        yield seen
    path.unlink(missing_ok=True)
    aside.rename(path)


@pytest.mark.parametrize("cut", [False, True])
async def test_a_client_of_http_10_can_tell_a_cut_stream_there_too(rig, pair, cut):
    pair(0)
    stream = await begin(rig, CHAT, IDS)
    await passed(stream, *CHAT.events[:2])
    pair(1)
    client = await rig.connect()
    await client.send(request("GET", STREAMS + stream.name).replace(b"HTTP/1.1", b"HTTP/1.0"))
    answer = await client.answer()
    assert (answer.status, answer.chunked, answer.header("connection")) == (200, False, b"close")
    await holds(answer, len(b"".join(CHAT.events[:2])))
    if cut:
        await stream.call.send(LAST)
        stream.call.done()
    else:
        await ended(stream.call, *CHAT.events[2:])
    await answer.rest()
    assert answer.end == ("reset" if cut else "whole")
    assert cut or answer.body == CHAT.whole
    await stream.answer.rest()


async def test_what_a_client_names_as_its_connections_own_stays_so(rig, pair):
    pair(1)
    rig.script(CHAT.target)
    client = await rig.connect()
    fields = [(b"Prefer", b"respond-async"), (b"Connection", b"x-own, keep-alive"), (b"X-Own", b"1")]
    await client.send(request("POST", CHAT.target, PLAIN, fields))
    name_of(await whole(await client.answer("POST")))
    call = await rig.call()
    assert b"x-own" not in {name.lower() for name, _ in call.received.headers}
    await call.send(head(b"application/json", framing=b"Content-Length: 2") + b"{}")
    call.done()


@pytest.mark.parametrize("form", ["stream", "job"])
@pytest.mark.parametrize("fault", ["stalls", "breaks"])
async def test_a_body_that_goes_wrong_on_its_way_is_told_as_that(rig, tmp_path, form, fault):
    """The other one has it by then, and its end of the connection ends with no answer: that is no sign that it
    is gone."""
    pair = await two(rig, tmp_path, {"timeouts__client": 0.2} if fault == "stalls" else None)
    first = pair(0)
    if form == "stream":
        stream = await begin(rig, CHAT, IDS)
        await passed(stream, CHAT.events[0])
        asks = (b"Last-Event-ID", f"{stream.name}:0".encode())
    else:
        rig.script(CHAT.target)
        asks = (b"Prefer", b"respond-async")
    running = first.service.assembly.front.active
    second = pair(1)
    client = await rig.connect()
    fields = [asks, (b"Content-Type", b"application/json"), (b"Transfer-Encoding", b"chunked")]
    await client.send(request("POST", CHAT.target, None, fields) + chunk(b"{"))
    await eventually(
        lambda: first.service.assembly.front.active > running or second.lines.requests, lambda: "no hand-over"
    )
    if fault == "breaks":
        await client.send(b"zz\r\n")
    answer = await client.answer("POST")
    await answer.rest()
    told = (408, b"request_timeout") if fault == "stalls" else (400, b"bad_request")
    assert (answer.status, answer.header("slipstream-error")) == told
    async with asyncio.timeout(GUARD):
        line = await second.lines.request()
    assert (line["status"], line["error"]) == (told[0], told[1].decode())
    assert len(second.lines.requests) == 1
    await eventually(lambda: first.service.assembly.front.active == running, lambda: "a request")
    if form == "stream":
        pair(0)
        await ended(stream.call, *CHAT.events[1:])
        await stream.answer.rest()
        assert stream.answer.end == "whole"
    assert rig.uncalled()


async def test_a_worker_that_takes_a_connection_and_drops_it_is_not_gone(rig, pair, tmp_path):
    """46: as one does that has no descriptor left. Its stream lives: a client may ask again, and not begin anew."""
    pair(0)
    stream = await begin(rig, CHAT, IDS)
    second = pair(1)
    async with instead(tmp_path):
        answer = await again(rig, "GET", STREAMS + stream.name)
    assert (answer.status, answer.header("slipstream-error")) == (503, b"overloaded")
    assert answer.header("retry-after") == b"1"
    assert [line["error"] for line in second.lines.requests] == ["overloaded"]
    await ended(stream.call, *CHAT.events)
    answer = await again(rig, "GET", STREAMS + stream.name)
    assert (answer.status, answer.end) == (200, "whole")


async def test_a_worker_without_descriptors_says_so_to_the_others(rig, pair):
    """46: and serves what comes when there are some again."""
    first = pair(0)
    stream = await begin(rig, CHAT, IDS)
    await ended(stream.call, *CHAT.events)
    await stream.answer.rest()
    listener = first.service._handed._listener
    (real,) = listener._sockets
    failing = Failing(real, errno.EMFILE)
    asyncio.get_running_loop().add_reader(real.fileno(), listener._ready, failing)
    pair(1)
    answer = await again(rig, "GET", STREAMS + stream.name)
    assert (answer.status, answer.header("slipstream-error")) == (503, b"overloaded")
    assert failing.tries > 1
    answer = await again(rig, "GET", STREAMS + stream.name)
    assert (answer.status, answer.end) == (200, "whole")


async def test_a_request_that_was_handed_over_is_counted_once(rig, pair):
    first = pair(0)
    stream = await begin(rig, CHAT, IDS)
    await passed(stream, *CHAT.events[:1])
    second = pair(1)
    client, answer = await back(rig, CHAT, "stream", stream.name, -1)
    await holds(answer, len(CHAT.events[0]))
    boards = [sidecar.service.assembly.board for sidecar in (first, second)]
    active = [board.stats()["active"] for board in boards]
    assert [(told["requests"], told["streams"]) for told in active] == [(2, 2), (0, 0)]
    assert [len(board.active(9)) for board in boards] == [2, 0]
    # It takes room there all the same.
    assert second.service.assembly.front.active == 1
    await ended(stream.call, *CHAT.events[1:])
    assert (await answer.rest(), answer.end) == (CHAT.whole, "whole")
    await stream.answer.rest()
    client.close()


@pytest.mark.parametrize("asks", ["prefer", "last-event-id"])
async def test_what_is_about_a_process_is_asked_of_whoever_is_asked(rig, pair, asks):
    scope = caller_of(b"s" * 32, None).scope
    field = (b"Prefer", b"respond-async")
    if asks == "last-event-id":
        field = (b"Last-Event-ID", mint(b"s" * 32, scope, "s").encode() + b":0")
    await deaf(pair(0))
    pair(1)
    for target, status_ in (("healthz", 200), ("nothing", 404)):
        answer = await again(rig, "GET", "/_slipstream/" + target, field)
        assert (answer.status, answer.end) == (status_, "whole"), target


async def test_a_stream_that_is_gone_is_no_job(rig, pair):
    await deaf(pair(0))
    pair(1)
    name = mint(b"s" * 32, caller_of(b"s" * 32, None).scope, "s")
    await gone(rig, name, (b"Prefer", b"respond-async"))


@pytest.mark.parametrize("of", ["bytes", "fields", "names"])
async def test_a_head_at_its_limit_is_not_too_large_when_it_is_handed_over(rig, tmp_path, of):
    """What a hand-over adds to it counts for nobody. `names`: of fields that the connection is to keep."""
    limit = 16 << 10
    pair = await two(rig, tmp_path, limits__headers=limit)
    pair(0)
    stream = await begin(rig, CHAT, IDS)
    await ended(stream.call, *CHAT.events)
    await stream.answer.rest()
    fields = [(b"X-%d" % at, b"1") for at in range(255 if of == "fields" else 1)]
    if of == "names":
        fields.append((b"Connection", b",".join(b"n%d" % at for at in range(2000))))
    target = STREAMS + stream.name
    if of != "fields":
        head_ = [(b"Host", b"sidecar.test"), *fields, (b"X-Pad", b"")]
        left_ = limit - len(target) - sum(len(name) + len(value) + 4 for name, value in head_)
        fields.append((b"X-Pad", b"y" * left_))
        over = [*fields[:-1], (b"X-Pad", b"y" * (left_ + 1))]
    else:
        over = [*fields, (b"Y", b"1")]
    for number in (0, 1):
        pair(number)
        answer = await again(rig, "GET", target, *fields)
        assert (answer.status, answer.end) == (200, "whole"), number
        answer = await again(rig, "GET", target, *over)
        assert (answer.status, answer.header("slipstream-error")) == (431, b"headers_too_large"), number


HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    ("answer", "rest", "end"),
    [
        (HEAD + b"Content-Length: 10\r\n\r\nhello", b"", "cut"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b"hello"), b"", "reset"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b"hello"), b"zz\r\n", "reset"),
    ],
    ids=["short", "unended", "no http"],
)
async def test_an_answer_that_breaks_off_does_not_look_whole_to_http_10(
    rig, pair, tmp_path, answer, rest, end
):
    """A reset may cost a slow client what it has not read: only where nothing else can tell."""
    pair(1)
    name = mint(b"s" * 32, caller_of(b"s" * 32, None).scope, "s")
    async with instead(tmp_path, answer, rest) as seen:
        client = await rig.connect()
        await client.send(request("GET", STREAMS + name).replace(b"HTTP/1.1", b"HTTP/1.0"))
        told = await client.answer()
        await told.until(len(b"hello"))
        seen.set()
        await told.rest()
        assert (told.body, told.end) == (b"hello", end)
