"""sidecar.core.canonical: bodies that mean the same have one form, all others have another or none."""

import copy
import json
import math
import os
import random
import subprocess
import sys

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from sidecar.core.canonical import LARGEST, canonical

EDGES = [0, 1, -1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64, -(2**64)]
INTEGERS = st.sampled_from(EDGES) | st.integers() | st.integers(-(10**400), 10**400)
FLOATS = st.sampled_from([0.0, -0.0, 1.0, 1e16, 2.0**64, 1e23, 5e-324, 1.7976931348623157e308]) | st.floats(
    allow_nan=False, allow_infinity=False
)
STRINGS = st.text() | st.text('a:"\\/u003A\x00\x1f\x7f\xe9\u2028\ue000\U0001f600', max_size=8)
LEAVES = st.none() | st.booleans() | INTEGERS | FLOATS | STRINGS
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(STRINGS, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(STRINGS, VALUES, max_size=5)
RANDOM = st.integers(0, 2**32).map(random.Random)
SHORT = dict(zip('"\\/\b\f\n\r\t', '"\\/bfnrt', strict=True))


def meaning(value):
    """What `==` compares with types told apart: to Python, True, 1 and 1.0 are equal."""
    if isinstance(value, dict):
        return frozenset((key, meaning(inner)) for key, inner in value.items())
    if isinstance(value, list):
        return tuple(map(meaning, value))
    return type(value).__name__, value.hex() if isinstance(value, float) else value


def written(value, dice):
    """One of the many ways to write it."""

    def blank():
        return "".join(dice.choices(" \t\r\n", k=dice.choice((0, 0, 0, 1, 3))))

    def joined(parts):
        return ",".join(f"{blank()}{part}{blank()}" for part in parts) or blank()

    if isinstance(value, dict):
        items = dice.sample(list(value.items()), len(value))
        return f"{{{joined(f'{string(key, dice)}{blank()}:{blank()}{written(inner, dice)}' for key, inner in items)}}}"
    if isinstance(value, list):
        return f"[{joined([written(inner, dice) for inner in value])}]"
    if isinstance(value, str):
        return string(value, dice)
    if isinstance(value, float):
        text = dice.choice((repr(value), f"{value:.17e}", f"{value:.25E}"))
        return dice.choice((text, text.replace("e+", "e"), text.replace("e", "00e") if "." in text else text))
    return dice.choice(("0", "-0")) if value == 0 and value is not False else json.dumps(value)


def string(text, dice):
    def escaped(char):
        units = char.encode("utf-16-be").hex()
        long = "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
        ways = [long, "\\u".join(part.upper() for part in long.split("\\u"))]
        ways += ["\\" + SHORT[char]] if char in SHORT else []
        return dice.choice(ways + [char] * 4 * (char >= " " and char not in '"\\'))

    return f'"{"".join(map(escaped, text))}"'


def form(value, seed=0):
    body = written(value, random.Random(seed)).encode()
    found = canonical(body)
    assert found is not None, body
    return found


@given(OBJECTS, RANDOM)
@example(
    {"a": {"b": [1, 2**64, {"c": -0.0, "d": 0}], "\U0001f600": 2.0**64}, "\ue000": '"\\/:'}, random.Random(1)
)
def test_every_way_to_write_it_has_one_form(value, dice):
    bodies = [written(value, dice).encode() for _ in range(4)]
    assert {canonical(body) for body in bodies} == {form(value)}, bodies


@given(OBJECTS, RANDOM)
def test_the_form_means_what_the_body_means(value, dice):
    found = form(value, dice.random())
    assert meaning(json.loads(found)) == meaning(value)


@given(OBJECTS)
def test_the_form_is_its_own_form(value):
    assert canonical(form(value)) == form(value)


def places(value):
    """Every container in it with every key it has."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key
        yield from places(inner)


def look_alikes(value):
    """Values of other types, or a little off, that a careless form could take for this one."""
    yield from (None, True, False, 0, 1, 0.0, "", [], {}, [value], {"": value}, [value, None])
    if isinstance(value, str):
        yield from (
            value + "\x00",
            value + " ",
            value[:-1],
            value.swapcase(),
            value.replace("\\", ""),
            [*value],
        )
    elif isinstance(value, dict):
        yield from ([*value], [*value.values()], {**value, "added": None}, dict(list(value.items())[1:]))
        yield dict(zip(value, reversed(value.values()), strict=True))
    elif isinstance(value, list):
        yield from (
            value[::-1],
            value[1:],
            [*value, *value[-1:]],
            dict(zip(map(str, value), value, strict=False)),
        )
    elif isinstance(value, float):
        yield from (int(value), -value, math.nextafter(value, 0.0), repr(value))
    elif value is not None:
        yield from (value + 1, -value, str(value), float(value) if abs(value) < 2**1000 else 0.0)
        if abs(value) < 2**1000:
            yield int(float(value))


@given(OBJECTS, st.data())
def test_whatever_is_changed_the_form_is_another(value, data):
    changed = copy.deepcopy(value)
    found = list(places(changed))
    assume(found)
    into, key = data.draw(st.sampled_from(found))
    into[key] = data.draw(st.sampled_from(list(look_alikes(into[key]))) | VALUES)
    assert (form(changed, 1) == form(value, 2)) == (meaning(changed) == meaning(value))


@given(OBJECTS, STRINGS, VALUES)
def test_a_key_more_is_another_form(value, key, more):
    assume(key not in value)
    assert form({**value, key: more}) != form(value)


@given(OBJECTS, st.data())
def test_a_key_twice_has_no_form(value, data):
    """At any depth, with any spelling, whether or not both have the same value."""
    found = [(into, key) for into, key in [*places(value), *places({"top": value})] if isinstance(into, dict)]
    into, key = data.draw(st.sampled_from(found))
    more = data.draw(st.just(into[key]) | VALUES)
    dice = data.draw(RANDOM)
    pairs = [*into.items(), (key, more)]
    dice.shuffle(pairs)
    inner = ",".join(f"{string(name, dice)}:{written(one, dice)}" for name, one in pairs)
    assert canonical(f'{{"x":[{{{inner}}}]}}'.encode()) is None


def judged(body):
    """A plain and slow reading of the rules, with nothing but the standard library."""

    def unique(pairs):
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("twice")
        return dict(pairs)

    try:
        value = json.loads(body.decode(), object_pairs_hook=unique)
        if not isinstance(value, dict):
            return None
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        return None
    return meaning(value)


PIECES = [
    *(
        b'{ } [ ] , : " \\ - . e E 0 1 9 00 1e400 {} [] "a" "a":1 "b":[ "\\ud83d \\ude00 \\u0061 \\/ null true'.split()
    )
]
PIECES += [
    b"NaN",
    b"Infinity",
    b"\xef\xbb\xbf",
    b"\xff",
    b"\xed\xa0\x80",
    b"\x00",
    b"\n",
    b"\x0b",
    b"'",
    b"//",
    b" ",
    b"9" * 20,
]


@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=2), max_size=8).map(b"".join))
def test_broken_bodies_are_judged_as_the_standard_library_judges_them(noise):
    for body in (noise, b'{"a":' + noise + b"}", b'{"a":["' + noise + b'"]}', b'{"a":-' + noise + b',"b":1}'):
        found = canonical(body)
        assert (found and judged(found)) == judged(body), body


@given(OBJECTS, RANDOM)
def test_a_body_with_one_byte_off_is_judged_as_the_standard_library_judges_it(value, dice):
    body = bytearray(written(value, dice).encode())
    body[dice.randrange(len(body))] = dice.choice((*b'{}[]",:\\0e-. ', dice.randrange(256)))
    found = canonical(bytes(body))
    assert (found and judged(found)) == judged(bytes(body)), body


FORMS = [
    (b" { } \n", b"{}"),
    (b'{"b":1,"a":{"d":[2,1],"c":null}}', b'{"a":{"c":null,"d":[2,1]},"b":1}'),
    (b'{"\\u0041":"\\u00e9\\/\\ud83d\\ude00"}', '{"A":"é/😀"}'.encode()),
    (b'{"a":"\\u0000\\u001F\\u007f\\u2028\\b\\t\\n\\f\\r\\"\\\\"}', b'{"a":"\\u0000\\u001f\x7f\xe2\x80\xa8\\b\\t\\n\\f\\r\\"\\\\"}'),
    ('{"\U0001f600":1,"\ue000":2}'.encode(), '{"\ue000":2,"\U0001f600":1}'.encode()),
    # Unicode's composed and decomposed forms are different tokens to a model.
    ('{"é":1,"e\u0301":2}'.encode(), '{"e\u0301":2,"é":1}'.encode()),
    (b'{"a":[1,1.0,1.00,1e0,10E-1,-0,0,-0.0]}', b'{"a":[1,1.0,1.0,1.0,1.0,0,0,-0.0]}'),
    (b'{"a":[0.1,0.10000000000000000555,1e-400,5e-324,0.1e-6]}', b'{"a":[0.1,0.1,0.0,5e-324,1e-7]}'),
    (b'{"a":[18446744073709551616,-9223372036854775809,-0]}', b'{"a":[18446744073709551616,-9223372036854775809,0]}'),
    (b'{"b":' + b"9" * 4300 + b',"a":1.50}', b'{"a":1.5,"b":' + b"9" * 4300 + b"}"),
    (b'{"a":' + b"[" * 200 + b" " + b"]" * 200 + b"}", b'{"a":' + b"[" * 200 + b"]" * 200 + b"}"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), FORMS, ids=range(len(FORMS)))
def test_the_form(body, expected):
    assert canonical(body) == expected


NONE = {
    "nothing": b"",
    "blank": b" \n",
    "null": b"null",
    "array": b'[{"a":1}]',
    "string": b'"{}"',
    "number": b"1",
    "large number": b"9" * 20,
    "cut": b'{"a":1',
    "cut string": b'{"a":"b',
    "garbage after": b'{"a":1} x',
    "second object": b"{}{}",
    "second line": b"{}\n{}",
    "zero after": b"{}\x00",
    "other blanks": b"{}\x0b",
    "no-break space": '{"a":\xa01}'.encode(),
    "trailing comma": b'{"a":1,}',
    "comma in array": b'{"a":[1,]}',
    "single quotes": b"{'a':1}",
    "bare key": b"{a:1}",
    "number as key": b"{1:1}",
    "comment": b'{"a":1/**/}',
    "leading zero": b'{"a":01}',
    "plus": b'{"a":+1}',
    "no fraction": b'{"a":1.}',
    "no integer": b'{"a":.5}',
    "hexadecimal": b'{"a":0x1}',
    "underscore": b'{"a":1_0}',
    "other digits": '{"a":\u0661}'.encode(),
    "capitals": b'{"a":True}',
    "raw line end": b'{"a":"\n"}',
    "raw zero": b'{"a":"\x00"}',
    "unknown escape": b'{"a":"\\x41"}',
    "short escape": b'{"a":"\\u41"}',
    "signed escape": b'{"a":"\\u+041"}',
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":Infinity}',
    "-Infinity": b'{"a":[-Infinity]}',
    "not finite": b'{"a":1e400}',
    "not finite either": b'{"a":[-1E+400,18446744073709551616]}',
    "just not finite": b'{"a":1.7976931348623159e308}',
    "long and not finite": b'{"a":' + b"9" * 400 + b".0}",
    "4301 digits": b'{"a":' + b"9" * 4301 + b"}",
    "-4301 digits": b'{"a":-' + b"9" * 4301 + b"}",
    "key twice": b'{"a":1,"a":1}',
    "key twice, spelt differently": b'{"a:":1,"\\u0061\\u003A":2}',
    "key twice, deep": b'{"x":[[{"y":{"a":1,"b":2,"a":3}}]]}',
    "key twice beside a large number": b'{"n":18446744073709551616,"x":{"a":1,"a":2}}',
    "empty key twice": b'{"":1,"":2}',
    "high surrogate": b'{"a":"\\ud83d"}',
    "low surrogate": b'{"a":"\\ude00"}',
    "surrogates in the wrong order": b'{"a":"\\ude00\\ud83d"}',
    "surrogate as key": b'{"\\ud83d":1}',
    "surrogate beside a large number": b'{"a":"\\ud83d","b":18446744073709551616}',
    "surrogate in UTF-8": b'{"a":"\xed\xa0\xbd"}',
    "surrogate pair in UTF-8": b'{"a":"\xed\xa0\xbd\xed\xb8\x80"}',
    "overlong": b'{"a":"\xc0\x80"}',
    "Latin-1": '{"a":"é"}'.encode("latin-1"),
    "past Unicode": b'{"a":"\xf4\x90\x80\x80"}',
    "BOM": b'\xef\xbb\xbf{"a":1}',
    "BOM inside": b'{\xef\xbb\xbf"a":1}',
    **{
        code: '{"a":1}'.encode(code)
        for code in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")
    },
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    **{
        f"{depth} {what}": b'{"a":' + opened * depth + inner + closed * depth + b"}"
        for depth in (300, 500, 1000, 5_000, 100_000)
        for what, opened, inner, closed in [
            ("arrays", b"[", b"", b"]"),
            ("objects", b'{"a":', b"1", b"}"),
            ("of both", b'[{"a":', b"", b"}]"),
            ("arrays about a large number", b"[", b"9" * 20, b"]"),
        ]
    },
    "100000 open": b'{"a":' + b"[" * 100_000,
    "100000 objects open": b'{"a":' * 100_000,
}


@pytest.mark.parametrize("body", NONE.values(), ids=NONE.keys())
def test_what_cannot_be_judged_has_no_form(body):
    assert canonical(body) is None


def test_a_body_as_large_as_is_looked_at_has_a_form():
    body = b'{"b":"' + b"x" * (LARGEST - 14) + b'","a":1}'
    assert len(body) == LARGEST
    assert canonical(body) == b'{"a":1,' + body[1:-7] + b"}"


def test_other_processes_find_the_same_forms():
    dice = random.Random(7)
    bodies = [body for body, _ in FORMS]
    keys = ["model", "messages", "é", "\U0001f600", "", "a:b", *map(str, range(20))]
    nested = {key: dict.fromkeys([*keys, key * 2], 2**70) for key in keys}
    bodies += [written(nested, dice).encode() for _ in range(3)]
    program = (
        "import sys; from sidecar.core.canonical import canonical\n"
        "print(hash('a'), [canonical(bytes.fromhex(line)) for line in sys.stdin])"
    )
    hashes, told = set(), set()
    for seed in ("0", "1", "4294967295"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            input="\n".join(body.hex() for body in bodies),
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        hashed, _, forms = done.stdout.strip().partition(" ")
        hashes.add(hashed)
        told.add(forms)
    assert len(hashes) == 3
    assert told == {repr([canonical(body) for body in bodies])}
