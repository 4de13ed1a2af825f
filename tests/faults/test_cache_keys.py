"""Which requests an answer is for: what counts, what does not, and who may have it."""

import pytest

from sidecar.scripted import Script
from tests.faults.cache import (
    KEY,
    MISS,
    OTHER_KEY,
    PLAIN,
    STREAMED,
    ask,
    asked,
    begun,
    counts,
    filled,
    hits,
    is_hit,
    misses,
    patched,
    said,
    settled,
    told,
)
from tests.faults.comeback import IDS, bare, numbers
from tests.faults.comeback import STREAMS as STREAM_URL
from tests.faults.wire import request

pytestmark = pytest.mark.both_shells

FIELDS = {
    "messages": [{"role": "user", "content": "planted prompt"}],
    "messages order": {"messages": [{"content": "a", "role": "user"}, {"content": "b", "role": "user"}]},
    "model": "n",
    "temperature": 0.5,
    "top_p": 0.5,
    "n": 1,
    "seed": 7,
    "max_tokens": 5,
    "stop": ["a"],
    "user": "u",
    "tools": [],
    "tool_choice": "auto",
    "response_format": {"type": "json_object"},
    "logprobs": False,
    "logit_bias": {},
    "presence_penalty": 0,
    "metadata": {"a": "b"},
    "store": False,
    "service_tier": "auto",
    "reasoning_effort": "low",
    "unknown_field": None,
    "temperature: 0": {"temperature": 0},
    "temperature: null": {"temperature": None},
    "n: true": {"n": True},
    "n as text": {"n": "1"},
    "seed of many digits": {"seed": 12345678901234567890},
    "seed of many digits, another": {"seed": 12345678901234567891},
}


async def test_every_field_of_the_body_counts(rig):
    """37: each added or changed in turn -> a miss of its own, that hits afterwards."""
    await rig.start(cache__ttl=3600)
    await filled(rig, PLAIN, KEY)
    seen = []
    for name, value in FIELDS.items():
        form = patched(PLAIN, **(value if " " in name else {name: value}))
        seen.append((form, await misses(rig, form, KEY)))
        await settled(rig, len(seen) + 1)
    for form, first in seen:
        await hits(rig, form, first, KEY)
    without = PLAIN._replace(body={"messages": PLAIN.body["messages"]})
    await misses(rig, without, KEY)


TARGETS = [
    ("/v1/chat/completions?a=1", "a query"),
    ("/v1/chat/completions?a=2", "another"),
    ("/v1/chat/completions?", "an empty one"),
    ("/v1//chat/completions", "a path"),
    ("/v2/chat/completions", "another path"),
    ("/v1/chat/completions?a=1&b=2", "two"),
    ("/v1/chat/completions?b=2&a=1", "two in another order"),
]


async def test_path_and_query_count(rig, shell):
    """37: each is a miss, and hits by itself."""
    await rig.start(cache__ttl=3600)
    firsts = [(PLAIN, await filled(rig, PLAIN, KEY))]
    for target, _ in TARGETS:
        if shell == "asgi" and target.endswith("?"):
            continue  # to ASGI that is no query
        form = PLAIN._replace(target=target)
        firsts.append((form, await misses(rig, form, KEY)))
    await settled(rig, len(firsts))
    for form, first in firsts:
        await hits(rig, form, first, KEY)


async def test_only_posts_are_answered(rig):
    """37: another method with the same path and body goes upstream."""
    await rig.start(cache__ttl=3600)
    await filled(rig, PLAIN, KEY)
    for method in ("GET", "PUT", "HEAD", "DELETE"):
        before = asked(rig)
        client = await rig.connect()
        answer = await client.whole(method, PLAIN.target, PLAIN.sent, [KEY])
        assert asked(rig) == before + 1
        assert not answer.all("cache-status")


COUNTED = [
    (b"Anthropic-Version", b"2023-06-01"),
    (b"Anthropic-Version", b"2023-06-02"),
    (b"Anthropic-Beta", b"a"),
    (b"OpenAI-Organization", b"org"),
    (b"OpenAI-Project", b"p"),
    (b"OpenAI-Beta", b"assistants=v2"),
    (b"X-Goog-User-Project", b"p"),
    (b"X-Gateway-Model", b"m"),
    (b"Slipstream-Namespace", b"a"),
    (b"Slipstream-Namespace", b"b"),
    (b"Content-Language", b"de"),
    (b"Accept-Language", b"de"),
]
ASIDE = [
    (b"User-Agent", b"another"),
    (b"X-Stainless-Lang", b"js"),
    (b"X-Stainless-Retry-Count", b"1"),
    (b"Traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    (b"Tracestate", b"a=b"),
    (b"Accept", b"text/plain"),
    (b"Accept-Encoding", b"gzip, br"),
    (b"X-Request-Id", b"1"),
    (b"Idempotency-Key", b"1"),
    (b"X-Forwarded-For", b"10.0.0.1"),
    (b"Referer", b"http://x/"),
    (b"Sec-Fetch-Mode", b"cors"),
    (b"Cache-Control", b"max-age=60"),
    (b"Slipstream-Feature", b"f"),
    (b"Slipstream-Disconnect", b"finish"),
    (b"Connection", b"close"),
]


async def test_headers_that_change_the_answer_count(rig):
    """37: each in turn is a miss of its own, in any case and order."""
    await rig.start(cache__ttl=3600)
    firsts = [([KEY], await filled(rig, PLAIN, KEY))]
    for field in COUNTED:
        firsts.append(([KEY, field], await misses(rig, PLAIN, KEY, field)))
    await settled(rig, len(firsts))
    for fields, first in firsts:
        lower = [(name.lower(), value) for name, value in reversed(fields)]
        await hits(rig, PLAIN, first, *lower)


async def test_headers_about_other_things_do_not(rig):
    """37: the client, the trace, the connection -> a hit, also where they are gone again."""
    await rig.start(cache__ttl=3600)
    first = await filled(rig, PLAIN, KEY)
    for field in ASIDE:
        await hits(rig, PLAIN, first, KEY, field)
    form = patched(PLAIN, user="2")
    second = await filled(rig, form, KEY, *ASIDE[:-1])
    await hits(rig, form, second, KEY)


# Who asks.

WHO = {
    "nobody": ([], ""),
    "bearer": ([KEY], ""),
    "another bearer": ([OTHER_KEY], ""),
    "x-api-key": ([(b"X-Api-Key", b"planted")], ""),
    "api-key": ([(b"Api-Key", b"planted")], ""),
    "x-goog-api-key": ([(b"X-Goog-Api-Key", b"planted")], ""),
    "cookie": ([(b"Cookie", b"s=planted")], ""),
    "another cookie": ([(b"Cookie", b"s=planted2")], ""),
    "query key": ([], "?key=planted"),
    "another query key": ([], "?key=planted2"),
    "query api_key": ([], "?api_key=planted"),
    "escaped name": ([], "?%6bey=planted3"),
    "two of them": ([KEY, (b"X-Api-Key", b"planted")], ""),
    "two bearers": ([KEY, OTHER_KEY], ""),
    "the same in another field": ([(b"X-Api-Key", KEY[1])], ""),
    "empty": ([(b"Authorization", b"")], ""),
    "gateway": ([(b"Ocp-Apim-Subscription-Key", b"planted")], ""),
}


async def test_no_two_credentials_share(rig, tmp_path):
    """37: wherever it stands; none at all is a scope of its own."""
    await rig.start(cache__ttl=3600, folder=tmp_path)
    firsts = []
    for fields, query in WHO.values():
        form = PLAIN._replace(target=PLAIN.target + query)
        firsts.append((form, fields, await misses(rig, form, *fields)))
    await settled(rig, len(WHO))
    for tier in ("memory", "disk"):
        if tier == "disk":
            rig.sidecar.service.assembly.cache._hot.clear()
        for form, fields, first in firsts:
            await hits(rig, form, first, *fields)


WIDER = [
    (b"Slipstream-Namespace", b""),
    (b"Slipstream-Namespace", b"upstream"),
    (b"Slipstream-Scope", b"shared"),
    (b"Slipstream-Tenant", b"0"),
    (b"Slipstream-Share", b"upstream"),
    (b"Cache-Control", b"public"),
    (b"Cache-Control", b"only-if-cached"),
    (b"Connection", b"authorization"),
    (b"Connection", b"authorization, slipstream-namespace"),
    (b"X-Forwarded-Authorization", KEY[1]),
    (b"Proxy-Authorization", KEY[1]),
]


@pytest.mark.parametrize("share", ["credential", "upstream"])
async def test_no_header_makes_a_scope_wider(rig, share):
    """8: whoever has another credential, or none, stays by themselves whatever else they say."""
    await rig.start(cache__ttl=3600, cache__share=share)
    rig.provider.script = Script(text="the tenant's own")
    first = await filled(rig, PLAIN, KEY, (b"Slipstream-Namespace", b"a"))
    assert b"the tenant's own" in first.body
    rig.provider.script = Script(text="another")
    for field in WIDER:
        for who in ([], [OTHER_KEY], [KEY] if field[0] == b"Connection" else []):
            assert b"own" not in (await ask(rig, PLAIN, *who, field)).body
    await hits(rig, PLAIN, first, KEY, (b"Slipstream-Namespace", b"a"))


async def test_operators_may_share_what_is_stored(rig, tmp_path):
    """`cache.share = "upstream"`: all who have a credential share answers; who has none is alone; namespaces
    stay apart; nobody can follow another's stream."""
    await rig.start(cache__ttl=3600, cache__share="upstream", folder=tmp_path)
    first = await filled(rig, STREAMED, KEY, IDS)
    for fields in ([OTHER_KEY], [(b"X-Api-Key", b"planted")], [OTHER_KEY, (b"Cookie", b"a=b")]):
        await hits_stream(rig, first, *fields)
    nobody = await misses(rig, STREAMED, IDS)
    assert nobody.header("cache-status") == MISS
    await settled(rig, 2)
    await misses(rig, STREAMED, OTHER_KEY, (b"Slipstream-Namespace", b"a"))
    await settled(rig, 3)
    names = {}
    for key in (KEY, OTHER_KEY):
        answer = await ask(rig, STREAMED, key, IDS)
        assert is_hit(answer)
        names[key] = answer.header("slipstream-stream-id").decode()
        assert numbers(answer.body)
    assert len(set(names.values())) == 2
    for key in (KEY, OTHER_KEY):
        for name in names.values():
            target = f"{STREAM_URL}{name}"
            client = await rig.connect()
            answer = await client.whole("GET", target, None, [key, (b"Last-Event-ID", f"{name}:0".encode())])
            assert answer.status == (200 if names[key] == name else 404)
            again = await ask(rig, STREAMED, key, IDS, (b"Last-Event-ID", f"{name}:0".encode()))
            assert again.status == (200 if names[key] == name else 404)
    tenants = {line["tenant"] for line in rig.sidecar.lines.requests if line["cache"] == "hit"}
    assert len(tenants) == 4
    assert asked(rig) == 3


async def hits_stream(rig, first, *fields):
    before = asked(rig)
    answer = await ask(rig, STREAMED, *fields)
    assert is_hit(answer)
    assert bytes(answer.body) == bare(first.body)
    assert asked(rig) == before


async def test_running_calls_are_not_shared_between_credentials(rig):
    """`cache.share = "upstream"` goes for answers that are over: a running call is its credential's."""
    await rig.start(cache__ttl=3600, cache__share="upstream")
    one, first = await begun(rig, PLAIN, KEY)
    other, second = await begun(rig, PLAIN, OTHER_KEY)
    await told(first, said(text="one"))
    await told(second, said(text="other"))
    assert b"one" in await (await one.answer("POST")).rest()
    assert b"other" in await (await other.answer("POST")).rest()
    await settled(rig, 2)


async def test_ignored_fields(rig):
    """`cache.ignore`: those make no difference, inside of others, too; all else does."""
    await rig.start(cache__ttl=3600, cache__ignore=["user", "metadata.trace"])
    first = await filled(rig, patched(PLAIN, user="1", metadata={"trace": "1", "a": 1}))
    await hits(rig, patched(PLAIN, user="2", metadata={"a": 1}), first)
    await hits(rig, patched(PLAIN, metadata={"a": 1, "trace": [3]}), first)
    await misses(rig, patched(PLAIN, user="1", metadata={"a": 2}), KEY)
    await misses(rig, patched(PLAIN, metadata={"a": 2}))
    await misses(rig, patched(PLAIN, trace="1", metadata={"a": 1}))


BROKEN = {
    "no JSON": b"{",
    "not an object": b"[]",
    "NaN": b'{"model":"m","n":NaN}',
    "deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "twice": b'{"model":"m","model":"n"}',
    "lone surrogate": b'{"model":"m","n":"\\ud800"}',
    "BOM": b"\xef\xbb\xbf" + PLAIN.sent,
    "invalid UTF-8": b'{"model":"m","n":"\xff"}',
    "empty": b"",
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
async def test_bodies_that_cannot_be_judged_go_through_unstored(rig, body):
    """30: forwarded as they are, twice, and counted."""
    await rig.start(cache__ttl=3600)
    rig.script(PLAIN.target)
    for number in range(2):
        client = await rig.connect()
        await client.send(request("POST", PLAIN.target, body))
        call = await rig.call()
        assert call.received.body == body
        await told(call, said())
        answer = await client.answer("POST")
        assert await answer.rest() == said()
        assert not is_hit(answer)
        await settled(rig)
        assert len(rig.provider.requests) == number + 1
    assert rig.sidecar.service.assembly.cache.counts["stored"] == 0
    assert counts(rig) == {"not_stored_unkeyed": 2}


async def test_each_upstream_is_its_own(rig, start_sidecar, tmp_path):
    """37: the same request to another upstream by name is another request."""
    tables = '[[upstreams]]\nname = "a"\nurl = "{0}"\npaths = ["/a"]\nstrip = true\n'
    tables += '[[upstreams]]\nname = "b"\nurl = "{0}"\npaths = ["/b"]\nstrip = true\n'
    path = tmp_path / "slipstream.toml"
    path.write_text(tables.format(rig.provider.url))
    await rig.start(None, file=path, cache__ttl=3600)
    one, other = PLAIN._replace(target="/a" + PLAIN.target), PLAIN._replace(target="/b" + PLAIN.target)
    first = await filled(rig, one)
    await filled(rig, other)
    await hits(rig, one, first)
