"""What the dialects' answers have in common: the request as read, the answer as written, events.

Owns `Ask` and `Answer`. An answer is whole and pure: pace, faults and HTTP framing come to it elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeAlias

import orjson

from sidecar.scripted.script import Script

Json: TypeAlias = "Mapping[str, object]"
Headers: TypeAlias = tuple[tuple[str, str], ...]


class Ask(NamedTuple):
    """What of a request its answer depends on. Hashable, so that answers are made once."""

    model: str = "scripted"
    stream: bool = False
    sse: bool = True
    usage: bool = False
    obfuscation: bool = True
    tool: str = "get_weather"
    inputs: tuple[str, ...] = ()
    dims: int = 0
    base64: bool = False


class Answer(NamedTuple):
    """`events` are written one by one; an answer that is not a stream has one."""

    events: tuple[bytes, ...]
    headers: Headers
    status: int = 200
    stream: bool = False
    error: bytes = b""
    """The error event, for a fault in mid-stream."""


Build: TypeAlias = Callable[[Ask, Script], Answer]
Refuse: TypeAlias = Callable[[int, str, Ask], Answer]

JSON: Headers = (("Content-Type", "application/json"),)
EVENT_STREAM: Headers = (("Content-Type", "text/event-stream; charset=utf-8"), ("Cache-Control", "no-cache"))


def dumps(value: object) -> bytes:
    return orjson.dumps(value)


def answer(value: object, status: int = 200, headers: Headers = JSON) -> Answer:
    return Answer((dumps(value),), headers, status)


def sse(data: bytes | str, event: str | None = None) -> bytes:
    """One server-sent event, with LF line ends."""
    text = data if isinstance(data, bytes) else data.encode()
    head = b"" if event is None else b"event: %b\n" % event.encode()
    return b"%bdata: %b\n\n" % (head, text)


def named(events: Iterable[Json]) -> list[bytes]:
    """Events whose name is also their `type`, as Anthropic and OpenAI Responses have them."""
    return [sse(dumps(event), str(event["type"])) for event in events]


def event_stream(
    events: Iterable[bytes], script: Script, *, headers: Headers, error: bytes = b"", newline: str = "\n"
) -> Answer:
    """Events as `sse` makes them, in the line ends and with the ids that the script asks for."""
    end = (script.newline or newline).encode()
    made = [event.replace(b"\n", end) for event in events]
    if script.ids:
        made = [b"id: %d%b%b" % (i, end, event) for i, event in enumerate(made)]
    return Answer(tuple(made), headers, stream=True, error=error.replace(b"\n", end))


def listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def mapped(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def first_tool(body: Mapping[str, object]) -> str:
    """The name of the first tool offered, wherever the dialect puts it."""
    for tool in listed(body.get("tools")):
        entry = mapped(tool)
        declared = listed(entry.get("functionDeclarations")) or listed(entry.get("function_declarations"))
        for place in (entry, mapped(entry.get("function")), mapped(declared[0] if declared else None)):
            name = place.get("name")
            if isinstance(name, str):
                return name
    return "get_weather"


def plain(body: Mapping[str, object], _path: str, _query: str) -> Ask:
    """The request as most dialects have it."""
    return Ask(
        model=str(body.get("model", "scripted")),
        stream=body.get("stream") is True,
        tool=first_tool(body),
    )
