"""What the formats' folds have in common: the events of a stored stream, and strict reading.

Strict means: a key, type or value that the code was not written for ends in an InexactError, never in a
guess. Other exceptions of surprising shapes (KeyError, TypeError, ...) mean the same to the caller.
"""

import re
from collections.abc import Collection, Iterable

import orjson

from sidecar.core.dialects.base import Json
from sidecar.core.sse import SSEFramer, data_of

# orjson turns integers that do not fit 64 bits into floats. All of those have 19 digits or more; a few
# numbers, and texts that look like such numbers, are refused without need.
_LONG_INTEGER = re.compile(rb"[:,\[]\s*+-?\d{19,}+(?![.eE])")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_FIELDS = frozenset({b"", b"data", b"event", b"id", b"retry"})
"""The fields the standard knows, comments (`""`) among them; ids and times are not part of an answer."""


class InexactError(ValueError):
    """The other form of this answer is not known exactly."""


def read(data: bytes) -> Json:
    """A JSON object whose values are as they were written. Raises InexactError, orjson.JSONDecodeError."""
    value = orjson.loads(data)
    if not isinstance(value, dict) or _LONG_INTEGER.search(data):
        raise InexactError
    return value


def write(value: object) -> bytes:
    return orjson.dumps(value)


def events(body: bytes) -> list[tuple[bytes, bytes]]:
    """(name, data) of every event that an SSE client would see.

    Raises InexactError when the body ends inside an event.
    """
    framer = SSEFramer(limit=len(body))
    frames = framer.feed(body)
    if b"\r\n" not in body:  # else a CR at the very end is half of a CRLF that was cut
        frames += framer.close()
    if not framer.at_boundary:
        raise InexactError
    found = []
    for frame in frames:
        block = frame.block or b""
        lines = _LINE_END.split(block) if b"\r" in block else block.split(b"\n")
        fields = [line.partition(b":") for line in lines]
        if not _FIELDS.issuperset(field for field, _, _ in fields):
            raise InexactError
        data = data_of(block)
        if data is not None:
            names = [value.removeprefix(b" ") for field, _, value in fields if field == b"event"]
            found.append((names[-1] if names else b"", data))
    return found


def typed(found: list[tuple[bytes, bytes]]) -> list[Json]:
    """Events of a format that names each after its `type`. SDKs read one or the other: both must agree."""
    values = [read(data) for _, data in found]
    if any(text(value["type"]).encode() != name for value, (name, _) in zip(values, found, strict=True)):
        raise InexactError
    return values


def sse(value: Json | bytes, *, named: bool = False) -> bytes:
    """One event; `named` after its type."""
    data = value if isinstance(value, bytes) else write(value)
    head = b"event: %b\n" % value["type"].encode() if named and isinstance(value, dict) else b""
    return b"%bdata: %b\n\n" % (head, data)


def only(value: Json, known: Collection[str]) -> None:
    """Raises InexactError when the object has another key."""
    if not value.keys() <= frozenset(known):
        raise InexactError


def require(condition: object) -> None:
    """Raises InexactError unless the condition holds."""
    if not condition:
        raise InexactError


def text(value: object) -> str:
    """A string as it is; raises InexactError for anything else."""
    if not isinstance(value, str):
        raise InexactError
    return value


def joined(pieces: Iterable[Json], name: str) -> str | None:
    """The strings that a field had, one after the other; None when it never had one."""
    parts = [text(piece[name]) for piece in pieces if piece.get(name) is not None]
    return "".join(parts) if parts else None


def several(value: object) -> list[Json]:
    """A list that is not empty; raises InexactError for anything else."""
    if not isinstance(value, list) or not value:
        raise InexactError
    return value
