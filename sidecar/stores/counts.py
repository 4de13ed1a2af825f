"""Counters that outlive the process: one small JSON file, added to by any number of processes.

Nobody depends on them. What cannot be read is not mended but begun anew.
"""

import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import msgspec

__all__ = ["NAME", "Counts", "add", "read"]

NAME = "counts.json"
"""Of the file, in the data folder."""
_MOST = (1 << 63) - 1
_LARGEST = 1 << 20
"""Bytes of a file that may be ours."""
_PATIENCE = 5.0
"""Seconds to wait for others that add to it; each of them takes a moment."""
_PAUSE = 0.005

Count = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]


class Counts(msgspec.Struct, frozen=True):
    """What was counted by all processes so far."""

    since: float = 0.0
    """When counting began, in unix seconds; 0 while nothing was ever counted."""
    counts: dict[str, Count] = {}


def add(path: Path, counts: Mapping[str, int]) -> None:
    """Add to the counters in the file at `path`, which is made with mode 0600 if it is missing or damaged.
    Blocks, for some seconds at worst. Raises OSError."""
    with _locked(path):
        known = read(path)
        total = dict(known.counts)
        for name, count in counts.items():
            if count > 0:
                total[name] = min(total.get(name, 0) + count, _MOST)
        _replace(path, msgspec.json.encode(Counts(known.since or time.time(), total)))


def read(path: Path) -> Counts:
    """The counters in the file at `path`; none where it is missing or damaged. Raises OSError."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST)
        return msgspec.json.decode(content if len(content) < _LARGEST else b"", type=Counts)
    except FileNotFoundError:
        return Counts()
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return Counts()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # A file of its own is locked: the one with the counters is replaced, and a lock would go with it.
    if sys.platform == "win32":
        raise OSError(f"{path}: counting needs a POSIX system")
    import fcntl  # noqa: PLC0415 - exists on POSIX only

    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # Whoever holds it may have been stopped; waiting for ever would hold up our own end.
                if time.monotonic() > end:
                    raise
                time.sleep(_PAUSE)
        yield
    finally:
        os.close(lock)


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - of a descriptor
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
