"""Official SDKs on a WebSocket through the sidecar: they change their base URL and nothing else."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import trustme
from google import genai
from google.genai.types import HttpOptions
from websockets.asyncio.server import ServerConnection, serve

KEY = "planted-key"


@asynccontextmanager
async def provider(*events: dict[str, Any]) -> AsyncIterator[tuple[str, list[Any], list[Any]]]:
    """One that says the first event at once, and one more for each message; what it was asked and told."""
    asked: list[Any] = []
    told: list[Any] = []

    async def speak(server: ServerConnection) -> None:
        asked.append(server.request)
        first, *rest = events
        await server.send(json.dumps(first))
        for event in rest:
            told.append(json.loads(await server.recv()))
            await server.send(json.dumps(event))
        await server.wait_closed()

    async with serve(speak, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked, told


async def line_of(sidecar, provider_name, path):
    line = await sidecar.lines.request()
    assert (line["status"], line["outcome"], line["close_code"]) == (101, "complete", 1000)
    assert (line["provider"], line["path"]) == (provider_name, path)
    assert not [raw for raw in sidecar.lines.raw if b"planted" in raw]
    return line


async def test_openai_realtime(start_sidecar):
    created = {
        "type": "session.created",
        "event_id": "e1",
        "session": {"type": "realtime", "model": "gpt-realtime"},
    }
    done = {
        "type": "response.output_text.delta",
        "event_id": "e2",
        "delta": "你好 🌊",
        "item_id": "i",
        "response_id": "r",
    }
    done |= {"content_index": 0, "output_index": 0}
    async with provider(created, done) as (url, asked, told):
        sidecar = await start_sidecar(url)
        client = openai.AsyncOpenAI(api_key=KEY, base_url=f"{sidecar.url}/v1")
        async with client, client.realtime.connect(model="gpt-realtime") as connection:
            assert (await connection.recv()).type == "session.created"
            await connection.response.create()
            event = await connection.recv()
            assert (event.type, event.delta) == ("response.output_text.delta", "你好 🌊")
    (request,) = asked
    assert request.path == "/v1/realtime?model=gpt-realtime"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert [event["type"] for event in told] == ["response.create"]
    line = await line_of(sidecar, "openai", "/v1/realtime")
    assert (line["model"], line["events"]) == ("gpt-realtime", 2)


async def test_gemini_live(start_sidecar, tmp_path, monkeypatch):
    """Its client speaks TLS and nothing else, whatever its base URL says."""
    authority, certificate, key = trustme.CA(), tmp_path / "certificate", tmp_path / "key"
    authority.cert_pem.write_to_path(tmp_path / "authority")
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    key.chmod(0o600)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority"))
    said = {"serverContent": {"modelTurn": {"parts": [{"text": "你好 🌊"}]}, "turnComplete": True}}
    async with provider({"setupComplete": {}}, {}, said) as (url, asked, told):
        sidecar = await start_sidecar(url, tls__certificate=str(certificate), tls__key=str(key))
        options = HttpOptions(base_url=sidecar.url, api_version="v1beta")
        client = genai.Client(api_key=KEY, http_options=options)
        async with client.aio.live.connect(model="gemini-live") as session:
            await session.send_realtime_input(text="hello")
            texts = [message.text async for message in session.receive() if message.server_content]
    assert texts == ["你好 🌊"]
    (request,) = asked
    path = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"
    assert request.path.partition("?")[0].replace("//", "/") == path
    assert KEY in (request.headers.get("x-goog-api-key"), request.path.partition("key=")[2])
    assert list(told[0]) == ["setup"]
    await line_of(sidecar, "gcp.gemini", path)
