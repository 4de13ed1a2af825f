"""What `slipstream tune` reads: JSON lines, each a labelled pair of questions or the record of a lookup."""

import gzip
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from sidecar.cache.records import NAME, OLDER
from sidecar.core.values import ConfigError

_GZIP = b"\x1f\x8b"
_YEAR_10000 = 253_402_300_800
"""In unix seconds: what no calendar can show."""
_Label = bool | Annotated[int, msgspec.Meta(ge=0, le=1)]


class Pair(msgspec.Struct, frozen=True):
    """Two questions, and whether one answer serves both."""

    a: str
    b: str
    same: _Label


class Record(msgspec.Struct, frozen=True):
    """A lookup whose outcome is known: of `shadow` mode any, of `verify` a hit that was checked."""

    kind: Literal["shadow", "verify"]
    at: Annotated[float, msgspec.Meta(ge=0, lt=_YEAR_10000)]
    """Unix seconds."""
    upstream: str
    path: str
    similarity: float | None
    """None where there was no candidate."""
    threshold: float
    """In force at that time."""
    namespace: str | None = None
    scope: str = ""
    asked: str = ""
    stored: str | None = None
    """Hashes: of the scope and of the two questions."""
    guard: str | None = None
    """Why it would not have been served."""
    same: bool | None = None
    """Both answers are the same text."""
    answers: float | None = None
    """Their cosine, where they are not."""
    differs: str | None = None
    """In what they differ, however near they are."""

    def right(self, agree: float) -> bool | None:
        """Whether both answers say the same; None where they could not be compared."""
        if self.same is None and self.answers is None:
            return None
        near = self.answers is not None and self.answers >= agree
        return self.same is True or (near and self.differs is None)


class Found(msgspec.Struct):
    """What was in the files."""

    pairs: list[Pair] = []
    records: Counter[Record] = msgspec.field(default_factory=Counter)
    """How often each, the time of day aside."""
    since: float | None = None
    until: float | None = None
    damaged: int = 0
    """Lines that cannot be read as either."""
    left_out: int = 0
    """Records that a filter leaves out."""


class Filter(msgspec.Struct, frozen=True):
    """Which records are meant."""

    upstream: str | None = None
    path: str | None = None
    """And what is below it."""
    namespace: str | None = None

    def takes(self, record: Record) -> bool:
        """Whether it is one of them."""
        return (
            (self.upstream is None or record.upstream == self.upstream)
            and (self.path is None or below(record.path, self.path))
            and (self.namespace is None or record.namespace == self.namespace)
        )


def below(path: str, prefix: str) -> bool:
    """Whether it is that path, or one below it, as in the configuration."""
    return path == prefix or path.startswith(prefix.rstrip("/") + "/")


def recorded(folder: Path) -> list[Path]:
    """The files with records in a data folder, the older first. Raises ConfigError."""
    try:
        return [path for path in (folder / OLDER, folder / NAME) if path.is_file()]
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be used: {error.strerror}") from None


def read(files: Iterable[Path], wanted: Filter) -> Found:
    """Everything in the files; `-` is stdin. Raises ConfigError when one cannot be read."""
    found = Found()
    for path in files:
        try:
            with _opened(path) as file:
                for line in _lines(file, found):
                    _take(line, wanted, found)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Iterable[bytes]]:
    """Its lines, unpacked if they are packed."""
    with nullcontext(sys.stdin.buffer) if str(path) == "-" else path.open("rb") as file:
        if isinstance(file, BufferedReader) and file.peek(len(_GZIP)).startswith(_GZIP):
            with gzip.open(file) as unpacked:
                yield unpacked
        else:
            yield file


def _lines(file: Iterable[bytes], found: Found) -> Iterator[bytes]:
    """Those with something on them. What is cut off or damaged in a compressed file counts as one."""
    try:
        for line in file:
            if not line.isspace():
                yield line
    except (gzip.BadGzipFile, EOFError, zlib.error):
        found.damaged += 1


def _take(line: bytes, wanted: Filter, found: Found) -> None:
    try:
        fields = msgspec.json.decode(line, type=dict[str, object])
        if "kind" not in fields:
            found.pairs.append(msgspec.convert(fields, Pair))
            return
        record = msgspec.convert(fields, Record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        found.damaged += 1
        return
    if not wanted.takes(record):
        found.left_out += 1
        return
    found.since = record.at if found.since is None else min(found.since, record.at)
    found.until = record.at if found.until is None else max(found.until, record.at)
    found.records[msgspec.structs.replace(record, at=0.0)] += 1
