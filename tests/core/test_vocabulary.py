"""core.semantic.vocabulary, and what is made of it: that the tables say what they seem to say."""

from collections import Counter

import pytest

from sidecar.core.semantic.english import key, sides
from sidecar.core.semantic.stems import stem
from sidecar.core.semantic.vocabulary import FUNCTION, GENERAL, OPPOSITES, PARTICLES, SAME

GROUPS = [words for group in SAME.split(";") if (words := group.split())]
PAIRS = [pair.split("/") for pair in f"{OPPOSITES};{PARTICLES}".split(";") if pair.strip()]
FAMILIES = """
    price prices priced pricing
    organise organize organised organizing organisation organization
    educate education educational educated
    study studies studied studying
    develop developed developing development
    happy happier happiest happily happiness
    big bigger biggest
    write writes wrote written writing
    child children
    centre center centers
    favour favor favoured
    successful succesful
    prepare preparation prepared preparing
"""
STRANGERS = """
    station state status
    good god
    food foot
    business busy
    university universe
    new news
    important import
    general generous
"""


def test_no_word_says_the_same_as_two_others():
    counts = Counter(word for words in GROUPS for word in words)
    assert [word for word, times in counts.items() if times > 1] == []


def test_what_says_the_same_says_something():
    assert [word for words in GROUPS for word in words if word in FUNCTION | GENERAL] == []
    assert [word for words in GROUPS for word in words if not key(word)] == []


@pytest.mark.parametrize("words", GROUPS, ids=" ".join)
def test_words_that_say_the_same_count_as_one(words):
    assert len({key(word) for word in words}) == 1


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_opposites_are_not_the_same(pair):
    left, right = (words.split() for words in pair)
    axis = f"{left[0]}/{right[0]}"
    for first, words in ((True, left), (False, right)):
        for word in words:
            assert (axis, first) in sides(word)
            assert (axis, not first) not in sides(word)


@pytest.mark.parametrize("family", FAMILIES.strip().split("\n"))
def test_a_family_has_one_stem(family):
    assert len({stem(word) for word in family.split()}) == 1


@pytest.mark.parametrize("strangers", STRANGERS.strip().split("\n"))
def test_strangers_have_their_own(strangers):
    assert len({stem(word) for word in strangers.split()}) == len(strangers.split())


def test_words_longer_than_any_are_left_alone():
    assert key("a" * 1000) == "a" * 1000
    assert sides("a" * 1000) == ()
