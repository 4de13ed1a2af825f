"""sidecar.cache.building: faster indexes are built beside a partition that goes on serving."""

import threading
import time

import numpy as np
import pytest

from sidecar.cache import building
from sidecar.cache.index import OUTGROWN, Index
from sidecar.cache.partition import PROBES, SLICE
from sidecar.cache.training import centres, lists_for
from tests.cache.index_rig import PATIENCE, Gate, Oracle, directions, near

GROWN = 32


@pytest.fixture
def gate():
    made = Gate()
    yield made
    made.opened.set()


def filled(count, *, grown=GROWN, train=centres, scope=b"a", dimension=8):
    index, oracle, vectors = Index(grown=grown, train=train), Oracle(), directions(count, dimension)
    index.add(scope, range(count), vectors)
    oracle.add(scope, range(count), vectors)
    return index, oracle, vectors


def test_a_partition_is_exact_until_it_is_large():
    index, _, vectors = filled(GROWN - 1)
    assert index.settle(0.0)
    assert (index.stats().fast, index.stats().built) == (0, 0)
    index.add(b"a", [GROWN], vectors[:1])
    assert index.settle(PATIENCE)
    assert (index.stats().fast, index.stats().built) == (1, 1)
    index.close()


def test_while_it_is_held_nothing_is_built_and_then_once(gate):
    gate.opened.set()
    index = Index(grown=GROWN, train=gate)
    index.hold()
    vectors = directions(5 * GROWN, 8)
    for at in range(0, 5 * GROWN, GROWN):
        index.add(b"a", range(at, at + GROWN), vectors[at : at + GROWN])
        assert index.search(b"a", vectors[at], 1)[0][0] == at
    assert index.settle(0.0)
    assert (index.stats().fast, index.stats().built, index.stats().building) == (0, 0, False)
    index.release()
    assert index.settle(PATIENCE)
    assert (index.stats().fast, index.stats().built) == (1, 1)
    index.close()


def test_it_serves_and_changes_while_another_index_is_built(gate):
    index, oracle, vectors = filled(60, train=gate)
    assert gate.began.wait(PATIENCE)
    assert not index.settle(0.0)
    assert (index.stats().building, index.stats().fast) == (True, 0)
    more = directions(40, seed=5)
    for at in range(40):
        index.add(b"a", [60 + at], more[at : at + 1])
        oracle.add(b"a", [60 + at], more[at : at + 1])
    for seq in (3, 59, 60, 77):  # of those that were there, and of those that came
        index.remove(seq)
        oracle.remove(seq)
    index.retain(np.arange(0, 100, 2), 50)
    oracle.retain(set(range(0, 100, 2)), 50)
    oracle.check(index.search(b"a", vectors[8], 99), b"a", vectors[8], 99)
    gate.opened.set()
    assert index.settle(PATIENCE)
    assert index.stats().fast == 1
    oracle.check(index.search(b"a", vectors[8], 99), b"a", vectors[8], 99)
    index.add(b"a", [100], more[:1])
    oracle.add(b"a", [100], more[:1])
    oracle.check(index.search(b"a", more[0], 99), b"a", more[0], 99)
    index.close()


def test_one_that_has_many_dead_is_built_without_them():
    index, oracle, vectors = filled(100)
    assert index.settle(PATIENCE)
    for seq in range(0, 80, 2):
        index.remove(seq)
        oracle.remove(seq)
        assert index.settle(PATIENCE)
    assert index.stats().dead <= 25
    assert index.stats().built > 1
    oracle.check(index.search(b"a", vectors[5], 99), b"a", vectors[5], 99)
    # and their room is used
    index.add(b"a", range(100, 140), directions(40, seed=3))
    oracle.add(b"a", range(100, 140), directions(40, seed=3))
    oracle.check(index.search(b"a", vectors[5], 99), b"a", vectors[5], 99)
    index.close()


def test_one_that_has_outgrown_its_lists_is_built_again():
    index, oracle, vectors = filled(GROWN)
    assert index.settle(PATIENCE)
    for turn in range(1, OUTGROWN + 1):
        assert index.stats().built == 1
        index.add(b"a", range(turn * GROWN, (turn + 1) * GROWN), vectors)
        oracle.add(b"a", range(turn * GROWN, (turn + 1) * GROWN), vectors)
        assert index.settle(PATIENCE)
    assert index.stats().built == 2
    oracle.check(index.search(b"a", vectors[5], 20), b"a", vectors[5], 20)
    index.close()


def test_one_is_built_at_a_time(gate):
    index, vectors = Index(grown=GROWN, train=gate), directions(GROWN)
    for at, scope in enumerate((b"a", b"b", b"c")):
        index.add(scope, range(at * GROWN, (at + 1) * GROWN), vectors)
    assert gate.began.wait(PATIENCE)
    assert [thread.name for thread in threading.enumerate()].count("slipstream-index") == 1
    index.retain(np.arange(GROWN, 3 * GROWN), 3 * GROWN)  # the first is no more
    gate.opened.set()
    assert index.settle(PATIENCE)
    assert (index.stats().fast, index.stats().built, index.stats().partitions) == (2, 2, 2)
    assert index.search(b"a", vectors[0], 9) == []
    index.close()


def test_the_number_of_a_partition_may_be_used_again_while_it_is_built(gate):
    index, vectors = Index(grown=GROWN, train=gate), directions(2 * GROWN)
    index.add(b"a", range(GROWN), vectors[:GROWN])
    assert gate.began.wait(PATIENCE)
    index.retain([], GROWN)
    index.add(b"b", range(100, 100 + GROWN), vectors[GROWN:])
    index.remove(100)
    gate.opened.set()
    assert index.settle(PATIENCE)
    assert index.search(b"a", vectors[0], 9) == []
    assert {seq for seq, _ in index.search(b"b", vectors[0], 99)} == set(range(101, 100 + GROWN))
    assert index.stats().failed == 0
    index.close()


def test_clearing_leaves_nothing_of_a_build(gate):
    index, _, vectors = filled(60, train=gate)
    assert gate.began.wait(PATIENCE)
    index.clear()
    index.add(b"a", range(10), vectors[:10])
    gate.opened.set()
    assert index.settle(PATIENCE)
    assert (index.stats().fast, index.stats().built, index.stats().failed, len(index)) == (0, 0, 0, 10)
    assert len(index.search(b"a", vectors[0], 99)) == 10
    index.close()


def test_clearing_leaves_nothing_of_a_build_that_is_just_over():
    index, _, vectors = filled(60)
    index._builder.wait(time.monotonic() + PATIENCE)
    index.clear()
    index.add(b"b", range(10), vectors[:10])
    assert index.settle(PATIENCE)
    assert (index.stats().fast, index.stats().built, len(index)) == (0, 0, 10)
    assert len(index.search(b"b", vectors[0], 99)) == 10
    index.close()


def test_closing_stops_a_build(gate):
    index, _, vectors = filled(60, train=gate)
    assert gate.began.wait(PATIENCE)
    index.close()
    assert "slipstream-index" not in [thread.name for thread in threading.enumerate()]
    assert (len(index), index.search(b"a", vectors[0], 9)) == (0, [])
    index.add(b"a", range(100, 160), vectors)
    index.remove(3)
    index.close()
    assert (len(index), index.stats().built, index.settle(0.0)) == (0, 0, True)


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_a_build_that_fails_is_counted_and_not_tried_again_at_once(error):
    tries = []

    def train(sample, lists, check):
        tries.append(len(sample))
        if len(tries) < 3:
            raise error
        return centres(sample, lists, check)

    index, oracle, vectors = filled(40, train=train)
    for count in range(40, 100):
        assert index.settle(PATIENCE)
        index.add(b"a", [count], vectors[count % 40][np.newaxis])
        oracle.add(b"a", [count], vectors[count % 40][np.newaxis])
        oracle.check(index.search(b"a", vectors[7], 99), b"a", vectors[7], 99)
    assert index.settle(PATIENCE)
    stats = index.stats()
    assert (stats.failed, stats.failure, stats.built, stats.fast) == (2, error.__name__, 1, 1)
    assert tries == [40, 61, 92]
    index.close()


def test_without_a_thread_there_is_no_build(monkeypatch):
    def fail(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(building.Build, "start", fail)
    index, oracle, vectors = filled(60)
    assert index.settle(0.0)
    assert (index.stats().failed, index.stats().fast) == (1, 0)
    oracle.check(index.search(b"a", vectors[7], 99), b"a", vectors[7], 99)


def test_nothing_is_missed_while_the_real_build_runs():
    """Searches, additions and removals against a build that is not held up anywhere."""
    index, _, vectors = filled(5000, grown=5000, dimension=16)
    seq, turns = 5000, 0
    while not index.settle(0.0) or turns < 50:
        at = turns * 7 % 5000
        assert at in [found for found, _ in index.search(b"a", vectors[at], 4)]
        index.add(b"a", [seq], -vectors[at : at + 1])
        assert seq in [found for found, _ in index.search(b"a", -vectors[at], 4)]
        index.remove(seq)
        assert seq not in [found for found, _ in index.search(b"a", -vectors[at], 4)]
        seq, turns = seq + 1, turns + 1
    assert index.stats().fast == 1
    assert len(index) == 5000
    index.close()


def test_a_fast_index_finds_near_duplicates_and_as_many_as_are_asked_for():
    """More lists than are looked at."""
    count = 4 * SLICE
    index, _, vectors = filled(count, grown=count, dimension=32)
    assert index.settle(PATIENCE)
    assert lists_for(count) > 3 * PROBES
    queries = near(vectors, 0.3, seed=4)[::20]
    found = [index.search(b"a", query, 1)[0][0] for query in queries]
    wanted = np.arange(0, count, 20)
    closest = (queries.astype(np.float32) @ vectors.astype(np.float32).T).argmax(axis=1)
    assert (closest == wanted).mean() > 0.99
    assert (np.array(found) == closest).mean() >= 0.98
    assert len(index.search(b"a", queries[0], count)) == count
    for seq in range(count - 3):
        index.remove(seq)
    assert {seq for seq, _ in index.search(b"a", queries[0], 5)} == {count - 3, count - 2, count - 1}
    index.close()


@pytest.mark.parametrize("kinds", [1, 2, 5])
def test_vectors_that_are_the_same_do_not_hide_others(kinds):
    """A question that is stored again each time it expires leaves as many dead ones in the same place."""
    index, oracle = Index(grown=200), Oracle()
    vectors = np.repeat(directions(kinds), 200 // kinds, axis=0)
    other = directions(1, seed=7)
    index.add(b"a", range(len(vectors)), vectors)
    index.add(b"a", [1000], other)
    oracle.add(b"a", range(len(vectors)), vectors)
    oracle.add(b"a", [1000], other)
    assert index.settle(PATIENCE)
    assert index.stats().fast == 1
    assert index.search(b"a", other[0], 1)[0][0] == 1000
    for seq in range(49):
        index.remove(seq)
        oracle.remove(seq)
    for query in (vectors[0], vectors[-1], other[0]):
        oracle.check(index.search(b"a", query, 5), b"a", query, 5)
    index.close()


def test_lists_lie_where_vectors_are():
    found = centres(np.repeat(directions(3), 50, axis=0), 20, lambda: None)
    np.testing.assert_allclose(sorted(found[:, 0]), sorted(directions(3)[:, 0]), atol=1e-3)
    found = centres(directions(500), 20, lambda: None)
    assert len(found) == 20
    np.testing.assert_allclose(np.square(found).sum(axis=1), 1.0, rtol=1e-5)


def test_vectors_of_no_direction_do_no_harm():
    index = Index(grown=GROWN)
    index.add(b"a", range(GROWN), np.zeros((GROWN, 8), np.float16))
    assert index.settle(PATIENCE)
    assert index.stats().fast == 1
    assert len(index.search(b"a", directions(1)[0], 99)) == GROWN
    index.close()
