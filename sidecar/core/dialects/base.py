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

Path = tuple[str | int, ...]
"""Names and numbers that lead into JSON."""

Framing = Literal["sse", "ndjson", "array"]

_ERRORS = {429: "rate_limit_error"}
_MOST_TOKENS = 1 << 32
"""More than any model says; what is larger is a lie, and sums of it would not fit anywhere."""


class Facts(msgspec.Struct, gc=False):
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
    reasons: set[str] = msgspec.field(default_factory=set)
    """All finish reasons that were given; there are several where there are several choices."""
    refused: bool = False
    """The model declined to answer."""
    tools: bool = False
    """The model calls a tool."""
    begun: set[object] = msgspec.field(default_factory=set)
    """Choices, or Gemini's candidates, by index: those that were heard of, and those that are complete."""
    finished: set[object] = msgspec.field(default_factory=set)
    terminal: bool = False
    """The format's end marker was seen."""
    error: str | None = None
    """The provider's own error inside the answer: its type or code, never its text."""

    def ends(self, reason: object) -> None:
        """A finish reason was given, perhaps."""
        if isinstance(reason, str) and reason:
            self.finish = reason
            self.reasons.add(reason)


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
    finishes: ClassVar[frozenset[str]] = frozenset()
    """The finish reasons of an answer that is all it was meant to be; empty for a format without any."""
    marked: ClassVar[bool] = True
    """Whether something in a stream says that it is over, and is its last word."""
    asks: ClassVar[bool] = True
    """Whether its requests are questions, of words."""
    stored: ClassVar[bool] = True
    """Whether its answers may be stored."""
    declared: ClassVar[bool] = True
    """Whether a request says if its answer is to be a stream."""
    opaque: ClassVar[bool] = False
    """Whether a request's body may be anything: one that is no JSON counts byte for byte."""
    named: ClassVar[bool] = False
    """Whether the names of events mean something; see `read_named`."""
    mode_fields: ClassVar[tuple[str, ...]] = ("stream",)
    """Fields of a request that only say whether, and how, the answer is to stream."""

    def modeless(self, target: bytes) -> bytes:
        """A request's target without what only says whether, and how, the answer is to stream."""
        return target

    def matches(self, path: str) -> bool:
        """Whether a POST to this path speaks this format."""
        raise NotImplementedError(self.name)  # reason: a dialect without it is a programming error

    def framing_of(self, query: str) -> Framing | None:
        """How a streamed answer to this request is framed."""
        return self.framing

    def intent(self, path: str, body: Json) -> Intent:
        """What is asked for."""
        return Intent(
            model=text(body.get("model")),
            stream=body.get("stream") is True,
            temperature=number(body.get("temperature")),
            # OpenAI's Responses add to a conversation, Anthropic's code execution works in a container.
            stateful=body.get("conversation") is not None or _in_container(body),
        )

    def read(self, data: bytes, facts: Facts) -> DeltaKind | None:
        """Learn from one event of a stream; say what it brings the waiting person, if anything."""
        return None

    def read_named(self, name: bytes, data: bytes, facts: Facts) -> DeltaKind | None:
        """As `read`, of an event with that name; empty for one without."""
        return self.read(data, facts)

    def whole(self, body: Json, facts: Facts) -> None:
        """Learn from an answer that is not a stream. `facts.terminal`: it is a whole one of this format."""

    def question(self, body: Json) -> Path | None:
        """Where a request has the last words of its user; None where they are not plain text."""
        return None

    def said(self, body: Json) -> tuple[list[str], list[str]]:
        """What an answer that is no stream says: its texts, and which tools it calls with what, as JSON. Both
        empty for a format whose answers are no words."""
        return [], []

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


def number(value: object) -> float | None:
    """A number as it is, anything else as None."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


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
    # Told apart by their status; the types are those that OpenAI gives.
    kind = "server_error" if status >= 500 else _ERRORS.get(status, "invalid_request_error")
    return {
        "error": {
            "message": sentence(fault),
            "type": kind,
            "param": None,
            "code": fault.kind,
        }
    }


def _in_container(body: Json) -> bool:
    """Whether a request names a container that was made before, for itself or for a tool."""
    tools = body.get("tools")
    if isinstance(tools, msgspec.Raw):
        # They are long, and hardly ever of interest.
        tools = loads(bytes(tools)) if b'"container"' in bytes(tools) else ()
    named = [tool.get("container") for tool in tools or () if isinstance(tool, dict)]
    return body.get("container") is not None or any(isinstance(name, str) for name in named)


class _Ask(msgspec.Struct):
    """The fields of a request that say what is asked."""

    model: Any = None
    stream: Any = None
    temperature: Any = None
    conversation: Any = None
    container: Any = None
    tools: msgspec.Raw = msgspec.Raw()
    generationConfig: Any = None  # noqa: N815 - Gemini's
    options: Any = None


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
    message: Any = msgspec.UNSET
    content: Any = msgspec.UNSET
    output: Any = msgspec.UNSET
    incomplete_details: Any = msgspec.UNSET
    data: msgspec.Raw = msgspec.Raw()
    embeddings: msgspec.Raw = msgspec.Raw()
    prompt_eval_count: Any = msgspec.UNSET
    eval_count: Any = msgspec.UNSET


_ABSENT = msgspec.Raw()
_asked = msgspec.json.Decoder(_Ask)
_told = msgspec.json.Decoder(_Told)


def read_ask(body: bytes) -> Json:
    """What a request's body asks for. The rest of it, tens of megabytes perhaps, is skipped, not built:
    building it would stop every stream of the process. Raises msgspec.MsgspecError, RecursionError."""
    ask = _asked.decode(body)
    return {name: getattr(ask, name) for name in _Ask.__struct_fields__}


def read_whole(body: bytes, *, opaque: bool = False) -> Json:
    """What an answer that is no stream tells of itself, read in the same way. `opaque`: it may be any
    JSON."""
    if opaque and body.lstrip()[:1] != b"{":
        msgspec.json.decode(body, type=msgspec.Raw)
        return {}
    told = _told.decode(body)
    return {
        name: value
        for name in told.__struct_fields__
        if (value := getattr(told, name)) is not msgspec.UNSET and value != _ABSENT
    }


dumps = orjson.dumps
loads = orjson.loads
