"""What a line of a log is: a request's, another event's, somebody else's, or damaged.

Nothing in it is trusted. Lines come as the sidecar wrote them, behind a prefix (syslog, Kubernetes), or
wrapped in JSON by journald (`journalctl -o json`) or Docker.
"""

import re
from collections import Counter
from datetime import UTC, datetime
from typing import Annotated, Literal, Required, TypedDict

import msgspec

_YEAR_10000 = 253_402_300_800
_Number = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
"""Milliseconds up to thirty years: sums of them stay finite."""
_Count = Annotated[int, msgspec.Meta(ge=0, le=10**15)]
_Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]

Damage = Literal["json", "fields", "binary", "long", "message", "packed"]
DAMAGE: dict[Damage, str] = {
    "json": "cut off, or not JSON",
    "fields": "a request's, with a field that is missing or is not what it should be",
    "binary": "not text",
    "long": "longer than 1 MiB",
    "message": "journald's, without their message",
    "packed": "compressed files that are cut off or damaged",
}


class Exceeded(TypedDict, total=False):
    """By how much a request is over its budget."""

    budget: Required[str]
    ttft_ms: _Number | None
    total_ms: _Number | None
    phase: str | None


class Line(TypedDict, total=False):
    """What is read of a latency line. One of an older version may lack what is not required."""

    timestamp: Required[Annotated[datetime, msgspec.Meta(tz=True)]]
    event: Required[str]
    outcome: Required[str]
    total_ms: Required[_Number]
    request_id: str | None
    method: str | None
    path: str | None
    upstream: str | None
    model: str | None
    feature: str | None
    stream: bool | None
    status: _Count | None
    cache: str | None
    cache_kind: str | None
    resumed_from: _Count | None
    ttfb_ms: _Number | None
    ttft_ms: _Number | None
    itl_p50_ms: _Number | None
    itl_p99_ms: _Number | None
    itl_max_ms: _Number | None
    overhead_ms: _Number | None
    tokens_per_second: _Number | None
    phases: dict[str, _Number | None] | None
    input_tokens: _Count | None
    output_tokens: _Count | None
    retries: _Count | None
    budget_exceeded: Exceeded | None
    error: str | None


class _Any(msgspec.Struct):
    """Any JSON object."""

    event: msgspec.Raw = msgspec.Raw(b"")
    message: msgspec.Raw = msgspec.field(name="MESSAGE", default=msgspec.Raw(b""))
    log: msgspec.Raw = msgspec.Raw(b"")


class _Dropped(msgspec.Struct):
    lines: _Count = 1


_REQUEST = msgspec.json.Decoder(Line)
_ANY = msgspec.json.Decoder(_Any)
_BROKEN = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_EVENTS = 50
"""Names of other events that are told apart."""
_NAME = 60
_PLACES = 5
_OBJECT = re.compile(rb'\{\s*(?:"|\}|$)')
_CONSOLE = re.compile(r"\b\d\d:\d\d:\d\d  (?:✓|–|!|✗|\?) (?:\d{3}|---) \S".encode())
_BINARY = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f]")


class Log:
    """What the lines were."""

    def __init__(self) -> None:
        self.lines = 0
        self.requests = 0
        self.events: Counter[str] = Counter()
        """The sidecar's other events, and whatever else names one."""
        self.others = 0
        """Of other programs."""
        self.console = 0
        """For people, which nothing can be read from."""
        self.dropped = 0
        """Lines that were never written, because nobody read the log's pipe."""
        self.damaged: Counter[Damage] = Counter()
        self.places: list[tuple[str, int]] = []
        """The first damaged ones: file and line."""

    def read(self, raw: bytes | None, name: str, number: int) -> Line | None:
        """The request that a line is about, or None; then it is counted as what it is."""
        self.lines += 1
        if raw is None:
            self._damaged("long", name, number)
            return None
        try:
            found: Line | Damage | None = _request(raw)
        except _BROKEN:
            found = self._other(raw)
        if isinstance(found, dict):
            self.requests += 1
            return found
        if found is not None:
            self._damaged(found, name, number)
        return None

    def broken(self, name: str, number: int) -> None:
        """A compressed file is damaged."""
        self._damaged("packed", name, number)

    def _damaged(self, how: Damage, name: str, number: int) -> None:
        self.damaged[how] += 1
        if len(self.places) < _PLACES:
            self.places.append((name, number))

    def _other(self, raw: bytes, *, wrapped: bool = False) -> Line | Damage | None:
        start = _OBJECT.search(raw)
        if start is None:
            return self._text(raw)
        raw = raw[start.start() :]
        try:
            found = _ANY.decode(raw)
        except _BROKEN:
            return "json"
        event, message = bytes(found.event), bytes(found.message) or bytes(found.log)
        if event == b'"request"':
            try:
                return _request(raw)
            except _BROKEN:
                return "fields"
        if event:
            self._event(event, raw)
        elif message and not wrapped:
            # journald leaves out what is too large.
            return "message" if message == b"null" else self._wrapped(message)
        else:
            self.others += 1
        return None

    def _wrapped(self, message: bytes) -> Line | Damage | None:
        try:
            inner = msgspec.json.decode(message, type=str | list[_Byte])
        except _BROKEN:
            self.others += 1
            return None
        # journald has text that is not UTF-8, or is long, as a list of bytes.
        return self._other(bytes(inner) if isinstance(inner, list) else inner.encode(), wrapped=True)

    def _event(self, event: bytes, raw: bytes) -> None:
        try:
            name = msgspec.json.decode(event, type=str)[:_NAME]
            if name == "log_lines_dropped":
                self.dropped += msgspec.json.decode(raw, type=_Dropped).lines
        except _BROKEN:
            self.others += 1
            return
        self.events[name if name in self.events or len(self.events) < _EVENTS else "other"] += 1

    def _text(self, raw: bytes) -> Damage | None:
        """A line without a JSON object."""
        text = raw.strip()
        if not text:
            return None
        if _BINARY.search(text):
            return "binary"
        try:
            text.decode()
        except UnicodeDecodeError:
            return "binary"
        if text.endswith(b"}") and b'":' in text:
            return "json"  # the end of a line whose beginning is gone
        if _CONSOLE.search(text):
            self.console += 1
        else:
            self.others += 1
        return None


def _request(raw: bytes) -> Line:
    """Raises what is in `_BROKEN`."""
    line = _REQUEST.decode(raw)
    if line["event"] != "request" or not 0 <= line["timestamp"].timestamp() < _YEAR_10000:
        raise msgspec.ValidationError
    return line


def moment(seconds: float) -> str:
    """As in the log, to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
