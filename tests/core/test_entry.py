"""sidecar.core.entry: what a blob proves, and what it tells."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.entry import Entry, Known, check, is_pointer, peek, point, pointed, seal, unseal

KEYS = st.binary(min_size=32, max_size=32)
TEXT = st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=20)


@st.composite
def entries(draw):
    body = draw(st.binary(max_size=200))
    events = array("Q", sorted(draw(st.lists(st.integers(0, len(body)), max_size=5))))
    known = Known(
        status=200,
        reason=draw(TEXT),
        headers=tuple(draw(st.lists(st.tuples(TEXT, TEXT), max_size=4))),
        stored=draw(st.floats(0, 4e9)),
        ttl=draw(st.floats(0, 1e6)),
        dialect="openai.chat",
        path=draw(st.text(max_size=20)),
        stream=draw(st.booleans()),
        model=draw(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)),
        finish=draw(st.none() | TEXT),
        output_tokens=draw(st.none() | st.integers(0, 1 << 53)),
        first_kind=draw(st.none() | st.sampled_from(["content", "reasoning", "tool"])),
        ids_until=draw(st.none() | st.integers(0, 9)),
        gap=draw(st.floats(0, 10)),
    )
    return Entry(draw(KEYS), known, body, events)


def same(one, other):
    return (one.key, one.known, one.body, one.events, one.head) == (
        other.key,
        other.known,
        other.body,
        other.events,
        other.head,
    )


@given(entries())
def test_what_is_sealed_comes_back(entry):
    blob = seal(entry)
    assert same(unseal(entry.key, blob), entry)
    assert peek(blob) == entry.known
    assert not is_pointer(blob)


@given(entries(), st.data())
def test_a_changed_byte_is_noticed(entry, data):
    blob = bytearray(seal(entry))
    at = data.draw(st.integers(0, len(blob) - 1))
    blob[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError):
        unseal(entry.key, bytes(blob))


@given(entries(), st.data())
def test_a_part_of_it_is_noticed(entry, data):
    blob = seal(entry)
    with pytest.raises(ValueError):
        unseal(entry.key, blob[: data.draw(st.integers(0, len(blob) - 1))])
    with pytest.raises(ValueError):
        unseal(entry.key, blob + data.draw(st.binary(min_size=1, max_size=9)))


@given(entries(), KEYS)
def test_under_another_key_it_is_none(entry, key):
    if key != entry.key:
        with pytest.raises(ValueError):
            unseal(key, seal(entry))


@given(st.binary(max_size=100), KEYS)
def test_anything_else_is_none(blob, key):
    assert peek(blob) is None
    for read in (unseal, pointed):
        with pytest.raises(ValueError):
            read(key, blob)


@given(KEYS, KEYS, KEYS)
def test_pointers(key, target, other):
    blob = point(key, target)
    assert is_pointer(blob)
    assert peek(blob) is None
    assert pointed(key, blob) == target
    with pytest.raises(ValueError):
        unseal(key, blob)
    if other != key:
        with pytest.raises(ValueError):
            pointed(other, blob)
    for at in range(len(blob)):
        with pytest.raises(ValueError):
            pointed(key, blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :])


@given(entries(), st.integers(0, 400))
def test_the_start_of_a_blob_tells_all_or_nothing(entry, size):
    assert peek(seal(entry)[:size]) in (None, entry.known)


def test_a_key_is_32_bytes_whatever_is_in_it():
    entry = Entry(bytes(32), Known(200, "OK", (), 0.0, 1.0, "d", "/"), b"", array("Q"))
    assert unseal(entry.key, seal(entry)).body == b""


@pytest.mark.parametrize(
    ("changes", "ends"),
    [
        ({"status": 201}, []),
        ({"ttl": -1.0}, []),
        ({}, [2, 1]),
        ({}, [4]),
        ({"headers": (("a", "b\r\nc: d"),)}, []),
        ({"reason": "a\nb"}, []),
        ({"headers": (("a\0", "b"),)}, []),
    ],
)
def test_what_cannot_be_served(changes, ends):
    facts = {"status": 200, "reason": "OK", "headers": (("a", "b"),), "stored": 0.0, "ttl": 1.0}
    good = Known(**facts, dialect="d", path="/")
    assert check(good, events=array("Q", [1, 3]), size=3)
    with pytest.raises(ValueError):
        check(Known(**facts | changes, dialect="d", path="/"), events=array("Q", ends), size=3)
