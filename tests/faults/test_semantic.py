"""The same question in other words: what is served, to whom, and what never is. With the real model."""

import orjson
import pytest

from sidecar.core.semantic.guards import GUARDS
from tests.faults.cache import (
    FORM,
    FORMS,
    KEY,
    OTHER_KEY,
    PLAIN,
    STREAMED,
    WHOLES,
    ask,
    asked,
    patched,
    settled,
    stopped,
)
from tests.faults.conftest import eventually
from tests.faults.semantic import (
    AGAIN,
    ASKED,
    OTHER,
    asking,
    known,
    likeness,
    on_model,
    paraphrased,
    unmatched,
)

pytestmark = pytest.mark.both_shells

TALKING = [form for form in FORMS if "embed" not in form.name]
FIRST, SECOND = asking(PLAIN, ASKED), asking(PLAIN, AGAIN)


@pytest.mark.parametrize("form", TALKING, ids=str)
async def test_a_paraphrase_gets_the_stored_bytes(rig, tmp_path, model_folder, form):
    """38: in every format, stream or whole."""
    await on_model(rig, model_folder, tmp_path)
    first = await known(rig, asking(form, ASKED), KEY)
    again = await paraphrased(rig, asking(form, AGAIN), first, KEY)
    assert 0.92 <= likeness(again) < 1
    await unmatched(rig, asking(form, OTHER), KEY)
    line = next(one for one in rig.sidecar.lines.requests if one["cache_kind"] == "semantic")
    assert (line["cache"], line["similarity"], line["guard"]) == ("hit", likeness(again), None)
    phases = line["phases"]
    assert 0 < phases["embed_ms"] + phases["search_ms"] <= phases["lookup_ms"]
    assert phases["upstream_ms"] is None
    assert rig.sidecar.service.assembly.cache.counts["hit_semantic"] == 1


async def test_the_bytes_survive_a_restart(rig, tmp_path, model_folder):
    await on_model(rig, model_folder, tmp_path)
    first = await known(rig, FIRST, KEY)
    await stopped(rig)
    await on_model(rig, model_folder, tmp_path)
    await paraphrased(rig, SECOND, first, KEY)


async def test_a_stream_that_was_a_hit_can_be_come_back_to(rig, tmp_path, model_folder):
    await on_model(rig, model_folder, tmp_path)
    first = await known(rig, asking(STREAMED, ASKED), KEY)
    ids = (b"Accept", b"text/event-stream")
    form = asking(STREAMED, AGAIN)
    hit = await ask(rig, form, KEY, ids)
    assert likeness(hit) is not None
    assert first.body.count(b"\n\n") == hit.body.count(b"\n\n")
    name = hit.header("slipstream-stream-id")
    rest = await ask(rig, form, KEY, ids, (b"Last-Event-ID", name + b":1"))
    assert rest.body == hit.body[hit.body.index(b":1\n\n") + 4 :]
    # And under its own key by whoever asked for the stored answer itself.
    own = await ask(rig, asking(STREAMED, ASKED), KEY, ids)
    name = own.header("slipstream-stream-id")
    rest = await ask(rig, asking(STREAMED, ASKED), KEY, ids, (b"Last-Event-ID", name + b":1"))
    assert rest.status == 200
    assert rest.body.endswith(b":2\n\n") or b":2\n\n" in rest.body


# Who gets it.


async def test_two_credentials_never_share(rig, tmp_path, model_folder):
    """37."""
    await on_model(rig, model_folder, tmp_path)
    await known(rig, FIRST, KEY)
    await unmatched(rig, SECOND, OTHER_KEY)
    await unmatched(rig, SECOND)


async def test_namespaces_never_share(rig, tmp_path, model_folder):
    await on_model(rig, model_folder, tmp_path)
    await known(rig, FIRST, KEY)
    await unmatched(rig, SECOND, KEY, (b"Slipstream-Namespace", b"n"))


SYSTEM = {"role": "system", "content": "You are kind."}
CHANGES = {
    "model": {"model": "n"},
    "temperature": {"temperature": 0.5},
    "stream": {"stream": True},
    "tools": {"tools": [{"type": "function", "function": {"name": "f"}}]},
    "format": {"response_format": {"type": "json_object"}},
    "system": {"messages": [SYSTEM, {"role": "user", "content": AGAIN}]},
    "turns": {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": AGAIN},
        ]
    },
}


@pytest.mark.parametrize("change", CHANGES)
async def test_each_field_changed_in_turn_is_a_miss(rig, tmp_path, model_folder, change):
    """37: everything but the last words has to be the same."""
    await on_model(rig, model_folder, tmp_path)
    await known(rig, FIRST, KEY)
    await unmatched(rig, patched(SECOND, **CHANGES[change]), KEY)


async def test_the_same_turns_before_are_a_scope_of_their_own(rig, tmp_path, model_folder):
    await on_model(rig, model_folder, tmp_path)
    before = [SYSTEM, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    first = await known(rig, patched(FIRST, messages=[*before, *FIRST.body["messages"]]), KEY)
    await paraphrased(rig, patched(SECOND, messages=[*before, *SECOND.body["messages"]]), first, KEY)


NEVER = {
    "an image": [{"type": "text", "text": AGAIN}, {"type": "image_url", "image_url": {"url": "data:,"}}],
    "nothing": "",
    "white space": " \n\t ",
    "very long": AGAIN + " please" * 400,
}


@pytest.mark.parametrize("content", NEVER.values(), ids=NEVER)
async def test_what_is_no_plain_question_is_never_matched(rig, tmp_path, model_folder, content):
    await on_model(rig, model_folder, tmp_path)
    await known(rig, FIRST, KEY)
    form = patched(PLAIN, messages=[{"role": "user", "content": content}])
    answer = await unmatched(rig, form, KEY)
    assert answer.header("cache-status") == b"slipstream; fwd=miss; stored"
    counts = rig.sidecar.service.assembly.cache.counts
    assert sum(count for name, count in counts.items() if name.startswith("unmatched_")) > 0


@pytest.mark.parametrize("form", WHOLES[-2:], ids=str)
async def test_embeddings_are_never_matched(rig, tmp_path, model_folder, form):
    await on_model(rig, model_folder, tmp_path)
    for text in (ASKED, AGAIN):
        await unmatched(rig, patched(form, input=text), KEY)


# What the request says.


async def test_a_request_may_ask_for_stricter_and_never_for_less(rig, tmp_path, model_folder):
    await on_model(rig, model_folder, tmp_path)
    first = await known(rig, FIRST, KEY)
    await paraphrased(rig, SECOND, first, KEY, (b"Slipstream-Similarity", b"0.5"))
    await unmatched(rig, SECOND, KEY, (b"Slipstream-Similarity", b"0.999"))
    line = await rig.line(2)
    assert 0.92 <= line["similarity"] < 0.999


async def test_less_than_configured_does_not_count(rig, tmp_path, model_folder):
    await on_model(rig, model_folder, tmp_path, semantic__threshold=0.999)
    await known(rig, FIRST, KEY)
    await unmatched(rig, SECOND, KEY, (b"Slipstream-Similarity", b"0.1"))


@pytest.mark.parametrize("value", [b"much", b"1.5", b"-1", b"nan", b"0,9", b"", b"1e-1", b"inf"])
async def test_a_similarity_that_is_none_is_refused(rig, tmp_path, model_folder, value):
    await on_model(rig, model_folder, tmp_path)
    answer = await ask(rig, FIRST, KEY, (b"Slipstream-Similarity", value))
    assert (answer.status, answer.header("slipstream-error")) == (400, b"bad_request")
    assert b"Slipstream-Similarity" in answer.body
    assert asked(rig) == 0


@pytest.mark.parametrize(
    ("said", "hit"),
    [(b"no-store", False), (b"no-cache", False), (b"max-age=0", False), (b"max-age=60", True)],
)
async def test_cache_control_goes_for_paraphrases_too(rig, tmp_path, model_folder, said, hit):
    await on_model(rig, model_folder, tmp_path)
    await known(rig, FIRST, KEY)
    answer = await ask(rig, SECOND, KEY, (b"Cache-Control", said))
    assert (likeness(answer) is not None) is hit


async def test_only_if_cached_takes_a_paraphrase(rig, tmp_path, model_folder):
    await on_model(rig, model_folder, tmp_path)
    first = await known(rig, FIRST, KEY)
    only = (b"Cache-Control", b"only-if-cached")
    await paraphrased(rig, SECOND, first, KEY, only)
    answer = await ask(rig, asking(PLAIN, OTHER), KEY, only)
    assert (answer.status, asked(rig)) == (504, 1)


# What is configured.

NAMED = (b"Slipstream-Namespace", b"faq")


@pytest.mark.parametrize(
    ("keys", "fields"),
    [
        ({"semantic__paths": {"/v1/chat": 0.999}}, ()),
        ({"semantic__namespaces": {"faq": 0.999}}, (NAMED,)),
        ({"semantic__paths": {"/v1/chat": 0.5}, "semantic__namespaces": {"faq": 0.999}}, (NAMED,)),
    ],
)
async def test_thresholds_by_path_and_namespace(rig, tmp_path, model_folder, keys, fields):
    await on_model(rig, model_folder, tmp_path, **keys)
    await known(rig, FIRST, KEY, *fields)
    await unmatched(rig, SECOND, KEY, *fields)


async def test_a_threshold_of_an_upstream(rig, tmp_path, model_folder):
    file = tmp_path / "c.toml"
    file.write_text(f'[[upstreams]]\nname = "a"\nurl = "{rig.provider.url}"\nthreshold = 0.999\n')
    await on_model(rig, model_folder, tmp_path / "data", upstream=None, file=file)
    await known(rig, FIRST, KEY)
    await unmatched(rig, SECOND, KEY)


async def test_what_a_guard_objects_to_goes_upstream_and_is_counted(rig, tmp_path, model_folder):
    await on_model(rig, model_folder, tmp_path)
    await known(rig, asking(PLAIN, "How many people live in Norway as of 2019?"), KEY)
    await unmatched(rig, asking(PLAIN, "How many people live in Norway as of 2024?"), KEY)
    line = await rig.line(1)
    assert line["similarity"] >= 0.92
    assert line["guard"] is not None
    assert rig.sidecar.service.assembly.cache.counts[f"guard_{line['guard']}"] == 1


async def test_a_guard_can_be_skipped(rig, tmp_path, model_folder):
    first, second = "How many people live in Norway as of 2019?", "How many people live in Norway as of 2024?"
    await on_model(rig, model_folder, tmp_path)
    await known(rig, asking(PLAIN, first), KEY)
    await unmatched(rig, asking(PLAIN, second), KEY)
    await on_model(rig, model_folder, tmp_path / "b", semantic__skip_guards=list(GUARDS))
    answer = await known(rig, asking(PLAIN, first), KEY)
    await paraphrased(rig, asking(PLAIN, second), answer, KEY)


# Taking it back.


async def test_the_answer_behind_a_wrong_hit_can_be_removed(rig, tmp_path, model_folder):
    await on_model(rig, model_folder, tmp_path)
    first = await known(rig, asking(STREAMED, ASKED), KEY)
    hit = await paraphrased(rig, asking(STREAMED, AGAIN), first, KEY)
    store = rig.sidecar.service.assembly.cache._store
    line = next(one for one in rig.sidecar.lines.requests if one["cache_kind"] == "semantic")
    names = hit.header("slipstream-stream-id").decode(), line["request_id"]
    for name in names:
        await eventually(lambda: store.served_key(name), lambda: name)  # noqa: B023
    assert store.delete([store.served_key(names[0])]) == 1
    await unmatched(rig, asking(STREAMED, AGAIN), KEY)


async def test_the_question_is_nowhere_on_the_disk(rig, tmp_path, model_folder):
    """49."""
    await on_model(rig, model_folder, tmp_path)
    lines = rig.sidecar.lines.all
    planted = "How do I feed my hamster Schnurzelbert properly?"
    await known(rig, asking(PLAIN, planted), KEY)
    await unmatched(rig, asking(PLAIN, "How do I feed my hamster Schnurzelfritz properly?"), KEY)
    await stopped(rig)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 3
    for path in files:
        raw = path.read_bytes()
        for word in (b"Schnurzel", b"schnurzel", b"hamster", KEY[1].split()[1]):
            assert word not in raw, path
    assert "chnurzel" not in orjson.dumps(lines).decode()


async def test_exact_hits_go_first_and_embed_nothing(rig, tmp_path, model_folder):
    await on_model(rig, model_folder, tmp_path)
    await known(rig, FIRST, KEY)
    again = await ask(rig, FIRST, KEY)
    assert b"detail=exact" in again.header("cache-status")
    line = await rig.line(1)
    assert (line["similarity"], line["phases"]["embed_ms"]) == (None, None)


async def test_other_modes_do_not_look(rig, tmp_path, model_folder):
    await on_model(rig, model_folder, tmp_path)
    await known(rig, FIRST, KEY)
    await stopped(rig)
    await rig.start(folder=tmp_path, cache__ttl=3600, cache__mode="exact")
    await unmatched(rig, SECOND, KEY)


async def test_jobs_are_found_by_others(rig, tmp_path, model_folder):
    await on_model(rig, model_folder, tmp_path)
    accepted = await ask(rig, FIRST, KEY, (b"Prefer", b"respond-async"))
    assert accepted.status == 202
    counts = rig.sidecar.service.assembly.cache.counts
    await eventually(lambda: counts["stored"] == 1, lambda: counts)
    await settled(rig)
    store = rig.sidecar.service.assembly.cache._store
    await eventually(lambda: store.stats().vectors == 1, lambda: counts)
    answer = await ask(rig, SECOND, KEY)
    assert likeness(answer) is not None
    assert FORM["chat"].name == PLAIN.name
