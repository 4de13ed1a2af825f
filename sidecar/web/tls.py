"""TLS on the proxy port: one context, whose certificate can be renewed while it is in use.

A client must be able to tell an answer that was cut off from one that is over. Where a body ends with the
connection (HTTP/1.0), TLS's own farewell (close_notify) says that nothing is missing, so a cut connection
ends without one (RFC 8446, 6.1); see `Reply.cut`. Everywhere else HTTP's framing tells.
"""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from sidecar.checks_inbound import find, load_pair
from sidecar.config import Config
from sidecar.core.values import ConfigError

HANDSHAKE = 10.0
"""Seconds for a client to finish its handshake, or the time for its headers, if that is less."""


class Tls:
    """The certificate that the configuration names."""

    def __init__(self, certificate: str, key: str) -> None:
        """Two PEM files. Raises ConfigError."""
        self.context = _context()
        load_pair(self.context, certificate, key)

    def check(self, config: Config) -> None:
        """Raises ConfigError if `reload` would."""
        if config.tls.certificate is None or config.tls.key is None:
            raise ConfigError("tls.certificate: TLS can only be turned off by a restart")
        load_pair(_context(), config.tls.certificate, config.tls.key)

    def reload(self, config: Config) -> None:
        """Read the files again that the configuration names; handshakes from now on use what is in them.
        Raises ConfigError, and goes on with what there was."""
        certificate, key = config.tls.certificate, config.tls.key
        if certificate is None or key is None:
            raise ConfigError("tls.certificate: TLS can only be turned off by a restart")
        # A context that was given half of a pair would fail every handshake. So another one has the first
        # try, and this one the very same bytes: files may change in between.
        with _copied(certificate) as one, _copied(key) as other:
            load_pair(_context(), one, other, names=(certificate, key))
            load_pair(self.context, one, other, names=(certificate, key))


def of(config: Config) -> Tls | None:
    """What the configuration says; None for none. Raises ConfigError."""
    tls = config.tls
    return Tls(tls.certificate, tls.key) if tls.certificate is not None and tls.key is not None else None


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    return context


@contextmanager
def _copied(name: str) -> Iterator[str]:
    """A copy of a file that nobody else changes, and that is in memory only; the file itself where there is
    no such thing, or none is allowed, or where it cannot be read, which is said by whoever tries."""
    try:
        content = find(name).read_bytes()
        copy = os.memfd_create("tls", os.MFD_CLOEXEC)
    except (AttributeError, OSError, ValueError):
        yield name
        return
    try:
        os.write(copy, content)
        yield f"/proc/self/fd/{copy}"
    finally:
        os.close(copy)
