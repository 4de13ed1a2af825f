"""Stored answers of the real process: killed while it stores, and started again."""

import asyncio
import sys

import pytest

from sidecar.stores.disk import DiskStore
from tests.faults.cache import LIMIT, PLAIN, STREAMED, is_hit, patched
from tests.faults.jobs_process import kill, terminate
from tests.faults.test_process import serving
from tests.faults.wire import Client, request

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="keeping answers needs a POSIX system")

MANY = 24


def question(number):
    return patched(STREAMED if number % 2 else PLAIN, user=str(number))


async def ask_all(port, numbers):
    """What each was answered with, as far as it was."""
    found = {}
    client = await Client.open(port)
    try:
        for number in numbers:
            form = question(number)
            await client.send(request("POST", form.target, form.sent))
            answer = await client.answer("POST")
            await answer.rest()
            found[number] = is_hit(answer), bytes(answer.body)
    finally:
        client.close()
    return found


async def test_killed_while_it_stores(rig, tmp_path):
    """40: at any moment -> it opens without a word, and serves whole answers only."""
    expected = {}
    for kept in range(0, MANY, 6):
        async with serving(tmp_path, rig.provider.url) as process:
            found = await ask_all(process.port, range(kept + 6))
            for number, (hit, body) in found.items():
                if hit:
                    assert body == expected[number]
                expected[number] = body
            firsts = [1000 * (kept + at + 1) for at in range(3)]
            asking = [
                asyncio.ensure_future(ask_all(process.port, range(first, first + 9))) for first in firsts
            ]
            await rig.provider.wait_for(rig.provider.received + 9)
            await kill(process)
            await asyncio.gather(*asking, return_exceptions=True)
            assert not [line for line in process.lines if line["event"] in ("fault", "cache_set_aside")]
    async with serving(tmp_path, rig.provider.url) as process:
        found = await ask_all(process.port, range(MANY))
        assert all(body == expected[number] for number, (hit, body) in found.items() if hit)
        await terminate(process)
    async with serving(tmp_path, rig.provider.url) as process:
        found = await ask_all(process.port, range(MANY))
        assert all(hit for hit, _ in found.values())
        await terminate(process)
    store = DiskStore.open(tmp_path / "answers", LIMIT)
    try:
        assert store.set_aside is None
        assert store.stats().entries >= MANY
    finally:
        store.close()
