"""What a question's vector costs: time by length, int8 beside float32, building the graph, memory.

`python -m benchmarks.embedding [DATA-FOLDER]` prints a table; with --json one object. The folder is one in
which the model is ready; without it, a temporary one is filled as `slipstream model pull` does it. Texts are
of words that are one token each; times are those of `embed` with one text, tokenizer included. CPU time is
that of the thread; on an idle core it is the time.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import ROOT

LENGTHS = (9, 20, 60, 250)
"""Tokens, the two special ones included."""
SAMPLE = {9: 400, 20: 400, 60: 150, 250: 40}
ROUNDS = 5
KINDS = ("int8", "float32")
TARGET = 3.0
"""Milliseconds at the median, of int8 and 20 tokens."""
VARIED = 3000
"""Texts of all lengths, after which memory is looked at once more."""
_WORDS = "the house is on a road that goes to old water where people like to work in summer and read at night"


def embedder(kind: str, folder: Path) -> Any:
    """That of the data folder, or what it is made from in float32."""
    from sidecar.cache import embed
    from sidecar.cache.embed import bert, graph, model
    from sidecar.cache.embed.local import LocalEmbedder
    from sidecar.tables import Semantic

    if kind == "int8":
        return embed.load(Semantic(), folder)
    place = model.root(folder) / model.DEFAULT
    made = graph.build(bert.read(place), bert.weights(place), quantised=False)
    return LocalEmbedder(made, (place / model.TOKENIZER).read_bytes(), model.PINNED_TOKENS, "")


def text(tokens: int, number: int) -> str:
    """Another one with each number."""
    words = _WORDS.split()
    return " ".join(
        words[(number * 7 + place * (1 + number % 3)) % len(words)] for place in range(tokens - 2)
    )


def times(loaded: dict[str, Any]) -> dict[str, dict[int, dict[str, float]]]:
    """Kind -> tokens -> milliseconds. The kinds take turns."""
    wall: dict[tuple[str, int], list[float]] = {}
    spent: dict[tuple[str, int], list[float]] = {}
    for turn in range(ROUNDS):
        for kind in KINDS[:: -1 if turn % 2 else 1]:
            for length in LENGTHS:
                texts = [text(length, number) for number in range(SAMPLE[length])]
                loaded[kind].embed(texts[:5])
                for one in texts:
                    begun, before = time.perf_counter(), time.thread_time()
                    loaded[kind].embed([one])
                    spent.setdefault((kind, length), []).append(time.thread_time() - before)
                    wall.setdefault((kind, length), []).append(time.perf_counter() - begun)
    found: dict[str, dict[int, dict[str, float]]] = {kind: {} for kind in KINDS}
    for (kind, length), took in wall.items():
        cpu = spent[kind, length]
        found[kind][length] = {
            "p50": statistics.median(took) * 1e3,
            "p95": statistics.quantiles(took, n=20)[-1] * 1e3,
            "cpu_p50": statistics.median(cpu) * 1e3,
            "cpu_p95": statistics.quantiles(cpu, n=20)[-1] * 1e3,
        }
    return found


def memory(kind: str, folder: Path) -> dict[str, float]:
    """MB of this process, which has done nothing else: of the libraries, and beyond that."""
    import onnx  # noqa: F401 - what float32 needs to build its graph is not to count
    import psutil

    from sidecar.cache.embed import local  # noqa: F401

    process = psutil.Process()
    before = process.memory_info().rss
    one = embedder(kind, folder)
    one.embed(["hello there"])
    loaded = process.memory_info().rss
    for number in range(VARIED if kind == "int8" else VARIED // 10):
        one.embed([text(3 + number * 37 % 252, number)])
    after = process.memory_info().rss
    return {"libraries": before / 1e6, "loaded": (loaded - before) / 1e6, "after": (after - before) / 1e6}


def building(folder: Path) -> float:
    """Seconds from the weights to a checked graph."""
    from sidecar.cache.embed import make, model

    begun = time.perf_counter()
    make.make(model.root(folder) / model.DEFAULT, own=True)
    return time.perf_counter() - begun


def fresh(kind: str, folder: Path) -> dict[str, float]:
    """`memory` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.embedding", str(folder), "--memory", kind]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    found: dict[str, float] = json.loads(ran.stdout)
    return found


def ready(folder: Path) -> Path:
    """Raises EmbedError."""
    from sidecar.cache.embed.pull import pull
    from sidecar.cli.model_progress import Shown
    from sidecar.tables import Semantic

    with Shown(quiet=False) as report:
        pull(Semantic(), folder, None, report)
    return folder


def measured(folder: Path) -> dict[str, Any]:
    """All of it. `folder`: a data folder in which the model is ready."""
    loaded = {kind: embedder(kind, folder) for kind in KINDS}
    return {
        "ms": times(loaded),
        "build_s": building(folder),
        "memory_mb": {kind: fresh(kind, folder) for kind in KINDS},
    }


def shown(found: dict[str, Any]) -> str:
    lines = [f"{'':10} {'tokens':>6} {'p50 ms':>8} {'p95 ms':>8} {'CPU p50':>8} {'CPU p95':>8}"]
    for kind, lengths in found["ms"].items():
        for length, took in lengths.items():
            figures = " ".join(f"{took[name]:8.2f}" for name in ("p50", "p95", "cpu_p50", "cpu_p95"))
            lines.append(f"{kind:10} {length:>6} {figures}")
    middle = found["ms"]["int8"][20]["p50"]
    lines.append(
        f"int8, 20 tokens, p50 under {TARGET:g} ms: {'met' if middle < TARGET else 'MISSED'} ({middle:.2f})"
    )
    lines.append(f"graph built and checked in {found['build_s']:.2f} s")
    for kind, took in found["memory_mb"].items():
        lines.append(
            f"memory, {kind}: {took['loaded']:.0f} MB, {took['after']:.0f} MB after texts of all lengths; "
            f"interpreter and libraries {took['libraries']:.0f} MB"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embedding", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory", choices=KINDS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        print(json.dumps(memory(given.memory, given.folder)))
        return
    with tempfile.TemporaryDirectory() as spare:
        found = measured(ready(given.folder or Path(spare)))
    print(json.dumps(found) if given.json else shown(found))


if __name__ == "__main__":
    main()
