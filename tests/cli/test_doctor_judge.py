"""sidecar.cli.doctor_judge: what arrival times say. No socket, no clock."""

import gzip
import zlib

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.cli.doctor_judge import Arrival, Reading, pace, silent_for

PACE = 0.15
SENT = [number * PACE for number in range(17)]


def arrivals(came):
    return [Arrival(n, sent, at) for n, (sent, at) in enumerate(zip(SENT, came, strict=True))]


def after(delays):
    """As TCP delivers: no event before the one in front of it."""
    came, latest = [], 0.0
    for sent, delay in zip(SENT, delays, strict=True):
        latest = max(latest, sent + delay)
        came.append(latest)
    return arrivals(came)


@given(st.floats(0, 5), st.lists(st.floats(0, 0.06), min_size=17, max_size=17))
def test_any_way_with_some_jitter_is_live(way, jitter):
    found = pace(after([way + more for more in jitter]))
    assert found.kind == "live"
    assert found.late <= 0.07


@given(st.floats(0, 5), st.integers(1, 15), st.floats(0.2, 1.5))
def test_one_stall_of_a_network_is_no_buffering(way, at, stall):
    """A packet that had to be sent again holds up what is behind it, and only once."""
    length = min(stall, 5 * PACE)
    found = pace(after([way + (length if n == at else 0) for n in range(17)]))
    assert found.kind == "live"


@given(st.floats(0, 5), st.floats(0, 30))
def test_what_comes_in_one_go_is_buffered_whole(way, held):
    found = pace(arrivals([SENT[-1] + way + held + n * 0.0001 for n in range(17)]))
    assert (found.kind, found.moments) == ("whole", 1)
    assert found.late == pytest.approx(SENT[-1], abs=0.01)


@given(st.floats(0, 5), st.integers(3, 8))
def test_what_comes_block_by_block_is_buffered(way, size):
    ends = [min((n // size + 1) * size - 1, 16) for n in range(17)]
    found = pace(arrivals([SENT[end] + way for end in ends]))
    assert found.kind == "blocks"
    assert found.moments == len(set(ends))


def test_small_events_that_only_large_ones_push_through_are_buffered():
    """A buffer of 4 KiB: twelve small events come with the first large one, the large ones when they are sent."""
    found = pace(arrivals([*[SENT[13]] * 13, *SENT[13:]]))
    assert (found.kind, round(found.late, 2)) == ("blocks", 1.95)


def test_the_last_event_held_through_the_silence_is_seen():
    seen = arrivals([*SENT[:-1], SENT[-1] + 4.0])
    last = Arrival(17, SENT[-1] + 4.0, SENT[-1] + 4.001)
    assert pace(seen, last).kind == "tail"
    # Without a silence, or without what came behind it, nobody can tell.
    assert pace(seen, Arrival(17, SENT[-1] + 0.5, SENT[-1] + 4.001)).kind == "live"
    assert pace(seen).kind == "live"


@given(st.floats(0, 3), st.floats(0.5, 60))
def test_the_silence_is_counted_from_when_the_last_event_was_sent(way, silence):
    seen = arrivals([sent + way for sent in SENT])
    assert silent_for(seen, 2.4, SENT[-1] + way + silence) == pytest.approx(silence)


def test_a_cut_without_any_event_is_counted_from_when_they_were_sent():
    assert silent_for([], 2.4, 4.4) == pytest.approx(2.0)
    assert silent_for([], 2.4, 1.0) == 0


def stream(end="whole"):
    events = [{"n": 0, "at": 0.0, "probe": 1, "http": "1.1"}]
    events += [{"n": n, "at": n * 150.0, "padding": "x" * (50 if n > 2 else 0)} for n in range(1, 5)]
    events += [{"n": 5, "at": 4600.0, "end": end}]
    return b"".join(b"data: %b\n\n" % orjson.dumps(event) for event in events)


def read(encoding, data, cuts):
    reading, begin = Reading(encoding), 0
    for number, end in enumerate([*sorted(cuts), len(data)]):
        reading.feed(float(number), data[begin:end])
        begin = end
    return reading


@given(st.data(), st.sampled_from(["", "gzip", "deflate"]))
def test_however_the_bytes_are_cut_the_events_are_the_same(data, encoding):
    plain = stream()
    sent = {"": lambda: plain, "gzip": lambda: gzip.compress(plain), "deflate": lambda: zlib.compress(plain)}
    body = sent[encoding]()
    reading = read(encoding, body, data.draw(st.sets(st.integers(0, len(body)))))
    assert [one.sent for one in reading.arrivals] == [0, 0.15, 0.3, 0.45, 0.6]
    assert [one.came for one in reading.arrivals] == sorted(one.came for one in reading.arrivals)
    assert (reading.end, reading.hello["http"], reading.last.sent) == ("whole", "1.1", 4.6)


def test_an_event_has_come_when_its_last_byte_has():
    body = stream()
    first = body.index(b"\n\n") + 1
    reading = read("", body, [first])
    assert [one.came for one in reading.arrivals] == [1.0] * 5
    assert read("", body, [first + 1]).arrivals[0].came == 0.0


@given(st.binary(max_size=300), st.sampled_from(["", "gzip", "deflate", "br"]))
def test_what_is_no_probe_is_told_by_a_value_error_alone(body, encoding):
    reading = Reading(encoding)
    try:
        reading.feed(0.0, body + b"\n\n")
    except ValueError:
        return
    assert not reading.arrivals


@pytest.mark.parametrize(
    "event",
    [b"[1]", b'{"at": true}', b'{"at": "0"}', b'{"n": 1, "at": 0.0}', b"null", b'{"probe": 1}', b"[DONE]"],
)
def test_other_streams_are_not_taken_for_a_probe(event):
    with pytest.raises(ValueError):
        Reading("").feed(0.0, b"data: %b\n\n" % event)


def test_a_bomb_is_not_unpacked():
    bomb = gzip.compress(b"\0" * (64 << 20))
    with pytest.raises(ValueError, match="more than a probe"):
        Reading("gzip").feed(0.0, bomb)


def test_a_coding_that_nobody_asked_for_is_not_read():
    reading = Reading("br")
    reading.feed(0.0, stream())
    assert not reading.readable
    assert not reading.arrivals
