"""OpenAI legacy completions: the text of each choice, in one piece or in many."""

from sidecar.core.dialects.base import Json
from sidecar.core.folding.base import joined, only, read, require, several, text
from sidecar.core.folding.openai import (
    SHARED,
    finish,
    read_chunks,
    shared,
    stream_of,
    usage_wanted,
    whole_of,
)

_KIND = "text_completion"
_CHOICE = ("text", "index", "logprobs", "finish_reason")


def fold(body: bytes) -> bytes:
    head, choices, usage = read_chunks(body, _KIND)
    made = []
    for index, pieces in enumerate(choices):
        for piece in pieces:
            _plain(piece)
        logprobs = {"logprobs": None} if any("logprobs" in piece for piece in pieces) else {}
        said = text(joined(pieces, "text"))
        made.append({"text": said, "index": index, **logprobs, "finish_reason": finish(pieces)})
    return whole_of(head, _KIND, made, usage)


def _plain(choice: Json) -> None:
    """Servers do not agree whether a chunk's `text_offset` counts from its own text or from all of it."""
    only(choice, _CHOICE)
    require(choice.get("logprobs") is None)


def unfold(body: bytes, ask: Json) -> bytes:
    whole = read(body)
    only(whole, {*SHARED, "choices", "usage"})
    shared(whole, _KIND)
    pieces = []
    for index, choice in enumerate(several(whole["choices"])):
        _plain(choice)
        require(choice["index"] == index)
        base = {name: choice[name] for name in _CHOICE if name in choice}
        if text(choice["text"]):
            pieces.append({**base, "finish_reason": None})
        pieces.append({**base, "text": "", "finish_reason": text(choice["finish_reason"])})
    return stream_of(whole, _KIND, pieces, usage=usage_wanted(ask))
