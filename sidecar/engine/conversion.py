"""Making one answer of another: the same in the other mode."""

from array import array

import orjson

from sidecar.cache.exact import Convert
from sidecar.core.answer import Answer
from sidecar.core.dialects import recognise
from sidecar.core.entry import Entry, Known
from sidecar.core.folding import fold, unfold
from sidecar.core.types import Head, Intent, Request
from sidecar.engine.pump import Keep

_OF_STREAMS = frozenset({"content-type", "content-length", "cache-control", "x-accel-buffering"})
"""Header fields that go with a mode."""
_OF_BYTES = frozenset({"content-digest", "content-md5", "digest", "etag", "last-modified", "repr-digest"})
"""Those that go with the very bytes."""


def converter(keep: Keep, ask: bytes, *, stream: bool) -> Convert | None:
    """Makes an answer to `keep` of the same one in the other mode; None where there is none. `ask`: the body
    of the request."""
    if keep.keys.other is None:
        return None
    return lambda entry: _converted(entry, keep, ask, stream=stream)


def _converted(entry: Entry, keep: Keep, ask: bytes, *, stream: bool) -> Entry | None:
    """The same answer in the other mode; None where it would not be exactly that."""
    known = entry.known
    if known.stream is stream:
        return None
    if stream:
        body = unfold(known.dialect, entry.body, orjson.loads(ask), keep.query)
    else:
        body = fold(known.dialect, entry.body, known.query)
    if body is None:
        return None
    dialect = recognise("POST", keep.path)
    assert dialect is not None
    kind = _type_of(dialect.framing_of(keep.query)) if stream else "application/json"
    headers = [field for field in known.headers if field[0].lower() not in _OF_STREAMS | _OF_BYTES]
    headers.append(("Content-Type", kind))
    if not stream:
        headers.append(("Content-Length", str(len(body))))
    made = _reread(body, keep, headers, stream=stream)
    kept = {name: getattr(known, name) for name in _CARRIED}
    return Entry(
        keep.keys.exact,
        Known(
            status=known.status,
            reason=known.reason,
            headers=tuple(headers),
            path=keep.path,
            query=keep.query,
            stream=stream,
            events=made[0].events,
            deltas=made[0].deltas,
            first_kind=made[0].first_kind,
            **kept,
        ),
        body,
        made[1],
    )


_CARRIED = (
    "stored",
    "ttl",
    "dialect",
    "upstream",
    "provider",
    "operation",
    "model",
    "tag",
    "response_model",
    "finish",
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "reasoning_tokens",
    "took",
)


_TYPES = {"sse": "text/event-stream", "ndjson": "application/x-ndjson"}


def _type_of(framing: str | None) -> str:
    return _TYPES.get(framing or "", "application/json")


def _reread(
    body: bytes, keep: Keep, headers: list[tuple[str, str]], *, stream: bool
) -> tuple[Answer, "array[int]"]:
    """What a reader of the new bytes finds in them."""
    request = Request("POST", b"", keep.path, keep.query, (), {})
    answer = Answer(request, recognise("POST", keep.path), Intent(stream=stream))
    raw = tuple([(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers])
    answer.begin(Head(200, b"", raw, {name.lower(): value for name, value in raw}))
    ends = answer.feed(body, 0.0) + answer.close(0.0)
    return answer, array("Q", ends)
