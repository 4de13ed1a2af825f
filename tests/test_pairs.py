"""benchmarks/pairs.jsonl: that it is the test it says it is."""

import json
from collections import Counter
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "benchmarks" / "pairs.jsonl"
ROWS = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
GUARDS = {
    "numbers",
    "dates",
    "units",
    "versions",
    "negation",
    "order",
    "names",
    "quoted",
    "code",
    "language",
    "length",
}


def test_each_line_is_a_labelled_pair():
    for row in ROWS:
        assert list(row) == ["a", "b", "same", "guard"]
        assert row["same"] in (0, 1)
        assert all(row[side].strip() == row[side] != "" for side in "ab")
        assert row["guard"] is None or (row["guard"] in GUARDS and not row["same"])


def test_no_pair_comes_twice_and_none_is_of_one_text():
    texts = [frozenset((row["a"], row["b"])) for row in ROWS]
    assert len(set(texts)) == len(texts)
    assert {len(pair) for pair in texts} == {2}


def test_there_are_enough_of_each_kind():
    false = Counter(row["guard"] for row in ROWS if not row["same"])
    assert 320 <= len(ROWS) <= 400
    assert 0.4 <= 1 - false.total() / len(ROWS) <= 0.6
    assert all(false[guard] >= 15 for guard in GUARDS)
    assert false[None] >= 50


def test_there_are_languages_of_all_scripts_among_true_and_false():
    for same in (0, 1):
        text = "".join(row["a"] for row in ROWS if row["same"] == same)
        assert all(sign in text for sign in "üé¿の怎")
