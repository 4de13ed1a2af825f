"""What is given up when memory is short: recordings first, traffic last."""

from collections.abc import Callable, Sequence

from structlog.typing import FilteringBoundLogger

from sidecar.config import Config
from sidecar.serving.assembly import Assembly
from sidecar.serving.machine import Memory, allowed, descriptor_free
from sidecar.serving.watermark import Level, Watch, Watermark, mark_of

_NO_JOBS = "memory is short (limits.memory), and a job's answer has to be kept; send it again later"
_FULL = "memory is short (limits.memory); send the request again later"


class Relief:
    """Does it for one assembly. What runs goes on: its readers get all of it."""

    def __init__(self, config: Config, made: Assembly, forget: Sequence[Callable[[], None]] = ()) -> None:
        """`forget`: further memories that may be emptied at any time."""
        self._at_hand = config.cache.memory
        self._made = made
        self._forget = forget

    def __call__(self, level: Level) -> None:
        """From now on that level goes."""
        hub, cache, front = self._made.hub, self._made.cache, self._made.front
        short = level is not Level.NORMAL
        hub.relieve(brief=short, running=level is Level.CRITICAL)
        cache.resize(0 if short else self._at_hand)
        for forget in self._forget if short else ():
            forget()
        front.no_jobs = _NO_JOBS if short else None
        front.full = _FULL if level is Level.CRITICAL else None


def watch(
    config: Config,
    made: Assembly,
    log: FilteringBoundLogger,
    memory: Memory,
    forget: Sequence[Callable[[], None]] = (),
) -> Watch:
    """Watches over a process that is all ours and has started. `memory` is the caller's to close."""
    used, most = memory.used(), allowed()
    mark = mark_of(config.limits.memory, most, config.server.workers, used or 0) if used is not None else 0
    if used is not None and most is not None and not mark:
        reason = "nothing else would fit; set limits.memory to have it watched all the same"
        log.warning("memory_unwatched", used=used, allowed=most, reason=reason)
    return Watch(
        Watermark(mark) if mark else None,
        memory.used,
        Relief(config, made, forget),
        log,
        descriptor_free=descriptor_free,
    )
