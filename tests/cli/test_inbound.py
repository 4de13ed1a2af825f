"""What is refused of a configuration of clients, keys and TLS, and where the sidecar does not listen. FAULTS 48."""

import hashlib
import json
import os
import re

import pytest
import trustme
from msgspec.structs import replace

from sidecar.checks_inbound import check_host, refusal
from sidecar.config import load
from sidecar.core.values import ConfigError
from tests.cli.conftest import UPSTREAM, finished

SECRET = "hunter2-the-token-itself"
A, B = (hashlib.sha256(name).hexdigest() for name in (b"a", b"b"))
EMPTY = hashlib.sha256(b"").hexdigest()


def client(**values):
    return "[[clients]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def upstream(**values):
    values = {"name": "up", "url": UPSTREAM, **values}
    return "[[upstreams]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


ALICE = client(name="alice", token_sha256=A)
WRONG = {
    "no-token": (client(name="alice"), "clients[0]: object missing required field `token_sha256`"),
    "no-name": (client(token_sha256=A), "clients[0]: object missing required field `name`"),
    "the-token": (
        client(name="alice", token_sha256=SECRET),
        "clients[0].token_sha256: expected 64 hexadecimal",
    ),
    "of-nothing": (
        client(name="alice", token_sha256=EMPTY),
        "clients[0].token_sha256: the SHA-256 of nothing",
    ),
    "same-token": (
        ALICE + client(name="bob", token_sha256=A.upper()),
        "clients[1].token_sha256: another client has this token",
    ),
    "same-name": (
        ALICE + client(name="alice", token_sha256=B),
        "clients[1].name = 'alice': another client has it",
    ),
    "empty-name": (client(name="", token_sha256=A), "clients[0].name = '': expected up to 64 letters"),
    "control": (
        client(name="a\u0007", token_sha256=A),
        "clients[0].name = 'a\\x07': expected up to 64 letters",
    ),
    "lines": (client(name="a\nb", token_sha256=A), "clients[0].name = 'a\\nb': expected up to 64 letters"),
    "long": (client(name="a" * 65, token_sha256=A), "expected up to 64 letters"),
    "namespace": (
        client(name="alice", token_sha256=A, namespace="é"),
        "clients[0].namespace = 'é': expected printable ASCII",
    ),
    "no-namespace": (
        client(name="alice", token_sha256=A, namespace=""),
        "clients[0].namespace = '': expected printable ASCII",
    ),
    "requests": (client(name="alice", token_sha256=A, requests=0), "clients[0]: expected `int` >= 1"),
    "rate": (client(name="alice", token_sha256=A, rate=0), "clients[0]: expected `float` > 0"),
    "half-tls": (
        '[tls]\ncertificate = "c.pem"\n',
        "tls.certificate = 'c.pem': without tls.key; give both or none",
    ),
    "other-half": ('[tls]\nkey = "k.pem"\n', "tls.key = 'k.pem': without tls.certificate; give both or none"),
    "no-file": (
        '[tls]\ncertificate = "c.pem"\nkey = "k.pem"\n',
        "tls.certificate = 'c.pem': cannot be read: No such file or directory",
    ),
    "no-key-file": (
        upstream(key_file="none.key"),
        "upstreams[0].key_file = 'none.key': cannot be read: No such file or directory",
    ),
    "folder": (upstream(key_file="."), "upstreams[0].key_file = '.': cannot be read: Is a directory"),
    "empty-key": (upstream(key_file="empty"), "upstreams[0].key_file = 'empty': the file is empty"),
    "two-keys": (upstream(key_file="two"), "upstreams[0].key_file = 'two': expected one line with the key"),
    "header-only": (
        upstream(key_header="X-Key"),
        "upstreams[0].key_header: without key_file there is no key for it",
    ),
    "no-header": (
        upstream(key_file="good", key_header="X Key"),
        "upstreams[0].key_header: expected the name of a header field",
    ),
    "framing": (
        upstream(key_file="good", key_header="Content-Length"),
        "upstreams[0].key_header: expected the name of a header field",
    ),
    "ours": (
        upstream(key_file="good", key_header="Slipstream-Key"),
        "upstreams[0].key_header: expected the name of a header field",
    ),
    "key-for-a-file": (upstream(key_file=SECRET), "upstreams[0].key_file: cannot be read: No such file"),
    "long-key-for-a-file": (
        upstream(key_file=SECRET * 20),
        "upstreams[0].key_file: cannot be read: File name too long",
    ),
    "key-for-a-header": (
        upstream(key_file="good", key_header="Bearer " + SECRET),
        "upstreams[0].key_header: expected the name of a header field",
    ),
    "key-for-a-header-only": (
        upstream(key_header=SECRET),
        "upstreams[0].key_header: without key_file there is no key for it",
    ),
}


@pytest.fixture
def files(clean):
    (clean / "empty").write_bytes(b" \n")
    (clean / "two").write_bytes(SECRET.encode() + b"\nsecond\n")
    (clean / "good").write_bytes(SECRET.encode() + b"\n")
    return clean


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_without_a_secret(cli, files, case):
    text, said = WRONG[case]
    (files / "c.toml").write_text(text)
    result = cli("config", "validate", "--config", "c.toml")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert said in result.err
    assert SECRET not in result.err


def test_a_good_one_is_shown_without_the_key(cli, files):
    text = client(name="alice", token_sha256=A, namespace="team a", requests=3, rate=0.5)
    (files / "c.toml").write_text(text + upstream(key_file="good", key_header="X-Key"))
    assert cli("config", "validate", "--config", "c.toml").code == 0
    shown = cli("config", "show", "--config", "c.toml")
    assert 'namespace = "team a"' in shown.out
    assert 'key_file = "good"' in shown.out
    assert SECRET not in shown.out + shown.err


def test_a_key_of_systemd_is_found_by_its_name(cli, files, tmp_path):
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "openai").write_bytes(b"key")
    (files / "c.toml").write_text(upstream(key_file="openai"))
    assert cli("config", "validate", "--config", "c.toml").code == 2
    assert cli("config", "validate", "--config", "c.toml", CREDENTIALS_DIRECTORY=str(folder)).code == 0


def test_files_are_read_only_where_they_are_needed(cli, files):
    """Whoever may not read the key may still ask for the base URLs."""
    (files / "c.toml").write_text(upstream(key_file="none.key"))
    assert cli("env", "--config", "c.toml").code == 0
    assert cli("config", "show", "--config", "c.toml").code == 0


def test_env_names_https(cli, files):
    (files / "c.toml").write_text('[tls]\ncertificate = "c.pem"\nkey = "k.pem"\n')
    lines = cli("env", "--config", "c.toml", "--upstream", UPSTREAM).out.splitlines()
    assert "export ANTHROPIC_BASE_URL=https://127.0.0.1:8400" in lines
    lines = cli("env", "--config", "c.toml", "--upstream", UPSTREAM, "--host", "::").out.splitlines()
    assert "export ANTHROPIC_BASE_URL='https://[::1]:8400'" in lines


REMEDIES = ("[[clients]]", "tls.certificate and tls.key", "server.allow_public = true")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "fd00::1", "host.test", "127.0.0.1.test"])
def test_it_does_not_listen_beyond_loopback_by_itself(cli, host):
    result = cli("serve", "--port", "0", "--upstream", UPSTREAM, "--host", host)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert f"server.host = '{host}': anyone who reaches it could use it" in result.err
    assert all(remedy in result.err for remedy in REMEDIES)


@pytest.mark.parametrize("command", [["config", "validate"], ["run", "--", "true"], ["serve", "--port", "0"]])
def test_an_empty_host_is_every_address(cli, command):
    result = cli(*command, SLIPSTREAM_SERVER__HOST="")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "server.host = ''" in result.err


def test_who_does_not_listen_may_name_any_host(cli):
    """Where clients of a sidecar elsewhere get their variables, and operators their figures."""
    assert cli("env", "--host", "sidecar.internal").code == 0
    assert cli("config", "show", "--host", "0.0.0.0").code == 0


TLS = {"certificate": "c.pem", "key": "k.pem"}
CLIENTS = [{"name": "alice", "token_sha256": A}]
KEYED = [{"name": "up", "url": UPSTREAM, "key_file": "k"}]


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({}, "add [[clients]], or tls.certificate"),
        ({"clients": CLIENTS}, None),
        ({"tls": TLS}, None),
        ({"server": {"allow_public": True}}, None),
        ({"upstreams": KEYED}, "add [[clients]], or tls.certificate"),
        ({"upstreams": KEYED, "tls": TLS}, "could spend the key of upstreams[0].key_file: add [[clients]]"),
        ({"upstreams": KEYED, "clients": CLIENTS}, None),
        ({"upstreams": KEYED, "server": {"allow_public": True}}, None),
    ],
)
def test_what_it_takes_to_listen_beyond_loopback(tree, said):
    made, host = load({}, {}, tree).config, "0.0.0.0"
    found = refusal(made, host)
    assert (found is None) if said is None else (found is not None and said in found)
    for loopback in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        assert refusal(made, loopback) is None
    at = replace(made, server=replace(made.server, host=host))
    if said is None:
        check_host(at)
    else:
        with pytest.raises(ConfigError, match=re.escape(said)):
            check_host(at)


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX")
def test_serve_says_what_is_wrong_with_a_file(clean):
    """Read when it starts, before it listens."""
    (clean / "c.toml").write_text(upstream(key_file="none.key"))
    code, out, err = finished("serve", "--port", "0", "--config", "c.toml")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "upstreams[0].key_file = 'none.key': cannot be read" in err
    issued, other = (trustme.CA().issue_cert("localhost") for _ in range(2))
    (clean / "c.pem").write_bytes(issued.cert_chain_pems[0].bytes())
    (clean / "k.pem").write_bytes(other.private_key_pem.bytes())
    (clean / "c.toml").write_text('[tls]\ncertificate = "c.pem"\nkey = "k.pem"\n')
    code, out, err = finished("serve", "--port", "0", "--config", "c.toml")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "tls.key = 'k.pem': it is not the key of tls.certificate = 'c.pem'; renew both together" in err
