"""Named phases of a request's own, timed by the code that it runs: retrieval, a database, another model.

A span counts for the time in which at least one of its name was open: what runs side by side under one name
is not counted twice, because nobody waited twice.
"""

import re

_NOT_A_TOKEN = re.compile(r"[^A-Za-z0-9_.-]")
_LONGEST = 64
MOST = 512
"""Spans of one request that are timed; a loop may open any number."""

OWN = frozenset({"read", "lookup", "embed", "search", "connect", "upstream", "store"})
"""Phases that the sidecar measures itself."""


def span_name(name: str) -> str:
    """A name as it can stand in a `Server-Timing` header (RFC 9110, 5.6.2: a token) and beside the sidecar's
    own phases: those are prefixed with `app_`."""
    plain = _NOT_A_TOKEN.sub("_", name)[:_LONGEST] or "_"
    return f"app_{plain}" if plain in OWN else plain


class Open:
    """One span, from its beginning on."""

    __slots__ = ("begun", "ended", "name")

    def __init__(self, name: str, begun: float) -> None:
        """`begun`: seconds of `time.perf_counter`."""
        self.name = name
        self.begun = begun
        self.ended = 0.0
        """0 while it is open."""


class Spans:
    """The spans of one request. Threads may open them, too: a list is appended to, and each entry is written
    by whoever opened it."""

    __slots__ = ("_all",)

    def __init__(self) -> None:
        self._all: list[Open] = []

    def begin(self, name: str, now: float) -> Open:
        """One more of that name is open."""
        made = Open(name, now)
        if len(self._all) < MOST:
            self._all.append(made)
        return made

    def seconds(self, now: float) -> dict[str, float]:
        """How long each name took, in the order in which they began; one that is open has lasted until
        now."""
        return {name: _union(spans, now) for name, spans in self._by_name().items()}

    def over(self) -> dict[str, float]:
        """The same of those names of which none is open."""
        return {
            name: _union(spans, 0.0)
            for name, spans in self._by_name().items()
            if all(span.ended for span in spans)
        }

    def _by_name(self) -> dict[str, list[Open]]:
        found: dict[str, list[Open]] = {}
        for span in self._all:
            found.setdefault(span.name, []).append(span)
        return found


def _union(spans: list[Open], now: float) -> float:
    """Seconds in which at least one of them was open."""
    total = until = 0.0
    for span in sorted(spans, key=lambda span: span.begun):
        ended = span.ended or now
        if ended > until:
            total += ended - max(span.begun, until)
            until = ended
    return total
