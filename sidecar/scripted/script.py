"""What a scripted answer is like: its text, its pace, its faults.

Owns `Script`, the words, and the per-request override. Knows nothing of HTTP or of any provider's format.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, TypeAlias

import msgspec

Fault: TypeAlias = Literal["reset", "fin", "eof", "silence", "error", "no_head", "bad_chunk"]

_LIST = """
amber birch cedar delta ember fjord grove heron islet juniper kelp larch meadow north ocean pine quartz river
spruce tundra umber valley willow xylem yarrow zephyr alder basalt coral dune estuary fern glacier harbor
"""
WORDS = _LIST.split()

ARGUMENTS = ('{"city"', ': "Par', 'is", "days"', ": 3}")
"""The arguments of the scripted tool call, as they are cut into deltas."""


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One answer. Times are seconds. Events are counted from 0, as they are written, terminal ones included.

    Faults, with `at` as an event number (int) or a share of all events (float, 0 to 1):

    - ``reset``, ``fin``: half the bytes of event `at`, then RST or FIN
    - ``eof``: the HTTP message ends properly after event `at`, without the rest
    - ``silence``: nothing after event `at`, until the peer leaves
    - ``error``: the dialect's error event after event `at`, then the message ends
    - ``bad_chunk``: an invalid chunk size after event `at`, then silence
    - ``no_head``: the request is read and never answered

    An answer that is not a stream has one event, its body; every fault strikes after the first half of it.
    """

    tokens: int = 12
    """Content tokens, made from a fixed word list."""
    text: str | None = None
    """The content instead; cut into tokens."""
    reasoning: int = 0
    """Reasoning tokens before the content."""
    tool: bool = False
    """Call a tool (the first one the request offers) instead of giving content."""
    finish: Literal["stop", "length", "refusal"] = "stop"
    prompt: int = 9
    """Input tokens, as usage reports them."""
    created: int = 1_700_000_000
    dims: int = 8
    """Dimensions of an embedding, unless the request says."""

    head: float = 0.0
    """Before the head."""
    first: float = 0.0
    """Between the head and the first event."""
    interval: float = 0.0
    """Between events."""

    status: int = 200
    """400 and above: an error answer in the dialect's shape."""
    fault: Fault | None = None
    at: int | float = 5

    newline: Literal["\n", "\r\n", "\r"] | None = None
    """Line ends of an event stream; the provider's own when left out."""
    ids: bool = False
    """Event streams carry `id:` fields of the provider's own."""
    encoding: Literal["gzip"] | None = None
    """Content coding, flushed at every event."""
    framing: Literal["chunked", "close", "length"] | None = None
    """How the message is delimited. Left out: chunked for streams, a length for the rest."""
    split: int = 0
    """Write (and frame) pieces of that many bytes. 0: whole events."""


def words(count: int, start: int = 0) -> list[str]:
    """`count` tokens that only depend on their position; joined, they are a text."""
    picked = [WORDS[i % len(WORDS)] for i in range(start, start + count)]
    return [word if i == 0 else " " + word for i, word in enumerate(picked)]


@lru_cache(maxsize=64)
def content(script: Script) -> tuple[str, ...]:
    if script.text is None:
        return tuple(words(script.tokens))
    return tuple(re.findall(r"\s*\S{1,6}|\s+", script.text))


def thoughts(script: Script) -> tuple[str, ...]:
    return tuple(words(script.reasoning, start=17))


def produced(script: Script) -> int:
    """Output tokens without the reasoning ones."""
    return len(ARGUMENTS) if script.tool else len(content(script))


@lru_cache(maxsize=256)
def override(script: Script, patch: bytes) -> Script:
    """`script` with the fields of a JSON object replaced.

    Raises ValueError, naming the field, when one is unknown or of the wrong type.
    """
    fields = msgspec.json.decode(patch)
    if not isinstance(fields, dict):
        raise ValueError("expected a JSON object")  # noqa: TRY004 - one error for all bad input
    return msgspec.convert({**msgspec.structs.asdict(script), **fields}, Script)
