"""Stores that are slow, broken or gone; many at once; restarts; and clients that leave."""

import asyncio
import os
import stat
import subprocess
from pathlib import Path

import pytest

from sidecar.core.fingerprint import Keys
from sidecar.stores.disk import DiskStore
from tests.faults.cache import (
    FORM,
    KEY,
    LIMIT,
    PLAIN,
    STREAMED,
    HeldStore,
    ask,
    asked,
    begun,
    counts,
    filled,
    hits,
    is_hit,
    misses,
    on_store,
    patched,
    said,
    settled,
    spoken,
    stopped,
    streamed,
    told,
    turns,
)
from tests.faults.conftest import eventually
from tests.faults.test_shared import crowd
from tests.faults.wire import request

pytestmark = pytest.mark.both_shells


def cache_of(rig):
    return rig.sidecar.service.assembly.cache


def warned(rig, event):
    return [line for line in rig.sidecar.lines.all if line["event"] == event]


# Many at once.


async def test_1000_identical_misses_are_one_call_and_then_all_hit(rig, tmp_path):
    """36: with a store on disk, one upstream call and one lookup; afterwards everyone hits."""
    many = crowd() // 2
    await rig.start(cache__ttl=3600, folder=tmp_path)
    rig.script(PLAIN.target)
    clients = [await rig.connect() for _ in range(many)]
    sent = request("POST", PLAIN.target, PLAIN.sent, [KEY])
    await asyncio.gather(*[client.send(sent) for client in clients])
    call = await rig.call()
    await eventually(
        lambda: sum(live.recording.readers for live in rig.sidecar.service.assembly.hub._live) == many,
        lambda: many,
    )
    await told(call, said())
    for _ in range(2):
        answers = await asyncio.gather(*[client.answer("POST") for client in clients])
        assert {await answer.rest() for answer in answers} == {said()}
        await settled(rig, 1)
        await asyncio.gather(*[client.send(sent) for client in clients])
    answers = await asyncio.gather(*[client.answer("POST") for client in clients])
    assert {await answer.rest() for answer in answers} == {said()}
    assert all(is_hit(answer) for answer in answers)
    assert len(rig.provider.requests) == 1


async def test_the_first_one_fails_before_its_head(rig, tmp_path):
    """36: one new call, no deadlock, and its answer is stored."""
    await rig.start(cache__ttl=3600, folder=tmp_path)
    rig.script(PLAIN.target)
    clients = [await rig.connect() for _ in range(20)]
    for client in clients:
        await client.send(request("POST", PLAIN.target, PLAIN.sent, [KEY]))
    call = await rig.call()
    hub = rig.sidecar.service.assembly.hub
    await eventually(lambda: sum(live.recording.readers for live in hub._live) == 20, lambda: 20)
    call.reset()
    second = await rig.call()
    await eventually(lambda: sum(live.recording.readers for live in hub._live) == 19, lambda: 19)
    await told(second, said())
    answers = [await client.answer("POST") for client in clients]
    assert sorted([answer.status for answer in answers]) == [200] * 19 + [502]
    await settled(rig, 1)
    assert is_hit(await ask(rig, PLAIN, KEY))
    assert rig.uncalled()


# A store that is slow.


@pytest.mark.parametrize("form", [PLAIN, STREAMED], ids=str)
async def test_while_the_store_is_pending_others_hit(rig, form):
    """When: the client has its last byte before anything is written; who comes then hits from memory, even if
    nothing may be kept there."""
    store = HeldStore()
    await on_store(rig, store, cache__memory=0)
    store.hold("put")
    first = await ask(rig, form, KEY)
    await store.inside("put")
    again = await ask(rig, form, KEY)
    assert is_hit(again)
    assert again.body == first.body
    assert asked(rig) == 1
    assert not rig.sidecar.lines.requests[0:1] or rig.sidecar.lines.requests[0]["cache"] == "hit"
    store.release("put")
    await settled(rig, 1)
    await hits(rig, form, first, KEY)
    assert cache_of(rig).counts["hit_disk"] == 1
    lines = {line["cache"] for line in rig.sidecar.lines.requests}
    assert lines == {"miss", "hit"}


async def test_a_lookup_that_hangs(rig):
    """5: the request goes upstream within the deadline, later ones do not wait at all, also the very same one;
    what the lookup finds is used when it comes; everything recovers."""
    store = HeldStore()
    await on_store(rig, store)
    store.hold("get")
    rig.script(PLAIN.target)
    for number in range(3):
        client, call = await begun(rig, PLAIN, KEY)
        await told(call, said(), b"Cache-Control: no-store")
        assert await (await client.answer("POST")).rest() == said()
        assert counts(rig)["lookup_late"] == 1, number
    other = patched(PLAIN, user="2")
    client, call = await begun(rig, other, KEY)
    await told(call, said(), b"Cache-Control: no-store")
    await client.answer("POST")
    assert counts(rig)["lookup_late"] == 1
    assert len(store.gets) == 1
    store.release("get")
    await eventually(lambda: not cache_of(rig)._overdue, lambda: cache_of(rig)._overdue)
    before = len(store.gets)
    client, call = await begun(rig, other, KEY)
    await told(call, said())
    await client.answer("POST")
    assert len(store.gets) > before
    assert rig.sidecar.lines.faults == []


async def test_a_hanging_lookup_does_not_hold_up_what_memory_can_answer(rig):
    """5: the other mode's answer is at hand: nobody waits for the disk, once it is known to hang."""
    store = HeldStore()
    await on_store(rig, store)
    await filled(rig, PLAIN, KEY)
    store.hold("get")
    await ask(rig, patched(PLAIN, user="2"), KEY)
    assert counts(rig)["lookup_late"] == 1
    answer = await ask(rig, STREAMED, KEY)
    assert answer.status == 200
    assert counts(rig)["lookup_late"] == 1
    store.release("get")


async def test_an_answer_that_came_during_the_lookup_is_used(rig):
    """36: one that looks while the same is asked with `no-cache`, and answered: a hit, no second call."""
    store = HeldStore()
    await on_store(rig, store)
    cache_of(rig)._deadline = 30.0
    rig.script(PLAIN.target)
    store.hold("get")
    waiting = await rig.connect()
    await waiting.send(request("POST", PLAIN.target, PLAIN.sent, [KEY]))
    await store.inside("get")
    client, call = await begun(rig, PLAIN, KEY, (b"Cache-Control", b"no-cache"))
    await told(call, said())
    await (await client.answer("POST")).rest()
    await settled_but(rig)
    store.release("get")
    late = await told_or_hit(rig, waiting)
    assert is_hit(late)
    assert len(rig.provider.requests) == 1


async def settled_but(rig):
    await eventually(lambda: cache_of(rig).counts["stored"] == 1, lambda: cache_of(rig).counts)


async def told_or_hit(rig, client):
    """The answer; a call that is made for it all the same is answered."""
    answering = asyncio.ensure_future(client.answer("POST"))
    await eventually(lambda: answering.done() or not rig.uncalled(), lambda: "no answer")
    if not answering.done():
        await told(await rig.call(), said(text="paid for twice"))
    answer = await answering
    await answer.rest()
    return answer


async def test_a_late_lookup_does_not_bring_back_an_older_answer(rig):
    """An answer from the disk that comes after a newer one was stored does not take its place."""
    store = HeldStore()
    await on_store(rig, store)
    rig.script(PLAIN.target)
    client, call = await begun(rig, PLAIN, KEY)
    await told(call, said(text="older"))
    await client.answer("POST")
    await settled(rig, 1)
    cache_of(rig)._hot.clear()
    cache_of(rig)._deadline = 30.0
    store.hold("get")
    waiting = await rig.connect()
    await waiting.send(request("POST", PLAIN.target, PLAIN.sent, [KEY]))
    await store.inside("get")
    client, call = await begun(rig, PLAIN, KEY, (b"Cache-Control", b"no-cache"))
    await told(call, said(text="newer"))
    await client.answer("POST")
    await eventually(lambda: cache_of(rig).counts["stored"] == 2, lambda: cache_of(rig).counts)
    store.release("get")
    await (await waiting.answer("POST")).rest()
    assert b"newer" in (await ask(rig, PLAIN, KEY)).body


async def test_clients_leave_in_the_middle_of_a_lookup(rig):
    """23: nothing is left, and the upstream is not asked for them."""
    store = HeldStore()
    await on_store(rig, store)
    cache_of(rig)._deadline = 30.0
    store.hold("get")
    clients = [await rig.connect() for _ in range(3)]
    for client in clients:
        await client.send(request("POST", PLAIN.target, PLAIN.sent, [KEY]))
    await store.inside("get")
    await eventually(lambda: rig.sidecar.service.assembly.front.active == 3, lambda: "active")
    for client in clients:
        client.reset()
    await eventually(lambda: not rig.sidecar.service.assembly.front.active, lambda: "active")
    assert asked(rig) == 0
    store.release("get")
    await eventually(lambda: not cache_of(rig)._looking, lambda: cache_of(rig)._looking)
    assert [(await rig.line(n))["outcome"] for n in range(3)] == ["cancelled"] * 3


async def test_a_slow_reader_of_a_large_hit_leaves(rig, tmp_path):
    """23, 25: in the middle of it; the entry is whole for the next one."""
    await rig.start(cache__ttl=3600, folder=tmp_path)
    client, call = await begun(rig, STREAMED, KEY)
    start, content, *end = spoken(size=200_000)
    parts = [start, *[content] * 15, *end]
    sending = asyncio.ensure_future(streamed(call, *parts))
    first = await client.answer("POST")
    assert await first.rest() == b"".join(parts)
    await sending
    await settled(rig, 1)
    for how in ("fin", "rst"):
        slow = await rig.connect()
        await slow.send(request("POST", STREAMED.target, STREAMED.sent, [KEY]))
        answer = await slow.answer("POST")
        await answer.more()
        slow.leave(how)
        await eventually(lambda: not rig.sidecar.service.assembly.front.active, lambda: "active")
        again = await ask(rig, STREAMED, KEY)
        assert is_hit(again)
        assert again.body == first.body


# A store that is broken.


@pytest.mark.parametrize("what", ["get", "put"])
async def test_a_store_that_fails(rig, what):
    """41: traffic flows, counters rise, one warning and not one per request; no retry storm; its end is told."""
    store = HeldStore()
    await on_store(rig, store, cache__memory=0)
    store.broken.add(what)
    for number in range(5):
        form = patched(PLAIN, user=str(number))
        assert (await misses(rig, form)).status == 200
        await settled(rig)
    assert len(warned(rig, "cache_failing")) == 1
    assert warned(rig, "cache_failing")[0]["level"] == "warning"
    assert counts(rig)["lookup_failed" if what == "get" else "store_failed"] == 1
    assert len(store.gets if what == "get" else store.puts) == 1
    if what == "put":
        assert counts(rig)["store_skipped"] == 4
    store.broken.clear()
    for breaker in (cache_of(rig)._reading, cache_of(rig)._writes._breaker):
        breaker._until = 0.0
    first = await filled(rig, PLAIN)
    await hits(rig, PLAIN, first)
    assert len(warned(rig, "cache_recovered")) == 1
    assert rig.sidecar.lines.faults == []


async def test_a_store_that_fails_leaves_what_is_in_memory(rig):
    """41: what comes while nothing can be written is found in memory."""
    store = HeldStore()
    await on_store(rig, store)
    store.broken |= {"put", "get"}
    first = await ask(rig, PLAIN)
    await settled(rig, 0)
    await hits(rig, PLAIN, first)
    stream = await ask(rig, STREAMED)
    assert is_hit(stream), "the other mode's answer is at hand"


async def test_damaged_blobs_are_misses(rig):
    """42: a blob that is not what it should be is counted, and never served."""
    store = HeldStore()
    await on_store(rig, store)
    first = await filled(rig, PLAIN)
    for key in store.puts:
        blob = store._kept.peek(key).blob
        for damaged in (blob[:-1], blob[:7], b"", blob[:-1] + bytes([blob[-1] ^ 1])):
            store._kept.put(key, store._kept.peek(key)._replace(blob=damaged), 1)
            cache_of(rig)._hot.clear()
            before = counts(rig).get("lookup_damaged", 0)
            assert await cache_of(rig).lookup(Keys(key), None) is None
            assert counts(rig)["lookup_damaged"] == before + 1
        break
    second = await ask(rig, PLAIN)
    assert not is_hit(second)
    assert second.body == first.body
    assert rig.sidecar.lines.faults == []


# Stopping, restarting, purging.


@pytest.mark.parametrize("form", [PLAIN, STREAMED, FORM["gemini-array"], FORM["ollama-chat-stream"]], ids=str)
async def test_a_restart_finds_what_was_stored(rig, tmp_path, form):
    """The first request after a restart hits from disk, in the same bytes."""
    await rig.start(cache__ttl=3600, folder=tmp_path)
    first = await filled(rig, form, KEY)
    await stopped(rig)
    await rig.start(cache__ttl=3600, folder=tmp_path)
    await hits(rig, form, first, KEY)
    assert cache_of(rig).counts["hit_disk"] == 1


async def test_stopping_waits_for_a_store(rig, tmp_path):
    """stop() while a store is pending: the answer is there after the restart."""
    await rig.start(cache__ttl=3600, folder=tmp_path)
    first = await ask(rig, PLAIN, KEY)
    await stopped(rig)
    await rig.start(cache__ttl=3600, folder=tmp_path)
    await hits(rig, PLAIN, first, KEY)


@pytest.mark.parametrize("how", ["purge", "clear", "delete"])
async def test_another_process_purges(rig, tmp_path, how):
    """A purge by another handle on the same folder: the next request is a miss, in memory, too; and on the
    fast way."""
    await rig.start(cache__ttl=3600, folder=tmp_path)
    first = await filled(rig, PLAIN, KEY)
    client = await rig.connect()
    for _ in range(2):
        assert (await client.whole("POST", PLAIN.target, PLAIN.sent, [KEY])).body == first.body
    other = DiskStore.open(tmp_path / "answers", LIMIT)
    try:
        rows = list(other.rows(0))
        assert len({row.tag for row in rows}) == 1
        if how == "purge":
            removed = other.purge(rows[0].tag)
        else:
            removed = other.clear() if how == "clear" else other.delete([row.key for row in rows])
        assert removed == len(rows)
        before = asked(rig)
        answer = await client.whole("POST", PLAIN.target, PLAIN.sent, [KEY])
        assert not is_hit(answer)
        assert asked(rig) == before + 1
        await settled(rig, 2)
        assert is_hit(await ask(rig, PLAIN, KEY))
    finally:
        other.close()


async def test_a_purge_while_a_store_is_pending(rig):
    """What was there, or about to be, when everything was purged is not there afterwards."""
    store = HeldStore()
    await on_store(rig, store)
    await filled(rig, patched(PLAIN, user="1"))
    store.hold("put")
    one, two = patched(PLAIN, user="2"), patched(PLAIN, user="3")
    await ask(rig, one)
    await store.inside("put")
    await ask(rig, two)
    store.clear()
    store.release("put")
    assert not is_hit(await ask(rig, two, (b"Cache-Control", b"max-age=60")))
    await turns()
    await eventually(lambda: not cache_of(rig)._writes._size, lambda: cache_of(rig)._writes._size)
    assert store.stats().entries <= 3


async def test_what_is_in_the_folder(rig, tmp_path):
    """49: folder and files are the owner's; no credential and no question is in any of them."""
    await rig.start(cache__ttl=3600, folder=tmp_path)
    for form in (STREAMED, FORM["gemini"], FORM["embeddings"]):
        target = form.target + ("&" if "?" in form.target else "?") + "key=planted-in-query"
        await filled(rig, form._replace(target=target), KEY, (b"Cookie", b"planted-cookie"))
    folder = tmp_path / "answers"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert found
    for path in found:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        data = path.read_bytes()
        for secret in (b"planted", b"Bearer", "你好".encode(), b"\\u4f60"):
            assert secret not in data, (path, secret)


@pytest.fixture
def small(tmp_path):
    """A folder on a disk of two megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


async def test_a_full_disk(small, rig):
    """41: traffic flows; what fits no more is not stored, and the store lives on."""
    await rig.start(cache__ttl=3600, folder=small, cache__memory=0)
    for number in range(6):
        client, call = await begun(rig, patched(PLAIN, user=str(number)))
        await told(call, said(size=500_000))
        answer = await client.answer("POST")
        assert len(await answer.rest()) > 500_000
        await settled(rig)
    assert len(warned(rig, "cache_failing")) == 1
    assert counts(rig)["store_failed"] >= 1
    assert cache_of(rig).counts["stored"] >= 1
    assert is_hit(await ask(rig, patched(PLAIN, user="0")))


async def test_stopping_does_not_wait_for_a_lookup_that_hangs(rig):
    """47: the disk is stuck: stop() ends all the same."""
    store = HeldStore()
    await on_store(rig, store)
    store.hold("get")
    client, call = await begun(rig, PLAIN)
    await told(call, said(), b"Cache-Control: no-store")
    await client.answer("POST")
    async with asyncio.timeout(8):
        await stopped(rig)
    store.release("get")


async def test_a_damaged_store_is_set_aside(rig, tmp_path):
    """42: renamed, empty from now on, said in the log, and counted."""
    await rig.start(cache__ttl=3600, folder=tmp_path)
    await filled(rig, PLAIN, KEY)
    await stopped(rig)
    database = tmp_path / "answers" / "cache.db"
    database.write_bytes(database.read_bytes()[:5000])
    sidecar = await rig.start(cache__ttl=3600, folder=tmp_path)
    (said,) = [line for line in sidecar.lines.all if line["event"] == "cache_set_aside"]
    assert Path(said["folder"]).name.startswith("answers.damaged-")
    assert (Path(said["folder"]) / "cache.db").stat().st_size == 5000
    assert counts(rig)["store_set_aside"] == 1
    await filled(rig, PLAIN, KEY)
