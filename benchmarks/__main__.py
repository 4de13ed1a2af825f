"""`python -m benchmarks`: start everything, measure, print. A missed target is printed; it is no failure."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import orjson

from benchmarks import own
from benchmarks.measure import FULL, OTHERS, QUICK, Bench, LoadFailedError
from benchmarks.peers import PeerError, provider
from benchmarks.report import Row, as_json, machine, own_table, table

PARTS = ("request", "event", "ttft", "memory", "startup", "ids", "shared", "kept", "resume")
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
    return rows + own_rows(bench, parts)


def own_rows(bench: Bench, parts: set[str]) -> list[Row]:
    rows = []
    if "ids" in parts:
        values = own.ids(bench)
        rows.append(Row("CPU per event with ids", "us", values, 1.2, relative=True, base="without"))
    if "shared" in parts:
        values = own.second_reader(bench)
        name = "CPU per event of a second reader"
        rows.append(Row(name, "us", values, 0.5, relative=True, strict=True, base="first"))
    if "kept" in parts:
        opened, ended, note = own.memory_of_streams(bench)
        name = "memory of 1000 streams of 1000 events"
        rows.append(Row(f"{name}, open", "MB", opened, 200, digits=0, strict=True, base="body", note=note))
        rows.append(Row("the same, ended and kept", "MB", ended, digits=0, base="body"))
    if "resume" in parts:
        ways, how = own.resumes(bench)
        for name, way in zip(("resume of 1000 events", "resume after event 0"), ways, strict=True):
            rows += [
                Row(f"{name}, p50", "ms", way.middle, 5, digits=2, strict=True, base=""),
                Row(f"{name}, p99", "ms", way.tail, 5, digits=2, strict=True, base=""),
                Row(f"{name}, CPU", "us", way.cpu, digits=0, base=""),
                Row(f"{name}, write calls", "", way.writes, 1, base=""),
            ]
        rows[-1] = rows[-1]._replace(note=f"Write calls were counted {how}.")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="three quarters of a minute, not four; less certain"
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
    for text in (table(rows), own_table(rows)):
        if text:
            print(text, end="\n\n")
    for row in rows:
        if row.note:
            print(row.note)
        if "direct" in row.values:
            name = row.name.removeprefix("added ")
            print(f"{name} without a proxy: {row.figure('direct'):.2f} {row.unit}.")
    report_helpers(bench.busiest)
    if given.json:
        given.json.write_bytes(orjson.dumps(as_json(rows, bench.busiest), option=orjson.OPT_INDENT_2))


def report_helpers(busiest: dict[str, float]) -> None:
    """Whether the measuring itself stood in the way."""
    if not busiest:
        return
    shares = ", ".join(f"{name} {share:.0%}" for name, share in busiest.items())
    print(f"Share of a core, at most: {shares}.")
    if any(busiest[name] > BUSY for name in busiest if name not in ("proxy", OTHERS)):
        print("A helper was close to saturated: latencies say more about it than about the proxies.")
    if busiest.get(OTHERS, 0.0) > QUIET:
        print("The machine had other work to do: figures, latencies above all, are worse than they are.")


if __name__ == "__main__":
    main()
