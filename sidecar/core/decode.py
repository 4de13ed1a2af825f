"""A readable copy of a compressed body, for measuring. What the client gets stays compressed.

Bounded on purpose: a body that unpacks to far more than it weighs is given up on, not unpacked.
"""

import zlib

_WINDOW = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
_LIMIT = 8 << 20


class Decoder:
    """Incremental decoder of one body with a `Content-Encoding`."""

    __slots__ = ("_inflate", "_room", "failed")

    def __init__(self, encoding: bytes) -> None:
        window = _WINDOW.get(encoding.strip().lower())
        self._inflate = zlib.decompressobj(window) if window else None
        self._room = _LIMIT
        self.failed = window is None
        """No longer readable: an unknown encoding, damage, or too much of it."""

    def feed(self, chunk: bytes) -> bytes:
        """What `chunk` adds to the plain body; empty once `failed`."""
        if self.failed or self._inflate is None:
            return b""
        try:
            plain = self._inflate.decompress(chunk, self._room)
        except zlib.error:
            self.failed = True
            return b""
        self._room -= len(plain)
        # A second gzip member, or anything else after the first, is not worth following.
        if self._inflate.unconsumed_tail or self._inflate.unused_data or self._room <= 0:
            self.failed = True
            return b""
        return plain
