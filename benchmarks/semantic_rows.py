"""Rows of the table for what is to be large."""

from benchmarks.report import Row


class AtLeast(Row):
    """Its limit is one from below."""

    @property
    def met(self) -> bool | None:
        found = self.figure("sidecar")
        return None if self.limit is None or found is None else found >= self.limit

    @property
    def target(self) -> str:
        return "" if self.limit is None else f">= {self.limit:g}{self.unit and ' '}{self.unit}"
