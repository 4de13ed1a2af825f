"""One answer in its two forms: the whole body, and the stream that it comes as.

A stored stream answers the same request made without `stream`, and the other way round, where that is exact.
Where it is not, or not known to be, there is no answer: a miss costs a call, a wrong answer costs trust.

Pure: bytes in, bytes out. One module per format knows how its pieces add up; none of them raises to the
outside. That an answer is complete is the caller's to know: Gemini has no end marker.
"""

from collections.abc import Callable

import msgspec

from sidecar.core.dialects.base import Json
from sidecar.core.folding import anthropic, app, completions, gemini, ollama, openai, responses
from sidecar.core.folding.refresh import refreshed

__all__ = ["fold", "refreshed", "unfold"]

_SURPRISES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    msgspec.MsgspecError,
)
"""What somebody else's JSON can make the code below raise, `InexactError` among them."""

_FOLD: dict[str, Callable[[bytes, str], bytes]] = {
    "openai.chat": lambda body, _: openai.fold(body),
    "openai.completions": lambda body, _: completions.fold(body),
    "openai.responses": lambda body, _: responses.fold(body),
    "anthropic.messages": lambda body, _: anthropic.fold(body),
    "gemini.generate_content": gemini.fold,
    "ollama.chat": lambda body, _: ollama.fold_chat(body),
    "ollama.generate": lambda body, _: ollama.fold_generate(body),
    "app": lambda body, _: app.fold(body),
}
_UNFOLD: dict[str, Callable[[bytes, Json, str], bytes]] = {
    "openai.chat": lambda body, ask, _: openai.unfold(body, ask),
    "openai.completions": lambda body, ask, _: completions.unfold(body, ask),
    "anthropic.messages": lambda body, _, __: anthropic.unfold(body),
    "gemini.generate_content": lambda body, _, query: gemini.unfold(body, query),
    "ollama.chat": lambda body, _, __: ollama.unfold_chat(body),
    "ollama.generate": lambda body, _, __: ollama.unfold_generate(body),
}


def fold(dialect: str, body: bytes, query: str = "") -> bytes | None:
    """The whole answer that a complete stream amounts to, as compact JSON; None where that is not exact.

    `body`: the stream's bytes. `query`: of the streaming request; Gemini's framing is in it.
    """
    make = _FOLD.get(dialect)
    try:
        return make(body, query) if make else None
    except _SURPRISES:
        return None


def unfold(dialect: str, body: bytes, ask: Json, query: str) -> bytes | None:
    """The stream that a whole answer would have come as; None where that is not exact.

    Every text comes in one piece: where a provider would have cut it means nothing.
    `ask`: the streaming request's body (OpenAI: `stream_options`). `query`: its query.
    """
    make = _UNFOLD.get(dialect)
    try:
        return make(body, ask, query) if make else None
    except _SURPRISES:
        return None
