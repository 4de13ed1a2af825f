"""How much room streams that have ended, and answers at hand, get by how much memory is in use: less at once,
more slowly."""

from sidecar.serving.watermark import SETTLE, Level

_AIM = 0.85
"""Of the mark: so much is to be in use at most once something has been given up."""
_GROWS = 600.0
"""Seconds in which it grows from nothing to all that is configured."""


class Room:
    """Decides. What is freed is in use for some seconds more, as the kernel sees it; so after one time there
    is a pause before the next."""

    def __init__(self, most: int) -> None:
        """`most`: bytes."""
        self.most = most
        self._room = float(most)
        self._level = Level.NORMAL
        self._shed = 0.0
        self._now = 0.0

    def see(self, level: Level, used: int, mark: int, kept: int, now: float) -> int:
        """What there is from now on, in bytes. `used`: by the process, of which `kept` is what the room is
        for; `now`: seconds."""
        before, self._level = self._level, level
        passed, self._now = now - self._now, now
        excess = used - mark * _AIM
        if level is Level.CRITICAL:
            self._room = 0.0
        elif level is Level.HIGH:
            if before is Level.NORMAL or (used > mark and now - self._shed >= SETTLE):
                self._shed = now
                self._room = min(self._room, max(kept - max(excess, 0.0), 0.0))
        elif before is not Level.NORMAL:
            # A part of what is free, so that what begins now finds some; there are others that want it, too.
            self._room = max(self._room, kept + (mark - used) / 8)
        elif excess < 0:
            self._room += self.most * passed / _GROWS
        self._room = min(self._room, self.most)
        return int(self._room)
