"""sidecar.engine.reader: the tail of a recording, and its clock of silence."""

import asyncio

import pytest

from sidecar.core.recording import Recording
from sidecar.core.types import End, Outcome
from sidecar.engine.reader import Reader
from tests.engine.rig import HEAD, everything, pass_time, run, settled

DONE = End(Outcome.COMPLETE)


def recording(*chunks, end=None, limit=1 << 20):
    made = Recording(limit=limit)
    for chunk in chunks:
        made.append(chunk)
    if end is not None:
        made.finish(end)
    return made


def reader_of(made, offset=0):
    return Reader(made, asyncio.get_running_loop(), offset)


def test_it_gets_all_bytes_past_its_offset_joined_and_then_the_end():
    async def main():
        made = recording(b"ab", b"cd", end=DONE)
        assert [await reader_of(made, at).read() for at in (0, 1, 3)] == [b"abcd", b"bcd", b"d"]
        reader = reader_of(made, 4)
        assert [await reader.read(), await reader.read()] == [b"", b""]
        with pytest.raises(ValueError):
            passing = recording(limit=0)
            first = reader_of(passing)
            passing.append(b"x")
            await first.read()
            reader_of(passing)

    run(main)


def test_it_follows_the_tail():
    async def main():
        made = recording()
        readers = [reader_of(made), reader_of(made)]
        tasks = [asyncio.ensure_future(everything(reader)) for reader in readers]
        for chunk in (b"a", b"b", b"cd"):
            await settled()
            made.append(chunk)
        made.append(b"e")
        made.finish(DONE)
        assert await asyncio.gather(*tasks) == [b"abcde", b"abcde"]

    run(main)


@pytest.mark.parametrize(("head", "end"), [(HEAD, None), (None, DONE), (HEAD, DONE)])
def test_the_head_or_the_end_without_one(head, end):
    async def main():
        made = recording()
        waiting = asyncio.ensure_future(reader_of(made).head())
        await settled()
        assert not waiting.done()
        if head:
            made.commit(head)
        if end:
            made.finish(end)
        assert await waiting is head
        assert await reader_of(made).head() is head

    run(main)


@pytest.mark.parametrize("method", ["head", "read"])
def test_silence_is_told_every_interval(method):
    async def main():
        loop, reader = asyncio.get_running_loop(), reader_of(recording())
        reader.every(15)
        told = []
        for _ in range(3):
            assert await getattr(reader, method)() is None
            told.append(loop.time())
        assert told == pytest.approx([15, 30, 45])
        reader.close()

    run(main)


@pytest.mark.parametrize("interval", [0, 15])
def test_without_a_clock_silence_is_never_told(interval):
    async def main():
        reader = reader_of(recording())
        reader.every(15)
        reader.every(interval)
        reader.every(0)
        waiting = asyncio.ensure_future(reader.read())
        await pass_time(1000)
        assert not waiting.done()
        waiting.cancel()

    run(main)


def test_bytes_start_the_silence_anew():
    async def main():
        loop, made = asyncio.get_running_loop(), recording()
        reader = reader_of(made)
        reader.every(10)
        for at in (6, 9, 14):
            loop.call_at(at, made.append, b"x")
        got = []
        for _ in range(5):
            data = await reader.read()
            got.append((loop.time(), data))
        assert got == [(6, b"x"), (9, b"x"), (14, b"x"), (24, None), (34, None)]
        reader.close()

    run(main)


def test_a_silence_that_bytes_have_ended_is_not_told():
    async def main():
        made = recording()
        reader = reader_of(made)
        reader.every(10)
        await pass_time(10)  # nobody is reading; the clock runs out
        made.append(b"x")
        assert await reader.read() == b"x"
        waiting = asyncio.ensure_future(reader.read())
        await pass_time(9)
        assert not waiting.done()
        await pass_time(2)
        assert await waiting is None
        reader.close()

    run(main)


def test_a_new_interval_counts_from_now():
    async def main():
        loop, reader = asyncio.get_running_loop(), reader_of(recording())
        reader.every(3)
        assert await reader.head() is None
        reader.every(15)
        assert await reader.read() is None
        assert loop.time() == 18
        reader.close()

    run(main)


def test_one_timer_serves_any_number_of_chunks():
    async def main():
        loop, made = asyncio.get_running_loop(), recording()
        reader = reader_of(made)
        reader.every(15)
        for _ in range(1000):
            made.append(b"x")
            await reader.read()
        assert sum(not timer.cancelled() for timer in loop._scheduled) == 1
        reader.close()

    run(main)


def test_a_closed_reader_holds_nothing():
    async def main():
        made = recording(limit=0)
        fast, slow = reader_of(made), reader_of(made)
        slow.every(15)
        made.append(b"x" * 100)
        await fast.read()
        assert made.readers == 2
        slow.close()
        slow.close()
        assert (made.readers, made.whole()) == (1, None)

    run(main)


def test_cancelling_a_read_loses_nothing():
    async def main():
        made = recording()
        reader = reader_of(made)
        waiting = asyncio.ensure_future(reader.read())
        await settled()
        made.append(b"a")
        waiting.cancel()
        await settled()
        assert waiting.cancelled()
        made.append(b"b")
        made.finish(DONE)
        assert await everything(reader) == b"ab"

    run(main)


def test_a_flow_writes_in_the_moment_of_the_append():
    async def main():
        made = recording()
        reader = reader_of(made)
        got = []
        made.append(b"before")
        flowing = asyncio.ensure_future(reader.flow(got.append))
        await settled()
        assert got == [b"before"]
        for piece in (b"one", b"two"):
            made.append(piece)
            assert got[-1] == piece  # without a turn of the event loop
        made.finish(End(Outcome.COMPLETE))
        assert await flowing == "end"
        assert got == [b"before", b"one", b"two"]
        reader.close()

    run(main)


def test_a_flow_stops_when_its_side_is_behind_and_loses_nothing():
    async def main():
        made = recording()
        reader = reader_of(made)
        got = []

        def write(data):
            got.append(data)
            return len(got) == 1

        flowing = asyncio.ensure_future(reader.flow(write))
        await settled()
        made.append(b"a")
        made.append(b"b")  # recorded while nobody writes
        assert got == [b"a"]
        assert await flowing == "behind"
        made.finish(End(Outcome.COMPLETE))
        assert await reader.flow(write) == "end"
        assert got == [b"a", b"b"]
        reader.close()

    run(main)


def test_a_flow_tells_silence_and_then_goes_on():
    async def main():
        made = recording()
        reader = reader_of(made)
        got = []
        reader.every(10)
        assert await reader.flow(got.append) == "silent"
        made.append(b"x")
        made.finish(End(Outcome.COMPLETE))
        assert await reader.flow(got.append) == "end"
        assert got == [b"x"]
        reader.close()

    run(main)


def test_what_a_write_raises_is_the_readers_and_not_the_writers():
    async def main():
        made = recording()
        reader, other = reader_of(made), reader_of(made)
        got = []

        def write(data):
            raise ConnectionError(data)

        broken = asyncio.ensure_future(reader.flow(write))
        whole = asyncio.ensure_future(other.flow(got.append))
        await settled()
        made.append(b"x")  # does not raise
        made.finish(End(Outcome.COMPLETE))
        with pytest.raises(ConnectionError):
            await broken
        assert (await whole, got) == ("end", [b"x"])
        reader.close()
        other.close()

    run(main)
