"""core.semantic: what holds for every text whatsoever."""

from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.core.semantic.guards import GUARDS, objection, unmatchable
from sidecar.core.semantic.traits import decode, encode, hashed, traits

SECRET = bytes(range(32))
PIECES = """
    How|Why|is|isn't|not|better than|and|or|,|?|.|the|The|Oslo|oslo|Bergen|U.S.|cats|dogs|cat|a|before|after|on|off
    |5|7|five|3a|20s|thousand|hundred|½|²|٣|1.2.3|5 km|5 miles|$5|10%|3.10|v2|May 3|2023-05-03|5 pm|10k|2 million|1/2|x^2 =|-1
    |"carpe diem"|'memento mori'|`ls -l`|```a = 1```|f(a, b)|https://example.org|/etc/hosts|ann@example.org
    |C++|foo_bar|ist|der|das|nicht|où|est|le|语|言|狗|кот|это|قطة|बिल्ली|한국|🦉|\u0301|\ufdfa|'|"|`|-|(|)|\n|should|my|your
""".replace("\n    ", "").split("|")
ANY = st.text(max_size=60)
SPOKEN = st.lists(st.sampled_from(PIECES), max_size=14).map(" ".join)
TEXTS = SPOKEN | ANY | st.tuples(SPOKEN, ANY).map("".join)
QUESTION = "how is red wine better than white wine in old Oslo"
LONE = "what is \ud800?"
"""A lone surrogate: JSON can hold it, UTF-8 can not."""


def all_of(asked, stored):
    return [name for name, guard in GUARDS.items() if guard(asked, stored)]


@given(TEXTS)
@example(LONE)
@example("`\ud800`")
@example("Is the 3a thousand series good?")
def test_none_objects_to_a_text_and_itself(text):
    assert all_of(traits(text), traits(text)) == []
    assert objection(traits(text), traits(text)) is None


@given(TEXTS, TEXTS)
@example("2 cats 3 dogs", "3 cats 2 dogs")
def test_it_does_not_matter_which_one_was_first(a, b):
    assert all_of(traits(a), traits(b)) == all_of(traits(b), traits(a))


@given(st.permutations(QUESTION.split()))
def test_nor_does_it_for_the_same_words_in_another_order(words):
    a, b = traits(" ".join(words)), traits(QUESTION)
    assert all_of(a, b) == all_of(b, a)


@given(TEXTS)
@example(LONE)
def test_what_is_stored_is_what_was_there(text):
    for found in (traits(text), hashed(traits(text), SECRET)):
        assert decode(encode(found)) == found
    assert hashed(traits(text), SECRET) == hashed(traits(text), SECRET)


@given(TEXTS, TEXTS)
def test_hashes_get_the_same_objections(a, b):
    one, two = traits(a), traits(b)
    assert all_of(hashed(one, SECRET), hashed(two, SECRET)) == all_of(one, two)


@given(SPOKEN)
def test_space_around_a_text_means_nothing(text):
    assert objection(traits(text), traits(f"  {text} \n")) is None


@given(st.binary(max_size=80))
def test_bytes_are_traits_or_a_value_error(raw):
    try:
        found = decode(raw)
    except ValueError:
        return
    assert all_of(found, found) == []
    assert decode(encode(found)) == found


@given(TEXTS, st.integers(1, 60))
def test_what_may_be_matched_says_something(text, longest):
    if unmatchable(text, longest) is None:
        assert len(text) <= longest
        assert any(map(str.isalnum, text))
