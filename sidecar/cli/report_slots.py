"""Counts over time, for a log that covers any time: the more it covers, the wider the slots."""

from collections.abc import Iterable

_WIDTHS = (1, 5, 10, 30, 60, 300, 600, 1800, 3600, 10800, 21600, 43200, 86400, 604800)
"""Seconds; each divides the next."""
MOST = 240
SHOWN = 54
"""Slots from the first to the last that are shown: as many as a terminal of 80 columns has room for."""

Slot = dict[int, int]


def _wider(width: int) -> int:
    return next((wide for wide in _WIDTHS if wide > width), width * 2)


class Slots:
    """Cells by slot: those that have any."""

    def __init__(self) -> None:
        self.width = 1
        self.slots: dict[int, Slot] = {}
        """By seconds since the epoch, in widths."""

    def add(self, at: float, cells: Iterable[int]) -> None:
        """Count these at that time, in seconds."""
        number = int(at) // self.width
        slot = self.slots.get(number)
        if slot is None:
            slot = self.slots[number] = {}
            if len(self.slots) > MOST:
                self._widen()
                slot = self.slots[int(at) // self.width]
        for cell in cells:
            slot[cell] = slot.get(cell, 0) + 1

    def shown(self) -> list[tuple[int, Slot]]:
        """From the first to the last: when each begins, and its cells; none may have been counted there."""
        if not self.slots:
            return []
        while max(self.slots) - min(self.slots) >= SHOWN:
            self._widen()
        numbers = range(min(self.slots), max(self.slots) + 1)
        return [(number * self.width, self.slots.get(number, {})) for number in numbers]

    def _widen(self) -> None:
        before, self.width = self.width, _wider(self.width)
        merged: dict[int, Slot] = {}
        for number, slot in self.slots.items():
            into = merged.setdefault(number * before // self.width, {})
            for cell, count in slot.items():
                into[cell] = into.get(cell, 0) + count
        self.slots = merged
