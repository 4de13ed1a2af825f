"""Values in bounded room: what was used longest ago goes first."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

V = TypeVar("V")


class Lru(Generic[V]):
    """Values by key. The sizes given with them, in whatever unit, never add up to more than the limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        """The sum of the sizes of what is in it."""
        self._items: OrderedDict[bytes, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: bytes) -> V | None:
        """The value, which is used by that."""
        found = self._items.get(key)
        if found is None:
            return None
        self._items.move_to_end(key)
        return found[0]

    def peek(self, key: bytes) -> V | None:
        """The value, without using it."""
        found = self._items.get(key)
        return found[0] if found is not None else None

    def put(self, key: bytes, value: V, size: int) -> list[tuple[bytes, V]]:
        """Keep a value in the place of what was under its key. Returns what had to go, first what was used
        longest ago: the value itself, and nothing else, if it is larger than the limit."""
        self.pop(key)
        if size > self.limit:
            return [(key, value)]
        self._items[key] = (value, size)
        self.used += size
        evicted = []
        while self.used > self.limit:
            oldest, (gone, room) = self._items.popitem(last=False)
            self.used -= room
            evicted.append((oldest, gone))
        return evicted

    def pop(self, key: bytes) -> V | None:
        """Take a value out; it is not kept any longer."""
        found = self._items.pop(key, None)
        if found is None:
            return None
        self.used -= found[1]
        return found[0]

    def resize(self, limit: int) -> int:
        """Another limit from now on; what was used longest ago makes room for it. Returns how much."""
        self.limit, before = limit, self.used
        while self.used > limit:
            self.used -= self._items.popitem(last=False)[1][1]
        return before - self.used

    def clear(self) -> None:
        """Keep nothing."""
        self._items.clear()
        self.used = 0

    def items(self) -> Iterator[tuple[bytes, V]]:
        """Keys and values, first what was used longest ago; nothing may change meanwhile."""
        return ((key, value) for key, (value, _) in self._items.items())
