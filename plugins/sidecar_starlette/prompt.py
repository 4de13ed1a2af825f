"""Where a request has its question: what `prompt=` says."""

from collections.abc import Callable
from typing import Any

from sidecar.core.values import ConfigError

Place = Callable[[dict[str, Any]], tuple[str | int, ...] | None]
"""From a parsed body to the way that leads to the question in it."""
_DEEPEST = 64


class Prompt:
    """Finds it. `given`: a dotted path into the JSON body (`message`, `messages.-1.content`), or a callable
    that gets the body's bytes and returns the question, or None."""

    def __init__(self, given: str | Callable[[bytes], str | None]) -> None:
        """Raises ConfigError."""
        self._ask = given if callable(given) else None
        self._path: list[str] = [] if callable(given) else given.split(".")
        if "" in self._path:
            raise ConfigError(f"prompt = {given!r}: expected a path such as message or messages.-1.content")

    def where(self, body: bytes) -> Place | None:
        """How to find the question in this body; None where it has none."""
        if self._ask is None:
            return self._follow
        try:
            text = self._ask(body)
        except Exception:  # noqa: BLE001 - reason: most likely the body is not as expected; the app says so, if it is
            return None
        if not isinstance(text, str) or not text:
            return None
        # What else is in the body has to be the same for two questions to be compared, so it has to be told
        # apart from the question: the last string in it that is just that.
        return lambda value: _last(value, text, _DEEPEST)

    def _follow(self, value: dict[str, Any]) -> tuple[str | int, ...] | None:
        member: Any = value
        path: list[str | int] = []
        for step in self._path:
            if isinstance(member, dict) and step in member:
                path.append(step)
                member = member[step]
            elif (
                isinstance(member, list)
                and step.lstrip("-").isdigit()
                and -len(member) <= int(step) < len(member)
            ):
                path.append(int(step))
                member = member[int(step)]
            else:
                return None
        return tuple(path) if isinstance(member, str) and member else None


def _last(value: object, text: str, depth: int) -> tuple[str | int, ...] | None:
    if value == text:
        return ()
    if not depth:
        return None
    steps: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        steps = [*value.items()]
    elif isinstance(value, list):
        steps = [*enumerate(value)]
    for step, member in reversed(steps):
        found = _last(member, text, depth - 1)
        if found is not None:
            return (step, *found)
    return None
