"""Times between the events of one answer, in bounded memory."""

import math
from array import array

_GAPS = 8192


class Gaps:
    """Gaps between events, in seconds, in bounded memory.

    Up to 8192 are all kept. Past that, every second, then every fourth, ... stands for its
    neighbours; the maximum is always exact.
    """

    __slots__ = ("_kept", "_skip", "_stride", "longest", "made")

    def __init__(self) -> None:
        self._kept = array("f")
        self._stride = 1
        self._skip = 0
        self.longest = 0.0
        self.made: tuple[int, int, dict[int, int]] | None = None
        """What a reader has made of them, behind what `kept` was then: several want the same."""

    @classmethod
    def unpacked(cls, packed: tuple[bytes, int, float]) -> "Gaps":
        """What `packed` made a value of."""
        made = cls()
        kept, made._stride, made.longest = packed
        made._kept.frombytes(kept)
        return made

    def packed(self) -> tuple[bytes, int, float]:
        """Those of an answer that is over, as a value."""
        return self._kept.tobytes(), self._stride, self.longest

    def add(self, gap: float) -> None:
        self.longest = max(self.longest, gap)
        if self._skip:
            self._skip -= 1
            return
        self._kept.append(gap)
        self._skip = self._stride - 1
        if len(self._kept) > _GAPS:
            self._kept = self._kept[::2]
            self._stride *= 2
            self._skip = self._stride - 1

    def percentiles(self, *shares: float) -> list[float | None]:
        """Nearest-rank percentiles; None where there was no gap."""
        if not self._kept:
            return [None] * len(shares)
        ordered = sorted(self._kept)
        last = len(ordered) - 1
        return [ordered[min(last, math.ceil(share * len(ordered)) - 1)] for share in shares]

    @property
    def kept(self) -> tuple["array[float]", int]:
        """What was kept, and how many each of them stands for."""
        return self._kept, self._stride


NO_GAPS = Gaps()
