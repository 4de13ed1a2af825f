"""Gemini: streams by path, SSE only with `alt=sse`, and no end marker but a finish reason."""

from sidecar.core.dialects.base import (
    Dialect,
    Facts,
    Framing,
    Json,
    Path,
    count,
    dumps,
    error_name,
    loads,
    number,
    text,
)
from sidecar.core.errors import sentence
from sidecar.core.types import DeltaKind, Fault, Intent

_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_CALLS = ("functionCall", "executableCode", "codeExecutionResult")


class Gemini(Dialect):
    name = "gemini.generate_content"
    provider = "gcp.gemini"
    operation = "generate_content"
    keepalive = b"\n"
    finishes = frozenset({"STOP"})
    marked = False
    mode_fields = ()

    def matches(self, path: str) -> bool:
        return path.endswith((":generateContent", ":streamGenerateContent"))

    def framing_of(self, query: str) -> Framing:
        return "sse" if "alt=sse" in query.split("&") else "array"

    def intent(self, path: str, body: Json) -> Intent:
        model, _, verb = path.rpartition("/")[2].partition(":")
        settings = body.get("generationConfig")
        heat = number(settings.get("temperature")) if isinstance(settings, dict) else None
        return Intent(model or None, stream=verb == "streamGenerateContent", temperature=heat)

    def modeless(self, target: bytes) -> bytes:
        path, _, query = target.partition(b"?")
        if query.count(b"alt=") > 1:
            return target  # which of them counts?
        kept = [part for part in query.split(b"&") if part and part not in (b"alt=sse", b"alt=json")]
        path = path.replace(b":streamGenerateContent", b":generateContent")
        return path + b"?" + b"&".join(kept) if kept else path

    def read(self, data: bytes, facts: Facts) -> DeltaKind | None:
        event = loads(data)
        if event.get("error"):
            facts.error = error_name(event["error"])
            return None
        return self._chunk(event, facts)

    def whole(self, body: Json, facts: Facts) -> None:
        self._chunk(body, facts)

    @staticmethod
    def _chunk(event: Json, facts: Facts) -> DeltaKind | None:
        facts.model = text(event.get("modelVersion")) or facts.model
        usage = event.get("usageMetadata")
        if isinstance(usage, dict):
            facts.input_tokens = count(usage.get("promptTokenCount"))
            facts.cached_input_tokens = count(usage.get("cachedContentTokenCount"))
            facts.reasoning_tokens = count(usage.get("thoughtsTokenCount"))
            spoken = count(usage.get("candidatesTokenCount"))
            # Google counts thoughts beside the candidates, OpenTelemetry wants all output tokens.
            if spoken is not None or facts.reasoning_tokens is not None:
                facts.output_tokens = (spoken or 0) + (facts.reasoning_tokens or 0)
        blocked = (event.get("promptFeedback") or {}).get("blockReason")
        if blocked:
            facts.ends(text(blocked) or "BLOCKED")
        kind: DeltaKind | None = None
        for candidate in event.get("candidates") or ():
            facts.begun.add(candidate.get("index", 0))
            if candidate.get("finishReason"):
                facts.ends(text(candidate["finishReason"]))
                facts.finished.add(candidate.get("index", 0))
            for part in (candidate.get("content") or {}).get("parts") or ():
                brings = _part(part)
                facts.tools = facts.tools or brings == "tool"
                kind = kind or brings
        # There is no end marker: it is over when every candidate has said why it finished.
        facts.terminal = (
            facts.terminal or bool(blocked) or (bool(facts.finished) and facts.finished == facts.begun)
        )
        return kind

    def question(self, body: Json) -> Path | None:
        turns = body.get("contents")
        if not isinstance(turns, list) or not turns or not isinstance(turns[-1], dict):
            return None
        parts = turns[-1].get("parts")
        if turns[-1].get("role", "user") != "user" or not isinstance(parts, list) or not parts:
            return None
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
            return None
        if any(part.keys() - {"text"} for part in parts):
            return None
        return ("contents", len(turns) - 1, "parts", len(parts) - 1, "text")

    def said(self, body: Json) -> tuple[list[str], list[str]]:
        texts, calls = [], []
        for candidate in body["candidates"]:
            for part in candidate["content"]["parts"]:
                if part.get("thought"):
                    continue
                other = {name: part[name] for name in _CALLS if name in part}
                if other:
                    calls.append(dumps(other).decode())
                texts.append(part.get("text") or "")
        return texts, calls

    def error_body(self, fault: Fault, status: int) -> bytes:
        code = _STATUS.get(status, "UNAVAILABLE" if status >= 500 else "FAILED_PRECONDITION")
        return dumps({"error": {"code": status, "message": sentence(fault), "status": code}})


def _part(part: Json) -> DeltaKind | None:
    if any(name in part for name in _CALLS):
        return "tool"
    if part.get("text"):
        return "reasoning" if part.get("thought") else "content"
    return "content" if "inlineData" in part else None


DIALECTS = (Gemini(),)
