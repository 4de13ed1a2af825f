"""Jobs to keep, and a look into the files they are kept in.

While a store is open in this process, its files are only read by other processes: closing a file drops all
of a process's POSIX locks on it, SQLite's included.
"""

import subprocess
import sys
from array import array
from base64 import b64encode
from pathlib import Path

from sidecar.core.headers import index
from sidecar.core.types import End, Fault, Head, Outcome
from sidecar.stores.jobs import JobRecord, JobStore, Order, Result

ROOT = Path(__file__).resolve().parent.parent.parent
EVERY = bytes(range(256))
FAULT = Fault("internal", "the sidecar was stopped")
DATABASE = "jobs.sqlite3"


def record(name: str, **changes) -> JobRecord:
    known = {
        "id": name,
        "status": "queued",
        "created": 1000.5,
        "started": None,
        "ended": None,
        "labels": {"model": "m", "upstream": None, "stream": True},
        "details": {},
        "error": None,
        "webhook": None,
        "webhook_state": "none",
        "webhook_attempts": 0,
    }
    return JobRecord(**known | changes)


def order(body: bytes = b"{}", *headers: tuple[bytes, bytes], **changes) -> Order:
    known = {"method": "POST", "target": b"/v1/chat/completions", "headers": headers, "body": body}
    return Order(**known | changes)


def result(body: bytes = b"data: 1\n\n", *headers: tuple[bytes, bytes], events=(9,), end=None) -> Result:
    head = Head(200, b"OK", headers, index(headers))
    return Result(head, body, array("Q", events), end or End(Outcome.COMPLETE))


def finished(store: JobStore, name: str, body: bytes = b"data: 1\n\n", *, ended: float = 1002.0) -> None:
    """A job that has gone all the way."""
    store.add(record(name), order())
    assert store.begin(name, 1001.0) is not None
    store.finish(name, "complete", ended, {"events": 1}, None, result(body))


def encodings(secret: bytes) -> list[bytes]:
    """A secret as such, and the parts of its base64 forms that do not depend on what is around it."""
    shifted = [b64encode(bytes(shift) + secret) for shift in range(3)]
    return [secret, *(text[start:-4] for text, start in zip(shifted, (0, 2, 3), strict=True))]


def files_with(folder: Path, secret: bytes) -> list[str]:
    """The files in the folder that hold a secret, in plain or in base64; none may be unreadable."""
    asked = [part for text in encodings(secret) for part in ("-e", text.decode())]
    done = subprocess.run(
        ["grep", "-rlaF", *asked, "."], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    return sorted(done.stdout.split())


def matches(folder: Path, pattern: str) -> set[str]:
    """What the files in the folder hold of that pattern."""
    done = subprocess.run(
        ["grep", "-rhoaE", pattern, "."], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    return set(done.stdout.split())


def copied(folder: Path, to: Path) -> Path:
    """The folder as a process would find it that starts after this one was killed now."""
    subprocess.run(["cp", "-r", folder, to], check=True)
    return to


def child(*arguments: object, before: tuple[str, ...] = ()) -> subprocess.Popen:
    """`tests/stores/child.py`, with pipes."""
    command = [*before, sys.executable, "-m", "tests.stores.child", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
