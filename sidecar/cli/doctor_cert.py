"""Until when a certificate is valid, and what that means.

The standard library tells it only of certificates that it trusts; one that has expired is not, and one of our
own may be for others to trust. So the two dates are read out of its DER form (RFC 5280, 4.1).
"""

import ssl
import time
from datetime import UTC, datetime
from pathlib import Path

SOON = 14 * 86400
"""Seconds before its end from which on a certificate is worth a warning: renewals run weeks before that."""
_SEQUENCE, _VERSION, _UTC_TIME, _TIME = 0x30, 0xA0, 0x17, 0x18
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def not_after(der: bytes) -> float:
    """When it expires, as unix time. Raises ValueError for what is no certificate."""
    try:
        _, certificate, _ = _take(der)
        _, rest, _ = _take(certificate)  # what is signed
        tag, _, after = _take(rest)
        if tag == _VERSION:
            rest = after
        for _ in ("serial number", "algorithm", "issuer"):
            _, _, rest = _take(rest)
        tag, validity, _ = _take(rest)
        _, _, validity = _take(validity)
        kind, text, _ = _take(validity)
    except IndexError:
        raise ValueError("no certificate") from None
    if tag != _SEQUENCE or kind not in (_UTC_TIME, _TIME):
        raise ValueError("no certificate")
    digits = text.decode("ascii").removesuffix("Z")
    if kind == _UTC_TIME:  # two digits of the year, which turn over in 2050
        digits = ("20" if digits[:2] < "50" else "19") + digits
    return datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp()


def first_of(file: Path) -> bytes:
    """The first certificate of a PEM file, which is the server's own. Raises OSError, ValueError."""
    text = file.read_text(encoding="ascii", errors="replace")
    begin, end = text.find(_BEGIN), text.find(_END)
    if begin < 0 or end < begin:
        raise ValueError("it holds no certificate")
    return ssl.PEM_cert_to_DER_cert(text[begin : end + len(_END)] + "\n")


def lasts(expires: float, now: float | None = None) -> str:
    """For people: for how long from now on, or since when no more."""
    left = expires - (time.time() if now is None else now)
    day = datetime.fromtimestamp(expires, UTC).date().isoformat()
    if left <= 0:
        return f"expired on {day}"
    days = int(left // 86400)
    return f"valid until {day} ({days} day{'' if days == 1 else 's'} more)"


def _take(data: bytes) -> tuple[int, bytes, bytes]:
    """The first element: its tag, its content, and what follows it. Raises IndexError, ValueError."""
    tag, length, start = data[0], data[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start])
    if len(data) < start + length:
        raise ValueError("no certificate")
    return tag, data[start : start + length], data[start + length :]
