"""sidecar.engine.pump: from a source to the end of its recording, at the readers' pace."""

import asyncio

import pytest

from sidecar.core.errors import RefusedError, UpstreamError
from sidecar.core.types import Outcome, Timings
from sidecar.engine.pump import HIGH, LOW, RETAINED
from tests.engine.rig import DONE, HEAD, TIMINGS, Rig, everything, run, settled

EVENT = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
CLOSED = UpstreamError("upstream_closed", "in the middle")
STALLED = UpstreamError("upstream_stalled", "60 s")


def ending(*pieces, refuses=None, retain=True):
    """How the recording of such a call ends, and what its reader got."""

    async def main():
        rig = Rig(*pieces, refuses=refuses)
        live, reader = rig.start(retain=retain)
        got = await everything(reader)
        await settled()
        rig.hub.leave(live, reader)
        assert rig.source.closed == (refuses is None)
        return live, got, rig.faults

    return run(main)


def test_everything_is_recorded_as_it_comes():
    pieces = [EVENT, EVENT[:10], EVENT[10:] + EVENT, DONE]
    live, got, faults = ending(*pieces, b"")
    assert (got, faults) == (b"".join(pieces), [])
    assert (live.recording.head, live.timings, live.recording.end.outcome) == (
        HEAD,
        TIMINGS,
        Outcome.COMPLETE,
    )
    assert list(live.recording.events) == [
        len(EVENT),
        2 * len(EVENT),
        3 * len(EVENT),
        3 * len(EVENT) + len(DONE),
    ]
    assert live.arrived == 4.0
    assert (live.answer.first_at, live.answer.last_at) == (1.0, 3.0)
    assert live.recording.whole() == got


def test_events_are_noted_only_while_the_body_is_kept():
    # A stream is kept, whether it was asked for or not: its client may come back to it.
    live, got, _ = ending(EVENT, DONE, b"", retain=False)
    assert (got, list(live.recording.events)) == (EVENT + DONE, [len(EVENT), len(EVENT + DONE)])
    assert (live.answer.events, live.answer.deltas) == (2, 1)
    # An answer that outgrows what is kept forgets the ones it had noted.
    many = RETAINED // len(EVENT) + 2
    live, got, _ = ending(EVENT, EVENT * many, DONE, b"")
    assert (len(got), live.answer.events) == ((many + 1) * len(EVENT) + len(DONE), many + 2)
    assert (live.recording.retained, list(live.recording.events)) == (False, [])


@pytest.mark.parametrize(
    ("pieces", "outcome", "kind"),
    [
        ([EVENT, DONE, b""], Outcome.COMPLETE, None),
        ([EVENT, b""], Outcome.TRUNCATED, "upstream_incomplete"),
        ([b""], Outcome.TRUNCATED, "upstream_incomplete"),
        ([EVENT, CLOSED], Outcome.TRUNCATED, "upstream_closed"),
        ([EVENT, STALLED], Outcome.TIMEOUT, "upstream_stalled"),
        ([EVENT, RefusedError("request_timeout", "the body")], Outcome.TRUNCATED, "request_timeout"),
        ([EVENT, DONE, CLOSED], Outcome.COMPLETE, None),
        ([b'data: {"error":{"type":"server_error"}}\n\n', b""], Outcome.UPSTREAM_ERROR, None),
        ([b'data: {"error":{"type":"server_error"}}\n\n', CLOSED], Outcome.UPSTREAM_ERROR, None),
    ],
)
def test_ends(pieces, outcome, kind):
    live, got, faults = ending(*pieces)
    end = live.recording.end
    assert (end.outcome, end.fault and end.fault.kind, faults) == (outcome, kind, [])
    assert got == b"".join(piece for piece in pieces if isinstance(piece, bytes))


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (UpstreamError("upstream_unreachable", "x"), Outcome.UPSTREAM_ERROR),
        (UpstreamError("upstream_timeout", "x"), Outcome.TIMEOUT),
        (RefusedError("request_timeout", "x"), Outcome.REFUSED),
        (UpstreamError("upstream_closed", "x"), Outcome.UPSTREAM_ERROR),
    ],
)
def test_an_upstream_that_cannot_be_had(error, outcome):
    live, got, faults = ending(refuses=error)
    assert (live.recording.head, live.recording.end.fault, live.recording.end.outcome) == (
        None,
        error.fault,
        outcome,
    )
    assert (got, faults) == (b"", [])
    assert live.timings == Timings(started=1.0, connected=2.0)  # how far it got


@pytest.mark.parametrize("place", ["open", "read"])
def test_a_mistake_of_our_own_ends_the_recording_and_is_reported(place):
    mistake = ZeroDivisionError("ours")
    live, got, faults = ending(refuses=mistake) if place == "open" else ending(EVENT, mistake)
    assert (live.recording.end.outcome, live.recording.end.fault.kind) == (Outcome.UPSTREAM_ERROR, "internal")
    assert faults == [mistake]
    assert got == (b"" if place == "open" else EVENT)


@pytest.mark.parametrize("retain", [True, False])
def test_a_slow_reader_makes_the_pump_wait_and_it_goes_on(retain):
    async def main():
        piece = b"x" * 65536
        many = 4 * HIGH // len(piece)
        rig = Rig(*[piece] * many, DONE, b"")
        live, reader = rig.start(retain=retain)
        got = b""
        for _ in range(many):
            await settled()
            assert live.recording.size - len(got) <= HIGH + len(piece)
            read = rig.source.reads
            await settled()
            assert rig.source.reads == read  # it waits, it does not poll
            if live.recording.end is not None:
                break
            got += await reader.read()
        assert rig.source.reads > many
        got += await everything(reader)
        assert got == piece * many + DONE
        await settled()
        rig.hub.leave(live, reader)

    run(main)


def test_the_pump_goes_on_when_the_fastest_reader_is_nearly_done():
    async def main():
        from sidecar.engine.reader import Reader

        rig = Rig(b"x" * (HIGH + 1), b"y", b"")
        live, slow = rig.start()
        fast = Reader(live.recording, asyncio.get_running_loop())
        await settled()
        assert rig.source.reads == 1
        assert len(await fast.read()) == HIGH + 1  # the slow one has taken nothing
        await settled()
        assert rig.source.reads == 3
        assert LOW < HIGH
        for reader in (slow, fast):
            rig.hub.leave(live, reader)

    run(main)
