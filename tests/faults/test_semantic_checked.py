"""Shadow, verification and trust: what is compared with real answers, what is written down, what is switched off."""

import asyncio

import orjson
import pytest

from tests.faults.cache import KEY, PLAIN, STREAMED, ask, asked, said, settled, stopped, told, turns
from tests.faults.conftest import eventually
from tests.faults.semantic import AGAIN, ASKED, OTHER, asking, held, known, likeness, on_model, unmatched
from tests.faults.wire import GUARD, request

pytestmark = pytest.mark.both_shells

FIRST, SECOND, THIRD = (asking(PLAIN, text) for text in (ASKED, AGAIN, OTHER))
SAYS = "Open your settings, choose Account, and type the new address."
SAYS_SO_TOO = "Go to settings, pick Account and enter your new email address there."
SAYS_OTHERWISE = "The ferry to the islands leaves at noon on weekdays."


def counts(rig):
    return rig.sidecar.service.assembly.cache.counts


async def compared(rig, folder, number):
    """The records, once there are so many."""
    file = folder / "shadow.jsonl"

    def read():
        return [orjson.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []

    await eventually(lambda: len(read()) >= number, read)
    found = read()
    assert len(found) == number
    return found


# Shadow.


@pytest.mark.parametrize("form", [PLAIN, STREAMED], ids=str)
async def test_shadow_looks_and_serves_nothing(rig, tmp_path, model_folder, form):
    await on_model(rig, model_folder, tmp_path, cache__mode="shadow")
    await known(rig, asking(form, ASKED), KEY)
    answer = await unmatched(rig, asking(form, AGAIN), KEY)
    assert answer.header("cache-status") == b"slipstream; fwd=miss; stored"
    first, second = await compared(rig, tmp_path, 2)
    assert (first["kind"], first["similarity"], first["stored"]) == ("shadow", None, None)
    assert second["similarity"] >= 0.92
    assert second["stored"] == first["asked"] != second["asked"]
    assert (second["same"], second["answers"], second["guard"]) == (True, None, None)
    assert (second["threshold"], second["path"], second["namespace"]) == (0.92, form.target, None)
    assert counts(rig)["shadow_right"] == 1
    line = await rig.line(1)
    assert (line["cache"], line["cache_kind"]) == ("miss", None)
    # Identical requests are answered from the cache as ever.
    again = await ask(rig, asking(form, AGAIN), KEY)
    assert b"detail=exact" in again.header("cache-status")


async def test_shadow_waits_for_nobody(rig, tmp_path, model_folder):
    embedder = held(model_folder)
    await on_model(rig, model_folder, tmp_path, embedder, cache__mode="shadow", semantic__deadline=30)
    embedder.hold()
    answer = await ask(rig, FIRST, KEY)
    assert answer.status == 200
    embedder.release()


async def test_records_hold_no_text_unless_that_is_configured(rig, tmp_path, model_folder):
    """49."""
    await on_model(rig, model_folder, tmp_path, cache__mode="shadow")
    await known(rig, FIRST, KEY)
    await unmatched(rig, SECOND, KEY)
    await compared(rig, tmp_path, 2)
    raw = (tmp_path / "shadow.jsonl").read_bytes()
    for text in (b"email", b"account", KEY[1]):
        assert text not in raw
    assert (tmp_path / "shadow.jsonl").stat().st_mode & 0o777 == 0o600


async def test_records_with_texts(rig, tmp_path, model_folder):
    await on_model(rig, model_folder, tmp_path, cache__mode="shadow", semantic__record_texts=True)
    await known(rig, FIRST, KEY)
    await unmatched(rig, SECOND, KEY)
    first, second = await compared(rig, tmp_path, 2)
    assert (first["question"], second["question"]) == (ASKED, AGAIN)
    assert second["answer"] == second["other_answer"] != ""


async def test_what_guards_object_to_is_recorded_with_its_guard(rig, tmp_path, model_folder):
    await on_model(rig, model_folder, tmp_path, cache__mode="shadow")
    await known(rig, asking(PLAIN, "How many people live in Norway as of 2019?"), KEY)
    await unmatched(rig, asking(PLAIN, "How many people live in Norway as of 2024?"), KEY)
    _, second = await compared(rig, tmp_path, 2)
    assert second["guard"] is not None
    assert counts(rig)["shadow_right"] == 0  # it would not have been served


# Verification.


async def checked(rig, number):
    found = counts(rig)
    await eventually(
        lambda: sum(found[f"verify_{name}"] for name in ("right", "wrong", "unknown", "skipped")) == number,
        lambda: found,
    )
    await settled(rig)


async def test_a_share_of_hits_is_checked_upstream(rig, tmp_path, model_folder):
    await on_model(rig, model_folder, tmp_path, semantic__verify=1)
    await known(rig, FIRST, KEY)
    answer = await ask(rig, SECOND, KEY)
    assert likeness(answer) is not None
    await checked(rig, 1)
    assert asked(rig) == 2
    assert counts(rig)["verify_right"] == 1
    (record,) = await compared(rig, tmp_path, 1)
    assert (record["kind"], record["same"]) == ("verify", True)
    # What was paid for is stored.
    again = await ask(rig, SECOND, KEY)
    assert b"detail=exact" in again.header("cache-status")
    assert len(rig.sidecar.lines.requests) == 3


async def test_no_share_is_none(rig, tmp_path, model_folder):
    await on_model(rig, model_folder, tmp_path)
    await known(rig, FIRST, KEY)
    for _ in range(3):
        assert likeness(await ask(rig, SECOND, KEY)) is not None
    assert asked(rig) == 1


async def test_only_if_cached_is_never_checked(rig, tmp_path, model_folder):
    await on_model(rig, model_folder, tmp_path, semantic__verify=1)
    await known(rig, FIRST, KEY)
    answer = await ask(rig, SECOND, KEY, (b"Cache-Control", b"only-if-cached"))
    assert likeness(answer) is not None
    assert asked(rig) == 1


PAIRS = [
    (ASKED, AGAIN),
    ("How long does shipping to the islands take?", "How long does it take to ship to the islands?"),
    ("How can I learn to play the guitar at home?", "How do I learn to play guitar at home?"),
]


async def test_answers_that_say_the_same_in_other_words_are_right(rig, tmp_path, model_folder):
    await on_model(rig, model_folder, tmp_path, semantic__verify=1, semantic__agree=0.7)
    script = rig.provider.script.__class__
    rig.provider.script = script(text=SAYS)
    await known(rig, FIRST, KEY)
    rig.provider.script = script(text=SAYS_SO_TOO)
    assert likeness(await ask(rig, SECOND, KEY)) is not None
    await checked(rig, 1)
    assert counts(rig)["verify_right"] == 1
    (record,) = await compared(rig, tmp_path, 1)
    assert record["same"] is False
    assert 0.7 <= record["answers"] < 1


async def test_false_hits_are_told_and_switch_their_scope_back_to_exact(rig, tmp_path, model_folder):
    await on_model(rig, model_folder, tmp_path, semantic__verify=1)
    script = rig.provider.script.__class__
    rig.provider.script = script(text=SAYS)
    firsts = [await known(rig, asking(PLAIN, one), KEY) for one, _ in PAIRS]
    rig.provider.script = script(text=SAYS_OTHERWISE)
    for number, (_, text) in enumerate(PAIRS[:2]):
        answer = await ask(rig, asking(PLAIN, text), KEY)
        assert likeness(answer) is not None
        assert answer.body == firsts[number].body
        await checked(rig, number + 1)
    found = rig.sidecar.lines.all
    assert counts(rig)["verify_wrong"] == 2
    assert [line["level"] for line in found if line["event"] == "semantic_false_hit"] == ["warning"] * 2
    assert len([line for line in found if line["event"] == "semantic_scope_off"]) == 1
    assert len([line for line in found if line["event"] == "semantic_false_hits_rising"]) == 1
    await unmatched(rig, asking(PLAIN, PAIRS[2][1]), KEY)
    assert counts(rig)["semantic_distrusted"] == 1
    # Another scope is served.
    await known(rig, asking(PLAIN, ASKED, seed=1), KEY)
    assert likeness(await ask(rig, asking(PLAIN, AGAIN, seed=1), KEY)) is not None


async def test_checks_take_nobodys_place_and_none_is_made_twice(rig, tmp_path, model_folder):
    await on_model(rig, model_folder, tmp_path, semantic__verify=1, limits__requests=2)
    await known(rig, FIRST, KEY)
    rig.script(PLAIN.target)
    for _ in range(4):
        assert likeness(await ask(rig, SECOND, KEY)) is not None
    check = await rig.call()
    assert rig.uncalled()
    assert counts(rig)["verify_skipped"] == 3
    for text in (OTHER, "Who wrote the Odyssey?"):
        client = await rig.connect()
        form = asking(PLAIN, text)
        await client.send(request("POST", form.target, form.sent, [KEY]))
        assert (await rig.call()).received is not check.received
    await told(check, said())


async def test_a_check_is_about_what_was_served(rig, tmp_path, model_folder):
    """Not about what is stored by the time the upstream has answered."""
    await on_model(rig, model_folder, tmp_path, semantic__verify=1)
    script = rig.provider.script.__class__
    rig.provider.script = script(text=SAYS_OTHERWISE)
    await known(rig, FIRST, KEY)
    rig.provider.script = script(text=SAYS, first=0.3)
    assert likeness(await ask(rig, SECOND, KEY)) is not None
    rig.provider.script = script(text=SAYS)
    await ask(rig, FIRST, KEY, (b"Cache-Control", b"no-cache"))
    await checked(rig, 1)
    assert counts(rig)["verify_wrong"] == 1


async def test_no_check_begins_while_the_sidecar_drains(rig, tmp_path, model_folder):
    embedder = held(model_folder)
    await on_model(rig, model_folder, tmp_path, embedder, semantic__verify=1)
    await known(rig, FIRST, KEY)
    rig.script(PLAIN.target)
    embedder.hold()
    waiting = asyncio.ensure_future(ask(rig, SECOND, KEY))
    await embedder.inside()
    stopping = asyncio.ensure_future(stopped(rig, GUARD))
    await turns()
    embedder.release()
    assert likeness(await waiting) is not None
    assert await stopping
    assert rig.uncalled()


async def test_shadow_never_compares_an_answer_with_itself(rig, tmp_path, model_folder):
    await on_model(rig, model_folder, tmp_path, cache__mode="shadow")
    await known(rig, FIRST, KEY)
    rig.sidecar.service.assembly.cache._hot.clear()
    await unmatched(rig, FIRST, KEY, (b"Cache-Control", b"max-age=0"))
    for record in await compared(rig, tmp_path, 2):
        assert record["stored"] is None
        assert record["same"] is None


async def test_a_check_holds_up_no_end(rig, tmp_path, model_folder):
    """47: a check that is under way is given up when the sidecar drains."""
    await on_model(rig, model_folder, tmp_path, semantic__verify=1)
    await known(rig, FIRST, KEY)
    rig.script(PLAIN.target)
    assert likeness(await ask(rig, SECOND, KEY)) is not None
    call = await rig.call()
    assert await stopped(rig, GUARD)
    assert call is not None
