"""Fills a data folder, in which one question was asked, with very many answers to others.

What was asked through the front door says in which scope questions lie and how their answers look; the rest
is put into the store as the sidecar itself does it. Some of the questions are those of `semantic_questions`,
with the vectors and traits that the sidecar gives them; the others have the vectors of `search`.

`python -m benchmarks.semantic_fill` takes an order from stdin and says to stdout what became of it, as JSON.
"""

import hashlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from benchmarks import search
from benchmarks.semantic_questions import pairs
from sidecar.cache.embed import load
from sidecar.cache.index import Index
from sidecar.cache.inquiry import Job
from sidecar.cache.matcher import Matcher
from sidecar.core.entry import Entry, seal, unseal
from sidecar.core.semantic.guards import objection
from sidecar.core.semantic.traits import decode
from sidecar.serving.folder import ANSWERS
from sidecar.stores.base import Blob, Near
from sidecar.stores.disk import DiskStore
from sidecar.stores.secret import load_or_create
from sidecar.tables import Semantic

ROOM = 1 << 34
"""Bytes that the store may take: all of them are to fit."""
BATCH = 500
"""Answers that are stored at once."""
WEIGHED = 2000
"""Answers that are stored once more by themselves, to see how much room they take."""
MARGIN = 0.005
"""By how much paraphrases are nearer than they have to be: the cache rounds a little."""
DAY = 86400.0


class Order(msgspec.Struct):
    folder: str
    """The data folder."""
    source: str
    """Where `search` has the vectors that others are made of."""
    size: int
    """How many questions there are to be in the end."""
    known: int
    """Of them, how many can be asked in other words."""
    fresh: int
    """Questions that are to be asked and not known."""


class Filled(msgspec.Struct):
    asked: list[str]
    """What is known in other words."""
    fresh: list[str]
    answer: float
    """Bytes on disk that an answer takes without its question."""
    question: float
    """What its question adds."""


class Shelves:
    """The store of a data folder, and the one answer that others are copies of."""

    def __init__(self, store: DiskStore, folder: Path) -> None:
        log = store.changes()
        first = log.after(0, 1)[0]
        key = log.noted([first.seq])[first.seq].key
        blob = store.get(key)
        if blob is None:
            raise SystemExit("what was asked first is not in the store")
        self._store = store
        self._entry = unseal(key, blob)
        self._scope = first.scope
        secret = load_or_create(folder)
        self._matcher = Matcher(load(Semantic(), folder), Index(), log, secret, frozenset())

    def near(self, text: str) -> Near | None:
        """As the sidecar would store it."""
        job = Job(text=text, scope=self._scope, threshold=Semantic().threshold, search=False)
        return self._matcher.answer([job])[0].near

    def paraphrased(self) -> Iterator[tuple[Near, str]]:
        """Questions, and the same ones in words that match them."""
        for stored, asked in pairs(seed=1):
            one, other = self.near(stored), self.near(asked)
            if one is not None and other is not None and matches(one, other):
                yield one, asked

    def others(self, source: search.Source, size: int) -> Iterator[Near]:
        some = self.near("What is it?")
        assert some is not None
        for vector in search.stored(source, size):
            yield Near(self._scope, vector.astype("<f2").tobytes(), some.traits)

    def put(self, nears: Sequence[Near | None], store: DiskStore | None = None) -> None:
        """A new answer for each."""
        for start in range(0, len(nears), BATCH):
            batch = enumerate(nears[start : start + BATCH], start)
            (store or self._store).put_all([self._blob(number, near) for number, near in batch])

    def _blob(self, number: int, near: Near | None) -> Blob:
        entry = self._entry
        key = hashlib.sha256(b"%d" % number).digest()
        sealed = seal(Entry(key, entry.known, entry.body, entry.events))
        return Blob(key, sealed, entry.known.tag, DAY, near)


def matches(one: Near, other: Near) -> bool:
    vectors = [np.frombuffer(near.vector, "<f2").astype(np.float32) for near in (one, other)]
    alike = float(vectors[0] @ vectors[1])
    return alike >= Semantic().threshold + MARGIN and not objection(decode(one.traits), decode(other.traits))


def weighed(shelves: Shelves, near: Near | None) -> float:
    """Bytes on disk of an answer, with such a question or without."""
    with tempfile.TemporaryDirectory(prefix="slipstream-") as made:
        with closing(DiskStore.open(Path(made) / ANSWERS, ROOM)) as store:
            shelves.put([near] * WEIGHED, store)
        return disk_bytes(Path(made)) / WEIGHED


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def filled(order: Order) -> Filled:
    folder, from_there = Path(order.folder), Path(order.source)
    source = search.Source(*(np.load(from_there / f"{name}.npy") for name in search.Source.__struct_fields__))
    with closing(DiskStore.open(folder / ANSWERS, ROOM, entries=order.size * 2)) as store:
        shelves = Shelves(store, folder)
        known = list(islice(shelves.paraphrased(), order.known))
        asked = {text for _, text in known}
        nears: list[Near] = [near for near, _ in known]
        # They come in between each other, as they do in life.
        more = list(shelves.others(source, order.size - order.known - 1))
        half = len(more) // 2
        shelves.put([*more[:half], *nears, *more[half:]])
        without, with_question = (weighed(shelves, near) for near in (None, nears[0]))
    fresh = islice((text for _, text in pairs(seed=1) if text not in asked), order.fresh)
    return Filled([text for _, text in known], list(fresh), without, with_question - without)


def main() -> None:
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    sys.stdout.buffer.write(msgspec.json.encode(filled(order)))


if __name__ == "__main__":
    main()
