"""OpenAI chat completions and legacy completions, and everyone who speaks them."""

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
from sidecar.core.dialects.turns import last_words, one_line
from sidecar.core.types import DeltaKind, Fault

_REASONING = ("reasoning_content", "reasoning", "thinking")
"""DeepSeek and vLLM, OpenRouter, others: nobody agreed on a name."""


def read_usage(usage: object, facts: Facts) -> None:
    """`usage` of chat, completions and embeddings."""
    if not isinstance(usage, dict):
        return
    facts.input_tokens = count(usage.get("prompt_tokens"))
    facts.output_tokens = count(usage.get("completion_tokens"))
    details = usage.get("prompt_tokens_details")
    if isinstance(details, dict):
        facts.cached_input_tokens = count(details.get("cached_tokens"))
    details = usage.get("completion_tokens_details")
    if isinstance(details, dict):
        facts.reasoning_tokens = count(details.get("reasoning_tokens"))


class OpenAI(Dialect):
    """What chat and legacy completions share."""

    provider = "openai"
    keepalive = b": keepalive\n"
    ids = True
    finishes = frozenset({"stop", "tool_calls", "function_call"})
    mode_fields = ("stream", "stream_options")

    def read(self, data: bytes, facts: Facts) -> DeltaKind | None:
        if data == b"[DONE]":
            facts.terminal = True
            return None
        event = loads(data)
        error = event.get("error")
        if error:
            facts.error = error_name(error)
            return None
        facts.model = facts.model or text(event.get("model"))
        if event.get("usage"):
            read_usage(event["usage"], facts)
        kind: DeltaKind | None = None
        for choice in event["choices"]:
            facts.begun.add(choice.get("index", 0))
            if choice.get("finish_reason"):
                facts.ends(choice["finish_reason"])
                facts.finished.add(choice.get("index", 0))
            brings = self.delta(choice, facts)
            kind = kind or brings
        return kind

    def delta(self, choice: Json, facts: Facts) -> DeltaKind | None:
        """What one choice of a chunk carries."""
        raise NotImplementedError(self.name)  # reason: a dialect without it is a programming error

    def whole(self, body: Json, facts: Facts) -> None:
        facts.model = text(body.get("model"))
        read_usage(body.get("usage"), facts)
        for choice in body["choices"]:
            facts.begun.add(choice.get("index", 0))
            if choice.get("finish_reason"):
                facts.ends(choice["finish_reason"])
                facts.finished.add(choice.get("index", 0))
            message = choice.get("message") or {}
            facts.refused = facts.refused or bool(message.get("refusal"))
            facts.tools = facts.tools or bool(message.get("tool_calls") or message.get("function_call"))
            facts.terminal = True

    def error_body(self, fault: Fault, status: int) -> bytes:
        return dumps(openai_error(fault, status))


class Chat(OpenAI):
    name = "openai.chat"
    operation = "chat"

    def matches(self, path: str) -> bool:
        return path.endswith("/chat/completions")

    def delta(self, choice: Json, facts: Facts) -> DeltaKind | None:
        delta = choice.get("delta") or {}
        if delta.get("tool_calls") or delta.get("function_call"):
            facts.tools = True
        elif delta.get("refusal"):
            facts.refused = True
        if delta.get("content") or delta.get("refusal") or delta.get("audio"):
            return "content"
        if delta.get("tool_calls") or delta.get("function_call"):
            return "tool"
        return "reasoning" if any(delta.get(name) for name in _REASONING) else None

    def question(self, body: Json) -> Path | None:
        return last_words(body.get("messages"), ("messages",), "text")

    def said(self, body: Json) -> tuple[list[str], list[str]]:
        texts, calls = [], []
        for choice in body["choices"]:
            message = choice["message"]
            texts.append(text(message.get("content")) or text(message.get("refusal")) or "")
            if message.get("function_call"):
                calls.append(message["function_call"])
            calls += [call.get("function") for call in message.get("tool_calls") or ()]
        return texts, [dumps(call).decode() for call in calls]


class Completions(OpenAI):
    name = "openai.completions"
    operation = "text_completion"

    def matches(self, path: str) -> bool:
        return path.endswith("/completions") and not path.endswith("/chat/completions")

    def delta(self, choice: Json, facts: Facts) -> DeltaKind | None:
        return "content" if choice.get("text") else None

    def question(self, body: Json) -> Path | None:
        return one_line(body, "prompt")

    def said(self, body: Json) -> tuple[list[str], list[str]]:
        return [choice["text"] for choice in body["choices"]], []


class Embeddings(Dialect):
    """`.../embeddings`; never a stream."""

    name = "openai.embeddings"
    provider = "openai"
    operation = "embeddings"
    asks = False
    framing = None

    def matches(self, path: str) -> bool:
        return path.endswith("/embeddings")

    def whole(self, body: Json, facts: Facts) -> None:
        facts.model = text(body.get("model"))
        read_usage(body.get("usage"), facts)
        facts.terminal = "data" in body

    def error_body(self, fault: Fault, status: int) -> bytes:
        return dumps(openai_error(fault, status))


DIALECTS = (Chat(), Completions(), Embeddings())
