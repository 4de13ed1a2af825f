"""sidecar.serving.shares: rates that are kept, whoever asks when, and counts of several processes."""

import fcntl
import math
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.serving.shares import Shares, paced
from sidecar.stores.turn import Turn

RATES = st.floats(0.01, 1000)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def alone(*names, clock=None):
    return Shares(None, 0, 1, names, clock or Clock())


@given(rate=RATES, gaps=st.lists(st.floats(0, 3), max_size=200))
def test_no_window_lets_more_through_than_its_rate_and_one_burst(rate, gaps):
    due, now, passed = 0.0, 50.0, []
    for gap in gaps:
        now += gap
        due, wait = paced(due, now, rate)
        if not wait:
            passed.append(now)
    burst = max(rate, 1.0)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            allowed = burst + (passed[last] - passed[first]) * rate
            assert last - first + 1 <= allowed + 1e-6


@given(rate=RATES, count=st.integers(1, 50), spare=st.floats(1e-6, 2))
def test_who_keeps_to_the_rate_is_never_refused(rate, count, spare):
    due, now = 0.0, 50.0
    for _ in range(count):
        due, wait = paced(due, now, rate)
        assert not wait
        now += 1 / rate + spare


@given(rate=RATES, gaps=st.lists(st.floats(0, 0.1), min_size=1, max_size=100))
def test_the_wait_is_as_long_as_it_takes(rate, gaps):
    due, now = 0.0, 50.0
    for gap in gaps:
        now += gap
        due, wait = paced(due, now, rate)
        if wait:
            assert wait <= 1 / rate + 1e-9
            assert paced(due, now + wait, rate)[1] == 0
            assert paced(due, now + wait * 0.99, rate)[1] > 0
            assert paced(due, now, rate) == (due, wait)  # nothing was spent
            break


@given(rate=RATES)
def test_a_burst_is_as_many_as_in_a_second(rate):
    due, passed = 0.0, 0
    while passed < 2000:
        due, wait = paced(due, 50.0, rate)
        if wait:
            break
        passed += 1
    assert passed == max(1, math.floor(rate + 1e-6))


def test_a_lower_rate_of_before_does_not_hold_up():
    """The rate was changed: what it owed under the old one is not waited for."""
    due, _ = paced(0.0, 50.0, 0.001)
    assert due == 1050.0
    _, wait = paced(due, 50.0, 10)
    assert wait <= 0.1


def test_a_refusal_spends_nothing():
    clock = Clock()
    shares = alone("a", clock=clock)
    assert shares.spend("a", 1) == 0
    for _ in range(100):
        assert shares.spend("a", 1) == pytest.approx(1)
    clock.now += 1
    assert shares.spend("a", 1) == 0


def test_clients_do_not_share():
    shares = alone("a", "b")
    assert [shares.spend(name, 1) > 0 for name in ("a", "b", "a", "b")] == [False, False, True, True]


def test_nobody_is_none():
    shares = alone()
    assert "a" not in shares
    shares.close()


def test_workers_see_each_other(tmp_path):
    clock = Clock()
    made = [Shares(tmp_path / "shares", number, 3, ["a", "b"], clock) for number in range(3)]
    for number, shares in enumerate(made):
        shares.set_running("a", number + 1)
    assert [shares.running("a") for shares in made] == [6, 6, 6]
    assert [shares.running("b") for shares in made] == [0, 0, 0]
    assert [shares.spend("b", 2) > 0 for shares in made] == [False, False, True]
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_worker_that_starts_again_has_nothing_running_and_the_rest_stays(tmp_path):
    clock = Clock()
    made = [Shares(tmp_path / "shares", number, 2, ["a"], clock) for number in range(2)]
    made[0].set_running("a", 5)
    made[1].set_running("a", 7)
    made[0].spend("a", 1)
    again = Shares(tmp_path / "shares", 1, 2, ["a"], clock)
    assert again.running("a") == made[0].running("a") == 5
    assert again.spend("a", 1) > 0


def test_other_names_are_another_table(tmp_path):
    """A worker that has read the configuration already, and one that has not, write to different ones."""
    clock = Clock()
    old = Shares(tmp_path / "shares", 0, 2, ["a", "b"], clock)
    old.set_running("b", 3)
    old.spend("b", 1)
    new = Shares(tmp_path / "shares", 0, 2, ["b", "c"], clock)
    new.take_over(old)
    assert (new.running("b"), new.running("c")) == (0, 0)
    assert new.spend("b", 1) > 0
    assert not new.spend("c", 1)
    new.set_running("c", 9)
    assert old.running("b") == 3


def test_nobody_spends_between_what_another_reads_and_writes(tmp_path):
    """A worker that is held up in between would bring back what others have spent meanwhile."""
    held = []

    def clock():
        (path,) = tmp_path.iterdir()
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(True)
            else:
                held.append(False)
        return 50.0

    shares = Shares(tmp_path / "shares", 0, 2, ["a"], clock)
    assert [shares.spend("a", 1) for _ in range(2)] == [0.0, pytest.approx(1)]
    assert held == [True, True]
    clock()
    assert held.pop() is False
    shares.close()


def test_who_is_stopped_while_he_has_the_lock_holds_nobody_up(tmp_path, monkeypatch):
    slept = []
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=slept.append)
    monkeypatch.setattr("sidecar.stores.turn.time", clock)
    monkeypatch.setattr("sidecar.serving.shares._PATIENCE", 0.001)
    shares = Shares(tmp_path / "shares", 0, 2, ["a", "b"], Clock())
    (path,) = tmp_path.iterdir()
    turn = Turn(path)
    with turn:
        assert shares.spend("a", 1) == 0
        assert slept
        slept.clear()
        assert shares.spend("a", 1) == pytest.approx(1), "what was spent counts all the same"
        assert not slept, "nobody waits twice for him"
    assert shares.spend("b", 1) == 0
    with turn:
        assert shares.spend("b", 1) > 0
        assert slept, "he was heard of again"
    turn.close()
    shares.close()


CHILD = """
import sys, time
from pathlib import Path
from sidecar.serving.shares import Shares
shares = Shares(Path(sys.argv[1]), int(sys.argv[2]), 2, ["a", "b"])
sys.stdin.read(1)
passed = 0
begun = time.monotonic()
end = begun + 0.4
while time.monotonic() < end:
    passed += not shares.spend("a", 200)
shares.set_running("b", passed)
print(passed, begun, time.monotonic(), flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="workers are POSIX")
def test_two_processes_together_keep_to_one_rate(tmp_path):
    begin = [sys.executable, "-c", CHILD, str(tmp_path / "shares")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen([*begin, str(number)], **pipes) for number in range(2)]
    mine = Shares(tmp_path / "shares", 0, 2, ["a", "b"])
    for child in running:
        child.stdin.write("x")
        child.stdin.flush()
    told = [[float(part) for part in child.communicate()[0].split()] for child in running]
    passed = sum(count for count, _, _ in told)
    assert mine.running("b") == passed
    took = max(ended for _, _, ended in told) - min(begun for _, begun, _ in told)
    assert 200 <= passed <= 200 + 200 * took + 1
