"""sidecar.cli.run: a command with a sidecar around it, and its status as the exit status."""

import json
import os
import signal
import socket
import sys

import pytest

from tests.cli.conftest import UPSTREAM, finished, process

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="signals are POSIX"),
    pytest.mark.usefixtures("clean"),
]

RUN = ["run", "--upstream", UPSTREAM, "--log-format", "json"]


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 143), ("kill -KILL $$", 137)]
)
def test_the_exit_status_is_the_commands(script, status):
    code, out, err = finished(*RUN, "--", "sh", "-c", script)
    assert (code, out, err) == (status, "", "")


def test_flags_after_the_command_are_the_commands():
    assert finished(*RUN, "sh", "-c", 'echo "$0 $*"', "a", "--port", "x").out == "a --port x\n"


@pytest.mark.parametrize(("mode", "status"), [(None, 127), (0o644, 126)])
def test_a_command_that_cannot_be_run(clean, mode, status):
    program = clean / "program"
    if mode is not None:
        program.write_text("#!/bin/sh\n")
        program.chmod(mode)
    code, out, err = finished(*RUN, "--", str(program))
    assert (code, out, err.count("\n")) == (status, "", 1)
    assert str(program) in err


PROBE = """
import http.client, json, os, signal, sys
names = ["OPENAI_BASE_URL", "ANTHROPIC_BASE_URL", "GOOGLE_GEMINI_BASE_URL", "OLLAMA_HOST"]
print(json.dumps({name: os.environ.get(name) for name in names}), flush=True)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: sys.exit(40 + number))
def health():
    connection = http.client.HTTPConnection(os.environ["OLLAMA_HOST"].removeprefix("http://"))
    connection.request("GET", "/_slipstream/healthz")
    return connection.getresponse().status
# The second answer shows that the sidecar has been around its loop since it started us.
print(health(), health(), flush=True)
if "wait" in sys.argv:
    while True:
        signal.pause()
"""


@pytest.mark.parametrize("port", [None, "free"])
def test_the_command_finds_a_running_sidecar(port):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        number = str(probe.getsockname()[1])
    code, out, err = finished(*RUN, *(["--port", number] if port else []), "--", sys.executable, "-c", PROBE)
    found, health = out.splitlines()
    assert (code, health) == (0, "200 200")
    url = json.loads(found)["OLLAMA_HOST"]
    assert url == f"http://127.0.0.1:{number}" if port else url.startswith("http://127.0.0.1:")
    assert json.loads(found) == {
        "OPENAI_BASE_URL": url + "/v1",
        "ANTHROPIC_BASE_URL": url,
        "GOOGLE_GEMINI_BASE_URL": url,
        "OLLAMA_HOST": url,
    }
    assert [
        json.loads(line)["event"] for line in err.splitlines() if json.loads(line)["event"] != "request"
    ] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_the_commands_to_answer(number):
    with process(*RUN, "--", sys.executable, "-c", PROBE, "wait") as running:
        assert [running.stdout.readline() for _ in range(2)][1] == "200 200\n"
        running.send_signal(number)
        running.communicate()
        assert running.returncode == 40 + number


def test_a_port_that_is_taken_is_one_line_and_exit_2():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, out, err = finished(*RUN, "--port", str(taken.getsockname()[1]), "--", "true")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "server.port" in err


def test_a_bad_configuration_runs_nothing():
    code, out, err = finished("run", "--port", "x", "--", "echo", "ran")
    assert (code, out, err.count("\n")) == (2, "", 1)
