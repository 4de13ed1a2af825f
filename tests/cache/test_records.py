"""cache.records: lines that several processes append, in bounded room."""

import asyncio
import json
import os
import subprocess
import sys

from sidecar.cache.records import Records


def raising(error):
    raise AssertionError(error)


async def written(path, count, most=1 << 20, failed=raising):
    records = Records(path, failed, most)
    for number in range(count):
        records.write({"number": number, "of": os.getpid()})
    await records.flush(10.0)
    records.close()


async def test_lines_are_whole_and_for_their_owner_only(tmp_path):
    path = tmp_path / "shadow.jsonl"
    await written(path, 3)
    assert [json.loads(line)["number"] for line in path.read_bytes().splitlines()] == [0, 1, 2]
    assert path.stat().st_mode & 0o777 == 0o600
    await written(path, 2)
    assert len(path.read_bytes().splitlines()) == 5


async def test_a_full_file_makes_way_and_the_last_one_is_kept(tmp_path):
    path = tmp_path / "shadow.jsonl"
    await written(path, 100, most=500)
    kept = [path.with_name("shadow.jsonl.1"), path]
    lines = [
        json.loads(line)["number"]
        for file in kept
        if file.exists()
        for line in file.read_bytes().splitlines()
    ]
    assert lines == list(range(100 - len(lines), 100))
    assert all(file.stat().st_size <= 600 for file in kept if file.exists())
    assert len(list(tmp_path.iterdir())) <= 2


async def test_a_folder_that_cannot_be_written_to_costs_only_its_lines(tmp_path):
    told = []
    await written(tmp_path / "missing" / "shadow.jsonl", 2, failed=told.append)
    await asyncio.sleep(0)
    assert [type(error) for error in told] == [FileNotFoundError, FileNotFoundError]


async def test_a_link_is_not_followed(tmp_path):
    elsewhere, path, told = tmp_path / "elsewhere", tmp_path / "shadow.jsonl", []
    elsewhere.write_bytes(b"")
    path.symlink_to(elsewhere)
    await written(path, 1, failed=told.append)
    assert elsewhere.read_bytes() == b""
    assert len(told) == 1


CHILD = """
import asyncio, pathlib, sys
from tests.cache.test_records import written
asyncio.run(written(pathlib.Path(sys.argv[1]), 200, most=int(sys.argv[2])))
"""


def test_several_processes_write_whole_lines(tmp_path):
    path = tmp_path / "shadow.jsonl"
    command = [sys.executable, "-c", CHILD, str(path), str(1 << 20)]
    running = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    numbers = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert len(numbers) == 600
    for of in {line["of"] for line in numbers}:
        assert [line["number"] for line in numbers if line["of"] == of] == list(range(200))


def test_several_processes_turn_the_page_and_lose_no_half_line(tmp_path):
    path = tmp_path / "shadow.jsonl"
    command = [sys.executable, "-c", CHILD, str(path), "2000"]
    running = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    for file in tmp_path.iterdir():
        for line in file.read_bytes().splitlines():
            json.loads(line)
