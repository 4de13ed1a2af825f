"""From labelled pairs to what is known of them: embedded and guarded as the sidecar would do it."""

from collections.abc import Sequence
from pathlib import Path

from sidecar.cache.embed import load
from sidecar.cache.embed.base import Embedded, Embedder
from sidecar.cli.cache_progress import progress
from sidecar.cli.tune_read import Pair
from sidecar.core.semantic.curve import Judged
from sidecar.core.semantic.guards import objection, unmatchable
from sidecar.core.semantic.traits import traits
from sidecar.tables import Semantic

_CHUNK = 64
"""Pairs that are embedded at once."""


def judge(pairs: Sequence[Pair], semantic: Semantic, folder: Path) -> tuple[list[Judged], int]:
    """What becomes of each, and how many are left out because there is no vector for them. Raises
    EmbedError when there is no embedder, or it does not work."""
    embedder = load(semantic, folder)
    try:
        made: list[Judged] = []
        with progress("embedding", len(pairs)) as advance:
            for start in range(0, len(pairs), _CHUNK):
                chunk = pairs[start : start + _CHUNK]
                made += _judged(chunk, semantic, embedder)
                advance(len(chunk))
    finally:
        embedder.close()
    return made, len(pairs) - len(made)


def _judged(pairs: Sequence[Pair], semantic: Semantic, embedder: Embedder) -> list[Judged]:
    skip = frozenset(semantic.skip_guards)
    objections = [_objection(pair, semantic.longest, skip) for pair in pairs]
    matchable = [pair for pair, (reason, never) in zip(pairs, objections, strict=True) if not never]
    texts = list(dict.fromkeys(text for pair in matchable for text in (pair.a, pair.b)))
    vectors = dict(zip(texts, embedder.embed(texts) if texts else [], strict=True))
    made = []
    for pair, (reason, never) in zip(pairs, objections, strict=True):
        if never:
            made.append(Judged(None, bool(pair.same), reason))
            continue
        a, b = vectors[pair.a], vectors[pair.b]
        if isinstance(a, Embedded) and isinstance(b, Embedded):
            made.append(Judged(float(a.vector @ b.vector), bool(pair.same), reason))
    return made


def _objection(pair: Pair, longest: int, skip: frozenset[str]) -> tuple[str | None, bool]:
    """What is against it, and whether one of the questions is never matched with any."""
    for text in (pair.a, pair.b):
        if (reason := unmatchable(text, longest)) is not None:
            return reason, True
    return objection(traits(pair.a), traits(pair.b), skip), False
