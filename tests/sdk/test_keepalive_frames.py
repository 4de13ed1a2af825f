"""What may be written into a stream, shown on the SDKs themselves.

The frames the sidecar writes are harmless before every event of an answer, the first one included, with the sidecar's
event ids and without. The variations that look as harmless are not: each of them breaks a client, and is here so that
nobody tidies a frame up into one. A fact that fails here has changed with an SDK's release.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from sidecar.scripted import Connection, Received, Script
from sidecar.scripted.answers import find
from sidecar.scripted.script import override

from .calls import CASES as PYTHON_CASES
from .calls import run
from .cases import Case, check
from .rig import NODE_CASES, Provider, at_once, run_node

pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

COMMENT = b": keepalive\n"
PING = b'event: ping\ndata: {"type": "ping"}\n\n'
DIALECTS = {
    "openai": COMMENT,
    "ai.openai": COMMENT,
    "anthropic": PING,
    "ai.anthropic": PING,
    "gemini": b"\r\n",
    "ollama": b" ",
}
WITH_IDS = ("openai", "ai.openai", "anthropic", "ai.anthropic")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nConnection: close\r\n\r\n"
PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/api/chat",
    "/api/generate",
)


def dialect(case: Case) -> str:
    return next(name for name in DIALECTS if case.call.startswith(name))


def whole(case: Case) -> bool:
    return case.variant.stream and case.variant.outcome == "ok"


NODE = [case for _, case in NODE_CASES if whole(case)]
PYTHON = [case for case in PYTHON_CASES if whole(case)]


async def framed(connection: Connection, received: Received) -> None:
    """A stream as the provider gives it, with other bytes before each event and after the last one.

    The headers `X-Before`, `X-After` (hexadecimal) and `X-Ids` say which.
    """
    before, after = (
        bytes.fromhex((received.header(name) or b"").decode()) for name in ("X-Before", "X-After")
    )
    ids = (received.header("X-Ids") or b"").decode()
    route = find(received.method, received.path)
    ask = route.read(orjson.loads(received.body), received.path, received.query)
    answer = route.build(ask, override(Script(), received.header("X-Scripted") or b"{}"))
    kind = dict(answer.headers)["Content-Type"]
    await connection.send(HEAD % kind.encode())
    for i, event in enumerate(answer.events):
        await connection.send(before + (labelled(event, i) if ids else event))
    await connection.send(after)
    connection.close()


def labelled(event: bytes, i: int) -> bytes:
    """With the sidecar's id, as the last field."""
    return event[:-1] + b"id: c2NyaXB0ZWQ:%d\n\n" % i


@pytest.fixture(scope="module")
def framing() -> Iterator[Provider]:
    models = {case.id for case in PYTHON + NODE if dialect(case) == "gemini"}
    versions = ("v1", "v1beta")  # the one the Python SDK uses, and the one the JavaScript SDK uses
    gemini = [f"/{version}/models/{model}:streamGenerateContent" for model in models for version in versions]
    with Provider() as running:
        for path in (*PATHS, *gemini):
            running.scripted.on(path, framed)
        yield running


def extra(before: bytes = b"", after: bytes = b"", *, ids: bool = False) -> dict[str, str]:
    return {"X-Before": before.hex(), "X-After": after.hex(), "X-Ids": "yes" if ids else ""}


def shapes(case: Case) -> list[dict[str, str]]:
    """The stream untouched, with keepalives, and where the dialect has them with ids too."""
    frame = DIALECTS[dialect(case)]
    framed = [extra(frame), *([extra(frame, ids=True)] if dialect(case) in WITH_IDS else [])]
    return [extra(), *framed]


def run_any(case: Case, base: str, headers: dict[str, str]) -> dict[str, Any]:
    if case.origin:
        return run_node(case.call.partition(".")[0], base, [case], paced=False, extra=headers)[case.id]
    return run(case, base, paced=False, extra=headers)


@pytest.mark.parametrize("case", PYTHON, ids=lambda case: case.id)
def test_harmless_in_python(case: Case, framing: Provider) -> None:
    plain, *others = [run(case, framing.url, paced=False, extra=headers) for headers in shapes(case)]
    check(case, plain)
    assert all(other == plain for other in others)


@pytest.mark.parametrize("sdk", dict.fromkeys(case.call.partition(".")[0] for case in NODE))
def test_harmless_in_node(sdk: str, node: None, framing: Provider) -> None:
    cases = [case for case in NODE if case.call.partition(".")[0] == sdk]
    by_headers: dict[str, tuple[dict[str, str], list[Case]]] = {}
    for case in cases:
        for headers in shapes(case):
            by_headers.setdefault(str(headers), (headers, []))[1].append(case)
    runs = at_once(
        lambda item: run_node(sdk, framing.url, item[1], paced=False, extra=item[0]), by_headers.values()
    )
    seen: dict[str, list[Any]] = {}
    for result in runs:
        for name, value in result.items():
            seen.setdefault(name, []).append(value)
    for case in cases:
        plain, *others = seen[case.id]
        check(case, plain)
        assert len(others) == len(shapes(case)) - 1
        assert all(other == plain for other in others), case.id


# Call, what is written before each event and after the last, ids or not, and what the SDK then raises. None: nothing,
# and part of the answer is gone.
BROKEN: list[tuple[str, bytes, bytes, bool, str | None]] = [
    # openai-python takes any blank line for an event once it has seen an id.
    ("openai.chat-stream", b": ping\n\n", b"", True, "JSONDecodeError"),
    ("openai.chat.async-stream", b": ping\n\n", b"", True, "JSONDecodeError"),
    ("openai.responses-stream", b": ping\n\n", b"", True, "JSONDecodeError"),
    ("openai.chat-stream", b"\n", b"", True, "JSONDecodeError"),
    ("openai.chat-stream", b"id: 1\n\n", b"", False, "JSONDecodeError"),
    ("openai.chat-stream", b"retry: 1000\n\n", b"", False, "JSONDecodeError"),
    # Only Anthropic's clients expect its pings.
    ("openai.completions-stream", PING, b"", False, "TypeError"),
    ("openai.responses-stream", PING, b"", False, "RuntimeError"),
    ("node.openai.chat-stream", PING, b"", False, "OpenAIError"),
    # google-genai reads nothing but blank lines and `data: `; the JavaScript one loses the event, tool call and all.
    ("gemini-stream", COMMENT, b"", False, "UnknownApiResponseError"),
    ("gemini.async-stream", COMMENT, b"", False, "UnknownApiResponseError"),
    ("gemini-stream", b"event: ping\r\n", b"", False, "UnknownApiResponseError"),
    ("gemini-stream", b"id: 1\r\n", b"", False, "UnknownApiResponseError"),
    ("gemini-stream", b" ", b"", False, "UnknownApiResponseError"),
    ("node.gemini-stream", COMMENT, b"", False, None),
    ("node.gemini-stream-tool", COMMENT, b"", False, None),
    ("node.gemini-stream", b"", COMMENT, False, "Error"),
    # ollama-python reads every line as JSON; a space in front is fine, a line of nothing else is not.
    ("ollama.chat-stream", b"\n", b"", False, "JSONDecodeError"),
    ("ollama.chat.async-stream", b"\n", b"", False, "JSONDecodeError"),
    ("ollama.chat-stream", b"", b" ", False, "JSONDecodeError"),
    ("ollama.generate-stream", b"", b"\n", False, "JSONDecodeError"),
    # A space in front of a field makes it another field.
    ("openai.chat-stream", b" ", b"", False, None),
    ("anthropic-stream", b" ", b"", False, "AssertionError"),
]


@pytest.mark.parametrize("broken", BROKEN, ids=str)
def test_variations_that_break(
    broken: tuple[str, bytes, bytes, bool, str | None], framing: Provider, request: pytest.FixtureRequest
) -> None:
    name, before, after, ids, kind = broken
    case = next(case for case in PYTHON + NODE if case.id == name)
    if case.origin:
        request.getfixturevalue("node")
    result = run_any(case, framing.url, extra(before, after, ids=ids))
    if kind is None:
        assert result["error"] is None
        assert not result["text"]
        assert not result["tools"]
    else:
        assert result["error"]["kind"] == kind
