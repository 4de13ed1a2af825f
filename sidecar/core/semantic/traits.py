"""What guards go by: the words of a question that say something, what is noted of each, and a few labels.

Only hashed traits are stored, never the question: its words, numbers, quotes and code are keyed hashes, which
can be compared with each other and tell nothing else. Labels of closed classes and counts stay readable.
"""

import hashlib
from collections.abc import Iterable

import msgspec

from sidecar.core.semantic.reading import Reading

TRAITS_VERSION = 1
"""Another number whenever a text gets other traits than before: the two are not to be compared."""
_DIGEST = 8
"""Bytes of a hash."""

Feature = str | int
"""What can only be the same or not: as it is, or hashed."""


class Traits(msgspec.Struct, frozen=True, array_like=True):
    """Of one question."""

    script: str = ""
    language: str = ""
    """Both empty where they cannot be told."""
    size: int = 0
    """Words, those included that say nothing."""
    kinds: tuple[str, ...] = ()
    """What it asks for, as `questions.kind` calls it."""
    labels: tuple[str, ...] = ()
    """How it speaks of it, as in `questions.LABELS`."""
    negated: bool = False
    sides: tuple[tuple[Feature, bool], ...] = ()
    """Opposites of which it names one, and whether that is the first of them."""
    words: tuple[Feature, ...] = ()
    """Those that say something, in their order. Words that mean the same are the same."""
    marks: tuple[int, ...] = ()
    """Of each of these words, as in `marks`."""
    quotes: tuple[Feature, ...] = ()
    code: tuple[Feature, ...] = ()
    """Pieces of code, links and paths."""


def traits(text: str) -> Traits:
    """Of any text, readable."""
    read = Reading(text)
    return Traits(
        read.script,
        read.language,
        read.size,
        tuple(sorted(read.kinds)),
        tuple(sorted(read.labels)),
        read.negated,
        tuple(sorted(read.sides)),
        tuple(read.words),
        tuple(read.marks),
        tuple(read.quotes),
        tuple(read.code),
    )


def hashed(traits: Traits, secret: bytes) -> Traits:
    """The same, unreadable. `secret`: up to 64 bytes; what was hashed with another one is never the same."""
    empty = hashlib.blake2b(key=secret, digest_size=_DIGEST)
    known: dict[Feature, int] = {}

    def one(feature: Feature) -> int:
        found = known.get(feature)
        if found is None:
            digest = empty.copy()
            digest.update(str(feature).encode())
            found = known[feature] = int.from_bytes(digest.digest(), "big")
        return found

    def all_of(features: Iterable[Feature]) -> tuple[int, ...]:
        return tuple([one(feature) for feature in features])

    return msgspec.structs.replace(
        traits,
        sides=tuple([(one(pair), first) for pair, first in traits.sides]),
        words=all_of(traits.words),
        quotes=all_of(traits.quotes),
        code=all_of(traits.code),
    )


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Traits)


def encode(traits: Traits) -> bytes:
    """As they are stored."""
    return _ENCODER.encode(traits)


def decode(raw: bytes) -> Traits:
    """Raises ValueError where that is not what `encode` has made."""
    try:
        made = _DECODER.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"no traits ({type(error).__name__})") from None
    if len(made.words) != len(made.marks):
        raise ValueError("no traits (marks without words)")
    return made
