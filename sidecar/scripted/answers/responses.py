"""OpenAI's Responses: the full sequence of events, each numbered, and the answer that they add up to."""

from __future__ import annotations

from sidecar.scripted.answers.base import JSON, Answer, Ask, Json, answer, dumps, event_stream, named, sse
from sidecar.scripted.answers.openai import HEADERS, LIMITS, REQUEST, pad
from sidecar.scripted.script import ARGUMENTS, Script, content, produced, thoughts

FAILED = {
    "type": "server_error",
    "code": "server_error",
    "message": "The server had an error.",
    "param": None,
}
ERROR = sse(dumps({"type": "error", "sequence_number": 999, "error": FAILED}), "error")


def responses(ask: Ask, script: Script) -> Answer:
    items = [
        *([_thinking(script)] if script.reasoning else []),
        _call(ask) if script.tool else _message(script),
    ]
    short = script.finish == "length"
    end = "incomplete" if short else "completed"
    final = {
        **_response(ask, script, end),
        "output": [item for item, _ in items],
        "usage": _usage(script),
        "incomplete_details": {"reason": "max_output_tokens"} if short else None,
    }
    if not ask.stream:
        return answer(final, headers=JSON + REQUEST + LIMITS)
    opening = _response(ask, script, "in_progress")
    events: list[Json] = [
        {"type": f"response.{name}", "response": opening} for name in ("created", "in_progress")
    ]
    for index, (item, steps) in enumerate(items):
        blank = {"status": "in_progress", "content": [], "arguments": "", "summary": []}
        begun = {**item, **{key: value for key, value in blank.items() if key in item}}
        events.append({"type": "response.output_item.added", "output_index": index, "item": begun})
        events += [{**step, "item_id": item["id"], "output_index": index} for step in steps]
        events.append({"type": "response.output_item.done", "output_index": index, "item": item})
    events.append({"type": f"response.{end}", "response": final})
    numbered = [
        {**event, "sequence_number": i, **(pad(ask, i) if "delta" in event else {})}
        for i, event in enumerate(events)
    ]
    return event_stream(named(numbered), script, headers=HEADERS, error=ERROR)


def _response(ask: Ask, script: Script, status: str) -> dict[str, object]:
    nothing = (
        "error",
        "incomplete_details",
        "instructions",
        "max_output_tokens",
        "previous_response_id",
        "usage",
    )
    return {
        "id": "resp_scripted",
        "object": "response",
        "created_at": script.created,
        "status": status,
        "model": ask.model,
        "output": [],
        **dict.fromkeys(nothing),
        "parallel_tool_calls": True,
        "reasoning": {"effort": None, "summary": None},
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "metadata": {},
    }


def _usage(script: Script) -> dict[str, object]:
    out = script.reasoning + produced(script)
    return {
        "input_tokens": script.prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": out,
        "output_tokens_details": {"reasoning_tokens": script.reasoning},
        "total_tokens": script.prompt + out,
    }


def _steps(
    part: str, text: str, deltas: tuple[str, ...], key: str, done: dict[str, object], **where: object
) -> list[dict[str, object]]:
    """A part's life: added, its deltas, the whole text, done."""
    extra: dict[str, object] = {"logprobs": []} if key == "text" and "output_text" in text else {}
    return [
        {"type": f"response.{part}.added", **where, "part": {**done, key: ""}},
        *({"type": f"response.{text}.delta", **where, "delta": delta, **extra} for delta in deltas),
        {"type": f"response.{text}.done", **where, key: "".join(deltas), **extra},
        {"type": f"response.{part}.done", **where, "part": done},
    ]


def _message(script: Script) -> tuple[dict[str, object], list[dict[str, object]]]:
    texts = content(script)
    if script.finish == "refusal":
        part: dict[str, object] = {"type": "refusal", "refusal": "".join(texts)}
        steps = _steps("content_part", "refusal", texts, "refusal", part, content_index=0)
    else:
        part = {"type": "output_text", "annotations": [], "logprobs": [], "text": "".join(texts)}
        steps = _steps("content_part", "output_text", texts, "text", part, content_index=0)
    status = "incomplete" if script.finish == "length" else "completed"
    item: dict[str, object] = {
        "id": "msg_scripted",
        "type": "message",
        "status": status,
        "content": [part],
        "role": "assistant",
    }
    return item, steps


def _thinking(script: Script) -> tuple[dict[str, object], list[dict[str, object]]]:
    texts = thoughts(script)
    part: dict[str, object] = {"type": "summary_text", "text": "".join(texts)}
    steps = _steps("reasoning_summary_part", "reasoning_summary_text", texts, "text", part, summary_index=0)
    item: dict[str, object] = {"id": "rs_scripted", "type": "reasoning", "summary": [part]}
    return item, steps


def _call(ask: Ask) -> tuple[dict[str, object], list[dict[str, object]]]:
    whole = "".join(ARGUMENTS)
    item: dict[str, object] = {
        "id": "fc_scripted",
        "type": "function_call",
        "status": "completed",
        "arguments": whole,
    }
    item.update(call_id="call_scripted", name=ask.tool)
    name = "response.function_call_arguments"
    steps: list[dict[str, object]] = [{"type": f"{name}.delta", "delta": part} for part in ARGUMENTS]
    return item, [*steps, {"type": f"{name}.done", "arguments": whole, "name": ask.tool}]
