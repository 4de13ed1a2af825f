"""`slipstream doctor --url`: through real nginx that does what it should not, past things that are no sidecar, and to
places where nobody is."""

import asyncio
import hashlib
import json
import os
import socket
import ssl
import zlib
from contextlib import asynccontextmanager

import pytest
import trustme

from sidecar.serving import probe
from tests.cli.conftest import finished
from tests.cli.doctor_rig import findings, nginx, saying, server, sidecar

HTTP_1_1 = "proxy_http_version 1.1;"
UNHEEDED = "proxy_ignore_headers X-Accel-Buffering;"
COMPRESSED = "gzip on; gzip_types text/event-stream;"
PLACES = {
    "healthy": HTTP_1_1,
    "cured": f"{HTTP_1_1} {UNHEEDED} proxy_buffering off; proxy_set_header X-Forwarded-For $remote_addr;",
    "buffers": UNHEEDED,
    "tail": f"{HTTP_1_1} {UNHEEDED}",
    "gzip": f"{HTTP_1_1} {COMPRESSED}",
    "gzip-held": f"{HTTP_1_1} {UNHEEDED} {COMPRESSED}",
    "cut": f"{HTTP_1_1} proxy_read_timeout 2s;",
}
IDLE = {"cut": 4, "tail": 2, "healthy": 1}


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What doctor says of each of these, and of no nginx at all; seen at once, since most of it is waiting."""

    async def see():
        async with sidecar(keepalive__interval=3) as service:
            port = int(service.url.rpartition(":")[2])
            with nginx(tmp_path_factory.mktemp("nginx"), port, PLACES) as url:
                places = {name: f"{url}/{name}" for name in PLACES} | {"nothing": service.url}
                assert len(places) <= probe.AT_ONCE
                found = await asyncio.gather(
                    *(findings(place, IDLE.get(name, 0)) for name, place in places.items())
                )
        return dict(zip(places, found, strict=True))

    return asyncio.run(see())


def states(found):
    return {check: finding.status for check, finding in found.items()}


FINE = {"connection": "ok", "sidecar": "ok", "streaming": "ok", "compression": "ok"}


@pytest.mark.parametrize("name", ["healthy", "cured", "nothing"])
def test_a_healthy_way(seen, name):
    """`cured`: what buffers, with what doctor says should be done about it."""
    found = seen[name]
    # Keepalives come every 3 s here, and nobody was silent for so long.
    assert states(found) == {**FINE, "silence": "warn"}
    assert "--idle 4" in found["silence"].remedy
    assert found["streaming"].data["kind"] == "live"
    assert found["sidecar"].data["http"] == "1.1"
    assert found["sidecar"].data["forwarded"] == (["x-forwarded-for"] if name == "cured" else [])


def test_a_proxy_that_buffers(seen):
    """nginx's default, HTTP/1.0 to the sidecar, where `X-Accel-Buffering` is not heeded."""
    found = seen["buffers"]
    assert states(found) == {**FINE, "sidecar": "warn", "streaming": "fail", "silence": "warn"}
    assert found["sidecar"].data["http"] == "1.0"
    streaming = found["streaming"]
    assert streaming.data["kind"] in ("whole", "blocks")
    assert streaming.data["late_ms"] > 1000
    assert all(part in streaming.remedy for part in ("proxy_buffering off;", "proxy_http_version 1.1;"))


def test_a_proxy_that_keeps_the_last_bytes(seen):
    """Over HTTP/1.1 nginx passes on what fills its buffer, but the rest waits for what comes next."""
    streaming = seen["tail"]["streaming"]
    assert (streaming.status, streaming.data["kind"]) == ("fail", "tail")
    assert streaming.data["late_ms"] > 1500
    assert "proxy_buffering off;" in streaming.remedy


def test_a_proxy_that_compresses_and_holds_nothing_back(seen):
    found = seen["gzip"]
    assert states(found) == {**FINE, "compression": "warn", "silence": "warn"}
    assert found["compression"].data["encoding"] == "gzip"
    assert "gzip off;" in found["compression"].remedy


def test_a_proxy_whose_compression_holds_the_stream_back(seen):
    found = seen["gzip-held"]
    assert states(found) == {**FINE, "streaming": "fail", "compression": "fail", "silence": "warn"}
    assert found["streaming"].data["kind"] in ("whole", "blocks")
    assert "without it" in found["compression"].fact
    assert "gzip_types" in found["compression"].remedy


def test_a_proxy_that_cuts_what_is_silent(seen):
    found = seen["cut"]
    assert states(found) == {**FINE, "silence": "fail"}
    silence = found["silence"]
    assert 1.4 < silence.data["cut_after_s"] < 3.9
    assert silence.data["keepalive_s"] == 3
    # Both cures, and a number for ours that lies below what was seen.
    interval = float(silence.remedy.partition("keepalive.interval = ")[2].partition("`")[0])
    assert 0 < interval < 2
    assert "proxy_read_timeout" in silence.remedy


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(probe, "PACE", 0.02)


async def test_keepalives_that_come_before_the_cut_are_enough(hurried, tmp_path):
    async with sidecar(keepalive__interval=1.2) as service:
        with nginx(tmp_path, int(service.url.rpartition(":")[2]), {"cut": PLACES["cut"]}) as url:
            found = await findings(f"{url}/cut", 4)
    assert found["silence"].status == "ok"
    assert "before that" in found["silence"].fact


async def test_a_silence_longer_than_between_keepalives_is_all_that_has_to_be_survived(hurried):
    async with sidecar(keepalive__interval=0.1) as service:
        found = await findings(service.url, 0.3)
    assert states(found) == {**FINE, "silence": "ok"}


async def test_a_token(hurried):
    """Without: what to do. With: as ever. With another: what to do. None of them is repeated."""
    clients = {"clients": [{"name": "a", "token_sha256": hashlib.sha256(b"the-token").hexdigest()}]}
    async with sidecar(file=clients, keepalive__interval=0) as service:
        without, other = await findings(service.url), await findings(service.url, token="another")
        assert states(await findings(service.url, token="the-token")) == {**FINE, "silence": "ok"}
    for found, word in ((without, "asks for a token"), (other, "knows no client")):
        assert states(found) == {"connection": "ok", "sidecar": "fail"}
        assert word in found["sidecar"].fact
        assert "--token-file" in found["sidecar"].remedy
    assert "another" not in str(other)


@pytest.mark.parametrize("there", [True, False])
async def test_a_path_that_is_not_cut_off(tmp_path, provider, there):
    """The sidecar takes it for a model's, and asks upstream, whoever that is."""
    async with sidecar(server__upstream=provider.url if there else "http://127.0.0.1:9") as service:
        with nginx(tmp_path, int(service.url.rpartition(":")[2]), {"uncut": HTTP_1_1}) as url:
            found = await findings(f"{url}/uncut")
    assert found["sidecar"].status == "fail"
    assert "proxy_pass" in found["sidecar"].remedy


async def test_nobody_behind_the_proxy(tmp_path):
    with nginx(tmp_path, 9, {"a": HTTP_1_1}) as url:
        bad, wrong = await findings(f"{url}/a"), await findings(url)
    assert "502" in bad["sidecar"].fact
    assert "running" in bad["sidecar"].remedy
    assert "a web page" in wrong["sidecar"].fact
    assert "404" in wrong["sidecar"].fact


async def test_a_closed_port():
    async with server(saying(b"")) as url:
        pass
    found = await findings(url)
    assert states(found) == {"connection": "fail"}
    assert "nothing listens" in found["connection"].fact


async def test_a_name_that_does_not_exist(monkeypatch):
    def unknown(*arguments, **options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    found = await findings("http://nobody.invalid")
    assert "no such name" in found["connection"].fact


OK = b"HTTP/1.1 200 OK\r\n"
EVENTS = b"Content-Type: text/event-stream\r\n"
STRANGERS = {
    "a page": (OK + b"Content-Type: text/html\r\nContent-Length: 2\r\n\r\nhi", "a web page"),
    "another stream": (OK + EVENTS + b"Content-Length: 14\r\n\r\ndata: [DONE]\n\n", "another stream"),
    "a model's stream": (OK + EVENTS + b'\r\ndata: {"choices":[]}\n\n', "another stream"),
    "no stream": (OK + EVENTS + b"Content-Length: 0\r\n\r\n", "nothing of the stream came"),
    "brotli": (OK + EVENTS + b"Content-Encoding: br\r\n\r\n\x00\x01", "br, which nobody asked for"),
    "broken gzip": (OK + EVENTS + b"Content-Encoding: gzip\r\n\r\nnot gzip", "compression is broken"),
    "a redirect": (
        b"HTTP/1.1 301 Moved\r\nLocation: https://b.test/x?key=planted\r\n\r\n",
        "https://b.test/x",
    ),
    "a gate": (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", "asks for a credential"),
    "a limit": (b"HTTP/1.1 429 Too Many\r\nContent-Length: 0\r\n\r\n", "limits requests"),
    "a timeout": (b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\n\r\n", "cannot reach it (504)"),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
    "nothing": (b"", "without an answer"),
    "an older sidecar": (
        b"HTTP/1.1 404 Not Found\r\nSlipstream-Error: not_found\r\nContent-Length: 0\r\n\r\n",
        "has no probe",
    ),
    "one that drains": (
        b"HTTP/1.1 503 Unavailable\r\nSlipstream-Error: draining\r\nContent-Length: 0\r\n\r\n",
        "shutting down",
    ),
    "one that is full": (
        b"HTTP/1.1 503 Unavailable\r\nSlipstream-Error: overloaded\r\nContent-Length: 0\r\n\r\n",
        "as many requests or probes",
    ),
    "control characters": (
        b"HTTP/1.1 404 Not Found\r\nContent-Type: a\x9b31m\xff\r\nContent-Length: 0\r\n\r\n",
        "404",
    ),
}


@pytest.mark.parametrize("name", STRANGERS)
async def test_what_is_no_sidecar_is_told_apart(name):
    answer, word = STRANGERS[name]
    async with server(saying(answer)) as url:
        found = await findings(url, timeout=1)
    said = found["sidecar"]
    assert said.status == "fail"
    assert word in said.fact
    assert said.remedy
    assert "planted" not in str(found)
    assert "\x9b" not in said.fact


async def test_one_that_never_answers(monkeypatch):
    monkeypatch.setattr("sidecar.cli.doctor_probe.PACED", 0)

    async def silent(reader, writer):
        await reader.read()  # until the other side leaves

    async with server(silent) as url:
        found = await findings(url, timeout=1)
    assert "no answer comes" in found["sidecar"].fact


async def test_one_that_does_not_stop():
    """An endless body, and one that unpacks to far more than it is: taken to a limit, and no further."""

    async def endless(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + EVENTS + b"\r\n")
        while True:
            writer.write(b": nothing\n" * 6554)
            await writer.drain()

    packed = zlib.compressobj(wbits=31)
    bomb = packed.compress(b"\0" * (64 << 20)) + packed.flush()
    coded = b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    async with server(endless) as url:
        assert (await findings(url))["sidecar"].status == "fail"
    async with server(saying(OK + EVENTS + coded + bomb)) as url:
        assert "far more than a probe" in (await findings(url))["sidecar"].fact


@asynccontextmanager
async def secured(context):
    """A server behind TLS that closes when it is asked."""

    async def connected(reader, writer):
        try:
            await reader.read(1)
        except (ConnectionError, ssl.SSLError):
            pass
        writer.close()

    running = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    async with running:
        yield f"https://127.0.0.1:{running.sockets[0].getsockname()[1]}"


async def test_certificates(monkeypatch, tmp_path):
    """Not trusted; another's; trusted; TLS where there is none."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    mine, other = (ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) for _ in range(2))
    authority.issue_cert("127.0.0.1").configure_cert(mine)
    authority.issue_cert("other.test").configure_cert(other)
    async with secured(mine) as url:
        found = (await findings(url))["connection"]
        assert found.status == "fail"
        assert "SSL_CERT_FILE" in found.remedy
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        found = (await findings(url))["connection"]
        assert (found.status, found.data["tls"]) == ("ok", "TLSv1.3")
    async with secured(other) as url:
        found = (await findings(url))["connection"]
        assert "not accepted" in found.fact
        assert "the name that is in the certificate" in found.remedy

    async def plain(reader, writer):
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()  # until the other side leaves

    async with server(plain) as url:
        found = (await findings(url.replace("http:", "https:")))["connection"]
        assert "speaks no TLS" in found.fact
        assert "http://" in found.remedy


def test_the_command_and_its_exit_status(clean, tmp_path):
    """As people and as machines see it, against what is not there; the token is in no output."""
    token = tmp_path / "token"
    token.write_text("planted-token\n")
    code, out, err = finished("doctor", "--url", "http://127.0.0.1:9", "--token-file", str(token))
    assert (code, err) == (1, "")
    assert "FAIL connection" in out
    assert "1 FAILED" in out
    assert "\x1b" not in out
    code, out, err = finished(
        "doctor",
        "--url",
        "http://127.0.0.1:9",
        "--json",
        env={**os.environ, "SLIPSTREAM_TOKEN": "planted-token"},
    )
    document = json.loads(out)
    assert (code, document["exit"], document["fail"]) == (1, 1, 1)
    (finding,) = document["findings"]
    assert (finding["check"], finding["status"]) == ("connection", "fail")
    assert finding["remedy"]
    assert "planted" not in out + err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--url", "localhost:8400"], "--url"),
        (["--url", "https://user:planted@h"], "--url"),
        (["--url", "http://h", "--idle", "121"], "--idle"),
        (["--url", "http://h", "--token-file", "absent"], "--token-file: absent: cannot be read"),
        (["--url", "http://h", "--token-file", "empty"], "--token-file: expected one line"),
        (["--url", "http://h", "--token-file", "two"], "--token-file: expected one line"),
        (["--url", "http://h", "--timeout", "0"], "--timeout"),
    ],
)
def test_bad_usage(cli, clean, flags, words):
    (clean / "empty").touch()
    (clean / "two").write_text("planted one\ntwo\n")
    code, out, err = cli("doctor", *flags)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert "planted" not in err
