"""Clients, keys and TLS of a sidecar that runs as a process: read at the start, and again on SIGHUP."""

import hashlib
import http.client
import json
import os
import signal
import ssl
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import trustme

from tests.cli.cache_rig import BODY, CHAT
from tests.cli.conftest import finished, process

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="signals are POSIX"),
    pytest.mark.usefixtures("clean"),
]
ASK = {"model": "m", "messages": [{"role": "user", "content": "Who?"}]}


@pytest.fixture
def provider():
    """An upstream; `keys` are what it was asked with."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.server.keys.append(self.headers["Authorization"])
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY)

        def log_message(self, *_args):
            """It would go to the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.keys = []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def configure(folder, url, token, *, more="", tls=False):
    """`c.toml` with one client and one upstream, whose key is in a file."""
    digest = hashlib.sha256(token.encode()).hexdigest()
    text = f'[[clients]]\nname = "app"\ntoken_sha256 = "{digest}"\n{more}\n'
    text += f'[[upstreams]]\nname = "up"\nurl = "{url}"\nkey_file = "up.key"\n'
    if tls:
        text += '[tls]\ncertificate = "c.pem"\nkey = "k.pem"\n'
    (folder / "c.toml").write_text(text)


SERVE = ["serve", "--port", "0", "--config", "c.toml", "--log-format", "json", "--data-dir", "data"]


def until(running, event):
    line = json.loads(running.stderr.readline())
    while line["event"] != event:
        line = json.loads(running.stderr.readline())
    return line


@contextmanager
def serving(*flags):
    with process(*SERVE, *flags) as running:
        yield running, until(running, "serving")["url"]


def ask(url, token, path=CHAT, *, context=None, **fields):
    """Status, fields and body of the answer."""
    secure, _, place = url.partition("://")
    made = http.client.HTTPSConnection(place, context=context) if secure == "https" else None
    connection = made or http.client.HTTPConnection(place)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    headers |= {name.replace("_", "-"): value for name, value in fields.items()}
    try:
        connection.request("POST", path, json.dumps(ASK), headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_all_of_it_is_renewed_by_a_signal(clean, provider):
    authorities = [trustme.CA(), trustme.CA()]
    contexts = []
    for authority in authorities:
        contexts.append(ssl.create_default_context())
        authority.configure_trust(contexts[-1])

    def issue(authority):
        issued = authority.issue_cert("127.0.0.1")
        (clean / "c.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        (clean / "k.pem").write_bytes(issued.private_key_pem.bytes())

    issue(authorities[0])
    (clean / "up.key").write_text("first\n")
    configure(clean, provider.url, "one", tls=True)
    with serving("--cache", "off") as (running, url):
        assert ask(url, "one", context=contexts[0])[0] == 200
        issue(authorities[1])
        (clean / "up.key").write_text("second\n")
        configure(clean, provider.url, "two", tls=True)
        running.send_signal(signal.SIGHUP)
        assert "clients.app" in until(running, "reloaded")["changed"]
        assert ask(url, "one", context=contexts[1])[0] == 401
        assert ask(url, "two", context=contexts[1])[0] == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(url, "two", context=contexts[0])
        # What cannot be used changes nothing at all.
        (clean / "up.key").write_text("")
        configure(clean, provider.url, "three", tls=True)
        running.send_signal(signal.SIGHUP)
        assert (
            "upstreams[0].key_file = 'up.key': the file is empty" in until(running, "reload_failed")["reason"]
        )
        assert ask(url, "three", context=contexts[1])[0] == 401
        assert ask(url, "two", context=contexts[1])[0] == 200
        (clean / "up.key").write_text("third")
        text = (clean / "c.toml").read_text()
        (clean / "c.toml").write_text(text[text.index("[[upstreams]]") :])  # without the client
        running.send_signal(signal.SIGHUP)
        # Nobody who could not ask may do so now; the rest is taken.
        assert until(running, "reloaded")["restart"] == ["clients"]
        assert ask(url, "nobody", context=contexts[1])[0] == 401
        assert ask(url, "two", context=contexts[1])[0] == 200
        running.send_signal(signal.SIGTERM)
        assert running.wait() == 0
    assert provider.keys == ["Bearer first", "Bearer second", "Bearer second", "Bearer third"]


def test_answers_that_were_imported_are_the_clients(clean, provider):
    """`cache import` knows by the token whose they are, as serving does, and asks for none that is good for
    nothing."""
    (clean / "up.key").write_text("key")
    configure(clean, provider.url, "one")
    pairs = [
        {
            "request": {"path": CHAT, "headers": {"Authorization": f"Bearer {token}"}, "body": ASK},
            "response": {"body": json.loads(BODY)},
        }
        for token in ("one", "nobody")
    ]
    (clean / "pairs").write_text("\n".join(map(json.dumps, pairs)))
    done = finished("cache", "import", "pairs", "--data-dir", "data", "--config", "c.toml")
    assert (done.code, done.out.strip()) == (1, "1 imported, 0 skipped (expired), 1 refused")
    assert "A token is required" in done.err
    with serving() as (_, url):
        status, fields, body = ask(url, "one")
        assert (status, json.loads(body)) == (200, json.loads(BODY))
        assert fields["Cache-Status"].startswith("slipstream; hit")
    assert provider.keys == []


def test_several_workers_keep_to_one_rate(clean, provider):
    (clean / "up.key").write_text("key")
    configure(clean, provider.url, "one", more="rate = 0.01\nrequests = 3")
    with serving("--workers", "2") as (running, url):
        statuses = Counter(ask(url, "one")[0] for _ in range(12))
        assert statuses == {200: 1, 429: 11}
        running.send_signal(signal.SIGTERM)
        running.communicate()
