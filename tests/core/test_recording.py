"""sidecar.core.recording: every reader gets the same bytes, in bounded memory, and is woken for them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.recording import Recording
from sidecar.core.types import End, Head, Outcome

HEAD = Head(200, b"OK", (), {})
DONE = End(Outcome.COMPLETE)


class Reader:
    """A waker that remembers."""

    def __init__(self, offset=0):
        self.offset = offset
        self.start = offset
        self.got = b""
        self.woken = 0
        self.lost = False

    def wake(self):
        self.woken += 1


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.binary(min_size=1, max_size=9)),
        st.tuples(st.just("take"), st.integers(0, 3)),
        st.tuples(st.just("attach"), st.integers(0, 40)),
        st.tuples(st.just("detach"), st.integers(0, 3)),
        st.tuples(st.just("pack"), st.just(0)),
    ),
    max_size=40,
)


@given(OPERATIONS, st.sampled_from([0, 12, 1 << 20]), st.sampled_from([5, 1 << 20]))
def test_any_interleaving_gives_every_reader_the_same_bytes(operations, limit, slice_):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sidecar.core.recording.BLOCK", 4)
        patch.setattr("sidecar.core.recording.SLICE", slice_)
        interleave(operations, limit)


def interleave(operations, limit):
    recording, sent = Recording(limit=limit), b""
    readers = [Reader()]
    recording.attach(readers[0])
    everyone = list(readers)
    for name, value in operations:
        if name == "append":
            recording.append(value)
            sent += value
        elif name == "pack":
            packed = recording.pack()
            assert packed <= 4
        elif name == "attach":
            reader = Reader(min(value, len(sent)))
            held = len(sent) <= limit or reader.offset >= min((r.offset for r in readers), default=len(sent))
            try:
                recording.attach(reader)
            except ValueError:
                assert not held
                assert recording.whole() is None
            else:
                readers.append(reader)
                everyone.append(reader)
        elif value < len(readers):
            reader = readers[value]
            if name == "take":
                before = reader.offset
                reader.got += recording.take(reader)
                assert before < reader.offset <= recording.size or reader.offset == recording.size
            else:
                recording.detach(readers.pop(value))
        assert recording.size == len(sent)
        assert recording.readers == len(readers)
        assert recording.whole() in (None, sent)
        if readers:
            slowest = min(reader.offset for reader in readers)
            if name != "take" or len(readers) == 1:
                assert len(recording._bytes) <= max(limit, len(sent) - slowest)
            assert recording.backlog == len(sent) - max(reader.offset for reader in readers)
        if len(sent) <= limit:
            assert recording.whole() == sent
            assert recording.retained == (limit > 0)
    for reader in readers:
        while reader.offset < recording.size:
            reader.got += recording.take(reader)
    for reader in everyone:
        assert reader.got == sent[reader.start : reader.offset]


def test_much_is_taken_event_by_event(monkeypatch):
    monkeypatch.setattr("sidecar.core.recording.SLICE", 10)
    recording, reader = Recording(limit=1 << 20), Reader()
    recording.attach(reader)
    for size in (4, 4, 4, 25, 3):
        recording.append(b"x" * size)
        recording.events.append(recording.size)
    taken = []
    while reader.offset < recording.size:
        taken.append(len(recording.take(reader)))
    # Whole events, as many as there is room for; where one has no room, a part of it.
    assert taken == [8, 4, 10, 10, 8]


def test_a_body_that_passes_through_leaves_nothing_behind():
    recording, reader = Recording(limit=0), Reader()
    recording.attach(reader)
    for _ in range(1000):
        recording.append(b"x" * 1000)
        assert len(recording.take(reader)) == 1000
        assert len(recording._bytes) == 0
    assert recording.whole() is None
    assert not recording.retained


def test_what_outgrows_the_limit_is_kept_only_for_slow_readers():
    recording, fast, slow = Recording(limit=10), Reader(), Reader()
    recording.attach(fast)
    recording.attach(slow)
    recording.append(b"x" * 8)
    assert recording.take(fast) == b"x" * 8
    assert recording.retained
    recording.append(b"y" * 8)
    assert recording.take(fast) == b"y" * 8
    assert len(recording._bytes) == 16
    recording.detach(slow)
    assert len(recording._bytes) == 0
    assert not recording.retained
    with pytest.raises(ValueError):
        recording.attach(Reader(15))


def test_every_change_wakes_every_reader():
    recording, readers = Recording(limit=0), [Reader(), Reader()]
    for reader in readers:
        recording.attach(reader)
    for number, change in enumerate(
        [lambda: recording.commit(HEAD), lambda: recording.append(b"x"), lambda: recording.finish(DONE)], 1
    ):
        change()
        assert [reader.woken for reader in readers] == [number, number]
    recording.detach(readers[0])
    recording.append(b"x")
    assert [reader.woken for reader in readers] == [3, 4]


def test_only_the_first_end_counts():
    recording, reader = Recording(limit=0), Reader()
    recording.attach(reader)
    recording.finish(DONE)
    recording.finish(End(Outcome.CANCELLED))
    assert (recording.end, reader.woken) == (DONE, 1)


def test_the_writer_is_woken_once_when_there_is_room():
    recording, fast, slow, writer = Recording(limit=0), Reader(), Reader(), Reader()
    recording.attach(fast)
    recording.attach(slow)
    recording.append(b"x" * 10)
    recording.when_room(writer, 4)
    recording.append(b"x" * 10)
    assert (recording.backlog, writer.woken) == (20, 0)
    recording.take(fast)
    assert (recording.backlog, writer.woken) == (0, 1)
    recording.append(b"x")
    recording.take(slow)
    recording.take(fast)
    assert writer.woken == 1


@pytest.mark.parametrize(("low", "woken"), [(9, 0), (10, 1)])
def test_the_writer_waits_for_the_backlog_to_be_low(low, woken):
    recording, gone, staying, writer = Recording(limit=0), Reader(), Reader(), Reader()
    for reader in (gone, staying):
        recording.attach(reader)
    recording.append(b"x" * 10)
    recording.take(gone)
    recording.append(b"x" * 10)
    recording.take(staying)
    recording.append(b"x" * 10)
    recording.when_room(writer, low)
    recording.detach(gone)
    assert (recording.backlog, writer.woken) == (10, woken)


def test_a_writer_is_not_left_waiting_when_all_readers_leave():
    recording, reader, writer = Recording(limit=0), Reader(), Reader()
    recording.attach(reader)
    recording.append(b"x" * 10)
    recording.when_room(writer, 0)
    recording.detach(reader)
    recording.detach(reader)
    assert (recording.readers, recording.backlog, writer.woken) == (0, 0, 1)
