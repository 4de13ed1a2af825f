"""Where the admin port listens, and what it says of what is missing."""

import socket

import pytest

from sidecar.config import load
from sidecar.serving.folder import open_stores
from sidecar.telemetry.log import make_logger
from sidecar.web.service import AdminPort, AdminPortError, Service
from tests.cli.conftest import finished
from tests.conftest import Lines


def service(folder, lines, port, admin, *, moves):
    config = load({"server.port": port, "admin.port": admin, "server.upstream": "http://127.0.0.1:9"}).config
    log = make_logger(lines, "json", "info")
    stores = open_stores(config, folder, log)
    return Service(config, b"s" * 32, log, lambda _line: None, stores, admin=AdminPort(folder, moves=moves))


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


async def test_it_leaves_its_usual_port_to_a_proxy_that_was_given_it(tmp_path):
    port, lines = free(), Lines()
    async with service(tmp_path, lines, port, port, moves=True) as running:
        assert running.url == f"http://127.0.0.1:{port}"
        assert running.admin.url != running.url


async def test_it_takes_a_free_port_when_nobody_chose_one(tmp_path, taken):
    lines = Lines()
    async with service(tmp_path, lines, 0, taken, moves=True) as running:
        assert running.admin.url != f"http://127.0.0.1:{taken}"
    (told,) = [line for line in lines.all if line["event"] == "admin_port_taken"]
    assert (told["port"], told["instead"]) == (taken, int(running.admin.url.rpartition(":")[2]))


async def test_a_port_that_was_chosen_and_is_taken_is_an_error(tmp_path, taken):
    with pytest.raises(AdminPortError):
        await service(tmp_path, Lines(), 0, taken, moves=False).start()


def test_the_error_says_what_to_do(tmp_path, taken):
    options = ("--port", "0", "--admin-port", str(taken), "--data-dir", str(tmp_path))
    found = finished("serve", *options, "--upstream", "http://127.0.0.1:9")
    assert found.code == 2
    assert found.err.splitlines()[-1] == (
        f"slipstream: admin.port = {taken}: in use on 127.0.0.1; choose another with --admin-port, or 0 for a free one"
    )


async def test_what_is_missing_is_said_as_it_is(tmp_path):
    """A second sidecar on one folder has no jobs, because another one has them."""
    one = service(tmp_path, Lines(), 0, 0, moves=False)
    async with one, service(tmp_path, Lines(), 0, 0, moves=False) as two:
        checks = two.assembly.board.ready()
        assert one.assembly.board.ready()["jobs"].ready
        assert (checks["proxy"].ready, checks["jobs"].ready) == (True, False)
        assert "in use" in checks["jobs"].why


async def test_without_a_folder_answers_are_in_memory_only(tmp_path):
    (tmp_path / "file").write_text("")
    async with service(tmp_path / "file" / "folder", Lines(), 0, 0, moves=False) as running:
        checks = running.assembly.board.ready()
        assert not checks["cache"].ready
        assert "--data-dir" in checks["cache"].why
        assert checks["proxy"].ready
