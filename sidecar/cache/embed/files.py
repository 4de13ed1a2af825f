"""Getting the default model's files into a working folder: each is what it should be, or is not there."""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Protocol

from sidecar.cache.embed import model
from sidecar.cache.embed.base import EmbedError
from sidecar.cache.embed.model import File

_CHUNK = 256 << 10


class Report(Protocol):
    """Who is told how it goes."""

    def failed(self, line: str) -> None:
        """What did not work, in one line for people."""

    def step(self, line: str) -> None:
        """What is done next, likewise."""

    def progress(self, title: str, done: int, total: int) -> None:
        """So many bytes of so many. Comes often."""


def take(source: IO[bytes], file: File, work: Path, step: Callable[[int], None] = lambda _: None) -> None:
    """Copy a file into the working folder, if it is the one that is wanted. `step` hears of bytes that have
    come. Raises EmbedError, and what reading and writing raise."""
    target = work / file.name
    try:
        with target.open("wb") as out:
            _check(file, *_copy(source, out, file.size, step))
            out.flush()
            os.fsync(out.fileno())
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _copy(source: IO[bytes], out: IO[bytes], most: int, step: Callable[[int], None]) -> tuple[int, str]:
    """Size and SHA-256 of what has come; not much more than `most` bytes."""
    size, made = 0, hashlib.sha256()
    while size <= most and (chunk := source.read(_CHUNK)):
        size += len(chunk)
        made.update(chunk)
        out.write(chunk)
        step(len(chunk))
    return size, made.hexdigest()


def _check(file: File, size: int, sha256: str) -> None:
    if size > file.size:
        raise EmbedError(f"{file.name} is longer than it should be ({file.size:,} bytes)")
    if size < file.size:
        raise EmbedError(f"{file.name} has {size:,} bytes of {file.size:,}")
    if sha256 != file.sha256:
        raise EmbedError(f"{file.name} is another file than the one that is known (SHA-256)")


def from_folder(folder: Path, work: Path, wanted: Iterable[File] = model.PINNED) -> None:
    """Raises EmbedError."""
    for file in wanted:
        try:
            with (folder / file.name).open("rb") as source:
                take(source, file, work)
        except OSError as error:
            raise EmbedError(f"{folder / file.name}: cannot be copied: {error.strerror}") from None
        except EmbedError as error:
            raise EmbedError(f"{folder}: {error}") from None
