"""Anthropic's Messages."""

from __future__ import annotations

from sidecar.scripted.answers.base import (
    EVENT_STREAM,
    JSON,
    Answer,
    Ask,
    Json,
    answer,
    dumps,
    event_stream,
    named,
    sse,
)
from sidecar.scripted.script import ARGUMENTS, Script, content, produced, thoughts

REQUEST = (("request-id", "req_scripted"), ("anthropic-ratelimit-requests-remaining", "99"))
LIMITED = (
    ("Retry-After", "1"),
    ("request-id", "req_scripted"),
    ("anthropic-ratelimit-requests-remaining", "0"),
    ("anthropic-ratelimit-requests-reset", "2030-01-01T00:00:00Z"),
)
FINISH = {"stop": "end_turn", "length": "max_tokens", "refusal": "refusal"}
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
OVERLOADED = {"details": None, "type": "overloaded_error", "message": "Overloaded"}
ERROR = sse(dumps({"type": "error", "error": OVERLOADED, "request_id": "req_scripted"}), "error")
SIGNATURE = "c2NyaXB0ZWQgc2lnbmF0dXJl"


def refuse(status: int, message: str, _ask: Ask) -> Answer:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    error = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_scripted"}
    return answer(error, status, JSON + (LIMITED if status in (429, 529) else REQUEST))


def messages(ask: Ask, script: Script) -> Answer:
    blocks = _blocks(ask, script)
    finish = "tool_use" if script.tool else FINISH[script.finish]
    out = script.reasoning + produced(script)
    counts: dict[str, object] = {
        "input_tokens": script.prompt,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    }
    message: dict[str, object] = {
        "id": "msg_scripted",
        "type": "message",
        "role": "assistant",
        "model": ask.model,
    }
    if not ask.stream:
        final = {
            **message,
            "content": [whole for _, _, whole in blocks],
            "stop_reason": finish,
            "stop_sequence": None,
        }
        final["usage"] = {**counts, "output_tokens": out, "service_tier": "standard"}
        return answer(final, headers=JSON + REQUEST)
    begun = {**message, "content": [], "stop_reason": None, "stop_sequence": None}
    begun["usage"] = {**counts, "output_tokens": 1, "service_tier": "standard"}
    events: list[Json] = [{"type": "message_start", "message": begun}]
    for index, (blank, deltas, _) in enumerate(blocks):
        events.append({"type": "content_block_start", "index": index, "content_block": blank})
        if index == 0:
            events.append({"type": "ping"})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    ended = {"stop_reason": finish, "stop_sequence": None}
    events.append({"type": "message_delta", "delta": ended, "usage": {**counts, "output_tokens": out}})
    events.append({"type": "message_stop"})
    return event_stream(named(events), script, headers=EVENT_STREAM + REQUEST, error=ERROR)


def _blocks(ask: Ask, script: Script) -> list[tuple[Json, list[Json], Json]]:
    """Per content block: how it starts, its deltas, and what they add up to."""
    blocks: list[tuple[Json, list[Json], Json]] = []
    if script.reasoning:
        texts = thoughts(script)
        thinking: list[Json] = [{"type": "thinking_delta", "thinking": text} for text in texts]
        thinking.append({"type": "signature_delta", "signature": SIGNATURE})
        whole = {"type": "thinking", "thinking": "".join(texts), "signature": SIGNATURE}
        blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, thinking, whole))
    if script.tool:
        call = {"type": "tool_use", "id": "toolu_scripted", "name": ask.tool, "input": {}}
        parts: list[Json] = [{"type": "input_json_delta", "partial_json": part} for part in ("", *ARGUMENTS)]
        blocks.append((call, parts, {**call, "input": {"city": "Paris", "days": 3}}))
    else:
        texts = content(script)
        deltas: list[Json] = [{"type": "text_delta", "text": text} for text in texts]
        blocks.append(({"type": "text", "text": ""}, deltas, {"type": "text", "text": "".join(texts)}))
    return blocks
