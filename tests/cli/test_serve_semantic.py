"""`slipstream serve --cache semantic`: as one process, as two on one folder, purged beside it, and told to stop."""

import asyncio
import os

import pytest

from tests.cli.semantic_rig import SEMANTIC, Endpoint, rows, serving
from tests.cli.test_cache_live import cache
from tests.faults.cache import KEY, OTHER_KEY, PLAIN, STREAMED, patched
from tests.faults.conftest import eventually
from tests.faults.semantic import AGAIN, ASKED, OTHER, asking
from tests.faults.test_process import Process
from tests.faults.wire import Client, Upstream, request

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="signals are POSIX"),
    pytest.mark.usefixtures("patient"),
]

FORMS = [PLAIN, patched(STREAMED, user="of streams")]
"""The one is not to be found by who asks for the other."""
ASK, SAME, ELSE = (asking(PLAIN, text) for text in (ASKED, AGAIN, OTHER))


@pytest.fixture
def patient(clean, monkeypatch):
    """The machine may be slow; and nothing is in the folder that it is started in."""
    monkeypatch.setenv("SLIPSTREAM_SEMANTIC__DEADLINE", "30")
    (clean / "empty").mkdir()
    monkeypatch.chdir(clean / "empty")
    yield
    assert list((clean / "empty").iterdir()) == []


@pytest.fixture
def folder(clean, with_model):
    """A data folder in which the model is ready."""
    return with_model(clean / "data")


async def test_paraphrases_are_found_by_the_process_and_by_the_next_one(provider, folder):
    async with serving(folder, provider) as sidecar:
        assert (await sidecar.process.event("semantic_ready"))["questions"] == 0
        firsts = [await sidecar.missed(asking(form, ASKED)) for form in FORMS]
        for form, first in zip(FORMS, firsts, strict=True):
            made = await sidecar.hit(asking(form, AGAIN), first)
            assert (made.line["cache"], made.line["cache_kind"]) == ("hit", "semantic")
            assert 0.92 <= made.line["similarity"] < 1
            assert made.line["phases"]["embed_ms"] > 0
            await sidecar.missed(asking(form, OTHER))
        await sidecar.missed(SAME, key=OTHER_KEY)
        await sidecar.terminate()
        assert sidecar.names() == ["semantic_ready", "serving", "draining", "stopped"]
    async with serving(folder, provider) as sidecar:
        assert (await sidecar.process.event("semantic_ready"))["questions"] == 5
        for form, first in zip(FORMS, firsts, strict=True):
            await sidecar.hit(asking(form, AGAIN), first)
        await sidecar.terminate()
    assert provider.received == 5


async def test_what_one_process_stores_the_other_finds(provider, folder):
    """44."""
    async with serving(folder, provider) as one, serving(folder, provider) as two:
        for form in FORMS:
            first = await one.missed(asking(form, ASKED))
            await two.hit(asking(form, AGAIN), first)
            second = await two.missed(asking(form, OTHER))
            await one.hit(asking(form, "What's the capital of Portugal?"), second)
        # And when the one has gone, the other goes on.
        await two.terminate()
        assert two.names() == ["no_jobs", "semantic_ready", "serving", "draining", "stopped"]
        await one.hit(asking(form, AGAIN), first)
        await one.terminate()
        assert one.names() == ["semantic_ready", "serving", "draining", "stopped"]


async def served(folder, count):
    """Until it is written down under so many ids which answers were given."""
    await eventually(
        lambda: rows(folder, "SELECT count(*) FROM Served") == [(count,)],
        lambda: rows(folder, "SELECT count(*) FROM Served"),
    )


async def test_a_wrong_answer_is_taken_back_by_the_id_it_was_given_under(provider, folder):
    """While it is served, and for good: by its stream, by one of its events, and a whole one by the log."""
    async with serving(folder, provider) as sidecar:
        kept = await sidecar.missed(ELSE)
        for number, form in enumerate(FORMS):
            first = await sidecar.missed(asking(form, ASKED))
            hit = await sidecar.hit(asking(form, AGAIN), first)
            ids = [hit.line["request_id"]]
            if stream := hit.answer.header("slipstream-stream-id"):
                # As users copy it out of a stream; white space may come along.
                ids.insert(0, f" {stream.decode()}:2 ")
            await served(folder, number + len(ids))
            said = await cache(folder, "purge", "--stream", ids[0])
            assert said.startswith("1 answer purged: m, /v1/chat/completions, ")
            assert rows(folder, "SELECT count(*) FROM Served") == [(number,)]
            again = await sidecar.missed(asking(form, AGAIN))
            assert again.answer.body != first.answer.body
            # The question that it was an answer to has none any more, either: the new one serves both.
            await sidecar.hit(asking(form, ASKED), again)
        await cache(folder, "purge", "--stream", ids[-1], code=1)  # nobody knows it any more
        await sidecar.exact(ELSE, kept)
        await sidecar.terminate()
    assert rows(folder, "SELECT count(*) FROM Changes") == [(3,)]


async def test_a_purge_is_noticed_at_once(provider, folder):
    async with serving(folder, provider) as sidecar:
        firsts = [await sidecar.missed(ASK, key=key) for key in (KEY, OTHER_KEY)]
        assert await cache(folder, "purge", "--tenant", firsts[0].line["tenant"]) == "1 answer purged\n"
        again = await sidecar.missed(SAME, key=KEY)
        await sidecar.hit(SAME, firsts[1], key=OTHER_KEY)
        await sidecar.hit(ASK, again, key=KEY)
        assert await cache(folder, "purge", "--all") == "2 answers purged\n"
        assert rows(folder, "SELECT (SELECT count(*) FROM Changes) + (SELECT count(*) FROM Served)") == [(0,)]
        for key in (KEY, OTHER_KEY):
            again = await sidecar.missed(SAME, key=key)
            await sidecar.hit(ASK, again, key=key)
        await sidecar.terminate()


# Being told to stop. 47


async def begun(process: Process, form) -> Client:
    """A client whose request is on its way."""
    client = await Client.open(process.port)
    await client.send(request("POST", form.target, form.sent, [KEY]))
    return client


async def test_it_stops_while_questions_are_embedded(provider, folder):
    """They all have their answers, or are refused as long as it drains."""
    async with serving(folder, provider) as sidecar:
        texts = [f"{OTHER} I would like to know it for trip number {number}." * 8 for number in range(48)]
        clients = [await begun(sidecar.process, asking(PLAIN, text)) for text in texts]
        await provider.wait_for(1)
        await sidecar.terminate()
        answers = [await client.answer("POST") for client in clients]
        assert {answer.status for answer in answers} <= {200, 503}
        for client, answer in zip(clients, answers, strict=True):
            await answer.rest()
            assert answer.end == "whole"
            client.close()
    assert rows(folder, "SELECT count(*) FROM Changes WHERE key NOT IN (SELECT key FROM Cache)") == [(0,)]


async def test_it_stops_while_an_embedding_hangs(provider, clean, monkeypatch):
    """39: requests are answered meanwhile, and nobody waits for what comes of it in the end."""
    monkeypatch.setenv("SLIPSTREAM_SEMANTIC__DEADLINE", "50ms")
    async with Endpoint() as endpoint:
        variables = {**endpoint.variables, "SLIPSTREAM_SEMANTIC__TIMEOUT": "1h"}
        async with serving(clean / "data", provider, **variables) as sidecar:
            endpoint.hold()
            first = await sidecar.missed(ASK)
            await sidecar.missed(SAME)
            await sidecar.exact(ASK, first)
            assert endpoint.held == 1
            await sidecar.terminate()
            assert endpoint.texts == [ASKED]


async def test_it_drains_while_a_request_waits_for_its_embedding(provider, clean):
    async with Endpoint() as endpoint, serving(clean / "data", provider, **endpoint.variables) as sidecar:
        first = await sidecar.missed(ASK)
        endpoint.hold()
        client = await begun(sidecar.process, SAME)
        await endpoint.inside()
        sidecar.process.signal()
        await sidecar.process.event("draining")
        endpoint.gate.set()
        answer = await client.answer("POST")
        assert await answer.rest() == first.answer.body
        assert SEMANTIC in answer.header("cache-status")
        client.close()
        assert await sidecar.process.exited() == 0
    assert provider.received == 1


async def test_it_stops_while_a_hit_is_being_checked(provider, folder):
    """Nobody waits for the answer of an upstream that takes its time, and its call is given up."""
    calls: asyncio.Queue[Upstream] = asyncio.Queue()

    async def hold(connection, received):
        calls.put_nowait(Upstream(connection, received))
        await received.closed.wait()

    async with serving(folder, provider, SLIPSTREAM_SEMANTIC__VERIFY="1") as sidecar:
        firsts = [await sidecar.missed(asking(form, ASKED)) for form in FORMS]
        provider.on(PLAIN.target, hold)
        for form, first in zip(FORMS, firsts, strict=True):
            made = await sidecar.ask(asking(form, AGAIN))
            assert SEMANTIC in made.cache
            assert made.answer.body == first.answer.body
        made = [await calls.get() for _ in FORMS]
        assert all(AGAIN.encode() in call.received.body for call in made)
        await sidecar.terminate()
        for call in made:
            await call.closed()
