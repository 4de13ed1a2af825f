"""Stored answers to the same question in other words, for the event loop.

Nobody waits past a deadline, and whatever fails means a miss and a count. One thread embeds and searches;
while it is busy questions queue up, and go together when it is free. Where so many queue up that it cannot
keep up, questions go without.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from sidecar.cache.breaker import Breaker
from sidecar.cache.embed.base import Vector
from sidecar.cache.inquiry import Done, Inquiry, Job, Ready
from sidecar.cache.worker import Worker
from sidecar.core.semantic.decision import NOTHING, Verdict, verdict
from sidecar.stores.base import Near

if TYPE_CHECKING:  # it needs libraries that are of no use without it
    from sidecar.cache.matcher import Matcher

T = TypeVar("T")

_TOGETHER = 8
"""Questions that are embedded in one go. So many requests go on at once then, and other streams wait."""
_MOST = 64
"""Questions that may wait."""
_SWEEP = 60.0
"""Seconds between two looks for what the log no longer has."""
_LOAD = 4096
"""Changes that are taken over at a time while nobody asks."""


class SemanticCache:
    """One process's."""

    def __init__(
        self,
        counts: Counter[str],
        generation: Callable[[], int],
        told: Callable[[str | None], None],
        on_fault: Callable[[BaseException], None],
    ) -> None:
        """`counts` is added to. `generation`: of the store. `told`: see `Breaker`; `on_fault` is told of
        mistakes of our own."""
        self._counts = counts
        self._generation = generation
        self._on_fault = on_fault
        self._breaker = Breaker(told)
        self._worker = Worker("slipstream-semantic", on_fault)
        self._matcher: Matcher | None = None
        self._queue: list[tuple[Inquiry, Job]] = []
        self._spare: deque[tuple[str, asyncio.Future[Vector | None]]] = deque()
        """Answers that wait for a vector; nobody waits for them."""
        self._busy_since: float | None = None
        self._seen = 0
        """The generation whose removals the index has heard of."""
        self._sweeping: asyncio.TimerHandle | None = None
        self.closing = False
        """It is about to end: nothing new is begun."""

    @property
    def ready(self) -> bool:
        return self._matcher is not None

    async def open(self, make: "Callable[[], Matcher]") -> int | None:
        """Take on what `make` makes, in the thread; it is used once it knows what the log has. Returns how
        many questions that are, None when it is closed meanwhile. Raises what `make` does, and StoreError."""

        def build() -> "tuple[Matcher, int] | None":
            matcher = make()
            try:
                count = matcher.load(lambda: self.closing, _LOAD)
            except BaseException:
                matcher.close()
                raise
            if self.closing:
                matcher.close()
                return None
            return matcher, count

        opened: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

        def built(found: "tuple[Matcher, int] | None", error: BaseException | None) -> None:
            if found is not None and self.closing:
                found[0].close()
                found = None
            if found is not None:
                self._matcher = found[0]
                self._sweep_later()
            if not opened.done() and error is not None:
                opened.set_exception(error)
            elif not opened.done():
                opened.set_result(found[1] if found is not None else None)

        self._seen = self._generation()
        self._worker.do(build, built)
        return await opened

    async def look(self, inquiry: Inquiry, deadline: float) -> Verdict:
        """What may be used for a question. Never raises, and does not wait for longer than `deadline`
        seconds; the question goes on being embedded then, for its answer to be stored with."""
        late = self._busy_since is not None and time.monotonic() - self._busy_since > deadline
        if not self._ask(inquiry, search=True):
            return NOTHING
        if late:
            # Who is before it has waited too long already.
            self._counts["semantic_late"] += 1
            return NOTHING
        inquiry.waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(deadline):
                return await inquiry.waiter
        except TimeoutError:
            self._counts["semantic_late"] += 1
            return NOTHING
        finally:
            inquiry.waiter = None

    def watch(self, inquiry: Inquiry) -> None:
        """Look likewise, but for nobody who waits: `inquiry.verdict` says what was found, once it is done."""
        self._ask(inquiry, search=True)

    def near(self, inquiry: Inquiry, ready: Ready) -> Near | None:
        """What to store with the answer to a question. Where it is not known yet, `ready` is told once it
        is, if it ever is."""
        if not inquiry.asked and not self._ask(inquiry, search=False):
            return None
        if not inquiry.done:
            inquiry.ready.append(ready)
        return inquiry.near

    async def alike(self, one: str, other: str) -> float | None:
        """Cosine of two answers; None where it cannot be had. Who waits for a stored answer goes first."""
        vectors = []
        for text in (one, other):
            waiter: asyncio.Future[Vector | None] = asyncio.get_running_loop().create_future()
            self._spare.append((text, waiter))
            self._go_on()
            vectors.append(await waiter)
        if vectors[0] is None or vectors[1] is None:
            return None
        return float(vectors[0] @ vectors[1])

    def close(self) -> None:
        """Be done; who waits for something is told that there is nothing."""
        self.closing = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        for inquiry, _ in self._queue:
            _tell(inquiry, NOTHING)
        self._queue.clear()
        while self._spare:
            self._spoken(self._spare.popleft()[1], None, None)
        matcher, self._matcher = self._matcher, None
        if matcher is not None:
            self._worker.do(matcher.close, lambda _result, _error: None)
        self._worker.stop()

    # Asking the thread.

    def _ask(self, inquiry: Inquiry, *, search: bool) -> bool:
        """Give a question to the thread; returns whether that was of use."""
        matcher = self._matcher
        if matcher is None or self._breaker.open or len(self._queue) >= _MOST:
            self._counts["semantic_not_ready" if matcher is None else "semantic_skipped"] += search
            inquiry.failed = True
            return False
        if inquiry.reason is not None:
            return False  # it was counted
        question = inquiry.read()
        if question is None:
            self._counts[f"unmatched_{inquiry.reason}"] += 1
            return False
        inquiry.asked = True
        inquiry.scope = matcher.scope(question.scope)
        self._queue.append((inquiry, Job(question.text, inquiry.scope, inquiry.threshold, search)))
        self._go_on()
        return True

    def _go_on(self) -> None:
        """Give the thread something to do, if it has nothing."""
        matcher = self._matcher
        if self._busy_since is not None:
            return
        if matcher is not None and self._queue:
            batch, self._queue = self._queue[:_TOGETHER], self._queue[_TOGETHER:]
            jobs = [job for _, job in batch]
            self._do(lambda: matcher.answer(jobs), lambda done, error: self._ended(batch, done, error))
            return
        while self._spare and (matcher is None or self._breaker.open):
            self._spoken(self._spare.popleft()[1], None, None)
        if matcher is not None and self._spare:
            text, waiter = self._spare.popleft()
            self._do(lambda: matcher.vector(text), lambda made, error: self._spoken(waiter, made, error))

    def _do(self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        def over(result: T | None, error: BaseException | None) -> None:
            self._busy_since = None
            if error is not None:
                self._on_fault(error)
            try:
                done(result, error)
            finally:
                self._go_on()

        self._busy_since = time.monotonic()
        try:
            self._worker.do(work, over)
        except RuntimeError as error:  # no thread to be had
            over(None, error)
        if self._seen != self._generation():
            # Something was removed on purpose. What is left of it in the index finds nothing in the log.
            self._seen = self._generation()
            self._sweep()

    def _spoken(
        self, waiter: "asyncio.Future[Vector | None]", made: "Vector | None", _error: BaseException | None
    ) -> None:
        if not waiter.done():
            waiter.set_result(made)

    def _ended(
        self, batch: list[tuple[Inquiry, Job]], done: list[Done] | None, error: BaseException | None
    ) -> None:
        results = done or [Done(error=RuntimeError(type(error).__name__), dead=True) for _ in batch]
        for (inquiry, _), result in zip(batch, results, strict=True):
            self._judge(result)
            inquiry.done, inquiry.near = True, result.near
            inquiry.embed, inquiry.search = result.embed, result.search
            inquiry.failed = result.error is not None or result.mistake is not None
            inquiry.verdict = verdict(result.found, inquiry.threshold)
            _tell(inquiry, inquiry.verdict)
            waiting, inquiry.ready = inquiry.ready, []
            over, inquiry.over = inquiry.over, []
            try:
                for ready in waiting:
                    if result.near is not None and not self.closing:
                        ready(result.near)
                for tell in over:
                    tell()
            except Exception as mistake:  # noqa: BLE001 - reason: the next ones are somebody else's
                self._on_fault(mistake)

    def _judge(self, result: Done) -> None:
        self._counts["embed_truncated"] += result.truncated
        self._counts["embed_unknown"] += result.unknown
        if result.mistake is not None:
            self._counts["semantic_failed"] += 1
            self._on_fault(result.mistake)
        elif result.error is None:
            self._breaker.worked()
        else:
            self._counts["semantic_failed" if result.near is not None else "embed_failed"] += 1
            if result.dead:
                self._breaker.failed(str(result.error))

    # What the log no longer has.

    def _sweep_later(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._sweeping = asyncio.get_running_loop().call_later(_SWEEP, self._sweep)

    def _sweep(self) -> None:
        matcher = self._matcher
        if matcher is None:
            return

        def swept(_left: int | None, error: BaseException | None) -> None:
            if error is not None:
                self._counts["semantic_failed"] += 1

        self._sweep_later()
        try:
            self._worker.do(matcher.sweep, swept)
        except RuntimeError:
            return  # no thread to be had; there is another time


def _tell(inquiry: Inquiry, found: Verdict) -> None:
    if inquiry.waiter is not None and not inquiry.waiter.done():
        inquiry.waiter.set_result(found)
