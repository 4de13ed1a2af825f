"""What a wire format has to tell: a `Dialect` has one instance per format and no state.

`Facts` is what is known of one answer; the dialect's `read` and `whole` fill it in as events go by.
They may raise on surprising shapes (KeyError, TypeError, ...): the caller treats that as "nothing
learnt", because the client gets the upstream's bytes whatever we make of them.
"""

from typing import Any, ClassVar, Literal

import msgspec
import orjson

from sidecar.core.errors import sentence
from sidecar.core.types import DeltaKind, Fault, Intent

Json = dict[str, Any]
"""A parsed copy of somebody else's JSON object: any shape may come."""

Framing = Literal["sse", "ndjson", "array"]

_MOST_TOKENS = 1 << 53
"""More than any model says; what is larger is a lie, and would not fit a log line."""


class Facts(msgspec.Struct):
    """What an answer has said of itself so far. Token counts are the provider's own."""

    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int | None = None
    fresh_input_tokens: int | None = None
    """Anthropic's parts of `input_tokens`: what no cache took part in, and what was written to one."""
    written_input_tokens: int | None = None
    reasoning_tokens: int | None = None
    finish: str | None = None
    begun: set[object] = msgspec.field(default_factory=set)
    """Gemini's candidates, by index: those that were heard of, and those that are complete."""
    finished: set[object] = msgspec.field(default_factory=set)
    terminal: bool = False
    """The format's end marker was seen."""
    error: str | None = None
    """The provider's own error inside the answer: its type or code, never its text."""


class Dialect:
    """One wire format. Subclasses override what differs; see CONTRIBUTING.md for how to add one."""

    name: ClassVar[str]
    provider: ClassVar[str]
    """`gen_ai.provider.name` of the OpenTelemetry GenAI conventions."""
    operation: ClassVar[str]
    """`gen_ai.operation.name` of the same."""
    framing: ClassVar[Framing | None] = "sse"
    """How a stream of this format is framed; None for a format that never streams."""
    keepalive: ClassVar[bytes | None] = None
    """What may be written at an event boundary while the model thinks; None for nothing. A bare
    newline stands for the upstream's own line end."""
    ids: ClassVar[bool] = False
    """Whether clients of this format survive an `id:` field."""

    def matches(self, path: str) -> bool:
        """Whether a POST to this path speaks this format."""
        raise NotImplementedError(self.name)  # reason: a dialect without it is a programming error

    def framing_of(self, query: str) -> Framing | None:
        """How a streamed answer to this request is framed."""
        return self.framing

    def intent(self, path: str, body: Json) -> Intent:
        """What is asked for."""
        return Intent(model=text(body.get("model")), stream=body.get("stream") is True)

    def read(self, data: bytes, facts: Facts) -> DeltaKind | None:
        """Learn from one event of a stream; say what it brings the waiting person, if anything."""
        return None

    def whole(self, body: Json, facts: Facts) -> None:
        """Learn from an answer that is not a stream."""

    def ended(self, facts: Facts) -> bool:
        """At a clean end of the body: was that the whole answer?"""
        return facts.terminal

    def error_body(self, fault: Fault, status: int) -> bytes:
        """An error of the sidecar's own, in the shape this format's SDKs parse."""
        raise NotImplementedError(self.name)  # reason: a dialect without it is a programming error

    def error_frame(self, fault: Fault, status: int, upstream: bytes | None = None) -> bytes:
        """The same as the last event of a broken stream. `upstream`: its own error, as JSON."""
        return b"data: " + (upstream or self.error_body(fault, status)) + b"\n\n"


def text(value: object) -> str | None:
    """A string as it is, anything else as None."""
    return value if isinstance(value, str) else None


def count(value: object) -> int | None:
    """A token count as it is, anything else as None."""
    sane = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_TOKENS
    return value if sane else None  # type: ignore[return-value]  # `sane` says it is an int


def error_name(error: object) -> str:
    """What kind of error a provider reports, without its message (it may quote the prompt)."""
    if isinstance(error, dict):
        for key in ("type", "code", "status"):
            if isinstance(error.get(key), str | int):
                return str(error[key])[:64]
    return "error"


def openai_error(fault: Fault, status: int) -> Json:
    """`{"error": {...}}` with the four fields OpenAI's SDKs read."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": sentence(fault),
            "type": kind,
            "param": None,
            "code": fault.kind,
        }
    }


class _Ask(msgspec.Struct):
    """The fields of a request that say what is asked."""

    model: Any = None
    stream: Any = None


class _Told(msgspec.Struct):
    """The fields of answers that are no streams which dialects look at."""

    model: Any = msgspec.UNSET
    modelVersion: Any = msgspec.UNSET  # noqa: N815 - Gemini's
    usage: Any = msgspec.UNSET
    usageMetadata: Any = msgspec.UNSET  # noqa: N815 - Gemini's
    choices: Any = msgspec.UNSET
    candidates: Any = msgspec.UNSET
    promptFeedback: Any = msgspec.UNSET  # noqa: N815 - Gemini's
    stop_reason: Any = msgspec.UNSET
    status: Any = msgspec.UNSET
    error: Any = msgspec.UNSET
    done: Any = msgspec.UNSET
    done_reason: Any = msgspec.UNSET
    prompt_eval_count: Any = msgspec.UNSET
    eval_count: Any = msgspec.UNSET


_asked = msgspec.json.Decoder(_Ask)
_told = msgspec.json.Decoder(_Told)


def read_ask(body: bytes) -> Json:
    """What a request's body asks for. The rest of it, tens of megabytes perhaps, is skipped, not built:
    building it would stop every stream of the process. Raises msgspec.MsgspecError, RecursionError."""
    ask = _asked.decode(body)
    return {"model": ask.model, "stream": ask.stream}


def read_whole(body: bytes) -> Json:
    """What an answer that is no stream tells of itself, read in the same way."""
    told = _told.decode(body)
    return {
        name: value for name in told.__struct_fields__ if (value := getattr(told, name)) is not msgspec.UNSET
    }


dumps = orjson.dumps
loads = orjson.loads
