"""What takes work to tell: made once for all who ask at about the same time.

Telling it copies counts on the event loop and keeps a thread busy, and both take from the requests that the
proxy serves. So one is made at a time, and told again for a second: more clients, or quicker ones, take no
more.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from sidecar.cache.worker import Worker

MEMORY = 1.0
"""Seconds for which what was made is told again."""

T = TypeVar("T")
Key = tuple[str, ...]


class Shared:
    """One process's."""

    def __init__(self, on_fault: Callable[[BaseException], None]) -> None:
        """`on_fault`: as `Worker` has it."""
        self.memory = MEMORY
        self._worker = Worker("slipstream-figures", on_fault)
        self._parts: dict[Key, _Part] = {}
        """What is being made, waits for that, or is remembered."""
        self._waiting: deque[_Part] = deque()
        self._busy = False

    def ask(
        self, key: Key, prepare: Callable[[], Callable[[], T]], *, remembered: bool = True
    ) -> asyncio.Future[T]:
        """What is told of a key; to be shielded, since it is everybody's. `prepare` runs on the event loop
        when it is its turn, and what that returns in the thread. `remembered`: not only while it is made."""
        part = self._parts.get(key)
        if part is None:
            memory = self.memory if remembered else 0.0
            part = self._parts[key] = _Part(key, prepare, memory)
            self._waiting.append(part)
            self._go_on()
        return part.future

    async def get(self, key: Key, prepare: Callable[[], Callable[[], T]]) -> T:
        """The same, awaited. Whoever leaves takes it from nobody."""
        return await asyncio.shield(self.ask(key, prepare))

    def close(self) -> None:
        """Nothing is remembered, and the thread ends once it is done. Nobody may ask any more."""
        for part in self._parts.values():
            if part.timer is not None:
                part.timer.cancel()
        self._parts.clear()
        self._worker.stop()

    def _go_on(self) -> None:
        while self._waiting and not self._busy:
            part = self._waiting.popleft()
            try:
                self._worker.do(part.prepare(), partial(self._made, part))
            except Exception as error:  # noqa: BLE001 - reason: it is raised to those who asked
                self._end(part, None, error)
            else:
                self._busy = True

    def _made(self, part: "_Part", result: object, error: BaseException | None) -> None:
        self._busy = False
        self._end(part, result, error)
        self._go_on()

    def _end(self, part: "_Part", result: object, error: BaseException | None) -> None:
        if error is not None:
            part.future.set_exception(error)
            part.future.exception()  # all who asked may have left, and the next one finds the same
        else:
            part.future.set_result(result)
        if error is None and part.memory > 0 and part.key in self._parts:
            loop = asyncio.get_running_loop()
            part.timer = loop.call_later(part.memory, self._parts.pop, part.key, None)
        else:
            self._parts.pop(part.key, None)


class _Part:
    __slots__ = ("future", "key", "memory", "prepare", "timer")

    def __init__(self, key: Key, prepare: Callable[[], Callable[[], Any]], memory: float) -> None:
        self.key = key
        self.prepare = prepare
        self.memory = memory
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.timer: asyncio.TimerHandle | None = None
