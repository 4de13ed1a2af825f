"""Calls that have ended and may still be read, as little of each as that needs.

There are tens of thousands of them. As the objects that a running call consists of they would be several
hundred thousand, and each full collection of the garbage collector, which looks at all of those, would stop
every stream for a quarter of a second. So at rest a call is values only, which are not looked at.
"""

import msgspec

from sidecar.core.answer import Answer
from sidecar.core.dialects import Dialect
from sidecar.core.latency import Labels
from sidecar.core.recording import Recording, Rest
from sidecar.core.told import Told
from sidecar.core.types import Intent, Request, Timings
from sidecar.engine.pump import Ask, Live


class Rested(msgspec.Struct, frozen=True, gc=False):
    """One of them. Nothing in it changes any more."""

    name: str | None
    recording: Rest
    told: Told
    dialect: Dialect | None
    intent: Intent
    query: str
    identity: bytes
    key: bytes | None
    """See `Ask`: who sends the same request again is let back in."""
    labels: Labels
    timings: Timings
    fleeting: bool
    apart: bool


def lay(live: Live) -> Rested:
    """What is kept of a call that has ended."""
    live.learn()
    answer = live.answer
    return Rested(
        name=live.name,
        recording=live.recording.rest(),
        told=answer.told(),
        dialect=answer.dialect,
        intent=answer.intent,
        query=answer.query,
        identity=live.ask.identity,
        key=live.ask.key,
        labels=live.labels,
        timings=live.timings,
        fleeting=live.fleeting,
        apart=live.apart,
    )


def wake(rested: Rested) -> Live:
    """A record of the same call, to be read like any other."""
    recording = Recording.resumed(rested.recording)
    answer = Answer(Request("", b"", "", rested.query, (), {}), rested.dialect, rested.intent)
    if recording.head is not None:
        answer.begin(recording.head)
    answer.over_with(rested.told)
    live = Live(recording, answer, Ask(rested.identity, rested.key), rested.labels)
    live.name, live.timings = rested.name, rested.timings
    live.fleeting, live.apart = rested.fleeting, rested.apart
    return live
