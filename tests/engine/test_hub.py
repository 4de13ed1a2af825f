"""sidecar.engine.hub: calls are started, given up when nobody reads, and stopped, in every phase."""

import asyncio

import pytest

from sidecar.core.headers import index
from sidecar.core.types import End, Fault, Head, Outcome
from sidecar.engine.pump import HIGH
from sidecar.engine.reader import Reader
from tests.engine.rig import CALL, DONE, Rig, everything, run, settled

STOPPED = Fault("draining", "stopped")
PHASES = ["before the first step", "in open", "before the first bytes", "between bytes", "waiting for room"]


async def at(phase):
    """A rig with one call in this phase."""
    pieces = {"between bytes": [b"data: 1\n\n"], "waiting for room": [b"x" * (HIGH + 1)]}.get(phase, [])
    rig = Rig(*pieces, waits=phase == "in open")
    live, reader = rig.start()
    if phase != PHASES[0]:
        await settled()
    assert (len(rig.hub), live.recording.end) == (1, None)
    assert rig.source.reads == (1 if phase in PHASES[2:] else 0) + (phase == "between bytes")
    return rig, live, reader


def stopped(phase):
    """How a call in this phase ends when it is stopped; nothing is cut off before its head, nor refused after it."""
    return End(Outcome.TRUNCATED if phase in PHASES[2:] else Outcome.REFUSED, STOPPED)


def assert_gone(rig, live, phase):
    opened = phase in PHASES[2:]
    assert len(rig.hub) == 0
    assert live.abort is None
    assert rig.source.closed == opened
    assert len(rig.upstream.calls) == (phase != PHASES[0])
    assert rig.upstream.aborted == (phase == "in open")
    assert rig.faults == []


@pytest.mark.parametrize("phase", PHASES)
def test_the_call_is_given_up_when_its_last_reader_leaves(phase):
    async def main():
        rig, live, reader = await at(phase)
        rig.hub.leave(live, reader)
        assert (live.recording.end.outcome, live.recording.end.fault.kind) == (Outcome.CANCELLED, "stopped")
        await settled()
        assert_gone(rig, live, phase)

    run(main)


@pytest.mark.parametrize("phase", PHASES)
def test_stop_ends_every_call_with_the_fault_it_is_given(phase):
    async def main():
        rig, live, reader = await at(phase)
        rig.hub.stop(STOPPED)
        assert live.recording.end == stopped(phase)
        # The reader still gets what had come, and then the end.
        assert len(await everything(reader)) == live.recording.size
        await settled()
        assert_gone(rig, live, phase)
        rig.hub.leave(live, reader)
        assert live.recording.end == stopped(phase)

    run(main)


@pytest.mark.parametrize("phase", PHASES)
def test_the_call_lives_while_anybody_reads(phase):
    async def main():
        rig, live, first = await at(phase)
        second = Reader(live.recording, asyncio.get_running_loop())
        rig.hub.leave(live, first)
        await settled()
        assert (len(rig.hub), live.recording.end) == (1, None)
        rig.upstream.door.set()
        rig.source.give(b"\n\n" + DONE, b"")
        assert (await everything(second)).endswith(DONE)
        assert live.recording.end == End(Outcome.COMPLETE)
        await settled()
        assert (len(rig.hub), rig.source.closed) == (0, 1)
        rig.hub.leave(live, second)
        assert live.abort is None

    run(main)


def test_a_call_is_made_once_and_as_given():
    async def main():
        rig = Rig(DONE, b"")
        live, reader = rig.start()
        await everything(reader)
        assert rig.upstream.calls == [CALL]
        await settled()
        rig.hub.leave(live, reader)
        assert live.recording.end == End(Outcome.COMPLETE)

    run(main)


@pytest.mark.parametrize(
    ("retain", "kind", "kept"),
    [
        (True, b"application/json", True),
        (False, b"application/json", False),
        (False, b"text/event-stream", True),
    ],
)
def test_streams_are_retained_and_what_is_asked_for(retain, kind, kept):
    async def main():
        rig = Rig(DONE, b"")
        fields = ((b"Content-Type", kind),)
        rig.source.head = Head(200, b"OK", fields, index(fields))
        live, reader = rig.start(retain=retain)
        await everything(reader)
        await settled()
        assert live.recording.whole() == (DONE if kept else None)
        rig.hub.leave(live, reader)

    run(main)


@pytest.mark.parametrize(
    ("last", "outcome"),
    [
        (DONE, Outcome.COMPLETE),
        (b'data: {"error":{"type":"server_error"}}\n\n', Outcome.UPSTREAM_ERROR),
    ],
)
def test_a_stopped_call_whose_answer_was_over_lacks_nothing(last, outcome):
    async def main():
        rig = Rig(last)  # and the end of the body never comes
        live, reader = rig.start()
        await settled()
        assert live.recording.end is None
        rig.hub.stop(STOPPED)
        assert live.recording.end == End(outcome)
        assert await everything(reader) == last
        await settled()
        assert (len(rig.hub), rig.source.closed, rig.faults) == (0, 1, [])

    run(main)


def test_stopping_twice_and_leaving_twice_is_once():
    async def main():
        rig, live, reader = await at("between bytes")
        rig.hub.stop(STOPPED)
        rig.hub.stop(Fault("upstream_stalled", "another"))
        rig.hub.leave(live, reader)
        rig.hub.leave(live, reader)
        await settled()
        assert (live.recording.end, rig.source.closed) == (stopped("between bytes"), 1)

    run(main)


def test_many_calls_end_together():
    async def main():
        rig = Rig()
        calls = [rig.start() for _ in range(100)]
        await settled()
        assert len(rig.hub) == 100
        rig.hub.stop(STOPPED)
        await settled()
        assert len(rig.hub) == 0
        assert {live.recording.end for live, _ in calls} == {stopped("between bytes")}
        assert rig.source.closed == 100

    run(main)
