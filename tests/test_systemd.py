"""The unit files: what systemd says of them, what they let a process do, and the real process under that.

systemd itself is not running where tests run. What it would do is done by `systemd_rig`, as far as that goes; what
is left is listed in systemd/README.md.
"""

import asyncio
import json
import os
import re
import shutil
import site
import socket
import subprocess
import sys
import tomllib
import uuid
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from sidecar.config import load
from tests import systemd_rig
from tests.cli.manager import Manager
from tests.cli.semantic_rig import PATIENT, Serving
from tests.faults.cache import PLAIN
from tests.faults.semantic import AGAIN, ASKED, OTHER, asking
from tests.faults.test_process import Process

UNITS = Path(__file__).resolve().parent.parent / "systemd"
SERVICE, SOCKET = UNITS / "slipstream.service", UNITS / "slipstream.socket"
MOST_EXPOSED = 1.5


def tool(name):
    found = shutil.which(name)
    if found is None and os.environ.get("CI"):
        pytest.fail(f"{name} is not installed")
    return pytest.mark.skipif(found is None, reason=f"there is no {name}")


def analyze(*arguments):
    command = ["systemd-analyze", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@tool("systemd-analyze")
def test_a_service_is_hardly_exposed():
    done = analyze(
        "security", "--offline=true", f"--threshold={int(MOST_EXPOSED * 10)}", "--no-pager", SERVICE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    overall = re.search(r"Overall exposure level for slipstream.service: ([\d.]+)", done.stdout)
    assert overall is not None
    assert float(overall[1]) <= MOST_EXPOSED


@tool("systemd-analyze")
def test_systemd_finds_nothing_wrong(tmp_path):
    """With a program where the unit expects it: it looks for that, too."""
    for unit in (SERVICE, SOCKET):
        text = unit.read_text().replace("/opt/slipstream/bin/slipstream", sys.executable)
        (tmp_path / unit.name).write_text(text)
    done = analyze("verify", "--man=no", *(tmp_path / unit.name for unit in (SERVICE, SOCKET)))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    # It would say so.
    (tmp_path / SERVICE.name).write_text(SERVICE.read_text().replace("ProtectHome", "ProtectHouse"))
    done = analyze("verify", "--man=no", tmp_path / SERVICE.name)
    assert "ProtectHouse" in done.stderr


def test_the_example_configuration_is_valid_as_it_is_and_with_all_of_it_in_use(tmp_path, monkeypatch):
    file = UNITS / "slipstream.toml"
    assert load(environment={}, file=file).config.cache.mode == "exact"
    lines = file.read_text().splitlines()
    used = [re.sub(r"^#(?=\[|[a-z0-9_]+ = )", "", line).replace('"..."', f'"{"1" * 64}"') for line in lines]
    assert len([1 for line, before in zip(used, lines, strict=True) if line != before]) > 10
    (tmp_path / "used.toml").write_text("\n".join(used))
    config = load(environment={}, file=tmp_path / "used.toml").config
    assert (config.server.workers, config.upstreams[0].key_file, config.clients[0].rate) == (
        2,
        "keys_openai",
        10,
    )
    unit = systemd_rig.settings(SERVICE)
    assert config.shutdown.grace < int(unit["TimeoutStopSec"][0])


def test_the_example_environment_is_valid():
    text = (UNITS / "slipstream.env").read_text()
    given = dict(
        line.removeprefix("#").split("=", 1) for line in text.splitlines() if re.match(r"#[A-Z_]+=", line)
    )
    assert len(given) > 2
    assert load(environment=given).config.cache.mode == "semantic"


def test_installing_puts_all_in_place_and_keeps_what_is_configured(tmp_path):
    def installed():
        script, variables = UNITS / "install.sh", {"PATH": os.environ["PATH"], "DESTDIR": str(tmp_path)}
        subprocess.run(["sh", str(script)], env=variables, check=True, cwd="/")
        found = [path for path in tmp_path.rglob("*") if path.is_file() or path.name == "keys"]
        return {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in found}

    expected = {
        "etc/systemd/system/slipstream.service": 0o644,
        "etc/systemd/system/slipstream.socket": 0o644,
        "etc/slipstream/slipstream.toml": 0o644,
        "etc/slipstream/slipstream.env": 0o644,
        "etc/slipstream/keys": 0o700,
    }
    assert installed() == expected
    for path in (tmp_path / "etc").rglob("slipstream.*"):
        path.write_text("mine")
    assert installed() == expected
    kept = {path.name: path.read_text() == "mine" for path in (tmp_path / "etc").rglob("slipstream.*")}
    assert kept == {SERVICE.name: False, SOCKET.name: False, "slipstream.toml": True, "slipstream.env": True}


def test_the_package_brings_the_units():
    project = tomllib.loads((UNITS.parent / "pyproject.toml").read_text())["tool"]["hatch"]["build"][
        "targets"
    ]
    assert project["wheel"]["shared-data"] == {"systemd": "share/slipstream/systemd"}
    assert "systemd" in project["sdist"]["include"]
    text = (UNITS.parent / "README.md").read_text()
    (program,) = {line.split()[0] for line in systemd_rig.settings(SERVICE)["ExecStart"]}
    assert f"{Path(program).parent}/pip install" in text
    assert f"PIPX_BIN_DIR={Path(program).parent}" in text


def test_a_service_that_does_not_start_closes_no_port():
    """A start limit would fail the socket as well; so would its own, which RestartSec= keeps out of reach. Where a
    status is not tried again, only connections do, and without a pause."""
    service = systemd_rig.settings(SERVICE)
    assert systemd_rig.settings(SERVICE, "Unit")["StartLimitIntervalSec"] == ["0"]
    assert service["Restart"] == ["always"]
    assert not service.keys() & {"RestartPreventExitStatus", "SuccessExitStatus"}
    assert int(service["RestartSec"][0]) >= 1
    assert not {key for key in systemd_rig.settings(SOCKET, "Socket") if key.startswith("TriggerLimit")}


# The commands of README, with stand-ins for what changes a machine.

STAND_INS = {
    "sudo": 'exec "$@"',
    "systemctl": 'echo "$@" >> "$DESTDIR/told"',
    "python3": 'mkdir -p "$3/bin" && cp "$BESIDE/pip" "$3/bin"',
    "pip": '[ "$*" = "install slipstream-llm" ] && brought "$(dirname "$0")/.."',
    "pipx": '[ "$*" = "install slipstream-llm" ] && mkdir -p "$PIPX_BIN_DIR" &&'
    ' brought "$PIPX_HOME/venvs/slipstream-llm"',
    "brought": 'mkdir -p "$1/share/slipstream" && cp -r "$UNITS" "$1/share/slipstream/systemd"',
}


@pytest.mark.parametrize("way", ["venv", "pipx"])
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_commands_of_the_readme_install_and_undo(tmp_path, way, mask):
    """Whatever the umask, the service's user can read what is installed; and nothing of it stays."""
    root, beside = tmp_path / "root", tmp_path / "beside"
    (root / "opt").mkdir(parents=True)
    beside.mkdir()
    for name, text in STAND_INS.items():
        (beside / name).write_text(f"#!/bin/sh\n{text}\n")
        (beside / name).chmod(0o755)
    given = {
        "PATH": f"{beside}:{os.environ['PATH']}",
        "DESTDIR": str(root),
        "BESIDE": str(beside),
        "UNITS": str(UNITS),
    }

    def run(text):
        here = re.sub(r"(?<=[\s=])/(?=(?:opt|etc)/)", f"{root}/", text)
        # Nothing of the machine itself: some of these are removed.
        assert all(path.startswith(f"{root}/") for path in re.findall(r"(?<![\w.-])/\S+", here))
        done = subprocess.run(["sh", "-ec", here], env=given, umask=mask, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")

    readme = (UNITS.parent / "README.md").read_text()
    section = readme.partition("### As a service\n")[2].partition("\n### ")[0]
    install, with_pipx, undo = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    *first, last = install.splitlines(keepends=True)
    assert len(first) == 2
    run((with_pipx if way == "pipx" else "".join(first)) + last)
    installed = [root / "opt/slipstream", *(root / "opt/slipstream").rglob("*")]
    assert len(installed) > len(list(UNITS.iterdir()))
    assert [path for path in installed if path.stat().st_mode & 0o004 == 0] == []
    assert [path for path in installed if path.is_dir() and path.stat().st_mode & 0o001 == 0] == []
    system = root / "etc/systemd/system"
    assert {path.name for path in system.iterdir()} == {SERVICE.name, SOCKET.name}
    for unit in (SERVICE, SOCKET):  # as systemctl edit makes them
        (system / f"{unit.name}.d").mkdir()
        (system / f"{unit.name}.d" / "override.conf").touch()
    run(undo)
    left = {str(path.relative_to(root)) for path in root.rglob("*")}
    assert left == {"opt", "etc", "etc/systemd", "etc/systemd/system", "told"}
    assert (root / "told").read_text().splitlines() == [
        "daemon-reload",
        "enable --now slipstream.socket slipstream.service",
        "disable --now slipstream.socket slipstream.service",
        "reset-failed slipstream.socket slipstream.service",
        "clean --what=state slipstream.service",
        "daemon-reload",
    ]


def test_what_could_not_be_tried_is_written_down():
    text = (UNITS / "README.md").read_text()
    settings = systemd_rig.settings(SERVICE).keys()
    untried = settings & systemd_rig.UNTRIED | settings & systemd_rig.IMITATED.keys()
    assert len(untried) > 5
    assert [name for name in sorted(untried) if f"`{name}" not in text] == []
    assert not settings - systemd_rig.APPLIED.keys() - systemd_rig.IMITATED.keys() - systemd_rig.UNTRIED


# The real process.

PROGRAM = """#!/opt/python/bin/python3
from {module} import main
main()
"""
STATE, RUNTIME = "/opt/var/lib/slipstream", "/opt/run/slipstream"

rooted = [
    pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's"),
    pytest.mark.skipif(
        sys.platform == "linux" and os.geteuid() != 0, reason="only root can make what systemd makes"
    ),
    tool("unshare"),
    tool("systemd-analyze"),
]


def underneath(test):
    for mark in rooted:
        test = mark(test)
    return test


class Confined:
    """Commands under the settings of the unit."""

    def __init__(self, tmp_path):
        self._folders = {STATE: tmp_path / "state", RUNTIME: tmp_path / "run"}
        for folder in self._folders.values():
            folder.mkdir()
        self.state = self._folders[STATE]
        self._keys = tmp_path / "keys"
        self._keys.mkdir(mode=0o755)
        (self._keys / "keys_openai").write_text("secret\n")

    @asynccontextmanager
    async def run(self, command, module="sidecar.cli.main", **environment):
        """`module`: what is run as `slipstream`."""
        listener = socket.create_server(("127.0.0.1", 0))
        spec = {
            "shown": {
                "/opt/python": sys.base_prefix,
                "/opt/site": site.getsitepackages()[0],
                "/opt/source": str(UNITS.parent),
                "/opt/credentials": str(self._keys),
                **{target: str(source) for target, source in self._folders.items()},
            },
            "written": [STATE, RUNTIME],
            "files": {
                "/opt/slipstream/bin/slipstream": PROGRAM.format(module=module),
                "/opt/etc/slipstream/slipstream.toml": (UNITS / "slipstream.toml").read_text(),
            },
            "command": command,
            "environment": {
                "PATH": "/usr/bin:/bin",
                "LD_LIBRARY_PATH": "/opt/python/lib",
                "PYTHONPATH": "/opt/source:/opt/site",
                "STATE_DIRECTORY": STATE,
                "RUNTIME_DIRECTORY": RUNTIME,
                "CREDENTIALS_DIRECTORY": "/opt/credentials",
                **environment,
            },
            "listen": listener.fileno(),
        }
        pipe = asyncio.subprocess.PIPE
        with listener:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, systemd_rig.__file__, str(SERVICE), json.dumps(spec)),
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                pass_fds=[listener.fileno()],
            )
        try:
            yield process
        finally:
            process.stdin.close()
            await process.wait()
            process._transport.close()


@pytest.fixture
def confined(tmp_path):
    return Confined(tmp_path)


def started():
    """The command of the unit, with its configuration where the rig has it."""
    (command,) = systemd_rig.settings(SERVICE)["ExecStart"]
    return command.replace("/etc/slipstream", "/opt/etc/slipstream").split()


@underneath
async def test_the_process_under_the_unit_serves_stores_and_compares(confined, provider, with_model):
    """uvloop, httptools, diskcache, onnxruntime, tokenizers and FAISS under system call filters, without memory that
    is written and executed: a miss, a hit, and an answer to the same question in other words."""
    model = with_model(confined.state)
    for link in list(model.rglob("*")):
        if link.is_symlink():  # into a home
            target = link.resolve()
            link.unlink()
            shutil.copy(target, link)
    name = f"@slipstream-{uuid.uuid4()}"
    given = {
        **PATIENT,
        "SLIPSTREAM_SERVER__UPSTREAM": provider.url,
        "SLIPSTREAM_ADMIN__PORT": "0",
        "SLIPSTREAM_CACHE__MODE": "semantic",
        "NOTIFY_SOCKET": name,
        "WATCHDOG_USEC": "3000000",
    }
    with closing(Manager(name)) as manager:
        async with confined.run(started(), **given) as running:
            process = Process(running)
            process.port = int((await process.event("serving"))["url"].rpartition(":")[2])
            assert (await asyncio.to_thread(manager.until, "READY"))["STATUS"].startswith("serving on")
            await asyncio.to_thread(manager.until, "WATCHDOG")
            await process.event("semantic_ready")
            sidecar = Serving(process, provider)
            first = await sidecar.missed(asking(PLAIN, ASKED))
            await sidecar.exact(asking(PLAIN, ASKED), first)
            made = await sidecar.hit(asking(PLAIN, AGAIN), first)
            assert (made.line["cache"], made.line["cache_kind"]) == ("hit", "semantic")
            await sidecar.missed(asking(PLAIN, OTHER))
            running.stdin.write(b"SIGHUP\n")
            assert (await process.event("reloaded"))["changed"] == []
            running.stdin.write(b"SIGTERM\n")
            assert await process.exited() == 0
            assert await running.stdout.read() == b""
            names = [line["event"] for line in process.lines if line["event"] != "request"]
            # No fault, no warning, nothing that could not be had.
            assert names == ["semantic_ready", "serving", "reloaded", "draining", "stopped"], process.raw
            assert [line for line in process.raw.splitlines() if not line.startswith(b"{")] == []
    assert (confined.state / "answers").is_dir()
    assert (confined.state.stat().st_mode & 0o777, confined.state.stat().st_uid) == (0o700, systemd_rig.USER)


@underneath
async def test_several_workers_under_the_unit(confined, provider):
    """Processes that are begun by a process, sockets in the runtime folder, memory that they share."""
    given = {
        "SLIPSTREAM_SERVER__UPSTREAM": provider.url,
        "SLIPSTREAM_SERVER__WORKERS": "2",
        "SLIPSTREAM_ADMIN__PORT": "0",
    }
    async with confined.run(started(), **given) as running:
        process = Process(running)
        process.port = int((await process.event("serving"))["url"].rpartition(":")[2])
        sidecar = Serving(process, provider)
        first = await sidecar.missed(asking(PLAIN, ASKED))
        await sidecar.exact(asking(PLAIN, ASKED), first)
        running.stdin.write(b"SIGHUP\n")
        assert (await process.event("reloaded"))["changed"] == []
        running.stdin.write(b"SIGTERM\n")
        assert await process.exited() == 0
        names = {line["event"] for line in process.lines}
        assert names <= {"request", "worker_started", "serving", "reloaded", "draining", "stopped"}, (
            process.raw
        )
        assert [line for line in process.raw.splitlines() if not line.startswith(b"{")] == []


@underneath
async def test_the_rig_holds_what_it_says(confined):
    """The settings of the unit really are in force there: a test of the test above."""
    async with confined.run(["/opt/slipstream/bin/slipstream"], "tests.systemd_probe") as running:
        out, err = await running.communicate()
    assert running.returncode == 0, err.decode()
    found = json.loads(out)
    assert {name: said for name, said in found.items() if said != "refused"} == {
        "a credential": "secret",
        "state": "written",
        "runtime": "written",
        "/tmp": "written",
        "capabilities": "none",
        "no new privileges": "1",
        "filters": found["filters"],
        "/proc": [],
        "open files": found["open files"],
        "core": 0,
        "mask": "0o77",
        "user": systemd_rig.USER,
        "an address": "made",
    }
    assert int(found["filters"]) == 4
