"""Anthropic Messages: a message opens, its blocks open, grow and close, and a delta says how it ended.

Usage in `message_delta` is cumulative and stands over what `message_start` said (API reference, streaming).
Keys are those of the SDK's `Message`, `Usage` and blocks; what only betas have is not folded.
"""

from sidecar.core.dialects.base import Json
from sidecar.core.folding.base import events, joined, only, read, require, several, sse, text, typed, write

_ENDED = ("stop_reason", "stop_sequence", "stop_details", "container")
"""What `message_delta` tells of the message."""
_MESSAGE = {"id", "type", "role", "model", "content", "usage", "diagnostics", *_ENDED}
_COUNTED = {
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
    "output_tokens_details",
    "server_tool_use",
}
"""The usage that `message_delta` tells."""
_USAGE = {*_COUNTED, "cache_creation", "inference_geo", "service_tier", "speed"}
_TOOLS = {"tool_use": {"toolset_name"}, "server_tool_use": set[str](), "mcp_tool_use": {"server_name"}}
_CALL = {"type", "id", "name", "input", "caller"}
_WHOLE = {
    "redacted_thinking",
    "web_search_tool_result",
    "web_fetch_tool_result",
    "code_execution_tool_result",
    "bash_code_execution_tool_result",
    "text_editor_code_execution_tool_result",
    "tool_search_tool_result",
    "mcp_tool_result",
    "container_upload",
}
"""Blocks that come in one piece, in their start."""
_DELTAS = {
    "text_delta": "text",
    "citations_delta": "citation",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
    "input_json_delta": "partial_json",
}


def fold(body: bytes) -> bytes:
    steps = [event for event in typed(events(body)) if event != {"type": "ping"}]
    start, *blocks, delta, stop = steps
    require(start["type"] == "message_start" and delta["type"] == "message_delta")
    require(stop == {"type": "message_stop"})
    only(start, {"type", "message"})
    only(delta, {"type", "delta", "usage"})
    only(delta["delta"], _ENDED)
    message = start["message"]
    _check(message)
    require(message["content"] == [])
    require(all(message.get(name) is None for name in _ENDED))
    text(delta["delta"]["stop_reason"])
    ended = {"content": _blocks(blocks), **delta["delta"], "usage": _usage(message["usage"], delta["usage"])}
    return write({**message, **ended})


def _check(message: Json) -> None:
    only(message, _MESSAGE)
    require(message["type"] == "message" and message["role"] == "assistant")
    require(message.get("diagnostics") is None)
    text(message["id"])
    text(message["model"])


def _usage(begun: Json, ended: Json) -> Json:
    only(begun, _USAGE)
    only(ended, _COUNTED)
    require(isinstance(ended["output_tokens"], int))
    # SDKs let what was said before stand when null comes later; whether the whole answer does is not known.
    require(all(begun.get(name) is None for name, value in ended.items() if value is None))
    written = "cache_creation_input_tokens"
    # Its breakdown comes at the start only.
    require(not begun.get("cache_creation") or ended.get(written, begun.get(written)) == begun.get(written))
    return {**begun, **ended}


def _blocks(steps: list[Json]) -> list[Json]:
    """One block after the other, as the API sends them."""
    blocks: list[Json] = []
    block: Json | None = None
    deltas: list[Json] = []
    for step in steps:
        kind = step["type"]
        if kind == "content_block_start":
            only(step, {"type", "index", "content_block"})
            require(block is None and step["index"] == len(blocks))
            block, deltas = step["content_block"], []
        else:
            require(block is not None and step["index"] == len(blocks))
            if kind == "content_block_delta":
                only(step, {"type", "index", "delta"})
                only(step["delta"], {"type", _DELTAS[step["delta"]["type"]]})
                deltas.append(step["delta"])
            else:
                require(step == {"type": "content_block_stop", "index": len(blocks)} and block is not None)
                blocks.append(_block(block or {}, deltas))
                block = None
    require(block is None)
    return blocks


def _block(start: Json, deltas: list[Json]) -> Json:
    kind = start["type"]
    told = {delta["type"] for delta in deltas}
    if kind == "text":
        only(start, {"type", "text", "citations"})
        require(told <= {"text_delta", "citations_delta"} and start["text"] == "")
        citations = [delta["citation"] for delta in deltas if delta["type"] == "citations_delta"]
        # A list that stays empty: the whole answer may have it or not.
        require(citations or start.get("citations") is None)
        require(not start.get("citations"))
        found = {"citations": citations} if citations else {}
        return {**start, "text": joined(deltas, "text") or "", **found}
    if kind == "thinking":
        only(start, {"type", "thinking", "signature"})
        require(told <= {"thinking_delta", "signature_delta"} and start["thinking"] == "")
        signatures = [text(delta["signature"]) for delta in deltas if "signature" in delta]
        require(len(signatures) == 1 and not start.get("signature"))
        return {**start, "thinking": joined(deltas, "thinking") or "", "signature": signatures[0]}
    if kind in _TOOLS:
        only(start, _CALL | _TOOLS[kind])
        require(told <= {"input_json_delta"} and isinstance(start["input"], dict))
        given = joined(deltas, "partial_json")
        require(not given or start["input"] == {})
        return {**start, "input": read(given.encode())} if given else start
    require(kind in _WHOLE and not deltas)
    return start


def unfold(body: bytes) -> bytes:
    whole = read(body)
    _check(whole)
    text(whole["stop_reason"])
    usage = whole["usage"]
    only(usage, _USAGE)
    # As the API does it: output counted so far, which is next to nothing, and no tool use of the server's.
    begun = {
        name: value
        for name, value in usage.items()
        if name not in ("server_tool_use", "output_tokens_details")
    }
    begun["output_tokens"] = min(usage["output_tokens"], 1)
    blank: Json = {"content": [], **{name: None for name in _ENDED if name in whole}, "usage": begun}
    steps: list[Json] = [{"type": "message_start", "message": {**whole, **blank}}]
    for index, block in enumerate(several(whole["content"])):
        start, deltas = _opened(block)
        steps.append({"type": "content_block_start", "index": index, "content_block": start})
        steps += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        steps.append({"type": "content_block_stop", "index": index})
    ended = {name: whole[name] for name in _ENDED if name in whole}
    counts = {name: value for name, value in usage.items() if name in _COUNTED}
    steps += [{"type": "message_delta", "delta": ended, "usage": counts}, {"type": "message_stop"}]
    return b"".join(sse(step, named=True) for step in steps)


def _opened(block: Json) -> tuple[Json, list[Json]]:
    """A block as it starts, and what makes it whole."""
    kind = block["type"]
    start = dict(block)
    made: list[tuple[str, object]] = []
    if kind == "text":
        start["text"] = ""
        made += [("text_delta", text(block["text"]))] if block["text"] else []
        if block.get("citations") is not None:
            start["citations"] = []
            made += [("citations_delta", citation) for citation in several(block["citations"])]
    elif kind == "thinking":
        start |= {"thinking": "", "signature": ""}
        made += [("thinking_delta", text(block["thinking"]))] if block["thinking"] else []
        made.append(("signature_delta", text(block["signature"])))
    elif kind in _TOOLS:
        start["input"] = {}
        # An empty input comes as an empty piece, as from the API.
        made.append(("input_json_delta", write(block["input"]).decode() if block["input"] else ""))
    deltas: list[Json] = [{"type": name, _DELTAS[name]: value} for name, value in made]
    require(_block(start, deltas) == block)
    return start, deltas
