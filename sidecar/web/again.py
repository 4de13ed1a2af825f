"""Requests that come again in the very same bytes, for an answer that is at hand.

All that is known of such a request follows from its bytes, so nothing of it is parsed again: no HTTP, no
JSON, no key. Only the lines of its head that are about tracing may differ, which count for nothing. What
makes the answer usable is looked at every time, and whatever is not plain goes the long way, which gives the
same answer. That takes a third of the time.

The bytes must be one whole request, at the beginning of what the connection brings after the last one:
`Protocol` sees to that, or bytes inside of a request could pass for another one.
"""

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from sidecar.core.caching import Wish, age, freshness, hit_status
from sidecar.core.latency import Aside, next_request_id, trace_id
from sidecar.core.lru import Lru
from sidecar.core.types import Request
from sidecar.engine.answers import Answers
from sidecar.engine.pump import Keep, Live
from sidecar.serving.clients import Client, Clients
from sidecar.serving.front import Take

if TYPE_CHECKING:
    from sidecar.serving.visit import Visit
    from sidecar.web.reply import Reply
    from sidecar.web.server import Protocol

_ROOM = 8 << 20
"""Bytes of what is remembered."""
_FIXED = 2048
_SEEN = 8192
"""Requests that may come again."""
_MOST = 8
"""Lines about tracing that a request may have."""
_LONGEST = 64 << 10
"""Bytes of a body that can be written without looking whether the client keeps up: what transports buffer."""
_MARK = b"\r\nCache-Status: slipstream; hit; "
_TIMING = b"Server-Timing: read;dur=0.000, lookup;dur=0.000\r\n"


_TRACING = re.compile(
    rb"\r\n(traceparent|tracestate|baggage|sentry-trace|(?:x-)?(?:client-)?request-id|x-correlation-id|"
    rb"x-amzn-trace-id|x-cloud-trace-context|x-request-start|x-b3-[a-z]+|x-datadog-[a-z-]+)"
    # Not a line that goes on in the next one.
    rb":[ \t]*([\x21-\x7e][\x20-\x7e]{0,510})?(?=\r\n[^ \t])",
    re.IGNORECASE,
)
"""Whole header lines that differ from request to request, and of which only the trace's id is of use."""


class _Known(msgspec.Struct, frozen=True):
    """What there is to say to a request, apart from what changes."""

    client: Client | None
    """Whose it was, and is."""

    body: bytes
    """Of the entry that it was answered with; another entry under its key has another body."""
    keep: Keep
    wish: Wish
    live: Live | None
    """Whose id a client is told; None for what is no stream."""
    name: str | None
    before: bytes
    after: bytes
    line: Mapping[str, object]
    took: float
    """Seconds that it took to make the answer."""


class Again:
    """Remembers them. One per process."""

    def __init__(
        self,
        answers: Answers,
        secret: bytes,
        routed: frozenset[bytes],
        clients: Clients | None,
        take: Take,
        on_fault: Callable[[BaseException], None],
    ) -> None:
        """`routed`: header fields, in lower case, that choose an upstream. `clients`: who may ask. `take`
        gets the latency lines, `on_fault` mistakes of our own."""
        self._answers = answers
        self._secret = secret
        self._routed = routed
        self._clients = clients
        self._generation = (0, 0)
        self._take = take
        self._on_fault = on_fault
        self._known: Lru[_Known] = Lru(_ROOM)
        self._seen: Lru[bool] = Lru(_SEEN)
        """What was answered from memory once."""
        self._since = 0.0
        """When it was told to forget."""
        self._short = False

    def forget(self) -> None:
        """Remember nothing, nor what is being answered now by what was known before."""
        self._since = time.perf_counter()
        self._known.clear()
        self._seen.clear()

    def relieve(self, *, short: bool) -> None:
        """Whether memory is short: then nothing is remembered."""
        self._short = short
        self.forget()

    def remember(self, visit: "Visit", reply: "Reply", line: Mapping[str, object]) -> None:
        """A request was answered from memory, and this was its line. What comes the second time is kept."""
        hit, whole = visit.hit, reply.request_bytes
        if self._clients and visit.client is None:
            return
        if hit is None or not whole or not reply.keep_alive or max(reply.sent, len(whole)) > _LONGEST:
            return
        if self._short or visit.trace.started <= self._since:
            return
        self._check_generation()
        name, _ = self._name(whole)
        if self._seen.pop(name) is None:
            # Those that come in other bytes each time cost no more than this.
            self._seen.put(name, value=True, size=1)
            return
        if not _is(whole, visit.came or hit.request, hit.body):
            return
        if reply.sent != len(hit.entry.body) or line["outcome"] != "complete":
            return  # it has ids in it, or is not all of the answer
        head = reply.head
        # Ours is the last one: the upstream may be a sidecar, too.
        before, _, rest = head.rpartition(_MARK)
        fields = [field for field in rest.split(b"\r\n")[2:] if field]  # without `Cache-Status` and `Age`
        kept = [field + b"\r\n" for field in fields if not field.startswith(b"Server-Timing: ")]
        body = hit.entry.body
        if b"Transfer-Encoding: chunked" in fields:
            framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        else:
            framed = body
        known = _Known(
            client=visit.client,
            body=body,
            keep=hit.keep,
            wish=hit.wish,
            live=hit.live if visit.trace.stream_id is not None else None,
            name=visit.trace.stream_id,
            before=before + b"\r\nCache-Status: ",
            after=b"".join([*kept, _TIMING, b"\r\n", framed]),
            line=line,
            took=visit.took,
        )
        self._known.put(name, known, _FIXED + len(head) + len(body))

    def serve(self, protocol: "Protocol", data: bytes) -> bool:
        """Answer a request, if it is one of those; returns whether it was."""
        if len(data) > _LONGEST or not len(self._known):
            return False
        self._check_generation()
        begun = time.perf_counter()
        name, parent = self._name(data)
        known, transport = self._known.get(name), protocol.transport
        if known is None or transport is None or protocol.writing_paused or transport.is_closing():
            return False
        answers, keep = self._answers, known.keep
        entry = answers.hot(keep)
        if entry is None or entry.body is not known.body:
            self._known.pop(name)
            return False
        if known.live is not None and not answers.holds(known.live, known.name or ""):
            return False  # the id it would be told is no longer good
        now = answers.clock()
        if freshness(entry.known, known.wish, keep.terms, now) != "fresh":
            return False
        status = hit_status(entry.known, keep.terms, now)
        if known.client is not None and not self._passes(known.client):
            return False  # the long way tells why
        head = b"%b%b\r\nAge: %b\r\n" % (known.before, status, age(entry.known, now))
        transport.write(head + known.after)
        answers.count("hit_memory")
        try:
            self._tell(known, parent, time.perf_counter() - begun)
        except Exception as error:  # noqa: BLE001 - reason: the answer is out; its line must not disturb it
            self._on_fault(error)
        return True

    def _check_generation(self) -> None:
        """After a purge nothing of what was there is to be found, here either; and who asks with the same
        bytes may be somebody else once the clients are other ones."""
        clients = self._clients.generation if self._clients is not None else 0
        generation = (self._answers.generation(), clients)
        if generation != self._generation:
            self._generation = generation
            self._known.clear()

    def _passes(self, client: Client) -> bool:
        return self._clients is not None and self._clients.passes(client)

    def _name(self, data: bytes) -> tuple[bytes, bytes | None]:
        """What stands for a request, which itself holds a credential and a prompt, and is nobody's to keep;
        and its `traceparent`."""
        start, end = data.find(b"\r\n"), data.find(b"\r\n\r\n") + 2
        parent = None
        if 0 < start < end:
            head = data[start : end + 2]
            lines = {name.lower(): value for name, value in _TRACING.findall(head)}
            if lines and not lines.keys() & self._routed:
                kept, count = _TRACING.subn(b"", head)
                if count == len(lines) <= _MOST:  # a field that is repeated says something else
                    parent = lines.get(b"traceparent", b"").strip()
                    data = data[:start] + kept + data[end + 2 :]
        return hashlib.blake2b(data, key=self._secret, digest_size=32).digest(), parent

    def _tell(self, known: _Known, parent: bytes | None, took: float) -> None:
        milliseconds = int(took * 1e6 + 0.5) / 1000
        line: dict[str, Any] = {
            **known.line,
            "request_id": next_request_id(),
            "trace_id": trace_id(parent),
            "ttfb_ms": milliseconds,
            "total_ms": milliseconds,
            "overhead_ms": milliseconds,
        }
        if line["ttft_ms"] is not None:
            line["ttft_ms"] = milliseconds
        self._take(line, Aside(saved=known.took, parent=parent))


def _is(whole: bytes, request: Request, body: bytes) -> bool:
    """Whether these bytes are that request, and nothing else: what is remembered wrongly would be answered
    wrongly ever after."""
    head, _, rest = whole.partition(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    named = [(name, value.strip(b" \t")) for name, _, value in [field.partition(b":") for field in fields]]
    asked = b"%b %b HTTP/1.%d" % (request.method.encode(), request.target, 0 if request.http10 else 1)
    return line == asked and named == list(request.headers) and rest == body
