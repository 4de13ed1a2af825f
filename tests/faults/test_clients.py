"""Who may ask: tokens, where they stand, where they must not get to, and what they keep apart. FAULTS 49."""

import asyncio
from base64 import b64encode

import orjson
import pytest

from tests.faults.clients import (
    ALICE,
    BOB,
    BODY,
    HEALTH,
    WHOLE,
    answered,
    bearer,
    begin,
    beside,
    client,
    post,
    sent,
    two,
)
from tests.faults.jobs import JOBS, STREAMS, name_of
from tests.faults.wire import (
    ANTHROPIC,
    CHAT,
    GEMINI,
    LAST,
    OLLAMA,
    OTHER,
    chunk,
    head,
    request,
)

both = pytest.mark.both_shells
PLACES = {
    "authorization": bearer(ALICE),
    "in-lower-case": (b"authorization", b"bearer   " + ALICE),
    "behind-a-tab": (b"Authorization", b"Bearer\t" + ALICE),
    "proxy": beside(ALICE),
    "anthropic": (b"X-Api-Key", ALICE),
    "azure": (b"api-key", ALICE),
    "gemini": (b"x-goog-api-key", ALICE),
}
BAD = {
    "none": (),
    "unknown": (bearer(b"nobody's"),),
    "digest": (bearer(client("x", ALICE)["token_sha256"].encode()),),
    "no-scheme": ((b"Authorization", ALICE),),
    "basic": ((b"Authorization", b"Basic " + ALICE),),
    "elsewhere": ((b"X-Token", ALICE), (b"Cookie", b"token=" + ALICE)),
    "empty": (bearer(b""),),
    "prefix": (bearer(ALICE[:-1]),),
    "longer": (bearer(ALICE + b"x"),),
    "two-clients": (bearer(ALICE), beside(BOB)),
    "long": (bearer(b"x" * 8000),),
    "bytes": (bearer(b"\xff\xfe" * 9),),
}


@both
@pytest.mark.parametrize("place", PLACES)
async def test_a_token_is_taken_from_where_sdks_put_it_and_goes_no_further(rig, place):
    await begin(rig)
    rig.script(CHAT.target)
    connection = await rig.connect()
    name, value = PLACES[place]
    fields = [(name, value), (b"X-Mine", b"stays"), (b"Cookie", b"a=b")]
    await connection.send(request("POST", CHAT.target, BODY, fields))
    call = await rig.call()
    assert ALICE not in sent(call.received)
    assert b"slipstream" not in sent(call.received).lower()
    assert (call.received.header("x-mine"), call.received.header("cookie")) == (b"stays", b"a=b")
    assert await call.received.read() == BODY
    await answered(call)
    answer = await connection.answer("POST")
    assert (answer.status, await answer.rest()) == (200, WHOLE)
    line = await rig.line()
    assert (line["outcome"], len(line["tenant"])) == ("complete", 16)


@both
@pytest.mark.parametrize("case", BAD)
async def test_without_a_good_token_it_is_401_and_nothing_goes_upstream(rig, case):
    await begin(rig)
    rig.script(CHAT.target)
    answer = await post(await rig.connect(), *BAD[case])
    error = orjson.loads(await answer.rest())["error"]
    assert (answer.status, answer.header("slipstream-error")) == (401, b"unauthorized")
    assert answer.header("www-authenticate") == b"Bearer"
    assert error["code"] == "unauthorized"
    assert rig.uncalled()
    assert not rig.provider.received
    line = await rig.line()
    assert (line["status"], line["outcome"], line["error"]) == (401, "refused", "unauthorized")
    assert line["tenant"] is None


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        (CHAT, lambda error: error["error"]["type"] == "invalid_request_error"),
        (ANTHROPIC, lambda error: error["error"]["type"] == "authentication_error"),
        (GEMINI, lambda error: error["error"]["status"] == "UNAUTHENTICATED"),
        (OLLAMA, lambda error: "token" in error["error"]),
        (OTHER, lambda error: error["status"] == 401),
    ],
    ids=str,
)
async def test_a_refusal_has_the_shape_that_the_sdk_knows(rig, form, shape):
    await begin(rig)
    answer = await post(await rig.connect(), form=form)
    assert shape(orjson.loads(await answer.rest()))


@both
@pytest.mark.parametrize("path", [STREAMS + "x", JOBS + "x", "/_slipstream/", "/_slipstream/else"])
async def test_own_paths_need_the_token_too(rig, path):
    await begin(rig)
    connection = await rig.connect()
    answer = await connection.whole("GET", path)
    assert (answer.status, answer.header("content-type")) == (401, b"application/problem+json")
    answer = await connection.whole("GET", path, None, [bearer(ALICE)])
    assert answer.status == 404


@both
async def test_health_needs_none(rig):
    await begin(rig)
    answer = await (await rig.connect()).whole("GET", HEALTH)
    assert answer.status == 200


@both
async def test_the_providers_key_passes_beside_the_token(rig):
    await begin(rig)
    rig.script(CHAT.target)
    connection = await rig.connect()
    await connection.send(request("POST", CHAT.target, BODY, [bearer(b"sk-hers"), beside(ALICE)]))
    call = await rig.call()
    assert call.received.header("authorization") == b"Bearer sk-hers"
    assert call.received.header("proxy-authorization") is None
    await answered(call)
    assert await (await connection.answer()).rest() == WHOLE


REPEATED = {
    "same-twice": [bearer(ALICE), bearer(ALICE)],
    "in-one-line": [(b"Authorization", b"Bearer " + ALICE + b", Bearer " + ALICE)],
    "two-places": [bearer(ALICE), (b"x-api-key", ALICE)],
    "with-a-key-behind": [bearer(ALICE), bearer(b"sk-hers")],
    "with-a-key-before": [bearer(b"sk-hers"), bearer(ALICE)],
    "joined-with-a-key": [(b"Authorization", b"Bearer sk-hers, Bearer " + ALICE)],
    "nominated": [bearer(ALICE), (b"Connection", b"authorization")],
}


@both
@pytest.mark.parametrize("case", REPEATED)
async def test_a_token_that_is_repeated_does_not_slip_through(rig, case):
    await begin(rig)
    rig.script(CHAT.target)
    connection = await rig.connect()
    await connection.send(request("POST", CHAT.target, BODY, REPEATED[case]))
    call = await rig.call()
    assert ALICE not in sent(call.received)
    key = [value for name, value in call.received.headers if name.lower() == b"authorization"]
    assert key == ([b"Bearer sk-hers"] if case.startswith("with-a-key") else [])
    await answered(call)
    assert await (await connection.answer()).rest() == WHOLE


COPIES = {
    "litellm": (b"x-litellm-api-key", b"Bearer " + ALICE),
    "helicone": (b"Helicone-Auth", b"Bearer " + ALICE),
    "cookie": (b"Cookie", b"a=b; t=" + ALICE),
    "coded": (b"Cookie", b"t=" + ALICE.replace(b"-", b"%2D")),
    "subprotocol": (b"Sec-WebSocket-Protocol", b"openai-insecure-api-key." + ALICE),
    "quoted": (b"X-Api-Key", b'"' + ALICE + b'"'),
    "schemed": (b"Api-Key", b"Key=" + ALICE),
    "basic": (b"Authorization", b"Basic " + ALICE),
}


@pytest.mark.parametrize("case", COPIES)
async def test_a_copy_of_the_token_does_not_slip_through(rig, case):
    await begin(rig)
    rig.script(CHAT.target)
    connection = await rig.connect()
    name, value = COPIES[case]
    await connection.send(request("POST", CHAT.target, BODY, [bearer(ALICE), (name, value)]))
    call = await rig.call()
    assert ALICE not in sent(call.received)
    assert call.received.header(name.decode().lower()) is None
    await answered(call)
    assert await (await connection.answer()).rest() == WHOLE


async def test_other_subprotocols_stay(rig):
    await begin(rig)
    rig.script(CHAT.target)
    connection = await rig.connect()
    offered = (b"Sec-WebSocket-Protocol", b"realtime, openai-insecure-api-key." + ALICE)
    await connection.send(request("POST", CHAT.target, BODY, [bearer(ALICE), offered]))
    call = await rig.call()
    assert call.received.header("sec-websocket-protocol") == b"realtime"
    await answered(call)
    assert await (await connection.answer()).rest() == WHOLE


QUERIES = ["token={}", "token=x{}x", "{}", "access_token={}"]


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("coded", [False, True])
async def test_a_copy_in_the_query_does_not_slip_through(rig, query, coded):
    await begin(rig)
    rig.script("/v1/models")
    connection = await rig.connect()
    text = ALICE.decode().replace("-", "%2d") if coded else ALICE.decode()
    target = "/v1/models?a=b%2Fc&" + query.format(text) + "&d"
    await connection.send(request("GET", target, None, [bearer(ALICE)]))
    call = await rig.call()
    assert call.received.target == "/v1/models?a=b%2Fc&d"
    await answered(call)
    assert (await connection.answer()).status == 200


@pytest.mark.parametrize("clients", [True, False])
async def test_nobody_can_say_where_a_token_was(rig, clients, tmp_path):
    """It would choose an upstream whose field the request does not have."""
    url, paths = rig.provider.url, ["/v1"]
    upstreams = [
        {"name": "one", "url": url + "/one", "paths": paths},
        {"name": "other", "url": url + "/other", "paths": paths, "header": "x-api-key"},
    ]
    await begin(rig, clients=None if clients else [], upstreams=upstreams, folder=tmp_path)
    for place in ("/one", "/other"):
        rig.script(place + "/v1/models")
        rig.script(place + CHAT.target)
    connection = await rig.connect()
    forged = (b"Slipstream-Token-Field", b"x-api-key")
    await connection.send(request("GET", "/v1/models", None, [bearer(ALICE), forged]))
    call = await rig.call()
    assert call.received.target == "/one/v1/models"
    await answered(call)
    await (await connection.answer()).rest()
    fields = [bearer(ALICE), forged, (b"Prefer", b"respond-async")]
    assert (await connection.whole("POST", CHAT.target, BODY, fields)).status == 202
    call = await rig.call()
    assert call.received.target == "/one" + CHAT.target
    await answered(call)


async def test_a_token_in_the_query_does_not_slip_through(rig):
    await begin(rig)
    rig.script("/v1/models")
    connection = await rig.connect()
    await connection.send(request("GET", "/v1/models?a=b&key=" + ALICE.decode(), None, [bearer(ALICE)]))
    call = await rig.call()
    assert call.received.target == "/v1/models?a=b"
    await answered(call)
    assert (await connection.answer()).status == 200


async def test_the_field_of_the_token_still_chooses_the_upstream(rig):
    """SDKs share paths, and are told apart by where they put their key."""
    table = {"url": rig.provider.url, "paths": ["/v1"]}
    upstreams = [{"name": "one", **table}, {"name": "other", "header": "x-api-key", **table}]
    await begin(rig, upstreams=upstreams)
    rig.script("/v1/models")
    connection = await rig.connect()
    for number, (field, name) in enumerate([((b"X-Api-Key", ALICE), "other"), (bearer(ALICE), "one")]):
        await connection.send(request("GET", "/v1/models", None, [field]))
        await answered(await rig.call())
        await (await connection.answer()).rest()
        assert (await rig.line(number))["upstream"] == name


@both
async def test_a_body_is_not_waited_for(rig):
    """Expect: 100-continue -> 401 at once, and the connection ends: what comes next may be the body."""
    await begin(rig)
    connection = await rig.connect()
    start = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 9999999\r\nExpect: 100-continue\r\n\r\n"
    await connection.send(start)
    answer = await connection.answer("POST")
    assert (answer.status, answer.header("connection")) == (401, b"close")
    await answer.rest()
    assert await connection.closed() == b""


async def test_a_small_body_is_read_and_the_connection_goes_on(rig):
    await begin(rig)
    connection = await rig.connect()
    assert (await (await post(connection)).rest()) != b""
    rig.script(CHAT.target)
    await connection.send(request("POST", CHAT.target, BODY, [bearer(ALICE)]))
    await answered(await rig.call())
    assert (await connection.answer()).status == 200


async def test_a_malformed_request_is_400_and_closes_whoever_sends_it(rig):
    await begin(rig)
    connection = await rig.connect()
    await connection.send(b"GET http://else/ HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (await connection.answer()).status == 400
    await connection.closed()


# Whose is what.


@both
async def test_streams_and_jobs_are_the_clients(rig, tmp_path):
    await begin(rig, folder=tmp_path)
    rig.script(CHAT.target)
    connection = await rig.connect()
    mine, others = bearer(ALICE), bearer(BOB)
    await connection.send(request("POST", CHAT.target, CHAT.body, [mine, (b"Accept", b"text/event-stream")]))
    call = await rig.call()
    await call.send(head(), b"".join(map(chunk, CHAT.events)), LAST)
    call.done()
    answer = await connection.answer()
    name = answer.header("slipstream-stream-id").decode()
    await answer.rest()
    job = name_of(await connection.whole("POST", CHAT.target, BODY, [mine, (b"Prefer", b"respond-async")]))
    await answered(await rig.call())
    for path in (STREAMS + name, JOBS + job):
        assert (await connection.whole("GET", path, None, [others])).status == 404
        assert (await connection.whole("DELETE", path, None, [others])).status == 404
        assert (await connection.whole("GET", path, None, [mine])).status == 200
        # By another field, it is the same client.
        assert (await connection.whole("GET", path, None, [(b"x-api-key", ALICE)])).status == 200


async def test_a_token_is_not_on_disk_with_a_job(rig, tmp_path):
    await begin(rig, folder=tmp_path, jobs__concurrency=1)
    rig.script(CHAT.target)
    connection = await rig.connect()
    hers = b"sk-hers-and-nobody-elses"
    fields = [bearer(ALICE), (b"Prefer", b"respond-async"), beside(ALICE), (b"x-api-key", hers)]
    for _ in range(2):
        assert (await connection.whole("POST", CHAT.target, BODY, fields)).status == 202
    first = await rig.call()
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert holds(kept, hers)  # the second one waits there
    assert not holds(kept, ALICE)
    await answered(first)
    second = await rig.call()
    assert second.received.header("x-api-key") == hers
    assert ALICE not in sent(second.received)
    await answered(second)


def holds(text, secret):
    """Whether the secret is in there, as it is, in hexadecimal or in base64, wherever in a longer text it
    stood."""
    coded = [b64encode(bytes(before) + secret).rstrip(b"=")[5:-2] for before in range(3)]
    return any(form in text for form in (secret, secret.hex().encode(), *coded))


async def asked(rig, connection, *fields, hit):
    await connection.send(request("POST", CHAT.target, BODY, fields))
    if not hit:
        await answered(await rig.call())
    answer = await connection.answer("POST")
    assert await answer.rest() == WHOLE
    assert answer.header("cache-status").startswith(b"slipstream; hit") == hit
    assert rig.uncalled()


@both
async def test_stored_answers_are_the_clients_and_of_the_key_beside_the_token(rig):
    await begin(rig, cache__ttl=3600)
    rig.script(CHAT.target)
    connection = await rig.connect()
    await asked(rig, connection, bearer(ALICE), hit=False)
    await asked(rig, connection, bearer(BOB), hit=False)
    await asked(rig, connection, bearer(ALICE), hit=True)
    await asked(rig, connection, (b"x-api-key", ALICE), hit=True)
    await asked(rig, connection, bearer(b"sk-hers"), beside(ALICE), hit=False)
    await asked(rig, connection, bearer(b"sk-other"), beside(ALICE), hit=False)
    await asked(rig, connection, bearer(b"sk-hers"), beside(ALICE), hit=True)


@both
async def test_what_is_shared_is_shared_inside_of_a_namespace(rig):
    """cache.share = upstream: all that bring a key share, but a namespace is a wall."""
    third = b"carols-token"
    clients = [*two(namespace="team-a"), client("carol", third, namespace="team-a")]
    await begin(rig, clients=clients, cache__ttl=3600, cache__share="upstream")
    rig.script(CHAT.target)
    connection = await rig.connect()

    def by(token, *more):
        return [bearer(b"sk-of-" + token[:3]), beside(token), *more]

    await asked(rig, connection, *by(ALICE), hit=False)
    await asked(rig, connection, *by(third), hit=True)
    await asked(rig, connection, *by(BOB), hit=False)
    # Names of others' namespaces open nothing.
    named = (b"Slipstream-Namespace", b"team-a")
    await asked(rig, connection, *by(BOB, named), hit=False)
    await asked(rig, connection, *by(ALICE, named), hit=False)  # inside her own, it is a further one
    await asked(rig, connection, *by(third, named), hit=True)
    # Who brings no key for the upstream shares with nobody.
    await asked(rig, connection, bearer(ALICE), hit=False)
    await asked(rig, connection, bearer(third), hit=False)


async def test_the_short_way_asks_who_it_is(rig):
    """A request that comes again in the same bytes is answered without being read, but not without its client's
    limits, and not once that client is gone."""
    sidecar = await begin(rig, clients=two(rate=4), cache__ttl=3600)
    rig.script(CHAT.target)
    connection = await rig.connect()
    for hit in (False, True, True):
        await asked(rig, connection, bearer(ALICE), hit=hit)
    again = sidecar.service._proxy._again
    assert len(again._known) == 1
    await asked(rig, connection, bearer(ALICE), hit=True)
    await connection.send(request("POST", CHAT.target, BODY, [bearer(ALICE)]))
    answer = await connection.answer("POST")
    assert (answer.status, answer.header("retry-after")) == (429, b"1")
    await answer.rest()
    sidecar.service.assembly.inbound.clients.prepare(config_of(clients=[client("bob", BOB)]))()
    await connection.send(request("POST", CHAT.target, BODY, [bearer(ALICE)]))
    answer = await connection.answer("POST")
    await answer.rest()
    assert answer.status == 401
    assert not len(again._known)


def config_of(**tree):
    from sidecar.config import load

    return load({}, {}, tree).config


async def test_others_after_a_reload(rig):
    """New ones may ask, those that are gone may not; what runs goes on."""
    sidecar = await begin(rig)
    clients = sidecar.service.assembly.inbound.clients
    rig.script(CHAT.target)
    connection, other = await rig.connect(), await rig.connect()
    await connection.send(request("POST", CHAT.target, CHAT.body, [bearer(ALICE)]))
    call = await rig.call()
    await call.send(head(), chunk(CHAT.events[0]))
    answer = await connection.answer()
    await answer.until(len(CHAT.events[0]))
    new = b"a-new-token"
    clients.prepare(config_of(clients=[client("alice", new, requests=1), client("bob", BOB)]))()
    refused = await post(other, bearer(ALICE))
    await refused.rest()
    assert refused.status == 401
    # The same name, and so the same count: her stream of before is still hers.
    refused = await post(other, bearer(new))
    await refused.rest()
    assert refused.status == 429
    await call.send(b"".join(map(chunk, CHAT.events[1:])), LAST)
    call.done()
    await answer.rest()
    assert (answer.end, bytes(answer.body)) == ("whole", CHAT.whole)
    while clients._running:  # noqa: ASYNC110 - the answer's last byte comes before its end
        await asyncio.sleep(0)
    await other.send(request("POST", CHAT.target, BODY, [bearer(new)]))
    await answered(await rig.call())
    assert (await other.answer()).status == 200


async def test_nothing_of_a_token_is_told(rig, tmp_path):
    """FAULTS 49: the planted token is in no log line, figure or file."""
    import httpx

    sidecar = await begin(rig, folder=tmp_path, admin=True, cache__ttl=3600)
    rig.script(CHAT.target)
    connection = await rig.connect()
    await asked(rig, connection, bearer(ALICE), hit=False)
    await asked(rig, connection, bearer(ALICE), hit=True)
    await connection.whole("GET", "/v1/none?key=" + ALICE.decode(), None, [bearer(b"wrong-" + ALICE)])
    await connection.whole("GET", "/_slipstream/none", None, [bearer(ALICE)])
    told = b"".join(sidecar.lines.raw)
    async with httpx.AsyncClient(base_url=sidecar.service.admin.url) as admin:
        for path in ("/metrics", "/stats", "/requests", "/cache"):
            told += (await admin.get(path)).content
    told += b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"unauthorized" in told
    assert not holds(told, ALICE)
    assert client("x", ALICE)["token_sha256"].encode() not in told
