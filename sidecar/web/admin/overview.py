"""Whose figures the admin port shows: those of one process (`Board`), or of all workers together."""

from collections.abc import Callable
from typing import Protocol

from sidecar.serving.snapshot import Check, Line

COUNTERS, ACTIVE, LINES = "counters", "active", "lines"
"""Parts that may be asked for beside windows, by their names: what metrics are made of, requests that run,
requests that have ended."""


class Overview(Protocol):
    """What can be asked. But for `refresh`, nothing waits or raises."""

    async def refresh(self, *parts: str) -> None:
        """Learn what there is to know of these now, where it is not known already. What cannot be learned in
        a moment is told as it was. To be awaited before any of the others is asked."""

    def prepare(self, window: str | None = None) -> Callable[[], dict[str, object]]:
        """What `/stats` shows, in two steps: what is returned does most of the work, and may do so in a
        thread. `window`: only that one, without its combinations."""

    def metrics(self, accept: str) -> Callable[[], tuple[bytes, str]]:
        """What a scrape gets, likewise: the text and its type. `accept`: the request's field."""

    def active(self, most: int) -> list[Line]:
        """Requests that are being served, those first that came first."""

    def recent(self, most: int) -> list[Line]:
        """Lines of requests that have ended, the latest one first."""

    def errors(self, most: int) -> list[Line]:
        """The same of those that ended badly."""

    def since(self, mark: int, most: int) -> tuple[int, list[Line]]:
        """A new mark, and the lines that came since the given one; 0: all that are remembered."""

    def find(self, request_id: str) -> Line | None:
        """The line of a request that has ended lately."""

    def ready(self) -> dict[str, Check]:
        """What works, by component; requests are served while `proxy` is ready, whatever else is not."""
