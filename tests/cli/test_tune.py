"""sidecar.cli.tune: what it reads, what it says of it, and with which exit status."""

import gzip
import io
import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.cli.tune_read import Filter, read
from sidecar.core.semantic.curve import wilson
from sidecar.core.semantic.guards import GUARDS
from tests.cli.conftest import finished
from tests.cli.test_cache import on_terminal

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
MIDNIGHT = 1_763_000_000
PAIRS = Path(__file__).resolve().parents[2] / "benchmarks" / "pairs.jsonl"
COUNTED = ("every", "right", "wrong", "unknown", "alone", "different")


def record(number=0, similarity=0.95, *, right=True, **fields):
    """A line of shadow mode, each with questions of its own."""
    made = {
        "kind": "shadow",
        "at": MIDNIGHT + number,
        "upstream": "openai",
        "path": CHAT,
        "namespace": None,
        "scope": "5" * 16,
        "asked": f"{number:016x}",
        "stored": "0" * 16,
        "similarity": similarity,
        "guard": None,
        "same": bool(right),
        "answers": None if right else 0.3,
        "threshold": 0.92,
    }
    if similarity is None:
        made |= {"stored": None, "same": None}
    return made | fields


def traffic(good=400, bad=3, unlike=600, none=100, **fields):
    """Requests of which so many would be right hits, so many wrong ones, and the rest none."""
    rows = [record(at, 0.95, **fields) for at in range(good)]
    rows += [record(good + at, 0.93, right=False, **fields) for at in range(bad)]
    rows += [record(2000 + at, 0.4, right=False, **fields) for at in range(unlike)]
    return rows + [record(9000 + at, None, **fields) for at in range(none)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(clean):
    made = clean / "data"
    made.mkdir()
    return made


@pytest.fixture
def tune(cli, folder):
    """`tune(rows, "--want", "2%")`: the command on the data folder with these records."""

    def call(rows, *arguments, **environment):
        (folder / "shadow.jsonl").write_text(lines(rows))
        return cli("tune", *arguments, "--data-dir", str(folder), **environment)

    return call


@pytest.fixture
def told(tune):
    """The same as an object, which has to have one sample only."""

    def call(rows, *arguments, **environment):
        done = tune(rows, "--json", *arguments, **environment)
        (sample,) = json.loads(done.out)["samples"]
        return sample

    return call


def at(sample, threshold):
    (point,) = (point for point in sample["points"] if point["threshold"] == threshold)
    return point


def part(rate):
    return rate["count"], rate["total"]


# Where records come from


def test_without_records_there_is_one_line_and_exit_1(cli, folder):
    code, out, err = cli("tune", "--data-dir", str(folder))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert str(folder) in err
    assert "--cache shadow" in err
    assert cli("tune", "--data-dir", str(folder / "none")).code == 1


def test_a_folder_that_cannot_be_used_is_one_line_and_exit_2(cli):
    code, out, err = cli("tune", "--data-dir", "x" * 5000)
    assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("way", ["flag", "file", "variable", "systemd"])
def test_the_folder_is_found_as_serve_finds_it(cli, folder, clean, way):
    (folder / "shadow.jsonl").write_text(lines(traffic()))
    given, environment = [], {}
    if way == "flag":
        given = ["--data-dir", str(folder)]
    elif way == "file":
        (clean / "slipstream.toml").write_text(f'[server]\ndata_dir = "{folder}"\n')
        given = ["--config", str(clean / "slipstream.toml")]
    elif way == "variable":
        environment = {"SLIPSTREAM_SERVER__DATA_DIR": str(folder)}
    else:
        environment = {"STATE_DIRECTORY": str(folder)}
    assert "1,103 requests" in cli("tune", *given, **environment).out


def test_the_file_before_is_read_too(cli, folder):
    (folder / "shadow.jsonl.1").write_text(lines([record(1), record(2)]))
    assert '"every": 2' in cli("tune", "--json", "--data-dir", str(folder)).out
    (folder / "shadow.jsonl").write_text(lines([record(3)]))
    assert '"every": 3' in cli("tune", "--json", "--data-dir", str(folder)).out


def test_files_are_read_instead_compressed_or_not_and_stdin(clean):
    (clean / "plain").write_text(lines([record(1)]))
    (clean / "packed").write_bytes(gzip.compress(lines([record(2), record(3)]).encode()))
    done = finished("tune", "plain", "packed", "--json", cwd=clean)
    assert json.loads(done.out)["samples"][0]["counts"]["every"] == 3
    for text in (lines([record(4)]).encode(), gzip.compress(lines([record(4)]).encode())):
        command = [sys.executable, "-m", "sidecar", "tune", "-", "--json"]
        piped = subprocess.run(command, input=text, capture_output=True, check=False, cwd=clean)
        assert json.loads(piped.stdout)["samples"][0]["counts"]["every"] == 1


@pytest.mark.parametrize("name", ["none", "."])
def test_a_file_that_cannot_be_read_is_one_line_and_exit_2(cli, clean, name):
    code, out, err = cli("tune", str(clean / name))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(clean / name) in err


DAMAGED = [
    b"{",
    b"[]",
    b"null",
    b"{}",
    b"\xff\xfe",
    b'{"a": "x", "b": "y"}',
    b'{"a": "x", "b": "y", "same": 2}',
    b'{"a": "x", "b": "y", "same": "yes"}',
    b'{"a": "x", "b": 1, "same": 1}',
    b'{"a": "\\ud800", "b": "y", "same": 1',
    b'{"kind": "bogus"}',
    b'{"kind": "shadow"}',
    json.dumps(record(similarity="high")).encode(),
    json.dumps(record(at=1e18)).encode(),
    json.dumps(record(similarity=float("nan"))).encode(),
    json.dumps(record()).replace("0.95", "1e999").encode(),
    json.dumps(record()).encode()[:-20],
    b"[" * 100_000,
]


def test_damaged_lines_are_counted_and_told_and_the_rest_counts(cli, clean):
    good = lines(traffic()).encode()
    (clean / "file").write_bytes(good + b"\n\n  \n" + b"\n".join(DAMAGED))
    code, out, err = cli("tune", "file", "--want", "5%", "--json")
    assert code == 0
    assert err == f"{len(DAMAGED)} lines are neither a labelled pair nor a record, and left out\n"
    assert json.loads(out)["damaged"] == len(DAMAGED)
    assert json.loads(out)["samples"][0]["counts"]["every"] == 1103


def test_nothing_but_damage_is_exit_1(cli, clean):
    (clean / "file").write_bytes(b"\n".join(DAMAGED))
    code, out, err = cli("tune", "file")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("slipstream: nothing to judge by")


@pytest.mark.parametrize("cut", [20, 2000, -4, -9])
def test_of_a_compressed_file_that_is_cut_off_what_can_be_read_is(clean, cut):
    packed = gzip.compress(
        lines([record(number, guard=os.urandom(8).hex()) for number in range(2000)]).encode()
    )
    (clean / "file").write_bytes(packed[:cut])
    found = read([clean / "file"], Filter())
    assert 1 <= found.damaged <= 2
    assert (not found.records) is (cut == 20)


@given(
    st.lists(
        st.one_of(st.binary(max_size=60), st.sampled_from([json.dumps(record()).encode(), *DAMAGED[:-1]]))
    )
)
@settings(max_examples=80, deadline=None, derandomize=True, database=None)
def test_no_bytes_whatever_are_too_much_for_it(parts):
    text = b"\n".join(parts)
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(text))))
        found = read([Path("-")], Filter())
    told = found.damaged + len(found.pairs) + found.records.total()
    assert told == len([line for line in text.split(b"\n") if line.strip()]) or text.startswith(b"\x1f\x8b")


# What is made of them


def test_rates_of_requests(told):
    rows = [
        *[record(number, 0.95) for number in range(6)],
        *[record(10 + number, 0.95, right=False) for number in range(2)],
        *[record(20 + number, 0.95, same=None, answers=None) for number in range(3)],
        *[record(30 + number, 0.9, right=False) for number in range(4)],
        *[record(40 + number, 0.99, right=False, guard="numbers") for number in range(5)],
        *[record(50 + number, None) for number in range(7)],
    ]
    sample = told(rows)
    assert [sample["counts"][name] for name in COUNTED] == [27, 6, 11, 3, 7, 27]
    point = at(sample, 0.92)
    assert part(point["hit_rate"]) == (11, 27)
    assert part(point["share_of_hits_false"]) == (2, 8)
    assert part(point["false_hit_rate"]) == (2, 11)
    low, high = wilson(2, 8)
    assert (point["share_of_hits_false"]["low"], point["share_of_hits_false"]["high"]) == (low, high)
    assert point["share_of_hits_false"]["share"] == 0.25
    assert part(at(sample, 0.9)["hit_rate"]) == (15, 27)
    assert part(at(sample, 0.96)["hit_rate"]) == (0, 27)
    assert sample["guards"] == [{"guard": "numbers", "right": 0, "wrong": 5, "unknown": 0}]


def test_answers_agree_from_a_similarity_on(told):
    rows = [record(number, same=False, answers=number / 100) for number in range(100)]
    rows.append(record(100, same=False, answers=None))  # another text, of which nothing else is known
    assert told(rows)["counts"]["right"] == 15  # semantic.agree is 0.85
    assert told(rows, "--agree", "0.6")["counts"]["right"] == 40
    assert told(rows, "--agree", "60%")["counts"]["right"] == 40
    assert told(rows, SLIPSTREAM_SEMANTIC__AGREE="0.7")["counts"]["right"] == 30
    assert told(rows)["counts"]["unknown"] == 0


def test_a_guard_that_is_not_asked_objects_to_nothing(told):
    rows = [record(number, guard="numbers") for number in range(40)]
    assert part(at(told(rows), 0.92)["hit_rate"]) == (0, 40)
    sample = told(rows, SLIPSTREAM_SEMANTIC__SKIP_GUARDS="numbers,units")
    assert part(at(sample, 0.92)["hit_rate"]) == (40, 40)


def test_the_same_question_again_makes_no_interval_smaller(told, tune):
    once = traffic()
    again = [{**row, "at": row["at"] + 5000} for row in once]
    one, other = told(once), told([*once, *again])
    assert other["counts"]["every"] == 2 * one["counts"]["every"]
    assert other["counts"]["different"] == one["counts"]["every"]
    assert at(other, 0.92)["share_of_hits_false"]["high"] == at(one, 0.92)["share_of_hits_false"]["high"]
    assert "1,103 repeat others" in tune([*once, *again]).out.replace("\n", " ")


def test_hits_that_were_checked_are_a_sample_of_their_own(tune):
    checked = [record(number, 0.95, kind="verify") for number in range(500)]
    checked += [record(600 + number, 0.99, kind="verify", threshold=0.98) for number in range(100)]
    found = json.loads(tune([*traffic(), *checked], "--json").out)
    shadow, verify = found["samples"]
    assert (shadow["kind"], verify["kind"]) == ("shadow", "verify")
    assert shadow["counts"]["every"] == 1103
    # Nothing is known of thresholds below the one of their time.
    assert [point["threshold"] for point in verify["points"]] == [at / 100 for at in range(92, 100)]
    assert part(at(verify, 0.92)["hit_rate"]) == (500, 500)
    assert part(at(verify, 0.98)["hit_rate"]) == (100, 600)
    assert verify["suggestion"] == 0.92


def test_it_suggests_the_lowest_threshold_that_keeps_to_what_is_wanted(told, tune):
    rows = traffic(good=900, bad=3)
    assert wilson(3, 903)[1] < 0.01 < wilson(4, 604)[1]
    sample = told([*rows, *[record(5000 + number, 0.88, right=False) for number in range(30)]])
    assert sample["suggestion"] == 0.89
    assert sample["setting"] == "semantic.threshold = 0.89"
    assert sample["refusal"] is None
    code, out, err = tune(rows)
    assert (code, err) == (0, "")
    assert "\n    semantic.threshold = 0.80\n" in out
    assert "with 95% confidence not more than" in " ".join(out.split())


@pytest.mark.parametrize(
    ("rows", "want", "reason", "code"),
    [
        (traffic(good=400, bad=0), "1%", None, 0),
        (traffic(good=400, bad=0), "0.01", None, 0),
        (traffic(good=300, bad=0), "1%", "too_few", 1),
        (traffic(good=5, bad=0), "50%", "too_few", 1),
        ([record(number, None) for number in range(50)], "10%", "too_few", 1),
        (traffic(good=300, bad=100), "1%", "too_few", 1),
        ([record(number, 0.995, right=number % 2) for number in range(900)], "1%", "too_false", 0),
    ],
)
def test_exit_status_and_reason(told, tune, rows, want, reason, code):
    assert told(rows, "--want", want)["refusal"] == reason
    done = tune(rows, "--want", want)
    assert done.code == code
    assert ("No suggestion" in done.out) is (reason is not None)


def test_filters_take_part_of_the_records_and_the_setting_fits(told, tune):
    rows = [
        *traffic(good=500, bad=0),
        *traffic(good=450, bad=0, path=RESPONSES, upstream="local"),
        *traffic(good=400, bad=0, namespace='a"b'),
    ]
    expected = {
        ("--upstream", "local"): (1150, 'threshold = 0.80  # below [[upstreams]], at name = "local"'),
        ("--path", RESPONSES): (1150, f'semantic.paths."{RESPONSES}" = 0.80'),
        ("--path", "/v1"): (3450, 'semantic.paths."/v1" = 0.80'),
        ("--namespace", 'a"b'): (1100, 'semantic.namespaces."a\\"b" = 0.80'),
    }
    for option, (count, setting) in expected.items():
        sample = told(rows, *option)
        assert (sample["counts"]["every"], sample["setting"]) == (count, setting)
        assert f"    {setting}\n" in tune(rows, *option).out
    code, out, err = tune(rows, "--path", "/v1/chat/comp")
    assert (code, out) == (1, "")
    assert "3,450 are of others" in err


def test_groups_have_a_row_each_with_their_own_threshold(told, tune, clean):
    rows = [
        *traffic(good=500, bad=0),
        *traffic(good=100, bad=80, path=RESPONSES, upstream="local"),
        *traffic(good=450, bad=0, namespace="shop"),
    ]
    (clean / "slipstream.toml").write_text(
        f'[semantic]\nthreshold = 0.91\npaths = {{"{RESPONSES}" = 0.97}}\nnamespaces = {{shop = 0.94}}\n'
        '[[upstreams]]\nname = "local"\nurl = "http://127.0.0.1:9"\nthreshold = 0.93\n'
    )
    sample = told(rows, "--config", "slipstream.toml")
    rows_of = {
        by: [(row["name"], row["counts"]["every"], row["configured"], row["suggestion"]) for row in found]
        for by, found in sample["groups"].items()
    }
    assert rows_of == {
        "upstream": [("openai", 2350, 0.91, 0.8), ("local", 880, 0.93, None)],
        "path": [(CHAT, 2350, 0.91, 0.8), (RESPONSES, 880, 0.97, None)],
        "namespace": [(None, 2080, 0.91, 0.94), ("shop", 1150, 0.94, 0.8)],
    }
    assert sample["configured"] == 0.91
    assert told(rows, "--config", "slipstream.toml", "--namespace", "shop")["configured"] == 0.94
    assert told(rows, "--config", "slipstream.toml", "--path", RESPONSES)["configured"] == 0.97
    assert told(rows, "--config", "slipstream.toml", "--upstream", "local")["configured"] == 0.93
    out = tune(rows, "--config", "slipstream.toml").out
    assert any(line.split()[:3] == ["shop", "1,150", "0.94"] for line in out.splitlines())
    assert told(traffic())["groups"] == {}


# Labelled pairs


def pair(a, b, same):
    return {"a": a, "b": b, "same": same}


NEAR = pair("How do I cancel my subscription?", "How can I cancel my subscription?", 1)
FAR = pair("How do I cancel my subscription?", "Which wine goes well with fish?", False)
FLOORS = pair(
    "How do I get to floor 12 of the east building?", "How do I get to floor 13 of the east building?", 0
)


@pytest.fixture
def judged(cli, clean, model_folder):
    """`judged(pairs, ...)`: what the command says of labelled pairs with the real model, as an object."""

    def call(rows, *arguments, **environment):
        (clean / "pairs").write_text(lines(rows))
        done = cli("tune", "pairs", "--json", "--data-dir", str(model_folder), *arguments, **environment)
        (sample,) = json.loads(done.out)["samples"]
        return sample

    return call


def test_pairs_are_embedded_and_guarded_as_the_sidecar_does_it(judged):
    sample = judged([NEAR, FAR, FLOORS])
    assert (sample["kind"], [sample["counts"][name] for name in COUNTED]) == ("pairs", [3, 1, 2, 0, 0, 3])
    point = at(sample, 0.92)
    assert (part(point["hit_rate"]), part(point["false_hit_rate"])) == ((1, 1), (0, 2))
    assert sample["guards"] == [{"guard": "numbers", "right": 0, "wrong": 1, "unknown": 0}]
    unguarded = judged([NEAR, FAR, FLOORS], SLIPSTREAM_SEMANTIC__SKIP_GUARDS=",".join(GUARDS))
    assert part(at(unguarded, 0.92)["false_hit_rate"]) == (1, 2)


def test_what_is_never_matched_is_no_hit(judged):
    empty = pair("", " ", 1)
    assert part(at(judged([empty, NEAR]), 0.8)["hit_rate"]) == (1, 2)
    assert part(at(judged([empty, NEAR], SLIPSTREAM_SEMANTIC__LONGEST="10"), 0.8)["hit_rate"]) == (0, 2)


def test_the_pairs_of_the_project(cli, model_folder):
    code, out, err = cli("tune", str(PAIRS), "--want", "20%", "--data-dir", str(model_folder))
    assert (code, err) == (0, "")
    assert out.startswith("400 labelled pairs: 178 true, 222 false\n")
    assert "\n    semantic.threshold = 0." in out
    assert max(len(line) for line in out.splitlines()) <= 100


def test_pairs_and_records_may_come_together(cli, clean, model_folder):
    (clean / "both").write_text(lines([NEAR, *traffic(), FAR]))
    out = cli("tune", "both", "--json", "--data-dir", str(model_folder)).out
    assert [sample["kind"] for sample in json.loads(out)["samples"]] == ["pairs", "shadow"]


def test_without_a_model_there_is_one_line_and_exit_1(cli, folder, clean):
    (clean / "pairs").write_text(lines([NEAR]))
    code, out, err = cli("tune", "pairs", "--data-dir", str(folder))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "slipstream model pull" in err


def test_an_embedder_that_does_not_answer_is_one_line_and_exit_1(cli, folder, clean):
    (clean / "pairs").write_text(lines([NEAR]))
    nobody = "http://127.0.0.1:9/v1/embeddings"
    code, out, err = cli("tune", "pairs", "--data-dir", str(folder), SLIPSTREAM_SEMANTIC__EMBEDDER=nobody)
    assert (code, out, err.count("\n")) == (1, "", 1)


def test_pairs_without_a_vector_are_left_out_and_told(cli, clean, monkeypatch):
    """What a real embedder has no vector for can hardly be made here: this one refuses a word."""
    import numpy as np

    from sidecar.cache.embed.base import Embedded, EmbedError

    class Picky:
        space = "picky"
        closed = False

        def embed(self, texts):
            assert len(set(texts)) == len(texts)
            vector = np.array([1.0, 0.0], np.float32)
            return [EmbedError("no") if "wine" in text else Embedded(vector) for text in texts]

        def close(self):
            self.closed = True

    embedder = Picky()
    monkeypatch.setattr("sidecar.cli.tune_embed.load", lambda *_: embedder)
    (clean / "pairs").write_text(lines([NEAR] * 100 + [FAR] * 30))
    code, out, err = cli("tune", "pairs", "--json")
    assert (code, err) == (1, "30 of the pairs are left out: the embedder has no vector for them\n")
    assert json.loads(out)["samples"][0]["counts"]["every"] == 100
    assert embedder.closed
    (clean / "pairs").write_text(lines([FAR]))
    assert cli("tune", "pairs", "--html", "page.html").code == 1


def test_a_terminal_gets_a_bar_while_it_embeds(clean, model_folder):
    (clean / "pairs").write_text(lines([NEAR, FAR] * 200))
    shown, _ = on_terminal(100, "tune", "pairs", "--data-dir", str(model_folder))
    assert "embedding" in shown
    assert "400 labelled pairs" in shown


# How it is shown


def test_the_table_marks_what_is_configured_and_what_is_suggested(tune):
    out = tune(traffic(good=900, bad=3), SLIPSTREAM_SEMANTIC__THRESHOLD="0.925").out
    marked = [line.split() for line in out.splitlines() if "<-" in line]
    assert [(line[0], line[line.index("<-") + 1 :]) for line in marked] == [
        ("0.80", ["suggested"]),
        ("0.925", ["configured"]),
    ]
    both = tune(traffic(good=900, bad=3), SLIPSTREAM_SEMANTIC__THRESHOLD="0.8").out
    assert [line.split()[0] for line in both.splitlines() if "<- configured, suggested" in line] == ["0.80"]


def test_no_line_is_wider_than_a_terminal(tune):
    rows = [
        *traffic(good=9000, bad=100, upstream="u" * 90, namespace="n" * 300),
        *traffic(path="/v1/" + "x" * 400, namespace="\x1b[31m\u202e"),
        *[record(number, kind="verify") for number in range(900)],
        *traffic(guard="numbers"),
    ]
    out = tune(rows).out
    assert max(len(line) for line in out.splitlines()) <= 100
    assert "\x1b" not in out and "\u202e" not in out


def test_the_small_curve_is_drawn_with_what_the_terminal_has(clean, folder):
    (folder / "shadow.jsonl").write_text(lines(traffic()))
    for encoding, sign in (("utf-8", "●"), ("ascii", "o")):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = finished("tune", "--data-dir", str(folder), "--want", "5%", env=environment, encoding="utf-8")
        assert done.err == ""
        assert f"  {sign} requests hit" in done.out


def test_who_stops_reading_gets_no_traceback(folder, clean):
    (folder / "shadow.jsonl").write_text(lines(traffic()))
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", "tune", "--json", "--data-dir", str(folder)],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    "given",
    [
        ["--want", "0"],
        ["--want", "-1%"],
        ["--want", "101%"],
        ["--want", "nan"],
        ["--want", "few"],
        ["--want", ""],
        ["--agree", "2"],
        ["--path", "v1"],
        ["--path", ""],
        ["--bogus"],
    ],
)
def test_bad_usage_is_one_line_and_exit_2(tune, given):
    code, out, err = tune(traffic(), *given)
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_a_bad_configuration_is_one_line_and_exit_2(tune):
    code, out, err = tune(traffic(), SLIPSTREAM_SEMANTIC__AGREE="2")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "semantic.agree" in err


def test_help_has_its_examples_as_they_are(cli):
    out = cli("tune", "--help").out
    assert '{"a": "How do I cancel?", "b": "How can I cancel?", "same": 1}' in out


# The page


class Page(HTMLParser):
    """What is on it: every tag that is closed in its order, tables as rows of texts."""

    VOID = frozenset({"meta", "line", "polygon", "polyline", "circle", "rect"})

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.ids, self.rows, self.texts = [], [], {}, [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        fields = dict(attrs)
        self.seen.append((tag, fields))
        if "id" in fields:
            assert fields["id"] not in self.ids
            self.ids[fields["id"]] = tag
        if tag == "tr":
            self.rows.append([])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in self.VOID
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


@pytest.fixture
def page(tune, clean):
    def call(rows, *arguments):
        done = tune(rows, "--html", "page.html", *arguments)
        text = (clean / "page.html").read_text(encoding="utf-8")
        return done, text, Page(text)

    return call


def test_the_page_has_the_same_figures_as_the_terminal(page):
    done, _, found = page([*traffic(good=900), *[record(number, kind="verify") for number in range(400)]])
    figures = [line.split("<-")[0].split() for line in done.out.splitlines() if line.startswith("  0.")]
    table = [" ".join(row).split() for row in found.rows if row[0].startswith("0.")]
    words = {"configured", "suggested", "configured,"}
    assert [[word for word in row if word not in words] for row in table] == figures
    assert len(figures) > 20
    assert "semantic.threshold = 0.80" in found.texts


def test_the_page_stands_alone_and_is_well_formed(page):
    _, text, found = page(traffic())
    assert text.startswith("<!DOCTYPE html>")
    ET.fromstring(text)
    tags = {tag for tag, _ in found.seen}
    assert not tags & {"script", "link", "img", "iframe", "object", "image", "use", "a", "form"}
    for _, fields in found.seen:
        assert not {"src", "href", "xlink:href", "style"} & set(fields)
        assert not any(name.startswith("on") for name in fields)
    assert (
        "url(" not in text
        and "@import" not in text
        and "http" not in text.replace("http://www.w3.org", "").replace("http-equiv", "")
    )
    assert "prefers-color-scheme: dark" in text


def test_the_picture_has_a_name_and_a_description(page):
    _, _, found = page([*traffic(), *[record(number, kind="verify") for number in range(40)]])
    pictures = [fields for tag, fields in found.seen if tag == "svg"]
    assert len(pictures) == 2
    for fields in pictures:
        assert fields["role"] == "img"
        assert [found.ids[name] for name in fields["aria-labelledby"].split()] == ["title", "desc"]
    assert dict(found.seen)["html"]["lang"] == "en"
    scopes = [fields["scope"] for tag, fields in found.seen if tag == "th"]
    assert set(scopes) == {"row", "col"}


def test_names_that_others_chose_do_no_harm_on_the_page(page):
    name = "<script>alert(1)</script>"
    rows = [*traffic(900, 0, namespace=name), *traffic(namespace='"&\x1b\x00\u202e')]
    _, text, found = page(rows)
    assert "<script>" not in text
    assert name in found.texts
    ET.fromstring(text)
    _, text, found = page(rows, "--namespace", name)
    assert "<script>" not in text
    assert f'semantic.namespaces."{name}" = 0.80' in found.texts


@pytest.mark.parametrize(
    "rows", [[record()], [record(similarity=None)], [record(kind="verify", threshold=0.995)]]
)
def test_a_page_of_next_to_nothing(page, rows):
    done, text, _ = page(rows)
    assert done.code == 1
    ET.fromstring(text)


def test_a_page_that_cannot_be_written_is_one_line_and_exit_2(tune, clean):
    code, _, err = tune(traffic(), "--html", str(clean / "none" / "page.html"))
    assert (code, err.count("\n")) == (2, 1)
    assert "page.html" in err
