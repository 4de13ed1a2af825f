"""Values as people write them into a configuration, and what to tell them when one is wrong.

Times (`250ms`, `10m`), sizes (`64MiB`), URLs of upstreams.
"""

import difflib
import math
import re
from ipaddress import ip_address
from typing import TypeGuard
from urllib.parse import urlsplit

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_SECONDS = {"ms": 0.001, None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|[kK]B|MB|GB|[kK]iB|MiB|GiB)?")
_BYTES = {
    None: 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
}
_LONG = 100
_PATIENCE = {"cancel": 0.0, "finish": math.inf}


class ConfigError(Exception):
    """A configuration that cannot be used; the message is one line for people, without secrets."""


class Duration(float):
    """Seconds, zero or more."""

    @classmethod
    def parse(cls, value: object) -> "Duration":
        """Raises ValueError with what would be right."""
        if _is_number(value):
            return cls(value)
        found = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
        if found is None:
            raise ValueError("expected a time such as 30, 250ms or 10m")
        return cls(float(found[1]) * _SECONDS[found[2]])


class Patience(float):
    """What becomes of an upstream call when its client leaves, as the seconds it may go on without one."""

    @classmethod
    def parse(cls, value: object) -> "Patience":
        """Raises ValueError with what would be right."""
        text = value.strip().lower() if isinstance(value, str) else ""
        if text in _PATIENCE:
            return cls(_PATIENCE[text])
        name, found, seconds = text.partition("=")
        if name.strip() == "grace" and found and len(seconds) <= _LONG:
            return cls(Duration.parse(seconds))
        raise ValueError("expected cancel, finish, or grace=N with a time such as 30 or 2m")

    def __str__(self) -> str:
        plain = {seconds: text for text, seconds in _PATIENCE.items()}
        return plain.get(float(self)) or f"grace={float(self):g}"


class Size(int):
    """Bytes, zero or more."""

    @classmethod
    def parse(cls, value: object) -> "Size":
        """Raises ValueError with what would be right."""
        if _is_number(value):
            return cls(value)
        found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
        if found is None:
            raise ValueError("expected a size such as 65536, 64KiB or 1GiB")
        unit = found[2].upper() if found[2] else None
        return cls(float(found[1]) * _BYTES[unit])


def _is_number(value: object) -> TypeGuard[int | float]:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def upstream_url(key: str, url: str, example: str = "https://api.openai.com") -> str:
    """An upstream's URL as written, checked. Raises ConfigError."""
    remedy = f"expected a URL such as {example}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError(f"{key}: {remedy}") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"{key}: a URL with user name or password is not supported; {remedy}")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ConfigError(f"{key}{shown(url) if '://' in url else ''}: {remedy}")
    if parts.query or parts.fragment or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError(f"{key}: {remedy}, without query or fragment")
    return url


def shown(value: object) -> str:
    """The value for an error message, unless it may hold a credential, as parts of URLs do."""
    text = repr(value)
    return "" if len(text) > _LONG or any(mark in text for mark in "@?#") else f" = {text}"


def plain(error: Exception) -> str:
    """msgspec's message, as a remedy."""
    message = str(error).partition(" - at ")[0]
    return message[:1].lower() + message[1:]


def nearest(name: str, known: list[str]) -> str:
    """How to go on after an unknown name."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
