"""Ids of streams and jobs, and of the events in them.

An id is a kind, 128 random bits, the number of the worker process that holds it, and a keyed hash of all
that and of the scope it was made for, so it proves by itself that this installation made it for this
credential. That is what lets an id that is known but gone (410) be told from one that is unknown, foreign or
malformed (404) without remembering any of them, also after a restart; and a foreign one takes the same way
as a malformed one.
"""

import hashlib
import hmac
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Literal

Kind = Literal["s", "j"]
"""A stream, or a background job, whose answer can be followed as a stream under the same id."""

_RANDOM = 16
_PROOF = 7
_ID = re.compile(r"[sj][A-Za-z0-9_-]{32}")
_EVENT = re.compile(rb"([sj][A-Za-z0-9_-]{32}):(0|[1-9][0-9]{0,11})")


def mint(secret: bytes, scope: bytes, kind: Kind, worker: int = 0) -> str:
    """A new id: 33 characters that need no escaping in a path, a header or an event. `worker`: below 256."""
    said = secrets.token_bytes(_RANDOM) + bytes([worker])
    return kind + urlsafe_b64encode(said + _proof(secret, scope, kind, said)).decode()


def belongs(secret: bytes, scope: bytes, text: str) -> bool:
    """Whether this installation made the id for this scope."""
    if not _ID.fullmatch(text):
        return False
    raw = urlsafe_b64decode(text[1:])
    proof = _proof(secret, scope, text[0], raw[:-_PROOF])
    return hmac.compare_digest(proof, raw[-_PROOF:])


def worker_of(text: str) -> int:
    """The number of the worker that an id names. Only for what `belongs` has found to be one."""
    return urlsafe_b64decode(text[1:])[_RANDOM]


def meant_as_one(value: bytes) -> bool:
    """Whether it was made of an id of ours, though it is no event's."""
    return _ID.fullmatch(value.partition(b":")[0].decode("latin-1")) is not None


def event_id(value: bytes) -> tuple[str, int] | None:
    """`{stream id}:{n}` as its two parts; None for anything else, such as an upstream's own id."""
    found = _EVENT.fullmatch(value)
    return (found[1].decode(), int(found[2])) if found else None


def _proof(secret: bytes, scope: bytes, kind: str, said: bytes) -> bytes:
    keyed = hashlib.blake2b(kind.encode() + said + scope, key=secret, digest_size=_PROOF, person=b"stream id")
    return keyed.digest()
