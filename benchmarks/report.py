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
    """Of the ratio to nginx if `relative`, else of the sidecar's figure."""
    relative: bool = False
    digits: int = 1
    strict: bool = False
    """Below the limit, not at it."""
    compared: bool = True
    """Whether ratios mean something; those of small differences do not."""

    def figure(self, peer: str) -> float | None:
        return statistics.median(self.values[peer]) if self.values.get(peer) else None

    @property
    def ratio(self) -> float | None:
        own, theirs = self.figure("sidecar"), self.figure("nginx")
        return own / theirs if self.compared and own and theirs else None

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
        unit = "x nginx" if self.relative else f" {self.unit}"
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
    lines: list[tuple[str, ...]] = [("", *PEERS, "to nginx", "to bare", "target", "")]
    for row in rows:
        verdict = {True: "ok", False: "MISSED", None: ""}[row.met]
        lines.append(
            (
                f"{row.name}, {row.unit}",
                *(_number(row.figure(peer), row.digits) for peer in PEERS),
                f"{row.ratio:.1f}x" if row.ratio is not None else "",
                f"{row.ratio_to_bare:.2f}x" if row.ratio_to_bare is not None else "",
                row.target,
                verdict,
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = []
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:6], widths[1:6], strict=True)]
        cells += [line[6].ljust(widths[6]), line[7]]
        shown.append("  ".join(cells).rstrip())
    return "\n".join(shown)


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
                "ratio_to_nginx": row.ratio,
                "target": row.target or None,
                "met": row.met,
            }
            for row in rows
        ],
    }


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
