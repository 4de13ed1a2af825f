"""One request's way to an answer: a stored one, a call that is running, or a new one.

Whichever it is, the client reads a recording; only where its reader starts differs.
"""

import time

import msgspec

from sidecar.config import Config
from sidecar.core import policy
from sidecar.core.caching import Freshness, age, freshness, hit_status, stale_status, unfit
from sidecar.core.entry import Entry
from sidecar.core.errors import RefusedError
from sidecar.core.fingerprint import Caller
from sidecar.core.latency import CacheResult, server_timing
from sidecar.core.recording import Recording
from sidecar.core.types import Head
from sidecar.engine.answers import Answers
from sidecar.engine.hub import Hub
from sidecar.engine.paraphrases import Match, Paraphrases
from sidecar.engine.pump import RETAINED, Ask, Keep, Live
from sidecar.serving.asks import Asked
from sidecar.serving.follow import Follow
from sidecar.serving.render import NO_FIELDS, ApartError, Fields, SparedError
from sidecar.serving.visit import Hit, Visit

_FORWARDED: dict[CacheResult, bytes] = {
    "collapsed": b"slipstream; fwd=miss; collapsed",
    "miss": b"slipstream; fwd=miss",
    "bypass": b"slipstream; fwd=bypass",
}
_UNFRESH: dict[Freshness, bytes] = {"refused": b"slipstream; fwd=request", "stale": b"slipstream; fwd=stale"}
"""`Cache-Status` where an answer is there and was not used (RFC 9211, 2.2)."""


_PIECE = 256 << 10
"""Bytes that are written at once: a slow client has its time for each such piece."""


class Turn:
    """One request's way to an answer."""

    def __init__(
        self,
        config: Config,
        hub: Hub,
        follow: Follow,
        answers: Answers,
        visit: Visit,
        asked: Asked,
        ask: Ask,
        caller: Caller,
    ) -> None:
        self._config = config
        self._hub = hub
        self._follow = follow
        self._answers = answers
        self._visit = visit
        self._asked = asked
        self._ask = ask
        self._caller = caller
        self._cache = visit.trace.cache
        self._spare: Entry | None = None
        """A stored answer that is too old, but better than none."""
        self._unfresh: Freshness | None = None
        """Why a stored answer that is there was not used."""

    async def serve(self) -> None:
        """Raises RefusedError, ClientGoneError."""
        asked, ask, hub = self._asked, self._ask, self._hub
        keep = ask.keep if asked.wish.read else None
        if keep is not None and (entry := self._usable(self._answers.hot(keep), keep)) is not None:
            await self._hit(entry, keep)
            return
        looked = keep is None or self._unfresh is not None
        again = False
        while True:
            live = hub.shared(ask) or hub.repeated(ask, retry=policy.is_retry(asked.request.fields))
            if asked.wish.only_if_cached:
                live = None
            joined = live is not None
            if live is None and not looked and keep is not None:
                looked = True
                entry = await self._lookup(keep) or self._usable(self._answers.hot(keep), keep)
                if entry is not None:
                    await self._hit(entry, keep)
                    return
                if (match := await self._near(keep)) is not None:
                    await self._match(match, keep)
                    return
                continue  # somebody else may have begun the same call meanwhile
            if live is None and asked.wish.only_if_cached:
                raise RefusedError("not_cached", "only-if-cached, and there is no such answer", close=False)
            live = live or self._begin()
            self._visit.trace.joined = joined
            self._visit.trace.cache = "collapsed" if joined else self._cache
            try:
                await self._read(live)
            except ApartError:
                # Its answer would have been another's: it gets a call of its own.
                self._ask = ask = msgspec.structs.replace(ask, alone=True, idempotency=None)
                looked = True
                continue
            except SparedError as error:
                await self._stale(live, error.status)
            except RefusedError:
                end, begun = live.recording.end, live.recording.head is not None
                if self._visit.reply.started or end is None:
                    raise
                if not policy.starts_again(end.fault, begun=begun):
                    raise
                if self._spare is not None:
                    await self._stale(live, None)
                    return
                if not joined or again:
                    raise
                # The call it waited for came to nothing. It gets one more, its own or another's.
                again = True
                continue
            return

    def _begin(self) -> Live:
        """Make a call. Raises RefusedError."""
        asked, hub = self._asked, self._hub
        checks = self._answers.paraphrases.checks if self._answers.paraphrases is not None else 0
        if len(hub) - checks >= self._config.limits.requests:
            # Calls that go on without their clients take places, too.
            raise RefusedError("overloaded", f"{len(hub)} calls are running", close=False)
        self._visit.room()
        limit = RETAINED if asked.dialect is not None and not hub.brief else 0
        if hub.brief and self._ask.keep is not None:
            self._answers.count("not_stored_memory")
            self._ask = msgspec.structs.replace(self._ask, keep=None)
        live = Live(Recording(limit=limit), asked.answer(), self._ask, asked.labels)
        live.brief = hub.brief
        live.early, live.configured = asked.early, asked.configured
        asked.start(live)
        return live

    async def _read(self, live: Live) -> None:
        visit, asked = self._visit, self._asked
        spared = self._spare is not None
        await self._follow.follow(
            visit, live, asked.request, self._caller, fields=self._forwarded, spared=spared
        )

    def _forwarded(self, head: Head | None) -> Fields:
        """`Cache-Status` of an answer that the upstream gave."""
        trace = self._visit.trace
        if trace.cache not in _FORWARDED or (self._visit.dialect is None and trace.cache != "collapsed"):
            return NO_FIELDS
        said = _FORWARDED[trace.cache]
        if trace.cache == "miss" and self._unfresh in _UNFRESH:
            said = _UNFRESH[self._unfresh]
        if (
            trace.cache != "collapsed"
            and self._ask.keep
            and head
            and unfit(head) is None
            and self._answers.accepts
        ):
            said += b"; stored"  # once it is whole, if it is what is wanted
        return ((b"Cache-Status", said),)

    # Stored answers.

    async def _lookup(self, keep: Keep) -> Entry | None:
        begun = time.perf_counter()
        asked = self._asked
        entry = await self._answers.lookup(keep, asked.body.kept, stream=asked.intent.stream)
        self._visit.trace.lookup = time.perf_counter() - begun
        return self._usable(entry, keep)

    def _usable(self, entry: Entry | None, keep: Keep) -> Entry | None:
        if entry is None:
            return None
        fresh = freshness(entry.known, self._asked.wish, keep.terms, self._answers.clock())
        if fresh == "fresh":
            return entry
        if fresh == "over":
            self._answers.drop(entry)
            return None
        self._unfresh = fresh
        if fresh == "stale":
            self._spare = entry
        return None

    async def _near(self, keep: Keep) -> Match | None:
        """An answer to the same question in other words."""
        paraphrases, inquiry, trace = self._answers.paraphrases, keep.inquiry, self._visit.trace
        if paraphrases is None or inquiry is None:
            return None
        self._visit.inquiry = inquiry
        begun = time.perf_counter()
        match = await paraphrases.look(
            keep, self._asked.labels, lambda entry: self._takes(entry, keep), trace.lookup or 0.0
        )
        trace.lookup = (trace.lookup or 0.0) + time.perf_counter() - begun
        return match

    def _takes(self, entry: Entry, keep: Keep) -> bool:
        """Whether an answer to another question is fresh enough; nothing stale stands in for it."""
        return freshness(entry.known, self._asked.wish, keep.terms, self._answers.clock()) == "fresh"

    async def _match(self, match: Match, keep: Keep) -> None:
        trace, paraphrases = self._visit.trace, self._answers.paraphrases
        assert paraphrases is not None
        now, candidate = self._answers.clock(), match.candidate
        trace.cache, trace.cache_kind, trace.similarity = "hit", "semantic", candidate.similarity
        self._answers.count("hit_semantic")
        status = hit_status(match.entry.known, keep.terms, now, candidate.similarity)
        try:
            await self._serve(match.entry, status, now)
        finally:
            # By these an operator can have it removed.
            for name in (trace.request_id, trace.stream_id):
                if name is not None:
                    self._answers.served(name, candidate.key)
        if not self._asked.wish.only_if_cached and paraphrases.samples(keep):
            self._check(match, paraphrases)

    def _check(self, match: Match, paraphrases: Paraphrases) -> None:
        """Ask the upstream as well, for nobody: does it say the same?"""
        ask = msgspec.structs.replace(self._ask, alone=True, identity=b"", idempotency=None)
        live = Live(Recording(limit=RETAINED), self._asked.answer(), ask, self._asked.labels)
        live.held = True
        paraphrases.checking(live, match)
        msgspec.structs.replace(self._asked, detached=True).start(live)

    async def _hit(self, entry: Entry, keep: Keep) -> None:
        trace = self._visit.trace
        now = self._answers.clock()
        if trace.lookup is None:
            trace.lookup = 0.0
        trace.cache, trace.cache_kind = "hit", "exact"
        self._answers.count("hit_memory" if not trace.lookup else "hit_disk")
        live = await self._serve(entry, hit_status(entry.known, keep.terms, now), now)
        # Else it may not be at hand, or not the same, the next time.
        if not trace.lookup and self._answers.repeatable:
            asked = self._asked
            keep = msgspec.structs.replace(keep, inquiry=None)  # it holds the request
            self._visit.hit = Hit(entry, keep, asked.wish, live, asked.request, asked.body.kept)

    async def _stale(self, failed: Live, status: int | None) -> None:
        entry, keep = self._spare, self._ask.keep
        assert entry is not None
        assert keep is not None
        now, trace = self._answers.clock(), self._visit.trace
        trace.cache, trace.cache_kind = "hit", "stale"
        self._answers.count("hit_stale")
        await self._serve(entry, stale_status(entry.known, keep.terms, now, status), now)
        # What it waited for was the call that failed.
        trace.timings, trace.joined = failed.timings, False

    async def _serve(self, entry: Entry, status: bytes, now: float) -> Live | None:
        """Returns what was read; None for an answer that is no stream."""
        visit, caller = self._visit, self._caller
        visit.trace.joined, visit.took = True, entry.known.took
        fields = ((b"Cache-Status", status), (b"Age", age(entry.known, now)))
        if not entry.known.stream:
            await self._whole(self._answers.renewed(entry), fields)
            return None
        live = self._answers.live(entry, self._ask, caller.scope)
        await self._follow.follow(visit, live, self._asked.request, caller, fields=lambda _head: fields)
        return live

    async def _whole(self, entry: Entry, fields: Fields) -> None:
        """An answer that is no stream is all there: nobody comes back to it, and nothing is to follow."""
        visit, head = self._visit, entry.head
        reply, trace = visit.reply, visit.trace
        visit.live, visit.stored, trace.status = None, entry.known, head.status
        said = [*head.headers, *fields, (b"Server-Timing", server_timing(trace))]
        sized = b"content-length" in head.fields
        body = entry.body
        first = body[:_PIECE] if len(body) > _PIECE else body
        try:
            reply.start(head.status, head.reason, said, sized=sized, body=first, last=first is body)
        except ValueError as error:
            raise RefusedError("upstream_protocol", str(error)) from None
        trace.head_at = time.perf_counter()
        for at in range(_PIECE, len(body), _PIECE):
            await reply.drained()
            reply.write(body[at : at + _PIECE])
        await reply.drained()
        reply.finish()
