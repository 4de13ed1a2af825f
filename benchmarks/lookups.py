"""Lookups of stored answers, with a few in the store and with very many: `ExactCache.hot`, `DiskStore.get`,
and `ExactCache.lookup`, which is the latter as requests make it, in a thread. In a process of their own.

`python -m benchmarks.lookups FOLDER SIZE...` prints microseconds as JSON: kind, size, a figure per round.
"""

import hashlib
import itertools
import random
import statistics
import subprocess
import sys
import time
from array import array
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import uvloop

from benchmarks.measure import Bench, LoadFailedError
from benchmarks.peers import ROOT
from sidecar.cache.exact import ExactCache
from sidecar.core.entry import Entry, Known, seal
from sidecar.core.fingerprint import Keys
from sidecar.stores.disk import DiskStore
from sidecar.stores.diskbytes import BytesDisk
from sidecar.stores.diskopen import connected

Found = dict[str, dict[int, list[float]]]

SAMPLE = 2000
"""Lookups of each kind per round."""
BATCH = 100
ROUNDS = 5
PATIENCE = 600.0
_STEP = 100_000
"""Entries per transaction."""
_ROOM = 1 << 45
_DAY = 86400.0
_INSERT = (
    "INSERT INTO Cache (key, raw, store_time, expire_time, access_time, access_count, tag, size, mode,"
    " filename, value) VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?)"
)
_BODY = b'{"choices":[{"message":{"role":"assistant","content":"amber birch cedar delta ember"}}]}' * 14
_FACTS: dict[str, Any] = {
    "status": 200,
    "reason": "OK",
    "stored": 0.0,
    "ttl": _DAY,
    "dialect": "openai.chat",
    "path": "/v1/chat/completions",
}
_Way = TypeVar("_Way")
_FIELDS = (("Server", "scripted"), ("Content-Type", "application/json"))


def lookups(bench: Bench) -> Found:
    """Microseconds per kind of lookup and number of entries, one figure per round."""
    sizes = bench.size.entries
    bench.note(f"lookups among {sizes[-1]:,} entries")
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.lookups", str(bench.folder), *map(str, sizes)],
        cwd=ROOT,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    if ran.returncode:
        raise LoadFailedError(f"lookups: {ran.stderr.decode(errors='replace')[-2000:]}")
    return msgspec.json.decode(ran.stdout, type=Found)


def between(found: Found) -> str:
    """What it takes among numbers of entries that are neither the most nor the fewest."""
    said: dict[int, list[str]] = {}
    for kind, times in found.items():
        for size in sorted(times)[1:-1]:
            said.setdefault(size, []).append(f"{kind} {statistics.median(times[size]):.2f} us")
    return " ".join(f"Lookups among {size:,} entries: {', '.join(each)}." for size, each in said.items())


class Population:
    """The entries of a store. Their keys follow from their numbers."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._step = max(size // (SAMPLE * ROUNDS), 1)

    def found(self, turn: int) -> list[bytes]:
        """Keys that are there, others in each round as far as there are enough."""
        return self._mixed(range(turn % self.size * self._step, self.size, self._step * ROUNDS), turn)

    def missed(self, turn: int) -> list[bytes]:
        """Keys that are not."""
        return self._mixed(range(self.size + turn * SAMPLE, self.size + (turn + 1) * SAMPLE), turn)

    def whole(self, number: int) -> bool:
        """Whether it may be looked up."""
        return number % self._step == 0

    @staticmethod
    def _mixed(numbers: range, seed: int) -> list[bytes]:
        keys = [key_of(number) for number in itertools.islice(itertools.cycle(numbers), SAMPLE)]
        random.Random(seed).shuffle(keys)
        return keys


def _ignore(_: object) -> None:
    """A lookup that fails is missed, and that is looked at."""


def key_of(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def on_disk(folder: Path, population: Population) -> DiskStore:
    """A store with that many entries.

    What is looked up is a whole answer. The others are as long as a row begins, whatever it holds: the tree
    of rows is the same, and the file a tenth of what it would be.
    """
    store = DiskStore.open(folder, _ROOM)
    disk, now = BytesDisk(None), time.time()

    def rows(start: int, stop: int) -> Iterator[tuple[object, ...]]:
        for number in range(start, stop):
            key = key_of(number)
            blob = seal(Entry(key, Known(headers=_FIELDS, **_FACTS), _BODY, array("Q")))
            if not population.whole(number):
                blob = b""
            size, mode, filename, value = disk.store(blob, False, key)  # noqa: FBT003 - its signature
            yield key, 1, now, now + _DAY, now + number * 1e-6, "tag", size, mode, filename, value

    with closing(connected(folder, writes=True)) as connection:
        connection.execute("PRAGMA cache_size=-262144")
        connection.execute("PRAGMA synchronous=OFF")
        for start in range(0, population.size, _STEP):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(_INSERT, rows(start, min(start + _STEP, population.size)))
            connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return store


def in_memory(population: Population) -> ExactCache:
    """A cache with that many entries at hand, as light as they can be."""
    made = ExactCache(_ROOM, told=_ignore, on_fault=_ignore)
    known, ends = Known(headers=(), **_FACTS), array("Q")
    for number in range(population.size):
        entry = Entry(key_of(number), known, _BODY, ends)
        made.put(entry, None, seconds=_DAY, generation=made.generation(), done=_ignore)
    return made


def timed(look: Callable[[bytes], object], keys: list[bytes], *, there: bool) -> float:
    """Microseconds per lookup, in the middle of the batches."""
    expect([look(key) for key in keys[:BATCH]], there=there)
    times = []
    for start in range(BATCH, len(keys), BATCH):
        batch = keys[start : start + BATCH]
        begun = time.perf_counter()
        for key in batch:
            look(key)
        times.append(time.perf_counter() - begun)
    return statistics.median(times) / BATCH * 1e6


async def awaited(look: Callable[[bytes], Awaitable[object]], keys: list[bytes], *, there: bool) -> float:
    """The same for lookups that are waited for, one after the other."""
    expect([await look(key) for key in keys[:BATCH]], there=there)
    times = []
    for start in range(BATCH, len(keys), BATCH):
        batch = keys[start : start + BATCH]
        begun = time.perf_counter()
        for key in batch:
            await look(key)
        times.append(time.perf_counter() - begun)
    return statistics.median(times) / BATCH * 1e6


def expect(found: list[object], *, there: bool) -> None:
    if any((entry is not None) is not there for entry in found):
        raise SystemExit(f"entries that are {'missing' if there else 'there'}")


async def run(folder: Path, sizes: list[int]) -> Found:
    values: Found = defaultdict(lambda: defaultdict(list))
    populations = [Population(size) for size in sizes]

    def turns(ways: list[_Way]) -> Iterator[tuple[int, _Way, list[bytes], list[bytes]]]:
        for turn in range(ROUNDS):
            pairs = list(zip(populations, ways, strict=True))
            for population, way in reversed(pairs) if turn % 2 else pairs:
                yield population.size, way, population.found(turn), population.missed(turn)

    stores = [on_disk(folder / f"answers-{each.size}", each) for each in populations]
    for size, store, found, missed in turns(stores):
        values["disk, hit"][size].append(timed(store.get, found, there=True))
        values["disk, miss"][size].append(timed(store.get, missed, there=False))
    caches = [ExactCache(0, told=_ignore, on_fault=_ignore, deadline=PATIENCE) for _ in stores]
    for cache, store in zip(caches, stores, strict=True):
        await cache.open(lambda store=store: store)
    looks = [lambda key, cache=cache: cache.lookup(Keys(key), None) for cache in caches]
    for size, look, found, missed in turns(looks):
        values["disk by a thread, hit"][size].append(await awaited(look, found, there=True))
        values["disk by a thread, miss"][size].append(await awaited(look, missed, there=False))
    for cache in caches:
        await cache.close()
    for size, cache, found, missed in turns([in_memory(each) for each in populations]):
        values["memory, hit"][size].append(timed(cache.hot, found, there=True))
        values["memory, miss"][size].append(timed(cache.hot, missed, there=False))
    return values


def main() -> None:
    found = uvloop.run(run(Path(sys.argv[1]), [int(size) for size in sys.argv[2:]]))
    sys.stdout.buffer.write(msgspec.json.encode(found))


if __name__ == "__main__":
    main()
