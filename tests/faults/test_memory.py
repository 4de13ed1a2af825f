"""Memory is short: first nothing new is kept, then no new requests are taken, and what runs goes on in any case."""

import asyncio
import errno
import os
import sys
import threading
from collections import Counter
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.lru import Lru
from sidecar.serving import machine, relief
from sidecar.serving.room import Room
from sidecar.serving.watermark import Level, Watch, Watermark, mark_of
from sidecar.upstream.descriptors import descriptor_free
from tests.admin.conftest import Port
from tests.faults import cache, comeback
from tests.faults.cache import PLAIN, STREAMED, filled, hits, misses, settled
from tests.faults.comeback import IDS, begin, ended, left, passed
from tests.faults.conftest import eventually
from tests.faults.test_process import serving
from tests.faults.wire import CHAT, GUARD, LAST, Client, chunk, head, request

MARK = 1000
NORMAL, HIGH, CRITICAL = Level
USED = {NORMAL: 500, HIGH: 1050, CRITICAL: 1101}
JOB = (b"Prefer", b"respond-async")


# The decision.


@pytest.mark.parametrize(
    ("before", "used", "after"),
    [
        *[(before, 1101, CRITICAL) for before in Level],
        *[(before, 949, NORMAL) for before in Level],
        (NORMAL, 1000, NORMAL),
        (NORMAL, 1001, HIGH),
        (HIGH, 1100, HIGH),
        (HIGH, 950, HIGH),
        (CRITICAL, 1001, CRITICAL),
        (CRITICAL, 1000, HIGH),
        (CRITICAL, 950, HIGH),
    ],
)
def test_levels(before, used, after):
    """Once so much time has passed that it may change at all."""
    watermark = Watermark(MARK)
    watermark.see(USED[before], 0.0)
    assert watermark.level is before
    assert watermark.see(used, 30.0) is (after is not before)
    assert watermark.level is after


@pytest.mark.parametrize(
    ("before", "after", "held"), [(HIGH, NORMAL, 30.0), (CRITICAL, NORMAL, 30.0), (CRITICAL, HIGH, 2.0)]
)
def test_a_level_is_kept_for_a_while(before, after, held):
    watermark = Watermark(MARK)
    watermark.see(USED[before], 100.0)
    watermark.see(0, 100.0 + held - 0.01)
    assert watermark.level > after
    watermark.see(0, 100.0 + held)
    assert watermark.level is after


LOOKS = st.lists(st.tuples(st.sampled_from([0.0, 0.25, 1.0, 7.0, 31.0]), st.integers(0, 1500)), max_size=60)


@given(LOOKS)
def test_no_level_comes_and_goes_while_memory_moves_by_less_than_the_gap_or_within_the_hold(looks):
    """Whoever is refused once is refused until memory has fallen by 5 % of the mark, and for a while."""
    watermark, entered, now = Watermark(MARK), {}, 0.0
    for after, used in looks:
        before, now = watermark.level, now + after
        watermark.see(used, now)
        for level in (HIGH, CRITICAL):
            if before < level <= watermark.level:
                entered[level] = used, now
            elif watermark.level < level <= before:
                then, since = entered.pop(level)
                assert used <= then - 50
                assert now - since >= {HIGH: 30, CRITICAL: 2}[level]
        if used > MARK:
            assert watermark.level is not NORMAL
        if used > MARK * 1.1:
            assert watermark.level is CRITICAL


def test_what_is_given_up_is_what_is_too_much_and_comes_back_slowly():
    room = Room(6000)
    assert room.see(NORMAL, 500, MARK, 400, 0.0) == 6000
    assert room.see(HIGH, 1050, MARK, 400, 1.0) == 200  # down to 850
    assert room.see(HIGH, 1050, MARK, 200, 10.9) == 200  # the kernel has it back later than we
    assert room.see(HIGH, 900, MARK, 200, 11.5) == 200
    assert room.see(HIGH, 1020, MARK, 200, 12.0) == 30
    assert room.see(CRITICAL, 1200, MARK, 30, 13.0) == 0
    assert room.see(HIGH, 800, MARK, 0, 15.0) == 0
    assert room.see(NORMAL, 800, MARK, 0, 45.0) == 25
    assert room.see(NORMAL, 900, MARK, 25, 46.0) == 25
    assert room.see(NORMAL, 840, MARK, 25, 47.0) == 35  # 6000 in 600 s
    assert room.see(NORMAL, 840, MARK, 100, 10_000.0) == 6000


@given(LOOKS, st.lists(st.integers(0, 800), min_size=60, max_size=60))
def test_room_is_never_more_than_there_is_and_grows_only_where_memory_is_not_short(looks, kept):
    watermark, room, now, before = Watermark(MARK), Room(800), 0.0, 800
    for (after, used), holds in zip(looks, kept, strict=False):
        level, now = watermark.level, now + after
        watermark.see(used, now)
        found = room.see(watermark.level, used, MARK, holds, now)
        assert 0 <= found <= 800
        if watermark.level is not NORMAL:
            assert found <= before
        elif level is NORMAL:
            assert 0 <= found - before <= 1 + 800 * after / 600
        before = found


def test_under_a_steady_load_what_is_kept_settles_below_the_mark():
    """1 MB streams one after another at 120 MB: short once, and hardly anything of what is promised later is given up;
    without a hold and a smaller room this was short every 3 s, and everything went each time."""
    watermark, room, kept, now, changes = Watermark(120), Room(256), 0, 0.0, []
    for _ in range(4 * 900):
        now += 0.25
        if watermark.level is NORMAL:
            kept += 5
        kept = min(kept, room.see(watermark.level, 50 + kept, 120, kept, now))
        if watermark.see(50 + kept, now):
            changes.append(now)
    assert 2 <= len(changes) <= 3
    assert kept >= 40


@pytest.mark.parametrize(
    ("configured", "allowed", "workers", "used", "mark"),
    [
        (0, 1000, 1, 0, 800),
        (0, 1000, 4, 0, 200),
        (0, None, 1, 0, 0),
        (300, 1000, 4, 0, 300),  # what is configured goes, and is of each
        (300, None, 1, 900, 300),
        (0, 1000, 1, 599, 800),
        (0, 1000, 1, 600, 0),  # nobody chose it, and it would refuse everybody before long
    ],
)
def test_the_mark(configured, allowed, workers, used, mark):
    assert mark_of(configured, allowed, workers, used) == mark


# What the kernel says.


def kernel(folder: Path, cgroup: str, **limits: str) -> tuple[Path, Path]:
    (folder / "proc").mkdir()
    (folder / "proc" / "cgroup").write_text(cgroup)
    for name, value in limits.items():
        file = folder / "sys" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(value)
    return folder / "sys", folder / "proc"


MIB = 1 << 20


@pytest.mark.parametrize(
    ("cgroup", "limits", "found"),
    [
        ("0::/a/b\n", {"a/b/memory.max": f"{MIB}\n", "a/memory.max": "max\n"}, MIB),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": f"{2 * MIB}\n"}, 2 * MIB),
        ("0::/a/b\n", {"a/b/memory.max": f"{3 * MIB}\n", "a/memory.max": f"{2 * MIB}\n"}, 2 * MIB),
        # In a container the path may be the host's, and what is mounted begins at the container's own.
        ("0::/system.slice/docker-1.scope\n", {"memory.max": f"{MIB}\n"}, MIB),
        ("0::/\n", {"memory.max": f"{MIB}\n"}, MIB),
        ("0::/../..\n", {"memory.max": f"{MIB}\n"}, MIB),
        (
            "5:cpu,cpuacct:/x\n4:memory:/x/y\n0::/\n",
            {
                "memory/x/y/memory.limit_in_bytes": "9223372036854771712\n",
                "memory/x/memory.limit_in_bytes": f"{MIB}\n",
            },
            MIB,
        ),
        # From there on the kernel makes it wait.
        ("0::/a\n", {"a/memory.max": f"{2 * MIB}\n", "a/memory.high": f"{MIB}\n"}, MIB),
        ("0::/a/b\n", {"a/b/memory.max": f"{2 * MIB}\n", "a/memory.high": f"{MIB}\n"}, MIB),
        ("0::/a\n", {"a/memory.max": f"{MIB}\n", "a/memory.high": "max\n"}, MIB),
        ("0::/a\n", {"a/memory.max": "max\n"}, None),
        ("0::/a\n", {"a/memory.max": "0\n"}, None),
        ("0::/a\n", {"a/memory.max": "what\n"}, None),
        ("nonsense\n", {}, None),
        ("4:memory:/x\n", {"memory/x/memory.limit_in_bytes": "9223372036854771712\n"}, None),
    ],
)
def test_what_a_process_may_take(tmp_path, cgroup, limits, found):
    machines = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.allowed(*kernel(tmp_path, cgroup, **limits)) == (found or machines)


def test_without_control_groups_it_is_what_the_machine_has(tmp_path):
    assert machine.allowed(tmp_path, tmp_path) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_it_takes_is_its_own():
    memory = machine.Memory()
    before = memory.used()
    held = b"\x01" * (64 << 20)
    assert memory.used() - before >= len(held) * 0.9
    assert memory.used() <= psutil.Process().memory_info().rss
    memory.close()
    assert memory.used() is None


@pytest.mark.parametrize("content", [None, "", "1 2", "a b c d"])
def test_where_it_cannot_be_told_nobody_says_so(tmp_path, content):
    file = tmp_path / "statm"
    if content is not None:
        file.write_text(content)
    memory = machine.Memory(file)
    assert memory.used() is None
    memory.close()


@pytest.mark.parametrize(
    ("number", "free"), [(errno.EMFILE, False), (errno.ENFILE, False), (errno.EBADF, True)]
)
def test_whether_a_descriptor_is_to_be_had(monkeypatch, number, free):
    assert descriptor_free(0)

    def fails(_descriptor: int) -> int:
        raise OSError(number, "")

    monkeypatch.setattr(os, "dup", fails)
    assert descriptor_free(0) is free


def test_an_lru_that_gets_less_room_keeps_what_was_used_last():
    lru = Lru(10)
    for key in (b"a", b"b", b"c"):
        lru.put(key, key, 3)
    lru.get(b"a")
    assert lru.resize(6) == 3
    assert [key for key, _ in lru.items()] == [b"c", b"a"]
    assert lru.resize(0) == 6
    assert (len(lru), lru.used) == (0, 0)
    assert lru.put(b"d", b"d", 1)
    lru.resize(6)
    assert lru.put(b"d", b"d", 1) == []


# The watch.


class Log:
    def __init__(self) -> None:
        self.told: list[str] = []
        self.fields: dict[str, object] = {}
        self.info = self.warning = self._tell

    def _tell(self, event: str, **fields: object) -> None:
        self.told.append(event)
        self.fields = fields


class Gives:
    """What would be given up."""

    def __init__(self) -> None:
        self.levels: list[Level] = []
        self.kept = 0
        self.idle = True
        self.stopped = 0

    def __call__(self, level: Level, _used: int, _mark: int, _now: float) -> None:
        if level is not (self.levels or [NORMAL])[-1]:
            self.levels.append(level)

    def stop(self) -> None:
        self.stopped += 1


class Rigged:
    """A watch whose readings are a test's."""

    def __init__(self, **more: object) -> None:
        self.used: int | None = 0
        self.free = True
        self.trims: list[int] = []
        self.gives = Gives()
        self.log = Log()
        self.now = 1000.0
        self.watch = Watch(
            Watermark(MARK),
            lambda: self.used,
            self.gives,
            self.log,
            **{"descriptor_free": lambda: self.free, "trim": lambda: self.trims.append(1), **more},
        )

        self.watch._clock = lambda: self.now

    def sees(self, used: int | None, after: float = 0.0) -> float:
        self.used = used
        self.now += after
        return self.watch.look()


async def test_each_change_is_one_line_and_one_relief():
    rigged = Rigged()
    for used in (500, 990, 1050, 1060, 1040, 1150, 1150, 1020, 960, 960, 940, 100):
        rigged.sees(used, after=15)
    assert rigged.gives.levels == [HIGH, CRITICAL, HIGH, NORMAL]
    assert rigged.log.told == ["memory_high", "memory_critical", "memory_high", "memory_normal"]
    assert rigged.watch.share == 0.1


async def test_memory_is_given_back_once_in_a_while():
    """Walking the heap takes time, which others wait for."""
    rigged = Rigged()
    for _ in range(20):
        rigged.sees(1050)
    await eventually(lambda: rigged.trims, lambda: "nothing given back")
    assert len(rigged.trims) == 1
    rigged.sees(1050, after=11)
    await eventually(lambda: len(rigged.trims) == 2, lambda: rigged.trims)


async def test_it_looks_more_often_where_the_mark_is_near():
    rigged = Rigged()
    assert rigged.sees(100) == 1.0
    assert rigged.sees(800) == 0.25
    assert rigged.sees(None) == 1.0
    assert rigged.gives.levels == []
    assert rigged.watch.share == 0.0


async def test_descriptors_that_come_and_go_are_two_lines():
    rigged = Rigged()
    for free in (True, False, True, False, False):
        rigged.free = free
        rigged.sees(0)
    rigged.watch.no_descriptor()
    assert rigged.log.told == ["descriptors_exhausted"]
    rigged.free = True
    rigged.sees(0)
    assert rigged.log.told == ["descriptors_exhausted"]
    rigged.sees(0, after=10.1)
    rigged.sees(0)
    assert rigged.log.told == ["descriptors_exhausted", "descriptors_free"]


@pytest.mark.parametrize("used", [960, 1050, 1200])
async def test_a_mark_that_nobody_chose_is_given_up_where_the_program_alone_is_beyond_it(used):
    """Short, and nothing is served or could be given up -> once what was freed is given back nobody looks any more."""
    rigged = Rigged(automatic=True)
    rigged.sees(100)
    rigged.sees(1200)
    rigged.sees(used, after=3)
    rigged.sees(used, after=4.9)
    assert rigged.watch.level is not NORMAL
    await eventually(rigged.watch._trimming.done, lambda: "still giving back")
    rigged.sees(used, after=0.2)
    assert (rigged.watch.level, rigged.watch.watermark, rigged.gives.stopped) == (NORMAL, None, 1)
    assert rigged.sees(used, after=60) == 1.0
    assert rigged.log.told.count("memory_unwatched") == 1
    assert rigged.log.fields == {"used": used, "limit": MARK, "reason": rigged.log.fields["reason"]}


@pytest.mark.parametrize(
    "why", ["configured", "serves", "can give up", "falls", "gives back", "serves now and then"]
)
async def test_the_mark_is_kept_while_that_may_pass_or_was_chosen(why):
    release = threading.Event()
    more = {"trim": release.wait} if why == "gives back" else {}
    rigged = Rigged(automatic=why != "configured", **more)
    rigged.sees(100)
    rigged.gives.idle = why != "serves"
    rigged.gives.kept = int(why == "can give up")
    for number in range(40):
        if why == "serves now and then":
            rigged.gives.idle = number % 4 > 0
        rigged.sees(940 if why == "falls" and number else 1200, after=1)
        assert rigged.watch.watermark is not None
    assert "memory_unwatched" not in rigged.log.told
    assert rigged.watch.level is (NORMAL if why == "falls" else CRITICAL)
    release.set()
    if rigged.watch._trimming is not None:
        await rigged.watch._trimming


@pytest.mark.parametrize(
    ("used", "idle", "told"), [(749, True, []), (750, True, ["memory_unwatched"]), (800, False, [])]
)
async def test_it_is_judged_again_once_the_rest_of_the_program_is_loaded(used, idle, told):
    loaded = False
    rigged = Rigged(automatic=True, loaded=lambda: loaded)
    rigged.sees(300)
    rigged.sees(used)  # it is being loaded: what is in use now may be that
    assert rigged.log.told == []
    rigged.gives.idle, loaded = idle, True
    rigged.sees(used)
    assert (rigged.log.told, rigged.watch.watermark is None) == (told, bool(told))
    rigged.gives.idle = True
    rigged.sees(800)  # which are requests
    assert rigged.log.told == told


@pytest.mark.parametrize(("used", "told"), [(949, []), (950, ["memory_limit_too_low"])])
async def test_a_limit_that_is_less_than_the_program_takes_is_said_at_once_and_once(used, told):
    loaded = False
    rigged = Rigged(loaded=lambda: loaded)
    rigged.watch.watermark = Watermark(MARK << 20)
    rigged.sees(used << 20)
    loaded = True
    rigged.sees(used << 20)
    assert rigged.log.told == told
    if told:
        assert (rigged.log.fields["used"], rigged.log.fields["limit"]) == (used << 20, MARK << 20)
        assert "limits.memory is 1000.0 MiB, and the program takes 950.0 MiB" in rigged.log.fields["reason"]


async def test_it_stops():
    rigged = Rigged()
    rigged.watch.start()
    assert rigged.watch._timer is not None
    rigged.watch.stop()
    rigged.watch.stop()
    assert rigged.watch._timer is None


# What follows, in a sidecar.


class Pressed:
    """A sidecar whose memory is a test's."""

    def __init__(self, rig) -> None:
        self.rig = rig
        service = rig.sidecar.service
        self.watch = service._watch
        self.assembly = service.assembly
        self.watch.watermark = Watermark(MARK)
        self.watch._trim = None
        self.watch._read = lambda: self.used
        self.watch._clock = lambda: self.now
        self.now = 1000.0
        self.used = USED[NORMAL]

    def to(self, level: Level) -> None:
        self.used = USED[level] if level >= self.watch.level else USED[level] - 70
        self.now += 31
        self.watch.look()
        assert self.watch.level is level


async def pressed(rig, **keys) -> Pressed:
    await rig.start(**keys)
    return Pressed(rig)


async def test_new_streams_are_whole_and_nothing_of_them_is_kept(rig, tmp_path):
    """Short -> a stream comes as it is, without ids; nobody is told that it is stored, and it is not; what identical
    requests get is their own. Short no more -> as ever."""
    found = await pressed(rig, folder=tmp_path, cache__ttl=3600)
    found.to(HIGH)
    one = await begin(rig, CHAT, IDS)
    assert one.answer.header("slipstream-stream-id") is None
    assert one.answer.header("cache-status") == b"slipstream; fwd=miss"
    two = await begin(rig, CHAT, IDS)
    for stream in (one, two):
        for event in CHAT.events:
            await passed(stream, event)
        await ended(stream.call)
        assert await stream.answer.rest() == CHAT.whole
        assert stream.answer.end == "whole"
    await settled(rig, stored=0)
    assert found.assembly.cache.counts["not_stored_memory"] == 2
    assert found.assembly.hub._shelf.used == 0
    found.to(NORMAL)
    three = await begin(rig, CHAT, IDS)
    assert three.answer.header("cache-status") == cache.MISS
    assert three.name
    await ended(three.call, *CHAT.events)
    assert comeback.bare(await three.answer.rest()) == CHAT.whole
    await settled(rig, stored=1)


async def test_what_ended_first_is_given_up_and_what_runs_is_not(rig, tmp_path):
    """Short -> the stream that ended first is 410, one that runs can be come back to, and still once it has ended: that
    was promised, and there is room. At the end there is none."""
    found = await pressed(rig, folder=tmp_path)
    over, running = await begin(rig, CHAT, IDS), await begin(rig, comeback.AGENT, IDS)
    await ended(over.call, *CHAT.events)
    await over.answer.rest()
    await passed(running, comeback.AGENT.events[0])
    await settled_calls(rig, 1)
    found.to(HIGH)
    await comeback.gone(rig, over.name)
    await left(rig, running)
    client, answer = await comeback.back(rig, comeback.AGENT, "stream", running.name, 0)
    assert answer.status == 200
    await ended(running.call, *comeback.AGENT.events[1:])
    assert comeback.bare(await answer.rest()) == b"".join(comeback.AGENT.events[1:])
    client.close()
    await settled_calls(rig, 0)
    client, answer = await comeback.back(rig, comeback.AGENT, "stream", running.name, 0)
    assert comeback.bare(await answer.rest()) == b"".join(comeback.AGENT.events[1:])
    client.close()
    found.to(CRITICAL)
    await comeback.gone(rig, running.name)
    assert found.assembly.hub._shelf.used == 0


async def settled_calls(rig, count):
    hub = rig.sidecar.service.assembly.hub
    await eventually(lambda: len(hub) == count, lambda: len(hub))


async def test_answers_at_hand_are_given_up_and_those_on_disk_are_not(rig, tmp_path):
    found = await pressed(rig, folder=tmp_path, cache__ttl=3600)
    first = await filled(rig, PLAIN)
    for _ in range(3):
        await hits(rig, PLAIN, first)
    client = await rig.connect()
    same = request("POST", PLAIN.target, PLAIN.sent)
    for _ in range(3):  # in the same bytes on one connection, which has a memory of its own
        await client.send(same)
        await (await client.answer()).rest()
    memory = found.assembly.cache
    assert memory._hot.used and rig.sidecar.service._again._known.used
    being_written = dict(memory._hot.items())
    found.to(HIGH)
    again = rig.sidecar.service._again
    assert memory._hot.used == again._known.used == 0
    again.forget()  # as a reload does
    memory._writes.pending.update(being_written)  # which is at hand all the same
    for _ in range(3):
        await client.send(same)
        await (await client.answer()).rest()
    memory._writes.pending.clear()
    assert memory._hot.used == again._known.used == again._seen.used == 0, (
        "nothing is remembered while it is short"
    )
    found.to(NORMAL)
    assert memory._hot.limit < 100, "there is not more to be had so far"
    found.now += 1
    found.watch.look()
    await hits(rig, PLAIN, first)
    assert 0 < memory._hot.used < memory._hot.limit < 64 << 20
    for _ in range(3):
        await client.send(same)
        await (await client.answer()).rest()
    assert again._known.used


async def test_jobs_are_refused_and_those_that_are_taken_are_done(rig, tmp_path):
    found = await pressed(rig, folder=tmp_path, jobs__concurrency=1)
    rig.script(PLAIN.target)
    taken = [await comeback.again(rig, "POST", PLAIN.target, JOB, body=PLAIN.sent) for _ in range(2)]
    assert [answer.status for answer in taken] == [202, 202]
    found.to(HIGH)
    client = await rig.connect()
    for _ in range(2):  # the connection goes on
        refused = await client.whole("POST", PLAIN.target, PLAIN.sent, [JOB])
        assert (refused.status, refused.header("slipstream-error")) == (503, b"overloaded")
        assert refused.header("retry-after") == b"1"
    for answer in taken:
        await cache.told(await rig.call(), cache.said())
        place = answer.header("location").decode()
        await eventually_ended(client, place)
        result = await client.whole("GET", f"{place}/result")
        assert (result.status, bytes(result.body)) == (200, cache.said())
    found.to(NORMAL)
    answer = await client.whole("POST", PLAIN.target, PLAIN.sent, [JOB])
    assert answer.status == 202
    await cache.told(await rig.call(), cache.said())
    await eventually_ended(client, answer.header("location").decode())


async def eventually_ended(client, place):
    async with asyncio.timeout(GUARD):
        while b'"status":"complete"' not in bytes((await client.whole("GET", place)).body):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_at_the_end_new_requests_are_refused_and_what_runs_is_not_touched(rig, tmp_path):
    """Critical -> 503 with a time to come back, on a connection that goes on; a stream that runs comes to its end, an
    answer that is waited for arrives; health and figures are there, and readiness says why."""
    found = await pressed(rig, folder=tmp_path, admin=True, cache__ttl=3600)
    port = Port(rig, rig.sidecar)
    stream = await begin(rig, CHAT, IDS)
    await passed(stream, CHAT.events[0])
    waiting, call = await cache.begun(rig, PLAIN)
    client = await rig.connect()
    found.to(CRITICAL)
    for method, target, body in (("POST", STREAMED.target, STREAMED.sent), ("GET", "/v1/models", None)):
        refused = await client.whole(method, target, body)
        assert (refused.status, refused.header("slipstream-error")) == (503, b"overloaded")
        assert refused.header("retry-after") == b"1"
        assert b"limits.memory" in bytes(refused.body)
        assert refused.header("connection") is None
    assert (await client.whole("GET", "/_slipstream/healthz")).status == 200
    ready = await port.ask("/readyz")
    assert ready.status == 503 and b"limits.memory" in bytes(ready.body)
    metrics = bytes((await port.ask("/metrics")).body)
    assert b"\nslipstream_memory_level 2.0\n" in metrics
    assert b"\nslipstream_memory_used_ratio 1.101\n" in metrics
    assert b"\nslipstream_ready 0.0\n" in metrics
    for event in CHAT.events[1:]:
        await passed(stream, event)
    await ended(stream.call)
    assert comeback.bare(await stream.answer.rest()) == CHAT.whole
    await cache.told(call, cache.said())
    answer = await waiting.answer("POST")
    assert await answer.rest() == cache.said()
    found.to(HIGH)
    assert (await port.ask("/readyz")).status == 200
    found.to(NORMAL)
    await hits(rig, PLAIN, answer)  # it was begun before
    rig.provider.on(PLAIN.target, lambda connection, received: said_whole(connection))
    await misses(rig, cache.patched(PLAIN, seed=1))
    told = Counter(line["event"] for line in rig.sidecar.lines.all)
    assert (told["memory_critical"], told["memory_high"], told["memory_normal"]) == (1, 1, 1)


async def said_whole(connection):
    body = cache.said()
    await connection.send(head(b"application/json", framing=b"Content-Length: %d" % len(body)) + body)


async def test_at_the_end_calls_that_only_wait_for_a_client_are_given_up(rig):
    """Critical -> what is kept of running streams is given up: their readers do not notice, and who has left finds
    nothing any more, nor is the upstream left to work for nobody."""
    found = await pressed(rig)
    read, alone = await begin(rig, CHAT, IDS), await begin(rig, comeback.AGENT, IDS)
    await passed(read, CHAT.events[0])
    await passed(alone, comeback.AGENT.events[0])
    await left(rig, alone)
    assert len(found.assembly.hub) == 2
    found.to(CRITICAL)
    await alone.call.closed()
    found.to(NORMAL)
    await comeback.gone(rig, alone.name)
    await ended(read.call, *CHAT.events[1:])
    assert comeback.bare(await read.answer.rest()) == CHAT.whole


async def test_a_call_that_waits_for_its_head_meanwhile_is_not_kept_either(rig):
    """It was told an id before its head came (`keepalive.early`), and that was given up -> no half of it is kept."""
    found = await pressed(rig, keepalive__early=0.01)
    rig.script(CHAT.target)
    client = await rig.connect()
    await client.send(request(CHAT.method, CHAT.target, CHAT.body, [IDS]))
    call, answer = await rig.call(), await client.answer()
    name = answer.header("slipstream-stream-id").decode()
    found.to(CRITICAL)
    found.to(NORMAL)
    await call.send(head(CHAT.kind), chunk(CHAT.whole), LAST)
    call.done()
    assert comeback.bare(await answer.rest()).replace(CHAT.keepalive, b"") == CHAT.whole
    assert found.assembly.hub._shelf.used == 0
    await comeback.gone(rig, name)


class Takes:
    """A process that takes so much."""

    def __init__(self, used: int | None) -> None:
        self.used = lambda: used


@pytest.mark.parametrize(
    ("used", "allowed", "mark", "told"),
    [
        (100, 1000, 800, []),
        (700, 1000, None, ["memory_unwatched"]),
        (None, 1000, None, []),
        (100, None, None, []),
    ],
)
async def test_nobody_is_refused_from_the_start_for_a_limit_that_nobody_chose(
    rig, monkeypatch, used, allowed, mark, told
):
    """A container with so little that the program alone comes near it -> it serves, and the log says why nobody looks."""
    monkeypatch.setattr(relief, "allowed", lambda: allowed)
    sidecar, log = await rig.start(), Log()
    service = sidecar.service
    made = relief.watch(service._config, service.assembly, log, Takes(used))
    assert (made.watermark and made.watermark.mark) == mark
    assert log.told == told
    made.look()
    assert made.level is NORMAL


async def test_a_program_that_turns_out_to_be_too_large_serves_again(rig, monkeypatch):
    """Automatic, and beyond the mark while nothing is served -> refused for a moment, then served as ever."""
    monkeypatch.setattr(relief, "allowed", lambda: MARK)
    sidecar, log = await rig.start(), Log()
    service, front = sidecar.service, sidecar.service.assembly.front
    used, now = 100, 1000.0
    watch = relief.watch(service._config, service.assembly, log, Takes(None))
    assert watch.watermark is None  # nobody can tell
    taking = Takes(None)
    taking.used = lambda: used
    watch = relief.watch(service._config, service.assembly, log, taking)
    watch._clock, watch._trim = lambda: now, None
    watch.look()
    used = 2000
    watch.look()
    assert front.full and front.no_jobs and service.assembly.hub.brief
    now += 5
    watch.look()
    assert not (front.full or front.no_jobs or service.assembly.hub.brief)
    assert service.assembly.hub._shelf._room == service._config.resume.memory
    assert log.told == ["memory_critical", "memory_unwatched"]


# A real process.


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_process_that_runs_out_of_memory_refuses_and_recovers(rig, tmp_path):
    """`limits.memory` is reached by requests that hold their bodies -> new ones get 503, a stream that runs goes on; once
    those are answered, the memory is given back to the kernel and everybody is served again."""
    most, size = 12, 16 << 20
    rig.script(CHAT.target)
    body = b'{"model":"m","messages":[{"role":"user","content":"%b"}]}'
    clients: list[Client] = []
    calls = []

    async def start(process, sent):
        """Returns the upstream's end of it; None for one that is refused."""
        clients.append(await Client.open(process.port))
        await clients[-1].send(request("POST", CHAT.target, sent))
        ways = [asyncio.ensure_future(way) for way in (rig.call(), clients[-1].answer())]
        done, others = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if ways[0] in done:
            return ways[0].result()
        refused = ways[1].result()
        assert (refused.status, refused.header("slipstream-error")) == (503, b"overloaded")
        clients.pop().close()
        return None

    async with serving(tmp_path, rig.provider.url, SLIPSTREAM_LIMITS__MEMORY="120MiB") as process:
        sidecar = psutil.Process(process.pid)
        stream = await start(process, CHAT.body)
        await stream.send(head(CHAT.kind), chunk(CHAT.events[0]))
        answer = await clients[-1].answer()
        for number in range(most):
            call = await start(process, body % (b"%d" % number * (size // len(b"%d" % number))))
            if call is None:
                break
            calls.append(call)
        critical = await process.event("memory_critical")
        assert critical["used"] > critical["limit"] == 120 << 20
        highs = sum(line["event"] == "memory_high" for line in process.lines)
        other = await Client.open(process.port)
        clients.append(other)
        refused = await other.whole("POST", CHAT.target, CHAT.body)
        assert (refused.status, refused.header("retry-after")) == (503, b"1")
        await stream.send(chunk(b"".join(CHAT.events[1:])), LAST)
        stream.done()
        assert (await answer.rest(), answer.end) == (CHAT.whole, "whole")
        for call, client in zip(calls, clients[1:], strict=False):
            await cache.told(call, cache.said())
            late = await client.answer("POST")
            assert (await late.rest(), late.status) == (cache.said(), 200)
        await process.event("memory_high", highs)
        await eventually(lambda: sidecar.memory_info().rss < 150 << 20, sidecar.memory_info)
        rig.provider.on("/works", lambda connection, received: connection.send(cache_ok()))
        served = await other.whole("GET", "/works")
        assert served.status == 200
        for client in clients:
            client.close()
        process.signal()
        assert await process.exited() == 0
        events = Counter(line["event"] for line in process.lines)
        # Nothing new is kept for half a minute.
        assert (events["memory_critical"], events["memory_normal"], events["fault"]) == (1, 0, 0)


def cache_ok() -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
