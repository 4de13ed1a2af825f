"""The vectors of one scope, and which of them are nearest to another one.

Most scopes are conversations with one or two questions in them: their vectors are plain bytes. More of them
are a FAISS index. It compares a question with each (`flat`), or only with those in the lists that are nearest
to it (`fast`); which of the two is the index's business. Vectors are kept as the log has them, in float16,
and similarities are computed from those, whatever the way they were found.

What is removed from a FAISS index stays in it, marked as dead. Nothing here knows of threads.
"""

from array import array
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.float16]
"""Vectors, one per row; contiguous."""
Floats = NDArray[np.float32]
Seqs = NDArray[np.int64]
"""The log's sequence numbers, ascending."""
Found = list[tuple[int, float]]
"""Sequence numbers and cosines, the nearest first."""

_faiss: Any = faiss
"""Annotated for the C++ it wraps, where it is annotated."""
_FORM = _faiss.ScalarQuantizer.QT_fp16
_METRIC = _faiss.METRIC_INNER_PRODUCT

HANDFUL = 16
"""Vectors of the largest partition that is plain bytes. Up to there a FAISS index is not faster by much."""
PROBES = 32
"""Lists of a fast index that are looked at. Half as many miss more where all questions are much alike."""
SPARE = 0.25
"""Share of the room in the lists of a fast index that is for what comes until it is built again."""
SLICE = 1024
"""Vectors that are copied, or put into a fast index, at once: what others may have to wait for."""
EACH = 280
"""Bytes of a partition of plain bytes beside its vectors, its scope included; measured."""
_INFINITE = 0x7C00
"""The bits of infinity in float16; those of NaN are more."""
_WORD = 8
"""Vectors whose marks fit into a byte."""
_ROOM = 64
"""Bytes of marks at the beginning."""


class Few:
    """A handful, as rows of number and vector; each change makes new bytes."""

    __slots__ = ("_raw", "_row", "scope")

    def __init__(self, scope: bytes, row: np.dtype[np.void]) -> None:
        """`row`: of `row_of`; partitions share it."""
        self.scope = scope
        self._row = row
        self._raw = b""

    @property
    def dimension(self) -> int:
        return int(self._row["vector"].shape[0])

    @property
    def last(self) -> int:
        """The greatest number, -1 if there is none."""
        return int(self._rows()["seq"][-1]) if self._raw else -1

    @property
    def size(self) -> int:
        """About as many bytes of memory it takes."""
        return EACH + len(self._raw)

    def __len__(self) -> int:
        return len(self._raw) // self._row.itemsize

    def add(self, seqs: Seqs, codes: Codes) -> None:
        rows = np.empty(len(seqs), self._row)
        rows["seq"], rows["vector"] = seqs, codes
        self._raw += rows.tobytes()

    def remove(self, seqs: Seqs) -> None:
        rows = self._rows()
        self._raw = rows[~np.isin(rows["seq"], seqs)].tobytes()

    def search(self, query: Floats, most: int) -> Found:
        rows = self._rows()
        cosines = rows["vector"].astype(np.float32) @ query
        nearest = cosines.argsort()[: -most - 1 : -1]
        return _found(rows["seq"][nearest], cosines[nearest])

    def enlarged(self) -> "Many":
        """With a FAISS index."""
        made, rows = Many.flat(self.scope, self.dimension), self._rows()
        made.add(np.ascontiguousarray(rows["seq"]), np.ascontiguousarray(rows["vector"]))
        return made

    def _rows(self) -> NDArray[np.void]:
        return np.frombuffer(self._raw, self._row)


def row_of(dimension: int) -> np.dtype[np.void]:
    """Of a handful of vectors of that dimension."""
    return np.dtype([("seq", np.int64), ("vector", np.float16, (dimension,))])


class Many:
    """A FAISS index, and which of its vectors are dead."""

    def __init__(self, scope: bytes, index: Any, lists: int = 0, built: int = 0) -> None:
        """Use `flat` or `fast`."""
        self.scope = scope
        self.seqs = array("q")
        """By position, the dead ones too."""
        self.dead = 0
        self.lists = lists
        """0 if it is flat."""
        self.built = built
        """Vectors there were when it was built, if it is fast."""
        self.patience = 0
        """Vectors, the dead ones too, before which it is not built again, because that failed."""
        self._index = index
        self._marks = np.full(_ROOM, 0xFF, np.uint8)
        self._alive: Any = None
        """Once there are dead ones: what FAISS is told of them. It looks at `_marks` itself."""

    @classmethod
    def flat(cls, scope: bytes, dimension: int) -> "Many":
        return cls(scope, _faiss.IndexScalarQuantizer(dimension, _FORM, _METRIC))

    @classmethod
    def fast(cls, scope: bytes, centres: Floats, built: int) -> "Many":
        """`centres` are those of its lists, one per row."""
        lists, dimension = centres.shape
        coarse = _faiss.IndexFlatIP(dimension)
        coarse.add(centres)
        index = _faiss.IndexIVFScalarQuantizer(coarse, dimension, lists, _FORM, _METRIC)
        index.by_residual = False  # what differs from a centre would be another vector in float16
        index.train(centres[:1])  # there is nothing to learn, but it wants to be asked
        index.nprobe = PROBES
        return cls(scope, index, lists, built)

    @property
    def dimension(self) -> int:
        return int(self._index.d)

    @property
    def last(self) -> int:
        """The greatest number so far, -1 if there was none."""
        return int(self.seqs[-1]) if self.seqs else -1

    @property
    def total(self) -> int:
        """The dead ones too."""
        return len(self.seqs)

    @property
    def size(self) -> int:
        """About as many bytes of memory it takes."""
        each, numbers = int(self._index.code_size), self.seqs.itemsize * self.total
        if not self.lists:
            return numbers + each * self.total + len(self._marks)
        room = max(self.total, int(self.built * (1 + SPARE)))
        return numbers + (each + 8) * room + len(self._marks) + self.lists * self.dimension * 4

    def __len__(self) -> int:
        return self.total - self.dead

    def add(self, seqs: Seqs, codes: Codes) -> None:
        """What it raises leaves something in it that has no number: it is of no use then."""
        if self.lists:
            for start in range(0, len(seqs), SLICE):
                part, theirs = seqs[start : start + SLICE], codes[start : start + SLICE]
                self.place(np.arange(self.total, self.total + len(part)), theirs, self.lists_of(theirs))
                self.name(part)
        elif len(seqs):
            self._index.add_sa_codes(codes.view(np.uint8))
            self.name(seqs)

    def lists_of(self, codes: Codes) -> NDArray[np.int64]:
        """In which list of a fast one each of these belongs."""
        nearest: NDArray[np.int64] = self._index.quantizer.assign(codes.astype(np.float32), 1)[:, 0]
        return nearest

    def reserve(self, counts: NDArray[np.int64]) -> None:
        """Room for so many in each list, and some more: a list that is full doubles, and leaves a hole."""
        lists = self._index.invlists
        for number, count in enumerate(counts.tolist()):
            lists.resize(number, count + int(count * SPARE))
            lists.resize(number, 0)

    def place(self, positions: NDArray[np.int64], codes: Codes, lists: NDArray[np.int64]) -> None:
        """Into these lists of a fast one, at these positions; `name` says whose they are."""
        vectors = codes.astype(np.float32)
        pointers = (_faiss.swig_ptr(each) for each in (vectors, positions, lists))
        self._index.add_core(len(vectors), *pointers)

    def name(self, seqs: Seqs) -> None:
        """The next positions are those of these numbers."""
        self.seqs.frombytes(seqs.tobytes())
        room = len(self._marks)
        if self.total > room * _WORD:
            more = np.full(max(self.total // _WORD + 1 - room, room), 0xFF, np.uint8)
            self._marks = np.concatenate([self._marks, more])
            self._tell()

    def remove(self, seqs: Seqs) -> None:
        """Mark these as dead. They are in it, and alive."""
        positions = np.searchsorted(np.frombuffer(self.seqs, np.int64), seqs)
        marks = ~(1 << positions % _WORD)
        np.bitwise_and.at(self._marks, positions // _WORD, marks.astype(np.uint8))
        self.dead += len(seqs)
        if self._alive is None:
            self._tell()

    def _tell(self) -> None:
        if self.dead:
            self._alive = _faiss.IDSelectorBitmap(self._marks)

    def search(self, query: Floats, most: int) -> Found:
        most = min(most, len(self))
        probes = PROBES
        while True:
            cosines, positions = self._index.search(query[np.newaxis], most, params=self._how(probes))
            there = positions[0] >= 0
            found = positions[0][there]
            # The nearest lists may hold fewer than that.
            if len(found) == most or probes >= self.lists:
                return _found([self.seqs[position] for position in found], cosines[0][there])
            probes *= 4

    def _how(self, probes: int) -> Any:
        """Parameters of a search, None for those that the index has by itself."""
        if not self.lists:
            return _faiss.SearchParameters(sel=self._alive) if self.dead else None
        if not self.dead and probes == PROBES:
            return None
        return _faiss.SearchParametersIVF(sel=self._alive, nprobe=probes)

    def alive(self) -> NDArray[np.bool_]:
        """By position."""
        return np.unpackbits(self._marks, count=self.total, bitorder="little").astype(np.bool_)

    def compacted(self) -> "Many":
        """A flat one without the dead."""
        made = Many.flat(self.scope, self.dimension)
        alive = self.alive()
        made.add(np.frombuffer(self.seqs, np.int64)[alive], self._codes()[alive])
        return made

    def parts(
        self, total: int, lock: AbstractContextManager[object]
    ) -> Iterator[tuple[NDArray[np.int64], Codes]]:
        """Copies of the first `total` vectors in slices, with their positions, in no particular order. Each
        slice is copied under the lock, without which nobody may add anything meanwhile."""
        if not self.lists:
            for start in range(0, total, SLICE):
                with lock:
                    codes = self._codes()[start : min(start + SLICE, total)].copy()
                yield np.arange(start, start + len(codes)), codes
            return
        for number in range(self.lists):
            with lock:
                positions, codes = self._list(number)
            first = positions < total
            for start in range(0, len(positions), SLICE):
                which = first[start : start + SLICE]
                yield positions[start : start + SLICE][which], codes[start : start + SLICE][which]

    def _codes(self) -> Codes:
        """Of a flat one: its own memory, until something is added."""
        raw = self._index.codes
        return _seen(raw.data(), raw.size()).view(np.float16).reshape(self.total, self.dimension)

    def _list(self, number: int) -> tuple[NDArray[np.int64], Codes]:
        lists = self._index.invlists
        length = lists.list_size(number)
        if not length:
            return np.empty(0, np.int64), np.empty((0, self.dimension), np.float16)
        positions = _seen(lists.get_ids(number), length).copy()
        codes = _seen(lists.get_codes(number), length * self._index.code_size).copy()
        return positions, codes.view(np.float16).reshape(length, self.dimension)


def finite(codes: Codes) -> NDArray[np.bool_]:
    """Which rows are numbers throughout. By their bits: numpy takes 20 times as long for what they mean."""
    steps = [codes[start : start + SLICE].view(np.uint16) for start in range(0, len(codes), SLICE)]
    return np.concatenate([(bits & 0x7FFF).max(axis=1) < _INFINITE for bits in steps])


def _seen(pointer: Any, length: int) -> NDArray[Any]:
    seen: NDArray[Any] = _faiss.rev_swig_ptr(pointer, length)
    return seen


def _found(seqs: Any, cosines: Floats) -> Found:
    return [(int(seq), min(max(float(cosine), -1.0), 1.0)) for seq, cosine in zip(seqs, cosines, strict=True)]
