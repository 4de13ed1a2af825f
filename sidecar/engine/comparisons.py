"""Answers beside one another: what was served, or would have been, and what the upstream says.

What comes of it is counted, logged and written down, and decides which scopes may be trusted.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import msgspec

from sidecar.cache.exact import ExactCache
from sidecar.cache.inquiry import Check, Compared, Inquiry
from sidecar.cache.records import Records
from sidecar.cache.semantic import SemanticCache
from sidecar.core.entry import Entry
from sidecar.core.fingerprint import Keys
from sidecar.core.semantic.answers import difference, said
from sidecar.core.semantic.decision import Candidate, Verdict
from sidecar.core.semantic.trust import Trust
from sidecar.engine.pump import Keep

_LARGEST = 256 << 10
"""Bytes of an answer that is compared with another one."""
_COMPARING = 32
"""Comparisons that may be under way."""


class Log(Protocol):
    """Takes a name and fields."""

    def info(self, event: str, **fields: object) -> object: ...

    def warning(self, event: str, **fields: object) -> object: ...


class Terms(msgspec.Struct, frozen=True):
    """What is configured."""

    agree: float
    """Cosine of two answers from which on they say the same."""
    bound: float
    """Share of false hits that is put up with."""
    texts: bool
    """Whether records hold texts."""


class Comparisons:
    """Those of one process."""

    def __init__(
        self,
        semantic: SemanticCache,
        cache: ExactCache,
        terms: Terms,
        records: Records | None,
        log: Log,
        on_fault: Callable[[BaseException], None],
    ) -> None:
        """`records` gets what was compared; None where there is no folder for it."""
        self._semantic = semantic
        self._cache = cache
        self._terms = terms
        self._records = records
        self._log = log
        self._on_fault = on_fault
        self.trust = Trust(terms.bound)
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, check: Check | None, inquiry: Inquiry, keep: Keep, entry: Entry | None) -> None:
        """Compare a real answer with another. `check`: what was served; None where nothing was, and what
        would have been is meant. `entry`: None where the answer is not worth storing, and says nothing."""
        if entry is None or len(self._tasks) >= _COMPARING:
            self._cache.counts[f"{check.kind if check is not None else 'shadow'}_skipped"] += 1
            return
        task = asyncio.get_running_loop().create_task(self._compare(check, inquiry, keep, entry))
        self._tasks.add(task)
        task.add_done_callback(self._compared)

    async def close(self) -> None:
        """Give up what is being compared."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._records is not None:
            await self._records.flush(1.0)
            self._records.close()

    def _compared(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_fault(error)

    async def _compare(self, check: Check | None, inquiry: Inquiry, keep: Keep, entry: Entry) -> None:
        if check is None:
            await _done(inquiry)
            if inquiry.failed:
                self._cache.counts["shadow_skipped"] += 1
                return
            count_guard(self._cache.counts, inquiry)
            check = Check("shadow", _other(inquiry.verdict, keep.keys.exact))
        candidate = check.candidate
        result = Compared()
        if candidate is not None:
            key = candidate.key
            other = check.entry or self._cache.hot(key) or await self._cache.lookup(Keys(key), None)
            if other is not None and len(entry.body) <= _LARGEST and len(other.body) <= _LARGEST:
                result = await self._beside(entry, other)
            self._judge(check, candidate, inquiry, result, entry)
        self._record(check, inquiry, keep, result)

    async def _beside(self, entry: Entry, other: Entry) -> Compared:
        one, two = said(entry.known, entry.body), said(other.known, other.body)
        if one is None or two is None:
            return Compared()
        texts = (one.text, two.text)
        if one == two:
            return Compared(same=True, texts=texts)
        differs = difference(one, two)
        alike = await self._semantic.alike(*texts) if all(texts) else None
        return Compared(same=False, alike=alike, differs=differs, texts=texts)

    def _judge(
        self, check: Check, candidate: Candidate, inquiry: Inquiry, result: Compared, entry: Entry
    ) -> None:
        counts, known = self._cache.counts, entry.known
        near = result.alike is not None and result.alike >= self._terms.agree
        right = bool(result.same) or (near and result.differs is None)
        if result.same is None or (not right and result.alike is None and result.differs is None):
            counts[f"{check.kind}_unknown"] += 1
            return
        if candidate.guard is None and candidate.similarity >= inquiry.threshold:
            counts[f"{check.kind}_{'right' if right else 'wrong'}"] += 1
        if check.kind != "verify":
            return
        place, scope = inquiry.place, inquiry.scope.hex()[:16]
        fields = {"upstream": place.upstream, "path": place.path, "scope": scope}
        tell = self._log.info if right else self._log.warning
        tell(
            "semantic_check" if right else "semantic_false_hit",
            similarity=round(candidate.similarity, 3),
            answers=None if result.alike is None else round(result.alike, 3),
            differs=result.differs,
            input_tokens=known.input_tokens,
            output_tokens=known.output_tokens,
            **fields,
        )
        if self.trust.check(inquiry.scope, right=right):
            counts["semantic_scopes_off"] += 1
            effect = "its questions are answered from identical ones only, until the next start"
            self._log.warning("semantic_scope_off", effect=effect, **fields)
        alarm = self.trust.alarm()
        if alarm is not None:
            rate = round(self.trust.all.rate, 3)
            name = "semantic_false_hits_rising" if alarm else "semantic_false_hits_falling"
            self._log.warning(name, share=rate, checked=self.trust.all.checked, bound=self._terms.bound)

    def _record(self, check: Check, inquiry: Inquiry, keep: Keep, result: Compared) -> None:
        if self._records is None:
            return
        candidate = check.candidate
        place = inquiry.place
        record: dict[str, object] = {
            "kind": check.kind,
            "at": round(time.time(), 3),
            "upstream": place.upstream,
            "path": place.path,
            "namespace": place.namespace,
            "scope": inquiry.scope.hex()[:16],
            "asked": keep.keys.exact.hex()[:16],
            "stored": candidate.key.hex()[:16] if candidate is not None else None,
            "similarity": candidate.similarity if candidate is not None else None,
            "guard": candidate.guard if candidate is not None else None,
            "same": result.same if result.same or result.alike is not None or result.differs else None,
            "answers": result.alike,
            "differs": result.differs,
            "threshold": inquiry.threshold,
        }
        if self._terms.texts:
            record["question"] = inquiry.question.text if inquiry.question is not None else None
            record["answer"], record["other_answer"] = result.texts or (None, None)
        self._records.write(record)


async def _done(inquiry: Inquiry) -> None:
    """Wait until its question was looked for."""
    if not inquiry.done:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        inquiry.over.append(lambda: None if waiter.done() else waiter.set_result(None))
        await waiter


def _other(found: Verdict, own: bytes) -> Candidate | None:
    """What would have been served, else what is nearest; never what was stored for the very same request."""
    others = [one for one in (*found.matches, found.nearest) if one is not None and one.key != own]
    return others[0] if others else None


def count_guard(counts: "Counter[str]", inquiry: Inquiry) -> None:
    """A question that was near enough was not the same one: count who said so."""
    nearest = inquiry.verdict.nearest
    if nearest is not None and nearest.guard is not None and not inquiry.verdict.matches:
        counts[f"guard_{nearest.guard}"] += nearest.similarity >= inquiry.threshold
