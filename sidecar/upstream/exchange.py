"""One call on one upstream connection: writes the request, parses the answer, hands out its body.

Strict about where the answer ends (RFC 9112, 6.3), because a wrong guess gives one client another's
bytes. What cannot be framed without doubt is an error: Content-Length with Transfer-Encoding, differing
lengths, codings other than `chunked`, control characters in the head (llhttp refuses these itself).
"""

import asyncio
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import httptools

from sidecar.config import Timeouts
from sidecar.core.errors import RefusedError, UpstreamError
from sidecar.core.headers import index, render
from sidecar.core.types import Head
from sidecar.engine.source import Call
from sidecar.upstream.upload import Upload

if TYPE_CHECKING:
    from sidecar.upstream.client import Connection

REASON = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_BETWEEN = 64 * 1024  # bytes of chunk headers, extensions and trailers without any body between them


class Exchange:
    """An answer being received; see `engine.source.Source`."""

    def __init__(
        self,
        call: Call,
        connection: "Connection",
        loop: asyncio.AbstractEventLoop,
        timeouts: Timeouts,
        limit: int,
        release: Callable[..., None],
    ) -> None:
        self.head: Head
        self.sent_at = self.head_at = 0.0
        self.arrived = 0.0  # when the latest bytes came; 0 while not one has
        self._call = call
        self._connection: Connection | None = connection
        self._timeouts = timeouts
        self._limit = limit
        self._release = release
        self._loop = loop
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._reason = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._overhead = 0  # bytes since the request, or since the last bytes of body, that were no body
        self._has_head = False
        self._interim = self._chunked = False
        self._framed = False
        """The answer says where it ends; otherwise it ends with the connection."""
        self._done = self._excess = False
        self._last = b"\r\n\r\n"
        """What the answer's last bytes on the wire are: of its head or last chunk, or of its body."""
        self._early: list[bytes] = []
        self._take: Callable[[bytes], None] | None = None
        self._paused = False
        self._fault: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._upload: Upload | None = None

    # The request.

    def send(self) -> None:
        """Write the request, or its beginning when the body streams past."""
        call = self._call
        assert self._connection is not None and self._connection.transport is not None
        transport = self._connection.transport
        try:
            head = render(call.method.encode() + b" " + call.target + b" HTTP/1.1", call.headers)
        except ValueError as error:
            raise RefusedError("bad_request", str(error)) from None
        # Before the write: on a loaded machine the kernel may deliver the answer before it returns.
        self.sent_at = time.perf_counter()
        first = b"%x\r\n%b\r\n" % (len(call.body), call.body) if call.chunked and call.body else call.body
        if len(first) < 65536:
            transport.write(head + first)
        else:
            transport.write(head)
            transport.write(first)
        if call.more is not None:
            self._upload = Upload(call, self._connection, self._fail)

    # The answer, as the engine takes it.

    async def until_head(self) -> None:
        """Wait for the head. Raises UpstreamError."""
        while not self._has_head:
            self._raise_fault()
            await self._changed()

    async def deliver(self, take: Callable[[bytes], None]) -> None:
        early, self._early = self._early, []
        for data in early:
            take(data)
        self._take = take
        while not self._done and self._fault is None:
            await self._changed()
        self._raise_fault()

    def pause(self) -> None:
        transport = self._connection.transport if self._connection is not None else None
        if not self._paused and transport is not None and not transport.is_closing():
            transport.pause_reading()
            self._paused = True

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            # The time the client took to make room is not the upstream's silence.
            self.arrived = time.perf_counter()
            if self._connection is not None and self._connection.transport is not None:
                self._connection.transport.resume_reading()

    def close(self) -> None:
        """Abort what is unfinished. Idempotent."""
        if not self._done and self._fault is None:
            self._fault = UpstreamError("upstream_closed", "closed by the sidecar")
        self._let_go(reusable=False)

    def _raise_fault(self) -> None:
        fault, self._fault = self._fault, None  # a traceback would hold this object, and this object it
        if fault is not None:
            try:
                raise fault
            finally:
                del fault

    async def _changed(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What the connection tells.

    def received(self, data: bytes) -> None:
        self.arrived = time.perf_counter()
        self._overhead += len(data)
        parser = self._parser
        assert parser is not None
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as found:
            self._switched(data[found.args[0] :])
            return
        except httptools.HttpParserCallbackError as error:
            # Raised by our own callbacks: a verdict on the head, or a mistake of ours, which must show.
            self._fail(self._fault or error.__context__ or error)
        except httptools.HttpParserError as error:
            self._excess = True
            self._fail(UpstreamError("upstream_protocol", str(error)))
        if self._done:
            # llhttp skips line ends after a message; what is not part of one must not be there at all.
            self._excess = self._excess or not data.endswith(self._last)
            self._finished()
        elif self._overhead > (_BETWEEN if self._has_head else self._limit):
            self._fail(UpstreamError("upstream_protocol", "its headers or trailers are too large"))

    def eof(self) -> None:
        if self._has_head and not self._framed and not self._done:
            self._done = True
            self._finished()
        else:
            self.lost()

    def lost(self) -> None:
        when = "in the middle of its answer" if self._has_head else "before it answered"
        self._fail(UpstreamError("upstream_closed", f"it closed the connection {when}"))

    def _switched(self, rest: bytes) -> None:
        """What is left, and what follows, is no HTTP any more; see `Handshake`, who has asked for that."""

    # Callbacks of the parser.

    def on_message_begin(self) -> None:
        if self._done:
            self._excess = True
        self._interim = False

    def on_status(self, reason: bytes) -> None:
        if not self._has_head:
            self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._has_head:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._done:
            return
        parser = self._parser
        assert parser is not None
        status = parser.get_status_code()
        version = parser.get_http_version()
        odd = status == 101 or version not in ("1.0", "1.1") or not REASON.fullmatch(self._reason)
        if odd or not 100 <= status <= 999:
            self._fault = UpstreamError("upstream_protocol", f"status {status} of HTTP/{version}")
            raise self._fault
        if status < 200:
            # 100, 102 and 103 are between the upstream and us; the final head follows.
            self._interim = True
            self._reason = b""
            self._headers.clear()
            return
        headers = tuple(self._headers)
        fields = index(headers)
        coding = fields.get(b"transfer-encoding")
        if coding is not None and (coding.lower() != b"chunked" or version == "1.0"):
            self._fault = UpstreamError("upstream_protocol", "its Transfer-Encoding is not understood")
            raise self._fault
        self._chunked = coding is not None
        self._framed = self._chunked or b"content-length" in fields
        self.head = Head(status, self._reason, headers, fields)
        self.head_at = self.arrived
        self._has_head = True
        if self._call.method == "HEAD" or status in (204, 304):
            self._done = self._framed = True
            # Some send a body all the same. Nothing after this head belongs to anyone.
            self._excess = True
        self._wake()

    def on_body(self, data: bytes) -> None:
        if self._done:
            self._excess = True
            return
        self._overhead = 0
        if not self._chunked:
            self._last = data
        if self._take is not None:
            self._take(data)
        else:
            # Came with the head, before anybody could ask for it: wait until somebody does.
            self._early.append(data)

    def on_message_complete(self) -> None:
        if self._interim or self._done:
            return
        self._done = True
        if self._parser is None or not self._parser.should_keep_alive():
            self._excess = True

    # Ends.

    def _finished(self) -> None:
        transport = self._connection.transport if self._connection is not None else None
        # What is left of this request would be taken for the beginning of the next one.
        sent = self._upload is None or self._upload.whole
        sent = sent and transport is not None and not transport.get_write_buffer_size()
        self._let_go(reusable=self._framed and not self._excess and sent)
        self._wake()

    def _fail(self, fault: BaseException) -> None:
        if self._done:
            return
        self._fault = self._fault or fault
        self._let_go(reusable=False)
        self._wake()

    def _let_go(self, *, reusable: bool) -> None:
        # Upload and parser hold this object, and it holds them: without a cut, every request would leave
        # its body and headers to the garbage collector.
        if self._upload is not None:
            self._upload.stop()
            self._upload = None
        self._parser = None
        connection, self._connection = self._connection, None
        if connection is not None:
            reusable = reusable and connection.transport is not None
            if self._paused and reusable and connection.transport is not None:
                connection.transport.resume_reading()
            self._release(connection, reusable=reusable)

    def check(self, now: float) -> None:
        """Whether the time is up; asked by the client's clock now and then, not timed per chunk."""
        upload = self._upload
        if self._paused or (upload is not None and upload.running and not upload.blocked):
            return  # it is the client that is slow, and it has a clock of its own
        # The head has to be whole in time; a head that drips gets no more time than one that does not come.
        begun = self.arrived if self._has_head else self.sent_at
        if upload is not None:
            begun = max(begun, upload.at)
        allowed = self._timeouts.stall if self._has_head else self._timeouts.head
        if now - begun < allowed:
            return
        late = "no answer within {:g} s (timeouts.head)", "nothing came for {:g} s (timeouts.stall)"
        kind = "upstream_stalled" if self._has_head else "upstream_timeout"
        self._fail(UpstreamError(kind, late[self._has_head].format(allowed)))
