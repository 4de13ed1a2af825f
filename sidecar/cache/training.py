"""Where the lists of a fast index lie: k-means on the sphere, in steps so short that it can be stopped."""

from collections.abc import Callable

import faiss
import numpy as np

from sidecar.cache.partition import SLICE, Codes, Floats

PER_LIST = 39
"""Vectors of the sample, for each list."""
SEED = 5
"""The same vectors give the same index."""
_ROUNDS = 4
"""Times that the centres are moved to the middle of what is nearest to them."""
_DENSITY = 2.0
"""Lists, for the root of the number of vectors."""

Check = Callable[[], None]
"""Raises when nobody wants it any more."""
Train = Callable[[Codes, int, Check], Floats]
"""Finds the centres of so many lists at most, by a sample."""


def lists_for(count: int) -> int:
    """Of a fast index with so many vectors. More take longer to choose from, fewer to look through."""
    return max(int(_DENSITY * count**0.5), 1)


def centres(sample: Codes, lists: int, check: Check) -> Floats:
    """Of lists that divide the sample; those that nothing is nearest to are left out."""
    random = np.random.default_rng(SEED)
    lists = min(lists, len(sample))
    found = _some(sample, lists, random)
    for step in range(_ROUNDS):
        sums = _sums(sample, found, check)
        lengths = np.sqrt(np.square(sums).sum(axis=1, keepdims=True))
        used = lengths[:, 0] > 0
        if step == _ROUNDS - 1 and used.any():
            found = sums[used] / lengths[used]
            break
        found[used] = sums[used] / lengths[used]
        found[~used] = _some(sample, int((~used).sum()), random)
    return found


def _some(sample: Codes, count: int, random: np.random.Generator) -> Floats:
    return sample[random.choice(len(sample), count, replace=False)].astype(np.float32)


def _sums(sample: Codes, centres: Floats, check: Check) -> Floats:
    """For each centre, of the vectors it is the nearest one to."""
    index = faiss.IndexFlatIP(sample.shape[1])
    index.add(centres)
    sums = np.zeros_like(centres)
    for start in range(0, len(sample), SLICE):
        check()
        part = sample[start : start + SLICE].astype(np.float32)
        _, nearest = index.search(part, 1)
        np.add.at(sums, nearest[:, 0], part)
    return sums
