"""FAULTS 49 in one piece: a planted key, prompt and answer go every way there is through a real process, and are found
in nothing that it writes or tells beside the answers themselves."""

import asyncio
import contextlib
import sys
from pathlib import Path

import pytest

from tests.faults.test_process import Process, serving
from tests.faults.wire import CHAT, GUARD, LAST, Client, chunk, head, request

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="keeping answers needs a POSIX system")

KEY, PROMPT, ANSWER = b"sk-planted-4f1d9c", b"planted prompt 77b2", b"planted answer e05a"
QUERY, COOKIE, IDEMPOTENCY = b"planted-query-91", b"planted-cookie-c3", b"planted-idempotency-12"
ASKED = [KEY, PROMPT, QUERY, COOKIE, IDEMPOTENCY]
FIELDS = [
    (b"Authorization", b"Bearer " + KEY),
    (b"x-api-key", KEY),
    (b"Cookie", b"session=" + COOKIE),
]
SAID = f"?key={QUERY.decode()}"
TARGET = CHAT.target + SAID
IDS, JOB = (b"Accept", b"text/event-stream"), (b"Prefer", b"respond-async")
NO_STORE = (b"Cache-Control", b"no-store")
EVENTS = [
    b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % ANSWER,
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
    b"data: [DONE]\n\n",
]
WHOLE = b'{"choices":[{"index":0,"finish_reason":"stop","message":{"content":"%b"}}]}' % ANSWER
ADMIN = ["/metrics", "/stats", "/requests", "/cache", "/readyz", "/healthz", "/"]


def body(number: int, *, stream: bool) -> bytes:
    said = b'{"model":"m","stream":%b,"messages":[{"role":"user","content":"%b, number %d"}]}'
    return said % (b"true" if stream else b"false", PROMPT, number)


async def answer(connection, received):
    """Streams, whole answers, errors that quote what was asked, answers that break off, and one that never comes."""
    stream = b'"stream":true' in received.body
    if b"number 5" in received.body:
        said = b'{"error":{"message":"bad key %b for %b"}}' % (KEY, PROMPT)
        framing = b"Content-Length: %d" % len(said)
        await connection.send(head(b"application/json", status=b"401 Unauthorized", framing=framing) + said)
    elif b"number 6" in received.body:
        await connection.send(head() + chunk(EVENTS[0]))
        connection.reset()
    elif b"number 7" in received.body:
        await connection.send(head() + chunk(EVENTS[0]))
        await received.closed.wait()
    elif stream:
        await connection.send(head() + b"".join(map(chunk, EVENTS)) + LAST)
    else:
        await connection.send(head(b"application/json", framing=b"Content-Length: %d" % len(WHOLE)) + WHOLE)


async def every_way(process: Process, admin: int, *more: tuple[bytes, bytes]) -> bytes:
    """Returns what the admin port told meanwhile."""
    feed = await Client.open(admin)
    await feed.send(request("GET", "/events", host=b"127.0.0.1"))
    listening = asyncio.ensure_future(feed.reader.read(-1))
    client = await Client.open(process.port)
    fields = [*FIELDS, *more]

    async def ask(number: int, *extra: tuple[bytes, bytes], stream: bool = True, way: str = TARGET) -> bytes:
        found = await client.whole("POST", way, body(number, stream=stream), [*fields, *extra])
        return bytes(found.body)

    try:
        for _ in range(3):  # a miss and hits, where there are any
            assert ANSWER in await ask(1)
            assert ANSWER in await ask(2, stream=False)
        streamed = await client.whole("POST", TARGET, body(3, stream=True), [*fields, IDS])
        name = streamed.header("slipstream-stream-id").decode()
        again = await client.whole("GET", f"/_slipstream/streams/{name}{SAID}", None, [*fields, IDS])
        assert ANSWER in bytes(again.body)
        await client.whole("GET", f"/_slipstream/streams/{name[:-1]}A{SAID}", None, fields)
        await client.whole("DELETE", f"/_slipstream/streams/{name}{SAID}", None, fields)
        job = await client.whole("POST", TARGET, body(4, stream=False), [*fields, JOB])
        place = job.header("location").decode()
        await process.event("job")
        assert ANSWER in bytes((await client.whole("GET", f"{place}/result{SAID}", None, fields)).body)
        await ask(5, (b"Idempotency-Key", IDEMPOTENCY))
        await ask(8, way=f"/v1/unknown/{SAID}")
        broken, leaving = await Client.open(process.port), await Client.open(process.port)
        await broken.send(request("POST", TARGET, body(6, stream=True), fields))
        await (await broken.answer()).rest()
        await leaving.send(request("POST", TARGET, body(7, stream=True), fields))
        await (await leaving.answer()).until(10)
        leaving.reset()
        malformed = await Client.open(process.port)
        await malformed.send(b"POST /%b HTTP/1.1\r\nX: %b\r\nX\r\n\r\n%b" % (QUERY, KEY, PROMPT))
        await malformed.closed()
        for one in (broken, malformed):
            one.close()
        await process.event("request", 16)
        told = b""
        for path in ADMIN:
            looking = await Client.open(admin)
            await looking.send(request("GET", path, host=b"127.0.0.1"))
            found = await looking.answer()
            told += found.raw + await found.rest()
            looking.close()
        return told
    finally:
        client.close()
        feed.close()
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            async with asyncio.timeout(GUARD):
                await listening


def on_disk(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kept", ["stored", "off", "no-store"])
async def test_a_planted_key_and_prompt_are_found_nowhere(rig, tmp_path, kept):
    """49: after a miss, hits, a return, a job, an error that quotes them, a broken answer, a client that leaves, refusals,
    and a look at everything the admin port shows -> not in a line, a figure, or a file; and where nothing may be stored,
    the answer is in no file either, but for that of the job, which somebody may still fetch."""
    rig.provider.on(CHAT.target, answer)
    rig.provider.on("/v1/unknown/", answer)
    flags = ["--admin-port", "0", *(["--cache", "off"] if kept == "off" else [])]
    more = [NO_STORE] if kept == "no-store" else []
    async with serving(tmp_path, rig.provider.url, *flags) as process:
        admin = int((await process.event("serving"))["admin"].rpartition(":")[2])
        told = await every_way(process, admin, *more)
        process.signal()
        assert await process.exited() == 0
    for secret in (*ASKED, ANSWER):
        assert secret not in process.raw, secret
        assert secret not in told, secret
    found = on_disk(tmp_path)
    assert any(name.startswith("jobs") for name in found)
    for name, content in found.items():
        for secret in ASKED:
            assert secret not in content, (name, secret)
        if kept != "stored" and not name.startswith("jobs"):
            assert ANSWER not in content, name
    if kept == "stored":
        assert any(ANSWER in content for name, content in found.items() if name.startswith("answers"))
