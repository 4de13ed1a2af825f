"""Stored answers to look at, purge and move, made without the code that does so."""

import hashlib
import json
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from sidecar.core.entry import Entry, Known, point, seal
from sidecar.stores.disk import DiskStore

CHAT = "/v1/chat/completions"
ALICE, BOB = "a" * 16, "b" * 16
ROOM = 1 << 30
BODY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "m-2026",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hé"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
    },
    ensure_ascii=False,
).encode()
CHUNKS = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hé"}}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
]
EVENTS = [
    b"data: "
    + json.dumps(
        {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m-2026"} | chunk
    ).encode()
    + b"\n\n"
    for chunk in CHUNKS
] + [b"data: [DONE]\n\n"]
STREAM = b"".join(EVENTS)


def key_of(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def alias_of(name: str) -> bytes:
    return key_of(f"alias of {name}") + b"s"


def entry(name: str, *, stream: bool = False, body: bytes | None = None, **facts: Any) -> Entry:
    """An answer as a sidecar stores it."""
    body = body if body is not None else (STREAM if stream else BODY)
    ends = [sum(map(len, EVENTS[: n + 1])) for n in range(len(EVENTS))] if stream else []
    kind = ("Content-Type", "text/event-stream" if stream else "application/json")
    known = Known(
        status=200,
        reason="OK",
        headers=(kind, ("X-Request-Id", "req_1")),
        stored=time.time() - 60,
        ttl=3600.0,
        dialect="openai.chat",
        path=CHAT,
        stream=stream,
        upstream="openai",
        provider="openai",
        operation="chat",
        model="m",
        tag=ALICE,
        response_model="m-2026",
        finish="stop",
        input_tokens=None if stream else 9,
        output_tokens=None if stream else 2,
        events=len(ends),
        deltas=1 if stream else 0,
        first_kind="content" if stream else None,
    )
    return Entry(key_of(name), msgspec.structs.replace(known, **facts), body, array("Q", ends))


@contextmanager
def store_in(folder: Path, limit: int = ROOM, ago: float = 0.0) -> Iterator[DiskStore]:
    """`ago`: how many seconds its clock is behind."""
    store = DiskStore.open(folder / "answers", limit, lambda: time.time() - ago)
    try:
        yield store
    finally:
        store.close()


def put(
    store: DiskStore, name: str, *, alias: bool = True, seconds: float | None = None, **facts: Any
) -> None:
    """Store an answer, and what points at it."""
    made = entry(name, **facts)
    left = made.known.stored + made.known.ttl - time.time() if seconds is None else seconds
    store.put(made.key, seal(made), tag=made.known.tag, seconds=left)
    if alias:
        store.put(alias_of(name), point(alias_of(name), made.key), tag=made.known.tag, seconds=left)


def keys_in(folder: Path) -> set[bytes]:
    """All keys, aliases included."""
    with store_in(folder) as store:
        return {row.key for row in store.rows(0)}


def some(folder: Path) -> None:
    """Five answers of two tenants."""
    now = time.time()
    with store_in(folder) as store:
        put(store, "one", stored=now - 50)
        put(store, "two", stored=now - 40, tag=BOB, stream=True)
        put(store, "three", stored=now - 30, model="n", upstream="local")
        put(store, "four", stored=now - 20, model="n", path="/local" + CHAT, upstream="local")
        put(store, "five", stored=now - 10, tag=BOB, alias=False)
