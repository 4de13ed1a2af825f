"""Background jobs whose upstream fails, or says more than can be kept."""

import asyncio
import hashlib
import socket

import pytest

from sidecar.engine.jobstate import LIMIT
from tests.faults.jobs import (
    ANSWER,
    ASYNC,
    JOBS,
    PLAIN,
    STREAMS,
    ended,
    job_lines,
    plain,
    refused,
    result,
    submitted,
)
from tests.faults.wire import (
    ANTHROPIC,
    CHAT,
    FRAMED,
    LAST,
    MARKED,
    OLLAMA,
    RESPONSES,
    chunk,
    head,
)

pytestmark = pytest.mark.both_shells

MIB = LIMIT >> 20


@pytest.fixture
async def client(rig, tmp_path):
    """A client of a sidecar that keeps jobs."""
    await rig.start(folder=tmp_path)
    return await rig.connect()


# Upstreams.


async def test_refused_connection_is_a_failed_job(rig, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        await rig.start(f"http://127.0.0.1:{free.getsockname()[1]}", folder=tmp_path)
    client = await rig.connect()
    name = await submitted(client)
    done = await ended(client, name)
    assert (done["status"], done["error"]["kind"]) == ("failed", "upstream_unreachable")
    assert done["error"]["detail"]
    for _ in range(2):
        refused(await result(client, name), 502, "upstream_unreachable")
    (line,) = job_lines(rig)
    assert (line["status"], line["error"]) == ("failed", "upstream_unreachable")


async def test_silent_upstream_is_a_failed_job(rig, tmp_path):
    await rig.start(folder=tmp_path, timeouts__head=0.1)
    client = await rig.connect()
    rig.script(CHAT.target)
    name = await submitted(client)
    call = await rig.call()
    done = await ended(client, name)
    assert (done["status"], done["error"]["kind"]) == ("failed", "upstream_timeout")
    refused(await result(client, name), 504, "upstream_timeout")
    await call.closed()


async def test_path_without_upstream_is_refused_at_once(rig, tmp_path):
    await rig.start(None, folder=tmp_path)
    client = await rig.connect()
    answer = await client.whole("POST", "/nowhere", b"{}", [ASYNC])
    refused(answer, 404, "no_upstream")


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        (b"429 Too Many", [b"Retry-After: 7", b"x-ratelimit-reset: 3s"]),
        (b"500 Oops", []),
        (b"401 No", [b"WWW-Authenticate: x"]),
    ],
)
async def test_upstreams_own_error_is_a_failed_job_and_can_be_fetched(rig, client, code, fields):
    """Status, fields and body as they were; sent once."""
    rig.script(CHAT.target)
    body = b'{"error":{"message":"quota of planted-prompt","type":"rate_limit"}}'
    name = await submitted(client)
    call = await rig.call()
    await call.send(plain(body, *fields, status=code))
    call.done()
    done = await ended(client, name)
    assert (done["status"], done["error"]["kind"]) == ("failed", "upstream_refused")
    assert code[:3].decode() in done["error"]["detail"]
    assert "planted" not in done["error"]["detail"]
    got = await result(client, name)
    assert (got.status, got.reason) == (int(code[:3]), got.phrased(code[4:]))
    assert (bytes(got.body), got.end) == (body, "whole")
    for field in fields:
        key, _, value = field.partition(b": ")
        assert got.header(key.decode().lower()) == value
    assert len(rig.provider.requests) == 1


@pytest.mark.parametrize("how", ["eof", "fin", "rst", "stall"])
@pytest.mark.parametrize("form", MARKED, ids=str)
@pytest.mark.asgi_every(4)
async def test_broken_stream_is_a_failed_job_and_never_looks_whole(rig, tmp_path, form, how):
    """Cut inside an event or before the terminal marker: what came is there, closed off as an error, cut."""
    await rig.start(folder=tmp_path, timeouts__stall=0.1)
    client = await rig.connect()
    rig.script(form.target)
    name = await submitted(client, form)
    call = await rig.call()
    sent = form.events[0] + (b"" if how == "eof" else form.events[1][:9])
    await call.send(head(form.kind), chunk(sent), LAST if how == "eof" else b"")
    if how != "stall":
        {"eof": call.done, "fin": call.close, "rst": call.reset}[how]()
    done = await ended(client, name)
    kinds = {
        "eof": "upstream_incomplete",
        "fin": "upstream_closed",
        "rst": "upstream_closed",
        "stall": "upstream_stalled",
    }
    assert (done["status"], done["error"]["kind"]) == ("failed", kinds[how])
    for path in (f"{JOBS}{name}/result", STREAMS + name):
        got = await (await rig.connect()).whole("GET", path)
        assert (got.status, got.end) == (200, "cut")
        assert got.body.startswith(sent)
        rest = bytes(got.body[len(sent) :])
        assert rest.lstrip(b"\r\n").startswith(form.lost)
        assert bool(rest) == (form in FRAMED)


async def test_short_body_is_a_failed_job_and_never_looks_whole(rig, client):
    rig.script(CHAT.target)
    name = await submitted(client, CHAT._replace(body=PLAIN))
    call = await rig.call()
    await call.send(plain()[:-9])
    call.close()
    done = await ended(client, name)
    assert (done["status"], done["error"]["kind"]) == ("failed", "upstream_closed")
    got = await result(client, name)
    assert (bytes(got.body), got.end) == (ANSWER[:-9], "cut")


@pytest.mark.parametrize(
    ("form", "error"),
    [
        (CHAT, b'data: {"error":{"type":"overloaded","message":"planted-prompt"}}\n\n'),
        (
            ANTHROPIC,
            b'event: error\ndata: {"type":"error","error":{"type":"overloaded","message":"planted-prompt"}}\n\n',
        ),
        (
            RESPONSES,
            b'event: error\ndata: {"type":"error","code":"overloaded","message":"planted-prompt"}\n\n',
        ),
        (OLLAMA, b'{"error":"planted-prompt"}\n'),
    ],
    ids=str,
)
async def test_error_inside_a_200_is_a_failed_job(rig, client, form, error):
    """FAULTS 22. All of it was sent, so all of it can be fetched; the message is in no status and no line."""
    rig.script(form.target)
    name = await submitted(client, form)
    call = await rig.call()
    await call.send(head(form.kind), chunk(form.events[0] + error), LAST)
    call.done()
    done = await ended(client, name)
    assert (done["status"], done["error"]["kind"]) == ("failed", "upstream_refused")
    assert "planted" not in str(done)
    got = await result(client, name)
    assert (bytes(got.body), got.end) == (form.events[0] + error, "whole")
    assert b"planted" not in b"".join(rig.sidecar.lines.raw)


async def test_error_object_in_a_200_is_a_failed_job(rig, client):
    """FAULTS 22, where it was no stream."""
    rig.script(CHAT.target)
    body = b'{"error":{"type":"overloaded","message":"planted-prompt"}}'
    name = await submitted(client, CHAT._replace(body=PLAIN))
    call = await rig.call()
    await call.send(plain(body))
    call.done()
    done = await ended(client, name)
    assert (done["status"], done["error"]["kind"]) == ("failed", "upstream_refused")
    assert (bytes((await result(client, name)).body), "planted" in str(done)) == (body, False)


async def test_answer_too_large_to_keep(rig, client):
    """Over the limit: a follower has all of it, the job has failed, and its result is an error, not a part."""
    rig.script("/file")
    name = await submitted(client, CHAT._replace(target="/file"))
    call = await rig.call()
    follower = await rig.connect()
    part = bytes(range(256)) * 4096
    await call.send(head(b"application/octet-stream"), chunk(part))
    following = await follower.ask("GET", STREAMS + name)
    got = hashlib.sha256()

    async def read():
        size = 0
        while data := await following.more():
            size += len(data)
            got.update(data)
            following.body.clear()
        return size

    reading = asyncio.ensure_future(read())
    for _ in range(MIB):
        await call.send(chunk(part))
    await call.send(LAST)
    call.done()
    assert (await reading, following.end) == ((MIB + 1) << 20, "whole")
    assert got.digest() == hashlib.sha256(part * (MIB + 1)).digest()
    done = await ended(client, name)
    assert (done["status"], done["error"]["kind"]) == ("failed", "answer_too_large")
    refused(await result(client, name), 502, "answer_too_large")


async def test_large_answer_comes_back_whole(rig, client):
    """Just the limit, from the disk."""
    rig.script("/file")
    name = await submitted(client, CHAT._replace(target="/file"))
    call = await rig.call()
    part = bytes(range(256)) * 4096
    await call.send(head(b"application/octet-stream", framing=b"Content-Length: %d" % LIMIT))
    for _ in range(MIB):
        await call.send(part)
    call.done()
    assert (await ended(client, name))["status"] == "complete"
    got = await result(client, name)
    assert (got.end, len(got.body)) == ("whole", LIMIT)
    assert hashlib.sha256(got.body).digest() == hashlib.sha256(part * MIB).digest()
