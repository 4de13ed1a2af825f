"""The scripted provider does what a script says, byte for byte. What the others test with it rests on that."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import struct
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sidecar.scripted import Connection, Received, Script, ScriptedProvider

CHAT = "/v1/chat/completions"
HANG = 30


@pytest.fixture
async def provider() -> AsyncIterator[ScriptedProvider]:
    async with asyncio.timeout(HANG), ScriptedProvider(script=Script(tokens=3)) as running:
        yield running


class Client:
    """A socket, and as much HTTP as the tests need."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, provider: ScriptedProvider) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", provider.port))

    def ask(
        self, path: str, body: Any = None, *, method: str = "POST", version: str = "1.1", **script: Any
    ) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        head = f"{method} {path} HTTP/{version}\r\nHost: x\r\nX-Scripted: {json.dumps(script)}\r\n"
        self.writer.write(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        return int(lines[0].split()[1]), {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)
        }

    async def chunks(self) -> list[bytes]:
        found = []
        while size := int(await self.reader.readline(), 16):
            found.append((await self.reader.readexactly(size + 2))[:-2])
        await self.reader.readline()
        return found

    async def body(self) -> tuple[int, dict[str, str], bytes]:
        status, headers = await self.head()
        if headers.get("transfer-encoding") == "chunked":
            return status, headers, b"".join(await self.chunks())
        if "content-length" in headers:
            return status, headers, await self.reader.readexactly(int(headers["content-length"]))
        return status, headers, await self.reader.read()

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass  # it was reset, as the test wanted


@pytest.fixture
async def client(provider: ScriptedProvider) -> AsyncIterator[Client]:
    opened = await Client.connect(provider)
    yield opened
    await opened.close()


STREAM = {"stream": True}


async def test_one_chunk_per_event_and_the_connection_lives(
    client: Client, provider: ScriptedProvider
) -> None:
    for _ in range(2):
        client.ask(CHAT, {"stream": True, "stream_options": {"include_usage": True}}, reasoning=1)
        status, _ = await client.head()
        chunks = await client.chunks()
        assert status == 200
        assert len(chunks) == 8  # role, thought, three words, finish, usage, [DONE]
        assert chunks[-1] == b"data: [DONE]\n\n"
        assert json.loads(chunks[-2][6:])["usage"]["completion_tokens"] == 4
    first, second = provider.requests
    assert first.connection == second.connection
    assert first.finished.is_set()
    assert not first.closed.is_set()
    assert provider.active == 0
    assert provider.peak_active == 1


async def test_requests_are_recorded_raw(client: Client, provider: ScriptedProvider) -> None:
    client.writer.write(
        b"POST /status/201?a=%20&b HTTP/1.1\r\nhOsT: x\r\nX-A: 1\r\nx-a:  2\r\nContent-Length: 4\r\n\r\nbo"
    )
    await provider.wait_for(1)
    received = provider.requests[0]
    assert not received.complete
    client.writer.write(b"dy")
    assert (await client.body())[0] == 201
    assert received.target == "/status/201?a=%20&b"
    assert received.headers[:3] == [(b"hOsT", b"x"), (b"X-A", b"1"), (b"x-a", b"2")]
    assert (received.complete, received.body) == (True, b"body")


async def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    paths = ["/status/201", CHAT, "/echo", "/status/202", "/upload", "/early", "/status/203"]
    for path in paths:
        client.ask(path, {"stream": True}, interval=0.001)
    answers = [await client.body() for _ in paths]
    assert [status for status, _, _ in answers] == [201, 200, 200, 202, 200, 200, 203]
    assert answers[1][2].endswith(b"[DONE]\n\n")
    assert answers[2][2] == b'{"stream": true}'
    assert json.loads(answers[4][2])["bytes"] == 16


@pytest.mark.parametrize(
    ("fault", "stream", "lost"),
    [
        ("reset", True, ConnectionResetError),
        ("fin", True, asyncio.IncompleteReadError),
        ("reset", False, ConnectionResetError),
        ("fin", False, asyncio.IncompleteReadError),
    ],
)
async def test_a_torn_answer(
    client: Client, provider: ScriptedProvider, fault: str, stream: bool, lost: type[Exception]
) -> None:
    client.ask(CHAT, {"stream": stream}, fault=fault, at=2)
    await client.head()
    with pytest.raises(lost):
        await (client.chunks() if stream else client.reader.readexactly(10_000))
    await provider.wait_until(lambda: provider.connections == 0)
    received = provider.requests[0]
    assert not received.finished.is_set()
    assert not received.closed.is_set()  # it was not the client who left


async def test_a_torn_event_has_half_of_its_bytes(provider: ScriptedProvider) -> None:
    async def raw(**script: Any) -> bytes:
        client = await Client.connect(provider)
        client.ask(CHAT, STREAM, framing="close", **script)
        await client.head()
        body = await client.reader.read()
        await client.close()
        return body

    whole = await raw()
    events = [event + b"\n\n" for event in whole.split(b"\n\n")[:-1]]
    torn = await raw(fault="fin", at=2)
    assert torn == b"".join(events[:2]) + events[2][: len(events[2]) // 2]
    assert await raw(fault="eof", at=0.5) == b"".join(events[: len(events) // 2 + 1])
    assert (await raw(fault="error", at=0)).startswith(events[0] + b'data: {"error":')


@pytest.mark.parametrize("fault", ["silence", "no_head", "bad_chunk"])
async def test_silence_lasts_until_the_peer_leaves(
    client: Client, provider: ScriptedProvider, fault: str
) -> None:
    client.ask(CHAT, STREAM, fault=fault, at=1)
    await provider.wait_until(lambda: provider.active == 1)
    if fault != "no_head":
        await client.head()
        for _ in range(2):
            await client.reader.readexactly(int(await client.reader.readline(), 16) + 2)
    if fault == "bad_chunk":
        assert await client.reader.readline() == b"zz\r\n"
    client.writer.close()
    await provider.requests[0].closed.wait()
    assert not provider.requests[0].finished.is_set()
    await provider.wait_until(lambda: provider.active == 0)


async def test_a_peer_that_leaves_in_mid_stream_is_noticed(
    client: Client, provider: ScriptedProvider
) -> None:
    client.ask(CHAT, STREAM, interval=0.001, tokens=100_000)
    await client.head()
    assert provider.active == 1
    client.writer.close()
    await provider.requests[0].closed.wait()


async def test_gzip_is_flushed_per_event(client: Client) -> None:
    client.ask(CHAT, STREAM, encoding="gzip")
    _, headers = await client.head()
    chunks = await client.chunks()
    assert headers["content-encoding"] == "gzip"
    assert len(chunks) == 6
    assert gzip.decompress(b"".join(chunks)).endswith(b"data: [DONE]\n\n")


async def test_split_writes_pieces(client: Client) -> None:
    client.ask(CHAT, STREAM, split=1, newline="\r\n")
    await client.head()
    chunks = await client.chunks()
    assert {len(chunk) for chunk in chunks} == {1}
    assert b"".join(chunks).endswith(b"data: [DONE]\r\n\r\n")


async def test_framing(provider: ScriptedProvider) -> None:
    for version, framing, shown in (
        ("1.1", "length", "content-length"),
        ("1.1", "close", "connection"),
        ("1.0", "chunked", "connection"),
    ):
        client = await Client.connect(provider)
        client.ask(CHAT, STREAM, version=version, framing=framing)
        _, headers, body = await client.body()
        assert shown in headers
        assert body.endswith(b"[DONE]\n\n")
        await client.close()


@pytest.mark.parametrize("patch", [{"tokns": 3}, {"tokens": "three"}, {"fault": "flood"}])
async def test_a_bad_script_is_refused_by_name(client: Client, patch: dict[str, Any]) -> None:
    client.ask("/v1/messages", {}, **patch)
    status, _, body = await client.body()
    assert status == 400
    assert next(iter(patch)) in json.loads(body)["error"]["message"]


@pytest.mark.parametrize("status", [429, 529])
@pytest.mark.parametrize(
    "path",
    [CHAT, "/v1/responses", "/v1/messages", "/api/chat", "/v1beta/models/m:generateContent", "/events"],
)
async def test_error_answers_say_when_to_retry(client: Client, path: str, status: int) -> None:
    client.ask(path, {"model": "m"}, status=status)
    found, headers, _ = await client.body()
    assert (found, headers["retry-after"]) == (status, "1")


async def test_gemini_array(client: Client) -> None:
    client.ask("/v1beta/models/m:streamGenerateContent", {})
    _, headers = await client.head()
    chunks = await client.chunks()
    assert headers["content-type"] == "application/json; charset=UTF-8"
    assert [chunk[:3] for chunk in chunks] == [b"[{\n", b",\r\n", b",\r\n", b"]"]
    totals = [chunk["usageMetadata"]["totalTokenCount"] for chunk in json.loads(b"".join(chunks))]
    assert totals == [10, 11, 12]


async def test_embeddings_agree_in_both_encodings(client: Client) -> None:
    found = []
    for encoding in ("float", "base64"):
        client.ask("/v1/embeddings", {"input": ["a", "b"], "dimensions": 5, "encoding_format": encoding})
        found.append([item["embedding"] for item in json.loads((await client.body())[2])["data"]])
    floats, packed = found
    assert [list(struct.unpack("<5f", base64.b64decode(item))) for item in packed] == floats


async def test_bodies_stream_through_echo(client: Client, provider: ScriptedProvider) -> None:
    client.writer.write(
        b"POST /echo HTTP/1.1\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
    )
    _, headers = await client.head()
    assert headers["content-type"] == "a/b"
    assert await client.reader.readexactly(6) == b"1\r\nx\r\n"  # before the request is whole
    assert not provider.requests[0].complete
    client.writer.write(b"0\r\n\r\n")
    assert await client.chunks() == []


async def test_upload_counts_and_keeps_little(client: Client, provider: ScriptedProvider) -> None:
    body = bytes(range(256)) * 4096
    client.ask("/upload", body)
    _, _, counted = await client.body()
    assert json.loads(counted) == {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    assert len(provider.requests[0].body) == 65536


async def test_download_waits_for_its_reader(client: Client, provider: ScriptedProvider) -> None:
    client.ask("/bytes/5000000?chunked=1", method="GET")
    client.ask("/bytes/70000", method="GET")
    _, headers, body = await client.body()
    assert (headers["transfer-encoding"], len(body)) == ("chunked", 5_000_000)
    assert len((await client.body())[2]) == 70_000


async def test_early_answers_before_the_body(client: Client, provider: ScriptedProvider) -> None:
    client.writer.write(b"POST /early HTTP/1.1\r\nContent-Length: 5\r\n\r\nab")
    assert json.loads((await client.body())[2]) == {"early": True}
    assert not provider.requests[0].complete
    client.writer.write(b"cde")
    client.ask("/status/200")
    assert (await client.body())[0] == 200


async def test_continue(client: Client) -> None:
    client.writer.write(b"POST /upload HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.writer.write(b"ok")
    assert json.loads((await client.body())[2])["bytes"] == 2


@pytest.mark.parametrize(
    ("method", "path"), [("HEAD", "/headers"), ("GET", "/status/204"), ("GET", "/status/304")]
)
async def test_answers_without_body(client: Client, method: str, path: str) -> None:
    client.ask(path, method=method)
    await client.head()
    client.ask("/status/200")
    assert (await client.body())[0] == 200


async def test_handlers_have_the_wire_in_hand(provider: ScriptedProvider) -> None:
    left = asyncio.Event()

    async def handler(connection: Connection, received: Received) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n" + received.body)
        await connection.wait_closed()
        left.set()

    async def rude(connection: Connection, received: Received) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\n")
        connection.reset()

    provider.on("/raw", handler)
    provider.on("/rude", rude, early=True)
    client = await Client.connect(provider)
    client.ask("/raw?x", b"abc")
    await client.head()
    assert await client.reader.readexactly(3) == b"abc"
    await client.close()
    await left.wait()
    assert provider.requests[0].closed.is_set()
    client = await Client.connect(provider)
    client.writer.write(b"POST /rude HTTP/1.1\r\nContent-Length: 9\r\n\r\n")
    assert await client.reader.readline() == b"HTTP/1.1 200 OK\r\n"
    with pytest.raises(ConnectionResetError):
        await client.reader.read()
    await client.close()


async def test_a_handler_that_fails_is_not_silent() -> None:
    async def handler(connection: Connection, received: Received) -> None:
        raise LookupError("oops")

    provider = ScriptedProvider()
    await provider.start()
    provider.on("/", handler)
    client = await Client.connect(provider)
    client.ask("/")
    with pytest.raises(ConnectionResetError):
        await client.reader.read()
    await client.close()
    with pytest.raises(LookupError, match="oops"):
        await provider.stop()


async def test_the_command_serves_and_ends_cleanly() -> None:
    async with asyncio.timeout(HANG):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "sidecar.scripted",
            "--script",
            '{"tokens": 1}',
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        url = (await process.stdout.readline()).decode().strip()
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"GET /events HTTP/1.0\r\n\r\n")
        assert b"event: end\n" in await reader.read()
        writer.close()
        await writer.wait_closed()
        process.terminate()
        assert await process.wait() == 0
