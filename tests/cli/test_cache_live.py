"""`slipstream cache` beside a sidecar that serves: both have the store open, and each notices the other."""

import asyncio
import json
import os
import signal
import sys
from contextlib import asynccontextmanager

import aiohttp
import pytest
from openai import AsyncOpenAI

from sidecar.scripted import ScriptedProvider
from tests.cli.cache_rig import CHAT

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="signals are POSIX"),
    pytest.mark.usefixtures("clean"),
]

ASK = {"model": "m", "messages": [{"role": "user", "content": "Who goes there?"}]}
HIT, MISS = "slipstream; hit", "slipstream; fwd=miss"


@pytest.fixture
async def provider():
    async with ScriptedProvider() as running:
        yield running


class Serving:
    """`slipstream serve` in a process of its own."""

    def __init__(self, process, url):
        self.process = process
        self.url = url

    async def line(self, event):
        """The next log line of that kind."""
        while True:
            line = json.loads(await self.process.stderr.readline())
            if line["event"] == event:
                return line

    async def ask(self, key="sk-1", **more):
        """What a client is told, once the sidecar has done with the request: what it stores is on disk then."""
        headers = {"Authorization": f"Bearer {key}"}
        async with (
            aiohttp.ClientSession() as client,
            client.post(self.url + CHAT, json=ASK | more, headers=headers) as answer,
        ):
            body = await answer.read()
            status = answer.headers["Cache-Status"]
        line = await self.line("request")
        return status, body, line["tenant"]


async def started(*arguments, **options):
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sidecar", *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, **options,
    )  # fmt: skip


@asynccontextmanager
async def serving(provider, folder, *flags):
    """Stopped as an init system does when the block is left; it has to end well."""
    process = await started(
        "serve",
        "--port",
        "0",
        "--upstream",
        provider.url,
        "--data-dir",
        str(folder),
        "--log-format",
        "json",
        *flags,
    )
    try:
        made = Serving(process, "")
        made.url = (await made.line("serving"))["url"]
        yield made
        process.send_signal(signal.SIGTERM)
        await process.communicate()
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def cache(folder, *arguments, text="", code=0, **environment):
    """`slipstream cache ...`: what it prints."""
    process = await started("cache", *arguments, "--data-dir", str(folder), env={**os.environ, **environment})
    out, err = await process.communicate(text.encode())
    assert process.returncode == code, err.decode()
    return out.decode()


async def test_an_answer_survives_a_restart_an_export_a_purge_and_an_import(provider, clean):
    folder, file = clean / "data", clean / "answers.jsonl"
    async with serving(provider, folder) as sidecar:
        status, whole, _ = await sidecar.ask()
        assert status.startswith(MISS)
        status, stream, _ = await sidecar.ask(stream=True, seed=1)
        assert status.startswith(MISS)
    await cache(folder, "export", "--output", str(file))
    assert await cache(folder, "purge", "--all") == "2 answers purged\n"
    async with serving(provider, folder) as sidecar:
        assert (await sidecar.ask(only="before"))[0].startswith(MISS)
    assert await cache(folder, "import", str(file)) == "2 imported, 0 skipped (expired), 0 refused\n"
    before = provider.received
    async with serving(provider, folder) as sidecar:
        for more, body in (({}, whole), ({"stream": True, "seed": 1}, stream)):
            status, again, _ = await sidecar.ask(**more)
            assert status.startswith(HIT)
            assert again == body
        # Its alias came along: the same in the other mode.
        status, _, _ = await sidecar.ask(stream=True)
        assert status.startswith(HIT)
    assert provider.received == before


async def test_a_purge_of_one_tenant_is_noticed_while_the_sidecar_runs(provider, clean):
    folder = clean / "data"
    async with serving(provider, folder) as sidecar:
        tenants = [(await sidecar.ask(key))[2] for key in ("sk-1", "sk-2")]
        for key in ("sk-1", "sk-2"):
            assert (await sidecar.ask(key))[0].startswith(HIT)
        listed = await cache(folder, "list", "--json")
        assert {json.loads(line)["tenant"] for line in listed.splitlines()} == set(tenants)
        assert await cache(folder, "purge", "--tenant", tenants[0]) == "1 answer purged\n"
        assert (await sidecar.ask("sk-1"))[0].startswith(MISS)
        assert (await sidecar.ask("sk-2"))[0].startswith(HIT)
        # By what it is about, likewise; and what was asked for again is there again.
        assert await cache(folder, "purge", "--model", "m", "--path", "/v1/chat") == "2 answers purged\n"
        assert (await sidecar.ask("sk-2"))[0].startswith(MISS)
        assert (await sidecar.ask("sk-2"))[0].startswith(HIT)
    assert json.loads(await cache(folder, "stats", "--json"))["answers"] == 1


async def test_an_import_is_found_at_once_by_a_running_sidecar(provider, clean):
    folder = clean / "data"
    async with serving(provider, folder) as sidecar:
        _, body, _ = await sidecar.ask()
        lines = await cache(folder, "export")
        await cache(folder, "purge", "--all")
        await cache(folder, "import", "-", text=lines)
        status, again, _ = await sidecar.ask()
        assert status.startswith(HIT)
        assert again == body
    assert provider.received == 1


def answered(**more):
    return {"id": "warm-1", "created": 1_700_000_000, "model": "m-2026", **more}


CHOICE = {"index": 0, "finish_reason": "stop"}
WHOLE = answered(
    object="chat.completion", choices=[CHOICE | {"message": {"role": "assistant", "content": "It is I."}}]
)
CHUNKS = [
    answered(
        object="chat.completion.chunk",
        choices=[{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": end}],
    )
    for text, end in (("It is", None), (" I.", "stop"))
]
STREAM = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in CHUNKS) + "data: [DONE]\n\n"


def pair(ask, body):
    return json.dumps({"request": {"path": CHAT, "body": ask}, "response": {"body": body}}) + "\n"


async def told(client, **ask):
    """What the SDK gives an app."""
    if not ask.get("stream"):
        answer = await client.chat.completions.create(**ask)
        return answer.choices[0].message.content
    return "".join(
        [chunk.choices[0].delta.content or "" async for chunk in await client.chat.completions.create(**ask)]
    )


@pytest.mark.parametrize("way", ["environment", "line"])
async def test_an_official_sdk_finds_what_was_warmed_without_a_call(provider, clean, way):
    folder = clean / "data"
    other = {**ASK, "messages": [{"role": "user", "content": "And there?"}], "stream": True}
    lines = pair(ASK, WHOLE) + pair(other, STREAM)
    given = ["--upstream", provider.url]
    if way == "environment":
        given += ["--header-env", "Authorization=MY_AUTH"]
    else:
        rows = [json.loads(line) for line in lines.splitlines()]
        for row in rows:
            row["request"]["headers"] = {"Authorization": "Bearer sk-warm"}
        lines = "\n".join(map(json.dumps, rows))
    out = await cache(folder, "import", "-", *given, text=lines, MY_AUTH="Bearer sk-warm")
    assert out == "2 imported, 0 skipped (expired), 0 refused\n"
    async with serving(provider, folder) as sidecar:
        async with AsyncOpenAI(api_key="sk-warm", base_url=f"{sidecar.url}/v1", max_retries=0) as client:
            assert await told(client, **ASK) == "It is I."
            assert await told(client, **other) == "It is I."
            # The same in the other mode, out of the same answer.
            assert await told(client, **ASK, stream=True) == "It is I."
            assert provider.received == 0
        async with AsyncOpenAI(api_key="sk-other", base_url=f"{sidecar.url}/v1", max_retries=0) as client:
            assert await told(client, **ASK) != "It is I."
            assert provider.received == 1


async def test_several_commands_at_once_do_not_disturb_each_other(provider, clean):
    folder = clean / "data"
    rows = [pair({**ASK, "seed": number}, WHOLE) for number in range(60)]
    async with serving(provider, folder) as sidecar:
        parts = ["".join(rows[start::3]) for start in range(3)]
        flags = ["--upstream", provider.url, "--header", "Authorization: Bearer sk-1"]
        imports = [cache(folder, "import", "-", *flags, text=part) for part in parts]
        looks = [cache(folder, *command) for command in (["stats"], ["list"], ["export"])]
        found = await asyncio.gather(*imports, *looks)
        assert found[:3] == ["20 imported, 0 skipped (expired), 0 refused\n"] * 3
        for number in range(60):
            assert (await sidecar.ask(seed=number))[0].startswith(HIT)
    assert provider.received == 0
