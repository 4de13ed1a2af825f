"""A lock between processes, for what only one of them may do at a time."""

import os
import time
from pathlib import Path

_PAUSE = 50e-6


class Turn:
    """`with` it held. It ends with whoever holds it, killed or not. POSIX only, and for one thread."""

    def __init__(self, path: Path) -> None:
        """`path`: the file that is locked. It may have content, which is not touched. Raises OSError."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> None:
        import fcntl  # noqa: PLC0415 - exists on POSIX only

        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_error: object) -> None:
        import fcntl  # noqa: PLC0415 - exists on POSIX only

        fcntl.flock(self._file, fcntl.LOCK_UN)

    def take(self, patience: float) -> bool:
        """Hold it, if that can be had within so many seconds; returns whether. `release` follows, then."""
        import fcntl  # noqa: PLC0415 - exists on POSIX only

        end = 0.0
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                now = time.monotonic()
                end = end or now + patience
                if now >= end:
                    return False
                time.sleep(_PAUSE)
            except OSError:  # no file system for it
                return False
            else:
                return True

    def release(self) -> None:
        """Hold it no longer."""
        self.__exit__()

    def close(self) -> None:
        """Be done with it. The file stays."""
        os.close(self._file)
