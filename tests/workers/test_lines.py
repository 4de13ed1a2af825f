"""The log of several processes on one pipe: no line ends up inside of another one."""

import os
import subprocess
import sys

import orjson

WRITES = """
import sys
from pathlib import Path
from sidecar.stores.turn import Turn
from sidecar.telemetry.log import LineWriter
writer = LineWriter(sys.stderr.buffer)
writer.share(Turn(Path(sys.argv[1])))
for number in range(60):
    writer.write(b'{"from":%s,"number":%d,"text":"%s"}\\n' % (sys.argv[2].encode(), number, b"x" * 40_000))
    if number % 7 == 0:
        writer.flush()
writer.close(30.0)
"""


def test_lines_longer_than_what_a_pipe_takes_at_once_stay_whole(tmp_path):
    reading, writing = os.pipe()
    begin = [sys.executable, "-c", WRITES, str(tmp_path / "log.lock")]
    running = [subprocess.Popen([*begin, str(number)], stderr=writing) for number in range(2)]
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        found = [orjson.loads(line) for line in pipe]
    assert [process.wait() for process in running] == [0, 0]
    for number in range(2):
        assert [line["number"] for line in found if line["from"] == number] == list(range(60))
