"""Between calls and stored answers: what an ended call leaves, and how a stored answer is read.

A hit is another reader of a recording that is over. Its record is made once, however many read it, so
that it has one stream id and is in memory once.
"""

import asyncio
import time
from array import array
from collections.abc import Callable

import msgspec

from sidecar.cache.exact import ExactCache
from sidecar.cache.semantic import SemanticCache
from sidecar.core.answer import Answer
from sidecar.core.dialects import Facts, by_name, recognise
from sidecar.core.entry import Entry, Known
from sidecar.core.folding import refreshed
from sidecar.core.latency import Labels
from sidecar.core.recording import Recording
from sidecar.core.told import NEVER, Told, spent
from sidecar.core.types import End, Intent, Outcome, Request, Timings
from sidecar.engine.conversion import converter
from sidecar.engine.hub import Hub
from sidecar.engine.keeping import worth_keeping
from sidecar.engine.paraphrases import Paraphrases
from sidecar.engine.pump import RETAINED, Ask, Keep, Live
from sidecar.engine.source import Call, Origin, Source
from sidecar.stores.base import Near

_COMPLETE = End(Outcome.COMPLETE)
_PATIENCE = 1.0
"""Seconds that the line of a request waits for its answer to be stored."""
_SCOPES = 32
"""Callers for whom a record of one entry is kept; more than one only where they share answers."""
_LONGEST_GAP = 0.25
"""Seconds between two events of a paced replay, at most."""
_NOWHERE = Call(Origin("", "", 0), "", b"", [])


class Answers:
    """Stored answers, for one process."""

    def __init__(
        self,
        cache: ExactCache,
        hub: Hub,
        semantic: SemanticCache | None = None,
        paraphrases: Paraphrases | None = None,
        *,
        fresh_ids: bool,
        paced: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock`: unix seconds. `semantic` makes vectors of questions, `paraphrases` finds them."""
        self._semantic = semantic
        self.paraphrases = paraphrases
        self._cache = cache
        self._hub = hub
        self._fresh = fresh_ids
        self._paced = paced
        self.clock = clock

    def generation(self) -> int:
        """Of the store; see `Keep`."""
        return self._cache.generation()

    @property
    def accepts(self) -> bool:
        """Whether answers are going to be stored just now."""
        return self._cache.accepts

    def hot(self, keep: Keep) -> Entry | None:
        """What is at hand without the disk."""
        return self._cache.hot(keep.keys.exact)

    async def lookup(self, keep: Keep, ask: bytes, *, stream: bool) -> Entry | None:
        """What the store has, also in the other mode. `ask`: the request's body."""
        return await self._cache.lookup(keep.keys, converter(keep, ask, stream=stream))

    def count(self, what: str) -> None:
        """Count something that happened."""
        self._cache.counts[what] += 1

    def served(self, name: str, key: bytes) -> None:
        """An answer to another question was given under that id."""
        self._cache.served(name, key)

    def drop(self, entry: Entry) -> None:
        """Nobody can use it any more."""
        self._cache.drop(entry)

    @property
    def repeatable(self) -> bool:
        """Whether all who ask get the same."""
        return not (self._fresh or self._paced)

    def renewed(self, entry: Entry) -> Entry:
        """The same, with an id and a time of its own where that is configured."""
        if not self._fresh:
            return entry
        body = refreshed(entry.known.dialect, entry.body, None, self.clock())
        return entry if body is entry.body else Entry(entry.key, entry.known, body, entry.events)

    def live(self, entry: Entry, ask: Ask, scope: bytes) -> Live:
        """A record to read the entry from, for callers of one scope."""
        paced = self._paced and entry.known.stream and entry.known.gap > 0
        entry = self.renewed(entry)
        reader = scope + (ask.key or b"")  # who comes back with the same request finds it by its key
        live: Live | None = None if paced else entry.made.get(reader)
        if live is None:
            live = _paced(entry, ask) if paced else _sealed(entry, ask)
            live.fleeting = self._fresh
            if paced:
                self._hub.start(live, _NOWHERE, Replay(entry))
            else:
                if len(entry.made) >= _SCOPES:
                    entry.made.clear()
                entry.made[reader] = live
        elif live.name is not None and not self._hub.keeps(live.name):
            live.name = None  # the time was over in which clients could come back to it
        return live

    def holds(self, live: Live, name: str) -> bool:
        """Whether the id that clients were told with this record is still good."""
        return live.name == name and self._hub.keeps(name)

    def keep(self, live: Live) -> bool:
        """A call has ended: store its answer, if it is worth it. Returns whether that has begun."""
        keep = live.ask.keep
        if keep is None:
            return False
        try:
            found = worth_keeping(live, keep, self.clock())
        except BaseException:
            self._ended(live, None)
            raise
        self._ended(live, None if isinstance(found, str) else found.entry)
        if isinstance(found, str):
            self.count(f"not_stored_{found}")
            self._forget(keep)
            return False
        told = False

        def done(took: float | None) -> None:
            nonlocal told
            told, live.stored = True, took
            late.cancel()
            self._hub.settle(live)

        # Its line waits for the disk, but not for long.
        late = asyncio.get_running_loop().call_later(_PATIENCE, self._hub.settle, live)
        seconds, generation = found.seconds, keep.generation
        near = self._near(keep, found.entry.key)
        self._forget(keep)
        self._cache.put(
            found.entry, found.alias, seconds=seconds, generation=generation, done=done, near=near
        )
        return not told

    def retract(self, live: Live) -> None:
        """What has been stored of a call was not whole: something takes its place that is no longer good, in
        the same order as all writes."""
        keep = live.ask.keep
        entry = self._cache.hot(keep.keys.exact) if keep is not None else None
        if keep is None or entry is None:
            return
        over = msgspec.structs.replace(entry.known, stored=0.0, ttl=0.0)
        nothing = Entry(entry.key, over, b"", array("Q"))
        self._cache.put(nothing, None, seconds=1.0, generation=keep.generation, done=lambda _took: None)

    def _ended(self, live: Live, entry: Entry | None) -> None:
        if self.paraphrases is not None:
            self.paraphrases.ended(live, entry)

    @staticmethod
    def _forget(keep: Keep) -> None:
        """The call's record may be kept for long; its question is of no use any more."""
        if keep.inquiry is not None:
            keep.inquiry.forget()

    def _near(self, keep: Keep, key: bytes) -> Near | None:
        """Where an answer is to be found by other questions; what is not known yet is noted once it is."""
        if self._semantic is None or keep.inquiry is None:
            return None
        cache, generation = self._cache, keep.generation
        return self._semantic.near(keep.inquiry, lambda near: cache.note(key, near, generation))


# Reading a stored answer.


def _blank(entry: Entry) -> Answer:
    known = entry.known
    request = Request("POST", b"", known.path, known.query, (), {})
    dialect = by_name(known.dialect) or recognise("POST", known.path)
    return Answer(request, dialect, Intent(known.model, stream=known.stream))


def _labels(known: Known) -> Labels:
    return Labels(known.upstream, known.provider, known.operation, known.model, known.stream)


def _sealed(entry: Entry, ask: Ask) -> Live:
    known = entry.known
    answer = _blank(entry)
    answer.begin(entry.head)
    facts = Facts(
        model=known.response_model,
        input_tokens=known.input_tokens,
        output_tokens=known.output_tokens,
        cached_input_tokens=known.cached_input_tokens,
        reasoning_tokens=known.reasoning_tokens,
        finish=known.finish,
        terminal=True,
    )
    until = NEVER if known.ids_until is None else known.ids_until
    told = Told(spent(facts), known.events, known.deltas, first_kind=known.first_kind, ids_until=until)
    answer.over_with(told)
    recording = Recording.sealed(entry.head, entry.body, entry.events, _COMPLETE)
    return Live(recording, answer, Ask(key=ask.key), _labels(known))


def _paced(entry: Entry, ask: Ask) -> Live:
    return Live(Recording(limit=RETAINED), _blank(entry), Ask(key=ask.key, alone=True), _labels(entry.known))


class Replay:
    """An upstream that says what an entry says, about as fast as it was said first."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry

    async def open(self, call: Call, timings: Timings) -> Source:
        return _Pacer(self._entry)


class _Pacer:
    def __init__(self, entry: Entry) -> None:
        self.head = entry.head
        self.arrived = time.perf_counter()
        self._entry = entry
        self._going = asyncio.Event()
        self._going.set()

    async def deliver(self, take: Callable[[bytes], None]) -> None:
        entry = self._entry
        gap = min(entry.known.gap, _LONGEST_GAP)
        start = 0
        for end in [*entry.events, len(entry.body)]:
            if end > start:
                if start:
                    await asyncio.sleep(gap)
                await self._going.wait()
                self.arrived = time.perf_counter()
                take(entry.body[start:end])
            start = end

    def pause(self) -> None:
        self._going.clear()

    def resume(self) -> None:
        self._going.set()

    def close(self) -> None:
        """Nothing is open."""
