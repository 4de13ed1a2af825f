"""What is asked and answered in a soak: both ends compute the same bytes, so that every answer can be
checked to the last one."""

import re
from typing import Literal

import msgspec
import orjson

PATH = "/v1/chat/completions"
KEEPALIVE = b": keepalive\n"
IDS = re.compile(rb"id: s[A-Za-z0-9_-]{32}:\d+\n")
End = Literal["done", "cut", "held", "refused"]


class Spec(msgspec.Struct, frozen=True):
    """An answer; it travels in the request that asks for it."""

    name: str
    events: int = 10
    gap: float = 0.0
    """Seconds between two events."""
    pad: int = 0
    """Further bytes of each event."""
    end: End = "done"
    stream: bool = True


def ask(spec: Spec) -> bytes:
    """The body of a request."""
    said = {"role": "user", "content": spec.name}
    wanted: dict[str, object] = {
        "model": "soak",
        "stream": spec.stream,
        "messages": [said],
        "metadata": msgspec.to_builtins(spec),
    }
    return orjson.dumps(wanted)


def asked(body: bytes) -> Spec:
    """What such a body asks for."""
    return msgspec.convert(orjson.loads(body)["metadata"], Spec)


def events(spec: Spec) -> list[bytes]:
    """Of the answer, as a stream."""
    pad = "x" * spec.pad
    deltas = [{"content": f"{spec.name} {number} {pad}"} for number in range(spec.events)]
    choices: list[dict[str, object]] = [
        {"index": 0, "delta": delta, "finish_reason": None} for delta in deltas
    ]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    framed = [b"data: %b\n\n" % orjson.dumps({"choices": [choice]}) for choice in choices]
    return [*framed, b"data: [DONE]\n\n"]


def whole(spec: Spec) -> bytes:
    """The answer in one piece."""
    text = f"{spec.name} {'x' * spec.pad * spec.events}"
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return orjson.dumps({"choices": [choice]})


def bare(body: bytes) -> bytes:
    """Without what the sidecar adds."""
    return IDS.sub(b"", body).replace(KEEPALIVE, b"")
