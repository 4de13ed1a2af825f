"""A stored answer, and its form on disk: one blob that proves to be whole and to be under its own key.

    mark, digest of key and rest, length of the facts, number of events, facts (JSON), ends of events, body

The facts are what a hit needs that its bytes do not say, so that nothing is parsed again. Neither the
question nor the credential is in it.
"""

import hashlib
import struct
import sys
from array import array
from typing import Any, Literal

import msgspec

from sidecar.core.headers import index, render
from sidecar.core.types import DeltaKind, Head

_ANSWER = b"SLA1"
_POINTER = b"SLP1"
_DIGEST = 16
_LENGTHS = struct.Struct("<II")
_START = len(_ANSWER) + _DIGEST
_MOST_FACTS = 1 << 20
FIXED = 2048
"""Bytes that an entry in memory is counted as taking beside its head, events and body."""


class Known(msgspec.Struct, frozen=True, gc=False):
    """What is known of a stored answer."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    stored: float
    """When the answer was complete, in unix seconds."""
    ttl: float
    """For how many seconds it is fresh."""
    dialect: str
    path: str
    query: str = ""
    """Only what says how the answer is framed; the rest may hold a credential."""
    stream: bool = False
    """Whether it is a stream."""
    upstream: str | None = None
    provider: str | None = None
    operation: str | None = None
    model: str | None = None
    tag: str = ""
    """Whose it is; what a purge of one tenant goes by."""
    response_model: str | None = None
    finish: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int | None = None
    reasoning_tokens: int | None = None
    events: int = 0
    deltas: int = 0
    first_kind: DeltaKind | None = None
    ids_until: int | None = None
    gap: float = 0.0
    """Seconds between its events, on average, when it first came."""
    took: float = 0.0
    """Seconds from its request to its last byte, then."""


class Entry:
    """A stored answer in memory."""

    __slots__ = ("body", "events", "head", "key", "known", "made", "origin")

    def __init__(self, key: bytes, known: Known, body: bytes, events: "array[int]") -> None:
        """`events`: the offset just past each event."""
        self.key = key
        self.origin = key
        """Where the store has it, or what it was made of."""
        self.known = known
        self.body = body
        self.events = events
        headers = tuple([(name.encode("latin-1"), value.encode("latin-1")) for name, value in known.headers])
        self.head = Head(known.status, known.reason.encode("latin-1"), headers, index(headers))
        self.made: dict[bytes, Any] = {}
        """What readers need of it, by their scope; made once, and gone with the entry."""

    @property
    def size(self) -> int:
        """Bytes it takes in memory."""
        headers = sum([len(name) + len(value) + 200 for name, value in self.head.headers])
        return FIXED + headers + 8 * len(self.events) + len(self.body)


def seal(entry: Entry) -> bytes:
    """The blob to be kept under the entry's key. Any time between two events of 4 GiB or less."""
    facts = msgspec.json.encode(entry.known)
    rest = b"".join([_LENGTHS.pack(len(facts), len(entry.events)), facts, _offsets(entry.events), entry.body])
    return _ANSWER + _digest(entry.key, rest) + rest


def unseal(key: bytes, blob: bytes) -> Entry:
    """The entry in a blob. Raises ValueError for one that is damaged, or was kept under another key."""
    rest = _rest(_ANSWER, key, blob)
    facts, count = _LENGTHS.unpack_from(rest)
    start = _LENGTHS.size + facts
    body = start + 4 * count
    if facts > _MOST_FACTS or body > len(rest):
        raise ValueError("a stored answer is damaged")
    events = array("I")
    events.frombytes(rest[start:body])
    if sys.byteorder == "big":
        events.byteswap()
    known = msgspec.json.decode(rest[_LENGTHS.size : start], type=Known)
    return Entry(key, known, rest[body:], array("Q", events))


def peek(start: bytes) -> Known | None:
    """What the start of a blob tells, unchecked; None when it tells nothing, as a pointer does."""
    at = _START + _LENGTHS.size
    if not start.startswith(_ANSWER) or len(start) < at:
        return None
    length = _LENGTHS.unpack_from(start, _START)[0]
    try:
        return msgspec.json.decode(start[at : at + length], type=Known)
    except msgspec.MsgspecError:
        return None


def point(key: bytes, target: bytes) -> bytes:
    """A blob that says under which other key the answer is."""
    return _POINTER + _digest(key, target) + target


def pointed(key: bytes, blob: bytes) -> bytes:
    """Where a pointer points. Raises ValueError for what is none."""
    return _rest(_POINTER, key, blob)


def is_pointer(start: bytes) -> bool:
    """Whether a blob with that start is one."""
    return start.startswith(_POINTER)


def check(known: Known, *, events: "array[int]", size: int) -> Literal[True]:
    """Whether an entry from outside can be served. Raises ValueError."""
    fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in known.headers]
    render(b"HTTP/1.1 %d %b" % (known.status, known.reason.encode("latin-1")), fields)
    ends = list(events)
    if known.status != 200 or ends != sorted(ends) or (ends and ends[-1] > size) or known.ttl < 0:
        raise ValueError("not an answer that can be served")
    return True


def _offsets(events: "array[int]") -> bytes:
    packed = array("I", events)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _rest(mark: bytes, key: bytes, blob: bytes) -> bytes:
    rest = blob[_START:]
    if not blob.startswith(mark) or blob[len(mark) : _START] != _digest(key, rest):
        raise ValueError("a stored answer is damaged, or under a key that is not its own")
    return rest


def _digest(key: bytes, rest: bytes) -> bytes:
    made = hashlib.blake2b(key, digest_size=_DIGEST)
    made.update(rest)
    return made.digest()
