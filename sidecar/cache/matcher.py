"""The thread's side of the semantic cache: texts become vectors, and vectors find what is stored near them.

The index is a view of the store's change log: it is brought up to date before each search, and what it finds
is looked up in the log again, which alone tells what is still there and what was asked. Everything here
blocks, and is called by one thread.
"""

import hashlib
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from sidecar.cache.embed.base import Embedded, Embedder, EmbedError, Vector
from sidecar.cache.index import Index
from sidecar.cache.inquiry import Done, Job
from sidecar.core.semantic.decision import Candidate
from sidecar.core.semantic.guards import objection
from sidecar.core.semantic.traits import TRAITS_VERSION, Traits, decode, encode, hashed, traits
from sidecar.stores.base import ChangeLog, Near, StoreError

_STEP = 512
"""Changes that are taken over before a search, at most: those who ask wait for it."""
_NEAREST = 8
"""Candidates of a search: guards may object to the nearest ones."""
_USABLE = 2
"""Candidates that may be used: the answer to the first one may be gone."""
_LONGEST = 1000
"""Characters of an answer that are compared with those of another one."""
_FORM = b"1"
"""Of what is stored of a question."""


class Matcher:
    """One embedder, one index, one log."""

    def __init__(
        self,
        embedder: Embedder,
        index: Index,
        log: ChangeLog,
        secret: bytes,
        skip: frozenset[str],
    ) -> None:
        """`secret`: for what is kept of words. `skip`: guards that are not asked."""
        self._embedder = embedder
        self._index = index
        self._log = log
        self._secret = hashlib.blake2b(b"words", key=secret, digest_size=32).digest()
        self._skip = skip
        self._cursor = 0
        kind = b"%b %d %b" % (_FORM, TRAITS_VERSION, embedder.space.encode())
        self._space = hashlib.blake2b(kind, digest_size=16).digest()

    def scope(self, question: bytes) -> bytes:
        """Where questions of that scope are in the index: apart from what another model, or an older version
        of the guards, has left there."""
        return hashlib.blake2b(question, key=self._space, digest_size=32).digest()

    def follow(self, most: int = _STEP) -> bool:
        """Take over what is new in the log; returns whether there may be more. Raises StoreError."""
        rows = self._log.after(self._cursor, most)
        scopes: dict[bytes, list[int]] = {}
        for at, row in enumerate(rows):
            scopes.setdefault(row.scope, []).append(at)
        for scope, places in scopes.items():
            self._take(scope, [rows[at].seq for at in places], [rows[at].vector for at in places])
        if rows:
            self._cursor = rows[-1].seq
        return len(rows) == most

    def load(self, stop: Callable[[], bool], most: int) -> int:
        """Take over all that the log has, unless it is to stop. Returns how much it is. Raises StoreError."""
        self._index.hold()
        while not stop() and self.follow(most):
            pass
        count = 0 if stop() else self.sweep()
        self._index.release()
        return count

    def _take(self, scope: bytes, seqs: list[int], vectors: list[bytes]) -> None:
        width = len(vectors[0])
        if any(len(vector) != width for vector in vectors) or width % 2:
            return  # of one scope, only damage makes them differ
        made = np.frombuffer(b"".join(vectors), dtype="<f2").reshape(len(vectors), -1)
        with suppress(ValueError):  # likewise
            self._index.add(scope, seqs, made)

    def sweep(self) -> int:
        """Forget what the log no longer has. Returns how much is left. Raises StoreError."""
        upto = self._cursor
        alive: array[int] = self._log.alive()
        self._index.retain(alive, upto)
        return len(self._index)

    def answer(self, jobs: Sequence[Job]) -> list[Done]:
        """One for each. Raises nothing that one of them could have caused."""
        begun, dead = time.perf_counter(), False
        try:
            made: Sequence[Embedded | EmbedError] = self._embedder.embed([job.text for job in jobs])
        except EmbedError as error:
            made, dead = [error] * len(jobs), True
        took = time.perf_counter() - begun
        done = []
        for job, one in zip(jobs, made, strict=True):
            if isinstance(one, EmbedError):
                done.append(Done(error=one, dead=dead, embed=took))
            else:
                done.append(self._done_safely(job, one, took))
        return done

    def _done_safely(self, job: Job, made: Embedded, took: float) -> Done:
        try:
            return self._done(job, made, took)
        except Exception as mistake:  # noqa: BLE001 - reason: the others in the batch are somebody else's
            return Done(mistake=mistake, embed=took)

    def _done(self, job: Job, made: Embedded, took: float) -> Done:
        result = Done(embed=took, truncated=made.truncated, unknown=made.unknown)
        if made.truncated or made.unknown:
            return result  # two texts may differ in what was not read
        begun = time.perf_counter()
        asked = hashed(traits(job.text), self._secret)
        result.near = Near(job.scope, made.vector.astype("<f2").tobytes(), encode(asked))
        if job.search:
            try:
                self._search(job, made.vector, asked, result.found)
            except StoreError as error:
                result.error, result.dead = error, True
                return result
        result.search = time.perf_counter() - begun
        return result

    def _search(self, job: Job, vector: Vector, asked: Traits, found: list[Candidate]) -> None:
        """The nearest one, and those near enough, up to so many that may be used. Raises StoreError."""
        self.follow()
        usable = 0
        for seq, similarity in self._index.search(job.scope, vector, _NEAREST):
            if usable == _USABLE or (found and similarity < job.threshold):
                return
            stored = self._log.noted([seq]).get(seq)
            if stored is None or stored.scope != job.scope:
                self._index.remove(seq)
                continue
            try:
                guard = objection(asked, decode(stored.traits), self._skip)
            except ValueError:
                continue  # damaged
            found.append(Candidate(stored.key, similarity, guard))
            usable += guard is None and similarity >= job.threshold

    def vector(self, text: str) -> Vector | None:
        """Of an answer; of a long one, of its beginning. None where there is none."""
        try:
            (made,) = self._embedder.embed([text[:_LONGEST]])
        except EmbedError:
            return None
        return made.vector if isinstance(made, Embedded) else None

    def close(self) -> None:
        """Never raises."""
        self._index.close()
        self._log.close()
        self._embedder.close()
