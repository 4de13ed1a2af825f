"""What is written down of semantic matches that were compared with real answers: one JSON line each.

Hashes and scores, no texts, unless that is configured. `slipstream tune` reads it.
"""

import errno
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import orjson

from sidecar.cache.worker import Worker

NAME = "shadow.jsonl"
"""In the data folder."""
OLDER = NAME + ".1"
"""What was there before the file was full."""
MOST = 64 << 20
"""Bytes of one file."""

_WAITING = 256
"""Lines that may wait for the disk."""


class Records:
    """Appends lines, in a thread. Several processes may write to the same file."""

    def __init__(self, path: Path, on_failure: Callable[[BaseException], None], most: int = MOST) -> None:
        """`on_failure` is told of what the disk does not take."""
        self._path = path
        self._most = most
        self._on_failure = on_failure
        self._worker = Worker("slipstream-records", on_failure)
        self._waiting = 0

    def write(self, record: Mapping[str, object]) -> None:
        """Never raises; a line that cannot be written is lost, and so is one behind too many that wait."""
        if self._waiting >= _WAITING:
            self._on_failure(OSError(errno.EAGAIN, "the disk does not keep up"))
            return
        self._waiting += 1
        line = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)

        def done(_result: None, error: BaseException | None) -> None:
            self._waiting -= 1
            if error is not None:
                self._on_failure(error)

        with suppress(RuntimeError):  # no thread to be had
            self._worker.do(lambda: self._append(line), done)

    async def flush(self, patience: float) -> None:
        """Wait until what was written is there, but no longer than so many seconds."""
        with suppress(TimeoutError, RuntimeError):
            await self._worker.result(lambda: None, patience)

    def close(self) -> None:
        """No more."""
        self._worker.stop()

    def _append(self, line: bytes) -> None:
        """Raises OSError."""
        file = os.open(
            self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600
        )
        try:
            # One call: lines of several processes do not mix.
            if (count := os.write(file, line)) < len(line):
                self._take_back(file, count)
            if os.fstat(file).st_size > self._most:
                self._turn(file)
        finally:
            os.close(file)

    @staticmethod
    def _take_back(file: int, count: int) -> None:
        """What could not be written whole must not be the beginning of the next line."""
        end = os.lseek(file, 0, os.SEEK_CUR)
        if os.fstat(file).st_size == end:
            os.ftruncate(file, end - count)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _turn(self, file: int) -> None:
        if sys.platform == "win32":
            return
        import fcntl  # noqa: PLC0415 - exists on POSIX only

        with suppress(BlockingIOError, FileNotFoundError):  # another process is at it
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file).st_ino == self._path.stat().st_ino:
                self._path.rename(self._path.with_name(OLDER))
