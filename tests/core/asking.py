"""Short ways to ask the dialects and to make requests, heads and answers."""

import json
from typing import Any

from sidecar.core.answer import Answer
from sidecar.core.dialects import Dialect, Facts, recognise
from sidecar.core.dialects.base import loads
from sidecar.core.headers import index
from sidecar.core.types import Head, Intent, Request

SSE = b"text/event-stream"


REMEMBERED = {"begun", "finished", "fresh_input_tokens", "written_input_tokens"}
STORING = {"reasons", "refused", "tools"}
"""What only decides whether an answer may be stored; see test_storable."""


def dialect_of(path: str) -> Dialect:
    found = recognise("POST", path)
    assert found is not None
    return found


def told(facts: Facts) -> dict[str, Any]:
    """What the facts say that a fresh one does not, without what dialects only remember for later."""
    return {
        name: getattr(facts, name)
        for name in facts.__struct_fields__
        if name not in REMEMBERED | STORING and getattr(facts, name) != getattr(Facts(), name)
    }


def read(dialect: Dialect, *events: Any) -> tuple[list[str | None], dict[str, Any]]:
    """The kind of every event of a stream, and what all of them told."""
    facts = Facts()
    raw = [event if isinstance(event, bytes) else json.dumps(event).encode() for event in events]
    return [dialect.read(data, facts) for data in raw], told(facts)


def whole(dialect: Dialect, body: dict[str, Any]) -> dict[str, Any]:
    """What an answer tells that is no stream."""
    facts = Facts()
    dialect.whole(body, facts)
    facts.terminal = False  # it says that the body is a whole answer; see test_storable
    return told(facts)


def head(status: int = 200, *headers: tuple[bytes, bytes], kind: bytes = SSE) -> Head:
    fields = ((b"Content-Type", kind), *headers)
    return Head(status, b"", fields, index(fields))


def answer_to(target: str, body: Any = None, answer_head: Head | None = None) -> Answer:
    """An answer to a POST, begun with `answer_head`."""
    path, _, query = target.partition("?")
    request = Request("POST", target.encode(), path, query, (), {})
    dialect = recognise("POST", path)
    raw = json.dumps(body or {"stream": True}).encode()
    intent = dialect.intent(path, loads(raw)) if dialect is not None else Intent()
    answer = Answer(request, dialect, intent)
    answer.begin(answer_head or head())
    return answer
