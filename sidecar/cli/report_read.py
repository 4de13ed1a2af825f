"""What `slipstream report` reads from: files and stdin, plain or compressed with gzip, as lines.

However long a file or a line is, there are a few MiB of it in memory.
"""

import gzip
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from io import BufferedReader
from pathlib import Path
from typing import IO

from sidecar.cli.cache_words import plain

LONGEST = 1 << 20
"""Bytes of a line. One of the sidecar's has about a thousand; journald cuts them at 48 KiB."""
_PIECE = 1 << 20
_GZIP = b"\x1f\x8b"


class SourceError(Exception):
    """A file that cannot be read; the message is one line for people."""


class Reader:
    """The lines of all files, one after the other. Iterating raises SourceError."""

    def __init__(self, files: Sequence[Path], advance: Callable[[int], None]) -> None:
        """`advance` is told how many bytes of the files were read."""
        self._files = files
        self._advance = advance
        self.name = ""
        self.number = 0
        """Of the line that was given last, in the file of that name."""
        self.bytes = 0
        """Unpacked."""
        self.broken: list[tuple[str, int]] = []
        """Compressed files that end too early, or are damaged: name, and the last line before that."""

    def __iter__(self) -> Iterator[bytes | None]:
        """Lines without their ends; None is one that is too long."""
        for path in self._files:
            self.name, self.number = name_of(path), 0
            try:
                with _opened(path) as (file, position):
                    yield from self._lines(file, position)
            except OSError as error:
                raise _unreadable(path, error) from None

    def _lines(self, file: "IO[bytes]", position: Callable[[], int] | None) -> Iterator[bytes | None]:
        rest, skipping = b"", False
        for piece in self._pieces(file, position):
            first, *more = piece.split(b"\n")
            rest += first
            if more:
                self.number += 1
                yield None if skipping or len(rest) > LONGEST else rest
                skipping = False
                rest = more.pop()
                for line in more:
                    self.number += 1
                    yield line
            if len(rest) > LONGEST:
                rest, skipping = b"", True
        if rest or skipping:
            self.number += 1
            yield None if skipping else rest

    def _pieces(self, file: "IO[bytes]", position: Callable[[], int] | None) -> Iterator[bytes]:
        before = 0
        read: Callable[[int], bytes] = getattr(file, "read1", file.read)
        while True:
            try:
                piece = read(_PIECE)
            except (gzip.BadGzipFile, EOFError, zlib.error):
                self.broken.append((self.name, self.number))
                return
            if not piece:
                return
            self.bytes += len(piece)
            yield piece
            now = position() if position is not None else before + len(piece)
            self._advance(now - before)
            before = now


def name_of(path: Path) -> str:
    """How a source is called."""
    return "stdin" if str(path) == "-" else str(path)


def size_of(files: Sequence[Path]) -> int | None:
    """Bytes of all files; None where nobody knows. Raises SourceError for one that cannot be opened, before
    hours were spent on the others."""
    total: int | None = 0
    for path in files:
        try:
            found = os.fstat(sys.stdin.fileno()) if str(path) == "-" else path.stat()
            if stat.S_ISREG(found.st_mode):
                total = total + found.st_size if total is not None else None
                if str(path) != "-":
                    path.open("rb").close()
            else:
                total = None  # opening a pipe takes its content away
        except OSError as error:
            raise _unreadable(path, error) from None
    return total


@contextmanager
def _opened(path: Path) -> "Iterator[tuple[IO[bytes], Callable[[], int] | None]]":
    """The file, unpacked, and what says how far into it we are, where that can be known."""
    with nullcontext(sys.stdin.buffer) if str(path) == "-" else path.open("rb") as file:
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        position = file.tell if regular else None
        if isinstance(file, BufferedReader) and file.peek(len(_GZIP)).startswith(_GZIP):
            with gzip.open(file) as unpacked:
                yield unpacked, position  # type: ignore[misc]
        else:
            yield file, position


def _unreadable(path: Path, error: OSError) -> SourceError:
    return SourceError(f"{plain(name_of(path))}: cannot be read: {error.strerror or error}")
