"""Whether a stored answer is given to a question in other words. Pure."""

import math
from collections.abc import Iterable

import msgspec


class Candidate(msgspec.Struct, frozen=True):
    """A stored question near to the one that is asked."""

    key: bytes
    """Of its answer."""
    similarity: float
    """Cosine of the two."""
    guard: str | None = None
    """What says that they are not the same question, however near."""


class Verdict(msgspec.Struct, frozen=True):
    """What was found, and what of it may be used."""

    nearest: Candidate | None = None
    matches: tuple[Candidate, ...] = ()
    """Those whose answers may be given, the nearest first."""


NOTHING = Verdict()


def verdict(found: Iterable[Candidate], threshold: float) -> Verdict:
    """`found`: the nearest first. What is as near as `threshold`, with no guard against it, may be used."""
    candidates = [one for one in found if math.isfinite(one.similarity)]
    if not candidates:
        return NOTHING
    matches = [one for one in candidates if one.similarity >= threshold and one.guard is None]
    return Verdict(candidates[0], tuple(matches))
