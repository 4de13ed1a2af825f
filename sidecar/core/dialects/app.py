"""An app's own format: JSON, or a stream of events with names of its own, behind paths of its own."""

from sidecar.core.dialects.base import Facts, Json, number, text
from sidecar.core.dialects.other import OtherSSE
from sidecar.core.types import DeltaKind, Intent

NO_CONTENT = frozenset({b"citation", b"done", b"meta", b"ping", b"status"})
"""Events that bring nothing of the answer itself."""


_ASIDE = frozenset({"id", "created", "created_at", "timestamp", "type", "model", "object"})
"""Names of what differs between two answers that say the same, or is no words."""


def texts(value: object) -> list[str]:
    """All strings in a JSON value, in its order, but for those that are known to be no words."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [found for name, member in value.items() if name not in _ASIDE for found in texts(member)]
    if isinstance(value, list):
        return [found for member in value for found in texts(member)]
    return []


class App(OtherSSE):
    """What an app answers with that speaks no known format. Its requests do not say whether they want a
    stream.

    An `event: error` is the app's own last word that it failed. A clean end of the body is completion:
    within one process nobody else can have caused it.
    """

    name = "app"
    framing = None
    named = True
    stored = True
    declared = False
    opaque = True
    asks = False

    def framing_of(self, query: str) -> "None":
        return None

    def intent(self, path: str, body: Json) -> Intent:
        return Intent(model=text(body.get("model")), temperature=number(body.get("temperature")))

    def read_named(self, name: bytes, data: bytes, facts: Facts) -> DeltaKind | None:
        if name == b"error":
            facts.error = "error"
            return None
        return None if name in NO_CONTENT else "event"

    def said(self, body: Json) -> tuple[list[str], list[str]]:
        return texts(body), []

    def whole(self, body: Json, facts: Facts) -> None:
        facts.terminal = True


APP = App()
