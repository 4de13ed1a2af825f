"""Ollama: NDJSON, streaming unless told otherwise, `"done": true` at the end."""

from typing import ClassVar

from sidecar.core.dialects.base import (
    Dialect,
    Facts,
    Framing,
    Json,
    Path,
    count,
    dumps,
    loads,
    number,
    text,
)
from sidecar.core.dialects.turns import last_words, one_line
from sidecar.core.errors import sentence
from sidecar.core.types import DeltaKind, Fault, Intent


class Ollama(Dialect):
    """What chat and generate share."""

    provider = "ollama"
    framing: ClassVar[Framing | None] = "ndjson"
    keepalive = b" "
    finishes = frozenset({"stop"})
    path: ClassVar[str]

    def matches(self, path: str) -> bool:
        return path.endswith(self.path)

    def intent(self, path: str, body: Json) -> Intent:
        options = body.get("options")
        heat = number(options.get("temperature")) if isinstance(options, dict) else None
        return Intent(text(body.get("model")), stream=body.get("stream") is not False, temperature=heat)

    def read(self, data: bytes, facts: Facts) -> DeltaKind | None:
        line = loads(data)
        if line.get("error"):
            facts.error = "error"
            return None
        self._common(line, facts)
        facts.terminal = facts.terminal or line.get("done") is True
        return self.delta(line)

    def delta(self, line: Json) -> DeltaKind | None:
        """What one line carries."""
        raise NotImplementedError(self.name)  # reason: a dialect without it is a programming error

    def whole(self, body: Json, facts: Facts) -> None:
        self._common(body, facts)
        facts.terminal = body.get("done") is True

    @staticmethod
    def _common(line: Json, facts: Facts) -> None:
        facts.tools = facts.tools or bool((line.get("message") or {}).get("tool_calls"))
        facts.model = text(line.get("model")) or facts.model
        if line.get("done") is True:
            facts.ends(line.get("done_reason"))
            facts.input_tokens = count(line.get("prompt_eval_count"))
            facts.output_tokens = count(line.get("eval_count"))

    def error_body(self, fault: Fault, status: int) -> bytes:
        return dumps({"error": sentence(fault)})

    def error_frame(self, fault: Fault, status: int, upstream: bytes | None = None) -> bytes:
        return (upstream or self.error_body(fault, status)) + b"\n"


class Chat(Ollama):
    name = "ollama.chat"
    operation = "chat"
    path = "/api/chat"

    def delta(self, line: Json) -> DeltaKind | None:
        message = line.get("message") or {}
        if message.get("content"):
            return "content"
        if message.get("tool_calls"):
            return "tool"
        return "reasoning" if message.get("thinking") else None

    def question(self, body: Json) -> Path | None:
        found = last_words(body.get("messages"), ("messages",), "text")
        return None if found is None or body["messages"][-1].get("images") else found

    def said(self, body: Json) -> tuple[list[str], list[str]]:
        message = body["message"]
        calls = [dumps(call.get("function")).decode() for call in message.get("tool_calls") or ()]
        return [message.get("content") or ""], calls


class Generate(Ollama):
    name = "ollama.generate"
    operation = "text_completion"
    path = "/api/generate"

    def delta(self, line: Json) -> DeltaKind | None:
        if line.get("response"):
            return "content"
        return "reasoning" if line.get("thinking") else None

    def question(self, body: Json) -> Path | None:
        return None if body.get("images") or body.get("raw") else one_line(body, "prompt")

    def said(self, body: Json) -> tuple[list[str], list[str]]:
        return [body["response"]], []


class Embed(Ollama):
    """`/api/embed`; never a stream."""

    name = "ollama.embed"
    framing = None
    finishes = frozenset()
    operation = "embeddings"
    asks = False
    path = "/api/embed"

    def intent(self, path: str, body: Json) -> Intent:
        return Intent(model=text(body.get("model")))

    def whole(self, body: Json, facts: Facts) -> None:
        facts.model = text(body.get("model"))
        facts.input_tokens = count(body.get("prompt_eval_count"))
        facts.terminal = "embeddings" in body


DIALECTS = (Chat(), Generate(), Embed())
