"""What the arrival times of a paced stream say. Functions of what was seen, and nothing else.

The sender's clock and ours are two: only differences within each are used. An event's delay is counted from
that of the quickest one, which is taken as the way itself.
"""

import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import msgspec
import orjson

from sidecar.core.sse import SSEFramer, data_of

_SURVIVED = 0.5
"""A pause between two events has survived when so much of it is left."""
_LIVE = 0.6
"""Share of pauses that have to survive: a lost packet on the way takes some, a buffer nearly all."""
_PROMPT = 0.1
"""Seconds of delay that nobody calls buffering, however they are spread."""
_TOGETHER = 0.1
"""What takes less than so much of the time that it was sent in came in one go."""
_HELD = 0.25
"""The same of a silence, for what came with what followed it."""
_ONE = 0.03
"""Seconds between arrivals that count as one."""
_SILENCE = 1.0
"""Seconds from which on a pause can be told from what happens on any network."""
_MOST = 1 << 20
"""Bytes that one piece may become when it is decompressed."""


class Arrival(msgspec.Struct, frozen=True):
    """One event, in seconds."""

    number: int
    sent: float
    """By the sender's clock, since its first one."""
    came: float
    """By ours, since the request."""


class Pace(msgspec.Struct, frozen=True):
    """What became of the pauses."""

    kind: Literal["live", "blocks", "whole", "tail"]
    """`tail`: events came one by one, but for the last, which only what followed pushed through."""
    late: float
    """Seconds that the most delayed event was held."""
    moments: int
    """Separate arrivals."""


class Reading:
    """Reads the stream as it is pieced together: events, and what the first one says."""

    def __init__(self, encoding: str) -> None:
        """`encoding`: as `Content-Encoding` has it."""
        self.encoding = encoding.strip().lower()
        known = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
        self.readable = self.encoding in ("", "identity", *known)
        self._inflate = zlib.decompressobj(known[self.encoding]) if self.encoding in known else None
        self._framer = SSEFramer()
        self.arrivals: list[Arrival] = []
        self.hello: dict[str, object] = {}
        self.end: str | None = None
        """As the last event has it; None while that is missing."""
        self.last: Arrival | None = None
        """That event."""

    def feed(self, came: float, data: bytes) -> None:
        """What came next, at that time. Raises ValueError when it is no probe."""
        if not self.readable:
            return
        try:
            text = self._inflate.decompress(data, _MOST) if self._inflate is not None else data
        except zlib.error:
            raise ValueError("its compression is broken") from None
        if self._inflate is not None and self._inflate.unconsumed_tail:
            raise ValueError("it is far more than a probe")
        for frame in self._framer.feed(text):
            event = data_of(frame.block) if frame.block is not None else None
            if event:
                self._take(came, event)

    def _take(self, came: float, event: bytes) -> None:
        found = orjson.loads(event)
        if not isinstance(found, dict) or not isinstance(found.get("at"), int | float):
            raise ValueError("an event is none of the probe's")  # noqa: TRY004 - one error for all
        if "probe" in found:
            self.hello = found
        elif not self.hello:
            raise ValueError("the first event is none of the probe's")
        arrival = Arrival(len(self.arrivals), found["at"] / 1000, came)
        if "end" in found:
            self.end, self.last = str(found["end"]), arrival
        else:
            self.arrivals.append(arrival)


class Seen(msgspec.Struct):
    """One probe, as it came through."""

    reading: Reading
    pace: Pace | None
    """None where there are not two events."""
    idle: float
    """Seconds of silence that were asked for."""
    lasted: float
    """Seconds from the request to the end, or to the last that came."""
    cut_after: float | None
    """Seconds of silence after which somebody ended it."""

    @property
    def compressed(self) -> bool:
        return self.reading.encoding not in ("", "identity")


def pace(found: Sequence[Arrival], last: Arrival | None = None) -> Pace:
    """Of the events that were sent with pauses between them, in order; at least two. `last`: what was sent
    after the silence behind them, if that came."""
    way = min(one.came - one.sent for one in found)
    late = max(one.came - one.sent for one in found) - way
    pauses = [(after.sent - before.sent, after.came - before.came) for before, after in pairwise(found)]
    survived = sum(came >= sent * _SURVIVED for sent, came in pauses) / len(pauses)
    moments = 1 + sum(came > _ONE for _, came in pauses)
    if late <= _PROMPT:
        return Pace("live", late, moments)
    if survived >= _LIVE:
        silence = 0.0 if last is None else last.sent - found[-1].sent
        held = last is not None and last.came - found[-1].came < silence * _HELD
        return Pace("tail" if held and silence >= _SILENCE else "live", late, moments)
    sent, came = found[-1].sent - found[0].sent, found[-1].came - found[0].came
    return Pace("whole" if came <= sent * _TOGETHER else "blocks", late, moments)


def silent_for(arrivals: list[Arrival], lasted: float, ended: float) -> float:
    """Seconds of silence after which it was cut, at time `ended` since the request. `lasted`: for how long
    events were to be sent before the silence, where none of them came."""
    if not arrivals:
        return max(ended - lasted, 0.0)
    way = min(one.came - one.sent for one in arrivals)
    return max(ended - way - max(arrivals[-1].sent, 0.0), 0.0)
