"""sidecar.cli.report: its figures are right, and the same on the terminal, on the page and for programs."""

import json
import math
import re
from collections import Counter
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.cli.report_findings import MOST, findings
from sidecar.cli.report_make import distribution
from sidecar.cli.report_slots import _WIDTHS, Slots
from sidecar.cli.report_words import ms, share, times
from tests.cli.conftest import finished
from tests.cli.test_cache import on_terminal
from tests.cli.test_report import NOON, line, made, request, told, traffic  # noqa: F401 - a fixture
from tests.cli.test_tune import Page

FIGURES = {
    "ttft_ms": "ttft_ms",
    "ttfb_ms": "ttfb_ms",
    "total_ms": "total_ms",
    "overhead_ms": "overhead_ms",
    "tokens_per_second": "tokens_per_second",
    "gap_median_ms": "itl_p50_ms",
    "gap_p99_ms": "itl_p99_ms",
    "gap_longest_ms": "itl_max_ms",
}
"""In the report, and in the line."""
SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def exact(values, share):
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def near(figure, values, share):
    """Within 1 % of the nearest rank; below a microsecond nothing is told apart."""
    if not values:
        return figure is None
    wanted = exact(values, share)
    return abs(figure - wanted) <= wanted * 0.01 + 0.0007


# Percentiles

DURATIONS = st.one_of(
    st.floats(0, 1e7), st.floats(1e-4, 10), st.sampled_from([0, 1, 100, 1000.0, 0.001, 1e12])
)
NAMES = st.sampled_from([None, "a", "b", "ü"])
LINES = st.fixed_dictionaries(
    {
        **dict.fromkeys(FIGURES.values(), st.none() | DURATIONS),
        "total_ms": DURATIONS,
        "model": NAMES,
        "feature": NAMES,
        "upstream": NAMES,
        "cache": st.sampled_from(["hit", "miss", "collapsed", "bypass", "off"]),
        "outcome": st.sampled_from(["complete", "cancelled", "timeout", "truncated"]),
        "input_tokens": st.one_of(st.none(), st.integers(0, 10**6)),
    }
)


@settings(deadline=None, max_examples=60)
@given(st.lists(LINES, min_size=1, max_size=120))
def test_percentiles_and_counts_are_those_of_the_lines(rows):
    found, log = made([line(request(number, **row)) for number, row in enumerate(rows)])
    assert not log.damaged
    groups = [(found.total, rows)]
    for listed, name in ((found.models, "model"), (found.features, "feature"), (found.upstreams, "upstream")):
        assert Counter({row.name: row.figures.requests for row in listed}) == Counter(
            row[name] for row in rows
        )
        groups += [(one.figures, [row for row in rows if row[name] == one.name]) for one in listed]
    for figures, of in groups:
        for name, field in FIGURES.items():
            values, q = [row[field] for row in of if row[field] is not None], getattr(figures, name)
            assert q.count == len(values)
            assert all(near(getattr(q, at), values, share) for at, share in SHARES.items())
        outcomes = Counter(row["outcome"] for row in of)
        assert figures.requests == len(of)
        assert figures.cancelled == outcomes["cancelled"]
        assert figures.failed == outcomes["timeout"] + outcomes["truncated"]
        assert figures.timeout_rate == pytest.approx(outcomes["timeout"] / len(of), abs=1e-4)
        caches = Counter(row["cache"] for row in of)
        asked = caches["hit"] + caches["miss"] + caches["collapsed"]
        rate = caches["hit"] / asked if asked else None
        assert figures.hit_rate == (rate if rate is None else pytest.approx(rate, abs=1e-4))
        assert figures.input_tokens == sum(row["input_tokens"] or 0 for row in of)
    assert found.outcomes == Counter(row["outcome"] for row in rows)
    assert sum(bar.requests for bar in found.total_distribution) == len(rows)
    by_total = sorted((row["total_ms"] for row in rows), reverse=True)
    assert [one.total_ms for one in found.slowest] == by_total[:5]
    by_first = sorted((row["ttft_ms"] for row in rows if row["ttft_ms"] is not None), reverse=True)
    assert [one.ttft_ms for one in found.latest_first_tokens] == by_first[:5]


def test_a_stale_answer_is_no_hit():
    rows = [
        request(number, cache="hit", cache_kind=kind)
        for number, kind in enumerate(("exact", "semantic", "stale"))
    ]
    found, _ = made(map(line, [*rows, request(3)]))
    assert found.total.hit_rate == 0.5
    assert [row.name for row in found.cache] == ["hit exact", "hit semantic", "hit stale", "miss"]


def test_resumed_requests_and_retries_are_counted():
    found, _ = made(map(line, [request(0, resumed_from=7), request(1, retries=2), request(2, retries=1)]))
    assert (found.resumed, found.retries) == (1, 3)


# Over time


@settings(deadline=None)
@given(st.lists(st.integers(0, 2_000_000_000), min_size=1, max_size=400))
def test_every_request_is_in_the_slot_of_its_time(times):
    slots = Slots()
    for at in times:
        slots.add(at + 0.5, [1, 2])
        assert len(slots.slots) <= 240
    shown = slots.shown()
    width = slots.width
    assert width in _WIDTHS or width % _WIDTHS[-1] == 0
    wanted = Counter(at - at % width for at in times)
    assert {start: cells[1] for start, cells in shown if cells} == wanted
    starts = [start for start, _ in shown]
    assert starts == [*range(starts[0], starts[-1] + 1, width)]
    assert len(starts) <= 54


def test_each_width_divides_the_next():
    assert all(wide % narrow == 0 for narrow, wide in pairwise(_WIDTHS))


def test_steps_have_their_own_percentiles(told):  # noqa: F811
    rows = [
        *traffic(30, upstream="a"),
        *[request(number, ttft=9000.0, total=9500.0) for number in range(60, 90)],
    ]
    rows.append(request(45, ttft=None, outcome="timeout", error="upstream_timeout"))
    over = told(map(line, rows))["over_time"]
    assert over["seconds"] == 5
    assert [slot["requests"] for slot in over["slots"]] == [5] * 6 + [0] * 3 + [1] + [0] * 2 + [5] * 6
    assert [slot["failed"] for slot in over["slots"]] == [0] * 9 + [1] + [0] * 8
    assert over["slots"][0]["start"] == "2026-11-21T12:00:00Z"
    assert over["slots"][6]["ttft_ms"]["p50"] is None
    assert over["slots"][-1]["ttft_ms"]["p50"] == pytest.approx(9000, rel=0.01)


# Distributions


@given(st.dictionaries(st.integers(0, 4095), st.integers(1, 1000), min_size=1))
def test_bars_hold_everything_and_follow_each_other(cells):
    bars = distribution(cells)
    assert sum(bar.requests for bar in bars) == sum(cells.values())
    assert len(bars) <= 61
    assert bars[0].requests and bars[-1].requests
    for bar, after in pairwise(bars):
        assert bar.over_ms < bar.up_to_ms == after.over_ms


# Phases


def phased(number, total, **phases):
    return request(number, ttft=total - 10.0, total=total, phases=phases)


def test_the_slowest_are_compared_with_the_middle(told):  # noqa: F811
    usual = [phased(number, 200.0, connect_ms=10.0, upstream_ms=150.0) for number in range(95)]
    slow = [phased(number, 1000.0, connect_ms=700.0, upstream_ms=250.0) for number in range(95, 100)]
    hits = [request(number, ttft=1.0, total=2.0, cache="hit", cache_kind="exact") for number in range(400)]
    back = [request(number, total=90_000.0, resumed_from=3) for number in range(9)]
    found = told(map(line, [*usual, *slow, *hits, *back]))["phases_to_end"]
    # Half of those above the 95th percentile's rank would be usual ones.
    assert (found["requests"], found["middle_requests"]) == (100, 95)
    phases = {phase["name"]: phase for phase in found["phases"]}
    slow_count = found["slow_requests"]
    assert slow_count == 100
    assert phases["connect"]["middle_ms"] == pytest.approx(10)
    slower, _ = made(map(line, [*usual, *slow, phased(100, 1000.0, connect_ms=700.0, upstream_ms=250.0)]))
    compared = slower.phases_to_first_token
    assert compared.slow_requests == 6
    assert compared.slow_from_ms == pytest.approx(990, rel=0.02)
    assert [phase.name for phase in compared.phases][:2] == ["connect", "upstream"]
    assert compared.phases[0].slow_ms == pytest.approx(700)
    assert compared.phases[0].slow_share == pytest.approx(700 / 990, abs=0.001)
    assert sum(phase.slow_share for phase in compared.phases) == pytest.approx(1, abs=0.001)


def test_spans_of_an_app_stand_beside_phases():
    spans = {"upstream_ms": 100.0, "retrieval_ms": 80.0, "x\x1b[2J_ms": 5.0}
    phases = dict.fromkeys(("read_ms", "lookup_ms", "embed_ms", "search_ms", "connect_ms", "store_ms"), 0.0)
    found, _ = made(map(line, [phased(number, 200.0, **phases, **spans) for number in range(10)]))
    rows = {phase.name: phase for phase in found.phases_to_end.phases if phase.span}
    assert set(rows) == {"retrieval", "x\x1b[2J"}
    assert rows["retrieval"].slow_ms == 80.0
    assert found.slowest[0].spans == {"retrieval": 80.0, "x\x1b[2J": 5.0}


# The same everywhere


def varied(count=400):
    """Requests of which something is to be said in every table."""
    for number in range(count):
        fields = {
            "model": ("gpt-5", "claude-sonnet-5", None)[number % 3],
            "upstream": ("openai", "anthropic")[number % 2],
        }
        ttft = 200.0 + 37.0 * (number % 29) + (9000.0 if number % 50 == 7 else 0)
        if number % 9 == 0:
            fields |= {"cache": "hit", "cache_kind": ("exact", "semantic")[number % 2]}
        if number % 40 == 3:
            fields |= {"outcome": "upstream_error", "status": 429, "error": "upstream_refused"}
        if ttft > 800:
            fields["budget_exceeded"] = {
                "budget": "chat",
                "ttft_ms": ttft - 800,
                "total_ms": None,
                "phase": "upstream",
            }
        yield request(
            number,
            ttft=ttft,
            total=ttft * 3,
            itl_p50_ms=10.0 + number % 7,
            itl_max_ms=90.0 + number,
            **fields,
        )


def cells_of(out):
    """The lines of a terminal's tables, each as its cells."""
    return [tuple(re.split(r" {2,}", row.strip())) for row in out.splitlines()]


def test_terminal_page_and_json_have_the_same_figures(cli, clean):
    (clean / "log").write_bytes(b"\n".join(map(line, varied())))
    shown = cli("report", "log", "--html", "page.html")
    said = json.loads(cli("report", "log", "--json").out)
    page = Page((clean / "page.html").read_text(encoding="utf-8"))
    rows = cells_of(shown.out)
    # Page and terminal: every row of every table.
    assert len(page.rows) > 40
    assert [row for row in page.rows if tuple(row) not in rows] == []
    # Terminal and JSON: what the rows are to be.
    wanted = []
    for listed in ("models", "features", "upstreams"):
        for row in said[listed]:
            name, of = row["name"] or "-", row["figures"]
            ttft, total = ([ms(of[kind][at]) for at in SHARES] for kind in ("ttft_ms", "total_ms"))
            ratios = [times(of[kind]["p99_to_p50"]) for kind in ("ttft_ms", "total_ms")]
            gaps = [ms(of["gap_median_ms"]["p50"]), ms(of["gap_p99_ms"]["p99"])]
            pace = [
                f"{of['tokens_per_second']['p50']:.0f}",
                ms(of["overhead_ms"]["p99"]),
                share(of["error_rate"]),
            ]
            wanted += [(name, f"{of['requests']:,}", *ttft, *total), (name, *ratios, *gaps, *pace)]
    total = said["total"]
    for name, kind in (
        ("median gap", "gap_median_ms"),
        ("p99 gap", "gap_p99_ms"),
        ("longest gap", "gap_longest_ms"),
    ):
        q = total[kind]
        wanted.append((name, f"{q['count']:,}", *[ms(q[at]) for at in SHARES], times(q["p99_to_p50"])))
    for row in said["failures"]:
        last = row["last"][:16].replace("T", " ")
        part = share(row["requests"] / total["requests"])
        wanted.append((row["error"], row["upstream"], str(row["status"]), str(row["requests"]), part, last))
    assert [row for row in wanted if row not in rows] == []
    text = " ".join(shown.out.split())
    assert f"Cache: hit rate {share(total['hit_rate'])}" in text
    on_page = " ".join(" ".join(page.texts).split())
    assert said["findings"]
    for number, one in enumerate(said["findings"], 1):
        assert f"{number}. {one['seen']} {one['advice']}" in text
        assert one["seen"] in on_page
    for one in said["slowest"]:
        assert f"{ms(one['total_ms'])}, first token after {ms(one['ttft_ms'])}: POST" in text
        assert one["request_id"] in text
        assert one["request_id"] in on_page


def test_names_of_the_document_are_stable(told):  # noqa: F811
    found = told(map(line, varied()))
    assert set(found) == {
        "files", "lines", "period", "outcomes", "total", "models", "features", "upstreams", "cache", "failures",
        "budgets", "phases_to_end", "phases_to_first_token", "slowest", "latest_first_tokens", "over_time",
        "ttft_distribution", "total_distribution", "retries", "resumed", "findings",
    }  # fmt: skip
    assert set(found["models"][0]) == {"name", "figures"}
    assert set(found["total"]) == {
        "requests", "failed", "cancelled", "error_rate", "cancel_rate", "timeout_rate", "hit_rate", *FIGURES,
        "input_tokens", "output_tokens",
    }  # fmt: skip
    assert set(found["total"]["ttft_ms"]) == {"count", "p50", "p95", "p99", "p99_to_p50"}
    (budget,) = found["budgets"]
    over = [row["budget_exceeded"]["ttft_ms"] for row in varied() if row["budget_exceeded"]]
    assert budget == {
        "budget": "chat", "requests": 400, "over": len(over), "share": round(len(over) / 400, 4),
        "over_ttft": len(over), "over_total": 0, "worst_ttft_ms": max(over), "worst_total_ms": None,
        "phases": {"upstream": len(over)},
    }  # fmt: skip


def test_worst_is_how_many_are_shown(told):  # noqa: F811
    for worst in (0, 1, 7):
        found = told(map(line, varied(30)), "--worst", str(worst))
        assert len(found["slowest"]) == len(found["latest_first_tokens"]) == worst


# On the terminal


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_terminal_is_not_left_at_its_right_end(clean, columns):
    name = "an-assistants-model-" + "9" * 30
    rows = [{**row, "model": name, "path": "/v1/" + "p" * 20} for row in varied()]
    rows.append({**rows[0], "timestamp": "2026-11-21T12:08:58.5Z"})  # as many steps as there can be
    (clean / "log").write_bytes(b"\n".join(map(line, rows)))
    shown, code = on_terminal(columns, "report", "log")
    text = shown.split("\x1b[2K")[-1]
    assert code == 0
    widest = max(len(row) for row in text.splitlines())
    assert widest <= max(columns, 80)
    named = {row.split("  ")[1] for row in text.splitlines() if row.startswith("  an-")}
    assert ("an-assistants-model-" + "9" * 30 in named) is (columns == 200)
    assert named


def test_nothing_is_cut_where_nobody_looks(cli, clean):
    name = "an-assistants-model-" + "9" * 60
    (clean / "log").write_bytes(line(request(model=name)))
    assert name in cli("report", "log").out


def test_names_that_others_chose_do_not_reach_the_terminal_as_they_are(cli, clean):
    evil = "\x1b[2J\x07\r\n\x9b31m\u202eevil"
    names = dict.fromkeys(
        ("model", "feature", "upstream", "path", "method", "error", "request_id", "cache"), evil
    )
    phases = request()["phases"] | {f"{evil}_ms": 100.0}
    over = {"budget": evil, "ttft_ms": 9.0, "total_ms": 1.0, "phase": evil}
    rows = [
        line(request(number, outcome=evil, phases=phases, budget_exceeded=over, **names))
        for number in range(120)
    ]
    (clean / "log\x1b[31m").write_bytes(b"\n".join([*rows, line({"event": evil}), b"\x00"]))
    code, out, err = cli("report", "log\x1b[31m")
    assert (code, err) == (0, "")
    assert not set(out) & {*map(chr, range(32)), "\x7f", "\x9b", "\u202e"} - {"\n"}
    assert "evil" in out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_these_characters_gets_others(clean, encoding, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    (clean / "log").write_bytes(b"\n".join(line(request(number, model="模型")) for number in range(30)))
    code, out, err = finished("report", "log", encoding=encoding)
    assert (code, err) == (0, "")
    assert "o p50" in out
    assert "##" in out


def test_a_waterfall_shows_each_phase_in_its_place(cli, clean):
    phases = {"connect_ms": 250.0, "upstream_ms": 250.0, "read_ms": 0.01}
    (clean / "log").write_bytes(line(request(ttfb_ms=500.01, ttft=750.0, total=1000.0, phases=phases)))
    rows = [row for row in cli("report", "log").out.splitlines() if "│" in row and row.startswith("     ")]
    found = {
        row.split()[0]: row.split("│")[1]
        for row in rows
        if row.split()[0] in ("connect", "upstream", "first_token", "stream")
    }
    assert [*found] == ["connect", "upstream", "first_token", "stream"]
    starts = [len(bar) - len(bar.lstrip()) for bar in found.values()]
    widths = [len(bar.strip()) for bar in found.values()]
    columns = starts[-1] + widths[-1]
    assert starts == pytest.approx([0, columns / 4, columns / 2, columns * 3 / 4], abs=1)
    assert widths == pytest.approx([columns / 4] * 4, abs=1)


@pytest.mark.parametrize(
    "rows",
    [
        [request()],
        [request(ttft=None)],
        [request(total=0.0, ttft=0.0, ttfb_ms=0.0, phases={})],
        [request(total=1e12, ttft=1e12), request(total=0.0, ttft=0.0, phases={})],
        [request(0, ttft=None), request(5000, ttft=None)],
        [request(cache="off", itl_p50_ms=None, overhead_ms=None, phases=None)],
    ],
    ids=str.split("one whole zero extremes apart bare"),
)  # fmt: skip
def test_a_report_of_next_to_nothing(cli, clean, rows):
    (clean / "log").write_bytes(b"\n".join(map(line, rows)))
    code, out, err = cli("report", "log", "--html", "page.html")
    assert (code, err) == (0, "")
    assert "nan" not in out.lower()
    Page((clean / "page.html").read_text(encoding="utf-8"))


# What to look at first


def kinds(rows, *more):
    found, _ = made([*map(line, rows), *more])
    return {one.kind: one for one in findings(found)}


def slow(count, start, **fields):
    return [request(start + number, ttft=4000.0, total=6000.0, **fields) for number in range(count)]


def at_pace(numbers, ttft):
    """Three a second."""
    return [request(number, at=NOON + number // 3, ttft=ttft) for number in numbers]


def failing(count, **fields):
    return [request(number, outcome="upstream_error", **fields) for number in range(count)]


CASES = {
    "failures": (
        [*traffic(), *failing(5, status=429, error="upstream_refused")],
        ["5 of 205 requests failed (2.4%)", "(100% of these)", "status 429 at openai"],
        "rate",
    ),
    "budgets": (
        [*traffic(180), *[request(number, budget_exceeded={"budget": "chat", "ttft_ms": 5.0, "phase": "connect"}) for number in range(20)]],
        ["20 of 200 requests of chat (10.0%", "100% of them mostly because of connecting"],
        "DNS",
    ),
    "tail": (
        [*traffic(), *slow(5, 200)],
        ["p99 4.00s is 9.9x p50 (402ms)", "waiting for the upstream's head takes 1.40s on average, against 385ms"],
        "compare models",
    ),
    "slow_times": (
        [*at_pace(range(3000), 300.0), *at_pace(range(3600, 3900), 700.0)],
        ["in the 30 seconds from 2026-11-21 12:20 UTC the p95 to the first token was 700ms", "usually it is 299ms"],
        "deployments",
    ),
    "slow_model": (
        [*traffic(), *[request(number, ttft=1800.0, model="slow-1") for number in range(150)]],
        ["slow-1 is slow to begin: p95 to the first token is 1.8"],
        "another model",
    ),
    "stalls": (
        [*traffic(), *[request(number, itl_max_ms=5000.0) for number in range(5)]],
        ["in one of a hundred the longest gap was 4.9", "the median gap is 18ms"],
        "gaps",
    ),
    "overhead": (
        [*traffic(), *[request(number, overhead_ms=80.0) for number in range(5)]],
        ["The sidecar itself adds 7", "at p99 (0.4ms at p50)"],
        "CPU",
    ),
    "cancelled": (
        [*traffic(180), *traffic(20, outcome="cancelled")],
        ["20 requests (10.0%)"],
        "timeouts",
    ),
    "cache": (traffic(1000), ["The cache answered 0% of"], "slipstream cache stats"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_what_stands_out_is_told_with_figures_and_a_remedy(kind):
    rows, seen, advice = CASES[kind]
    found = kinds(rows)
    assert kind in found
    assert all(words in found[kind].seen for words in seen), found[kind].seen
    assert advice in found[kind].advice


QUIET = {
    "failures": [*traffic(), *failing(2, status=429)],
    "budgets": [*traffic(191), *[request(number, budget_exceeded={"budget": "chat", "ttft_ms": 5.0}) for number in range(9)]],
    "tail": [*traffic(90), *slow(5, 200)],
    "slow_times": [*at_pace(range(3000), 300.0), *at_pace(range(3600, 3900), 580.0)],
    "slow_model": [*traffic(), *[request(number, ttft=1800.0, model="slow-1") for number in range(90)]],
    "stalls": [*traffic(), *[request(number, itl_max_ms=5000.0) for number in range(2)]],
    "overhead": [*traffic(), *[request(number, overhead_ms=19.0) for number in range(5)]],
    "cancelled": [*traffic(185), *traffic(15, outcome="cancelled")],
    "cache": traffic(990),
}  # fmt: skip


@pytest.mark.parametrize("kind", QUIET)
def test_what_is_below_its_threshold_is_not_told(kind):
    assert kind not in kinds(QUIET[kind])


@pytest.mark.parametrize("kind", ["failures", "tail", "slow_model"])
def test_names_in_what_stands_out_do_no_harm(kind):
    evil = "m\x1b[2J\n"
    rows = [
        row
        | ({"upstream": evil} if kind == "failures" else {"model": evil} if row["model"] == "slow-1" else {})
        for row in CASES[kind][0]
    ]
    assert kinds(rows)[kind].seen.isprintable()


def test_damage_and_too_few_requests_are_told():
    found = kinds(traffic(20), *[b"{"] * 2)
    assert found["damaged"].seen == "2 of 22 lines are damaged."
    assert found["few"].seen.startswith("There are 20 requests")
    assert not {"damaged", "few"} & set(kinds(traffic(300), b"{"))


def test_when_all_is_well_it_says_so(cli, clean):
    (clean / "log").write_bytes(b"\n".join(map(line, traffic(300))))
    done = cli("report", "log", "--html", "page.html")
    said = "Nothing stands out: 0% of requests failed; first token p99 "
    assert said in " ".join(done.out.split())
    assert said in (clean / "page.html").read_text(encoding="utf-8")


def test_five_things_come_first():
    rows = [request(number, itl_max_ms=9000.0, overhead_ms=50.0) for number in range(1000)]
    rows += [*slow(60, 0, outcome="cancelled"), *slow(60, 0, outcome="timeout")]
    found, _ = made([*map(line, rows), b'{"event":"fault"}', *[b"{"] * 500])
    told_first = [one.kind for one in findings(found)]
    assert len(told_first) == MOST
    assert told_first == ["faults", "failures", "tail", "stalls", "overhead"]


# The page


def test_the_page_stands_alone_and_is_well_formed(cli, clean):
    (clean / "log").write_bytes(b"\n".join(map(line, varied())))
    assert cli("report", "log", "--html", "page.html").code == 0
    text = (clean / "page.html").read_text(encoding="utf-8")
    assert cli("report", "log", "--html", "-").out == text
    ET.fromstring(text)
    found = Page(text)
    tags = {tag for tag, _ in found.seen}
    assert not tags & {"script", "link", "img", "iframe", "object", "image", "use", "a", "form"}
    for _, fields in found.seen:
        assert not {"src", "href", "xlink:href", "style"} & set(fields)
        assert not any(name.startswith("on") for name in fields)
    assert "url(" not in text
    assert "@import" not in text
    assert "http" not in text.replace("http://www.w3.org", "").replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in text
    tables = [tag for tag, _ in found.seen if tag in ("table", "caption")]
    assert tables == ["table", "caption"] * (len(tables) // 2)
    assert {fields["scope"] for tag, fields in found.seen if tag == "th"} == {"row", "col"}
    pictures = [fields for tag, fields in found.seen if tag == "svg"]
    assert len(pictures) == 6 + 10  # the charts, and a waterfall for each request
    for fields in pictures:
        assert fields["role"] == "img"
        assert [found.ids[name] for name in fields["aria-labelledby"].split()] == ["title", "desc"]
    assert [tag for tag, _ in found.seen if tag == "h1"] == ["h1"]
    assert dict(found.seen)["html"]["lang"] == "en"


def test_names_that_others_chose_do_no_harm_on_the_page(cli, clean):
    evil = "</title></svg><script>alert(1)</script>\"'&\x1b[2J\x00\u202e\ufffe`x`"
    names = dict.fromkeys(
        ("model", "feature", "upstream", "path", "method", "error", "request_id", "cache"), evil
    )
    phases = request()["phases"] | {f"{evil}_ms": 100.0}
    over = {"budget": evil, "ttft_ms": 9.0, "total_ms": 1.0, "phase": evil}
    rows = [
        line(request(number, outcome=evil, phases=phases, budget_exceeded=over, **names))
        for number in range(120)
    ]
    (clean / "<b>log").write_bytes(b"\n".join([*rows, line({"event": evil})]))
    assert cli("report", "<b>log", "--html", "page.html").code == 0
    text = (clean / "page.html").read_text(encoding="utf-8")
    ET.fromstring(text)
    assert "<script" not in text
    assert "<b>" not in text
    assert "\x1b" not in text
    found = Page(text)
    assert "script" not in {tag for tag, _ in found.seen}
    assert any("<script>alert(1)</script>" in said for said in found.texts)


def test_the_page_is_whole_or_not_there(cli, clean, monkeypatch):
    (clean / "log").write_bytes(line(request()))
    (clean / "page.html").write_text("before")
    (clean / "link.html").symlink_to("page.html")
    assert cli("report", "log", "--html", "link.html").code == 0
    assert (clean / "link.html").is_symlink()
    whole = (clean / "page.html").read_text(encoding="utf-8")
    assert whole.endswith("</html>\n")
    (clean / "folder").mkdir()
    code, out, err = cli("report", "log", "--html", "folder")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "folder: cannot be written" in err
    names = {path.name for path in clean.iterdir()}
    assert names <= {"log", "page.html", "link.html", "folder", "cache"}
    assert cli("report", "log", "--html", "/dev/null").code == 0
