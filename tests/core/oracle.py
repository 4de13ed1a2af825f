"""What the framers are compared with: httpx-sse's decoder, and line-by-line models of where events are.

httpx-sse finds the events; the lines it gets are split on LF, CR and CRLF only, as the standard has it
(its `EventSource.iter_sse` would take httpx's lines, which also end at U+2028 and others).
"""

import json
import re
from typing import Any

from httpx_sse._decoders import SSEDecoder
from hypothesis import strategies as st

BOM = b"\xef\xbb\xbf"
_LINE = re.compile(rb"([^\r\n]*)(\r\n|\n|\r)")


def events(body: bytes) -> list[tuple[str, str, str]]:
    """(type, data, last id) of every event a client is given."""
    decoder = SSEDecoder()
    text = body.removeprefix(BOM).decode("utf-8", "replace")
    *lines, _unfinished = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    found = []
    for line in lines:
        # The standard dispatches nothing without data; httpx-sse also hands out what has only an id.
        has_data = bool(decoder._data)
        event = decoder.decode(line)
        if event is not None and has_data:
            found.append((event.event, event.data, event.id))
    return found


def typed(body: bytes) -> list[tuple[str, str]]:
    """(type, data) of every event a client is given."""
    return [event[:2] for event in events(body)]


def blocks(body: bytes) -> list[tuple[int, int, int]]:
    """(start, start of the blank line, end) of every run of lines that a blank line ends."""
    found, start = [], None
    for line in _LINE.finditer(body):
        if line[1]:
            start = line.start() if start is None else start
        elif start is not None:
            found.append((start, line.start(), line.end()))
            start = None
    return found


def loads(data: bytes) -> Any:
    return json.loads(data)


_FIELDS = [
    b"data: x",
    b"data: x",
    b"data:  two spaces",
    b'data: {"a":"\\n[]"}',
    b"data:",
    b"data",
    b"data: \xe2\x80\xa8 \xc2\x85 \x0b\x0c",
    b"data: \xff\xfe\xe2\x80",
    b"data: \xe4\xbd\xa0\xf0\x9f\x98\x80",
    b"data: \xef\xbb\xbfnot a mark here",
    b"dataset: no",
    b" data: indented",
    b": comment",
    b":",
    b"event: e",
    b"id: upstream",
    b"retry: 10",
    b"unknown",
]
_CONTENT = st.one_of(
    st.sampled_from([b"", b"", b""]),
    st.sampled_from(_FIELDS),
    st.binary(max_size=6).map(lambda raw: raw.replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b"")),
)


@st.composite
def streams(draw: st.DrawFn, ends: tuple[bytes, ...] = (b"\n", b"\r", b"\r\n"), *, bom: bool = True) -> bytes:
    """Event streams as upstreams may send them: any fields, any line ends, cut off anywhere."""
    chosen = draw(st.one_of(*[st.just((end,)) for end in ends], st.just(ends)))
    lines = draw(st.lists(st.tuples(_CONTENT, st.sampled_from(chosen)), max_size=14))
    mark = draw(st.sampled_from([b"", b"", BOM])) if bom else b""
    rest = draw(st.sampled_from([b"", b"", b"data: half", b"da", b":"]))
    return mark + b"".join(content + end for content, end in lines) + rest


@st.composite
def split(draw: st.DrawFn, bodies: st.SearchStrategy[bytes]) -> tuple[bytes, list[bytes]]:
    """A body, and the same in pieces; some of them empty."""
    body = draw(bodies)
    if draw(st.integers(0, 3)) == 0:
        return body, [body[at : at + 1] for at in range(len(body))]
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=8)))
    return body, [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
