"""From an answer and a script to the bytes of an HTTP/1.1 message, ready to be written one after the other.

Owns HTTP framing, content coding and faults. Pure, and cached: a stream asked for again costs nothing.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from http import HTTPStatus
from typing import Literal, NamedTuple, TypeAlias

from sidecar.scripted.answers import Route
from sidecar.scripted.answers.base import Answer, Ask
from sidecar.scripted.script import Script

Ending: TypeAlias = Literal["keep", "close", "reset", "fin", "hang"]
LAST_CHUNK = b"0\r\n\r\n"
REASONS = {status.value: status.phrase for status in HTTPStatus} | {529: "Overloaded"}


class Shape(NamedTuple):
    """What the request demands of the message that answers it."""

    close: bool = False
    old: bool = False
    """HTTP/1.0: no chunks."""
    head_only: bool = False


class Rendered(NamedTuple):
    """`frames`: per event the pieces to write. `ending`: what becomes of the connection after the last."""

    head: bytes
    frames: tuple[tuple[bytes, ...], ...]
    ending: Ending


@lru_cache(maxsize=512)
def rendered(route: Route, ask: Ask, script: Script, shape: Shape) -> Rendered:
    """The answer of `route` under `script`, as bytes."""
    if script.status >= 400:
        answer = route.refuse(script.status, f"scripted error {script.status}", ask)
    else:
        answer = route.build(ask, script)
        if script.fault == "error" and not answer.stream:
            answer = route.refuse(500, "an error inside a success", ask)._replace(status=200)
    return render(answer, script, shape)


def render(answer: Answer, script: Script, shape: Shape) -> Rendered:
    if script.fault == "no_head":
        return Rendered(b"", (), "hang")
    whole = _encode(answer.events, script)
    events, torn = _cut(whole, answer, script)
    framing = script.framing or ("chunked" if answer.stream else "length")
    if script.fault == "bad_chunk":
        framing = "chunked"
    if shape.old and framing == "chunked":
        framing = "close"
    bodyless = shape.head_only or answer.status in (204, 304)
    close = shape.close or shape.old or framing == "close"

    lines = [
        b"HTTP/1.1 %d %b" % (answer.status, REASONS.get(answer.status, "Scripted").encode()),
        b"Server: scripted",
    ]
    lines += [f"{name}: {value}".encode() for name, value in answer.headers]
    if script.encoding:
        lines.append(b"Content-Encoding: gzip")
    if framing == "chunked":
        lines.append(b"Transfer-Encoding: chunked")
    elif framing == "length" and answer.status not in (204, 304):
        promised = events if script.fault in ("eof", "error") else whole
        lines.append(b"Content-Length: %d" % sum(map(len, promised)))
    if close:
        lines.append(b"Connection: close")
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    if bodyless:
        return Rendered(head, (), "close" if close else "keep")

    ending: Ending = "close" if close else "keep"
    frames = _frame(events, script.split, chunked=framing == "chunked")
    match script.fault:
        case "reset" | "fin" as ending:
            if torn and frames:
                frames[-1] = _half(frames[-1])
        case "silence":
            ending = "hang"
        case "bad_chunk":
            frames.append((b"zz\r\nno chunk\r\n",))
            ending = "hang"
        case _ if framing == "chunked":
            frames[-1:] = [(*frames[-1][:-1], frames[-1][-1] + LAST_CHUNK)] if frames else [(LAST_CHUNK,)]
    if not answer.stream and not script.split and not script.first and len(frames) == 1:
        return Rendered(b"", ((head + frames[0][0],),), ending)
    return Rendered(head, tuple(frames), ending)


def _cut(events: tuple[bytes, ...], answer: Answer, script: Script) -> tuple[tuple[bytes, ...], bool]:
    """The events that are written under the script's fault, and whether the last of them is to be torn."""
    if script.fault is None or not events:
        return events, False
    if not answer.stream:
        if script.fault == "error":
            return events, False
        body = b"".join(events)
        return (body[: len(body) // 2],), False
    at = script.at if isinstance(script.at, int) else int(script.at * len(events))
    kept = events[: at + 1]
    if script.fault == "error":
        return (*kept, answer.error), False
    return kept, at < len(events)


def _encode(events: tuple[bytes, ...], script: Script) -> tuple[bytes, ...]:
    if script.encoding is None or not events:
        return events
    coder = zlib.compressobj(wbits=31)
    coded = [coder.compress(event) + coder.flush(zlib.Z_SYNC_FLUSH) for event in events]
    coded[-1] += coder.flush()
    return tuple(coded)


def _frame(events: tuple[bytes, ...], split: int, *, chunked: bool) -> list[tuple[bytes, ...]]:
    made: dict[int, tuple[bytes, ...]] = {}  # by identity: a download repeats one block many times
    frames = []
    for event in events:
        if (frame := made.get(id(event))) is None:
            size = split or len(event)
            pieces = [event[i : i + size] for i in range(0, len(event), size)] or [b""]
            if chunked:
                pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece]
            frame = made[id(event)] = tuple(pieces)
        frames.append(frame)
    return [frame for frame in frames if frame]


def _half(pieces: tuple[bytes, ...]) -> tuple[bytes, ...]:
    if len(pieces) > 1:
        return pieces[: len(pieces) // 2]
    return (pieces[0][: len(pieces[0]) // 2],)
