"""What a soak makes of its figures: functions of numbers, so that they can be checked by themselves
(tests/test_soak.py)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

MB = 1 << 20
EARLY = 0.25
"""Seconds by which a keepalive may be early: it looks so if the one before it was read late."""
TELLING = 100_000
"""Operations in the second half from which on its growth says something of leaks: memory goes up and down by
some megabytes in any case."""
LEAK = 50.0
"""Bytes per operation. With as many operations as that it is 5 MB; the smallest object is about as large."""
_PACE = 0.5
"""Things per second and client that get done at least. It is a tenth of what two busy cores do."""


class Line(NamedTuple):
    """One line of the verdict."""

    what: str
    found: str
    wanted: str
    good: bool | None
    """None: it is told, and not judged."""
    excused: bool = False
    """It has a bound, but could not be judged this time."""

    def __str__(self) -> str:
        said = "SKIP" if self.excused else "    " if self.good is None else "PASS" if self.good else "FAIL"
        return f"{said}  {self.what:<44} {self.found:<34} {self.wanted}"


class Sample(NamedTuple):
    """The sidecar at one moment."""

    at: float
    memory: int
    """Bytes that are its own."""
    descriptors: int
    threads: int
    cpu: float = 0.0
    """Seconds that it has used."""


def due(head: float, end: float, interval: float) -> int:
    """Keepalives that a stream which says nothing has certainly had by then, from its head on."""
    return max(int((end - head) / interval) - 1, 0)


def overdue(last: float, end: float, interval: float) -> float | None:
    """Seconds by which the next keepalive is late already; None where it is not due yet."""
    late = end - last - interval
    return late if late > 0 else None


def slope(samples: Sequence[Sample]) -> float:
    """Bytes per second, by least squares."""
    if len(samples) < 3:
        return 0.0
    middle = sum(sample.at for sample in samples) / len(samples)
    level = sum(sample.memory for sample in samples) / len(samples)
    over = sum((sample.at - middle) * (sample.memory - level) for sample in samples)
    return over / sum((sample.at - middle) ** 2 for sample in samples)


def mean(samples: Sequence[Sample]) -> float:
    """MB."""
    return sum(sample.memory for sample in samples) / len(samples) / MB


def operations(told: Sequence[tuple[float, int]], begin: float, end: float) -> float:
    """How many were done between two moments. `told`: moments, and how many had been done by then."""

    def until(at: float) -> float:
        before, done = told[0]
        for then, count in told:
            if then >= at:
                return done + (count - done) * (at - before) / (then - before) if then > before else count
            before, done = then, count
        return done

    return until(end) - until(begin)


def leaked(samples: Sequence[Sample], count: float) -> float | None:
    """Bytes per operation, of so many while the samples were taken; None if these are too few to tell."""
    if count < TELLING:
        return None
    return slope(samples) * (samples[-1].at - samples[0].at) / count


def least(weights: Mapping[str, int], clients: int, seconds: float) -> dict[str, int]:
    """How often each kind is done at least: half of its share of what gets done at the slowest pace."""
    each = clients * seconds * _PACE / sum(weights.values()) / 2
    return {name: max(int(each * weight), 1) for name, weight in weights.items()}


def summary(lines: Sequence[Line]) -> tuple[bool, str]:
    """Whether all is well, and the last line."""
    judged = [line for line in lines if line.good is not None]
    bad = sum(not line.good for line in judged)
    excused = sum(line.excused for line in lines)
    more = f"; {excused} could not be judged" if excused else ""
    return not bad and bool(
        judged
    ), f"{'FAIL' if bad or not judged else 'PASS'}: {len(judged) - bad} of {len(judged)}{more}"
