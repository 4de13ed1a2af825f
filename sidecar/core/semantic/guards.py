"""What says that two questions are not the same, however near their vectors are.

Each guard sees the traits of two questions, which may be hashed: it can tell whether words are the same, and
how they are marked. All are symmetric, and none objects to a question and itself. Each can be switched off.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType

from sidecar.core.semantic.marks import (
    DATE,
    JOINED,
    LINK,
    LINKS,
    NAME,
    NEGATED,
    NUMBER,
    UNIT,
    VERSION,
)
from sidecar.core.semantic.order import Word, swapped
from sidecar.core.semantic.questions import NEUTRAL
from sidecar.core.semantic.traits import Feature, Traits
from sidecar.core.semantic.vocabulary import closed

Guard = Callable[[Traits, Traits], bool]
"""Of the question that is asked and of a stored one; whether it objects."""

_TIMES, _MORE = 2, 6
"""A question that has more than so many times as many words, and so many more, has another length."""
_ALIKE = frozenset({frozenset({"how", "able"}), frozenset({"whether", "able"})})
"""Kinds of questions that one answer may serve: "How can I", "Can I", "Is it possible to"."""
_TIMED = frozenset({"who", "whom", "when", "where", "count", "whether"})
"""Kinds of questions whose answer depends on the tense: who is, and who was."""
_TENSES = frozenset({"past", "present"})
_PERSONS = frozenset({"my", "your", "their"})
_RESTRICTING = frozenset(
    LINKS[word]
    for word in closed("in for at by on with without from of under against after before behind via")
)
"""Links of what says in which case something is asked: "in Spain", "for children"."""


def _marked(traits: Traits, mark: int) -> set[Feature]:
    return {word for word, marks in zip(traits.words, traits.marks, strict=True) if marks & mark}


def _lacks(traits: Traits, other: Traits, mark: int) -> bool:
    """Whether one has a word with this mark that the other one has not."""
    known = set(other.words)
    return any(
        marks & mark and word not in known for word, marks in zip(traits.words, traits.marks, strict=True)
    )


def language(asked: Traits, stored: Traits) -> bool:
    """Another script, or another language."""
    if asked.script != stored.script:
        return bool(asked.script and stored.script)
    return asked.language != stored.language and bool(asked.language and stored.language)


def length(asked: Traits, stored: Traits) -> bool:
    """One is several times as long."""
    less, more = sorted((asked.size, stored.size))
    return more > _TIMES * less and more > less + _MORE


def code(asked: Traits, stored: Traits) -> bool:
    """Another piece of code, link, mail address or path."""
    return set(asked.code) != set(stored.code)


def quoted(asked: Traits, stored: Traits) -> bool:
    """Each quotes something that the other one does not."""
    mine, other = set(asked.quotes), set(stored.quotes)
    return not mine <= other and not other <= mine


def versions(asked: Traits, stored: Traits) -> bool:
    """3.10 is not 3.1."""
    return _lacks(asked, stored, VERSION) or _lacks(stored, asked, VERSION)


def dates(asked: Traits, stored: Traits) -> bool:
    """Another month, day or time of day."""
    return _lacks(asked, stored, DATE) or _lacks(stored, asked, DATE)


def numbers(asked: Traits, stored: Traits) -> bool:
    """Another number, in digits or in words, or another sign of a formula."""
    return _marked(asked, NUMBER) != _marked(stored, NUMBER)


def units(asked: Traits, stored: Traits) -> bool:
    """The same number of something else."""
    mine, other = _measures(asked), _measures(stored)
    return any(mine[number].isdisjoint(other[number]) for number in mine.keys() & other.keys())


def _measures(traits: Traits) -> dict[Feature, set[Feature]]:
    """The units of each number."""
    found: dict[Feature, set[Feature]] = {}
    for at, marks in enumerate(traits.marks):
        if marks & UNIT and at:
            found.setdefault(traits.words[at - 1], set()).add(traits.words[at])
    return found


def negation(asked: Traits, stored: Traits) -> bool:
    """One says no, or says it of something else."""
    if asked.negated != stored.negated:
        return True
    mine, other = _marked(asked, NEGATED), _marked(stored, NEGATED)
    return not (mine - other).isdisjoint(stored.words) or not (other - mine).isdisjoint(asked.words)


def opposites(asked: Traits, stored: Traits) -> bool:
    """Of two opposites, one names the one, and the other one the other or both."""
    mine, other = set(asked.sides), set(stored.sides)
    both = {pair for pair, _ in mine} & {pair for pair, _ in other}
    return any(pair in both for pair, _ in mine ^ other)


def question(asked: Traits, stored: Traits) -> bool:
    """Why, how, when, where, who, how many, whether: another kind of question."""
    mine, other = set(asked.kinds) - NEUTRAL, set(stored.kinds) - NEUTRAL
    return bool(mine and other) and not any(
        one == two or frozenset({one, two}) in _ALIKE for one in mine for two in other
    )


def modality(asked: Traits, stored: Traits) -> bool:
    """Whether something is so, and whether it should be."""
    yes_no = "whether" in asked.kinds or "whether" in stored.kinds
    return yes_no and ("should" in asked.labels) != ("should" in stored.labels)


def tense(asked: Traits, stored: Traits) -> bool:
    """The one of the past, the other of today, where that makes a difference."""
    if _TIMED.isdisjoint(asked.kinds) or _TIMED.isdisjoint(stored.kinds):
        return False
    return _apart(asked, stored, _TENSES)


def person(asked: Traits, stored: Traits) -> bool:
    """Mine, yours or theirs; in a "how", they are all the same."""
    return "how" not in asked.kinds and "how" not in stored.kinds and _apart(asked, stored, _PERSONS)


def _apart(asked: Traits, stored: Traits, labels: frozenset[str]) -> bool:
    """Whether both have some of these labels, and not one in common."""
    mine, other = labels.intersection(asked.labels), labels.intersection(stored.labels)
    return bool(mine and other) and mine.isdisjoint(other)


def order(asked: Traits, stored: Traits) -> bool:
    """Who bites whom, what is better than what, from where to where."""
    shared = set(asked.words) & set(stored.words)
    mine, other = _in_order(asked, shared), _in_order(stored, shared)
    return Counter(word for word, _ in mine) == Counter(word for word, _ in other) and swapped(mine, other)


def _in_order(traits: Traits, shared: set[Feature]) -> list[Word]:
    return [pair for pair in zip(traits.words, traits.marks, strict=True) if pair[0] in shared]


def names(asked: Traits, stored: Traits) -> bool:
    """One names something that the other one does not."""
    return _lacks(asked, stored, NAME) or _lacks(stored, asked, NAME)


def words(asked: Traits, stored: Traits) -> bool:
    """Each says something that the other one does not: one thing stands for another."""
    mine, other = set(asked.words), set(stored.words)
    return not mine <= other and not other <= mine


def lists(asked: Traits, stored: Traits) -> bool:
    """One asks for something more: cats, and cats and dogs."""
    return _lacks(asked, stored, JOINED) or _lacks(stored, asked, JOINED)


def restriction(asked: Traits, stored: Traits) -> bool:
    """One ends in a case that the other one does not speak of: "in Spain", "for children"."""
    return _restricted(asked, stored) or _restricted(stored, asked)


def _restricted(traits: Traits, other: Traits) -> bool:
    return (
        bool(traits.words)
        and traits.marks[-1] >> LINK in _RESTRICTING
        and traits.words[-1] not in other.words
    )


def wording(asked: Traits, stored: Traits) -> bool:
    """In other languages than English, of which less is known: anything but a function word differs."""
    return bool({asked.language, stored.language} - {"", "en"}) and asked.words != stored.words


GUARDS: Mapping[str, Guard] = MappingProxyType(
    {
        guard.__name__: guard
        for guard in (
            language,
            length,
            code,
            quoted,
            versions,
            dates,
            numbers,
            units,
            negation,
            opposites,
            question,
            modality,
            tense,
            person,
            order,
            names,
            words,
            lists,
            restriction,
            wording,
        )
    }
)
"""By name, in the order in which they are asked."""


def objection(asked: Traits, stored: Traits, skip: frozenset[str] = frozenset()) -> str | None:
    """The name of the first guard that objects. `skip`: those that are not asked."""
    for name, guard in GUARDS.items():
        if name not in skip and guard(asked, stored):
            return name
    return None


def unmatchable(text: str, longest: int) -> str | None:
    """Why a text is compared with no other: `empty` where it has no letter and no digit, `too_long` with more
    than `longest` characters. None if it may be."""
    if len(text) > longest:
        return "too_long"
    return None if any(map(str.isalnum, text)) else "empty"
