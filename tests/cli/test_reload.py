"""The configuration read again while requests are served: what differs, what changes at once, and that a wrong
one changes nothing."""

import asyncio
import hashlib
import os
import signal
import threading
from types import SimpleNamespace

import msgspec
import orjson
import pytest
from msgspec.structs import fields, replace

from sidecar.cli.notify import Nobody
from sidecar.cli.reload import LIVE, Reload, Reloads, compare
from sidecar.config import KEYS, SECTIONS, Budget, Config, UpstreamTable, load
from sidecar.core.types import Request
from sidecar.core.values import ConfigError
from sidecar.serving.routes import Routes
from sidecar.tables import ClientTable, Tls
from sidecar.telemetry.budgets import Budgets, Held
from sidecar.telemetry.log import Level, make_logger, request_lines
from tests.cli.manager import listening
from tests.conftest import Lines
from tests.faults.test_process import serving
from tests.faults.wire import LAST, Client, chunk, head, request

ENCRYPTION = {"tls.certificate", "tls.key"}


def configuration(**file):
    return load(environment={}, file=file).config


# What differs.


def test_the_same_is_no_change():
    given = configuration(
        upstreams=[{"name": "a", "url": "http://a.test", "cache": {"ttl": 5}}],
        clients=[{"name": "c", "token_sha256": "1" * 64}],
        budgets={"chat": {"ttft_ms": 1}},
    )
    found = compare(given, msgspec.structs.replace(given))
    assert (found.config, found.changed, found.restart) == (given, [], [])


@pytest.mark.parametrize("key", KEYS)
def test_each_key_changes_or_needs_a_restart(key):
    section, _, name = key.partition(".")
    old, value = Config(), object()
    new = replace(old, **{section: replace(getattr(old, section), **{name: value})})
    found = compare(old, new)
    if key in LIVE:
        assert (found.config, found.changed, found.restart) == (new, [key], [])
    else:
        assert (found.config, found.changed, found.restart) == (old, [], [key])


@pytest.mark.parametrize("name", [field.name for field in fields(UpstreamTable) if field.name != "name"])
def test_each_key_of_an_upstream_changes_or_needs_a_restart(name):
    one, other = UpstreamTable("one", "http://a.test", ["/a"]), UpstreamTable("other", "http://b.test")
    old, changed = Config(upstreams=[one, other]), replace(one, **{name: object()})
    new = Config(upstreams=[changed, other])
    found = compare(old, new)
    if f"upstreams.{name}" in LIVE:
        assert (found.config, found.changed, found.restart) == (new, [f"upstreams.one.{name}"], [])
    else:
        assert (found.config, found.changed, found.restart) == (old, [], [f"upstreams.one.{name}"])


def test_what_is_live_is_a_key():
    assert {key for key in LIVE if not key.startswith("upstreams.")} <= set(KEYS)
    names = {field.name for field in fields(UpstreamTable)}
    assert {key.removeprefix("upstreams.") for key in LIVE if key.startswith("upstreams.")} <= names
    assert set(SECTIONS) | {"upstreams", "clients", "budgets"} == {field.name for field in fields(Config)}


def test_upstreams_that_come_go_or_change_places_need_a_restart():
    a, b = UpstreamTable("a", "http://a.test"), UpstreamTable("b", "http://b.test")
    old = Config(upstreams=[a, b])
    for upstreams, restart in (
        ([b, a], ["upstreams"]),
        ([a], ["upstreams.b"]),
        ([a, replace(b, name="c")], ["upstreams.b", "upstreams.c"]),
    ):
        found = compare(old, Config(upstreams=upstreams))
        assert (found.config, found.changed, found.restart) == (old, [], restart)
    # The others change all the same.
    found = compare(old, Config(upstreams=[replace(a, threshold=0.5)]))
    assert found.config == Config(upstreams=[replace(a, threshold=0.5), b])
    assert (found.changed, found.restart) == (["upstreams.a.threshold"], ["upstreams.b"])


def test_clients_come_change_and_go_but_not_the_last_one():
    one, two = ClientTable("one", "1" * 64), ClientTable("two", "2" * 64)
    new = Config(clients=[replace(one, rate=5.0), two])
    found = compare(Config(clients=[one]), new)
    assert (found.config, found.changed, found.restart) == (new, ["clients.one", "clients.two"], [])
    found = compare(new, Config(clients=[two]))
    assert (found.config, found.changed, found.restart) == (Config(clients=[two]), ["clients.one"], [])
    found = compare(Config(), Config(clients=[two]))
    assert (found.config, found.changed, found.restart) == (Config(clients=[two]), ["clients.two"], [])
    found = compare(Config(clients=[two]), Config())
    assert (found.config, found.changed, found.restart) == (Config(clients=[two]), [], ["clients"])


def test_another_certificate_is_live_encryption_is_not():
    old, new = Config(tls=Tls("a", "b")), Config(tls=Tls("c", "d"))
    found = compare(old, new)
    assert (found.config, found.changed, found.restart) == (new, sorted(ENCRYPTION), [])
    for one, other in ((old, Config()), (Config(), old)):
        found = compare(one, other)
        assert (found.config, found.changed, found.restart) == (one, [], sorted(ENCRYPTION))


def test_budgets_change_by_name_and_key():
    old = Config(budgets={"chat": Budget(1, 2), "gone": Budget(3)})
    new = Config(budgets={"chat": Budget(1, 5), "more": Budget(None, 4)})
    found = compare(old, new)
    changed = ["budgets.chat.total_ms", "budgets.gone.ttft_ms", "budgets.more.total_ms"]
    assert (found.config, found.changed, found.restart) == (new, changed, [])


# Who goes by it.


def test_routes_go_by_what_they_are_given_last():
    def made(**more):
        return configuration(upstreams=[{"name": "a", "url": "http://a.test", **more.pop("of", {})}], **more)

    routes = Routes(made())
    asked = Request("GET", b"/v1/x", "/v1/x", "", (), {})
    before = routes.match(asked)
    terms = routes.terms("/v1/x", before)
    seen = [(routes.patience("/v1/x", before), routes.threshold("/v1/x", before, "n"), terms.ttl)]
    for more in (
        {"of": {"disconnect": "grace=3", "threshold": 0.7, "cache": {"ttl": 7}}},
        {
            "disconnect": {"default": "grace=1"},
            "semantic": {"threshold": 0.6},
            "cache": {"ttl": 6, "stale_if_error": 9, "tools": False, "finish": ["length"]},
        },
        {
            "disconnect": {"paths": {"/v1": "grace=2"}},
            "semantic": {"paths": {"/v1": 0.5}},
            "cache": {"paths": {"/v1": 5}},
        },
        {"semantic": {"namespaces": {"n": 0.4}}},
    ):
        routes.reload(made(**more))
        route = routes.match(asked)
        terms = routes.terms("/v1/x", route)
        seen.append((routes.patience("/v1/x", route), routes.threshold("/v1/x", route, "n"), terms.ttl))
        if "stale_if_error" in more.get("cache", {}):
            assert (terms.stale_if_error, terms.tools, terms.finish) == (9, False, {"length"})
    assert seen == [(0, 0.92, 3600), (3, 0.7, 7), (1, 0.6, 6), (2, 0.5, 5), (0, 0.4, 3600)]
    # A request that is on its way keeps the route that it has.
    assert (before.threshold, before.patience) == (None, None)


def test_a_request_on_its_way_does_not_leave_its_terms_to_those_that_follow():
    def made(ttl):
        return configuration(upstreams=[{"name": "a", "url": "http://a.test", "cache": {"ttl": ttl}}])

    routes = Routes(made(60))
    asked = Request("GET", b"/v1/x", "/v1/x", "", (), {})
    before = routes.match(asked)
    routes.reload(made(7))
    now = routes.match(asked)
    seen = [routes.terms("/v1/x", route).ttl for route in (before, now, before, now, now)]
    assert seen == [60, 7, 60, 7, 7]


def test_budgets_that_stay_the_same_keep_what_they_have_counted():
    clock = SimpleNamespace(now=0.0)
    budgets = Budgets({"a": Budget(100), "b": Budget(100), "c": Budget(100)}, lambda: clock.now)

    def counted(window):
        return {key[0]: rates.requests for key, rates in budgets.rates(window).items()}

    def hold(features, times=1):
        for feature in features:
            for _ in range(times):
                budgets.add(Held(feature, "ttft_ms", 200, 100))

    hold("abc", 20)
    clock.now = 25.0  # some of it is packed, some is not
    hold("abc", 20)
    assert {change.feature for change in budgets.changes()} == {"a", "b", "c"}
    more = dict.fromkeys("defghijk", Budget(1))
    budgets.reload({"a": Budget(100), "b": Budget(300), **more})
    for window in ("1m", "5m", "60m"):
        assert counted(window) == {"a": 40}
    assert [budgets.alert(feature, "ttft_ms") for feature in "abc"] == [True, False, False]
    assert {target for _, _, target in budgets.targets()} == {100, 300, 1}
    # There is room for all of the new ones.
    hold(["a", "b", *more])
    assert counted("1m") == {"a": 41, "b": 1, **dict.fromkeys(more, 1)}
    # And what is old leaves, one after the other.
    for now, left in ((65.0, 21), (85.0, 0)):
        clock.now = now
        assert counted("1m").get("a", 0) == left
    assert counted("5m") == {"a": 41, "b": 1, **dict.fromkeys(more, 1)}


async def test_lines_are_written_from_the_level_on_that_is_set_last():
    lines, level = Lines(), Level("info")
    log, requests = make_logger(lines, "json", level), request_lines(lines, "json", level)

    def say():
        before = len(lines.all)
        for name in ("debug", "info", "warning", "error"):
            getattr(log, name)("said")
        bound = log.bind(worker=1)
        bound.info("bound")
        requests({"timestamp": "", "level": "info", "event": "request"})
        return [line["level"] if line["event"] == "said" else line["event"] for line in lines.all[before:]]

    assert say() == ["info", "warning", "error", "bound", "request"]
    level.set("error")
    assert say() == ["error"]
    level.set("debug")
    assert say() == ["debug", "info", "warning", "error", "bound", "request"]


class Told(Nobody):
    """Keeps what it is told."""

    def __init__(self):
        self.said = []
        self._changed = asyncio.Event()

    def reloading(self):
        self._say("reloading")

    def ready(self, status):
        self._say(status)

    def _say(self, what):
        self.said.append(what)
        self._changed.set()

    async def heard(self, count):
        while len(self.said) < count:
            self._changed.clear()
            await self._changed.wait()
        return self.said


async def test_reloads_come_one_after_the_other_and_a_wrong_one_changes_nothing():
    lines, level, told, taken, faults = Lines(), Level("info"), Told(), [], []
    read = [
        configuration(cache={"ttl": 5}, log={"level": "warning"}),
        ConfigError("cache.ttl: wrong"),
        RuntimeError("ours"),
        configuration(cache={"ttl": 6}, server={"port": 1}),
    ]

    def give():
        found = read.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    reloads = Reloads(
        Config(),
        lambda config: lambda: taken.append(config),
        faults.append,
        make_logger(lines, "json", level),
    )
    running = asyncio.create_task(
        reloads.run(Reload(give, level), told, lambda: f"serving {len(taken)}, {reloads.failed}")
    )
    for number in range(1, 5):
        reloads.ask()
        reloads.ask()
        await told.heard(2 * number)
    running.cancel()
    assert [config.cache.ttl for config in taken] == [5, 6]
    assert [config.server.port for config in taken] == [8400, 8400]
    assert told.said[1::2] == [
        "serving 1, None",
        "serving 1, cache.ttl: wrong",
        "serving 1, RuntimeError",
        "serving 2, None",
    ]
    assert told.said[::2] == ["reloading"] * 4
    said = [{key: line.get(key) for key in ("event", "reason", "changed", "restart")} for line in lines.all]
    assert said == [
        # The first one is at a level that it takes out itself.
        {"event": "reload_failed", "reason": "cache.ttl: wrong", "changed": None, "restart": None},
        {"event": "reload_failed", "reason": "RuntimeError", "changed": None, "restart": None},
        {
            "event": "reloaded",
            "reason": None,
            "changed": ["cache.ttl", "log.level"],
            "restart": ["server.port"],
        },
    ]
    assert [type(fault) for fault in faults] == [RuntimeError]


async def test_files_are_read_in_a_thread():
    """One on a mount that hangs keeps nobody's request waiting."""
    told, threads, going = Told(), [], threading.Event()

    def prepare(_config):
        threads.append(threading.current_thread())
        assert going.wait(30)
        return lambda: threads.append(threading.current_thread())

    faults = []
    reloads = Reloads(Config(), prepare, faults.append, make_logger(Lines(), "json", "info"))
    running = asyncio.create_task(reloads.run(Reload(Config, Level("info")), told, lambda: "serving"))
    reloads.ask()
    await told.heard(1)
    going.set()  # which the loop could not if it waited
    await told.heard(2)
    running.cancel()
    first, second = threads
    assert first is not threading.main_thread()
    assert second is threading.main_thread()
    assert not faults


# A sidecar that runs.


def reload(sidecar, provider, **keys):
    """Go by another configuration, as far as that is possible."""
    flags = {key.replace("__", "."): value for key, value in keys.items()}
    flags = {"cache.ttl": 0, "server.upstream": provider.url, "server.port": 0, "admin.port": 0} | flags
    sidecar.service.prepare(load(flags, environment={}).config)()


ASK = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
STREAMED = ASK.replace(b'"model"', b'"stream":true,"model"')
KEY = (b"Authorization", b"Bearer k")


@pytest.fixture
async def connect():
    """Connections that are closed after the test."""
    clients = []

    async def connected(port):
        clients.append(await Client.open(port))
        return clients[-1]

    yield connected
    for client in clients:
        client.close()


async def asked(client, body=ASK, *more):
    answer = await client.whole("POST", "/v1/chat/completions", body, [KEY, *more])
    assert answer.end == "whole"
    return answer


def ttl(answer):
    """Seconds for which a hit is still fresh."""
    status = answer.header("cache-status")
    assert status.startswith(b"slipstream; hit; "), status
    return int(status.partition(b"ttl=")[2].partition(b";")[0])


async def test_an_answer_is_as_old_as_it_may_be_now(provider, start_sidecar, connect):
    """Also where the request came so often that nothing of it is parsed any more."""
    sidecar = await start_sidecar(provider.url, cache__ttl=3600)
    client = await connect(sidecar.port)
    first = await asked(client)
    for _ in range(4):
        hit = await asked(client)
        assert (hit.body, ttl(hit) > 3000) == (first.body, True)
    assert len(sidecar.service._again._known) == 1
    reload(sidecar, provider, cache__ttl=100)
    for _ in range(4):
        assert 0 < ttl(await asked(client)) <= 100
    reload(sidecar, provider, cache__ttl=0)
    assert b"hit" not in (await asked(client)).header("cache-status")
    assert provider.received == 2


async def test_a_request_that_began_before_is_not_remembered_by_what_it_knew(
    provider, start_sidecar, connect
):
    """It ends after the reload, and would bring the old terms back."""
    sidecar = await start_sidecar(provider.url, cache__ttl=3600)
    client = await connect(sidecar.port)
    for _ in range(2):
        await asked(client)
    written = sidecar.service.assembly.front.written

    def late(visit, line):
        reload(sidecar, provider, cache__ttl=100)
        # As if another one like it had ended in between.
        written(visit, line)
        written(visit, line)

    sidecar.service.assembly.front.written = late
    await asked(client)
    sidecar.service.assembly.front.written = written
    assert len(sidecar.service._again._known) == 0


async def test_silence_is_filled_as_configured_now(provider, start_sidecar, connect):
    """For streams that begin then; one that runs is not touched."""
    going, calls = asyncio.Event(), []

    async def stream(connection, received):
        calls.append(received)
        await connection.send(head() + chunk(b'data: {"choices":[]}\n\n'))
        await going.wait()
        await connection.send(chunk(b"data: [DONE]\n\n") + LAST)

    provider.on("/v1/chat/completions", stream)
    sidecar = await start_sidecar(provider.url, cache__mode="off", keepalive__interval=3600)
    clients = [await connect(sidecar.port) for _ in range(2)]
    answers = [await clients[0].ask("POST", "/v1/chat/completions", STREAMED, [KEY])]
    await answers[0].until_has(b"\n\n")
    reload(sidecar, provider, cache__mode="off", keepalive__interval=0.01)
    answers.append(await clients[1].ask("POST", "/v1/chat/completions", STREAMED, [KEY]))
    await answers[1].until_has(b":", 5)
    going.set()
    for answer in answers:
        await answer.rest()
        assert answer.end == "whole"
    assert answers[0].body == b'data: {"choices":[]}\n\ndata: [DONE]\n\n'
    assert answers[1].body.count(b"\n:") + answers[1].body.count(b"\n\n:") > 0


async def test_a_head_comes_early_from_now_on(provider, start_sidecar, connect):
    going = asyncio.Event()

    async def slow(connection, _received):
        await going.wait()
        await connection.send(head() + chunk(b"data: [DONE]\n\n") + LAST)

    provider.on("/v1/chat/completions", slow)
    sidecar = await start_sidecar(provider.url, cache__mode="off")
    reload(sidecar, provider, cache__mode="off", keepalive__early=0.01)
    client = await connect(sidecar.port)
    answer = await client.ask("POST", "/v1/chat/completions", STREAMED, [KEY])
    assert (answer.status, going.is_set()) == (200, False)
    going.set()
    await answer.rest()


async def test_requests_are_held_against_the_budgets_of_now(provider, start_sidecar, connect):
    sidecar = await start_sidecar(provider.url, cache__mode="off")
    client = await connect(sidecar.port)
    feature = (b"Slipstream-Feature", b"mine")
    await asked(client, ASK, feature)
    assert (await sidecar.lines.request(0))["budget_exceeded"] is None
    reload(sidecar, provider, cache__mode="off", budgets__mine__total_ms=0.001)
    await asked(client, ASK, feature)
    assert (await sidecar.lines.request(1))["budget_exceeded"]["budget"] == "mine"
    board = sidecar.service.assembly.board
    (told,) = [one for one in board.stats()["budgets"] if one["feature"] == "mine"]
    assert (told["target_ms"], told["windows"]["1m"]["over"]) == (0.001, 1)
    reload(sidecar, provider, cache__mode="off")
    await asked(client, ASK, feature)
    assert (await sidecar.lines.request(2))["budget_exceeded"] is None
    assert not [one for one in board.stats()["budgets"] if one["feature"] == "mine"]


async def test_a_call_whose_client_leaves_goes_on_as_configured_now(provider, start_sidecar, connect):
    calls = asyncio.Queue()

    async def silent(connection, received):
        calls.put_nowait(received)
        await received.closed.wait()

    provider.on("/v1/chat/completions", silent)
    sidecar = await start_sidecar(provider.url, cache__mode="off", disconnect__default="finish")
    clients = [await connect(sidecar.port) for _ in range(2)]
    await clients[0].send(request("POST", "/v1/chat/completions", STREAMED, [KEY]))
    going = await calls.get()
    reload(sidecar, provider, cache__mode="off", disconnect__default="cancel")
    await clients[1].send(request("POST", "/v1/chat/completions", STREAMED, [KEY]))
    ended = await calls.get()
    for each in clients:
        each.close()
    await asyncio.wait_for(ended.closed.wait(), 30)
    assert not going.closed.is_set()


def hashed(token):
    return hashlib.sha256(token).hexdigest()


async def test_who_may_ask_is_as_configured_now(provider, start_sidecar, connect):
    """At once, for those too whose requests are answered by their bytes."""

    def clients(*names):
        return {"clients": [{"name": name, "token_sha256": hashed(name.encode())} for name in names]}

    def given(*names):
        file = clients(*names) | {"server": {"upstream": provider.url, "port": 0}, "admin": {"port": 0}}
        return load(environment={}, file=file).config

    sidecar = await start_sidecar(provider.url, cache__ttl=3600, file=clients("one", "two"))
    connections = {name: await connect(sidecar.port) for name in (b"one", b"two", b"three")}

    async def statuses(times=1):
        found = {}
        for name in list(connections):
            for _ in range(times):
                token = (b"Authorization", b"Bearer " + name)
                answer = await connections[name].whole("POST", "/v1/chat/completions", ASK, [token])
                found[name.decode()] = answer.status
                if answer.header("connection") == b"close":
                    connections[name] = await connect(sidecar.port)
        return found

    assert await statuses(5) == {"one": 200, "two": 200, "three": 401}
    sidecar.service.prepare(given("two", "three"))()
    assert await statuses(2) == {"one": 401, "two": 200, "three": 200}


# A real process, and a real SIGHUP.


class Signalled:
    """A process with a configuration file, and what its service manager hears of it."""

    def __init__(self, process, manager, file):
        self.process = process
        self._manager = manager
        self._file = file

    async def told(self, key="READY"):
        return await asyncio.to_thread(self._manager.until, key)

    async def reload(self, text):
        """What is said to be the status after another try."""
        self._file.write_text(text)
        self.process.signal(signal.SIGHUP)
        assert "MONOTONIC_USEC" in await self.told("RELOADING")
        return (await self.told())["STATUS"]


@pytest.fixture
async def signalled(provider, tmp_path):
    file = tmp_path / "slipstream.toml"
    file.write_text("[cache]\nttl = 0\n")
    with listening(tmp_path) as manager:
        flags = ("--config", str(file), "--admin-port", "0")
        async with serving(tmp_path / "data", provider.url, *flags, NOTIFY_SOCKET=manager.address) as process:
            found = Signalled(process, manager, file)
            await found.told()
            yield found


posix = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")


@posix
async def test_a_signal_has_the_file_read_again(provider, signalled, connect):
    """Several keys at once; a stream runs through it all."""
    going = asyncio.Event()

    async def stream(connection, _received):
        await connection.send(head() + chunk(b"data: one\n\n"))
        await going.wait()
        await connection.send(chunk(b"data: two\n\n") + LAST)

    provider.on("/stream", stream)
    process = signalled.process
    client, reading = await connect(process.port), await connect(process.port)
    answer = await reading.ask("GET", "/stream")
    await asked(client)
    assert (await process.event("request"))["budget_exceeded"] is None

    status = await signalled.reload(
        "[cache]\nttl = 60\n[budgets.chat]\ntotal_ms = 0.001\n[keepalive]\ninterval = 5\n"
        "[server]\nport = 1\n[limits]\nrequests = 7\n"
    )
    assert status.endswith("; to be restarted for limits.requests")
    line = await process.event("reloaded")
    assert line["changed"] == ["budgets.chat.total_ms", "cache.ttl", "keepalive.interval"]
    assert (line["restart"], line["level"]) == (["limits.requests"], "warning")
    assert [b"hit" in (await asked(client)).header("cache-status") for _ in range(2)] == [False, True]
    assert (await process.event("request", 2))["budget_exceeded"]["budget"] == "chat"

    await signalled.reload('[log]\nlevel = "warning"\n[limits]\nrequests = 7\n')
    await process.event("reloaded", 1)
    await asked(client)
    going.set()
    await answer.rest()
    assert (bytes(answer.body), answer.end) == (b"data: one\n\ndata: two\n\n", "whole")
    process.signal()
    assert await process.exited() == 0
    assert orjson.loads(process.raw.splitlines()[-1])["event"] == "reloaded"


@posix
async def test_a_wrong_file_changes_nothing(signalled, connect):
    process = signalled.process
    client = await connect(process.port)
    assert "reload" not in await signalled.reload("[cache]\nttl = 60\n")
    await asked(client)
    # What is right in it is not taken either.
    wrong = (
        "[cache]\nttl = 'soon'\n",
        "[cache",
        "[keepalive]\nno = 1\n",
        "[cache]\nttl = 0\n[tls]\nkey = 'x'\n",
        # All that is wrong is in the file that it names, and of that only a restart would make use.
        "[cache]\nttl = 0\n[tls]\ncertificate = 'nowhere'\nkey = 'nowhere'\n",
    )
    for number, text in enumerate(wrong):
        status = await signalled.reload(text)
        line = await process.event("reload_failed", number)
        assert line["level"] == "error"
        assert status.endswith(f"; the configuration was not reloaded: {line['reason']}")
        assert b"hit" in (await asked(client)).header("cache-status")
    assert "reload" not in await signalled.reload("[cache]\nttl = 0\n")
    assert b"hit" not in (await asked(client)).header("cache-status")
    process.signal()
    assert await process.exited() == 0
