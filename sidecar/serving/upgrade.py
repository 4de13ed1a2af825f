"""WebSockets: a request to leave HTTP, the upstream's answer to it, and the connection that comes of it.

The handshake goes through as any request does, and is refused as any request is. After the upstream's 101,
which the client gets as it came, nothing on either connection is HTTP any more: bytes are relayed until both
are closed, and neither is used again. Any other answer is relayed like any answer.
"""

import asyncio
import re
import time
from collections.abc import Callable
from urllib.parse import parse_qsl

from sidecar.config import Config
from sidecar.core.answer import Answer
from sidecar.core.dialects import Dialect, recognise
from sidecar.core.errors import RefusedError, UpstreamError
from sidecar.core.fingerprint import Caller
from sidecar.core.headers import render
from sidecar.core.latency import Labels
from sidecar.core.recording import Recording
from sidecar.core.types import Head, Intent, Outcome, Request, Timings
from sidecar.engine.hub import Hub
from sidecar.engine.pump import Live
from sidecar.engine.source import Call, Source
from sidecar.engine.wire import Wire
from sidecar.serving import intake
from sidecar.serving.asks import Asks
from sidecar.serving.follow import Follow
from sidecar.serving.relay import POLICY, Relay
from sidecar.serving.routes import Route, provider
from sidecar.serving.shell import Arriving
from sidecar.serving.visit import NAME, Visit
from sidecar.telemetry import counting
from sidecar.upstream.client import Client
from sidecar.upstream.handshake import Handshake

Authorized = Callable[[Call, Route, Dialect | None], Call]

_PATHS = (
    (re.compile(r"/realtime$"), "/v1/responses"),
    (re.compile(r"/ws/google\.ai\.generativelanguage\."), "/v1beta/models/any:generateContent"),
)
"""Realtime APIs, and a path of the same provider whose format is known."""


class Upgrades:
    """Serves them. One per process."""

    def __init__(
        self, config: Config, asks: Asks, follow: Follow, hub: Hub, client: Client, authorized: Authorized
    ) -> None:
        """`authorized`: see `Upstreams`."""
        self._config = config
        self._asks = asks
        self._follow = follow
        self._hub = hub
        self._client = client
        self._authorized = authorized
        self.ended: Callable[[counting.Call], None] = lambda _call: None
        """Told of each connection that was a WebSocket, when it has ended."""
        self.allowed: Callable[[Visit], bool] = lambda _visit: True
        """Whether who asked for it is still somebody who may ask."""
        self._opening: set[asyncio.Timeout] = set()
        self._relays: dict[Relay, Visit] = {}

    def __len__(self) -> int:
        """How many there are, those included that are being opened."""
        return len(self._opening) + len(self._relays)

    def reload(self, config: Config) -> None:
        """End those of clients that are gone; the rest goes on as it began."""
        del config
        for relay, visit in list(self._relays.items()):
            if not self.allowed(visit):
                relay.stop("unauthorized", POLICY)

    def stop(self) -> None:
        """End all of them, because the sidecar stops."""
        now = asyncio.get_running_loop().time()
        for opening in self._opening:
            opening.reschedule(now)
        for relay in list(self._relays):
            relay.stop()

    async def serve(self, visit: Visit, raw: Arriving, request: Request, caller: Caller) -> None:
        """Serve one, to its end. Raises RefusedError, ClientGoneError."""
        trace, switch = visit.trace, raw.switch
        if switch is None:
            raise RefusedError("upgrade_unsupported", "this server keeps its connections; use its own way")
        route = self._asks.route(request, trace.path, raw.root)
        dialect = _dialect(request)
        trace.labels = _labels(request, route, dialect)
        trace.cache = "bypass" if self._config.cache.mode != "off" else "off"
        trace.timings = timings = Timings()
        call = self._authorized(intake.handshake(request, route), route, dialect)
        visit.room()
        source = await self._open(call, timings)
        try:
            if not self.allowed(visit):
                raise RefusedError("unauthorized", "this client was taken out of the configuration")
            if not isinstance(source, Handshake) or source.wire is None:
                await self._decline(visit, request, caller, call, source)
                return
            upstream, source.wire = source.wire, None
            await self._relay(visit, switch, source.head, upstream)
        finally:
            source.close()

    async def _open(self, call: Call, timings: Timings) -> Source:
        """The upstream's answer. Raises RefusedError."""
        try:
            async with asyncio.timeout(None) as opening:
                self._opening.add(opening)
                try:
                    return await self._client.open(call, timings)
                finally:
                    self._opening.discard(opening)
        except TimeoutError:
            raise RefusedError("draining", "the sidecar was stopped before the upstream answered") from None
        except UpstreamError as error:
            raise RefusedError(error.fault.kind, error.fault.detail) from None

    async def _decline(
        self, visit: Visit, request: Request, caller: Caller, call: Call, source: Source
    ) -> None:
        """The upstream has answered, and stays with HTTP."""
        live = Live(Recording(limit=0), Answer(request, None, Intent()), labels=visit.trace.labels)
        assert visit.trace.timings is not None
        live.timings, live.fleeting = visit.trace.timings, True
        self._hub.start(live, call, _Opened(source))
        await self._follow.follow(visit, live, request, caller)

    async def _relay(self, visit: Visit, switch: Callable[[], Wire], head: Head, upstream: Wire) -> None:
        trace, reply, timeouts = visit.trace, visit.reply, self._config.timeouts
        try:
            answer = render(b"HTTP/1.1 %d %b" % (head.status, head.reason), head.headers)
            client = switch()
        except ValueError as error:
            upstream.close(0.0)
            raise RefusedError("upstream_protocol", str(error)) from None
        except BaseException:
            upstream.close(0.0)
            raise
        visit.relay = relay = Relay(client, upstream, timeouts.client, timeouts.stall)
        reply.started, reply.keep_alive, trace.stream = True, False, True
        self._relays[relay] = visit
        try:
            client.write(answer)
            trace.status, trace.head_at = head.status, time.perf_counter()
            relay.start()
            await relay.over
        finally:
            relay.close()  # whatever happens to the task
            del self._relays[relay]
            reply.sent = relay.upstream.passed
            trace.outcome, trace.error = relay.outcome or Outcome.CANCELLED, relay.error
            trace.close_code = relay.close_code
            self._count(visit)

    def _count(self, visit: Visit) -> None:
        trace = visit.trace
        assert trace.timings is not None
        call = counting.Call(
            trace.labels,
            total=time.perf_counter() - trace.timings.started,
            error=trace.error,
            complete=trace.outcome is Outcome.COMPLETE,
            retries=trace.timings.retries,
        )
        self.ended(call)


class _Opened:
    """An `Upstream` that has been asked already."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def open(self, call: Call, timings: Timings) -> Source:
        """What it has answered."""
        del call, timings
        return self._source


def _dialect(request: Request) -> Dialect | None:
    """The format of the provider's other API, as far as the path tells."""
    known = next((known for path, known in _PATHS if path.search(request.path)), request.path)
    return recognise("POST", known)


def _labels(request: Request, route: Route, dialect: Dialect | None) -> Labels:
    """What is called. The conventions have no operation for a connection on which there may be many."""
    asked = dict(parse_qsl(request.query, errors="replace"))
    return Labels(
        upstream=route.name,
        provider=provider(dialect, route.origin) if dialect is not None else None,
        model=asked["model"][:NAME] if asked.get("model") else None,
    )
