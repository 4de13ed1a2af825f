"""Getting to a server step by step: its name, its port, TLS. Each says how long it took, or what to do."""

import asyncio
import errno
import os
import socket
import ssl
import time
from contextlib import suppress
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from aiohappyeyeballs import start_connection

from sidecar.cli.doctor_cert import SOON, lasts, not_after
from sidecar.cli.doctor_http import Answer, Timed, context
from sidecar.cli.doctor_show import milliseconds
from sidecar.core.values import is_loopback
from sidecar.engine.source import Origin

_EXPIRED, _SELF_SIGNED, _UNKNOWN, _OTHER_NAME = {10}, {18, 19}, {2, 20, 21}, {62, 63, 64}
"""OpenSSL's codes of what is wrong with a certificate (X509_V_ERR_*)."""
_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")


class UnreachableError(Exception):
    """A step that failed: what happened, and what to do."""

    def __init__(self, fact: str, remedy: str, step: str) -> None:
        super().__init__(fact)
        self.fact, self.remedy, self.step = fact, remedy, step


def origin_of(url: str) -> Origin:
    """Of a URL that was checked."""
    parts = urlsplit(url)
    return Origin(parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))


def place(origin: Origin) -> str:
    """`api.test:443`."""
    return f"[{origin.host}]:{origin.port}" if ":" in origin.host else f"{origin.host}:{origin.port}"


async def reach(origin: Origin, timeout: float, *, checked: bool = True) -> tuple[Answer, Timed]:  # noqa: ASYNC109
    """A connection on which one request can be sent. `timeout`: seconds, for each step. `checked`: whether a
    certificate has to be a good one. Raises UnreachableError."""
    timed = Timed()
    found = await _resolved(origin, timeout, timed)
    began = time.perf_counter()
    try:
        async with asyncio.timeout(timeout):
            connected = await start_connection(found, happy_eyeballs_delay=0.25, interleave=1)
    except TimeoutError:
        raise UnreachableError(
            f"{place(origin)} does not answer within {timeout:g} s",
            f"a firewall may drop what is sent there: allow TCP to port {origin.port}{_proxy()}",
            "connect",
        ) from None
    except OSError as error:
        raise _unconnected(origin, error) from None
    timed.connect = time.perf_counter() - began
    loop = asyncio.get_running_loop()
    if origin.scheme != "https":
        _, answer = await loop.create_connection(Answer, sock=connected)
        return answer, timed
    trusting = context()
    if not checked:
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    began = time.perf_counter()
    try:
        async with asyncio.timeout(timeout):
            transport, answer = await loop.create_connection(
                Answer, sock=connected, ssl=trusting, server_hostname=origin.host
            )
    except TimeoutError:
        remedy = f"is it a TLS port? Something in between may swallow the handshake{_proxy()}"
        raise UnreachableError(f"{place(origin)}: no TLS within {timeout:g} s", remedy, "tls") from None
    except ssl.SSLError as error:
        raise _untrusted(origin, error) from None
    except (OSError, RuntimeError) as error:
        fact = f"{place(origin)}: the connection was closed during the TLS handshake"
        remedy = f"is it a TLS port? ({getattr(error, 'strerror', None) or error}){_proxy()}"
        raise UnreachableError(fact, remedy, "tls") from None
    timed.handshake = time.perf_counter() - began
    secured = transport.get_extra_info("ssl_object")
    timed.tls = secured.version() or ""
    try:
        timed.expires = not_after(secured.getpeercert(binary_form=True) or b"")
    except ValueError:
        timed.expires = None
    return answer, timed


async def _resolved(origin: Origin, timeout: float, timed: Timed) -> list[Any]:  # noqa: ASYNC109
    """What `start_connection` takes."""
    began = time.perf_counter()
    try:
        async with asyncio.timeout(timeout):
            found = await _lookup(origin.host, origin.port)
    except TimeoutError:
        fact, again = f"{origin.host}: no name server answered within {timeout:g} s", True
    except socket.gaierror as error:
        again = error.errno == socket.EAI_AGAIN
        fact = f"{origin.host}: {'no name server answered' if again else 'there is no such name'}"
    except UnicodeError:
        fact, again = f"{origin.host}: not a host name", False
    else:
        timed.addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if timed.addresses != [origin.host]:
            timed.resolve = time.perf_counter() - began
        return found
    remedy = "check the network and /etc/resolv.conf" if again else "correct the URL, or the name server"
    raise UnreachableError(fact, remedy + _proxy(), "resolve") from None


async def _lookup(host: str, port: int) -> list[Any]:
    """In a thread that nobody waits for: a name server that does not answer holds it for longer than the user
    should have to wait for the end of this command. Raises as `socket.getaddrinfo` does."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[Any]] = loop.create_future()

    def settle(result: list[Any] | None, error: Exception | None) -> None:
        if found.done():
            return
        if error is not None:
            found.set_exception(error)
        else:
            found.set_result(result or [])

    def look() -> None:
        result, error = None, None
        try:
            result = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as raised:
            error = raised
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    Thread(target=look, daemon=True).start()
    return await found


def _unconnected(origin: Origin, error: OSError) -> UnreachableError:
    # Where several addresses were tried, the first one's trouble stands for all.
    number = error.errno or next((one.errno for one in getattr(error, "exceptions", ())), None)
    if isinstance(error, ConnectionRefusedError) or number == errno.ECONNREFUSED:
        where = "on this machine" if is_loopback(origin.host) else "there"
        remedy = f"start the server {where}, or correct the URL"
        return UnreachableError(f"nothing listens on {place(origin)}", remedy, "connect")
    reason = os.strerror(number) if number else str(error)
    remedy = f"check routes and firewall{_proxy()}"
    return UnreachableError(f"{place(origin)} cannot be reached: {reason}", remedy, "connect")


def _untrusted(origin: Origin, error: ssl.SSLError) -> UnreachableError:
    if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"):
        fact, remedy = f"{place(origin)} speaks no TLS", "http:// instead of https:// in the URL?"
    elif not isinstance(error, ssl.SSLCertVerificationError):
        reason = (error.reason or "handshake failed").replace("_", " ").lower()
        fact, remedy = f"{place(origin)}: TLS fails: {reason}", "see the log of the server there"
    else:
        fact = f"{place(origin)}: the certificate is not accepted: {error.verify_message}"
        if error.verify_code in _EXPIRED:
            remedy = "renew it there; if it is valid, this machine's clock is wrong"
        elif error.verify_code in _OTHER_NAME:
            remedy = "use the name that is in the certificate in the URL, or get one for this name"
        elif error.verify_code in _SELF_SIGNED | _UNKNOWN:
            remedy = (
                "trust the authority that signed it: SSL_CERT_FILE=its.pem in the environment, which takes "
                "the place of the system's file (concatenate them to have both). A server that leaves out "
                "certificates between its own and the root has to send them"
            )
        else:
            remedy = "correct it there, or see SSL_CERT_FILE"
    return UnreachableError(fact, remedy, "tls")


def _proxy() -> str:
    """For those who think that a proxy is used, since others would use it."""
    found = next((name for name in _PROXIES if os.environ.get(name)), None)
    return f"; {found} is set, and the sidecar does not use it" if found else ""


def told(timed: Timed) -> str:
    """The steps, for people."""
    parts = []
    if timed.resolve is not None:
        shown = ", ".join(timed.addresses[:2])
        more = f" and {len(timed.addresses) - 2} more" if len(timed.addresses) > 2 else ""
        parts.append(f"DNS {milliseconds(timed.resolve)} ({shown}{more})")
    parts.append(f"connected in {milliseconds(timed.connect)}")
    if timed.handshake is not None:
        parts.append(f"{timed.tls.replace('v', ' ')} in {milliseconds(timed.handshake)}")
    if timed.expires is not None:
        parts.append(f"certificate {lasts(timed.expires)}")
    return ", ".join(parts)


def figures(timed: Timed) -> dict[str, object]:
    """The same for machines."""
    seconds = {"dns_ms": timed.resolve, "connect_ms": timed.connect, "tls_ms": timed.handshake}
    made: dict[str, object] = {
        name: None if value is None else round(value * 1000, 1) for name, value in seconds.items()
    }
    return made | {"addresses": timed.addresses, "tls": timed.tls or None, "expires": timed.expires}


def ends_soon(timed: Timed) -> bool:
    """Whether the certificate needs somebody's attention."""
    return timed.expires is not None and timed.expires - time.time() < SOON
