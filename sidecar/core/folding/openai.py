"""OpenAI chat completions: chunks and the whole answer they amount to.

A whole answer always has `usage`, so a stream without it (no `stream_options.include_usage`) is not folded.

Which keys a whole message has: `content` always, null if only tool calls or a refusal came. `refusal` if a
delta had that key. `annotations: []` if, besides, the chunks name a `service_tier` or `system_fingerprint`:
that is OpenAI itself, whose whole messages have it and whose streams do not; compatible servers have neither.
"""

from itertools import chain

from sidecar.core.dialects.base import Json
from sidecar.core.folding.base import events, joined, only, read, require, several, sse, text, write

SHARED = ("id", "object", "created", "model", "service_tier", "system_fingerprint")
"""What every chunk repeats."""
REASONING = ("reasoning_content", "reasoning", "thinking")
_CHUNK = {*SHARED, "choices", "usage", "obfuscation"}
_DELTA = {"role", "content", "refusal", "tool_calls", "function_call", *REASONING}
_MESSAGE = {*_DELTA, "annotations"}
_LOGPROBS = ("content", "refusal")
_CALL = {"index", "id", "type", "function"}
_FUNCTION = {"name", "arguments"}


def read_chunks(body: bytes, kind: str) -> tuple[Json, list[list[Json]], Json]:
    """What all chunks share, each choice's pieces, and the usage."""
    found = events(body)
    require(found and found[-1] == (b"", b"[DONE]") and not any(name for name, _ in found))
    chunks = [read(data) for _, data in found[:-1]]
    head = shared(chunks[0], kind)
    pieces: dict[int, list[Json]] = {}
    for chunk in chunks:
        only(chunk, _CHUNK)
        require(shared(chunk, kind) == head)
        for choice in chunk["choices"]:
            pieces.setdefault(choice["index"], []).append(choice)
    usages = [chunk.get("usage") for chunk in chunks]
    # Usage that is told more than once was not told in the end only: some servers count as they go.
    require(usages[-1] and not any(usages[:-1]) and isinstance(usages[-1], dict))
    require(pieces)
    return head, [pieces[index] for index in range(len(pieces))], chunks[-1]["usage"]


def shared(answer: Json, kind: str) -> Json:
    require(answer["object"] == kind and isinstance(answer["created"], int))
    require(isinstance(answer["id"], str) and isinstance(answer["model"], str))
    return {name: answer[name] for name in SHARED if name in answer}


def finish(pieces: list[Json]) -> str:
    """A choice is complete when it has said why, in its last piece."""
    require(all(piece.get("finish_reason") is None for piece in pieces[:-1]))
    return text(pieces[-1]["finish_reason"])


def whole_of(head: Json, kind: str, choices: list[Json], usage: Json) -> bytes:
    first = {**{name: head[name] for name in SHARED[:4]}, "object": kind}
    last = {name: head[name] for name in SHARED[4:] if name in head}
    return write({**first, "choices": choices, "usage": usage, **last})


def fold(body: bytes) -> bytes:
    head, choices, usage = read_chunks(body, "chat.completion.chunk")
    genuine = "service_tier" in head or "system_fingerprint" in head
    made = [
        {
            "index": index,
            "message": _message([piece["delta"] for piece in pieces], genuine=genuine),
            **_logprobs(pieces),
            "finish_reason": finish(pieces),
        }
        for index, pieces in enumerate(choices)
    ]
    return whole_of(head, "chat.completion", made, usage)


def _message(deltas: list[Json], *, genuine: bool) -> Json:
    for delta in deltas:
        only(delta, _DELTA)
    require({delta["role"] for delta in deltas if delta.get("role") is not None} == {"assistant"})
    content, refusal = joined(deltas, "content"), joined(deltas, "refusal")
    message: Json = {"role": "assistant", "content": content}
    for name in REASONING:
        if any(name in delta for delta in deltas):
            message[name] = text(joined(deltas, name))
    if any("tool_calls" in delta for delta in deltas):
        message["tool_calls"] = _tool_calls(deltas)
    if any("function_call" in delta for delta in deltas):
        message["function_call"] = _function(
            [delta["function_call"] for delta in deltas if "function_call" in delta]
        )
    # Beside a call or a refusal, an empty text may stand for null; without one, null says nothing at all.
    besides = refusal is not None or "tool_calls" in message or "function_call" in message
    require(content or (content is None) == besides)
    if any("refusal" in delta for delta in deltas):
        message["refusal"] = refusal
        if genuine:
            message["annotations"] = []
    return message


def _tool_calls(deltas: list[Json]) -> list[Json]:
    calls: dict[int, list[Json]] = {}
    for piece in chain.from_iterable(
        several(delta["tool_calls"]) for delta in deltas if "tool_calls" in delta
    ):
        only(piece, _CALL)
        calls.setdefault(piece["index"], []).append(piece)
    return [_tool_call(calls[index]) for index in range(len(calls))]


def _tool_call(pieces: list[Json]) -> Json:
    ident = text(pieces[0]["id"])
    require(pieces[0]["type"] == "function")
    for piece in pieces:
        require(piece.get("id") in (None, ident) and piece.get("type") in (None, "function"))
    return {"id": ident, "type": "function", "function": _function([piece["function"] for piece in pieces])}


def _function(pieces: list[Json]) -> Json:
    for piece in pieces:
        only(piece, _FUNCTION)
    # A name that comes twice may be a name again or the rest of one.
    require(all(piece.get("name") is None for piece in pieces[1:]))
    return {"name": text(pieces[0]["name"]), "arguments": text(joined(pieces, "arguments"))}


def _logprobs(pieces: list[Json]) -> Json:
    for piece in pieces:
        only(piece, {"index", "delta", "logprobs", "finish_reason"})
    if not any("logprobs" in piece for piece in pieces):
        return {}
    given: list[Json] = [piece["logprobs"] for piece in pieces if piece.get("logprobs") is not None]
    if not given:
        return {"logprobs": None}
    merged: Json = {}
    for name in _LOGPROBS:
        lists = [entry[name] for entry in given if entry.get(name) is not None]
        if lists:
            merged[name] = several(list(chain.from_iterable(lists)))
        elif any(name in entry for entry in given):
            merged[name] = None
    for entry in given:
        only(entry, _LOGPROBS)
    return {"logprobs": merged}


def usage_wanted(ask: Json) -> bool:
    """Whether the stream is to end with usage. Other servers' further options are none of ours."""
    options = ask.get("stream_options") or {}
    only(options, {"include_usage", "include_obfuscation"})
    return options.get("include_usage") is True


def stream_of(whole: Json, kind: str, pieces: list[Json], *, usage: bool) -> bytes:
    """Chunks of one piece each, without the padding, which means nothing."""
    base = {**{name: whole[name] for name in SHARED if name in whole}, "object": kind}
    pending = {"usage": None} if usage else {}
    chunks = [{**base, "choices": [piece], **pending} for piece in pieces]
    if usage:
        require(isinstance(whole["usage"], dict) and whole["usage"])
        chunks.append({**base, "choices": [], "usage": whole["usage"]})
    return b"".join([*map(sse, chunks), sse(b"[DONE]")])


def unfold(body: bytes, ask: Json) -> bytes:
    whole = read(body)
    only(whole, {*SHARED, "choices", "usage"})
    shared(whole, "chat.completion")
    pieces: list[Json] = []
    for index, choice in enumerate(several(whole["choices"])):
        only(choice, {"index", "message", "logprobs", "finish_reason"})
        require(choice["index"] == index)
        empty = {"logprobs": None} if "logprobs" in choice else {}
        logprobs = choice.get("logprobs") or {}
        only(logprobs, _LOGPROBS)
        told = set()
        for name, delta in _deltas(choice["message"]):
            carried: Json = {**empty}
            if logprobs.get(name) is not None:
                carried["logprobs"] = {**dict.fromkeys(logprobs), name: several(logprobs[name])}
                told.add(name)
            pieces.append({"index": index, "delta": delta, **carried, "finish_reason": None})
        require(told == {name for name in logprobs if logprobs[name] is not None})
        pieces.append({"index": index, "delta": {}, **empty, "finish_reason": text(choice["finish_reason"])})
    return stream_of(whole, "chat.completion.chunk", pieces, usage=usage_wanted(ask))


def _deltas(message: Json) -> list[tuple[str, Json]]:
    """(field, delta): the role first, as the API has it, then each field in one piece."""
    only(message, _MESSAGE)
    require(message["role"] == "assistant" and not message.get("annotations"))
    content, refusal = message["content"], message.get("refusal")
    opening: Json = {"role": "assistant", "content": None if content is None else ""}
    if "refusal" in message:
        opening["refusal"] = None
    deltas = [("role", opening)]
    deltas += [(name, {name: text(message[name])}) for name in REASONING if name in message]
    if content:
        deltas.append(("content", {"content": text(content)}))
    if refusal is not None:
        deltas.append(("refusal", {"refusal": text(refusal)}))
    if "tool_calls" in message:
        calls = [{"index": i, **_whole_call(call)} for i, call in enumerate(several(message["tool_calls"]))]
        deltas += [("tool_calls", {"tool_calls": [call]}) for call in calls]
    if "function_call" in message:
        deltas.append(("function_call", {"function_call": _function([message["function_call"]])}))
    besides = refusal is not None or "tool_calls" in message or "function_call" in message
    require(content or (content is None) == besides)
    return deltas


def _whole_call(call: Json) -> Json:
    only(call, _CALL - {"index"})
    return _tool_call([call])
