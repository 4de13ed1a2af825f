"""`slipstream doctor` on this machine: every check as it passes, and as it fails. Network on loopback only."""

import asyncio
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import msgspec
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from sidecar import __version__
from sidecar.cache.embed import model as models
from sidecar.cli import doctor_asks, doctor_checks, doctor_folder
from sidecar.cli.doctor_asks import PROVIDERS, asks
from sidecar.cli.doctor_cert import first_of, lasts, not_after
from sidecar.cli.doctor_checks import Clock, certificate, configuration, keys, model, who_may_ask
from sidecar.cli.doctor_first_token import ROUNDS, asked, scripted
from sidecar.cli.doctor_folder import folder, kind_of, space
from sidecar.cli.doctor_http import AGENT, Answer
from sidecar.cli.doctor_ports import ports
from sidecar.cli.doctor_reach import origin_of
from sidecar.cli.doctor_upstreams import Target, targets, unreachable, visit
from sidecar.config import load
from sidecar.scripted import Script
from sidecar.serving import routes
from sidecar.tables import UpstreamTable
from tests.cli.conftest import finished
from tests.cli.doctor_rig import saying, server, sidecar

pytestmark = pytest.mark.usefixtures("clean")


def config(**keys):
    file = keys.pop("file", None)
    return load(
        {key.replace("__", "."): value for key, value in keys.items()}, environment={}, file=file
    ).config


def states(found):
    return {finding.check: finding.status for finding in found}


def one(found, check):
    (finding,) = [each for each in found if each.check == check]
    return finding


# The data folder.


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data"
    path.mkdir(mode=0o700)
    return path


FINE = {"data folder": "ok", "file system": "ok", "disk space": "ok"}


def test_a_folder_that_is_as_it_should_be(data):
    (data / "secret").write_bytes(b"s" * 32)
    (data / "secret").chmod(0o600)
    assert states(folder(config(server__data_dir=str(data)))) == {**FINE, "secret": "ok"}
    assert [path.name for path in data.iterdir()] == ["secret"]


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    path = tmp_path / "a" / "b"
    found = folder(config(server__data_dir=str(path)))
    assert states(found) == {"data folder": "ok", "disk space": "ok"}
    assert "is made at the start" in found[0].fact
    assert not path.parent.exists()


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701, 0o770])
def test_a_folder_that_others_may_look_into(data, mode):
    data.chmod(mode)
    (finding,) = folder(config(server__data_dir=str(data)))
    assert finding.status == "fail"
    assert f"{mode:o}" in finding.fact
    assert finding.remedy == f"chmod 700 {data}"
    assert subprocess.run(finding.remedy, shell=True, check=False).returncode == 0
    assert states(folder(config(server__data_dir=str(data)))) == FINE


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").touch()
    (finding,) = folder(config(server__data_dir=str(tmp_path / "file")))
    assert (finding.check, finding.status) == ("data folder", "fail")
    found = folder(config(server__data_dir=str(tmp_path / "file" / "below")))
    assert states(found) == {"data folder": "fail"}


@pytest.mark.parametrize(
    ("content", "mode", "word"),
    [(b"s" * 32, 0o644, "chmod 600"), (b"short", 0o600, "rm "), (b"", 0o600, "rm ")],
)
def test_a_secret_that_is_none(data, content, mode, word):
    (data / "secret").write_bytes(content)
    (data / "secret").chmod(mode)
    finding = one(folder(config(server__data_dir=str(data))), "secret")
    assert finding.status == "fail"
    assert word in finding.remedy


def doctor_process(*arguments, before=(), **options):
    """The findings of `doctor --json` as a process of its own; without upstream, and without a call."""
    command = [
        *before,
        sys.executable,
        "-m",
        "sidecar",
        "doctor",
        "--json",
        "--upstream",
        "http://127.0.0.1:9",
    ]
    # Not even a failing check may end in a traceback.
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, **options)
    assert done.stderr == "", done.stderr
    document = json.loads(done.stdout)
    assert document["exit"] == done.returncode == 1  # nobody listens on port 9
    return {finding["check"]: finding for finding in document["findings"]}


def on_a_disk(tmp_path, options, then):
    mount = f"mount -t tmpfs -o size=4m,mode=700 tmpfs '{tmp_path}' {options}"
    apart = ("unshare", "--mount", "sh", "-c")
    possible = os.geteuid() == 0 and shutil.which("unshare") is not None
    if not possible or subprocess.run([*apart, mount], capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    return doctor_process("--data-dir", str(tmp_path), before=(*apart, f'{mount} && {then} exec "$@"', "sh"))


def test_a_disk_without_room(tmp_path):
    finding = on_a_disk(tmp_path, "", "")["disk space"]
    assert finding["status"] == "fail"
    assert "4.0 MiB" in finding["fact"]


def test_a_disk_that_is_read_only(tmp_path):
    found = on_a_disk(tmp_path, "", f"mount -o remount,ro '{tmp_path}' &&")
    assert found["data folder"]["status"] == "ok"
    assert found["file system"]["status"] == "fail"
    assert "read-only" in found["file system"]["fact"]


def test_a_disk_that_is_full(tmp_path):
    fill = f"head -c 4M /dev/zero > '{tmp_path}/full' 2>/dev/null;"
    found = on_a_disk(tmp_path, "", fill)
    assert found["file system"]["status"] == "fail"
    assert "No space left" in found["file system"]["fact"]


def test_somebody_elses_folder():
    if os.geteuid():
        pytest.skip("only root may become somebody else")
    with tempfile.TemporaryDirectory() as theirs:
        Path(theirs).chmod(0o711)
        place = Path(theirs) / "data"
        place.mkdir(mode=0o700)
        # Root may look into it; nobody may not look into root's, nor make another beside it.
        os.chown(place, 65534, 65534)
        here = one(folder(config(server__data_dir=str(place))), "data folder")
        assert here.status == "warn"
        assert "runs as" in here.remedy
        os.chown(place, 0, 0)
        code = (
            "import os, sys; from sidecar.cli.doctor_folder import folder; from sidecar.config import load\n"
            "given = [load({'server.data_dir': name}, environment={}).config for name in sys.argv[1:]]\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "for each in given: print([(f.check, f.status, f.remedy) for f in folder(each)])"
        )
        paths = [str(place), str(place.parent / "new"), str(place / "below")]
        done = subprocess.run(
            [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        roots, new, below = done.stdout.splitlines()
        assert "('data folder', 'fail', 'run this as root" in roots
        assert "('data folder', 'fail', 'make it for the user of the sidecar" in new
        assert "('data folder', 'fail', 'run this as its owner" in below


MOUNTS = """\
22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/sda rw
30 22 0:30 / /srv rw - nfs4 host:/srv rw
31 30 0:31 / /srv/local\\040disk rw shared:2 master:1 - xfs /dev/sdb rw
32 22 0:32 / /opt rw - ext4 /dev/sdc rw
33 32 0:33 / /opt rw - fuse.sshfs host: rw
not a mount
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/x", "ext4"),
        ("/srv", "nfs4"),
        ("/srv/data", "nfs4"),
        ("/srv/local disk/data", "xfs"),
        ("/srvother", "ext4"),
        ("/opt/data", "fuse.sshfs"),
    ],
)
def test_the_kind_of_a_file_system(tmp_path, path, kind):
    (tmp_path / "mountinfo").write_text(MOUNTS)
    assert kind_of(Path(path), tmp_path / "mountinfo") == kind
    assert kind_of(Path(path), tmp_path / "absent") is None


@pytest.mark.parametrize(
    "name",
    [
        "d\xfc".encode(),
        "数据".encode(),
        b"latin \xfc",
        b"\xff\xfe",
        b"back\\slash \\040",
        b"a\tb\nc",
        # No line ends for the kernel, which writes them as they are.
        b"v\x0bt\x0cf\rs\x1c",
        "\u00a0\u2028\x85".encode(),
    ],
)
def test_the_kind_of_a_file_system_below_any_name(tmp_path, name):
    """Names are bytes. The kernel writes space, tab, line feed and backslash as octal numbers, and others may do so
    with every byte."""
    few = b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in name)
    for written in (few, b"".join(b"\\%03o" % byte for byte in name)):
        (tmp_path / "mountinfo").write_bytes(
            b"1 0 0:1 / / rw - ext4 /dev/sda rw\n2 1 0:2 / /srv/%b rw shared:1 - nfs4 host:/ rw\n" % written
        )
        here = Path("/srv") / os.fsdecode(name) / "data"
        assert kind_of(here, tmp_path / "mountinfo") == "nfs4"
        assert kind_of(Path("/srv/other"), tmp_path / "mountinfo") == "ext4"


def test_a_folder_whose_name_is_no_utf8(tmp_path):
    """The process says all of it: without a traceback, as lines and as JSON."""
    place = tmp_path / os.fsdecode(b"d\xff")
    place.mkdir(mode=0o700)
    found = doctor_process("--no-calls", "--port", "0", "--data-dir", str(place))
    assert (found["data folder"]["status"], found["data folder"]["data"]["folder"]) == ("ok", str(place))
    assert found["file system"]["status"] in ("ok", "warn")
    code, out, err = finished(
        "doctor", "--upstream", "http://127.0.0.1:9", "--no-calls", "--data-dir", str(place)
    )
    assert (code, err) == (1, "")
    assert f"{tmp_path}/d\\udcff (700, " in out


def test_a_network_file_system_is_warned_of(data, tmp_path, monkeypatch):
    (tmp_path / "mountinfo").write_text("1 0 0:1 / / rw - nfs4 host:/ rw\n")
    monkeypatch.setattr(doctor_folder, "_MOUNTS", tmp_path / "mountinfo")
    finding = one(folder(config(server__data_dir=str(data))), "file system")
    assert (finding.status, finding.data["kind"]) == ("warn", "nfs4")


@pytest.mark.parametrize(
    ("free", "status"), [(63 << 20, "fail"), (1 << 30, "warn"), (1200 << 20, "ok"), (1 << 40, "ok")]
)
def test_room_for_what_may_still_be_stored(data, monkeypatch, free, status):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 41, 0, free))
    finding = space(config(), data)
    assert finding.status == status
    if status == "warn":
        # The remedy is one: with it, there is room.
        size = finding.remedy.partition("cache.size = ")[2]
        assert space(config(cache__size=size), data).status == "ok"
        # And what is stored already needs no room any more.
        (data / "answers").mkdir()
        (data / "answers" / "x").write_bytes(b"x" * (1 << 20))
        assert space(config(cache__size="1025MiB"), data).data["answers_bytes"] == 1 << 20
        assert space(config(cache__mode="off"), data).status == "ok"


# Descriptors.


def limited(number):
    command = ("sh", "-c", f'ulimit -n {number} && exec "$@"', "sh")
    return doctor_process("--no-calls", before=command)["descriptors"]


def test_the_limit_of_descriptors():
    few, some = limited(150), limited(1128)
    assert (few["status"], few["data"]["hard"]) == ("fail", 150)
    assert (some["status"], some["data"]["clients"]) == ("warn", 500)
    assert "LimitNOFILE=20128" in some["remedy"]
    assert "limits.connections = 500" in some["remedy"]


def test_the_remedy_for_descriptors_is_one():
    needed = int(limited(1128)["remedy"].partition("=")[2].split()[0])
    assert doctor_checks.clients_for(needed) >= config().limits.connections


# The model.


@pytest.mark.parametrize("mode", ["off", "exact"])
def test_no_model_is_needed(mode):
    finding = model(config(cache__mode=mode))
    assert (finding.status, "not needed" in finding.fact) == ("ok", True)


def test_a_model_that_is_not_there(data):
    finding = model(config(cache__mode="shadow", server__data_dir=str(data)))
    assert finding.status == "fail"
    assert finding.remedy == f"slipstream model pull --data-dir {data}"
    assert model(config(cache__mode="shadow", semantic__model="no-such")).status == "fail"


def test_an_embedder_elsewhere_needs_none():
    given = config(cache__mode="semantic", semantic__embedder="http://127.0.0.1:9/v1/embeddings")
    assert model(given).status == "ok"
    assert targets(given)[-1].names == ("embedder",)


def test_a_model_with_its_sha256_and_one_with_another(data, with_model):
    with_model(data)
    given = config(cache__mode="semantic", server__data_dir=str(data))
    finding = model(given)
    assert finding.status == "ok"
    graph = models.root(data) / models.DEFAULT / models.GRAPH
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.unlink()
    graph.write_bytes(content)
    finding = model(given)
    assert finding.status == "fail"
    assert models.GRAPH in finding.fact
    assert "model pull" in finding.remedy


# Keys and certificates.


def with_key(path):
    return config(file={"upstreams": [{"name": "a", "url": "http://127.0.0.1:9", "key_file": str(path)}]})


def test_files_with_keys(tmp_path):
    key = tmp_path / "key"
    assert states(keys(with_key(key))) == {"key of a": "fail"}
    key.write_text("")
    assert states(keys(with_key(key))) == {"key of a": "fail"}
    key.write_text("sk-planted\n")
    key.chmod(0o644)
    (finding,) = keys(with_key(key))
    assert (finding.status, finding.remedy) == ("warn", f"chmod 600 {key}")
    key.chmod(0o600)
    assert states(keys(with_key(key))) == {"key of a": "ok"}
    assert "planted" not in str(keys(with_key(key)))
    assert keys(config()) == []


def written(tmp_path, name="127.0.0.1", **options):
    """A certificate and its key, in two files."""
    made = trustme.CA().issue_cert(name, **options)
    made.cert_chain_pems[0].write_to_path(tmp_path / "c.pem")
    made.private_key_pem.write_to_path(tmp_path / "k.pem")
    return config(tls__certificate=str(tmp_path / "c.pem"), tls__key=str(tmp_path / "k.pem"))


NOW = datetime.now(UTC)


@pytest.mark.parametrize(
    ("days", "status"), [(-1, "fail"), (5, "warn"), (13, "warn"), (20, "ok"), (20_000, "ok")]
)
def test_how_long_a_certificate_lasts(tmp_path, days, status):
    end = NOW + timedelta(days=days)
    given = written(tmp_path, not_before=NOW - timedelta(days=30), not_after=end)
    finding = certificate(given)
    assert finding.status == status
    assert end.date().isoformat() in finding.fact
    assert ("expired" in finding.fact) == (days < 0)


def test_a_certificate_that_is_none(tmp_path):
    assert certificate(config()) is None
    given = written(tmp_path)
    other = trustme.CA().issue_cert("127.0.0.1")
    other.private_key_pem.write_to_path(tmp_path / "k.pem")
    assert "not the key of" in certificate(given).fact
    (tmp_path / "c.pem").write_text("nothing")
    assert certificate(given).status == "fail"
    (tmp_path / "c.pem").unlink()
    assert "cannot be read" in certificate(given).fact


@given(st.datetimes(datetime(1975, 1, 1), datetime(2400, 1, 1)))  # noqa: DTZ001
def test_the_date_of_a_certificate_is_read_as_others_read_it(end):
    """UTCTime until 2049, GeneralizedTime after that."""
    end = end.replace(microsecond=0, tzinfo=UTC)
    made = AUTHORITY.issue_cert("a.test", not_before=end - timedelta(days=1), not_after=end)
    der = ssl.PEM_cert_to_DER_cert(made.cert_chain_pems[0].bytes().decode())
    assert not_after(der) == end.timestamp()


AUTHORITY = trustme.CA()
DER = ssl.PEM_cert_to_DER_cert(AUTHORITY.cert_pem.bytes().decode())


@given(st.binary(max_size=200) | st.integers(0, 300).map(lambda size: DER[:size]))
def test_what_is_no_certificate_is_told_by_a_value_error_alone(data):
    with pytest.raises(ValueError):
        not_after(data)


def test_a_certificate_in_a_file_with_more(tmp_path):
    made = AUTHORITY.issue_cert("a.test")
    file = tmp_path / "all.pem"
    file.write_bytes(made.private_key_pem.bytes() + b"".join(pem.bytes() for pem in made.cert_chain_pems))
    assert first_of(file) == ssl.PEM_cert_to_DER_cert(made.cert_chain_pems[0].bytes().decode())
    assert lasts(time.time() + 86400 * 1.5).endswith("(1 day more)")


# Configuration, clients.


def test_where_the_configuration_came_from(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text("[keepalive]\ninterval = 5\n")
    found = load({"server.port": 1}, {"SLIPSTREAM_LOG__LEVEL": "error"}, file)
    finding = configuration(found)
    assert (finding.status, finding.data["origins"]["keepalive.interval"]) == ("ok", str(file))
    assert all(part in finding.fact for part in (str(file), "the environment", "flags"))


def test_who_may_ask():
    clients = {"clients": [{"name": "a", "token_sha256": "ab" * 32}]}
    assert who_may_ask(config()).status == "ok"
    assert who_may_ask(config(server__host="0.0.0.0", file=clients)).status == "ok"
    assert who_may_ask(config(server__host="0.0.0.0", server__allow_public=True)).status == "warn"


# Ports.


async def ported(**keys):
    given = {key.replace("__", "."): value for key, value in keys.items()}
    return {finding.check: finding for finding in await ports(load(given, environment={}), 2)}


@contextmanager
def taken():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


async def test_ports_that_are_free():
    with taken() as port:
        pass
    found = await ported(server__port=port, admin__port=0)
    assert states(found.values()) == {"port": "ok", "admin port": "ok"}
    assert "is free" in found["port"].fact
    assert "any free one" in found["admin port"].fact


async def test_a_port_at_which_a_sidecar_serves():
    async with sidecar() as service:
        port = int(service.url.rpartition(":")[2])
        found = await ported(server__port=port, admin__port=int(service.admin.url.rpartition(":")[2]))
    for name in ("port", "admin port"):
        finding = found[name]
        assert (finding.status, finding.data["state"], finding.data["version"]) == ("ok", "ok", __version__)
        assert f"a sidecar of version {__version__}" in finding.fact


async def test_a_port_at_which_a_sidecar_speaks_tls(tmp_path):
    """Whose certificate nobody here needs to trust: it is only asked how it is."""
    made = written(tmp_path)
    files = {"tls__certificate": made.tls.certificate, "tls__key": made.tls.key}
    async with sidecar(**files) as service:
        assert service.url.startswith("https:")
        found = await ported(server__port=int(service.url.rpartition(":")[2]), admin__port=0, **files)
        # One that is asked as if it spoke none is not taken for a sidecar.
        plain = await ported(server__port=int(service.url.rpartition(":")[2]), admin__port=0)
    assert (found["port"].status, plain["port"].status) == ("ok", "fail")


async def test_a_port_that_something_else_has():
    async with server(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")) as url:
        port = int(url.rpartition(":")[2])
        found = await ported(server__port=port, admin__port=port)
        assert states(found.values()) == {"port": "fail", "admin port": "fail"}
        assert "--port" in found["port"].remedy
        assert "--admin-port" in found["admin port"].remedy


async def test_an_admin_port_that_nobody_chose_moves(monkeypatch):
    found = load({"server.port": 0}, environment={})
    with taken() as port:
        monkeypatch.setattr(found.config.admin.__class__, "port", port, raising=False)
        given = await ports(found, 0.1)
    assert one(given, "admin port").status == "ok"
    assert "a free one" in one(given, "admin port").fact


async def test_an_address_of_another_machine():
    found = await ported(server__host="203.0.113.1", server__allow_public=True, server__port=8400)
    assert found["port"].status == "fail"
    assert "server.host" in found["port"].remedy


# Upstreams.


def target(url, *, chosen=True):
    return Target(("a",), origin_of(url), chosen)


async def test_an_upstream_that_is_there(provider):
    seen = await visit(target(provider.url), 5)
    assert (seen.finding.status, seen.reachable) == ("ok", True)
    assert seen.finding.data["connect_ms"] >= 0
    (received,) = provider.requests
    assert (received.method, received.path) == ("HEAD", "/")
    assert received.header("authorization") is None


async def test_an_upstream_that_is_not_there():
    with taken() as port:
        pass
    url = f"http://127.0.0.1:{port}"
    seen = await visit(target(url), 5)
    assert (seen.finding.status, seen.reachable) == ("fail", False)
    assert f"nothing listens on 127.0.0.1:{port}" in seen.finding.fact
    seen = await visit(target(url, chosen=False), 5)
    assert (seen.finding.status, "only matters if" in seen.finding.remedy) == ("warn", True)


@pytest.mark.parametrize(
    ("number", "word"), [(socket.EAI_NONAME, "no such name"), (socket.EAI_AGAIN, "no name server")]
)
async def test_an_upstream_whose_name_is_not_known(monkeypatch, number, word):
    def getaddrinfo(*arguments, **options):
        raise socket.gaierror(number, "no")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setenv("HTTPS_PROXY", "http://user:planted@proxy")
    seen = await visit(target("https://api.invalid"), 5)
    assert seen.finding.status == "fail"
    assert word in seen.finding.fact
    assert "HTTPS_PROXY is set, and the sidecar does not use it" in seen.finding.remedy
    assert "planted" not in str(seen)


async def test_a_name_server_that_never_answers(monkeypatch):
    """Nobody waits for it, neither here nor at the end of the process."""
    answered, before = threading.Event(), set(threading.enumerate())

    def getaddrinfo(*arguments, **options):
        answered.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    seen = await visit(target("https://api.invalid"), 0.05)
    assert "no name server answered within 0.05 s" in seen.finding.fact
    (waiting,) = set(threading.enumerate()) - before
    assert waiting.daemon
    answered.set()
    waiting.join()


async def test_an_upstream_that_accepts_no_connection():
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        filling = []
        for _ in range(4):  # the accept queue is full, and SYNs are dropped
            filling.append(socket.socket())
            filling[-1].setblocking(False)
            filling[-1].connect_ex(full.getsockname())
        seen = await visit(target("http://127.0.0.1:%d" % full.getsockname()[1]), 0.2)  # noqa: UP031
        for each in filling:
            each.close()
    assert (seen.finding.status, "does not answer within" in seen.finding.fact) == ("fail", True)


CASES = {
    "trusted": (timedelta(days=60), True, "ok"),
    "ends soon": (timedelta(days=3), True, "warn"),
    "expired": (timedelta(days=-1), True, "fail"),
    "unknown": (timedelta(days=60), False, "fail"),
}


@pytest.mark.parametrize("case", CASES)
async def test_certificates_of_upstreams(case, tmp_path, monkeypatch):
    """`ssl` as the sidecar uses it; SSL_CERT_FILE names who is trusted."""
    left, trusted, status = CASES[case]
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made = AUTHORITY.issue_cert("127.0.0.1", not_before=NOW - timedelta(days=30), not_after=NOW + left)
    made.configure_cert(context)
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))

    async def connected(reader, writer):
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        except (OSError, asyncio.IncompleteReadError):
            pass
        writer.close()

    running = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    async with running:
        url = f"https://127.0.0.1:{running.sockets[0].getsockname()[1]}"
        # Also where nobody chose it: it is there, and what apps send it would fail.
        seen = await visit(target(url, chosen=False), 5)
    finding = seen.finding
    assert finding.status == status
    assert seen.reachable == (status != "fail")
    if case == "expired":
        assert "renew it there" in finding.remedy
    elif case == "unknown":
        assert "SSL_CERT_FILE" in finding.remedy
    else:
        assert finding.data["tls"] == "TLSv1.3"
        assert finding.data["expires"] == pytest.approx((NOW + left).timestamp(), abs=2)


def dated(date):
    field = b"Date: %b\r\n" % date.encode() if date is not None else b""
    return saying(b"HTTP/1.1 404 Not Found\r\n%bContent-Length: 5\r\n\r\n" % field)


@pytest.mark.parametrize(
    ("date", "skew"),
    [(0, 0), (3600, 3600), (-90, -90), ("Sun, 99 Foo 2026 00:00:00 GMT", None), ("", None), (None, None)],
)
async def test_how_far_anothers_clock_is_ahead(date, skew):
    shown = formatdate(time.time() + date, usegmt=True) if isinstance(date, int) else date
    async with server(dated(shown)) as url:
        seen = await visit(target(url), 5)
    assert seen.skew == (None if skew is None else pytest.approx(skew, abs=3))


async def test_one_that_never_says_its_time_holds_nothing_up():
    async def silent(reader, writer):
        await reader.read()

    async with server(silent) as url:
        seen = await visit(target(url), 1)
    assert (seen.finding.status, seen.skew) == ("ok", None)


async def test_when_none_of_the_known_providers_can_be_reached(monkeypatch, provider):
    with taken() as port:
        pass
    tables = [UpstreamTable(name, f"http://127.0.0.1:{port}", [f"/{name}"]) for name in "ab"]
    monkeypatch.setattr(routes, "PROVIDERS", tables)
    (both,) = targets(config())
    assert (both.names, both.chosen) == (("a", "b"), False)
    seen = [(both, await visit(both, 5))]
    assert unreachable(seen).status == "fail"
    there = target(provider.url, chosen=False)
    assert unreachable([*seen, (there, await visit(there, 5))]) is None


# The clock.


def test_a_clock_that_is_right():
    assert Clock().judge(config(), []).status == "ok"
    assert Clock().judge(config(), [("a", 1.0), ("b", -0.5)]).status == "ok"


def test_a_clock_that_differs_from_most_others():
    finding = Clock().judge(config(), [("a", 300.0), ("b", 299.0), ("c", 0.0)])
    assert finding.status == "warn"
    assert "299 s behind" in finding.fact
    # One of several may be wrong itself.
    assert Clock().judge(config(), [("a", 300.0), ("b", 0.0)]).status == "ok"
    assert "ahead of" in Clock().judge(config(), [("a", -61.0)]).fact


def test_a_clock_that_is_set_meanwhile(monkeypatch):
    clock, real = Clock(), time.time
    monkeypatch.setattr(time, "time", lambda: real() - 7)
    assert "was set by -7.0 s" in clock.judge(config(), []).fact


def test_a_clock_that_never_ran(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    finding = Clock().judge(config(), [])
    assert (finding.status, "1970" in finding.fact) == ("fail", True)


def test_a_file_from_the_future(data):
    given = config(server__data_dir=str(data))
    (data / "answers").mkdir()
    file = data / "answers" / "x"
    file.touch()
    assert Clock().judge(given, []).status == "ok"
    os.utime(file, (time.time() + 3600,) * 2)
    finding = Clock().judge(given, [])
    assert (finding.status, str(file) in finding.fact) == ("warn", True)


# The first token.


KEYS = {"OPENAI_API_KEY": "sk-o", "ANTHROPIC_API_KEY": "sk-a", "GEMINI_API_KEY": "sk-g"}


def test_without_a_key_nobody_is_asked():
    assert asks(config(), None, {}) == []
    assert asks(config(), "gpt-5", {}) == []
    assert asks(config(), None, {"OPENAI_API_KEY": " "}) == []


def test_each_key_goes_to_its_own_provider():
    found = {ask.provider: ask for ask in asks(config(), None, KEYS)}
    assert {name: ask.origin.host for name, ask in found.items()} == {
        "openai": "api.openai.com",
        "anthropic": "api.anthropic.com",
        "gemini": "generativelanguage.googleapis.com",
    }
    for name, field, value in (
        ("openai", "Authorization", "Bearer sk-o"),
        ("anthropic", "x-api-key", "sk-a"),
        ("gemini", "x-goog-api-key", "sk-g"),
    ):
        assert found[name].fields[field] == value
        assert [key for key in KEYS.values() if key in str(found[name].fields)] == [value.split()[-1]]
        assert value.split()[-1] not in repr(found[name])


SECRETS = ("sk-o", "sk-a", "sk-g", "sk-file")


def sent(ask):
    """The keys in it."""
    return [key for key in SECRETS if key in " ".join(ask.fields.values())]


@pytest.mark.parametrize("model", [None, "gpt-5", "llama3", "claude-x", "gemini-x"])
@pytest.mark.parametrize(
    "url",
    [
        "http://api.openai.com",
        "http://api.openai.com:443",
        "https://api.openai.com:8443",
        "https://api.openai.com.gpu.example",
        "http://api.anthropic.com",
        "http://generativelanguage.googleapis.com",
        "http://gpu.example",
        "https://gpu.example",
        "http://127.0.0.1:9",
    ],
)
def test_the_key_of_a_variable_goes_to_its_provider_over_tls_and_nowhere_else(url, model):
    for way in (config(server__upstream=url), config(file={"upstreams": [{"name": "a", "url": url}]})):
        found = asks(way, model, KEYS)
        # Without the name of a model nobody else is asked at all.
        assert [(ask.model, sent(ask), ask.whence) for ask in found] == ([(model, [], "")] if model else [])


@pytest.mark.parametrize("model", ["gpt-5", "llama3", "claude-x", "gemini-x"])
@pytest.mark.parametrize("provider", ["openai", "anthropic", "gemini"])
def test_no_provider_gets_the_key_of_another(provider, model):
    own = {ask.provider: ask for ask in asks(config(), None, KEYS)}[provider]
    given = config(server__upstream=f"https://{own.origin.host}")
    for ask in asks(given, model, KEYS):
        assert sent(ask) == (sent(own) if ask.provider == provider else [])


@pytest.mark.parametrize("url", ["https://api.openai.com", "https://API.openai.com:443/v1"])
def test_a_provider_that_is_configured_gets_its_key(url):
    (ask,) = asks(config(server__upstream=url), None, KEYS)
    assert (sent(ask), ask.whence) == (["sk-o"], "OPENAI_API_KEY")
    assert asks(config(server__upstream=url), "gpt-5", {}) == []


@pytest.mark.parametrize(
    ("url", "keys"),
    [
        ("https://gpu.example", ["sk-file"]),
        ("http://127.0.0.1:9", ["sk-file"]),
        ("http://[::1]:9", ["sk-file"]),
        ("http://gpu.example", []),
        ("http://192.168.1.2", []),
        ("http://api.openai.com", []),
    ],
)
def test_where_the_key_of_a_file_goes(tmp_path, url, keys):
    (tmp_path / "key").write_text("sk-file\n")
    table = {"name": "a", "url": url, "key_file": str(tmp_path / "key")}
    given = config(file={"upstreams": [table]})
    assert asks(given, None, KEYS) == []
    (ask,) = asks(given, "llama3", KEYS)
    assert sent(ask) == keys
    assert ask.whence == (str(tmp_path / "key") if keys else "")


def test_a_field_that_chooses_an_upstream_leads_no_key_there():
    """The sidecar on the way goes by it, too."""
    tables = [
        {"name": "own", "url": "https://api.anthropic.com"},
        {"name": "other", "url": "http://gpu.example", "header": "x-api-key"},
    ]
    assert asks(config(file={"upstreams": tables}), None, KEYS) == []
    # Where no key is sent, there is no such field, and another upstream is meant.
    assert asks(config(file={"upstreams": tables}), "claude-x", KEYS) == []
    tables[1] |= {"url": "https://api.anthropic.com"}
    tables[0] |= {"url": "http://gpu.example"}
    (ask,) = asks(config(file={"upstreams": tables}), None, KEYS)
    assert (ask.origin.host, sent(ask)) == ("api.anthropic.com", ["sk-a"])


@pytest.mark.parametrize(
    "key",
    ["sk-pl\xe4nted", "sk\r\nX-Planted: 1", "sk planted", "planted\udcff", "planted\0", "planted" * 700],
)
@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"])
def test_a_key_of_a_variable_that_is_none(name, key):
    found = {type(each).__name__: each for each in asks(config(), None, {**KEYS, name: key})}
    assert set(found) == {"Ask", "Finding"}  # the others' are sent
    finding = found["Finding"]
    assert (finding.status, finding.check) == ("fail", name)
    assert "unset it" in finding.remedy
    assert "lanted" not in str(finding)
    # It is of no concern where it would not be sent.
    (ask,) = asks(config(server__upstream="http://127.0.0.1:9"), "m", {name: key})
    assert ask.whence == ""


def test_an_unreadable_key_file_keeps_no_other_key_back(tmp_path):
    tables = [
        {"name": "a", "url": "https://api.openai.com", "key_file": str(tmp_path / "absent")},
        {"name": "b", "url": "https://api.anthropic.com", "paths": ["/v1/messages"]},
    ]
    assert [sent(ask) for ask in asks(config(file={"upstreams": tables}), None, KEYS)] == [["sk-a"]]


class Written(asyncio.Transport):
    def __init__(self):
        self.data = b""

    def write(self, data):
        self.data += data


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("/", {"X-Key": "a\r\nX-Planted: 1"}),
        ("/", {"X-Key": "a\nX-Planted: 1"}),
        ("/", {"X-Key\r\nX-Planted": "1"}),
        ("/ HTTP/1.1\r\nX-Planted: 1\r\n\r\n", {}),
        ("/", {"X-Key": "\u20ac"}),
    ],
)
async def test_a_field_that_breaks_out_of_its_line_is_not_sent(target, fields):
    answer, transport = Answer(), Written()
    answer.connection_made(transport)
    with pytest.raises(ValueError):
        await answer.ask(origin_of("http://a.test"), target, fields)
    assert transport.data == b""


async def test_a_request_as_it_is_sent():
    answer, transport = Answer(), Written()
    answer.connection_made(transport)
    await answer.ask(origin_of("http://[::1]:9"), "/\u20ac", {"X-Key": "a"}, method="POST", body=b"hi")
    head = f"POST /\u20ac HTTP/1.1\r\nHost: [::1]:9\r\nUser-Agent: {AGENT}\r\nX-Key: a\r\nContent-Length: 2\r\n\r\nhi"
    assert transport.data == head.encode()


def test_the_name_of_a_model_stays_one_part_of_the_path():
    (ask,) = asks(config(), "gemini-x/../y?z=\u20ac", KEYS)
    assert ask.direct == "/v1beta/models/gemini-x%2F..%2Fy%3Fz%3D%E2%82%AC:streamGenerateContent?alt=sse"
    assert ask.model == "gemini-x/../y?z=\u20ac"


@pytest.mark.parametrize(
    ("table", "target", "direct"),
    [
        ({"url": "http://127.0.0.1:9"}, "/v1/chat/completions", "/v1/chat/completions"),
        ({"url": "http://127.0.0.1:9/base"}, "/v1/chat/completions", "/base/v1/chat/completions"),
        (
            {"url": "http://127.0.0.1:9", "paths": ["/groq"], "strip": True},
            "/groq/v1/chat/completions",
            "/v1/chat/completions",
        ),
    ],
)
def test_where_it_is_asked_of_a_configured_upstream(table, target, direct):
    (ask,) = asks(config(file={"upstreams": [{"name": "a", **table}]}), "m", KEYS)
    assert (ask.target, ask.direct) == (target, direct)


def test_an_upstream_that_ends_in_a_version():
    (ask,) = asks(config(server__upstream="http://127.0.0.1:9/api/v1"), "m", KEYS)
    assert (ask.target, ask.direct) == ("/chat/completions", "/api/v1/chat/completions")


def test_a_key_out_of_a_file_goes_before_that_of_a_variable(tmp_path):
    (tmp_path / "key").write_text("sk-file\n")
    table = {
        "name": "a",
        "url": "http://127.0.0.1:9",
        "key_file": str(tmp_path / "key"),
        "key_header": "x-key",
    }
    (ask,) = asks(config(file={"upstreams": [table]}), "m", KEYS)
    assert (ask.fields["x-key"], ask.whence) == ("sk-file", str(tmp_path / "key"))
    assert "Authorization" not in ask.fields


async def test_the_scripted_provider_shows_what_the_sidecar_adds():
    finding = await scripted(5)
    assert finding.status in ("ok", "warn")  # as fast as this machine is now
    data = finding.data
    assert data["direct_ms"] >= 20
    assert data["through_ms"] >= 20
    assert 0 < data["own_ms"] < data["through_ms"]


def keyed(folder, url):
    """An upstream with a key of its own: as a file for `--config`."""
    (folder / "key").write_text("sk-file\n")
    (folder / "key").chmod(0o600)
    (folder / "s.toml").write_text(
        f'[[upstreams]]\nname = "a"\nurl = "{url}"\nkey_file = "{folder / "key"}"\n'
    )
    return folder / "s.toml"


async def test_a_provider_is_asked_directly_and_through(provider, tmp_path):
    provider.script = Script(tokens=3, first=0.01)
    given = config(file=keyed(tmp_path, provider.url))
    (ask,) = asks(given, "m", KEYS)
    finding = await asked(given, ask, 5)
    assert finding.data["rounds"] == ROUNDS
    assert min(finding.data["direct_ms"], finding.data["through_ms"]) >= 10
    assert len(provider.requests) == 2 * ROUNDS
    assert {received.header("authorization") for received in provider.requests} == {b"Bearer sk-file"}
    assert all(b'"max_completion_tokens":16' in received.body for received in provider.requests)
    assert "sk-file" not in str(finding)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (Script(status=401), ("refuses the key (401)", "/key")),
        (Script(status=404), ("does not take this model", "--model")),
        (Script(status=429), ("429", "--no-calls")),
        (Script(status=500), ("500", "try again")),
        (Script(tokens=0), ("no token in it", "--model")),
        (Script(fault="no_head"), ("no answer", "try again")),
    ],
)
async def test_an_answer_without_a_first_token(provider, script, words, monkeypatch, tmp_path):
    monkeypatch.setattr("sidecar.cli.doctor_first_token.PATIENCE", 1)
    provider.script = script
    given = config(file=keyed(tmp_path, provider.url))
    (ask,) = asks(given, "m", KEYS)
    finding = await asked(given, ask, 5)
    assert finding.status == "fail"
    assert words[0] in finding.fact
    assert words[1] in finding.remedy
    assert len(provider.requests) == 1


async def test_a_server_that_wants_a_key_and_gets_none(provider):
    provider.script = Script(status=401)
    given = config(server__upstream=provider.url)
    (ask,) = asks(given, "m", KEYS)
    finding = await asked(given, ask, 5)
    assert (finding.status, "wants a key (401)" in finding.fact) == ("fail", True)
    assert "key_file" in finding.remedy
    assert provider.requests[0].header("authorization") is None


# The command.


class Upstream(BaseHTTPRequestHandler):
    """A provider that answers OpenAI's way, and keeps what it was asked."""

    asked: list[str] = []

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.send_response(404)
        self.end_headers()

    def do_POST(self):
        self.asked.append(self.headers.get("Authorization", ""))
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b'data: {"choices":[{"delta":{"content":"x"}}]}\n\ndata: [DONE]\n\n')


@pytest.fixture
def upstream():
    Upstream.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as running:
        thread = Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_all_is_well(cli, upstream):
    code, out, err = cli("doctor", "--upstream", upstream, "--port", "0", OPENAI_API_KEY="sk-planted")
    assert (code, err) == (0, ""), out
    assert "FAIL" not in out
    checks = (
        "configuration",
        "clients",
        "data folder",
        "disk space",
        "descriptors",
        "model",
        "port",
        "admin port",
    )
    for check in (*checks, "upstream default", "clock", "first token"):
        assert any(line.split(maxsplit=1)[1].startswith(check) for line in out.splitlines() if line.strip())
    # A key that is there is not enough: this is not its provider.
    assert Upstream.asked == []
    assert "scripted provider" in out
    assert "planted" not in out


def test_what_is_going_to_be_paid_for_is_said_before(cli, upstream, clean):
    file = keyed(clean, upstream)
    flags = ("doctor", "--config", str(file), "--port", "0", "--model", "m")
    code, out, _ = cli(*flags, OPENAI_API_KEY="sk-planted")
    assert code == 0, out
    lines = out.splitlines()
    said = next(
        n for n, line in enumerate(lines) if "Sends 6 requests for 16 tokens each to 127.0.0.1 (m)" in line
    )
    assert f"with the key of {clean / 'key'}" in lines[said]
    assert "--no-calls" in lines[said]
    assert "first token" in lines[said + 1]
    assert Upstream.asked == ["Bearer sk-file"] * 6
    assert "planted" not in out
    assert "sk-file" not in out
    code, out, _ = cli(*flags, "--no-calls", OPENAI_API_KEY="sk-planted")
    assert (code, len(Upstream.asked), "scripted provider" in out) == (0, 6, True)


def test_a_server_of_ones_own_gets_no_key_of_a_provider(cli, upstream):
    flags = ("doctor", "--upstream", upstream, "--port", "0", "--model", "llama3")
    code, out, _ = cli(*flags, OPENAI_API_KEY="sk-planted")
    assert (code, Upstream.asked) == (0, [""] * 6), out
    assert "(llama3), without a key" in out


def test_a_key_that_cannot_be_sent_fails_in_one_line(cli, monkeypatch, upstream):
    """Of a provider that stands on this machine for once."""
    own = msgspec.structs.replace(PROVIDERS["openai"], host="127.0.0.1")
    monkeypatch.setattr(doctor_asks, "PROVIDERS", {"openai": own})
    monkeypatch.setattr(type(own), "origin", property(lambda self: origin_of(upstream)))
    flags = ("doctor", "--upstream", upstream, "--port", "0")
    code, out, err = cli(*flags, OPENAI_API_KEY="sk-pl\xe4nted")
    assert (code, err, Upstream.asked) == (1, "", [])
    (line,) = [line for line in out.splitlines() if line.startswith("  FAIL")]
    assert "OPENAI_API_KEY" in line
    assert "scripted provider" in out
    assert "nted" not in out
    code, out, _ = cli(*flags, "--no-calls", OPENAI_API_KEY="sk-pl\xe4nted")
    assert code == 0, out
    code, out, _ = cli(*flags, OPENAI_API_KEY="sk-planted")
    assert (code, Upstream.asked) == (0, ["Bearer sk-planted"] * 6), out


@pytest.mark.parametrize("name", ["", "a\r\nb", "a\udcff"])
def test_the_name_of_a_model_that_is_none(cli, name):
    code, out, err = cli("doctor", "--upstream", "http://127.0.0.1:9", "--no-calls", "--model", name)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "--model" in err


def test_the_document_for_machines(cli, upstream):
    code, out, err = cli("doctor", "--upstream", upstream, "--port", "0", "--model", "m", "--json")
    document = json.loads(out)
    assert (code, document["exit"], document["fail"]) == (0, 0, 0)
    assert document["ok"] + document["warn"] == len(document["findings"])
    assert {"status", "check", "fact", "remedy", "data"} == set(document["findings"][0])
    assert all(bool(finding["remedy"]) == (finding["status"] != "ok") for finding in document["findings"])
    assert err.startswith("Sends 6 requests")


def test_something_is_wrong(cli, upstream, clean):
    place = clean / "cache" / "slipstream"
    place.mkdir(parents=True)
    place.chmod(0o755)
    code, out, _ = cli("doctor", "--upstream", upstream, "--port", "0", "--no-calls")
    assert code == 1
    lines = out.splitlines()
    at = next(n for n, line in enumerate(lines) if "FAIL data folder" in line)
    assert lines[at + 1].strip() == f"-> chmod 700 {place}"
    assert "1 FAILED" in out


def test_a_bad_configuration_is_one_line(cli):
    code, out, err = cli("doctor", "--port", "no")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


def test_as_a_process(upstream):
    code, out, _ = finished("doctor", "--upstream", upstream, "--port", "0", "--no-calls")
    assert (code, "first token" in out) == (0, True)
