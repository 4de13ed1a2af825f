"""What the guards of the semantic cache are worth: on labelled pairs of questions, how many hit at each
threshold with guards and without, and how many each of them refuses.

`python -m benchmarks.quality [FILE]`: besides FILE (JSON lines with `a`, `b` and `same`, perhaps compressed;
by default the shared pairs, where they are) always `pairs.jsonl`. With --halves also for even and odd lines
apart: guards were written with a look at the former only. What `slipstream tune` says of such files is in
`semantic_quality`; here, it is the guards that are measured.
"""

import argparse
import gzip
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers import ROOT
from sidecar.cache import embed
from sidecar.cache.embed.base import Embedded
from sidecar.config import Config
from sidecar.core.semantic.curve import Judged, Point, curve
from sidecar.core.semantic.guards import GUARDS, unmatchable
from sidecar.core.semantic.traits import decode, encode, hashed, traits
from sidecar.serving.folder import data_dir
from sidecar.tables import Semantic

OWN = ROOT / "benchmarks" / "pairs.jsonl"
SHARED = ROOT.parent / "shared" / "data" / "question_pairs_dev.jsonl.gz"
DEFAULTS = Semantic()
SECRET = bytes(32)
_STEP = 2000
"""Texts between two notes of how far it is."""


class Seen(NamedTuple):
    """A pair, and what is found of it."""

    same: bool
    similarity: float | None
    """None where one of the two is never matched."""
    objections: tuple[str, ...]
    """Of all guards, each asked alone."""
    guard: str | None
    """Which one should object, where the file says it."""


def read(file: Path) -> list[dict[str, Any]]:
    raw = file.read_bytes()
    text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def vectors(texts: Iterable[str], embedder: Any) -> dict[str, Any]:
    """Of the texts that have one."""
    wanted = [text for text in dict.fromkeys(texts) if unmatchable(text, DEFAULTS.longest) is None]
    found, begun = {}, time.monotonic()
    for start in range(0, len(wanted), _STEP):
        chunk = wanted[start : start + _STEP]
        made = zip(chunk, embedder.embed(chunk), strict=True)
        found.update({text: one.vector for text, one in made if isinstance(one, Embedded)})
        note = f"{start + len(chunk):,} of {len(wanted):,} questions, {time.monotonic() - begun:.0f} s"
        print(note, end="\r", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def look(rows: list[dict[str, Any]], embedder: Any) -> list[Seen]:
    """As the sidecar does it: by hashed traits that were stored."""
    made = vectors((row[side] for row in rows for side in "ab"), embedder)
    seen = []
    for row in rows:
        a, b = made.get(row["a"]), made.get(row["b"])
        similarity = None if a is None or b is None else float(a @ b)
        asked, stored = (decode(encode(hashed(traits(row[side]), SECRET))) for side in "ab")
        objections = tuple(name for name, guard in GUARDS.items() if guard(asked, stored))
        seen.append(Seen(bool(row["same"]), similarity, objections, row.get("guard")))
    return seen


def judged(seen: Iterable[Seen], *, guarded: bool) -> list[Judged]:
    return [
        Judged(one.similarity, one.same, next(iter(one.objections), None) if guarded else None)
        for one in seen
    ]


def both(seen: list[Seen]) -> str:
    """The curve, with guards and without."""
    lines = [
        "threshold    without guards        with guards",
        "             true      false      true      false",
    ]
    pairs = zip(curve(judged(seen, guarded=False)), curve(judged(seen, guarded=True)), strict=True)
    for bare, guarded in pairs:
        shares = (f"{share(rate):8}" for point in (bare, guarded) for rate in rates(point))
        default = "  <- default" if bare.threshold == DEFAULTS.threshold else ""
        lines.append(f"{bare.threshold:<13.2f}{'  '.join(shares).rstrip()}{default}")
    return "\n".join(lines)


def rates(point: Point) -> tuple[Any, Any]:
    return point.hit_rate, point.false_hit_rate


def share(rate: Any) -> str:
    return "-" if rate.share is None else f"{rate.share:.4f}"


def at_default(seen: list[Seen], name: str) -> str:
    [point] = curve(judged(seen, guarded=True), [DEFAULTS.threshold])
    said = [
        f"{share(rate)} ({rate.low:.4f} to {rate.high:.4f}) of {rate.total:,} {kind} pairs"
        for rate, kind in zip(rates(point), ("true", "false"), strict=True)
    ]
    return f"{name}: hits {said[0]}, {said[1]}"


def refusals(seen: list[Seen]) -> str:
    """What guards refuse of the pairs that are near enough."""
    near = [one for one in seen if one.similarity is not None and one.similarity >= DEFAULTS.threshold]
    counts = [sum(one.same is same for one in near) for same in (True, False)]
    lines = [
        f"Of {counts[0]:,} true and {counts[1]:,} false pairs from {DEFAULTS.threshold} on:",
        "                refuses by itself    only it refuses",
        "                true      false      true      false",
    ]
    for name in GUARDS:
        by = [one for one in near if name in one.objections]
        only = [one for one in by if len(one.objections) == 1]
        numbers = (sum(one.same is same for one in group) for group in (by, only) for same in (True, False))
        lines.append(f"  {name:12}  " + "  ".join(f"{number:<8,}" for number in numbers).rstrip())
    refused = (sum(one.same is same and bool(one.objections) for one in near) for same in (True, False))
    lines.append(f"  {'all':12}  " + "  ".join(f"{number:<8,}" for number in refused).rstrip())
    return "\n".join(lines)


def expected(seen: list[Seen]) -> str:
    """Of the false pairs that are there for a guard: how many some guard refuses, however near they are."""
    lines = ["False pairs that are there for one guard, refused by:   it    any    of"]
    for name in sorted({one.guard for one in seen if one.guard and not one.same}):
        group = [one for one in seen if one.guard == name and not one.same]
        own = sum(name in one.objections for one in group)
        lines.append(f"  {name:50}  {own:4}   {sum(bool(one.objections) for one in group):4}  {len(group):4}")
    return "\n".join(lines)


def report(file: Path, seen: list[Seen], *, halves: bool) -> str:
    parts = [f"{file.name}: {len(seen):,} pairs", both(seen), refusals(seen)]
    if any(one.guard for one in seen):
        parts.append(expected(seen))
    parts.append(at_default(seen, "Default settings"))
    if halves:
        parts += [at_default(seen[0::2], "Even lines"), at_default(seen[1::2], "Odd lines")]
    return "\n\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", help=f"default: {SHARED}, if it is there")
    parser.add_argument("--data", type=Path, default=data_dir(Config()), help="a data folder with the model")
    parser.add_argument("--halves", action="store_true")
    given = parser.parse_args()
    if not embed.ready(DEFAULTS, given.data):
        print(f"the model is not ready in {given.data}: run `slipstream model pull --data-dir {given.data}`")
        return 1
    embedder = embed.load(DEFAULTS, given.data)
    try:
        for file in (given.file or SHARED, OWN):
            if file.exists() or given.file:
                print(
                    report(file, look(read(file), embedder), halves=given.halves and file != OWN),
                    end="\n\n\n",
                )
    finally:
        embedder.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
