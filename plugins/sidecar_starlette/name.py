"""What tells an app from others: their paths and requests may look the same, and their answers must not
mix."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

_DEEPEST = 32


def name_of(app: object, *settings: object) -> str:
    """16 hexadecimal digits for an app: its routes, whose code they run, and the settings that it is used
    with. It is the same in every process that runs it."""
    said = [*_signature(app, _DEEPEST), *[repr(each) for each in settings if not callable(each)]]
    return _digest(*said)


def started_as() -> str:
    """The same for how this process was started: where, and with which command line."""
    return _digest(str(Path.cwd()), *sys.argv)


def _digest(*said: str) -> str:
    whole = b"".join([b"%d:%b" % (len(part), part) for part in (_bytes(each) for each in said)])
    return hashlib.blake2b(whole, digest_size=8).hexdigest()


def _bytes(said: str) -> bytes:
    return said.encode(errors="surrogateescape")


def _signature(app: object, depth: int) -> Iterator[str]:
    """Through middleware, which have what they wrap as `app`, to routes and what they lead to."""
    yield f"{type(app).__module__}.{type(app).__qualname__}"
    if not depth:
        return
    endpoint = getattr(app, "endpoint", None) or (app if hasattr(app, "__code__") else None)
    if endpoint is not None:
        yield f"{getattr(endpoint, '__module__', '')}.{getattr(endpoint, '__qualname__', '')}"
    yield str(getattr(app, "path", ""))
    for route in getattr(app, "routes", None) or ():
        yield from _signature(route, depth - 1)
    inner = getattr(app, "app", None)
    if inner is not None and endpoint is None and not getattr(app, "routes", None):
        yield from _signature(inner, depth - 1)
