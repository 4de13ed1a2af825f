"""Live recordings: starts them, hands out readers, and gives up what nobody reads any more."""

import asyncio
from collections.abc import Callable

from sidecar.core import policy
from sidecar.core.answer import Answer
from sidecar.core.recording import Recording
from sidecar.core.types import Fault
from sidecar.engine.pump import Live, pump
from sidecar.engine.reader import Reader
from sidecar.engine.source import Call, Upstream

RETAINED = 8 << 20
"""Bytes of a model's answer that are kept from its start on; a longer one only passes through."""


class Hub:
    """All upstream calls of this process."""

    def __init__(self, upstream: Upstream, on_fault: Callable[[BaseException], None]) -> None:
        """`on_fault` is told of exceptions that no upstream can cause: our own mistakes."""
        self._upstream = upstream
        self._on_fault = on_fault
        self._live: set[Live] = set()
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        return len(self._live)

    def start(self, call: Call, answer: Answer, *, retain: bool) -> tuple[Live, Reader]:
        """Begin an upstream call with its first reader."""
        live = Live(Recording(limit=RETAINED if retain else 0), answer)
        reader = Reader(live.recording, self._loop)
        task = self._loop.create_task(pump(self._upstream, call, live))
        live.task = task
        self._live.add(live)
        task.add_done_callback(lambda task: self._ended(live, task))
        return live, reader

    def leave(self, live: Live, reader: Reader) -> None:
        """A reader is gone; so is the upstream call, if it was the last one."""
        recording, answer = live.recording, live.answer
        reader.close()
        if policy.cancels_upstream(recording.readers, ended=recording.end is not None):
            taken = reader.offset == recording.size
            live.cancel(
                policy.end_of_leaving(over=answer.over, declared_error=answer.facts.error, taken=taken)
            )

    def stop(self, fault: Fault) -> None:
        """End every call now: what is still running gets `fault`, unless all of it had been said."""
        for live in list(self._live):
            end = policy.end_of_fault(
                fault,
                begun=live.recording.head is not None,
                over=live.answer.over,
                declared_error=live.answer.facts.error,
            )
            live.cancel(end)

    def _ended(self, live: Live, task: asyncio.Task[None]) -> None:
        self._live.discard(live)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_fault(error)
