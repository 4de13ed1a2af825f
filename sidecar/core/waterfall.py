"""One request's time as pieces that follow each other, made of its latency line.

The line says how long each phase took; they come in one order. What lies between them and was waited for has
a name here, too: `first_token` from the head to the first content, `stream` from there to the end, `body`
from the head to the end of what is no stream, `sidecar` what is left.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

SPANS = frozenset({"read_ms", "lookup_ms", "embed_ms", "search_ms", "connect_ms", "upstream_ms", "store_ms"})
"""Phases of the sidecar's own; the others in a line are spans of an app's code."""

_LEAST = 0.0005
"""Milliseconds; a shorter piece is rounding."""
_MOST = 1e15
"""Milliseconds; more is damage, and infinities or integers of hundreds of digits cannot be reckoned with."""


class Piece(msgspec.Struct, frozen=True):
    """A part of a request's time. Milliseconds from its beginning."""

    name: str
    start_ms: float
    ms: float


def pieces(line: Mapping[str, Any]) -> list[Piece]:
    """The pieces of a request's time, in order, without gaps or overlaps; they add up to `total_ms`. Takes
    any latency line, also one that was damaged on its way: what is no number counts as nothing."""
    phases = line.get("phases")
    phases = phases if isinstance(phases, Mapping) else {}
    total = _number(line.get("total_ms"))
    made: list[Piece] = []
    at = 0.0

    def until(name: str, end: float) -> None:
        nonlocal at
        end = min(end, total)
        if end - at > _LEAST:
            made.append(Piece(name, round(at, 3), round(end - at, 3)))
            at = end

    lookup = _number(phases.get("lookup_ms"))
    inside = [("embed", _number(phases.get("embed_ms"))), ("search", _number(phases.get("search_ms")))]
    until("read", at + _number(phases.get("read_ms")))
    rest = lookup - sum([took for _, took in inside])
    if rest < 0:
        # Each was timed by itself; together they cannot have been waited for longer than the whole.
        inside, rest = [], lookup
    until("lookup", at + rest)
    for name, took in inside:
        until(name, at + took)
    headed, first = line.get("ttfb_ms"), line.get("ttft_ms")
    joined = line.get("cache") in ("hit", "collapsed") or line.get("resumed_from") is not None
    if not joined or line.get("cache_kind") == "stale":
        until("connect", at + _number(phases.get("connect_ms")))
        until("upstream", at + _number(phases.get("upstream_ms")))
    elif line.get("cache") == "collapsed" and headed is not None:
        until("upstream", _number(headed))  # it waited for another's call
    until("sidecar", _number(headed) if headed is not None else total)
    if headed is None:
        return made
    if first is not None:
        until("first_token", _number(first))
        until("stream", total)
    else:
        until("stream" if line.get("stream") else "body", total)
    return made


def slowest(line: Mapping[str, Any], until_ms: float | None = None) -> str | None:
    """The name of what took most of a request's time, up to a moment of it. Where that is the wait for an
    app, and spans of it took most of that, the longest of these."""
    took: dict[str, float] = {}
    for piece in pieces(line):
        end = piece.start_ms + piece.ms if until_ms is None else min(piece.start_ms + piece.ms, until_ms)
        if end > piece.start_ms:
            took[piece.name] = took.get(piece.name, 0.0) + end - piece.start_ms
    if not took:
        return None
    most = max(took, key=lambda name: took[name])
    phases = line.get("phases")
    if most == "upstream" and isinstance(phases, Mapping):
        spans = {name: _number(ms) for name, ms in phases.items() if name not in SPANS}
        longest = max(spans, key=lambda name: spans[name], default=None)
        if longest is not None and spans[longest] > took[most] / 2:
            return str(longest).removesuffix("_ms")
    return most


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 < value < _MOST else 0.0
