"""An app's own format: JSON, or a stream of events with names of its own, behind paths of its own."""

from sidecar.core.dialects.base import Facts, Json, number, text
from sidecar.core.dialects.other import OtherSSE
from sidecar.core.types import DeltaKind, Intent

_NO_CONTENT = frozenset({b"status", b"meta", b"done", b"ping"})
"""Events that bring nothing of the answer itself."""


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
        return None if name in _NO_CONTENT else "event"

    def whole(self, body: Json, facts: Facts) -> None:
        facts.terminal = True


APP = App()
