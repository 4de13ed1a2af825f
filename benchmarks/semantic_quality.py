"""How often questions in other words hit, and how often others do: `slipstream tune` on labelled pairs, with
its default settings.
"""

import os
import subprocess
import sys
from pathlib import Path

import msgspec

from benchmarks.measure import Bench, LoadFailedError
from benchmarks.peers import ROOT
from benchmarks.report import Row
from benchmarks.semantic_rows import AtLeast

OWN = ROOT / "benchmarks" / "pairs.jsonl"
LONGEST = 600.0
"""Seconds for one file."""
HIT, FALSE = 0.25, 0.022
"""Shares of the true pairs that are to hit, and of the false ones that may."""


class Rate(msgspec.Struct):
    share: float
    count: int
    total: int
    low: float
    high: float
    """Where it lies with 95% confidence."""

    def __str__(self) -> str:
        return f"{self.share:6.2%} ({self.low:.2%}-{self.high:.2%})"


class Point(msgspec.Struct):
    threshold: float
    hit_rate: Rate
    false_hit_rate: Rate


class Sample(msgspec.Struct):
    configured: float
    points: list[Point]


class Tuned(msgspec.Struct):
    """What `slipstream tune --json` says, as far as it is wanted."""

    samples: list[Sample]


def rows_of(bench: Bench, data: Path, files: list[Path]) -> list[Row]:
    rows: list[Row] = []
    for file in files:
        bench.note(f"pairs of questions, {file.name}")
        sample = tuned(bench, data, file)
        [point] = [each for each in sample.points if abs(each.threshold - sample.configured) < 1e-9]
        counts = f"{point.hit_rate.total:,} true pairs, {point.false_hit_rate.total:,} false ones"
        note = f"\n{file.name}: {counts}. Shares that hit, by threshold:\n{curve(sample)}"
        name = file.name.partition(".")[0].replace("_", " ")
        right = {"sidecar": [point.hit_rate.share]}
        wrong = {"sidecar": [point.false_hit_rate.share]}
        rows.append(AtLeast(f"{name}, true ones that hit", "", right, HIT, digits=4, base=""))
        rows.append(Row(f"{name}, false ones that hit", "", wrong, FALSE, digits=4, base="", note=note))
    return rows


def tuned(bench: Bench, data: Path, file: Path) -> Sample:
    """Raises LoadFailedError."""
    settings = bench.folder / "nothing-configured.toml"
    settings.write_text("")
    options = [str(file), "--json", "--data-dir", str(data), "--config", str(settings)]
    environment = {name: text for name, text in os.environ.items() if not name.startswith("SLIPSTREAM_")}
    ran = subprocess.run(
        [sys.executable, "-m", "sidecar", "tune", *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        timeout=LONGEST,
        check=False,
    )
    try:  # its exit status says whether there is a threshold to suggest
        return msgspec.json.decode(ran.stdout, type=Tuned).samples[0]
    except msgspec.MsgspecError:
        raise LoadFailedError(f"tune: {ran.stderr.decode(errors='replace')[-2000:]}") from None


def curve(sample: Sample) -> str:
    lines = [f"  {'':9}  {'true':22}  false"]
    lines += [
        f"  {point.threshold:<9.2f}  {point.hit_rate!s:22}  {point.false_hit_rate}"
        + ("  <- default" if point.threshold == sample.configured else "")
        for point in sample.points
    ]
    return "\n".join(lines)
