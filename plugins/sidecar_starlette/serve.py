"""One request from an ASGI server, through the front, and its answer back."""

import asyncio
import time

from sidecar.serving.front import Front
from sidecar.serving.visit import Visit
from sidecar_starlette.arriving import Arriving
from sidecar_starlette.asgi import Receive, Scope, Send
from sidecar_starlette.reply import Reply

_FIRST_LOOK = 0.05
"""Seconds after which it is watched whether a client is still there: most requests have been answered then,
and need no task for that."""
_LOOK = 1.0
_LEFT = 499
"""What nginx calls it when a client closes the connection; nobody sees it but an access log."""


class _Watch:
    """Ends the serving of a request whose client has left, or takes nothing any more."""

    __slots__ = ("_arriving", "_begun", "_gone", "_reply", "_stopped", "_task", "_timeout", "_timer", "fired")

    def __init__(self, arriving: Arriving, reply: Reply, timeout: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._arriving = arriving
        self._reply = reply
        self._timeout = timeout
        self._task = task
        self._begun = task.cancelling()
        self._gone: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_FIRST_LOOK, self._look)
        self.fired = False
        self._stopped = False
        arriving.on_gone = self._fire

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_LOOK if self._gone is not None else _FIRST_LOOK, self._look)
        if self._gone is None and self._arriving.whole:
            self._gone = loop.create_task(self._until_gone())
        since = self._reply.sending_since
        if since and time.perf_counter() - since > self._timeout:
            self._fire()

    async def _until_gone(self) -> None:
        await self._arriving.until_gone()
        self._fire()

    def _fire(self) -> None:
        if not self.fired and not self._stopped and not self._reply.over:
            self.fired = True
            self._task.cancel()

    def caused(self) -> bool:
        """Whether it is only because of this that the task was cancelled."""
        return self.fired and self._task.uncancel() <= self._begun

    async def stop(self) -> None:
        self._stopped = True
        self._timer.cancel()
        self._arriving.on_gone = None  # no cycle is left behind
        gone, self._gone = self._gone, None
        if gone is not None:
            gone.cancel()
            await asyncio.wait({gone})


async def serve(
    front: Front,
    scope: Scope,
    receive: Receive,
    send: Send,
    timeout: float,  # noqa: ASYNC109
    *,
    spelt: bool = True,
) -> None:
    """Serve one request to its end, and see the app's work on it to its own, which may be later.

    `timeout`: seconds that a client may take for the next part of its body, or to take what it is sent.
    `spelt`: see `Arriving`. Raises what the app raised.
    """
    raw = Arriving(scope, receive, timeout, spelt=spelt)
    closes = str(scope.get("http_version", "1.1")).startswith("1")
    reply = Reply(send, bodiless=scope["method"] == "HEAD", closes=closes)
    try:
        await _answer(front, raw, reply, send, timeout)
        error = await raw.until_returned()
    except BaseException:  # wherever this was given up, what the app still does and raises must be heard of
        raw.leave_alone()
        raise
    if error is not None:
        try:
            raise error
        finally:
            del error  # its traceback would hold this frame


async def _answer(front: Front, raw: Arriving, reply: Reply, send: Send, timeout: float) -> None:  # noqa: ASYNC109
    """Serve it until its client has the answer, or has left."""
    watch = _Watch(raw, reply, timeout)
    try:
        method: str = raw.scope["method"]
        await front.handle(Visit(method, reply, raw.root), raw)
    except asyncio.CancelledError:
        if not watch.caused():
            raise
        if not reply.started:
            await _answer_nobody(send)
    finally:
        await watch.stop()


async def _answer_nobody(send: Send) -> None:
    """The client has left. Some middleware takes it for a mistake of the app's when nothing is answered."""
    try:
        await send({"type": "http.response.start", "status": _LEFT, "headers": []})
        await send({"type": "http.response.body", "body": b""})
    except OSError:
        pass  # as ASGI 2.4 has it for a client that is gone
