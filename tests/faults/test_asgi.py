"""What an ASGI server gets wrong, and what the app makes of it. What it gets right is in the other modules, by
`both_shells`."""

import pytest

from tests.faults.wire import ASK, CHAT, request

pytestmark = pytest.mark.parametrize("shell", ["asgi"], indirect=True)

H2C = [(b"Connection", b"Upgrade, HTTP2-Settings"), (b"Upgrade", b"h2c"), (b"HTTP2-Settings", b"AAMAAABk")]


@pytest.mark.parametrize("target", [CHAT.target, "/upload"])
async def test_body_that_the_server_has_lost_is_400_and_goes_nowhere(rig, target):
    """uvicorn loses the body of a request that offers h2c -> no upstream waits for it, and takes the next request
    for it."""
    rig.script(target)
    client = await rig.connect()
    await client.send(request("POST", target, ASK, H2C))
    answer = await client.answer()
    await answer.rest()
    assert (answer.status, answer.header("slipstream-error")) == (400, b"bad_request")
    assert await client.closed() == b""
    assert not [received for received in rig.provider.requests if received.complete]
    assert (await rig.line())["outcome"] == "refused"


async def test_refusal_that_leaves_a_body_behind_closes(rig):
    """The field that says so is ours: servers would read on, and throw away what comes."""
    await rig.start(limits__body=1024)
    client = await rig.connect()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nPrefer: respond-async\r\n"
    await client.send(head + b"Content-Length: 9999999\r\n\r\n" + bytes(2048))
    answer = await client.answer()
    await answer.rest()
    assert (answer.status, answer.header("connection")) == (413, b"close")
    assert await client.closed() == b""
