"""sidecar.cache.embed.remote and endpoint, against a real server that answers as a test says."""

import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import numpy as np
import pytest
import trustme

from sidecar.cache import embed
from sidecar.cache.embed.base import Embedded, EmbedError
from sidecar.core.values import Duration
from sidecar.tables import Semantic

KEY = "sk-very-secret-0123456789"
SECRET = "the text that nobody may see"
LONG = 30.0
"""Seconds; for what is not about time."""


class Asked:
    """A request as it came."""

    def __init__(self, head: bytes, body: bytes) -> None:
        self.line, *lines = head.decode().split("\r\n")
        self.headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
        }
        self.body = json.loads(body)


class Server:
    """Answers each request with the bytes that `reply` makes; closes a connection where they end in None."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.reply: Callable[[Asked], list[bytes | threading.Event | None]] = lambda asked: [
            ok(vectors(asked))
        ]
        self.asked: list[Asked] = []
        self.connections = 0
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                outer.connections += 1
                try:
                    connection = tls.wrap_socket(self.request, server_side=True) if tls else self.request
                    with connection:
                        outer._serve(connection)
                except (OSError, EOFError):
                    pass  # the client has gone, or never trusted us

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http{'s' if tls else ''}://localhost:{self.port}/v1/embeddings"

    def _serve(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as incoming:
            while True:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    line = incoming.readline()
                    if not line:
                        return
                    head += line
                length = next(
                    int(line.split(b":")[1])
                    for line in head.lower().split(b"\r\n")
                    if b"content-length" in line
                )
                asked = Asked(head.strip(), incoming.read(length))
                self.asked.append(asked)
                for part in self.reply(asked):
                    if part is None:
                        return
                    if isinstance(part, threading.Event):
                        part.wait(LONG)
                    else:
                        connection.sendall(part)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def ok(data: object, status: str = "200 OK", *headers: str) -> bytes:
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def vector(text: str) -> list[float]:
    """Some direction; not of length 1."""
    return [float(len(text)), 3.0, 4.0]


def vectors(asked: Asked) -> dict[str, object]:
    rows = [
        {"object": "embedding", "index": place, "embedding": vector(text)}
        for place, text in enumerate(asked.body["input"])
    ]
    return {"object": "list", "data": rows, "model": "m", "usage": {"prompt_tokens": 1}}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    return path


@contextmanager
def loaded(server, key_file=None, timeout=LONG, url=None):
    key = str(key_file) if key_file else None
    semantic = Semantic(embedder=url or server.url, model="m-small", key_file=key, timeout=Duration(timeout))
    embedder = embed.load(semantic, None)
    try:
        yield embedder
    finally:
        embedder.close()


def unit(numbers):
    return np.array(numbers, np.float32) / np.linalg.norm(numbers)


def test_what_is_asked_and_what_comes_of_it(server, key_file):
    with loaded(server, key_file) as embedder:
        found = embedder.embed(["a", "", "Grüße 🎉"])
    (asked,) = server.asked
    assert asked.line == "POST /v1/embeddings HTTP/1.1"
    assert asked.body == {"model": "m-small", "input": ["a", "", "Grüße 🎉"], "encoding_format": "float"}
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.headers["content-type"] == "application/json"
    assert asked.headers["host"] == f"localhost:{server.port}"
    for text, one in zip(["a", "", "Grüße 🎉"], found, strict=True):
        assert one.vector.dtype == np.float32
        assert np.allclose(one.vector, unit(vector(text)))
        assert one.truncated is False


def test_without_a_key_there_is_no_credential(server):
    with loaded(server) as embedder:
        embedder.embed(["a"])
    assert "authorization" not in server.asked[0].headers


def test_nothing_is_asked_for_nothing(server):
    with loaded(server) as embedder:
        assert embedder.embed([]) == []
    assert server.connections == 0


def test_one_connection_serves_many_calls(server):
    with loaded(server) as embedder:
        for _ in range(5):
            embedder.embed(["a"])
    assert (len(server.asked), server.connections) == (5, 1)


def test_the_order_is_that_of_the_numbers(server):
    def backwards(asked):
        answer = vectors(asked)
        answer["data"].reverse()
        return [ok(answer)]

    server.reply = backwards
    with loaded(server) as embedder:
        one, two = embedder.embed(["a", "bbbbbb"])
    assert np.allclose(one.vector, unit(vector("a")))
    assert np.allclose(two.vector, unit(vector("bbbbbb")))


def test_an_answer_without_numbers_is_in_order(server):
    server.reply = lambda asked: [ok({"data": [{"embedding": vector(text)} for text in asked.body["input"]]})]
    with loaded(server) as embedder:
        _, two = embedder.embed(["a", "bbbbbb"])
    assert np.allclose(two.vector, unit(vector("bbbbbb")))


def test_chunked_answers(server):
    def chunked(asked):
        body = json.dumps(vectors(asked)).encode()
        halves = [body[:10], body[10:]]
        frames = b"".join(b"%x\r\n%b\r\n" % (len(half), half) for half in halves)
        return [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", frames, b"0\r\n\r\n"]

    server.reply = chunked
    with loaded(server) as embedder:
        assert np.allclose(embedder.embed(["a"])[0].vector, unit(vector("a")))
        embedder.embed(["a"])
    assert server.connections == 1


def test_many_texts_go_in_several_requests(server):
    with loaded(server) as embedder:
        found = embedder.embed(["x" * place for place in range(600)])
    assert [len(asked.body["input"]) for asked in server.asked] == [256, 256, 88]
    assert np.allclose(found[599].vector, unit(vector("x" * 599)))


BAD = {
    "NaN": b"[NaN, 1, 2]",
    "infinite": b"[Infinity, 1, 2]",
    "too large": b"[1e999, 1, 2]",
    "larger than any": b"[" + b"9" * 400 + b", 1, 2]",
    "zeros": b"[0, 0, 0]",
    "small beyond measure": b"[1e-300, 0, 0]",
    "empty": b"[]",
    "null": b"null",
    "nulls": b"[null, 1, 2]",
    "strings": b'["1", 1, 2]',
    "booleans": b"[true, 1, 2]",
    "base64": b'"AAAA"',
    "nested": b"[[1, 2, 3]]",
    "other dimensions": b"[1, 2]",
}


@pytest.mark.parametrize("row", BAD.values(), ids=BAD)
def test_a_bad_vector_costs_one_text(server, row):
    def answer(asked):
        rows = b'{"data":[{"index":0,"embedding":[1,2,2]},{"index":1,"embedding":%b},{"index":2,"embedding":[2,1,2]}]}'
        return [ok(rows % row)]

    server.reply = answer
    with loaded(server) as embedder:
        one, two, three = embedder.embed([SECRET, SECRET, SECRET])
    assert isinstance(two, EmbedError)
    assert SECRET not in str(two)
    assert np.allclose(one.vector, [1 / 3, 2 / 3, 2 / 3])
    assert np.allclose(three.vector, [2 / 3, 1 / 3, 2 / 3])


def test_dimensions_stay_as_they_were(server):
    with loaded(server) as embedder:
        assert isinstance(embedder.embed(["a"])[0], Embedded)
        server.reply = lambda asked: [ok({"data": [{"index": 0, "embedding": [1, 2, 3, 4]}]})]
        (found,) = embedder.embed(["a"])
    assert "4 numbers where it gave 3" in str(found)


STRANGE = {
    "no JSON": b"<html>",
    "empty": b"",
    "a list": b"[]",
    "no data": b'{"object": "list"}',
    "data is null": b'{"data": null}',
    "data is a number": b'{"data": 3}',
    "data is text": b'{"data": "xy"}',
    "rows are numbers": b'{"data": [1, 2]}',
    "rows have no embedding": b'{"data": [{"index": 0}, {"index": 1}]}',
    "one too few": b'{"data": [{"index": 0, "embedding": [1]}]}',
    "one too many": b'{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1]}, {"index": 2, "embedding": [1]}]}',
    "numbered twice": b'{"data": [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}]}',
    "numbered from one": b'{"data": [{"index": 1, "embedding": [1]}, {"index": 2, "embedding": [1]}]}',
    "numbered with lists": b'{"data": [{"index": [], "embedding": [1]}, {"index": 1, "embedding": [1]}]}',
    "nested deeply": b"[" * 200_000,
    "no UTF-8": b'{"data": "\xff"}',
}


@pytest.mark.parametrize("body", STRANGE.values(), ids=STRANGE)
def test_an_answer_of_another_form_is_an_error(server, key_file, body):
    server.reply = lambda asked: [ok(body)]
    with loaded(server, key_file) as embedder, pytest.raises(EmbedError) as raised:
        embedder.embed([SECRET, SECRET])
    plain(raised)


def plain(raised):
    """One line, which quotes neither the text nor the key."""
    said = str(raised.value)
    assert said
    assert "\n" not in said
    assert SECRET not in said
    assert KEY not in said
    assert raised.value.__cause__ is None
    return said


@pytest.mark.parametrize(
    "status", ["401 Unauthorized", "404 Not Found", "429 Slow Down", "500 Oops", "204 No Content"]
)
def test_other_statuses_are_errors(server, key_file, status):
    server.reply = lambda asked: [ok({"error": {"message": f"no: {KEY} {SECRET}"}}, status)]
    with loaded(server, key_file) as embedder, pytest.raises(EmbedError) as raised:
        embedder.embed([SECRET])
    assert status[:3] in plain(raised)
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
def test_redirects_are_not_followed(server, key_file, status):
    with Server() as elsewhere:
        server.reply = lambda asked: [ok(b"", status, f"Location: {elsewhere.url}")]
        with loaded(server, key_file) as embedder, pytest.raises(EmbedError) as raised:
            embedder.embed([SECRET])
        assert elsewhere.connections == 0
    assert "not followed" in plain(raised)


def test_a_text_that_is_refused_costs_only_itself(server):
    def picky(asked):
        if any(len(text) > 10 for text in asked.body["input"]):
            return [ok({"error": {"message": "maximum context length"}}, "400 Bad Request")]
        return [ok(vectors(asked))]

    server.reply = picky
    with loaded(server) as embedder:
        one, two, three = embedder.embed(["a", "b" * 11, "ccc"])
    assert (isinstance(one, Embedded), isinstance(two, EmbedError), isinstance(three, Embedded)) == (
        True,
    ) * 3
    assert [len(asked.body["input"]) for asked in server.asked] == [3, 1, 1, 1]


@pytest.mark.parametrize("where", ["head", "body", "nothing"])
def test_a_trickle_ends_with_the_timeout(server, key_file, where):
    """Each byte comes in time, and the answer never does."""
    over = threading.Event()

    def trickle(asked):
        whole = ok(vectors(asked))
        start = {"head": 0, "body": whole.index(b"\r\n\r\n") + 4, "nothing": 0}[where]
        yield whole[:start]
        for byte in whole[start : start + 1] * (0 if where == "nothing" else 10_000):
            over.wait(0.01)
            if over.is_set():
                return
            yield bytes([byte])
        yield over

    server.reply = trickle
    with loaded(server, key_file, timeout=0.3) as embedder:
        with pytest.raises(EmbedError) as raised:
            embedder.embed([SECRET])
        over.set()
        assert "within 0.3 s" in plain(raised)
        server.reply = lambda asked: [ok(vectors(asked))]
        assert isinstance(embedder.embed(["a"])[0], Embedded)


def test_a_server_that_does_not_read_ends_with_the_timeout(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1/embeddings"
        with (
            loaded(None, url=url, timeout=0.3) as embedder,
            pytest.raises(EmbedError, match=r"within 0\.3 s"),
        ):
            embedder.embed(["x" * 20_000_000])


def test_a_huge_answer_is_not_taken_in(server):
    def huge(asked):
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n"
        while True:
            yield b" " * 65536

    server.reply = huge
    with loaded(server) as embedder:
        with pytest.raises(EmbedError, match="longer than"):
            embedder.embed(["a"])
        server.reply = lambda asked: [ok(vectors(asked))]
        assert isinstance(embedder.embed(["a"])[0], Embedded)
    assert server.connections == 2


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_an_error(server, key_file, said):
    server.reply = lambda asked: [said, None]
    with loaded(server, key_file) as embedder, pytest.raises(EmbedError) as raised:
        embedder.embed([SECRET])
    plain(raised)


def test_a_kept_connection_that_was_closed_is_opened_again(server):
    server.reply = lambda asked: [ok(vectors(asked)), None]
    with loaded(server) as embedder:
        for _ in range(3):
            assert isinstance(embedder.embed(["a"])[0], Embedded)
    assert (len(server.asked), server.connections) == (3, 3)


def test_a_connection_that_is_closed_unanswered_is_tried_once(server):
    with loaded(server) as embedder:
        embedder.embed(["a"])
        server.reply = lambda asked: [None]
        with pytest.raises(EmbedError):
            embedder.embed(["a"])
    assert (len(server.asked), server.connections) == (3, 2)


def test_the_server_may_close_after_each_answer(server):
    server.reply = lambda asked: [ok(vectors(asked), "200 OK", "Connection: close"), None]
    with loaded(server) as embedder:
        for _ in range(3):
            embedder.embed(["a"])
    assert (len(server.asked), server.connections) == (3, 3)


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with (
        loaded(None, url=f"http://127.0.0.1:{port}/v1/embeddings") as embedder,
        pytest.raises(EmbedError, match="refused") as raised,
    ):
        embedder.embed([SECRET])
    plain(raised)


def test_certificates_count(tmp_path, monkeypatch):
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(tls)
    with Server(tls) as server:
        with (
            loaded(server) as embedder,
            pytest.raises(EmbedError, match="certificate is not trusted") as raised,
        ):
            embedder.embed([SECRET])
        plain(raised)
        assert server.asked == []
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        with loaded(server) as embedder:
            assert np.allclose(embedder.embed(["a"])[0].vector, unit(vector("a")))
            embedder.embed(["a"])
        assert server.connections == 2
        other = server.url.replace("localhost", "127.0.0.1")
        with loaded(server, url=other) as embedder, pytest.raises(EmbedError, match="not trusted"):
            embedder.embed([SECRET])


def test_the_query_of_the_url_is_kept(server):
    with loaded(server, url=server.url + "?api-version=1") as embedder:
        embedder.embed(["a"])
        assert embedder.space == f"remote:localhost:{server.port}/v1/embeddings:m-small"
    assert server.asked[0].line == "POST /v1/embeddings?api-version=1 HTTP/1.1"


def test_the_space_is_not_too_long():
    long = Semantic(embedder="http://x/" + "y" * 500, model="m")
    assert len(embed.load(long, None).space) <= 200
    assert embed.load(long, None).space != embed.load(Semantic(embedder=long.embedder, model="n"), None).space


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "ftp://h/x",
        "localhost:80/v1",
        "http://user:hunter2@h/x",
        "http://h:99999/x",
        "http://[/x",
        "x",
    ],
)
def test_what_is_no_url_is_refused(url):
    with pytest.raises(EmbedError) as raised:
        embed.load(Semantic(embedder=url), None)
    assert "semantic.embedder" in plain(raised)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"two words", b"two\nlines", b"\xff\xfe", "schlüssel".encode(), b"a\x00b"]
)
def test_what_is_no_key_is_refused(tmp_path, content):
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(EmbedError) as raised:
        embed.load(Semantic(embedder="http://h/x", key_file=str(path)), None)
    said = plain(raised)
    assert "semantic.key_file" in said
    assert not content.strip() or content.decode("latin-1") not in said


def test_a_key_file_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(EmbedError, match=r"semantic\.key_file"):
            embed.load(Semantic(embedder="http://h/x", key_file=str(path)), None)


def test_a_key_of_systemd_or_in_the_home_folder_is_found_by_its_name(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "embedder").write_text("of-home\n")
    with loaded(server, "~/embedder") as embedder:
        embedder.embed(["text"])
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "embedder").write_text("of-systemd\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    with loaded(server, "embedder") as embedder:
        embedder.embed(["text"])
    said = [asked.headers["authorization"] for asked in server.asked]
    assert said == ["Bearer of-home", "Bearer of-systemd"]


def test_a_remote_embedder_needs_nothing_here(tmp_path):
    assert embed.ready(Semantic(embedder="http://h/x"), tmp_path)
    assert not embed.ready(Semantic(), tmp_path)
    assert not embed.ready(Semantic(model="no-such-model"), tmp_path)
