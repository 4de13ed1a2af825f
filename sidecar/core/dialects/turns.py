"""Where the last words of the user stand in a request.

Only plain text counts. A last turn with an image, a document or the result of a tool has no last words: what
is asked there is not in the words alone.
"""

from sidecar.core.dialects.base import Json, Path


def last_words(turns: object, at: Path, kind: str) -> Path | None:
    """In a list of turns that have a `role` and a `content`; a content of several parts of text has its last
    words in the last of them. `at`: where the list is; `kind`: the type that parts of text have."""
    if not isinstance(turns, list) or not turns:
        return None
    turn = turns[-1]
    if not isinstance(turn, dict) or turn.get("role") != "user":
        return None
    here = (*at, len(turns) - 1, "content")
    content = turn.get("content")
    if isinstance(content, str):
        return here
    if not isinstance(content, list) or not content or not all(is_text(part, kind) for part in content):
        return None
    return (*here, len(content) - 1, "text")


def is_text(part: object, kind: str) -> bool:
    """Whether that is a part of text and nothing else."""
    return isinstance(part, dict) and part.get("type") == kind and isinstance(part.get("text"), str)


def one_line(body: Json, name: str) -> Path | None:
    """In a prompt: where it has several lines, some of them may be instructions or earlier turns, which have
    to be the same."""
    prompt = body.get(name)
    return (name,) if isinstance(prompt, str) and len(prompt.split("\n")) == 1 else None


def alone(body: Json, name: str) -> Path | None:
    """In a field that is a text by itself."""
    return (name,) if isinstance(body.get(name), str) else None
