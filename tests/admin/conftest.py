"""The rig of the admin port's tests: a sidecar in front of the scripted provider, and clients of its other port."""

import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest

from sidecar.web.admin import feed
from sidecar.web.admin.server import Admin
from tests.faults.conftest import (  # noqa: F401 - fixtures and a hook are found by their names
    Rig,
    nothing_left,
    pytest_asyncio_loop_factories,
    rig,
)
from tests.faults.wire import CHAT, Answer, Client, Fields, request

TOKEN = "planted-token 你"
DIGEST = hashlib.sha256(TOKEN.encode()).hexdigest()
BEARER = (b"Authorization", b"Bearer " + TOKEN.encode())
ASK = {"model": "m", "messages": [{"role": "user", "content": "planted prompt 你好 🌊"}]}
KEY = (b"Authorization", b"Bearer sk-planted-credential")


class Port:
    """The admin port of a sidecar."""

    def __init__(self, owner: Rig, sidecar: Any) -> None:
        self.rig = owner
        self.sidecar = sidecar
        self.admin: Admin = sidecar.service.admin
        self.url = self.admin.url
        self.port = int(self.url.rpartition(":")[2])
        self.host = self.url.removeprefix("http://").encode()

    async def open(self) -> Client:
        self.rig.clients.append(await Client.open(self.port))
        return self.rig.clients[-1]

    async def head(
        self,
        target: str,
        method: str = "GET",
        fields: Fields = (),
        *,
        body: bytes | None = None,
        host: bytes | None = None,
    ) -> Answer:
        """A request on a connection of its own: the head of the answer."""
        client = await self.open()
        await client.send(request(method, target, body, fields, host=self.host if host is None else host))
        return await client.answer(method)

    async def ask(self, *arguments: Any, **more: Any) -> Answer:
        """The same: the whole answer."""
        answer = await self.head(*arguments, **more)
        await answer.rest()
        return answer

    async def get(self, target: str) -> Any:
        """What is at a path, as JSON."""
        answer = await self.ask(target)
        assert answer.status == 200, bytes(answer.body)
        return json.loads(answer.body)

    async def delete(self, target: str, *fields: tuple[bytes, bytes]) -> tuple[int, Any]:
        answer = await self.ask(target, "DELETE", fields or (BEARER,))
        return answer.status, json.loads(answer.body)

    async def chat(
        self, key: tuple[bytes, bytes] = KEY, path: str = CHAT.target, **more: Any
    ) -> tuple[bytes, bytes]:
        """Through the sidecar: what the cache says of it, and the answer."""
        client = await self.rig.connect()
        answer = await client.whole("POST", path, orjson.dumps(ASK | more), [key])
        assert answer.status == 200, bytes(answer.body)
        return answer.header("cache-status") or b"", bytes(answer.body)


Start = Callable[..., Awaitable[Port]]


@pytest.fixture
def start(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Start:  # noqa: F811
    """`await start(admin__token_sha256=DIGEST, folder=...)`; `beat`: seconds between two events of the feed."""

    async def begin(*, beat: float = 0.02, **keys: Any) -> Port:
        monkeypatch.setattr(feed, "BEAT", beat)
        return Port(rig, await rig.start(admin=True, **keys))

    return begin


def problem(answer: Answer, status: int, kind: str) -> str:
    """What a refusal says."""
    assert (answer.status, answer.header("slipstream-error")) == (status, kind.encode()), bytes(answer.body)
    assert answer.header("content-type") == b"application/problem+json"
    told = json.loads(answer.body)
    assert told["status"] == status and told["title"]
    return str(told["detail"])
