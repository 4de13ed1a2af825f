"""The upstream side: connections, their pool, and opening calls on them.

An HTTP/1.1 client on bare asyncio transports with llhttp (httptools) as parser. It follows no redirect,
decodes nothing, has no timeout on the whole, and hands bytes on as they come. One call at a time on a
connection; a connection is reused only when the last answer on it left no doubt about where it ended.
"""

import asyncio
import errno
import heapq
import os
import select
import socket
import ssl
import time
from collections import deque
from typing import cast

from aiohappyeyeballs import start_connection

from sidecar.config import Limits, Timeouts
from sidecar.core.errors import UpstreamError
from sidecar.core.types import Timings
from sidecar.engine.source import Call, Origin
from sidecar.upstream.descriptors import NO_DESCRIPTOR, descriptor_free
from sidecar.upstream.exchange import Exchange
from sidecar.upstream.handshake import Handshake

IDLE = 30.0
"""Seconds an unused connection is kept: less than servers and load balancers usually keep theirs."""
IDLE_PER_ORIGIN = 256
_GIVEN_UP = 8
"""Idle connections that make room for a new one: more than it takes, for others may be waiting, too."""
_TURNS = 3
"""Of the event loop, until connections that were aborted have let go of their descriptors."""
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class Connection(asyncio.Protocol):
    """A transport to one origin, lent to one exchange at a time."""

    __slots__ = (
        "_poll",
        "exchange",
        "idle_since",
        "origin",
        "paused",
        "transport",
        "writable",
    )

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.transport: asyncio.Transport | None = None
        self.exchange: Exchange | None = None
        self.idle_since = 0.0
        self.writable: asyncio.Future[None] | None = None
        self.paused = False
        self._poll: select.poll | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        connected = transport.get_extra_info("socket")
        if connected is not None:
            if hasattr(select, "poll"):
                self._poll = select.poll()
                self._poll.register(connected.fileno(), select.POLLIN)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        if self.exchange is not None:
            self.exchange.received(data)
        else:
            self.abort()  # bytes that answer no request: whatever follows is not to be trusted

    def eof_received(self) -> bool:
        if self.exchange is not None:
            self.exchange.eof()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.resume_writing()
        if self.exchange is not None:
            self.exchange.lost()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self.writable is not None and not self.writable.done():
            self.writable.set_result(None)

    async def drained(self) -> None:
        """Wait until the upstream has taken enough, or is gone."""
        if self.paused:
            self.writable = asyncio.get_running_loop().create_future()
            await self.writable

    def fresh(self) -> bool:
        """Whether an idle connection can carry a request.

        Anything to read on it, a FIN included, means that it cannot, also when the event loop has not
        seen it yet: asking the kernel narrows the window in which a request is lost on a connection
        that the upstream is closing.
        """
        if self.transport is None or self.transport.is_closing():
            return False
        return self._poll is None or not self._poll.poll(0)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Client:
    """Opens calls; keeps idle connections by origin."""

    def __init__(self, timeouts: Timeouts, limits: Limits, tls: ssl.SSLContext | None = None) -> None:
        self._timeouts = timeouts
        self._limits = limits
        self._tls = tls
        self._idle: dict[Origin, deque[Connection]] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._running: set[Exchange] = set()
        self._clock: asyncio.TimerHandle | None = None
        self._period = min(timeouts.head / 8, timeouts.stall / 8, 1.0)
        """One clock for all calls: a timer of its own would cost each of them more than looking at it."""
        self._closed = False
        self._loop = asyncio.get_running_loop()

    async def open(self, call: Call, timings: Timings) -> Exchange:
        """See `engine.source.Upstream`."""
        timings.started = time.perf_counter()
        connection = self._take(call.origin)
        reused = connection is not None
        while True:
            if connection is None:
                connection = await self._connect(call.origin)
            timings.connected = time.perf_counter()
            made = Handshake if call.upgrade else Exchange
            exchange = made(call, connection, self._loop, self._timeouts, self._limits.headers, self._release)
            connection.exchange = exchange
            self._running.add(exchange)
            if self._clock is None:
                self._clock = self._loop.call_later(self._period, self._tick)
            try:
                exchange.send()
                timings.sent = exchange.sent_at
                await exchange.until_head()
            except UpstreamError as error:
                exchange.close()
                closed = error.fault.kind == "upstream_closed" and not exchange.arrived
                if not (reused and closed and call.method in _SAFE and call.more is None):
                    raise
                # The upstream closed an idle connection while the request was on its way. A method that
                # changes nothing may be sent again (RFC 9110, 9.2.2); a POST may have been worked on.
                timings.retries += 1
                connection, reused = None, False
            except BaseException:
                exchange.close()
                raise
            else:
                timings.head = exchange.head_at
                return exchange

    def close(self) -> None:
        """Close what is idle; from now on nothing is kept."""
        self._closed = True
        for timer in (self._sweeper, self._clock):
            if timer is not None:
                timer.cancel()
        for idle in self._idle.values():
            for connection in idle:
                connection.abort()
        self._idle.clear()

    def _tick(self) -> None:
        now = time.perf_counter()
        for exchange in list(self._running):
            exchange.check(now)
        self._clock = self._loop.call_later(self._period, self._tick) if self._running else None

    def _take(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.fresh():
                return connection
            connection.abort()
        return None

    def _release(self, connection: Connection, *, reusable: bool) -> None:
        if connection.exchange is not None:
            self._running.discard(connection.exchange)
            connection.exchange = None
        idle = self._idle.setdefault(connection.origin, deque())
        if not reusable or self._closed or len(idle) >= IDLE_PER_ORIGIN:
            connection.abort()
            return
        connection.idle_since = time.perf_counter()
        idle.append(connection)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(IDLE, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        before = time.perf_counter() - IDLE
        for origin, idle in list(self._idle.items()):
            while idle and (idle[0].idle_since < before or not idle[0].fresh()):
                idle.popleft().abort()
            if not idle:
                del self._idle[origin]
        if self._idle:
            self._sweeper = self._loop.call_later(IDLE / 2, self._sweep)

    async def _connect(self, origin: Origin) -> Connection:
        """Raises UpstreamError; the detail names host and port, which are the operator's own."""
        try:
            return await self._dial(origin)
        except UpstreamError as error:
            if error.fault.kind != "overloaded" or not any(self._idle.values()):
                raise
        # No descriptor is free, and idle connections have some.
        self._drop_idle()
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        return await self._dial(origin)

    def _drop_idle(self) -> None:
        """Close a few of those that were not used for longest."""
        idle = [connection for kept in self._idle.values() for connection in kept]
        for connection in heapq.nsmallest(_GIVEN_UP, idle, key=lambda connection: connection.idle_since):
            self._idle[connection.origin].remove(connection)
            connection.abort()

    async def _dial(self, origin: Origin) -> Connection:
        where = f"{origin.host}:{origin.port}"
        try:
            secure = origin.scheme == "https"
            context = self._context() if secure else None
            async with asyncio.timeout(self._timeouts.connect):
                found = await self._loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
                # RFC 8305: a broken IPv6 route must not cost the whole connect timeout.
                connected = await start_connection(found, happy_eyeballs_delay=0.25, interleave=1)
                _, connection = await self._loop.create_connection(
                    lambda: Connection(origin),
                    sock=connected,
                    ssl=context,
                    server_hostname=origin.host if secure else None,
                )
        except TimeoutError:
            raise UpstreamError(
                "upstream_timeout",
                f"no connection to {where} within {self._timeouts.connect:g} s",
            ) from None
        except socket.gaierror as error:
            if not descriptor_free():  # a look-up opens files and sockets, and does not say what it lacked
                raise _exhausted() from None
            raise UpstreamError("upstream_unreachable", f"{where}: {error.strerror}") from None
        except UnicodeError:
            raise UpstreamError("upstream_unreachable", f"{where}: not a host name") from None
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", None) or error.reason or "handshake failed"
            if reason == "WRONG_VERSION_NUMBER":
                reason = "it speaks no TLS there; http:// instead of https://?"
            raise UpstreamError("upstream_unreachable", f"{where}: TLS: {reason}") from None
        except RuntimeError as error:
            # The loop's word for a socket that was closed under it.
            raise UpstreamError("upstream_unreachable", f"{where}: {error}") from None
        except OSError as error:
            # Without a number: several addresses failed, each in its own way.
            if error.errno in NO_DESCRIPTOR or (error.errno is None and not descriptor_free()):
                raise _exhausted() from None
            if isinstance(error, ConnectionRefusedError):
                raise UpstreamError(
                    "upstream_unreachable", f"{where}: connection refused; is it running?"
                ) from None
            reason = error.strerror or str(error) or type(error).__name__
            raise UpstreamError("upstream_unreachable", f"{where}: {reason}") from None
        return connection

    def _context(self) -> ssl.SSLContext:
        """Made when it is first needed: that takes some 30 ms. Raises OSError where no descriptor is free."""
        if self._tls is not None:
            return self._tls
        made = ssl.create_default_context()
        if not made.cert_store_stats()["x509"] and ssl.get_default_verify_paths().cafile is not None:
            # OpenSSL does not say that it could not open the file. Kept, this one would never trust anybody.
            if not descriptor_free():
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return made
        self._tls = made
        return made


def _exhausted() -> UpstreamError:
    return UpstreamError("overloaded", "no file descriptor is free; raise LimitNOFILE")
