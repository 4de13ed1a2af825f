"""TLS on the proxy's port: handshakes that fail or never end, renewed certificates, and ends that tell the truth."""

import asyncio
import errno
import logging
import os
import ssl
import subprocess
import sys
import textwrap
from hashlib import sha256

import pytest
import trustme

from sidecar.config import load
from sidecar.core.values import ConfigError
from tests.faults.clients import BODY, WHOLE, answered
from tests.faults.conftest import eventually
from tests.faults.wire import (
    CHAT,
    FRAMED,
    GUARD,
    LAST,
    Answer,
    Client,
    chunk,
    head,
    request,
)

CA = trustme.CA()


class Pair:
    """A certificate and its key in files, and a client's view of them."""

    def __init__(self, folder, ca=CA):
        self.certificate, self.key = folder / "cert.pem", folder / "key.pem"
        self.renew(ca)

    def renew(self, ca=CA, *, write=("certificate", "key"), key_type=trustme.KeyType.ECDSA):
        issued = ca.issue_cert("localhost", "127.0.0.1", key_type=key_type)
        if "certificate" in write:
            self.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        if "key" in write:
            self.key.write_bytes(issued.private_key_pem.bytes())

    @property
    def tree(self):
        return {"tls": {"certificate": str(self.certificate), "key": str(self.key)}}


def trusting(ca=CA, **options):
    context = ssl.create_default_context()
    ca.configure_trust(context)
    for name, value in options.items():
        setattr(context, name, value)
    return context


@pytest.fixture
def pair(tmp_path):
    return Pair(tmp_path)


async def begin(rig, pair, **keys):
    return await rig.start(file=pair.tree, **keys)


async def connect(rig, context=None):
    """A client over TLS."""
    async with asyncio.timeout(GUARD):
        streams = await asyncio.open_connection(
            "127.0.0.1",
            rig.sidecar.port,
            ssl=context or trusting(),
            server_hostname="localhost",
            limit=1 << 20,
        )
    rig.clients.append(Client(*streams))
    return rig.clients[-1]


class Bare:
    """A client over TLS that sees how the connection ends."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.data = b""
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = trusting().wrap_bio(self._in, self._out, server_hostname="localhost")

    @classmethod
    async def open(cls, rig):
        client = await Client.open(rig.sidecar.port)
        rig.clients.append(client)
        made = cls(client.reader, client.writer)
        await made._do(made._tls.do_handshake)
        return made

    async def _do(self, work):
        while True:
            try:
                return work()
            except ssl.SSLWantReadError:
                self.flush()
                async with asyncio.timeout(GUARD):
                    data = await self.reader.read(1 << 16)
                if data:
                    self._in.write(data)
                else:
                    self._in.write_eof()
            finally:
                self.flush()

    def flush(self):
        if self._out.pending:
            self.writer.write(self._out.read())

    async def send(self, data):
        self._tls.write(data)
        self.flush()

    async def until_has(self, part):
        while part not in self.data:
            more = await self._do(lambda: self._tls.read(1 << 16))
            assert more, self.data
            self.data += more

    async def end(self):
        """All that came, and how it ends: `told` by close_notify, `cut` or `reset` without."""
        try:
            while part := await self._do(lambda: self._tls.read(1 << 16)):
                self.data += part
        except (ssl.SSLEOFError, ssl.SSLSyscallError):
            return self.data, "cut"
        except ConnectionError:
            return self.data, "reset"
        except ssl.SSLZeroReturnError:
            pass
        return self.data, "told"


async def plain(rig):
    return await rig.connect()


async def test_a_request_goes_through_as_without(rig, pair):
    sidecar = await begin(rig, pair)
    assert sidecar.url.startswith("https://127.0.0.1:")
    rig.script(CHAT.target)
    client = await connect(rig)
    tls = client.writer.get_extra_info("ssl_object")
    assert tls.version() == "TLSv1.3"
    assert tls.selected_alpn_protocol() is None  # it did not ask
    for _ in range(2):
        await client.send(request("POST", CHAT.target, BODY))
        call = await rig.call()
        assert await call.received.read() == BODY
        await answered(call)
        answer = await client.answer()
        assert (answer.status, await answer.rest()) == (200, WHOLE)


@pytest.mark.parametrize("form", FRAMED, ids=str)
async def test_a_stream_is_not_held_back(rig, pair, form):
    """The upstream sends no byte more until the client has the ones before."""
    await begin(rig, pair)
    rig.script(form.target)
    client = await connect(rig)
    await client.send(form.sent)
    call = await rig.call()
    await call.send(head(form.kind))
    answer = await client.answer(form.method)
    size = 0
    for event in form.events:
        half = len(event) // 2
        for part in (event[:half], event[half:]):
            await call.send(chunk(part))
            size += len(part)
            assert await answer.until(size) == form.whole[:size]
    await call.send(LAST)
    call.done()
    await answer.rest()
    assert (answer.end, bytes(answer.body)) == ("whole", form.whole)


async def test_alpn_and_old_versions(rig, pair):
    sidecar = await begin(rig, pair)
    context = trusting()
    context.set_alpn_protocols(["h2", "http/1.1"])
    client = await connect(rig, context)
    assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
    client = await connect(rig, trusting(maximum_version=ssl.TLSVersion.TLSv1_2))
    assert client.writer.get_extra_info("ssl_object").version() == "TLSv1.2"
    old = trusting()
    with pytest.warns(DeprecationWarning):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await connect(rig, old)
    assert sidecar.service.tls.context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert (await (await connect(rig)).whole("GET", "/_slipstream/healthz")).status == 200


async def test_a_client_that_trusts_somebody_else_leaves_and_nothing_is_said(rig, pair, caplog):
    await begin(rig, pair)
    with pytest.raises(ssl.SSLCertVerificationError):
        await connect(rig, trusting(trustme.CA()))
    assert (await (await connect(rig)).whole("GET", "/_slipstream/healthz")).status == 200
    assert not caplog.records


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 600,
        b"\0" * 9,
    ],
    ids=["http", "half", "nothing"],
)
async def test_what_is_no_handshake_ends_the_connection_and_nothing_else(rig, pair, data, caplog):
    """Plain HTTP, or nonsense, on the port -> closed, with not a byte of HTTP, and no traceback anywhere."""
    caplog.set_level(logging.DEBUG)
    await begin(rig, pair)
    client = await plain(rig)
    await client.send(data)
    if data[:1] == b"\x16":
        client.writer.write_eof()
    assert b"HTTP/1.1" not in await client.closed()
    assert (await (await connect(rig)).whole("GET", "/_slipstream/healthz")).status == 200
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert not rig.provider.received


async def test_a_handshake_that_never_ends_is_ended(rig, pair):
    sidecar = await begin(rig, pair, timeouts__client=0.3)
    client = await plain(rig)
    await client.send(b"\x16\x03\x01")
    assert await client.closed() == b""
    await eventually(lambda: not any(one.opening for one in sidecar.service._listeners), lambda: "opening")


async def test_handshakes_that_hang_do_not_keep_others_out_or_it_running(rig, pair):
    sidecar = await begin(rig, pair)
    hanging = [await plain(rig) for _ in range(20)]
    assert (await (await connect(rig)).whole("GET", "/_slipstream/healthz")).status == 200
    await sidecar.service.stop(0)
    for client in hanging:
        assert await client.closed() == b""


async def test_slow_headers_are_408_behind_the_handshake_too(rig, pair):
    await begin(rig, pair, timeouts__client=0.3)
    client = await Bare.open(rig)
    await client.send(b"GET / HT")
    data, _ = await client.end()
    assert data.startswith(b"HTTP/1.1 408 ")


# Ends.


async def streaming(rig, pair, *, http10=False, **keys):
    await begin(rig, pair, **keys)
    rig.script(CHAT.target)
    client = await Bare.open(rig)
    version = b"1.0" if http10 else b"1.1"
    await client.send(CHAT.sent.replace(b"HTTP/1.1", b"HTTP/" + version))
    call = await rig.call()
    await call.send(head(), chunk(CHAT.events[0]))
    await client.until_has(CHAT.events[0])
    return client, call


@pytest.mark.parametrize("http10", [False, True])
async def test_a_whole_answer_ends_in_a_farewell(rig, pair, http10):
    client, call = await streaming(rig, pair, http10=http10)
    await call.send(b"".join(map(chunk, CHAT.events[1:])), LAST)
    call.done()
    if http10:
        data, how = await client.end()
        assert how == "told"
        assert data.endswith(CHAT.whole)
    else:
        await client.send(b"GET /_slipstream/healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        data, how = await client.end()
        assert how == "told"
        assert LAST in data


@pytest.mark.parametrize("http10", [False, True])
@pytest.mark.parametrize("fault", ["close", "reset", "stop"])
async def test_a_cut_answer_never_looks_whole(rig, pair, http10, fault):
    """HTTP/1.1: no last chunk. HTTP/1.0, where the end of the connection is the end of the body: no farewell."""
    client, call = await streaming(rig, pair, http10=http10)
    if fault == "stop":
        await rig.sidecar.service.stop(0)
    else:
        getattr(call, fault)()
    data, how = await client.end()
    assert CHAT.events[0] in data
    if http10:
        assert how in ("cut", "reset")
        assert CHAT.lost in data  # the error frame came before
    else:
        assert not data.endswith(LAST)
        assert CHAT.lost in data
    assert b"[DONE]" not in data


async def test_a_client_that_reads_no_more_is_ended(rig, pair):
    """It takes nothing, and says nothing: its place is needed."""
    await begin(rig, pair, timeouts__client=0.5)
    rig.script("/big")
    client = await Bare.open(rig)
    client.writer.transport.pause_reading()
    await client.send(request("GET", "/big"))
    call = await rig.call()
    piece = os.urandom(1 << 16)
    await call.send(head(b"application/octet-stream", framing=b"Content-Length: %d" % (len(piece) * 1000)))
    try:
        for _ in range(1000):
            await call.send(piece)
    except (ConnectionError, TimeoutError):
        pass
    await eventually(lambda: not rig.sidecar.connections, lambda: "the connection")
    assert (await rig.line())["outcome"] == "cancelled"


async def test_a_slow_client_gets_all_of_the_last_answer(rig, pair):
    """Connection: close with megabytes still to be sent -> all of them come."""
    await begin(rig, pair)
    rig.script("/big")
    client = await Bare.open(rig)
    await client.send(request("GET", "/big", None, [(b"Connection", b"close")]))
    call = await rig.call()
    body = os.urandom(3 << 20)
    await call.send(head(b"application/octet-stream", framing=b"Content-Length: %d" % len(body)), body)
    call.done()
    data, how = await client.end()
    assert data.partition(b"\r\n\r\n")[2] == body
    assert how == "told"


@pytest.mark.parametrize("how", ["fin", "rst", "notify"])
async def test_a_client_that_leaves_cancels_the_call(rig, pair, how):
    await begin(rig, pair)
    rig.script(CHAT.target)
    client = await connect(rig)
    await client.send(CHAT.sent)
    call = await rig.call()
    await call.send(head(), chunk(CHAT.events[0]))
    answer = await client.answer()
    await answer.until(1)
    if how == "notify":
        client.close()
    elif how == "rst":
        client.reset()
    else:
        client.writer.transport.abort()
    await call.closed()
    assert (await rig.line())["outcome"] == "cancelled"


# Renewal.


async def serial(rig, context=None):
    client = await connect(rig, context)
    found = client.writer.get_extra_info("peercert")["serialNumber"]
    client.close()
    return found


def configured(pair):
    return load({}, {}, pair.tree).config


async def test_a_renewed_certificate_is_used_while_streams_run(rig, pair):
    sidecar = await begin(rig, pair)
    rig.script(CHAT.target)
    client = await connect(rig)
    await client.send(CHAT.sent)
    call = await rig.call()
    await call.send(head(), chunk(CHAT.events[0]))
    answer: Answer = await client.answer()
    await answer.until(1)
    before = await serial(rig)
    assert await serial(rig) == before
    pair.renew()
    assert await serial(rig) == before  # nobody was told yet
    sidecar.service.prepare(configured(pair))()
    after = await serial(rig)
    assert after != before
    await call.send(b"".join(map(chunk, CHAT.events[1:])), LAST)
    call.done()
    await answer.rest()
    assert (answer.end, bytes(answer.body)) == ("whole", CHAT.whole)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("before, after", [("RSA", "ECDSA"), ("ECDSA", "RSA")])
async def test_a_renewed_certificate_may_have_a_key_of_another_type(rig, pair, before, after, version):
    """OpenSSL keeps one certificate per type of key, and chooses by what the client prefers."""
    pair.renew(key_type=trustme.KeyType[before])
    sidecar = await begin(rig, pair)
    context = trusting(minimum_version=version, maximum_version=version)
    first = await serial(rig, context)
    pair.renew(key_type=trustme.KeyType[after])
    sidecar.service.prepare(configured(pair))()
    assert await serial(rig, context) != first


async def test_of_a_configuration_that_cannot_be_used_nothing_is(rig, pair, monkeypatch):
    """Whatever fails last: keys, certificate and clients stay as they were, together."""
    file, url = pair.key.with_name("up.key"), rig.provider.url
    file.write_bytes(b"old-key")
    upstreams = [{"name": "up", "url": url, "paths": ["/v1"], "key_file": str(file)}]

    def tree(*names):
        hashed = [{"name": name, "token_sha256": sha256(name.encode()).hexdigest()} for name in names]
        return pair.tree | {"upstreams": upstreams, "clients": hashed}

    sidecar = await rig.start(None, file=tree("ann"))
    inbound, service = sidecar.service.assembly.inbound, sidecar.service
    assert await serial(rig) == (before := await serial(rig))

    def state():
        keys = [key.value for key in inbound.keys._keys.values()]
        return keys, [client.name for client in inbound.clients._table.values()]

    file.write_bytes(b"new-key")
    config = load({}, {}, tree("bob")).config
    certificate = pair.certificate.read_bytes()
    pair.certificate.unlink()
    with pytest.raises(ConfigError, match=r"tls\.certificate"):
        service.prepare(config)
    pair.certificate.write_bytes(certificate)
    pair.renew()
    with monkeypatch.context() as full:

        def no_space(names):
            raise OSError(errno.ENOSPC, "No space left on device")

        full.setattr(inbound.clients, "_make", no_space)
        with pytest.raises(ConfigError, match="clients: their limits cannot be kept: No space"):
            service.prepare(config)
    take = service.prepare(config)
    # What is only ready changes nothing either.
    assert (state(), await serial(rig)) == (([b"old-key"], ["ann"]), before)
    # And what is taken is what was read then.
    file.unlink()
    pair.certificate.unlink()
    take()
    assert state() == ([b"new-key"], ["bob"])
    assert await serial(rig) != before


# Handshakes that fail, in the log.


def told(rig):
    return [line for line in rig.sidecar.lines.all if line["event"] == "tls_handshake_failed"]


async def test_the_log_says_how_many_handshakes_failed_and_why(rig, pair, monkeypatch):
    monkeypatch.setattr("sidecar.web.handshakes._PERIOD", 3600)
    sidecar = await begin(rig, pair)
    for _ in range(4):
        client = await plain(rig)
        await client.send(b"GET /secret HTTP/1.1\r\nHost: h\r\n\r\n")
        await client.closed()
    client = await plain(rig)
    client.close()
    await eventually(lambda: sidecar.service._handshakes._failed.total() == 4, lambda: "count")
    (first,) = told(rig)
    assert (first["level"], first["count"], first["reasons"]) == ("warning", 1, {"http_request": 1})
    await sidecar.service.stop(0)
    _, last = told(rig)
    assert (last["count"], last["reasons"]) == (4, {"http_request": 3, "left": 1})
    assert not any(b"secret" in line for line in sidecar.lines.raw)


async def test_there_is_one_line_a_period_at_most_and_none_when_nothing_fails(monkeypatch):
    from sidecar.telemetry.log import make_logger
    from sidecar.web.handshakes import Handshakes
    from tests.conftest import Lines

    timers = []

    class Timer:
        def __init__(self, _delay, do):
            self.do = do
            timers.append(self)

        def cancel(self):
            pass

    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", Timer)
    lines = Lines()
    counted = Handshakes(make_logger(lines, "json", "info"))
    for error in (ConnectionResetError(), ConnectionAbortedError(), ConnectionResetError()):
        counted.failed(error)
    assert [(line["level"], line["reasons"]) for line in lines.all] == [("info", {"left": 1})]
    timers.pop().do()
    assert lines.all[1]["reasons"] == {"timeout": 1, "left": 1}
    timers.pop().do()
    assert (len(lines.all), timers) == (2, [])
    counted.failed(ssl.SSLError())
    assert (lines.all[2]["reasons"], len(timers)) == ({"ssl": 1}, 1)


BROKEN = {
    "no-key": ("key", None, "tls.key = '.*key.pem': cannot be read"),
    "no-certificate": ("certificate", None, "tls.certificate = '.*cert.pem': cannot be read"),
    "nonsense": ("certificate", b"no pem", "expected PEM files"),
    "empty": ("key", b"", "expected PEM files"),
}


@pytest.mark.parametrize("case", [*BROKEN, "other-key", "off"])
async def test_what_cannot_be_used_changes_nothing(rig, pair, case):
    sidecar = await begin(rig, pair)
    before = await serial(rig)
    config = configured(pair)
    if case == "other-key":
        pair.renew(write=("certificate",))
        said = "it is not the key of tls.certificate"
    elif case == "off":
        config, said = load({}, {}).config, "TLS can only be turned off by a restart"
    else:
        name, content, said = BROKEN[case]
        file = getattr(pair, name)
        file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        sidecar.service.prepare(config)
    assert "\n" not in str(caught.value)
    assert "PRIVATE" not in str(caught.value)
    assert await serial(rig) == before


def test_a_key_with_a_passphrase_is_refused_and_asks_nobody(pair):
    """OpenSSL asks on the terminal, and waits, unless it is given something."""
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    from sidecar.web.tls import Tls

    key = load_pem_private_key(pair.key.read_bytes(), None)
    locked = BestAvailableEncryption(b"secret")
    pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    with pytest.raises(ConfigError, match="it has a passphrase"):
        Tls(str(pair.certificate), str(pair.key))


def test_files_are_looked_up_among_the_credentials(tmp_path, monkeypatch):
    from sidecar.web.tls import of

    folder = tmp_path / "credentials"
    folder.mkdir()
    pair = Pair(folder)
    tree = {"tls": {"certificate": pair.certificate.name, "key": pair.key.name}}
    config = load({}, {}, tree).config
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        of(config)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    assert of(config) is not None


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_the_command_serves_it(pair, tmp_path):
    """`slipstream serve` with TLS: the banner, and the log, name https."""
    import json
    import urllib.request

    file = tmp_path / "c.toml"
    tls = pair.tree["tls"]
    file.write_text(
        textwrap.dedent(f"""
        [tls]
        certificate = {json.dumps(tls["certificate"])}
        key = {json.dumps(tls["key"])}
        """)
    )
    command = [sys.executable, "-m", "sidecar", "serve", "--port", "0", "--upstream", "http://127.0.0.1:9"]
    options = ["--config", str(file), "--log-format", "json", "--data-dir", str(tmp_path / "data")]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as running:
        try:
            line = json.loads(running.stderr.readline())
            while line["event"] != "serving":
                line = json.loads(running.stderr.readline())
            assert line["url"].startswith("https://127.0.0.1:")
            with urllib.request.urlopen(line["url"] + "/_slipstream/healthz", context=trusting()) as answer:
                assert answer.status == 200
        finally:
            running.terminate()
            running.communicate()
    assert running.returncode == 0
