"""sidecar.cli.main: commands, help, exit codes, and how little is imported for them."""

import json
import subprocess
import sys

import pytest

from sidecar import __version__
from sidecar.cli.main import COMMANDS
from tests.cli.conftest import finished


def test_help_names_every_command(cli):
    code, out, err = cli("--help")
    assert (code, err) == (0, "")
    assert all(name in out for name in COMMANDS)
    assert cli("-h").out == out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(cli, command):
    code, out, err = cli(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: slipstream {command} ")


def test_version(cli):
    assert cli("--version")[:2] == (0, f"slipstream, version {__version__}\n")


def test_without_a_command_there_is_help_and_exit_2(cli):
    code, _, err = cli()
    assert code == 2
    assert "Commands:" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bogus"], "bogus"),
        (["serve", "--upstrem", "x"], "--upstream"),
        (["serve", "extra"], "extra"),
        (["run"], "CMD"),
        (["run", "--bogus", "true"], "--bogus"),
        (["config", "bogus"], "bogus"),
        (["config", "show", "--cache", "bogus"], "'exact'"),
        (["config", "show", "--log-format", "bogus"], "'json'"),
        (["config", "show", "--port"], "--port"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(cli, arguments, said):
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


IMPORTED = """
import json, sys
from sidecar.cli.main import main
sys.argv = ["slipstream", *sys.argv[1:]]
try:
    main()
except SystemExit as stopped:
    assert not stopped.code, stopped.code
heavy = {"aiohttp", "asyncio", "uvloop", "httptools", "structlog", "orjson", "rich", "prometheus_client", "diskcache"}
print(json.dumps(sorted(heavy & set(sys.modules))))
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["env"], ["config", "show"], ["config", "validate"]]
)
def test_what_only_prints_imports_nothing_heavy(clean, arguments):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *arguments], capture_output=True, text=True, check=True
    )
    # `env` asks the routes what the upstreams take, and the routes know the dialects.
    assert json.loads(done.stdout.splitlines()[-1]) == (["orjson"] if arguments == ["env"] else [])


def test_python_m_sidecar_is_the_same_command(clean):
    code, out, err = finished("--help")
    assert (code, err) == (0, "")
    assert out.startswith("Usage: slipstream ")
    assert finished("config", "validate", "--port", "x").code == 2
