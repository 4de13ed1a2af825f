"""In which partition each vector is, by its sequence number: two arrays side by side, 12 bytes for each."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sidecar.cache.partition import Seqs

_NOWHERE = 0xFFFFFFFF
"""Instead of the partition of what was removed."""
_SPARE = 4096
"""Numbers that lead nowhere and may be kept, however few others there are."""
_STEP = 65536
"""Numbers that are looked at in one step, so that other threads wait for no more than that."""


class Places:
    """Ascending numbers, and the number of a partition for each."""

    def __init__(self) -> None:
        self._seqs = array("q")
        self._places = array("I")
        self._gone = 0

    def __len__(self) -> int:
        """Those that are somewhere."""
        return len(self._seqs) - self._gone

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self._seqs) * (self._seqs.itemsize + self._places.itemsize)

    def clear(self) -> None:
        del self._seqs[:], self._places[:]
        self._gone = 0

    def taken(self, seqs: Seqs) -> bool:
        """Whether one of these, which ascend, is here."""
        at = bisect_left(self._seqs, int(seqs[0]))
        return at < len(self._seqs) and bool(np.isin(seqs, self._seen(at)[0], assume_unique=True).any())

    def add(self, place: int, seqs: Seqs) -> None:
        """None of them is taken. Those beyond the first of them, of other partitions, are few."""
        at = bisect_left(self._seqs, int(seqs[0]))
        places = np.full(len(seqs), place, np.uint32)
        if at < len(self._seqs):
            seqs, places = self._sorted_in(at, seqs, places)
            del self._seqs[at:], self._places[at:]
        self._seqs.frombytes(seqs.tobytes())
        self._places.frombytes(places.tobytes())

    def _sorted_in(self, at: int, seqs: Seqs, places: NDArray[np.uint32]) -> tuple[Seqs, NDArray[np.uint32]]:
        beyond, theirs = self._seen(at)
        seqs, places = np.concatenate([beyond, seqs]), np.concatenate([theirs, places])
        order = seqs.argsort(kind="stable")
        return seqs[order], places[order]

    def take(self, seq: int) -> int | None:
        """Where it is; it is nowhere from now on."""
        at = bisect_left(self._seqs, seq)
        if at == len(self._seqs) or self._seqs[at] != seq or self._places[at] == _NOWHERE:
            return None
        place = self._places[at]
        self._places[at] = _NOWHERE
        self._gone += 1
        self._tidy()
        return place

    def take_all_but(self, alive: Sequence[int] | NDArray[np.int64], upto: int) -> list[tuple[int, Seqs]]:
        """By place, the numbers up to `upto` that are not among these, which ascend; they are nowhere now."""
        kept = np.asarray(alive, np.int64)
        end = bisect_right(self._seqs, upto)
        found = [self._step(kept, start, min(start + _STEP, end)) for start in range(0, end, _STEP)]
        places = np.concatenate([np.empty(0, np.uint32), *(there for there, _ in found)])
        seqs = np.concatenate([np.empty(0, np.int64), *(theirs for _, theirs in found)])
        self._gone += len(seqs)
        self._tidy()
        order = places.argsort(kind="stable")
        numbers, begins = np.unique(places[order], return_index=True)
        return list(zip(map(int, numbers), np.split(seqs[order], begins[1:]), strict=False))

    def _step(self, kept: Seqs, start: int, stop: int) -> tuple[NDArray[np.uint32], Seqs]:
        seqs, places = self._seen(start, stop)
        first, last = np.searchsorted(kept, [seqs[0], seqs[-1] + 1])
        dead = ~np.isin(seqs, kept[first:last], assume_unique=True) & (places != _NOWHERE)
        gone = places[dead], seqs[dead]
        places[dead] = _NOWHERE
        return gone

    def forget(self, place: int) -> None:
        """All that is there is nowhere now."""
        _, places = self._seen()
        there = places == place
        places[there] = _NOWHERE
        self._gone += int(there.sum())

    def _tidy(self) -> None:
        if self._gone > max(_SPARE, len(self)):
            seqs, places = self._somewhere()
            self.clear()
            self._seqs.frombytes(seqs.tobytes())
            self._places.frombytes(places.tobytes())

    def _somewhere(self) -> tuple[Seqs, NDArray[np.uint32]]:
        seqs, places = self._seen()
        there = places != _NOWHERE
        return seqs[there], places[there]

    def _seen(self, start: int = 0, stop: int | None = None) -> tuple[Seqs, NDArray[np.uint32]]:
        """Not copied: while somebody has them, nothing can be added."""
        seqs, places = np.frombuffer(self._seqs, np.int64), np.frombuffer(self._places, np.uint32)
        return seqs[start:stop], places[start:stop]
