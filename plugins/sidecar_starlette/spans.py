"""Timing phases of a request: `with span("retrieval"): ...`."""

import time
from types import TracebackType
from typing import Self

from sidecar.core.spans import Open, span_name
from sidecar_starlette.context import HERE


class span:  # noqa: N801 - it reads as a statement
    """Times what is done inside, under a name, for the request that the code runs for: in its latency line
    (`phases`, as `NAME_ms`) and, as far as it is over by then, in its `Server-Timing` header.

    For `with`, in coroutines and threads alike, nested or side by side; spans of one name that overlap count
    once. Characters that are no letter, digit, `_`, `-` or `.` become `_`; a name that the sidecar has for a
    phase of its own (`search`, say) becomes `app_search`. Outside of a request it does nothing.
    """

    __slots__ = ("_name", "_open")

    def __init__(self, name: str) -> None:
        self._name = span_name(name)
        self._open: Open | None = None

    def __enter__(self) -> Self:
        spans = HERE.get().spans
        if spans is not None:
            self._open = spans.begin(self._name, time.perf_counter())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open is not None:
            self._open.ended = time.perf_counter()
