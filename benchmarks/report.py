"""From figures to what is printed: medians, ratios, and whether each target was met."""

import os
import platform
import statistics
import time
from typing import NamedTuple

from benchmarks.measure import Values

PEERS = ("nginx", "sidecar", "bare")


class Row(NamedTuple):
    """One line of the table."""

    name: str
    unit: str
    values: Values
    limit: float | None = None
    """Of the ratio to `base` if `relative`, else of the sidecar's figure."""
    relative: bool = False
    digits: int = 1
    strict: bool = False
    """Below the limit, not at it."""
    compared: bool = True
    """Whether ratios mean something; those of small differences do not."""
    base: str = "nginx"
    """What the figure is set beside: nginx, or something of the sidecar's own; "" for nothing."""
    note: str = ""
    """What one should know of it."""

    @property
    def label(self) -> str:
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def figure(self, peer: str) -> float | None:
        return statistics.median(self.values[peer]) if self.values.get(peer) else None

    @property
    def ratio(self) -> float | None:
        if self.base != "nginx":
            # They were measured in pairs: the noise of a moment is in both.
            pairs = zip(self.values.get("sidecar", ()), self.values.get(self.base, ()), strict=False)
            return statistics.median([own / theirs for own, theirs in pairs]) if self._based else None
        own, theirs = self.figure("sidecar"), self.figure("nginx")
        return own / theirs if self.compared and own and theirs else None

    @property
    def _based(self) -> bool:
        return bool(self.values.get(self.base))

    @property
    def ratio_to_bare(self) -> float | None:
        own, theirs = self.figure("sidecar"), self.figure("bare")
        return own / theirs if self.compared and own and theirs else None

    @property
    def met(self) -> bool | None:
        """None where there is no target, or nothing to compare with."""
        found = self.ratio if self.relative else self.figure("sidecar")
        if self.limit is None or found is None:
            return None
        return found < self.limit if self.strict else found <= self.limit

    @property
    def target(self) -> str:
        if self.limit is None:
            return ""
        unit = f"x {self.base}" if self.relative else f" {self.unit}".rstrip()
        return f"{'<' if self.strict else '<='} {self.limit:g}{unit}"


def machine() -> dict[str, object]:
    """What the figures depend on, without saying whose machine it is."""
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "date": time.strftime("%Y-%m-%d"),
    }


def table(rows: list[Row]) -> str:
    """Those beside nginx."""
    lines = [["", *PEERS, "to nginx", "to bare", "target", ""]]
    lines += [
        [
            row.label,
            *(_number(row.figure(peer), row.digits) for peer in PEERS),
            f"{row.ratio:.1f}x" if row.ratio is not None else "",
            f"{row.ratio_to_bare:.2f}x" if row.ratio_to_bare is not None else "",
            row.target,
            _VERDICT[row.met],
        ]
        for row in rows
        if row.base == "nginx"
    ]
    return aligned(lines, "<>>>>><<")


def own_table(rows: list[Row]) -> str:
    """Those of the sidecar by itself."""
    lines = [["", "sidecar", "beside", "", "ratio", "target", ""]]
    lines += [
        [
            row.label,
            _number(row.figure("sidecar"), row.digits),
            _number(row.figure(row.base), row.digits),
            row.base,
            f"{row.ratio:.2f}x" if row.ratio is not None else "",
            row.target,
            _VERDICT[row.met],
        ]
        for row in rows
        if row.base != "nginx"
    ]
    return aligned(lines, "<>><><<")


def aligned(lines: list[list[str]], sides: str) -> str:
    if len(lines) == 1:
        return ""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)
        ).rstrip()
        for line in lines
    )


_VERDICT = {True: "ok", False: "MISSED", None: ""}


def as_json(rows: list[Row], busiest: dict[str, float]) -> dict[str, object]:
    return {
        "machine": machine(),
        "busiest_share_of_a_core": busiest,
        "rows": [
            {
                "name": row.name,
                "unit": row.unit,
                "median": {peer: row.figure(peer) for peer in row.values},
                "rounds": row.values,
                "beside": row.base,
                "ratio": row.ratio,
                "target": row.target or None,
                "met": row.met,
                "note": row.note,
            }
            for row in rows
        ],
    }


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
