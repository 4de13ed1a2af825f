"""What becomes of an upstream call when its client leaves: as the request, path, upstream or default say."""

import asyncio
import contextlib
import math

import pytest

from tests.faults.comeback import IDS, KEY, left
from tests.faults.conftest import eventually
from tests.faults.test_client import refused
from tests.faults.wire import (
    ANTHROPIC,
    CHAT,
    GUARD,
    LAST,
    OLLAMA,
    OTHER,
    chunk,
    head,
    request,
)

pytestmark = pytest.mark.both_shells

WISH = b"Slipstream-Disconnect"
LEAVE = pytest.mark.parametrize("how", ["fin", "rst"])
PLAIN = b'{"model":"m","messages":[{"role":"user","content":"planted prompt"}]}'
TOLD = (
    b'{"model":"m-1","choices":[{"message":{"content":"planted answer"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":7}}'
)
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":7}}\n\n'
EVENTS = [*CHAT.events[:-1], USAGE, CHAT.events[-1]]
PHASES = ["before-head", "before-first-event", "mid-stream", "mid-event", "whole"]
WHERE = ["request", "path", "upstream", "default"]


def running(rig):
    return list(rig.sidecar.service.assembly.hub._live)


async def configured(rig, tmp_path, where, wish, **keys):
    """A sidecar that grants `wish` there, and something else nowhere; what a request has to say."""
    if where == "request":
        await rig.start(**keys)
        return [(WISH, wish.encode())]
    if where == "default":
        await rig.start(disconnect__default=wish, **keys)
    elif where == "path":
        await rig.start(disconnect__paths={"/v1/chat": wish, "/v1": "cancel"}, **keys)
    else:
        file = tmp_path / "slipstream.toml"
        file.write_text(
            f'[[upstreams]]\nname = "a"\nurl = "{rig.provider.url}"\npaths = ["/"]\ndisconnect = "{wish}"\n'
        )
        await rig.start(None, file=file, **keys)
    return []


async def asked(rig, *fields, phase="mid-stream", form=CHAT):
    """A client whose call has come to that phase; the call, the bytes it has been sent, and the answer."""
    rig.script(form.target)
    client = await rig.connect()
    body = PLAIN if phase == "whole" else form.body
    await client.send(request(form.method, form.target, body, [KEY, *fields]))
    call = await rig.call()
    sent, answer = b"", None
    if phase == "whole":
        sent = TOLD[:9]
        await call.send(head(b"application/json", framing=b"Content-Length: %d" % len(TOLD)), sent)
    elif phase != "before-head":
        sent = {"mid-stream": EVENTS[0], "mid-event": EVENTS[0] + EVENTS[1][:11]}.get(phase, b"")
        await call.send(head(form.kind), *([chunk(sent)] if sent else []))
    if phase != "before-head":
        answer = await client.answer(form.method)
        await answer.until(len(sent))
    return client, call, sent, answer


async def rest(call, phase, sent):
    """The upstream goes on to its end."""
    if phase == "whole":
        await call.send(TOLD[len(sent) :])
    else:
        start = [head(CHAT.kind)] if phase == "before-head" else []
        await call.send(*start, chunk(b"".join(EVENTS)[len(sent) :]), LAST)
    call.done()


async def alone(rig, client, how="rst"):
    """The client leaves; the sidecar knows, and the call lives."""
    await left(rig, client, how)
    assert len(running(rig)) == 1


async def only(rig, count=1):
    """The lines of so many requests, of which there are no more, and nothing personal in them."""
    found = [await rig.line(number) for number in range(count)]
    assert len(rig.sidecar.lines.requests) == count
    written = b"".join(rig.sidecar.lines.raw)
    assert b"planted" not in written
    return found


# The table.


@LEAVE
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("phase", PHASES)
async def test_cancel_closes_the_upstream_within_a_second(rig, tmp_path, phase, where, how):
    """23: cancel, in every phase and wherever it says so -> closed within a second, one line: cancelled."""
    fields = await configured(rig, tmp_path, where, "cancel")
    client, call, sent, _ = await asked(rig, *fields, phase=phase)
    client.leave(how)
    await call.closed(within=1)
    [line] = await only(rig)
    assert (line["outcome"], line["bytes"]) == ("cancelled", len(sent))
    assert line["output_tokens"] is None


@LEAVE
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("phase", PHASES)
async def test_finish_lets_the_call_end_and_tells_what_it_used(rig, tmp_path, phase, where, how):
    """24: finish -> the upstream's call completes; the request's one line waits for it and has its usage."""
    fields = await configured(rig, tmp_path, where, "finish")
    client, call, sent, _ = await asked(rig, *fields, phase=phase)
    await alone(rig, client, how)
    assert not rig.sidecar.lines.requests
    await rest(call, phase, sent)
    [line] = await only(rig)
    assert (line["outcome"], line["bytes"]) == ("cancelled", len(sent))
    assert (line["input_tokens"], line["output_tokens"]) == (3, 7)
    assert line["events"] == (0 if phase == "whole" else len(EVENTS))
    assert line["status"] == (None if phase == "before-head" else 200)
    assert not call.received.closed.is_set()
    assert not running(rig)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("phase", PHASES)
async def test_grace_waits_for_somebody_who_comes_back(rig, tmp_path, phase, where):
    """24: grace -> it lives on; whoever asks for the same in time gets everything, from the start and live."""
    fields = await configured(rig, tmp_path, where, "grace=10m")
    client, call, sent, _ = await asked(rig, *fields, phase=phase)
    await alone(rig, client)
    assert not rig.sidecar.lines.requests
    back = await rig.connect()
    await back.send(request("POST", CHAT.target, PLAIN if phase == "whole" else CHAT.body, [KEY]))
    first = await rig.line()  # somebody reads again: what there is to say of the first is said
    assert first["outcome"] == "cancelled"
    if phase != "before-head":
        answer = await back.answer("POST")
        assert await answer.until(len(sent)) == sent
        await rest(call, phase, sent)
    else:
        await rest(call, phase, sent)
        answer = await back.answer("POST")
    assert await answer.rest() == (TOLD if phase == "whole" else b"".join(EVENTS))
    assert answer.end == "whole"
    lines = await only(rig, 2)
    assert [(line["outcome"], line["output_tokens"]) for line in lines][1] == ("complete", 7)
    assert rig.uncalled()


@LEAVE
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.asgi_every(4)
async def test_grace_ends_when_nobody_comes(rig, tmp_path, phase, where, how):
    """24: nobody comes within N seconds -> closed then, not before; one line: cancelled."""
    fields = await configured(rig, tmp_path, where, "grace=200ms")
    client, call, sent, _ = await asked(rig, *fields, phase=phase)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    client.leave(how)
    await call.closed(within=5)
    assert loop.time() - begun >= 0.199
    [line] = await only(rig)
    assert (line["outcome"], line["bytes"]) == ("cancelled", len(sent))
    assert line["total_ms"] >= 199


@pytest.mark.parametrize("wish", ["cancel", "finish", "grace=10m"])
async def test_the_same_goes_for_what_is_no_model_call(rig, wish):
    """23, 24: a download elsewhere -> as its request says."""
    await rig.start()
    client, call, _, _ = await asked(rig, (WISH, wish.encode()), phase="before-first-event", form=OTHER)
    if wish == "cancel":
        client.reset()
        await call.closed(within=1)
    else:
        await alone(rig, client)
        await call.send(*[chunk(event) for event in OTHER.events], LAST)
        call.done()
    assert [line["outcome"] for line in await only(rig)] == ["cancelled"]


async def test_an_upload_ends_with_its_client_whatever_is_granted(rig):
    """23: what a client has yet to send nobody else has -> the upstream sees it break off, one line."""
    await rig.start()
    rig.script("/v1/files", early=True)
    client = await rig.connect()
    head_of = (
        b"POST /v1/files HTTP/1.1\r\nHost: h\r\nSlipstream-Disconnect: finish\r\nContent-Length: 1000\r\n\r\n"
    )
    await client.send(head_of + b"half")
    call = await rig.call()
    client.reset()
    await call.closed(within=1)
    assert not call.received.complete
    [line] = await only(rig)
    assert line["outcome"] == "cancelled"


# Who says so.

PRECEDENCE = {
    # request, path, upstream, default -> does it live?
    "request over all": ("finish", "cancel", "cancel", "cancel", True),
    "request over all, no": ("cancel", "finish", "finish", "finish", False),
    "path over upstream": (None, "finish", "cancel", "cancel", True),
    "path over upstream, no": (None, "cancel", "finish", "finish", False),
    "upstream over default": (None, None, "finish", "cancel", True),
    "upstream over default, no": (None, None, "cancel", "finish", False),
    "default": (None, None, None, "finish", True),
    "default, no": (None, None, None, "cancel", False),
    "nobody says": (None, None, None, None, False),
}


@pytest.mark.parametrize(
    ("wish", "path", "upstream", "default", "lives"), PRECEDENCE.values(), ids=PRECEDENCE
)
async def test_request_goes_before_path_before_upstream_before_default(
    rig, tmp_path, wish, path, upstream, default, lives
):
    """23, 24: each against all those behind it."""
    lines = ["[disconnect]", *([f'default = "{default}"'] if default else [])]
    # What another path or another upstream says is nobody's business here.
    paths = {
        "/v1/chatty": "grace=1" if lives else "finish",
        "/v2": "finish",
        **({"/v1/chat": path} if path else {}),
    }
    lines.append("paths = {" + ",".join(f'"{key}" = "{value}"' for key, value in paths.items()) + "}")
    lines += ["[[upstreams]]", 'name = "a"', f'url = "{rig.provider.url}"', 'paths = ["/v1"]']
    lines += [f'disconnect = "{upstream}"'] if upstream else []
    lines += ["[[upstreams]]", 'name = "b"', f'url = "{rig.provider.url}"', 'paths = ["/v1/other"]']
    lines += ['disconnect = "finish"']
    file = tmp_path / "slipstream.toml"
    file.write_text("\n".join(lines))
    await rig.start(None, file=file)
    client, call, sent, _ = await asked(rig, *([(WISH, wish.encode())] if wish else []))
    if lives:
        await alone(rig, client)
        await rest(call, "mid-stream", sent)
    else:
        client.reset()
        await call.closed(within=1)
    await only(rig)


@pytest.mark.parametrize(
    ("paths", "lives"),
    [
        ({"/v1": "cancel", "/v1/chat": "cancel", CHAT.target: "finish"}, True),
        ({CHAT.target: "finish", "/v1/chat": "cancel", "/": "cancel"}, True),
        ({"/v1": "finish", "/v1/chat": "cancel"}, False),
        ({"/v1/": "finish"}, True),
        ({"/": "finish"}, True),
        # Parts of names, and names in other cases, are other paths.
        ({"/v1/chat/comp": "finish"}, False),
        ({"/v": "finish"}, False),
        ({"/V1": "finish"}, False),
        ({CHAT.target + "/": "finish"}, False),
    ],
)
async def test_the_longest_path_wins(rig, paths, lives):
    """23, 24: path prefixes end at slashes, and the most specific one counts."""
    await rig.start(disconnect__paths=paths)
    client, call, sent, _ = await asked(rig)
    if lives:
        await alone(rig, client)
        await rest(call, "mid-stream", sent)
    else:
        client.reset()
        await call.closed(within=1)
    await only(rig)


@pytest.mark.parametrize(
    "spelling", [b"finish", b"FINISH", b" finish ", b"Grace = 10m", b"grace=600", b"grace=1h"]
)
async def test_spellings_that_are_understood(rig, spelling):
    await rig.start()
    client, call, sent, _ = await asked(rig, (WISH, spelling))
    await alone(rig, client)
    await rest(call, "mid-stream", sent)
    await only(rig)


BAD = [
    b"",
    b"never",
    b"finish, cancel",
    b"finish;q=1",
    b"grace",
    b"grace=",
    b"grace=-1",
    b"grace=soon",
    b"grace=nan",
    b"grace=inf",
    b"grace=1e9",
    b"grace=1 2",
    b"grace=" + b"9" * 1000,
    b"cancel=1",
    b"\xff",
    "grace=٣".encode(),
]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("target", [CHAT.target, "/v1/files", "/_slipstream/streams/none"])
async def test_a_wish_that_is_none_is_400_and_costs_no_call(rig, value, target):
    """23: nobody can tell what was meant -> 400 that says what would be right; the upstream hears nothing, and
    the connection serves the next request."""
    await rig.start()
    rig.script(target)
    client = await rig.connect()
    method = "GET" if "slipstream" in target else "POST"
    body = PLAIN * 1000 if method == "POST" else None
    answer = await client.whole(method, target, body, [KEY, (WISH, value)])
    refused(answer, 400, "bad_request")
    told = bytes(answer.body)
    assert b"Slipstream-Disconnect: expected" in told
    assert (b"cancel, finish, or grace=N" in told) or (
        value.startswith(b"grace=") and b"a time such as" in told
    )
    assert value[:20] not in told or value in (b"", b"grace")
    assert not running(rig)
    assert rig.provider.accepted == 0
    [line] = await only(rig)
    assert (line["outcome"], line["error"]) == ("refused", "bad_request")
    again = await client.whole("POST", "/echo", b"{}")
    assert (again.status, bytes(again.body)) == (200, b"{}")


@pytest.mark.parametrize("twice", [[b"finish", b"finish"], [b"cancel", b"finish"]])
async def test_two_wishes_are_400(rig, twice):
    await rig.start()
    client = await rig.connect()
    answer = await client.whole("POST", CHAT.target, PLAIN, [(WISH, value) for value in twice])
    refused(answer, 400, "bad_request")
    assert not running(rig)
    assert rig.provider.accepted == 0


@pytest.mark.parametrize("prefer", [b"respond-async", b"respond-async, wait=10"])
async def test_a_job_with_a_wish_that_is_none_is_400_and_is_not_begun(rig, tmp_path, prefer):
    """23: refused before anything is begun, also where the request would become a job."""
    await rig.start(folder=tmp_path)
    rig.script(CHAT.target)
    client = await rig.connect()
    await client.send(request("POST", CHAT.target, PLAIN, [(b"Prefer", prefer), (WISH, b"never")]))
    asking = asyncio.ensure_future(client.answer("POST"))
    calling = asyncio.ensure_future(rig.call())
    done, _ = await asyncio.wait({asking, calling}, return_when=asyncio.FIRST_COMPLETED)
    if calling in done:
        await (await calling).send(head(b"application/json", framing=b"Content-Length: 2"), b"{}")
    calling.cancel()
    answer = await asking
    await answer.rest()
    assert calling not in done
    refused(answer, 400, "bad_request")
    assert rig.provider.accepted == 0


async def test_the_wish_is_not_forwarded(rig):
    await rig.start()
    client, call, _, _ = await asked(rig, (WISH, b"finish"))
    assert call.received.header("slipstream-disconnect") is None
    client.close()
    await rest(call, "mid-stream", EVENTS[0])


# Those who can come back.


async def test_who_takes_ids_gets_a_moment_unless_it_says_otherwise(rig):
    """24: a client that can come back is waited for; one that says cancel, or that cannot, is not."""
    await rig.start(resume__grace=600)
    for fields, lives in ([IDS], True), ([IDS, (WISH, b"cancel")], False), ([], False):
        client, call, sent, _ = await asked(rig, *fields)
        if lives:
            await alone(rig, client)
            await rest(call, "mid-stream", sent)
            await eventually(lambda: not running(rig), lambda: running(rig))
        else:
            client.reset()
            await call.closed(within=1)


async def test_who_takes_ids_but_was_told_none_is_not_waited_for(rig):
    """24: before the head it does not know where to come back to."""
    await rig.start(resume__grace=600)
    client, call, _, _ = await asked(rig, IDS, phase="before-head")
    client.reset()
    await call.closed(within=1)


# Several.


@pytest.mark.parametrize("wishes", [["cancel", "cancel"], ["finish", "cancel"], ["cancel", "grace=10m"]])
async def test_somebody_who_reads_holds_the_call_whatever_the_others_wish(rig, wishes):
    """24: one leaves, the other reads on -> nothing changes for it."""
    await rig.start()
    client, call, sent, _ = await asked(rig, (WISH, wishes[0].encode()))
    other = await rig.connect()
    await other.send(request("POST", CHAT.target, CHAT.body, [KEY, (WISH, wishes[1].encode())]))
    answer = await other.answer("POST")
    await answer.until(len(sent))
    await alone(rig, client)
    # Somebody reads, so there is nothing to wait for: the line is written at once.
    assert (await rig.line())["outcome"] == "cancelled"
    await rest(call, "mid-stream", sent)
    assert await answer.rest() == b"".join(EVENTS)
    assert [line["outcome"] for line in await only(rig, 2)] == ["cancelled", "complete"]


SEVERAL = {
    "cancel twice": (["cancel", "cancel"], 0),
    "first finishes": (["finish", "cancel"], math.inf),
    "last finishes": (["cancel", "finish"], math.inf),
    "middle finishes": (["cancel", "finish", "cancel"], math.inf),
    "first waits": (["grace=10m", "cancel"], 600),
    "last waits": (["cancel", "grace=10m"], 600),
    "waits and finishes": (["grace=200ms", "finish", "grace=1"], math.inf),
    "nobody says, one finishes": ([None, "finish", None], math.inf),
}


@pytest.mark.parametrize("phase", ["before-head", "mid-stream"])
@pytest.mark.parametrize(("wishes", "patience"), SEVERAL.values(), ids=SEVERAL)
async def test_of_several_that_leave_the_most_generous_counts(rig, wishes, patience, phase):
    """24: policies of a shared call -> the longest of them, whoever leaves last; a line for each."""
    await rig.start()
    fields = [[(WISH, wish.encode())] if wish else [] for wish in wishes]
    first, call, sent, _ = await asked(rig, *fields[0], phase=phase)
    clients = [first]
    for given in fields[1:]:
        clients.append(await rig.connect())
        await clients[-1].send(request("POST", CHAT.target, CHAT.body, [KEY, *given]))
        await eventually(lambda: running(rig)[0].recording.readers == len(clients), lambda: "readers")
    for client in clients[:-1]:
        await alone(rig, client)
    if patience:
        await alone(rig, clients[-1])
        await rest(call, phase, sent)
    else:
        clients[-1].reset()
        await call.closed(within=1)
    lines = await only(rig, len(wishes))
    assert {line["outcome"] for line in lines} == {"cancelled"}
    told = [line["output_tokens"] for line in lines]
    # Whoever left while others read has nothing to wait for.
    assert told == [None] * (len(wishes) - 1) + [7 if patience else None]


async def test_coming_and_going_in_a_grace_goes_on_as_long_as_somebody_comes(rig):
    """24: away, back, away, back ... -> one call, and everything from the start each time."""
    await rig.start()
    wish = (WISH, b"grace=10m")
    client, call, sent, _ = await asked(rig, wish)
    for event in EVENTS[1:-1]:
        await alone(rig, client)
        await call.send(chunk(event))
        sent += event
        client = await rig.connect()
        await client.send(request("POST", CHAT.target, CHAT.body, [KEY, wish]))
        answer = await client.answer("POST")
        await answer.until(len(sent))
        assert bytes(answer.body) == sent
    await rest(call, "mid-stream", sent)
    assert await answer.rest() == b"".join(EVENTS)
    lines = await only(rig, len(EVENTS) - 1)
    assert [line["outcome"] for line in lines] == ["cancelled"] * (len(EVENTS) - 2) + ["complete"]
    assert [line["cache"] for line in lines] == ["miss"] + ["collapsed"] * (len(EVENTS) - 2)
    assert rig.uncalled()


@pytest.mark.parametrize("form", [ANTHROPIC, OLLAMA], ids=str)
async def test_finish_in_other_formats(rig, form):
    """24: usage is read wherever it stands."""
    await rig.start(disconnect__default="finish")
    rig.script(form.target)
    client = await rig.connect()
    await client.send(form.sent)
    call = await rig.call()
    await call.send(head(form.kind), chunk(form.events[0]))
    await (await client.answer("POST")).until(len(form.events[0]))
    await alone(rig, client)
    assert not rig.sidecar.lines.requests
    await call.send(chunk(form.whole[len(form.events[0]) :]), LAST)
    call.done()
    [line] = await only(rig)
    assert line["outcome"] == "cancelled"
    assert line["events"] == len(form.events)
    if form is ANTHROPIC:
        assert (line["input_tokens"], line["output_tokens"]) == (3, 2)


@pytest.mark.parametrize("how", ["cut", "reset", "error", "silent"])
async def test_a_call_that_finishes_and_fails_is_one_line(rig, how):
    """24: finish, and then the upstream is lost, says no, or says nothing more -> one line, and nothing left."""
    await rig.start(disconnect__default="finish", timeouts__stall=0.5)
    client, call, _, _ = await asked(rig, phase="before-head" if how == "error" else "mid-stream")
    await alone(rig, client)
    if how == "cut":
        call.close()
    elif how == "reset":
        call.reset()
    elif how == "error":
        await call.send(head(b"application/json", status=b"500 No", framing=b"Content-Length: 2"), b"{}")
        call.done()
    else:
        await call.closed(within=5)
    [line] = await only(rig)
    assert line["outcome"] == "cancelled"
    assert not running(rig)


# Limits.


async def test_calls_that_go_on_without_clients_count_as_requests(rig):
    """25, 46: clients that ask, say finish and leave -> no more calls at once than limits.requests, then 503."""
    await rig.start(limits__requests=3, cache__collapse=False)
    rig.script(CHAT.target)
    calls = []
    for _ in range(3):
        client, call, _, _ = await asked(rig, (WISH, b"finish"))
        calls.append(call)
        await left(rig, client)
    client = await rig.connect()
    answer = await client.whole("POST", CHAT.target, PLAIN, [KEY])
    refused(answer, 503, "overloaded")
    assert rig.uncalled()
    await rest(calls[0], "mid-stream", EVENTS[0])
    await eventually(lambda: len(running(rig)) == 2, lambda: running(rig))
    _, call, _, _ = await asked(rig)
    calls.append(call)
    for each in calls[1:]:
        await rest(each, "mid-stream", EVENTS[0])


async def test_whoever_comes_back_to_a_call_takes_no_further_place(rig):
    """24, 46: a call waits for its client, at the limit -> the client is let in, by any way back."""
    await rig.start(limits__requests=1, resume__grace=600)
    client, call, sent, answer = await asked(rig, IDS)
    name = (answer.header("slipstream-stream-id") or b"").decode()
    ways = [
        request("POST", CHAT.target, CHAT.body, [KEY, IDS]),
        request("GET", f"/_slipstream/streams/{name}", None, [KEY, IDS]),
        request("POST", CHAT.target, CHAT.body, [KEY, IDS, (b"X-Stainless-Retry-Count", b"1")]),
    ]
    for way in ways:
        await alone(rig, client)
        client = await rig.connect()
        await client.send(way)
        answer = await client.answer("GET" if way.startswith(b"GET") else "POST")
        assert answer.status == 200
    stopped = await (await rig.connect()).ask("DELETE", f"/_slipstream/streams/{name}", None, [KEY])
    assert stopped.status == 503  # the place is taken now
    await rest(call, "mid-stream", sent)
    await answer.rest()
    assert answer.end == "whole"


async def test_what_a_finishing_call_sends_is_not_kept_without_measure(rig):
    """25: nobody reads, the upstream sends on and on -> it is read, and no more than 8 MiB of it kept."""
    await rig.start()
    client, call, _, _ = await asked(rig, (WISH, b"finish"))
    await alone(rig, client)
    recording = running(rig)[0].recording
    block = CHAT.events[0] * 4000
    for _ in range(40):
        await call.send(chunk(block))
        assert len(recording._bytes) <= 9 << 20
    await rest(call, "mid-stream", EVENTS[0])
    [line] = await only(rig)
    assert line["output_tokens"] == 7


# Draining.


@contextlib.asynccontextmanager
async def stopping(rig, grace):
    """Stop it, and look whether everything had ended by itself."""
    task = asyncio.ensure_future(rig.sidecar.service.stop(grace))
    await asyncio.sleep(0)
    try:
        yield task
    finally:
        await task


async def test_a_call_in_its_grace_is_not_waited_for_when_it_stops(rig):
    """47: nobody can come back -> given up at once, its line is written, and the stop is clean."""
    await rig.start()
    client, call, _, _ = await asked(rig, (WISH, b"grace=10m"))
    await alone(rig, client)
    async with asyncio.timeout(GUARD), stopping(rig, 600) as stopped:
        await call.closed(within=1)
    assert stopped.result() is True
    assert [line["outcome"] for line in await only(rig)] == ["cancelled"]


async def test_a_call_that_finishes_is_waited_for_when_it_stops(rig):
    """47: finish, within the shutdown's grace -> it ends by itself, with its usage in the line."""
    await rig.start()
    client, call, sent, _ = await asked(rig, (WISH, b"finish"))
    await alone(rig, client)
    async with asyncio.timeout(GUARD), stopping(rig, 600) as stopped:
        other = await rig.connect()
        assert (await other.whole("GET", "/_slipstream/healthz")).status == 503  # it drains
        assert not stopped.done()
        assert not call.received.closed.is_set()
        await rest(call, "mid-stream", sent)
    assert stopped.result() is True
    assert [(line["outcome"], line["output_tokens"]) for line in await only(rig)] == [("cancelled", 7)]


async def test_a_call_that_finishes_too_late_is_ended_when_the_time_is_up(rig):
    """47: finish, past the shutdown's grace -> closed, and its line is written before the end."""
    await rig.start()
    client, call, _, _ = await asked(rig, (WISH, b"finish"))
    await alone(rig, client)
    async with asyncio.timeout(GUARD), stopping(rig, 0.2) as stopped:
        await call.closed(within=5)
    assert stopped.result() is False
    assert [line["outcome"] for line in await only(rig)] == ["cancelled"]


@pytest.mark.parametrize("fields", [[(WISH, b"grace=10m")], [IDS]], ids=["grace", "ids"])
async def test_nobody_is_waited_for_who_leaves_while_it_stops(rig, fields):
    """47: gone during the drain, with time to come back -> it cannot: the call ends at once."""
    await rig.start(resume__grace=600)
    client, call, _, _ = await asked(rig, *fields)
    async with asyncio.timeout(GUARD), stopping(rig, 600) as stopped:
        client.reset()
        await call.closed(within=1)
    assert stopped.result() is True
    assert [line["outcome"] for line in await only(rig)] == ["cancelled"]


async def test_who_reads_while_it_stops_gets_everything(rig):
    """47: one of two leaves, the other reads on -> drained, whole."""
    await rig.start()
    client, call, sent, answer = await asked(rig)
    other = await rig.connect()
    await other.send(request("POST", CHAT.target, CHAT.body, [KEY]))
    second = await other.answer("POST")
    await second.until(len(sent))
    async with asyncio.timeout(GUARD), stopping(rig, 600) as stopped:
        await left(rig, client)
        await rest(call, "mid-stream", sent)
        assert await second.rest() == b"".join(EVENTS)
    assert stopped.result() is True
    assert answer.end is None


# Jobs.


@LEAVE
async def test_a_job_goes_on_whatever_those_who_read_it_wish(rig, tmp_path, how):
    """24: a reader of a job's stream leaves with cancel -> the job's call completes."""
    await rig.start(folder=tmp_path)
    rig.script(CHAT.target)
    client = await rig.connect()
    taken = await client.whole("POST", CHAT.target, CHAT.body, [KEY, (b"Prefer", b"respond-async")])
    name = (taken.header("slipstream-stream-id") or b"").decode()
    call = await rig.call()
    await call.send(head(CHAT.kind), chunk(EVENTS[0]))
    reader = await rig.connect()
    answer = await reader.ask("GET", f"/_slipstream/streams/{name}", None, [KEY, (WISH, b"cancel")])
    await answer.until(len(EVENTS[0]))
    await left(rig, reader, how)
    assert len(running(rig)) == 1
    await rest(call, "mid-stream", EVENTS[0])
    await eventually(lambda: not running(rig), lambda: running(rig))
    again = await (await rig.connect()).whole("GET", f"/_slipstream/streams/{name}", None, [KEY])
    assert bytes(again.body) == b"".join(EVENTS)
    assert not call.received.closed.is_set()
