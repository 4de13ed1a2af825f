"""sidecar.core.ids: an id proves who made it and for whom, and nothing that merely looks like one does."""

import re
import string
from base64 import urlsafe_b64decode

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from sidecar.core.ids import belongs, event_id, mint

SECRET, SCOPE = b"s" * 32, b"c" * 32
ALPHABET = string.ascii_letters + string.digits + "-_"
SHAPE = re.compile(r"[sj][A-Za-z0-9_-]{32}")
KINDS = st.sampled_from("sj")
BYTES = st.binary(min_size=32, max_size=32)
IDS = st.builds(lambda kind, rest: kind + rest, KINDS, st.text(ALPHABET, min_size=32, max_size=32))
NUMBERS = st.one_of(st.integers(0, 9), st.integers(0, 10**12 - 1))


@given(BYTES, BYTES, KINDS)
def test_id_belongs_to_the_scope_it_was_made_for(secret, scope, kind):
    made = mint(secret, scope, kind)
    assert SHAPE.fullmatch(made)
    assert made[0] == kind
    assert belongs(secret, scope, made)


@given(BYTES, BYTES, BYTES, BYTES, KINDS)
def test_id_belongs_to_no_other_scope_and_no_other_installation(
    secret, other_secret, scope, other_scope, kind
):
    assume(secret != other_secret and scope != other_scope)
    made = mint(secret, scope, kind)
    assert not belongs(other_secret, scope, made)
    assert not belongs(secret, other_scope, made)
    assert not belongs(other_secret, other_scope, made)


@given(KINDS, st.integers(0, 32), st.sampled_from(ALPHABET))
def test_id_with_any_character_changed_is_nobodys(kind, at, character):
    made = mint(SECRET, SCOPE, kind)
    assume(made[at] != character)
    assert not belongs(SECRET, SCOPE, made[:at] + character + made[at + 1 :])


@given(KINDS, st.integers(0, 191))
def test_id_with_any_bit_changed_is_nobodys(kind, bit):
    """Also the last bits: 24 bytes fill 32 characters, so that no two spellings mean the same."""
    made = mint(SECRET, SCOPE, kind)
    at, shift = divmod(bit, 6)
    code = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    flipped = code[code.index(made[at + 1]) ^ (1 << shift)]
    assert not belongs(SECRET, SCOPE, made[: at + 1] + flipped + made[at + 2 :])


def test_stream_is_no_job_and_the_other_way_round():
    made = mint(SECRET, SCOPE, "s")
    assert not belongs(SECRET, SCOPE, "j" + made[1:])
    made = mint(SECRET, SCOPE, "j")
    assert not belongs(SECRET, SCOPE, "s" + made[1:])


@given(st.one_of(st.text(), IDS))
@example("")
@example("s" + "A" * 31)
@example("s" + "A" * 33)
@example("s" + "A" * 32 + "\n")
@example("s" + "+" * 32)
@example("s" + "/" * 32)
@example("s" + "A" * 31 + "=")
@example("s" + "\u0660" * 32)
@example("s" + "\ud800" * 32)
@example("\0" * 33)
def test_nothing_that_was_not_made_belongs_to_anybody(text):
    assert not belongs(SECRET, SCOPE, text)


@pytest.mark.parametrize(
    "spoilt", ["{}\n", "\n{}", " {}", "{} ", "{}=", "{}%00", "{}\0", "{}:0", "{}{}", "x{}"]
)
def test_id_with_anything_around_it_is_none(spoilt):
    made = mint(SECRET, SCOPE, "s")
    assert not belongs(SECRET, SCOPE, spoilt.replace("{}", made))


def test_ids_do_not_repeat_and_every_one_of_their_random_bits_varies():
    made = [mint(SECRET, SCOPE, "s") for _ in range(1000)]
    assert len(set(made)) == 1000
    raw = [int.from_bytes(urlsafe_b64decode(text[1:])[:16], "big") for text in made]
    for bit in range(128):
        ones = sum(value >> bit & 1 for value in raw)
        assert 300 < ones < 700


@given(IDS, NUMBERS)
def test_event_id_is_read_as_it_is_written(name, number):
    assert event_id(b"%b:%d" % (name.encode(), number)) == (name, number)


SPOILT = [
    b"",
    b":",
    b":0",
    b"{}",
    b"{}:",
    b"{}:-1",
    b"{}:+1",
    b"{}:00",
    b"{}:01",
    b"{}: 1",
    b"{}:1 ",
    b" {}:1",
    b"{}:1\n",
    b"{}:1\r",
    b"{}:1\0",
    b"{}:1:1",
    b"{}:1.0",
    b"{}:1e1",
    b"{}:0x1",
    b"{}:1_0",
    b"{}:\xd9\xa1",
    b"{}:\xef\xbc\x91",
    b"{};1",
    b"{}:1000000000000",
    b"x{}:1",
    b"{}A:1",
    b"{}:1, {}:1",
    b"17",
]


@pytest.mark.parametrize("spoilt", SPOILT, ids=repr)
def test_what_only_looks_like_an_event_id_is_somebody_elses(spoilt):
    assert event_id(spoilt.replace(b"{}", b"s" + b"A" * 32)) is None


@given(st.binary(max_size=60))
def test_any_bytes_are_an_event_id_or_none_and_never_a_fault(value):
    found = event_id(value)
    if found is not None:
        assert b"%b:%d" % (found[0].encode(), found[1]) == value


def test_event_id_of_megabytes_is_none_at_once():
    assert event_id(b"s" * (10 << 20)) is None
    assert event_id(b"s" + b"A" * 32 + b":" + b"1" * (10 << 20)) is None
