"""OpenAI Responses: typed events, usage in the terminal one, no `[DONE]`."""

from sidecar.core.dialects.base import (
    Dialect,
    Facts,
    Json,
    Path,
    count,
    dumps,
    error_name,
    loads,
    openai_error,
    text,
)
from sidecar.core.dialects.turns import alone, last_words
from sidecar.core.types import DeltaKind, Fault

_TERMINAL = frozenset({"response.completed", "response.incomplete"})
_DELTAS: dict[str, DeltaKind] = {
    "response.output_text.delta": "content",
    "response.refusal.delta": "content",
    "response.audio.delta": "content",
    "response.image_generation_call.partial_image": "content",
    "response.reasoning_text.delta": "reasoning",
    "response.reasoning_summary_text.delta": "reasoning",
    "response.function_call_arguments.delta": "tool",
    "response.custom_tool_call_input.delta": "tool",
    "response.mcp_call_arguments.delta": "tool",
    "response.code_interpreter_call_code.delta": "tool",
}


class Responses(Dialect):
    name = "openai.responses"
    provider = "openai"
    operation = "chat"
    keepalive = b": keepalive\n"
    ids = True
    finishes = frozenset({"completed"})
    mode_fields = ("stream", "stream_options")

    def matches(self, path: str) -> bool:
        return path.endswith("/responses")

    def read(self, data: bytes, facts: Facts) -> DeltaKind | None:
        if data == b"[DONE]":  # some compatible servers add it
            return None
        event = loads(data)
        kind = event["type"]
        delta = _DELTAS.get(kind)
        if delta is not None:
            return delta
        if kind == "error":
            facts.error = error_name(event.get("error") or event)
        elif kind in _TERMINAL:
            facts.terminal = True
        elif kind in ("response.failed", "response.cancelled"):
            facts.error = error_name(event["response"].get("error"))
        if isinstance(event.get("response"), dict):
            self.whole(event["response"], facts)
        return None

    def whole(self, body: Json, facts: Facts) -> None:
        facts.model = text(body.get("model")) or facts.model
        usage = body.get("usage")
        if isinstance(usage, dict):
            facts.input_tokens = count(usage.get("input_tokens"))
            facts.output_tokens = count(usage.get("output_tokens"))
            facts.cached_input_tokens = count((usage.get("input_tokens_details") or {}).get("cached_tokens"))
            facts.reasoning_tokens = count((usage.get("output_tokens_details") or {}).get("reasoning_tokens"))
        facts.finish = status = text(body.get("status"))
        if status in ("completed", "incomplete"):
            facts.terminal = True
            facts.reasons.add(_reason(body) if status == "incomplete" else status)
            for item in body.get("output") or ():
                facts.tools = facts.tools or str(item.get("type")).endswith("_call")
                parts = item.get("content")
                if isinstance(parts, list) and any(part.get("type") == "refusal" for part in parts):
                    facts.refused = True

    def question(self, body: Json) -> Path | None:
        turns = body.get("input")
        typed = isinstance(turns, list) and turns and isinstance(turns[-1], dict) and turns[-1].get("type")
        if typed and typed != "message":
            return None
        return alone(body, "input") or last_words(turns, ("input",), "input_text")

    def said(self, body: Json) -> tuple[list[str], list[str]]:
        texts, calls = [], []
        for item in body["output"]:
            if item["type"] == "message":
                texts += [part.get("text") or part.get("refusal") or "" for part in item["content"]]
            elif item["type"].endswith("_call"):
                made = {name: item.get(name) for name in ("type", "name", "arguments", "input", "action")}
                calls.append(dumps(made).decode())
        return texts, calls

    def error_body(self, fault: Fault, status: int) -> bytes:
        return dumps(openai_error(fault, status))

    def error_frame(self, fault: Fault, status: int, upstream: bytes | None = None) -> bytes:
        error = openai_error(fault, status)
        if upstream is not None:
            given = loads(upstream)
            error = given if isinstance(given, dict) and given.get("error") else {"error": given}
        return b"event: error\ndata: " + dumps({"type": "error", **error}) + b"\n\n"


def _reason(response: Json) -> str:
    """Why a response is incomplete: `max_output_tokens`, `content_filter`."""
    return text((response.get("incomplete_details") or {}).get("reason")) or "incomplete"


DIALECTS = (Responses(),)
