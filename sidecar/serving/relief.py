"""What is given up when memory is short: recordings first, traffic last."""

from collections.abc import Sequence
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from sidecar.config import Config
from sidecar.serving.assembly import Assembly
from sidecar.serving.machine import Memory, allowed
from sidecar.serving.room import Room
from sidecar.serving.watermark import NO_ROOM, Level, Watch, Watermark, mark_of
from sidecar.upstream.descriptors import descriptor_free

_NO_JOBS = "memory is short (limits.memory), and a job's answer has to be kept; send it again later"
_FULL = "memory is short (limits.memory); send the request again later"


class Spare(Protocol):
    """A further memory, which may be emptied at any time."""

    def relieve(self, *, short: bool) -> None:
        """Whether memory is short: then keep nothing."""


class Relief:
    """Does it for one assembly. What runs goes on: its readers get all of it."""

    def __init__(self, config: Config, made: Assembly, spares: Sequence[Spare] = ()) -> None:
        self._at_hand = Room(config.cache.memory)
        self._room = Room(config.resume.memory)
        self._made = made
        self._spares = spares
        self._level = Level.NORMAL

    def __call__(self, level: Level, used: int, mark: int, now: float) -> None:
        """As of now: `used` and `mark` in bytes, `now` in seconds."""
        hub, short = self._made.hub, level is not Level.NORMAL
        if level is not self._level:
            self._change(level)
        # All of them go first: they can be had from disk.
        at_hand = self._at_hand.see(Level.CRITICAL if short else level, used, mark, 0, now)
        used -= self._made.cache.resize(at_hand)
        room = self._room.see(level, used, mark, hub.kept, now)
        hub.relieve(room, brief=short, running=level is Level.CRITICAL)

    def stop(self) -> None:
        """Nobody looks any more: everything is as ever."""
        self._change(Level.NORMAL)
        self._made.cache.resize(self._at_hand.most)
        self._made.hub.relieve(self._room.most, brief=False)

    @property
    def kept(self) -> int:
        """Bytes that could still be given up."""
        return self._made.hub.kept

    @property
    def idle(self) -> bool:
        """Whether nothing is being served, so that what is in use is the program's."""
        made = self._made
        return not (made.front.active or len(made.hub) or len(made.upgrades or ()))

    def _change(self, level: Level) -> None:
        short, self._level = level is not Level.NORMAL, level
        for spare in self._spares:
            spare.relieve(short=short)
        front = self._made.front
        front.no_jobs = _NO_JOBS if short else None
        front.full = _FULL if level is Level.CRITICAL else None


def watch(
    config: Config,
    made: Assembly,
    log: FilteringBoundLogger,
    memory: Memory,
    spares: Sequence[Spare] = (),
) -> Watch:
    """Watches over a process that is all ours and has started. `memory` is the caller's to close."""
    used, most, configured = memory.used(), allowed(), config.limits.memory
    mark = mark_of(configured, most, config.server.workers, used or 0) if used is not None else 0
    if used is not None and most is not None and not mark:
        log.warning("memory_unwatched", used=used, allowed=most, reason=NO_ROOM)
    semantics = made.semantics
    return Watch(
        Watermark(mark) if mark else None,
        memory.used,
        Relief(config, made, spares),
        log,
        automatic=not configured,
        loaded=lambda: semantics is None or semantics.missing is None,
        descriptor_free=descriptor_free,
    )
