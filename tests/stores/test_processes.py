"""sidecar.stores: processes that die, that come second, and that have no disk space left."""

import os
import re
import shutil
import signal
import subprocess

import pytest

from sidecar.stores.jobs import FolderInUseError, JobStore
from tests.stores.child import answer_to, body_of
from tests.stores.rig import DATABASE, FAULT, child, order, record

KILLS = 30
LATER = {
    "queued": {"queued", "running", "complete", "cancelled"},
    "running": {"running", "complete"},
    "complete": {"complete"},
    "cancelled": {"cancelled"},
}
"""What a job may be by the time of the kill, where the last that was heard of it is this."""


def killed_after(lines, folder, prefix):
    """The last that was heard of each job of a process killed once it had said so many lines."""
    process = child("work", folder, prefix)
    said = [process.stdout.readline() for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    rest, trouble = process.communicate()
    assert process.returncode == -signal.SIGKILL, trouble.decode()
    said += [line for line in rest.splitlines(keepends=True) if line.endswith(b"\n")]
    return {name: state for state, name in (line.decode().split() for line in said)}


def test_what_was_acknowledged_outlives_kill_9(tmp_path):
    folder = tmp_path / "jobs"
    expected = {}
    for turn in range(KILLS):
        heard = killed_after(1 + turn * 7 % 40, folder, f"turn{turn}")
        store = JobStore.open(folder)
        assert store.set_aside is None
        assert store._database.rows("PRAGMA quick_check") == [("ok",)]
        for name, state in heard.items():
            found = store.get(name)
            assert found.status in LATER[state], (name, state)
            if found.status == "complete":
                assert store.result(name).body == answer_to(name)
        queued = set(store.queued())
        store.interrupt(1e6, FAULT)
        expected |= {name: store.get(name) for name in heard}
        store.close()
        # Nothing uses the files now, so this process may read them.
        content = b"".join(file.read_bytes() for file in folder.iterdir())
        prompts = {found.decode() for found in re.findall(rb"<planted-(turn\d+-\d+)>", content)}
        assert prompts == queued
    store = JobStore.open(folder)
    assert {name: store.get(name) for name in expected} == expected
    waiting = [name for name, found in expected.items() if found.status == "queued"]
    assert {name: store.begin(name, 1.0) for name in waiting} == {
        name: order(body_of(name)) for name in waiting
    }
    assert len(waiting) > KILLS
    store.close()


def test_a_second_process_is_turned_away(tmp_path):
    folder = tmp_path / "jobs"
    process = child("hold", folder)
    assert process.stdout.readline() == b"open\n"
    for name in (b"one\n", b"two\n"):
        with pytest.raises(FolderInUseError) as caught:
            JobStore.open(folder)
        assert str(caught.value) == f"{folder} is in use by another process"
        process.stdin.write(name)
        process.stdin.flush()
        assert process.stdout.readline() == b"added " + name
    process.kill()
    process.communicate()
    store = JobStore.open(folder)
    assert store.set_aside is None
    assert store.queued() == ["one", "two"]
    store.close()


def test_a_second_store_in_this_process_is_turned_away(tmp_path):
    first = JobStore.open(tmp_path)
    with pytest.raises(FolderInUseError):
        JobStore.open(tmp_path)
    first.add(record("j"), order())
    assert first.queued() == ["j"]
    first.close()
    second = JobStore.open(tmp_path)
    assert second.queued() == ["j"]
    second.close()


def test_no_file_can_grow(tmp_path):
    process = child("sizes", tmp_path / "jobs")
    said, trouble = process.communicate()
    assert process.returncode == 0, trouble.decode()
    assert said.endswith(b"fine\n")
    assert b"the disk reports an error" in said


def test_a_full_disk(tmp_path):
    mount = f"mount -t tmpfs -o size=4m tmpfs '{tmp_path}'"
    apart = ("unshare", "--mount", "sh", "-c")
    possible = os.geteuid() == 0 and shutil.which("unshare") is not None
    if not possible or subprocess.run([*apart, mount], capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    process = child("ballast", tmp_path / "jobs", before=(*apart, f'{mount} && exec "$@"', "sh"))
    said, trouble = process.communicate()
    assert process.returncode == 0, trouble.decode()
    assert said.endswith(b"fine\n")
    assert b"the disk is full" in said
    assert not (tmp_path / "jobs" / DATABASE).exists()
