"""The measurements of answers to the same question in other words: vectors, searches, hits, restarts, and
what other streams feel of it. With the real model, a real sidecar, and a client on loopback.

`python -m benchmarks.semantic` is `python -m benchmarks` with nothing but these.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from benchmarks import search, semantic_quality
from benchmarks.asks import streamed
from benchmarks.cached import calls_of
from benchmarks.jobs import Result
from benchmarks.measure import OTHERS, PER_SECOND, QUICK, Bench, LoadFailedError, Values, percentiles
from benchmarks.peers import Peer
from benchmarks.procs import private_bytes
from benchmarks.report import Row
from benchmarks.semantic_library import Library, at_rest, first_hit, phases, run
from benchmarks.semantic_load import SETTLE, Asked, Asks, Gapped, Gaps
from benchmarks.semantic_rows import AtLeast
from sidecar.cache import embed
from sidecar.tables import Semantic

PARTS = ("embedding", "search", "restart", "paraphrase", "gaps", "quality")
TOKENS = 20
"""Of a question."""
WARM = 32
"""Questions before those that count."""
LEAST = 0.95
"""Share of paraphrases that have to hit: on a busy machine a lookup may be late."""
STREAMS = 50
SPACING = 0.0041
CLIENTS = 16
"""Clients that ask new questions: while some are answered, others wait for the embedder."""
FASTEST = 1500
"""Questions a second that no embedder here keeps up with."""


class Amount(NamedTuple):
    """How much is measured."""

    entries: int = 100_000
    rounds: int = 3
    hits: int = 400
    """Per round."""
    vectors: int = 300
    """Likewise."""
    window: float = 4.0
    """Seconds."""


FULL = Amount()
LESS = Amount(entries=12_000, rounds=1, hits=150, window=1.5)


class Given(NamedTuple):
    """What the command line says."""

    data: Path
    """A data folder with the model."""
    pairs: Path
    """Labelled pairs of questions, if they are there."""
    large: bool = False
    """Also among a million."""


def missing(data: Path) -> str | None:
    """What to do before anything can be measured; None where nothing is missing."""
    if embed.ready(Semantic(), data):
        return None
    return f"the model is not ready in {data}: run `slipstream model pull --data-dir {data}`, or give --data"


def rows_of(bench: Bench, parts: set[str], given: Given) -> list[Row]:
    amount = LESS if bench.size is QUICK else FULL
    fresh = int(FASTEST * (amount.window + SETTLE) * amount.rounds)
    known = WARM + amount.rounds * (amount.hits + 1)
    library = Library(bench, given.data, given.pairs, size=amount.entries, known=known, fresh=fresh)
    rows = []
    if "embedding" in parts:
        rows += _embedding(bench, amount, given.data)
    if "search" in parts:
        for size in (amount.entries, *([search.LARGE] if given.large else [])):
            rows += _search(bench, library, size)
    if "restart" in parts:
        rows += _restart(bench, library, amount)
    if "paraphrase" in parts:
        rows += _paraphrases(bench, library, amount)
    if "gaps" in parts:
        rows += _gaps(bench, library, amount)
    if "quality" in parts:
        files = [semantic_quality.OWN]
        if given.pairs.exists() and bench.size is not QUICK:
            files.append(given.pairs)
        rows += semantic_quality.rows_of(bench, given.data, files)
    return rows


def own(name: str, unit: str, values: Iterable[float], limit: float | None = None, **more: Any) -> Row:
    """A figure of the sidecar beside nothing."""
    return Row(name, unit, {"sidecar": list(values)}, limit, base="", **more)


def _embedding(bench: Bench, amount: Amount, data: Path) -> list[Row]:
    # Here and in `search` libraries are loaded that nothing else needs.
    from benchmarks.embedding import embedder, text

    bench.note("vectors of questions")
    model = embedder("int8", data)
    middle: list[float] = []
    tail: list[float] = []
    cpu: list[float] = []
    for _ in range(amount.rounds):
        took, used = [], []
        for number in range(-WARM, amount.vectors):
            question = text(TOKENS, number)
            begun, on = time.perf_counter(), time.thread_time()
            model.embed([question])
            if number >= 0:
                used.append((time.thread_time() - on) * 1e3)
                took.append((time.perf_counter() - begun) * 1e3)
        cpu.append(statistics.median(used))
        for values, found in zip((middle, tail), percentiles(took), strict=True):
            values.append(found)
    model.close()
    name = f"vector of {TOKENS} tokens"
    return [
        own(f"{name}, p50", "ms", middle, 3, digits=2, strict=True),
        own(f"{name}, p99", "ms", tail, digits=2),
        own(f"{name}, p50, CPU", "ms", cpu, digits=2),
    ]


def _search(bench: Bench, library: Library, size: int) -> list[Row]:
    source = library.source
    bench.note(f"search among {size:,} questions")
    found = msgspec.json.decode(search.apart(source, str(size)), type=search.Figures)
    limit = {search.SIZES[-1]: 1, search.LARGE: 2}.get(size)
    name = f"search among {size:,}"
    return [
        own(f"{name}, p50", "ms", [found.fast_wall], limit, digits=2, strict=True),
        own(f"{name}, p99", "ms", [found.fast_tail], digits=2),
        own(f"{name}, compared with each, p50", "ms", [found.flat_wall], digits=2),
        AtLeast(
            f"{name}, recall at {search.THRESHOLD:g}",
            "",
            {"sidecar": [found.recall]},
            0.98 if limit else None,
            digits=4,
            base="",
            note=f"Searches went among {library.origin} and what is like them.",
        ),
    ]


def _restart(bench: Bench, library: Library, amount: Amount) -> list[Row]:
    filled, first, fast, memory = library.filled, [], [], []
    for number in range(amount.rounds):
        bench.note(f"restart with {library.size:,} questions, round {number + 1} of {amount.rounds}")
        begun = time.perf_counter()
        with library.sidecar() as peer:
            first.append(first_hit(peer, filled.asked) - begun)
            fast.append(at_rest(peer, filled.asked[-1]) - begun)
            memory.append((private_bytes(peer.pids) - library.single) / (library.size - 1))
    name = f"restart with {library.size:,} questions"
    whole = library.size == FULL.entries
    note = (
        f"Of the room on disk, {filled.question:.0f} bytes are the question's and the rest is the answer's."
    )
    return [
        own(f"{name}, first hit after", "s", first, 3 if whole else None, digits=2),
        own(f"{name}, fast index after", "s", fast, digits=2),
        own("memory per question", "bytes", memory, digits=0),
        own("room on disk per answer", "bytes", [filled.answer + filled.question], digits=0, note=note),
    ]


def _paraphrases(bench: Bench, library: Library, amount: Amount) -> list[Row]:
    filled = library.filled
    middle: list[float] = []
    tail: list[float] = []
    cpu: Values = defaultdict(list)
    asked = hit = 0
    with library.sidecar() as peer:
        first_hit(peer, filled.asked[-amount.rounds :])
        at_rest(peer, filled.asked[-1])
        others = {"nginx": bench.proxies["nginx"], "forwarded": bench.proxies["sidecar"]}
        for one in (peer, *others.values()):
            _asked(bench, one, filled.asked[:WARM])
        for number in range(amount.rounds):
            bench.note(f"questions in other words, round {number + 1} of {amount.rounds}")
            start = WARM + number * amount.hits
            texts = filled.asked[start : start + amount.hits]
            got = _asked(bench, peer, texts)
            asked, hit = asked + len(texts), hit + got.hits
            if got.hits < LEAST * len(texts):
                raise LoadFailedError(f"{got.hits} of {len(texts)} questions in other words were answered")
            for values, found in zip((middle, tail), percentiles(got.took), strict=True):
                values.append(found * 1e3)
            cpu["sidecar"].append(got.result.cpu[0] / len(texts) * 1e6)
            for name, one in others.items():
                result = _asked(bench, one, texts).result
                cpu[name].append(result.cpu[0] / result.done * 1e6)
    lines = phases(bench, peer)
    spent = {
        "looking for it": statistics.median(line.lookup_ms or 0 for line in lines),
        "its vector": statistics.median(line.embed_ms or 0 for line in lines),
        "search and guards": statistics.median(line.search_ms or 0 for line in lines),
    }
    name = f"question in other words, among {library.size:,}"
    note = f"Of {asked} questions in other words, {hit} were answered with what is stored."
    return [
        Row("CPU per question in other words", "us", cpu, note=note),
        own(f"{name}, p50", "ms", middle, 6, digits=2, strict=True),
        own(f"{name}, p99", "ms", tail, digits=2),
        *(own(f"of that, {name}, p50", "ms", [value], digits=2) for name, value in spent.items()),
        Row("CPU of it", "us", cpu, digits=0, base="forwarded"),
    ]


def _asked(bench: Bench, peer: Peer, texts: list[str]) -> Asked:
    """One after the other. Raises LoadFailedError unless what was no hit went to the provider."""
    before = calls_of(bench.provider)
    job = Asks(port=peer.port, watched=[peer.pids, bench.provider.pids], texts=texts)
    found = msgspec.json.decode(run("benchmarks.semantic_load", job), type=Asked)
    _watch(bench, found.result)
    called = calls_of(bench.provider) - before
    if called != len(texts) - found.hits:
        raise LoadFailedError(
            f"{found.hits} of {len(texts)} were hits, and the provider was called {called} times"
        )
    return found


def _watch(bench: Bench, result: Result) -> None:
    """How much of the machine others had."""
    bench.busiest[OTHERS] = max(bench.busiest[OTHERS], result.others / result.seconds)


def _gaps(bench: Bench, library: Library, amount: Amount) -> list[Row]:
    filled = library.filled
    bench.note(f"{STREAMS} streams beside new questions")
    seconds = STREAMS * SPACING + amount.rounds * 2 * (amount.window + SETTLE) + 10
    requests = [
        streamed(events=round(seconds * PER_SECOND), interval=1 / PER_SECOND, user=f"beside-{number}")
        for number in range(STREAMS)
    ]
    with library.sidecar() as peer:
        first_hit(peer, filled.asked[-amount.rounds :])
        at_rest(peer, filled.asked[-1])
        job = Gaps(
            port=peer.port,
            watched=[peer.pids, bench.provider.pids],
            requests=requests,
            texts=filled.fresh,
            spacing=SPACING,
            window=amount.window,
            rounds=amount.rounds,
            clients=CLIENTS,
        )
        found = msgspec.json.decode(run("benchmarks.semantic_load", job), type=Gapped)
    for result in found.result:
        _watch(bench, result)
    pairs = list(zip(found.loaded, found.quiet, strict=True))
    tails = {"sidecar": [one[1] * 1e3 for one, _ in pairs], "quiet": [other[1] * 1e3 for _, other in pairs]}
    more = [[(one[at] - other[at]) * 1e3 for one, other in pairs] for at in (0, 1)]
    asked = statistics.median(result.done / result.seconds for result in found.result)
    busy = statistics.median(result.cpu[0] / result.seconds for result in found.result)
    new = sum(found.new) / sum(result.done for result in found.result)
    note = (
        f"Beside the streams {asked:.0f} questions a second were asked, {new:.0%} of them new; all of it took"
        f" {busy:.2f} cores."
    )
    return [
        own("added to gaps by questions, p99", "ms", more[1], 10, digits=2, strict=True),
        own("the same, p50", "ms", more[0], digits=2),
        Row("gap of 20 ms, p99", "ms", tails, digits=2, base="quiet", note=note),
    ]


if __name__ == "__main__":
    from benchmarks.__main__ import main

    main(PARTS)
