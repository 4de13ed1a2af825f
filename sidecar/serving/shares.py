"""What clients have used of their limits, in memory that all worker processes see.

There is one table for all: a time per client, and for each worker a counter per client. Every worker writes
only its own counters, so these need no lock: they are aligned words of eight bytes, which are read and
written whole, and two workers that admit a request in the same microsecond may let one more run than the
limit allows. The time is written by all of them, under a lock: who is held up between reading and writing it
would else bring back what others have spent meanwhile. It is held for microseconds. Where it cannot be had,
because who has it was stopped just then, it goes without: a limit is not worth an event loop that stands
still.

Rates are kept by the generic cell rate algorithm: of each client only the time is known at which its latest
request would have come, had they come evenly (GCRA, ITU-T I.371). Times are CLOCK_MONOTONIC, the same in all
processes of a machine.
"""

import hashlib
import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sidecar.stores.turn import Turn

_WORD = 8
_PATIENCE = 0.25
"""Seconds to wait for the lock: several times what a scheduler leaves somebody without a core."""


class Shares:
    """The table. One per process; the workers' are views of the same file."""

    def __init__(
        self,
        path: Path | None,
        worker: int,
        workers: int,
        names: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`path`: where the file is, in a folder that is the workers' alone and does not outlive them; None
        for one process. `names`: of the clients, in the same order everywhere. Other names are another file,
        so that a table never means something else to another worker. Raises OSError."""
        self._places = {name: place for place, name in enumerate(names)}
        self._worker = worker
        self._workers = workers
        self._clock = clock
        self._turn: Turn | None = None
        self._patience = _PATIENCE
        count = len(names)
        size = max(count * (1 + workers), 1) * _WORD
        if path is None:
            self._map = mmap.mmap(-1, size)
        else:
            file = _file(path, names, workers)
            self._map = _opened(file, size)
            self._turn = Turn(file)
        whole = memoryview(self._map)
        self._times = whole[: count * _WORD].cast("d")
        self._counts = whole[count * _WORD : count * (1 + workers) * _WORD].cast("q")
        for name in names:
            self.set_running(name, 0)  # those that an earlier process of this number left have ended

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def running(self, name: str) -> int:
        """Requests of a client that all workers are serving."""
        place = self._places[name]
        count = len(self._places)
        return sum(self._counts[worker * count + place] for worker in range(self._workers))

    def set_running(self, name: str, count: int) -> None:
        """How many of them are this worker's."""
        self._counts[self._worker * len(self._places) + self._places[name]] = count

    def spend(self, name: str, rate: float) -> float:
        """Let a request through, if the rate allows it. Returns 0, or else the seconds to wait; nothing is
        spent then. `rate`: requests per second."""
        place = self._places[name]
        with self._alone():
            due, wait = paced(self._times[place], self._clock(), rate)
            if not wait:
                self._times[place] = due
        return wait

    def take_over(self, earlier: "Shares") -> None:
        """What was spent of the rates of those who were in an earlier table too."""
        times = earlier._times  # noqa: SLF001 - another one of these
        spent = {name: times[place] for name, place in earlier._places.items()}  # noqa: SLF001
        with self._alone():
            for name, place in self._places.items():
                self._times[place] = max(self._times[place], spent.get(name, 0.0))

    def close(self) -> None:
        """Be done with it; nobody is in it any more. The others' view stays."""
        self._places = {}
        self._times.release()
        self._counts.release()
        self._map.close()
        if self._turn is not None:
            self._turn.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else does the same, as far as can be."""
        turn = self._turn
        if turn is None:
            yield
            return
        held = turn.take(self._patience)
        # Who has waited in vain does not wait again before it has been had once.
        self._patience = _PATIENCE if held else 0.0
        try:
            yield
        finally:
            if held:
                turn.release()


def clear(path: Path, worker: int, workers: int) -> None:
    """A worker has ended: nothing of what it counted as running still runs. `path`, `workers`: as in
    `Shares`."""
    for each in path.parent.glob(f"{path.name}-*"):
        with suppress(OSError, ValueError), each.open("r+b") as file, mmap.mmap(file.fileno(), 0) as table:
            count = len(table) // _WORD // (1 + workers)
            begin = (1 + worker) * count * _WORD
            table[begin : begin + count * _WORD] = bytes(count * _WORD)


def paced(due: float, now: float, rate: float) -> tuple[float, float]:
    """One step of the algorithm. `due`: when the latest request would have come, had all come evenly.

    Returns the same after this one, and 0; or `due` and the seconds after which there is room for it. As many
    requests may come at once as in a second, and at least one.
    """
    each = 1.0 / rate
    burst = max(rate, 1.0)
    ahead = (burst - 1.0) * each
    # It is never further ahead than this, unless the rate has been changed.
    due = min(max(due, now), now + ahead + each)
    wait = due - now - ahead
    if wait > each * 1e-9:  # what is less is rounding
        return due, wait
    return due + each, 0.0


def _file(path: Path, names: Sequence[str], workers: int) -> Path:
    digest = hashlib.sha256("\n".join([str(workers), *names]).encode()).hexdigest()[:16]
    return path.with_name(f"{path.name}-{digest}")


def _opened(path: Path, size: int) -> mmap.mmap:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(file, size)  # a new one is full of zeros, and to one that is there this is nothing
        return mmap.mmap(file, size)
    finally:
        os.close(file)
