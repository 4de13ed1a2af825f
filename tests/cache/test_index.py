"""sidecar.cache.index: the nearest of a scope, and nothing of another one."""

import subprocess
import sys
from array import array
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given as over
from hypothesis import settings
from hypothesis import strategies as st

from sidecar.cache.index import Index
from sidecar.cache.partition import HANDFUL, Many, finite
from tests.cache.index_rig import PATIENCE, Oracle, cosine, directions, near

ROOT = Path(__file__).resolve().parent.parent.parent
GROWN = 20
"""Vectors from which on a partition is built anew; all of its lists are looked at then, so nothing is missed."""
POOL = np.concatenate([directions(12), near(directions(12), 0.3, seed=1), directions(3)])
"""Some twice."""
SCOPES = st.sampled_from([b"a", b"b", b"c"])
MANY = st.lists(st.integers(0, len(POOL) - 1), min_size=1, max_size=30)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(SCOPES, min_size=1, max_size=2, unique=True), MANY),
        st.tuples(st.just("remove"), st.integers(0, 150)),
        st.tuples(st.just("retain"), st.integers(0, 150), st.integers(1, 5)),
        st.tuples(st.just("search"), SCOPES, st.integers(0, len(POOL) - 1), st.integers(0, 40)),
        st.tuples(st.just("settle")),
        st.tuples(st.just("clear")),
    ),
    max_size=25,
)


@settings(deadline=None)
@over(STEPS)
def test_it_finds_what_comparing_with_everything_finds(steps):
    index, oracle, last = Index(grown=GROWN), Oracle(), 0
    for what, *given in [*steps, *(("search", scope, 0, 200) for scope in (b"a", b"b", b"c"))]:
        if what == "add":
            scopes, chosen = given
            seqs = range(last + 2, last + 2 + len(chosen))
            last = seqs[-1]
            # As the log has them: scopes take turns, and each is added at once.
            for turn, scope in enumerate(scopes):
                theirs = slice(turn, None, len(scopes))
                index.add(scope, seqs[theirs], POOL[chosen[theirs]])
                oracle.add(scope, seqs[theirs], POOL[chosen[theirs]])
        elif what == "remove":
            index.remove(given[0])
            oracle.remove(given[0])
        elif what == "retain":
            upto, step = given
            alive = array("q", range(0, upto + 40, step))
            index.retain(alive, upto)
            oracle.retain(set(alive), upto)
        elif what == "search":
            scope, chosen, most = given
            oracle.check(index.search(scope, POOL[chosen], most), scope, POOL[chosen], most)
        elif what == "settle":
            assert index.settle(PATIENCE)
        else:
            index.clear()
            oracle.stored.clear()
        assert len(index) == len(oracle.stored)
    assert index.settle(PATIENCE)
    for scope in (b"a", b"b", b"c"):
        oracle.check(index.search(scope, POOL[3], 200), scope, POOL[3], 200)
    stats = index.stats()
    assert (stats.vectors, stats.failed, stats.building) == (len(oracle.stored), 0, False)
    index.close()


@pytest.mark.parametrize("count", [1, HANDFUL, HANDFUL + 1, 60])
def test_a_partition_of_any_size_finds_the_nearest(count):
    index, vectors = Index(grown=40), directions(count)
    index.add(b"a", range(1, count + 1), vectors)
    index.add(b"b", range(count + 1, 2 * count + 1), -vectors)
    assert index.settle(PATIENCE)
    for at in (0, count - 1):
        (seq, value), *rest = index.search(b"a", vectors[at], 3)
        assert (seq, value) == (at + 1, pytest.approx(1.0, abs=1e-3))
        assert len(rest) == min(count, 3) - 1
    assert len(index.search(b"a", vectors[0], 1000)) == count
    index.close()


def test_cosines_stay_between_their_bounds():
    index, vectors = Index(grown=10), directions(30, 384)
    index.add(b"a", range(30), vectors * np.float16(1.01))
    for _ in range(2):
        assert index.search(b"a", vectors[4], 1) == [(4, 1.0)]
        assert index.search(b"a", -vectors[4], 30)[-1] == (4, -1.0)
        assert index.settle(PATIENCE)
    index.close()


@pytest.mark.parametrize("count", [5, 30, 60])
def test_cosines_are_those_of_the_stored_vectors(count):
    index, vectors, query = Index(grown=40), directions(count, 384), directions(1, 384, seed=9)[0]
    index.add(b"a", range(count), vectors)
    assert index.settle(PATIENCE)
    for seq, value in index.search(b"a", query.astype(np.float32), count):
        assert value == pytest.approx(cosine(vectors[seq], query), abs=1e-6)
    index.close()


def test_what_is_no_vector_of_that_scope_finds_nothing():
    index, vectors = Index(), directions(30)
    index.add(b"a", range(30), vectors)
    for wrong in (np.nan, np.inf, -np.inf):
        query = vectors[0].astype(np.float32)
        query[3] = wrong
        assert index.search(b"a", query, 8) == []
    assert index.search(b"a", directions(1, 16)[0], 8) == []
    assert index.search(b"a", vectors[:1], 8) == []
    assert index.search(b"none", vectors[0], 8) == []
    assert index.search(b"a", vectors[0], 0) == index.search(b"a", vectors[0], -1) == []


@pytest.mark.parametrize("before", [0, 3, 30])
def test_vectors_that_are_not_all_numbers_are_left_out(before):
    index, vectors = Index(), directions(before + 4)
    index.add(b"a", range(before), vectors[:before])
    broken = vectors[before:].astype(np.float32)
    broken[1, 2], broken[2, 0] = np.nan, -np.inf
    index.add(b"a", range(before, before + 4), broken)
    assert {seq for seq, _ in index.search(b"a", vectors[0], 99)} == {*range(before + 1), before + 3}
    assert (index.stats().refused, len(index)) == (2, before + 2)


@over(st.lists(st.integers(0, 0xFFFF), min_size=8, max_size=8))
def test_whether_a_vector_is_finite_is_told_by_its_bits(bits):
    codes = np.array([bits], np.uint16).view(np.float16)
    assert finite(codes).tolist() == [bool(np.isfinite(codes).all())]


@pytest.mark.parametrize("count", [3, 30])
def test_what_does_not_fit_is_refused_and_changes_nothing(count):
    index, vectors = Index(), directions(count + 2)
    index.add(b"a", range(10, 10 + count), vectors[:count])
    index.add(b"b", [100], directions(1, 16))
    for seqs, wrong in (
        ([200], directions(1, 16)),
        ([200], directions(1, 4)),
        ([200, 201], vectors[:1]),
        ([200], vectors[0]),
        ([201, 200], vectors[:2]),
        ([200, 200], vectors[:2]),
        ([9 + count], vectors[:1]),
        ([5], vectors[:1]),
        ([99, 100], vectors[:2]),
        ([200], np.empty((1, 0), np.float16)),
    ):
        with pytest.raises(ValueError):
            index.add(b"a", seqs, wrong)
    assert len(index) == count + 1
    assert len(index.search(b"a", vectors[0], 99)) == count
    index.add(b"a", [], np.empty((0, 8), np.float16))
    index.add(b"a", [200], vectors[-1:])
    assert index.search(b"a", vectors[-1], 1)[0][0] == 200


def test_scopes_take_turns_with_their_numbers():
    index, vectors = Index(), directions(60)
    for start in range(0, 60, 20):
        index.add(b"a", range(start, start + 20, 2), vectors[start : start + 20 : 2])
        index.add(b"b", range(start + 1, start + 20, 2), vectors[start + 1 : start + 20 : 2])
    assert [seq for seq, _ in index.search(b"a", vectors[33], 99) if seq % 2] == []
    for seq in range(60):
        assert index.search(b"b" if seq % 2 else b"a", vectors[seq], 1)[0][0] == seq
        index.remove(seq)
        assert seq not in dict(index.search(b"b" if seq % 2 else b"a", vectors[seq], 99))
    assert (len(index), index.stats().partitions) == (0, 0)


def test_a_scope_that_is_empty_begins_anew():
    index = Index()
    for turn, dimension in enumerate((8, 16, 8)):
        index.add(b"a", range(turn * 40, turn * 40 + 40), directions(40, dimension))
        assert len(index.search(b"a", directions(1, dimension)[0], 99)) == 40
        index.retain([], turn * 40 + 39)
        assert index.search(b"a", directions(1, dimension)[0], 99) == []
        assert index.stats().partitions == 0


def test_a_small_index_forgets_its_dead_at_once():
    index, vectors = Index(), directions(100)
    index.add(b"a", range(100), vectors)
    for seq in range(60):
        index.remove(seq)
    assert index.stats().dead <= 25
    assert {seq for seq, _ in index.search(b"a", vectors[0], 99)} == set(range(60, 100))


def test_numbers_that_lead_nowhere_take_no_room_for_long():
    index, vector = Index(), directions(1)
    for seq in range(30_000):
        index.add(b"a", [seq], vector)
        index.remove(seq - 3)
    assert len(index) == 3
    assert index.stats().bytes < 100_000
    assert [seq for seq, _ in index.search(b"a", vector[0], 99)] != []


def test_to_retain_judges_only_what_is_old_enough():
    index, vectors = Index(), directions(50)
    index.add(b"a", range(50), vectors)
    index.retain(np.array([3, 7, 30, 70]), upto=29)
    assert {seq for seq, _ in index.search(b"a", vectors[0], 99)} == {3, 7, *range(30, 50)}
    index.retain(array("q"), upto=-1)
    assert len(index) == 22


def test_after_clearing_numbers_begin_anew():
    index, vectors = Index(), directions(30)
    index.add(b"a", range(100, 130), vectors)
    index.clear()
    assert (len(index), index.search(b"a", vectors[0], 9)) == (0, [])
    index.add(b"a", range(30), vectors)
    assert index.search(b"a", vectors[7], 1)[0][0] == 7


def test_a_partition_that_is_half_written_is_dropped(monkeypatch):
    index, vectors = Index(), directions(30)
    index.add(b"a", range(20), vectors[:20])
    index.add(b"b", range(20, 40), vectors[:20])

    def fail(self, seqs, codes):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Many, "add", fail)
        with pytest.raises(MemoryError):
            index.add(b"a", range(40, 50), vectors[20:])
    assert (len(index), index.search(b"a", vectors[0], 9)) == (20, [])
    assert len(index.search(b"b", vectors[0], 99)) == 20
    index.remove(3)
    index.add(b"a", range(50, 60), vectors[20:])
    assert len(index.search(b"a", vectors[0], 99)) == 10


def test_what_is_given_may_be_read_only_and_in_pieces():
    index, vectors = Index(), directions(40)
    raw = np.frombuffer(vectors.tobytes(), np.float16).reshape(40, 8)
    index.add(b"a", np.arange(0, 80, 2)[:20], raw[::2])
    index.add(b"a", np.arange(100, 120), np.asfortranarray(raw[1::2].astype(np.float64)))
    assert index.search(b"a", vectors[2], 1)[0][0] == 2
    assert index.search(b"a", vectors[39], 1)[0][0] == 119


COUNTING = """
import os
from tests.cache.index_rig import PATIENCE, directions
from sidecar.cache.index import Index
from sidecar.cache.training import centres
def threads(): return len(os.listdir("/proc/self/task"))
def train(*given):
    found = centres(*given)
    print(threads() - before)  # FAISS's end with the thread they belong to
    return found
before, index, vectors = threads(), Index(grown=3000, train=train), directions(6000, 64)
index.add(b"a", range(6000), vectors)
for vector in vectors[:300]: index.search(b"a", vector, 8)
assert index.settle(PATIENCE)
for vector in vectors[:300]: index.search(b"a", vector, 8)
assert index.stats().built == 1
index.add(b"a", range(6000, 9000), vectors[:3000])
print(threads() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads as only Linux tells them")
def test_it_needs_no_threads_but_its_own():
    command = [sys.executable, "-c", COUNTING]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (ran.stdout.strip(), ran.stderr) == ("1\n0", "")
