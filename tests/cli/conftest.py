"""The command line, in this process for what only prints, and as a process of its own for what runs."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sidecar.cli.main import main
from sidecar.config import PREFIX

UPSTREAM = "http://127.0.0.1:9"
"""Nothing listens there, and nothing needs to."""


class Result(NamedTuple):
    code: int | None
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment in which nothing is configured; what is stored goes to a folder of the test."""
    for name in list(os.environ):
        if name.startswith(PREFIX) or name == "STATE_DIRECTORY":
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cli(clean: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """`cli("config", "show", SLIPSTREAM_SERVER__PORT="1")`: the command in this process."""

    def call(*arguments: str, **environment: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["slipstream", *arguments])
        with monkeypatch.context() as changed:
            for name, value in environment.items():
                changed.setenv(name, value)
            with pytest.raises(SystemExit) as stopped:
                main()
        out, err = capfd.readouterr()
        code = stopped.value.code
        return Result(0 if code is None else code, out, err)

    return call


@contextmanager
def process(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """`python -m sidecar ...`, ended when the block is left."""
    command = [sys.executable, "-m", "sidecar", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **{**pipes, **options}) as running:
        try:
            yield running
        finally:
            running.kill()


def finished(*arguments: str, **options: Any) -> Result:
    """`python -m sidecar ...`, to its end."""
    with process(*arguments, **options) as running:
        out, err = running.communicate()
        return Result(running.returncode, out, err)
