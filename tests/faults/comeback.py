"""Clients that take event ids and come back: what they send, and what they make of what they get."""

import re
from typing import Any, NamedTuple

from tests.core.oracle import events
from tests.faults.conftest import eventually
from tests.faults.wire import (
    ANTHROPIC,
    ASK,
    CHAT,
    COMPLETIONS,
    GEMINI,
    GEMINI_ARRAY,
    LAST,
    OLLAMA,
    OTHER,
    RESPONSES,
    Answer,
    Client,
    Format,
    Upstream,
    chunk,
    head,
    request,
)

STREAMS = "/_slipstream/streams/"
IDS = (b"Accept", b"text/event-stream")
SOURCE = [IDS, (b"Cache-Control", b"no-cache")]
"""What an EventSource says of itself."""
PATIENT = (b"Slipstream-Disconnect", b"finish")
KEY = (b"Authorization", b"Bearer sk-planted-credential")
OURS = re.compile(rb"id: (s[A-Za-z0-9_-]{32}):(\d+)(?:\r\n|\r|\n)")
_END = re.compile(rb"(.*[^\r\n])(\r\n|\r|\n)(\r\n|\r|\n)", re.DOTALL)
LINE_ENDS = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}

AGENT = OTHER._replace(name="other-post", method="POST", target="/agent", body=ASK)
WITH_IDS = [CHAT, COMPLETIONS, RESPONSES, ANTHROPIC, OTHER, AGENT]
WITHOUT_IDS = [GEMINI, GEMINI_ARRAY, OLLAMA]
WAYS = ["stream", "again"]
"""Back at the stream's own address, or with the same request again."""


class Stream(NamedTuple):
    """A stream in a test's hands: the client's end, the upstream's end, and what the client got."""

    client: Client
    call: Upstream
    answer: Answer

    @property
    def name(self) -> str:
        found = self.answer.header("slipstream-stream-id")
        assert found is not None
        return found.decode()


async def begin(rig: Any, form: Format, *fields: tuple[bytes, bytes], upstream: Any = None) -> Stream:
    """Ask for a stream whose head has come. `upstream`: the head, where it is another one."""
    rig.script(form.target)
    client = await rig.connect()
    await client.send(request(form.method, form.target, form.body, fields))
    call = await rig.call()
    await call.send(head(form.kind) if upstream is None else upstream)
    return Stream(client, call, await client.answer())


async def passed(stream: Stream, *parts: bytes) -> None:
    """Let the upstream send, and the client have all of it."""
    data = b"".join(parts)
    if not data:
        return
    size = len(bare(stream.answer.body)) + len(data)
    await stream.call.send(chunk(data))
    await holds(stream.answer, size)


async def holds(answer: Answer, size: int) -> None:
    """Until the client has so many of the upstream's bytes, and the ids that came with them."""
    while len(bare(answer.body)) < size or answer._left:
        assert await answer.more(), (answer.end, bytes(answer.body))


async def ended(call: Upstream, *parts: bytes) -> None:
    """The upstream sends what is left, and a clean end."""
    await call.send(*([chunk(b"".join(parts))] if parts else []), LAST)
    call.done()


async def left(rig: Any, stream: Stream | Client, how: str = "rst") -> None:
    """The client leaves, and the sidecar has noticed."""
    before = rig.sidecar.service.assembly.front.active
    (stream.client if isinstance(stream, Stream) else stream).leave(how)
    front = rig.sidecar.service.assembly.front
    await eventually(lambda: front.active < before, lambda: "a request whose client has left")


def returning(form: Format, way: str, name: str, number: int, *fields: tuple[bytes, bytes]) -> bytes:
    """The request of a client that has the events up to `number`; -1: none, and it knows only the name."""
    if number >= 0:
        fields = ((b"Last-Event-ID", b"%b:%d" % (name.encode(), number)), *fields)
    if way == "stream":
        return request("GET", STREAMS + name, None, fields)
    return request(form.method, form.target, form.body, fields)


async def back(
    rig: Any, form: Format, way: str, name: str, number: int, *fields: tuple[bytes, bytes]
) -> tuple[Client, Answer]:
    """Come back; the head of the answer is here."""
    client = await rig.connect()
    await client.send(returning(form, way, name, number, *fields))
    return client, await client.answer("GET" if way == "stream" else form.method)


async def again(
    rig: Any, method: str, target: str, *fields: tuple[bytes, bytes], body: bytes | None = None
) -> Answer:
    """One request on a connection of its own, read to its end."""
    client = await rig.connect()
    answer = await client.whole(method, target, body, fields)
    client.close()
    return answer


def look(answer: Answer) -> tuple[Any, ...]:
    """All that an answer shows."""
    return answer.status, answer.version, answer.reason, tuple(answer.headers), bytes(answer.body), answer.end


def bare(body: bytes | bytearray) -> bytes:
    """Without the sidecar's ids: what the upstream sent."""
    return OURS.sub(b"", body)


def numbers(body: bytes | bytearray) -> list[int]:
    """The numbers in the sidecar's ids."""
    return [int(found[2]) for found in OURS.finditer(body)]


def stamped(parts: list[bytes], name: str, first: int = 0) -> bytes:
    """Those events with an id as the last field of each, in a line that ends as the one before it does."""
    made = []
    for number, event in enumerate(parts, first):
        fields, end, blank = _END.fullmatch(event).groups()
        made.append(b"%b%bid: %b:%d%b%b" % (fields, end, name.encode(), number, end, blank))
    return b"".join(made)


def with_line_ends(name: str) -> bytes:
    """The chat answer in those line ends; `mixed` has every one of them, also within one event."""
    if name != "mixed":
        return CHAT.whole.replace(b"\n", LINE_ENDS[name])
    ends = [b"\n\r\n", b"\r\n\n", b"\r\r\n", b"\r\n\r"]
    return b"".join(event[:-2] + end for event, end in zip(CHAT.events, ends, strict=True))


def seen(body: bytes | bytearray) -> list[tuple[str, str]]:
    """(type, data) of the events that a client is given."""
    return [event[:2] for event in events(bytes(body))]


def last_id(body: bytes | bytearray) -> str | None:
    """The id of the latest event that a client was given."""
    found = events(bytes(body))
    return found[-1][2] if found else None


async def gone(rig: Any, name: str, *fields: tuple[bytes, bytes]) -> None:
    """It can neither be had nor be stopped any more."""
    for method in ("GET", "DELETE"):
        answer = await again(rig, method, STREAMS + name, *fields)
        assert (answer.status, answer.header("slipstream-error"), answer.end) == (410, b"gone", "whole")
