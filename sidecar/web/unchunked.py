"""An answer of another worker for a client of HTTP/1.0, which knows no chunks: the same bytes without them.

The other worker is asked by HTTP/1.1, or nobody could tell an answer that it has cut from a whole one.
"""

import httptools

from sidecar.core.headers import render


class Unchunked:
    """One answer."""

    def __init__(self, method: str) -> None:
        self.whole = False
        """It has come to its end."""
        self.to_close = False
        """The end of the connection is the end of the body, as the client gets it."""
        self._bodiless = method == "HEAD"
        self._parser = httptools.HttpResponseParser(self)
        self._fields: list[tuple[bytes, bytes]] = []
        self._reason = b""
        self._out: list[bytes] = []

    def take(self, data: bytes) -> bytes:
        """What the client gets for these bytes of the answer. Raises httptools.HttpParserError."""
        self._parser.feed_data(data)
        out, self._out = self._out, []
        return b"".join(out)

    # What the parser calls.

    def on_status(self, status: bytes) -> None:
        self._reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"transfer-encoding":
            self.to_close = True
        else:
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        start = b"HTTP/1.1 %d %b" % (self._parser.get_status_code(), self._reason)
        self._out.append(render(start, self._fields))
        self.whole = self._bodiless

    def on_body(self, body: bytes) -> None:
        self._out.append(body)

    def on_message_complete(self) -> None:
        self.whole = True
