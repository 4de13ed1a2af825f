"""What is never stored: each counts its reason, and the next request goes upstream."""

import gzip

import orjson
import pytest

from sidecar.scripted import Script
from tests.faults.cache import (
    BYPASS,
    FORM,
    FORMS,
    GEMINI,
    KEY,
    MISS,
    PLAIN,
    STREAMED,
    STREAMS,
    TOOLS,
    UNSTORED,
    ask,
    asked,
    begun,
    counts,
    event,
    filled,
    hits,
    is_hit,
    misses,
    patched,
    said,
    settled,
    spoken,
    streamed,
    told,
)
from tests.faults.wire import CHAT, GEMINI_ARRAY, LAST, chunk, head, request

pytestmark = pytest.mark.both_shells

DONE = b"data: [DONE]\n\n"
ARRAY = FORM["gemini-array"]
CANDIDATE = '{"candidates":[{"content":{"parts":[{"text":"a"}]}%s}]}'
STOPPED = CANDIDATE % ',"finishReason":"STOP"'

STREAMED_FAULTS = {
    "error event": ([*spoken()[:2], b'data: {"error":{"type":"server_error"}}\n\n'], "error"),
    "error event, then the marker": ([*spoken()[:3], b'data: {"error":{"code":500}}\n\n', DONE], "error"),
    "no marker": (spoken()[:3], "incomplete"),
    "length": (spoken("length"), "finish"),
    "content_filter": (spoken("content_filter"), "finish"),
    "an unknown reason": (spoken("tired"), "finish"),
    "one of two ended early": (
        [event('{"index":1,"delta":{},"finish_reason":"length"}'), *spoken()],
        "finish",
    ),
    "refusal": ([event('{"index":0,"delta":{"refusal":"no"}}'), *spoken()], "refusal"),
    "refusal beside content": (
        [
            event('{"index":0,"delta":{"content":"x"}},{"index":1,"delta":{"refusal":"no"}}'),
            event('{"index":1,"delta":{},"finish_reason":"stop"}'),
            *spoken(),
        ],
        "refusal",
    ),
    "invalid UTF-8": ([spoken()[0], b"data: \xff\n\n", *spoken()[1:]], "unreadable"),
    "invalid UTF-8 in a comment": ([b": \xff\n\n", *spoken()], "unreadable"),
    "an event that is no JSON": ([b"data: {\n\n", *spoken()], "unreadable"),
    "an event that is no chunk": ([b'data: {"a":1}\n\n', *spoken()], "unreadable"),
    "half an event at the end": ([*spoken(), b"data: more"], "unreadable"),
    "the marker unterminated": ([*spoken()[:3], b"data: [DONE]\n"], "incomplete"),
    "nothing": ([b""], "incomplete"),
}


@pytest.mark.parametrize(("parts", "reason"), STREAMED_FAULTS.values(), ids=STREAMED_FAULTS)
async def test_streams_that_are_not_stored(rig, tmp_path, parts, reason):
    """5, 12, 22: forwarded, never stored; the reason is counted, and the next one is a new call."""
    await rig.start(cache__ttl=3600, folder=tmp_path)
    for number in range(1, 3):
        client, call = await begun(rig, STREAMED, KEY)
        await call.send(head(CHAT.kind), *[chunk(part) for part in parts if part], LAST)
        call.done()
        answer = await client.answer("POST")
        assert (await answer.rest()).startswith(b"".join(parts))
        await settled(rig, 0)
        assert counts(rig) == {f"not_stored_{reason}": number}
    assert rig.uncalled()


REFUSED = orjson.loads(said())
REFUSED["choices"][0]["message"]["refusal"] = "no"
MIXED = orjson.loads(said())
MIXED["choices"].append({"index": 1, "message": {"content": "b"}, "finish_reason": None})

WHOLE_FAULTS = {
    "an error": (PLAIN, b'{"error":{"message":"planted","type":"server_error"}}', "error"),
    "no answer": (PLAIN, b'{"detail":"x"}', "unreadable"),
    "no JSON": (PLAIN, b"<html>", "unreadable"),
    "half of it": (PLAIN, said()[:-1], "unreadable"),
    "invalid UTF-8": (PLAIN, said().replace(b"planted", b"\xff"), "unreadable"),
    "empty": (PLAIN, b"", "incomplete"),
    "an array": (PLAIN, b"[]", "unreadable"),
    "no choices": (PLAIN, b'{"choices":[]}', "incomplete"),
    "length": (PLAIN, said("length"), "finish"),
    "content_filter": (PLAIN, said("content_filter"), "finish"),
    "one without a reason": (PLAIN, orjson.dumps(MIXED), "incomplete"),
    "refusal": (PLAIN, orjson.dumps(REFUSED), "refusal"),
    "legacy, length": (
        FORM["completions"],
        b'{"choices":[{"text":"a","finish_reason":"length"}]}',
        "finish",
    ),
    "responses, incomplete": (
        FORM["responses"],
        b'{"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"},"output":[]}',
        "finish",
    ),
    "responses, failed": (FORM["responses"], b'{"status":"failed","error":{"code":"x"}}', "error"),
    "responses, queued": (FORM["responses"], b'{"status":"queued","output":[]}', "incomplete"),
    "responses, refusal": (
        FORM["responses"],
        b'{"status":"completed","output":[{"type":"message","content":[{"type":"refusal","refusal":"no"}]}]}',
        "refusal",
    ),
    "responses, no answer": (FORM["responses"], b'{"detail":"x"}', "incomplete"),
    "anthropic, max_tokens": (
        FORM["anthropic"],
        b'{"type":"message","content":[],"stop_reason":"max_tokens"}',
        "finish",
    ),
    "anthropic, refusal": (
        FORM["anthropic"],
        b'{"type":"message","content":[],"stop_reason":"refusal"}',
        "finish",
    ),
    "anthropic, pause_turn": (
        FORM["anthropic"],
        b'{"type":"message","content":[],"stop_reason":"pause_turn"}',
        "finish",
    ),
    "anthropic, no answer": (FORM["anthropic"], b'{"detail":"x"}', "incomplete"),
    "gemini, MAX_TOKENS": (FORM["gemini"], (CANDIDATE % ',"finishReason":"MAX_TOKENS"').encode(), "finish"),
    "gemini, SAFETY": (FORM["gemini"], (CANDIDATE % ',"finishReason":"SAFETY"').encode(), "finish"),
    "gemini, blocked": (FORM["gemini"], b'{"promptFeedback":{"blockReason":"SAFETY"}}', "finish"),
    "gemini, no answer": (FORM["gemini"], b'{"detail":"x"}', "incomplete"),
    "gemini, no reason": (FORM["gemini"], (CANDIDATE % "").encode(), "incomplete"),
    "ollama, length": (
        FORM["ollama-chat"],
        b'{"message":{"content":"a"},"done":true,"done_reason":"length"}',
        "finish",
    ),
    "ollama, load": (FORM["ollama-chat"], b'{"message":{},"done":true,"done_reason":"load"}', "finish"),
    "ollama, not done": (FORM["ollama-chat"], b'{"message":{"content":"a"},"done":false}', "incomplete"),
    "ollama, error": (FORM["ollama-generate"], b'{"error":"planted"}', "error"),
    "embeddings, no answer": (FORM["embeddings"], b'{"detail":"x"}', "incomplete"),
    "embeddings, error": (FORM["embeddings"], b'{"error":{"code":1},"data":[]}', "error"),
    "ollama embed, no answer": (FORM["ollama-embed"], b'{"detail":"x"}', "incomplete"),
}


@pytest.mark.parametrize(("form", "body", "reason"), WHOLE_FAULTS.values(), ids=WHOLE_FAULTS)
async def test_whole_answers_that_are_not_stored(rig, tmp_path, form, body, reason):
    """5, 22: a 200 that is not a whole and ordinary answer of its format."""
    await rig.start(cache__ttl=3600, folder=tmp_path)
    for number in range(1, 3):
        client, call = await begun(rig, form, KEY)
        await told(call, body)
        assert await (await client.answer("POST")).rest() == body
        await settled(rig, 0)
        assert counts(rig) == {f"not_stored_{reason}": number}


STATUSES = [201, 202, 203, 204, 206, 304, 400, 404, 408, 429, 500, 503, 529]


@pytest.mark.parametrize("status", STATUSES)
async def test_other_statuses_are_not_stored(rig, status):
    """17: only complete 200s, whatever the body says."""
    await rig.start(cache__ttl=3600)
    for number in range(1, 3):
        client, call = await begun(rig, PLAIN, KEY)
        await told(call, b"" if status in (204, 304) else said(), status=b"%d X" % status)
        answer = await client.answer("POST")
        await answer.rest()
        assert (answer.status, answer.header("cache-status")) == (status, UNSTORED)
        await settled(rig, 0)
        assert counts(rig) == {"not_stored_status": number}


HEADS = {
    "no-store": (b"Cache-Control: no-store", "upstream_no_store"),
    "no-store among others": (b"cache-control: private, NO-STORE , max-age=0", "upstream_no_store"),
    "br": (b"Content-Encoding: br", "compressed"),
    "gzip": (b"Content-Encoding: GZip", "compressed"),
    "two codings": (b"Content-Encoding: identity, gzip", "compressed"),
}


@pytest.mark.parametrize(("field", "reason"), HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("form", [PLAIN, STREAMED], ids=str)
async def test_heads_that_forbid_it(rig, form, field, reason):
    """6: compressed, or the upstream says no; `stored` is not said then."""
    await rig.start(cache__ttl=3600)
    body = gzip.compress(said()) if reason == "compressed" else said()
    for number in range(1, 3):
        client, call = await begun(rig, form, KEY)
        if form is PLAIN:
            await told(call, body, field)
        else:
            await streamed(call, *spoken(), fields=(field,))
        answer = await client.answer("POST")
        await answer.rest()
        assert answer.header("cache-status") == UNSTORED
        await settled(rig, 0)
        assert counts(rig) == {f"not_stored_{reason}": number}


@pytest.mark.parametrize(
    "field", [b"Cache-Control: no-cache", b"Cache-Control: private, max-age=0", b"Vary: *"]
)
async def test_other_words_of_the_upstream_forbid_nothing(rig, field):
    """Providers say `no-cache` of every stream; what a sidecar of one's own keeps is private."""
    await rig.start(cache__ttl=3600)
    client, call = await begun(rig, PLAIN, KEY)
    await told(call, said(), field)
    await (await client.answer("POST")).rest()
    await settled(rig, 1)
    assert is_hit(await ask(rig, PLAIN, KEY))


# Broken off.


@pytest.mark.parametrize("how", ["reset", "close", "eof"])
@pytest.mark.parametrize("form", STREAMS, ids=str)
async def test_what_broke_off_is_not_stored(rig, tmp_path, form, how):
    """11, 12: RST, FIN and a clean end before the marker, in every format and at every event."""
    await rig.start(cache__ttl=3600, folder=tmp_path)
    whole = bytes((await ask(rig, form)).body)
    await settled(rig, 1)
    broken = 0
    for cut in {len(whole) * share // 10 for share in range(1, 10)} | {len(whole) - 9}:
        client, call = await begun(rig, form, KEY)
        await call.send(head(KINDS.get(form.name, b"text/event-stream")), chunk(whole[:cut]))
        answer = await client.answer("POST")
        await answer.until(cut)
        if how == "eof":
            await call.send(LAST)
            call.done()
        else:
            getattr(call, how)()
        await answer.rest()
        await settled(rig)
        broken += 1
    found = counts(rig)
    assert sum(found.values()) == broken
    assert rig.sidecar.service.assembly.cache.counts["stored"] == 1
    rig.provider._handlers.clear()
    assert not is_hit(await ask(rig, form, KEY))


KINDS = {
    "gemini-array": GEMINI_ARRAY.kind,
    "ollama-chat-stream": b"application/x-ndjson",
    "ollama-generate-stream": b"application/x-ndjson",
}


@pytest.mark.parametrize("left", [b"", b"\r\n"], ids=["at once", "with a line end"])
async def test_a_gemini_array_without_its_bracket(rig, left):
    """12: every candidate has ended, but the array has not."""
    await rig.start(cache__ttl=3600)
    for number in range(1, 3):
        client, call = await begun(rig, ARRAY, KEY)
        await call.send(head(GEMINI_ARRAY.kind), chunk(f"[{STOPPED}".encode() + left), LAST)
        call.done()
        await (await client.answer("POST")).rest()
        await settled(rig, 0)
        assert counts(rig) == {"not_stored_unreadable": number}


@pytest.mark.parametrize("ending", ["fin", "reset", "left"])
async def test_a_body_shorter_than_it_said_is_not_served_again(rig, ending):
    """13: the marker was there, but bytes of the declared length are missing -> the next client must not wait
    for them."""
    await rig.start(cache__ttl=3600)
    whole = b"".join(spoken())
    client, call = await begun(rig, STREAMED, KEY)
    await call.send(head(CHAT.kind, framing=b"Content-Length: %d" % (len(whole) + 10)), whole)
    answer = await client.answer("POST")
    await answer.until(len(whole))
    if ending == "left":
        client.reset()
    else:
        call.close() if ending == "fin" else call.reset()
        await answer.rest()
    await settled(rig)
    rig.script(STREAMED.target)
    client = await rig.connect()
    await client.send(request("POST", STREAMED.target, STREAMED.sent, [KEY]))
    if not rig.sidecar.service.assembly.cache.counts["stored"]:
        await streamed(await rig.call(), *spoken())
    answer = await client.answer("POST")
    assert await answer.rest() == whole
    assert answer.end == "whole"


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("form", [PLAIN, STREAMED], ids=str)
async def test_what_a_client_cancelled_is_not_stored(rig, form, how):
    """23: half an answer is of no use to anybody."""
    await rig.start(cache__ttl=3600)
    client, call = await begun(rig, form, KEY)
    if form is PLAIN:
        await call.send(head(b"application/json", framing=b"Content-Length: 999"), said())
    else:
        await call.send(head(CHAT.kind), *map(chunk, spoken()[:3]))
    answer = await client.answer("POST")
    await answer.more()
    client.leave(how)
    await call.closed()
    await settled(rig, 0)
    assert counts(rig) == {"not_stored_incomplete": 1}


# Policies.


async def test_a_time_to_live_of_none_stores_nothing(rig, tmp_path):
    """ttl 0: neither stored nor looked for."""
    await rig.start(cache__ttl=0, folder=tmp_path)
    for number in range(1, 3):
        answer = await misses(rig, PLAIN)
        assert answer.header("cache-status") == UNSTORED
        await settled(rig, 0)
        assert counts(rig) == {"not_stored_off": number}


async def test_the_cache_may_be_off(rig, tmp_path):
    """`cache.mode = "off"`: nothing is said of it, nothing is counted."""
    await rig.start(cache__mode="off", cache__ttl=3600, folder=tmp_path)
    for _ in range(2):
        answer = await misses(rig, PLAIN)
        assert answer.header("cache-status") is None
    await settled(rig, 0)
    assert not counts(rig)
    assert not (tmp_path / "answers").exists()
    assert [(await rig.line(number))["cache"] for number in range(2)] == ["off", "off"]


@pytest.mark.parametrize("field", ["conversation", "container"])
@pytest.mark.parametrize("name", ["responses", "anthropic", "responses-stream"])
async def test_calls_that_change_something_upstream(rig, name, field):
    """A conversation, a container: each call does something, so none is answered from here, nor shared."""
    await rig.start(cache__ttl=3600)
    form = patched(FORM[name], **{field: "c_1"})
    for number in range(1, 3):
        answer = await misses(rig, form)
        assert answer.header("cache-status") == BYPASS
        await settled(rig, 0)
        assert counts(rig) == {"not_stored_stateful": number}


async def test_a_limit_on_temperature(rig):
    """`max_temperature`: only requests that ask for no more; who says nothing asks for 1."""
    await rig.start(cache__ttl=3600, cache__max_temperature=0.5)
    for body in ({"temperature": 0}, {"temperature": 0.5}, {"temperature": 5e-1, "n": 1}):
        form = patched(PLAIN, **body)
        await hits(rig, form, await filled(rig, form))
    gemini = FORM["gemini"]
    cool = patched(gemini, generationConfig={"temperature": 0.2})
    await hits(rig, cool, await filled(rig, cool))
    cold = patched(FORM["ollama-chat"], options={"temperature": 0})
    await hits(rig, cold, await filled(rig, cold))
    warm = patched(gemini, generationConfig={"temperature": 0.7})
    before = 0
    for form in (PLAIN, patched(PLAIN, temperature=0.6), warm, patched(PLAIN, temperature="0")):
        for _ in range(2):
            answer = await misses(rig, form)
            assert answer.header("cache-status") == UNSTORED
            before += 1
    await settled(rig)
    assert counts(rig) == {"not_stored_temperature": before}


@pytest.mark.parametrize(
    ("finish", "form", "body"),
    [
        ("length", PLAIN, said("length")),
        ("content_filter", PLAIN, said("content_filter")),
        ("refusal", PLAIN, orjson.dumps(REFUSED)),
        ("refusal", *WHOLE_FAULTS["anthropic, refusal"][:2]),
        ("refusal", *WHOLE_FAULTS["responses, refusal"][:2]),
        ("max_tokens", *WHOLE_FAULTS["anthropic, max_tokens"][:2]),
        ("max_output_tokens", *WHOLE_FAULTS["responses, incomplete"][:2]),
        ("MAX_TOKENS", *WHOLE_FAULTS["gemini, MAX_TOKENS"][:2]),
        ("SAFETY", *WHOLE_FAULTS["gemini, blocked"][:2]),
        ("length", *WHOLE_FAULTS["ollama, length"][:2]),
    ],
)
async def test_finish_reasons_that_are_configured(rig, finish, form, body):
    """22: stored where the configuration says so."""
    await rig.start(cache__ttl=3600, cache__finish=[finish])
    client, call = await begun(rig, form, KEY)
    await told(call, body)
    await (await client.answer("POST")).rest()
    await settled(rig, 1)
    again = await ask(rig, form, KEY)
    assert is_hit(again)
    assert again.body == body
    client, call = await begun(rig, patched(form, user="2"), KEY)
    await told(call, b'{"error":{"type":"x"}}')
    await (await client.answer("POST")).rest()
    await settled(rig, 1)


TALKING = [
    form for form in FORMS if "prompt" not in form.body and not form.name.endswith(("embeddings", "embed"))
]
"""Those that have tools."""


@pytest.mark.parametrize("form", TALKING, ids=str)
async def test_tool_calls_may_be_left_out(rig, form):
    """`cache.tools = false`: answers that call tools are not stored, in any format; others are."""
    await rig.start(cache__ttl=3600, cache__tools=False)
    tools = patched(form, **TOOLS)
    rig.provider.script = Script(tool=True)
    for number in range(1, 3):
        await misses(rig, tools, KEY)
        await settled(rig, 0)
        assert counts(rig) == {"not_stored_tools": number}
    rig.provider.script = Script()
    await filled(rig, form, KEY)


async def test_too_large_ones(rig):
    """`cache.largest`: at the limit and past it; forwarded all the same."""
    size = len(said(size=1000))
    await rig.start(cache__ttl=3600, cache__largest=size)
    for more, stored in ((0, 1), (1, 1)):
        form = patched(PLAIN, user=str(more))
        client, call = await begun(rig, form, KEY)
        await told(call, said(size=1000 + more))
        assert len(await (await client.answer("POST")).rest()) == size + more
        await settled(rig, stored)
    assert counts(rig) == {"not_stored_too_large": 1}


async def test_one_that_is_larger_than_what_is_kept_at_all(rig):
    """4, 7: nine megabytes of stream pass through."""
    await rig.start(cache__ttl=3600, cache__largest="64MiB", cache__size="1GiB")
    client, call = await begun(rig, STREAMED, KEY)
    parts = spoken(size=3 << 20)
    await call.send(head(CHAT.kind))
    answer = await client.answer("POST")
    size = 0
    for part in (parts[1], parts[1], parts[1], *parts):
        await call.send(chunk(part))
        size += len(part)
        await answer.until(size)
    await call.send(LAST)
    call.done()
    await answer.rest()
    await settled(rig, 0)
    assert counts(rig) == {"not_stored_too_large": 1}


RULES = """
[cache]
ttl = 60
[cache.paths."/v1/chat"]
ttl = 0
[cache.paths."/v1/chat/completions"]
ttl = 120
[cache.paths."/v1/embeddings"]
largest = 10
[cache.paths."/v1/responses"]
tools = false
finish = ["max_output_tokens"]
[[upstreams]]
name = "a"
url = "{0}"
paths = ["/v1", "/v2"]
cache = {{ ttl = 0 }}
[[upstreams]]
name = "b"
url = "{0}"
paths = ["/v1beta", "/api"]
cache = {{ ttl = 30, max_temperature = 0 }}
"""


async def test_terms_by_path_and_upstream(rig, tmp_path):
    """The longest path goes first, then the upstream, then what goes for all; each term by itself."""
    path = tmp_path / "slipstream.toml"
    path.write_text(RULES.format(rig.provider.url))
    await rig.start(None, file=path, cache__ttl=None)
    chat = await filled(rig, PLAIN)
    assert (await hits(rig, PLAIN, chat)).header("cache-status").startswith(b"slipstream; hit; ttl=1")
    for form in (
        PLAIN._replace(target="/v2/chat/completions"),
        FORM["completions"],
        FORM["embeddings"],
        FORM["gemini"],
        patched(FORM["ollama-chat"], options={"temperature": 0.1}),
    ):
        assert (await misses(rig, form)).header("cache-status") == UNSTORED
    await settled(rig, 1)
    assert counts(rig) == {"not_stored_off": 3, "not_stored_temperature": 2}
    cold = patched(FORM["ollama-chat"], options={"temperature": 0})
    first = await filled(rig, cold)
    left = (await hits(rig, cold, first)).header("cache-status").partition(b"ttl=")[2]
    assert int(left.partition(b";")[0]) in (29, 30)


async def test_what_is_no_model_call_is_not_stored(rig):
    """Other paths, and an event stream of any other kind: no Cache-Status, no store."""
    await rig.start(cache__ttl=3600)
    for target in ("/v1/models", "/echo", GEMINI + "countTokens"):
        client = await rig.connect()
        for _ in range(2):
            answer = await client.whole("POST", target, b'{"contents":[]}', [KEY])
            assert answer.all("cache-status") == []
    await settled(rig, 0)
    assert counts(rig) == {}
    assert asked(rig) == 6


async def test_an_event_stream_where_none_is_known(rig):
    """An embedding that comes as an event stream: forwarded, complete, and not stored as an embedding."""
    await rig.start(cache__ttl=3600)
    client, call = await begun(rig, FORM["embeddings"], KEY)
    await streamed(call, b'data: {"data":[]}\n\n')
    answer = await client.answer("POST")
    assert await answer.rest() == b'data: {"data":[]}\n\n'
    await settled(rig, 0)
    assert counts(rig) == {"not_stored_format": 1}
    assert answer.header("cache-status") == MISS
