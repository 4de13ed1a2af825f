"""Sidecar: the proxy as an ASGI app, by itself and mounted."""

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from sidecar.core.values import ConfigError
from sidecar_starlette import Sidecar
from tests.plugin.rig import Served

CHAT = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
JSON = {"content-type": "application/json"}


@pytest.fixture
async def serve_llm(lines, provider, tmp_path):
    """`await serve_llm(wrap)`: `wrap` makes the app to be served of a Sidecar in front of the provider."""
    running = []

    async def start(wrap, **on):
        llm = Sidecar(upstream=provider.url, data_dir=tmp_path)
        served = Served(wrap(llm), lines, **on)
        running.append(served)
        await served.start()
        return served, llm

    yield start
    for served in running:
        await served.stop()
    assert not lines.faults


def mounted(llm):
    app = Starlette(lifespan=llm.lifespan)
    app.mount("/llm", llm)
    return app


@pytest.mark.parametrize(
    ("wrap", "root"), [(lambda llm: llm, ""), (mounted, "/llm")], ids=["root", "mounted"]
)
async def test_it_starts_and_drains_with_the_app(serve_llm, lines, wrap, root):
    served, llm = await serve_llm(wrap)
    assert llm.runtime.here is not None
    for told in ("fwd=miss", "hit"):
        answer = await served.ask(f"{root}/v1/chat/completions", CHAT, JSON)
        assert answer.status == 200
        assert told in answer.cache
    job = await served.ask(f"{root}/v1/chat/completions", CHAT, JSON | {"prefer": "respond-async"})
    assert job.headers["location"].startswith(f"{root}/_slipstream/jobs/")
    assert (await served.get(job.headers["location"])).status == 200
    assert (await served.get(f"{root}/_slipstream/healthz")).body == b'{"status":"ok"}\n'
    assert (await served.get(f"{root}/nowhere")).status != 500
    await served.stop()
    assert llm.runtime.here is None
    assert [line["event"] for line in lines.all if line["event"] == "draining"] == ["draining"]
    assert lines.closed == 1


async def test_without_a_lifespan_it_starts_with_its_first_request(serve_llm):
    def wrap(llm):
        app = Starlette()
        app.mount("/llm", llm)
        return app

    served, llm = await serve_llm(wrap)
    assert llm.runtime.here is None
    assert (await served.ask("/llm/v1/chat/completions", CHAT, JSON)).status == 200
    assert llm.runtime.here is not None
    await llm.runtime.stop()


def test_each_loop_has_an_engine_of_its_own_and_none_is_left(lines, tmp_path):
    llm = Sidecar(upstream="http://127.0.0.1:9", data_dir=tmp_path)
    client = TestClient(llm)  # a loop for each request
    for number in range(3):
        assert client.get("/_slipstream/healthz").status_code == 200
        assert lines.closed == number + 1
    assert len(llm.runtime._running) <= 1


def test_upgrades_are_refused(lines, tmp_path):
    with (
        TestClient(Sidecar(upstream="http://127.0.0.1:9", data_dir=tmp_path)) as client,
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("/v1/realtime"),
    ):
        pass


def test_known_paths_go_to_their_providers_and_others_nowhere(lines, tmp_path):
    with TestClient(Sidecar(data_dir=tmp_path)) as client:
        answer = client.get("/chat")
    assert answer.status_code == 404
    assert answer.headers["slipstream-error"] == "no_upstream"
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"upstream": "nowhere"}, "server.upstream"),
        ({"cache": "all"}, "cache.mode"),
        ({"config": {"cache": {"mod": 1}}}, "cache.mod: unknown key"),
        ({"config": "/no/such.toml"}, "/no/such.toml: cannot be read"),
    ],
)
def test_a_bad_configuration_is_one_line(given, said):
    with pytest.raises(ConfigError, match=said) as raised:
        Sidecar(**given)
    assert "\n" not in str(raised.value)


def test_environment_variables_count(lines, tmp_path, monkeypatch):
    monkeypatch.setenv("SLIPSTREAM_SERVER__UPSTREAM", "http://127.0.0.1:9")
    monkeypatch.setenv("SLIPSTREAM_CACHE__MODE", "off")
    config = Sidecar(data_dir=tmp_path, config={"cache": {"mode": "exact"}}).runtime._settings.config
    assert (config.server.upstream, config.cache.mode) == ("http://127.0.0.1:9", "off")
    assert Sidecar(cache="exact", data_dir=tmp_path).runtime._settings.config.cache.mode == "exact"
