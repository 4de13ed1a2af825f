"""What an app receives: the request's body, and then that nobody waits for it any more."""

import asyncio

from sidecar.serving.shell import Body
from sidecar_starlette.asgi import Message


class Feed:
    """The `receive` of one run."""

    __slots__ = ("_begun", "_body", "_over")

    def __init__(self, body: Body) -> None:
        self._body: Body | None = body
        self._begun = False
        self._over = asyncio.Event()

    def end(self) -> None:
        """The answer has been given, or nobody wants it any more."""
        self._over.set()

    async def receive(self) -> Message:
        """As ASGI has it."""
        body = self._body
        if body is not None and not self._begun and (body.kept or body.more is None):
            self._begun = True
            if body.more is None:
                self._body = None  # a large one is not held for as long as the app works
            return {"type": "http.request", "body": body.kept, "more_body": body.more is not None}
        if body is not None and body.more is not None:
            try:
                return {"type": "http.request", "body": await anext(body.more), "more_body": True}
            except StopAsyncIteration:
                self._body = None
                return {"type": "http.request", "body": b"", "more_body": False}
            except Exception:  # noqa: BLE001 - reason: the client left, or is too slow: it will not be whole
                self._body = None
                return {"type": "http.disconnect"}
        await self._over.wait()
        return {"type": "http.disconnect"}
