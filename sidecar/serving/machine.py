"""What the kernel says of this process: the memory it takes, and what it may take. Linux only; elsewhere
nobody knows, which is no error."""

import os
from contextlib import suppress
from pathlib import Path

_SYSTEM = Path("/sys/fs/cgroup")
_PROC = Path("/proc/self")
_UNLIMITED = 1 << 60
"""Version 1 of cgroups writes a number near 2**63 where there is no limit."""


class Memory:
    """Reads what this process takes; one descriptor, so that it can be read when none is left."""

    def __init__(self, path: Path = _PROC / "statm") -> None:
        self._file: int | None = None
        with suppress(OSError):
            self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def used(self) -> int | None:
        """Bytes in memory that are its own: what it shares with files can be had back at any time. None where
        that cannot be told."""
        if self._file is None:
            return None
        try:
            _, resident, shared, *_ = [int(pages) for pages in os.pread(self._file, 128, 0).split()]
        except (OSError, ValueError):
            return None
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        """Read no more."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def allowed(root: Path = _SYSTEM, proc: Path = _PROC) -> int | None:
    """Bytes that this process and those beside it may take: the least limit of its control groups, or the
    machine's memory. Beyond some of them the kernel kills, beyond others it only slows down, which is no
    better for who waits. None where that cannot be told."""
    limits = [limit for folder, name in _groups(root, proc) if (limit := _read(folder, name)) is not None]
    with suppress(OSError, ValueError, AttributeError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min([limit for limit in limits if 0 < limit < _UNLIMITED], default=None)


def _groups(root: Path, proc: Path) -> list[tuple[Path, str]]:
    """The folders of this process's groups, each with all those above it: a limit of any of them holds. What
    is mounted in a container may begin anywhere, so its top is among them in any case."""
    try:
        lines = (proc / "cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    found: list[tuple[Path, str]] = []
    names: tuple[str, ...]
    for line in lines:
        _, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        if not kinds:
            top, names = root, ("memory.max", "memory.high")
        elif "memory" in kinds.split(","):
            top, names = root / "memory", ("memory.limit_in_bytes",)
        else:
            continue
        folder = top / path.lstrip("/")
        while folder != top and top in folder.parents:
            found += [(folder, name) for name in names]
            folder = folder.parent
        found += [(top, name) for name in names]
    return found


def _read(folder: Path, name: str) -> int | None:
    try:
        return int((folder / name).read_text(encoding="ascii"))
    except (OSError, ValueError):  # `max` is none
        return None
