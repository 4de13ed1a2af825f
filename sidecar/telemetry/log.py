"""Log lines: structlog in front, one writer thread behind.

A line is rendered on the event loop and written by a thread, in batches: a log pipe that nobody reads
must not stop traffic (the event loop does no blocking work). What does not fit in the buffer is counted
and reported, never waited for.
"""

import asyncio
import functools
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, BinaryIO, Literal, Protocol

import orjson
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

from sidecar.telemetry.console import console_line

Turns = AbstractContextManager[None]

_FLUSH = 0.05
_BUFFER = 8 << 20

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Level:
    """From which level on lines are written. It may be changed while they are."""

    def __init__(self, name: str) -> None:
        self.set(name)

    def set(self, name: str) -> None:
        """`name`: one of `LEVELS`."""
        self.least = LEVELS[name]

    def drop(self, _logger: WrappedLogger, name: str, fields: EventDict) -> EventDict:
        """A processor that lets no other lines through."""
        if LEVELS[name] < self.least:
            raise structlog.DropEvent
        return fields


class LineWriter:
    """Takes lines from one thread, the event loop's, and writes them from another."""

    def __init__(self, stream: BinaryIO, turn: Turns | None = None) -> None:
        """`turn`: a lock that is held for each write, where other processes write to the same stream: what
        does not fit into a pipe at once could else end up inside of another one's line."""
        self._stream = stream
        self._turn: Turns = nullcontext() if turn is None else turn
        self._lines: list[bytes] = []
        self._queued = 0
        self._dropped = 0
        self.dropped = 0
        """Lines that were lost since the beginning."""
        self._lock = threading.Condition()
        self._handed: list[bytes] = []
        self._pending = 0
        """Bytes handed over and not yet written; changed under the lock only."""
        self._closed = False
        self._scheduled = False
        self._thread = threading.Thread(target=self._run, name="slipstream-log", daemon=True)
        self._thread.start()

    def share(self, turn: Turns) -> None:
        """From now on others write to the same stream; see `turn`."""
        self._turn = turn

    def write(self, line: bytes) -> None:
        """Queue one line, newline included."""
        if self._queued + self._pending + len(line) > _BUFFER:
            self._dropped += 1
            self.dropped += 1
            return
        self._lines.append(line)
        self._queued += len(line)
        if not self._scheduled:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                self.flush()
                return
            self._scheduled = True
            loop.call_later(_FLUSH, self.flush)

    def flush(self) -> None:
        """Hand what is queued to the thread."""
        self._scheduled = False
        with self._lock:
            if self._dropped:
                lost = orjson.dumps(
                    {
                        "event": "log_lines_dropped",
                        "level": "warning",
                        "lines": self._dropped,
                    }
                )
                self._lines.append(lost + b"\n")
                self._dropped = 0
            self._handed += self._lines
            self._pending += self._queued
            self._lock.notify()
        self._lines = []
        self._queued = 0

    def close(self, timeout: float = 2.0) -> None:
        """Write what is left, but wait no longer than `timeout` seconds for a reader."""
        self.flush()
        with self._lock:
            self._closed = True
            self._lock.notify()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._handed and not self._closed:
                    self._lock.wait()
                lines, self._handed = self._handed, []
                if not lines and self._closed:
                    return
            data = b"".join(lines)
            try:
                with self._turn:
                    self._stream.write(data)
                    self._stream.flush()
            except (OSError, ValueError):
                pass  # nobody to tell: this was the way to tell
            with self._lock:
                self._pending -= sum(map(len, lines))


class Writer(Protocol):
    """Takes rendered lines, newline included."""

    def write(self, line: bytes) -> None: ...


class _Sink:
    """What structlog calls with a rendered line."""

    def __init__(self, writer: Writer) -> None:
        self._write = writer.write

    def msg(self, line: bytes) -> None:
        self._write(line)

    debug = info = warning = error = critical = msg


def make_logger(writer: Writer, form: Literal["json", "console"], level: str | Level) -> FilteringBoundLogger:
    """A logger for one process. It takes events and fields, never sentences with data in them."""
    shown = Level(level) if isinstance(level, str) else level
    render: Callable[[WrappedLogger, str, EventDict], Any] = _console if form == "console" else _json
    logger: FilteringBoundLogger = structlog.wrap_logger(
        _Sink(writer),
        processors=[shown.drop, render],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS["debug"]),
        cache_logger_on_first_use=True,
    )
    return logger


def request_lines(
    writer: Writer, form: Literal["json", "console"], level: str | Level
) -> Callable[[dict[str, object]], None]:
    """Writes latency lines, one per request: the same lines as the logger's, without its layers.

    A logger call costs several times what serialising the line does, and this one is on every request.
    """
    render = _render_console if form == "console" else _render_json
    write, info = writer.write, LEVELS["info"]
    shown = Level(level) if isinstance(level, str) else level

    def log(fields: dict[str, object]) -> None:
        if shown.least <= info:
            write(render("info", "request", fields))

    return log


def stderr_writer(turn: Turns | None = None) -> LineWriter:
    """The writer of a process's own log. `turn`: see `LineWriter`."""
    return LineWriter(sys.stderr.buffer, turn)


def _json(_logger: WrappedLogger, name: str, fields: EventDict) -> bytes:
    return _render_json(name, fields.pop("event"), fields)


def _console(_logger: WrappedLogger, name: str, fields: EventDict) -> bytes:
    return _render_console(name, fields.pop("event"), fields)


def _render_json(level: str, event: str, fields: Mapping[str, object]) -> bytes:
    line = {"timestamp": now(), "level": level, "event": event, **fields}
    return orjson.dumps(line, default=str, option=orjson.OPT_APPEND_NEWLINE)


def _render_console(level: str, event: str, fields: Mapping[str, object]) -> bytes:
    line = console_line({"timestamp": now(), "level": level, "event": event, **fields})
    return line.encode("utf-8", "backslashreplace") + b"\n"


def now() -> str:
    """The time, in ISO 8601, UTC. The part down to the second is made once a second."""
    now = time.time()
    second = int(now)
    return f"{_second(second)}.{int((now - second) * 1_000_000):06d}Z"


@functools.lru_cache(maxsize=1)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def place_of(error: BaseException) -> str | None:
    """File and line at which it was raised."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame is not None else None


def format_of(configured: str) -> Any:
    """json or console, `auto` resolved."""
    if configured != "auto":
        return configured
    return "console" if sys.stderr.isatty() else "json"
