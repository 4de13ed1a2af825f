"""Reading what a request asks for: where it goes, what of it counts, by what others find its answer."""

from collections.abc import Callable

import msgspec

from sidecar.cache.inquiry import Inquiry, Place
from sidecar.config import Config
from sidecar.core import policy
from sidecar.core.answer import Answer
from sidecar.core.caching import NO_WISH, Wish, refused, wish
from sidecar.core.canonical import LARGEST
from sidecar.core.dialects import Dialect
from sidecar.core.errors import RefusedError
from sidecar.core.fingerprint import Caller, Keys, identity, keys, shared_scope
from sidecar.core.latency import Labels
from sidecar.core.types import Intent, Request
from sidecar.engine.pump import Ask, Keep, Live
from sidecar.engine.source import Call
from sidecar.serving import intake
from sidecar.serving.backend import Backend
from sidecar.serving.render import EARLY_TYPE
from sidecar.serving.routes import Route, provider
from sidecar.serving.shell import Arriving, Body
from sidecar.serving.visit import NAME, Visit

_PATH = 1024
"""Characters of a path that records repeat."""
_REMEMBERED = 4096
"""Requests whose keys are remembered, so that a body that comes again is not parsed again."""


class Asked(msgspec.Struct):
    """A request that can be sent upstream, and what is known of it."""

    backend: Backend
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
    plain: bool = False
    """Whether the answer is asked for uncompressed, whatever the client takes."""
    wish: Wish = NO_WISH
    similarity: float | None = None
    """How near another question has to be for its answer, at least."""
    raw: Arriving | None = None
    """The request as it came; None for a job of which only what is on disk is left."""
    job: str | None = None
    """The id of that job."""
    detached: bool = False
    """The call is nobody's who waits for it."""

    def start(self, live: Live) -> None:
        """Begin to make the answer of which `live` is the record. Raises RefusedError."""
        self.backend.start(live, self)

    def call(self) -> Call:
        """The call itself. Made once: it may hold the rest of a body that streams past."""
        return intake.call(self.request, self.route, self.body, identity=self.plain)

    def answer(self) -> Answer:
        """The reading of what will come back."""
        return Answer(self.request, self.dialect, self.intent)


class Asks:
    """Reads them. One per process."""

    def __init__(
        self,
        config: Config,
        backend: Backend,
        secret: bytes,
        count: Callable[[str], None],
        generation: Callable[[], int] = lambda: 0,
    ) -> None:
        """`count` is told why an answer is not going to be stored; `generation` is the store's."""
        self._count = count
        self._generation = generation
        self._config = config
        self._backend = backend
        self._routes = backend.routes
        self._secret = secret
        self._cache = config.cache
        self._compares = config.cache.mode in ("semantic", "shadow")
        self._keys: dict[bytes, Keys | None] = {}

    def reload(self, config: Config) -> None:
        """Go by that configuration from now on."""
        self._config = config

    def route(self, request: Request, path: str, root: str = "") -> Route:
        """Where it goes. `path`: what may be said of the request's path. Raises RefusedError."""
        route = self._backend.route(request, root)
        if route is None:
            detail = f"{path[:200]}: is /v1 missing in the base URL? Else configure --upstream"
            raise RefusedError("no_upstream", detail, close=False)
        return route

    async def receive(self, visit: Visit, raw: Arriving, request: Request, *, whole: bool) -> Asked:
        """Read what is asked. `whole`: the body is needed, whatever the path. Raises RefusedError."""
        route = self.route(request, visit.trace.path, raw.root)
        visit.trace.labels = Labels(route.name)
        keep = self._config.limits.body if whole or visit.dialect is not None else 0
        body = await raw.body(request, keep=keep)
        visit.trace.waited = body.waited
        asked = self.asked(request, route, body, raw=raw)
        visit.dialect, visit.trace.labels = asked.dialect, asked.labels
        return asked

    def queued(self, asked: Asked, job: str) -> None:
        """It is going to be started later, as the job of that id."""
        self._backend.queued(asked, job)

    def unqueued(self, job: str) -> None:
        """It is not."""
        self._backend.unqueued(job)

    def asked(
        self,
        request: Request,
        route: Route,
        body: Body,
        *,
        raw: Arriving | None = None,
        job: str | None = None,
    ) -> Asked:
        """What a request asks for; see `Asked` for `raw` and `job`."""
        dialect = self._backend.dialect(request, body)
        intent = intake.intent(dialect, request, body)
        early = 0.0
        if dialect is not None and intent.stream and dialect.framing_of(request.query) in EARLY_TYPE:
            early = self._config.keepalive.early
        labels = Labels(
            upstream=route.name,
            provider=provider(dialect, route.origin) if dialect is not None else None,
            operation=(dialect.operation or None) if dialect is not None else None,
            model=intent.model and intent.model[:NAME],
            stream=intent.stream,
        )
        patience = intake.patience(request.fields.get(b"slipstream-disconnect"))
        # Whoever comes back without saying so wants what the request that began it wanted.
        configured = self._routes.patience(request.path, route) if patience is None else patience
        said = wish(request.fields)
        # What will have been sent of the head, or is to be stored, must not be compressed.
        plain = early > 0
        if self._cache.uncompressed and self._cache.mode != "off" and dialect is not None and said.write:
            plain = plain or self._routes.terms(request.path, route).ttl > 0
        near = intake.similarity(request.fields.get(b"slipstream-similarity"))
        return Asked(
            self._backend,
            request,
            route,
            dialect,
            body,
            intent,
            labels,
            early,
            configured,
            plain,
            said,
            near,
            raw,
            job,
        )

    def ask(self, visit: Visit, asked: Asked, caller: Caller) -> Ask:
        """By what others find its call and its answer; also what the line says of the cache."""
        request, body, dialect, fields = asked.request, asked.body, asked.dialect, asked.request.fields
        counted = self._backend.counted(request)
        known = b""
        if body.more is None and (dialect is not None or policy.takes_ids(fields)):
            known = identity(caller.scope, asked.route.place, counted, body.kept)
        key = None
        keep: Keep | None = None
        read = False
        if self._cache.mode != "off":
            read = asked.wish.read
            if dialect is not None and known and self._backend.shared(request, asked.raw):
                found = self._keys_of(known, asked, counted, dialect, caller)
                if found is None:
                    self._count("not_stored_unkeyed")
                else:
                    # What is shared with other credentials is found by all, but only once it is over.
                    key = found.exact if self._cache.share == "credential" else found.exact + caller.scope
                    keep = self._keep(asked, counted, found, caller)
            plain = key is not None and read and not asked.intent.stateful
            visit.trace.cache = "miss" if plain else "bypass"
        return Ask(
            identity=known,
            key=key,
            coding=fields.get(b"accept-encoding", b""),
            idempotency=fields.get(b"idempotency-key"),
            alone=not (read and self._cache.collapse) or asked.intent.stateful,
            keep=keep,
        )

    def _keys_of(
        self, known: bytes, asked: Asked, counted: Request, dialect: Dialect, caller: Caller
    ) -> Keys | None:
        """The keys; they follow from the request's identity, which is cheaper to have. `counted`: the
        request as far as it counts."""
        scope = self._scope(asked, caller)
        known += scope  # it may change while the process runs: keys and clients are read again
        if known in self._keys:
            return self._keys[known]
        made = keys(
            scope,
            asked.route.place,
            counted,
            asked.body.kept,
            dialect,
            stream=asked.intent.stream,
            ignored=self._cache.ignore,
        )
        if len(self._keys) >= _REMEMBERED:
            self._keys.clear()
        self._keys[known] = made
        return made

    def _keep(self, asked: Asked, counted: Request, found: Keys, caller: Caller) -> Keep | None:
        terms = self._routes.terms(asked.request.path, asked.route)
        if (reason := refused(asked.intent, asked.wish, terms)) is not None:
            self._count(f"not_stored_{reason}")
            return None
        query = "alt=sse" if "alt=sse" in asked.request.query.split("&") else ""
        tag, path = caller.scope[:8].hex(), asked.request.path
        inquiry = self._inquiry(asked, counted, caller)
        return Keep(found, terms, tag, path, query, self._generation(), inquiry, caller.key)

    def _inquiry(self, asked: Asked, counted: Request, caller: Caller) -> Inquiry | None:
        """What is asked, for whoever wants to compare it; None where that is of no use. The body is parsed
        when it is read, and not before."""
        request, route, dialect, body = asked.request, asked.route, asked.dialect, asked.body.kept
        if dialect is None or not self._compares or not self._backend.asks(dialect) or len(body) > LARGEST:
            return None
        named = request.fields.get(b"slipstream-namespace")
        namespace = named.decode("utf-8", "replace") if named is not None else None
        if caller.namespace is not None:
            # What goes for that one cannot be left by naming another one.
            threshold = self._routes.threshold(request.path, route, caller.namespace)
            namespace = f"{caller.namespace}/{namespace}" if namespace is not None else caller.namespace
        else:
            threshold = self._routes.threshold(request.path, route, namespace)
        scope, ignored, ask = self._scope(asked, caller), self._cache.ignore, self._backend.question
        return Inquiry(
            lambda: ask(scope, route.place, counted, body, dialect, ignored),
            Place(route.name, request.path[:_PATH], namespace and namespace[:NAME]),
            max(threshold, asked.similarity or 0.0),
            self._config.semantic.longest,
        )

    def _scope(self, asked: Asked, caller: Caller) -> bytes:
        """Who shares what is stored."""
        if self._cache.share == "credential":
            return caller.scope
        return shared_scope(self._secret, caller, asked.request)
