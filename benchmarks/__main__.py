"""`python -m benchmarks`: start everything, measure, print. A missed target is printed; it is no failure."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import orjson

from benchmarks.measure import FULL, OTHERS, QUICK, Bench, LoadFailedError
from benchmarks.peers import PeerError, provider
from benchmarks.report import Row, as_json, machine, table

PARTS = ("request", "event", "ttft", "memory", "startup")
QUIET = 0.1
"""Share of a core that others may have without it being mentioned."""
BUSY = 0.85
"""Share of a core above which a helper may have held up what it helped to measure."""


def rows_of(bench: Bench, parts: set[str]) -> list[Row]:
    rows = []
    if "startup" in parts:
        rows.append(Row("start-up", "s", bench.start_up(), 0.6, digits=2))
    if "memory" in parts:
        rows.append(Row("memory per open stream", "KB", bench.memory_per_stream(), 60, strict=True))
    if "request" in parts:
        rows.append(Row("CPU per request", "us", bench.cpu_per_request(), 8, relative=True))
    if "event" in parts:
        rows.append(Row("CPU per event", "us", bench.cpu_per_event(), 2.5, relative=True))
    if "ttft" in parts:
        middle, tail = bench.added_ttft()
        rows.append(Row("added TTFT p50", "ms", middle, 1, digits=2, strict=True, compared=False))
        rows.append(Row("added TTFT p99", "ms", tail, digits=2, compared=False))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="half a minute, not two and a half; less certain"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures there")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure only this; may be repeated")
    given = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("the benchmark reads CPU time and memory as only Linux tells them")
    begun = time.perf_counter()

    def note(what: str) -> None:
        print(f"{time.perf_counter() - begun:6.1f} s  {what}", file=sys.stderr, flush=True)

    size = QUICK if given.quick else FULL
    try:
        with (
            tempfile.TemporaryDirectory(prefix="slipstream-") as made,
            provider(Path(made)) as upstream,
            Bench(Path(made), upstream, size, note) as bench,
        ):
            rows = rows_of(bench, set(given.only or PARTS))
    except (LoadFailedError, PeerError) as error:
        sys.exit(f"could not measure: {error}")
    where = machine()
    print(f"{where['cores']} cores, Python {where['python']}, {where['system']}, {where['date']}\n")
    print(table(rows), end="\n\n")
    for row in rows:
        if "direct" in row.values:
            name = row.name.removeprefix("added ")
            print(f"{name} without a proxy: {row.figure('direct'):.2f} {row.unit}.")
    report_helpers(bench.busiest)
    if given.json:
        given.json.write_bytes(orjson.dumps(as_json(rows, bench.busiest), option=orjson.OPT_INDENT_2))


def report_helpers(busiest: dict[str, float]) -> None:
    """Whether the measuring itself stood in the way."""
    shares = ", ".join(f"{name} {share:.0%}" for name, share in busiest.items())
    print(f"Share of a core, at most: {shares}.")
    if any(busiest[name] > BUSY for name in busiest if name not in ("proxy", OTHERS)):
        print("A helper was close to saturated: latencies say more about it than about the proxies.")
    if busiest.get(OTHERS, 0.0) > QUIET:
        print("The machine had other work to do: figures, latencies above all, are worse than they are.")


if __name__ == "__main__":
    main()
