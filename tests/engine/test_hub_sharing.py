"""sidecar.engine.hub: who finds a running call, and how long it lives on when its readers leave."""

import asyncio
import gc
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core import recording as recording_module
from sidecar.core.headers import index
from sidecar.core.types import End, Fault, Head, Outcome
from sidecar.engine.pump import HIGH, RETAINED, Ask
from sidecar.engine.reader import LostError
from tests.engine.rig import DONE, Rig, everything, pass_time, run, settled

FINISH = math.inf
ONE = b"data: 1\n\n"
KEY = Ask(key=b"key")
STOPPED = Fault("draining", "stopped")


def ask(key=b"key", coding=b"", identity=b"", idempotency=None):
    return Ask(identity, key, coding, idempotency)


async def begun(*pieces, ask=KEY, **kinds):
    """A rig with one call that has come as far as it gets."""
    rig = Rig(*pieces, **kinds)
    live, reader = rig.start(ask=ask)
    await settled()
    return rig, live, reader


def gone(rig, live):
    """The call was given up, and nothing of it is left."""
    assert live.recording.end.outcome is Outcome.CANCELLED
    assert (len(rig.hub), live.timer, rig.faults) == (0, None, [])


def alive(rig, live):
    assert live.recording.end is None
    assert len(rig.hub) == 1


# Finding a call.


@pytest.mark.parametrize("phase", ["connecting", "waiting", "streaming"])
def test_an_identical_request_finds_the_call_until_it_has_ended(phase):
    async def main():
        rig = Rig(*([ONE] if phase == "streaming" else []), waits=phase == "connecting")
        assert rig.hub.shared(KEY) is None
        live, reader = rig.start(ask=KEY)
        assert rig.hub.shared(KEY) is live
        await settled()
        assert rig.hub.shared(KEY) is live
        late = rig.hub.read(live)
        rig.upstream.door.set()
        rig.source.give(ONE, DONE, b"")
        both = await asyncio.gather(everything(reader), everything(late))
        assert both == [ONE * (2 if phase == "streaming" else 1) + DONE] * 2
        # It has ended, though the hub may not have tidied up yet.
        assert rig.hub.shared(KEY) is None
        await settled()
        assert rig.hub.shared(KEY) is None
        assert rig.hub._by_key == {} == rig.hub._by_identity
        for one in (reader, late):
            rig.hub.leave(live, one)

    run(main)


@pytest.mark.parametrize("other", [None, b"", b"other"])
def test_another_key_or_none_finds_nothing(other):
    async def main():
        rig, live, reader = await begun()
        assert rig.hub.shared(ask(key=other)) is None
        alone, lonely = rig.start(ask=ask(key=other))
        assert rig.hub.shared(ask(key=other)) is (alone if other == b"other" else None)
        assert rig.hub.shared(KEY) is live
        for made, one in ((live, reader), (alone, lonely)):
            rig.hub.leave(made, one)
        await settled()

    run(main)


CODED = {b"": True, b"identity": True, b"gzip": False, b"Br": False}


@pytest.mark.parametrize(("coding", "plain"), CODED.items())
def test_another_coding_shares_once_the_answer_is_known_to_be_plain(coding, plain):
    async def main():
        rig = Rig(waits=True)
        fields = (
            (b"Content-Type", b"text/event-stream"),
            *([(b"Content-Encoding", coding)] if coding else []),
        )
        rig.source.head = Head(200, b"OK", fields, index(fields))
        live, reader = rig.start(ask=ask(coding=b"gzip"))
        await settled()
        assert rig.hub.shared(ask(coding=b"gzip")) is live
        assert rig.hub.shared(ask(coding=b"")) is None
        rig.upstream.door.set()
        await settled()
        assert rig.hub.shared(ask(coding=b"gzip")) is live
        assert rig.hub.shared(ask(coding=b"")) is (live if plain else None)
        rig.hub.leave(live, reader)
        await settled()

    run(main)


def test_requests_with_two_codings_make_two_calls_however_they_take_turns():
    async def main():
        rig = Rig(waits=True)
        made, readers = [], []
        for number in range(10):
            asked = ask(coding=(b"gzip", b"br")[number % 2])
            live = rig.hub.shared(asked)
            if live is None:
                live, reader = rig.start(ask=asked)
                made.append(live)
            else:
                reader = rig.hub.read(live)
            readers.append((live, reader))
        found = len(made)
        for live, reader in readers:
            rig.hub.leave(live, reader)
        await settled()
        assert found == 2

    run(main)


def test_a_call_is_found_again_when_another_with_its_key_has_ended():
    async def main():
        rig = Rig(waits=True)
        first, reader = rig.start(ask=ask(coding=b"gzip"))
        second, other = rig.start(ask=ask(coding=b"br"))
        rig.hub.leave(second, other)
        await settled()
        found = rig.hub.shared(ask(coding=b"gzip"))
        rig.hub.leave(first, reader)
        await settled()
        assert found is first

    run(main)


def test_a_call_that_is_not_kept_is_not_found():
    async def main():
        rig, live, reader = await begun(ONE)
        rig.source.give(b"x" * (RETAINED - len(ONE)))
        await settled()
        while live.recording.size < RETAINED or reader.offset < RETAINED:
            await reader.read()
            await settled()
        assert rig.hub.shared(KEY) is live
        rig.source.give(b"x")
        await reader.read()
        await settled()
        assert live.recording.size == RETAINED + 1
        assert rig.hub.shared(KEY) is None
        rig.hub.leave(live, reader)
        await settled()

    run(main)


def test_a_call_that_gave_up_what_it_kept_is_not_found():
    async def main():
        rig, live, reader = await begun(ONE)
        await reader.read()
        live.recording.keep(0)
        assert rig.hub.shared(KEY) is None
        rig.hub.leave(live, reader)
        await settled()

    run(main)


@pytest.mark.parametrize(
    ("first", "again", "retry", "joins"),
    [
        (None, None, False, False),
        (None, None, True, True),
        (b"k", b"k", False, True),
        (b"k", b"k", True, True),
        (b"k", b"other", False, False),
        # It says that it is another operation; a count of attempts does not make it this one.
        (b"k", b"other", True, False),
        (b"k", None, False, False),
        (None, b"k", False, False),
        (b"", b"", False, True),
    ],
)
def test_who_joins_the_call_it_was_sent_for(first, again, retry, joins):
    async def main():
        rig, live, reader = await begun(ONE, ask=Ask(b"id", idempotency=first))
        await reader.read()
        found = rig.hub.repeated(Ask(b"id", idempotency=again), retry=retry)
        other = rig.hub.repeated(Ask(b"other", idempotency=again), retry=retry)
        unknown = rig.hub.repeated(Ask(b"", idempotency=again), retry=retry)
        rig.source.give(DONE, b"")
        await everything(reader)
        ended = rig.hub.repeated(Ask(b"id", idempotency=again), retry=retry)
        rig.hub.leave(live, reader)
        await settled()
        assert (found, other, unknown, ended) == (live if joins else None, None, None, None)

    run(main)


def test_each_of_two_operations_finds_its_own_call_again():
    """Two idempotency keys for the same bytes: two operations, whichever was begun last."""

    async def main():
        rig = Rig(ONE)
        calls = {name: rig.start(ask=Ask(b"id", idempotency=name)) for name in (b"a", b"b")}
        await settled()
        found = {name: rig.hub.repeated(Ask(b"id", idempotency=name), retry=True) for name in calls}
        for live, reader in calls.values():
            rig.hub.leave(live, reader)
        await settled()
        assert found == {name: live for name, (live, _) in calls.items()}

    run(main)


@pytest.mark.parametrize("retry", [False, True])
def test_who_repeats_nothing_does_not_look_through_all_that_runs(retry):
    """A load test sends one request ten thousand times at once: what each costs must not grow with the others."""
    looked = 0

    class Identity(bytes):
        __hash__ = bytes.__hash__

        def __eq__(self, other):
            nonlocal looked
            looked += 1
            return bytes(self) == bytes(other)

    async def main():
        rig = Rig(waits=True)
        calls = [rig.start(ask=Ask(Identity(b"id"))) for _ in range(200)]
        await settled()
        nonlocal looked
        looked = 0
        found = rig.hub.repeated(Ask(Identity(b"id")), retry=retry)
        assert looked < 10
        assert (found in [live for live, _ in calls]) == retry
        for live, reader in calls:
            rig.hub.leave(live, reader)
        await settled()

    run(main)


# Leaving.


@pytest.mark.parametrize("phase", ["connecting", "streaming"])
@pytest.mark.parametrize(
    ("leavers", "until"),
    [
        ([(0, 0)], 0),
        ([(0, 5)], 5),
        ([(0, FINISH)], FINISH),
        # Each one's time runs from when it left; the most generous counts, in whatever order they left.
        ([(0, 5), (1, 0)], 5),
        ([(0, 0), (1, 5)], 6),
        ([(0, 5), (1, 30), (2, 10)], 31),
        ([(0, 30), (2, 10)], 30),
        ([(0, 30), (25, 10)], 35),
        # What was granted has passed while somebody else read.
        ([(0, 5), (10, 0)], 10),
        ([(0, 5), (10, 1)], 11),
        ([(0, FINISH), (1000, 0)], FINISH),
        ([(0, 0), (1, FINISH)], FINISH),
        ([(0, 5), (1, FINISH), (2, 0)], FINISH),
    ],
)
def test_the_call_goes_on_for_as_long_as_the_most_generous_who_left_grants(phase, leavers, until):
    async def main():
        rig = Rig(ONE, waits=phase == "connecting")
        live, first = rig.start(ask=KEY)
        readers = [first, *(rig.hub.read(live) for _ in leavers[1:])]
        await settled()
        loop = asyncio.get_running_loop()
        for reader, (at, patience) in zip(readers, leavers, strict=True):
            if at > loop.time():
                await pass_time(at - loop.time())
            alive(rig, live)
            assert live.timer is None  # somebody reads
            rig.hub.leave(live, reader, patience)
        if loop.time() < until < FINISH:
            await pass_time(until - loop.time() - 0.01)
            alive(rig, live)
            assert rig.upstream.aborted + rig.source.closed == 0
            await pass_time(0.02)
        if until < FINISH:
            assert live.recording.end == End(
                Outcome.CANCELLED, Fault("stopped", "nobody read it any more, and the call was given up")
            )
            await settled()
            gone(rig, live)
            assert (rig.upstream.aborted, rig.source.closed) == ((1, 0) if phase == "connecting" else (0, 1))
            return
        await pass_time(1_000_000)
        alive(rig, live)
        rig.upstream.door.set()
        rig.source.give(DONE, b"")
        await settled()
        assert live.recording.end == End(Outcome.COMPLETE)
        assert (len(rig.hub), live.recording.whole()) == (0, ONE + DONE)

    run(main)


@pytest.mark.parametrize("back", [False, True])
def test_whoever_comes_back_stops_the_clock_and_the_next_time_it_runs_in_full(back):
    async def main():
        rig, live, reader = await begun(ONE)
        for _ in range(3):
            rig.hub.leave(live, reader, 10)
            await pass_time(9)
            alive(rig, live)
            reader = rig.hub.read(rig.hub.shared(KEY), back=back)
            assert live.timer is None
            await pass_time(100)
            alive(rig, live)
        rig.hub.leave(live, reader, 10)
        await pass_time(9.9)
        alive(rig, live)
        await pass_time(0.2)
        gone(rig, live)

    run(main)


@pytest.mark.parametrize(("back", "lives"), [(False, True), (True, False)])
def test_time_to_come_back_is_used_up_by_whoever_has_come_back(back, lives):
    """It was waited for, and is here; one that only asks for the same may still be followed by it."""

    async def main():
        rig, live, reader = await begun(ONE)
        rig.hub.leave(live, reader, 10)
        await pass_time(2)
        rig.hub.leave(live, rig.hub.read(live, back=back), 0)
        assert (live.recording.end is None) == lives
        await pass_time(7.9)
        assert (live.recording.end is None) == lives
        await pass_time(0.2)
        gone(rig, live)

    run(main)


def test_who_comes_back_uses_up_only_its_own_time():
    """Two lose their connection; one is back and leaves for good before the other has come."""

    async def main():
        rig, live, reader = await begun(ONE)
        other = rig.hub.read(live)
        for each in (reader, other):
            rig.hub.leave(live, each, 600)
        rig.hub.leave(live, rig.hub.read(live, back=True), 0)
        alive(rig, live)
        await pass_time(599)
        alive(rig, live)
        await pass_time(2)
        gone(rig, live)

    run(main)


def test_a_call_that_finishes_does_so_whoever_comes_back_and_leaves_again():
    async def main():
        rig, live, reader = await begun(ONE)
        rig.hub.leave(live, reader, FINISH)
        for back in (True, False):
            rig.hub.leave(live, rig.hub.read(live, back=back), 0)
            await pass_time(1000)
            alive(rig, live)
        rig.hub.stop(STOPPED)
        await settled()

    run(main)


def test_two_who_come_back_have_both_to_leave():
    async def main():
        rig, live, reader = await begun(ONE)
        rig.hub.leave(live, reader, 10)
        await pass_time(5)
        one, other = rig.hub.read(live), rig.hub.read(live)
        rig.hub.leave(live, one, 10)
        await pass_time(100)
        alive(rig, live)
        assert live.timer is None
        rig.hub.leave(live, other, 10)
        await pass_time(9.9)
        alive(rig, live)
        await pass_time(0.2)
        gone(rig, live)

    run(main)


def test_who_cannot_be_served_does_not_stop_the_clock():
    async def main():
        rig, live, reader = await begun(ONE)
        await reader.read()
        live.recording.keep(0)
        rig.hub.leave(live, reader, 10)
        with pytest.raises(ValueError):
            rig.hub.read(live, 3)
        assert live.recording.readers == 0
        await pass_time(11)
        gone(rig, live)

    run(main)


@pytest.mark.parametrize("how", ["ends", "fails", "is stopped", "is cancelled"])
def test_a_call_that_is_over_leaves_no_clock_behind(how):
    async def main():
        rig, live, reader = await begun(ONE)
        rig.hub.leave(live, reader, 10)
        assert live.timer is not None
        if how == "ends":
            rig.source.give(DONE, b"")
        elif how == "fails":
            rig.source.give(ConnectionResetError())  # no fault that a source may raise: a mistake of ours
        elif how == "is stopped":
            rig.hub.stop(STOPPED)
        else:
            rig.hub.cancel(live, Fault("stopped", "with DELETE"))
        await settled()
        assert (len(rig.hub), live.timer) == (0, None)
        assert len(rig.faults) == (how == "fails")
        end = live.recording.end
        await pass_time(100)
        assert live.recording.end is end
        assert end.outcome is {"ends": Outcome.COMPLETE, "fails": Outcome.UPSTREAM_ERROR}.get(
            how, end.outcome
        )

    run(main)


@pytest.mark.parametrize("patience", [0, 10, FINISH])
def test_a_call_that_has_said_everything_is_not_waited_for(patience):
    async def main():
        rig, live, reader = await begun(ONE, DONE)  # and the body never ends
        await reader.read()
        rig.hub.leave(live, reader, patience)
        assert live.recording.end == End(Outcome.COMPLETE)
        await settled()
        assert (len(rig.hub), live.timer) == (0, None)

    run(main)


@pytest.mark.parametrize("patience", [10, FINISH])
def test_who_has_time_to_come_back_finds_the_rest_of_what_has_been_said(patience):
    """Gone while there was more to take, right after the terminal marker: all of it is here."""

    async def main():
        rig, live, reader = await begun(ONE)
        rig.hub.publish(live, "s_1")
        await reader.read()
        rig.source.give(DONE)  # and the body has not ended yet
        await settled()
        rig.hub.leave(live, reader, patience)
        await settled()
        found = rig.hub.find("s_1")
        assert found.recording.end == live.recording.end
        assert await everything(rig.hub.read(found, len(ONE))) == DONE
        rig.hub.close()

    run(main)


def test_one_of_two_that_leaves_the_whole_answer_has_not_cancelled_anything():
    async def main():
        rig, live, reader = await begun(ONE, DONE)
        other = rig.hub.read(live)
        await reader.read()
        rig.hub.leave(live, reader)
        alive(rig, live)
        await other.read()
        rig.hub.leave(live, other)
        assert live.recording.end == End(Outcome.COMPLETE)
        await settled()

    run(main)


def test_what_a_job_holds_is_not_copied_for_those_who_come_back():
    async def main():
        rig, live, reader = await begun(ONE, DONE)
        live.held = True
        rig.hub.publish(live, "j_1")
        rig.source.give(b"")
        await everything(reader)
        await settled()
        assert len(rig.hub) == 0
        assert rig.hub.find("j_1") is live
        rig.hub.forget(live)
        assert rig.hub.find("j_1") is None
        rig.hub.close()

    run(main)


def test_a_call_that_a_job_holds_outlives_every_reader():
    async def main():
        rig, live, reader = await begun(ONE)
        live.held = True
        rig.hub.leave(live, reader, 5)
        assert live.timer is None
        await pass_time(1000)
        rig.hub.drain()
        alive(rig, live)
        rig.hub.stop(STOPPED)
        await settled()
        assert len(rig.hub) == 0

    run(main)


@pytest.mark.parametrize("granted", [[], [0.0, 10]])
def test_leaving_twice_changes_nothing(granted):
    async def main():
        rig, live, reader = await begun(ONE)
        other = rig.hub.read(live)
        for patience in (10, *granted):
            rig.hub.leave(live, reader, patience)
        assert live.timer is None
        rig.hub.leave(live, other)
        await pass_time(9)
        alive(rig, live)
        await pass_time(2)
        gone(rig, live)

    run(main)


def test_given_up_means_gone_for_those_who_come_back():
    async def main():
        rig, live, reader = await begun(ONE)
        rig.hub.publish(live, "s_1")
        rig.hub.leave(live, reader, 10)
        assert rig.hub.find("s_1") is live
        await pass_time(11)
        assert rig.hub.find("s_1") is None
        assert rig.hub.shared(KEY) is None
        assert len(rig.hub._shelf) == 0

    run(main)


def test_a_slow_reader_that_was_dropped_is_no_reader(monkeypatch):
    monkeypatch.setattr(recording_module, "LAG", 100)

    async def main():
        rig = Rig()
        live, slow = rig.start(retain=False)
        fields = ((b"Content-Type", b"application/json"),)
        rig.source.head = Head(200, b"OK", fields, index(fields))
        fast, waiting = rig.hub.read(live), rig.hub.read(live)
        got = []
        flowing = asyncio.ensure_future(fast.flow(got.append))
        other = asyncio.ensure_future(waiting.flow(got.append))
        await settled()
        rig.source.give(*[b"x" * 60] * 3)
        await settled()
        assert (slow.lost, live.recording.readers) == (True, 2)
        for lost in (slow.read(), slow.flow(got.append)):
            with pytest.raises(LostError):
                await lost
        rig.hub.leave(live, slow, 5)
        alive(rig, live)
        rig.source.give(b"")
        assert (await flowing, await other) == ("end", "end")
        assert b"".join(got) == b"x" * 360
        for reader in (fast, waiting):
            rig.hub.leave(live, reader)
        assert live.recording.end == End(Outcome.COMPLETE)

    run(main)


@pytest.mark.parametrize("how", ["read", "flow", "head"])
def test_a_reader_that_is_dropped_while_it_waits_is_told(monkeypatch, how):
    """It waits for its client to catch up, say, and is woken by nothing else."""
    monkeypatch.setattr(recording_module, "LAG", 100)

    async def main():
        rig, live, slow = await begun()
        live.recording.keep(0)
        fast = rig.hub.read(live)
        calls = {"read": slow.read, "flow": lambda: slow.flow(lambda _: True), "head": slow.head}
        waiting = asyncio.ensure_future(calls[how]())
        await settled()
        # Not woken by the append, because it is busy: `take` is what tells that it is lost.
        slow._waiter, waiter = None, slow._waiter
        live.recording.append(b"x" * 101)
        slow._waiter = waiter
        live.recording.take(fast)
        if how == "head":
            assert (await waiting).status == 200
        else:
            with pytest.raises(LostError):
                await waiting
        for reader in (slow, fast):
            rig.hub.leave(live, reader)
        await settled()

    run(main)


@pytest.mark.parametrize("left", ["all", "the fast one"])
def test_a_paused_upstream_goes_on_when_who_it_waited_for_leaves(left):
    async def main():
        rig, live, first = await begun(b"x" * (HIGH + 1))
        second = rig.hub.read(live)
        await settled()
        assert not rig.source._going.is_set()
        rig.hub.leave(live, first, FINISH)
        await settled()
        # The other one has taken nothing either: the upstream still waits.
        assert not rig.source._going.is_set()
        if left == "all":
            rig.hub.leave(live, second)
        else:
            assert len(await second.read()) == HIGH + 1
        await settled()
        assert rig.source._going.is_set()
        rig.source.give(b"\n\n" + DONE, b"")
        await settled()
        assert live.recording.end == End(Outcome.COMPLETE)
        rig.hub.leave(live, second)

    run(main)


def test_what_nobody_reads_is_not_paused_and_takes_no_more_than_is_kept():
    async def main():
        rig, live, reader = await begun()
        rig.hub.leave(live, reader, FINISH)
        for _ in range(64):
            rig.source.give(b"x" * (1 << 20))
            await settled()
            assert len(live.recording._bytes) <= RETAINED
        assert live.recording.size == 64 << 20
        rig.source.give(b"")
        await settled()
        assert len(rig.hub) == 0

    run(main)


# Who waits to hear what became of it.


def test_settled_is_told_once_when_the_call_ends():
    async def main():
        rig, live, reader = await begun(ONE)
        told = []
        rig.hub.leave(live, reader, FINISH)
        live.settled += (lambda: told.append("a"), lambda: told.append("b"))
        await pass_time(1000)
        assert told == []
        rig.source.give(DONE)
        await settled()
        assert told == []
        rig.source.give(b"")
        await settled()
        assert told == ["a", "b"]
        assert live.settled == ()
        assert live.recording.end == End(Outcome.COMPLETE)

    run(main)


def test_settled_is_told_when_somebody_reads_it_again_and_not_a_second_time():
    async def main():
        rig, live, reader = await begun(ONE)
        told = []
        rig.hub.leave(live, reader, 10)
        live.settled += (lambda: told.append(live.recording.readers),)
        back = rig.hub.read(live)
        assert told == [1]
        rig.hub.read(live).close()
        rig.hub.leave(live, back, 10)
        live.settled += (lambda: told.append("end"),)
        await pass_time(11)
        assert told == [1, "end"]

    run(main)


@pytest.mark.parametrize("how", ["time", "drain", "stop", "cancel", "fault"])
def test_settled_is_told_however_the_call_ends(how):
    async def main():
        rig, live, reader = await begun(ONE)
        told = []
        rig.hub.leave(live, reader, 10)
        live.settled += (lambda: told.append(live.recording.end),)
        if how == "time":
            await pass_time(10.1)
        elif how == "drain":
            rig.hub.drain()
        elif how == "stop":
            rig.hub.stop(STOPPED)
        elif how == "cancel":
            rig.hub.cancel(live, Fault("stopped", "x"))
        else:
            rig.source.give(RuntimeError())
        await settled()
        assert told == [live.recording.end] != [None]

    run(main)


# Draining.


def test_draining_gives_up_what_only_waits_for_somebody_to_come_back():
    async def main():
        rig = Rig(ONE)
        waiting, one = rig.start(ask=ask(b"1"))
        finishing, other = rig.start(ask=ask(b"2"))
        read, _ = rig.start(ask=ask(b"3"))
        held, third = rig.start(ask=ask(b"4"))
        held.held = True
        await settled()
        rig.hub.leave(waiting, one, 600)
        rig.hub.leave(finishing, other, FINISH)
        rig.hub.leave(held, third)
        rig.hub.drain()
        ends = [live.recording.end for live in (waiting, finishing, read, held)]
        assert ends[0].outcome is Outcome.CANCELLED
        assert ends[1:] == [None, None, None]
        await settled()
        assert len(rig.hub) == 3
        rig.hub.stop(STOPPED)
        await settled()
        assert rig.hub.idle.is_set()

    run(main)


def test_nobody_is_waited_for_who_leaves_while_it_drains():
    """Nobody can come back any more: new requests are refused."""

    async def main():
        rig, live, reader = await begun(ONE)
        rig.hub.drain()
        rig.hub.leave(live, reader, 600)
        ended = live.recording.end
        rig.hub.stop(STOPPED)
        await settled()
        assert ended is not None
        assert ended.outcome is Outcome.CANCELLED

    run(main)


def test_who_leaves_a_call_that_finishes_is_waited_for_while_it_drains():
    async def main():
        rig, live, reader = await begun(ONE)
        rig.hub.drain()
        rig.hub.leave(live, reader, FINISH)
        await pass_time(100)
        alive(rig, live)
        assert not rig.hub.idle.is_set()
        rig.source.give(DONE, b"")
        await settled()
        assert rig.hub.idle.is_set()
        assert live.recording.end == End(Outcome.COMPLETE)

    run(main)


# All of it.

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.booleans()),
        st.tuples(st.just("leave"), st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 5, 20, FINISH]))),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 3, 10, 30])),
        st.tuples(st.just("chunk"), st.none()),
        st.tuples(st.just("drain"), st.none()),
    ),
    max_size=25,
)


@settings(deadline=None)
@given(STEPS, st.booleans())
def test_any_coming_and_going_is_as_the_table_says(steps, waits):
    """Against a model: it lives while somebody reads, and then as long as the most generous granted."""

    async def main():
        loop = asyncio.get_running_loop()
        rig = Rig(waits=waits)
        live, first = rig.start(ask=KEY)
        await settled()
        readers, until, sent, told, waited, over = [first], 0, b"", [], 0, False
        for name, value in steps:
            if name == "read":
                readers.append(rig.hub.read(rig.hub.shared(KEY), back=value))
                until = 0 if value and until < FINISH else until
                assert told == list(range(waited))
            elif name == "leave" and readers:
                at, patience = value
                rig.hub.leave(live, readers.pop(at % len(readers)), patience)
                until = max(until, loop.time() + patience)
                if not readers and until > loop.time():
                    live.settled += (lambda number=waited: told.append(number),)
                    waited += 1
            elif name == "wait":
                await pass_time(value)
            elif name == "chunk" and not waits:
                rig.source.give(ONE)
                sent += ONE
                await settled()
            elif name == "drain":
                rig.hub.drain()
                over = not readers and until < FINISH
                break
            over = not readers and until <= loop.time()
            if over:
                break
            assert (live.timer is not None) == (not readers and until < FINISH)
            assert len(rig.hub.left) == (not readers)
            alive(rig, live)
        assert (live.recording.end is not None) == over
        if not over:
            rig.upstream.door.set()
            rig.source.give(DONE, b"")
            for reader in readers:
                assert await everything(reader) == sent + DONE
                rig.hub.leave(live, reader)
        await settled()
        assert len(rig.hub) == 0
        assert told == list(range(waited))
        assert live.recording.end.outcome is (Outcome.CANCELLED if over else Outcome.COMPLETE)

    run(main)


@pytest.mark.parametrize("how", ["ends", "time", "back", "drain", "slow", "stop"])
def test_nothing_of_a_call_stays_for_the_garbage_collector(how):
    async def main():
        rig, live, reader = await begun(ONE)
        other = rig.hub.read(live)
        if how == "slow":
            rig.source.give(b"x" * (HIGH + 1))
            await settled()
            assert not rig.source._going.is_set()
        rig.hub.leave(live, other, 5)
        rig.hub.leave(live, reader, 5)
        live.settled += (lambda live=live: live,)
        if how == "back":
            reader = rig.hub.read(live)
            live.settled += (lambda live=live: live,)
            rig.hub.leave(live, reader, 5)
        if how == "drain":
            rig.hub.drain()
        elif how == "stop":
            rig.hub.stop(STOPPED)
        elif how == "ends":
            rig.source.give(DONE, b"")
        else:
            await pass_time(6)
        await settled()
        assert len(rig.hub) == 0

    run(main)  # what is made once
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        run(main)
        gc.collect()
        left = Counter(type(found).__name__ for found in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not {"Live", "Recording", "Answer", "Reader", "Facts"} & set(left), left
