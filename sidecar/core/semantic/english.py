"""What an English word counts as: itself, the word that stands for all that say the same, or nothing."""

from collections.abc import Mapping
from functools import lru_cache

from sidecar.core.semantic.stems import base, stem
from sidecar.core.semantic.vocabulary import FUNCTION, GENERAL, OPPOSITES, PARTICLES, QUALITIES, SAME

_LONGEST = 40
"""Letters of a word that is looked up. No English word has more, and what is looked up is remembered."""
_REMEMBERED = 4096
"""Words, with what was found."""

Side = tuple[str, bool]
"""Two opposites, and whether it is the first of them."""


def _classes() -> dict[str, str]:
    groups = [words for group in SAME.split(";") if (words := group.split())]
    classes: dict[str, str] = {}
    # "Costly" has the stem of "cost", which is a word of its own and goes first.
    for form in (str, base, stem):
        for word in GENERAL:
            classes.setdefault(form(word), "")
        for words in groups:
            for word in words:
                classes.setdefault(form(word), stem(words[0]))
    return classes


_CLASSES: Mapping[str, str] = _classes()


def key(word: str) -> str:
    """Of a word in lower case; empty where it says next to nothing."""
    return _key(word) if len(word) <= _LONGEST else word


@lru_cache(maxsize=_REMEMBERED)
def _key(word: str) -> str:
    if word in FUNCTION:
        return ""
    for form in (word, base(word), stem(word)):
        if form in _CLASSES:
            return _CLASSES[form]
    return stem(word)


DENIALS = frozenset(prefix + word for prefix in ("un", "in", "im") for word in QUALITIES)
"""Words that are no more than the negation of one that says next to nothing: "unable"."""


def _sides(opposites: str) -> dict[str, tuple[Side, ...]]:
    found: dict[str, list[Side]] = {}
    for pair in opposites.split(";"):
        if pair.strip():
            left, right = (words.split() for words in pair.split("/"))
            for first, words in ((True, left), (False, right)):
                side = (f"{left[0]}/{right[0]}", first)
                for form in {form for word in words for form in (word, stem(word), key(word)) if form}:
                    found.setdefault(form, []).append(side)
    return {word: tuple(sides) for word, sides in found.items()}


_SIDES: Mapping[str, tuple[Side, ...]] = _sides(f"{OPPOSITES};{PARTICLES}")
_PARTICLES = frozenset(pair.strip() for pair in PARTICLES.split(";"))


def sides(word: str) -> tuple[Side, ...]:
    """Of which opposites a word in lower case names which side."""
    return _found(word) if len(word) <= _LONGEST else ()


@lru_cache(maxsize=_REMEMBERED)
def _found(word: str) -> tuple[Side, ...]:
    for form in (word, base(word), key(word), stem(word)):
        if form in _SIDES:
            return _SIDES[form]
    return ()


def telling(sides: set[Side]) -> set[Side]:
    """Without particles of which both are there: they mean no more than themselves."""
    return {
        (pair, first) for pair, first in sides if pair not in _PARTICLES or (pair, not first) not in sides
    }
