"""Gemini: a stream is a sequence of answers, and a whole answer is a stream of one.

What several chunks say is put together only where it is plain how: texts. What speaks of places in the text
or of chances (citations, grounding supports, logprobs) is told per chunk, and nobody says how it adds up.
"""

import msgspec
import orjson

from sidecar.core.dialects.base import Json
from sidecar.core.folding.base import events, only, read, require, several, sse, text, write

_CHUNK = {"candidates", "usageMetadata", "modelVersion", "responseId"}
_ONCE = {"finishReason", "finishMessage", "groundingMetadata", "urlContextMetadata"}
"""What a candidate says in one chunk only."""
_CANDIDATE = {*_ONCE, "content", "index", "safetyRatings"}
_PARTS = {
    "functionCall": {"id", "name", "args"},
    "executableCode": {"id", "language", "code"},
    "codeExecutionResult": {"id", "outcome", "output"},
}
"""Parts that come whole. Sound is cut into several `inlineData`, and so may be whatever is new."""


def fold(body: bytes, query: str) -> bytes:
    raw = _chunks(body, query)
    chunks = [read(chunk) for chunk in raw]
    if len(chunks) == 1:
        _check_whole(chunks[0])
        return raw[0]
    last = chunks[-1]
    said: dict[int, list[Json]] = {}
    for chunk in chunks:
        only(chunk, _CHUNK)
        require(
            all(chunk.get(name, last.get(name)) == last.get(name) for name in ("modelVersion", "responseId"))
        )
        # Counts are cumulative: nothing that was counted before is missing in the end.
        require(chunk.get("usageMetadata", {}).keys() <= last["usageMetadata"].keys())
        for candidate in chunk.get("candidates", ()):
            said.setdefault(candidate.get("index", 0), []).append(candidate)
    require(said)
    return write(
        {
            "candidates": [_candidate(said[index]) for index in range(len(said))],
            **{k: v for k, v in last.items() if k != "candidates"},
        }
    )


def _chunks(body: bytes, query: str) -> list[bytes]:
    if _framing(query) == "sse":
        found = events(body)
        require(not any(name for name, _ in found))
        return [data for _, data in found]
    orjson.loads(body)
    return [bytes(chunk) for chunk in msgspec.json.decode(body, type=list[msgspec.Raw])]


def _framing(query: str) -> str:
    """Anything but events and JSON (`alt=proto`, `alt=media`) is none of ours."""
    given = [pair[4:] for pair in query.split("&") if pair.startswith("alt=")]
    require(given in ([], ["sse"], ["json"]))
    return "sse" if given == ["sse"] else "array"


def _check_whole(answer: Json) -> None:
    """There is no end marker: every candidate has said why it ended, or the prompt was refused."""
    require("error" not in answer)
    if answer.get("candidates"):
        for candidate in several(answer["candidates"]):
            text(candidate["finishReason"])
    else:
        text(answer["promptFeedback"]["blockReason"])


def _candidate(pieces: list[Json]) -> Json:
    made: Json = {}
    parts: list[Json] = []
    for piece in pieces:
        only(piece, _CANDIDATE)
        for name, value in piece.items():
            if name != "content":
                require(name not in made or (name not in _ONCE and made[name] == value))
                made[name] = value
        if "content" not in piece:
            continue
        content = piece["content"]
        only(content, {"parts", "role"})
        require(content.get("role", "model") == "model")
        made["content"] = {**made.get("content", {}), **content}
        for part in content.get("parts", ()):
            _add(parts, part)
    text(pieces[-1]["finishReason"])
    # Supports say where in the text, and in which part, a source was used.
    require("groundingSupports" not in made.get("groundingMetadata", {}))
    if parts:
        # An empty text that goes with no other is how a stream ends; the whole answer may not have it.
        require(all(part.get("text") != "" for part in parts))
        made["content"]["parts"] = parts
    return made


def _add(parts: list[Json], part: Json) -> None:
    if "text" in part:
        # A signature is a part of its own in a stream, with an empty text, and goes with the text in a whole
        # answer; so it is not known where it belongs.
        only(part, {"text", "thought"})
        text(part["text"])
        before = parts[-1] if parts else {}
        if "text" in before and before.get("thought") == part.get("thought"):
            parts[-1] = {**before, "text": before["text"] + part["text"]}
        else:
            parts.append(part)
        return
    (kind,) = part.keys() - {"thoughtSignature"}
    only(part[kind], _PARTS[kind])
    parts.append(part)


def unfold(body: bytes, query: str) -> bytes:
    _check_whole(read(body))
    compact = msgspec.json.format(body, indent=-1)
    if _framing(query) == "sse":
        return sse(compact).replace(b"\n", b"\r\n")
    return b"[%b]" % compact
