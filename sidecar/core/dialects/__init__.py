"""The registry: every module of this package that has `DIALECTS` is part of it."""

import functools
import pkgutil
from importlib import import_module

from sidecar.core.dialects.app import APP
from sidecar.core.dialects.base import Dialect, Facts
from sidecar.core.dialects.other import OTHER_SSE

__all__ = ["APP", "DIALECTS", "OTHER_SSE", "Dialect", "Facts", "by_name", "recognise"]


def _registered() -> tuple[Dialect, ...]:
    modules = (import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return tuple(dialect for module in modules for dialect in getattr(module, "DIALECTS", ()))


DIALECTS = _registered()
_REMEMBERED = 256
"""Characters of a path whose format is remembered."""
_BY_NAME = {dialect.name: dialect for dialect in (*DIALECTS, APP)}


def recognise(method: str, path: str) -> Dialect | None:
    """The wire format of a request, or None when it is no model call, as all but POSTs are. No path
    is claimed twice."""
    if method != "POST":
        return None
    # Clients choose paths: what is remembered of them is bounded.
    return _claiming(path) if len(path) <= _REMEMBERED else _claiming.__wrapped__(path)


@functools.lru_cache(maxsize=512)
def _claiming(path: str) -> Dialect | None:
    return next((dialect for dialect in DIALECTS if dialect.matches(path)), None)


def by_name(name: object) -> Dialect | None:
    """The wire format of that name, or None."""
    return _BY_NAME.get(name) if isinstance(name, str) else None
