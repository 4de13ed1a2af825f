"""SidecarMiddleware: which answers are stored."""

import pytest
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response

from tests.plugin.rig import said, soon
from tests.plugin.test_middleware_sharing import Counts

STORED = {
    "object": lambda _: JSONResponse({"a": 1}),
    "array": lambda _: JSONResponse([1, 2]),
    "events": lambda _: Response(said(1), media_type="text/event-stream"),
}
UNSTORED = {
    "html": lambda _: HTMLResponse("<p>hello</p>"),
    "text": lambda _: PlainTextResponse("hello"),
    "bytes": lambda _: Response(b"\x00\xff" * 10, media_type="application/octet-stream"),
    "created": lambda _: JSONResponse({"a": 1}, 201),
    "nothing": lambda _: Response(status_code=204),
    "missing": lambda _: JSONResponse({"a": 1}, 404),
    "failed": lambda _: JSONResponse({"a": 1}, 500),
    "no-store": lambda _: JSONResponse({"a": 1}, headers={"cache-control": "no-store"}),
    "half json": lambda _: Response(b'{"a":', media_type="application/json"),
    "compressed": lambda _: Response(
        b"{}", media_type="application/json", headers={"content-encoding": "br"}
    ),
    "half an event": lambda _: Response(b"data: 1", media_type="text/event-stream"),
}
EITHER = {
    "text that is a number": lambda _: PlainTextResponse("42"),
    "text that is an object": lambda _: PlainTextResponse('{"a":1}'),
    "html that is a string": lambda _: HTMLResponse('"a"'),
}
"""What could be taken for JSON."""


@pytest.mark.parametrize("kind", [*STORED, *UNSTORED, *EITHER])
async def test_what_is_stored(serve, kind):
    make = (STORED | UNSTORED | EITHER)[kind]
    counts = Counts(make)
    served = await serve([counts.at()])
    plain = make(1)
    for number in range(2):
        client = await served.ask()
        assert (client.status, client.body, client.end) == (plain.status_code, bytes(plain.body), "whole")
        assert client.headers.get("content-type") == plain.headers.get("content-type")
        await soon(served.lines.request(number))
    assert counts.runs == (1 if kind in STORED else 2) or kind in EITHER


async def test_files_pass_through(serve, tmp_path):

    file = tmp_path / "file.bin"
    file.write_bytes(b"x" * 1_000_000)
    counts = Counts(lambda _: FileResponse(file))
    served = await serve([counts.at()])
    for _ in range(2):
        client = await served.get("/chat")
        assert client.body == file.read_bytes() and client.headers["content-length"] == "1000000"
    part = await served.get("/chat", {"range": "bytes=1-3"})
    assert (part.status, part.body) == (206, b"xxx") and counts.runs == 3
