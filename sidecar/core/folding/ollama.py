"""Ollama chat and generate: the server itself makes a whole answer of the last line and all texts.

It does so in `server/routes.go`: content and thinking are put together, tool calls listed, and all else is
the last line's.
"""

from collections.abc import Callable

from sidecar.core.dialects.base import Json
from sidecar.core.folding.base import joined, only, read, require, several, text, write

_SERVED = ("model", "remote_model", "remote_host")
_STEP = {*_SERVED, "created_at", "done"}
_END = {
    *_STEP,
    "done_reason",
    "context",
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
}


def _lines(body: bytes, said: set[str]) -> list[Json]:
    require(body.endswith(b"\n"))
    lines = [read(line) for line in body[:-1].split(b"\n")]
    *steps, last = lines
    for line in steps:
        only(line, _STEP | said)
        require(line["done"] is False and all(line.get(name) == last.get(name) for name in _SERVED))
    _check_end(last, said)
    return lines


def _check_end(last: Json, said: set[str]) -> None:
    only(last, _END | said)
    require(last["done"] is True)
    text(last["model"])
    text(last["created_at"])


def _texts(pieces: list[Json], name: str) -> Json:
    """`thinking` is there only when there is some."""
    for piece in pieces:
        text(piece[name])
    made: Json = {name: joined(pieces, name)}
    if any("thinking" in piece for piece in pieces):
        made["thinking"] = joined(pieces, "thinking")
        require(made["thinking"])
    return made


def fold_chat(body: bytes) -> bytes:
    lines = _lines(body, {"message"})
    pieces = [line["message"] for line in lines]
    for piece in pieces:
        only(piece, {"role", "content", "thinking", "tool_calls"})
        require(piece["role"] == "assistant")
    message: Json = {"role": "assistant", **_texts(pieces, "content")}
    calls = [call for piece in pieces if "tool_calls" in piece for call in several(piece["tool_calls"])]
    if calls:
        message["tool_calls"] = calls
    return write({**lines[-1], "message": message})


def fold_generate(body: bytes) -> bytes:
    lines = _lines(body, {"response", "thinking"})
    said = _texts(lines, "response")
    last: Json = {}
    for name, value in lines[-1].items():
        last |= said if name == "response" else {} if name == "thinking" else {name: value}
    return write(last)


def unfold_chat(body: bytes) -> bytes:
    whole = read(body)
    _check_end(whole, {"message"})
    message = whole["message"]
    only(message, {"role", "content", "thinking", "tool_calls"})
    require(message["role"] == "assistant")
    blank = {"role": "assistant", "content": ""}
    said = [{**blank, name: message[name]} for name in ("thinking", "content") if _told(message, name)]
    if "tool_calls" in message:
        said.append({**blank, "tool_calls": several(message["tool_calls"])})
    return _stream(whole, lambda line, piece: {**line, "message": piece}, [*said, blank])


def unfold_generate(body: bytes) -> bytes:
    whole = read(body)
    _check_end(whole, {"response", "thinking"})
    blank = {"response": ""}
    said = [{**blank, name: whole[name]} for name in ("thinking", "response") if _told(whole, name)]
    whole = {name: value for name, value in whole.items() if name != "thinking"}
    return _stream(whole, lambda line, piece: {**line, **piece}, [*said, blank])


def _told(said: Json, name: str) -> bool:
    """Whether there is such a text. An empty `thinking` is not as Ollama has it."""
    if name == "thinking":
        require(said.get(name) != "")
        return name in said and bool(text(said[name]))
    return bool(text(said[name]))


def _stream(whole: Json, put: Callable[[Json, Json], Json], pieces: list[Json]) -> bytes:
    """Texts in lines of their own, as from Ollama: clients may pass over what the last line says."""
    step = {name: whole[name] for name in (*_SERVED, "created_at") if name in whole}
    lines = [{**put(step, piece), "done": False} for piece in pieces[:-1]]
    return b"".join(write(line) + b"\n" for line in (*lines, put(whole, pieces[-1])))
