"""The data folder: whose it is, who else may look into it, whether it can be written to, and how much of it.

Nothing is changed there, but for a file that is written and removed at once.
"""

import os
import pwd
import re
import shlex
import shutil
import tempfile
import time
from pathlib import Path

from sidecar.cli.doctor_show import Finding, fail, ok, size, warn
from sidecar.config import Config
from sidecar.serving.folder import ANSWERS, data_dir

_NETWORK = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "davfs",
        "fuse.cephfs",
        "fuse.glusterfs",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "glusterfs",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "ocfs2",
        "smb3",
        "smbfs",
    }
)
_LEAST = 64 << 20
"""Bytes without which not even jobs and the log of questions have room for long."""
_AHEAD = 60.0
"""Seconds that a file may be from the future before somebody should look at the clock."""
_SECRET = 32
"""Bytes."""
_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(rb"\\([0-3][0-7]{2})")
"""A byte of a name, such as \\040 for a space; see proc(5)."""


def folder(config: Config) -> list[Finding]:
    """All that there is to say of it."""
    path = data_dir(config)
    try:
        if not path.exists():
            return _absent(config, path)
        if not path.is_dir():
            return [
                fail("data folder", f"{path} is no folder", "remove it, or choose another: --data-dir DIR")
            ]
        found = [_access(path)]
        if found[0].status == "fail":
            return found
        secret = _secret(path)
        return [*found, *([secret] if secret else []), *_file_system(path), space(config, path)]
    except OSError as error:
        fact = f"{path} cannot be looked at: {error.strerror}"
        return [fail("data folder", fact, f"run this as its owner, or correct the folders above {path}")]


def _absent(config: Config, path: Path) -> list[Finding]:
    above = next(parent for parent in path.parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        fact = f"{path} does not exist, and cannot be made in {above}"
        return [fail("data folder", fact, f"make it for the user of the sidecar, or choose another: {_DIR}")]
    fact = f"{path} is not there yet; it is made at the start, for its owner only"
    return [
        ok("data folder", fact, folder=str(path)),
        *_file_system(above, write=False),
        space(config, above),
    ]


_DIR = "--data-dir DIR"


def _access(path: Path) -> Finding:
    status = path.stat()
    mode, mine = status.st_mode & 0o777, status.st_uid == os.geteuid()
    shown = f"{path} ({mode:03o}, {_name(status.st_uid)})"
    data = {"folder": str(path), "mode": f"{mode:03o}", "owner": _name(status.st_uid)}
    quoted = shlex.quote(str(path))
    if mode & 0o077:
        fact = f"{shown}: others on this machine may look into it, and answers are stored there"
        return fail("data folder", fact, f"chmod 700 {quoted}", **data)
    if not mine and os.geteuid() != 0:
        fact = f"{shown} belongs to somebody else"
        me = _name(os.geteuid())
        return fail("data folder", fact, f"run this as {data['owner']}, or: chown -R {me} {quoted}", **data)
    if not mine:
        fact = f"{shown} belongs to another user than this command runs as"
        return warn(
            "data folder", fact, f"right if the sidecar runs as {data['owner']}: see as that user", **data
        )
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK) and not _read_only(path):
        return fail("data folder", f"{shown}: its owner may not use it", f"chmod 700 {quoted}", **data)
    return ok("data folder", shown, **data)


def _secret(path: Path) -> Finding | None:
    """The key of ids and stored answers; None where it is still to be made."""
    secret = path / "secret"
    quoted = shlex.quote(str(secret))
    try:
        status = secret.stat()
        content = secret.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        return fail("secret", f"{secret} cannot be read: {error.strerror}", f"chown and chmod 600 {quoted}")
    mode = status.st_mode & 0o777
    if len(content) != _SECRET:
        fact = f"{secret} is damaged: {len(content)} bytes instead of {_SECRET}"
        remedy = f"rm {quoted}: a new one is made, and ids and answers of before are no longer known"
        return fail("secret", fact, remedy)
    if mode & 0o077:
        return fail("secret", f"{secret} ({mode:03o}): others may read it", f"chmod 600 {quoted}")
    return ok("secret", f"{secret} ({mode:03o})")


def _file_system(path: Path, *, write: bool = True) -> list[Finding]:
    if _read_only(path):
        fact = f"{path} is on a file system that is read-only"
        return [fail("file system", fact, f"mount it for writing, or choose another folder: {_DIR}")]
    if write:
        try:
            with tempfile.NamedTemporaryFile(dir=path, prefix=".doctor-") as file:
                file.write(b"x" * 4096)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            fact = f"{path} cannot be written to: {error.strerror}"
            return [fail("file system", fact, f"make room or correct it, or choose another folder: {_DIR}")]
    kind = kind_of(path, _MOUNTS)
    if kind in _NETWORK:
        fact = f"{path} is on a network file system ({kind}), whose locks databases cannot rely on"
        return [warn("file system", fact, f"choose a folder on a local disk: {_DIR}", kind=kind)]
    return [ok("file system", f"{kind or 'it'} can be written to", kind=kind)] if write else []


def _read_only(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def kind_of(path: Path, mounts: Path) -> str | None:
    """The kind of file system, as the kernel names it; None where nobody tells. `mounts`: its list."""
    try:
        # Names are bytes: they may be no UTF-8, and hold what ends a line or a word in Unicode alone.
        lines = mounts.read_bytes().split(b"\n")
    except OSError:
        return None
    place, best, kind = str(path.resolve()), -1, None
    for line in lines:
        before, found, after = line.partition(b" - ")
        fields = before.split(b" ")
        if not found or len(fields) < 5:
            continue
        written = _ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), fields[4])
        point = os.fsdecode(written).rstrip("/")
        # The one mounted last at the same place is the one that is seen.
        if (place + "/").startswith(point + "/") and len(point) >= best:
            best, kind = len(point), after.partition(b" ")[0].decode("ascii", "replace")
    return kind


def space(config: Config, path: Path) -> Finding:
    """Free space against what stored answers may still take of it."""
    free = shutil.disk_usage(path).free
    stored = _taken(path / ANSWERS)
    grows = max(config.cache.size - stored, 0) if config.cache.mode != "off" else 0
    data = {"free_bytes": free, "answers_bytes": stored}
    if free < _LEAST:
        fact = f"only {size(free)} free on the disk of {path}"
        return fail("disk space", fact, f"make room there, or choose another disk: {_DIR}", **data)
    if free < grows + _LEAST:
        fact = f"{size(free)} free, and stored answers may take {size(grows)} more (cache.size)"
        fits = max((free + stored - 2 * _LEAST) >> 20, 1)
        return warn("disk space", fact, f"make room, or cache.size = {fits}MiB", **data)
    fact = f"{size(free)} free"
    return ok("disk space", f"{fact}; stored answers may take {size(grows)} of it" if grows else fact, **data)


def _taken(path: Path) -> int:
    """Bytes of the files there. Those that go meanwhile do not count."""
    total = 0
    for place, _, names in os.walk(path):
        for name in names:
            try:
                total += (Path(place) / name).stat().st_size
            except OSError:
                continue
    return total


def newest(path: Path) -> tuple[float, str] | None:
    """When the file there that was changed last was changed, and which it is."""
    found: tuple[float, str] | None = None
    for place, _, names in os.walk(path):
        for name in names:
            try:
                changed = (Path(place) / name).stat().st_mtime
            except OSError:
                continue
            if found is None or changed > found[0]:
                found = changed, str(Path(place) / name)
    return found


def ahead(config: Config) -> str | None:
    """What in the data folder is from the future, if anything."""
    found = newest(data_dir(config))
    if found is None or found[0] - time.time() <= _AHEAD:
        return None
    return f"{found[1]} was changed {found[0] - time.time():.0f} s from now, says its date"


def _name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
