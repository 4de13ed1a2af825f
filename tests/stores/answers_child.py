"""Another process that keeps answers: `python -m tests.stores.answers_child WHAT FOLDER ...`."""

import os
import random
import subprocess
import sys
from pathlib import Path

from sidecar.stores.base import StoreError
from sidecar.stores.disk import DiskStore
from tests.stores.answers_rig import DATABASE, LIMIT, is_whole, key, logged, near, put, sealed
from tests.stores.child import Ballast, say

SMALL = 1 << 20
SIZES = [10, 3000, 5000, 20_000, 300_000]


def churn(store: DiskStore, seed: int, number: int) -> None:
    """One change, of any kind."""
    dice = random.Random(f"{seed}-{number}")
    about = dice.randrange(60)
    name = f"{seed}-{about}"
    if number % 10 == 7:
        store.purge(f"{dice.randrange(4)}")
    elif number % 10 == 8:
        store.touch([key(f"{seed}-{some}") for some in range(60)])
    elif number % 30 == 19:
        store.delete([key(name)])
    else:
        # Those with odd numbers have a question, and say so.
        asked = near(f"{name} {dice.randrange(2)}") if about % 2 else None
        body = bytes([about % 2]) + dice.randbytes(dice.choice(SIZES))
        put(store, name, sealed(body), tag=f"{dice.randrange(4)}", near=asked)
        store.served(f"id {number % 7}", key(name))
    found = store.get(key(name))
    assert found is None or is_whole(found)


def mortal(folder: Path) -> None:
    """For each line a process that changes things until it is killed; `dead` once it is."""
    for turn, _ in enumerate(sys.stdin):
        pid = os.fork()
        if not pid:
            say("pid", os.getpid())
            store = DiskStore.open(folder, SMALL)
            number = 0
            while True:
                churn(store, turn, number)
                say("did", number)
                number += 1
        os.waitpid(pid, 0)
        say("dead")


def busy(folder: Path, seed: int) -> None:
    """Many changes, while others do the same."""
    store = DiskStore.open(folder, SMALL)
    say("open")
    for number in range(300):
        try:
            churn(store, seed, number)
        except StoreError as error:
            # They never rest, and SQLite's locks are not fair.
            assert str(error) == "answers: another process has locked it (SQLITE_BUSY)"
    store.close()
    say("fine")


def obey(folder: Path) -> None:
    """What the lines say, with the results."""
    store = DiskStore.open(folder, LIMIT)
    log = store.changes()
    say("open")
    for line in sys.stdin:
        what, *words = line.split()
        if what == "put":
            put(store, words[0], sealed(words[0].encode()), tag=words[1])
            say("put")
        elif what == "ask":
            put(store, words[0], sealed(words[0].encode()), near=near(words[0]))
            say("asked")
        elif what == "note":
            say(store.note(key(words[0]), near(words[1])))
        elif what == "log":
            say(len(log.after(0, 1000)), len(log.noted(log.alive())))
        elif what == "served":
            store.served(words[0], key(words[1]))
            say("served")
        elif what == "whose":
            say(store.served_key(words[0]) == key(words[1]))
        elif what == "has":
            say(store.get(key(words[0])) is not None)
        elif what == "generation":
            say(store.generation)
        else:
            say(getattr(store, what)(*words))


def refused(call, *arguments) -> str:
    try:
        call(*arguments)
    except (StoreError, OSError) as error:
        assert "\n" not in str(error)
        say("refused", error)
        return str(error)
    raise AssertionError(f"{call} worked")


def full(folder: Path) -> None:
    """Life on a full disk, and afterwards."""
    disk = Ballast(folder.parent)
    disk.fill()
    refused(DiskStore.open, folder, LIMIT)
    disk.free()
    store = DiskStore.open(folder, LIMIT)
    assert store.set_aside is None
    large = sealed(b"secret" * 50_000)
    for turn in range(3):
        put(store, f"kept {turn}", sealed(b"kept" * 5000))
        disk.fill()
        assert "the disk is full" in refused(put, store, "large", large)
        assert "the disk is full" in refused(put, store, f"kept {turn}", large)
        asked = near("large", traits=bytes(1 << 20))
        assert "the disk is full" in refused(store.note, key("kept 0"), asked)
        assert logged(store) == dict.fromkeys(
            map(key, [f"kept {some}" for some in range(turn)]), near("kept")
        )
        assert store.get(key("large")) is None
        assert store.get(key(f"kept {turn}")) == sealed(b"kept" * 5000)
        assert store.stats().entries == turn + 1
        assert len(list(store.rows(10))) == turn + 1
        disk.free()
        assert store.note(key(f"kept {turn}"), near("kept"))
    put(store, "large", large)
    assert store.get(key("large")) == large
    put(store, "gone", large)
    disk.fill()
    before = store.generation
    try:
        assert store.delete([key("gone")]) == 1
    except StoreError as error:
        say("refused", error)
    assert store.generation != before
    disk.free()
    store.delete([key("gone")])
    store.close()
    store = DiskStore.open(folder, LIMIT)
    assert store.set_aside is None
    assert store.get(key("large")) == large
    assert store.get(key("gone")) is None
    assert len(logged(store)) == 3
    assert store.clear() == 4
    assert logged(store) == {}
    store.close()
    say("fine")


def readonly(folder: Path) -> None:
    """A file system that cannot be written to any more."""
    store = DiskStore.open(folder, LIMIT)
    put(store, "a", sealed(b"a"))
    store.close()
    subprocess.run(["mount", "-o", "remount,ro", str(folder.parent)], check=True)
    refused(DiskStore.open, folder, LIMIT)
    refused(DiskStore.open, folder.parent / "other", LIMIT)
    subprocess.run(["mount", "-o", "remount,rw", str(folder.parent)], check=True)
    store = DiskStore.open(folder, LIMIT)
    assert store.set_aside is None
    assert store.get(key("a")) == sealed(b"a")
    store.close()
    say("fine")


def nobody(folder: Path) -> None:
    """Somebody who may not do everything, in a folder of theirs."""
    os.chown(folder.parent, 65534, 65534)
    os.setgid(65534)
    os.setuid(65534)
    store = DiskStore.open(folder, LIMIT)
    put(store, "a", sealed(b"a"))
    store.close()
    for path, mode in ((folder, 0o500), (folder, 0), (folder / DATABASE, 0o400), (folder / DATABASE, 0)):
        before = path.stat().st_mode & 0o777
        path.chmod(mode)
        refused(DiskStore.open, folder, LIMIT)
        path.chmod(before)
    folder.parent.chmod(0o500)
    refused(DiskStore.open, folder.parent / "other", LIMIT)
    folder.parent.chmod(0o700)
    store = DiskStore.open(folder, LIMIT)
    assert store.set_aside is None
    assert store.get(key("a")) == sealed(b"a")
    store.close()
    say("fine")


if __name__ == "__main__":
    what, where = sys.argv[1], Path(sys.argv[2])
    if what == "busy":
        busy(where, int(sys.argv[3]))
    else:
        {"mortal": mortal, "obey": obey, "full": full, "readonly": readonly, "nobody": nobody}[what](where)
