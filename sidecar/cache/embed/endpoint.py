"""A URL that JSON is posted to: one kept connection, and a time after which whatever goes on is over."""

import contextlib
import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from sidecar import __version__
from sidecar.cache.embed.base import EmbedError

_REFUSALS = (400, 413, 422)
"""Statuses that say something of what was asked, and not of the endpoint."""


_REDIRECTS = (301, 302, 303, 307, 308)
_CLOSED = (ConnectionError, http.client.BadStatusLine, ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""What is raised on a connection that the other side has closed."""


class RefusedError(EmbedError):
    """The endpoint does not take this request; it may take others."""


class Endpoint:
    """For one thread at a time."""

    def __init__(self, url: str, key: str | None, timeout: float) -> None:
        """Raises EmbedError."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            # Not quoted: a password may be in it.
            expected = (
                "expected `local`, or a URL such as http://127.0.0.1:11434/v1/embeddings, without a password"
            )
            raise EmbedError(f"semantic.embedder: {expected}")
        self._host, self._secure = parts.hostname, parts.scheme == "https"
        self._port = port or (443 if self._secure else 80)
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self.place = f"{parts.hostname}{f':{port}' if port else ''}{parts.path}"
        """Host and path."""
        self._headers = {"Content-Type": "application/json", "User-Agent": f"slipstream/{__version__}"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._timeout = timeout
        self._deadline = 0.0
        self._tls: ssl.SSLContext | None = None
        self._connection: http.client.HTTPConnection | None = None

    def begin(self) -> None:
        """The time for all that is posted until this is called again."""
        self._deadline = time.monotonic() + self._timeout

    def post(self, body: bytes, most: int) -> bytes:
        """What it answers. `most`: bytes. Raises EmbedError, which quotes neither side."""
        kept = self._connection is not None
        try:
            try:
                status, answer = self._exchange(body, most)
            except _CLOSED:
                # Most often it was closed while nobody used it. To ask twice does no harm.
                if not kept:
                    raise
                self.close()
                status, answer = self._exchange(body, most)
        except TimeoutError:
            self.close()
            raise EmbedError(f"the endpoint has not answered within {self._timeout:g} s") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise EmbedError(f"the endpoint cannot be used: {_reason(error)}") from None
        if status in _REFUSALS:
            raise RefusedError(f"the endpoint answered {status}")
        if status != http.HTTPStatus.OK:
            more = ", which is not followed" if status in _REDIRECTS else ""
            raise EmbedError(f"the endpoint answered {status}{more}")
        if len(answer) > most:
            raise EmbedError(f"the endpoint's answer is longer than {most:,} bytes")
        return answer

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.close()

    def _exchange(self, body: bytes, most: int) -> tuple[int, bytes]:
        """Status and body, which may be longer than `most` by one byte. Raises what connections raise."""
        self._connection = connection = self._connection or self._connect()
        connection.request("POST", self._target, body, self._headers)
        response = connection.getresponse()
        answer = response.read(most + 1)
        if response.will_close or not response.isclosed():
            self.close()
        return response.status, answer

    def _connect(self) -> http.client.HTTPConnection:
        """Resolving the name is up to the system, and to its patience."""
        last: OSError | None = None
        for family, _, _, _, address in socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM):
            try:
                made = self._reach(family, address)
            except OSError as error:
                last = error
                continue
            connection = http.client.HTTPConnection(self._host, self._port)
            connection.sock = _Timed(made, self._left)  # all of a socket that is used
            return connection
        raise last or OSError("it has no address")

    def _reach(self, family: int, address: Any) -> socket.socket:
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            made.settimeout(self._left())
            made.connect(address)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not self._secure:
                return made
            self._tls = self._tls or ssl.create_default_context()
            made.settimeout(self._left())
            return self._tls.wrap_socket(made, server_hostname=self._host)
        except BaseException:
            made.close()
            raise

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class _Timed:
    """A socket as http.client uses it, on which every call has what is left of the time: a socket's own
    timeout begins anew with every byte."""

    def __init__(self, connected: socket.socket, left: Callable[[], float]) -> None:
        self._socket = connected
        self._left = left

    def sendall(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._socket.settimeout(self._left())
            rest = rest[self._socket.send(rest) :]

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Incoming(self._socket, self._left))

    def close(self) -> None:
        self._socket.close()


class _Incoming(io.RawIOBase):
    def __init__(self, connected: socket.socket, left: Callable[[], float]) -> None:
        self._socket = connected
        self._left = left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._socket.settimeout(self._left())
        return self._socket.recv_into(buffer)


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
