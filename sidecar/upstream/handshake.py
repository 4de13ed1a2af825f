"""A call that asks the upstream to leave HTTP for another protocol (RFC 9110, 7.8), and what comes of it.

An answer other than 101 is an answer like any other. After a 101 the connection is nobody's here: it is
handed over as a `Wire`, with whatever came right behind the head, and never sees a pool or a parser again.
"""

from sidecar.core.errors import UpstreamError
from sidecar.core.headers import index
from sidecar.core.types import Head
from sidecar.engine.wire import Wire
from sidecar.upstream.exchange import REASON, Exchange


class Handshake(Exchange):
    """See `Exchange`; made for calls with `upgrade`."""

    wire: Wire | None = None
    """The connection, after a 101. Whoever takes it sets this to None."""

    def close(self) -> None:
        """See `engine.source.Source`."""
        wire, self.wire = self.wire, None
        if wire is not None:
            wire.close(0.0)
        super().close()

    def on_headers_complete(self) -> None:
        parser = self._parser
        assert parser is not None
        if self._done or parser.get_status_code() != 101:
            super().on_headers_complete()
            return
        headers = tuple(self._headers)
        fields = index(headers)
        granted = parser.should_upgrade() and fields[b"upgrade"].lower() == self._call.upgrade
        # A 101 has no body (RFC 9110, 15.2). One that announces it would leave in doubt where frames begin.
        framed = b"transfer-encoding" in fields or fields.get(b"content-length", b"0") != b"0"
        if not granted or framed or parser.get_http_version() != "1.1" or not REASON.fullmatch(self._reason):
            detail = "it switches protocols, but not as it was asked to"
            self._fault = UpstreamError("upstream_protocol", detail)
            raise self._fault
        self.head = Head(101, self._reason, headers, fields)
        self.head_at = self.arrived

    def _switched(self, rest: bytes) -> None:
        connection, self._connection = self._connection, None
        assert connection is not None
        transport, connection.transport = connection.transport, None  # releasing it must not close it
        self._release(connection, reusable=False)
        assert transport is not None
        self.wire = Wire(transport, rest)
        self._overhead -= len(rest)
        self._has_head = self._overhead <= self._limit
        if not self._has_head:
            self._fault = UpstreamError("upstream_protocol", "its headers are too large")
        self._finished()
