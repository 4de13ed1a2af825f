"""sidecar.core.recording with several readers: a slow one is dropped, and the others do not notice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core import recording as module
from sidecar.core.recording import LAG, Recording
from sidecar.core.types import End, Head, Outcome

HEAD = Head(200, b"OK", (), {})
DONE = End(Outcome.COMPLETE)


class Reader:
    """A waker that remembers; `follows`: it takes what there is in the moment it is woken, as a live one does."""

    def __init__(self, recording, *, follows=False, offset=0):
        self.offset = offset
        self.lost = False
        self.got = b""
        self.told = []
        self._recording = recording
        self._follows = follows
        recording.attach(self)

    def wake(self):
        self.told.append("lost" if self.lost else self._recording.size)
        if self._follows and not self.lost and self._recording.size > self.offset:
            self.take()

    def take(self):
        self.got += self._recording.take(self)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(module, "LAG", 16)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 20)),
        st.tuples(st.just("take"), st.integers(0, 4)),
        st.tuples(st.just("attach"), st.booleans()),
        st.tuples(st.just("detach"), st.integers(0, 4)),
        st.tuples(st.just("keep"), st.sampled_from([0, 40])),
    ),
    max_size=40,
)


@given(OPERATIONS, st.sampled_from([0, 24, 1 << 20]), st.booleans())
def test_any_interleaving_drops_only_who_is_far_behind_and_keeps_little(operations, limit, follows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LAG", 16)
        _any_interleaving(operations, limit, follows)


def _any_interleaving(operations, limit, follows):
    recording, sent, count = Recording(limit=limit), b"", 0
    readers, ever = [Reader(recording, follows=follows)], []
    ever += readers
    for name, value in operations:
        before = {reader: reader.lost for reader in ever}
        if name == "append":
            chunk = bytes((count + at) % 251 for at in range(value))
            count += value
            sent += chunk
            recording.append(chunk)
        elif name == "keep":
            limit = value
            recording.keep(value)
        elif name == "attach":
            try:
                readers.append(Reader(recording, follows=value))
            except ValueError:
                assert recording.whole() is None
            else:
                ever.append(readers[-1])
        elif value < len(readers):
            if name == "take":
                readers[value].take()
            else:
                recording.detach(readers.pop(value))
        reading = [reader for reader in readers if not reader.lost]
        fastest = max((reader.offset for reader in reading), default=len(sent))
        for reader in [reader for reader in readers if reader.lost]:
            assert not before[reader]
            assert reader.told[-1] == "lost"
            assert fastest - reader.offset > 16
            assert len(sent) > limit
        readers = reading
        assert recording.readers == len(readers)
        assert recording.backlog == (len(sent) - fastest if readers else 0)
        if len(sent) > limit:
            # As much as the slowest may be behind the fastest, and what even the fastest has yet to take.
            assert len(recording._bytes) <= 16 + len(sent) - fastest
            assert all(fastest - reader.offset <= 16 for reader in readers)
        else:
            assert recording.whole() in (sent, None)
    for reader in readers:
        if not reader.lost:  # the one before may have gone too far ahead
            reader.take()
    for reader in ever:
        assert reader.got == sent[: reader.offset]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("behind", "lost"), [(15, False), (16, False), (17, True)])
def test_a_reader_is_dropped_when_it_is_further_behind_than_allowed(behind, lost):
    recording = Recording(limit=0)
    slow, fast = Reader(recording), Reader(recording, follows=True)
    recording.append(b"x" * behind)
    assert (slow.lost, recording.readers) == (lost, 1 if lost else 2)
    assert ("lost" in slow.told) is lost
    assert not fast.lost
    if not lost:
        slow.take()
        assert slow.got == fast.got == b"x" * behind


@pytest.mark.usefixtures("small")
def test_nobody_is_dropped_while_everything_is_kept():
    recording = Recording(limit=100)
    slow, fast = Reader(recording), Reader(recording, follows=True)
    for _ in range(100):
        recording.append(b"x")
    assert not slow.lost
    slow.take()
    assert slow.got == b"x" * 100
    slow.offset = 0
    recording.append(b"x")
    assert slow.lost
    assert not fast.lost


@pytest.mark.usefixtures("small")
def test_whoever_reads_alone_is_never_dropped():
    recording = Recording(limit=0)
    slow, gone = Reader(recording), Reader(recording, follows=True)
    recording.append(b"x" * 10)
    recording.detach(gone)
    for _ in range(10):
        recording.append(b"x" * 10)
    assert not slow.lost
    slow.take()
    assert slow.got == b"x" * 110


@pytest.mark.usefixtures("small")
def test_readers_that_are_slow_together_are_not_dropped():
    """The writer waits for them; nobody is faster."""
    recording = Recording(limit=0)
    slow = [Reader(recording) for _ in range(3)]
    recording.append(b"x" * 1000)
    assert not any(reader.lost for reader in slow)
    assert recording.backlog == 1000
    slow[1].take()
    assert [reader.lost for reader in slow] == [True, False, True]
    assert (recording.backlog, len(recording._bytes)) == (0, 0)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2], [2, 3, 0, 1]])
def test_the_others_get_every_byte_once_in_whatever_order_they_are_woken(order):
    """Dropped while all are being woken: nobody is passed over and nobody is woken twice."""
    recording = Recording(limit=0)
    made = {}
    for kind in order:
        made[kind] = Reader(recording, follows=kind >= 2)
    slow = [made[0], made[1]]
    fast = [made[2], made[3]]
    for number in range(5):
        recording.append(b"%d" % number * 10)
    for reader in slow:
        assert reader.lost
        assert [told for told in reader.told if told != "lost"] in ([10], [10, 20])
        assert reader.told[-1] == "lost"
    for reader in fast:
        assert reader.told == [10, 20, 30, 40, 50]
        assert reader.got == b"".join(b"%d" % number * 10 for number in range(5))
    recording.commit(HEAD)
    recording.finish(DONE)
    assert [len(reader.told) for reader in fast] == [7, 7]
    assert [reader.told[-1] for reader in slow] == ["lost", "lost"]


@pytest.mark.usefixtures("small")
def test_giving_up_what_was_kept_drops_who_still_needed_it():
    recording = Recording(limit=1 << 20)
    slow, near, fast = (Reader(recording) for _ in range(3))
    recording.append(b"x" * 100)
    near.take()
    recording.append(b"y" * 10)
    fast.take()
    assert not slow.lost
    recording.keep(0)
    assert (slow.lost, near.lost, fast.lost) == (True, False, False)
    assert slow.told == [100, 110, "lost"]
    assert len(recording._bytes) == 10
    near.take()
    assert near.got == fast.got == b"x" * 100 + b"y" * 10
    with pytest.raises(ValueError):
        Reader(recording)


@pytest.mark.usefixtures("small")
def test_a_dropped_reader_that_leaves_takes_nothing_with_it():
    recording = Recording(limit=0)
    writer = type("Writer", (), {"woken": 0, "wake": lambda self: setattr(self, "woken", self.woken + 1)})()
    slow, fast = Reader(recording), Reader(recording)
    recording.append(b"x" * 20)
    recording.when_room(writer, 10)
    recording.detach(slow)
    assert writer.woken == 0
    other = Reader(recording, offset=20)
    fast.take()
    assert writer.woken == 1
    recording.append(b"y" * 20)
    other.take()
    assert fast.lost
    recording.append(b"z" * 12)
    recording.when_room(writer, 10)
    recording.detach(fast)
    recording.detach(fast)
    assert (writer.woken, recording.readers) == (1, 1)
    other.take()
    assert writer.woken == 2
    assert other.got == b"y" * 20 + b"z" * 12


def test_one_that_stands_still_costs_at_most_the_allowed_bytes():
    recording, block = Recording(limit=0), bytes(1 << 20)
    slow, fast = Reader(recording), Reader(recording)
    most = 0
    for _ in range(40):
        recording.append(block)
        fast.offset = recording.size - len(block)
        assert len(recording.take(fast)) == len(block)
        most = max(most, len(recording._bytes))
    assert slow.lost
    assert LAG - len(block) <= most <= LAG + len(block)
    assert len(recording._bytes) == 0


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_many_readers_cost_each_other_nothing(limit):
    """What a chunk costs grows with their number, not with its square: it holds up every stream of the process."""
    looked = 0

    class Watched(Reader):
        @property
        def offset(self):
            nonlocal looked
            looked += 1
            return self._offset

        @offset.setter
        def offset(self, value):
            self._offset = value

    many, recording = 500, Recording(limit=limit)
    readers = [Watched(recording, follows=True) for _ in range(many)]
    recording.append(b"x")
    looked = 0
    recording.append(b"x")
    assert looked < 20 * many
    assert all(reader.got == b"xx" for reader in readers)
