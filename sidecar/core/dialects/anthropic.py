"""Anthropic Messages: typed events, cumulative usage, its own ping as keepalive."""

from sidecar.core.dialects.base import (
    Dialect,
    Facts,
    Json,
    Path,
    count,
    dumps,
    error_name,
    loads,
    text,
)
from sidecar.core.dialects.turns import last_words
from sidecar.core.errors import sentence
from sidecar.core.types import DeltaKind, Fault

_DELTAS: dict[str, DeltaKind] = {
    "text_delta": "content",
    "thinking_delta": "reasoning",
    "input_json_delta": "tool",
}
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Messages(Dialect):
    name = "anthropic.messages"
    provider = "anthropic"
    operation = "chat"
    keepalive = b'event: ping\ndata: {"type": "ping"}\n\n'
    ids = True
    finishes = frozenset({"end_turn", "stop_sequence", "tool_use"})

    def matches(self, path: str) -> bool:
        return path.endswith("/v1/messages")

    def read(self, data: bytes, facts: Facts) -> DeltaKind | None:
        event = loads(data)
        kind = event["type"]
        if kind == "content_block_delta":
            return self._delta(event["delta"])
        if kind == "content_block_start":
            facts.tools = facts.tools or event["content_block"]["type"].endswith("tool_use")
        elif kind == "message_start":
            facts.model = text(event["message"].get("model"))
            self._usage(event["message"].get("usage"), facts)
        elif kind == "message_delta":
            facts.ends(event["delta"].get("stop_reason"))
            self._usage(event.get("usage"), facts)
        elif kind == "message_stop":
            facts.terminal = True
        elif kind == "error":
            facts.error = error_name(event.get("error"))
        return None

    @staticmethod
    def _delta(delta: Json) -> DeltaKind | None:
        # Empty deltas open a block; only the first byte of something ends the wait.
        kind = _DELTAS.get(delta["type"])
        filled = delta.get("text") or delta.get("thinking") or delta.get("partial_json")
        return kind if filled else None

    def whole(self, body: Json, facts: Facts) -> None:
        facts.model = text(body.get("model"))
        facts.ends(body.get("stop_reason"))
        self._usage(body.get("usage"), facts)
        facts.terminal = isinstance(body.get("content"), list)
        facts.tools = any(block["type"].endswith("tool_use") for block in body.get("content") or ())

    def question(self, body: Json) -> Path | None:
        return last_words(body.get("messages"), ("messages",), "text")

    def said(self, body: Json) -> tuple[list[str], list[str]]:
        texts, calls = [], []
        for block in body["content"]:
            if block["type"] == "text":
                texts.append(block["text"])
            elif block["type"].endswith("tool_use"):
                calls.append(dumps([block["name"], block["input"]]).decode())
        return texts, calls

    @staticmethod
    def _usage(usage: object, facts: Facts) -> None:
        """`message_delta` repeats only some of the counts of `message_start`: keep the others."""
        if not isinstance(usage, dict):
            return
        facts.output_tokens = _known(usage, "output_tokens", facts.output_tokens)
        facts.cached_input_tokens = _known(usage, "cache_read_input_tokens", facts.cached_input_tokens)
        facts.written_input_tokens = _known(usage, "cache_creation_input_tokens", facts.written_input_tokens)
        facts.fresh_input_tokens = _known(usage, "input_tokens", facts.fresh_input_tokens)
        if facts.fresh_input_tokens is not None:
            # `input_tokens` is only what no cache took part in; OpenTelemetry wants all of it.
            cached = (facts.cached_input_tokens or 0) + (facts.written_input_tokens or 0)
            facts.input_tokens = facts.fresh_input_tokens + cached

    def error_body(self, fault: Fault, status: int) -> bytes:
        kind = _KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return dumps({"type": "error", "error": {"type": kind, "message": sentence(fault)}})

    def error_frame(self, fault: Fault, status: int, upstream: bytes | None = None) -> bytes:
        return b"event: error\ndata: " + (upstream or self.error_body(fault, status)) + b"\n\n"


def _known(usage: Json, name: str, before: int | None) -> int | None:
    now = count(usage.get(name))
    return before if now is None else now


DIALECTS = (Messages(),)
