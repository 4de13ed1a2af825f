"""`python -m benchmarks`: start everything, measure, print. A missed target is printed; it is no failure."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import orjson

from benchmarks import cached, litellm, lookups, metered, own, search, semantic
from benchmarks.measure import FULL, OTHERS, QUICK, Bench, LoadFailedError
from benchmarks.peers import PeerError, provider
from benchmarks.report import Row, as_json, machine, own_table, table
from sidecar.config import Config
from sidecar.serving.folder import data_dir

PARTS = (
    *("request", "event", "ttft", "memory", "startup"),
    *("ids", "shared", "kept", "resume"),
    *("hit", "disk", "store", "first", "lookups"),
    "metered",
    *semantic.PARTS,
)
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
    return rows + own_rows(bench, parts) + cache_rows(bench, parts)


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


def cache_rows(bench: Bench, parts: set[str]) -> list[Row]:
    rows = []
    if "hit" in parts:
        for way, values in zip(cached.WAYS, cached.hits(bench), strict=True):
            rows.append(Row(f"CPU per hit, {way}", "us", values, 3.5, relative=True))
    if "disk" in parts:
        rows.append(Row("CPU per hit from disk", "us", cached.disk_hits(bench), 8, relative=True))
    if "store" in parts:
        found = cached.storing(bench)
        name = "CPU per miss that is stored"
        rows.append(Row(name, "us", found.cpu, 1.1, relative=True, digits=0, base="without"))
        rows.append(Row("first event to last byte, p50", "ms", found.lasted, digits=2, base="without"))
        rows.append(Row("added to it by storing", "ms", found.more, 0.1, digits=2, base=""))
    if "first" in parts:
        for way, (middle, tail) in zip(cached.WAYS, cached.first_bytes(bench), strict=True):
            rows.append(Row(f"first byte of a hit, {way}, p50", "ms", middle, 2, digits=2, base=""))
            rows.append(Row(f"first byte of a hit, {way}, p99", "ms", tail, digits=2, base=""))
    if "lookups" in parts:
        looked = lookups.lookups(bench)
        for kind, times in looked.items():
            most, base = max(times), f"of {min(times)}"
            values = {"sidecar": times[most], base: times[min(times)]}
            name = f"lookup among {most:,}, {kind}"
            # What a request waits for has to be flat; the rest says what it is made of.
            limit = 1.5 if "thread" in kind else None
            rows.append(Row(name, "us", values, limit, relative=True, digits=2, base=base))
        rows[-1] = rows[-1]._replace(note=lookups.between(looked))
    if "metered" in parts:
        measured = metered.metered(bench)
        for what, values, limit in (("request", measured.request, 1.12), ("event", measured.event, 1.03)):
            name = f"CPU per {what}, with all figures"
            rows.append(Row(name, "us", values, limit, relative=True, digits=2, base="without"))
    if "litellm" in parts:
        rows += litellm_rows(bench)
    return rows


def litellm_rows(bench: Bench) -> list[Row]:
    """None where it cannot be had: the rest of the run does not depend on it."""
    try:
        found = litellm.beside(bench)
    except (litellm.UnavailableError, PeerError) as error:
        bench.note(f"without LiteLLM: {' '.join(str(error).split())[-300:]}")
        return []
    rows = []
    for what, values in (("hit", found.hit), ("miss", found.miss)):
        row = Row(f"CPU per {what}, whole answer", "us", values, base="LiteLLM")
        rows.append(row._replace(note=f"A {what} is {1 / row.ratio:.0f} times cheaper than LiteLLM's."))
    rows[-1] = rows[-1]._replace(note=f"{rows[-1].note} It was LiteLLM {found.version}.")
    return rows


def main(usual: tuple[str, ...] = PARTS) -> None:
    """`usual`: what is measured unless somebody asks for something else."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two minutes, not ten; less certain")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures there")
    parser.add_argument(
        "--only", choices=(*PARTS, "litellm"), action="append", help="measure only this; may be repeated"
    )
    parser.add_argument(
        "--litellm",
        action="store_true",
        help="also LiteLLM's proxy; it is installed when this is first given",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        default=data_dir(Config()),
        help="a data folder with the model, for questions in other words; else the user's own",
    )
    parser.add_argument(
        "--pairs", type=Path, metavar="FILE", default=search.PAIRS, help="labelled pairs of questions"
    )
    parser.add_argument("--large", action="store_true", help="also search among a million questions")
    given = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("the benchmark reads CPU time and memory as only Linux tells them")
    begun = time.perf_counter()

    def note(what: str) -> None:
        print(f"{time.perf_counter() - begun:6.1f} s  {what}", file=sys.stderr, flush=True)

    size = QUICK if given.quick else FULL
    parts = set(given.only or usual) | ({"litellm"} if given.litellm else set())
    without = semantic.missing(given.data) if parts & set(semantic.PARTS) else None
    if without is not None:
        parts -= set(semantic.PARTS)
        if not parts:
            sys.exit(without)
        note(f"without {', '.join(semantic.PARTS)}: {without}")
    try:
        with (
            tempfile.TemporaryDirectory(prefix="slipstream-") as made,
            provider(Path(made)) as upstream,
            Bench(Path(made), upstream, size, note) as bench,
        ):
            rows = rows_of(bench, parts)
            rows += semantic.rows_of(bench, parts, semantic.Given(given.data, given.pairs, given.large))
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
