"""TLS on the proxy port: a context for each certificate, so that it can be renewed while one is in use.

A client must be able to tell an answer that was cut off from one that is over. Where a body ends with the
connection (HTTP/1.0), TLS's own farewell (close_notify) says that nothing is missing, so a cut connection
ends without one (RFC 8446, 6.1); see `Reply.cut`. Everywhere else HTTP's framing tells.
"""

import ssl
from collections.abc import Callable

from sidecar.checks_inbound import load_pair
from sidecar.config import Config
from sidecar.core.values import ConfigError

HANDSHAKE = 10.0
"""Seconds for a client to finish its handshake, or the time for its headers, if that is less."""


class Tls:
    """The certificate that the configuration names."""

    def __init__(self, certificate: str, key: str) -> None:
        """Two PEM files. Raises ConfigError."""
        self.context = _context(certificate, key)
        """For handshakes that begin now."""

    def prepare(self, config: Config) -> Callable[[], None]:
        """Read the files again that the configuration names; in any thread. What is returned has handshakes
        use what was in them, and does not fail. Raises ConfigError."""
        certificate, key = config.tls.certificate, config.tls.key
        if certificate is None or key is None:
            raise ConfigError("tls.certificate: TLS can only be turned off by a restart")
        # Another one: a context keeps a certificate for each type of key, and goes on with the old one if the
        # new one is of another type.
        context = _context(certificate, key)

        def take() -> None:
            self.context = context

        return take


def of(config: Config) -> Tls | None:
    """What the configuration says; None for none. Raises ConfigError."""
    tls = config.tls
    return Tls(tls.certificate, tls.key) if tls.certificate is not None and tls.key is not None else None


def _context(certificate: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    load_pair(context, certificate, key)
    return context
