"""How far a download is: a bar on a terminal, lines elsewhere."""

import sys
from typing import Any, Self


class Shown:
    """A `Report` for stderr."""

    def __init__(self, *, quiet: bool) -> None:
        """`quiet`: only lines that say why something did not work, and none of progress."""
        self._quiet = quiet
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(
                *columns, console=Console(stderr=True), transient=True, redirect_stdout=False
            )
            self._bar.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def failed(self, line: str) -> None:
        # Above a bar, which rich sees to.
        print("".join(char if char.isprintable() else "?" for char in line), file=sys.stderr, flush=True)

    def step(self, line: str) -> None:
        if not self._quiet:
            self.failed(line)

    def progress(self, title: str, done: int, total: int) -> None:
        if self._bar is None:
            return
        if title not in self._tasks:
            for task in self._tasks.values():
                self._bar.update(task, visible=False)
            self._tasks[title] = self._bar.add_task(title, total=total)
        self._bar.update(self._tasks[title], completed=done)
