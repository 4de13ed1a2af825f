"""sidecar.cli.report: what it reads, what it makes of lines that are no requests, and its exit status."""

import gzip
import io
import json
import os
import pty
import subprocess
import sys
import tracemalloc

import httpx
import pytest

from sidecar.cli.report_lines import Log
from sidecar.cli.report_make import report
from sidecar.cli.report_read import LONGEST, Reader
from sidecar.cli.report_sums import Sums
from tests.cli.conftest import finished
from tests.cli.test_cache import on_terminal

NOON = 1_795_262_400
"""2026-11-21 12:00:00 UTC."""
PHASES = ("read_ms", "lookup_ms", "embed_ms", "search_ms", "connect_ms", "upstream_ms", "store_ms")


def request(number=0, *, ttft=400.0, total=2000.0, at=None, **fields):
    """A latency line; they come a second apart."""
    second = NOON + number if at is None else at
    minutes, seconds = divmod(second - NOON, 60)
    hours, minutes = divmod(minutes, 60)
    spent = (ttft if ttft is not None else total) - 1.0
    return {
        "timestamp": f"2026-11-21T{12 + hours:02d}:{minutes:02d}:{seconds:02d}.250000Z",
        "level": "info",
        "event": "request",
        "request_id": f"ab12cd34{number:08x}",
        "trace_id": None,
        "stream_id": None,
        "tenant": "1f0c5e9a2b7d4c63",
        "method": "POST",
        "path": "/v1/chat/completions",
        "upstream": "openai",
        "provider": "openai",
        "operation": "chat",
        "model": "gpt-5-mini",
        "response_model": None,
        "stream": ttft is not None,
        "status": 200,
        "outcome": "complete",
        "cache": "miss",
        "cache_kind": None,
        "similarity": None,
        "guard": None,
        "ttfb_ms": spent,
        "ttft_ms": ttft,
        "ttft_kind": "content",
        "tpot_ms": 18.1,
        "itl_p50_ms": 18.0,
        "itl_p99_ms": 41.0,
        "itl_max_ms": 95.0,
        "total_ms": total,
        "overhead_ms": 0.4,
        "phases": {**dict.fromkeys(PHASES), "read_ms": 0.1, "connect_ms": 12.0, "upstream_ms": spent - 12.6},
        "tokens_per_second": 55.0,
        "input_tokens": 100,
        "output_tokens": 50,
        "cached_input_tokens": None,
        "reasoning_tokens": None,
        "events": 52,
        "bytes": 9000,
        "keepalives": 0,
        "resumed_from": None,
        "retries": 0,
        "feature": "chat",
        "budget_exceeded": None,
        "error": None,
    } | fields


def line(fields):
    return json.dumps(fields).encode()


def traffic(count=200, **fields):
    """Ordinary requests."""
    return [request(number, ttft=300.0 + number, total=1500.0 + number, **fields) for number in range(count)]


def made(lines, worst=5):
    """The report on these lines, and what the lines were."""
    log, sums, reader = Log(), Sums(worst), Reader([], print)
    for number, raw in enumerate(lines, 1):
        if (found := log.read(raw, "log", number)) is not None:
            sums.add(found)
    return (report(sums, log, reader, ["log"]) if log.requests else None), log


@pytest.fixture
def told(cli, clean):
    """`told(lines, "--worst", "2")`: what --json says of a file with these lines."""

    def call(lines, *arguments):
        (clean / "log").write_bytes(b"".join(raw + b"\n" for raw in lines))
        done = cli("report", "log", "--json", *arguments)
        assert (done.code, done.err) == (0, "")
        return json.loads(done.out)

    return call


# Where the log comes from


def test_one_file_and_several_and_packed_ones(cli, clean):
    rows = [line(row) + b"\n" for row in traffic(6)]
    (clean / "a.log").write_bytes(b"".join(rows[:3]))
    (clean / "b.log.gz").write_bytes(gzip.compress(b"".join(rows[3:])))
    found = json.loads(cli("report", "a.log", "b.log.gz", "--json").out)
    assert (found["total"]["requests"], found["files"]) == (6, ["a.log", "b.log.gz"])
    assert found["lines"]["bytes"] == sum(map(len, rows))
    assert found["period"] == {
        "since": "2026-11-21T12:00:00Z",
        "until": "2026-11-21T12:00:05Z",
        "seconds": 5.0,
    }


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_stdin_plain_and_packed(clean, pack, arguments):
    with subprocess.Popen(
        [sys.executable, "-m", "sidecar", "report", "--json", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as running:  # fmt: skip
        out, err = running.communicate(pack(b"\n".join(map(line, traffic(5)))))
    found = json.loads(out)
    assert (running.returncode, err, found["total"]["requests"], found["files"]) == (0, b"", 5, ["stdin"])


def test_a_terminal_as_stdin_is_bad_usage(clean):
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "sidecar", "report"],
        stdin=follower, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        out, err = running.communicate()
    os.close(leader)
    os.close(follower)
    assert (running.returncode, out, err.count("\n")) == (2, "", 1)
    assert "name a log file" in err


@pytest.mark.parametrize("name", ["none.log", "folder", "x\x1b[31m\n"])
def test_a_file_that_cannot_be_read_is_one_line_and_exit_1(cli, clean, name):
    (clean / "folder").mkdir()
    (clean / "good.log").write_bytes(line(request()))
    code, out, err = cli("report", "good.log", name)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "cannot be read" in err
    assert "\x1b" not in err


def test_a_pipe_is_not_opened_twice(clean):
    os.mkfifo(clean / "pipe")
    with subprocess.Popen(
        [sys.executable, "-m", "sidecar", "report", "--json", "pipe"], stdout=subprocess.PIPE
    ) as running:
        (clean / "pipe").write_bytes(line(request()))
        assert json.loads(running.communicate()[0])["total"]["requests"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--html", "-", "--json"], "both"),
        (["--html", "none/page.html"], "folder"),
        (["--worst", "x"], "worst"),
        (["--worst", "-1"], "worst"),
        (["--jsn"], "--json"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(cli, clean, arguments, said):
    (clean / "log").write_bytes(line(request()))
    code, out, err = cli("report", "log", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\n\n \n", "no request"),
        (b"hello\n", "no request in 1 line"),
        (b'{"event":"serving","level":"info"}\n', "log.level"),
        (b'{"event":"request"\n{"event":"request","total_ms":-1}\n', "2 of them damaged"),
        ("12:00:01  ✓ 200 POST /v1/x  m (stream)  total 2.00s\n".encode(), "--log-format json"),
        (b"Nov 21 12:00:01 host slipstream[7]: 12:00:01  ! 404 GET /x  refused\n", "--log-format json"),
    ],
)
def test_a_log_without_requests_is_one_line_and_exit_1(cli, clean, content, said):
    (clean / "log").write_bytes(content)
    for more in ([], ["--json"], ["--html", "page.html"]):
        code, out, err = cli("report", "log", *more)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert said in err
    assert not (clean / "page.html").exists()


def test_who_stops_reading_gets_no_traceback(clean):
    rows = [request(number, model=f"model {number}", path="/" + "p" * 90) for number in range(2000)]
    (clean / "log").write_bytes(b"\n".join(map(line, rows)))
    command = [sys.executable, "-m", "sidecar", "report", "log", "--json", "--worst", "100"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        running.stdout.read(1)
        running.stdout.close()
        assert (running.stderr.read(), running.wait()) == ("", 1)


def test_a_terminal_gets_a_bar_and_nobody_else_does(clean):
    (clean / "log").write_bytes(b"\n".join(map(line, traffic(5))))
    shown, code = on_terminal(80, "report", "log")
    assert (code, "reading" in shown) == (0, True)
    assert finished("report", "log").err == ""


# What lines are


WRAPPED = {
    "syslog": lambda raw: b"Nov 21 12:00:01 host slipstream[812]: " + raw,
    "kubernetes": lambda raw: b"2026-11-21T12:00:01.000000001Z stderr F " + raw,
    "compose": lambda raw: b"sidecar-1  | " + raw,
    "windows ends": lambda raw: raw + b"\r",
    "a mark at the beginning": lambda raw: b"\xef\xbb\xbf" + raw,
    "journald": lambda raw: line({"_PID": "812", "PRIORITY": "6", "MESSAGE": raw.decode()}),
    "journald, bytes": lambda raw: line({"MESSAGE": [*raw], "__CURSOR": "s=1"}),
    "docker": lambda raw: line(
        {"log": raw.decode() + "\n", "stream": "stderr", "time": "2026-11-21T12:00:01Z"}
    ),
    "both": lambda raw: line({"MESSAGE": "web-1 | " + raw.decode()}),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=[*WRAPPED])
def test_however_lines_are_wrapped_the_figures_are_the_same(wrap):
    rows = [*traffic(40), *traffic(3, model='ü " \\ {', outcome="timeout", error="upstream_timeout")]
    plain, _ = made(map(line, rows))
    wrapped, log = made([wrap(line(row)) for row in rows])
    assert wrapped == plain
    assert (log.requests, sum(log.damaged.values()), log.others) == (43, 0, 0)


OTHERS = [
    b"",
    b"   ",
    b"Started slipstream.service.",
    b"\tat something (file.js:1:2)",
    b"\x1b[32mINFO\x1b[0m:     Application startup complete.",
    b'127.0.0.1 - "GET / HTTP/1.1" 200',
    b"config {a: 1}",
    b"a set {1, 2}",
    b'{"message":"of another program","event":7}',
    b'{"event":null}',
    b'{"event":["request"]}',
    b'{"MESSAGE":"Started slipstream.service."}',
    b'{"MESSAGE":7}',
    b'{"MESSAGE":["one","two"]}',
    b'{"MESSAGE":"{\\"MESSAGE\\":\\"{}\\"}"}',
    b'{"log":{"level":"info"}}',
    b'{"log":"text\\n"}',
    b"{}",
]


@pytest.mark.parametrize("raw", OTHERS)
def test_lines_of_others_are_no_damage(raw):
    found, log = made([line(request()), raw])
    assert (found.total.requests, log.damaged, log.events, log.console) == (1, {}, {}, 0)
    assert log.others == (1 if raw.strip() else 0)


GOOD = line(request())
WRONG = {
    "timestamp": [
        None,
        12,
        "yesterday",
        "2026-11-21T12:00:00",
        "1969-12-31T23:59:59Z",
        "2026-13-01T00:00:00Z",
    ],
    "total_ms": [None, "2000", -1, True, [], 1e13, 10**400],
    "ttft_ms": ["1", -0.5, False],
    "outcome": [None, 1],
    "model": [1, {}],
    "status": ["200", 200.5, -1],
    "phases": [[], "x", {"read_ms": "1"}, {"read_ms": -1}, {"x_ms": True}],
    "budget_exceeded": ["chat", {}, {"budget": 1}, {"budget": "chat", "ttft_ms": -1}],
    "output_tokens": [1.5, -1, 10**30],
}
DAMAGED = {
    "json": [
        GOOD[:-1],
        GOOD[:300],
        GOOD[200:],
        GOOD[-20:],
        GOOD + GOOD[:40],
        b"{",
        b'{"event":"request",',
        GOOD.replace(b"2000.0", b"NaN"),
        GOOD.replace(b"2000.0", b"Infinity"),
        GOOD.replace(b"2000.0", b"-Infinity"),
        GOOD.replace(b'"chat"', b'"\\ud800"'),
        b'{"a":' + b"[" * 100_000,
        b'{"a":' * 100_000,
        line({"MESSAGE": GOOD[:-9].decode()}),
        line({"log": GOOD[:-9].decode()}),
    ],
    "fields": [
        *[line(request() | {name: value}) for name, values in WRONG.items() for value in values],
        *[line({name: value for name, value in request().items() if name != gone}) for gone in ("total_ms", "outcome")],
        b'{"event":"request"}',
        GOOD.replace(b"gpt-5-mini", b"\xff\xfe"),
        GOOD.replace(b"2000.0", b"1e999"),
        line({"MESSAGE": '{"event":"request"}'}),
    ],
    "binary": [b"\x00\x01\x02", b"\x7fELF\x02", b"caf\xe9", b"\x00" * 5000],
    "long": [None],
    "message": [b'{"MESSAGE":null,"_PID":"812"}'],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "raw"), [pytest.param(kind, raw, id=kind) for kind, rows in DAMAGED.items() for raw in rows]
)
def test_damaged_lines_are_counted_by_kind_and_left_out(kind, raw):
    found, log = made([line(request()), raw, line(request(1))])
    assert (found.total.requests, log.damaged, log.places) == (2, {kind: 1}, [("log", 2)])
    assert (log.others, log.events) == (0, {})


def test_of_a_name_that_stands_twice_the_last_counts():
    found, _ = made([GOOD.replace(b'"total_ms"', b'"total_ms":7.0,"total_ms"')])
    assert found.slowest[0].total_ms == 2000.0


def test_an_older_line_with_fewer_fields_is_read():
    needed = {name: request()[name] for name in ("timestamp", "event", "outcome", "total_ms")}
    found, log = made([line(needed), line(needed | {"a_later_version": {"has": ["more"]}})])
    assert (found.total.requests, found.models[0].name, log.damaged) == (2, None, {})


def test_damage_is_told_with_its_places_and_the_rest_is_read(cli, clean):
    rows = [
        b"\x00\x01",
        line(request()),
        GOOD[:99],
        b"x" * (LONGEST + 1),
        line(request(1)),
        b'{"event":"request"}',
    ]
    (clean / "log").write_bytes(b"\n".join(rows))
    code, out, err = cli("report", "log")
    said = " ".join(out.split())
    assert (code, err) == (0, "")
    assert "4 lines are damaged and left out: 1 cut off, or not JSON; 1 a request's" in said
    assert "1 not text; 1 longer than 1 MiB. The first: log:1, log:3, log:4, log:6." in said
    assert "2 requests in" in said
    lines = json.loads(cli("report", "log", "--json").out)["lines"]
    assert (lines["damaged"], lines["damaged_at"]) == (4, ["log:1", "log:3", "log:4", "log:6"])
    assert lines["damaged_by"] == {"binary": 1, "json": 1, "long": 1, "fields": 1}


@pytest.mark.parametrize("cut", [-1, -9, 200])
def test_a_packed_file_that_is_cut_off_or_damaged_is_read_up_to_there(cli, clean, cut):
    (clean / "good.log").write_bytes(line(request()))
    packed = gzip.compress(b"\n".join(map(line, traffic(3000))))
    (clean / "cut.gz").write_bytes(packed[:cut])
    (clean / "torn.gz").write_bytes(packed[:4000] + b"\xff" * 100 + packed[4100:])
    for name in ("cut.gz", "torn.gz"):
        done = cli("report", "good.log", name, "--json")
        found = json.loads(done.out)
        assert (done.code, found["lines"]["damaged_by"]["packed"]) == (0, 1)
        assert found["total"]["requests"] >= 1


def test_other_events_are_counted(told):
    rows = [
        line(request()),
        b'{"timestamp":"x","level":"info","event":"job","job_id":"j","total_ms":"?"}',
        b'{"event":"job","status":"complete","total_ms":12.5}',
        b'{"event":"log_lines_dropped","level":"warning","lines":41}',
        b'{"event":"log_lines_dropped","lines":1}',
        b'{"event":"fault","where":"x"}',
        b'{"event":"budget_burning","feature":"chat"}',
    ]
    found = told(rows)
    events = {"job": 2, "log_lines_dropped": 2, "fault": 1, "budget_burning": 1}
    assert (found["lines"]["events"], found["lines"]["dropped"]) == (events, 42)
    assert [one["kind"] for one in found["findings"]] == ["faults", "dropped", "few"]


def test_console_lines_beside_json_ones_are_told(cli, clean):
    (clean / "log").write_bytes(line(request()) + "\n12:00:01  ✗ --- POST /v1/x  timeout\n".encode())
    out = " ".join(cli("report", "log").out.split())
    assert "1 line is for people and cannot be read: have the sidecar write JSON (--log-format json)." in out


# How much of it is in memory


class Endless(io.RawIOBase):
    """So many bytes of one line."""

    def __init__(self, left):
        self.left = left

    def read1(self, size):
        size = min(size, self.left)
        self.left -= size
        return b"{" * size


@pytest.mark.parametrize("tail", [b"", b"\n", b"\n" + GOOD, b"\n" + GOOD + b"\n"])
def test_a_line_is_cut_off_wherever_its_pieces_end(clean, tail):
    for size in (LONGEST - 1, LONGEST, LONGEST + 1, 3 * LONGEST, 3 * LONGEST + 7):
        (clean / "log").write_bytes(GOOD + b"\n" + b"x" * size + tail)
        found = [*Reader([clean / "log"], lambda _: None)]
        wanted = [GOOD, b"x" * size if size <= LONGEST else None]
        assert found == wanted + ([GOOD] if GOOD in tail else [])


def test_a_line_without_end_takes_no_memory():
    reader = Reader([], lambda _: None)
    tracemalloc.start()
    try:
        assert [*reader._lines(Endless(200 << 20), None)] == [None]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def hostile(number):
    """No name was there before, and no moment is near another."""
    fields = {
        name: f"{name} {number} " + "x" * 200 for name in ("model", "feature", "upstream", "path", "error")
    }
    spans = {f"span {number} {at}_ms": 1.0 for at in range(20)}
    over = {"budget": f"b{number}", "ttft_ms": 1.0, "total_ms": None, "phase": f"p{number}"}
    took = 1.06 ** (number % 400)
    return request(
        at=NOON + number * 7, ttft=took, total=took * 2, outcome=f"o{number}", status=number % 600,
        cache=f"c{number}", cache_kind=f"k{number}", phases=request()["phases"] | spans, budget_exceeded=over,
        **fields,
    )  # fmt: skip


def test_ever_new_names_and_times_take_bounded_memory():
    log, sums, count = Log(), Sums(5), 3000
    tracemalloc.start()
    try:
        for number in range(count):
            sums.add(log.read(line(hostile(number)), "log", number))
            log.read(b'{"event":"e%d"}' % number, "log", number)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Any one of the names would take more than that.
    assert held < 3 << 20
    sums.merge()
    assert len(sums.by["model"].groups) == 101
    assert len(sums.slots.slots) <= 240
    assert len(log.events) == 51
    found = report(sums, log, Reader([], print), ["log"])
    assert found.models[0].name == "other"
    assert sum(row.figures.requests for row in found.models) == found.total.requests == count
    assert sum(one.requests for one in found.failures) == count
    assert sum(one.over for one in found.budgets) == count
    assert sum(slot.requests for slot in found.over_time.slots) == count


# Lines of a real sidecar


async def test_lines_of_a_real_sidecar_are_read(provider, start_sidecar, told):
    sidecar = await start_sidecar(provider.url, cache__ttl=60)
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
    async with httpx.AsyncClient() as client:
        for number in range(2):
            (await client.post(f"{sidecar.url}/v1/chat/completions", json=body)).raise_for_status()
            await sidecar.lines.request(number)
        assert (await client.get(f"{sidecar.url}/_slipstream/nothing")).status_code == 404
        await sidecar.lines.request(2)
    raw = sidecar.lines.raw
    found = told([one.rstrip(b"\n") for one in raw])
    lines = sidecar.lines.requests
    assert found["lines"]["damaged"] == found["lines"]["other"] == found["lines"]["console"] == 0
    assert (found["total"]["requests"], found["total"]["failed"]) == (3, 1)
    assert found["outcomes"] == {"complete": 2, "refused": 1}
    assert [one["error"] for one in found["failures"]] == ["not_found"]
    assert {row["name"]: row["figures"]["requests"] for row in found["models"]} == {"m": 2, None: 1}
    assert found["total"]["hit_rate"] == 0.5
    shown = {one["request_id"]: one for one in found["slowest"]}
    assert {one["request_id"]: one["total_ms"] for one in lines} == {
        name: one["total_ms"] for name, one in shown.items()
    }
    for one in shown.values():
        assert sum(piece["ms"] for piece in one["pieces"]) == pytest.approx(one["total_ms"], abs=0.01)


def test_how_long_a_websocket_was_open_is_no_latency(told):
    sockets = [
        request(number, ttft=None, total=3_600_000.0, status=101, ttfb_ms=20.0, **more)
        for number, more in enumerate([{}, {"outcome": "truncated", "error": "upstream_closed"}])
    ]
    found = told([line(row) for row in [*sockets, request(2)]])
    total = found["total"]
    assert (total["requests"], total["failed"]) == (3, 1)
    assert (total["total_ms"]["count"], total["ttfb_ms"]["count"]) == (1, 3)
    assert total["total_ms"]["p99"] < 2100
    assert [one["status"] for one in found["slowest"]] == [200]
