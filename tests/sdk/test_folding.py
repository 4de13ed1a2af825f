"""Official SDKs make the same of an answer that was turned into its other form as of one that came in it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
import pytest

from sidecar.core.dialects import recognise
from sidecar.core.folding import fold, refreshed, unfold
from sidecar.scripted.answers import find
from sidecar.scripted.script import Script, override

from .calls import CASES, run
from .cases import THOUGHTS, Case, check
from .rig import NODE_CASES, Provider, at_once, run_node

# google-genai's own, when aiohttp is there.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

# Events of the Responses API are not made out of a whole answer.
LEFT_OUT = {"openai.responses", "ai.openai"}


def turned(case: Case) -> bool:
    embeds = "embed" in case.call
    return case.variant.outcome == "ok" and not embeds and not (case.call in LEFT_OUT and case.variant.stream)


PYTHON = [case for case in CASES if turned(case)]
NODE = [(sdk, case) for sdk, case in NODE_CASES if turned(case)]


class Turning(BaseHTTPRequestHandler):
    """Answers each request with what the scripted provider says in the other form, turned into the asked one."""

    def do_POST(self) -> None:
        path, _, query = self.path.partition("?")
        ask = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        script = override(Script(), self.headers["X-Scripted"].encode())
        dialect = recognise("POST", path)
        assert dialect is not None
        if dialect.intent(path, ask).stream:
            whole = self.scripted(path.replace(":streamG", ":g"), "", {**ask, "stream": False}, script)
            made = unfold(dialect.name, whole, ask, query)
            kind = "application/x-ndjson" if dialect.framing == "ndjson" else "text/event-stream"
        else:
            counted = {**ask, "stream": True, "stream_options": {"include_usage": True}}
            stream = self.scripted(path.replace(":g", ":streamG"), "alt=sse", counted, script)
            made, kind = fold(dialect.name, stream, "alt=sse"), "application/json"
        assert made is not None
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(made)))
        self.end_headers()
        self.wfile.write(made)

    @staticmethod
    def scripted(path: str, query: str, ask: dict[str, Any], script: Script) -> bytes:
        route = find("POST", path)
        return b"".join(route.build(route.read(ask, path, query), script).events)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def turning() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Turning)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def plain(value: Any) -> Any:
    """Without the padding of OpenAI's streams, and the empty `annotations` that the scripted provider leaves out."""
    if isinstance(value, dict):
        return {
            name: plain(inner)
            for name, inner in value.items()
            if name != "obfuscation" and (name != "annotations" or inner)
        }
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def compare(case: Case, direct: Any, through: Any) -> None:
    check(case, through)
    if not case.variant.stream:
        assert plain(through) == plain(direct)
        return
    # A stream comes in other pieces; what they amount to, and its last word, is the same.
    for name in ("text", "thoughts"):
        assert "".join(through[name]) == "".join(direct[name])
    assert through["tools"] == direct["tools"]
    ends = [plain(result["events"][-1]) for result in (direct, through)]
    if case.call.startswith("gemini"):
        for end in ends:
            del end["candidates"][0]["content"]
    if case.id == "node.openai.chat-stream-reasoning":
        # This SDK keeps the last piece of a field that it does not know; here that is all of it.
        assert ends[1]["choices"][0]["message"]["reasoning_content"] == THOUGHTS
        ends[0]["choices"][0]["message"]["reasoning_content"] = THOUGHTS
    assert ends[1] == ends[0]


@pytest.mark.parametrize("case", PYTHON, ids=lambda case: case.id)
def test_python(case: Case, provider: Provider, turning: str) -> None:
    compare(case, run(case, provider.url, paced=False), run(case, turning, paced=False))


@pytest.fixture(scope="module")
def in_node(node: None, provider: Provider, turning: str) -> dict[tuple[str, str], Any]:
    work = [(sdk, base) for sdk in {sdk for sdk, _ in NODE} for base in (provider.url, turning)]

    def ask(item: tuple[str, str]) -> dict[str, Any]:
        return run_node(*item, [case for sdk, case in NODE if sdk == item[0]], paced=False)

    results = zip(work, at_once(ask, work), strict=True)
    return {(base, name): made for (_, base), result in results for name, made in result.items()}


@pytest.mark.parametrize("case", NODE, ids=lambda case: case[1].id)
def test_node(
    case: tuple[str, Case], in_node: dict[tuple[str, str], Any], provider: Provider, turning: str
) -> None:
    compare(case[1], in_node[provider.url, case[1].id], in_node[turning, case[1].id])


def test_a_refreshed_stream_still_folds() -> None:
    ask = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
    stream = Turning.scripted("/v1/chat/completions", "", ask, Script())
    whole = orjson.loads(fold("openai.chat", refreshed("openai.chat", stream, None, 1_800_000_000)) or b"")
    assert whole["id"] != "chatcmpl-scripted"
    assert whole["created"] == 1_800_000_000
