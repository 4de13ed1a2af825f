"""core.semantic.traits: what is read in a question, hashed, stored and read again."""

import sys

import msgspec
import pytest

from sidecar.core.semantic.marks import DATE, JOINED, LISTED, NAME, NEGATED, NUMBER, UNIT, VERSION
from sidecar.core.semantic.traits import Traits, decode, encode, hashed, traits

SECRET = b"s" * 32
LONG = 20_000
"""Characters of which a pattern that is tried again and again would make minutes."""
NASTY = {
    "words": "knit sock ",
    "quotes": '" ',
    "opening quotes": '"a',
    "apostrophes": " 'a",
    "backticks": "` ",
    "fences": "```a",
    "points": "a.",
    "commas": "1,11,",
    "commas and an end that does not fit": "1,111,",
    "digits": "1",
    "numbers": "1.1/",
    "dates": "1-1-",
    "times": "1:11:",
    "mail addresses": "a@",
    "halves of mail addresses": "a-b@b-",
    "signs": "a+",
    "calls": "f(",
    "paths": "/a",
    "slashes": "/",
    "backslashes": "a:\\",
    "letters": "A",
    "e-mails": "e-",
    "underscores": "a_",
    "marks": "a\u0301",
    "characters": "語",
    "pictures": "🦉",
    "what grows in normalisation": "\ufdfa",
    "number words": "twenty five ",
    "scales": "5 million ",
    "negations": "not ",
    "lists": "cat, ",
    "letters and digits": "x1",
    "sentences": "Why? ",
    "spaces": " \n",
}


def read(text, mark):
    found = traits(text)
    return [word for word, marks in zip(found.words, found.marks, strict=True) if marks & mark]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("10,000 and 1,00,000 and 10000", ["10000", "100000", "10000"]),
        ("5k, 5 thousand, 1.5 million, 2 lakh", ["5000", "5000", "1500000", "200000"]),
        ("seven, twenty-one, ninety", ["7", "21", "90"]),
        ("the 3rd and the tenth, the 1st and the second", ["3", "10"]),
        ("3.10 or 3.1 or 03", ["3.10", "3.1", "3"]),
        ("one or two", ["2"]),
        ("from 10-12, or -5", ["10", "12", "-5"]),
        ("the 1980s, the 80's", ["1980s", "80s"]),
        ("the phone 6s or A4", ["6s", "4"]),
        ("1/2 of 24/7", ["1/2", "24/7"]),
        ("x^2 = 4", ["^", "2", "=", "4"]),
        ("$5 M", ["5000000"]),
        ("9" * 60, ["9" * 60]),
        ("9" * 60 + " million", ["9" * 60 + "*1000000"]),
    ],
)
def test_numbers(text, numbers):
    assert read(text, NUMBER) == numbers


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("5 km, 5km, 5 kilometres", ["km", "km", "km"]),
        ("$5, 5 dollars, USD 5, 5 USD", ["$", "$", "$", "$"]),
        ("Rs. 5, 5 rupees", ["₹", "₹"]),
        ("5%, 5 percent", ["%", "%"]),
        ("a 5-year-old, 5 years", ["year", "year"]),
        ("5 °C, 5 degrees Celsius", ["°c", "°c"]),
        ("5 in it", []),
        ("5G", []),
    ],
)
def test_units(text, units):
    assert read(text, UNIT) == [traits(f"5 {unit}").words[1] for unit in units]


@pytest.mark.parametrize(
    ("text", "dates"),
    [
        ("May 3rd, 2023", ["may"]),
        ("2023-05-03", ["may", "3", "2023"]),
        ("25/12/2023", ["december", "25", "2023"]),
        ("3/5/2023", ["3/5/2023"]),
        ("3.5.2023", ["may", "3", "2023"]),
        ("may I march on", []),
        ("is it on Sun or on Mon", ["sunday", "monday"]),
        ("5 pm, 17:00, 12 am, 5:30", ["17:00", "17:00", "0:00", "5:30"]),
        ("tomorrow", ["tomorrow"]),
    ],
)
def test_dates(text, dates):
    assert read(text, DATE) == dates


@pytest.mark.parametrize(
    ("text", "versions"),
    [
        ("is Ubuntu 22.04 old", ["22.04"]),
        ("is v2 old", ["2"]),
        ("is version 7 old", ["7"]),
        ("is 1.2.3 old", ["1.2.3"]),
        ("is 1.5 enough", []),
    ],
)
def test_versions(text, versions):
    assert read(text, VERSION) == versions


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Is Oslo large?", ["oslo"]),
        ("Oslo is large", []),
        ("Is the Oslo Fjord deep?", ["oslo", "fjord"]),
        ("IS OSLO LARGE", []),
        ("Why Are Cities Like Oslo So Large", []),
        ("NASA or the U.S.", ["nasa", "US"]),
        ("are McKay and foo_bar and C# old", ["mckay", "foo_bar", "c#"]),
        ("do WMDs exist", ["wmd"]),
        ("is `grep` old", ["grep"]),
        ("plan B, and I too", ["b"]),
    ],
)
def test_names(text, names):
    assert read(text, NAME) == names


def test_lists():
    assert read("red, green and blue socks", LISTED) == ["green", "blu"]
    assert read("red, green and blue socks", JOINED) == ["green", "blu"]
    assert read("knit/sew", JOINED) == ["knit", "sew"]


def test_what_is_negated():
    assert read("I do not knit socks", NEGATED) == ["knit"]
    assert traits("I can't knit").negated
    assert not traits("knit or not?").negated
    assert not traits("Is it No 5?").negated


def test_where_no_word_says_anything_all_do():
    assert traits("Who are you?").words == ("who", "are", "you")


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("Why is it so?", ("why",)),
        ("What is the reason for it?", ("why",)),
        ("How come it is so?", ("why",)),
        ("What is the best way to knit?", ("how",)),
        ("Is there a way to knit?", ("how",)),
        ("How many socks are there?", ("count",)),
        ("How good are socks?", ("degree",)),
        ("When I knit, what do I need?", ("what",)),
        ("If it rains, can I knit?", ("able",)),
        ("Is it so? Why?", ("whether", "why")),
        ("Could you tell me where it is?", ("where",)),
        ("Who did Ann see?", ("whom",)),
        ("Knit a sock.", ("",)),
    ],
)
def test_kinds(text, kinds):
    assert traits(text).kinds == kinds


@pytest.mark.parametrize(
    ("text", "script", "language"),
    [
        ("How do I knit a sock?", "latin", "en"),
        ("Wie stricke ich eine Socke?", "latin", "de"),
        ("Comment est-ce que je tricote une chaussette ?", "latin", "fr"),
        ("¿Cómo puedo tejer los calcetines?", "latin", "es"),
        ("Come posso fare la maglia?", "latin", "it"),
        ("Como posso tricotar as meias?", "latin", "pt"),
        ("Knitting", "latin", ""),
        ("как вязать носки и шапки", "cyrillic", "ru"),
        ("靴下の編み方", "kana", "kana"),
        ("怎么织袜子", "han", "han"),
        ("양말을 뜨는 법", "hangul", "hangul"),
        ("كيف أحيك الجوارب", "arabic", "arabic"),
        ("मोज़े कैसे बुनें", "devanagari", "devanagari"),
        ("12 + 3", "", ""),
    ],
)
def test_languages(text, script, language):
    found = traits(text)
    assert (found.script, found.language) == (script, language)


def test_hashed_traits_can_not_be_read():
    text = 'Is "carpe diem" better than `a = 1` for Ann in Oslo on May 3 or 5 km off?'
    plain, hidden = traits(text), hashed(traits(text), SECRET)
    assert {type(word) for word in (*hidden.words, *hidden.quotes, *hidden.code)} == {int}
    assert {type(pair) for pair, _ in hidden.sides} == {int}
    assert (hidden.kinds, hidden.labels, hidden.marks) == (plain.kinds, plain.labels, plain.marks)
    for word in ("carpe", "oslo", "ann", "km", "may"):
        assert word.encode() in encode(plain)
        assert word.encode() not in encode(hidden)


def test_other_secrets_make_other_hashes():
    one, two = (hashed(traits("Is Oslo large?"), secret) for secret in (SECRET, b"t" * 32))
    assert set(one.words).isdisjoint(two.words)


def test_what_is_stored_is_small():
    text = (
        "How many hours does the night train from Oslo to Bergen take in winter when there is a lot of snow?"
    )
    assert len(encode(hashed(traits(text), SECRET))) <= 200


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xc1",
        b"\x93\xa1a",
        encode(traits("Is Oslo large?"))[:-1],
        encode(traits("Is Oslo large?")) + b"\x00",
        msgspec.msgpack.encode({"words": []}),
        msgspec.msgpack.encode(["latin", "en", "many"]),
        msgspec.msgpack.encode(msgspec.structs.replace(traits("Is Oslo large?"), marks=())),
        b"\x9b" * 5000,
    ],
)
def test_what_is_damaged_is_no_traits(raw):
    with pytest.raises(ValueError, match="no traits"):
        decode(raw)


def test_nothing_is_as_good_as_empty():
    assert decode(encode(Traits())) == traits("")


@pytest.mark.parametrize("pattern", NASTY.values(), ids=NASTY)
def test_the_work_grows_with_the_text(pattern):
    # Calls are counted, and not time: work of its square would be four times as much.
    few, many = (calls(pattern * (length // len(pattern))) for length in (1000, 2000))
    assert many <= 2.5 * few + 200
    traits(pattern * (LONG // len(pattern)))


def calls(text):
    count = 0

    def called(frame, event, argument):
        nonlocal count
        count += 1

    traits(text)  # what is remembered of words is not counted
    sys.setprofile(called)
    try:
        traits(text)
    finally:
        sys.setprofile(None)
    return count
