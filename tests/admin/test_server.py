"""The admin port over real sockets: what is at each path, who may have it, and what it does when it stops."""

import asyncio
import errno
import json
import socket
from base64 import b64encode
from contextlib import asynccontextmanager

import httpx
import msgspec
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from sidecar import tables
from sidecar.web.admin import answering, files, server
from sidecar.web.admin.entries import Entries
from sidecar.web.admin.server import Admin
from sidecar.web.admin.stored import Stored
from tests.admin.conftest import ASK, BEARER, DIGEST, TOKEN, problem
from tests.faults.conftest import descriptors, eventually
from tests.faults.wire import CHAT, GUARD, LAST, chunk, head, request

JSON_PATHS = ["/stats", "/requests", "/cache", "/healthz", "/readyz"]
PAGE = sorted(files.load())
PATHS = [*PAGE, *JSON_PATHS, "/metrics"]
SAFE = {
    "content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    b" img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": b"nosniff",
    "referrer-policy": b"no-referrer",
    "cross-origin-resource-policy": b"same-origin",
    "cross-origin-opener-policy": b"same-origin",
}


def check_safe(answer):
    for name, value in SAFE.items():
        assert answer.header(name) == value, name
    assert answer.header("server") is None
    assert not [name for name, _ in answer.headers if name.lower().startswith(b"access-control-")]


# What there is.


async def test_health_and_readiness(start):
    port = await start()
    assert await port.get("/healthz") == {"status": "ok"}
    told = await port.get("/readyz")
    assert told["ready"] is True
    assert told["checks"]["proxy"] == {"ready": True, "why": None}
    # Without a data folder there are no jobs, which stops nobody's requests.
    assert told["checks"]["jobs"]["ready"] is False and "data folder" in told["checks"]["jobs"]["why"]


async def test_while_it_drains_it_is_neither_healthy_nor_ready(start):
    port = await start()
    port.rig.script(CHAT.target)
    client = await port.rig.connect()
    await client.send(CHAT.sent)
    call = await port.rig.call()
    assembly = port.sidecar.service.assembly
    draining = asyncio.create_task(assembly.drain(GUARD))
    await eventually(lambda: assembly.front.draining, lambda: "it serves on")
    for path in ("/healthz", "/readyz"):
        answer = await port.ask(path)
        assert answer.status == 503
        told = json.loads(answer.body)
        proxy = told if path == "/healthz" else told["checks"]["proxy"]
        assert "drains" in proxy["why"]
        assert told.get("ready", False) is False
    await call.send(head(), chunk(CHAT.whole), LAST)
    call.done()
    await (await client.answer("POST")).rest()
    assert await draining


async def test_figures_of_a_request_that_has_ended(start):
    port = await start()
    _, body = await port.chat()
    await port.rig.line()
    stats = await port.get("/stats")
    assert set(stats["windows"]) == {"1m", "5m", "60m"}
    assert stats["windows"]["1m"]["total"]["requests"] == 1
    assert [row["model"] for row in stats["windows"]["5m"]["series"]] == ["m"]
    requests = await port.get("/requests")
    assert (requests["active"], requests["errors"]) == ([], [])
    (line,) = requests["recent"]
    assert (line["path"], line["outcome"], line["bytes"]) == (CHAT.target, "complete", len(body))
    one = await port.get(f"/requests/{line['request_id']}")
    assert one["line"] == line
    assert one["pieces"] and all(set(piece) == {"name", "start_ms", "ms"} for piece in one["pieces"])
    assert sum(piece["ms"] for piece in one["pieces"]) == pytest.approx(line["total_ms"], abs=0.01)


async def test_a_request_as_it_runs_and_one_that_failed(start):
    port = await start()
    port.rig.script(CHAT.target)
    client = await port.rig.connect()
    await client.send(CHAT.sent)
    call = await port.rig.call()
    (row,) = (await port.get("/requests"))["active"]
    assert (row["path"], row["phase"], row["stream"]) == (CHAT.target, "upstream", True)
    call.close()
    answer = await client.answer("POST")
    await answer.rest()
    assert answer.status == 502
    await port.rig.line()
    requests = await port.get("/requests")
    assert requests["active"] == []
    assert [line["error"] for line in requests["errors"]] == ["upstream_closed"]


@pytest.mark.parametrize("name", ["nobody", "", "a/b", "%2e%2e", "%ff", "%00", "x" * 2000])
async def test_a_request_that_nobody_knows(start, name):
    port = await start()
    problem(await port.ask(f"/requests/{name}"), 404, "not_found")


@pytest.mark.parametrize(
    ("accept", "kind", "parse"),
    [
        (b"*/*", b"text/plain", plain),
        (
            b"application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
            b"application/openmetrics-text",
            openmetrics,
        ),
    ],
)
async def test_metrics_in_the_form_that_is_asked_for(start, accept, kind, parse):
    port = await start()
    await port.chat()
    answer = await port.ask("/metrics", fields=[(b"Accept", accept)])
    assert answer.status == 200 and answer.header("content-type").startswith(kind)
    families = {family.name: family for family in parse(answer.body.decode())}
    ready = families["slipstream_ready"]
    assert [sample.value for sample in ready.samples] == [1.0]


@pytest.mark.parametrize(
    "accept",
    [
        b"application/openmetrics-text; version=x; escaping=foo",
        b"application/openmetrics-text; version=2..0",
        b"application/openmetrics-text; version=7.0.0",
        b"text/plain; version=x",
        b"text/plain; version=" + b"9" * 5000,
        b"\xff;;=,",
    ],
)
async def test_forms_that_are_none(start, accept):
    port = await start()
    answer = await port.ask("/metrics", fields=[(b"Accept", accept)])
    assert answer.status == 200 and answer.header("content-type").startswith(b"text/plain; ")
    assert b"slipstream_ready 1.0" in answer.body


async def test_the_page_and_its_files(start):
    port = await start()
    for path in PAGE:
        answer = await port.ask(path)
        kind = answer.header("content-type")
        assert answer.status == 200 and answer.header("cache-control") == b"no-cache"
        suffix = path.rpartition(".")[2] if path != "/" else "html"
        assert kind.startswith({"html": b"text/html", "js": b"text/javascript", "css": b"text/css"}[suffix])
        assert bytes(answer.body) == files.load()[path].body
    assert bytes((await port.ask("/")).body).lower().startswith(b"<!doctype html>")


def test_only_files_of_the_page_are_in_the_table(tmp_path):
    for name in ("index.html", "a.js", "b.css", "c.svg", "notes.md", "x.py", ".hidden"):
        (tmp_path / name).write_text(name)
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "d.js").write_text("no")
    assert {path: file.body for path, file in files.load(tmp_path).items()} == {
        "/": b"index.html",
        "/a.js": b"a.js",
        "/b.css": b"b.css",
        "/c.svg": b"c.svg",
    }


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere", "/index.html", "/../config.py", "/page/dashboard.js", "/%2e%2e/server.py", "//", "/stats/",
        "/dashboard.js/", "/dashboard.js%00", "/..", "/STATS", "/_slipstream/healthz", "/v1/chat/completions",
    ],
)  # fmt: skip
async def test_elsewhere_there_is_nothing(start, path):
    port = await start()
    answer = await port.ask(path)
    problem(answer, 404, "not_found")
    check_safe(answer)


async def test_every_answer_says_what_a_browser_may_do_with_it(start):
    port = await start()
    for path in PATHS:
        answer = await port.ask(path)
        assert answer.status == 200, path
        check_safe(answer)
        expected = b"no-cache" if path in PAGE else b"no-store"
        assert answer.header("cache-control") == expected, path
    check_safe(await port.head("/events"))
    check_safe(await port.ask("/stats", host=b"evil.test"))
    check_safe(await port.ask("/cache?all=1", "DELETE"))
    check_safe(await port.ask("/stats", "POST"))


async def test_head_is_get_without_a_body(start):
    port = await start()
    for path in (*PATHS, "/nowhere", "/cache?limit=0"):
        got, asked = await port.ask(path), await port.head(path, "HEAD")
        fields = [
            {name: value for name, value in answer.headers if name != b"Content-Length"}
            for answer in (got, asked)
        ]
        assert (got.status, fields[0]) == (asked.status, fields[1])
        assert asked.header("content-length") is not None
        assert asked.end == "whole"
    client = await port.open()
    asked = f"HEAD /events HTTP/1.1\r\nHost: {port.host.decode()}\r\n\r\n".encode()
    for _ in range(2):  # nothing of a stream is on the connection
        await client.send(asked)
        answer = await client.answer("HEAD")
        assert (answer.status, answer.header("content-type")) == (200, b"text/event-stream")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "OPTIONS", "TRACE", "DELETE", "PURGE"])
async def test_other_methods(start, method):
    port = await start(admin__token_sha256=DIGEST)
    for path in (*PATHS, "/events", "/requests/1"):
        if path == "/cache" and method == "DELETE":
            continue
        answer = await port.ask(path, method, [BEARER])
        problem(answer, 405, "method_not_allowed")
        allowed = b"GET, HEAD, DELETE" if path == "/cache" else b"GET, HEAD"
        assert answer.header("allow") == allowed


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=501", "limit=-1", "limit=1e2", "limit=x", "limit=%D9%A1", "limit=5&limit=6", "limit",
        "all=1", "modle=m", "tenant=abc", "tenant=%zz", "key=xyz", "key=" + 65 * "0", "path=v1", "model=%ff",
    ],
)  # fmt: skip
async def test_queries_that_are_not_understood(start, query):
    port = await start(admin__token_sha256=DIGEST)
    problem(await port.ask(f"/cache?{query}"), 400, "bad_request")
    if query != "all=1":
        problem(await port.ask(f"/cache?{query}", "DELETE", [BEARER]), 400, "bad_request")


@pytest.mark.parametrize(
    "query",
    [
        "",
        "all=0",
        "all=true",
        "all=1&model=m",
        "limit=5",
        "tenant=",
        "tenant=&model=m",
        "all=",
        "all=1&all=1",
    ],
)
async def test_a_purge_that_does_not_say_what_it_means(start, query):
    port = await start(admin__token_sha256=DIGEST)
    problem(await port.ask(f"/cache?{query}", "DELETE", [BEARER]), 400, "bad_request")


async def test_a_connection_carries_one_request_after_another(start):
    port = await start()
    async with httpx.AsyncClient(base_url=port.url) as client:
        for path in (*PATHS, "/nowhere"):
            assert (await client.get(path)).status_code in (200, 404)
    await eventually(lambda: not port.admin._server.connections, lambda: "connections")
    client = await port.open()
    for _ in range(3):
        await client.send(b"GET /readyz HTTP/1.1\r\nHost: %b\r\n\r\n" % port.host)
        answer = await client.answer()
        assert json.loads(await answer.rest())["ready"] is True


@pytest.mark.parametrize(
    ("method", "path", "fields", "status"),
    [
        ("GET", "/healthz", [], 200),
        ("HEAD", "/healthz", [], 200),
        ("GET", "/nowhere", [], 404),
        ("GET", "/requests/nobody", [], 404),
        ("GET", "/stats", [(b"Origin", b"null")], 403),
        ("DELETE", "/cache?all=1", [], 401),
    ],
)
async def test_no_place_is_kept_for_probes_and_for_who_has_no_business_here(
    start, method, path, fields, status
):
    port = await start(admin__token_sha256=DIGEST)
    client = await port.open()
    await client.send(request(method, path, None, fields, host=port.host))
    answer = await client.answer(method)
    assert (answer.status, answer.header("connection")) == (status, b"close")
    await answer.rest()
    assert await client.closed() == b""


async def test_idle_connections_do_not_take_health_away(start, monkeypatch):
    """As many as there may be at once, some that have asked and some that never do."""
    assert answering.KEEP_ALIVE <= 5
    monkeypatch.setattr(answering, "KEEP_ALIVE", 0.5)
    port = await start()
    for number in range(server._MOST):
        client = await port.open()
        if number % 2:
            await client.send(b"GET /readyz HTTP/1.1\r\nHost: %b\r\n\r\n" % port.host)
            await (await client.answer()).rest()
    await eventually(lambda: not port.admin._server.connections, lambda: "they are kept")
    assert await port.get("/healthz") == {"status": "ok"}


async def test_answers_that_nobody_reads_are_not_made(start):
    """Requests behind one another, and a client that takes nothing: it is cut off before they are served."""
    port = await start(timeouts__client=0.3)
    path = max(PAGE, key=lambda path: len(files.load()[path].body))
    asked, sent = 4000, b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (path.encode(), port.host)
    served, handler = [], port.admin._paths.handler
    port.admin._paths.handler = lambda request: served.append(request) or handler(request)
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port.port))
        sending = asyncio.create_task(loop.sock_sendall(sock, sent * asked))
        await eventually(lambda: served, lambda: "nothing came")
        await eventually(lambda: not port.admin._server.connections, lambda: "it is waited for")
        await asyncio.gather(sending, return_exceptions=True)
    assert 1 < len(served) < asked


async def test_an_answer_that_nobody_reads_is_not_waited_for_when_it_is_the_last_one(start):
    port = await start(timeouts__client=0.3)
    loop = asyncio.get_running_loop()
    big = port.admin._paths._files["/dashboard.js"]
    port.admin._paths._files["/dashboard.js"] = big._replace(body=bytes(8 << 20))
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port.port))
        await eventually(lambda: port.admin._server.connections, lambda: "it is not connected")
        (protocol,) = port.admin._server.connections
        transport = protocol.transport
        transport.set_write_buffer_limits(high=16 << 20)  # all of it is with the transport, so nobody waits
        fields = [(b"Connection", b"close")]
        await loop.sock_sendall(sock, request("GET", "/dashboard.js", None, fields, host=port.host))
        await eventually(transport.is_closing, lambda: "it is not answered")
        await eventually(lambda: not port.admin._server.connections, lambda: "it is waited for")


async def test_a_body_that_nobody_asked_for_is_no_request(start):
    port = await start(admin__token_sha256=DIGEST)
    client = await port.open()
    inner = b"DELETE /cache?all=1 HTTP/1.1\r\nHost: %b\r\n%b: %b\r\n\r\n" % (port.host, *BEARER)
    await client.send(
        b"GET /healthz HTTP/1.1\r\nHost: %b\r\nContent-Length: %d\r\n\r\n" % (port.host, len(inner)) + inner
    )
    answer = await client.answer()
    assert (answer.status, answer.header("connection")) == (200, b"close")
    await answer.rest()
    assert await client.closed() == b""
    assert not [line for line in port.sidecar.lines.all if line["event"] == "cache_purged"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET http://evil.test/stats HTTP/1.1\r\nHost: %b\r\n\r\n", 400),
        (b"GET /stats HTTP/1.1\r\nHost: %b\r\nHost: evil.test\r\n\r\n", 400),
        (b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n", 400),
        (b"GET /stats HTTP/1.1\r\nHost: %b\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", 501),
        (b"GET /stats HTTP/1.1\r\nHost: %b\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", 431),
        (b"GET /stats HTTP/1.1\r\nHost: %b\r\nbad header\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ],
)
async def test_what_is_no_request_of_ours(start, sent, status):
    port = await start()
    client = await port.open()
    await client.send(sent.replace(b"%b", port.host))
    answer = await client.answer()
    assert answer.status == status
    check_safe(answer)
    await answer.rest()
    await client.closed()
    assert await port.get("/healthz")


# Who may.


FOREIGN = [
    ("foreign_host", {"host": b"evil.test"}),
    ("foreign_host", {"host": b"evil.test:%d"}),
    ("foreign_host", {"host": b"rebound.127.0.0.1.evil.test"}),
    ("foreign_origin", {"fields": [(b"Origin", b"http://evil.test")]}),
    ("foreign_origin", {"fields": [(b"Origin", b"null")]}),
    ("foreign_site", {"fields": [(b"Sec-Fetch-Site", b"cross-site"), (b"Sec-Fetch-Mode", b"no-cors")]}),
]


@pytest.mark.parametrize(("kind", "more"), FOREIGN)
async def test_foreign_pages_and_names_get_nothing(start, kind, more):
    """Fault 50. A name of an attacker's that leads here has the attacker's page as its origin."""
    port = await start(admin__token_sha256=DIGEST)
    if "host" in more:
        more = {**more, "host": more["host"].replace(b"%d", str(port.port).encode())}
    for path in (*PATHS, "/events", "/requests/1", "/nowhere"):
        problem(await port.ask(path, **more), 403, kind)
    fields = [BEARER, *more.get("fields", [])]
    problem(await port.ask("/cache?all=1", "DELETE", **{**more, "fields": fields}), 403, kind)
    problem(await port.ask("/cache?all=1", "OPTIONS", **{**more, "fields": fields}), 403, kind)


async def test_a_rebound_name_has_the_right_origin_and_the_wrong_host(start):
    port = await start()
    host = b"evil.test:%d" % port.port
    fields = [(b"Origin", b"http://" + host), (b"Sec-Fetch-Site", b"same-origin")]
    problem(await port.ask("/stats", host=host, fields=fields), 403, "foreign_host")


async def test_its_own_page_and_names_that_are_listed(start):
    port = await start(admin__hosts=["metrics.internal"])
    fields = [(b"Origin", b"http://" + port.host), (b"Sec-Fetch-Site", b"same-origin")]
    assert (await port.ask("/stats", fields=fields)).status == 200
    for host in (b"localhost", b"localhost:%d" % port.port, b"metrics.internal:9090", b"[::1]:1"):
        assert (await port.ask("/stats", host=host)).status == 200
    problem(await port.ask("/stats", host=b"other.internal"), 403, "foreign_host")


async def test_a_request_without_host(start):
    port = await start()
    client = await port.open()
    await client.send(b"GET /stats HTTP/1.0\r\n\r\n")
    answer = await client.answer()
    await answer.rest()
    problem(answer, 403, "foreign_host")


async def test_changes_take_the_token(start):
    port = await start(admin__token_sha256=DIGEST)
    wrong = (b"Authorization", b"Bearer wrong")
    name = (b"Authorization", b"Basic " + b64encode(f"me:{TOKEN}".encode()))
    for fields in ([], [wrong], [name], [BEARER, wrong]):
        answer = await port.ask("/cache?all=1", "DELETE", fields)
        problem(answer, 401, "token_required")
        assert answer.header("www-authenticate") == b"Bearer"
    assert await port.delete("/cache?all=1") == (200, {"removed": 0})
    (line,) = [line for line in port.sidecar.lines.all if line["event"] == "cache_purged"]
    assert (line["removed"], line["all"]) == (0, True)
    said = b"".join(port.sidecar.lines.raw)
    assert TOKEN.encode() not in said and DIGEST.encode() not in said
    # For looking it is not asked for, and a wrong one does no harm.
    assert (await port.ask("/stats", fields=[wrong])).status == 200


async def test_without_a_configured_token_the_refusal_says_how_to_make_one(start):
    port = await start()
    said = problem(await port.ask("/cache?all=1", "DELETE", [BEARER]), 403, "no_token")
    assert "admin.token_sha256" in said and 'printf %s "$TOKEN" | sha256sum' in said


async def test_beyond_loopback_everything_but_health_takes_the_token(start):
    port = await start(admin__host="0.0.0.0", admin__token_sha256=DIGEST)
    assert port.url.startswith("http://0.0.0.0:")
    host = b"127.0.0.1:%d" % port.port
    for path in (*PATHS, "/events", "/nowhere"):
        answer = await port.ask(path, host=host)
        if path == "/healthz":
            assert answer.status == 200
            continue
        problem(answer, 401, "token_required")
        asks = b"Basic " if path == "/" else b"Bearer"
        assert answer.header("www-authenticate").startswith(asks)
    problem(await port.ask("/healthz", host=b"evil.test"), 403, "foreign_host")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port.port}", trust_env=False) as client:
        for path in PATHS:
            assert (await client.get(path, auth=("", TOKEN))).status_code == 200
            assert (await client.get(path, headers=dict([BEARER]))).status_code == 200
            if path != "/healthz":
                assert (await client.get(path, auth=("", "wrong"))).status_code == 401
        assert (await client.delete("/cache?all=1", auth=("", TOKEN))).status_code == 401
        assert (await client.delete("/cache?all=1", headers=dict([BEARER]))).status_code == 200


# Starting and stopping.


@asynccontextmanager
async def another(first, **admin):
    """A second admin port of the same sidecar, not started."""
    service = first.sidecar.service
    made = service.assembly
    config = msgspec.structs.replace(service._config, admin=tables.Admin(**admin))
    entries = Entries(made.cache, config, None, made.on_fault)
    second = Admin(config, made.board, Stored(entries, made._log), made._log, made.on_fault)
    try:
        yield second
    finally:
        await second.stop()


async def test_a_port_that_is_taken(start):
    port = await start()
    async with another(port, port=port.port) as second, another(port, port=port.port) as third:
        with pytest.raises(OSError) as raised:
            await second.start(moves=False)
        assert raised.value.errno == errno.EADDRINUSE
        await third.start(moves=True)
        (line,) = [line for line in port.sidecar.lines.all if line["event"] == "admin_port_taken"]
        assert line["level"] == "warning" and line["port"] == port.port
        assert third.url == f"http://127.0.0.1:{line['instead']}" != port.url
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{third.url}/healthz")).status_code == 200


async def test_an_address_that_cannot_be_had_does_not_move(start):
    port = await start()
    async with another(port, host="192.0.2.1", port=1) as second:
        with pytest.raises(OSError):
            await second.start(moves=True)


async def test_a_harmless_name_that_leads_to_another_side_of_this_machine(start):
    port = await start()
    async with another(port, host="localhost", port=0) as second:
        listen = second._listen
        second._listen = lambda _host, number: listen("0.0.0.0", number)
        await second.start(moves=False)
        async with httpx.AsyncClient(base_url=second.url.replace("0.0.0.0", "127.0.0.1")) as client:
            answer = await client.get("/stats")
            assert (answer.status_code, answer.headers.get("slipstream-error")) == (403, "no_token")
            assert (await client.get("/healthz")).status_code == 200


async def test_stopping_ends_every_connection(start):
    port = await start()
    idle, begun, streaming = await port.open(), await port.open(), await port.head("/events")
    await idle.send(b"GET /readyz HTTP/1.1\r\nHost: %b\r\n\r\n" % port.host)
    await (await idle.answer()).rest()
    await begun.send(b"GET /healthz HTTP/1.1\r\nHo")
    await streaming.until_has(b"\n\n")
    await port.admin.stop()
    await streaming.rest()
    assert streaming.end == "whole"
    for client in (idle, begun):
        assert await client.closed() == b""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port.port)


async def test_it_stops_though_somebody_does_not_read(start):
    port = await start(beat=0.001)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", port.port))
    await loop.sock_sendall(sock, b"GET /events HTTP/1.1\r\nHost: %b\r\n\r\n" % port.host)
    await eventually(
        lambda: any(each.writing_paused for each in port.admin._server.connections), lambda: "it reads"
    )
    (protocol,) = port.admin._server.connections
    number = protocol.transport.get_extra_info("socket").fileno()
    opened = {each for each in descriptors() if each.startswith(f"{number} ")}
    await port.admin.stop()
    await eventually(lambda: not opened & descriptors(), lambda: opened)
    sock.close()


async def test_the_prompt_is_nowhere(start, tmp_path):
    port = await start(folder=tmp_path, cache__ttl=3600, admin__token_sha256=DIGEST)
    for stream in (True, False):
        _, body = await port.chat(stream=stream)
        assert body
        await port.rig.line(0 if stream else 1)
    planted = [b"planted", ASK["messages"][0]["content"].encode(), TOKEN.encode(), DIGEST.encode()]
    line = (await port.get("/requests"))["recent"][0]
    for path in (*JSON_PATHS, "/metrics", f"/requests/{line['request_id']}"):
        answer = await port.ask(path, fields=[BEARER])
        assert not [part for part in planted if part in answer.body], path
