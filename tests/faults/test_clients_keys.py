"""The sidecar's own keys of upstreams: where they go, where they must not, and who may have them spent.
FAULTS 49."""

import orjson
import pytest

from sidecar.config import load
from sidecar.core.fingerprint import caller, exact_key, shared_scope
from sidecar.core.values import ConfigError
from sidecar.engine.source import Call, Origin
from sidecar.serving.intake import request_of
from sidecar.serving.keys import Keys, keyed
from sidecar.tables import UpstreamTable
from tests.faults.clients import (
    ALICE,
    BOB,
    BODY,
    HEALTH,
    KEY,
    WHOLE,
    answered,
    bearer,
    begin,
    beside,
    client,
    post,
    sent,
    two,
    upstream,
)
from tests.faults.conftest import eventually
from tests.faults.jobs import JOBS, STREAMS, name_of
from tests.faults.test_clients import holds
from tests.faults.wire import ANTHROPIC, CHAT, GEMINI, LAST, OLLAMA, OTHER, chunk, head, request

both = pytest.mark.both_shells
OTHERS = [
    (b"Authorization", b"Bearer sk-hers"),
    (b"x-api-key", b"sk-hers"),
    (b"api-key", b"sk-hers"),
    (b"X-Goog-Api-Key", b"sk-hers"),
    (b"Cookie", b"session=sk-hers"),
    (b"cf-aig-authorization", b"sk-hers"),
    (b"Proxy-Authorization", b"Bearer " + ALICE),
    (b"X-Mine", b"stays"),
]


@both
@pytest.mark.parametrize(
    ("form", "name", "value"),
    [
        (CHAT, "authorization", b"Bearer " + KEY),
        (OLLAMA, "authorization", b"Bearer " + KEY),
        (OTHER, "authorization", b"Bearer " + KEY),
        (ANTHROPIC, "x-api-key", KEY),
        (GEMINI, "x-goog-api-key", KEY),
    ],
    ids=str,
)
async def test_the_upstream_gets_the_sidecars_key_and_no_other(rig, tmp_path, form, name, value):
    await begin(rig, upstreams=[upstream(rig.provider.url, tmp_path)])
    rig.script(form.target)
    connection = await rig.connect()
    query = "&key=sk-hers&a=b" if "?" in form.target else "?key=sk-hers&a=b&access_token=sk-hers"
    await connection.send(request(form.method, form.target + query, form.body, OTHERS))
    call = await rig.call()
    came = sent(call.received)
    assert b"sk-hers" not in came
    assert ALICE not in came
    assert came.count(KEY) == 1
    assert [value for key, value in call.received.headers if key.decode().lower() == name] == [value]
    assert call.received.target.endswith("a=b")
    assert call.received.header("x-mine") == b"stays"
    await answered(call)
    assert (await connection.answer(form.method)).status == 200


async def test_the_field_can_be_named(rig, tmp_path):
    await begin(rig, upstreams=[upstream(rig.provider.url, tmp_path, key_header="X-Gateway-Key")])
    rig.script(CHAT.target)
    connection = await rig.connect()
    fields = [bearer(ALICE), (b"x-gateway-key", b"hers")]
    await connection.send(request("POST", CHAT.target, BODY, fields))
    call = await rig.call()
    found = [value for name, value in call.received.headers if name.lower() == b"x-gateway-key"]
    assert found == [KEY]
    assert call.received.header("authorization") is None
    await answered(call)
    assert (await connection.answer()).status == 200


@pytest.mark.parametrize(
    ("url", "target", "name"),
    [
        ("https://api.anthropic.com", b"/v1/models", b"x-api-key"),
        ("https://generativelanguage.googleapis.com", b"/v1beta/models", b"x-goog-api-key"),
        ("https://mine.openai.azure.com", b"/openai/deployments/d/chat/completions", b"api-key"),
        ("https://api.openai.com", b"/v1/models", b"Authorization"),
        ("https://openai.azure.com.evil.test", b"/v1/models", b"Authorization"),
    ],
)
def test_each_providers_host_gets_it_where_it_looks(tmp_path, url, target, name):
    keys = Keys([UpstreamTable(**upstream(url, tmp_path))], b"s" * 32)
    keys.read()
    key = next(iter(keys._keys.values()))
    host = url.removeprefix("https://")
    made = keyed(Call(Origin("https", host, 443), "GET", target, [(b"Host", host.encode())]), key, None)
    assert made.headers[0] == (b"Host", host.encode())
    assert made.headers[1] in ((name, KEY), (name, b"Bearer " + KEY))
    assert KEY.decode() not in repr(key)


def test_a_browsers_key_for_a_websocket_does_not_go_along(tmp_path):
    keys = Keys([UpstreamTable(**upstream("https://api.openai.com", tmp_path))], b"s" * 32)
    keys.read()
    offered = (
        b"Sec-WebSocket-Protocol",
        b"realtime, openai-insecure-api-key.sk-hers,OpenAI-Insecure-API-Key.sk-other,openai-beta.realtime-v1",
    )
    made = keyed(
        Call(Origin("https", "api.openai.com", 443), "GET", b"/v1/realtime", [offered]),
        next(iter(keys._keys.values())),
        None,
    )
    assert made.headers[0] == (offered[0], b"realtime, openai-beta.realtime-v1")
    made = keyed(
        Call(
            Origin("https", "api.openai.com", 443),
            "GET",
            b"/v1/realtime",
            [(offered[0], b"openai-insecure-api-key.sk-hers")],
        ),
        next(iter(keys._keys.values())),
        None,
    )
    assert [name for name, _ in made.headers] == [b"Authorization"]


OUTSIDE = [
    "/v1/../admin",
    "/v1/%2e%2E/admin",
    "/v1/.%2e",
    "/v1/%2E./x?a=b",
    "/v1/./x",
    "/v1/x/%2e",
    "/v1/..%2fadmin",
    "/v1/..%5Cadmin",
    "/v1/..\\admin",
    "/v1/..;x/admin",
]


@pytest.mark.parametrize("target", OUTSIDE)
async def test_the_key_does_not_leave_the_path_of_its_upstream(rig, tmp_path, target):
    await begin(rig, upstreams=[upstream(rig.provider.url + "/base", tmp_path)])
    connection = await rig.connect()
    answer = await connection.whole("POST", target, BODY, [bearer(ALICE)])
    assert (answer.status, answer.header("slipstream-error")) == (400, b"bad_request")
    assert not rig.provider.received


@pytest.mark.parametrize("target", ["/v1/...", "/v1/.well-known/x", "/v1/a..b", "/v1/x..", "/v1/x?a=/../b"])
async def test_dots_alone_do_not_matter(rig, tmp_path, target):
    await begin(rig, upstreams=[upstream(rig.provider.url, tmp_path)])
    rig.script(target.partition("?")[0])
    connection = await rig.connect()
    await connection.send(request("GET", target, None, [bearer(ALICE)]))
    call = await rig.call()
    assert call.received.target == target
    await answered(call)
    assert (await connection.answer("GET")).status == 200


async def test_without_a_key_a_path_is_the_upstreams_to_judge(rig):
    await begin(rig)
    rig.script("/v1/../x")
    connection = await rig.connect()
    await connection.send(request("GET", "/v1/../x", None, [bearer(ALICE)]))
    await answered(await rig.call())
    assert (await connection.answer("GET")).status == 200


async def test_another_upstream_does_not_get_it(rig, tmp_path):
    """The key belongs to one entry; the same provider under another name has the client's own."""
    upstreams = [
        upstream(rig.provider.url, tmp_path, paths=["/a"]),
        {"name": "plain", "url": rig.provider.url, "paths": ["/b"]},
    ]
    await begin(rig, upstreams=upstreams)
    connection = await rig.connect()
    for path, own in (("/a/x", KEY), ("/b/x", b"sk-hers")):
        rig.script(path)
        await connection.send(request("GET", path, None, [bearer(b"sk-hers"), beside(ALICE)]))
        call = await rig.call()
        assert call.received.header("authorization") == b"Bearer " + own
        await answered(call)
        await (await connection.answer()).rest()


async def test_a_redirect_is_relayed_and_not_followed(rig, tmp_path):
    await begin(rig, upstreams=[upstream(rig.provider.url, tmp_path)])
    rig.script("/moved")
    connection = await rig.connect()
    await connection.send(request("GET", "/moved", None, [bearer(ALICE)]))
    call = await rig.call()
    await call.send(b"HTTP/1.1 307 T\r\nLocation: http://else.test/\r\nContent-Length: 0\r\n\r\n")
    call.done()
    assert (await connection.answer()).status == 307
    assert rig.provider.received == 1


async def test_trace_would_show_it(rig, tmp_path):
    await begin(rig, upstreams=[upstream(rig.provider.url, tmp_path)])
    answer = await (await rig.connect()).whole("TRACE", "/", None, [bearer(ALICE)])
    assert (answer.status, answer.header("slipstream-error")) == (405, b"method_not_allowed")
    assert not rig.provider.received


async def asked(rig, connection, *fields, hit, key=KEY):
    await connection.send(request("POST", CHAT.target, BODY, fields, host=b"localhost"))
    if not hit:
        call = await rig.call()
        assert call.received.header("authorization") == b"Bearer " + key
        await answered(call)
    answer = await connection.answer("POST")
    assert await answer.rest() == WHOLE
    assert answer.header("cache-status").startswith(b"slipstream; hit") == hit


@both
async def test_the_clients_token_is_the_tenant(rig, tmp_path):
    """Whatever else an SDK sends as a key goes nowhere, and makes no difference."""
    await begin(rig, upstreams=[upstream(rig.provider.url, tmp_path)], cache__ttl=3600)
    rig.script(CHAT.target)
    connection = await rig.connect()
    await asked(rig, connection, bearer(ALICE), hit=False)
    await asked(rig, connection, beside(ALICE), bearer(b"unused"), hit=True)
    await asked(rig, connection, bearer(BOB), hit=False)
    tenants = [(await rig.line(number))["tenant"] for number in range(3)]
    assert tenants[0] == tenants[1] != tenants[2]


@both
async def test_streams_and_jobs_are_found_whatever_stands_beside_the_token(rig, tmp_path):
    await begin(rig, upstreams=[upstream(rig.provider.url, tmp_path)], folder=tmp_path / "data")
    rig.script(CHAT.target)
    connection = await rig.connect()
    fields = [beside(ALICE), bearer(b"unused")]
    await connection.send(
        request("POST", CHAT.target, CHAT.body, [*fields, (b"Accept", b"text/event-stream")])
    )
    call = await rig.call()
    await call.send(head(), b"".join(map(chunk, CHAT.events)), LAST)
    call.done()
    answer = await connection.answer()
    name = answer.header("slipstream-stream-id").decode()
    await answer.rest()
    job = name_of(await connection.whole("POST", CHAT.target, BODY, [*fields, (b"Prefer", b"respond-async")]))
    call = await rig.call()
    assert call.received.header("authorization") == b"Bearer " + KEY
    await answered(call)
    for path in (STREAMS + name, JOBS + job):
        assert (await connection.whole("GET", path, None, fields)).status == 200
        assert (await connection.whole("GET", path, None, [bearer(ALICE)])).status == 200
        assert (await connection.whole("GET", path, None, [beside(BOB), bearer(b"unused")])).status == 404


@both
async def test_what_is_shared_is_of_one_key_and_one_namespace(rig, tmp_path):
    file = tmp_path / "up.key"
    clients = [*two(namespace="a"), client("carol", b"carols", namespace="a")]
    sidecar = await begin(
        rig,
        clients=clients,
        upstreams=[upstream(rig.provider.url, tmp_path)],
        cache__ttl=3600,
        cache__share="upstream",
    )
    rig.script(CHAT.target)
    connection = await rig.connect()
    await asked(rig, connection, bearer(ALICE), hit=False)
    await asked(rig, connection, bearer(b"carols"), hit=True)
    await asked(rig, connection, bearer(BOB), hit=False)
    file.write_bytes(b"sk-of-another-account")
    sidecar.service.assembly.inbound.keys.read()
    await asked(rig, connection, bearer(ALICE), hit=False, key=b"sk-of-another-account")
    await asked(rig, connection, bearer(b"carols"), hit=True)


@pytest.mark.parametrize("changed", [True, False])
async def test_an_answer_under_a_new_key_is_not_stored_for_the_old_one(rig, tmp_path, changed):
    """The body comes after the key has been replaced; who is asked about it was settled before."""
    file = tmp_path / "up.key"
    sidecar = await begin(
        rig,
        upstreams=[upstream(rig.provider.url, tmp_path)],
        cache__ttl=3600,
        cache__share="upstream",
    )
    rig.script(CHAT.target)
    connection = await rig.connect()
    asking = request("POST", CHAT.target, BODY, [bearer(ALICE)])
    await connection.send(asking[: -len(BODY)])
    front = sidecar.service.assembly.front
    await eventually(lambda: front.visits, lambda: "it has not begun")
    if changed:
        file.write_bytes(b"sk-of-another-account")
        sidecar.service.assembly.inbound.keys.read()
    await connection.send(BODY)
    call = await rig.call()
    used = b"sk-of-another-account" if changed else KEY
    assert call.received.header("authorization") == b"Bearer " + used
    await answered(call)
    await (await connection.answer()).rest()
    file.write_bytes(KEY)
    sidecar.service.assembly.inbound.keys.read()
    await asked(rig, connection, bearer(BOB), hit=not changed)


async def test_a_key_is_read_again_and_a_bad_one_is_not(rig, tmp_path):
    upstreams = [upstream(rig.provider.url, tmp_path)]
    sidecar = await begin(rig, upstreams=upstreams)
    inbound, file = sidecar.service.assembly.inbound, tmp_path / "up.key"
    config = load({}, {}, {"clients": two(), "upstreams": upstreams}).config
    rig.script(CHAT.target)
    connection = await rig.connect()
    file.write_bytes(b"new-key")
    inbound.prepare(config)()
    for content in (b"", b"\n \n", b"two\nlines", b"bell\x07", b"\xff", b"x" * 20_000):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"upstreams\[0\]\.key_file") as caught:
            inbound.prepare(config)()
        assert "lines" not in str(caught.value)
    file.unlink()
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        inbound.prepare(config)()
    await connection.send(request("POST", CHAT.target, BODY, [bearer(ALICE)]))
    call = await rig.call()
    assert call.received.header("authorization") == b"Bearer new-key"
    await answered(call)
    assert (await connection.answer()).status == 200


async def test_a_job_that_waits_gets_the_key_of_its_time(rig, tmp_path):
    """What is on disk of it has neither key nor token."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    sidecar = await begin(
        rig, upstreams=[upstream(rig.provider.url, tmp_path)], folder=folder, jobs__concurrency=1
    )
    rig.script(CHAT.target)
    connection = await rig.connect()
    for _ in range(2):
        fields = [bearer(ALICE), (b"Prefer", b"respond-async")]
        assert (await connection.whole("POST", CHAT.target, BODY, fields)).status == 202
    first = await rig.call()
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert not holds(kept, KEY)
    assert not holds(kept, ALICE)
    (tmp_path / "up.key").write_bytes(b"rotated")
    sidecar.service.assembly.inbound.keys.read()
    await answered(first)
    second = await rig.call()
    assert second.received.header("authorization") == b"Bearer rotated"
    await answered(second)


async def test_nothing_of_a_key_is_told(rig, tmp_path):
    """FAULTS 49: whatever goes wrong with the upstream, the planted key is in no answer, log line, figure or
    file."""
    import httpx

    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    upstreams = [
        upstream(rig.provider.url, tmp_path, paths=["/v1"]),
        upstream("http://127.0.0.1:9", tmp_path, name="down", paths=["/down"]),
    ]
    sidecar = await begin(rig, upstreams=upstreams, folder=folder, admin=True, cache__ttl=3600)
    rig.script(CHAT.target)
    connection = await rig.connect()
    told = b""
    await asked(rig, connection, bearer(ALICE), hit=False)
    await connection.send(request("POST", CHAT.target, CHAT.body, [bearer(ALICE)]))
    call = await rig.call()
    await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: nonsense\r\n\r\n")
    call.done()
    for send in (None, ("GET", "/down/x"), ("GET", "/nowhere"), ("POST", "/v1/x")):
        if send is not None:
            await connection.send(request(send[0], send[1], None, [bearer(ALICE), (b"X-Bad", b"a\0b")]))
        try:
            answer = await connection.answer()
        except Exception:
            connection = await rig.connect()
            continue
        told += answer.raw + await answer.rest()
        if answer.header("connection") == b"close":
            connection = await rig.connect()
    told += b"".join(sidecar.lines.raw)
    async with httpx.AsyncClient(base_url=sidecar.service.admin.url) as admin:
        for path in ("/metrics", "/stats", "/requests", "/cache"):
            told += (await admin.get(path)).content
    told += b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"upstream_protocol" in told
    assert not holds(told, KEY)


# Without clients: who runs on this machine may, pages in its browser may not.

REFUSED = {
    "rebound": (b"evil.test:8400", ()),
    "below-localhost": (b"evil.localhost", ()),
    "unspecified": (b"0.0.0.0:8400", ()),
    "unspecified-six": (b"[::]:8400", ()),
    "lan": (b"192.168.1.7:8400", ()),
    "like-localhost": (b"localhost.evil.test", ()),
    "foreign": (b"127.0.0.1:8400", ((b"Origin", b"https://evil.test"),)),
    "null": (b"127.0.0.1:8400", ((b"Origin", b"null"),)),
    "other-port": (b"127.0.0.1:8400", ((b"Origin", b"http://127.0.0.1:3000"),)),
    "two-origins": (
        b"127.0.0.1:8400",
        ((b"Origin", b"http://127.0.0.1:8400"), (b"Origin", b"https://evil.test")),
    ),
    "no-origin": (b"localhost", ((b"Sec-Fetch-Site", b"cross-site"),)),
    "same-site": (b"localhost", ((b"Sec-Fetch-Site", b"same-site"),)),
}
ALLOWED = {
    "address": (b"127.0.0.1:8400", ()),
    "six": (b"[::1]:8400", ()),
    "another-loopback": (b"127.8.9.1", ()),
    "localhost": (b"LocalHost:8400", ()),
    "own": (b"127.0.0.1:8400", ((b"Origin", b"http://127.0.0.1:8400"),)),
    "typed": (b"127.0.0.1:8400", ((b"Sec-Fetch-Site", b"none"),)),
    "with-a-dummy-key": (b"127.0.0.1", (bearer(b"unused"),)),
}


@both
@pytest.mark.parametrize("case", REFUSED)
async def test_a_page_in_a_browser_cannot_spend_the_key(rig, tmp_path, case):
    await begin(rig, clients=[], upstreams=[upstream(rig.provider.url, tmp_path)])
    rig.script(CHAT.target)
    host, fields = REFUSED[case]
    answer = await post(await rig.connect(), *fields, host=host)
    error = orjson.loads(await answer.rest())["error"]
    assert (answer.status, answer.header("slipstream-error")) == (403, b"forbidden")
    assert error["code"] == "forbidden"
    assert not rig.provider.received
    assert (await rig.line())["outcome"] == "refused"


@both
@pytest.mark.parametrize("case", ALLOWED)
async def test_an_app_on_this_machine_can(rig, tmp_path, case):
    await begin(rig, clients=[], upstreams=[upstream(rig.provider.url, tmp_path)])
    rig.script(CHAT.target)
    host, fields = ALLOWED[case]
    connection = await rig.connect()
    await connection.send(request("POST", CHAT.target, BODY, fields, host=host))
    call = await rig.call()
    assert call.received.header("authorization") == b"Bearer " + KEY
    await answered(call)
    assert (await connection.answer()).status == 200


async def test_with_clients_or_without_a_key_it_does_not_matter(rig, tmp_path):
    origin = (b"Origin", b"https://app.test")
    plain = {"name": "plain", "url": rig.provider.url, "paths": ["/plain"]}
    keyed_ = upstream(rig.provider.url, tmp_path, paths=["/v1"])
    rig.script(CHAT.target)
    rig.script("/plain")
    for clients, target, fields in (
        (two(), CHAT.target, [origin, bearer(ALICE)]),
        ([], "/plain", [origin]),
    ):
        await begin(rig, clients=clients, upstreams=[plain, keyed_])
        connection = await rig.connect()
        await connection.send(request("POST", target, BODY, fields, host=b"sidecar.test"))
        await answered(await rig.call())
        assert (await connection.answer()).status == 200


async def test_in_public_it_may_have_any_name(rig, tmp_path):
    upstreams = [upstream(rig.provider.url, tmp_path)]
    await begin(rig, clients=[], upstreams=upstreams, server__allow_public=True)
    rig.script(CHAT.target)
    connection = await rig.connect()
    await connection.send(request("POST", CHAT.target, BODY, (), host=b"sidecar.test"))
    await answered(await rig.call())
    assert (await connection.answer()).status == 200
    refused = await post(await rig.connect(), (b"Origin", b"https://evil.test"), host=b"sidecar.test")
    assert refused.status == 403
    for host in (b"0.0.0.0:8400", b"[::]"):
        assert (await post(await rig.connect(), host=host)).status == 403


async def test_health_is_told_to_everybody(rig, tmp_path):
    await begin(rig, clients=[], upstreams=[upstream(rig.provider.url, tmp_path)])
    assert (await (await rig.connect()).whole("GET", HEALTH)).status == 200


def test_the_scope_without_clients_is_what_it_was():
    """Nobody loses what is stored, because a sidecar can have clients now."""
    made = request_of("POST", b"/v1/x?key=k", ((b"Host", b"h"), (b"Authorization", b"Bearer a")))
    asking = caller(b"s" * 32, made)
    assert asking.scope.hex().startswith("03608efeffd04375999ebf0f6aae4059")
    assert shared_scope(b"s" * 32, asking, made).hex().startswith("dce9595d2f579d672b99fa0966319283")
    key = exact_key(asking.scope, "p", made, b"{}")
    assert key is not None and key.hex().startswith("bbd3407a1c6403aef1a96c84207f443b")
