"""Building the fast index of a partition, in a thread, while the partition goes on serving.

The vectors there are when it begins are copied slice by slice; those that come meanwhile are handed over, and
are in it before it is ready. FAISS and numpy let other threads run while they work, and what Python does
is done in slices, so that the event loop is not held up. A build can be stopped between two of them. It takes
memory for the new index, beside the old one, and at first for the sample that its lists are found with.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import faiss
import numpy as np
from numpy.typing import NDArray

from sidecar.cache.partition import SLICE, Codes, Many, Seqs
from sidecar.cache.training import PER_LIST, SEED, Train, lists_for

AGAIN = 1.5
"""Times as many vectors, the dead ones too, from which on a build that failed is tried again."""


class StoppedError(Exception):
    """Nobody wants it any more."""


class Build:
    """One build. It is told of changes by the thread that makes them."""

    def __init__(self, number: int, old: Many, train: Train) -> None:
        """`number`: of the partition, which is `old` now and must not change but by `add` and marks."""
        self.number = number
        self.old = old
        self.over = False
        self.made: Many | None = None
        """When it is over: what comes instead. It needs to be told of what was removed meanwhile."""
        self.failure: str | None = None
        """When it is over: the name of the exception because of which nothing comes."""
        self.removed: list[Seqs] = []
        self.stopped = False
        self._train = train
        self._seqs = np.array(old.seqs, np.int64)
        self._alive = old.alive()
        self._arrivals: deque[tuple[Seqs, Codes]] = deque()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="slipstream-index", daemon=True)

    def start(self) -> None:
        """Raises RuntimeError when no thread can be had."""
        self._thread.start()

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def add(self, seqs: Seqs, codes: Codes) -> None:
        """To the partition, and to what is being made of it."""
        with self._lock:
            self.old.add(seqs, codes)
            if self.made is not None:
                self.made.add(seqs, codes)
            else:
                self._arrivals.append((seqs, codes))

    def _run(self) -> None:
        try:
            faiss.omp_set_num_threads(1)  # each thread has its own setting
            self._make()
        except StoppedError:
            pass
        except Exception as error:  # noqa: BLE001 - reason: whatever it is, the partition goes on as it was
            self.failure = type(error).__name__
        self.over = True

    def _check(self) -> None:
        if self.stopped:
            raise StoppedError

    def _make(self) -> None:
        alive = self._alive
        count = int(alive.sum())
        lists = lists_for(count)
        made = Many.fast(self.old.scope, self._train(self._sample(lists), lists, self._check), count)
        ranks = np.cumsum(alive) - 1
        belong = np.empty(count, np.int64)
        for positions, codes in self._kept():
            belong[ranks[positions]] = made.lists_of(codes)
        made.reserve(np.bincount(belong, minlength=made.lists))
        for positions, codes in self._kept():
            made.place(ranks[positions], codes, belong[ranks[positions]])
        made.name(self._seqs[alive])
        while (arrived := self._arrived(made)) is not None:
            seqs, codes = arrived
            for start in range(0, len(seqs), SLICE):
                self._check()
                made.add(seqs[start : start + SLICE], codes[start : start + SLICE])

    def _arrived(self, made: Many) -> tuple[Seqs, Codes] | None:
        """What is to be caught up with; if there is nothing, it is ready."""
        with self._lock:
            if self._arrivals:
                return self._arrivals.popleft()
            self.made = made
            return None

    def _sample(self, lists: int) -> Codes:
        there = np.flatnonzero(self._alive)
        chosen = np.zeros(len(self._alive), np.bool_)
        size = min(lists * PER_LIST, len(there))
        chosen[np.random.default_rng(SEED).choice(there, size, replace=False)] = True
        return np.concatenate([codes[chosen[positions]] for positions, codes in self._kept()])

    def _kept(self) -> Iterator[tuple[NDArray[np.int64], Codes]]:
        """In slices, what is in it from the beginning."""
        for positions, codes in self.old.parts(len(self._alive), self._lock):
            self._check()
            kept = self._alive[positions]
            yield positions[kept], codes[kept]


class Builder:
    """Has one build made at a time; other partitions wait for their turn."""

    def __init__(self, train: Train, due: Callable[[int], Many | None]) -> None:
        """`due`: the partition of that number, if it still wants to be built."""
        self.built = self.failed = 0
        self.failure: str | None = None
        self._train = train
        self._due = due
        self._waiting: dict[int, None] = {}
        self._build: Build | None = None
        self._closed = False
        self.held = False
        """Nothing is begun; `go_on` once it may be again."""

    @property
    def busy(self) -> bool:
        return self._build is not None

    def of(self, number: int) -> Build | None:
        """What is under way for that partition."""
        build = self._build
        return build if build is not None and build.number == number and not build.stopped else None

    def want(self, number: int) -> None:
        """As soon as it is its turn."""
        self._waiting[number] = None
        self.go_on()

    def drop(self, number: int) -> None:
        """That partition is no more."""
        self._waiting.pop(number, None)
        if (build := self.of(number)) is not None:
            build.stopped = True

    def finished(self) -> Build | None:
        """What has come to its end, once. `go_on` when the partition is what was made."""
        build = self._build
        if build is None or not build.over:
            return None
        self._build = None
        if build.stopped:
            self.go_on()
            return None
        if build.made is None:
            self._lost(build.old, build.failure)
        else:
            self.built += 1
        return build

    def go_on(self) -> None:
        """Begin the next one, if none is under way."""
        while self._build is None and self._waiting and not self._closed and not self.held:
            number = next(iter(self._waiting))
            del self._waiting[number]
            old = self._due(number)
            if old is None:
                continue
            try:
                self._build = Build(number, old, self._train)
                self._build.start()
            except (MemoryError, RuntimeError) as error:
                self._build = None
                self._lost(old, type(error).__name__)

    def _lost(self, old: Many, failure: str | None) -> None:
        self.failed += 1
        self.failure = failure
        old.patience = int(old.total * AGAIN) + 1

    def wait(self, deadline: float) -> None:
        """Until what is under way is over, or the monotonic clock says so."""
        if self._build is not None:
            self._build.join(max(deadline - time.monotonic(), 0.0))

    def clear(self) -> None:
        """None is wanted any more."""
        self._waiting.clear()
        if self._build is not None:
            self._build.stopped = True

    def close(self, patience: float) -> None:
        """The same, for good."""
        self._closed = True
        self.clear()
        self.wait(time.monotonic() + patience)
