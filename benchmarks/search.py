"""Search among stored questions: time, recall, memory, what a restart takes, and who is held up by a build.

`python -m benchmarks.search` prints a table; a missed target is printed, and is no failure. Each number of
questions has a process of its own. With `--large` it goes to a million, which takes some minutes.

The vectors are those of real questions, where the pairs and the model are there (`--pairs`, `--data`), and
else of made-up ones. Where there are more of either, each is one of them, moved by a part of the difference
between two that somebody thought alike: so neighbours are as near to each other as those of real questions
are, in directions in which real ones differ. Queries are questions that are not stored, and stored ones that
are moved likewise. Recall is the share of those whose nearest stored question is at the threshold or above
for which it is found, or one as near.
"""

import argparse
import contextlib
import ctypes
import gzip
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import ROOT
from benchmarks.procs import private_bytes
from benchmarks.report import machine
from sidecar.cache.embed import load
from sidecar.cache.embed.base import Embedded
from sidecar.cache.index import Index
from sidecar.tables import Semantic

SIZES = (1_000, 10_000, 100_000)
LARGE = 1_000_000
PAIRS = ROOT.parent / "shared" / "data" / "question_pairs_dev.jsonl.gz"
THRESHOLD = Semantic().threshold
LOWER = 0.85
NEAREST = 8
"""Candidates of a search, as many as the cache asks for."""
QUERIES = 3000
BATCH = 512
"""Vectors that come from the log at once."""
STEP = 20_000
TINY = 100_000
"""Partitions of one vector."""
SINGLES = 500
EQUAL = 1e-3
"""Difference of two cosines that are as good as each other."""
PATIENCE = 1800.0
TICK = 0.001
"""Seconds that a thread sleeps who is not to be held up."""
NEVER = 1 << 60

Vectors = NDArray[np.float32]


class Figures(msgspec.Struct):
    """Of one number of questions. Times are milliseconds where nothing else is said."""

    size: int
    flat_cpu: float
    flat_wall: float
    fast_cpu: float
    fast_wall: float
    fast_tail: float
    """99th percentile, wall."""
    recall: float
    lower: float
    """Recall at the lower threshold."""
    one: float
    """To add a vector to a fast index; CPU."""
    restart: float
    """Seconds until all are in and can be searched for."""
    build: float
    """Seconds."""
    held: float
    """99th percentile of what another thread was held up by a build, beyond what it is without one."""
    each: float
    """Bytes of memory per question, flat."""
    fast_each: float
    peak: float
    """The same at most, during the build."""
    estimate: float
    """The same, as the index estimates it."""


class Source(msgspec.Struct):
    """Where vectors come from."""

    base: Vectors
    held: Vectors
    """Of the same kind, not stored."""
    steps: Vectors
    """Differences between two that are alike."""


def unit(vectors: Vectors) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def made_up(seed: int = 0, dimension: int = 384) -> Source:
    """Questions of topics of areas; nothing real about them."""
    random = np.random.default_rng(seed)

    def some(count: int, length: float) -> Vectors:
        return (random.standard_normal((count, dimension)) * length / dimension**0.5).astype(np.float32)

    areas = some(60, 0.8)
    topics = areas[random.integers(len(areas), size=3000)] + some(3000, 0.6)
    base = unit(topics[random.integers(len(topics), size=30_000)] + some(30_000, 0.5))
    held = unit(topics[random.integers(len(topics), size=2000)] + some(2000, 0.5))
    return Source(base, held, some(20_000, 0.5))


def real(pairs: Path, data: Path) -> Source:
    """Every second question of pairs that mean the same is held back, of as many as are needed."""
    opened = gzip.open if pairs.suffix == ".gz" else open
    with opened(pairs, "rb") as lines:
        rows = [msgspec.json.decode(line, type=Pair) for line in lines]
    numbers = {
        text: at for at, text in enumerate(dict.fromkeys(text for row in rows for text in (row.a, row.b)))
    }
    embedder = load(Semantic(), data)
    texts = list(numbers)
    found = [one for at in range(0, len(texts), BATCH) for one in embedder.embed(texts[at : at + BATCH])]
    embedder.close()
    vectors = np.stack([one.vector for one in found if isinstance(one, Embedded)])
    if len(vectors) != len(texts):
        sys.exit("not every question could be embedded")
    same = [row for row in rows if row.same]
    held = {numbers[row.a] for row in same[: QUERIES // 2]}
    kept = [at for at in range(len(texts)) if at not in held]
    steps = np.stack([vectors[numbers[row.b]] - vectors[numbers[row.a]] for row in same])
    return Source(vectors[kept], vectors[sorted(held)], steps)


class Pair(msgspec.Struct):
    a: str
    b: str
    same: int


def stored(source: Source, size: int) -> NDArray[np.float16]:
    random = np.random.default_rng(1)
    made = np.empty((size, source.base.shape[1]), np.float16)
    first = min(size, len(source.base))
    made[:first] = source.base[random.permutation(len(source.base))[:first]]
    for start in range(first, size, STEP):
        count = min(STEP, size - start)
        chosen = source.base[random.integers(len(source.base), size=count)]
        made[start : start + count] = moved(chosen, source.steps, random)
    return made[random.permutation(size)]


def moved(vectors: Vectors, steps: Vectors, random: np.random.Generator) -> Vectors:
    share = random.uniform(0.3, 1.0, (len(vectors), 1)).astype(np.float32)
    return unit(vectors + share * steps[random.integers(len(steps), size=len(vectors))])


def asked(source: Source, vectors: NDArray[np.float16]) -> Vectors:
    random = np.random.default_rng(2)
    chosen = vectors[random.choice(len(vectors), min(QUERIES // 2, len(vectors)), replace=False)]
    near = moved(chosen.astype(np.float32), source.steps, random)
    return np.concatenate([source.held[: QUERIES // 2], near])


def nearest(vectors: NDArray[np.float16], queries: Vectors) -> Vectors:
    """The cosine of each query's nearest, by comparing it with all."""
    best = np.full(len(queries), -2, np.float32)
    for start in range(0, len(vectors), STEP):
        cosines, _ = faiss.knn(
            queries, vectors[start : start + STEP].astype(np.float32), 1, metric=faiss.METRIC_INNER_PRODUCT
        )
        best = np.maximum(best, cosines[:, 0])
    return best


def filled(index: Index, vectors: NDArray[np.float16]) -> float:
    """Seconds."""
    begun = time.perf_counter()
    for start in range(0, len(vectors), BATCH):
        part = vectors[start : start + BATCH]
        index.add(b"scope", range(start, start + len(part)), part)
    return time.perf_counter() - begun


def searched(index: Index, queries: Vectors) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds of CPU and by the clock, and the best cosine, of each."""
    cpu, wall, found = [], [], []
    for query in queries:
        begun, on = time.perf_counter(), time.thread_time()
        answer = index.search(b"scope", query, NEAREST)
        cpu.append((time.thread_time() - on) * 1e3)
        wall.append((time.perf_counter() - begun) * 1e3)
        found.append(answer[0][1])
    return cpu, wall, found


@contextlib.contextmanager
def ticking() -> Iterator[list[float]]:
    """A thread like an event loop's: milliseconds it was late each time."""
    late: list[float] = []
    over = threading.Event()

    def tick() -> None:
        while not over.is_set():
            begun = time.perf_counter()
            time.sleep(TICK)
            late.append((time.perf_counter() - begun - TICK) * 1e3)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield late
    finally:
        over.set()
        thread.join()


def own() -> int:
    """Bytes of memory in use; what is free in the heap is given back first, where that can be had."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return private_bytes([os.getpid()])


def measured(source: Source, size: int) -> Figures:
    vectors = stored(source, size)
    queries = asked(source, vectors)
    best = nearest(vectors, queries)
    faiss.omp_set_num_threads(1)
    flat = Index(grown=NEVER)
    before = own()
    restart = filled(flat, vectors)
    each = (own() - before) / size
    few = queries[:: max(size // 20_000, 1)]
    flat_cpu, flat_wall, _ = searched(flat, few)
    flat.close()
    with ticking() as usual:
        time.sleep(0.5)
    # From here as it is used, but that smaller ones get a fast index too, to have figures for it.
    index = Index(grown=size)
    before, peak, begun = own(), 0, time.perf_counter()
    filled(index, vectors[:-1])
    with ticking() as late:
        index.add(b"scope", [size], vectors[-1:])
        begun = time.perf_counter()
        while not index.settle(0.05):
            peak = max(peak, private_bytes([os.getpid()]) - before)
        build = time.perf_counter() - begun
    fast_each = (own() - before) / size
    estimate = index.stats().bytes / size
    cpu, wall, found = searched(index, queries)
    good = np.array(found) >= best - EQUAL
    ones = []
    for at in range(SINGLES):
        on = time.thread_time()
        index.add(b"scope", [size + 1 + at], queries[at : at + 1])
        ones.append((time.thread_time() - on) * 1e3)
    index.close()

    def middle(times: list[float]) -> float:
        return float(np.median(times))

    return Figures(
        size=size,
        flat_cpu=middle(flat_cpu),
        flat_wall=middle(flat_wall),
        fast_cpu=middle(cpu),
        fast_wall=middle(wall),
        fast_tail=float(np.percentile(wall, 99)),
        recall=float(good[best >= THRESHOLD].mean()),
        lower=float(good[best >= LOWER].mean()),
        one=middle(ones),
        restart=restart,
        build=build,
        held=float(np.percentile(late, 99) - np.percentile(usual, 99)),
        each=each,
        fast_each=fast_each,
        peak=peak / size,
        estimate=estimate,
    )


def tiny(source: Source) -> tuple[float, float]:
    """Bytes of a partition with one vector, and seconds until there are very many."""
    vectors = stored(source, TINY)
    index, before, begun = Index(), own(), time.perf_counter()
    for at in range(TINY):
        index.add(at.to_bytes(32), [at], vectors[at : at + 1])
    took = time.perf_counter() - begun
    return (own() - before) / TINY, took


ROWS: tuple[tuple[str, Callable[[Figures], float], int], ...] = (
    ("search, flat, p50, ms of CPU", lambda found: found.flat_cpu, 3),
    ("search, flat, p50, ms", lambda found: found.flat_wall, 3),
    ("search, fast, p50, ms of CPU", lambda found: found.fast_cpu, 3),
    ("search, fast, p50, ms", lambda found: found.fast_wall, 3),
    ("search, fast, p99, ms", lambda found: found.fast_tail, 3),
    (f"recall at {THRESHOLD:g}", lambda found: found.recall, 4),
    (f"recall at {LOWER:g}", lambda found: found.lower, 4),
    ("add one to a fast one, ms of CPU", lambda found: found.one, 3),
    ("all added after a restart, s", lambda found: found.restart, 3),
    ("fast one built, s", lambda found: found.build, 2),
    ("others late meanwhile, p99, ms more", lambda found: found.held, 2),
    ("memory, flat, bytes each", lambda found: found.each, 0),
    ("memory, fast, bytes each", lambda found: found.fast_each, 0),
    ("memory while it is built, bytes each", lambda found: found.peak, 0),
    ("memory as the index estimates it", lambda found: found.estimate, 0),
)


def verdicts(found: list[Figures]) -> Iterator[tuple[str, bool]]:
    """What is asked for, and whether it is so."""
    for figures in found:
        size = figures.size
        if size in (SIZES[-1], LARGE):
            limit = 1 if size == SIZES[-1] else 2
            yield f"search p50 under {limit} ms among {size:,}", figures.fast_wall < limit
            yield f"recall of at least 0.98 among {size:,}", figures.recall >= 0.98
            yield f"others' p99 under 10 ms more while one of {size:,} is built", figures.held < 10
        if size == SIZES[-1]:
            yield f"{size:,} are there 3 s after a restart", figures.restart <= 3


def table(found: list[Figures]) -> str:
    width = max(len(name) for name, _, _ in ROWS)
    lines = [" " * width + "".join(f"{figures.size:>12,}" for figures in found)]
    for name, of, digits in ROWS:
        lines.append(f"{name:{width}}" + "".join(f"{of(figures):>12.{digits}f}" for figures in found))
    return "\n".join(lines)


def apart(source: Path, what: str) -> bytes:
    """Measure in a process that has done nothing else."""
    command = [sys.executable, "-m", "benchmarks.search", "--part", what, str(source)]
    # numpy's BLAS has threads of its own otherwise, which serve whatever it is asked for first.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, timeout=PATIENCE, check=False
    )
    if ran.returncode:
        sys.exit(f"{what}: {ran.stderr.decode(errors='replace')[-2000:]}")
    return ran.stdout


def part(what: str, folder: Path) -> None:
    source = Source(*(np.load(folder / f"{name}.npy") for name in Source.__struct_fields__))
    found = tiny(source) if what == "tiny" else measured(source, int(what))
    sys.stdout.buffer.write(msgspec.json.encode(found))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__.split("\n")[0])
    parser.add_argument("--large", action="store_true", help="also among a million")
    parser.add_argument("--pairs", type=Path, default=PAIRS, help="JSONL of pairs of questions")
    parser.add_argument("--data", type=Path, help="a data folder with the model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("the benchmark reads memory as only Linux tells it")
    if given.part:
        part(given.part[0], Path(given.part[1]))
        return
    with tempfile.TemporaryDirectory(prefix="slipstream-") as made:
        folder = Path(made)
        known = given.data is not None and given.pairs.exists()
        source = real(given.pairs, given.data) if known else made_up()
        for name in Source.__struct_fields__:
            np.save(folder / f"{name}.npy", getattr(source, name))
        sizes = (*SIZES, LARGE) if given.large else SIZES
        found = [msgspec.json.decode(apart(folder, str(size)), type=Figures) for size in sizes]
        bytes_each, seconds = msgspec.json.decode(apart(folder, "tiny"), type=tuple[float, float])
    where = machine()
    print(f"{where['cores']} cores, Python {where['python']}, {where['system']}, {where['date']}")
    print(
        f"{'Real' if known else 'Made-up'} questions, {len(source.base):,} of them, and what is like them.\n"
    )
    print(table(found), end="\n\n")
    print(f"{TINY:,} scopes with one question each: {bytes_each:.0f} bytes each, there in {seconds:.1f} s.")
    for what, met in verdicts(found):
        print(f"{what}: {'ok' if met else 'MISSED'}")
    if given.json:
        given.json.write_bytes(msgspec.json.encode(found))


if __name__ == "__main__":
    main()
