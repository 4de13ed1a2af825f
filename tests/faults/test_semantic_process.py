"""Questions in other words and the real process: killed while it stores, beside another one that goes on."""

import asyncio
import re
import sqlite3
import sys
from collections import defaultdict
from contextlib import closing

import pytest

from tests.faults.cache import KEY, PLAIN, STREAMED, said, spoken
from tests.faults.jobs_process import kill, terminate
from tests.faults.semantic import asking, likeness
from tests.faults.test_process import serving
from tests.faults.wire import GUARD, LAST, Client, chunk, head, request

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="keeping answers needs a POSIX system")

KILLS = 3
SEMANTIC = ("--cache", "semantic")
PATIENT = {"SLIPSTREAM_SEMANTIC__DEADLINE": "30"}
ONLY = (b"Cache-Control", b"only-if-cached")
ASKED = "What will the weather be like in Paris over the next {} days?"
AGAIN = "What will the weather in Paris be like over the next {} days?"
"""The same in other words. All of these are so near each other that only the number tells them apart."""


def question(words, number):
    return asking(STREAMED if number % 2 else PLAIN, words.format(number))


class Upstream:
    """Answers each question about its own number, and never twice the same."""

    def __init__(self, provider):
        self.said = defaultdict(set)
        self._count = 0
        provider.on(PLAIN.target, self._answer)

    async def _answer(self, connection, received):
        number = int(re.search(rb"next (\d+) days", received.body)[1])
        self._count += 1
        text = f"answer {self._count}, about {number} days"
        if number % 2:
            made = spoken(text=text)
            self.said[number].add(b"".join(made))
            await connection.send(b"".join([head(), *map(chunk, made), LAST]))
        else:
            body = said(text=text)
            self.said[number].add(body)
            framing = b"Content-Length: %d" % len(body)
            await connection.send(head(b"application/json", framing=framing) + body)


async def ask_all(process, words, numbers, *fields):
    """The answers, one after the other."""
    client = await Client.open(process.port)
    found = []
    try:
        for number in numbers:
            form = question(words, number)
            await client.send(request("POST", form.target, form.sent, [KEY, *fields]))
            found.append(await client.answer("POST"))
            await found[-1].rest()
    finally:
        client.close()
    return found


async def paraphrased(process, upstream, numbers):
    """Those numbers that are found in other words; each has an answer of its own."""
    found = []
    answers = await ask_all(process, AGAIN, numbers, ONLY)
    for number, answer in zip(numbers, answers, strict=True):
        if answer.status != 504:
            assert likeness(answer) is not None, answer.headers
            assert bytes(answer.body) in upstream.said[number]
            found.append(number)
    return found


def checked(folder):
    """How many questions there are. The database is sound, and no question is without its answer."""
    place = f"{(folder / 'answers' / 'cache.db').as_uri()}?mode=ro"
    with closing(sqlite3.connect(place, uri=True, timeout=GUARD)) as connection:

        def rows(statement):
            return connection.execute(statement).fetchall()

        assert rows("PRAGMA integrity_check") == [("ok",)]
        assert rows("SELECT count(*) FROM Changes WHERE key NOT IN (SELECT key FROM Cache)") == [(0,)]
        assert rows("SELECT count(*) FROM Served WHERE key NOT IN (SELECT key FROM Cache)") == [(0,)]
        ((count,),) = rows("SELECT count(*) FROM Changes")
    return count


async def test_killed_while_it_stores(rig, tmp_path, with_model):
    """40, 44: at any moment -> what was stored is found in other words, by itself and by its neighbour; nothing
    else is, and what was stored by halves is not there."""
    folder = with_model(tmp_path / "data")
    url, upstream = rig.provider.url, Upstream(rig.provider)
    asked = []
    async with serving(folder, url, *SEMANTIC, **PATIENT) as neighbour:
        await neighbour.event("semantic_ready")
        for turn in range(KILLS):
            async with serving(folder, url, *SEMANTIC, **PATIENT) as process:
                assert (await process.event("semantic_ready"))["questions"] == checked(folder)
                found = await paraphrased(process, upstream, asked)
                assert len(found) >= 6 * turn
                firsts = [100 * turn + 15 * at + 1 for at in range(3)]
                new = [range(first, first + 15) for first in firsts]
                asking = [asyncio.ensure_future(ask_all(process, ASKED, numbers)) for numbers in new]
                async with asyncio.timeout(GUARD):
                    await rig.provider.wait_for(rig.provider.received + 9 + turn)
                await kill(process)
                await asyncio.gather(*asking, return_exceptions=True)
                assert not [line for line in process.lines if line["event"] in ("fault", "cache_set_aside")]
            asked += [number for numbers in new for number in numbers]
            assert checked(folder) >= 6 * turn
            assert set(await paraphrased(neighbour, upstream, asked)) >= set(found)
        assert not [line for line in neighbour.lines if line["event"] in ("fault", "cache_failing")]
        before = len(await paraphrased(neighbour, upstream, asked))
        assert before == checked(folder)
        await terminate(neighbour)
    async with serving(folder, url, *SEMANTIC, **PATIENT) as process:
        assert (await process.event("semantic_ready"))["questions"] == before
        await ask_all(process, ASKED, asked)
        assert await paraphrased(process, upstream, asked) == asked
        await terminate(process)
    assert checked(folder) == len(asked)
