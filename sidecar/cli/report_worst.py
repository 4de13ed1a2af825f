"""The few requests of a log that are shown one by one."""

import heapq
from collections.abc import Iterator, Mapping
from itertools import count

import msgspec

from sidecar.cli.report_lines import Line
from sidecar.core.waterfall import SPANS, Piece

NAME = 100
"""Characters that are kept of a name."""
_SPANS = 30


class Kept(msgspec.Struct, frozen=True):
    """A request that is shown by itself."""

    timestamp: float
    request_id: str | None
    method: str | None
    path: str | None
    upstream: str | None
    model: str | None
    feature: str | None
    status: int | None
    outcome: str
    error: str | None
    cache: str | None
    ttft_ms: float | None
    total_ms: float
    pieces: list[Piece]
    spans: dict[str, float]


class Worst:
    """The requests with the highest figures."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[float, int, Kept]] = []
        self._numbers = count(0, -1)  # of equal ones, the first are kept

    def takes(self, figure: float) -> bool:
        return len(self._heap) < self._most or (self._most > 0 and figure > self._heap[0][0])

    def add(self, figure: float, kept: Kept) -> None:
        push = heapq.heappushpop if len(self._heap) >= self._most else heapq.heappush
        push(self._heap, (figure, next(self._numbers), kept))

    def __iter__(self) -> Iterator[Kept]:
        """The worst first."""
        return (kept for _, _, kept in sorted(self._heap, key=lambda entry: entry[:2], reverse=True))


def kept_of(line: Line, at: float, found: list[Piece], phases: Mapping[str, float | None]) -> Kept:
    spans = {name.removesuffix("_ms")[:NAME]: ms for name, ms in phases.items() if name not in SPANS and ms}
    return Kept(
        timestamp=at,
        request_id=cut(line.get("request_id")),
        method=cut(line.get("method")),
        path=cut(line.get("path")),
        upstream=cut(line.get("upstream")),
        model=cut(line.get("model")),
        feature=cut(line.get("feature")),
        status=line.get("status"),
        outcome=line["outcome"][:NAME],
        error=cut(line.get("error")),
        cache=cut(line.get("cache")),
        ttft_ms=line.get("ttft_ms"),
        total_ms=line["total_ms"],
        pieces=found,
        spans=dict(heapq.nlargest(_SPANS, spans.items(), key=lambda item: item[1])),
    )


def cut(name: str | None) -> str | None:
    """No more of it than is kept."""
    return name and name[:NAME]
