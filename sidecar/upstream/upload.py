"""The rest of a request body on its way to the upstream, in a task of its own: an answer may come first."""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sidecar.core.errors import RefusedError, UpstreamError
from sidecar.engine.source import Call

if TYPE_CHECKING:
    from sidecar.upstream.client import Connection


class Upload:
    """Writes what `call.more` yields. The connection must outlive it: `stop` comes first."""

    __slots__ = ("_call", "_connection", "_failed", "_task", "at", "blocked", "whole")

    def __init__(
        self,
        call: Call,
        connection: "Connection",
        failed: Callable[[UpstreamError | RefusedError], None],
    ) -> None:
        """`failed` is told when the client's side of the body breaks off."""
        self._call = call
        self._connection = connection
        self._failed = failed
        self.at = time.perf_counter()
        """When the latest bytes were written."""
        self.blocked = False
        """It waits for the upstream, not for the client."""
        self.whole = False
        """All of the body has been written."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._ended)

    @property
    def running(self) -> bool:
        """Whether there is more to come."""
        return not self._task.done()

    def stop(self) -> None:
        """Write nothing more."""
        self._task.cancel()

    async def _run(self) -> None:
        call, connection = self._call, self._connection
        assert call.more is not None
        async for part in call.more:
            if connection.transport is None:
                return
            connection.transport.write(b"%x\r\n%b\r\n" % (len(part), part) if call.chunked else part)
            self.blocked = True
            await connection.drained()
            self.blocked = False
            self.at = time.perf_counter()
        if call.chunked and connection.transport is not None:
            connection.transport.write(b"0\r\n\r\n")
        self.at = time.perf_counter()
        self.whole = True

    def _ended(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, UpstreamError | RefusedError):
            self._failed(error)
        elif error is not None:
            self._failed(RefusedError("bad_request", "the request body broke off"))
