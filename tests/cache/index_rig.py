"""Vectors for the tests of the index, and what it should find among them."""

import threading

import numpy as np

from sidecar.cache.training import centres

PATIENCE = 60.0
"""Seconds that nothing here takes."""


def directions(count, dimension=8, seed=0):
    """So many vectors of length 1, as the log has them."""
    made = np.random.default_rng(seed).standard_normal((count, dimension))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float16)


def near(vectors, amount, seed=0):
    """The same, each moved a little."""
    moved = vectors.astype(np.float32) + amount * directions(*vectors.shape, seed=seed).astype(np.float32)
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float16)


def cosine(one, other):
    return float(np.clip(one.astype(np.float64) @ other.astype(np.float64), -1.0, 1.0))


class Oracle:
    """The same as the index, by comparing with everything."""

    def __init__(self):
        self.stored = {}

    def add(self, scope, seqs, vectors):
        self.stored |= {seq: (scope, vector) for seq, vector in zip(seqs, vectors, strict=True)}

    def remove(self, seq):
        self.stored.pop(seq, None)

    def retain(self, alive, upto):
        for seq in [seq for seq in self.stored if seq <= upto and seq not in alive]:
            del self.stored[seq]

    def check(self, found, scope, query, most):
        """Ties may come in any order."""
        cosines = {seq: cosine(vector, query) for seq, (of, vector) in self.stored.items() if of == scope}
        assert len({seq for seq, _ in found}) == len(found)
        assert {seq for seq, _ in found} <= set(cosines)
        assert [value for _, value in found] == sorted((value for _, value in found), reverse=True)
        np.testing.assert_allclose(
            [value for _, value in found], [cosines[seq] for seq, _ in found], atol=1e-5
        )
        best = sorted(cosines.values(), reverse=True)[: max(most, 0)]
        np.testing.assert_allclose([value for _, value in found], best, atol=1e-5)


class Gate:
    """Holds builds up until it is opened."""

    def __init__(self):
        self.began = threading.Event()
        self.opened = threading.Event()

    def __call__(self, sample, lists, check):
        self.began.set()
        while not self.opened.wait(0.001):
            check()
        return centres(sample, lists, check)
