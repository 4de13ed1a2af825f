"""Webhooks of background jobs, end to end: who is told, when, with what proof, and what of it survives."""

import asyncio
import base64
import contextlib
import hmac
import time
from hashlib import sha256

import openai
import orjson
import pytest

from sidecar.serving.webhooks import Webhooks
from tests.faults.conftest import eventually
from tests.faults.jobs import (
    Disk,
    ask,
    cancel,
    ended,
    job_lines,
    status,
    stop,
    stream,
    submitted,
    whole,
    works,
)
from tests.faults.test_process import serving
from tests.faults.wire import CHAT, Client
from tests.stores.rig import files_with

pytestmark = pytest.mark.both_shells

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
OOPS = b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"
KEY = b"w" * 32
"""What the fixture gives the sidecar."""


@pytest.fixture
async def disk(rig, monkeypatch):
    made = Disk(monkeypatch)
    yield made
    made.release()


@pytest.fixture
def quick(monkeypatch):
    """Three attempts, without the seconds between them."""
    monkeypatch.setitem(Webhooks.__init__.__kwdefaults__, "delays", (0, 0.01, 0.01))


@pytest.fixture
def start(rig, tmp_path):
    """A sidecar that may tell the provider, and a client of it."""

    async def starting(**keys):
        rig.script(CHAT.target)
        rig.script("/hook")
        await rig.start(folder=tmp_path, **{"jobs__webhooks": rig.provider.url} | keys)
        return await rig.connect()

    return starting


def hook(rig, path="/hook?token=planted-token"):
    return (b"Slipstream-Webhook", (rig.provider.url + path).encode())


async def told(rig):
    """The next call, which must be the receiver's."""
    call = await rig.call()
    assert call.received.path == "/hook"
    return call


async def answered(call, answer=OK):
    await call.send(answer)
    call.done()


def verified(received, key=KEY):
    """What the receiver was told, whose signature is right."""
    stamp, name = received.header("webhook-timestamp"), received.header("webhook-id")
    assert abs(int(stamp) - time.time()) < 60
    made = hmac.new(key, b"%b.%b.%b" % (name, stamp, received.body), sha256).digest()
    assert received.header("webhook-signature") == b"v1," + base64.b64encode(made)
    assert (received.method, received.header("content-type")) == ("POST", b"application/json")
    document = orjson.loads(received.body)
    assert document["id"].encode() == name
    return document


@pytest.mark.parametrize("how", ["complete", "failed", "cancelled", "cancelled-queued"])
async def test_receiver_is_told_of_every_end(rig, start, how):
    """It gets the status document as it then is, once, signed; the state goes from pending to delivered."""
    client = await start(jobs__concurrency=1)
    if how == "cancelled-queued":
        await submitted(client)
        blocker = await rig.call()
    name = await submitted(client, CHAT, hook(rig))
    assert (await status(client, name))["webhook"] == "pending"
    if how == "cancelled-queued":
        await cancel(client, name)
    else:
        call = await rig.call()
        assert call.received.header("slipstream-webhook") is None
        if how == "complete":
            await stream(call)
        elif how == "failed":
            call.reset()
        else:
            await cancel(client, name)
    hooked = await told(rig)
    assert hooked.received.query == "token=planted-token"
    document = verified(hooked.received)
    before = await status(client, name)
    assert (before["status"], before["webhook"]) == (how.partition("-")[0], "pending")
    assert document == {**before, "webhook": None}
    await answered(hooked)
    while (after := await status(client, name))["webhook"] == "pending":
        pass
    assert after == {**before, "webhook": "delivered"}
    if how == "cancelled-queued":
        await stream(blocker)
    await works(rig)
    assert rig.uncalled()
    assert b"planted-token" not in b"".join(rig.sidecar.lines.raw)


async def test_without_a_webhook_nobody_is_told(rig, start):
    client = await start()
    name = await submitted(client)
    await stream(await rig.call())
    assert (await ended(client, name))["webhook"] is None
    await works(rig)
    assert rig.uncalled()


async def test_an_ordinary_request_names_no_webhook(rig, start):
    """Without `Prefer` the field means nothing, and is not forwarded."""
    client = await start()
    sending = asyncio.ensure_future(client.whole("POST", CHAT.target, CHAT.body, [hook(rig)]))
    call = await rig.call()
    assert call.received.header("slipstream-webhook") is None
    await stream(call)
    assert bytes((await sending).body) == CHAT.whole
    await works(rig)
    assert rig.uncalled()


@pytest.mark.parametrize("configured", [True, False])
@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest",
        "https://hooks.test/x",
        "not a url",
        "",
        "http://127.0.0.1:{port}/hook, http://127.0.0.1:{port}/hook",
    ],
)
async def test_receiver_that_is_not_allowed_is_refused_before_anything_is_kept(
    rig, start, tmp_path, disk, url, configured
):
    """400 with the reason; nothing on disk, nothing called."""
    client = await start() if configured else await start(jobs__webhooks="")
    disk.fail("add")
    form = CHAT._replace(body=b'{"model":"planted-prompt"}')
    field = (b"Slipstream-Webhook", url.format(port=rig.provider.port).encode())
    answer = await whole(await ask(client, form, field))
    assert (answer.status, answer.header("slipstream-error"), answer.end) == (400, b"bad_request", "whole")
    assert b"Slipstream-Webhook" in answer.body
    assert not files_with(tmp_path, b"planted-prompt")
    assert rig.uncalled()
    assert not job_lines(rig)


async def test_nobody_is_told_before_the_end_is_on_disk(rig, start, disk):
    client = await start()
    reached, gate = disk.hold("finish")
    name = await submitted(client, CHAT, hook(rig))
    await stream(await rig.call())
    await reached.wait()
    await works(rig)
    assert rig.uncalled()
    gate.set()
    await answered(await told(rig))
    assert (await ended(client, name))["status"] == "complete"


async def test_failing_receiver_is_tried_again(rig, start, quick):
    """The same message under the same id until it is taken."""
    client = await start()
    name = await submitted(client, CHAT, hook(rig))
    await stream(await rig.call())
    first = await told(rig)
    await answered(first, OOPS)
    second = await told(rig)
    assert (await status(client, name))["webhook"] == "pending"
    assert verified(first.received) == verified(second.received)
    second.reset()
    third = await told(rig)
    assert third.received.body == first.received.body
    await answered(third)
    while (await status(client, name))["webhook"] != "delivered":
        pass
    assert rig.uncalled()


async def test_receiver_that_never_takes_it(rig, start, quick):
    """After the last attempt: failed, with a warning, and the result is there as ever."""
    client = await start()
    name = await submitted(client, CHAT, hook(rig))
    await stream(await rig.call())
    for _ in range(3):
        await answered(await told(rig), OOPS)
    while (done := await status(client, name))["webhook"] != "failed":
        assert done["webhook"] == "pending"
    assert done["status"] == "complete"
    await eventually(
        lambda: [line for line in rig.sidecar.lines.all if line["event"] == "webhook_failed"], list
    )
    (line,) = [line for line in rig.sidecar.lines.all if line["event"] == "webhook_failed"]
    assert (line["level"], line["job_id"], line["attempts"]) == ("warning", name, 3)
    await stop(rig.sidecar)
    client = await start()
    assert (await status(client, name))["webhook"] == "failed"
    await works(rig)
    assert rig.uncalled()


async def test_disk_that_cannot_note_an_attempt_does_not_end_them(rig, start, quick, disk):
    client = await start()
    disk.fail("webhook_result", 1)
    name = await submitted(client, CHAT, hook(rig))
    await stream(await rig.call())
    await answered(await told(rig), OOPS)
    await answered(await told(rig))
    while (await status(client, name))["webhook"] != "delivered":
        pass
    assert not [line for line in rig.sidecar.lines.all if line["event"] == "webhook_failed"]


async def test_slow_receiver_holds_nobody_up(rig, start):
    """Not the next job, not its own result, not the sidecar when it is stopped."""
    client = await start(jobs__concurrency=1)
    names = [await submitted(client, CHAT, hook(rig)) for _ in range(2)]
    await stream(await rig.call())
    hooked = await told(rig)
    await stream(await rig.call())
    assert (await ended(client, names[1]))["status"] == "complete"
    other = await told(rig)
    async with asyncio.timeout(3):
        await stop(rig.sidecar, 5.0)
    for call in (hooked, other):
        await call.closed()


async def test_receiver_is_told_after_a_restart(rig, start, quick):
    """Stopped while an attempt was under way, and while the next was waited for: told later, attempts made before
    count."""
    client = await start()
    name = await submitted(client, CHAT, hook(rig))
    await stream(await rig.call())
    first = await told(rig)
    await stop(rig.sidecar)
    await first.closed()
    client = await start()
    second = await told(rig)
    assert verified(second.received) == orjson.loads(first.received.body)
    await answered(second, OOPS)
    await answered(await told(rig), OOPS)
    third = await told(rig)
    await stop(rig.sidecar)
    await third.closed()
    client = await start()
    await answered(await told(rig), OOPS)
    while (await status(client, name))["webhook"] != "failed":
        pass
    await works(rig)
    assert rig.uncalled()


async def test_receiver_that_is_not_allowed_any_more_is_not_told(rig, start):
    """The configuration has changed since: no call, a warning."""
    client = await start()
    name = await submitted(client, CHAT, hook(rig))
    await stream(await rig.call())
    first = await told(rig)
    await stop(rig.sidecar)
    await first.closed()
    client = await start(jobs__webhooks="hooks.example.com")
    while (await status(client, name))["webhook"] != "failed":
        pass
    await eventually(
        lambda: [line for line in rig.sidecar.lines.all if line["event"] == "webhook_failed"], list
    )
    assert rig.uncalled()


@pytest.mark.proxy_only("it is about the command line")
async def test_webhook_key_of_the_real_process(rig, tmp_path):
    """What is signed can be checked with the key in the data folder, by a library that receivers use; a receiver is told
    of a job that a kill interrupted, and told again what a kill kept it from acknowledging."""
    rig.script(CHAT.target)
    rig.script("/hook")
    variables = {"SLIPSTREAM_JOBS__WEBHOOKS": rig.provider.url}
    async with contextlib.AsyncExitStack() as stack:

        async def running():
            process = await stack.enter_async_context(serving(tmp_path, rig.provider.url, **variables))
            client = await Client.open(process.port)
            stack.callback(client.close)
            return process, client

        process, client = await running()
        names = [await submitted(client, CHAT, hook(rig)) for _ in range(2)]
        calls = [await rig.call(), await rig.call()]
        await stream(calls[0])
        first = await told(rig)
        file = tmp_path / "webhook-key"
        key = file.read_text().strip()
        assert (key[:6], file.stat().st_mode & 0o777) == ("whsec_", 0o600)
        process.signal(9)
        await process.exited()
        await first.closed()
        await calls[1].closed()
        process, client = await running()
        hooked = {}
        for _ in range(2):
            call = await told(rig)
            document = verified(call.received, base64.b64decode(key[6:]))
            hooked[document["id"]] = (document["status"], (document["error"] or {}).get("kind"))
            fields = {name.decode(): value.decode() for name, value in call.received.headers}
            with openai.OpenAI(api_key="none") as receiver:
                receiver.webhooks.verify_signature(call.received.body, fields, secret=key)
            await answered(call)
        assert hooked == {
            orjson.loads(first.received.body)["id"]: ("complete", None),
            next(name for name in names if name.encode() not in first.received.body): (
                "failed",
                "interrupted",
            ),
        }
        for name in names:
            while (await status(client, name))["webhook"] != "delivered":
                pass
        assert file.read_text().strip() == key
        process.signal()
        assert await process.exited() == 0
        assert not [line for line in process.lines if line["event"] in ("fault", "webhook_failed")]
        assert b"planted-token" not in process.raw
    assert rig.uncalled()
