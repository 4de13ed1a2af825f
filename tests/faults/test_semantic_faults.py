"""The semantic cache when something breaks: the embedder, the log, the clock. Traffic flows, and nothing wrong
is served."""

import asyncio
import gc

import msgspec
import numpy as np
import pytest

from sidecar.cache import matcher
from sidecar.cache.embed.base import Embedded, EmbedError
from sidecar.cache.inquiry import Inquiry
from sidecar.stores.base import Near
from tests.faults.cache import (
    FORM,
    KEY,
    PLAIN,
    ask,
    asked,
    clocked,
    filled,
    hits,
    said,
    settled,
    stopped,
    told,
)
from tests.faults.conftest import eventually
from tests.faults.semantic import (
    AGAIN,
    ASKED,
    OTHER,
    Held,
    asking,
    held,
    known,
    likeness,
    noted,
    on_model,
    paraphrased,
    parts,
    unmatched,
)
from tests.faults.wire import GUARD, request

pytestmark = pytest.mark.both_shells

FIRST, SECOND, THIRD = (asking(PLAIN, text) for text in (ASKED, AGAIN, OTHER))


@pytest.fixture
def embedder(model_folder):
    return held(model_folder)


def counts(rig):
    return rig.sidecar.service.assembly.cache.counts


async def test_a_slow_embedder_costs_the_deadline_and_its_vector_is_stored_still(
    rig, tmp_path, model_folder, embedder
):
    """39: past the deadline it is a miss; who comes meanwhile does not wait at all."""
    await on_model(rig, model_folder, tmp_path, embedder, semantic__deadline=0.05)
    embedder.hold()
    first = await ask(rig, FIRST, KEY)
    assert first.header("cache-status") == b"slipstream; fwd=miss; stored"
    assert counts(rig)["semantic_late"] == 1
    other = await ask(rig, THIRD, KEY)
    assert other.header("cache-status") == b"slipstream; fwd=miss; stored"
    line = await rig.line(1)
    assert counts(rig)["semantic_late"] == 2
    assert line["phases"]["lookup_ms"] is not None
    await settled(rig, 2)
    await hits(rig, FIRST, first, KEY)  # identical requests are answered all the same
    assert noted(rig) == 0
    embedder.release()
    await eventually(lambda: noted(rig) == 2, lambda: noted(rig))
    assert sorted(embedder.texts) == sorted([ASKED, OTHER])  # each was embedded once


async def test_a_paraphrase_is_found_after_a_slow_start(rig, tmp_path, model_folder, embedder):
    await on_model(rig, model_folder, tmp_path, embedder)
    first = await known(rig, FIRST, KEY)
    await paraphrased(rig, SECOND, first, KEY)


async def test_a_dead_embedder_is_left_alone(rig, tmp_path, model_folder, embedder):
    """39, 41: exact only, one warning, no storm; and a word when it is back."""
    await on_model(rig, model_folder, tmp_path, embedder)
    embedder.broken = "the endpoint answers 503"
    answer = await filled(rig, FIRST, KEY)
    for number in range(5):
        await ask(rig, asking(PLAIN, f"{OTHER} {number}"), KEY)
    await hits(rig, FIRST, answer, KEY)
    assert len(embedder.texts) == 1
    assert counts(rig)["embed_failed"] == 1
    assert counts(rig)["semantic_skipped"] >= 5
    warned = [line for line in rig.sidecar.lines.all if line["event"] == "semantic_failing"]
    assert [line["reason"] for line in warned] == ["the endpoint answers 503"]
    embedder.broken = None
    rig.sidecar.service.assembly.semantics.cache._breaker._until = 0.0  # its second is over
    await known(rig, THIRD, KEY)
    assert rig.sidecar.lines.all[-1]["event"] != "fault"
    assert any(line["event"] == "semantic_recovered" for line in rig.sidecar.lines.all)


NONSENSE = {
    "error": lambda made: EmbedError("not finite"),
    "cut": lambda made: msgspec.structs.replace(made, truncated=True),
}


@pytest.mark.parametrize("mangle", NONSENSE.values(), ids=NONSENSE)
async def test_a_question_that_cannot_be_embedded_is_exact_only(
    rig, tmp_path, model_folder, embedder, mangle
):
    """39: NaN of one question is that question's; the others are found."""
    await on_model(rig, model_folder, tmp_path, embedder)
    first = await known(rig, FIRST, KEY)
    embedder.mangle = mangle
    answer = await filled(rig, SECOND, KEY)
    await hits(rig, SECOND, answer, KEY)
    assert noted(rig) == 1
    embedder.mangle = None
    await paraphrased(rig, asking(PLAIN, "How can I change my account's email address?"), first, KEY)


async def test_a_mistake_of_our_own_over_one_question_is_that_questions(
    rig, tmp_path, model_folder, embedder, monkeypatch
):
    """Nobody can switch the cache off for others with a question that we fail to read."""
    await on_model(rig, model_folder, tmp_path, embedder)
    first = await known(rig, FIRST, KEY)
    real = matcher.traits

    def traits(text):
        if text == OTHER:
            raise ArithmeticError
        return real(text)

    monkeypatch.setattr(matcher, "traits", traits)
    embedder.hold()
    asks = [asyncio.ensure_future(ask(rig, asking(PLAIN, "Who wrote the Odyssey?"), KEY))]
    await embedder.inside()
    asks += [asyncio.ensure_future(ask(rig, form, KEY)) for form in (THIRD, SECOND)]
    await eventually(lambda: len(rig.sidecar.service.assembly.semantics.cache._queue) == 2, lambda: "too few")
    embedder.release()
    answers = await asyncio.gather(*asks)
    assert likeness(answers[2]) is not None
    assert answers[2].body == first.body
    assert counts(rig)["semantic_failed"] == 1
    assert not any(line["event"] == "semantic_failing" for line in rig.sidecar.lines.all)
    faults = [line["kind"] for line in rig.sidecar.lines.all if line["event"] == "fault"]
    assert faults == ["ArithmeticError"]
    rig.sidecar.lines.all[:] = [line for line in rig.sidecar.lines.all if line["event"] != "fault"]


async def test_questions_hold_no_bodies(rig, tmp_path, model_folder):
    """Neither streams that can be come back to, nor jobs that wait, keep requests in memory."""
    made = msgspec.structs.replace(parts(model_folder), load=missing)
    await rig.start(folder=tmp_path, parts=made, cache__mode="semantic", cache__ttl=3600, jobs__concurrency=1)
    rig.script(PLAIN.target)
    large = "x" * 200_000
    for number in range(3):
        form = asking(PLAIN, f"{number} {large}")
        assert (await ask(rig, form, KEY, (b"Prefer", b"respond-async"))).status == 202
    for _ in range(2):
        await ask(rig, asking(FORM["anthropic-stream"], large), KEY, (b"Cache-Control", b"no-cache"))

    def held_still():
        gc.collect()
        return [one for one in gc.get_objects() if isinstance(one, Inquiry) and one._read is not None]

    await eventually(lambda: not held_still(), held_still)
    for _ in range(3):
        await told(await rig.call(), said())
    await settled(rig)


def missing():
    raise EmbedError("there is no model")


async def test_an_embedder_that_returns_nan_is_no_match(rig, tmp_path, model_folder, embedder):
    await on_model(rig, model_folder, tmp_path, embedder)
    await known(rig, FIRST, KEY)
    embedder.mangle = lambda made: Embedded(np.full_like(made.vector, np.nan))
    await unmatched(rig, SECOND, KEY)
    embedder.mangle = None
    await unmatched(rig, THIRD, KEY)


async def test_an_embedder_that_cannot_be_loaded_leaves_the_exact_cache(rig, tmp_path, model_folder):
    def load():
        raise EmbedError("there is no model in x: run `slipstream model pull`")

    made = msgspec.structs.replace(parts(model_folder), load=load)
    await rig.start(folder=tmp_path, parts=made, cache__mode="semantic", cache__ttl=3600)
    answer = await filled(rig, FIRST, KEY)
    await hits(rig, FIRST, answer, KEY)
    (line,) = [line for line in rig.sidecar.lines.all if line["event"] == "semantic_off"]
    assert "slipstream model pull" in line["reason"]
    assert counts(rig)["semantic_not_ready"] > 0


async def test_without_a_folder_it_says_so(rig, model_folder):
    await rig.start(parts=parts(model_folder), cache__mode="semantic", cache__ttl=3600)
    (line,) = [line for line in rig.sidecar.lines.all if line["event"].startswith("semantic_")]
    assert line["event"] == "semantic_off"
    assert "--data-dir" in line["reason"]
    answer = await filled(rig, FIRST, KEY)
    await hits(rig, FIRST, answer, KEY)


async def test_questions_that_come_together_are_embedded_together(rig, tmp_path, model_folder, embedder):
    await on_model(rig, model_folder, tmp_path, embedder)
    embedder.hold()
    asks = [asyncio.ensure_future(ask(rig, asking(PLAIN, ASKED), KEY))]
    await embedder.inside()
    asks += [
        asyncio.ensure_future(ask(rig, asking(PLAIN, f"What is the capital of country {number}?"), KEY))
        for number in range(5)
    ]
    waiting = rig.sidecar.service.assembly.semantics.cache._queue
    await eventually(
        lambda: len(waiting) == 5 or len(rig.sidecar.service.assembly.semantics.cache._queue) == 5,
        lambda: waiting,
    )
    embedder.release()
    await asyncio.gather(*asks)
    assert embedder.batches == [1, 5]


async def test_more_than_it_can_do_goes_without(rig, tmp_path, model_folder, embedder):
    await on_model(rig, model_folder, tmp_path, embedder, semantic__deadline=0.001)
    embedder.hold()
    answers = await asyncio.gather(
        *(ask(rig, asking(PLAIN, f"What is the capital of country {number}?"), KEY) for number in range(100))
    )
    assert {answer.status for answer in answers} == {200}
    assert counts(rig)["semantic_skipped"] >= 30
    embedder.release()


async def test_a_client_that_leaves_while_it_is_looked_for_leaves_nothing(
    rig, tmp_path, model_folder, embedder
):
    await on_model(rig, model_folder, tmp_path, embedder)
    embedder.hold()
    client = await rig.connect()
    await client.send(request("POST", FIRST.target, FIRST.sent, [KEY]))
    await embedder.inside()
    client.close()
    await eventually(lambda: not rig.sidecar.service.assembly.front.active, lambda: "a request")
    embedder.release()
    assert asked(rig) == 0
    await known(rig, FIRST, KEY)


# The log and the store.


async def test_the_store_wins_over_the_index(rig, tmp_path, model_folder):
    """43: what is gone from the store is not served, whatever the index says."""
    await on_model(rig, model_folder, tmp_path)
    await known(rig, FIRST, KEY)
    cache = rig.sidecar.service.assembly.cache
    (row,) = [row for row in cache._store.rows(0) if row.size > 64]
    cache._store.delete([row.key])
    await unmatched(rig, SECOND, KEY)


async def test_an_answer_that_is_over_is_not_served_to_others(rig, tmp_path, model_folder):
    """43: not by the store's clock, nor by the request's."""
    await on_model(rig, model_folder, tmp_path)
    clock = clocked(rig.sidecar)
    await known(rig, FIRST, KEY)
    clock.now += 3599
    assert likeness(await ask(rig, SECOND, KEY)) is not None
    clock.now += 2
    await unmatched(rig, SECOND, KEY)


@pytest.mark.parametrize("step", [86400, -86400])
async def test_a_clock_that_moves_makes_nothing_immortal(rig, tmp_path, model_folder, step):
    """43."""
    await on_model(rig, model_folder, tmp_path)
    clock = clocked(rig.sidecar)
    await known(rig, FIRST, KEY)
    clock.now += step
    await unmatched(rig, SECOND, KEY)


async def test_a_purge_is_noticed_at_once(rig, tmp_path, model_folder):
    await on_model(rig, model_folder, tmp_path)
    await known(rig, FIRST, KEY)
    assert rig.sidecar.service.assembly.cache._store.clear() > 0
    await unmatched(rig, SECOND, KEY)
    assert noted(rig) == 1


async def test_what_another_process_has_stored_is_found(rig, tmp_path, model_folder):
    """44: two on one folder, each with an index of its own."""
    one = await on_model(rig, model_folder, tmp_path)
    two = await on_model(rig, model_folder, tmp_path, jobs=False)
    first = await known(rig, FIRST, KEY)
    rig.sidecars.append(one)
    await paraphrased(rig, SECOND, first, KEY)
    assert two.service.assembly.cache.counts["hit_semantic"] == 0
    assert one.service.assembly.cache.counts["hit_semantic"] == 1


async def test_a_damaged_vector_is_nobody_elses_trouble(rig, tmp_path, model_folder):
    await on_model(rig, model_folder, tmp_path)
    first = await known(rig, FIRST, KEY)
    service = rig.sidecar.service
    store = service.assembly.cache._store
    log = store.changes()
    (change,) = log.after(0, 10)
    noted_as = log.noted([change.seq])[change.seq]
    log.close()
    await filled(rig, THIRD, KEY)
    await eventually(lambda: noted(rig) == 2, lambda: noted(rig))
    for vector, traits in ((b"\x00\x7e" * 384, noted_as.traits), (change.vector[:-2], b""), (b"x", b"x")):
        keys = [row.key for row in store.rows(0) if row.size > 64 and row.key != noted_as.key]
        assert store.note(keys[0], Near(noted_as.scope, vector, traits))
        assert likeness(await ask(rig, SECOND, KEY)) is not None
    assert first.body


async def test_stopping_while_it_embeds(rig, tmp_path, model_folder, embedder):
    await on_model(rig, model_folder, tmp_path, embedder)
    embedder.hold()
    client = await rig.connect()
    await client.send(request("POST", FIRST.target, FIRST.sent, [KEY]))
    await embedder.inside()
    async with asyncio.timeout(GUARD):
        await stopped(rig)
    embedder.release()


def test_the_held_embedder_is_the_real_one(embedder):
    assert isinstance(embedder, Held)
    (made,) = embedder.embed([ASKED])
    assert isinstance(made, Embedded)
    assert abs(float(made.vector @ made.vector) - 1) < 1e-3
    embedder.close()
