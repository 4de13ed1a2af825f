"""A bar on stderr for what may take long; nothing at all where nobody looks."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(title: str, total: int | None, *, alone: bool = True) -> Iterator[Callable[[int], None]]:
    """Gives what is to be called with each step. `total`: None where nobody knows. `alone`: nothing else is
    being written to the terminal."""
    if not sys.stderr.isatty() or not alone:
        yield lambda _step: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    # Lines on stderr are to stand above the bar; stdout is not for the bar to redirect.
    bar = Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=True
    )
    with bar:
        task = bar.add_task(title, total=total)
        yield lambda step: bar.advance(task, step)
