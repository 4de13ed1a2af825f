"""What spans and metrics have in common on their way to a collector: a session that remembers what went
wrong, work in small steps, and whom to tell."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, overload

import requests

_STEP = 0.0005
_REST = 0.0005

Told = Callable[[str | None], None]
"""Takes why an export failed, or None when one worked."""

T = TypeVar("T")


class Session(requests.Session):
    """Remembers how its last request failed: exporters say only that they gave up. Status or type of an
    error; messages may hold the collector's address with whatever is in it."""

    failure: str | None = None

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        try:
            response = super().request(*args, **kwargs)
        except Exception as error:
            self.failure = type(error).__name__
            raise
        self.failure = None if response.ok else f"HTTP {response.status_code}"
        return response


class Reports:
    """Tells of the first failure and of the first success after it, not of those between."""

    def __init__(self, tell: Told) -> None:
        self._tell = tell
        self._failing = False

    def take(self, failure: str | None) -> None:
        failing = failure is not None
        if failing != self._failing:
            self._failing = failing
            self._tell(failure)


def in_steps(items: Iterable[T]) -> Iterator[T]:
    """The same, with a rest now and then. Encoding is plain Python, and a thread that computes gives the
    interpreter away after 5 ms only: so late would be every chunk of every stream meanwhile."""
    begun = time.perf_counter()
    for item in items:
        yield item
        if time.perf_counter() - begun > _STEP:
            time.sleep(_REST)
            begun = time.perf_counter()


class InSteps(Sequence[T]):
    """A sequence whose reader rests now and then, for encoders that read it once."""

    def __init__(self, items: Sequence[T]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, at: int) -> T: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[T]: ...

    def __getitem__(self, at: int | slice) -> T | Sequence[T]:
        return self._items[at]

    def __iter__(self) -> Iterator[T]:
        return in_steps(self._items)
