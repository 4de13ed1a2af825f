"""SIGHUP to what is only starting: its ordinary meaning would be the end of it."""

import os
import signal
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")

WORKER = """
import signal, sys
from sidecar.cli import worker
class Link:
    def __init__(self, _connection):
        signal.raise_signal(signal.SIGHUP)
        print("alive", flush=True)
        sys.exit(7)
worker.Link = Link
worker.main(int(sys.argv[1]))
"""

SERVE = """
import signal, sys
from sidecar.cli.main import main
from sidecar.web.service import Service
begin = Service.start
async def start(self):
    signal.raise_signal(signal.SIGHUP)
    await begin(self)
Service.start = start
main()
"""


def test_a_worker_that_has_not_been_told_what_to_do_yet():
    mine, theirs = socket.socketpair()
    with mine, theirs:
        command = [sys.executable, "-c", WORKER, str(theirs.fileno())]
        done = subprocess.run(
            command, check=False, pass_fds=[theirs.fileno()], capture_output=True, timeout=60
        )
    assert (done.stdout, done.returncode) == (b"alive\n", 7)


def test_one_process_reads_the_file_again_once_it_serves(tmp_path):
    file = tmp_path / "slipstream.toml"
    file.write_text('[[upstreams]]\nname = "none"\nurl = "http://127.0.0.1:9"\npaths = ["/"]\n')
    flags = ["--config", str(file), "--port", "0", "--admin-port", "0", "--log-format", "json"]
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, "serve", *flags],
        stderr=subprocess.PIPE,
        env={**os.environ, "SLIPSTREAM_SERVER__DATA_DIR": str(tmp_path / "data")},
    ) as process:
        seen = []
        for line in process.stderr:
            seen.append(line)
            if b'"reloaded"' in line:
                break
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
    assert process.returncode == 0, seen
    assert [b'"serving"' in line for line in seen][-2:] == [True, False], seen
