"""What the tests of coming back need: answers let out step by step, and real clients as processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

from sidecar.scripted import Connection, Received, Script, ScriptedProvider
from sidecar.scripted.answers import find
from tests.core.oracle import typed

from .cutter import Cutter, Exchange, Page, Plan

NODE = Path(__file__).parent / "node"
HANG = 20
"""Seconds after which something has hung. Nothing is measured with it."""
RETRY = b"retry: 1\n\n"
"""Upstreams say it first, so that clients that know it come back at once."""
CREDENTIAL = {"Authorization": "Bearer sk-test"}
PATIENT = {**CREDENTIAL, "Slipstream-Disconnect": "grace=15"}
"""Of clients that count events: nothing else tells that they will come back."""
EVENTS = {**CREDENTIAL, "Accept": "text/event-stream"}
SCRIPT = Script(tokens=8)
WAYS = ("live", "recorded")
"""`live`: what comes after a cut is only sent when the client is back. `recorded`: it was all there before."""
PAGES = {
    "/page.html": Page("text/html; charset=utf-8", b"<!doctype html><title>A page</title>"),
    "/resume.mjs": Page("text/javascript", (NODE / "resume.mjs").read_bytes()),
}
ASK: dict[str, Any] = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "What?"}]}


class Form(NamedTuple):
    """A format, and the request that asks for a stream of it."""

    name: str
    method: str
    target: str
    body: dict[str, Any] | None = None
    ids: bool = True

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def types(self) -> list[str]:
        """The event types of its answers: EventSource has to be told."""
        return sorted({kind for kind, _ in typed(b"".join(events(self, Script(reasoning=2))))})

    def __str__(self) -> str:
        return self.name


CHAT = Form("chat", "POST", "/v1/chat/completions", ASK)
RESPONSES = Form("responses", "POST", "/v1/responses", {"model": "m", "stream": True, "input": "What?"})
ANTHROPIC = Form("anthropic", "POST", "/v1/messages", ASK | {"max_tokens": 100})
AGENT = Form("agent", "POST", "/agent/events", ASK)
FEED = Form("feed", "GET", "/feed/events")
GEMINI = Form("gemini", "POST", "/v1beta/models/m:streamGenerateContent?alt=sse", {"contents": []}, ids=False)
OLLAMA = Form("ollama", "POST", "/api/chat", ASK, ids=False)


def events(form: Form, script: Script) -> tuple[bytes, ...]:
    """The upstream's own answer, event by event."""
    route = find(form.method, form.path)
    made = route.build(route.read(form.body or {}, form.path, form.target.partition("?")[2]), script)
    # The scripted feed has a `retry:` of its own, too slow for a test.
    return tuple(event for event in made.events if not event.startswith(b"retry:"))


def told(form: Form, event: bytes) -> bool:
    """Whether a client is told of it: comments and such are not events."""
    return form is OLLAMA or bool(typed(event))


Hold = Callable[[int], Awaitable[None]]
HEAD = -1
"""The head, to a `hold`."""


class Answer:
    """What the upstream answers to every request of a form, event by event, each when `hold` lets it go."""

    def __init__(
        self,
        provider: ScriptedProvider,
        form: Form,
        script: Script,
        hold: Hold | None = None,
        *,
        retry: bool = True,
    ) -> None:
        """`retry`: begin with how soon to come back. To openai-python that is an event, and a broken one."""
        self.form = form
        self.calls = 0
        self.hold = hold
        self.lost_after: int | None = None
        """The connection is closed after so many events, in the middle of the body."""
        self.raw = events(form, script)
        if form.ids and retry:
            self.raw = (RETRY.replace(b"\n", (script.newline or "\n").encode()), *self.raw)
        provider.on(form.path, self._serve)

    @property
    def wanted(self) -> list[tuple[str, str]]:
        """Type and data of each event that a client has to be given."""
        if self.form is OLLAMA:
            return [("message", line.decode().rstrip("\n")) for line in self.raw]
        return typed(b"".join(self.raw))

    async def _serve(self, connection: Connection, received: Received) -> None:
        self.calls += 1
        kind = b"application/x-ndjson" if self.form is OLLAMA else b"text/event-stream; charset=utf-8"
        head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
        if self.hold is not None:
            await self.hold(HEAD)
        await connection.send(head % kind)
        number = 0
        for event in self.raw:
            if told(self.form, event):
                if number == self.lost_after:
                    connection.close()
                    return
                if self.hold is not None:
                    await self.hold(number)
                number += 1
            await connection.send(b"%x\r\n%b\r\n" % (len(event), event))
        await connection.send(b"0\r\n\r\n")


def live(*cutters: Cutter) -> Hold:
    """Nothing of the answer exists before the clients are there for it: what comes after a cut is only sent when the
    client is back."""

    async def hold(number: int) -> None:
        for cutter in cutters if number != HEAD else ():
            await cutter.until(lambda: len(cutter.exchanges) > passed(cutter, number))  # noqa: B023

    return hold


def passed(cutter: Cutter, number: int) -> int:
    """The cuts that come before that event, or that nothing is left to wait for."""
    ends, reached = [], 0
    for cut in cutter.plan:
        reached += cut.events
        ends.append(reached + (cut.into > 0 or cut.brink))
    return sum(number >= end for end in ends)


class Told(NamedTuple):
    """An event as a client was told of it."""

    id: str | None
    event: str
    data: str


class Result(NamedTuple):
    events: list[Told]
    end: dict[str, Any]
    """What the client says of how it ended."""

    @property
    def plain(self) -> list[tuple[str, str]]:
        return [(event.event, event.data) for event in self.events]


class Hosts:
    """The clients' processes: one for each script, started when it is first needed."""

    def __init__(self, chromium: str = "") -> None:
        self._environment = os.environ | {"CHROMIUM": chromium}
        self._running: dict[str, tuple[subprocess.Popen[str], int]] = {}

    def port(self, script: str) -> int:
        """Where that script takes what it is to ask."""
        if script not in self._running:
            process = subprocess.Popen(
                ["node", str(NODE / "host.mjs"), f"./{script}.mjs"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=self._environment,
                text=True,
            )
            self._running[script] = process, 0
            assert process.stdout is not None
            said = process.stdout.readline()
            assert said, f"{script} did not start"
            self._running[script] = process, int(said)
        return self._running[script][1]

    def drop(self, script: str) -> None:
        """End a process whose client has failed: it may come back for ever, and to the next test's port."""
        process, _ = self._running.pop(script)
        process.kill()
        process.communicate()

    def stop(self) -> None:
        try:
            for process, _ in self._running.values():
                process.communicate(timeout=HANG)  # closes its stdin
            assert all(process.returncode == 0 for process, _ in self._running.values())
        finally:
            for process, _ in self._running.values():
                process.kill()
                process.communicate()


async def run(port: int, ask: dict[str, Any], cutter: Cutter) -> Result:
    """Let a client ask, and confirm every event that it says it was given to the cutter, until it is done."""
    seen: list[Told] = []
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        async with asyncio.timeout(HANG):
            writer.write(json.dumps(ask).encode() + b"\n")
            while True:
                item = json.loads(await reader.readuntil())
                assert "error" not in item, item["error"]
                if "end" in item:
                    return Result(seen, item["end"])
                seen.append(Told(**item))
                cutter.confirm()
    except TimeoutError:
        raise AssertionError(f"the client hangs after {seen[-1:]}: {cutter.exchanges}") from None
    finally:
        writer.close()
        await writer.wait_closed()


def asked(form: Form) -> dict[str, Any]:
    """What a client script is told to ask."""
    return {
        "url": form.target,
        "method": form.method,
        "headers": CREDENTIAL,
        "body": None if form.body is None else json.dumps(form.body),
        "types": form.types,
        "lines": form is OLLAMA,
    }


async def begin(port: int, form: Form) -> str:
    """Ask for a stream and leave with nothing but its id."""
    body = b"" if form.body is None else json.dumps(form.body).encode()
    fields = {"Host": "sidecar.test", "Accept": "text/event-stream", "Content-Length": str(len(body))}
    lines = [f"{form.method} {form.target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    async with asyncio.timeout(HANG):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    writer.close()
    await writer.wait_closed()
    named = [line.partition(":") for line in head.split("\r\n")]
    return next(value.strip() for name, _, value in named if name.lower() == "slipstream-stream-id")


class Setting:
    """A provider, a sidecar, and clients that are cut off from it."""

    def __init__(self, provider: ScriptedProvider, port: int, hosts: Hosts, stack: AsyncExitStack) -> None:
        self.provider = provider
        self.port = port
        self._hosts = hosts
        self._stack = stack

    async def cutter(self, plan: Plan = ()) -> Cutter:
        return await self._stack.enter_async_context(Cutter(self.port, plan, PAGES))

    async def come_back(
        self,
        script: str,
        form: Form,
        plan: Plan,
        way: str | Callable[[Cutter], Hold],
        *,
        scripted: Script = SCRIPT,
        **more: Any,
    ) -> Came:
        """Let a client ask and be cut off by that plan. `way`: see WAYS."""
        cutter = await self.cutter(plan)
        hold = live(cutter) if way == "live" else None if isinstance(way, str) else way(cutter)
        answer = Answer(self.provider, form, scripted, hold)
        return await self._run(script, form, cutter, answer, more)

    async def join(self, script: str, form: Form, plan: Plan, way: str, **more: Any) -> Came:
        """The same for a client that only has the URL of a stream that somebody else asked for."""
        return (await self.join_all(form, {script: plan}, way, **more))[0]

    async def join_all(self, form: Form, plans: Mapping[str, Plan], way: str, **more: Any) -> list[Came]:
        """The same for several clients at one stream. EventSource sends no credential, so none does."""
        more = {"headers": {"Accept": "text/event-stream"}, "accept": "text/event-stream", **more}
        cutters = [await self.cutter(plan) for plan in plans.values()]
        answer = Answer(self.provider, form, SCRIPT, live(*cutters) if way == "live" else None)
        stream = await begin(self.port, form)
        more |= {"url": f"/_slipstream/streams/{stream}", "method": "GET", "body": None}
        runs = [
            self._run(script, form, cutter, answer, more)
            for script, cutter in zip(plans, cutters, strict=True)
        ]
        came = await asyncio.gather(*runs)
        assert {one.ids[0] for one in came} == {f"{stream}:0"}
        return came

    async def _run(
        self, script: str, form: Form, cutter: Cutter, answer: Answer, more: Mapping[str, Any]
    ) -> Came:
        result = await self.ask(script, form, cutter, **{"last": answer.wanted[-1][1], **more})
        return Came(result, cutter, answer)

    async def ask(self, script: str, form: Form, cutter: Cutter, **more: Any) -> Result:
        """Let a client ask through that cutter. `more`: what it is to be told instead, or besides."""
        ask = asked(form) | more
        try:
            return await run(self._hosts.port(script), ask | {"url": cutter.url + ask["url"]}, cutter)
        except BaseException:
            self._hosts.drop(script)
            raise


class Came(NamedTuple):
    """How it went."""

    result: Result
    cutter: Cutter
    answer: Answer

    @property
    def end(self) -> dict[str, Any]:
        return self.result.end

    @property
    def ids(self) -> list[str | None]:
        return [event.id for event in self.result.events]

    @property
    def exchanges(self) -> list[Exchange]:
        return self.cutter.exchanges

    def check(self) -> None:
        """That the client was given the upstream's events, each once, of one call, and that every cut was made."""
        assert self.result.plain == self.answer.wanted, self.exchanges
        assert self.answer.calls == 1, self.exchanges
        over, planned = [exchange.over for exchange in self.exchanges], len(self.cutter.plan)
        assert over[:planned] == ["cut"] * planned, self.exchanges
        # One that knows the last event when it sees it may leave before the body ends; others ask once more.
        assert over[planned:] in (["whole"], ["left"], ["whole", "whole"]), self.exchanges
        assert [exchange.status for exchange in self.exchanges[planned + 1 :]] in ([], [204]), self.exchanges

    def check_ids(self, *, hasty: bool = False) -> None:
        """That the ids are of one stream and count from 0, and, unless the cuts were hasty, that each request but the
        first said which event the client had been given last."""
        stream = (self.ids[0] or "").rpartition(":")[0]
        assert stream
        assert self.ids == [f"{stream}:{n}" for n in range(len(self.ids))]
        given = 0
        for exchange in () if hasty else self.exchanges:
            assert exchange.headers.get("last-event-id") == (self.ids[given - 1] if given else None)
            given += exchange.events
