"""Requests that go upstream: make a call, join one that is running, or continue a stream.

Whichever it is, the client reads a recording; only where its reader starts differs.
"""

import msgspec

from sidecar.config import Config
from sidecar.core import policy
from sidecar.core.answer import Answer
from sidecar.core.dialects import Dialect
from sidecar.core.errors import RefusedError
from sidecar.core.fingerprint import Caller, exact_key, identity
from sidecar.core.ids import belongs, event_id, mint
from sidecar.core.latency import Labels
from sidecar.core.recording import Recording
from sidecar.core.types import Fault, Intent, Request
from sidecar.engine.hub import Hub
from sidecar.engine.pump import RETAINED, Ask, Live
from sidecar.engine.source import Call
from sidecar.web import intake
from sidecar.web.body import Body, receive
from sidecar.web.incoming import Incoming
from sidecar.web.render import EARLY_TYPE, Render, View
from sidecar.web.routes import Route, Routes, provider
from sidecar.web.visit import NAME, Visit

COLLAPSED = ((b"Cache-Status", b"slipstream; fwd=miss; collapsed"),)
MISS = ((b"Cache-Status", b"slipstream; fwd=miss"),)
BYPASS = ((b"Cache-Status", b"slipstream; fwd=bypass"),)


class Asked(msgspec.Struct):
    """A request that can be sent upstream, and what is known of it."""

    request: Request
    route: Route
    dialect: Dialect | None
    body: Body
    intent: Intent
    labels: Labels
    early: float
    """Seconds after which a 200 is committed; 0: never before the upstream's head."""
    configured: float
    """What becomes of it when its client leaves, unless the client says so; see `policy.patience`."""

    def call(self) -> Call:
        """The call itself. Made once: it may hold the rest of a body that streams past."""
        return intake.call(self.request, self.route, self.body, identity=self.early > 0)

    def answer(self) -> Answer:
        """The reading of what will come back."""
        return Answer(self.request, self.dialect, self.intent)


class Calls:
    """Serves them. One per process."""

    def __init__(self, config: Config, routes: Routes, hub: Hub, secret: bytes) -> None:
        self._config = config
        self._routes = routes
        self._hub = hub
        self._secret = secret
        self._shares = config.cache.mode != "off" and config.cache.collapse

    def route(self, request: Request, path: str) -> Route:
        """Where it goes. `path`: what may be said of the request's path. Raises RefusedError."""
        route = self._routes.match(request)
        if route is None:
            detail = f"{path[:200]}: is /v1 missing in the base URL? Else configure --upstream"
            raise RefusedError("no_upstream", detail, close=False)
        return route

    async def receive(self, visit: Visit, raw: Incoming, request: Request, *, whole: bool) -> Asked:
        """Read what is asked. `whole`: the body is needed, whatever the path. Raises RefusedError."""
        dialect = visit.dialect
        route = self.route(request, visit.trace.path)
        visit.trace.labels = Labels(route.name)
        keep = self._config.limits.body if whole or dialect is not None else 0
        body = await receive(raw, request, keep=keep, timeout=self._config.timeouts.client)
        visit.trace.waited = body.waited
        asked = self.asked(request, route, dialect, body)
        visit.trace.labels = asked.labels
        return asked

    def asked(self, request: Request, route: Route, dialect: Dialect | None, body: Body) -> Asked:
        """What a request asks for."""
        intent = intake.intent(dialect, request, body)
        early = 0.0
        if dialect is not None and intent.stream and dialect.framing_of(request.query) in EARLY_TYPE:
            early = self._config.keepalive.early
        labels = Labels(
            upstream=route.name,
            provider=provider(dialect, route.origin) if dialect is not None else None,
            operation=dialect.operation if dialect is not None else None,
            model=intent.model and intent.model[:NAME],
            stream=intent.stream,
        )
        wish = intake.patience(request.fields.get(b"slipstream-disconnect"))
        # Whoever comes back without saying so wants what the request that began it wanted.
        configured = self._routes.patience(request.path, route) if wish is None else wish
        return Asked(request, route, dialect, body, intent, labels, early, configured)

    async def serve(self, visit: Visit, raw: Incoming, request: Request, caller: Caller) -> None:
        """Serve one request to its end. Raises RefusedError, ClientGoneError."""
        back = self._coming_back(request, caller)
        intake.patience(request.fields.get(b"slipstream-disconnect"))  # refused before anything is begun
        ids = policy.takes_ids(request.fields)
        asked = await self.receive(visit, raw, request, whole=ids)
        if back is None and request.fields.get(b"last-event-id") and asked.dialect and asked.intent.stream:
            raise RefusedError("not_found", "no stream has such an event", close=False)
        ask = self.ask(visit, asked, caller)
        if back is not None:
            live = self.known(back[0])
            same = ask.identity and ask.identity == live.ask.identity
            if not same and (ask.key is None or ask.key != live.ask.key):
                raise RefusedError("not_found", "no stream has such an event", close=False)
            await self.follow(visit, live, request, caller, self.after(live, back[1]), resumed=True)
            return
        await self._join_or_call(visit, asked, ask, caller)

    async def _join_or_call(self, visit: Visit, asked: Asked, ask: Ask, caller: Caller) -> None:
        again = False
        cache = visit.trace.cache
        while True:
            live = self._hub.shared(ask) or self._hub.repeated(
                ask, retry=policy.is_retry(asked.request.fields)
            )
            joined = live is not None
            if live is None:
                if len(self._hub) >= self._config.limits.requests:
                    # Calls that go on without their clients take places, too.
                    raise RefusedError("overloaded", f"{len(self._hub)} calls are running", close=False)
                limit = RETAINED if asked.dialect is not None else 0
                live = Live(Recording(limit=limit), asked.answer(), ask, asked.labels)
                live.early, live.configured = asked.early, asked.configured
                self._hub.start(live, asked.call())
            visit.trace.joined = joined
            visit.trace.cache = "collapsed" if joined else cache
            try:
                await self.follow(visit, live, asked.request, caller)
            except RefusedError:
                end, begun = live.recording.end, live.recording.head is not None
                if not joined or again or visit.reply.started or end is None:
                    raise
                if not policy.starts_again(end.fault, begun=begun):
                    raise
                # The call it waited for came to nothing. It gets one more, its own or another's.
                again = True
            else:
                return

    def ask(self, visit: Visit, asked: Asked, caller: Caller) -> Ask:
        """By what others find this call; also what the line says of the cache."""
        request, body, trace = asked.request, asked.body, visit.trace
        fields = request.fields
        known = b""
        if body.more is None and (asked.dialect is not None or policy.takes_ids(fields)):
            known = identity(caller.scope, asked.route.name, request, body.kept)
        key = None
        if self._config.cache.mode != "off":
            trace.cache = "bypass"
            if asked.dialect is not None and body.more is None and policy.may_share(fields):
                key = exact_key(caller.scope, asked.route.name, request, body.kept)
                trace.cache = "miss" if key is not None else "bypass"
        return Ask(
            identity=known,
            key=key if self._shares else None,
            coding=fields.get(b"accept-encoding", b""),
            idempotency=fields.get(b"idempotency-key"),
        )

    # Reading a recording, from wherever.

    def _coming_back(self, request: Request, caller: Caller) -> tuple[str, int] | None:
        """The event after which a client wants to go on; None for a request of its own, which may carry
        an id that the upstream has set. Raises RefusedError for an id that is not this caller's."""
        found = event_id(request.fields.get(b"last-event-id", b""))
        if found is not None and not belongs(self._secret, caller.scope, found[0]):
            raise RefusedError("not_found", "no stream has such an event", close=False)
        return found

    def known(self, name: str) -> Live:
        """The call of an id that is the caller's own. Raises RefusedError when it is gone."""
        live = self._hub.find(name)
        if live is None:
            detail = "the stream was stopped, or is over and no longer kept; send the request again"
            raise RefusedError("gone", detail, close=False)
        return live

    @staticmethod
    def after(live: Live, number: int) -> int:
        """How many events a client has whose last id is that of event `number`. Raises RefusedError."""
        count = number + 1
        if count == live.answer.ids_until < live.answer.events:
            detail = "events without ids followed that one: it is not known how many of them you have"
            raise RefusedError("gone", detail, close=False)
        return count

    def stop(self, live: Live, fault: Fault) -> None:
        """End a call because somebody who may wants it."""
        self._hub.cancel(live, fault)

    async def follow(
        self,
        visit: Visit,
        live: Live,
        request: Request,
        caller: Caller,
        number: int = 0,
        *,
        resumed: bool = False,
        plain: bool = False,
    ) -> None:
        """Serve a recording from event `number` on, to its end. `plain`: just the upstream's response.

        Raises RefusedError, ClientGoneError.
        """
        trace, reply, fields = visit.trace, visit.reply, request.fields
        asked = intake.patience(fields.get(b"slipstream-disconnect"))
        ids = policy.takes_ids(fields) and not plain
        told = resumed and _told(live, number)
        try:
            offset = _offset(live, number, told=told)
            reader = self._hub.read(live, offset, back=resumed)
        except IndexError:
            raise RefusedError("not_found", "no stream has such an event", close=False) from None
        except ValueError:
            raise RefusedError("gone", "what followed is no longer kept", close=False) from None
        # What a job cost is told by the job's own line.
        visit.live, visit.dialect = None if plain else live, visit.dialect or live.answer.dialect
        trace.labels = live.labels
        if resumed:
            trace.joined, trace.resumed_from = True, number
            trace.cache = "bypass" if self._config.cache.mode != "off" else "off"
        try:
            if told and policy.stays_away(request.method, fields):
                trace.status, trace.stream_id = 204, live.name
                reply.start(204, b"No Content", (), sized=True)
                return
            view = View(
                interval=self._config.keepalive.interval,
                early=0.0 if plain else live.early,
                ids=ids,
                number=number,
                told=told,
                named=None if plain else lambda live: self._name(live, caller),
                fields=() if plain or resumed else self._cache_status(visit),
            )
            await Render(reply, trace, live, reader, visit.dialect, view).run()
        finally:
            visit.taken = reader.offset == live.recording.size and not reply.behind
            patience = policy.patience(
                asked=asked,
                configured=live.configured,
                resumable=ids and trace.stream_id is not None,
                short=self._config.resume.grace,
            )
            self._hub.leave(live, reader, patience)

    def _name(self, live: Live, caller: Caller) -> str:
        if live.name is None:
            self._hub.publish(live, mint(self._secret, caller.scope, "s"))
            assert live.name is not None
        return live.name

    @staticmethod
    def _cache_status(visit: Visit) -> tuple[tuple[bytes, bytes], ...]:
        if visit.trace.cache == "collapsed":
            return COLLAPSED
        if visit.trace.cache == "off" or visit.dialect is None:
            return ()
        return MISS if visit.trace.cache == "miss" else BYPASS


def _told(live: Live, number: int) -> bool:
    """Whether a client with that many events has all of a stream, to the error that ended it."""
    end, last = live.recording.end, len(live.recording.events)
    return end is not None and number == (last if end.fault is None else last + 1)


def _offset(live: Live, number: int, *, told: bool) -> int:
    """Where the client with that many events goes on. Raises IndexError when there were not so many."""
    recording = live.recording
    known = len(recording.events)
    if number == known + 1 and recording.end is None and live.answer.blank_begun:
        return recording.size  # the id went out with the CR that began the blank line
    return recording.after(known if told else number)
