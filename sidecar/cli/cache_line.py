"""An answer as a line of JSON, and whether one that is read can be served: nothing in a file is trusted.

Messages of what is raised here name a place in the line, never what is written there.
"""

import re
from array import array
from contextlib import suppress
from typing import Annotated

import msgspec

from sidecar.cli.cache_words import REASONS
from sidecar.core.answer import Answer
from sidecar.core.caching import Terms
from sidecar.core.dialects import recognise
from sidecar.core.entry import Entry, Known, check
from sidecar.core.fingerprint import Keys
from sidecar.core.headers import index
from sidecar.core.latency import Labels
from sidecar.core.policy import end_of_body
from sidecar.core.recording import Recording
from sidecar.core.types import Head, Headers, Intent, Request
from sidecar.engine.keeping import Kept, worth_keeping
from sidecar.engine.pump import Ask, Keep, Live

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
"""RFC 9110, 5.5; bytes above 127 as latin-1."""
_TAG = re.compile(r"[0-9a-f]{16}")
_LONGEST_GAP = 3600.0
_NAME = 128
"""Characters of an upstream's or a model's name."""
_WHERE = re.compile(r" - at `([\w$.\[\]]{1,80})`$")
_HARMLESS = re.compile(r"(Expected `[\w |,]+`(, got `\w+`)?|Object missing required field `\w+`)")

Key = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Alias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{66}\Z")]
Offset = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """What `export` writes of an answer. `known` has field names of its own; see `entry.Known`."""

    key: Key
    known: Known
    body: str | None = None
    body_base64: bytes | None = None
    """In the place of `body` where that is no text."""
    events: list[Offset] = []
    """Where each event ends."""
    aliases: Annotated[list[Alias], msgspec.Meta(max_length=8)] = []
    """Other keys under which it is found."""
    installation: str | None = None
    """See `export.installation`."""


class LineError(ValueError):
    """The line is of no use. The message says why, and quotes nothing."""


def line_of(entry: Entry, aliases: list[bytes], installation: str | None) -> bytes:
    """A stored answer as a line."""
    text: str | None = None
    with suppress(UnicodeDecodeError):
        text = entry.body.decode()
    made = Line(
        key=entry.key.hex(),
        known=entry.known,
        body=text,
        body_base64=entry.body if text is None else None,
        events=entry.events.tolist(),
        aliases=[alias.hex() for alias in aliases],
        installation=installation,
    )
    return msgspec.json.encode(made) + b"\n"


def place_of(error: Exception) -> str:
    """What msgspec found wrong, without what it found there."""
    message = str(error)
    where = _WHERE.search(message)
    what = _HARMLESS.match(message)
    said = what[0][:1].lower() + what[0][1:] if what else "not in the expected form"
    return f"{said} at {where[1]}" if where else said


def fields_of(pairs: list[tuple[str, str]]) -> Headers:
    """Header fields as bytes. Raises LineError for those that would break out of their line."""
    made = []
    for name, value in pairs:
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise LineError("a header field has a character that is not allowed in one")
        made.append((name.encode("ascii"), value.strip(" \t").encode("latin-1")))
    return tuple(made)


def stored_line(line: Line, terms: Terms) -> Kept:
    """The answer in a line of `export`; all that can be found out is read from its body anew.

    `terms`: what goes for such answers here. Raises LineError.
    """
    known = line.known
    body = _body(line)
    if not _TAG.fullmatch(known.tag):
        raise LineError("known.tag is no tenant: expected 16 hexadecimal digits")
    dialect = recognise("POST", known.path)
    if dialect is None or known.query not in ("", "alt=sse"):
        raise LineError("known.path or known.query is none of a model's API")
    headers = fields_of([*known.headers])
    given = index(headers)
    if given.get(b"content-length", b"%d" % len(body)) != b"%d" % len(body):
        raise LineError("Content-Length is not the length of the body")
    if not _VALUE.fullmatch(known.reason) or not known.path.isprintable():
        raise LineError("known.reason or known.path holds what cannot be printed")
    try:
        check(known, events=array("Q", line.events), size=len(body))
        phrase = known.reason.encode("latin-1")
    except ValueError:
        raise LineError("status, reason, events or ttl are none of a stored answer") from None
    request = Request("POST", b"", known.path, known.query, (), {})
    answer = Answer(request, dialect, Intent(known.model, stream=known.stream))
    head = Head(known.status, phrase, headers, given)
    keys = Keys(bytes.fromhex(line.key))
    ours = msgspec.structs.replace(terms, ttl=min(known.ttl, terms.ttl))
    keep = Keep(keys, ours, known.tag, known.path, known.query)
    upstream, provider, model = _name(known.upstream), _name(known.provider), _name(known.model)
    labels = Labels(upstream, provider, dialect.operation, model, known.stream)
    kept = judged(answer, head, body, keep, labels, known.stored)
    if not 0.0 < known.gap < _LONGEST_GAP:
        return kept
    entry = kept.entry
    paced = msgspec.structs.replace(entry.known, gap=known.gap)
    return msgspec.structs.replace(kept, entry=Entry(entry.key, paced, body, entry.events))


def judged(answer: Answer, head: Head, body: bytes, keep: Keep, labels: Labels, now: float) -> Kept:
    """The answer as the sidecar would store it, had it just come from an upstream. Raises LineError."""
    # As `Live` reads an answer that comes in pieces.
    answer.begin(head)
    ends = answer.feed(body, 0.0) + answer.close(0.0)
    end = end_of_body(whole=answer.whole, declared_error=answer.facts.error, status=head.status)
    recording = Recording.sealed(head, body, array("Q", ends), end)
    live = Live(recording, answer, Ask(keep=keep), labels)
    live.clean = True
    found = worth_keeping(live, keep, now)
    if isinstance(found, str):
        raise LineError(REASONS[found])
    return found


def _body(line: Line) -> bytes:
    if (line.body is None) is (line.body_base64 is None):
        raise LineError("expected either body or body_base64")
    return line.body.encode() if line.body is not None else line.body_base64 or b""


def _name(name: str | None) -> str | None:
    return name and name[:_NAME]
