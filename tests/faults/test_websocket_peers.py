"""WebSockets through the sidecar with the `websockets` library at both ends: what two peers can tell of it."""

import asyncio
import hashlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.faults.conftest import eventually
from tests.faults.wire import GUARD

KEY = ("Authorization", "Bearer planted-key")
Handler = Callable[[ServerConnection], Awaitable[None]]


@asynccontextmanager
async def upstream(handler: Handler, **options: Any) -> AsyncIterator[Server]:
    quiet = logging.getLogger("tests.websockets")
    quiet.disabled = True  # what a peer says of connections that end badly is what the tests look at
    # One that waits for close frames would only slow the tests down that do without.
    async with serve(handler, "127.0.0.1", 0, logger=quiet, close_timeout=0.5, **options) as server:
        yield server


def url_of(server: Server) -> str:
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def joined(rig: Any, path: str = "/v1/realtime", **options: Any) -> AsyncIterator[ClientConnection]:
    uri = f"ws://127.0.0.1:{rig.sidecar.port}{path}"
    async with connect(uri, close_timeout=0.5, proxy=None, **options) as client:
        yield client


async def echo(server: ServerConnection) -> None:
    async for message in server:
        await server.send(message)


class Held:
    """A handler that leaves its connections to the test."""

    def __init__(self) -> None:
        self._new: asyncio.Queue[ServerConnection] = asyncio.Queue()

    async def __call__(self, server: ServerConnection) -> None:
        self._new.put_nowait(server)
        await server.wait_closed()

    async def next(self) -> ServerConnection:
        async with asyncio.timeout(GUARD):
            return await self._new.get()


async def closed(connection: Any) -> tuple[Any, Any]:
    """What the connection received and sent to close; None for no close frame."""
    async with asyncio.timeout(GUARD):
        await connection.wait_closed()
    try:
        await connection.recv()
    except ConnectionClosed as error:
        return error.rcvd, error.sent
    raise AssertionError


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_messages_of_all_kinds_come_back_as_they_were(rig, compression):
    """Text, binary, empty, large and in fragments; compressed between the two ends, if they like."""
    async with upstream(echo, max_size=None) as server:
        await rig.start(url_of(server))
        chance = random.Random(8)
        messages: list[Any] = [
            "",
            b"",
            "plain",
            "你好 🌊",
            bytes(range(256)),
            "x" * 125,
            b"x" * 126,
            "x" * 65535,
        ]
        messages += [b"x" * 65536, chance.randbytes(3 << 20), "lorem " * 300_000]
        async with joined(rig, compression=compression, max_size=None) as client:
            assert bool(client.protocol.extensions) == (compression is not None)
            for message in messages:
                await client.send(message)
                assert await client.recv() == message
            for parts in (["a", "", "你", "b" * 70_000], [b"1", b"2" * 70_000, b"3"]):
                await client.send(parts)
                assert await client.recv() == type(parts[0])().join(parts)
    line = await rig.line()
    assert (line["outcome"], line["close_code"], line["events"]) == ("complete", 1000, len(messages) + 2)


async def test_the_handshake_is_between_the_two(rig):
    """Target, fields and subprotocol; what is the sidecar's own stays there."""
    held = Held()
    async with upstream(held, subprotocols=["realtime"], server_header="Peer/1") as server:
        await rig.start(url_of(server))
        place = url_of(server).removeprefix("http://")
        fields = [
            KEY,
            ("OpenAI-Beta", "realtime=v1"),
            ("Slipstream-Feature", "voice"),
            ("X-Twice", "1"),
            ("X-Twice", "2"),
        ]
        path = "/v1/realtime?model=m-1&secret=planted-query"
        options = {
            "origin": "https://app.test",
            "subprotocols": ["other", "realtime"],
            "additional_headers": fields,
        }
        async with joined(rig, path, **options) as client:
            request = (await held.next()).request
            assert (client.subprotocol, client.response.headers["Server"]) == ("realtime", "Peer/1")
            assert "Server-Timing" not in client.response.headers
    assert request.path == path
    told = request.headers
    assert (told["Authorization"], told["OpenAI-Beta"], told["Origin"]) == (
        KEY[1],
        "realtime=v1",
        "https://app.test",
    )
    assert told.get_all("X-Twice") == ["1", "2"]
    assert told["Host"] == place
    assert not [name for name in told if name.lower().startswith("slipstream")]
    line = await rig.line()
    assert (line["model"], line["feature"], line["path"]) == ("m-1", "voice", "/v1/realtime")
    assert not [raw for raw in rig.sidecar.lines.raw if b"planted" in raw]


@pytest.mark.parametrize("first", ["client", "upstream"])
@pytest.mark.parametrize(
    ("code", "reason"), [(1000, ""), (1001, "away"), (1011, "schluß"), (3000, "x" * 123), (4999, "")]
)
async def test_close_codes_and_reasons_arrive(rig, first, code, reason):
    held = Held()
    async with upstream(held) as server:
        await rig.start(url_of(server))
        async with joined(rig) as client:
            far = await held.next()
            await (client if first == "client" else far).close(code, reason)
            for end in (client, far):
                for said in await closed(end):
                    assert (said.code, said.reason) == (code, reason)
    line = await rig.line()
    assert (line["outcome"], line["close_code"], line["error"]) == ("complete", code, None)


@pytest.mark.parametrize("first", ["client", "upstream"])
async def test_an_end_without_a_close_frame_is_1006_to_the_other(rig, first):
    """Within a second; and to nobody it looks like anything else."""
    held = Held()
    async with upstream(held) as server:
        await rig.start(url_of(server))
        async with joined(rig) as client:
            far = await held.next()
            leaving, left = (client, far) if first == "client" else (far, client)
            leaving.transport.abort()
            async with asyncio.timeout(1.0):
                await left.wait_closed()
            assert left.close_code == 1006
            assert (await closed(left))[0] is None
    line = await rig.line()
    expected = {"client": ("cancelled", None), "upstream": ("truncated", "upstream_closed")}[first]
    assert (line["outcome"], line["error"], line["close_code"]) == (*expected, None)


async def test_pings_are_answered_by_the_other_end(rig):
    held = Held()
    async with upstream(held) as server:
        await rig.start(url_of(server))
        async with joined(rig) as client:
            far = await held.next()
            async with asyncio.timeout(GUARD):
                assert await (await client.ping(b"from the client")) >= 0
                assert await (await far.ping(b"from the upstream")) >= 0
    assert (await rig.line())["events"] == 0


async def test_a_refusal_arrives_with_its_body(rig):
    async def deny(server: ServerConnection, request: Any) -> Any:
        return server.respond(401, "no such key\n")

    async with upstream(echo, process_request=deny) as server:
        await rig.start(url_of(server))
        with pytest.raises(InvalidStatus) as refusal:
            async with joined(rig):
                pass
    assert (refusal.value.response.status_code, refusal.value.response.body) == (401, b"no such key\n")
    line = await rig.line()
    assert (line["status"], line["outcome"], line["bytes"]) == (401, "upstream_error", 12)


async def test_many_at_once_do_not_mix(rig):
    async with upstream(echo, max_size=None) as server:
        await rig.start(url_of(server))

        async def one(number: int) -> None:
            chance = random.Random(number)
            async with joined(rig, max_size=None) as client:
                for _ in range(20):
                    message = chance.randbytes(chance.choice([1, 100, 5000, 100_000]))
                    await client.send(message)
                    assert await client.recv() == message

        await asyncio.gather(*map(one, range(40)))
    for number in range(40):
        line = await rig.line(number)
        assert (line["outcome"], line["events"]) == ("complete", 20)


async def test_both_hear_of_it_when_the_sidecar_stops(rig):
    """47: after its grace, with codes that say so."""
    held = Held()
    async with upstream(held) as server:
        await rig.start(url_of(server))
        async with joined(rig) as client:
            far = await held.next()
            assert not await rig.sidecar.service.assembly.drain(0.0)
            received, _ = await closed(client)
            assert received.code == 1012
            received, _ = await closed(far)
            assert received.code == 1001
    line = await rig.line()
    assert (line["outcome"], line["error"], line["close_code"]) == ("truncated", "draining", 1012)


async def test_what_it_counts_as(rig, tmp_path):
    """One request, one call, in flight while it is open; how long that was is no latency."""
    held = Held()
    async with upstream(held) as server:
        file = tmp_path / "slipstream.toml"
        file.write_text("[budgets.voice]\nttft_ms = 0.001\ntotal_ms = 0.001\n")
        await rig.start(url_of(server), file=file)
        assembly = rig.sidecar.service.assembly
        async with joined(rig, additional_headers=[("Slipstream-Feature", "voice")]) as client:
            far = await held.next()
            assert assembly.front.active == len(assembly.upgrades) == 1
            far.transport.abort()
            await client.wait_closed()
        line = await rig.line()
        assert line["budget_exceeded"] is None
        assert (line["error"], len(assembly.upgrades)) == ("upstream_closed", 0)
        assembly.meter.settle()
        found = {
            sample.name: sample.value
            for family in assembly.meter.metrics.snapshot()
            for sample in family.samples
            if "upstream" not in sample.labels or sample.labels["upstream"] == "default"
        }
        assert found["slipstream_requests_total"] == found["slipstream_upstream_calls_total"] == 1
        assert found["slipstream_upstream_errors_total"] == 1
        assert found["slipstream_overhead_seconds_count"] == 1
        assert "slipstream_request_duration_seconds_count" not in found
        window = assembly.meter.prepare("1m", series=False)()["total"]
        assert (window["requests"], window["stream_error_rate"]) == (1, 1.0)


async def test_a_client_that_leaves_is_counted_as_leaving_a_stream(rig):
    held = Held()
    async with upstream(held) as server:
        await rig.start(url_of(server))
        async with joined(rig) as client:
            await held.next()
            client.transport.abort()
        await rig.line()
        meter = rig.sidecar.service.assembly.meter
        meter.settle()
        phases = {
            sample.labels["phase"]: sample.value
            for family in meter.metrics.snapshot()
            for sample in family.samples
            if sample.name == "slipstream_disconnects_total"
        }
        assert phases == {"stream": 1}


TOKEN = "planted-token"
CONFIGURED = """
[[clients]]
name = "one"
token_sha256 = "{token}"
requests = 1

[[upstreams]]
name = "far"
url = "{url}/base"
paths = ["/v1"]
key_file = "{key}"
"""


async def test_a_clients_token_lets_it_in_and_the_sidecars_key_goes_on(rig, tmp_path):
    """It is held to its limits like any request, and for as long as it is open."""
    held = Held()
    key = tmp_path / "key"
    key.write_text("planted-upstream-key\n")
    key.chmod(0o600)
    async with upstream(held) as server:
        file = tmp_path / "slipstream.toml"
        token = hashlib.sha256(TOKEN.encode()).hexdigest()
        file.write_text(CONFIGURED.format(token=token, url=url_of(server), key=key))
        await rig.start(None, file=file)
        with pytest.raises(InvalidStatus) as refusal:
            async with joined(rig):
                pass
        assert refusal.value.response.status_code == 401
        mine = {"additional_headers": [("Authorization", f"Bearer {TOKEN}")]}
        async with joined(rig, **mine):
            request = (await held.next()).request
            assert (request.path, request.headers["Authorization"]) == (
                "/base/v1/realtime",
                "Bearer planted-upstream-key",
            )
            with pytest.raises(InvalidStatus) as refusal:
                async with joined(rig, **mine):
                    pass
            assert refusal.value.response.status_code == 429
        front = rig.sidecar.service.assembly.front
        await eventually(lambda: not front.active, lambda: "requests")
        async with joined(rig, **mine):
            await held.next()
    assert not [raw for raw in rig.sidecar.lines.raw if b"planted" in raw]


@pytest.mark.parametrize("shell", ["asgi"], indirect=True)
async def test_an_app_that_the_sidecar_is_mounted_in_does_without(rig):
    """Its server keeps its connections."""
    async with upstream(echo) as server:
        await rig.start(url_of(server))
        with pytest.raises(InvalidStatus) as refusal:
            async with joined(rig):
                pass
        assert refusal.value.response.headers["Slipstream-Error"] == "upgrade_unsupported"
        assert not server.connections
