"""Clients with tokens, and upstreams with keys, as a configuration has them."""

import hashlib
from pathlib import Path
from typing import Any

from tests.faults.wire import CHAT, Answer, Client, Format, Upstream, request

ALICE, BOB = b"alices-token-7c1f", b"bobs-token-93ad"
KEY = b"sk-planted-upstream-key-5d2e"
HEALTH = "/_slipstream/healthz"
WHOLE = b'{"id":"x-1","model":"m","choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}'
BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'


def bearer(token: bytes) -> tuple[bytes, bytes]:
    return b"Authorization", b"Bearer " + token


def beside(token: bytes) -> tuple[bytes, bytes]:
    """Where there is a provider's key in `Authorization`."""
    return b"Proxy-Authorization", b"Bearer " + token


def client(name: str, token: bytes, **more: Any) -> dict[str, Any]:
    return {"name": name, "token_sha256": hashlib.sha256(token).hexdigest(), **more}


def two(**alices: Any) -> list[dict[str, Any]]:
    """Alice and Bob; Alice with what is given."""
    return [client("alice", ALICE, **alices), client("bob", BOB)]


def upstream(url: str, folder: Path | None = None, name: str = "up", **more: Any) -> dict[str, Any]:
    """An entry of `[[upstreams]]`; with a folder, in which its key is put, also with that."""
    table = {"name": name, "url": url, "paths": ["/"], **more}
    if folder is not None:
        (folder / f"{name}.key").write_bytes(KEY + b"\n")
        table["key_file"] = str(folder / f"{name}.key")
    return table


async def begin(
    rig: Any, *, clients: Any = None, upstreams: Any = None, file: Any = None, **keys: Any
) -> Any:
    """A sidecar with these clients (`two` of them when left out) in front of the provider."""
    given = {"clients": two() if clients is None else clients, **(file or {})}
    if upstreams is not None:
        given["upstreams"] = upstreams
    return await rig.start(None if upstreams is not None else rig.provider.url, file=given, **keys)


async def post(
    client: Client, *fields: tuple[bytes, bytes], form: Format = CHAT, host: bytes = b"127.0.0.1"
) -> Answer:
    """A model call; the answer's head."""
    await client.send(request(form.method, form.target, form.body, fields, host=host))
    return await client.answer(form.method)


async def answered(call: Upstream, body: bytes = WHOLE) -> None:
    """Answer a call with that."""
    kind = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    await call.send(kind % len(body), body)
    call.done()


def sent(received: Any) -> bytes:
    """All that came of a request's head, as one text to look for secrets in."""
    lines = [received.target.encode(), *(name + b": " + value for name, value in received.headers)]
    return b"\n".join(lines)
