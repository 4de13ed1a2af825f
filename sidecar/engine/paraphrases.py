"""Looking for answers to the same question in other words, and having some of them checked.

What is found is only a hint. Before it is served, the answer is fetched from the store, which may not have it
any more, and everything that could be wrong with it is looked at again.
"""

import asyncio
import random
from collections.abc import Callable

import msgspec

from sidecar.cache.exact import ExactCache
from sidecar.cache.inquiry import Check
from sidecar.cache.semantic import SemanticCache
from sidecar.core.entry import Entry
from sidecar.core.fingerprint import Keys
from sidecar.core.latency import Labels
from sidecar.core.semantic.decision import Candidate
from sidecar.engine.comparisons import Comparisons, count_guard
from sidecar.engine.pump import Keep, Live

_TRIES = 3
"""Matches that are fetched before there is none."""
_CHECKING = 16
"""Checks that may be under way."""


class Match(msgspec.Struct, frozen=True):
    """An answer to another question that will do."""

    entry: Entry
    candidate: Candidate


class Paraphrases:
    """Those of one process."""

    def __init__(
        self,
        semantic: SemanticCache,
        cache: ExactCache,
        comparisons: Comparisons,
        *,
        serves: bool,
        deadline: float,
        verify: float,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`serves`: not only looks. `deadline`: seconds for a lookup. `verify`: share of hits that is
        checked. `chance`: a number from 0 to 1."""
        self._semantic = semantic
        self._cache = cache
        self._comparisons = comparisons
        self._serves = serves
        self._deadline = deadline
        self._verify = verify
        self._chance = chance
        self._draining = False
        self._checking: set[Live] = set()

    async def look(
        self, keep: Keep, labels: Labels, fits: Callable[[Entry], bool], spent: float = 0.0
    ) -> Match | None:
        """A stored answer that may be given, if there is one in time. `fits`: whether the request takes it.
        `spent`: seconds of the deadline that are over. Where nothing is served, it looks without waiting."""
        inquiry, counts, deadline = keep.inquiry, self._cache.counts, self._deadline - spent
        if inquiry is None:
            return None
        if not self._serves or deadline <= 0:
            self._semantic.watch(inquiry)
            return None
        end = asyncio.get_running_loop().time() + deadline
        found = await self._semantic.look(inquiry, deadline)
        count_guard(self._cache.counts, inquiry)
        if found.matches and not self._comparisons.trust.served(inquiry.scope):
            counts["semantic_distrusted"] += 1
            return None
        for candidate in found.matches[:_TRIES]:
            # Its own answer, if it is there, is too old, or it would have been found by its key.
            entry = await self._fetch(candidate.key, end) if candidate.key != keep.keys.exact else None
            if entry is not None and _alike(entry, labels) and fits(entry):
                return Match(entry, candidate)
        return None

    async def _fetch(self, key: bytes, end: float) -> Entry | None:
        entry = self._cache.hot(key)
        if entry is not None:
            return entry
        try:
            async with asyncio.timeout_at(end):
                entry = await self._cache.lookup(Keys(key), None)
        except TimeoutError:
            self._cache.counts["semantic_late"] += 1
            return None
        self._cache.counts["semantic_gone"] += entry is None
        return entry

    # Comparing with real answers.

    @property
    def checks(self) -> int:
        """Calls that are made for nobody; they take nobody's place."""
        return len(self._checking)

    def samples(self, keep: Keep) -> bool:
        """Whether this hit is to be checked."""
        if self._draining or self._verify <= 0 or self._chance() >= self._verify:
            return False
        asked = {live.ask.keep.keys.exact for live in self._checking if live.ask.keep is not None}
        if len(asked) >= _CHECKING or keep.keys.exact in asked:
            self._cache.counts["verify_skipped"] += 1
            return False
        return True

    def checking(self, live: Live, match: Match) -> None:
        """That call is made to check a hit."""
        live.check = Check("verify", match.candidate, match.entry)
        self._checking.add(live)

    def ended(self, live: Live, entry: Entry | None) -> None:
        """A call has ended, with an answer that is worth storing or without: compare it with what was served,
        or would have been."""
        self._checking.discard(live)
        keep = live.ask.keep
        inquiry = keep.inquiry if keep is not None else None
        if inquiry is None or keep is None:
            return
        if live.check is not None or (not self._serves and inquiry.asked):
            self._comparisons.begin(live.check, inquiry, keep, entry)

    # The end.

    def drain(self) -> None:
        """Nobody waits for the calls that only check something, and there are no more of them."""
        self._draining = True
        for live in list(self._checking):
            live.cancel()
        self._checking.clear()

    async def close(self) -> None:
        """Be done; what is being compared is given up."""
        await self._comparisons.close()
        self._semantic.close()


def _alike(entry: Entry, labels: Labels) -> bool:
    """Whether an answer is of the kind that is asked for. The scope says so already; this is what is left
    between a damaged index and a wrong answer."""
    known = entry.known
    return (known.upstream, known.model, known.operation, known.stream) == (
        labels.upstream,
        labels.model,
        labels.operation,
        labels.stream,
    )
