"""What is asked of every SDK: the variants, and what must come of each. Shared by the Python and the Node tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

TOKENS = 4
TEXT = "amber birch cedar delta"
THOUGHTS = "river spruce"
TOOL = {"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}
PACE = {"first": 0.1, "interval": 0.06}
"""Slower than the keepalives of the sidecar under test, so that they land before and between the events."""

Outcome = Literal["ok", "status", "error", "lost"]


@dataclass(frozen=True)
class Variant:
    """`outcome`: ok; an error status; an error event in mid-stream; or an upstream that is lost."""

    name: str
    script: dict[str, Any] = field(default_factory=dict)
    outcome: Outcome = "ok"
    stream: bool = False

    @property
    def tool(self) -> bool:
        return bool(self.script.get("tool"))

    def headers(self, *, paced: bool) -> dict[str, str]:
        pace = PACE if paced and self.stream else {}
        return {"X-Scripted": json.dumps({"tokens": TOKENS, **self.script, **pace})}


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("answer"),
        Variant("answer-tool", {"tool": True}),
        Variant("answer-reasoning", {"reasoning": 2}),
        Variant("answer-400", {"status": 400}, "status"),
        Variant("answer-429", {"status": 429}, "status"),
        Variant("answer-500", {"status": 500}, "status"),
        Variant("stream", stream=True),
        Variant("stream-tool", {"tool": True}, stream=True),
        Variant("stream-reasoning", {"reasoning": 2}, stream=True),
        Variant("stream-429", {"status": 429}, "status", stream=True),
        Variant("stream-error", {"fault": "error", "at": 0.6}, "error", stream=True),
        Variant("stream-eof", {"fault": "eof", "at": 0.6}, "lost", stream=True),
        Variant("stream-fin", {"fault": "fin", "at": 0.6}, "lost", stream=True),
        Variant("stream-reset", {"fault": "reset", "at": 0.6}, "lost", stream=True),
    )
}
STREAMS = [name for name, variant in VARIANTS.items() if variant.stream]
STATUSES = ["answer", "answer-400", "answer-429", "answer-500"]
TEXTS = [name for name in VARIANTS if not name.endswith(("-tool", "-reasoning"))]


@dataclass(frozen=True)
class Case:
    """One call of one SDK under one variant. Its id is also the model's name, by which its log line is found."""

    call: str
    variant: Variant
    origin: str = ""
    """Sets apart calls of one name in two languages."""

    @property
    def logged(self) -> bool:
        """Whether the log line has the model. Ollama's embeddings are no format that the sidecar reads."""
        return self.call != "ollama.embed"

    @property
    def id(self) -> str:
        return f"{self.origin}{self.call}-{self.variant.name}"


def check(case: Case, result: dict[str, Any]) -> None:
    """That an SDK's result is what the script says, so that two equal results are not equally empty."""
    variant, error = case.variant, result["error"]
    assert result["events"] or variant.outcome != "ok"
    match variant.outcome:
        case "ok":
            assert error is None
            if variant.tool:
                assert result["tools"] == [TOOL]
            elif "embed" not in case.call:
                assert "".join(result["text"]) == TEXT
            if variant.script.get("reasoning"):
                assert "".join(result["thoughts"]) == THOUGHTS
        case "status":
            assert error is not None
            assert error["status"] in (variant.script["status"], None)
            assert f"scripted error {variant.script['status']}" in error["message"]
        case "error" | "lost":
            assert error is not None, "an incomplete answer was taken for a whole one"
            text = "".join(result["text"])
            assert text
            assert TEXT.startswith(text)


def compare(case: Case, direct: dict[str, Any], through: dict[str, Any]) -> None:
    """That the sidecar made no difference, but where an upstream was lost: that must not look like success."""
    check(case, through)
    if case.variant.outcome == "lost":
        assert through["text"] == direct["text"]
    else:
        assert through == direct


def check_line(case: Case, line: dict[str, Any]) -> None:
    """That the request's log line says how it ended."""
    wanted = {"ok": "complete", "lost": "truncated"}.get(case.variant.outcome)
    assert wanted in (None, line["outcome"])


def check_keepalives(cases: list[Case], request: Callable[[str], dict[str, Any]]) -> None:
    """That keepalives were among what the SDK read; counted over all streams of a call, as a busy machine may
    leave no gap in a single one."""
    streams = [case for case in cases if case.variant.stream and case.variant.outcome != "status"]
    assert sum(request(case.id)["keepalives"] for case in streams) >= len(streams) > 0
