"""Which stored questions are nearest to another one: a view of the change log, one partition per scope.

A partition is exact until it is large; then a faster index is built for it in the background, and again when
it has grown much, or much of it is dead. Meanwhile it goes on serving. What is found is a hint: the log says
whether it is still there.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any

import faiss
import msgspec
import numpy as np
from numpy.typing import NDArray

from sidecar.cache.building import Builder
from sidecar.cache.partition import HANDFUL, Codes, Few, Found, Many, Seqs, finite, row_of
from sidecar.cache.places import Places
from sidecar.cache.training import Train, centres

GROWN = 10_000
"""Vectors of a partition from which on it gets a fast index. A search among so many takes 0.4 ms without."""
DEAD = 0.25
"""Share of the dead beyond which a partition is made anew without them."""
OUTGROWN = 4
"""Times as many vectors as it was built for, beyond which a fast index is built again, with more lists."""
_PATIENCE = 2.0
"""Seconds that closing waits for a build to stop."""


class IndexStats(msgspec.Struct, frozen=True):
    """What an index holds, and what became of its builds."""

    vectors: int
    """Alive."""
    dead: int
    """Removed, and still taking memory."""
    refused: int
    """Left out, because they were not all numbers."""
    partitions: int
    fast: int
    """Partitions with a fast index."""
    building: bool
    built: int
    """Fast indexes so far."""
    failed: int
    """Builds that came to nothing; the partition went on as it was."""
    failure: str | None
    """What the last of those failed with: the name of an exception."""
    bytes: int
    """Estimated, without what a build takes meanwhile."""


class Index:
    """One process's view of the change log. For one thread; builds have another."""

    def __init__(self, *, grown: int = GROWN, train: Train = centres) -> None:
        """`grown`: vectors of a partition from which on it gets a fast index. `train` finds where its lists
        lie; tests hold it up, or have it fail."""
        self._grown = grown
        self._numbers: dict[bytes, int] = {}
        """Of partitions, by their scope."""
        self._partitions: list[Few | Many | None] = []
        self._free: list[int] = []
        """Numbers of partitions that are no more."""
        self._places = Places()
        self._rows: dict[int, np.dtype[np.void]] = {}
        """By dimension."""
        self._builder = Builder(train, self._due)
        self._refused = 0
        self._closed = False
        self._thread = threading.local()

    def __len__(self) -> int:
        return len(self._places)

    def stats(self) -> IndexStats:
        self._settle()
        there = [partition for partition in self._partitions if partition is not None]
        large = [partition for partition in there if isinstance(partition, Many)]
        return IndexStats(
            vectors=len(self),
            dead=sum(partition.dead for partition in large),
            refused=self._refused,
            partitions=len(there),
            fast=sum(partition.lists > 0 for partition in large),
            building=self._builder.busy,
            built=self._builder.built,
            failed=self._builder.failed,
            failure=self._builder.failure,
            bytes=self._places.size + sum(partition.size for partition in there),
        )

    def search(self, scope: bytes, vector: NDArray[Any], most: int) -> Found:
        """The nearest of a scope, best first: sequence numbers and cosines. Fewer than `most` only where
        fewer are alive; none for what is no vector of that scope."""
        self._settle()
        partition = self._partition(scope)
        query = np.ascontiguousarray(vector, np.float32)
        if partition is None or most < 1 or query.shape != (partition.dimension,):
            return []
        return partition.search(query, most) if np.isfinite(query).all() else []

    # Adding.

    def add(self, scope: bytes, seqs: Sequence[int] | NDArray[np.int64], vectors: NDArray[Any]) -> None:
        """Vectors of length 1, one per row. Their numbers ascend, and are beyond those of that scope so far;
        each is used once. Vectors with infinities or NaN in them are left out. Raises ValueError when numbers
        or dimension are wrong, and what FAISS and numpy raise when there is no memory: the scope is empty
        then."""
        self._settle()
        codes, numbers = np.ascontiguousarray(vectors, np.float16), np.array(seqs, np.int64)
        if codes.ndim != 2 or not codes.shape[1] or numbers.shape != codes.shape[:1]:
            raise ValueError("vectors and their numbers do not match")
        if self._closed or not len(codes):
            return
        self._check(self._partition(scope), numbers, codes)
        kept = finite(codes)
        if not kept.all():
            numbers, codes = numbers[kept], codes[kept]
            self._refused += len(kept) - len(numbers)
        if len(codes):
            self._put(scope, numbers, codes)

    def _check(self, partition: Few | Many | None, seqs: Seqs, codes: Codes) -> None:
        former = partition.last if partition is not None else -1
        if seqs[0] <= former or (seqs[1:] <= seqs[:-1]).any() or self._places.taken(seqs):
            raise ValueError("sequence numbers do not ascend, or were used")
        if partition is not None and partition.dimension != codes.shape[1]:
            raise ValueError(f"{codes.shape[1]} dimensions among vectors of {partition.dimension}")

    def _put(self, scope: bytes, seqs: Seqs, codes: Codes) -> None:
        number = self._numbers.get(scope)
        if number is None:
            number = self._new(scope, codes.shape[1])
        partition = self._partitions[number]
        assert partition is not None
        try:
            if isinstance(partition, Few) and len(partition) + len(seqs) > HANDFUL:
                partition = self._partitions[number] = partition.enlarged()
            if (build := self._builder.of(number)) is not None:
                build.add(seqs, codes)
            else:
                partition.add(seqs, codes)
        except BaseException:
            # It may be half in, and then what comes next would be found under wrong numbers.
            self._places.forget(number)
            self._drop(number)
            raise
        self._places.add(number, seqs)
        self._look(number)

    def _partition(self, scope: bytes) -> Few | Many | None:
        number = self._numbers.get(scope)
        return self._partitions[number] if number is not None else None

    def _new(self, scope: bytes, dimension: int) -> int:
        row = self._rows.get(dimension)
        if row is None:
            row = self._rows[dimension] = row_of(dimension)
        if self._free:
            number = self._free.pop()
            self._partitions[number] = Few(scope, row)
        else:
            number = len(self._partitions)
            self._partitions.append(Few(scope, row))
        self._numbers[scope] = number
        return number

    # Removing.

    def remove(self, seq: int) -> None:
        """Never find it again. Numbers that are not here are nothing to it."""
        self._settle()
        number = self._places.take(seq)
        if number is not None:
            self._take(number, np.array([seq], np.int64))

    def retain(self, alive: Sequence[int] | NDArray[np.int64], upto: int) -> None:
        """Of the numbers up to `upto`, remove all but those that are alive, which ascend."""
        self._settle()
        for number, seqs in self._places.take_all_but(alive, upto):
            self._take(number, seqs)

    def _take(self, number: int, seqs: Seqs) -> None:
        """Out of a partition, and they are in it."""
        partition = self._partitions[number]
        assert partition is not None
        partition.remove(seqs)
        if not len(partition):
            self._drop(number)
            return
        if (build := self._builder.of(number)) is not None:
            build.removed.append(seqs)
        elif isinstance(partition, Many) and not partition.lists and self._worn(partition):
            self._partitions[number] = partition.compacted()
        self._look(number)

    def _drop(self, number: int) -> None:
        partition = self._partitions[number]
        assert partition is not None
        self._builder.drop(number)
        self._partitions[number] = None
        self._free.append(number)
        del self._numbers[partition.scope]

    def clear(self) -> None:
        """Forget everything; numbers may begin anew."""
        self._builder.clear()
        self._numbers.clear()
        self._partitions.clear()
        self._free.clear()
        self._places.clear()

    def close(self) -> None:
        """Stop what is being built. There is nothing in it any more, and nothing gets in. Never raises."""
        self._closed = True
        self.clear()
        self._builder.close(_PATIENCE)

    # Building.

    def settle(self, timeout: float) -> bool:
        """Wait until all that is due is built. Returns whether it is; nothing but that depends on it."""
        deadline = time.monotonic() + timeout
        while True:
            self._settle()
            if not self._builder.busy:
                return True
            if time.monotonic() >= deadline:
                return False
            self._builder.wait(deadline)

    def hold(self) -> None:
        """Begin no builds until `release`: many vectors are to come, and would be built in twice."""
        self._builder.held = True

    def release(self) -> None:
        self._builder.held = False
        self._builder.go_on()

    def _settle(self) -> None:
        """Take over what was built meanwhile. The first thing that is done, whatever is to be done."""
        if not hasattr(self._thread, "calm"):
            faiss.omp_set_num_threads(1)  # each thread has its own setting
            self._thread.calm = True
        if (build := self._builder.finished()) is None:
            return
        if build.made is not None:
            for seqs in build.removed:
                build.made.remove(seqs)
            self._partitions[build.number] = build.made
        self._look(build.number)
        self._builder.go_on()

    def _look(self, number: int) -> None:
        if self._due(number) is not None and self._builder.of(number) is None:
            self._builder.want(number)

    def _due(self, number: int) -> Many | None:
        """The partition, if it is to be built."""
        partition = self._partitions[number] if number < len(self._partitions) else None
        if not isinstance(partition, Many) or partition.total < partition.patience:
            return None
        if not partition.lists:
            return partition if len(partition) >= self._grown else None
        outgrown = partition.total > partition.built * OUTGROWN
        return partition if outgrown or self._worn(partition) else None

    def _worn(self, partition: Many) -> bool:
        """A flat one that is to be built loses its dead then; one that is too small is compacted at once."""
        if not partition.lists and len(partition) >= self._grown:
            return False
        return partition.dead > partition.total * DEAD
