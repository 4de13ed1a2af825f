"""Between calls and stored answers: what an ended call leaves, and how a stored answer is read.

A hit is another reader of a recording that is over. Its record is made once, however many read it, so
that it has one stream id and is in memory once.
"""

import asyncio
import time
from array import array
from collections.abc import Callable

import orjson

from sidecar.cache.exact import Convert, ExactCache
from sidecar.core.answer import Answer
from sidecar.core.dialects import recognise
from sidecar.core.entry import Entry, Known
from sidecar.core.folding import fold, refreshed, unfold
from sidecar.core.latency import Labels
from sidecar.core.recording import Recording
from sidecar.core.types import End, Head, Intent, Outcome, Request, Timings
from sidecar.engine.hub import Hub
from sidecar.engine.keeping import worth_keeping
from sidecar.engine.pump import RETAINED, Ask, Keep, Live
from sidecar.engine.source import Call, Origin, Source

_OF_STREAMS = frozenset({"content-type", "content-length", "cache-control", "x-accel-buffering"})
"""Header fields that go with a mode."""
_OF_BYTES = frozenset({"content-digest", "content-md5", "digest", "etag", "last-modified", "repr-digest"})
"""Those that go with the very bytes."""
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
        *,
        fresh_ids: bool,
        paced: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock`: unix seconds."""
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
        return await self._cache.lookup(keep.keys, _converter(keep, ask, stream=stream))

    def count(self, what: str) -> None:
        """Count something that happened."""
        self._cache.counts[what] += 1

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
        live: Live | None = None if paced else entry.made.get(scope)
        if live is None:
            live = _paced(entry, ask) if paced else _sealed(entry, ask)
            live.fleeting = self._fresh
            if paced:
                self._hub.start(live, _NOWHERE, Replay(entry))
            else:
                if len(entry.made) >= _SCOPES:
                    entry.made.clear()
                entry.made[scope] = live
        elif live.name is not None and live.shelf is None:
            live.name = None  # the time was over in which clients could come back to it
        return live

    def keep(self, live: Live) -> bool:
        """A call has ended: store its answer, if it is worth it. Returns whether that has begun."""
        keep = live.ask.keep
        if keep is None:
            return False
        found = worth_keeping(live, keep, self.clock())
        if isinstance(found, str):
            self.count(f"not_stored_{found}")
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
        self._cache.put(found.entry, found.alias, seconds=seconds, generation=generation, done=done)
        return not told


# Reading a stored answer.


def _blank(entry: Entry) -> Answer:
    known = entry.known
    request = Request("POST", b"", known.path, known.query, (), {})
    return Answer(request, recognise("POST", known.path), Intent(known.model, stream=known.stream))


def _labels(known: Known) -> Labels:
    return Labels(known.upstream, known.provider, known.operation, known.model, known.stream)


def _sealed(entry: Entry, ask: Ask) -> Live:
    known = entry.known
    answer = _blank(entry)
    answer.begin(entry.head)
    answer.over_with(known.events, known.deltas, known.first_kind, known.ids_until)
    facts = answer.facts
    facts.model, facts.finish = known.response_model, known.finish
    facts.input_tokens, facts.output_tokens = known.input_tokens, known.output_tokens
    facts.cached_input_tokens, facts.reasoning_tokens = known.cached_input_tokens, known.reasoning_tokens
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


# Making one answer of another.


def _converter(keep: Keep, ask: bytes, *, stream: bool) -> Convert | None:
    if keep.keys.other is None:
        return None
    return lambda entry: _converted(entry, keep, ask, stream=stream)


def _converted(entry: Entry, keep: Keep, ask: bytes, *, stream: bool) -> Entry | None:
    """The same answer in the other mode; None where it would not be exactly that."""
    known = entry.known
    if known.stream is stream:
        return None
    if stream:
        body = unfold(known.dialect, entry.body, orjson.loads(ask), keep.query)
    else:
        body = fold(known.dialect, entry.body, known.query)
    if body is None:
        return None
    dialect = recognise("POST", keep.path)
    assert dialect is not None
    kind = _type_of(dialect.framing_of(keep.query)) if stream else "application/json"
    headers = [field for field in known.headers if field[0].lower() not in _OF_STREAMS | _OF_BYTES]
    headers.append(("Content-Type", kind))
    if not stream:
        headers.append(("Content-Length", str(len(body))))
    made = _reread(body, keep, headers, stream=stream)
    kept = {name: getattr(known, name) for name in _CARRIED}
    return Entry(
        keep.keys.exact,
        Known(
            status=known.status,
            reason=known.reason,
            headers=tuple(headers),
            path=keep.path,
            query=keep.query,
            stream=stream,
            events=made[0].events,
            deltas=made[0].deltas,
            first_kind=made[0].first_kind,
            **kept,
        ),
        body,
        made[1],
    )


_CARRIED = (
    "stored",
    "ttl",
    "dialect",
    "upstream",
    "provider",
    "operation",
    "model",
    "tag",
    "response_model",
    "finish",
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "reasoning_tokens",
)


_TYPES = {"sse": "text/event-stream", "ndjson": "application/x-ndjson"}


def _type_of(framing: str | None) -> str:
    return _TYPES.get(framing or "", "application/json")


def _reread(
    body: bytes, keep: Keep, headers: list[tuple[str, str]], *, stream: bool
) -> tuple[Answer, "array[int]"]:
    """What a reader of the new bytes finds in them."""
    request = Request("POST", b"", keep.path, keep.query, (), {})
    answer = Answer(request, recognise("POST", keep.path), Intent(stream=stream))
    raw = tuple([(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers])
    answer.begin(Head(200, b"", raw, {name.lower(): value for name, value in raw}))
    ends = answer.feed(body, 0.0) + answer.close(0.0)
    return answer, array("Q", ends)
