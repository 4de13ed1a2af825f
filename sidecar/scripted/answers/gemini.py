"""Google's Gemini: an event stream with `alt=sse`, otherwise an array that grows, or one object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import parse_qs

from sidecar.scripted.answers.base import Answer, Ask, Json, dumps, event_stream, first_tool, sse
from sidecar.scripted.script import Script, content, thoughts

JSON = (("Content-Type", "application/json; charset=UTF-8"), ("Vary", "Origin"), ("Vary", "X-Origin"))
EVENT_STREAM = (
    ("Content-Type", "text/event-stream"),
    ("Content-Disposition", "attachment"),
    ("Vary", "Origin"),
)
FINISH = {"stop": "STOP", "length": "MAX_TOKENS", "refusal": "SAFETY"}
STATUS = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND"}
STATUS |= {429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}
FAILED = {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}


def ask(body: Mapping[str, object], path: str, query: str) -> Ask:
    model, _, method = path.rpartition("/")[2].partition(":")
    sse_wanted = parse_qs(query).get("alt") == ["sse"]
    return Ask(model=model, stream=method == "streamGenerateContent", sse=sse_wanted, tool=first_tool(body))


def refuse(status: int, message: str, ask: Ask) -> Answer:
    name = STATUS.get(status, "INVALID_ARGUMENT" if status < 500 else "INTERNAL")
    error: object = {"error": {"code": status, "message": message, "status": name}}
    if ask.stream and not ask.sse:
        error = [error]
    retry = (("Retry-After", "1"),) if status in (429, 529) else ()
    return Answer((_pretty(error) + b"\n",), JSON + retry, status)


def generate(ask: Ask, script: Script) -> Answer:
    parts: list[Json] = [{"text": text, "thought": True} for text in thoughts(script)]
    if script.tool:
        parts.append({"functionCall": {"name": ask.tool, "args": {"city": "Paris", "days": 3}}})
    else:
        parts += [{"text": text} for text in content(script) or ("",)]
    if not ask.stream:
        return Answer((_pretty(_chunk(ask, script, _merged(parts), len(parts), end=True)) + b"\n",), JSON)
    last = len(parts) - 1
    chunks = [_chunk(ask, script, [part], i + 1, end=i == last) for i, part in enumerate(parts)]
    if ask.sse:
        error = sse(json.dumps(FAILED))
        events = [sse(json.dumps(chunk)) for chunk in chunks]
        return event_stream(events, script, headers=EVENT_STREAM, error=error, newline="\r\n")
    texts = [(b"[" if i == 0 else b",\r\n") + _pretty(chunk) + b"\n" for i, chunk in enumerate(chunks)]
    return Answer((*texts, b"]"), JSON, stream=True, error=b",\r\n" + _pretty(FAILED) + b"\n]")


def _chunk(ask: Ask, script: Script, parts: list[Json], done: int, *, end: bool) -> Json:
    """`done`: parts written so far. Usage is cumulative; a function call counts as one token."""
    thought = min(done, script.reasoning)
    counts = {"promptTokenCount": script.prompt, "candidatesTokenCount": done - thought}
    if thought:
        counts["thoughtsTokenCount"] = thought
    counts["totalTokenCount"] = script.prompt + done
    details = [{"modality": "TEXT", "tokenCount": script.prompt}]
    candidate: dict[str, object] = {"content": {"parts": parts, "role": "model"}}
    if end:
        candidate["finishReason"] = FINISH[script.finish]
    candidate["index"] = 0
    usage = {**counts, "promptTokensDetails": details}
    return {
        "candidates": [candidate],
        "usageMetadata": usage,
        "modelVersion": ask.model,
        "responseId": "scripted",
    }


def _merged(parts: list[Json]) -> list[Json]:
    """Neighbouring texts of one kind as one part, as an answer in one piece has them."""
    merged: list[dict[str, object]] = []
    for part in parts:
        if merged and "text" in part and merged[-1].get("thought") == part.get("thought"):
            merged[-1]["text"] = f"{merged[-1]['text']}{part['text']}"
        else:
            merged.append(dict(part))
    return list(merged)


def _pretty(value: object) -> bytes:
    return json.dumps(value, indent=2).encode()


def models(_ask: Ask, _script: Script) -> Answer:
    names = [{"name": "models/scripted", "supportedGenerationMethods": ["generateContent"]}]
    return Answer((dumps({"models": names}),), JSON)
