"""SidecarMiddleware: a request leaves nothing for the garbage collector, as in the proxy; see tests/test_garbage.py."""

import asyncio

import pytest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.garbage import left_by
from tests.plugin.rig import said

POST = ["POST"]


async def _json(request):
    return JSONResponse([1])


async def astream(request):
    async def pieces():
        yield said(1)

    return StreamingResponse(pieces(), media_type="text/event-stream")


KINDS = {
    "json": Route("/chat", _json, methods=POST),
    "stream": Route("/chat", astream, methods=POST),  # anyio leaves cycles of its own behind for a sync one
    "text": Route("/chat", lambda request: Response("text"), methods=POST),
}


@pytest.mark.parametrize("cache", ["exact", "off"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_request_leaves_no_cycle(serve, kind, cache):
    served = await serve([KINDS[kind]], cache=cache, config={"resume": {"memory": 0}})
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    head = b"POST /chat HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nCache-Control: no-store\r\n\r\n{}"

    async def once():
        writer.write(head)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b"transfer-encoding: chunked" in answer:
            await reader.readuntil(b"0\r\n\r\n")
        else:
            await reader.readexactly(int(answer.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        await served.idle()

    try:
        left = await left_by(once)
    finally:
        writer.close()
    ours = {
        "Answer",
        "Arriving",
        "Asked",
        "Here",
        "Live",
        "Recording",
        "Reply",
        "Render",
        "Run",
        "Spans",
        "Visit",
    }
    assert not ours & set(left), left
