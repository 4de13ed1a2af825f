"""A request leaves nothing for the garbage collector: no reference cycle holds its body and headers.

Cycles would keep bodies of up to 32 MiB until the collector comes round, and cost a tenth of a request.
"""

import asyncio

import pytest

from tests.garbage import left_by

CALLS = {
    "whole": (b"/v1/chat/completions", b'{"model":"m","messages":[]}'),
    "stream": (b"/v1/chat/completions", b'{"model":"m","stream":true,"messages":[]}'),
    "upload": (b"/echo", b"x" * 200_000),
    "refused": (b"/_slipstream/nothing", b"{}"),
}


@pytest.mark.parametrize("kind", CALLS)
async def test_a_request_leaves_no_cycle(sidecar, kind):
    target, body = CALLS[kind]
    reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
    head = b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (target, len(body))

    async def once():
        writer.write(head + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b"transfer-encoding: chunked" in answer:
            await reader.readuntil(b"\r\n0\r\n\r\n")
        else:
            await reader.readexactly(int(answer.partition(b"content-length: ")[2].partition(b"\r\n")[0]))

    try:
        left = await left_by(once)
    finally:
        writer.close()
    ours = {"Answer", "Call", "Exchange", "Incoming", "Job", "Live", "Recording", "Reply", "Render", "Upload"}
    assert not ours & set(left), left
