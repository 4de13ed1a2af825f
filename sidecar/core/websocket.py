"""Where the frames of a WebSocket begin and end (RFC 6455, 5.2), in one direction of a connection.

Only headers are read, and the first two bytes of a close frame; payloads are counted and skipped, whatever
their size. Nothing is checked that a peer has to check: what is relayed is the two ends' own business,
reserved opcodes, extensions and text that is no UTF-8 included.
"""

CLOSE = 0x8
_FIN = 0x80
_MASKED = 0x80
_CONTROL = 0x8
_LONG = 126
_LONGER = 127
_NO_CODE = 1005
"""Of a close frame without a code (RFC 6455, 7.4.1)."""
_CODES = range(1000, 5000)
"""Those that there are (RFC 6455, 7.4.2); anything else is a peer's mistake, and none."""
_MOST = 125
"""Bytes of payload in a control frame (RFC 6455, 5.5)."""


class Frames:
    """Follows the bytes of one direction, however they are cut up."""

    __slots__ = (
        "_close",
        "_code",
        "_coded",
        "_header",
        "_left",
        "_mask",
        "_whole",
        "close_code",
        "lost",
        "messages",
    )

    def __init__(self) -> None:
        self._header = b""
        """What came of a header that is not complete."""
        self._left = 0
        """Bytes of payload that are still to come of the current frame."""
        self._close = False
        """The current frame is a close frame."""
        self._coded = False
        """It is one as it has to be, whose code counts."""
        self._whole = False
        """The current frame is the last one of a message."""
        self._mask = b""
        self._code = b""
        """What came of the code in a close frame, as it came."""
        self.messages = 0
        """Data messages that have come to their end."""
        self.close_code: int | None = None
        """What the first close frame says, once all of it was there; 1005 if it has no valid code."""
        self.lost = False
        """These are no frames: a length was impossible. Nothing more is read into them."""

    @property
    def at_boundary(self) -> bool:
        """Whether a frame of somebody else's may be put in here."""
        return not (self._left or self._header or self.lost)

    def feed(self, data: bytes) -> None:
        """The next bytes."""
        at, size = 0, len(data)
        while at < size:
            if self.at_boundary:
                at = self._skip_short(data, at)
            at = self.feed_frame(data, at)

    def _skip_short(self, data: bytes, at: int) -> int:
        """Read the short frames from `at` on of which all is there; returns where the last of them ends. A
        hundred thousand of them may come at once, and nothing else is served meanwhile."""
        size, messages = len(data), 0
        while at + 1 < size:
            first, second = data[at], data[at + 1]
            length = second & 0x7F
            end = at + 2 + length + (4 if second & _MASKED else 0)
            if length >= _LONG or end > size or first & 0xF == CLOSE:
                break
            if first & (_FIN | _CONTROL) == _FIN:
                messages += 1
            at = end
        self.messages += messages
        return at

    def feed_frame(self, data: bytes, at: int = 0) -> int:
        """The next bytes, from `at` on, up to the end of a frame, or all of them; returns how far that
        was."""
        size = len(data)
        if self.lost or at == size:
            return size
        if not self._left:
            at = self._read_header(data, at)
            if self._header or self.lost:
                return size
        if self._left:
            step = min(self._left, size - at)
            if self._coded and len(self._code) < 2:
                self._code += data[at : at + min(step, 2 - len(self._code))]
            self._left -= step
            at += step
            if self._left:
                return at
        if self._whole:
            self.messages += 1
        if self._close and self.close_code is None:
            self.close_code = self._read_code()
        return at

    def _read_header(self, data: bytes, at: int) -> int:
        """Read a header that begins, or goes on, at `at`; returns where it ends. What is not complete is
        kept in `_header`."""
        header = self._header
        if header:
            begun = len(header)
            header += data[at : at + 14 - begun]
            start = 0
        else:
            begun, header, start = 0, data, at
        there = len(header) - start
        needed = 2 if there < 2 else _length_of_header(header[start + 1])
        if there < needed:
            self._header = header[start:]
            return len(data)
        first, second = header[start], header[start + 1]
        length, behind = second & 0x7F, start + 2
        if length == _LONG:
            length, behind = int.from_bytes(header[behind : behind + 2], "big"), behind + 2
        elif length == _LONGER:
            length, behind = int.from_bytes(header[behind : behind + 8], "big"), behind + 8
            if length >> 63:
                self.lost = True
        self._left = length
        self._close = first & 0xF == CLOSE
        self._coded = self._close and length <= _MOST
        self._whole = bool(first & _FIN) and not first & _CONTROL
        if self._close:
            self._code = b""
            self._mask = header[behind : behind + 2] if second & _MASKED else b"\0\0"
        self._header = b""
        return at + needed - begun

    def _read_code(self) -> int:
        if len(self._code) < 2:
            return _NO_CODE
        code = int.from_bytes(self._code, "big") ^ int.from_bytes(self._mask, "big")
        return code if code in _CODES else _NO_CODE


def _length_of_header(second: int) -> int:
    """Bytes of a header whose second byte is this one."""
    length = second & 0x7F
    return 2 + (2 if length == _LONG else 8 if length == _LONGER else 0) + (4 if second & _MASKED else 0)


def close_frame(code: int, *, mask: bytes | None = None) -> bytes:
    """A close frame with that code and nothing else. `mask`: four bytes, for one that a client sends."""
    said = code.to_bytes(2, "big")
    if mask is None:
        return bytes((_FIN | CLOSE, 2)) + said
    masked = bytes(byte ^ key for byte, key in zip(said, mask, strict=False))
    return bytes((_FIN | CLOSE, _MASKED | 2)) + mask + masked
