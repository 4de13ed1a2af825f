"""Background jobs as their client sees them, and what a test does to the store they are kept in."""

import asyncio
import threading
from typing import Any

import orjson
import pytest

from sidecar.stores.jobs import JobStore, StoreError
from tests.faults.wire import (
    CHAT,
    GEMINI_ARRAY,
    GUARD,
    LAST,
    Answer,
    Client,
    Fields,
    Format,
    Upstream,
    chunk,
    head,
)

JOBS = "/_slipstream/jobs/"
STREAMS = "/_slipstream/streams/"
ASYNC = (b"Prefer", b"respond-async")
ONE = (b"Authorization", b"Bearer one")
ANOTHER = (b"Authorization", b"Bearer another")
TAKES_IDS = (b"Accept", b"text/event-stream")

PLAIN = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
ANSWER = (
    b'{"model":"m-1","choices":[{"message":{"content":"hello"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":7}}'
)
OVER = ("complete", "failed", "cancelled")


async def ask(
    client: Client, form: Format = CHAT, *fields: tuple[bytes, bytes], prefer: bytes = ASYNC[1]
) -> Answer:
    """Send a job, and read the answer's head."""
    return await client.ask(form.method, form.target, form.body, [(b"Prefer", prefer), *fields])


async def submitted(client: Client, form: Format = CHAT, *fields: tuple[bytes, bytes]) -> str:
    """Send a job; its id."""
    return name_of(await whole(await ask(client, form, *fields)))


async def whole(answer: Answer) -> Answer:
    await answer.rest()
    return answer


def name_of(answer: Answer) -> str:
    """The id out of a 202, which is checked."""
    assert (answer.status, answer.end) == (202, "whole"), (answer.status, bytes(answer.body))
    location = (answer.header("location") or b"").decode()
    assert location.startswith(JOBS)
    assert answer.header("preference-applied") == b"respond-async"
    name = location.removeprefix(JOBS)
    assert (answer.header("slipstream-stream-id") or b"").decode() == name
    document = orjson.loads(answer.body)
    assert (document["id"], document["status"] in ("queued", "running")) == (name, True)
    return name


async def status(client: Client, name: str, *fields: tuple[bytes, bytes]) -> dict[str, Any]:
    """Its status document."""
    answer = await client.whole("GET", JOBS + name, fields=fields)
    assert (answer.status, answer.header("content-type")) == (200, b"application/json"), bytes(answer.body)
    assert answer.header("cache-control") == b"no-store"
    document: dict[str, Any] = orjson.loads(answer.body)
    assert document["id"] == name
    return document


async def until(client: Client, name: str, *states: str, fields: Fields = ()) -> dict[str, Any]:
    """Ask again until it is in one of these states."""
    async with asyncio.timeout(GUARD):
        while (document := await status(client, name, *fields))["status"] not in states:
            assert document["status"] not in OVER, document
    return document


async def ended(client: Client, name: str, *fields: tuple[bytes, bytes]) -> dict[str, Any]:
    return await until(client, name, *OVER, fields=fields)


async def result(client: Client, name: str, *fields: tuple[bytes, bytes]) -> Answer:
    return await client.whole("GET", f"{JOBS}{name}/result", fields=fields)


async def cancel(client: Client, name: str, *fields: tuple[bytes, bytes]) -> dict[str, Any]:
    answer = await client.whole("DELETE", JOBS + name, fields=fields)
    assert answer.status == 200, bytes(answer.body)
    document: dict[str, Any] = orjson.loads(answer.body)
    return document


def pieces(form: Format) -> list[bytes]:
    """Its bytes, cut where a client that counts events may go on."""
    if form is not GEMINI_ARRAY:
        return [*form.events, b""]
    first, second, end = form.events
    return [first, second.removesuffix(b"\r\n"), b"\r\n" + end]


def numbered(number):
    """A chat whose prompt can be told from others'."""
    return CHAT._replace(body=b'{"model":"m","stream":true,"n":"planted-%d-prompt"}' % number)


async def one_at_a_time(rig, tmp_path, **keys):
    await rig.start(folder=tmp_path, jobs__concurrency=1, **keys)
    rig.script(CHAT.target)
    return await rig.connect()


async def stream(call: Upstream, form: Format = CHAT) -> None:
    """Answer a call with the whole stream."""
    await call.send(head(form.kind), chunk(form.whole), LAST)
    call.done()


def plain(body: bytes = ANSWER, *fields: bytes, status: bytes = b"200 OK") -> bytes:
    """An answer of a length."""
    return head(b"application/json", *fields, status=status, framing=b"Content-Length: %d" % len(body)) + body


def refused(answer: Answer, status: int, kind: str) -> str:
    """An error of the sidecar's own, of that kind, and whole; what it says."""
    found = (answer.status, answer.header("slipstream-error"), answer.end)
    assert found == (status, kind.encode(), "whole"), (found, bytes(answer.body))
    return answer.body.decode()


async def works(rig: Any) -> None:
    """A request that takes its whole way through the sidecar: what came before has been looked at."""
    client = await rig.connect()
    assert (await client.whole("GET", "/_slipstream/healthz")).status == 200


def job_lines(rig: Any) -> list[dict[str, Any]]:
    return [line for line in rig.sidecar.lines.all if line["event"] == "job"]


async def stop(sidecar: Any, grace: float = 0.0) -> None:
    """Stop it before the test is over."""
    await sidecar.service.stop(grace)

    async def stopped(grace: float) -> None:
        """It was; the fixture does it once more."""

    sidecar.service.stop = stopped


class Disk:
    """The job stores of this process, in the test's hands: what they do waits for the test, or fails."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self._gates: list[threading.Event] = []

    def fail(self, name: str, times: int = 1 << 30) -> None:
        """That method raises, as on a full disk, so many times."""
        real, left = getattr(JobStore, name), [times]

        def failing(*values: Any) -> Any:
            if left[0] > 0:
                left[0] -= 1
                raise StoreError("jobs.sqlite3: the disk is full (SQLITE_FULL)")
            return real(*values)

        self._patch.setattr(JobStore, name, failing)

    def hold(self, name: str) -> tuple[asyncio.Event, threading.Event]:
        """That method says that it was reached, and waits before it does anything."""
        real, loop = getattr(JobStore, name), asyncio.get_running_loop()
        reached, gate = asyncio.Event(), threading.Event()
        self._gates.append(gate)

        def held(*values: Any) -> Any:
            loop.call_soon_threadsafe(reached.set)
            assert gate.wait(GUARD)
            return real(*values)

        self._patch.setattr(JobStore, name, held)
        return reached, gate

    def release(self) -> None:
        """Nothing waits any more, and nothing fails."""
        self._patch.undo()
        for gate in self._gates:
            gate.set()
