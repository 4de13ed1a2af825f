"""OpenAI's chat completions, legacy completions, embeddings and model list."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Mapping

from sidecar.scripted.answers.base import (
    EVENT_STREAM,
    JSON,
    Answer,
    Ask,
    answer,
    dumps,
    event_stream,
    listed,
    mapped,
    plain,
    sse,
)
from sidecar.scripted.script import ARGUMENTS, Script, content, produced, thoughts

REQUEST = (("x-request-id", "req_scripted"), ("openai-version", "2020-10-01"), ("openai-processing-ms", "7"))
LIMITS = (("x-ratelimit-limit-requests", "10000"), ("x-ratelimit-remaining-requests", "9999"))
LIMITED = (
    ("Retry-After", "1"),
    ("x-ratelimit-limit-requests", "10000"),
    ("x-ratelimit-remaining-requests", "0"),
    ("x-ratelimit-reset-requests", "1s"),
)
HEADERS = EVENT_STREAM + REQUEST + LIMITS
FINISH = {"stop": "stop", "length": "length", "refusal": "content_filter"}
TYPES = {
    401: ("invalid_request_error", "invalid_api_key"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
}
FAILED = {"message": "The server had an error while processing your request.", "type": "server_error"}
ERROR = sse(dumps({"error": {**FAILED, "param": None, "code": "server_error"}}))


def ask(body: Mapping[str, object], path: str, query: str) -> Ask:
    options = mapped(body.get("stream_options"))
    given = body.get("input")
    inputs = listed(given) if isinstance(given, list) else [given]
    if inputs and all(isinstance(item, int) for item in inputs):
        inputs = [inputs]  # one text, given as its tokens
    dims = body.get("dimensions")
    return plain(body, path, query)._replace(
        usage=options.get("include_usage") is True,
        obfuscation=options.get("include_obfuscation") is not False,
        inputs=tuple(str(item) for item in inputs),
        dims=dims if isinstance(dims, int) else 0,
        base64=body.get("encoding_format") == "base64",
    )


def refuse(status: int, message: str, _ask: Ask) -> Answer:
    kind, code = TYPES.get(status, ("invalid_request_error" if status < 500 else "server_error", None))
    headers = JSON + REQUEST + (LIMITED if status in (429, 529) else LIMITS)
    return answer({"error": {"message": message, "type": kind, "param": None, "code": code}}, status, headers)


def usage(script: Script) -> dict[str, object]:
    """The usage object of chat and of legacy completions."""
    out = script.reasoning + produced(script)
    return {
        "prompt_tokens": script.prompt,
        "completion_tokens": out,
        "total_tokens": script.prompt + out,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": script.reasoning, "audio_tokens": 0},
    }


def pad(ask: Ask, i: int) -> dict[str, object]:
    """OpenAI's padding against guessing tokens by their length; here it is the same in every run."""
    return {"obfuscation": "Xk9aQz3mBv7cLw"[: 4 + i * 7 % 11]} if ask.obfuscation else {}


def chat(ask: Ask, script: Script) -> Answer:
    finish = "tool_calls" if script.tool else FINISH[script.finish]
    base: dict[str, object] = {"created": script.created, "model": ask.model, "service_tier": "default"}
    base = {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        **base,
        "system_fingerprint": "fp_scripted",
    }
    call = {"id": "call_scripted", "type": "function"}
    if not ask.stream:
        message: dict[str, object] = {
            "role": "assistant",
            "content": "".join(content(script)),
            "refusal": None,
        }
        if script.reasoning:
            message["reasoning_content"] = "".join(thoughts(script))
        if script.tool:
            function = {"name": ask.tool, "arguments": "".join(ARGUMENTS)}
            message.update(content=None, tool_calls=[{**call, "function": function}])
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return answer({**base, "choices": [choice], "usage": usage(script)}, headers=JSON + REQUEST + LIMITS)

    deltas: list[dict[str, object]] = [
        {"role": "assistant", "content": None if script.tool else "", "refusal": None}
    ]
    deltas += [{"reasoning_content": text} for text in thoughts(script)]
    if script.tool:
        deltas.append({"tool_calls": [{"index": 0, **call, "function": {"name": ask.tool, "arguments": ""}}]})
        deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": part}}]} for part in ARGUMENTS]
    else:
        deltas += [{"content": text} for text in content(script)]
    deltas.append({})
    base["object"] = "chat.completion.chunk"
    pending: dict[str, object] = {"usage": None} if ask.usage else {}
    events = []
    for i, delta in enumerate(deltas):
        ended = finish if i == len(deltas) - 1 else None
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": ended}
        events.append(sse(dumps({**base, "choices": [choice], **pending, **pad(ask, i)})))
    if ask.usage:
        events.append(sse(dumps({**base, "choices": [], "usage": usage(script), **pad(ask, len(deltas))})))
    return event_stream([*events, sse("[DONE]")], script, headers=HEADERS, error=ERROR)


def completions(ask: Ask, script: Script) -> Answer:
    base = {"id": "cmpl-scripted", "object": "text_completion", "created": script.created, "model": ask.model}
    texts, finish = content(script), FINISH[script.finish]

    def choice(text: str, ended: str | None) -> dict[str, object]:
        return {**base, "choices": [{"text": text, "index": 0, "logprobs": None, "finish_reason": ended}]}

    plain_script = Script(tokens=len(texts), prompt=script.prompt)
    if not ask.stream:
        return answer(
            {**choice("".join(texts), finish), "usage": usage(plain_script)}, headers=JSON + REQUEST
        )
    pending: dict[str, object] = {"usage": None} if ask.usage else {}
    events = [sse(dumps({**choice(text, None), **pending, **pad(ask, i)})) for i, text in enumerate(texts)]
    events.append(sse(dumps({**choice("", finish), **pending, **pad(ask, len(texts))})))
    if ask.usage:
        events.append(sse(dumps({**base, "choices": [], "usage": usage(plain_script)})))
    return event_stream([*events, sse("[DONE]")], script, headers=HEADERS, error=ERROR)


def vector(text: str, dims: int) -> list[float]:
    """A unit-free vector that depends on the text alone; every number is exact as a 32-bit float."""
    seed = hashlib.shake_128(text.encode("utf-8", "surrogatepass")).digest(dims * 2)
    return [n / 32768 for n in struct.unpack(f"<{dims}h", seed)]


def embeddings(ask: Ask, script: Script) -> Answer:
    data: list[object] = []
    for i, text in enumerate(ask.inputs):
        numbers = vector(text, ask.dims or script.dims)
        packed = base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
        data.append({"object": "embedding", "index": i, "embedding": packed if ask.base64 else numbers})
    tokens = {"prompt_tokens": script.prompt, "total_tokens": script.prompt}
    return answer(
        {"object": "list", "data": data, "model": ask.model, "usage": tokens}, headers=JSON + REQUEST
    )


def models(_ask: Ask, script: Script) -> Answer:
    names = ("scripted", "scripted-mini")
    listing = [{"id": n, "object": "model", "created": script.created, "owned_by": "scripted"} for n in names]
    return answer({"object": "list", "data": listing}, headers=JSON + REQUEST)
