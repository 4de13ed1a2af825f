"""Another process that uses a store: `python -m tests.stores.child WHAT FOLDER ...`."""

import os
import resource
import sys
from pathlib import Path

from sidecar.stores.jobs import JobStore, StoreError
from tests.stores.rig import order, record, result


def say(*words: object) -> None:
    os.write(1, " ".join(map(str, words)).encode() + b"\n")


def body_of(name: str) -> bytes:
    """The prompt of a job of `work`; some fit into a page, some need many."""
    number = int(name.rpartition("-")[2])
    return f"<planted-{name}>".encode() * (1 + number % 5 * 200)


def answer_to(name: str) -> bytes:
    return body_of(name).replace(b"planted", b"answer")


def work(folder: Path, prefix: str) -> None:
    """Jobs without end; each step is said once it is done."""
    store = JobStore.open(folder)
    number = 0
    while True:
        name = f"{prefix}-{number}"
        store.add(record(name, created=float(number)), order(body_of(name)))
        say("queued", name)
        if number % 4 == 3:
            assert store.cancel(name, number + 1.0)
            say("cancelled", name)
        elif number % 4:
            assert store.begin(name, number + 1.0) is not None
            say("running", name)
            if number % 4 == 1:
                store.finish(name, "complete", number + 2.0, {"events": 1}, None, result(answer_to(name)))
                say("complete", name)
        number += 1


def hold(folder: Path) -> None:
    """Add a job for each line."""
    store = JobStore.open(folder)
    say("open")
    for line in sys.stdin:
        store.add(record(line.strip()), order())
        say("added", line.strip())


class FileSizes:
    """No file may grow beyond what the largest has now."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        largest = max(file.stat().st_size for file in self.folder.iterdir())
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))

    def free(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class Ballast:
    """A file that takes all the space the file system has."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "ballast"

    def fill(self) -> None:
        with self.file.open("wb", buffering=0) as out:
            try:
                while True:
                    out.write(bytes(4096))
            except OSError:
                pass

    def free(self) -> None:
        self.file.unlink()


def fails(call, *arguments) -> None:
    try:
        call(*arguments)
    except StoreError as error:
        assert "\n" not in str(error)
        assert "secret" not in str(error)
        say("refused", error)
    else:
        raise AssertionError(f"{call.__name__} worked on a full disk")


def full(folder: Path, disk: FileSizes | Ballast) -> None:
    """Life on a full disk, and afterwards. Nothing may be lost, and nothing half done."""
    store = JobStore.open(folder)
    large = b"secret" * 100_000
    store.add(record("first"), order(b"1" * 5000))
    store.add(record("second"), order(b"2" * 5000))
    assert store.begin("first", 1001.0) is not None
    for _ in range(2):
        disk.fill()
        fails(store.add, record("secret"), order(large))
        fails(store.finish, "first", "complete", 1002.0, {}, None, result(large))
        assert store.get("secret") is None
        assert store.get("first").status == "running"
        assert store.result("first") is None
        assert store.queued() == ["second"]
        disk.free()
        store.add(record("third"), order(large))
        assert store.cancel("third", 1003.0)
        assert store.expire(1004.0) == 1
    disk.fill()
    # May work on what space there is; but once only, and with the order.
    try:
        begun = store.begin("second", 1001.0)
    except StoreError as error:
        say("refused", error)
        begun = None
    disk.free()
    again = store.begin("second", 1001.0)
    assert (begun or again).body == b"2" * 5000
    assert begun is None or again is None
    store.finish("first", "complete", 1002.0, {}, None, result(large))
    assert store.result("first").body == large
    store.close()
    store = JobStore.open(folder)
    assert store.set_aside is None
    assert store.result("first").body == large
    assert store.get("second").status == "running"
    store.close()
    say("fine")


if __name__ == "__main__":
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "work":
        work(folder, sys.argv[3])
    elif what == "hold":
        hold(folder)
    elif what == "sizes":
        full(folder, FileSizes(folder))
    else:
        full(folder, Ballast(folder))
