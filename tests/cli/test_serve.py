"""sidecar.cli.serve: the banner, the first log line, ports, folders and signals."""

import http.client
import json
import os
import signal
import socket
from contextlib import contextmanager

import pytest

from sidecar.cli.serve import announce
from sidecar.config import Config
from sidecar.tables import ClientTable, Log, Server, Tls
from sidecar.telemetry.log import make_logger
from tests.cli.conftest import UPSTREAM, finished, process
from tests.conftest import Lines

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="signals are POSIX"),
    pytest.mark.usefixtures("clean"),
]

SERVE = ["serve", "--port", "0", "--upstream", UPSTREAM]


@contextmanager
def serving(*flags):
    """A sidecar that logs JSON, and the URL of its `serving` line."""
    with process(*SERVE, "--log-format", "json", *flags) as running:
        line = json.loads(running.stderr.readline())
        while line["event"] != "serving":
            line = json.loads(running.stderr.readline())
        yield running, line


def get(url, path):
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def events(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("path", "variables"),
    [
        (
            "",
            {
                "OPENAI_BASE_URL": "/v1",
                "ANTHROPIC_BASE_URL": "",
                "GOOGLE_GEMINI_BASE_URL": "",
                "OLLAMA_HOST": "",
            },
        ),
        ("/v1", {"OPENAI_BASE_URL": ""}),
    ],
)
def test_the_banner_has_the_export_lines(path, variables):
    with process(*SERVE[:-1], UPSTREAM + path, "--log-format", "console") as running:
        shown = banner(running)
        url = next(line for line in shown if "listens on" in line).split()[-1]
        assert [line.strip() for line in shown if "export" in line] == [
            f"export {name}={url}{ending}" for name, ending in variables.items()
        ]
        assert not any("Anyone who reaches" in line for line in shown)
        assert any(UPSTREAM + path in line for line in shown)
        assert get(url, "/_slipstream/healthz") == 200
        running.send_signal(signal.SIGTERM)
        out, _ = running.communicate()
        assert (running.returncode, out) == (0, "")


def banner(running):
    """The lines of the banner, to the last."""
    shown = []
    while not (shown and "Ctrl-C" in shown[-1]):
        line = running.stderr.readline()
        assert line, shown
        shown.append(line.rstrip("\n"))
    return shown


def test_an_open_port_is_warned_of_and_shown_as_an_address_to_call(monkeypatch):
    monkeypatch.setenv("SLIPSTREAM_SERVER__ALLOW_PUBLIC", "true")
    with process(*SERVE, "--host", "0.0.0.0", "--log-format", "console") as running:
        shown = banner(running)
        url = next(line for line in shown if "listens on" in line).split()[-1]
        port = url.rpartition(":")[2]
        assert any("Anyone who reaches" in line for line in shown)
        assert f"export OLLAMA_HOST=http://127.0.0.1:{port}" in [line.strip() for line in shown]
        assert get(f"http://127.0.0.1:{port}", "/_slipstream/healthz") == 200
    with serving("--host", "0.0.0.0") as (running, _):
        line = json.loads(running.stderr.readline())
        assert (line["event"], line["level"], line["host"]) == ("open_port", "warning", "0.0.0.0")


@pytest.mark.parametrize(
    ("host", "clients", "encrypted", "said"),
    [
        ("0.0.0.0", True, False, "unencrypted_port"),
        ("0.0.0.0", True, True, None),
        ("127.0.0.1", True, False, None),
        ("0.0.0.0", False, False, "open_port"),
    ],
)
def test_tokens_that_travel_in_the_clear_are_warned_of(host, clients, encrypted, said):
    lines = Lines()
    config = Config(
        server=Server(host=host),
        clients=[ClientTable("ann", "0" * 64)] if clients else [],
        tls=Tls("c", "k") if encrypted else Tls(),
        log=Log(format="json"),
    )
    announce(config, "http://x:1", make_logger(lines, "json", "info"))
    warnings = [line for line in lines.all if line["level"] == "warning"]
    assert [line["event"] for line in warnings] == ([said] if said else [])
    assert all(line["host"] == host for line in warnings)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_0(number):
    with serving() as (running, line):
        assert (line["url"].rpartition(":")[0], line["pid"]) == ("http://127.0.0.1", running.pid)
        assert get(line["url"], "/_slipstream/healthz") == 200
        running.send_signal(number)
        out, err = running.communicate()
    assert (running.returncode, out) == (0, "")
    assert [event["event"] for event in events(err)] == ["draining", "stopped"]


def test_a_second_signal_exits_at_once():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        upstream = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with serving("--upstream", upstream) as (running, line), socket.socket() as client:
            client.connect(("127.0.0.1", int(line["url"].rpartition(":")[2])))
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            with silent.accept()[0]:  # the call is going on, and will get no answer
                running.send_signal(signal.SIGTERM)
                assert json.loads(running.stderr.readline())["event"] == "draining"
                running.send_signal(signal.SIGTERM)
                _, err = running.communicate()
        assert running.returncode == 1
        assert [event["event"] for event in events(err)] == ["stopped_at_once"]


def test_a_port_that_is_taken_is_one_line_and_exit_2():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, out, err = finished("serve", "--port", port, "--upstream", UPSTREAM)
    assert (code, out, err.count("\n")) == (2, "", 1)
    remedy = f"server.port = {port}: in use on 127.0.0.1; choose another with --port, or 0 for a free one"
    assert err == f"slipstream: {remedy}\n"


@pytest.mark.parametrize("content", [None, b"short"])
def test_a_folder_that_cannot_be_used_is_one_line_and_exit_2(clean, content):
    folder = clean / "data"
    if content is None:
        folder.write_text("a file")
    else:
        folder.mkdir()
        (folder / "secret").write_bytes(content)
    code, out, err = finished(*SERVE, "--data-dir", str(folder))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(folder) in err


def test_the_folder_is_the_owners_alone(clean):
    with serving("--data-dir", str(clean / "a" / "b")) as (running, _):
        running.send_signal(signal.SIGTERM)
        running.communicate()
    assert (clean / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert (clean / "a" / "b" / "secret").stat().st_mode & 0o777 == 0o600
    assert len((clean / "a" / "b" / "secret").read_bytes()) == 32


@pytest.mark.parametrize("variable", ["STATE_DIRECTORY", "XDG_CACHE_HOME"])
def test_a_default_folder_that_cannot_be_used_is_a_warning(clean, variable, monkeypatch):
    (clean / "file").write_text("a file")
    monkeypatch.setenv(variable, str(clean / "file"))
    with process(*SERVE, "--log-format", "json") as running:
        lines = [json.loads(running.stderr.readline()) for _ in range(2)]
        assert [line["event"] for line in lines] == ["no_data_dir", "serving"]
        assert lines[0]["folder"].startswith(str(clean / "file"))
