"""Whether semantic hits may go on being served, by what became of those that were checked.

Hits are checked by asking the upstream as well (`semantic.verify`). A check is right when both answers say
the same. Pure: who counts, logs and switches is elsewhere.
"""

import math
from collections import OrderedDict, deque

Z = 1.96
"""Of the 95 % interval."""
WINDOW = 100
"""Checks that are remembered, the latest ones."""
_LEAST = 2
"""False hits before which nothing is concluded: one may be the upstream's mood."""
_SCOPES = 4096
"""Scopes whose checks are remembered; those that were checked longest ago make room."""


def lower_bound(wrong: int, checked: int) -> float:
    """What the true share of false hits is at least, with 97.5 % confidence (Wilson, 1927)."""
    if not checked:
        return 0.0
    share, square = wrong / checked, Z * Z / checked
    spread = Z * math.sqrt(share * (1 - share) / checked + square / (4 * checked))
    return max((share + square / 2 - spread) / (1 + square), 0.0)


class Checks:
    """The latest checks of one kind of hits."""

    __slots__ = ("_results", "wrong")

    def __init__(self) -> None:
        self._results: deque[bool] = deque(maxlen=WINDOW)
        self.wrong = 0

    def add(self, *, right: bool) -> None:
        if len(self._results) == WINDOW and not self._results[0]:
            self.wrong -= 1
        self._results.append(right)
        self.wrong += not right

    @property
    def checked(self) -> int:
        return len(self._results)

    @property
    def rate(self) -> float:
        """Share of false hits."""
        return self.wrong / len(self._results) if self._results else 0.0

    def beyond(self, bound: float) -> bool:
        """Whether more than that share of hits is false, by all that is known."""
        return self.wrong >= _LEAST and lower_bound(self.wrong, len(self._results)) > bound


class Trust:
    """Which scopes are served, and how the checks of all of them went."""

    def __init__(self, bound: float) -> None:
        """`bound`: the share of false hits that is put up with; 1 puts up with all."""
        self._bound = bound
        self._scopes: OrderedDict[bytes, Checks] = OrderedDict()
        self.all = Checks()
        self.alarmed = False
        """The share of all scopes together is beyond the bound."""

    def served(self, scope: bytes) -> bool:
        """Whether its questions are matched with others."""
        checks = self._scopes.get(scope)
        return checks is None or not checks.beyond(self._bound)

    def check(self, scope: bytes, *, right: bool) -> bool:
        """A hit was checked. Returns whether that has just switched the scope off."""
        checks = self._scopes.get(scope)
        if checks is None:
            if len(self._scopes) >= _SCOPES:
                self._forget()
            checks = self._scopes[scope] = Checks()
        self._scopes.move_to_end(scope)
        before = checks.beyond(self._bound)
        checks.add(right=right)
        self.all.add(right=right)
        return checks.beyond(self._bound) and not before

    def alarm(self) -> bool | None:
        """True when the share of all has just gone beyond the bound, False when it has just come back to
        half of it, None when nothing has changed."""
        if not self.alarmed and self.all.beyond(self._bound):
            self.alarmed = True
            return True
        if self.alarmed and self.all.rate <= self._bound / 2:
            self.alarmed = False
            return False
        return None

    def _forget(self) -> None:
        """The oldest that is served; one that is switched off stays so, as long as there are others."""
        name = next((one for one in self._scopes if self.served(one)), next(iter(self._scopes)))
        del self._scopes[name]
